//! The HTTP client for the Kubernetes API, etcd v2 and the Pushgateway: no redirects, no proxy unless given,
//! our own TLS, and error messages for people.

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

use crate::net::deadline::rounded;
use crate::net::tls::{self, Client, SetBy, Tls};
use crate::text::escaped;

/// The characters to encode in a query, a form or a header's name: all but RFC 3986's unreserved ones.
pub(crate) const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The characters to encode in a path.
pub(crate) const PATH: &AsciiSet = &COMPONENT.remove(b'/').remove(b':');

/// Settings of an agent, which talks to one server.
pub struct Options {
    /// TLS settings; required for `https`.
    pub tls: Option<Client>,
    /// The name that the server's certificate must have; by default the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// The proxy to use.
    pub proxy: Option<Proxy>,
    /// PEM CA certificates to trust for an `https` proxy, beside the system's: kubectl trusts the cluster's
    /// CA for it.
    pub proxy_ca: Option<Vec<u8>>,
    /// Whether to ask for compressed answers.
    pub gzip: bool,
}

/// Makes an agent. An error status is an answer, not an `Err`; redirects are not followed.
///
/// # Errors
/// When the proxy is an `https` one and there are no CA certificates to trust.
pub fn agent(options: Options) -> anyhow::Result<Agent> {
    let Options {
        tls,
        server_name,
        proxy,
        proxy_ca,
        gzip,
    } = options;
    let forward = match (&proxy, &tls) {
        (Some(proxy), None) if speaks_http(proxy) => Some(ForwardProxy::new(proxy)),
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
        .proxy(proxy.filter(|_| forward.is_none()))
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
            forward: forward.clone(),
        })
        .chain(ForwardConnector(forward.clone()));
    let hosts = HostResolver {
        resolver: DefaultResolver::default(),
        forward,
    };
    Ok(Agent::with_parts(config, connector, hosts))
}

fn speaks_http(proxy: &Proxy) -> bool {
    matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
}

/// An HTTP proxy for an `http` server: requests to it carry the absolute URL. (An `https` server is reached
/// through a CONNECT tunnel, which ureq makes.)
#[derive(Debug, Clone)]
struct ForwardProxy {
    proxy: Uri,
    /// `Basic …`
    authorization: Option<String>,
}

impl ForwardProxy {
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

/// Resolves the host to connect to: the forward proxy's if there is one. Skips ureq's lookup thread for IP
/// addresses.
#[derive(Debug)]
struct HostResolver {
    resolver: DefaultResolver,
    forward: Option<ForwardProxy>,
}

impl Resolver for HostResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let uri = self.forward.as_ref().map_or(uri, |forward| &forward.proxy);
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let after = match host.parse::<IpAddr>() {
            Ok(_) => time::Duration::NotHappening,
            Err(_) => timeout.after,
        };
        self.resolver
            .resolve(uri, config, NextTimeout { after, ..timeout })
    }
}

/// Describes a failed request that had `time` to complete.
#[must_use]
pub(crate) fn problem(error: &Error, time: Duration) -> String {
    let text = match error {
        Error::Timeout(Timeout::Connect) => "no connection in time".to_owned(),
        Error::Timeout(_) => {
            format!("no complete answer within {}", rounded(time))
        }
        // Its text says more than its kind.
        Error::Io(error) if is_explained(error) => error.to_string(),
        error if is_unknown_name(error) => format!("its name cannot be resolved: {error}"),
        error if is_refused(error) => "connection refused".to_owned(),
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection was closed before the answer was complete".to_owned()
        }
        error if was_closed(error) => "the connection was reset".to_owned(),
        Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    escaped(&text).into_owned()
}

/// Wraps a connection in TLS and checks the certificate's name.
struct TlsConnector {
    client: Option<Client>,
    server_name: Option<ServerName<'static>>,
    /// For an `https` proxy.
    proxy_client: Option<Client>,
    forward: Option<ForwardProxy>,
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
        // ureq connects to a proxy through the same chain, with a configuration without a proxy.
        let to_proxy = self.proxy_client.is_some() && details.config.proxy().is_none();
        if transport.is_tls() || !to_proxy && !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let (client, uri) = match (&self.proxy_client, &self.forward) {
            (Some(client), None) if to_proxy => (Some(client), details.uri),
            (Some(client), Some(forward)) => (Some(client), &forward.proxy),
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
                    .map_err(|_| Error::Tls("its host is not a valid server name"))?
            }
        };
        let mut conn =
            ClientConnection::new(Arc::clone(&client.config), name).map_err(Error::Rustls)?;
        let mut sock = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        sock.set_timeout(details.timeout);
        if let Err(error) = conn.complete_io(&mut sock) {
            return Err(client.explained(error));
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
    /// Adds what an error of a TLS connection may mean. Keeps its kind.
    fn explained(&self, error: io::Error) -> Error {
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
        io::Write::write_all(&mut self.stream, &output)
            .map_err(|error| self.client.explained(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = io::Read::read(&mut self.stream, input)
            .map_err(|error| self.client.explained(error))?;
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

/// Makes requests to a forward proxy carry absolute URLs.
#[derive(Debug)]
struct ForwardConnector(Option<ForwardProxy>);

impl<In: Transport> Connector<In> for ForwardConnector {
    type Out = Either<In, ForwardTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        let Some(forward) = &self.0 else {
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
        Ok(Some(Either::B(ForwardTransport {
            buffers,
            stream,
            origin,
            authorization: forward.authorization.clone(),
        })))
    }
}

struct ForwardTransport {
    buffers: LazyBuffers,
    stream: TransportAdapter,
    origin: String,
    authorization: Option<String>,
}

impl fmt::Debug for ForwardTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardTransport")
    }
}

impl Transport for ForwardTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_timeout(timeout);
        let mut output = &self.buffers.output()[..amount];
        // ureq writes a request's head in one call. It starts with the method and the path.
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

/// Spells the header names of a GET request as Go does (`Impersonate-User`): some gateways in front of API
/// servers compare them by case. Any other output is returned unchanged.
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

/// Whether a host name cannot be resolved. The standard library has no error kind for that.
fn is_unknown_name(error: &Error) -> bool {
    match error {
        Error::HostNotFound => true,
        Error::Io(error) => error.to_string().starts_with("failed to lookup address"),
        _ => false,
    }
}

/// The text of [`Client::explain`], as the cause of an I/O error.
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

/// Whether the connection was refused.
#[must_use]
pub(crate) fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether the peer closed or reset the connection.
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
