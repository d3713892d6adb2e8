//! Translates between a proxy's keys and values and its servers. Messages about them are in [`crate::report`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use litemap::LiteMap;

use crate::model::{
    self, Author, BackendId, Denied, InvalidId, Mark, PodName, Scope, ServerId, ServerUrl, Snapshot,
};

mod go;
#[cfg(test)]
mod toy;
mod traefik;
mod vulcand;

/// All layouts, by the name that `--layout` takes, the default one first. A new layout is a module of
/// this folder and a line here.
pub(crate) const LAYOUTS: &[(&str, Open)] = &[
    ("vulcand", vulcand::open),
    ("traefik", traefik::open),
    #[cfg(test)]
    ("toy", toy::open),
];

/// Makes a layout.
pub(crate) type Open = fn(Options) -> Result<Rc<dyn Layout>, Unsupported>;

/// What a layout depends on.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The prefix of all keys, without a slash at its end; `None` is the layout's default.
    pub prefix: Option<String>,
    /// Whether the store is etcd's v2 API.
    pub etcd_v2: bool,
}

/// What a proxy does not support, for the usage error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(&'static str);

/// The layout of this name.
///
/// # Errors
/// [`Unsupported`].
///
/// # Panics
/// If [`LAYOUTS`] has no such name.
pub fn open(name: &str, options: Options) -> Result<Rc<dyn Layout>, Unsupported> {
    let found = LAYOUTS.iter().find(|(layout, _)| *layout == name);
    let (_, open) = found.expect("a name of LAYOUTS");
    open(options)
}

/// The layout of one proxy's configuration.
pub trait Layout: fmt::Debug {
    /// The key ranges to list, as byte prefixes.
    fn ranges(&self) -> Vec<String>;

    /// Reads what the store answered for [`Layout::ranges`].
    ///
    /// # Errors
    /// [`ObserveError`].
    fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError>;

    /// The key prefix of everything that belongs to a backend.
    fn range(&self, prefix: &str, backend: &str) -> String;

    /// The key of a server.
    fn key(&self, prefix: &str, backend: &str, id: &str) -> String;

    /// The value of a server.
    fn value(&self, url: &ServerUrl, mark: &Mark) -> String;

    /// The key of a server's weight; `None`: the proxy knows no weights.
    fn weight_key(&self, _prefix: &str, _backend: &str, _id: &str) -> Option<String> {
        None
    }

    /// Whether the proxy knows weights of servers.
    fn has_weights(&self) -> bool {
        self.weight_key("", "", "").is_some()
    }

    /// The key that a further key of a server gets under another id; `None` if it does not move with it.
    fn moved_key(&self, _prefix: &str, _backend: &str, _id: &str, _key: &str) -> Option<String> {
        None
    }

    /// The keys and values that define a backend with nothing but defaults, the one that makes it
    /// defined last.
    fn definition(&self, prefix: &str, backend: &str) -> Vec<(String, String)>;

    /// The key and value that `--create-backends` writes before a backend's first server; `None`: the last
    /// of [`Layout::definition`].
    fn created(&self, _prefix: &str, _backend: &str) -> Option<(String, String)> {
        None
    }

    /// What the proxy does with a backend that is not defined.
    fn undefined(&self) -> Undefined;

    /// The key prefix of everything that may define a backend.
    fn definitions(&self, prefix: &str) -> String;

    /// The proxy's own option that makes it read this prefix.
    fn root_option(&self, prefix: &str) -> String;

    /// The part of a scope that entries of this layout carry.
    fn scope(&self, scope: &Scope) -> String {
        scope.to_string()
    }

    /// The mark that an entry of this layout carries for a pod.
    fn mark(&self, author: Rc<Author>, pod: &PodName) -> Mark {
        Mark {
            author,
            namespace: pod.namespace.clone(),
            pod: Some((*pod.name).into()),
        }
    }

    /// Checks that entries of this owner can be told from unmarked ones.
    ///
    /// # Errors
    /// [`Unsupported`].
    fn check_owner(&self, _owner: &str) -> Result<(), Unsupported> {
        Ok(())
    }

    /// The id under which a server stands in its backend.
    fn id<'s>(&self, server: &'s str, _mark: &Mark) -> Cow<'s, str> {
        Cow::Borrowed(server)
    }

    /// Makes an id of a backend.
    ///
    /// # Errors
    /// [`InvalidId`]: the proxy could not read it.
    fn backend_id(&self, text: &str) -> Result<BackendId, InvalidId> {
        BackendId::new(text)
    }

    /// Makes an id of a server.
    ///
    /// # Errors
    /// [`InvalidId`]: the proxy could not read it.
    fn server_id(&self, text: &str) -> Result<ServerId, InvalidId> {
        ServerId::new(text)
    }

    /// Whether two backends with these ids get each other's servers (one id begins the other).
    fn bleeds(&self, _shorter: &str, _longer: &str) -> bool {
        false
    }
}

/// The entries of a range, each as key, value and revision. A key that is not UTF-8 is left out: neither a proxy
/// nor this program can name it.
fn readable(entries: Vec<model::KeyValue>) -> impl Iterator<Item = (String, Vec<u8>, u64)> {
    entries.into_iter().filter_map(|entry| {
        let key = String::from_utf8(entry.key).ok()?;
        Some((key, entry.value, entry.revision))
    })
}

/// What a proxy does with a backend that is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undefined {
    /// Its servers can hang or stop the proxy at its next start; one key defines it.
    Stops,
    /// It gets no requests; a route that names it defines it.
    Unrouted,
}

/// The proxy's configuration as a listing found it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The store's revision, if it has one.
    pub revision: Option<u64>,
    /// The prefix that was found or given.
    pub prefix: String,
    /// All backends that have any key, by id.
    pub backends: BTreeMap<String, Backend>,
    /// Backends under prefixes easily confused with this one. The proxy that reads this prefix does not serve them.
    pub siblings: Vec<Sibling>,
    /// For proxies that ignore the case of names: ids as the store spells them, by their lower-case form, where
    /// the two differ.
    pub spellings: BTreeMap<String, String>,
    /// Keys that the proxy cannot read, or that harm it, and why.
    pub stray: Vec<(String, Fault)>,
}

impl Observed {
    /// A backend's id as the store spells it.
    #[must_use]
    pub fn spelled<'s>(&'s self, id: &'s str) -> &'s str {
        self.spellings.get(id).map_or(id, String::as_str)
    }
}

/// Backends under another prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The prefix.
    pub prefix: String,
    /// How many backends are there.
    pub backends: usize,
    /// Which kind of prefix it is.
    pub kind: SiblingKind,
}

/// The kind of another prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiblingKind {
    /// The other spelling of this run's: with or without a slash in front.
    Spelling,
    /// What Amdatu Vulcanized and romulus used.
    Predecessor,
}

/// One backend of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backend {
    /// Whether the proxy knows it.
    pub definition: Definition,
    /// Its servers, by the id in their key. One vector: there may be a hundred thousand.
    pub servers: LiteMap<Box<str>, Entry>,
    /// Further keys of servers that have no URL, by their id.
    pub leftovers: BTreeMap<Box<str>, Box<[Other]>>,
}

/// Whether and where a backend is defined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Definition {
    /// Nowhere.
    #[default]
    Absent,
    /// This key should define it, and the proxy refuses its value.
    Broken {
        /// The key.
        key: String,
        /// What is wrong with its value.
        refusal: Refusal,
        /// A value that would be valid.
        mended: String,
    },
    /// This key makes it a kind of backend that has no servers: a fault only if servers are there.
    OtherType {
        /// The key.
        key: String,
        /// What it is.
        refusal: Refusal,
    },
    /// This key defines it.
    Valid {
        /// The key.
        key: String,
        /// The revision it was read at.
        revision: u64,
    },
}

/// Why a proxy does not take a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// vulcand: `null`, of which it dereferences the nil pointer and crashes.
    #[error("it is `null`, which crashes vulcand at each start")]
    Null,
    /// vulcand: it is not JSON.
    #[error("it is not valid JSON")]
    Syntax,
    /// vulcand: it is JSON, but not an object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// vulcand: a field that other fields require is missing.
    #[error("it has no `Type`")]
    NoType,
    /// vulcand: a field has a value that it refuses.
    #[error("`{field}` is `{value}`, not {wanted}")]
    Field {
        /// The field, with those it is in: `Settings.KeepAlive.Period`.
        field: String,
        /// Its value, in JSON.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// vulcand: the key is a directory (etcd v2).
    #[error("it is a directory")]
    Directory {
        /// Whether it is empty.
        empty: bool,
    },
    /// Traefik: the service has another type than `loadBalancer`.
    #[error("it is a service of the type `{0}`, and one that has servers too is disabled (404)")]
    OtherType(String),
}

/// One server's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: Box<str>,
    /// The value, byte for byte.
    pub value: Box<[u8]>,
    /// The store revision that last wrote it.
    pub revision: u64,
    /// Its URL, if it has a valid one.
    pub url: Option<ServerUrl>,
    /// Its mark, if it has one.
    pub mark: Option<Mark>,
    /// What the proxy does not accept of it.
    pub fault: Option<Fault>,
    /// Further keys of this server, where the layout gives it several: it is deleted and renamed with
    /// them.
    pub others: Box<[Other]>,
}

/// A further key of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The whole key.
    pub key: Box<str>,
    /// The value, byte for byte.
    pub value: Box<[u8]>,
    /// The store revision that last wrote it.
    pub revision: u64,
}

/// A fault of a key or value, by its effect on the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// vulcand: the value `null` crashes it, at each start again.
    Null,
    /// vulcand: not the JSON of a server.
    Malformed,
    /// vulcand: no URL at all, or an empty one.
    NoUrl,
    /// vulcand: a server that it refuses for this field.
    Refused(&'static str),
    /// vulcand: a URL without a host, which it takes and fails on.
    NoHost,
    /// Either proxy: a URL that it accepts and cannot send requests to.
    Unreachable,
    /// vulcand: a slash in a server's id.
    SlashInId,
    /// vulcand on etcd v2: a directory of a backend without a definition and servers; what is in it.
    BareDirectory(Contents),
    /// vulcand on etcd v2: a directory where a key should be; whether it is empty.
    Directory(bool),
    /// vulcand on etcd v2: a key where a directory should be.
    NotADirectory,
    /// Traefik: a key or value that it cannot read, so that it freezes.
    Freezes,
    /// Traefik: a server without a URL.
    UrlMissing,
    /// Traefik: a URL that it cannot read, so that it disables the whole service.
    Disables,
    /// Traefik: a service that is named in another spelling than its own.
    OtherSpelling,
    /// Traefik: servers, and no router at all.
    NoRouter,
}

/// What a directory of etcd v2 holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contents {
    /// Nothing.
    Nothing,
    /// An empty directory for servers.
    EmptyServers,
    /// Something else.
    Other,
}

/// Why a listing cannot be interpreted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObserveError {
    /// The store refused to show the range that is needed.
    #[error("{0}")]
    Denied(String),
    /// There are backends under both spellings, and none was chosen.
    #[error("backends under both `{0}` and `{1}`: choose with `--prefix`")]
    Ambiguous(String, String),
}

impl From<&Denied> for ObserveError {
    fn from(denied: &Denied) -> Self {
        Self::Denied(denied.0.clone())
    }
}

impl Entry {
    /// Its address and port, if its URL has an address.
    #[must_use]
    pub fn address(&self) -> Option<(IpAddr, u16)> {
        let url = self.url.as_ref()?;
        Some((url.ip()?, url.port))
    }
}

impl Other {
    fn new(key: &str, value: Vec<u8>, revision: u64) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            revision,
        }
    }
}

impl Backend {
    /// The value of one key of a server.
    #[must_use]
    pub fn value(&self, server: &str, key: &str) -> Option<&[u8]> {
        let entry = self.servers.get(server)?;
        if *entry.key == *key {
            return Some(&entry.value);
        }
        let other = entry.others.iter().find(|other| *other.key == *key)?;
        Some(&other.value)
    }
}

/// The backend of this id, added if it is new.
fn backend<'b>(backends: &'b mut BTreeMap<String, Backend>, id: &str) -> &'b mut Backend {
    // Not `entry`: it would copy the id for each of a backend's servers. Keys come in order, so it is
    // mostly the last one.
    if backends.last_key_value().is_none_or(|(last, _)| last != id) && !backends.contains_key(id) {
        backends.insert(id.to_owned(), Backend::default());
    }
    backends.get_mut(id).expect("just inserted")
}

#[cfg(test)]
fn entry(key: &str, value: &str) -> model::KeyValue {
    model::KeyValue {
        key: key.into(),
        value: value.into(),
        revision: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_servers_key() {
        let other = |key: &str, value: &str| Other::new(key, value.into(), 1);
        let entry = Entry {
            key: "web/a/url".into(),
            value: Box::from(*b"http://10.0.0.1:80"),
            revision: 1,
            url: None,
            mark: None,
            fault: None,
            others: [other("web/a/weight", "3"), other("web/a/path", "x")].into(),
        };
        let mut backend = Backend::default();
        backend.servers.insert("a".into(), entry);
        let value = |server: &str, key: &str| backend.value(server, key);
        assert_eq!(value("a", "web/a/url"), Some(&b"http://10.0.0.1:80"[..]));
        assert_eq!(value("a", "web/a/weight"), Some(&b"3"[..]));
        assert_eq!(value("a", "web/a/path"), Some(&b"x"[..]));
        assert_eq!(value("a", "web/b/url"), None);
        assert_eq!(value("b", "web/a/url"), None);
    }
}
