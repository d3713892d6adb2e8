//! One way of speaking HTTP, for the Kubernetes API and for etcd v2: no redirects, no proxy that was
//! not asked for, our own TLS, and errors in words.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout,
    SocksConnector, TcpConnector, Transport, TransportAdapter, time,
};
use ureq::{Agent, Error, Proxy, ProxyProtocol, Timeout};

use crate::net::tls::{self, Client, SetBy, Tls};
use crate::text::escaped;

/// What is encoded in a query, a form or a header's name: all but RFC 3986's unreserved characters.
pub(crate) const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What is encoded in a path.
pub(crate) const PATH: &AsciiSet = &COMPONENT.remove(b'/').remove(b':');

/// What an agent needs to know of the server.
pub struct Options {
    /// For `https`: how it is trusted.
    pub tls: Option<Client>,
    /// The name its certificate must have; without one, the host of the URL.
    pub server_name: Option<ServerName<'static>>,
    /// The proxy on the way.
    pub proxy: Option<Proxy>,
    /// PEM certificates that a proxy spoken to over TLS may be signed by, beside the system's: kubectl trusts the
    /// cluster's CA there.
    pub proxy_ca: Option<Vec<u8>>,
    /// Whether to ask for compressed answers.
    pub gzip: bool,
}

/// Makes an agent. Statuses are no errors, redirects are not followed.
///
/// # Errors
/// When the proxy is spoken to over TLS, and the system has no CA certificates to trust.
pub fn agent(options: Options) -> anyhow::Result<Agent> {
    let Options {
        tls,
        server_name,
        proxy,
        proxy_ca,
        gzip,
    } = options;
    let through = match (&proxy, &tls) {
        (Some(proxy), None) if speaks_http(proxy) => Some(Through::new(proxy)),
        _ => None,
    };
    let proxy_tls = match &proxy {
        Some(proxy) if proxy.protocol() == ProxyProtocol::Https => {
            let tls = Tls {
                ca: proxy_ca,
                set_by: SetBy::System,
                ..Tls::default()
            };
            Some(tls.client(&["http/1.1"])?)
        }
        _ => None,
    };
    let config = Config::builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy.filter(|_| through.is_none()))
        .user_agent(concat!("vulcanized/", env!("CARGO_PKG_VERSION")))
        .accept_encoding(if gzip { "gzip" } else { "identity" })
        .build();
    let connector = ()
        .chain(SocksConnector::default())
        .chain(ConnectProxyConnector::default())
        .chain(TcpConnector::default())
        .chain(TlsConnector {
            client: tls,
            server_name,
            proxy_client: proxy_tls,
            through: through.clone(),
        })
        .chain(ThroughConnector(through.clone()));
    let addresses = Addresses {
        resolver: DefaultResolver::default(),
        through,
    };
    Ok(Agent::with_parts(config, connector, addresses))
}

fn speaks_http(proxy: &Proxy) -> bool {
    matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
}

/// An HTTP proxy for a server that speaks plain HTTP: it is asked for the server's whole URL. (A server that
/// speaks TLS is reached through a tunnel, which is ureq's own.)
#[derive(Debug, Clone)]
struct Through {
    proxy: Uri,
    /// `Basic …`
    authorization: Option<String>,
}

impl Through {
    fn new(proxy: &Proxy) -> Self {
        let authorization = proxy
            .username()
            .map(|user| basic(user, proxy.password().unwrap_or_default()));
        Self {
            proxy: proxy.uri().clone(),
            authorization,
        }
    }
}

/// The value of an `Authorization` header.
#[must_use]
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    )
}

/// Looks names up. Skips ureq's lookup thread for IP addresses.
#[derive(Debug)]
struct Addresses {
    resolver: DefaultResolver,
    through: Option<Through>,
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let uri = self.through.as_ref().map_or(uri, |through| &through.proxy);
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let after = match host.parse::<IpAddr>() {
            Ok(_) => time::Duration::NotHappening,
            Err(_) => timeout.after,
        };
        self.resolver
            .resolve(uri, config, NextTimeout { after, ..timeout })
    }
}

/// What went wrong with a request that took up to `time`, in words.
#[must_use]
pub(crate) fn problem(error: &Error, time: Duration) -> String {
    let text = match error {
        Error::Timeout(Timeout::Connect) => "no connection in time".to_owned(),
        Error::Timeout(_) => {
            let time = Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            format!(
                "no whole answer within {}",
                humantime::format_duration(time)
            )
        }
        // Its kind says less than its text.
        Error::Io(error) if is_explained(error) => error.to_string(),
        error if is_unknown_name(error) => format!("its name cannot be resolved: {error}"),
        error if is_refused(error) => "connection refused".to_owned(),
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection was closed before the answer was whole".to_owned()
        }
        error if was_closed(error) => "the connection was reset".to_owned(),
        Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    escaped(&text).into_owned()
}

/// Wraps a connection in TLS, with the name that the certificate must have chosen by us.
struct TlsConnector {
    client: Option<Client>,
    server_name: Option<ServerName<'static>>,
    /// For a proxy that is itself reached over TLS.
    proxy_client: Option<Client>,
    through: Option<Through>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConnector")
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        // ureq connects to a proxy by the same chain, with a configuration that has no proxy.
        let to_proxy = self.proxy_client.is_some() && details.config.proxy().is_none();
        if transport.is_tls() || !to_proxy && !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let (client, uri) = match (&self.proxy_client, &self.through) {
            (Some(client), None) if to_proxy => (Some(client), details.uri),
            (Some(client), Some(through)) => (Some(client), &through.proxy),
            _ => (self.client.as_ref(), details.uri),
        };
        let client = client
            .cloned()
            .ok_or(Error::Tls("no TLS is set up for this server"))?;
        let name = match &self.server_name {
            Some(name) if !to_proxy => name.clone(),
            _ => {
                let host = uri.host().unwrap_or_default();
                let host = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                ServerName::try_from(host)
                    .map_err(|_| Error::Tls("its host can be no name in a certificate"))?
            }
        };
        let mut conn =
            ClientConnection::new(Arc::clone(&client.config), name).map_err(Error::Rustls)?;
        let mut sock = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        sock.set_timeout(details.timeout);
        if let Err(error) = conn.complete_io(&mut sock) {
            return Err(client.lost(error));
        }
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(TlsTransport {
            buffers,
            client,
            stream: StreamOwned { conn, sock },
        })))
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    client: Client,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Client {
    /// An error of a connection over TLS, with what it may mean. Its kind stays.
    fn lost(&self, error: io::Error) -> Error {
        if is_tls(&error) || tls::was_closed(&error) {
            Error::Io(io::Error::new(
                error.kind(),
                Explained(self.explain(&error)),
            ))
        } else {
            error.into()
        }
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = canonical(&self.buffers.output()[..amount]);
        io::Write::write_all(&mut self.stream, &output).map_err(|error| self.client.lost(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount =
            io::Read::read(&mut self.stream, input).map_err(|error| self.client.lost(error))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Asks a proxy for whole URLs.
#[derive(Debug)]
struct ThroughConnector(Option<Through>);

impl<In: Transport> Connector<In> for ThroughConnector {
    type Out = Either<In, ThroughTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        let Some(through) = &self.0 else {
            return Ok(Some(Either::A(transport)));
        };
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        let authority = details
            .uri
            .authority()
            .map_or("", http::uri::Authority::as_str);
        let origin = format!("http://{authority}");
        let stream = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        Ok(Some(Either::B(ThroughTransport {
            buffers,
            stream,
            origin,
            authorization: through.authorization.clone(),
        })))
    }
}

struct ThroughTransport {
    buffers: LazyBuffers,
    stream: TransportAdapter,
    origin: String,
    authorization: Option<String>,
}

impl fmt::Debug for ThroughTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThroughTransport")
    }
}

impl Transport for ThroughTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_timeout(timeout);
        let mut output = &self.buffers.output()[..amount];
        // ureq writes a request's head at once. Its line begins with the method and the path.
        if let Some(rest) = output.strip_prefix(b"GET /") {
            let line = rest
                .windows(2)
                .position(|end| end == b"\r\n")
                .unwrap_or(rest.len());
            let (line, rest) = rest.split_at(line);
            write!(self.stream, "GET {}/", self.origin)?;
            self.stream.write_all(line)?;
            if let Some(authorization) = &self.authorization {
                write!(self.stream, "\r\nProxy-Authorization: {authorization}")?;
            }
            output = rest;
        }
        Ok(self.stream.write_all(output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().is_open()
    }
}

/// The head of a GET request with the names of its headers as Go spells them (`Impersonate-User`). Names have
/// no case, but some gateways in front of API servers look for that spelling. Anything else stays as it is.
fn canonical(output: &[u8]) -> Cow<'_, [u8]> {
    if !output.starts_with(b"GET ") {
        return Cow::Borrowed(output);
    }
    let mut head = output.to_vec();
    let mut in_name = false;
    for at in 0..head.len() {
        let previous = at.checked_sub(1).map(|at| head[at]);
        if previous == Some(b'\n') {
            in_name = true;
        }
        let first = matches!(previous, Some(b'\n' | b'-'));
        in_name &= head[at] != b':' && head[at] != b'\r';
        if in_name && first {
            head[at].make_ascii_uppercase();
        }
    }
    Cow::Owned(head)
}

/// Whether a name has no address. The standard library has no kind for that.
fn is_unknown_name(error: &Error) -> bool {
    match error {
        Error::HostNotFound => true,
        Error::Io(error) => error.to_string().starts_with("failed to lookup address"),
        _ => false,
    }
}

/// An error of a connection, in words already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Explained(String);

fn is_explained(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Explained>())
}

/// Whether an error comes from TLS.
fn is_tls(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<rustls::Error>())
}

/// Whether a request was never sent, because there was no connection.
#[must_use]
pub(crate) fn never_sent(error: &Error) -> bool {
    is_refused(error) || is_unknown_name(error) || matches!(error, Error::Timeout(Timeout::Connect))
}

/// Whether nobody listens there, now.
#[must_use]
pub(crate) fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether the other side closed the connection, in the middle of something.
#[must_use]
pub(crate) fn was_closed(error: &Error) -> bool {
    matches!(error, Error::Io(error) if tls::was_closed(error))
}

#[cfg(test)]
mod tests {
    use percent_encoding::utf8_percent_encode;

    use super::*;

    #[test]
    fn header_names_are_spelled_as_go_does() {
        let head = b"GET /a-b:c HTTP/1.1\r\nhost: k-s:1\r\nimpersonate-extra-x%2fy: a-b\r\n\r\n";
        let wanted = "GET /a-b:c HTTP/1.1\r\nHost: k-s:1\r\nImpersonate-Extra-X%2fy: a-b\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&canonical(head)), wanted);
        assert_eq!(&*canonical(b"PUT /a\r\nb: c\r\n"), b"PUT /a\r\nb: c\r\n");
    }

    #[test]
    fn urls_are_encoded() {
        let component = utf8_percent_encode("a=b,c!=d/e-._~", COMPONENT);
        assert_eq!(component.to_string(), "a%3Db%2Cc%21%3Dd%2Fe-._~");
        let path = utf8_percent_encode("/a/[b]:1", PATH);
        assert_eq!(path.to_string(), "/a/%5Bb%5D:1");
    }
}
