//! How the API server is found and who we are to it: a kubeconfig as `kubectl` reads it, or the service
//! account of the pod this runs in.

use std::collections::BTreeMap;
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
use crate::net::tls::{Identity, Tls};
use crate::text::redacted;

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
    /// Whether to ask for compressed answers: the way may be long.
    pub(super) gzip: bool,
}

/// Who we are.
pub(super) enum Auth {
    /// Nobody, or whom the client certificate says.
    None,
    Token(String),
    /// A token in a file, read again when it was refused.
    TokenFile(PathBuf),
    Basic(String, String),
    /// A program that says who we are.
    Exec(Box<Exec>),
}

/// Finds out how the API server is reached.
pub(super) fn access(options: &Options) -> anyhow::Result<Access> {
    let named = !options.kubeconfig.is_empty() || options.context.is_some();
    let home = options.home.as_ref().map(|home| home.join(".kube/config"));
    match &options.service {
        Some((host, port)) if !named => in_cluster(options, host, port),
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
        proxy: proxy_of(&server, options)?,
        server,
        tls: Tls {
            ca: Some(ca),
            ..Tls::default()
        },
        server_name: None,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        auth: Auth::TokenFile(token),
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
            let text = match fs::read_to_string(path) {
                Ok(text) => text,
                // `KUBECONFIG` may name files that do not exist.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !explicit => continue,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("failed to read kubeconfig `{}`", path.display())
                    });
                }
            };
            found = true;
            let config = if text.trim().is_empty() {
                KubeConfig::default()
            } else {
                serde_saphyr::from_str(&text).map_err(|error| {
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
            merged.add(config, path.parent().unwrap_or(Path::new(".")));
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

    fn add(&mut self, config: KubeConfig, folder: &Path) {
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
        for NamedCluster { name, cluster } in clusters.into_iter().flatten() {
            let mut cluster = cluster.unwrap_or_default();
            resolve(&mut cluster.certificate_authority);
            self.clusters.entry(name).or_insert(cluster);
        }
        for NamedUser { name, user } in users.into_iter().flatten() {
            let mut user = user.unwrap_or_default();
            resolve(&mut user.client_certificate);
            resolve(&mut user.client_key);
            resolve(&mut user.token_file);
            self.users.entry(name).or_insert((user, folder.to_owned()));
        }
        for NamedContext { name, context } in contexts.into_iter().flatten() {
            self.contexts
                .entry(name)
                .or_insert(context.unwrap_or_default());
        }
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
    let server = cluster
        .server
        .as_deref()
        .unwrap_or_default()
        .trim_end_matches('/')
        .to_owned();
    if server.is_empty() {
        bail!("cluster `{cluster_name}` of the kubeconfig names no server");
    }
    let (ca, identity) = certificates(&cluster, &user)?;
    let insecure = cluster.insecure_skip_tls_verify.unwrap_or(false);
    if insecure {
        log::warn!(
            "cluster `{cluster_name}` is not verified (`insecure-skip-tls-verify`): whoever answers \
             there decides which servers are live"
        );
    }
    let proxy = match cluster.proxy_url.as_ref().filter(|url| !url.is_empty()) {
        Some(url) => Some(url.clone()),
        None => proxy_of(&server, options)?,
    };
    let gzip = !cluster.disable_compression.unwrap_or(false);
    let namespace = namespace.filter(|name| !name.is_empty());
    let tls_server_name = cluster
        .tls_server_name
        .clone()
        .filter(|name| !name.is_empty());
    let auth = auth(user, &folder, &cluster, &server, ca.as_deref())?;
    Ok(Access {
        server,
        tls: Tls {
            ca,
            identity,
            insecure,
        },
        server_name: tls_server_name,
        proxy,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        auth,
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
        bail!(
            "auth provider `{name}` of the kubeconfig is not supported: it was removed from kubectl \
             too; use its exec plugin"
        );
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
    if let Some(path) = user.token_file.filter(|path| !path.as_os_str().is_empty()) {
        return Ok(Auth::TokenFile(path));
    }
    if let Some(token) = filled(user.token) {
        return Ok(Auth::Token(token));
    }
    Ok(match (filled(user.username), user.password) {
        (Some(name), password) => Auth::Basic(name, password.unwrap_or_default()),
        (None, _) => Auth::None,
    })
}

/// The proxy on the way to `server`, as the environment says.
fn proxy_of(server: &str, options: &Options) -> anyhow::Result<Option<String>> {
    let uri = http::Uri::try_from(server)
        .map_err(|_| anyhow!("`{}` is no URL of an API server", redacted(server)))?;
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let proxy = if secure {
        &options.https_proxy
    } else {
        &options.http_proxy
    };
    Ok(proxy.clone().filter(|_| !bypasses(host, &options.no_proxy)))
}

/// Whether `NO_PROXY` names a host: itself, a domain above it, or a network it is in.
fn bypasses(host: &str, no_proxy: &str) -> bool {
    let ip = host.parse::<IpAddr>().ok();
    if ip.is_some_and(|ip| ip.is_loopback()) || host == "localhost" {
        return true;
    }
    no_proxy
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| {
            if entry == "*" {
                return true;
            }
            match (ip, entry.split_once('/')) {
                (Some(ip), Some((network, bits))) => {
                    matches!((network.parse(), bits.parse()), (Ok(n), Ok(b)) if within(ip, n, b))
                }
                (Some(ip), None) => entry.parse() == Ok(ip),
                (None, _) => {
                    let domain = entry.trim_start_matches('*').trim_start_matches('.');
                    host == domain
                        || host
                            .strip_suffix(domain)
                            .is_some_and(|rest| rest.ends_with('.'))
                }
            }
        })
}

fn within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) if bits <= 32 => {
            (ip.to_bits() ^ network.to_bits())
                .checked_shr(32 - bits)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) if bits <= 128 => {
            (ip.to_bits() ^ network.to_bits())
                .checked_shr(128 - bits)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_need_no_proxy() {
        for (host, list, wanted) in [
            ("api.example.com", "example.com", true),
            ("api.example.com", ".example.com", true),
            ("api.example.com", "*.example.com", true),
            ("badexample.com", "example.com", false),
            ("api.example.com", "other, *", true),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("fd00::1", "fd00::/8", true),
            ("127.0.0.1", "", true),
            ("api", "", false),
        ] {
            assert_eq!(bypasses(host, list), wanted, "{host} in {list}");
        }
    }
}
