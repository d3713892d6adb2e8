//! The plan: every change with its proof, and everything that is not done with its reason.
//!
//! | in the store | wanted | plan |
//! |---|---|---|
//! | nothing | yes | create |
//! | ours, same URL and pod | yes | unchanged |
//! | ours, other URL or pod, or no valid URL | yes | update, unless held |
//! | ours | no | delete if proved, else held or kept |
//! | not ours, same URL | yes | satisfied |
//! | not ours, other URL | yes | conflict |
//! | not ours | no | never touched |

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;

use crate::layout::Undefined;
use crate::model::{PodName, Scope, ServerUrl};
use crate::reconcile::findings::Finding;
use crate::reconcile::map::Reason;
pub use crate::reconcile::planner::plan;

/// What a run may do.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
pub struct Rules {
    /// Whose entries are ours.
    pub owner: String,
    /// From where this run looks.
    pub scope: Scope,
    /// What is taken over.
    pub adopt: Adopt,
    /// Write into backends that hold another owner's servers.
    pub share_backends: bool,
    /// Define the backends that are not defined.
    pub create_backends: bool,
    /// Delete what is not ready, even if nothing Ready is left.
    pub strict_ready: bool,
    /// Believe a list without any pod.
    pub allow_empty: bool,
    /// Lift every hold if at most so many servers go.
    pub allow_deletes: Option<usize>,
    /// Leave deletes out.
    pub upsert_only: bool,
}

/// What is taken over: `--adopt`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopt {
    /// Unmarked entries whose URL is wanted in their backend.
    pub unmarked: bool,
    /// Entries of our owner, whatever their scope.
    pub scope: bool,
    /// Entries of these owners in our scope.
    pub owners: BTreeSet<String>,
}

/// What to do, and what not.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The prefix all keys begin with.
    pub prefix: String,
    /// The scope of this run, as entries carry it.
    pub scope: String,
    /// The store's revision when it was listed.
    pub revision: Option<u64>,
    /// The changes, in the order in which they are applied: by backend; within one its definition,
    /// then puts, then deletes, so that a backend is never emptier than before and after (a proxy acts
    /// on each write as it comes).
    pub changes: Vec<Change>,
    /// Changes that are not proved.
    pub held: Vec<Held>,
    /// Servers kept though they are not ready, by backend: how many.
    pub kept: Vec<Kept>,
    /// Whether servers are kept in every backend we serve.
    pub kept_everywhere: bool,
    /// Keys we want that somebody else has with another URL.
    pub conflicts: Vec<Conflict>,
    /// Servers that want a key that another one has.
    pub duplicates: Vec<Duplicate>,
    /// Entries of our owner from elsewhere.
    pub out_of_scope: Vec<OutOfScope>,
    /// Backends with another owner's servers that we would have changed.
    pub unshared: Vec<Frozen>,
    /// Backends that pods want or that hold our servers, and that are not defined.
    pub undefined: Vec<Frozen>,
    /// What hurts the proxy.
    pub findings: Vec<Finding>,
    /// Pods left out, or one of their servers, and why.
    pub skipped: Vec<(PodName, Reason)>,
    /// Namespaces that must be listed without selectors before this plan is more than a draft.
    pub doubts: BTreeSet<String>,
    /// The numbers.
    pub counts: Counts,
}

/// The numbers of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods listed.
    pub pods: usize,
    /// Pods with at least one server.
    pub published: usize,
    /// Entries that are ours now, before any change.
    pub owned: usize,
    /// Servers of ours that are right as they are.
    pub unchanged: usize,
    /// Wanted servers that another entry of that key serves: unmarked ones.
    pub satisfied_unmarked: usize,
    /// The same: marked ones.
    pub satisfied_marked: usize,
    /// Entries that are nobody's of ours.
    pub foreign: usize,
    /// Deletes left out by `--policy upsert-only`.
    pub left_out: usize,
}

/// One change of one server, or of a backend's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The backend.
    pub backend: String,
    /// The server's id in it; `None` for the backend's own definition.
    pub server: Option<String>,
    /// The exact key.
    pub key: String,
    /// The pod it is for, or was for.
    pub pod: Option<PodName>,
    /// What is done.
    pub action: Action,
    /// Why it may be done.
    pub proof: Proof,
    /// For a put: the key that defines the backend, which must still be there.
    pub defined_by: Option<String>,
    /// Further keys of the server that change with it, in the same transaction.
    pub extra: Vec<Extra>,
}

/// A further key of a server that changes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// The exact key.
    pub key: String,
    /// What is done.
    pub action: Action,
}

impl Change {
    /// All keys that change, in order, each with what is done to it.
    pub fn writes(&self) -> impl Iterator<Item = (&str, &Action)> {
        let extra = self.extra.iter();
        iter::once((self.key.as_str(), &self.action))
            .chain(extra.map(|Extra { key, action }| (key.as_str(), action)))
    }
}

/// What is done to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is written where nothing was.
    Create {
        /// The value.
        after: String,
    },
    /// It is written over what was read.
    Update {
        /// The value that was read.
        before: Vec<u8>,
        /// The revision that was read.
        revision: u64,
        /// The value.
        after: String,
    },
    /// It is removed.
    Delete {
        /// The value that was read.
        before: Vec<u8>,
        /// The revision that was read.
        revision: u64,
    },
}

/// Why a change may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A pod wants the backend, and it is not defined.
    Define,
    /// The pod is Ready and wants to be here.
    Ready,
    /// The pod is Ready, and the entry is not as it should be: what differs.
    Differs(&'static str),
    /// The entry is taken over.
    Adopted(&'static str),
    /// The pod is being deleted.
    Terminating,
    /// The pod ended.
    Completed,
    /// The pod is at another address now.
    Moved(IpAddr),
    /// The pod has no address now.
    NoAddress,
    /// The pod is not in a complete list.
    Gone,
    /// The pod is not in the selected list; few of its backend's servers go this way.
    NotSelected,
    /// The pod is Ready and does not want to be here: why, if a reason is known.
    Unwanted(Option<Reason>),
    /// The pod is not ready, and others of its backend are.
    NotReady,
    /// The URL stays in the backend under this id.
    Stays(String),
    /// The address is another pod's now.
    Reused(PodName),
    /// The entry has no valid URL: it serves nobody.
    NoUrl,
    /// It was held, and the hold is lifted.
    Allowed(Rule),
}

/// Why a change is not made: the rule of what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// So many of a backend's so many owned servers would go, though their pods are alive, or are not
    /// known to be gone.
    Majority {
        /// How many would go.
        going: usize,
        /// Of how many.
        owned: usize,
    },
    /// As before, and the list without selectors that could tell was refused: why.
    Unproved {
        /// How many would go.
        going: usize,
        /// Of how many.
        owned: usize,
        /// What the API server said.
        why: String,
    },
    /// The list that should show the pod came back without any pod.
    EmptyList,
    /// An adopted entry's pod is not seen here: that proves nothing.
    Adopted,
}

/// A change that is not made for want of proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The change, with the proof it would have.
    pub change: Change,
    /// The rule that holds it.
    pub rule: Rule,
}

/// Servers kept in a backend that has no Ready one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The backend.
    pub backend: String,
    /// The servers' ids, keys and pods.
    pub servers: Vec<(String, String, Option<PodName>)>,
}

/// A key that is wanted and taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The backend.
    pub backend: String,
    /// The key.
    pub key: String,
    /// The pod that wants it.
    pub pod: PodName,
    /// The URL it wants.
    pub wanted: ServerUrl,
    /// The value that is there.
    pub value: Vec<u8>,
    /// The owner that the entry names.
    pub owner: Option<String>,
}

/// A server that wants the key of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The key both want.
    pub key: String,
    /// The pod that has it.
    pub winner: PodName,
    /// The pod that does not get it.
    pub loser: PodName,
    /// The URL that is therefore not published.
    pub url: ServerUrl,
}

/// An entry of our owner that another job, or this one elsewhere, wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfScope {
    /// The key.
    pub key: String,
    /// The entry's scope.
    pub scope: String,
    /// The entry's pod, if it says.
    pub pod: Option<PodName>,
    /// Whether the scope is ours, and only the pod's namespace was not listed.
    pub namespace: bool,
}

/// A backend that gets nothing from us, and loses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// The backend.
    pub backend: String,
    /// Creates and updates that are left out.
    pub left_out: usize,
    /// Servers of ours that stay there.
    pub ours: usize,
    /// Why.
    pub why: Freeze,
}

/// Why a backend is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// It has no definition.
    Undefined {
        /// The keys and values that would define it.
        define: Vec<(String, String)>,
        /// What the proxy makes of it.
        effect: Undefined,
    },
    /// Its definition is not valid.
    Broken {
        /// What is wrong.
        why: String,
        /// The keys and values that mend it, if that is ours to say.
        mend: Vec<(String, String)>,
    },
    /// It would be created, but its id and this one begin alike, and would share servers.
    Bleeds(String),
    /// These owners have servers in it.
    Owners(BTreeSet<String>),
}

/// The store defines no backend at all, and none is to be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no backend is defined under `{prefix}`, and pods want {wanted}")]
pub struct NoBackends {
    /// The prefix that was looked at.
    pub prefix: String,
    /// How many backends the pods want.
    pub wanted: usize,
    /// One of them.
    pub example: String,
}

impl Plan {
    /// Whether the store is as it should be, as far as this run may say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether somebody should look: exit code 3.
    #[must_use]
    pub fn alarms(&self) -> bool {
        let undefined =
            |frozen: &Frozen| frozen.ours > 0 || matches!(frozen.why, Freeze::Bleeds(_));
        !self.held.is_empty()
            || self.kept_everywhere
            || !self.conflicts.is_empty()
            || !self.duplicates.is_empty()
            || !self.out_of_scope.is_empty()
            || !self.unshared.is_empty()
            || self.undefined.iter().any(undefined)
    }

    /// How many servers the plan takes out of rotation.
    #[must_use]
    pub fn deletes(&self) -> usize {
        self.changes
            .iter()
            .filter(|change| matches!(change.action, Action::Delete { .. }))
            .count()
    }
}
