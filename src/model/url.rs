//! Server URLs as far as a proxy tells servers apart: scheme, host and port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// How a server is spoken to.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain HTTP
    Http,
    /// HTTP over TLS
    Https,
    /// HTTP/2 without TLS: Traefik knows it. It is read, and never written.
    H2c,
}

impl Scheme {
    /// Reads `http` or `https`, in any case.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|scheme| word.eq_ignore_ascii_case(scheme.as_str()))
    }

    /// `http`, `https` or `h2c`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::H2c => 80,
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

/// Why a text is not the URL of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlFault {
    /// Go's `net/url`, with which the proxies read it, refuses it.
    Unreadable,
    /// It has no scheme or no host.
    NoHost,
    /// It has both, and no proxy can send requests there: another scheme, or a port out of range.
    Unreachable,
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

    /// Reads an absolute URL with a host, as [`ServerUrl::read`] does.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text).ok()
    }

    /// Reads an absolute URL with a host as Go's `net/url` does, in which the proxies are written; path,
    /// query and user are dropped.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, UrlFault> {
        let (scheme, rest) = go_scheme(text)?;
        if text.bytes().any(|c| c < b' ' || c == 0x7f) {
            return Err(UrlFault::Unreadable);
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, _) = rest.split_once('?').unwrap_or((rest, ""));
        let Some(rest) = rest.strip_prefix("//") else {
            let opaque = !rest.starts_with('/') && !scheme.is_empty();
            let colon = rest
                .split('/')
                .next()
                .is_some_and(|part| part.contains(':'));
            return Err(if !opaque && (colon || !has_whole_escapes(rest)) {
                UrlFault::Unreadable
            } else {
                UrlFault::NoHost
            });
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !has_whole_escapes(path) || !has_whole_escapes(fragment) {
            return Err(UrlFault::Unreadable);
        }
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let of_user = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
        if !user.chars().all(of_user) || !has_whole_escapes(user) {
            return Err(UrlFault::Unreadable);
        }
        let (name, port) = match host.strip_prefix('[') {
            Some(inner) => inner.rsplit_once(']').ok_or(UrlFault::Unreadable)?,
            None => host.split_at(host.rfind(':').unwrap_or(host.len())),
        };
        // Each is empty, or a colon and digits, if any.
        let digits = port.strip_prefix(':').unwrap_or(port);
        if digits.len() == port.len() && !port.is_empty()
            || digits.bytes().any(|c| !c.is_ascii_digit())
        {
            return Err(UrlFault::Unreadable);
        }
        let of_host = |c: char| {
            c.is_ascii_alphanumeric() || !c.is_ascii() || "-._~!$&'()*+,;=:[]<>\"".contains(c)
        };
        if !name
            .chars()
            .all(|c| of_host(c) || (host.starts_with('[') && c == '%'))
        {
            return Err(UrlFault::Unreadable);
        }
        let known = [Scheme::Http, Scheme::Https, Scheme::H2c];
        let known = known
            .into_iter()
            .find(|known| scheme.eq_ignore_ascii_case(known.as_str()));
        if name.is_empty() || scheme.is_empty() {
            return Err(UrlFault::NoHost);
        }
        let scheme = known.ok_or(UrlFault::Unreachable)?;
        let host = if host.starts_with('[') {
            let ip = name
                .parse::<Ipv6Addr>()
                .map_err(|_| UrlFault::Unreachable)?;
            Host::Ip(IpAddr::V6(ip).to_canonical())
        } else {
            match name.parse::<Ipv4Addr>() {
                Ok(ip) => Host::Ip(ip.into()),
                Err(_) if name.contains(':') => return Err(UrlFault::Unreachable),
                Err(_) => Host::Name(name.to_ascii_lowercase().into()),
            }
        };
        let port = match digits {
            "" => scheme.default_port(),
            digits => digits
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or(UrlFault::Unreachable)?,
        };
        Ok(Self { scheme, host, port })
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

/// The scheme, empty where there is none, and what follows it (Go: `getScheme`).
fn go_scheme(text: &str) -> Result<(&str, &str), UrlFault> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err(UrlFault::Unreadable),
            ':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// Whether each `%` is followed by two hexadecimal digits.
fn has_whole_escapes(text: &str) -> bool {
    let mut parts = text.split('%');
    parts.next();
    parts.all(|part| part.len() >= 2 && part.bytes().take(2).all(|c| c.is_ascii_hexdigit()))
}

impl Serialize for ServerUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
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
            ("http://10.0.0.1:/a b", "http://10.0.0.1:80"),
            ("https://Example.com/", "https://example.com:443"),
            ("http://user:pass@10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("http://[FD00:0::1]:80", "http://[fd00::1]:80"),
            ("http://[::ffff:10.0.0.1]:80", "http://10.0.0.1:80"),
            ("h2c://10.0.0.1:8080", "h2c://10.0.0.1:8080"),
            ("http://a?x:y@b/%zz", "http://a:80"),
        ] {
            assert_eq!(ServerUrl::parse(text).expect(text).to_string(), canonical);
        }
    }

    /// What Go 1.22's `url.Parse` said, and where Traefik 3.7 then sent requests.
    #[test]
    fn faults_of_server_urls() {
        use UrlFault::{NoHost, Unreachable, Unreadable};
        for (text, fault) in [
            ("", NoHost),
            ("/a", NoHost),
            ("//a:1", NoHost),
            ("localhost:80", NoHost),
            ("http:/a:1", NoHost),
            ("http://", NoHost),
            ("http://:80", NoHost),
            ("rubbish", NoHost),
            ("ftp://a:1", Unreachable),
            ("http://a:99999", Unreachable),
            ("http://a:0", Unreachable),
            ("http://a:b:80", Unreachable),
            ("http://[::zz]:1", Unreachable),
            ("10.0.0.1:80", Unreadable),
            (":80", Unreadable),
            (" http://a", Unreadable),
            ("http://a b:80", Unreadable),
            ("http://a:80 ", Unreadable),
            ("http://a\n", Unreadable),
            ("http://a:x", Unreadable),
            ("http://[::1]:x", Unreadable),
            ("http://[::1]x", Unreadable),
            ("http://[::1", Unreadable),
            ("http://a/%zz", Unreadable),
            ("http://a b@c/", Unreadable),
        ] {
            assert_eq!(ServerUrl::read(text), Err(fault), "{text}");
        }
    }
}
