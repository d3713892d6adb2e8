//! The configuration of a run: command line and environment, validated.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::error::ErrorKind;

use args::{AdoptArg, ChangesArgs, Color, KubernetesArgs, MappingArgs, Policy, StoreArgs};
pub use args::{Cli, LogFormat, Look};
pub(crate) use args::{Format, Generate};
pub use env::{parse, unread_variables};

use crate::kube::{self, Namespaces, Source, namespaces_mix};
use crate::layout::{self, Layout};
use crate::metrics;
use crate::model::{ClusterName, Scope};
use crate::reconcile::map::Mapping;
use crate::reconcile::plan::{Adopt, Rules};
use crate::report::etcdctl::{Access, Api, NO_ETCDCTL};
use crate::report::{Etcdctl, Reporter, Style};
use crate::store::{self, endpoints::Endpoint};

mod args;
mod env;
mod generate;
mod help;

/// The validated configuration of a run.
pub struct Config {
    /// The read-only command, if one is given.
    look: Option<Look>,
    /// The owner of this run's entries; empty for `status` without `--owner`.
    pub owner: String,
    /// The source of the pods.
    pub source: Source,
    /// The cluster's name, if it was given.
    pub cluster: Option<ClusterName>,
    /// How pods become servers.
    pub mapping: Mapping,
    /// The store to read and write.
    pub store: store::Source,
    /// How suggested commands reach the store.
    pub etcdctl: Etcdctl,
    /// The proxy's layout of keys and values.
    pub layout: Rc<dyn Layout>,
    /// Options of what may be changed.
    changes: ChangesArgs,
    /// Which entries to adopt.
    adopt: Adopt,
    /// Print the plan and write nothing.
    pub dry_run: bool,
    /// Output and log.
    pub output: Output,
    /// Where to write metrics.
    pub metrics: metrics::Targets,
    /// Time limit of the whole run.
    pub timeout: Duration,
    /// Time limit of one attempt at a request.
    pub request_timeout: Duration,
}

/// Options of output and log, validated.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// The format of stdout.
    pub format: Format,
    /// Exit with 4 if there are changes.
    pub exit_code: bool,
    /// Exit code of a run that ends with an alarm.
    pub alarm_exit_code: u8,
    /// Whether to use colour; `None` if that depends on stdout being a terminal.
    pub color: Option<bool>,
    /// The width of a line, in columns.
    pub width: usize,
    /// The format of the log.
    pub log_format: LogFormat,
    /// The number of `-v`.
    pub verbose: u8,
    /// Print nothing when in sync.
    pub quiet: bool,
}

impl Cli {
    /// Validates what clap cannot, and reads the environment variables of kubectl and etcdctl.
    ///
    /// # Errors
    /// A usage error, ready to be printed.
    pub fn config(self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, clap::Error> {
        let Self {
            owner,
            generate: _,
            look,
            kubernetes,
            mapping,
            store,
            changes,
            output,
        } = self;
        let is_status = matches!(look, Some(Look::Status { .. }));
        let owner = match owner {
            Some(owner) => owner,
            None if is_status => String::new(),
            None => {
                return Err(usage(
                    "`--owner NAME` is required: it marks the entries of this job",
                ));
            }
        };
        let dry_run = changes.dry_run || look.is_some();
        let (store, etcdctl, layout) = store.store(env)?;
        if !is_status {
            let checked = layout.check_owner(&owner);
            checked.map_err(|error| usage(&error.to_string()))?;
        }
        let mapping = mapping.mapping(Rc::clone(&layout));
        let cluster = kubernetes.cluster.clone();
        let source = kubernetes.source(look.as_ref(), env);
        if !is_status && source.mixes(&mapping.backend) {
            return Err(usage(&namespaces_mix(&mapping.backend)));
        }
        let adopt = changes.adopt(&owner)?;
        let no_color = env("NO_COLOR").is_some_and(|value| !value.is_empty());
        Ok(Config {
            look,
            owner,
            source,
            cluster,
            mapping,
            store,
            etcdctl,
            layout,
            changes,
            adopt,
            dry_run,
            timeout: output.timeout,
            request_timeout: output.request_timeout,
            // Dry runs write no metrics.
            metrics: if dry_run {
                metrics::Targets::default()
            } else {
                metrics::Targets {
                    file: output.metrics_file,
                    push: output.metrics_push,
                }
            },
            output: Output {
                format: output.output,
                exit_code: output.exit_code,
                alarm_exit_code: output.alarm_exit_code,
                color: match output.color {
                    Color::Always => Some(true),
                    Color::Never => Some(false),
                    Color::Auto => no_color.then_some(false),
                },
                width: columns(env),
                log_format: output.log_format,
                verbose: output.verbose,
                quiet: output.quiet,
            },
        })
    }
}

impl Look {
    /// The namespace of `explain NAMESPACE/POD`.
    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Explain { pod } => Some(pod.split_once('/')?.0),
            Self::Status { .. } => None,
        }
    }
}

impl Config {
    /// The read-only command, if one is given.
    #[must_use]
    pub fn look(&self) -> Option<&Look> {
        self.look.as_ref()
    }

    /// The hash of the only plan that may be applied, if one is given.
    #[must_use]
    pub(crate) fn expected(&self) -> Option<&str> {
        self.changes.expect.as_deref()
    }

    /// The rules of this run. `cluster` is the cluster's fingerprint, which `--cluster` names or replaces.
    #[must_use]
    pub fn rules(&self, cluster: String) -> Rules {
        let (labels, fields) = match &self.source {
            Source::Api { labels, fields, .. } => (labels.as_deref(), fields.as_deref()),
            Source::File(_) => (None, None),
        };
        let cluster = ClusterName::cluster(self.cluster.as_ref(), cluster);
        let changes = &self.changes;
        Rules {
            owner: self.owner.clone(),
            scope: Scope::new(cluster, labels, fields),
            adopt: self.adopt.clone(),
            share_backends: changes.share_backends,
            create_backends: changes.create_backends,
            strict_ready: changes.strict_ready,
            allow_empty: changes.allow_empty,
            allow_deletes: changes.allow_deletes,
            max_deletes: changes.max_deletes,
            upsert_only: changes.policy == Policy::UpsertOnly,
        }
    }

    /// The reporter that prints this run's results to `out`.
    pub fn reporter<'o>(&'o self, out: &'o mut dyn Write) -> Reporter<'o> {
        Reporter {
            out,
            format: self.output.format,
            style: Style {
                color: self.output.color.unwrap_or(false),
                width: self.output.width,
                etcdctl: &self.etcdctl,
            },
            quiet: self.output.quiet,
            owner: &self.owner,
        }
    }
}

impl KubernetesArgs {
    fn source(self, look: Option<&Look>, env: &dyn Fn(&str) -> Option<OsString>) -> Source {
        let KubernetesArgs {
            kubeconfig,
            context,
            namespace,
            all_namespaces,
            selector,
            field_selector,
            cluster: _,
            pods,
        } = self;
        match pods {
            Some(file) => Source::File(file),
            None => Source::Api {
                options: Box::new(kube::Options::from_env(kubeconfig, context, env)),
                namespaces: if all_namespaces {
                    Namespaces::All
                } else if namespace.is_empty() {
                    look.and_then(Look::namespace)
                        .map_or(Namespaces::Default, |namespace| {
                            Namespaces::Named([namespace.to_owned()].into())
                        })
                } else {
                    Namespaces::Named(namespace.into_iter().collect())
                },
                labels: selector.filter(|text| !text.trim().is_empty()),
                fields: field_selector.filter(|text| !text.trim().is_empty()),
            },
        }
    }
}

impl ChangesArgs {
    fn adopt(&self, owner: &str) -> Result<Adopt, clap::Error> {
        let mut adopted = Adopt::default();
        for adopt in &self.adopt {
            match adopt {
                AdoptArg::Unmarked => adopted.unmarked = true,
                AdoptArg::Scope => adopted.scope = true,
                AdoptArg::Owner(name) if name == owner => {
                    return Err(usage("`--adopt owner:NAME` takes over from another owner"));
                }
                AdoptArg::Owner(name) => {
                    adopted.owners.insert(name.clone());
                }
            }
        }
        Ok(adopted)
    }
}

impl MappingArgs {
    fn mapping(self, layout: Rc<dyn Layout>) -> Mapping {
        let Self {
            backend_label,
            backend,
            port,
            scheme,
            ip_family,
            server_id,
            annotation_prefix,
        } = self;
        Mapping {
            annotation_prefix,
            backend_labels: backend_label,
            backend,
            port,
            scheme,
            ip_family,
            server_id,
            layout,
        }
    }
}

impl StoreArgs {
    fn store(
        self,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(store::Source, Etcdctl, Rc<dyn Layout>), clap::Error> {
        let Self {
            etcd,
            etcd_api,
            cacert,
            cert,
            key,
            user,
            password_file,
            store_file,
            layout,
            prefix,
        } = self;
        // Reads the first variable that is set. Those of etcdctl for version 2 count with `--etcd-api 2`
        // only.
        let v2 = etcd_api == Api::V2;
        let value = |names: &[&str]| {
            let names = names
                .iter()
                .filter(|name| v2 || !V2_VARIABLES.contains(name));
            let mut values = names.filter_map(|name| env(name));
            values.find(|value| !value.is_empty())
        };
        let text = |names: &[&str]| value(names)?.into_string().ok();
        let path = |names: &[&str]| value(names).map(PathBuf::from);
        let options = layout::Options {
            prefix,
            etcd_v2: etcd_api == Api::V2 && store_file.is_none(),
        };
        let layout = layout::open(&layout, options).map_err(|error| usage(&error.to_string()))?;
        if let Some(file) = store_file {
            return Ok((store::Source::File(file), NO_ETCDCTL, layout));
        }
        // Options only, no variables: etcdctl refuses a flag that its environment sets, too.
        let file = |file: &Option<PathBuf>| Some(file.as_ref()?.to_str()?.to_owned());
        let access = Access {
            endpoints: (!etcd.is_empty()).then(|| etcd.join(",")),
            cacert: file(&cacert),
            cert: file(&cert),
            key: file(&key),
            user: user.clone(),
        };
        let mut endpoints = etcd;
        if endpoints.is_empty() {
            let names = ["ETCDCTL_ENDPOINTS", "ETCDCTL_ENDPOINT", "ETCDCTL_PEERS"];
            let given = text(&names).unwrap_or_default();
            endpoints = given.split(',').map(str::trim).map(str::to_owned).collect();
        }
        endpoints.retain(|endpoint| !endpoint.is_empty());
        if endpoints.is_empty() {
            return Err(usage("no store: give `--etcd URL` or `--store-file FILE`"));
        }
        for endpoint in &endpoints {
            // Any default scheme will do: only errors matter here.
            Endpoint::parse(endpoint, "http").map_err(|error| usage(&error.to_string()))?;
        }
        let cacert = cacert.or_else(|| path(&["ETCDCTL_CA_FILE", "ETCDCTL_CACERT"]));
        let identity = match (
            cert.or_else(|| path(&["ETCDCTL_CERT_FILE", "ETCDCTL_CERT"])),
            key.or_else(|| path(&["ETCDCTL_KEY_FILE", "ETCDCTL_KEY"])),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(usage("`--cert` and `--key` go together")),
        };
        let user = etcd_user(user, password_file, &text)?;
        let dial_timeout = match text(&["ETCDCTL_DIAL_TIMEOUT"]) {
            Some(given) => Some(
                args::duration(&given)
                    .map_err(|why| usage(&format!("`ETCDCTL_DIAL_TIMEOUT` is `{given}`: {why}")))?,
            ),
            None => None,
        };
        Ok((
            store::Source::Etcd {
                api: etcd_api,
                endpoints,
                cacert,
                identity,
                user,
                dial_timeout,
            },
            Etcdctl::new(etcd_api, &access),
            layout,
        ))
    }
}

/// The user of etcd and where the password is. `text` reads the first of these variables that is set.
fn etcd_user(
    user: Option<String>,
    password_file: Option<PathBuf>,
    text: &dyn Fn(&[&str]) -> Option<String>,
) -> Result<Option<(String, store::Password)>, clap::Error> {
    let mut password = text(&["VULCANIZED_PASSWORD"]);
    // `name:password`, as etcdctl takes it. Split, because messages repeat the name.
    let user = user.or_else(|| text(&["ETCDCTL_USERNAME", "ETCDCTL_USER"]));
    let user = user.map(|given| match given.split_once(':') {
        Some((name, secret)) => {
            password.get_or_insert_with(|| secret.to_owned());
            name.to_owned()
        }
        None => given,
    });
    // `--password-file` wins over etcdctl's variable.
    if password_file.is_none() {
        password = password.or_else(|| text(&["ETCDCTL_PASSWORD"]));
    }
    match (user, password_file, password) {
        (None, None, _) => Ok(None),
        (None, Some(_), _) => Err(usage("`--password-file` needs `--user`")),
        (Some(name), Some(file), _) => Ok(Some((name, store::Password::File(file)))),
        (Some(name), None, Some(password)) => Ok(Some((name, store::Password::Given(password)))),
        (Some(name), None, None) => Err(usage(&format!(
            "user `{name}` needs a password: set `VULCANIZED_PASSWORD` or give `--password-file`"
        ))),
    }
}

/// The environment variables that only etcdctl for version 2 reads.
const V2_VARIABLES: [&str; 6] = [
    "ETCDCTL_ENDPOINT",
    "ETCDCTL_PEERS",
    "ETCDCTL_CA_FILE",
    "ETCDCTL_CERT_FILE",
    "ETCDCTL_KEY_FILE",
    "ETCDCTL_USERNAME",
];

/// The width of the output in columns: `COLUMNS`, else that of the terminal on stdout, else 80.
fn columns(env: &dyn Fn(&str) -> Option<OsString>) -> usize {
    let given = env("COLUMNS").and_then(|text| text.into_string().ok()?.parse().ok());
    let terminal = || {
        let (width, _) = terminal_size::terminal_size_of(std::io::stdout())?;
        Some(width.0.into())
    };
    given
        .or_else(terminal)
        .filter(|width| *width > 0)
        .unwrap_or(80)
}

/// A usage error as clap prints it.
fn usage(message: &str) -> clap::Error {
    env::command().error(ErrorKind::ValueValidation, message)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn variables_of_etcdctl() {
        let read = |api: &str, set: &[(&str, &str)]| {
            let arguments = format!("vulcanized --owner a --pods - --etcd-api {api}");
            let cli = Cli::try_parse_from(arguments.split(' ')).expect("parsed");
            let env = |name: &str| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            match cli.config(&env).map_err(|error| error.to_string())?.store {
                store::Source::Etcd {
                    endpoints,
                    cacert,
                    identity,
                    user,
                    dial_timeout,
                    ..
                } => Ok(format!(
                    "{endpoints:?} {cacert:?} {identity:?} {:?} {dial_timeout:?}",
                    user.map(|(name, _)| name)
                )),
                store::Source::File(_) => Err("a file".to_owned()),
            }
        };
        let v3 = [
            ("ETCDCTL_ENDPOINTS", "http://a:1,http://b:1"),
            ("ETCDCTL_CACERT", "ca"),
            ("ETCDCTL_DIAL_TIMEOUT", "2s"),
            ("ETCDCTL_CERT", ""),
        ];
        let wanted = r#"["http://a:1", "http://b:1"] Some("ca") None None Some(2s)"#;
        assert_eq!(read("3", &v3).as_deref(), Ok(wanted));
        let v2 = [
            ("ETCDCTL_PEERS", "http://p:1"),
            ("ETCDCTL_CA_FILE", "ca"),
            ("ETCDCTL_CERT_FILE", "crt"),
            ("ETCDCTL_KEY_FILE", "key"),
            ("ETCDCTL_USERNAME", "me:secret"),
        ];
        let wanted = r#"["http://p:1"] Some("ca") Some(("crt", "key")) Some("me") None"#;
        assert_eq!(read("2", &v2).as_deref(), Ok(wanted));
        let [endpoint, ..] = v2;
        let both = [endpoint, ("ETCDCTL_ENDPOINT", "http://e:1")];
        assert!(read("2", &both).is_ok_and(|read| read.contains("http://e:1")));
        assert!(read("3", &v2).is_err_and(|error| error.contains("no store")));
        let bad = [("ETCDCTL_DIAL_TIMEOUT", "soon"), v3[0]];
        assert!(
            read("3", &bad).is_err_and(|error| error.contains("`ETCDCTL_DIAL_TIMEOUT` is `soon`"))
        );
    }

    #[test]
    fn a_password_beside_the_user_is_not_part_of_the_name() {
        let user = |given: &str, variable: Option<&str>| {
            let arguments = "vulcanized --owner a --pods - --etcd http://h --user";
            let cli = Cli::try_parse_from(arguments.split(' ').chain([given])).expect("parsed");
            let env = |name: &str| match name {
                "VULCANIZED_PASSWORD" => variable.map(OsString::from),
                "ETCDCTL_PASSWORD" if given == "etcdctl" || variable.is_some() => {
                    Some("its own".into())
                }
                _ => None,
            };
            match cli.config(&env).map_err(|error| error.to_string())?.store {
                store::Source::Etcd {
                    user: Some((name, store::Password::Given(password))),
                    ..
                } => Ok((name, password)),
                _ => Err("no user".to_owned()),
            }
        };
        let given = |name: &str, password: &str| Ok((name.to_owned(), password.to_owned()));
        assert_eq!(user("root:s3cret", None), given("root", "s3cret"));
        assert_eq!(user("root:a:b", None), given("root", "a:b"));
        assert_eq!(user("root:s3cret", Some("other")), given("root", "other"));
        assert_eq!(user("etcdctl", None), given("etcdctl", "its own"));
        assert!(user("root", None).is_err_and(|error| error.contains("user `root` needs")));
    }
}
