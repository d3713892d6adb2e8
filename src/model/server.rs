//! Servers as the proxy knows them: ids, URLs, and the mark that says whose an entry is.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

/// The longest id, in bytes.
const ID_MAX: usize = 253;

/// Why a text is no id. Prints as the reason alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing is left to be an id.
    #[error("it is empty")]
    Empty,
    /// Longer than 253 bytes.
    #[error("it is longer than {ID_MAX} bytes")]
    TooLong,
    /// Nothing but digits, where that is a place in a list.
    #[error("it is nothing but digits")]
    OnlyDigits,
    /// A character that ids do not have, or do not begin with.
    #[error("it has {0:?} where an id has none")]
    Character(char),
}

/// Checks that `text` matches `[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*` and is at most 253 bytes long, so
/// that as part of a key it cannot add a path segment, nor be hidden or redirected by etcd v2.
fn check_id(text: &str) -> Result<(), InvalidId> {
    let mut characters = text.chars();
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._:[]-".contains(&c);
    match characters.next() {
        None => return Err(InvalidId::Empty),
        Some(first) if first.is_ascii_alphanumeric() || first == '[' => {}
        Some(first) => return Err(InvalidId::Character(first)),
    }
    if text.len() <= ID_MAX && text.bytes().all(allowed) {
        return Ok(());
    }
    match characters.find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        Some(strange) => Err(InvalidId::Character(strange)),
        None if text.len() > ID_MAX => Err(InvalidId::TooLong),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($text:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name($text);

        impl $name {
            /// Checks `text` and makes it an id.
            ///
            /// # Errors
            /// [`InvalidId`] when it is none.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                check_id(text)?;
                Ok(Self(text.into()))
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The id of a backend (vulcand) or service (Traefik): `[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*`, at
    /// most 253 bytes. Pods of one backend share it.
    BackendId(Rc<str>)
}
id! {
    /// The id of a server within its backend: the same alphabet as [`BackendId`].
    ServerId(Box<str>)
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address; IPv4 mapped into IPv6 counts as IPv4.
    Ip(IpAddr),
    /// A name, in lower case.
    Name(Box<str>),
}

/// A server's URL as far as a proxy tells servers apart: scheme, host and port. Prints as
/// `http://10.200.1.2:8080`, IPv6 in brackets, addresses in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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

/// A pod's full name. Prints as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: Rc<str>,
    /// Its name.
    pub name: Rc<str>,
}

impl PodName {
    /// Reads `namespace/name`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = Self::split(text)?;
        Some(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// The same, as namespace and name.
    pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
        let (namespace, name) = text.split_once('/')?;
        let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        whole.then_some((namespace, name))
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Checks an owner's or a cluster's name: `[a-z0-9-]{1,32}`.
///
/// # Errors
/// A sentence for the usage message.
pub fn check_name(text: &str) -> Result<String, String> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 32 of the characters a-z, 0-9 and `-`".to_owned())
    }
}

/// From where a run looked: the cluster, then the selectors in canonical form. Prints as
/// `3f2a91c0 app=web,tier!=x fields(spec.nodeName=a)`, without the parts that were not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The cluster's name.
    pub cluster: String,
    /// The label selector, canonical; empty if there is none.
    pub labels: String,
    /// The field selector, canonical; empty if there is none.
    pub fields: String,
}

impl Scope {
    /// Brings the selectors into canonical form: requirements in order, each once, without needless
    /// space, `==` as `=`, the values of a set in order.
    #[must_use]
    pub fn new(cluster: impl Into<String>, labels: Option<&str>, fields: Option<&str>) -> Self {
        Self {
            cluster: cluster.into(),
            labels: canonical_selector(labels.unwrap_or_default()),
            fields: canonical_selector(fields.unwrap_or_default()),
        }
    }

    /// Whether any selector was given.
    #[must_use]
    pub fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cluster)?;
        if !self.labels.is_empty() {
            write!(f, " {}", self.labels)?;
        }
        if !self.fields.is_empty() {
            write!(f, " fields({})", self.fields)?;
        }
        Ok(())
    }
}

fn canonical_selector(text: &str) -> String {
    let mut depth = 0_usize;
    let outside_sets = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    let mut requirements = text
        .split(outside_sets)
        .map(canonical_requirement)
        .filter(|requirement| !requirement.is_empty())
        .collect::<Vec<_>>();
    requirements.sort_unstable();
    requirements.dedup();
    requirements.join(",")
}

/// `env  in ( b,a )` becomes `env in (a,b)`; `app == web` becomes `app=web`.
fn canonical_requirement(text: &str) -> String {
    if let Some((head, set)) = text.split_once('(') {
        let set = set.trim_end().trim_end_matches(')');
        let mut values = set.split(',').map(str::trim).collect::<Vec<_>>();
        values.sort_unstable();
        values.dedup();
        let head = head.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{head} ({})", values.join(","))
    } else {
        let packed = text.split_whitespace().collect::<String>();
        packed.replace("==", "=")
    }
}

/// Who wrote an entry, from where it looked, and for which pod, as the entry itself says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The owner's name.
    pub owner: Rc<str>,
    /// The scope, as the layout writes it; empty when the entry does not say.
    pub scope: Rc<str>,
    /// The pod's namespace; empty when the entry does not say.
    pub namespace: Rc<str>,
    /// The pod's name; `None` where the layout does not carry it.
    pub pod: Option<Rc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_add_a_path_segment() {
        for good in ["web", "10.200.1.2", "[fd00::1]:80", "a_b", "a..b", "0"] {
            assert_eq!(
                BackendId::new(good).map(|id| id.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "", "/", "a/b", ".", "..", "_a", "a b", "a\u{1b}", "é", "-a", "a%2Fb", ":80",
        ] {
            assert!(ServerId::new(bad).is_err(), "{bad:?} is no id");
        }
        assert!(BackendId::new("a".repeat(253)).is_ok());
        assert_eq!(BackendId::new("a".repeat(254)), Err(InvalidId::TooLong));
    }

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

    #[test]
    fn scopes_have_one_spelling() {
        let scope = |labels, fields| Scope::new("prod", labels, fields).to_string();
        assert_eq!(scope(None, None), "prod");
        assert_eq!(
            scope(Some("tier!=x, app == web"), None),
            "prod app=web,tier!=x"
        );
        assert_eq!(
            scope(Some("env in ( b,a ),!x"), None),
            "prod !x,env in (a,b)"
        );
        assert_eq!(
            scope(None, Some("spec.nodeName=a")),
            "prod fields(spec.nodeName=a)"
        );
        assert_eq!(scope(Some("a,a"), Some("b=c")), "prod a fields(b=c)");
    }

    #[test]
    fn names_of_owners() {
        assert!(check_name("prod-2").is_ok());
        for bad in ["", "Prod", "a.b", "a b", &"a".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
