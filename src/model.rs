//! What the program talks about: pods as Kubernetes lists them, servers as the proxy knows them,
//! and the reads and writes of a store. Plain values, converted at the border and checked there.

mod server;

use std::borrow::Cow;
use std::net::IpAddr;

use smallvec::SmallVec;

pub use server::*;

/// A pod, reduced to what decides whether and how it is published. Its texts may be borrowed from the
/// page it came in: most pods are looked at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod<'p> {
    /// Namespace, never empty.
    pub namespace: Cow<'p, str>,
    /// Name, never empty.
    pub name: Cow<'p, str>,
    /// All labels.
    pub labels: Texts<'p>,
    /// All annotations.
    pub annotations: Texts<'p>,
    /// `status.phase`.
    pub phase: Phase,
    /// Whether the condition `Ready` is `True`.
    pub ready: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether the pod uses its node's network, and so its node's address.
    pub host_network: bool,
    /// `status.podIPs` (else `status.podIP` alone), the primary one first.
    pub ips: SmallVec<[IpAddr; 1]>,
    /// Declared container ports: those of the main containers, in order, then those of the sidecars
    /// (init containers with `restartPolicy: Always`).
    pub ports: Vec<ContainerPort<'p>>,
}

impl Pod<'_> {
    /// Copies what is borrowed.
    #[doc(hidden)]
    #[must_use]
    pub fn into_owned(self) -> Pod<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let texts = |texts: Texts<'_>| {
            let texts = texts.0.into_iter();
            texts.map(|(n, t)| (owned(n), owned(t))).collect()
        };
        let ports = self.ports.into_iter().map(|port| ContainerPort {
            name: port.name.map(owned),
            ..port
        });
        Pod {
            namespace: owned(self.namespace),
            name: owned(self.name),
            labels: texts(self.labels),
            annotations: texts(self.annotations),
            ports: ports.collect(),
            ..self
        }
    }
}

/// Labels or annotations: texts by their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts<'p>(Vec<(Cow<'p, str>, Cow<'p, str>)>);

impl<'p> Texts<'p> {
    /// Sets a text. The last one of a name counts.
    pub fn insert(&mut self, name: Cow<'p, str>, text: Cow<'p, str>) {
        if self.0.is_empty() {
            // Few pods have more, and growing costs more than all the rest.
            self.0.reserve(16);
        }
        self.0.push((name, text));
    }

    /// All of them, name and text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&**name, &**text))
    }

    /// The text of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut latest = self.0.iter().rev();
        latest.find(|(own, _)| own == name).map(|(_, text)| &**text)
    }
}

impl<'p, N: Into<Cow<'p, str>>, T: Into<Cow<'p, str>>> FromIterator<(N, T)> for Texts<'p> {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(texts: I) -> Self {
        let texts = texts.into_iter();
        Self(texts.map(|(n, t)| (n.into(), t.into())).collect())
    }
}

/// `status.phase` of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Accepted, not all containers started.
    Pending,
    /// Bound to a node, containers started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one of them badly.
    Failed,
    /// The node cannot be asked, or a phase this program does not know.
    #[default]
    Unknown,
}

impl Phase {
    /// Reads the API's word for a phase; a word it does not know is [`Phase::Unknown`].
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "Pending" => Self::Pending,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// A port a container declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort<'p> {
    /// Its name, if it has one.
    pub name: Option<Cow<'p, str>>,
    /// Its number, 1 to 65535.
    pub number: u16,
    /// Whether its protocol is TCP (the API's default).
    pub tcp: bool,
    /// Whether a sidecar (restartable init container) declares it.
    pub sidecar: bool,
}

/// One key of a store with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, byte for byte.
    pub key: Vec<u8>,
    /// The value, byte for byte.
    pub value: Vec<u8>,
    /// The store revision that last wrote this key (`mod_revision`, `modifiedIndex`).
    pub revision: u64,
}

/// What a store answered to one listing of several key ranges, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision at the time of the listing; `None` for a store that has none (a file).
    pub revision: Option<u64>,
    /// Per range asked for, in that order: its entries in key order, or why they may not be read.
    pub ranges: Vec<Result<Vec<Entry>, Denied>>,
}

/// The store refused to read a range (permission). Holds the store's own message, with the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(pub String);

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set `key` to `value`, whatever it was.
    Put {
        /// The exact key.
        key: String,
        /// The whole value.
        value: String,
    },
    /// Remove exactly this key.
    Delete {
        /// The exact key.
        key: String,
    },
}

/// What must still hold of `key` for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The exact key.
    pub key: String,
    /// What is expected of it.
    pub expect: Expect,
}

/// An expectation of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists, whatever its value.
    Present,
    /// The key was last written by this revision ([`Entry::revision`]).
    Revision(u64),
}

/// Writes that are applied together, in order, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// All must hold, or nothing is written. No key occurs twice.
    pub guards: Vec<Guard>,
    /// In the order in which the proxy shall see them. No key occurs twice.
    pub ops: Vec<Op>,
}

/// How large a transaction a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Operations at most.
    pub operations: usize,
    /// Guards at most.
    pub guards: usize,
    /// Bytes of keys and values at most, guards included.
    pub bytes: usize,
}
