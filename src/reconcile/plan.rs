//! The plan: every change with its grounds, and everything that is held back with its reason.
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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::iter;

use serde::Serialize;

use crate::layout::{Refusal, Undefined};
use crate::model::{PodName, Scope, ServerUrl};
use crate::reconcile::classify::Unproved;
use crate::reconcile::findings::Finding;
use crate::reconcile::hold::{Grounds, Permit, Rest};
use crate::reconcile::map::SkipReason;
use crate::text;

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
    /// Treat any complete list as a witness.
    pub allow_empty: bool,
    /// Release all holds if at most so many servers go.
    pub allow_deletes: Option<usize>,
    /// Delete nothing if more servers than that would go.
    pub max_deletes: Option<DeleteLimit>,
    /// Plan no deletes.
    pub upsert_only: bool,
}

impl Rules {
    /// The rules without any option: for tests, benchmarks and fuzz targets.
    #[doc(hidden)]
    #[must_use]
    pub fn new(owner: &str, scope: Scope) -> Self {
        Self {
            owner: owner.to_owned(),
            scope,
            adopt: Adopt::default(),
            share_backends: false,
            create_backends: false,
            strict_ready: false,
            allow_empty: false,
            allow_deletes: None,
            max_deletes: None,
            upsert_only: false,
        }
    }
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

/// What to change, what is held back, and what to report.
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
    /// Changes that are held.
    pub held: Vec<Held>,
    /// Servers kept though they are not ready, by backend.
    pub kept: Vec<Kept>,
    /// Defined backends without any server that Ready pods name.
    pub emptied: Vec<Emptied>,
    /// Deletes withheld because they exceed `--max-deletes`.
    pub over_budget: Option<OverBudget>,
    /// Whether servers are kept in every backend we serve.
    pub kept_everywhere: bool,
    /// Keys that are wanted and taken by an entry that is not ours, with another URL.
    pub conflicts: Vec<Conflict>,
    /// Servers whose key another server of ours gets.
    pub duplicates: Vec<Duplicate>,
    /// Entries of our owner with another scope.
    pub out_of_scope: Vec<OutOfScope>,
    /// Backends with servers of another owner or cluster that would have been changed.
    pub unshared: Vec<Frozen>,
    /// Backends that pods want or that hold our servers, and that are not defined.
    pub undefined: Vec<Frozen>,
    /// Keys and values that harm the proxy.
    pub findings: Vec<Finding>,
    /// Pods left out, or one of their servers, and why.
    pub skipped: Vec<LeftOut>,
    /// Namespaces to list without selectors: until then this plan is a draft.
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
    /// Servers of ours that are in sync.
    pub unchanged: usize,
    /// Wanted servers whose key holds an unmarked entry with the same URL.
    pub satisfied_unmarked: usize,
    /// Wanted servers whose key holds another owner's entry with the same URL.
    pub satisfied_marked: usize,
    /// Entries that are not ours.
    pub foreign: usize,
    /// Entries of ours whose pods are outside a partial input.
    pub not_looked_at: usize,
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
    /// For a put: the key that defines the backend, as it was read.
    pub defined_by: Option<Rest>,
    /// Further keys of the server that change with it, in the same transaction.
    pub extra: Vec<Extra>,
}

/// A further key of a server that changes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// The exact key.
    pub key: String,
    /// The value and revision that were read; `None` if the key is created.
    pub before: Option<(Vec<u8>, u64)>,
    /// The value it gets; `None` if it is deleted.
    pub after: Option<String>,
}

/// What is done to one key of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'c> {
    /// The exact key.
    pub key: &'c str,
    /// The value and revision that were read; `None` if the key is created.
    pub before: Option<(&'c [u8], u64)>,
    /// The value it gets; `None` if it is deleted.
    pub after: Option<&'c str>,
}

/// What is done to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The key does not exist and is written.
    Create {
        /// The value.
        after: String,
        /// Why.
        reason: Reason,
    },
    /// The key is overwritten.
    Update {
        /// The value that was read.
        before: Vec<u8>,
        /// The revision that was read.
        revision: u64,
        /// The value.
        after: String,
        /// Why.
        reason: Reason,
        /// Why the URL that was there may go; `None` if it stays.
        permit: Option<Permit>,
    },
    /// It is deleted.
    Delete {
        /// The value that was read.
        before: Vec<u8>,
        /// The revision that was read.
        revision: u64,
        /// Why it may go.
        permit: Permit,
    },
}

/// Why a put is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A pod wants the backend, and it is not defined.
    Define,
    /// The pod is Ready and maps to this backend.
    Ready,
    /// The pod is Ready and the entry differs: in what.
    Differs(&'static str),
    /// The entry is taken over: what it was.
    Adopted(&'static str),
    /// The keys move with the server, from this id.
    Moved(String),
}

/// A change that is held: nothing proves that the pod behind the URL is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The entry.
    pub entry: Losing,
    /// What is known of its pod.
    pub evidence: Unproved,
    /// How many servers of its kind would go.
    pub lost: usize,
    /// How many Ready servers of that kind would remain.
    pub remain: usize,
}

/// An entry of ours that would lose its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Losing {
    /// The backend.
    pub backend: String,
    /// The server's id in it.
    pub server: String,
    /// The exact key.
    pub key: String,
    /// The pod's namespace, as its mark says; empty if it does not.
    pub namespace: String,
    /// The pod behind it, if it is known.
    pub pod: Option<PodName>,
    /// The pod that wants the id for another URL, if one does.
    pub wanted_by: Option<PodName>,
    /// The value that was read.
    pub before: Vec<u8>,
    /// The revision that was read.
    pub revision: u64,
    /// The value it would get; `None` if it would be deleted.
    pub after: Option<String>,
    /// For an update: the key that defines the backend, as it was read.
    pub defined_by: Option<Rest>,
    /// Further keys of the server, and what happens to them.
    pub extra: Vec<Extra>,
}

impl Losing {
    /// Turns the loss into a change, with its permit.
    #[must_use]
    pub(super) fn change(self, permit: Permit) -> Change {
        let Self {
            backend,
            server,
            key,
            namespace: _,
            pod,
            wanted_by,
            before,
            revision,
            after,
            defined_by,
            extra,
        } = self;
        let action = match after {
            None => Action::Delete {
                before,
                revision,
                permit,
            },
            Some(after) => Action::Update {
                before,
                revision,
                after,
                reason: Reason::Differs("its URL"),
                permit: Some(permit),
            },
        };
        Change {
            backend,
            server: Some(server),
            key,
            pod: wanted_by.or(pod),
            action,
            defined_by,
            extra,
        }
    }

    /// The entry of a change by which a URL goes; `None` for other changes.
    pub(super) fn of(change: Change) -> Option<Self> {
        let (before, revision, after) = match change.action {
            Action::Create { .. } => return None,
            Action::Update {
                before,
                revision,
                after,
                ..
            } => (before, revision, Some(after)),
            Action::Delete {
                before, revision, ..
            } => (before, revision, None),
        };
        Some(Self {
            backend: change.backend,
            server: change.server?,
            key: change.key,
            namespace: String::new(),
            pod: change.pod,
            wanted_by: None,
            before,
            revision,
            after,
            defined_by: change.defined_by,
            extra: change.extra,
        })
    }
}

/// Servers kept in a backend that has no Ready one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The backend.
    pub backend: String,
    /// The servers.
    pub servers: Vec<Losing>,
}

/// A defined backend that has no server after the run, though Ready pods name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Emptied {
    /// The backend.
    pub backend: String,
    /// The pods that name it, and why each is left out.
    pub pods: Vec<LeftOut>,
}

/// A pod that is left out, or one of its servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LeftOut {
    /// The pod.
    pub pod: PodName,
    /// Why.
    pub reason: SkipReason,
}

/// More servers would be deleted than `--max-deletes` allows: none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverBudget {
    /// How many would go.
    pub lost: usize,
    /// How many servers are, or will be, ours.
    pub owned: usize,
    /// The limit.
    pub limit: DeleteLimit,
    /// The entries that stay.
    pub entries: Vec<Losing>,
}

/// How many servers may go in one run: `--max-deletes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteLimit {
    /// A number of servers.
    Servers(usize),
    /// A percentage of the servers that are ours.
    Percent(u8),
}

impl DeleteLimit {
    /// Reads `20` or `10%`.
    ///
    /// # Errors
    /// A sentence for the usage message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || "not a number of servers such as `20`, or a share such as `10%`".to_owned();
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent) if percent <= 100 => Ok(Self::Percent(percent)),
                _ => Err(bad()),
            },
            None => text.parse().map(Self::Servers).map_err(|_| bad()),
        }
    }

    /// Whether losing so many of so many owned servers is more than it allows.
    #[must_use]
    pub fn is_exceeded(self, lost: usize, owned: usize) -> bool {
        match self {
            Self::Servers(most) => lost > most,
            Self::Percent(most) => lost.saturating_mul(100) > owned.saturating_mul(most.into()),
        }
    }
}

impl fmt::Display for DeleteLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers(most) => write!(f, "{most}"),
            Self::Percent(most) => write!(f, "{most}%"),
        }
    }
}

/// A key that is wanted and taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The backend.
    pub backend: String,
    /// The key.
    pub key: String,
    /// The pod that wants it.
    pub pod: PodName,
    /// The URL it wants.
    pub wanted: ServerUrl,
    /// The value that is there; shown without the password of a URL.
    #[serde(serialize_with = "text::serialize_shown")]
    pub value: Vec<u8>,
    /// The owner that the entry names.
    pub owner: Option<String>,
}

/// A server that wants the key of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// An entry of our owner that a job with another scope wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutOfScope {
    /// The key.
    pub key: String,
    /// The entry's scope.
    pub scope: String,
    /// The entry's pod, if it says.
    pub pod: Option<PodName>,
    /// Which part of the scope differs.
    #[serde(skip)]
    pub differs: ScopeDiffers,
}

/// Which part of an entry's scope differs from this run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScopeDiffers {
    /// The cluster: its backend is frozen.
    Cluster,
    /// The selectors.
    Selectors,
    /// The pod's namespace, which was not listed.
    Namespace,
}

/// A backend that this run does not write to, except to delete what is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frozen {
    /// The backend.
    pub backend: String,
    /// Creates and updates that are left out.
    pub left_out: usize,
    /// Servers of ours that stay there.
    pub ours: usize,
    /// Why.
    #[serde(skip)]
    pub why: Freeze,
}

/// Why a backend is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// It has no definition.
    Undefined {
        /// The keys and values that would define it.
        define: Vec<(String, String)>,
        /// What the proxy does with it.
        effect: Undefined,
    },
    /// Its definition is not valid.
    Broken {
        /// The key.
        key: String,
        /// What is wrong with it.
        refusal: Refusal,
        /// A value that would be valid, if one can be suggested.
        mend: Option<String>,
    },
    /// It would be created, but its id and this one share a prefix, and the proxy would mix their servers.
    Bleeds(String),
    /// These owners have servers in it.
    Owners(BTreeSet<String>),
    /// Another cluster's pods have servers of our owner in it: the scopes.
    Clusters(BTreeSet<String>),
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
    /// Whether an operator should look at it: exit code 3.
    #[must_use]
    pub fn alarms(&self) -> bool {
        let crashes = |why: &Freeze| {
            let refusal = match why {
                Freeze::Broken { refusal, .. } => Some(refusal),
                _ => None,
            };
            refusal == Some(&Refusal::Null)
        };
        let undefined = |frozen: &Frozen| {
            frozen.ours > 0 || matches!(frozen.why, Freeze::Bleeds(_)) || crashes(&frozen.why)
        };
        !self.held.is_empty()
            || self.kept_everywhere
            || !self.emptied.is_empty()
            || self.over_budget.is_some()
            || !self.conflicts.is_empty()
            || !self.duplicates.is_empty()
            || !self.out_of_scope.is_empty()
            || !self.unshared.is_empty()
            || self.undefined.iter().any(undefined)
            || self.findings.iter().any(Finding::is_alarm)
    }

    /// How many servers the plan takes out of rotation: URLs that leave their backend.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.changes.iter().filter(|change| change.loses()).count()
    }
}

/// A name for changes: 8 hex digits of a hash over their keys, and the values before and after. The order of
/// the changes does not count, nor do the revisions of what was read.
#[must_use]
pub(crate) fn name_of<'c>(changes: impl Iterator<Item = &'c Change>) -> String {
    let mut writes = BTreeMap::new();
    for change in changes {
        for write in change.writes() {
            writes.insert(
                write.key,
                (write.before.map(|(before, _)| before), write.after),
            );
        }
    }
    let mut bytes = Vec::new();
    let mut add = |part: Option<&[u8]>| {
        bytes.push(u8::from(part.is_some()));
        let part = part.unwrap_or_default();
        bytes.extend_from_slice(&part.len().to_le_bytes());
        bytes.extend_from_slice(part);
    };
    for (key, (before, after)) in writes {
        add(Some(key.as_bytes()));
        add(before);
        add(after.map(str::as_bytes));
    }
    text::fingerprint(&bytes)
}

impl Change {
    /// All keys that change, in order.
    pub fn writes(&self) -> impl Iterator<Item = Write<'_>> {
        let (before, after) = match &self.action {
            Action::Create { after, .. } => (None, Some(after)),
            Action::Update {
                before,
                revision,
                after,
                ..
            } => (Some((before, revision)), Some(after)),
            Action::Delete {
                before, revision, ..
            } => (Some((before, revision)), None),
        };
        let first = Write {
            key: &self.key,
            before: before.map(|(before, revision)| (before.as_slice(), *revision)),
            after: after.map(String::as_str),
        };
        let extra = self.extra.iter().map(|extra| Write {
            key: &extra.key,
            before: extra.before.as_ref().map(|(b, r)| (b.as_slice(), *r)),
            after: extra.after.as_deref(),
        });
        iter::once(first).chain(extra)
    }

    /// For a delete: the id under which the URL stays in the backend.
    #[must_use]
    pub fn stays_as(&self) -> Option<&str> {
        match (&self.action, self.permit()?.grounds()) {
            (Action::Delete { .. }, Grounds::Stays(id)) => Some(id),
            _ => None,
        }
    }

    /// For the delete of a server that has further keys: the id to which they move.
    #[must_use]
    pub fn moves_to(&self) -> Option<&str> {
        self.stays_as().filter(|_| !self.extra.is_empty())
    }

    /// Whether a URL leaves its backend by it.
    #[must_use]
    pub fn loses(&self) -> bool {
        let grounds = self.permit().map(Permit::grounds);
        grounds.is_some_and(|grounds| !matches!(grounds, Grounds::Stays(_) | Grounds::NoUrl))
    }

    /// Why the URL that was there may go, if it does.
    #[must_use]
    pub fn permit(&self) -> Option<&Permit> {
        match &self.action {
            Action::Create { .. } => None,
            Action::Update { permit, .. } => permit.as_ref(),
            Action::Delete { permit, .. } => Some(permit),
        }
    }
}
