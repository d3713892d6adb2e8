//! Where the API server is and the credentials for it: from a kubeconfig as `kubectl` reads it, or from the
//! pod's service account.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::credentials::{Auth, User, inline_or_file, resolve};
use super::{proxy, yaml};
use crate::net::tls::{SetBy, Tls};
use crate::text;

/// Where a service account is mounted.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What determines the API server: arguments and environment, as values.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The kubeconfig files to merge: the one of `--kubeconfig`, else those of `KUBECONFIG`.
    pub kubeconfig: Vec<PathBuf>,
    /// Whether they must exist: `--kubeconfig` was given.
    pub explicit: bool,
    /// The context to use instead of the current one.
    pub context: Option<String>,
    /// The home directory, for `.kube/config`.
    pub home: Option<PathBuf>,
    /// The API server's host and port as seen from a pod.
    pub service: Option<(String, String)>,
    /// Where the service account is mounted.
    pub service_account: PathBuf,
    /// Proxy for `http` servers.
    pub http_proxy: Option<String>,
    /// Proxy for `https` servers.
    pub https_proxy: Option<String>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: String,
}

impl Options {
    /// Reads the environment. `--kubeconfig` and `--context` come first.
    #[must_use]
    pub fn from_env(
        kubeconfig: Option<PathBuf>,
        context: Option<String>,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Self {
        let text = |name: &str| {
            env(name)?
                .into_string()
                .ok()
                .filter(|text| !text.is_empty())
        };
        let either = |name: &str| text(&name.to_ascii_uppercase()).or_else(|| text(name));
        let explicit = kubeconfig.is_some();
        let kubeconfig = match kubeconfig {
            Some(path) => vec![path],
            None => env("KUBECONFIG").map_or(Vec::new(), |paths| {
                let paths = std::env::split_paths(&paths);
                paths.filter(|path| !path.as_os_str().is_empty()).collect()
            }),
        };
        Self {
            kubeconfig,
            explicit,
            context,
            home: env("HOME").map(PathBuf::from),
            service: text("KUBERNETES_SERVICE_HOST").zip(text("KUBERNETES_SERVICE_PORT")),
            service_account: PathBuf::from(SERVICE_ACCOUNT),
            http_proxy: either("http_proxy"),
            https_proxy: either("https_proxy"),
            no_proxy: either("no_proxy").unwrap_or_default(),
        }
    }
}

/// How the API server is reached.
pub(super) struct Access {
    /// Its URL, without a slash at the end.
    pub(super) server: String,
    pub(super) tls: Tls,
    /// The name its certificate must have, if it is not the URL's host.
    pub(super) server_name: Option<String>,
    pub(super) proxy: Option<String>,
    /// The default namespace.
    pub(super) namespace: String,
    pub(super) auth: Auth,
    /// Impersonation headers (name, value).
    pub(super) impersonate: Vec<(String, String)>,
    /// Whether to request compressed answers, for slow networks.
    pub(super) gzip: bool,
}

/// Finds the API server and the credentials for it.
pub(super) fn access(options: &Options) -> anyhow::Result<Access> {
    let named = !options.kubeconfig.is_empty() || options.context.is_some();
    let home = options.home.as_ref().map(|home| home.join(".kube/config"));
    match &options.service {
        // As in kubectl, a pod counts only with a mounted token.
        Some((host, port)) if !named && options.service_account.join("token").is_file() => {
            in_cluster(options, host, port)
        }
        _ if !options.kubeconfig.is_empty() => kubeconfig(options, &options.kubeconfig),
        _ => match home {
            Some(path) if path.exists() => kubeconfig(options, &[path]),
            _ => bail!(
                "no Kubernetes API server to ask: not in a pod, and no kubeconfig; give \
                 `--kubeconfig FILE`, or `--pods FILE`"
            ),
        },
    }
}

fn in_cluster(options: &Options, host: &str, port: &str) -> anyhow::Result<Access> {
    let folder = &options.service_account;
    let token = folder.join("token");
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).with_context(|| {
            format!(
                "failed to read `{}` of the pod's service account",
                path.display()
            )
        })
    };
    // Only to fail early: `Auth::TokenFile` reads it again.
    read("token")?;
    let ca = read("ca.crt")?;
    let namespace = read("namespace")
        .ok()
        .and_then(|text| String::from_utf8(text).ok());
    let namespace = namespace
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty());
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.to_owned(),
    };
    let server = format!("https://{host}:{port}");
    Ok(Access {
        proxy: proxy::of(&server, options)?,
        server,
        tls: Tls {
            ca: Some(ca),
            set_by: SetBy::ServiceAccount,
            ..Tls::default()
        },
        server_name: None,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        auth: Auth::TokenFile {
            path: token,
            fallback: None,
        },
        impersonate: Vec::new(),
        // Within the cluster, CPU is scarcer than bandwidth.
        gzip: false,
    })
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct KubeConfig {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Option<Context>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
    disable_compression: Option<bool>,
    extensions: Option<Vec<Extension>>,
}

impl Cluster {
    /// `spec.cluster` for exec plugins; null where unset.
    fn for_plugins(&self, server: &str, ca: Option<&[u8]>) -> serde_json::Value {
        /// The extension that is passed on as `config`.
        const EXTENSION: &str = "client.authentication.k8s.io/exec";
        let extensions = self.extensions.iter().flatten();
        serde_json::json!({
            "server": server,
            "tls-server-name": self.tls_server_name,
            "insecure-skip-tls-verify": self.insecure_skip_tls_verify,
            "certificate-authority-data": ca.map(|ca| BASE64_STANDARD.encode(ca)),
            "proxy-url": self.proxy_url,
            "disable-compression": self.disable_compression,
            "config": extensions
                .filter(|extension| extension.name == EXTENSION)
                .map(|extension| &extension.extension)
                .next(),
        })
    }
}

#[derive(Deserialize)]
struct Extension {
    name: String,
    #[serde(default)]
    extension: serde_json::Value,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
    namespace: Option<String>,
}

/// Merged kubeconfigs. As in `kubectl`, the first file that defines a name wins, and paths are relative to
/// their file's folder.
#[derive(Default)]
struct Merged {
    current_context: Option<String>,
    clusters: BTreeMap<String, Cluster>,
    users: BTreeMap<String, (User, PathBuf)>,
    contexts: BTreeMap<String, Context>,
}

impl Merged {
    fn read(paths: &[PathBuf], explicit: bool) -> anyhow::Result<Self> {
        let mut merged = Self::default();
        let mut found = false;
        for path in paths {
            let text = match fs::read(path) {
                Ok(bytes) => text::decoded(&bytes).with_context(|| {
                    format!(
                        "kubeconfig `{}` is neither UTF-8 nor UTF-16",
                        path.display()
                    )
                })?,
                // `KUBECONFIG` may name files that do not exist.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !explicit => continue,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("failed to read kubeconfig `{}`", path.display())
                    });
                }
            };
            found = true;
            let config = yaml(&text).map_err(|error| {
                // Without the parser's message: it quotes the text around the error, which may be a token.
                let place = error.location().map_or(String::new(), |place| {
                    format!(" at line {}, column {}", place.line(), place.column())
                });
                anyhow!(
                    "kubeconfig `{}` is not a valid kubeconfig{place}",
                    path.display()
                )
            })?;
            let config = config.unwrap_or_default();
            let folder = path.parent().unwrap_or(Path::new("."));
            let added = merged.add(config, folder);
            added.with_context(|| format!("kubeconfig `{}`", path.display()))?;
        }
        if !found {
            let names = paths.iter().map(|path| format!("`{}`", path.display()));
            bail!(
                "no kubeconfig found: {}",
                names.collect::<Vec<_>>().join(", ")
            );
        }
        Ok(merged)
    }

    fn add(&mut self, config: KubeConfig, folder: &Path) -> anyhow::Result<()> {
        let KubeConfig {
            current_context,
            clusters,
            users,
            contexts,
        } = config;
        if self.current_context.is_none() {
            self.current_context = current_context.filter(|name| !name.is_empty());
        }
        let clusters = clusters.unwrap_or_default();
        let users = users.unwrap_or_default();
        let contexts = contexts.unwrap_or_default();
        unique("cluster", clusters.iter().map(|named| &named.name))?;
        unique("user", users.iter().map(|named| &named.name))?;
        unique("context", contexts.iter().map(|named| &named.name))?;
        for NamedCluster { name, cluster } in clusters {
            let mut cluster = cluster.unwrap_or_default();
            resolve(&mut cluster.certificate_authority, folder);
            self.clusters.entry(name).or_insert(cluster);
        }
        for NamedUser { name, user } in users {
            let mut user = user.unwrap_or_default();
            user.resolve(folder);
            self.users.entry(name).or_insert((user, folder.to_owned()));
        }
        for NamedContext { name, context } in contexts {
            self.contexts
                .entry(name)
                .or_insert(context.unwrap_or_default());
        }
        Ok(())
    }
}

/// Refuses a name that one file defines twice: it would be ambiguous.
fn unique<'n>(kind: &str, names: impl Iterator<Item = &'n String>) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            bail!("it has two {kind}s named `{name}`");
        }
    }
    Ok(())
}

/// The URL of a server with its scheme in lower case. As in kubectl, the default scheme is `https` if there
/// are TLS settings, else `http`.
fn with_scheme(server: &str, tls: bool) -> String {
    match server.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None if tls => format!("https://{server}"),
        None => format!("http://{server}"),
    }
}

fn kubeconfig(options: &Options, paths: &[PathBuf]) -> anyhow::Result<Access> {
    let mut merged = Merged::read(paths, options.explicit)?;
    let name = options
        .context
        .clone()
        .or(merged.current_context)
        .context("the kubeconfig has no current context: choose one with `--context`")?;
    let context = merged
        .contexts
        .remove(&name)
        .with_context(|| format!("the kubeconfig has no context `{name}`"))?;
    let Context {
        cluster,
        user,
        namespace,
    } = context;
    let cluster_name = cluster.with_context(|| format!("context `{name}` names no cluster"))?;
    let cluster = merged
        .clusters
        .remove(&cluster_name)
        .with_context(|| format!("the kubeconfig has no cluster `{cluster_name}`"))?;
    let (user, folder) = match user.filter(|user| !user.is_empty()) {
        Some(user) => merged
            .users
            .remove(&user)
            .with_context(|| format!("the kubeconfig has no user `{user}`"))?,
        None => (User::default(), PathBuf::new()),
    };
    let server = cluster.server.as_deref().unwrap_or_default();
    let server = server.trim_end_matches('/');
    if server.is_empty() {
        bail!("cluster `{cluster_name}` of the kubeconfig names no server");
    }
    let ca = inline_or_file(
        cluster.certificate_authority_data.as_ref(),
        cluster.certificate_authority.as_ref(),
        "certificate-authority",
    )?;
    let identity = user.identity()?;
    let insecure = cluster.insecure_skip_tls_verify.unwrap_or(false);
    if insecure && ca.is_some() {
        bail!(
            "cluster `{cluster_name}` of the kubeconfig has a certificate authority and \
             `insecure-skip-tls-verify: true`: remove one of them"
        );
    }
    let server = with_scheme(server, ca.is_some() || identity.is_some() || insecure);
    if insecure {
        log::warn!(
            "cluster `{cluster_name}` is not verified (`insecure-skip-tls-verify`): whoever answers \
             there decides which servers are live"
        );
    }
    let proxy = match cluster.proxy_url.as_ref().filter(|url| !url.is_empty()) {
        Some(url) => Some(url.clone()),
        None => proxy::of(&server, options)?,
    };
    let gzip = !cluster.disable_compression.unwrap_or(false);
    let namespace = namespace.filter(|name| !name.is_empty());
    let tls_server_name = cluster
        .tls_server_name
        .clone()
        .filter(|name| !name.is_empty());
    let impersonate = user.impersonation()?;
    // Credentials are never sent over plain HTTP: anybody could read them.
    let auth = if server.starts_with("https://") {
        user.auth(&folder, cluster.for_plugins(&server, ca.as_deref()))?
    } else {
        Auth::None
    };
    Ok(Access {
        server,
        tls: Tls {
            ca,
            identity,
            insecure,
            set_by: SetBy::Kubeconfig,
        },
        server_name: tls_server_name,
        proxy,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        auth,
        impersonate,
        gzip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a kubeconfig with these lines for cluster and user is read: server, credential, and headers.
    fn read(cluster: &str, user: &str) -> Result<String, String> {
        let text = format!(
            "current-context: c\ncontexts:\n- name: c\n  context: {{cluster: k, user: u}}\nclusters:\n\
             - name: k\n  cluster: {cluster}\nusers:\n- name: u\n  user: {user}\n---\n"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        let options = Options {
            kubeconfig: vec![file.path().to_owned()],
            explicit: true,
            ..Options::default()
        };
        let access = access(&options).map_err(|error| format!("{error:#}"))?;
        let auth = match access.auth {
            Auth::None => "none".to_owned(),
            Auth::Token(token) => format!("token {token}"),
            Auth::TokenFile { path, fallback } => format!("{} or {fallback:?}", path.display()),
            Auth::Basic(name, password) => format!("{name}:{password}"),
            Auth::Exec(_) => "exec".to_owned(),
        };
        let headers = access.impersonate.iter();
        let headers = headers.map(|(name, value)| format!(" {name}={value}"));
        Ok(format!(
            "{} {auth}{}",
            access.server,
            headers.collect::<String>()
        ))
    }

    /// The order is client-go's: `tools/clientcmd/client_config.go` (`getUserIdentificationPartialConfig`),
    /// `plugin/pkg/client/auth/exec/exec.go` (`UpdateTransportConfig`).
    #[test]
    fn users_are_read_as_client_go_reads_them() {
        const EXEC: &str = "exec: {apiVersion: client.authentication.k8s.io/v1, command: x}";
        let tls = "{server: 'https://h'}";
        for (cluster, user, wanted) in [
            (tls, format!("{{token: t, {EXEC}}}"), "https://h token t"),
            (
                tls,
                format!("{{username: n, password: p, {EXEC}}}"),
                "https://h n:p",
            ),
            (tls, format!("{{{EXEC}}}"), "https://h exec"),
            (
                tls,
                "{token: t, tokenFile: /f}".to_owned(),
                "https://h /f or Some(\"t\")",
            ),
            (tls, "{token: ''}".to_owned(), "https://h none"),
            (
                "{server: 'http://h'}",
                "{token: t}".to_owned(),
                "http://h none",
            ),
            ("{server: 'h:1'}", format!("{{{EXEC}}}"), "http://h:1 none"),
            (
                "{server: 'HTTPS://h/'}",
                "{token: t}".to_owned(),
                "https://h token t",
            ),
            (
                "{server: 'h:1', insecure-skip-tls-verify: true}",
                "{token: t}".to_owned(),
                "https://h:1 token t",
            ),
            (
                tls,
                "{as: a, as-groups: [g, h], as-user-extra: {'k/x': [v]}}".to_owned(),
                "https://h none Impersonate-User=a Impersonate-Group=g Impersonate-Group=h \
                 Impersonate-Extra-k%2Fx=v",
            ),
        ] {
            assert_eq!(
                read(cluster, &user).as_deref(),
                Ok(wanted),
                "{cluster} {user}"
            );
        }
        for (cluster, user, wanted) in [
            (tls, "{token: t, username: n}", "remove one of them"),
            (tls, "{as-groups: [g]}", "without `as`"),
            (tls, "{auth-provider: {name: oidc}}", "oidc-login"),
            (
                "{server: 'https://h', insecure-skip-tls-verify: true, certificate-authority-data: eA==}",
                "{}",
                "remove one of them",
            ),
            (tls, "{}\n- name: u\n  user: {}", "two users named `u`"),
        ] {
            let error = read(cluster, user).expect_err(user);
            assert!(error.contains(wanted), "{user}: {error}");
        }
    }
}
