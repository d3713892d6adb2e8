//! Ownership of entries, the scopes that count as this cluster, and the lists that are witnesses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::layout::{Definition, Entry};
use crate::model::{Cluster, Mark, PodName, ServerUrl};
use crate::reconcile::evidence::Absence;
use crate::reconcile::plan::ScopeDiffers;
use crate::reconcile::planner::Planner;

/// The owner of an entry, as this run sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership<'o> {
    Ours,
    /// Taken over by `--adopt`: what it was.
    Adopted(&'static str),
    /// Our owner's, with another scope.
    OutOfScope(ScopeDiffers),
    Other(&'o str),
    Unmarked,
}

impl Ownership<'_> {
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Adopted(_))
    }
}

/// A scope as an entry carries it: its cluster, and the selectors behind it.
fn split_scope(scope: &str) -> (Cluster, &str) {
    let (cluster, selectors) = scope.split_once(' ').unwrap_or((scope, ""));
    (Cluster::parse(cluster), selectors)
}

impl<'a> Planner<'a> {
    /// Finds the scopes that differ from ours in the fingerprint alone, and of whose entries at least half
    /// have their pod in the lists at their address: the same cluster, reached through another door or
    /// with a renewed CA.
    pub(super) fn find_doors(&self) -> HashSet<Rc<str>> {
        let (ours, selectors) = split_scope(&self.author.scope);
        if ours.name.is_empty() {
            return HashSet::new();
        }
        let mut doors = BTreeMap::<&Rc<str>, (usize, usize)>::new();
        for entry in self.entries() {
            if let Some(mark) = &entry.mark
                && mark.author.owner == self.author.owner
                && mark.author.scope != self.author.scope
            {
                let (seen, all) = doors.entry(&mark.author.scope).or_default();
                *all += 1;
                *seen += usize::from(self.evidence.shown_in(mark, entry.address()).is_some());
            }
        }
        let same = |(scope, (seen, all)): (&Rc<str>, (usize, usize))| {
            let (theirs, their_selectors) = split_scope(scope);
            let same = theirs.name == ours.name && their_selectors == selectors;
            (same && 2 * seen >= all).then(|| Rc::clone(scope))
        };
        doors.into_iter().filter_map(same).collect()
    }

    /// The ids of entries whose scope differs from ours in the fingerprint alone, by their backend and the id
    /// that the same server has in our scope. An id is its mark, where the layout has it there, and the
    /// server's own.
    pub(super) fn ids_by_other_door(&self) -> HashMap<(&'a str, String), &'a str> {
        let mut ids = HashMap::new();
        if self.doors.is_empty() {
            return ids;
        }
        for (backend, found) in &self.observed.backends {
            for (id, entry) in &found.servers {
                let Some(mark) = &entry.mark else { continue };
                if mark.author.owner == self.author.owner && self.doors.contains(&mark.author.scope)
                {
                    let of_mark = self.layout.id("", mark);
                    let server = id.strip_prefix(&*of_mark).unwrap_or(id);
                    let ours = Mark {
                        author: Rc::clone(&self.author),
                        ..mark.clone()
                    };
                    let ours = self.layout.id(server, &ours).into_owned();
                    ids.entry((backend.as_str(), ours)).or_insert(&**id);
                }
            }
        }
        ids
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &'a Entry> {
        let backends = self.observed.backends.values();
        backends.flat_map(|backend| backend.servers.values())
    }

    /// Whether absence proves something: the list publishes a server into a defined backend, or shows a
    /// pod of our entries at its address; or it is the second look.
    pub(super) fn is_witness(&self, absence: Absence) -> bool {
        match absence {
            Absence::NotShown | Absence::Unselected | Absence::Refused(_) => false,
            Absence::SecondLook { any } => any || self.rules.allow_empty,
            Absence::List(_) if self.rules.allow_empty => true,
            Absence::List(list) => self.witnesses.get_or_init(|| self.find_witnesses())[list],
        }
    }

    pub(super) fn find_witnesses(&self) -> Vec<bool> {
        let publishes = |backend: &str| match self.observed.backends.get(backend) {
            Some(found) => match found.definition {
                Definition::Valid { .. } => true,
                Definition::Absent => self.rules.create_backends,
                Definition::Broken { .. } | Definition::OtherType { .. } => false,
            },
            None => self.rules.create_backends,
        };
        let lists = self.lists.lists.iter();
        let mut witnesses = lists
            .map(|list| {
                let mut wants = list.pods.iter().flat_map(|pod| &pod.wants);
                wants.any(|want| publishes(self.observed.spelled(&want.backend)))
            })
            .collect::<Vec<_>>();
        for entry in self.entries() {
            if let Some(mark) = &entry.mark
                && self.ownership(entry, &BTreeSet::new()) == Ownership::Ours
                && let Some(list) = self.evidence.shown_in(mark, entry.address())
            {
                witnesses[list] = true;
            }
        }
        witnesses
    }

    /// The mark that an entry of ours carries for this pod.
    pub(super) fn mark(&self, pod: &PodName) -> Mark {
        self.layout.mark(Rc::clone(&self.author), pod)
    }

    pub(super) fn ownership<'o>(
        &self,
        entry: &'o Entry,
        wanted_urls: &BTreeSet<&ServerUrl>,
    ) -> Ownership<'o> {
        let Some(mark) = &entry.mark else {
            let url = entry.url.as_ref();
            let wanted = url.is_some_and(|url| wanted_urls.contains(url));
            return if self.rules.adopt.unmarked && wanted {
                Ownership::Adopted("it was unmarked")
            } else {
                Ownership::Unmarked
            };
        };
        let same_scope =
            mark.author.scope == self.author.scope || self.doors.contains(&mark.author.scope);
        if mark.author.owner != self.author.owner {
            return if same_scope && self.rules.adopt.owners.contains(&*mark.author.owner) {
                Ownership::Adopted("it was another owner's")
            } else {
                Ownership::Other(&mark.author.owner)
            };
        }
        let covered = !mark.namespace.is_empty() && self.evidence.covers(&mark.namespace);
        if same_scope && covered {
            Ownership::Ours
        } else if self.rules.adopt.scope {
            Ownership::Adopted("it was of another scope")
        } else if same_scope {
            Ownership::OutOfScope(ScopeDiffers::Namespace)
        } else {
            let same_cluster = |scope| split_scope(scope).0 == split_scope(&self.author.scope).0;
            Ownership::OutOfScope(if same_cluster(&mark.author.scope) {
                ScopeDiffers::Selectors
            } else {
                ScopeDiffers::Cluster
            })
        }
    }
}
