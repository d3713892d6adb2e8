//! The planner: goes through the backends one by one, and through the servers of each.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::rc::Rc;

use crate::layout::{Definition, Entry, Layout, Observed, Other};
use crate::model::{Cluster, Host, Mark, PodName, Scheme, ServerUrl};
use crate::reconcile::classify::{Class, Classified, Unproved, classify};
use crate::reconcile::evidence::{Absence, Evidence, Lists};
use crate::reconcile::findings;
use crate::reconcile::hold::{self, Kind, Loss, Permit, Rest, Server, Verdict};
use crate::reconcile::map::State;
use crate::reconcile::plan::{
    Action, Change, Conflict, Duplicate, Emptied, Extra, Freeze, Frozen, Held, Kept, Losing,
    NoBackends, OutOfScope, OverBudget, Plan, Reason, Rules, ScopeDiffers,
};

/// Decides. `observed` was listed before `lists`: otherwise what another run has just registered would
/// look like something whose pod is gone.
///
/// # Errors
/// [`NoBackends`]: a wrong or wiped store must not look like success.
pub fn plan(
    observed: &Observed,
    lists: &Lists,
    rules: &Rules,
    layout: &dyn Layout,
) -> Result<Plan, NoBackends> {
    let scope = layout.scope(&rules.scope);
    let mut planner = Planner {
        observed,
        lists,
        evidence: Evidence::new(lists),
        witnesses: OnceCell::new(),
        rules,
        layout,
        owner: rules.owner.as_str().into(),
        scope: scope.as_str().into(),
        doors: Vec::new(),
        plan: Plan {
            prefix: observed.prefix.clone(),
            scope,
            revision: observed.revision,
            ..Plan::default()
        },
        backends_served: 0,
        backends_unready: 0,
    };
    planner.doors = planner.find_doors();
    let desired = planner.desired(lists);
    let owned = |entry: &Entry| {
        let mark = entry.mark.as_ref();
        mark.is_some_and(|mark| *mark.owner == *rules.owner)
    };
    let mut backends = observed.backends.values();
    if let Some(example) = desired.keys().next()
        && !rules.create_backends
        && !backends.any(|b| is_valid(&b.definition) || b.servers.values().any(owned))
    {
        return Err(NoBackends {
            prefix: observed.prefix.clone(),
            wanted: desired.len(),
            example: (*example).to_owned(),
        });
    }
    let missed = missed(observed, lists);
    let ids = observed.backends.keys().map(String::as_str);
    let ids = ids.chain(desired.keys().copied());
    let ids = ids.collect::<BTreeSet<_>>();
    for id in &ids {
        let wanted = desired.get(id).map_or(&[][..], Vec::as_slice);
        planner.backend(
            id,
            wanted,
            &ids,
            missed.get(id).copied().unwrap_or_default(),
        );
    }
    let mut plan = planner.finish();
    plan.findings = findings::find(observed, lists, layout, &plan);
    Ok(plan)
}

fn is_valid(definition: &Definition) -> bool {
    matches!(definition, Definition::Valid { .. })
}

/// How many Ready pods name a backend and are left out by mistake.
fn missed<'a>(observed: &'a Observed, lists: &'a Lists) -> BTreeMap<&'a str, usize> {
    let mut missed = BTreeMap::new();
    for skipped in lists.pods().flat_map(|pod| &pod.skipped) {
        if let Some(backend) = &skipped.backend {
            *missed.entry(observed.spelled(backend)).or_default() += 1;
        }
    }
    missed
}

/// A server that a pod wants to be, and the id that it would have in its backend.
struct Wanted<'l> {
    id: Cow<'l, str>,
    pod: &'l PodName,
    url: &'l ServerUrl,
    weight: Option<u16>,
}

/// An entry of a backend.
struct Found<'o> {
    id: &'o str,
    entry: &'o Entry,
    ownership: Ownership<'o>,
}

/// Whether an entry is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownership<'o> {
    Ours,
    /// Ours for this run: what it was.
    Adopted(&'static str),
    /// Our owner's, from elsewhere.
    OutOfScope(ScopeDiffers),
    Other(&'o str),
    Unmarked,
}

impl Ownership<'_> {
    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Adopted(_))
    }
}

struct Planner<'a> {
    observed: &'a Observed,
    lists: &'a Lists,
    evidence: Evidence<'a>,
    /// For each list whether a pod's absence from it counts; made when first asked for.
    witnesses: OnceCell<Vec<bool>>,
    rules: &'a Rules,
    layout: &'a dyn Layout,
    /// The rules' owner, and the scope as entries carry it.
    owner: Rc<str>,
    scope: Rc<str>,
    /// Scopes of the same cluster, reached through another door.
    doors: Vec<Rc<str>>,
    plan: Plan,
    backends_served: usize,
    backends_unready: usize,
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
    fn find_doors(&self) -> Vec<Rc<str>> {
        let (ours, selectors) = split_scope(&self.scope);
        if ours.name.is_empty() {
            return Vec::new();
        }
        let mut doors = BTreeMap::<&Rc<str>, (usize, usize)>::new();
        for entry in self.entries() {
            if let Some(mark) = &entry.mark
                && mark.owner == self.owner
                && mark.scope != self.scope
            {
                let (seen, all) = doors.entry(&mark.scope).or_default();
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

    fn entries(&self) -> impl Iterator<Item = &'a Entry> {
        let backends = self.observed.backends.values();
        backends.flat_map(|backend| backend.servers.values())
    }

    /// Whether absence proves something: the list publishes a server into a defined backend, or shows a
    /// pod of our entries at its address; or it is the second look.
    fn is_witness(&self, absence: Absence) -> bool {
        match absence {
            Absence::NotShown | Absence::Unselected | Absence::Refused(_) => false,
            Absence::SecondLook { any } => any || self.rules.allow_empty,
            Absence::List(_) if self.rules.allow_empty => true,
            Absence::List(list) => self.witnesses.get_or_init(|| self.find_witnesses())[list],
        }
    }

    fn find_witnesses(&self) -> Vec<bool> {
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

    /// Gathers what the pods want, per backend in order of the ids there, and resolves who gets a key that
    /// several want.
    fn desired(&mut self, lists: &'a Lists) -> BTreeMap<&'a str, Vec<Wanted<'a>>> {
        let mut desired = BTreeMap::<&str, Vec<Wanted>>::new();
        for pod in lists.pods() {
            self.plan.counts.pods += 1;
            self.plan.counts.published += usize::from(!pod.wants.is_empty());
            for skipped in &pod.skipped {
                let reason = skipped.reason.clone();
                self.plan.skipped.push((pod.name.clone(), reason));
            }
            for want in &pod.wants {
                let backend = self.observed.spelled(&want.backend);
                desired.entry(backend).or_default().push(Wanted {
                    id: self.id(backend, &want.server, &pod.name),
                    pod: &pod.name,
                    url: &want.url,
                    weight: want.weight,
                });
            }
        }
        self.plan.skipped.sort();
        for (backend, wanted) in &mut desired {
            wanted.sort_by(|a, b| a.id.cmp(&b.id));
            if wanted.windows(2).any(|pair| pair[0].id == pair[1].id) {
                self.resolve_duplicates(backend, wanted);
            }
        }
        desired
    }

    /// The id of a server. One that is there through another door keeps its spelling.
    fn id(&self, backend: &str, server: &'a str, pod: &PodName) -> Cow<'a, str> {
        let there = self.observed.backends.get(backend);
        let doors = self.doors.iter().map(|door| {
            let mark = self.mark_of(Rc::clone(door), pod);
            self.layout.id(server, &mark)
        });
        let mut doors = doors.filter(|id| there.is_some_and(|b| b.servers.contains_key(&**id)));
        doors
            .next()
            .unwrap_or_else(|| self.layout.id(server, &self.mark(pod)))
    }

    /// Resolves which of several pods gets a key that they all want. Those that wanted another URL there
    /// are duplicates.
    fn resolve_duplicates(&mut self, backend: &str, all: &mut Vec<Wanted<'a>>) {
        let there = self.observed.backends.get(backend);
        all.sort_by_cached_key(|wanted| {
            let there = there.and_then(|found| found.servers.get(&*wanted.id));
            // The one already in the store keeps it; false sorts before true.
            let same_url = there.is_some_and(|entry| entry.url.as_ref() == Some(wanted.url));
            let same_pod = there.is_some_and(|entry| self.is_for(entry, wanted.pod));
            let id = wanted.id.clone();
            (id, !same_url, !same_pod, wanted.pod, wanted.url.port)
        });
        let mut duplicates = Vec::new();
        all.dedup_by(|loser, winner| {
            let same = loser.id == winner.id;
            if same && loser.url != winner.url {
                duplicates.push(Duplicate {
                    key: self.layout.key(&self.observed.prefix, backend, &winner.id),
                    winner: winner.pod.clone(),
                    loser: loser.pod.clone(),
                    url: loser.url.clone(),
                });
            }
            same
        });
        self.plan.duplicates.append(&mut duplicates);
    }

    /// The mark that an entry of ours carries for this pod.
    fn mark(&self, pod: &PodName) -> Mark {
        self.mark_of(Rc::clone(&self.scope), pod)
    }

    fn mark_of(&self, scope: Rc<str>, pod: &PodName) -> Mark {
        self.layout.mark(Rc::clone(&self.owner), scope, pod)
    }

    /// Whether an entry's mark names this pod, as far as the layout carries it.
    fn is_for(&self, entry: &Entry, pod: &PodName) -> bool {
        let mark = entry.mark.as_ref();
        mark.is_some_and(|mark| {
            let Mark { owner, scope, .. } = mark;
            self.layout.mark(Rc::clone(owner), Rc::clone(scope), pod) == *mark
        })
    }

    fn ownership<'o>(&self, entry: &'o Entry, wanted_urls: &BTreeSet<&ServerUrl>) -> Ownership<'o> {
        let Some(mark) = &entry.mark else {
            let url = entry.url.as_ref();
            let wanted = url.is_some_and(|url| wanted_urls.contains(url));
            return if self.rules.adopt.unmarked && wanted {
                Ownership::Adopted("it was unmarked")
            } else {
                Ownership::Unmarked
            };
        };
        let same_scope = mark.scope == self.scope || self.doors.contains(&mark.scope);
        if mark.owner != self.owner {
            return if same_scope && self.rules.adopt.owners.contains(&*mark.owner) {
                Ownership::Adopted("it was another owner's")
            } else {
                Ownership::Other(&mark.owner)
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
            let same_cluster = |scope| split_scope(scope).0 == split_scope(&self.scope).0;
            Ownership::OutOfScope(if same_cluster(&mark.scope) {
                ScopeDiffers::Selectors
            } else {
                ScopeDiffers::Cluster
            })
        }
    }

    /// Plans one backend. `missed`: how many Ready pods name it and are left out.
    fn backend(&mut self, id: &'a str, wanted: &[Wanted<'a>], all: &BTreeSet<&str>, missed: usize) {
        const ABSENT: &Definition = &Definition::Absent;
        let backend = self.observed.backends.get(id);
        let definition = backend.map_or(ABSENT, |backend| &backend.definition);
        // They matter only to what may be adopted.
        let urls = wanted.iter().filter(|_| self.rules.adopt.unmarked);
        let urls = urls.map(|wanted| wanted.url).collect::<BTreeSet<_>>();
        let entries = backend
            .into_iter()
            .flat_map(|backend| backend.servers.iter());
        let found = entries.map(|(id, entry)| Found {
            id,
            entry,
            ownership: self.ownership(entry, &urls),
        });
        let found = found.collect::<Vec<_>>();
        self.count(&found);
        let freeze = self.freeze(id, definition, &found, wanted, all);
        let define = freeze.is_none() && !wanted.is_empty() && !is_valid(definition);
        let mut draft = Draft {
            id,
            frozen: freeze.is_some(),
            definition: self.definition(id).filter(|_| define),
            defined_by: match definition {
                Definition::Valid { key, revision } => Some(Rest {
                    key: key.clone(),
                    revision: Some(*revision),
                }),
                _ if define => self.definition(id).map(|(key, _)| Rest {
                    key,
                    revision: None,
                }),
                _ => None,
            },
            servers: Vec::new(),
            otherwise: found.iter().filter_map(Found::otherwise).collect(),
            puts: Vec::new(),
            losing: Vec::new(),
            deletes: Vec::new(),
            updates: Vec::new(),
            held: Vec::new(),
            kept: Vec::new(),
            taken: 0,
            left_out: 0,
            stay: 0,
        };
        // Both are in order of their ids.
        let mut there = found.iter().peekable();
        for wanted in wanted {
            while let Some(found) = there.next_if(|found| *found.id < *wanted.id) {
                self.unwanted(&mut draft, found);
            }
            let there = there.next_if(|found| *found.id == *wanted.id);
            self.wanted(&mut draft, wanted, there);
        }
        for found in there {
            self.unwanted(&mut draft, found);
        }
        self.resolve_losses(&mut draft, &found);
        self.move_others(&mut draft, &found, wanted);
        let owned = found.iter().filter(|found| found.ownership.is_ours());
        let owned = owned.count();
        let created = |change: &&Change| matches!(change.action, Action::Create { .. });
        let created = draft.puts.iter().filter(created).count();
        // As the next run will count it.
        if !draft.frozen && owned + created + draft.taken > draft.deletes.len() {
            self.backends_served += 1;
        }
        if missed > 0 && found.len() + created == draft.deletes.len() && is_valid(definition) {
            self.plan.emptied.push(self.emptied(id));
        }
        if let Some(why) = freeze {
            self.add_frozen(&draft, owned, why);
        }
        self.add(draft);
    }

    fn count(&mut self, found: &[Found]) {
        for Found {
            entry, ownership, ..
        } in found
        {
            match ownership {
                Ownership::Ours | Ownership::Adopted(_) => self.plan.counts.owned += 1,
                Ownership::OutOfScope(differs) => self.plan.out_of_scope.push(OutOfScope {
                    key: entry.key.to_string(),
                    scope: entry
                        .mark
                        .as_ref()
                        .map_or(String::new(), |mark| mark.scope.to_string()),
                    pod: entry_pod(entry),
                    differs: *differs,
                }),
                Ownership::Other(_) | Ownership::Unmarked => self.plan.counts.foreign += 1,
            }
        }
    }

    /// Whether and why a backend gets nothing from us.
    fn freeze(
        &self,
        id: &str,
        definition: &Definition,
        found: &[Found],
        wanted: &[Wanted],
        all: &BTreeSet<&str>,
    ) -> Option<Freeze> {
        match definition {
            Definition::Broken {
                key,
                refusal,
                mended,
            } => Some(Freeze::Broken {
                key: key.clone(),
                refusal: refusal.clone(),
                mend: Some(mended.clone()),
            }),
            Definition::OtherType { key, refusal } => Some(Freeze::Broken {
                key: key.clone(),
                refusal: refusal.clone(),
                mend: None,
            }),
            Definition::Absent if !self.rules.create_backends || wanted.is_empty() => {
                Some(Freeze::Undefined {
                    define: self.layout.definition(&self.observed.prefix, id),
                    effect: self.layout.undefined(),
                })
            }
            Definition::Absent if let Some(other) = self.bleeds(id, all) => {
                Some(Freeze::Bleeds(other.to_owned()))
            }
            Definition::Absent | Definition::Valid { .. } if self.rules.share_backends => None,
            Definition::Absent | Definition::Valid { .. } => {
                let owners = found.iter().filter_map(|found| match found.ownership {
                    Ownership::Other(owner) => Some(owner.to_owned()),
                    _ => None,
                });
                let owners = owners.collect::<BTreeSet<_>>();
                let clusters = found.iter().filter_map(|found| {
                    let other = Ownership::OutOfScope(ScopeDiffers::Cluster);
                    let mark = found.entry.mark.as_ref();
                    mark.filter(|_| found.ownership == other)
                        .map(|mark| mark.scope.to_string())
                });
                let clusters = clusters.collect::<BTreeSet<_>>();
                if !clusters.is_empty() {
                    Some(Freeze::Clusters(clusters))
                } else if owners.is_empty() {
                    None
                } else {
                    Some(Freeze::Owners(owners))
                }
            }
        }
    }

    /// Another backend whose servers this one would share because one id begins the other. Ids are in
    /// order: a longer one follows, shorter ones are its own beginnings.
    fn bleeds<'i>(&self, id: &str, all: &BTreeSet<&'i str>) -> Option<&'i str> {
        let shorter = id.char_indices().map(|(end, _)| &id[..end]);
        let shorter = shorter.filter_map(|begin| all.get(begin).copied());
        let longer =
            all.range::<str, _>((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded));
        let longer = longer.copied().take_while(|other| other.starts_with(id));
        let mut others = shorter.chain(longer);
        others.find(|other| self.layout.bleeds(id, other) || self.layout.bleeds(other, id))
    }

    /// Plans one wanted server.
    fn wanted<'w>(
        &mut self,
        draft: &mut Draft<'a, 'w>,
        wanted: &'w Wanted<'a>,
        there: Option<&Found<'a>>,
    ) {
        let Some(found) = there else {
            if draft.frozen {
                draft.left_out += 1;
                return;
            }
            if draft
                .otherwise
                .contains(&(&wanted.url.host, wanted.url.port))
            {
                draft.taken += 1;
                self.plan.counts.satisfied_unmarked += 1;
                return;
            }
            let key = self.layout.key(&self.observed.prefix, draft.id, &wanted.id);
            let extra = self.weigh(draft.id, wanted, None);
            draft.servers.push(Candidate::new(wanted, None, true));
            let after = self.layout.value(wanted.url, &self.mark(wanted.pod));
            let action = Action::Create {
                after,
                reason: Reason::Ready,
            };
            let mut put = draft.put(&wanted.id, key, wanted.pod, action);
            put.extra.extend(extra);
            draft.puts.push(put);
            return;
        };
        let entry = found.entry;
        let same_url = entry.url.as_ref() == Some(wanted.url);
        if !found.ownership.is_ours() {
            let same = same_url && entry.fault.is_none();
            return self.wanted_elsewhere(draft, wanted, found, same);
        }
        let adopted = match found.ownership {
            Ownership::Adopted(what) => Some(what),
            _ => None,
        };
        let in_order = entry.fault.is_none() && adopted.is_none();
        if same_url && in_order && self.is_for(entry, wanted.pod) {
            draft
                .servers
                .push(Candidate::new(wanted, Some(entry), false));
            match self.weigh(draft.id, wanted, Some(entry)) {
                None => self.plan.counts.unchanged += 1,
                Some(_) if draft.frozen => draft.left_out += 1,
                Some(weight) => {
                    let reason = Reason::Differs("its weight");
                    draft.touch(found, wanted.pod, reason, vec![weight]);
                }
            }
            return;
        }
        if draft.frozen {
            draft.left_out += 1;
            if same_url {
                draft.stay += 1;
                // Its mark is not put right here: once it names another pod, nothing may rest on it, or
                // the next run takes the URL for that pod's.
                if self.is_for(entry, wanted.pod) {
                    let server = Candidate::new(wanted, Some(entry), false);
                    draft.servers.push(server);
                }
            } else {
                // No update: all that may still happen to it is that its dead pod's URL goes.
                self.unwanted(draft, found);
            }
            return;
        }
        draft
            .servers
            .push(Candidate::new(wanted, Some(entry), true));
        let after = self.layout.value(wanted.url, &self.mark(wanted.pod));
        if !same_url && may_serve(entry) {
            let server = draft.servers.len() - 1;
            return self.losing(draft, found, Some((after, server, wanted)));
        }
        let reason = match adopted {
            Some(what) => Reason::Adopted(what),
            None if entry.url.is_none() => Reason::Differs("it had no valid URL"),
            None if entry.fault.is_some() => Reason::Differs("a value the proxy refuses"),
            None => Reason::Differs("its pod"),
        };
        let action = Action::Update {
            before: entry.value.to_vec(),
            revision: entry.revision,
            after,
            reason,
            permit: None,
        };
        let mut put = draft.put(&wanted.id, entry.key.to_string(), wanted.pod, action);
        put.extra.extend(self.weigh(draft.id, wanted, Some(entry)));
        draft.puts.push(put);
    }

    /// The weight that a server is to have, where it is not what is there. Without an annotation it is left
    /// alone: somebody may have set it by hand.
    fn weigh(&self, backend: &str, wanted: &Wanted, entry: Option<&'a Entry>) -> Option<Extra> {
        let after = wanted.weight?.to_string();
        let key = self
            .layout
            .weight_key(&self.observed.prefix, backend, &wanted.id)?;
        let there = self.weight_of(backend, &wanted.id, entry);
        if there.is_some_and(|other| *other.value == *after.as_bytes()) {
            return None;
        }
        let before = there.map(|other| (other.value.to_vec(), other.revision));
        Some(Extra {
            key: there.map_or(key, |other| other.key.to_string()),
            before,
            after: Some(after),
        })
    }

    /// The weight that is there for a server of this id, with a URL or without.
    fn weight_of(&self, backend: &str, id: &str, entry: Option<&'a Entry>) -> Option<&'a Other> {
        let prefix = &self.observed.prefix;
        let key = self.layout.weight_key(prefix, backend, id)?;
        let leftovers = || Some(&**self.observed.backends.get(backend)?.leftovers.get(id)?);
        let others = match entry {
            Some(entry) => &entry.others,
            None => leftovers()?,
        };
        let is_weight = |other: &&Other| {
            self.layout
                .moved_key(prefix, backend, id, &other.key)
                .as_ref()
                == Some(&key)
        };
        others.iter().find(is_weight)
    }

    /// A wanted server at whose key an entry stands that is not ours.
    fn wanted_elsewhere(
        &mut self,
        draft: &mut Draft,
        wanted: &Wanted,
        found: &Found,
        same_url: bool,
    ) {
        draft.taken += 1;
        let entry = found.entry;
        if !same_url {
            self.plan.conflicts.push(Conflict {
                backend: draft.id.to_owned(),
                key: entry.key.to_string(),
                pod: wanted.pod.clone(),
                wanted: wanted.url.clone(),
                value: entry.value.to_vec(),
                owner: entry.mark.as_ref().map(|mark| mark.owner.to_string()),
            });
        } else if found.ownership == Ownership::Unmarked {
            self.plan.counts.satisfied_unmarked += 1;
        } else {
            self.plan.counts.satisfied_marked += 1;
        }
    }

    /// Plans one entry that no pod wants at its id.
    fn unwanted(&mut self, draft: &mut Draft<'a, '_>, found: &Found<'a>) {
        if !found.ownership.is_ours() {
            return;
        }
        if self.rules.upsert_only {
            self.plan.counts.left_out += 1;
        } else {
            self.losing(draft, found, None);
        }
    }

    /// Notes an entry of ours that would lose its URL; for an update with the value it would get, the
    /// server, and that one's pod.
    fn losing(
        &mut self,
        draft: &mut Draft<'a, '_>,
        found: &Found<'a>,
        update: Option<(String, usize, &Wanted<'a>)>,
    ) {
        let Found { id, entry, .. } = *found;
        let adopted = matches!(found.ownership, Ownership::Adopted(_));
        let witness = |absence: Absence| self.is_witness(absence);
        let classified = classify(&self.evidence, witness, draft.id, entry, adopted);
        let Some(Classified { class, pod }) = classified else {
            self.plan.counts.not_looked_at += 1;
            if let Some((_, server, _)) = update {
                draft.servers.truncate(server);
            }
            return;
        };
        let named = entry_pod(entry).or_else(|| pod.map(|pod| pod.name.clone()));
        let wanting = update.as_ref().map(|(_, _, wanted)| wanted.pod);
        let (others, weight) = match &update {
            None => (&entry.others[..], None),
            Some((_, _, wanted)) => (&[][..], self.weigh(draft.id, wanted, Some(entry))),
        };
        let (after, server, wanted_by) = match update {
            Some((after, server, wanted)) => (Some(after), Some(server), Some(wanted.pod.clone())),
            None => (None, None, None),
        };
        let delete = |other: &Other| Extra {
            key: other.key.to_string(),
            before: Some((other.value.to_vec(), other.revision)),
            after: None,
        };
        let losing = Losing {
            backend: draft.id.to_owned(),
            server: id.to_owned(),
            key: entry.key.to_string(),
            namespace: entry
                .mark
                .as_ref()
                .map_or(String::new(), |mark| mark.namespace.to_string()),
            pod: named,
            wanted_by,
            before: entry.value.to_vec(),
            revision: entry.revision,
            defined_by: draft.defined_by.clone().filter(|_| after.is_some()),
            after,
            extra: others.iter().map(delete).chain(weight).collect(),
        };
        if !may_serve(entry) {
            draft.deletes.push(losing.change(Permit::without_url()));
            return;
        }
        // Without a name in the mark and an address in the URL, only the id tells whose the entry is.
        let nameless = class == Class::Unproved(Unproved::Unreadable);
        let by_id = wanting.filter(|_| nameless);
        let loss = Loss {
            url: entry.url.as_ref(),
            class,
            pod: pod.map(|pod| &pod.name).or(by_id),
            ready: pod.is_some_and(|pod| pod.state == State::Live),
            rest: Rest {
                key: entry.key.to_string(),
                revision: Some(entry.revision),
            },
            replaced_by: server,
        };
        draft.losing.push((losing, loss));
    }

    /// Decides what goes, what is held and what is kept of a backend.
    fn resolve_losses(&mut self, draft: &mut Draft<'a, '_>, found: &[Found<'a>]) {
        if draft.losing.is_empty() {
            return;
        }
        let (losing, losses): (Vec<_>, Vec<_>) = mem::take(&mut draft.losing).into_iter().unzip();
        let others = found
            .iter()
            .filter(|found| self.rules.share_backends && found.is_foreign());
        let others = others.filter_map(|Found { entry, .. }| {
            let rest = Rest {
                key: entry.key.to_string(),
                revision: Some(entry.revision),
            };
            Some((Kind::of(entry.url.as_ref()?), rest))
        });
        let servers = mem::take(&mut draft.servers).into_iter();
        let servers = servers.map(|Candidate { wanted, entry, put }| Server {
            drained: wanted.weight.map_or_else(
                || {
                    let weight = self.weight_of(draft.id, &wanted.id, entry);
                    weight.is_some_and(|other| *other.value == *b"0")
                },
                |weight| weight == 0,
            ),
            id: &wanted.id,
            url: wanted.url,
            pod: wanted.pod,
            rest: Rest {
                key: entry.map_or_else(
                    || self.layout.key(&self.observed.prefix, draft.id, &wanted.id),
                    |entry| entry.key.to_string(),
                ),
                revision: entry.filter(|_| !put).map(|entry| entry.revision),
            },
        });
        let backend = hold::Backend {
            losses,
            servers: servers.collect(),
            others: others.collect(),
        };
        let held = backend.hold(self.rules.strict_ready);
        self.backends_unready += usize::from(held.unready && !draft.frozen);
        for ((losing, loss), verdict) in losing.into_iter().zip(backend.losses).zip(held.verdicts) {
            let dead = matches!(loss.class, Class::Dead(_));
            match verdict {
                // A frozen backend loses only what is dead, or stays in it.
                Verdict::Goes(permit) if !draft.frozen || dead || permit.stays() => {
                    draft.goes(losing.change(permit));
                }
                _ if draft.frozen => draft.stay += 1,
                Verdict::Goes(permit) => draft.goes(losing.change(permit)),
                Verdict::Held { lost, remain } => {
                    if loss.class == Class::Unproved(Unproved::Unselected) {
                        self.plan.doubts.insert(losing.namespace.clone());
                    }
                    draft.held.push((losing, loss.class, lost, remain));
                }
                Verdict::Kept => draft.kept.push(losing),
            }
        }
    }

    /// Gives a server that stays under another id what its entry had beside the URL.
    fn move_others(&self, draft: &mut Draft<'a, '_>, found: &[Found<'a>], wanted: &[Wanted<'a>]) {
        let moves = draft.deletes.iter().filter_map(|delete| {
            let id = delete.stays_as()?.to_owned();
            (!delete.extra.is_empty()).then(|| (delete.server.clone(), id))
        });
        for (from, to) in moves.collect::<Vec<_>>() {
            let entry = |id: &str| found.iter().find(|found| found.id == id);
            let Some(from) = from.and_then(|from| entry(&from)) else {
                continue;
            };
            let prefix = &self.observed.prefix;
            let there = entry(&to).map_or(&[][..], |found| &found.entry.others);
            let leftovers = self.observed.backends.get(draft.id);
            let leftovers = leftovers.and_then(|backend| backend.leftovers.get(&*to));
            let there = there.iter().chain(leftovers.into_iter().flatten());
            let there =
                there.filter_map(|other| self.layout.moved_key(prefix, draft.id, &to, &other.key));
            let there = there.collect::<BTreeSet<_>>();
            let moved = from.entry.others.iter().filter_map(|other| {
                let key = self.layout.moved_key(prefix, draft.id, &to, &other.key)?;
                let after = String::from_utf8(other.value.to_vec()).ok()?;
                let extra = Extra {
                    key,
                    before: None,
                    after: Some(after),
                };
                (!there.contains(&extra.key)).then_some(extra)
            });
            let mut moved = moved.collect::<Vec<_>>();
            let put = draft
                .puts
                .iter_mut()
                .find(|put| put.server.as_ref() == Some(&to));
            if let Some(put) = put {
                moved.retain(|extra| put.writes().all(|write| write.key != extra.key));
                put.extra.append(&mut moved);
            } else if !moved.is_empty()
                && let Some(found) = entry(&to)
                && let Some(wanted) = wanted.iter().find(|wanted| *wanted.id == *to)
            {
                draft.touch(found, wanted.pod, Reason::Moved(from.id.to_owned()), moved);
            }
        }
    }

    /// The pods that name a backend and are left out.
    fn emptied(&self, id: &str) -> Emptied {
        let pods = self.lists.pods().flat_map(|pod| {
            let here = pod.skipped.iter();
            let named = |backend| self.observed.spelled(backend);
            let here = here.filter(move |s| s.backend.as_deref().map(named) == Some(id));
            here.map(|skipped| (pod.name.clone(), skipped.reason.clone()))
        });
        Emptied {
            backend: id.to_owned(),
            pods: pods.collect(),
        }
    }

    /// Adds what was decided for one backend to the plan, in order.
    fn add(&mut self, draft: Draft) {
        let Draft {
            id,
            definition,
            mut puts,
            mut updates,
            mut deletes,
            held,
            kept,
            ..
        } = draft;
        puts.append(&mut updates);
        puts.append(&mut deletes);
        puts.sort_by(|a, b| order(a).cmp(&order(b)));
        if let Some((key, after)) = definition {
            self.plan.changes.push(Change {
                backend: id.to_owned(),
                server: None,
                key,
                pod: None,
                action: Action::Create {
                    after,
                    reason: Reason::Define,
                },
                defined_by: None,
                extra: Vec::new(),
            });
        }
        self.plan.changes.append(&mut puts);
        let held = held.into_iter().filter_map(|(entry, class, lost, remain)| {
            let Class::Unproved(evidence) = class else {
                return None;
            };
            Some(Held {
                entry,
                evidence,
                lost,
                remain,
            })
        });
        self.plan.held.extend(held);
        if !kept.is_empty() {
            self.plan.kept.push(Kept {
                backend: id.to_owned(),
                servers: kept,
            });
        }
    }

    /// The key and value that define a backend where it is created.
    fn definition(&self, id: &str) -> Option<(String, String)> {
        let prefix = &self.observed.prefix;
        let created = self.layout.created(prefix, id);
        created.or_else(|| self.layout.definition(prefix, id).pop())
    }

    /// Reports what a frozen backend does not get, if it is anything.
    fn add_frozen(&mut self, draft: &Draft, owned: usize, why: Freeze) {
        let shared = matches!(why, Freeze::Owners(_) | Freeze::Clusters(_));
        let frozen = Frozen {
            backend: draft.id.to_owned(),
            left_out: draft.left_out,
            ours: match why {
                // All of ours there are at risk; elsewhere only what stays against our wish counts.
                Freeze::Undefined { .. } | Freeze::Broken { .. } => owned - draft.deletes.len(),
                Freeze::Bleeds(_) | Freeze::Owners(_) | Freeze::Clusters(_) => draft.stay,
            },
            why,
        };
        let bleeds = matches!(frozen.why, Freeze::Bleeds(_));
        if bleeds || frozen.left_out + frozen.ours > 0 {
            let list = if shared {
                &mut self.plan.unshared
            } else {
                &mut self.plan.undefined
            };
            list.push(frozen);
        }
    }

    fn finish(self) -> Plan {
        let mut plan = self.plan;
        plan.kept_everywhere =
            self.backends_unready > 0 && self.backends_unready == self.backends_served;
        // A draft is not released: the second look may prove what is held in it.
        if !plan.doubts.is_empty() {
            return plan;
        }
        let would_go = plan.lost() + plan.held.len();
        if self
            .rules
            .allow_deletes
            .is_some_and(|most| would_go <= most)
        {
            for held in mem::take(&mut plan.held) {
                let permit = Permit::released(Class::Unproved(held.evidence));
                plan.changes.push(held.entry.change(permit));
            }
            plan.changes.sort_by(|a, b| order(a).cmp(&order(b)));
        }
        if let Some(limit) = self.rules.max_deletes {
            let creates = plan.changes.iter().filter(|change| {
                change.server.is_some() && matches!(change.action, Action::Create { .. })
            });
            // As the next run will count it.
            let owned = plan.counts.owned + creates.count();
            let lost = plan.lost();
            if limit.is_exceeded(lost, owned) {
                let (goes, stays): (Vec<_>, Vec<_>) = mem::take(&mut plan.changes)
                    .into_iter()
                    .partition(Change::loses);
                plan.changes = stays;
                plan.over_budget = Some(OverBudget {
                    lost,
                    owned,
                    limit,
                    entries: goes.into_iter().filter_map(Losing::of).collect(),
                });
            }
        }
        plan
    }
}

/// The order of changes: by backend; within one its definition, creates, updates, updates by which a URL
/// goes, deletes; then by id. An update may give up an address that a create brings back under another
/// id. A server that moves with further keys to another id is deleted right after that one is written:
/// they belong into one transaction.
fn order(change: &Change) -> (&str, u8, Option<&str>, bool) {
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
fn may_serve(entry: &Entry) -> bool {
    entry.url.is_some() || entry.fault.is_none()
}

impl<'o> Found<'o> {
    /// The host and port of an entry of others that has another scheme than we know to write.
    fn otherwise(&self) -> Option<(&'o Host, u16)> {
        let url = self.entry.url.as_ref()?;
        let other = url.scheme == Scheme::H2c && self.entry.fault.is_none();
        (other && !self.ownership.is_ours()).then_some((&url.host, url.port))
    }

    fn is_foreign(&self) -> bool {
        matches!(
            self.ownership,
            Ownership::Other(_) | Ownership::OutOfScope(ScopeDiffers::Cluster)
        )
    }
}

/// One backend while it is planned.
struct Draft<'a, 'w> {
    id: &'a str,
    /// Whether it gets nothing from us.
    frozen: bool,
    /// The key and value that define it, if it is to be defined.
    definition: Option<(String, String)>,
    /// The key that defines it, or will.
    defined_by: Option<Rest>,
    /// Servers of ours that pods want and that will be there, unless their update is held.
    servers: Vec<Candidate<'a, 'w>>,
    /// Hosts and ports that entries of others serve by another scheme than we know to write: a server of
    /// ours there would be the same pod a second time.
    otherwise: BTreeSet<(&'a Host, u16)>,
    /// Creates, and updates by which no URL goes.
    puts: Vec<Change>,
    /// Entries that would lose their URL.
    losing: Vec<(Losing, Loss<'a>)>,
    /// Updates by which a URL goes.
    updates: Vec<Change>,
    deletes: Vec<Change>,
    held: Vec<(Losing, Class, usize, usize)>,
    kept: Vec<Losing>,
    /// Wanted servers whose key an entry has that is not ours.
    taken: usize,
    /// Creates and updates left out because the backend is frozen.
    left_out: usize,
    /// Entries of ours that stay because it is.
    stay: usize,
}

/// A server of ours that pods want: the entry that is there, and whether it is to be written.
struct Candidate<'a, 'w> {
    wanted: &'w Wanted<'a>,
    entry: Option<&'a Entry>,
    put: bool,
}

impl<'a, 'w> Candidate<'a, 'w> {
    fn new(wanted: &'w Wanted<'a>, entry: Option<&'a Entry>, put: bool) -> Self {
        Self { wanted, entry, put }
    }
}

impl Draft<'_, '_> {
    fn put(&self, server: &str, key: String, pod: &PodName, action: Action) -> Change {
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

    /// Changes further keys of a server that is right otherwise. Its URL is written with them, as it is: so
    /// they are not written beside one that somebody has deleted meanwhile.
    fn touch(&mut self, found: &Found, pod: &PodName, reason: Reason, extra: Vec<Extra>) {
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

    fn goes(&mut self, change: Change) {
        match change.action {
            Action::Delete { .. } => self.deletes.push(change),
            Action::Create { .. } | Action::Update { .. } => self.updates.push(change),
        }
    }
}

/// The pod an entry names.
fn entry_pod(entry: &Entry) -> Option<PodName> {
    let mark = entry.mark.as_ref()?;
    Some(PodName {
        namespace: mark.namespace.clone(),
        name: mark.pod.clone()?,
    })
}
