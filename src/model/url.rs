//! Server URLs as far as a proxy tells servers apart: scheme, host and port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// Reads `http` or `https`, in any case.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        if word.eq_ignore_ascii_case("http") {
            Some(Self::Http)
        } else if word.eq_ignore_ascii_case("https") {
            Some(Self::Https)
        } else {
            None
        }
    }

    /// `http` or `https`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where a URL points to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address; IPv4 mapped into IPv6 counts as IPv4.
    Ip(IpAddr),
    /// A name, in lower case.
    Name(Box<str>),
}

/// A server's URL as far as a proxy tells servers apart: scheme, host and port. Prints as
/// `http://10.200.1.2:8080`, IPv6 in brackets, addresses in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerUrl {
    /// Its scheme.
    pub scheme: Scheme,
    /// Its host.
    pub host: Host,
    /// Its port; the scheme's own where the text had none.
    pub port: u16,
}

impl ServerUrl {
    /// The URL of a pod's port.
    #[must_use]
    pub fn new(scheme: Scheme, ip: IpAddr, port: u16) -> Self {
        Self {
            scheme,
            host: Host::Ip(ip.to_canonical()),
            port,
        }
    }

    /// Reads an absolute `http` or `https` URL with a host; path, query and user are dropped.
    /// `None` for anything else, such as `localhost:80` or `http://`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(url) = Self::parse_plain(text) {
            return Some(url);
        }
        let uri = http::Uri::try_from(text).ok()?;
        let scheme = Scheme::parse(uri.scheme_str()?)?;
        let authority = uri.authority()?;
        let name = authority.host();
        if name.is_empty() {
            return None;
        }
        let host = match name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(inner) => Host::Ip(
                inner
                    .parse::<Ipv6Addr>()
                    .ok()
                    .map(IpAddr::V6)?
                    .to_canonical(),
            ),
            None => match name.parse::<IpAddr>() {
                Ok(ip) => Host::Ip(ip),
                Err(_) => Host::Name(name.to_ascii_lowercase().into()),
            },
        };
        // `http` keeps the text of a port it cannot read (`:99999`): such a URL has no server.
        let port = match authority.port_u16() {
            Some(0) => return None,
            Some(port) => port,
            None if authority.port().is_none() && !ends_in_port(authority.as_str()) => {
                scheme.default_port()
            }
            None => return None,
        };
        Some(Self { scheme, host, port })
    }

    /// Reads what [`ServerUrl`] prints of an IPv4 address, without the whole grammar of URLs: nearly all
    /// that a store holds.
    fn parse_plain(text: &str) -> Option<Self> {
        let (scheme, authority) = match text.strip_prefix("http://") {
            Some(authority) => (Scheme::Http, authority),
            None => (Scheme::Https, text.strip_prefix("https://")?),
        };
        let (host, port) = authority.split_once(':')?;
        let ip = host.parse::<Ipv4Addr>().ok()?;
        let digits = port.bytes().all(|c| c.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0)?;
        Some(Self {
            scheme,
            host: Host::Ip(ip.into()),
            port,
        })
    }

    /// Its address, if its host is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }
}

/// Whether an authority has a colon behind its host.
fn ends_in_port(authority: &str) -> bool {
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    host.rsplit_once(']')
        .map_or(host, |(_, rest)| rest)
        .contains(':')
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            Host::Name(name) => f.write_str(name)?,
        }
        write!(f, ":{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_compared_parsed() {
        for (text, canonical) in [
            ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("HTTP://10.0.0.1:8080/some/path?x#y", "http://10.0.0.1:8080"),
            ("http://10.0.0.1", "http://10.0.0.1:80"),
            ("https://Example.com/", "https://example.com:443"),
            ("http://user:pass@10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("http://[FD00:0::1]:80", "http://[fd00::1]:80"),
            ("http://[::ffff:10.0.0.1]:80", "http://10.0.0.1:80"),
        ] {
            assert_eq!(ServerUrl::parse(text).expect(text).to_string(), canonical);
        }
        let bad = [
            "",
            "localhost:80",
            "http://",
            "http://:80",
            "ftp://a:1",
            "/a",
            "10.0.0.1:80",
        ];
        let ports = [
            "http://a:99999",
            "http://a:0",
            "http://[::1]:x",
            "http://[::zz]:1",
        ];
        for text in bad.into_iter().chain(ports) {
            assert_eq!(ServerUrl::parse(text), None, "{text}");
        }
    }
}
