//! Fail-over between the endpoints of an etcd cluster.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use log::debug;

use crate::net::deadline::Deadline;
use crate::net::tls::{Client, Tls};
use crate::text::{escaped, redacted};

/// The pause before all endpoints of a cluster without a leader are tried again: an election takes a second
/// or two.
const ELECTION: Duration = Duration::from_millis(200);

/// How etcd is reached.
pub struct Options {
    /// Endpoints as URLs, in the order in which they are tried. The default scheme is `http`, or `https` if
    /// `tls` has a CA or a certificate (as in `etcdctl`); the default port is 2379.
    pub endpoints: Vec<String>,
    /// For `https` endpoints.
    pub tls: Tls,
    /// The user to authenticate as.
    pub user: Option<User>,
    /// Time limit for connecting to an endpoint, TLS included; an attempt's if that is less.
    pub dial_timeout: Duration,
}

/// A user of etcd.
#[derive(Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user `{}`", self.name)
    }
}

/// A parsed endpoint. Displays as its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Whether to use TLS.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Parses an endpoint. `scheme` is the default.
    ///
    /// # Errors
    /// When it is not an `http` or `https` URL of just host and port.
    pub(crate) fn parse(text: &str, scheme: &str) -> anyhow::Result<Self> {
        /// etcd's port for clients.
        const PORT: u16 = 2379;
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("{scheme}://{text}")
        };
        let bad = |why: &str| {
            let text = redacted(text);
            anyhow!("`{text}` is not an endpoint: {why}; expected for example https://etcd-1:2379")
        };
        let (_, rest) = url.split_once("://").unwrap_or_default();
        if rest.contains('@') {
            return Err(bad("it holds a user: give `--user`"));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(bad("it holds more than scheme, host and port"));
        }
        let port = match authority.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                port.ok_or_else(|| bad("its port is not a number from 1 to 65535"))?
            }
            _ => PORT,
        };
        let uri = http::Uri::try_from(&url).map_err(|_| bad("it is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("its scheme must be http or https")),
        };
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| bad("it names no host"))?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self { tls, host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// The endpoints of one etcd cluster, one of them current.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    current: usize,
}

impl Endpoints {
    /// Parses all endpoints, and sets up TLS if one of them needs it.
    ///
    /// # Errors
    /// An endpoint that is not valid, or a certificate that cannot be read.
    pub(super) fn prepare(
        options: &Options,
        protocols: &[&str],
    ) -> anyhow::Result<(Self, Option<Client>)> {
        // With a CA or a certificate, a password must not be sent in the clear.
        let secure = options.tls.ca.is_some() || options.tls.identity.is_some();
        let scheme = if secure { "https" } else { "http" };
        let all = options.endpoints.iter();
        let all = all
            .map(|text| Endpoint::parse(text, scheme))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if all.is_empty() {
            bail!("no endpoint of etcd given");
        }
        let any_tls = all.iter().any(|endpoint| endpoint.tls);
        let tls = if any_tls {
            Some(options.tls.client(protocols)?)
        } else {
            None
        };
        Ok((Self { all, current: 0 }, tls))
    }

    /// The endpoint to use.
    pub(super) fn current(&self) -> &Endpoint {
        &self.all[self.current]
    }

    /// Makes the next endpoint the current one.
    pub(super) fn advance(&mut self) {
        self.current = (self.current + 1) % self.all.len();
    }

    /// The number of endpoints: at least one.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }
}

/// The attempts at one request, over all endpoints until one answers.
pub(super) struct Attempts {
    begin: Instant,
    /// How long to retry while the cluster has no leader.
    patience: Duration,
    deadline: Deadline,
    /// The endpoints that did not answer in this round, and why.
    failures: Vec<(String, String)>,
    leaderless: bool,
}

impl Attempts {
    /// # Errors
    /// The run's time is up.
    pub(super) fn start(deadline: Deadline) -> anyhow::Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            patience: deadline.attempt()?,
            deadline,
            failures: Vec::new(),
            leaderless: false,
        })
    }

    /// Notes that the cluster has no leader, or a new one: all endpoints are tried again after a pause.
    pub(super) fn leaderless(&mut self) {
        self.leaderless = true;
    }

    /// Moves on to the next endpoint after a failure. Without a reason a connection of an earlier request
    /// broke: the endpoint is tried once more.
    ///
    /// # Errors
    /// When all endpoints have failed, or time is up: the failure of each that was tried.
    pub(super) fn next(
        &mut self,
        endpoints: &mut Endpoints,
        why: Option<String>,
    ) -> anyhow::Result<()> {
        if let Some(why) = why {
            debug!("{}: {why}", endpoints.current());
            self.failures.push((endpoints.current().to_string(), why));
        }
        endpoints.advance();
        if self.failures.len() < endpoints.count() && self.deadline.remaining().is_ok() {
            return Ok(());
        }
        if !self.leaderless
            || self.begin.elapsed() > self.patience
            || self.deadline.pause(ELECTION).is_err()
        {
            return Err(self.all_failed(endpoints));
        }
        self.failures.clear();
        self.leaderless = false;
        Ok(())
    }

    /// The failures in one message. That of a single endpoint is not prefixed.
    fn all_failed(&self, endpoints: &Endpoints) -> anyhow::Error {
        let list = self
            .failures
            .iter()
            .map(|(endpoint, why)| format!("{endpoint}: {}", escaped(why)));
        let error = match (self.failures.as_slice(), endpoints.count()) {
            ([(_, why)], 1) => anyhow!("{}", escaped(why)),
            (_, count) => anyhow!(
                "none of {count} endpoints answered: {}",
                list.collect::<Vec<_>>().join("; ")
            ),
        };
        match self.deadline.remaining() {
            Ok(_) => error,
            Err(up) => error.context(up),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        for (text, wanted) in [
            ("etcd", "http://etcd:2379"),
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("https://etcd-1", "https://etcd-1:2379"),
            ("https://[fd00::1]:2379/", "https://[fd00::1]:2379"),
            ("HTTPS://etcd:1", "https://etcd:1"),
        ] {
            assert_eq!(
                Endpoint::parse(text, "http").expect(text).to_string(),
                wanted
            );
        }
        let secure = Endpoint::parse("etcd:1", "https").expect("an endpoint");
        assert_eq!(secure.to_string(), "https://etcd:1");
        for (bad, why) in [
            ("", "it "),
            ("ftp://a", "scheme must be"),
            ("unix:///run/etcd", "it holds more than"),
            ("http://", "it "),
            ("http://a/v3", "it holds more than"),
            ("http://a?b=c", "it holds more than"),
            ("http://a:99999", "port is not a number from 1 to 65535"),
            ("a:b", "port is not"),
            ("[fd00::1]:0", "port is not"),
            ("http://root:s3cret@a:1", "it holds a user: give `--user`"),
            ("a b", "it is not a URL"),
        ] {
            let error = Endpoint::parse(bad, "http").expect_err(bad).to_string();
            assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
        }
    }
}
