//! One backend while it is planned.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::layout::Entry;
use crate::model::{Host, PodName, Scheme, ServerUrl};
use crate::reconcile::classify::Class;
use crate::reconcile::hold::{Loss, Rest};
use crate::reconcile::plan::{Action, Change, Extra, Losing, Reason, ScopeDiffers};
use crate::reconcile::planner::ownership::Ownership;

/// A server that a pod wants to be, and the id that it would have in its backend.
pub(super) struct Wanted<'l> {
    pub(super) id: Cow<'l, str>,
    pub(super) pod: &'l PodName,
    pub(super) url: &'l ServerUrl,
    pub(super) weight: Option<u16>,
}

/// An entry of a backend.
pub(super) struct Found<'o> {
    pub(super) id: &'o str,
    pub(super) entry: &'o Entry,
    pub(super) ownership: Ownership<'o>,
}

impl<'o> Found<'o> {
    /// Host and port of a foreign entry with a scheme that this program does not write (`h2c`).
    pub(super) fn otherwise(&self) -> Option<(&'o Host, u16)> {
        let url = self.entry.url.as_ref()?;
        let other = url.scheme == Scheme::H2c && self.entry.fault.is_none();
        (other && !self.ownership.is_ours()).then_some((&url.host, url.port))
    }

    pub(super) fn is_foreign(&self) -> bool {
        matches!(
            self.ownership,
            Ownership::Other(_) | Ownership::OutOfScope(ScopeDiffers::Cluster)
        )
    }
}

/// One backend while it is planned.
pub(super) struct Draft<'a, 'w> {
    pub(super) id: &'a str,
    /// Whether nothing may be written to it.
    pub(super) frozen: bool,
    /// The key and value that define it, if it is to be defined.
    pub(super) definition: Option<(String, String)>,
    /// The key that defines it, or will.
    pub(super) defined_by: Option<Rest>,
    /// Servers of ours that pods want and that will be there, unless their update is held.
    pub(super) servers: Vec<Candidate<'a, 'w>>,
    /// Hosts and ports that foreign entries serve by `h2c`: a server of ours there would publish the same pod
    /// twice.
    pub(super) otherwise: BTreeSet<(&'a Host, u16)>,
    /// Creates, and updates by which no URL goes.
    pub(super) puts: Vec<Change>,
    /// Entries that would lose their URL.
    pub(super) losing: Vec<(Losing, Loss<'a>)>,
    /// Updates by which a URL goes.
    pub(super) updates: Vec<Change>,
    pub(super) deletes: Vec<Change>,
    pub(super) held: Vec<(Losing, Class, usize, usize)>,
    pub(super) kept: Vec<Losing>,
    /// Wanted servers whose key an entry has that is not ours.
    pub(super) taken: usize,
    /// Creates and updates left out because the backend is frozen.
    pub(super) left_out: usize,
    /// Entries of ours that stay because it is.
    pub(super) stay: usize,
}

impl Draft<'_, '_> {
    pub(super) fn put(&self, server: &str, key: String, pod: &PodName, action: Action) -> Change {
        Change {
            backend: self.id.to_owned(),
            server: Some(server.to_owned()),
            key,
            pod: Some(pod.clone()),
            action,
            defined_by: self.defined_by.clone(),
            extra: Vec::new(),
        }
    }

    /// Changes further keys of a server that is in sync otherwise. Its URL is rewritten unchanged in the same
    /// transaction, so that the keys are not written for a server that was deleted meanwhile.
    pub(super) fn touch(
        &mut self,
        found: &Found,
        pod: &PodName,
        reason: Reason,
        extra: Vec<Extra>,
    ) {
        let entry = found.entry;
        let action = Action::Update {
            before: entry.value.to_vec(),
            revision: entry.revision,
            after: String::from_utf8_lossy(&entry.value).into_owned(),
            reason,
            permit: None,
        };
        let mut put = self.put(found.id, entry.key.to_string(), pod, action);
        put.extra = extra;
        self.puts.push(put);
    }

    pub(super) fn goes(&mut self, change: Change) {
        match change.action {
            Action::Delete { .. } => self.deletes.push(change),
            Action::Create { .. } | Action::Update { .. } => self.updates.push(change),
        }
    }
}

/// A server of ours that pods want: the entry that is there, and whether it is to be written.
pub(super) struct Candidate<'a, 'w> {
    pub(super) wanted: &'w Wanted<'a>,
    pub(super) entry: Option<&'a Entry>,
    pub(super) put: bool,
}

impl<'a, 'w> Candidate<'a, 'w> {
    pub(super) fn new(wanted: &'w Wanted<'a>, entry: Option<&'a Entry>, put: bool) -> Self {
        Self { wanted, entry, put }
    }
}

/// The order of changes: by backend; within one its definition, creates, updates, updates by which a URL
/// goes, deletes; then by id. An update may give up an address that a create brings back under another
/// id. A server that moves with further keys to another id is deleted right after that one is written:
/// both belong in one transaction.
pub(super) fn order(change: &Change) -> (&str, u8, Option<&str>, bool) {
    let server = change.server.as_deref();
    let (step, server, moved) = match (server, &change.action) {
        (None, _) => (0, None, false),
        (_, Action::Create { .. }) if change.extra.is_empty() => (1, server, false),
        (_, Action::Create { .. } | Action::Update { permit: None, .. }) => (2, server, false),
        (_, Action::Delete { .. }) if let Some(to) = change.moves_to() => (2, Some(to), true),
        (_, Action::Update { .. }) => (3, server, false),
        (_, Action::Delete { .. }) => (4, server, false),
    };
    (&change.backend, step, server, moved)
}

/// Whether the proxy may send requests to an entry's URL, even where we cannot read it.
pub(super) fn may_serve(entry: &Entry) -> bool {
    entry.url.is_some() || entry.fault.is_none()
}

/// Whether an entry's mark names this pod, as far as the layout carries it.
pub(super) fn is_for(entry: &Entry, pod: &PodName) -> bool {
    entry.mark.as_ref().is_some_and(|mark| {
        let name = mark.pod.as_deref();
        mark.namespace == pod.namespace && name.is_none_or(|name| *name == *pod.name)
    })
}

/// The pod an entry names.
pub(super) fn entry_pod(entry: &Entry) -> Option<PodName> {
    let mark = entry.mark.as_ref()?;
    Some(PodName {
        namespace: mark.namespace.clone(),
        name: mark.pod.as_deref()?.into(),
    })
}
