//! Exec plugins: programs named by a kubeconfig that print a token or a client certificate.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Value, json};

use super::yaml;
use crate::net::deadline::Deadline;
use crate::net::pem::Identity;
use crate::text::{self, escaped};
use crate::waiting::in_background;

/// `users[].user.exec` of a kubeconfig.
#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExecConfig {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<ExecEnv>>,
    install_hint: Option<String>,
    provide_cluster_info: Option<bool>,
    interactive_mode: Option<String>,
}

/// One variable for the plugin.
#[derive(Deserialize, Clone)]
struct ExecEnv {
    name: String,
    #[serde(default)]
    value: String,
}

/// The process group of the running plugin; 0 if none runs.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Kills the running plugin, if any, with its process group.
pub(crate) fn kill_plugin() {
    let group = i32::try_from(RUNNING.load(Ordering::SeqCst)).ok();
    if let Some(group) = group.and_then(Pid::from_raw) {
        // The group may have exited by now.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A plugin with a valid configuration.
pub(super) struct Exec {
    config: ExecConfig,
    command: PathBuf,
    /// The value of `KUBERNETES_EXEC_INFO`.
    info: String,
}

/// What a plugin printed: a token, a client certificate, or both.
pub(super) struct Credential {
    pub(super) token: Option<String>,
    pub(super) identity: Option<Identity>,
}

impl Exec {
    /// Validates a plugin's configuration. `folder` is the kubeconfig's, `cluster` becomes `spec.cluster` if
    /// the plugin wants it.
    pub(super) fn new(config: ExecConfig, folder: &Path, cluster: Value) -> anyhow::Result<Self> {
        let known = [
            "client.authentication.k8s.io/v1",
            "client.authentication.k8s.io/v1beta1",
        ];
        if !known.contains(&config.api_version.as_str()) {
            bail!(
                "exec plugin `{}` wants apiVersion `{}`: known are {} and {}",
                config.command,
                config.api_version,
                known[0],
                known[1]
            );
        }
        if config.command.is_empty() {
            bail!("an exec plugin of the kubeconfig has no command");
        }
        if config.interactive_mode.as_deref() == Some("Always") {
            bail!(
                "exec plugin `{}` asks for input (`interactiveMode: Always`), and there is nobody to answer",
                config.command
            );
        }
        // A bare name is looked up in `PATH`; a path is relative to the kubeconfig.
        let command = if config.command.contains('/') {
            folder.join(&config.command)
        } else {
            PathBuf::from(&config.command)
        };
        let mut spec = json!({ "interactive": false });
        if config.provide_cluster_info.unwrap_or(false) {
            let Value::Object(mut cluster) = cluster else {
                bail!("a cluster is an object")
            };
            cluster.retain(|_, value| !value.is_null());
            spec["cluster"] = Value::Object(cluster);
        }
        let info = json!({
            "apiVersion": config.api_version,
            "kind": "ExecCredential",
            "spec": spec,
        });
        Ok(Self {
            config,
            command,
            info: info.to_string(),
        })
    }

    /// Runs the plugin within one attempt's time.
    pub(super) fn run(&self, deadline: Deadline) -> anyhow::Result<Credential> {
        let name = &self.config.command;
        let hint = match self.config.install_hint.as_deref().map(str::trim) {
            Some(hint) if !hint.is_empty() => format!("\n{}", escaped(hint)),
            _ => String::new(),
        };
        let answer = self
            .output(deadline)
            .with_context(|| format!("exec plugin `{name}` failed{hint}"))?;
        self.read(&answer)
            .with_context(|| format!("exec plugin `{name}` gave no credential"))
    }

    fn output(&self, deadline: Deadline) -> anyhow::Result<Vec<u8>> {
        /// The least time for reading the output of a plugin that exited just in time.
        const GRACE: Duration = Duration::from_millis(5);
        let time = deadline.attempt()?;
        let until = Instant::now() + time;
        let variables = self.config.env.iter().flatten();
        let mut command = Command::new(&self.command);
        // The plugin must not inherit our passwords.
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("VULCANIZED_") || name.starts_with("ETCDCTL_")
        }) {
            command.env_remove(name);
        }
        let mut child = command
            .args(self.config.args.iter().flatten())
            .envs(variables.map(|variable| (&variable.name, &variable.value)))
            .env("KUBERNETES_EXEC_INFO", &self.info)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| anyhow!("failed to start it: {error}"))?;
        RUNNING.store(child.id(), Ordering::SeqCst);
        let out = drain(child.stdout.take());
        let err = drain(child.stderr.take());
        let status = in_background(move || child.wait()).recv_timeout(time);
        if status.is_err() {
            kill_plugin();
        }
        // Children that it leaves behind, such as an agent, are not killed.
        RUNNING.store(0, Ordering::SeqCst);
        let Ok(status) = status else {
            bail!("it did not end within {}", humantime::format_duration(time));
        };
        let status = status?;
        if !status.success() {
            let err = err.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
            let err = String::from_utf8_lossy(&err);
            bail!("it ended with {status}: {}", escaped(err.trim()));
        }
        // A child of the plugin may hold the pipe open: do not wait for it.
        let left = until.saturating_duration_since(Instant::now());
        out.recv_timeout(left.max(GRACE))
            .map_err(|_| anyhow!("its output did not end"))
    }

    fn read(&self, answer: &[u8]) -> anyhow::Result<Credential> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            #[serde(default)]
            kind: String,
            #[serde(default)]
            api_version: String,
            status: Option<Status>,
        }
        #[derive(Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[derive(Default)]
        struct Status {
            token: Option<String>,
            client_certificate_data: Option<String>,
            client_key_data: Option<String>,
        }
        // Parsers' errors are dropped: they may quote a token.
        let text = text::decoded(answer).context("its output is neither UTF-8 nor UTF-16")?;
        // As in client-go: JSON if it looks like JSON, YAML otherwise.
        let answer = if text.trim_start().starts_with('{') {
            serde_json::from_str(&text).ok()
        } else {
            yaml(&text).ok().flatten()
        };
        let Answer {
            kind,
            api_version,
            status,
        } = answer.context("its output is not an ExecCredential")?;
        // As in client-go, the kind may be missing.
        if !["", "ExecCredential"].contains(&&*kind) || api_version != self.config.api_version {
            bail!(
                "its output is a `{}` of `{}`, not an `ExecCredential` of `{}`",
                escaped(&kind),
                escaped(&api_version),
                self.config.api_version
            );
        }
        let Status {
            token,
            client_certificate_data,
            client_key_data,
        } = status.context("its output has no status")?;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let identity = match (filled(client_certificate_data), filled(client_key_data)) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.into_bytes(),
                key: key.into_bytes(),
            }),
            (None, None) => None,
            _ => bail!("its output has a certificate or a key without the other"),
        };
        let token = filled(token);
        if token.is_none() && identity.is_none() {
            bail!("its output has neither a token nor a certificate");
        }
        Ok(Credential { token, identity })
    }
}

/// Reads a pipe to its end in the background: a plugin must not block on a full pipe.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    /// In bytes: more than any credential.
    const LIMIT: u64 = 1 << 20;
    in_background(|| {
        let mut text = Vec::new();
        if let Some(pipe) = pipe {
            // On an error, show what was read before it.
            let _ = pipe.take(LIMIT).read_to_end(&mut text);
        }
        text
    })
}
