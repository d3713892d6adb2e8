//! Credentials for an API server: a kubeconfig's users as `client-go` reads them, and token files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::Value;

use super::exec::{Exec, ExecConfig};
use crate::net::deadline::Deadline;
use crate::net::http;
use crate::net::pem::Identity;
use crate::net::tls::Tls;

/// How to authenticate.
pub(super) enum Auth {
    /// Anonymous, or by client certificate alone.
    None,
    Token(String),
    /// A token in a file, which is read again after a 401.
    TokenFile {
        path: PathBuf,
        /// Used while the file cannot be read.
        fallback: Option<String>,
    },
    Basic(String, String),
    /// An exec plugin.
    Exec(Box<Exec>),
}

impl Auth {
    /// Whether another call of [`Auth::header`] may get another credential.
    pub(super) fn is_renewable(&self) -> bool {
        match self {
            Self::None | Self::Token(_) | Self::Basic(..) => false,
            Self::TokenFile { .. } | Self::Exec(_) => true,
        }
    }

    /// Gets the value of the `Authorization` header: reads the token file or runs the plugin. A plugin's
    /// client certificate is put into `tls`.
    ///
    /// # Errors
    /// A token file that cannot be read or is empty, or a plugin that failed.
    pub(super) fn header(
        &self,
        tls: &mut Tls,
        deadline: Deadline,
    ) -> anyhow::Result<Option<String>> {
        let bearer = |token: &str| Some(format!("Bearer {}", token.trim()));
        Ok(match self {
            Self::None => None,
            Self::Token(token) => bearer(token),
            Self::TokenFile { path, fallback } => match (token(path), fallback) {
                (Ok(token), _) => bearer(&token),
                (Err(error), Some(fallback)) => {
                    log::warn!("{error:#}: using the kubeconfig's `token`");
                    bearer(fallback)
                }
                (Err(error), None) => return Err(error),
            },
            Self::Basic(name, password) => Some(http::basic(name, password)),
            Self::Exec(exec) => {
                let credential = exec.run(deadline)?;
                if credential.identity.is_some() {
                    tls.identity = credential.identity;
                }
                credential.token.as_deref().and_then(bearer)
            }
        })
    }
}

fn token(path: &Path) -> anyhow::Result<String> {
    let token = fs::read_to_string(path)
        .with_context(|| format!("failed to read the token `{}`", path.display()))?;
    if token.trim().is_empty() {
        bail!("the token file `{}` is empty", path.display());
    }
    Ok(token)
}

/// `users[].user` of a kubeconfig.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct User {
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

impl User {
    /// Resolves what is relative to the kubeconfig's folder.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let paths = [
            &mut self.client_certificate,
            &mut self.client_key,
            &mut self.token_file,
        ];
        for path in paths {
            resolve(path, folder);
        }
    }

    /// The impersonation headers (name, value).
    pub(super) fn impersonation(&self) -> anyhow::Result<Vec<(String, String)>> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut headers = Vec::new();
        headers.extend(filled(&self.as_uid).map(|uid| ("Impersonate-Uid".to_owned(), uid)));
        for group in self.as_groups.iter().flatten() {
            headers.push(("Impersonate-Group".to_owned(), group.clone()));
        }
        for (key, values) in self.as_user_extra.iter().flatten() {
            let key = utf8_percent_encode(key, http::COMPONENT);
            let name = format!("Impersonate-Extra-{key}");
            headers.extend(values.iter().map(|value| (name.clone(), value.clone())));
        }
        match filled(&self.r#as) {
            Some(name) => headers.insert(0, ("Impersonate-User".to_owned(), name)),
            None if headers.is_empty() => {}
            None => bail!(
                "the kubeconfig's user has `as-uid`, `as-groups` or `as-user-extra` without `as`, \
             the user to impersonate"
            ),
        }
        Ok(headers)
    }

    /// The client certificate.
    ///
    /// # Errors
    /// A file that cannot be read, or one of certificate and key without the other.
    pub(super) fn identity(&self) -> anyhow::Result<Option<Identity>> {
        let certificate = inline_or_file(
            self.client_certificate_data.as_ref(),
            self.client_certificate.as_ref(),
            "client-certificate",
        )?;
        let key = inline_or_file(
            self.client_key_data.as_ref(),
            self.client_key.as_ref(),
            "client-key",
        )?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => bail!("the kubeconfig has a client certificate without its key"),
            (None, Some(_)) => bail!("the kubeconfig has a client key without its certificate"),
        }
    }

    /// How the user authenticates, client certificates apart. `folder` is the kubeconfig's, `cluster` what a
    /// plugin is told about the cluster.
    ///
    /// # Errors
    /// Conflicting credentials, or one that is not supported.
    pub(super) fn auth(self, folder: &Path, cluster: Value) -> anyhow::Result<Auth> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(AuthProvider { name }) = self.auth_provider {
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
        let token = filled(self.token);
        let token_file = self.token_file;
        let name = filled(self.username);
        if name.is_some() && (token.is_some() || token_file.is_some()) {
            bail!("the kubeconfig's user has a token and a user name: remove one of them");
        }
        // As in client-go, a token or a password wins over the plugin.
        if let Some(path) = token_file {
            let fallback = token;
            return Ok(Auth::TokenFile { path, fallback });
        }
        if let Some(token) = token {
            return Ok(Auth::Token(token));
        }
        if let Some(name) = name {
            return Ok(Auth::Basic(name, self.password.unwrap_or_default()));
        }
        if let Some(config) = self.exec {
            return Ok(Auth::Exec(Box::new(Exec::new(config, folder, cluster)?)));
        }
        Ok(Auth::None)
    }
}

/// Resolves a path relative to the kubeconfig's folder. An empty path counts as absent.
pub(super) fn resolve(path: &mut Option<PathBuf>, folder: &Path) {
    *path = path
        .take()
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| folder.join(path));
}

/// Decodes the base64 of `WHAT-data`, else reads the file that `WHAT` names.
pub(super) fn inline_or_file(
    data: Option<&String>,
    path: Option<&PathBuf>,
    what: &str,
) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let joined = data.split_whitespace().collect::<String>();
        let bytes = BASE64_STANDARD.decode(joined);
        return bytes
            .map(Some)
            .map_err(|_| anyhow!("`{what}-data` of the kubeconfig is not base64"));
    }
    let read = |path: &PathBuf| {
        fs::read(path).with_context(|| format!("failed to read {what} `{}`", path.display()))
    };
    path.map(read).transpose()
}
