//! Writes the metrics of a run to a file, and pushes them to a Prometheus Pushgateway.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use log::warn;
use ureq::Agent;

use crate::files;
use crate::net::http;
use crate::net::tls::{SetBy, Tls};
use crate::report::metrics::{JOB, Run, render};
use crate::run::Outcome;
use crate::text::{escaped, redacted};

/// Time limit for all requests to a Pushgateway: short, since a `CronJob`'s deadline may be near.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer of a Pushgateway that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// The mode of a new metrics file: the collector runs as another user.
const READABLE: u32 = 0o644;

/// Where to write the metrics of a run.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// A file for the node exporter's textfile collector.
    pub file: Option<PathBuf>,
    /// URL of a Pushgateway, without a trailing slash.
    pub push: Option<String>,
}

/// Writes the metrics of a run that started at `start`; `outcome` is `None` if it failed. A Pushgateway that
/// cannot be reached only causes a warning.
///
/// # Errors
/// When the file cannot be written; then the old one is unchanged.
pub fn write(
    targets: &Targets,
    owner: &str,
    start: SystemTime,
    exit_code: u8,
    outcome: Option<&Outcome>,
) -> anyhow::Result<()> {
    let Targets { file, push } = targets;
    let since = start.duration_since(UNIX_EPOCH);
    let run = Run {
        owner,
        start: since.unwrap_or(Duration::ZERO).as_secs_f64(),
        duration: start.elapsed().unwrap_or(Duration::ZERO).as_secs_f64(),
        exit_code,
        finished: outcome.map(|outcome| (&outcome.plan, outcome.applied.as_slice())),
    };
    let old = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
    if let Some(url) = push {
        let pushed = Gateway::new(url).and_then(|gateway| gateway.push(&run, old.as_deref()));
        if let Err(problem) = pushed {
            let (url, problem) = (redacted(url), format!("{problem:#}"));
            let problem = redacted(&problem);
            warn!("failed to push metrics to `{url}`: {problem}");
        }
    }
    match file {
        None => Ok(()),
        Some(path) => {
            let text = render(&run, &old.unwrap_or_default());
            files::replace(path, text.as_bytes(), Some(READABLE))
                .with_context(|| format!("failed to write the metrics file `{}`", path.display()))
        }
    }
}

struct Gateway<'u> {
    url: &'u str,
    agent: Agent,
    end: Instant,
}

impl<'u> Gateway<'u> {
    fn new(url: &'u str) -> anyhow::Result<Self> {
        let tls = url.starts_with("https:");
        let tls = tls.then(|| {
            Tls {
                set_by: SetBy::System,
                ..Tls::default()
            }
            .client(&["http/1.1"])
        });
        let agent = http::agent(http::Options {
            tls: tls.transpose()?,
            server_name: None,
            proxy: None,
            proxy_ca: None,
            gzip: false,
        })?;
        let end = Instant::now() + PATIENCE;
        Ok(Self { url, agent, end })
    }

    /// Replaces the metrics of this job and owner. Values that the run does not know come from `old`, else
    /// from the metrics pushed before.
    fn push(&self, run: &Run, old: Option<&str>) -> anyhow::Result<()> {
        let knows_all = run.finished.is_some_and(|(plan, _)| !plan.alarms());
        let text = match old {
            Some(old) => render(run, old),
            None if knows_all => render(run, ""),
            None => render(run, &self.ask("GET", "/metrics", "")?),
        };
        let path = format!("/metrics/job/{JOB}/owner/{}", run.owner);
        self.ask("PUT", &path, &text).map(drop)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let time = self.end.saturating_duration_since(Instant::now());
        // Zero would mean no timeout.
        let time = time.max(Duration::from_millis(1));
        let url = format!("{}{path}", self.url);
        let request = ureq::http::Request::builder().method(method).uri(url);
        let request = request.header("content-type", "text/plain; version=0.0.4");
        let request = self.agent.configure_request(request.body(body.to_owned())?);
        let request = request.timeout_global(Some(time)).build();
        let problem = |error: ureq::Error| anyhow::Error::msg(http::problem(&error, time));
        let mut response = self.agent.run(request).map_err(problem)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LARGEST);
        let body = body.lossy_utf8(true).read_to_string().map_err(problem)?;
        if !(200..300).contains(&status) {
            let line = body.lines().next().unwrap_or_default();
            bail!("it answered {status}: {}", escaped(line));
        }
        Ok(body)
    }
}
