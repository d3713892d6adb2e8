//! How etcd is reached: its endpoints, tried in order, over plain TCP or TLS.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{anyhow, bail};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::net::deadline::Deadline;
use crate::net::tls::{Client, Tls};
use crate::text::{escaped, redacted};

/// How long to wait for a cluster that has just lost its leader before all endpoints are asked again:
/// it finds another within a second or two.
pub(super) const ELECTION: Duration = Duration::from_millis(200);

/// How etcd is reached.
pub struct Options {
    /// Endpoints as URLs, in the order in which they are tried. Without a scheme it is `http`, or
    /// `https` if `tls` says anything (as `etcdctl` has it); without a port 2379.
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
pub(crate) struct Endpoint {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Reads one endpoint, that is spoken to as `scheme` says if it has none.
    ///
    /// # Errors
    /// When it is no `http` or `https` URL with a host.
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

/// A connection, whatever it runs over.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to an endpoint, that remembers how the other side began.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    tls: Option<Client>,
    seen: Arc<Mutex<Seen>>,
}

/// How the other side began, and how it ended: what is no etcd can be told by that.
#[derive(Default)]
pub(super) struct Seen {
    /// The first bytes, after TLS.
    first: Vec<u8>,
    /// It closed the connection.
    closed: bool,
    /// What TLS said.
    problem: Option<String>,
}

impl Seen {
    /// What answers there, if it is no etcd.
    pub(super) fn explain(&self, endpoint: &Endpoint) -> Option<String> {
        const TLS_ALERT: u8 = 0x15;
        if let Some(problem) = &self.problem {
            return Some(problem.clone());
        }
        let text = String::from_utf8_lossy(&self.first);
        let words = match self.first.first() {
            None if !self.closed => return None,
            None => "it closed the connection without an answer: if it speaks TLS, use `https://`",
            Some(&TLS_ALERT) if !endpoint.tls => "it speaks TLS: use `https://`",
            Some(_) if text.contains("HTTPS server") => "it speaks TLS: use `https://`",
            Some(_) if text.starts_with("HTTP/") => {
                "a web server answers there, not etcd's API version 3"
            }
            _ => return None,
        };
        Some(words.to_owned())
    }
}

impl Connection {
    /// What was seen on it: kept beyond its end.
    pub(super) fn seen(&self) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen)
    }

    /// Remembers what came, or why nothing more will.
    fn note(&self, result: &io::Result<&[u8]>) {
        /// Enough to know what is spoken.
        const FIRST: usize = 256;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(new) => {
                seen.closed |= new.is_empty();
                let room = FIRST.saturating_sub(seen.first.len());
                seen.first.extend(new.iter().take(room));
            }
            Err(error) => {
                seen.closed = true;
                let is_tls = <dyn Error + Send + Sync>::is::<rustls::Error>;
                if let (Some(tls), true) = (&self.tls, error.get_ref().is_some_and(is_tls)) {
                    seen.problem.get_or_insert_with(|| tls.explain(error));
                }
            }
        }
        if let (Some(tls), true, true) = (&self.tls, seen.closed, seen.first.is_empty()) {
            let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
            seen.problem.get_or_insert_with(|| tls.explain(&closed));
        }
    }

    /// A write that failed: what the other side said before it closed is still to be read.
    fn note_last_words(&mut self, context: &mut Context<'_>) {
        let mut space = [0; 256];
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => self.note(&Ok(buffer.filled())),
            Poll::Ready(Err(error)) => self.note(&Err(error)),
            Poll::Pending => self.note(&Ok(&[])),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let noted = result.map(|()| &buffer.filled()[before..]);
        self.note(&noted);
        Poll::Ready(noted.map(drop))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        if result.is_err() {
            self.note_last_words(context);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(context));
        if result.is_err() {
            self.note_last_words(context);
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connects to one endpoint within `time`, TLS included. Each address of its name gets a share of it.
///
/// # Errors
/// What did not work: the name, the connection, or TLS.
pub(super) async fn dial(
    endpoint: &Endpoint,
    tls: Option<&Client>,
    time: Duration,
) -> anyhow::Result<Connection> {
    let end = Instant::now() + time;
    let Endpoint { host, port, .. } = endpoint;
    let addresses = timeout_at(end, lookup_host((host.as_str(), *port)));
    let addresses = addresses
        .await
        .map_err(|_| {
            anyhow!(
                "failed to resolve `{host}`: no answer within {}",
                words(time)
            )
        })?
        .map_err(|error| anyhow!("failed to resolve `{host}`: {error}"))?
        .collect::<Vec<_>>();
    let mut failure = anyhow!("`{host}` has no address");
    for (left, address) in (1..=addresses.len()).rev().zip(&addresses) {
        let share = end.saturating_duration_since(Instant::now()) / u32::try_from(left)?;
        let tcp = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                failure = anyhow!("failed to connect to {address}: {error}");
                continue;
            }
            Err(_) => {
                let share = words(share);
                failure = anyhow!("failed to connect to {address}: no answer within {share}");
                continue;
            }
        };
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(client) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| anyhow!("`{host}` can be no name in a certificate"))?;
                let handshake = TlsConnector::from(Arc::clone(&client.config)).connect(name, tcp);
                let stream = timeout_at(end, handshake).await.map_err(|_| {
                    let time = words(time);
                    anyhow!("the TLS handshake did not end within {time}: is it a TLS port?")
                })?;
                Box::new(stream.map_err(|error| anyhow!(client.explain(&error)))?)
            }
        };
        return Ok(Connection {
            stream,
            tls: tls.cloned(),
            seen: Arc::default(),
        });
    }
    Err(failure)
}

/// A time for the eye, in whole milliseconds.
pub(super) fn words(time: Duration) -> String {
    let time = Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    humantime::format_duration(time).to_string()
}

/// Checks all endpoints, and builds the TLS side if one needs it.
pub(super) fn prepare(
    options: &Options,
    protocols: &[&str],
) -> anyhow::Result<(Vec<Endpoint>, Option<Client>)> {
    // Who names a CA or a certificate must not send a password in the clear.
    let secure = options.tls.ca.is_some() || options.tls.identity.is_some();
    let scheme = if secure { "https" } else { "http" };
    let endpoints = options.endpoints.iter();
    let endpoints = endpoints
        .map(|text| Endpoint::parse(text, scheme))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if endpoints.is_empty() {
        bail!("no endpoint of etcd given");
    }
    let any_tls = endpoints.iter().any(|endpoint| endpoint.tls);
    let tls = if any_tls {
        Some(options.tls.client(protocols)?)
    } else {
        None
    };
    Ok((endpoints, tls))
}

/// The failures of all endpoints in one message, or of those that there was time for; the only one's
/// stands for itself.
pub(super) fn all_failed(
    failures: &[(String, String)],
    endpoints: &[Endpoint],
    deadline: Deadline,
) -> anyhow::Error {
    let list = failures
        .iter()
        .map(|(endpoint, why)| format!("{endpoint}: {}", escaped(why)));
    let error = match (failures, endpoints) {
        ([(_, why)], [_]) => anyhow!("{}", escaped(why)),
        _ => anyhow!(
            "none of {} endpoints answered: {}",
            endpoints.len(),
            list.collect::<Vec<_>>().join("; ")
        ),
    };
    match deadline.remaining() {
        Ok(_) => error,
        Err(up) => error.context(up),
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
