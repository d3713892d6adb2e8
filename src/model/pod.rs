//! Pods as Kubernetes lists them, reduced to what decides whether and how they are published.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use serde::{Serialize, Serializer};

/// A pod, reduced to what decides whether and how it is published. Its texts may be borrowed from the
/// page it came in, because most pods are used once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of the pod that Kubernetes states by itself"
)]
pub struct Pod<'p> {
    /// Namespace, never empty.
    pub namespace: Cow<'p, str>,
    /// Name, never empty.
    pub name: Cow<'p, str>,
    /// Its labels, as far as they are read.
    pub labels: Texts<'p>,
    /// Its annotations, as far as they are read.
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
    pub ips: Vec<IpAddr>,
    /// Whether one of those could not be parsed (leading zeros, a zone).
    pub unreadable_ip: bool,
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

/// The names of the labels and annotations that a run reads: a decoder may leave out all others. The default
/// is all of them.
#[derive(Debug, Clone, Default)]
pub struct Reads {
    /// These names.
    pub names: Vec<String>,
    /// All names that begin so.
    pub prefix: String,
}

impl Reads {
    /// Whether this name is one of them.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        name.starts_with(self.prefix.as_bytes())
            || self.names.iter().any(|own| own.as_bytes() == name)
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

/// A pod's full name. Prints as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: Rc<str>,
    /// Its name.
    pub name: Box<str>,
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

impl Serialize for PodName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
