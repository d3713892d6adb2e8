//! How a proxy wants its servers written: keys and values on one side, servers on the other.

use std::collections::BTreeMap;

use crate::model::{Denied, Mark, PodName, Scope, ServerUrl, Snapshot};

pub mod vulcand;

use vulcand::Vulcand;

/// The layout of one proxy's configuration.
#[derive(Debug, Clone)]
pub enum Layout {
    /// vulcand's, on etcd v2 and v3.
    Vulcand(Vulcand),
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
    /// Its servers, by the id in their key.
    pub servers: BTreeMap<String, Entry>,
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
    pub key: String,
    /// The value, byte for byte.
    pub value: Vec<u8>,
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
        }
    }

    /// Reads what the store answered for [`Layout::ranges`].
    ///
    /// # Errors
    /// [`ObserveError`].
    pub fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        match self {
            Self::Vulcand(layout) => layout.observe(snapshot),
        }
    }

    /// A scope, as far as entries of this layout carry it.
    #[must_use]
    pub fn scope(&self, scope: &Scope) -> String {
        match self {
            Self::Vulcand(_) => scope.to_string(),
        }
    }

    /// The id under which a server stands in its backend.
    #[must_use]
    pub fn id(&self, server: &str, _mark: &Mark) -> String {
        match self {
            Self::Vulcand(_) => server.to_owned(),
        }
    }

    /// The mark that an entry of this layout carries for a pod.
    #[must_use]
    pub fn mark(&self, owner: &str, scope: &str, pod: &PodName) -> Mark {
        match self {
            Self::Vulcand(_) => Mark {
                owner: owner.into(),
                scope: scope.into(),
                namespace: pod.namespace.clone(),
                pod: Some(pod.name.clone()),
            },
        }
    }

    /// The key of a server.
    #[must_use]
    pub fn key(&self, prefix: &str, backend: &str, id: &str) -> String {
        match self {
            Self::Vulcand(_) => vulcand::server_key(prefix, backend, id),
        }
    }

    /// The value of a server.
    #[must_use]
    pub fn value(&self, url: &ServerUrl, mark: &Mark) -> String {
        match self {
            Self::Vulcand(_) => vulcand::write(url, mark),
        }
    }

    /// The key and value that define a backend with nothing but defaults.
    #[must_use]
    pub fn definition(&self, prefix: &str, backend: &str) -> (String, String) {
        match self {
            Self::Vulcand(_) => vulcand::definition(prefix, backend),
        }
    }

    /// Whether two backends with these ids get each other's servers (one id begins the other).
    #[must_use]
    pub fn bleeds(&self, shorter: &str, longer: &str) -> bool {
        match self {
            Self::Vulcand(_) => shorter.len() < longer.len() && longer.starts_with(shorter),
        }
    }
}
