//! The command line: declared with clap, then checked and turned into what the rest works with.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::builder::{FalseyValueParser, PossibleValuesParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory as _, Parser, ValueEnum};

use crate::kube;
use crate::layout::{self, LAYOUTS, Layout, Unsupported};
use crate::model::{ClusterName, Scheme, Scope, check_name};
use crate::reconcile::map::{IpFamily, Mapping, PortRef};
use crate::reconcile::plan::{Adopt, DeleteLimit, Rules};
use crate::reconcile::template::Template;
use crate::report::etcdctl::{Access, Api, NO_ETCDCTL};
use crate::report::{Etcdctl, Reporter, Style};

/// Keeps an external load balancer pointed at the live pods of a Kubernetes cluster.
///
/// One run lists the servers in the proxy's store, then the pods, and applies just the difference.
/// It is safe to run as often as you like.
#[derive(Parser, Debug)]
#[command(
    version,
    max_term_width = 100,
    override_usage = "vulcanized --owner <NAME> [OPTIONS]"
)]
#[command(
    after_help = "Exit codes: 0 done or in sync, 1 failed, 2 usage, 3 something was held, out of \
                        scope, not shared, duplicate or in conflict, 4 `--exit-code` and there are changes."
)]
pub struct Cli {
    /// Name of this job: it changes only entries that carry it. 1 to 32 of a-z, 0-9 and `-`
    #[arg(
        long,
        value_name = "NAME",
        env = "VULCANIZED_OWNER",
        hide_env_values = true
    )]
    #[arg(value_parser = check_name, required_unless_present = "generate")]
    owner: Option<String>,
    /// Print a shell's completions, or the man page
    #[arg(long, hide = true, value_name = "WHAT", exclusive = true)]
    generate: Option<Generate>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    changes: ChangesArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
struct KubernetesArgs {
    /// Kubeconfig to use; without it `KUBECONFIG`, the service account, `~/.kube/config`
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_KUBECONFIG",
        hide_env_values = true
    )]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(
        long,
        value_name = "NAME",
        env = "VULCANIZED_CONTEXT",
        hide_env_values = true
    )]
    context: Option<String>,
    /// Namespace to list, repeatable; without it the context's or the service account's
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "VULCANIZED_NAMESPACE",
        hide_env_values = true
    )]
    #[arg(value_delimiter = ',', value_parser = namespace, conflicts_with = "all_namespaces")]
    namespace: Vec<String>,
    /// List the pods of all namespaces
    #[arg(
        short = 'A',
        long,
        env = "VULCANIZED_ALL_NAMESPACES",
        hide_env_values = true
    )]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    all_namespaces: bool,
    /// Label selector: only these pods count
    #[arg(
        short = 'l',
        long,
        value_name = "LABELS",
        env = "VULCANIZED_SELECTOR",
        hide_env_values = true
    )]
    selector: Option<String>,
    /// Field selector: only these pods count
    #[arg(
        long,
        value_name = "FIELDS",
        env = "VULCANIZED_FIELD_SELECTOR",
        hide_env_values = true
    )]
    field_selector: Option<String>,
    /// Name of the cluster, put before its fingerprint in the scope; or all of it: `main@3f2a91c0`
    #[arg(
        long,
        value_name = "NAME",
        env = "VULCANIZED_CLUSTER",
        hide_env_values = true
    )]
    #[arg(value_parser = ClusterName::parse)]
    cluster: Option<ClusterName>,
    /// Read the pods from `kubectl get pods -o json` output instead; `-` is stdin
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_PODS",
        hide_env_values = true
    )]
    #[arg(conflicts_with_all = ["kubeconfig", "context", "namespace", "all_namespaces", "selector", "field_selector"])]
    pods: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Mapping")]
struct MappingArgs {
    /// Label that names the backend, repeatable: the first one present wins
    #[arg(
        long,
        value_name = "KEY",
        env = "VULCANIZED_BACKEND_LABEL",
        hide_env_values = true
    )]
    #[arg(
        value_delimiter = ',',
        default_value = "app.kubernetes.io/name,app,name"
    )]
    backend_label: Vec<String>,
    /// Id of the backend: {namespace} {name} {pod} {ip} {port} {label:KEY} {annotation:KEY}
    #[arg(
        long,
        value_name = "TEMPLATE",
        env = "VULCANIZED_BACKEND",
        hide_env_values = true
    )]
    #[arg(default_value = "{name}", value_parser = Template::parse)]
    backend: Template,
    /// Port to publish, by name or number; without it `http`, else the only TCP port
    #[arg(
        long,
        value_name = "NAME|NUMBER",
        env = "VULCANIZED_PORT",
        hide_env_values = true
    )]
    #[arg(value_parser = PortRef::parse)]
    port: Option<PortRef>,
    /// Scheme to publish
    #[arg(
        long,
        env = "VULCANIZED_SCHEME",
        hide_env_values = true,
        default_value = "http"
    )]
    scheme: SchemeArg,
    /// Address family to publish; without it the pod's primary address
    #[arg(
        long,
        value_name = "FAMILY",
        env = "VULCANIZED_IP_FAMILY",
        hide_env_values = true
    )]
    ip_family: Option<FamilyArg>,
    /// Id of the server in its backend: the same fields
    #[arg(
        long,
        value_name = "TEMPLATE",
        env = "VULCANIZED_SERVER_ID",
        hide_env_values = true
    )]
    #[arg(default_value = "{ip}", value_parser = Template::parse)]
    server_id: Template,
    /// Prefix of the annotations `backend`, `port`, `scheme` and `ignore`
    #[arg(
        long,
        value_name = "PREFIX",
        env = "VULCANIZED_ANNOTATION_PREFIX",
        hide_env_values = true
    )]
    #[arg(default_value = "vulcanized.io/")]
    annotation_prefix: String,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Store")]
struct StoreArgs {
    /// Endpoints of etcd, tried in order [env: also `ETCDCTL_ENDPOINTS`]
    #[arg(
        long,
        value_name = "URL,…",
        env = "VULCANIZED_ETCD",
        hide_env_values = true
    )]
    #[arg(value_delimiter = ',', conflicts_with = "store_file")]
    etcd: Vec<String>,
    /// Version of etcd's API
    #[arg(
        long,
        value_name = "VERSION",
        env = "VULCANIZED_ETCD_API",
        hide_env_values = true
    )]
    #[arg(default_value = "3")]
    etcd_api: ApiArg,
    /// CA certificates to trust; without it the system's [env: also `ETCDCTL_CACERT`]
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_CACERT",
        hide_env_values = true
    )]
    cacert: Option<PathBuf>,
    /// Client certificate [env: also `ETCDCTL_CERT`]
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_CERT",
        hide_env_values = true
    )]
    cert: Option<PathBuf>,
    /// Key of the client certificate [env: also `ETCDCTL_KEY`]
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_KEY",
        hide_env_values = true
    )]
    key: Option<PathBuf>,
    /// User; its password from `VULCANIZED_PASSWORD`, a file, or `ETCDCTL_USER=name:password`
    #[arg(
        long,
        value_name = "NAME",
        env = "VULCANIZED_USER",
        hide_env_values = true
    )]
    user: Option<String>,
    /// File that holds the password
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_PASSWORD_FILE",
        hide_env_values = true
    )]
    password_file: Option<PathBuf>,
    /// Keep keys and values in this JSON file instead of etcd; created when absent
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_STORE_FILE",
        hide_env_values = true
    )]
    store_file: Option<PathBuf>,
    /// Layout of the keys
    #[arg(
        long,
        env = "VULCANIZED_LAYOUT",
        hide_env_values = true,
        default_value = "vulcand"
    )]
    #[arg(value_parser = PossibleValuesParser::new(LAYOUTS.iter().map(|(name, _)| *name)))]
    layout: String,
    /// Prefix of all keys; without it `traefik`, or whichever of `/vulcand` and `vulcand` is used
    #[arg(
        long,
        value_name = "PREFIX",
        env = "VULCANIZED_PREFIX",
        hide_env_values = true
    )]
    #[arg(value_parser = prefix)]
    prefix: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Changes")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
struct ChangesArgs {
    /// Print what would be done, write nothing
    #[arg(long, env = "VULCANIZED_DRY_RUN", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    dry_run: bool,
    /// What is done: everything, or no deletes
    #[arg(
        long,
        env = "VULCANIZED_POLICY",
        hide_env_values = true,
        default_value = "sync"
    )]
    policy: PolicyArg,
    /// Take over entries for this run: `unmarked`, `scope` or `owner:NAME`, repeatable
    #[arg(long, value_name = "WHAT", value_parser = adopt)]
    adopt: Vec<AdoptArg>,
    /// Define backends that pods want and the store does not define
    #[arg(long, env = "VULCANIZED_CREATE_BACKENDS", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    create_backends: bool,
    /// Write into backends that hold another owner's servers
    #[arg(long, env = "VULCANIZED_SHARE_BACKENDS", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    share_backends: bool,
    /// Delete servers that are not ready even where no ready one is left
    #[arg(long, env = "VULCANIZED_STRICT_READY", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    strict_ready: bool,
    /// Treat any complete pod list as real, even one that shows none of our pods
    #[arg(long, env = "VULCANIZED_ALLOW_EMPTY", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    allow_empty: bool,
    /// Release all holds if this run removes at most N servers
    #[arg(long, value_name = "N")]
    allow_deletes: Option<usize>,
    /// Delete nothing if more servers than this would go: a number, or a share such as `10%`
    #[arg(
        long,
        value_name = "N|P%",
        env = "VULCANIZED_MAX_DELETES",
        hide_env_values = true
    )]
    #[arg(value_parser = DeleteLimit::parse)]
    max_deletes: Option<DeleteLimit>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// What is printed: a diff (or a line a change), one JSON document, or one line
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        env = "VULCANIZED_OUTPUT",
        hide_env_values = true
    )]
    #[arg(default_value = "diff")]
    output: Format,
    /// With `--dry-run`: exit with 4 if there are changes
    #[arg(
        long,
        requires = "dry_run",
        env = "VULCANIZED_EXIT_CODE",
        hide_env_values = true
    )]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    exit_code: bool,
    /// Write Prometheus metrics of each run to this file (not of dry runs)
    #[arg(
        long,
        value_name = "FILE",
        env = "VULCANIZED_METRICS_FILE",
        hide_env_values = true
    )]
    metrics_file: Option<PathBuf>,
    /// Colour: on a terminal, always or never [env: also `NO_COLOR`]
    #[arg(
        long,
        value_name = "WHEN",
        env = "VULCANIZED_COLOR",
        hide_env_values = true
    )]
    #[arg(default_value = "auto")]
    color: ColorArg,
    /// Format of the log on stderr
    #[arg(
        long,
        value_name = "FORMAT",
        env = "VULCANIZED_LOG_FORMAT",
        hide_env_values = true
    )]
    #[arg(default_value = "text")]
    log_format: LogFormat,
    /// Say more: `-v` why pods are left out, `-vv` requests, `-vvv` all [env: also `RUST_LOG`]
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Print nothing when in sync
    #[arg(short, long, env = "VULCANIZED_QUIET", hide_env_values = true)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    quiet: bool,
    /// How long the whole run may take
    #[arg(
        long,
        value_name = "TIME",
        env = "VULCANIZED_TIMEOUT",
        hide_env_values = true
    )]
    #[arg(default_value = "45s", value_parser = duration)]
    timeout: Duration,
    /// How long one attempt at a request may take
    #[arg(
        long,
        value_name = "TIME",
        env = "VULCANIZED_REQUEST_TIMEOUT",
        hide_env_values = true
    )]
    #[arg(default_value = "10s", value_parser = duration)]
    request_timeout: Duration,
}

/// What is generated from the declaration of the command line.
#[derive(ValueEnum, Debug, Clone, Copy)]
pub enum Generate {
    /// Completions for bash
    Bash,
    /// Completions for zsh
    Zsh,
    /// Completions for fish
    Fish,
    /// The man page
    Man,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum SchemeArg {
    Http,
    Https,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum FamilyArg {
    Ipv4,
    Ipv6,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ApiArg {
    #[value(name = "3")]
    V3,
    #[value(name = "2")]
    V2,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum PolicyArg {
    /// Creates, updates and deletes
    Sync,
    /// Creates and updates
    UpsertOnly,
}

/// What is printed on stdout.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Patches in a dry run, a line per change otherwise
    Diff,
    /// One JSON document
    Json,
    /// One line
    Summary,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum ColorArg {
    Auto,
    Always,
    Never,
}

/// How log lines look.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone)]
enum AdoptArg {
    Unmarked,
    Scope,
    Owner(String),
}

/// A run's configuration, checked.
pub struct Config {
    /// Whose entries are ours.
    pub owner: String,
    /// Where pods come from.
    pub source: Source,
    /// The cluster's name, if it was given.
    pub cluster: Option<ClusterName>,
    /// How pods become servers.
    pub mapping: Mapping,
    /// Where servers go.
    pub store: StoreConfig,
    /// How they are written.
    pub layout: Rc<dyn Layout>,
    /// What may be changed.
    pub changes: Changes,
    /// Print the plan and write nothing.
    pub dry_run: bool,
    /// What is said, and how.
    pub output: Output,
    /// Where metrics are written.
    pub metrics_file: Option<PathBuf>,
    /// How long the whole run may take.
    pub timeout: Duration,
    /// How long one attempt at a request may take.
    pub request_timeout: Duration,
}

/// Where pods come from.
pub enum Source {
    /// An API server.
    Api {
        /// How it is found and spoken to.
        options: Box<kube::Options>,
        /// Which namespaces are listed.
        namespaces: Namespaces,
        /// The label selector.
        labels: Option<String>,
        /// The field selector.
        fields: Option<String>,
    },
    /// What `kubectl get pods -o json` wrote to this file; `-` is stdin.
    File(String),
}

/// Which namespaces are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// The context's, or the service account's.
    Default,
    /// These.
    Named(BTreeSet<String>),
    /// All of the cluster.
    All,
}

/// Where servers go.
pub enum StoreConfig {
    /// etcd.
    Etcd {
        /// Which version of its API.
        api: Api,
        /// How suggested commands reach it.
        etcdctl: Etcdctl,
        /// Its endpoints, in order.
        endpoints: Vec<String>,
        /// CA certificates to trust.
        cacert: Option<PathBuf>,
        /// Client certificate and its key.
        identity: Option<(PathBuf, PathBuf)>,
        /// User, and where the password is.
        user: Option<(String, Password)>,
    },
    /// A file.
    File(PathBuf),
}

impl StoreConfig {
    /// How suggested commands reach it.
    #[must_use]
    pub fn etcdctl(&self) -> &Etcdctl {
        match self {
            Self::Etcd { etcdctl, .. } => etcdctl,
            Self::File(_) => &NO_ETCDCTL,
        }
    }
}

/// Where a password is.
pub enum Password {
    /// Here. Not printable on purpose.
    Given(String),
    /// In this file.
    File(PathBuf),
}

/// What may be changed: see [`crate::reconcile::plan::Rules`].
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
pub struct Changes {
    /// What is taken over.
    pub adopt: Adopt,
    /// `--create-backends`.
    pub create_backends: bool,
    /// `--share-backends`.
    pub share_backends: bool,
    /// `--strict-ready`.
    pub strict_ready: bool,
    /// `--allow-empty`.
    pub allow_empty: bool,
    /// `--allow-deletes`.
    pub allow_deletes: Option<usize>,
    /// `--max-deletes`.
    pub max_deletes: Option<DeleteLimit>,
    /// `--policy upsert-only`.
    pub upsert_only: bool,
}

/// What is said, and how.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// What is printed.
    pub format: Format,
    /// Exit with 4 if there are changes.
    pub exit_code: bool,
    /// With colour; `None` where stdout decides.
    pub color: Option<bool>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// `-v`, counted.
    pub verbose: u8,
    /// Print nothing when in sync.
    pub quiet: bool,
}

impl Cli {
    /// Prints what `--generate` asks for, if it does.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn generate(&self, out: &mut dyn Write) -> io::Result<bool> {
        use clap_complete::{Shell, generate};
        let Some(what) = self.generate else {
            return Ok(false);
        };
        let mut command = Self::command();
        let shell = match what {
            Generate::Bash => Shell::Bash,
            Generate::Zsh => Shell::Zsh,
            Generate::Fish => Shell::Fish,
            Generate::Man => return clap_mangen::Man::new(command).render(out).map(|()| true),
        };
        let mut text = Vec::new();
        generate(shell, &mut command, "vulcanized", &mut text);
        out.write_all(&text)?;
        Ok(true)
    }

    /// Checks what clap cannot, and looks up what other programs' environment variables say.
    ///
    /// # Errors
    /// A usage error, ready to be printed.
    pub fn config(self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, clap::Error> {
        let Self {
            owner,
            generate: _,
            kubernetes,
            mapping,
            store,
            changes,
            output,
        } = self;
        let owner = owner.ok_or_else(|| usage("`--owner NAME` is required"))?;
        let dry_run = changes.dry_run;
        let KubernetesArgs {
            kubeconfig,
            context,
            namespace,
            all_namespaces,
            selector,
            field_selector,
            cluster,
            pods,
        } = kubernetes;
        let (store, layout) = store.store(env)?;
        if !layout.takes_owner(&owner) {
            return Err(usage(
                "`--owner` needs a letter here: it begins the ids of Traefik's servers, and one of \
                 nothing but digits could be taken for an address",
            ));
        }
        let mapping = mapping.mapping(Rc::clone(&layout));
        let source = match pods {
            Some(file) => Source::File(file),
            None => Source::Api {
                options: Box::new(kube::Options::from_env(kubeconfig, context, env)),
                namespaces: if all_namespaces {
                    Namespaces::All
                } else if namespace.is_empty() {
                    Namespaces::Default
                } else {
                    Namespaces::Named(namespace.into_iter().collect())
                },
                labels: selector.filter(|text| !text.trim().is_empty()),
                fields: field_selector.filter(|text| !text.trim().is_empty()),
            },
        };
        if let Source::Api { namespaces, .. } = &source {
            let several = match namespaces {
                Namespaces::All => true,
                Namespaces::Named(names) => names.len() > 1,
                Namespaces::Default => false,
            };
            if several && !mapping.backend.separates_namespaces() {
                return Err(usage(&namespaces_mix(&mapping.backend)));
            }
        }
        let changes = changes.changes(&owner)?;
        let no_color = env("NO_COLOR").is_some_and(|value| !value.is_empty());
        Ok(Config {
            owner,
            source,
            cluster,
            mapping,
            store,
            layout,
            changes,
            dry_run,
            timeout: output.timeout,
            request_timeout: output.request_timeout,
            // A dry run is no run to be counted.
            metrics_file: output.metrics_file.filter(|_| !dry_run),
            output: Output {
                format: output.output,
                exit_code: output.exit_code,
                color: match output.color {
                    ColorArg::Always => Some(true),
                    ColorArg::Never => Some(false),
                    ColorArg::Auto => no_color.then_some(false),
                },
                log_format: output.log_format,
                verbose: output.verbose,
                quiet: output.quiet,
            },
        })
    }
}

impl Config {
    /// What this run may do, in a cluster that names itself `cluster` unless `--cluster` names it.
    #[must_use]
    pub fn rules(&self, cluster: String) -> Rules {
        let (labels, fields) = match &self.source {
            Source::Api { labels, fields, .. } => (labels.as_deref(), fields.as_deref()),
            Source::File(_) => (None, None),
        };
        let cluster = ClusterName::cluster(self.cluster.as_ref(), cluster);
        let changes = self.changes.clone();
        Rules {
            owner: self.owner.clone(),
            scope: Scope::new(cluster, labels, fields),
            adopt: changes.adopt,
            share_backends: changes.share_backends,
            create_backends: changes.create_backends,
            strict_ready: changes.strict_ready,
            allow_empty: changes.allow_empty,
            allow_deletes: changes.allow_deletes,
            max_deletes: changes.max_deletes,
            upsert_only: changes.upsert_only,
        }
    }

    /// What writes this run's results to `out`.
    pub fn reporter<'o>(&'o self, out: &'o mut dyn Write) -> Reporter<'o> {
        Reporter {
            out,
            format: self.output.format,
            style: Style {
                color: self.output.color.unwrap_or(false),
                etcdctl: self.store.etcdctl(),
            },
            quiet: self.output.quiet,
            owner: &self.owner,
        }
    }
}

impl ChangesArgs {
    fn changes(self, owner: &str) -> Result<Changes, clap::Error> {
        let ChangesArgs {
            dry_run: _,
            policy,
            adopt,
            create_backends,
            share_backends,
            strict_ready,
            allow_empty,
            allow_deletes,
            max_deletes,
        } = self;
        let mut adopted = Adopt::default();
        for adopt in adopt {
            match adopt {
                AdoptArg::Unmarked => adopted.unmarked = true,
                AdoptArg::Scope => adopted.scope = true,
                AdoptArg::Owner(name) if name == owner => {
                    return Err(usage("`--adopt owner:NAME` takes over from another owner"));
                }
                AdoptArg::Owner(name) => {
                    adopted.owners.insert(name);
                }
            }
        }
        Ok(Changes {
            adopt: adopted,
            create_backends,
            share_backends,
            strict_ready,
            allow_empty,
            allow_deletes,
            max_deletes,
            upsert_only: policy == PolicyArg::UpsertOnly,
        })
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
            scheme: match scheme {
                SchemeArg::Http => Scheme::Http,
                SchemeArg::Https => Scheme::Https,
            },
            ip_family: ip_family.map(|family| match family {
                FamilyArg::Ipv4 => IpFamily::Ipv4,
                FamilyArg::Ipv6 => IpFamily::Ipv6,
            }),
            server_id,
            layout,
        }
    }
}

fn open_layout(name: &str, options: layout::Options) -> Result<Rc<dyn Layout>, clap::Error> {
    layout::open(name, options).map_err(|unsupported| {
        usage(match unsupported {
            Unsupported::EtcdV2 => "Traefik reads etcd v3 only: `--etcd-api 2` does not go with it",
            Unsupported::LeadingSlash => "Traefik cannot read a prefix that begins with a slash",
        })
    })
}

impl StoreArgs {
    fn store(
        self,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(StoreConfig, Rc<dyn Layout>), clap::Error> {
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
        let text = |name: &str| {
            env(name)
                .filter(|value| !value.is_empty())
                .and_then(|value| value.into_string().ok())
        };
        let path = |name: &str| {
            env(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let options = layout::Options {
            prefix,
            etcd_v2: etcd_api == ApiArg::V2 && store_file.is_none(),
        };
        let layout = open_layout(&layout, options)?;
        if let Some(file) = store_file {
            return Ok((StoreConfig::File(file), layout));
        }
        // What `etcdctl` finds in its own environment it must not be told again: it refuses both.
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
            let given = text("ETCDCTL_ENDPOINTS").unwrap_or_default();
            endpoints = given.split(',').map(str::trim).map(str::to_owned).collect();
        }
        endpoints.retain(|endpoint| !endpoint.is_empty());
        if endpoints.is_empty() {
            return Err(usage("no store: give `--etcd URL` or `--store-file FILE`"));
        }
        let cacert = cacert.or_else(|| path("ETCDCTL_CACERT"));
        let identity = match (
            cert.or_else(|| path("ETCDCTL_CERT")),
            key.or_else(|| path("ETCDCTL_KEY")),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(usage("`--cert` and `--key` go together")),
        };
        let mut password = text("VULCANIZED_PASSWORD");
        // `name:password`, as etcdctl takes it: the password must not be part of the name, which messages
        // repeat.
        let user = user.or_else(|| text("ETCDCTL_USER"));
        let user = user.map(|given| match given.split_once(':') {
            Some((name, secret)) => {
                password.get_or_insert_with(|| secret.to_owned());
                name.to_owned()
            }
            None => given,
        });
        let user = match (user, password_file, password) {
            (None, None, _) => None,
            (None, Some(_), _) => return Err(usage("`--password-file` needs `--user`")),
            (Some(name), Some(file), _) => Some((name, Password::File(file))),
            (Some(name), None, Some(password)) => Some((name, Password::Given(password))),
            (Some(name), None, None) => {
                return Err(usage(&format!(
                    "user `{name}` needs a password: set `VULCANIZED_PASSWORD` or give \
                     `--password-file`"
                )));
            }
        };
        let api = match etcd_api {
            ApiArg::V3 => Api::V3,
            ApiArg::V2 => Api::V2,
        };
        Ok((
            StoreConfig::Etcd {
                api,
                etcdctl: Etcdctl::new(api, &access),
                endpoints,
                cacert,
                identity,
                user,
            },
            layout,
        ))
    }
}

/// A usage error in clap's own form.
fn usage(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}

/// What is wrong with a backend template when pods of several namespaces are listed.
#[must_use]
pub fn namespaces_mix(template: &Template) -> String {
    format!(
        "with several namespaces `--backend {template}` could mix their pods: begin it with \
         `{{namespace}}` and one of `.`, `_`, `:`, for example `--backend '{{namespace}}.{{name}}.svc'`"
    )
}

fn namespace(text: &str) -> Result<String, String> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=63).contains(&text.len()) && text.bytes().all(inner) {
        Ok(text.to_owned())
    } else {
        Err("a namespace is 1 to 63 of the characters a-z, 0-9 and `-`".to_owned())
    }
}

fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "/" {
        Err("an empty prefix is the whole store".to_owned())
    } else if text.ends_with('/') {
        Err("a prefix does not end with a slash".to_owned())
    } else if !text
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b"/._-".contains(&c))
    {
        Err("a prefix is made of letters, digits, `/`, `.`, `_` and `-`".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn adopt(text: &str) -> Result<AdoptArg, String> {
    match text.split_once(':') {
        None if text == "unmarked" => Ok(AdoptArg::Unmarked),
        None if text == "scope" => Ok(AdoptArg::Scope),
        Some(("owner", name)) => check_name(name).map(AdoptArg::Owner),
        _ => Err("one of `unmarked`, `scope`, `owner:NAME`".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        Err("it takes some time".to_owned())
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_password_beside_the_user_is_not_part_of_the_name() {
        let user = |given: &str, variable: Option<&str>| {
            let arguments = "vulcanized --owner a --pods - --etcd http://h --user";
            let cli = Cli::try_parse_from(arguments.split(' ').chain([given])).expect("parsed");
            let env = |name: &str| match name {
                "VULCANIZED_PASSWORD" => variable.map(OsString::from),
                _ => None,
            };
            match cli.config(&env).map_err(|error| error.to_string())?.store {
                StoreConfig::Etcd {
                    user: Some((name, Password::Given(password))),
                    ..
                } => Ok((name, password)),
                _ => Err("no user".to_owned()),
            }
        };
        let given = |name: &str, password: &str| Ok((name.to_owned(), password.to_owned()));
        assert_eq!(user("root:s3cret", None), given("root", "s3cret"));
        assert_eq!(user("root:a:b", None), given("root", "a:b"));
        assert_eq!(user("root:s3cret", Some("other")), given("root", "other"));
        assert!(user("root", None).is_err_and(|error| error.contains("user `root` needs")));
    }

    #[test]
    fn prefixes() {
        for good in ["/vulcand", "vulcand", "/a/b-c_d.e"] {
            assert_eq!(prefix(good), Ok(good.to_owned()));
        }
        for bad in ["", "/", "/vulcand/", "a b", "a'b"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }
}
