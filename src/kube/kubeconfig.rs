//! How the API server is found and who we are to it: a kubeconfig as `kubectl` reads it, or the service
//! account of the pod this runs in.

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

use super::exec::Exec;
use super::proxy;
use crate::net::tls::{Identity, SetBy, Tls};
use crate::text;

/// Where a service account is mounted.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What decides where the API server is: arguments and environment, as values.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The kubeconfig files to merge: the one of `--kubeconfig`, else those of `KUBECONFIG`.
    pub kubeconfig: Vec<PathBuf>,
    /// Whether each of them must exist: it was named on the command line.
    pub explicit: bool,
    /// The context to use instead of the current one.
    pub context: Option<String>,
    /// Where `.kube/config` is looked for.
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
    /// The namespace that is meant when none is named.
    pub(super) namespace: String,
    pub(super) auth: Auth,
    /// Headers that say as whom to act.
    pub(super) impersonate: Vec<(String, String)>,
    /// Whether to ask for compressed answers: the way may be long.
    pub(super) gzip: bool,
}

/// Who we are.
pub(super) enum Auth {
    /// Nobody, or whom the client certificate says.
    None,
    Token(String),
    /// A token in a file, read again when it was refused.
    TokenFile {
        path: PathBuf,
        /// Used while the file cannot be read.
        fallback: Option<String>,
    },
    Basic(String, String),
    /// A program that says who we are.
    Exec(Box<Exec>),
}

/// Finds out how the API server is reached.
pub(super) fn access(options: &Options) -> anyhow::Result<Access> {
    let named = !options.kubeconfig.is_empty() || options.context.is_some();
    let home = options.home.as_ref().map(|home| home.join(".kube/config"));
    match &options.service {
        // Without a mounted token this is no pod with a service account, as for kubectl.
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
    // Read here to fail early; read again for each start and each refusal.
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
        // The network is near and the processor is shared.
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

#[derive(Deserialize)]
struct Extension {
    name: String,
    #[serde(default)]
    extension: serde_json::Value,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    auth_provider: Option<AuthProvider>,
    exec: Option<ExecConfig>,
    r#as: Option<String>,
    as_uid: Option<String>,
    as_groups: Option<Vec<String>>,
    as_user_extra: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize)]
struct AuthProvider {
    #[serde(default)]
    name: String,
}

/// `users[].user.exec` of a kubeconfig.
#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExecConfig {
    pub(super) api_version: String,
    pub(super) command: String,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<ExecEnv>>,
    pub(super) install_hint: Option<String>,
    pub(super) provide_cluster_info: Option<bool>,
    pub(super) interactive_mode: Option<String>,
}

/// One variable for the plugin.
#[derive(Deserialize, Clone)]
pub(super) struct ExecEnv {
    pub(super) name: String,
    #[serde(default)]
    pub(super) value: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
    namespace: Option<String>,
}

/// Several files merged: of each name the first one that has it counts, as for `kubectl`. What is
/// relative to a file is resolved against its folder.
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
            // A mark at the end begins an empty document.
            let text = text.trim_end();
            let text = text.strip_suffix("\n---").unwrap_or(text);
            let config = if text.trim().is_empty() {
                KubeConfig::default()
            } else {
                serde_saphyr::from_str(text).map_err(|error| {
                    // Its own message quotes the text around the mistake: that may be a token.
                    let place = error.location().map_or(String::new(), |place| {
                        format!(" at line {}, column {}", place.line(), place.column())
                    });
                    anyhow!(
                        "kubeconfig `{}` is no valid kubeconfig{place}",
                        path.display()
                    )
                })?
            };
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
        let resolve = |path: &mut Option<PathBuf>| {
            if let Some(path) = path {
                *path = folder.join(&path);
            }
        };
        let clusters = clusters.unwrap_or_default();
        let users = users.unwrap_or_default();
        let contexts = contexts.unwrap_or_default();
        unique("cluster", clusters.iter().map(|named| &named.name))?;
        unique("user", users.iter().map(|named| &named.name))?;
        unique("context", contexts.iter().map(|named| &named.name))?;
        for NamedCluster { name, cluster } in clusters {
            let mut cluster = cluster.unwrap_or_default();
            resolve(&mut cluster.certificate_authority);
            self.clusters.entry(name).or_insert(cluster);
        }
        for NamedUser { name, user } in users {
            let mut user = user.unwrap_or_default();
            resolve(&mut user.client_certificate);
            resolve(&mut user.client_key);
            resolve(&mut user.token_file);
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

/// Refuses a name that one file gives twice: which of the two is meant?
fn unique<'n>(kind: &str, names: impl Iterator<Item = &'n String>) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            bail!("it has two {kind}s named `{name}`");
        }
    }
    Ok(())
}

/// The URL of a server with its scheme in lower case. Without a scheme it is `https` if anything says TLS,
/// else `http`, as for kubectl.
fn with_scheme(server: &str, tls: bool) -> String {
    match server.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None if tls => format!("https://{server}"),
        None => format!("http://{server}"),
    }
}

/// The headers that say as whom to act.
fn impersonation(user: &User) -> anyhow::Result<Vec<(String, String)>> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut headers = Vec::new();
    headers.extend(filled(&user.as_uid).map(|uid| ("Impersonate-Uid".to_owned(), uid)));
    for group in user.as_groups.iter().flatten() {
        headers.push(("Impersonate-Group".to_owned(), group.clone()));
    }
    for (key, values) in user.as_user_extra.iter().flatten() {
        let name = format!("Impersonate-Extra-{}", crate::net::http::encoded(key, b""));
        headers.extend(values.iter().map(|value| (name.clone(), value.clone())));
    }
    match filled(&user.r#as) {
        Some(name) => headers.insert(0, ("Impersonate-User".to_owned(), name)),
        None if headers.is_empty() => {}
        None => bail!(
            "the kubeconfig's user has `as-uid`, `as-groups` or `as-user-extra` without `as`: whom to \
             act as is not said"
        ),
    }
    Ok(headers)
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
    let (ca, identity) = certificates(&cluster, &user)?;
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
    let impersonate = impersonation(&user)?;
    // No credential goes over plain HTTP: anybody on the way could read it.
    let auth = if server.starts_with("https://") {
        auth(user, &folder, &cluster, &server, ca.as_deref())?
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

/// The CA certificates to trust, and the certificate to show: inline data wins over files.
fn certificates(
    cluster: &Cluster,
    user: &User,
) -> anyhow::Result<(Option<Vec<u8>>, Option<Identity>)> {
    let given = |data: Option<&String>, path: Option<&PathBuf>, what: &str| {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let packed = data.split_whitespace().collect::<String>();
            let bytes = BASE64_STANDARD.decode(packed);
            return bytes
                .map(Some)
                .map_err(|_| anyhow!("`{what}-data` of the kubeconfig is no base64"));
        }
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let read = |path: &PathBuf| {
            fs::read(path).with_context(|| format!("failed to read {what} `{}`", path.display()))
        };
        path.map(read).transpose()
    };
    let ca = given(
        cluster.certificate_authority_data.as_ref(),
        cluster.certificate_authority.as_ref(),
        "certificate-authority",
    )?;
    let certificate = given(
        user.client_certificate_data.as_ref(),
        user.client_certificate.as_ref(),
        "client-certificate",
    )?;
    let key = given(
        user.client_key_data.as_ref(),
        user.client_key.as_ref(),
        "client-key",
    )?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        (Some(_), None) => bail!("the kubeconfig has a client certificate without its key"),
        (None, Some(_)) => bail!("the kubeconfig has a client key without its certificate"),
    };
    Ok((ca, identity))
}

fn auth(
    user: User,
    folder: &Path,
    cluster: &Cluster,
    server: &str,
    ca: Option<&[u8]>,
) -> anyhow::Result<Auth> {
    /// The cluster's extension that is handed to a plugin as `config`.
    const EXTENSION: &str = "client.authentication.k8s.io/exec";
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(AuthProvider { name }) = user.auth_provider {
        let plugin = match name.as_str() {
            "gcp" => "`gke-gcloud-auth-plugin`",
            "azure" => "`kubelogin`",
            "oidc" => "`kubectl oidc-login` (kubelogin)",
            _ => "the provider's own",
        };
        bail!(
            "auth provider `{name}` of the kubeconfig is not supported here: use an exec plugin \
             instead, {plugin}"
        );
    }
    let token = filled(user.token);
    let token_file = user.token_file.filter(|path| !path.as_os_str().is_empty());
    let name = filled(user.username);
    if name.is_some() && (token.is_some() || token_file.is_some()) {
        bail!("the kubeconfig's user has a token and a user name: remove one of them");
    }
    // As client-go has it: a token or a password keeps the plugin from being run.
    if let Some(path) = token_file {
        let fallback = token;
        return Ok(Auth::TokenFile { path, fallback });
    }
    if let Some(token) = token {
        return Ok(Auth::Token(token));
    }
    if let Some(name) = name {
        return Ok(Auth::Basic(name, user.password.unwrap_or_default()));
    }
    if let Some(config) = user.exec {
        let extensions = cluster.extensions.iter().flatten();
        let info = serde_json::json!({
            "server": server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": ca.map(|ca| BASE64_STANDARD.encode(ca)),
            "proxy-url": cluster.proxy_url,
            "disable-compression": cluster.disable_compression,
            "config": extensions
                .filter(|extension| extension.name == EXTENSION)
                .map(|extension| &extension.extension)
                .next(),
        });
        return Ok(Auth::Exec(Box::new(Exec::new(config, folder, info)?)));
    }
    Ok(Auth::None)
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
