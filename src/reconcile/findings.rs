//! Findings: what in the tree harms the proxy after the run, whoever wrote it.

use std::net::IpAddr;

use crate::layout::{Fault, Refusal, Sibling, Undefined};
use crate::model::PodName;

/// Something that harms the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Servers under a backend that is not defined, and that no pod names.
    Undefined {
        /// The backend.
        backend: String,
        /// How many servers.
        servers: usize,
        /// The keys and values that would define it.
        define: Vec<(String, String)>,
        /// What the proxy does with it.
        effect: Undefined,
    },
    /// A backend whose definition the proxy refuses.
    BrokenDefinition {
        /// The key.
        key: String,
        /// What is wrong.
        refusal: Refusal,
        /// A value that would be valid, if one can be suggested.
        mend: Option<String>,
    },
    /// A key or value that the proxy cannot read, or that crashes it.
    Fault {
        /// The key.
        key: String,
        /// What is wrong.
        fault: Fault,
    },
    /// Backends that share servers because one id is a prefix of the other.
    Bleeds {
        /// How many pairs there are.
        pairs: usize,
        /// Some of them: the shorter id, whose backend also gets the other's servers, and the longer one.
        examples: Vec<(String, String)>,
    },
    /// Backends under a prefix easily confused with this run's.
    Sibling {
        /// The prefix of this run.
        prefix: String,
        /// The other.
        sibling: Sibling,
        /// The proxy's option for the prefix of this run.
        root_option: String,
    },
    /// One address in backends of two owners.
    TwoOwners {
        /// The address.
        ip: IpAddr,
        /// Keys and owners, in key order.
        entries: Vec<(String, String)>,
    },
    /// An unmarked entry at an address that is now a pod's of another backend, at a port that the pod does
    /// not declare.
    Stranger {
        /// The backend of the entry.
        backend: String,
        /// The key of the entry.
        key: String,
        /// The address.
        ip: IpAddr,
        /// The pod that has it.
        pod: PodName,
    },
}

impl Finding {
    /// Whether it is an alarm: the proxy cannot start again.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        match self {
            Self::Fault { fault, .. } => matches!(fault, Fault::Null | Fault::Malformed),
            Self::BrokenDefinition { refusal, .. } => *refusal == Refusal::Null,
            Self::Undefined { .. }
            | Self::Bleeds { .. }
            | Self::Sibling { .. }
            | Self::TwoOwners { .. }
            | Self::Stranger { .. } => false,
        }
    }
}
