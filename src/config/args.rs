//! The declaration of the command line. [`super::env`] derives the environment variables from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{FalseyValueParser, PossibleValuesParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::layout::LAYOUTS;
use crate::model::{ClusterName, Scheme, check_name};
use crate::reconcile::map::{IpFamily, PortRef};
use crate::reconcile::plan::DeleteLimit;
use crate::reconcile::template::Template;
use crate::report::etcdctl::Api;

/// Keeps an external load balancer pointed at the live pods of a Kubernetes cluster.
///
/// One run lists the servers in the proxy's store, then the pods, and applies just the difference.
/// It is safe to run as often as you like.
#[derive(Parser, Debug)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    override_usage = "vulcanized --owner <NAME> [OPTIONS]\n       vulcanized status [BACKEND]... [OPTIONS]\n       \
                      vulcanized explain [NAMESPACE/]POD --owner <NAME> [OPTIONS]"
)]
pub struct Cli {
    /// Name of this job: it changes only entries that carry it
    ///
    /// 1 to 32 of the characters a-z, 0-9 and `-`.
    #[arg(long, value_name = "NAME")]
    #[arg(value_parser = check_name)]
    pub(super) owner: Option<String>,
    /// Print a shell's completions, or the man page
    #[arg(long, hide = true, value_name = "WHAT")]
    pub(super) generate: Option<Generate>,
    #[command(subcommand)]
    pub(super) look: Option<Look>,
    #[command(flatten)]
    pub(super) kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub(super) mapping: MappingArgs,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) changes: ChangesArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// A read-only command.
#[derive(Subcommand, Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Show the servers in the store, whoever wrote them
    #[command(override_usage = "vulcanized status [BACKEND]... [OPTIONS]")]
    Status {
        /// Only these backends
        #[arg(value_name = "BACKEND")]
        backends: Vec<String>,
    },
    /// Show how one pod becomes an entry of the store, or why it does not
    #[command(override_usage = "vulcanized explain [NAMESPACE/]POD --owner <NAME> [OPTIONS]")]
    Explain {
        /// The pod
        #[arg(value_name = "[NAMESPACE/]POD")]
        pod: String,
    },
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct KubernetesArgs {
    /// Kubeconfig to use; without it `KUBECONFIG`, the service account, `~/.kube/config`
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// Namespace to list, repeatable; default: the context's
    ///
    /// In the cluster the service account's.
    #[arg(short, long, value_name = "NAME")]
    #[arg(value_delimiter = ',', value_parser = namespace, conflicts_with = "all_namespaces")]
    pub(super) namespace: Vec<String>,
    /// List the pods of all namespaces
    #[arg(short = 'A', long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) all_namespaces: bool,
    /// Label selector: only these pods count
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(super) selector: Option<String>,
    /// Field selector: only these pods count
    #[arg(long, value_name = "FIELDS")]
    pub(super) field_selector: Option<String>,
    /// Name of the cluster, put before its fingerprint in the scope; or all of it: `main@3f2a91c0`
    #[arg(long, value_name = "NAME")]
    #[arg(value_parser = ClusterName::parse)]
    pub(super) cluster: Option<ClusterName>,
    /// Read pods from `kubectl get pods -o json` output; `-` is stdin
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["kubeconfig", "context", "namespace", "all_namespaces", "selector", "field_selector"])]
    pub(super) pods: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Mapping")]
pub(super) struct MappingArgs {
    /// Label that names the backend, repeatable: the first one present wins
    #[arg(long, value_name = "KEY")]
    #[arg(
        value_delimiter = ',',
        default_value = "app.kubernetes.io/name,app,name"
    )]
    pub(super) backend_label: Vec<String>,
    /// Id of the backend, for example `{namespace}.{name}.svc`
    ///
    /// Fields: {namespace} {name} {pod} {ip} {port} {label:KEY} {annotation:KEY}.
    #[arg(long, value_name = "TEMPLATE")]
    #[arg(default_value = "{name}", value_parser = Template::parse)]
    pub(super) backend: Template,
    /// Port by name or number; default: `http`, else the only TCP port
    #[arg(long, value_name = "NAME|NUMBER")]
    #[arg(value_parser = PortRef::parse)]
    pub(super) port: Option<PortRef>,
    /// Scheme to publish
    #[arg(long, default_value = "http")]
    pub(super) scheme: Scheme,
    /// Address family to publish; without it the pod's primary address
    #[arg(long, value_name = "FAMILY")]
    pub(super) ip_family: Option<IpFamily>,
    /// Id of the server in its backend: the same fields
    #[arg(long, value_name = "TEMPLATE")]
    #[arg(default_value = "{ip}", value_parser = Template::parse)]
    pub(super) server_id: Template,
    /// Prefix of the annotations `backend`, `port`, `scheme`, `weight` and `ignore`
    #[arg(long, value_name = "PREFIX")]
    #[arg(default_value = "vulcanized.io/")]
    pub(super) annotation_prefix: String,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Store")]
pub(super) struct StoreArgs {
    /// Endpoints of etcd, tried in order
    ///
    /// Without it those of `ETCDCTL_ENDPOINTS`. `--endpoints`, as etcdctl has it, works too.
    #[arg(long, value_name = "URL[,URL]", alias = "endpoints")]
    #[arg(value_delimiter = ',', conflicts_with = "store_file")]
    pub(super) etcd: Vec<String>,
    /// Version of etcd's API
    #[arg(long, value_name = "VERSION")]
    #[arg(default_value = "3")]
    pub(super) etcd_api: Api,
    /// CA certificates to trust; without it `ETCDCTL_CACERT`, else the system's
    #[arg(long, value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,
    /// Client certificate; without it `ETCDCTL_CERT`
    #[arg(long, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// Key of the client certificate; without it `ETCDCTL_KEY`
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// User; its password from `VULCANIZED_PASSWORD`, a file, or `ETCDCTL_USER=name:password`
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// Use this JSON file of keys and values instead of etcd
    ///
    /// It is created when absent; its folder must exist.
    #[arg(long, value_name = "FILE")]
    pub(super) store_file: Option<PathBuf>,
    /// Proxy whose keys are written: `vulcand` (default) or `traefik`
    #[arg(long, default_value = "vulcand")]
    #[arg(value_parser = PossibleValuesParser::new(LAYOUTS.iter().map(|(name, _)| *name)))]
    pub(super) layout: String,
    /// Prefix of all keys; without it `traefik`, or whichever of `/vulcand` and `vulcand` is used
    #[arg(long, value_name = "PREFIX")]
    #[arg(value_parser = prefix)]
    pub(super) prefix: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Changes")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
pub(super) struct ChangesArgs {
    /// Print what would be done, write nothing
    #[arg(long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) dry_run: bool,
    /// Which changes to apply: all, or no deletes
    #[arg(long, default_value = "sync")]
    pub(super) policy: Policy,
    /// Take over entries for one run: `unmarked`, `scope`, `owner:NAME`
    ///
    /// Repeatable.
    #[arg(long, value_name = "WHAT", value_parser = adopt)]
    pub(super) adopt: Vec<AdoptArg>,
    /// Define backends that pods name and the store does not define
    ///
    /// With Traefik: publish services that no router in etcd names, because their routers are in files.
    #[arg(long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) create_backends: bool,
    /// Write into backends that hold another owner's servers
    #[arg(long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) share_backends: bool,
    /// Delete servers that are not ready even where no ready one is left
    #[arg(long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) strict_ready: bool,
    /// Treat a complete pod list as real though none of our pods is in it
    #[arg(long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) allow_empty: bool,
    /// Release all holds if this run removes at most N servers
    #[arg(long, value_name = "N")]
    pub(super) allow_deletes: Option<usize>,
    /// Delete nothing if more servers than this would be deleted: a number, or a share such as `10%`
    #[arg(long, value_name = "N|P%")]
    #[arg(value_parser = DeleteLimit::parse)]
    pub(super) max_deletes: Option<DeleteLimit>,
    /// Apply only the plan that a dry run printed as `plan HASH`; exit with 5 if it is another one now
    #[arg(long, value_name = "HASH")]
    #[arg(value_parser = plan_name)]
    pub(super) expect: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// What is printed: `diff` (default), `lines`, `json` or `summary`
    #[arg(short, long, value_name = "FORMAT")]
    #[arg(default_value = "diff")]
    pub(super) output: Format,
    /// With `--dry-run`: exit with 4 if there are changes
    #[arg(long, requires = "dry_run")]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) exit_code: bool,
    /// Exit code for alarms in place of 3; 0 for schedulers that take others for a failed job
    #[arg(long, value_name = "N")]
    #[arg(default_value_t = 3)]
    pub(super) alarm_exit_code: u8,
    /// Write Prometheus metrics of each run to this file (not of dry runs)
    #[arg(long, value_name = "FILE")]
    pub(super) metrics_file: Option<PathBuf>,
    /// Push the same metrics to this Prometheus Pushgateway, by job and owner
    #[arg(long, value_name = "URL")]
    #[arg(value_parser = pushgateway)]
    pub(super) metrics_push: Option<String>,
    /// Colour: on a terminal unless `NO_COLOR` is set, always or never
    #[arg(long, value_name = "WHEN")]
    #[arg(default_value = "auto")]
    pub(super) color: Color,
    /// Format of the log on stderr
    #[arg(long, value_name = "FORMAT")]
    #[arg(default_value = "text")]
    pub(super) log_format: LogFormat,
    /// Print more: `-v` why pods are left out, `-vv` requests, `-vvv` all
    ///
    /// `RUST_LOG` wins over it.
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// Print nothing when in sync
    #[arg(short, long)]
    #[arg(action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(super) quiet: bool,
    /// How long the whole run may take
    #[arg(long, value_name = "TIME")]
    #[arg(default_value = "45s", value_parser = duration)]
    pub(super) timeout: Duration,
    /// How long one attempt at a request may take
    #[arg(long, value_name = "TIME")]
    #[arg(default_value = "10s", value_parser = duration)]
    pub(super) request_timeout: Duration,
}

/// What to generate from the declaration of the command line.
#[derive(ValueEnum, Debug, Clone, Copy)]
pub(crate) enum Generate {
    /// Completions for bash
    Bash,
    /// Completions for zsh
    Zsh,
    /// Completions for fish
    Fish,
    /// The man page
    Man,
    /// The document `docs/reference.md`
    Reference,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Creates, updates and deletes
    Sync,
    /// Creates and updates
    UpsertOnly,
}

/// The format of stdout.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Patches in a dry run, a line per change otherwise
    Diff,
    /// A line per change, in a dry run too
    Lines,
    /// One JSON document
    Json,
    /// One line
    Summary,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
pub(super) enum Color {
    Auto,
    Always,
    Never,
}

/// The format of the log on stderr.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone)]
pub(super) enum AdoptArg {
    Unmarked,
    Scope,
    Owner(String),
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

/// Parses the URL of a Pushgateway, and removes a trailing slash.
fn pushgateway(text: &str) -> Result<String, String> {
    let example = "not the URL of a Pushgateway; expected for example `http://pushgateway:9091`";
    let uri = text.parse::<http::Uri>().map_err(|_| example)?;
    let scheme = uri.scheme_str().unwrap_or_default();
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    if !["http", "https"].contains(&scheme) || !has_host || uri.query().is_some() {
        return Err(example.to_owned());
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("a Pushgateway with a user and password is not supported".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn plan_name(text: &str) -> Result<String, String> {
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if text.len() == 8 && text.bytes().all(is_hex) {
        Ok(text.to_owned())
    } else {
        Err("a plan's hash is 8 of the characters 0-9 and a-f, as a dry run prints it".to_owned())
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        Err("must be greater than zero".to_owned())
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
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
