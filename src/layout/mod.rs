//! How a proxy wants its servers written: keys and values on one side, servers on the other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use litemap::LiteMap;

use crate::model::{
    BackendId, Denied, InvalidId, Mark, PodName, Scope, ServerId, ServerUrl, Snapshot,
};

pub mod traefik;
pub mod vulcand;

use traefik::Traefik;
use vulcand::Vulcand;

/// The layout of one proxy's configuration.
#[derive(Debug, Clone)]
pub enum Layout {
    /// vulcand's, on etcd v2 and v3.
    Vulcand(Vulcand),
    /// Traefik's, on etcd v3.
    Traefik(Traefik),
}

/// The proxy's configuration as a listing found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The store's revision, if it has one.
    pub revision: Option<u64>,
    /// The prefix that was found or given.
    pub prefix: String,
    /// All backends that have any key, by id.
    pub backends: BTreeMap<String, Backend>,
    /// The other spelling of the prefix, if there are backends under it: they are not served by the
    /// proxy that reads this prefix.
    pub sibling: Option<Sibling>,
    /// Keys that the proxy cannot read, or that hurt it, and why.
    pub stray: Vec<(String, Fault)>,
}

/// Backends under the other spelling of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The other spelling.
    pub prefix: String,
    /// How many backends are there.
    pub backends: usize,
}

/// One backend of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backend {
    /// Whether the proxy knows it.
    pub definition: Definition,
    /// Its servers, by the id in their key. One vector: there may be a hundred thousand.
    pub servers: LiteMap<Box<str>, Entry>,
}

/// Whether and where a backend is defined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Definition {
    /// Nowhere.
    #[default]
    Absent,
    /// This key should define it, and does not: why.
    Broken {
        /// The key.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
    /// This key makes it something that has no servers, which is right as long as it has none.
    OtherType {
        /// The key.
        key: String,
        /// What it is.
        why: String,
    },
    /// This key defines it.
    Valid {
        /// The key.
        key: String,
    },
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
    /// What is wrong with it for the proxy.
    pub fault: Option<Fault>,
}

/// What a key or value does to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The value `null` crashes vulcand, at each start again.
    Null,
    /// Not the JSON the proxy reads.
    Malformed,
    /// A URL without scheme, host or port, or none at all.
    NoUrl,
    /// A slash in a server's id.
    SlashInId,
    /// A directory without a definition.
    BareDirectory,
    /// A key that Traefik does not know: it freezes the whole provider.
    Freezes,
    /// A server without a URL that Traefik takes.
    BadUrl,
    /// Services whose names differ in case only.
    TwoSpellings,
    /// Servers, and no router at all.
    NoRouter,
}

impl Fault {
    /// What it does to the proxy, and the way out.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Null => "a value `null` crashes the proxy, at each start again. Remove it:",
            Self::Malformed => {
                "a value that is no server: the proxy stops or fails on it. Remove it:"
            }
            Self::NoUrl => {
                "a server without a valid URL: after a restart of the proxy every request to its \
                 backend fails. Remove it:"
            }
            Self::SlashInId => {
                "a slash in a server's id: ignored on etcd v3, and the whole backend broken on v2. \
                 Remove it."
            }
            Self::BareDirectory => {
                "a directory of a backend without a definition: on etcd v2 the proxy does not start. \
                 Define the backend or remove the directory."
            }
            Self::Freezes => {
                "a key or value that Traefik 3.7 cannot read: it stays at its last good configuration \
                 until this is gone. Remove it:"
            }
            Self::BadUrl => {
                "a server without a valid URL: its share of the requests fails, or Traefik disables its \
                 whole service (404). Remove it:"
            }
            Self::TwoSpellings => {
                "services whose names differ in case only are one to Traefik, under one of the names: \
                 routers that name another answer 404. Give it one spelling."
            }
            Self::NoRouter => {
                "servers, and no router at all: when the last service key goes Traefik keeps serving \
                 the old servers. Define a router first."
            }
        }
    }

    /// Whether removing its key is the way out.
    #[must_use]
    pub fn is_removed(self) -> bool {
        match self {
            Self::Null | Self::Malformed | Self::NoUrl | Self::Freezes | Self::BadUrl => true,
            Self::SlashInId | Self::BareDirectory | Self::NoRouter | Self::TwoSpellings => false,
        }
    }
}

/// Why a listing could not be understood.
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

impl Layout {
    /// The key ranges to list, as byte prefixes.
    #[must_use]
    pub fn ranges(&self) -> Vec<String> {
        match self {
            Self::Vulcand(layout) => layout.ranges(),
            Self::Traefik(layout) => layout.ranges(),
        }
    }

    /// Reads what the store answered for [`Layout::ranges`].
    ///
    /// # Errors
    /// [`ObserveError`].
    pub fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        match self {
            Self::Vulcand(layout) => layout.observe(snapshot),
            Self::Traefik(layout) => layout.observe(snapshot),
        }
    }

    /// A scope, as far as entries of this layout carry it.
    #[must_use]
    pub fn scope(&self, scope: &Scope) -> String {
        match self {
            Self::Vulcand(_) => scope.to_string(),
            Self::Traefik(_) => scope.cluster.clone(),
        }
    }

    /// The id under which a server stands in its backend.
    #[must_use]
    pub fn id<'s>(&self, server: &'s str, mark: &Mark) -> Cow<'s, str> {
        match self {
            Self::Vulcand(_) => Cow::Borrowed(server),
            Self::Traefik(_) => Cow::Owned(traefik::id(server, mark)),
        }
    }

    /// The mark that an entry of this layout carries for a pod.
    #[must_use]
    pub fn mark(
        &self,
        owner: impl Into<Rc<str>>,
        scope: impl Into<Rc<str>>,
        pod: &PodName,
    ) -> Mark {
        let name = match self {
            Self::Vulcand(_) => Some(pod.name.clone()),
            Self::Traefik(_) => None,
        };
        Mark {
            owner: owner.into(),
            scope: scope.into(),
            namespace: pod.namespace.clone(),
            pod: name,
        }
    }

    /// Makes an id of a backend.
    ///
    /// # Errors
    /// [`InvalidId`]: the proxy could not read it.
    pub fn backend_id(&self, text: &str) -> Result<BackendId, InvalidId> {
        match self {
            Self::Vulcand(_) => BackendId::new(text),
            Self::Traefik(_) if text.bytes().all(|c| c.is_ascii_digit()) && !text.is_empty() => {
                Err(InvalidId::OnlyDigits)
            }
            Self::Traefik(_) => BackendId::new(text.to_ascii_lowercase()),
        }
    }

    /// Makes an id of a server.
    ///
    /// # Errors
    /// [`InvalidId`]: the proxy could not read it.
    pub fn server_id(&self, text: &str) -> Result<ServerId, InvalidId> {
        match self {
            Self::Vulcand(_) => ServerId::new(text),
            Self::Traefik(_) => ServerId::new(text.to_ascii_lowercase()),
        }
    }

    /// The key of a server.
    #[must_use]
    pub fn key(&self, prefix: &str, backend: &str, id: &str) -> String {
        match self {
            Self::Vulcand(_) => vulcand::server_key(prefix, backend, id),
            Self::Traefik(_) => traefik::server_key(prefix, backend, id),
        }
    }

    /// The value of a server.
    #[must_use]
    pub fn value(&self, url: &ServerUrl, mark: &Mark) -> String {
        match self {
            Self::Vulcand(_) => vulcand::write(url, mark),
            Self::Traefik(_) => url.to_string(),
        }
    }

    /// The keys and values that define a backend with nothing but defaults, the one that makes it
    /// defined last.
    #[must_use]
    pub fn definition(&self, prefix: &str, backend: &str) -> Vec<(String, String)> {
        match self {
            Self::Vulcand(_) => vec![vulcand::definition(prefix, backend)],
            Self::Traefik(_) => traefik::definition(prefix, backend),
        }
    }

    /// Why a backend needs a definition, and how it gets one, in words.
    #[must_use]
    pub fn undefined(&self) -> (&'static str, &'static str) {
        match self {
            Self::Vulcand(_) => (
                "the proxy does not know it, and servers without a definition can hang or stop it at \
                 its next start",
                "Define it, or give `--create-backends`:",
            ),
            Self::Traefik(_) => (
                "no router names it, and it has no key of its own beside servers, so the proxy sends it \
                 nothing",
                "Define a router, with a rule of yours:",
            ),
        }
    }

    /// The keys and values that mend a definition the proxy does not take, where that is ours to say.
    #[must_use]
    pub fn mend(&self, prefix: &str, backend: &str) -> Vec<(String, String)> {
        match self {
            Self::Vulcand(_) => self.definition(prefix, backend),
            Self::Traefik(_) => Vec::new(),
        }
    }

    /// For a store that defines no backend: where they would be, what to check beside the prefix, and
    /// what to do, in words that end where the commands follow.
    #[must_use]
    pub fn nothing_defined(&self, prefix: &str) -> (String, &'static str) {
        match self {
            Self::Vulcand(_) => (
                format!("{prefix}/backends/"),
                ", one on etcd's other API with `--etcd-api`. If the store is new, give \
                 `--create-backends` or define the backends",
            ),
            Self::Traefik(_) => (
                format!("{prefix}/http/"),
                ". If the store is new, define routers that name the services",
            ),
        }
    }

    /// How the proxy is started so that it reads this prefix.
    #[must_use]
    pub fn started_with(&self, prefix: &str) -> String {
        match self {
            Self::Vulcand(_) => format!("-etcdKey={prefix}"),
            Self::Traefik(_) => format!("--providers.etcd.rootkey={prefix}"),
        }
    }

    /// Whether two backends with these ids get each other's servers (one id begins the other).
    #[must_use]
    pub fn bleeds(&self, shorter: &str, longer: &str) -> bool {
        match self {
            Self::Vulcand(_) => shorter.len() < longer.len() && longer.starts_with(shorter),
            Self::Traefik(_) => false,
        }
    }
}

/// The backend of this id, made where there is none yet.
fn backend<'b>(backends: &'b mut BTreeMap<String, Backend>, id: &str) -> &'b mut Backend {
    // Not `entry`: it would copy the id for each of a backend's servers. Keys come in order, so it is
    // mostly the last one.
    if backends.last_key_value().is_none_or(|(last, _)| last != id) && !backends.contains_key(id) {
        backends.insert(id.to_owned(), Backend::default());
    }
    backends.get_mut(id).expect("just inserted")
}

#[cfg(test)]
fn entry(key: &str, value: &str) -> crate::model::Entry {
    crate::model::Entry {
        key: key.into(),
        value: value.into(),
        revision: 1,
    }
}
