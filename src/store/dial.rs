//! How etcd is reached: its endpoints, tried in order, over plain TCP or TLS.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream as BlockingStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::report::{escaped, redacted};
use crate::tls::{Tls, handshake_problem};

/// How etcd is reached.
pub struct Options {
    /// Endpoints as URLs, in the order in which they are tried. Without a scheme it is `http`, without
    /// a port 2379.
    pub endpoints: Vec<String>,
    /// For `https` endpoints.
    pub tls: Tls,
    /// Who we are.
    pub user: Option<User>,
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

/// One endpoint, taken apart. Prints as its URL, without a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Reads one endpoint.
    ///
    /// # Errors
    /// When it is no `http` or `https` URL with a host.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        /// etcd's port for clients.
        const PORT: u16 = 2379;
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let bad = || {
            anyhow!(
                "`{}` is no endpoint: it looks like https://etcd-1:2379",
                redacted(text)
            )
        };
        let uri = http::Uri::try_from(url).map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(bad());
        }
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self {
            tls,
            host,
            port: uri.port_u16().unwrap_or(PORT),
        })
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

/// A connection, whatever it runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects to one endpoint. The caller sets the deadline.
pub(super) async fn dial(
    endpoint: &Endpoint,
    tls: Option<&Arc<ClientConfig>>,
) -> anyhow::Result<Box<dyn Stream>> {
    let Endpoint { host, port, .. } = endpoint;
    let addresses = tokio::net::lookup_host((host.as_str(), *port)).await;
    let addresses = addresses.map_err(|error| anyhow!("failed to resolve `{host}`: {error}"))?;
    let mut failure = anyhow!("`{host}` has no address");
    for address in addresses {
        let tcp = match TcpStream::connect(address).await {
            Ok(tcp) => tcp,
            Err(error) => {
                failure = anyhow!("failed to connect to {address}: {error}");
                continue;
            }
        };
        tcp.set_nodelay(true)?;
        let Some(config) = tls else {
            return Ok(Box::new(tcp));
        };
        let name = ServerName::try_from(host.clone())
            .map_err(|_| anyhow!("`{host}` can be no name in a certificate"))?;
        let connector = TlsConnector::from(Arc::clone(config));
        return match connector.connect(name, tcp).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(anyhow!("{}", handshake_problem(&error))),
        };
    }
    Err(failure)
}

/// Finds out what a server is that took a connection and did not answer as etcd: in words.
pub(super) fn what_answers(endpoint: &Endpoint, patience: Duration) -> Option<&'static str> {
    let patience = patience.min(Duration::from_secs(1));
    if endpoint.tls {
        return None;
    }
    let address = (endpoint.host.as_str(), endpoint.port)
        .to_socket_addrs()
        .ok()?
        .next()?;
    let mut stream = BlockingStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = Vec::new();
    // Whatever came before the time was up tells enough.
    let _ = stream.take(512).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    if answer.contains("HTTPS server") || answer.starts_with('\u{15}') {
        Some("it speaks TLS: use `https://`")
    } else if answer.contains("etcdserver") {
        None
    } else if answer.starts_with("HTTP/") {
        Some("a web server answers there, not etcd")
    } else {
        Some("what answers there is not etcd, or it speaks TLS: then use `https://`")
    }
}

/// Checks all endpoints, and builds the TLS side if one needs it.
pub(super) fn prepare(
    options: &Options,
    protocols: &[&str],
) -> anyhow::Result<(Vec<Endpoint>, Option<Arc<ClientConfig>>)> {
    let endpoints = options.endpoints.iter().map(|text| Endpoint::parse(text));
    let endpoints = endpoints.collect::<anyhow::Result<Vec<_>>>()?;
    if endpoints.is_empty() {
        bail!("no endpoint of etcd given");
    }
    let any_tls = endpoints.iter().any(|endpoint| endpoint.tls);
    let tls = if any_tls {
        Some(options.tls.config(protocols)?)
    } else {
        None
    };
    Ok((endpoints, tls))
}

/// The failures of all endpoints in one message.
pub(super) fn all_failed(failures: &[(String, String)]) -> anyhow::Error {
    let list = failures
        .iter()
        .map(|(endpoint, why)| format!("{endpoint}: {}", escaped(why)));
    match failures {
        [_] => anyhow!("{}", list.collect::<String>()),
        _ => anyhow!(
            "none of {} endpoints answered: {}",
            failures.len(),
            list.collect::<Vec<_>>().join("; ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_apart() {
        for (text, wanted) in [
            ("etcd", "http://etcd:2379"),
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("https://etcd-1", "https://etcd-1:2379"),
            ("https://[fd00::1]:2379/", "https://[fd00::1]:2379"),
            ("http://user:pass@etcd:1", "http://etcd:1"),
        ] {
            assert_eq!(Endpoint::parse(text).expect(text).to_string(), wanted);
        }
        for bad in ["", "ftp://a", "http://", "http://a/v3", "a b"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
