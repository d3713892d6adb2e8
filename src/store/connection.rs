//! Connections to an endpoint of etcd, over plain TCP or TLS, that remember what answered there.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::anyhow;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::endpoints::Endpoint;
use crate::net::tls::Client;

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
