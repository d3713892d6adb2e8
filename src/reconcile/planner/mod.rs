//! The planner: decides backend by backend, and server by server within each.

mod draft;
mod findings;
mod losses;
mod ownership;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::rc::Rc;

use crate::layout::{Definition, Entry, Layout, Observed, Other};
use crate::model::{Author, PodName};
use crate::reconcile::classify::Class;
use crate::reconcile::evidence::{Evidence, Lists};
use crate::reconcile::hold::{Permit, Rest};
use crate::reconcile::map::{SkipReason, Want};
use crate::reconcile::plan::{
    Action, Change, Conflict, Duplicate, Emptied, Extra, Freeze, Frozen, Held, Kept, LeftOut,
    Losing, NoBackends, OutOfScope, OverBudget, Plan, Reason, Rules, ScopeDiffers,
};
use crate::reconcile::planner::draft::{
    Candidate, Draft, Found, Wanted, entry_pod, is_for, may_serve, order,
};
use crate::reconcile::planner::ownership::Ownership;

/// Makes the plan. `observed` must have been listed before `lists`: otherwise a server that another run has just
/// registered would look like one whose pod is gone.
///
/// # Errors
/// [`NoBackends`]: a wrong or wiped store must not pass for success.
pub fn plan<'a>(
    observed: &'a Observed,
    lists: &'a Lists,
    rules: &'a Rules,
    layout: &'a dyn Layout,
) -> Result<Plan, NoBackends> {
    let scope = layout.scope(&rules.scope);
    let mut planner = Planner {
        observed,
        lists,
        evidence: Evidence::new(lists),
        witnesses: OnceCell::new(),
        rules,
        layout,
        author: Author::shared(&rules.owner, &scope),
        doors: HashSet::new(),
        stray: observed.stray.iter().map(|(key, _)| &**key).collect(),
        by_other_door: HashMap::new(),
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
    planner.by_other_door = planner.ids_by_other_door();
    let desired = planner.desired(lists);
    let backend = |desired: &[Desired<'a>]| desired[0].backend(observed);
    let same = |a: &Desired<'a>, b: &Desired<'a>| a.backend(observed) == b.backend(observed);
    let mut desired = desired.chunk_by(same).peekable();
    let owned = |entry: &Entry| {
        let mark = entry.mark.as_ref();
        mark.is_some_and(|mark| *mark.author.owner == *rules.owner)
    };
    let mut backends = observed.backends.values();
    if let Some(first) = desired.peek()
        && !rules.create_backends
        && !backends.any(|b| is_valid(&b.definition) || b.servers.values().any(owned))
    {
        return Err(NoBackends {
            prefix: observed.prefix.clone(),
            example: backend(first).to_owned(),
            wanted: desired.count(),
        });
    }
    let missed = missed(observed, lists);
    let ids = observed.backends.keys().map(String::as_str);
    let ids = ids.chain(desired.clone().map(backend));
    let ids = ids.collect::<BTreeSet<_>>();
    for id in &ids {
        // Both are sorted by backend.
        let pods = desired.next_if(|pods| backend(pods) == *id);
        let wanted = planner.servers(id, pods.unwrap_or_default());
        let missed = missed.get(id).map_or(&[][..], Vec::as_slice);
        planner.backend(id, &wanted, &ids, missed);
    }
    let mut plan = planner.finish();
    plan.findings = findings::find(observed, lists, layout, &plan);
    Ok(plan)
}

fn is_valid(definition: &Definition) -> bool {
    matches!(definition, Definition::Valid { .. })
}

/// A server that a pod wants to be.
struct Desired<'a> {
    pod: &'a PodName,
    want: &'a Want,
}

impl<'a> Desired<'a> {
    /// Its backend, as the store spells it.
    fn backend(&self, observed: &'a Observed) -> &'a str {
        observed.spelled(&self.want.backend)
    }
}

/// A pod that is left out, and why.
type Missed<'a> = (&'a PodName, &'a SkipReason);

/// Ready pods that name a backend and are left out by mistake, per backend.
fn missed<'a>(observed: &'a Observed, lists: &'a Lists) -> BTreeMap<&'a str, Vec<Missed<'a>>> {
    let mut missed = BTreeMap::<_, Vec<_>>::new();
    for pod in lists.pods() {
        for skipped in &pod.skipped {
            if let Some(backend) = &skipped.backend {
                let missed = missed.entry(observed.spelled(backend)).or_default();
                missed.push((&pod.name, &skipped.reason));
            }
        }
    }
    missed
}

struct Planner<'a> {
    observed: &'a Observed,
    lists: &'a Lists,
    evidence: Evidence<'a>,
    /// For each list whether a pod's absence from it counts; made when first asked for.
    witnesses: OnceCell<Vec<bool>>,
    rules: &'a Rules,
    layout: &'a dyn Layout,
    /// The author of the entries that this run writes.
    author: Rc<Author>,
    /// Scopes of the same cluster, reached through another door.
    doors: HashSet<Rc<str>>,
    /// Keys that the proxy cannot read, or that harm it.
    stray: HashSet<&'a str>,
    /// Ids of entries with those scopes, by their backend and the id that ours would have.
    by_other_door: HashMap<(&'a str, String), &'a str>,
    plan: Plan,
    backends_served: usize,
    backends_unready: usize,
}

impl<'a> Planner<'a> {
    /// Collects what pods want, sorted by backend.
    fn desired(&mut self, lists: &'a Lists) -> Vec<Desired<'a>> {
        let number = lists.pods().map(|pod| pod.wants.len()).sum();
        let mut desired = Vec::with_capacity(number);
        for pod in lists.pods() {
            self.plan.counts.pods += 1;
            self.plan.counts.published += usize::from(!pod.wants.is_empty());
            for skipped in &pod.skipped {
                self.plan.skipped.push(LeftOut {
                    pod: pod.name.clone(),
                    reason: skipped.reason.clone(),
                });
            }
            let pod_name = &pod.name;
            desired.extend(pod.wants.iter().map(|want| Desired {
                pod: pod_name,
                want,
            }));
        }
        self.plan.skipped.sort();
        // A stable sort would need as much memory again.
        desired.sort_unstable_by_key(|desired| desired.backend(self.observed));
        desired
    }

    /// The wanted servers of one backend, sorted by id. Decides which pod gets a key that several want.
    fn servers(&mut self, backend: &'a str, desired: &[Desired<'a>]) -> Vec<Wanted<'a>> {
        let wanted = desired.iter().map(|Desired { pod, want }| Wanted {
            id: self.id(backend, &want.server, pod),
            pod,
            url: &want.url,
            weight: want.weight,
        });
        let mut wanted = wanted.collect::<Vec<_>>();
        wanted.sort_by(|a, b| a.id.cmp(&b.id));
        if wanted.windows(2).any(|pair| pair[0].id == pair[1].id) {
            self.resolve_duplicates(backend, &mut wanted);
        }
        wanted
    }

    /// The id of a server. An entry written through another door keeps its spelling.
    fn id(&self, backend: &'a str, server: &'a str, pod: &PodName) -> Cow<'a, str> {
        let id = self.layout.id(server, &self.mark(pod));
        if self.by_other_door.is_empty() {
            return id;
        }
        let there = self.by_other_door.get(&(backend, id.to_string()));
        there.map_or(id, |there| Cow::Borrowed(*there))
    }

    /// Decides which of several pods gets a key that they all want. Those that want another URL there are
    /// duplicates.
    fn resolve_duplicates(&mut self, backend: &str, all: &mut Vec<Wanted<'a>>) {
        let there = self.observed.backends.get(backend);
        all.sort_by_cached_key(|wanted| {
            let there = there.and_then(|found| found.servers.get(&*wanted.id));
            // The one already in the store keeps it; false sorts before true.
            let same_url = there.is_some_and(|entry| entry.url.as_ref() == Some(wanted.url));
            let same_pod = there.is_some_and(|entry| is_for(entry, wanted.pod));
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

    /// Plans one backend. `missed`: the Ready pods that name it and are left out.
    fn backend(
        &mut self,
        id: &'a str,
        wanted: &[Wanted<'a>],
        all: &BTreeSet<&str>,
        missed: &[Missed],
    ) {
        const ABSENT: &Definition = &Definition::Absent;
        let backend = self.observed.backends.get(id);
        let definition = backend.map_or(ABSENT, |backend| &backend.definition);
        // Needed for `--adopt unmarked` alone.
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
        let created = if define { self.definition(id) } else { None };
        let mut draft = Draft {
            id,
            frozen: freeze.is_some(),
            defined_by: match definition {
                Definition::Valid { key, revision } => Some(Rest {
                    key: key.clone(),
                    revision: Some(*revision),
                }),
                _ => created.as_ref().map(|(key, _)| Rest {
                    key: key.clone(),
                    revision: None,
                }),
            },
            definition: created,
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
        // Both are sorted by id.
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
        if !missed.is_empty()
            && found.len() + created == draft.deletes.len()
            && is_valid(definition)
        {
            let pods = missed.iter();
            let pods = pods.map(|(pod, reason)| LeftOut {
                pod: (*pod).clone(),
                reason: (*reason).clone(),
            });
            self.plan.emptied.push(Emptied {
                backend: id.to_owned(),
                pods: pods.collect(),
            });
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
                        .map_or(String::new(), |mark| mark.author.scope.to_string()),
                    pod: entry_pod(entry),
                    differs: *differs,
                }),
                Ownership::Other(_) | Ownership::Unmarked => self.plan.counts.foreign += 1,
            }
        }
    }

    /// Why a backend is frozen, if it is.
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
                        .map(|mark| mark.author.scope.to_string())
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

    /// Another backend with which this one would share servers, because one id is a prefix of the other. Ids are
    /// sorted: longer ones follow, shorter ones are this id's own prefixes.
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
        if same_url && in_order && is_for(entry, wanted.pod) {
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
                if is_for(entry, wanted.pod) {
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
                owner: entry
                    .mark
                    .as_ref()
                    .map(|mark| mark.author.owner.to_string()),
            });
        } else if found.ownership == Ownership::Unmarked {
            self.plan.counts.satisfied_unmarked += 1;
        } else {
            self.plan.counts.satisfied_marked += 1;
        }
    }

    /// Adds one backend's changes to the plan, in order.
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

    /// The key and value that define a backend where it is created. None where the key is there and the proxy
    /// cannot read it: that is a finding, and creating it would fail.
    fn definition(&self, id: &str) -> Option<(String, String)> {
        let prefix = &self.observed.prefix;
        let created = self.layout.created(prefix, id);
        let definition = created.or_else(|| self.layout.definition(prefix, id).pop());
        definition.filter(|(key, _)| !self.stray.contains(&**key))
    }

    /// Reports a frozen backend, if anything was left out or stays in it.
    fn add_frozen(&mut self, draft: &Draft, owned: usize, why: Freeze) {
        let shared = matches!(why, Freeze::Owners(_) | Freeze::Clusters(_));
        let frozen = Frozen {
            backend: draft.id.to_owned(),
            left_out: draft.left_out,
            ours: match why {
                // All of ours there are at risk; elsewhere only entries count that would otherwise be deleted.
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
