//! Connections to an endpoint of etcd, over TCP or TLS, that record what answered there.

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
use crate::net::deadline::rounded;
use crate::net::tls::Client;

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to an endpoint, with a record of its peer.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    tls: Option<Client>,
    peer: Arc<Mutex<Peer>>,
}

/// What a peer sent first, and how it closed: tells other servers from etcd.
#[derive(Default)]
pub(super) struct Peer {
    /// The first bytes, after TLS.
    first: Vec<u8>,
    /// Whether it closed the connection.
    closed: bool,
    /// The TLS error, explained.
    problem: Option<String>,
}

impl Peer {
    /// What answers at the endpoint, if it is not etcd.
    pub(super) fn explain(&self, endpoint: &Endpoint) -> Option<String> {
        const TLS_ALERT: u8 = 0x15;
        if let Some(problem) = &self.problem {
            return Some(problem.clone());
        }
        let text = String::from_utf8_lossy(&self.first);
        let explained = match self.first.first() {
            None if !self.closed => return None,
            None => "it closed the connection without an answer: if it speaks TLS, use `https://`",
            Some(&TLS_ALERT) if !endpoint.tls => "it speaks TLS: use `https://`",
            Some(_) if text.contains("HTTPS server") => "it speaks TLS: use `https://`",
            Some(_) if text.starts_with("HTTP/") => {
                "a web server answers there, not etcd's API version 3"
            }
            _ => return None,
        };
        Some(explained.to_owned())
    }
}

impl Connection {
    /// The record of the peer, which outlives the connection.
    pub(super) fn peer(&self) -> Arc<Mutex<Peer>> {
        Arc::clone(&self.peer)
    }

    /// Records received bytes, or why there will be no more.
    fn note(&self, result: &io::Result<&[u8]>) {
        /// In bytes: enough to recognise a protocol.
        const FIRST: usize = 256;
        let mut peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(new) => {
                peer.closed |= new.is_empty();
                let room = FIRST.saturating_sub(peer.first.len());
                peer.first.extend(new.iter().take(room));
            }
            Err(error) => {
                peer.closed = true;
                let is_tls = <dyn Error + Send + Sync>::is::<rustls::Error>;
                if let (Some(tls), true) = (&self.tls, error.get_ref().is_some_and(is_tls)) {
                    peer.problem.get_or_insert_with(|| tls.explain(error));
                }
            }
        }
        if let (Some(tls), true, true) = (&self.tls, peer.closed, peer.first.is_empty()) {
            let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
            peer.problem.get_or_insert_with(|| tls.explain(&closed));
        }
    }

    /// After a failed write: records what the peer sent before it closed.
    fn note_before_close(&mut self, context: &mut Context<'_>) {
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
            self.note_before_close(context);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(context));
        if result.is_err() {
            self.note_before_close(context);
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connects to one endpoint within `time`, TLS included. Each address of the host gets an equal share of the
/// time left.
///
/// # Errors
/// Name resolution, TCP or TLS failed, or took too long.
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
                rounded(time)
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
                let share = rounded(share);
                failure = anyhow!("failed to connect to {address}: no answer within {share}");
                continue;
            }
        };
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(client) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| anyhow!("`{host}` is not a valid server name"))?;
                let handshake = TlsConnector::from(Arc::clone(&client.config)).connect(name, tcp);
                let stream = timeout_at(end, handshake).await.map_err(|_| {
                    let time = rounded(time);
                    anyhow!("the TLS handshake did not end within {time}: is it a TLS port?")
                })?;
                Box::new(stream.map_err(|error| anyhow!(client.explain(&error)))?)
            }
        };
        return Ok(Connection {
            stream,
            tls: tls.cloned(),
            peer: Arc::default(),
        });
    }
    Err(failure)
}
