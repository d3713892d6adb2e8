//! The planner: goes through the backends one by one, and through the servers of each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::rc::Rc;

use crate::layout::{Backend, Definition, Entry, Layout, Observed, Other};
use crate::model::{Mark, PodName, ServerUrl};
use crate::reconcile::classify::{Verdict, entry_pod, judge};
use crate::reconcile::evidence::{Evidence, Lists};
use crate::reconcile::findings;
use crate::reconcile::plan::{
    Action, Change, Conflict, Duplicate, Extra, Freeze, Frozen, Held, Kept, NoBackends, OutOfScope,
    Plan, Proof, Rule, Rules,
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
        evidence: Evidence::new(lists, rules.allow_empty),
        rules,
        layout,
        owner: rules.owner.as_str().into(),
        scope: scope.as_str().into(),
        plan: Plan {
            prefix: observed.prefix.clone(),
            scope: scope.clone(),
            revision: observed.revision,
            ..Plan::default()
        },
        backends_served: 0,
        backends_kept: 0,
    };
    let desired = planner.desired(lists);
    let defined = |backend: &Backend| matches!(backend.definition, Definition::Valid { .. });
    let own_somewhere = || {
        let entries = observed
            .backends
            .values()
            .flat_map(|backend| backend.servers.values());
        entries
            .flat_map(|entry| &entry.mark)
            .any(|mark| *mark.owner == *rules.owner)
    };
    if let Some(example) = desired.keys().next()
        && !rules.create_backends
        && !observed.backends.values().any(defined)
        && !own_somewhere()
    {
        return Err(NoBackends {
            prefix: observed.prefix.clone(),
            wanted: desired.len(),
            example: (*example).to_owned(),
        });
    }
    let ids = observed
        .backends
        .keys()
        .map(String::as_str)
        .chain(desired.keys().copied());
    let ids = ids.collect::<BTreeSet<_>>();
    for id in &ids {
        planner.backend(id, desired.get(id).map_or(&[], Vec::as_slice), &ids);
    }
    let mut plan = planner.finish();
    plan.findings = findings::find(observed, lists, rules, layout, &plan);
    Ok(plan)
}

/// A server that a pod wants to be, and the id that it would have in its backend.
struct Wanted<'l> {
    id: Cow<'l, str>,
    pod: &'l PodName,
    url: &'l ServerUrl,
}

/// An entry of a backend.
struct Found<'o> {
    id: &'o str,
    entry: &'o Entry,
    whose: Whose<'o>,
}

/// Whose an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose<'o> {
    Ours,
    Adopted(&'static str),
    /// Our owner's, from elsewhere; whether only its namespace was not listed.
    OutOfScope(bool),
    Other(&'o str),
    Unmarked,
}

impl Whose<'_> {
    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::Adopted(_))
    }
}

struct Planner<'a> {
    observed: &'a Observed,
    evidence: Evidence<'a>,
    rules: &'a Rules,
    layout: &'a dyn Layout,
    /// The rules' owner, and the scope as entries carry it.
    owner: Rc<str>,
    scope: Rc<str>,
    plan: Plan,
    backends_served: usize,
    backends_kept: usize,
}

impl<'a> Planner<'a> {
    /// Gathers what the pods want, per backend in order of the ids there, and settles who gets a key that
    /// several want.
    fn desired(&mut self, lists: &'a Lists) -> BTreeMap<&'a str, Vec<Wanted<'a>>> {
        let mut desired = BTreeMap::<&str, Vec<Wanted>>::new();
        for pod in lists.pods() {
            self.plan.counts.pods += 1;
            self.plan.counts.published += usize::from(!pod.wants.is_empty());
            for reason in &pod.skipped {
                self.plan.skipped.push((pod.name.clone(), reason.clone()));
            }
            for want in &pod.wants {
                desired.entry(&*want.backend).or_default().push(Wanted {
                    id: self.layout.id(&want.server, &self.mark(&pod.name)),
                    pod: &pod.name,
                    url: &want.url,
                });
            }
        }
        self.plan.skipped.sort();
        for (backend, wanted) in &mut desired {
            wanted.sort_by(|a, b| a.id.cmp(&b.id));
            if wanted.windows(2).any(|pair| pair[0].id == pair[1].id) {
                self.settle_duplicates(backend, wanted);
            }
        }
        desired
    }

    /// Settles which of several pods gets a key that they all want. Those that wanted another URL there
    /// are duplicates.
    fn settle_duplicates(&mut self, backend: &str, all: &mut Vec<Wanted<'a>>) {
        let there = self.observed.backends.get(backend);
        all.sort_by_cached_key(|wanted| {
            let there = there.and_then(|found| found.servers.get(&*wanted.id));
            // The one already in the store keeps it; false sorts before true.
            let same_url = there.is_some_and(|entry| entry.url.as_ref() == Some(wanted.url));
            let mark = self.mark(wanted.pod);
            let same_mark = there.is_some_and(|entry| entry.mark.as_ref() == Some(&mark));
            let id = wanted.id.clone();
            (id, !same_url, !same_mark, wanted.pod, wanted.url.port)
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
        let (owner, scope) = (Rc::clone(&self.owner), Rc::clone(&self.scope));
        self.layout.mark(owner, scope, pod)
    }

    fn whose<'o>(&self, entry: &'o Entry, wanted_urls: &BTreeSet<&ServerUrl>) -> Whose<'o> {
        let Some(mark) = &entry.mark else {
            let wanted = entry
                .url
                .as_ref()
                .is_some_and(|url| wanted_urls.contains(url));
            return if self.rules.adopt.unmarked && wanted {
                Whose::Adopted("it had no mark")
            } else {
                Whose::Unmarked
            };
        };
        let same_scope = mark.scope == self.scope;
        if mark.owner == self.owner {
            if same_scope && !mark.namespace.is_empty() && self.evidence.covers(&mark.namespace) {
                Whose::Ours
            } else if self.rules.adopt.scope {
                Whose::Adopted("it was of another scope")
            } else {
                Whose::OutOfScope(same_scope)
            }
        } else if same_scope && self.rules.adopt.owners.contains(&*mark.owner) {
            Whose::Adopted("it was another owner's")
        } else {
            Whose::Other(&mark.owner)
        }
    }

    /// Plans one backend.
    fn backend(&mut self, id: &str, wanted: &[Wanted<'a>], all: &BTreeSet<&str>) {
        let none = Backend::default();
        let backend = self.observed.backends.get(id).unwrap_or(&none);
        // They matter only to what may be adopted.
        let urls = wanted.iter().filter(|_| self.rules.adopt.unmarked);
        let urls = urls.map(|wanted| wanted.url).collect::<BTreeSet<_>>();
        let entries = backend.servers.iter().map(|(id, entry)| Found {
            id,
            entry,
            whose: self.whose(entry, &urls),
        });
        let entries = entries.collect::<Vec<_>>();
        for Found { entry, whose, .. } in &entries {
            match whose {
                Whose::Ours | Whose::Adopted(_) => self.plan.counts.owned += 1,
                Whose::OutOfScope(namespace) => self.plan.out_of_scope.push(OutOfScope {
                    key: entry.key.to_string(),
                    scope: entry
                        .mark
                        .as_ref()
                        .map_or(String::new(), |mark| mark.scope.to_string()),
                    pod: entry_pod(entry),
                    namespace: *namespace,
                }),
                Whose::Other(_) | Whose::Unmarked => self.plan.counts.foreign += 1,
            }
        }
        let owned = entries.iter().filter(|found| found.whose.is_ours()).count();
        let freeze = self.freeze(id, backend, &entries, wanted, all);
        let define = freeze.is_none()
            && !wanted.is_empty()
            && !matches!(backend.definition, Definition::Valid { .. });
        let mut work = Work {
            id,
            define,
            defined_by: match (&backend.definition, define) {
                (Definition::Valid { key }, _) => Some(key.clone()),
                (_, true) => self.definition(id).map(|(key, _)| key),
                _ => None,
            },
            owned,
            ready: 0,
            puts: Vec::new(),
            updates_of_living: Vec::new(),
            deletes: Vec::new(),
            held: Vec::new(),
            given_up: Vec::new(),
            stays: Vec::new(),
            frozen_puts: 0,
            frozen_stays: 0,
        };
        // Both are in order of their ids.
        let mut unwanted = Vec::new();
        let mut found = entries.iter().peekable();
        for wanted in wanted {
            unwanted.extend(iter::from_fn(|| {
                found.next_if(|found| *found.id < *wanted.id)
            }));
            let there = found.next_if(|found| *found.id == *wanted.id);
            self.wanted(&mut work, wanted, there, freeze.as_ref());
        }
        unwanted.extend(found);
        let stays = work.settle_adopted(&unwanted);
        let mut judged = Vec::new();
        for Found { id, entry, whose } in unwanted {
            if !whose.is_ours() {
                // Whatever stands there by somebody else's word counts as Ready, if it is a server at all.
                work.ready += usize::from(entry.fault.is_none());
            } else if self.rules.upsert_only {
                self.plan.counts.left_out += 1;
            } else {
                let adopted = matches!(whose, Whose::Adopted(_));
                let verdict = judge(&self.evidence, &stays, entry, adopted);
                judged.push((*id, *entry, verdict));
            }
        }
        self.settle(work, judged, freeze, !wanted.is_empty());
    }

    /// Whether a backend gets nothing from us.
    fn freeze(
        &self,
        id: &str,
        backend: &Backend,
        entries: &[Found],
        wanted: &[Wanted],
        all: &BTreeSet<&str>,
    ) -> Option<Freeze> {
        let owners = entries.iter().filter_map(|found| match found.whose {
            Whose::Other(owner) => Some(owner.to_owned()),
            _ => None,
        });
        let owners = owners.collect::<BTreeSet<_>>();
        match &backend.definition {
            Definition::Broken { key: _, why } => Some(Freeze::Broken {
                why: why.clone(),
                mend: self.layout.definition(&self.observed.prefix, id),
            }),
            Definition::OtherType { key: _, why } => Some(Freeze::Broken {
                why: why.clone(),
                mend: Vec::new(),
            }),
            Definition::Absent if !self.rules.create_backends || wanted.is_empty() => {
                Some(Freeze::Undefined {
                    define: self.layout.definition(&self.observed.prefix, id),
                    effect: self.layout.undefined(),
                })
            }
            Definition::Absent
                if let Some(other) = all.iter().find(|other| {
                    self.layout.bleeds(id, other) || self.layout.bleeds(other, id)
                }) =>
            {
                Some(Freeze::Bleeds((*other).to_owned()))
            }
            Definition::Absent | Definition::Valid { .. } => {
                (!owners.is_empty() && !self.rules.share_backends).then_some(Freeze::Owners(owners))
            }
        }
    }

    /// Plans one wanted server.
    fn wanted<'w>(
        &mut self,
        work: &mut Work<'w>,
        wanted: &'w Wanted<'_>,
        there: Option<&Found<'w>>,
        freeze: Option<&Freeze>,
    ) {
        let frozen = freeze.is_some();
        let server = &*wanted.id;
        let mark = self.mark(wanted.pod);
        let after = || self.layout.value(wanted.url, &mark);
        let change = |key: &str, action, proof| Change {
            backend: work.id.to_owned(),
            server: Some(server.to_owned()),
            key: key.to_owned(),
            pod: Some(wanted.pod.clone()),
            action,
            proof,
            defined_by: work.defined_by.clone(),
            extra: Vec::new(),
        };
        match there {
            None if frozen => work.frozen_puts += 1,
            None => {
                let key = self.layout.key(&self.observed.prefix, work.id, server);
                work.ready += 1;
                work.stays.push((wanted.url, server));
                let change = change(&key, Action::Create { after: after() }, Proof::Ready);
                work.puts.push(change);
            }
            Some(Found { entry, whose, .. }) if whose.is_ours() => {
                let same_url = entry.url.as_ref() == Some(wanted.url);
                work.ready += 1;
                if same_url && entry.mark.as_ref() == Some(&mark) {
                    self.plan.counts.unchanged += 1;
                    work.stays.push((wanted.url, server));
                    return;
                }
                if frozen {
                    work.frozen_puts += 1;
                    work.frozen_stays += 1;
                    return;
                }
                let action = Action::Update {
                    before: entry.value.to_vec(),
                    revision: entry.revision,
                    after: after(),
                };
                let same_ip = entry.url.as_ref().and_then(ServerUrl::ip) == wanted.url.ip();
                let same_pod = entry_pod(entry).is_none_or(|pod| pod == *wanted.pod);
                let living = entry.url.is_some() && !same_url && same_ip && same_pod;
                let proof = match whose {
                    Whose::Adopted(why) => Proof::Adopted(why),
                    _ if entry.url.is_none() => Proof::Differs("it had no valid URL"),
                    _ if living => Proof::Differs("its port or scheme"),
                    _ if !same_url => Proof::Differs("its address"),
                    _ => Proof::Differs("its pod"),
                };
                let change = change(&entry.key, action, proof);
                if living {
                    work.updates_of_living.push(change);
                } else if matches!(whose, Whose::Adopted(_)) && !same_url && entry.url.is_some() {
                    // The address that goes may be a live server's in another cluster.
                    let held = Held {
                        change,
                        rule: Rule::Adopted,
                    };
                    work.given_up.push(GivenUp {
                        held,
                        old: entry.url.as_ref(),
                        new: wanted.url,
                        server,
                    });
                } else {
                    work.stays.push((wanted.url, server));
                    work.puts.push(change);
                }
            }
            Some(Found { entry, whose, .. }) if entry.url.as_ref() == Some(wanted.url) => {
                work.ready += 1;
                match whose {
                    Whose::Unmarked => self.plan.counts.satisfied_unmarked += 1,
                    _ => self.plan.counts.satisfied_marked += 1,
                }
            }
            Some(Found { entry, .. }) => {
                work.ready += usize::from(entry.fault.is_none());
                self.plan.conflicts.push(Conflict {
                    backend: work.id.to_owned(),
                    key: entry.key.to_string(),
                    pod: wanted.pod.clone(),
                    wanted: wanted.url.clone(),
                    value: entry.value.to_vec(),
                    owner: entry.mark.as_ref().map(|mark| mark.owner.to_string()),
                });
            }
        }
    }

    /// Settles what goes, what is held and what is kept in one backend, and adds it to the plan.
    fn settle(
        &mut self,
        mut work: Work,
        judged: Vec<(&str, &Entry, Verdict)>,
        freeze: Option<Freeze>,
        wanted: bool,
    ) {
        let frozen = freeze.is_some();
        let weak =
            |verdict: &Verdict| matches!(verdict, Verdict::Weak(_) | Verdict::Doubtful { .. });
        let weak = judged
            .iter()
            .filter(|(_, _, verdict)| weak(verdict))
            .count();
        let going = weak + work.updates_of_living.len();
        let most = going >= 2 && going * 2 > work.owned;
        let majority = Rule::Majority {
            going,
            owned: work.owned,
        };
        // A backend is not emptied either as long as a list can tell more.
        let looks = most || work.ready == 0;
        let mut not_ready = Vec::new();
        for (server, entry, verdict) in judged {
            let mut held = |proof, rule| {
                let change = delete(work.id, server, entry, proof);
                work.held.push(Held { change, rule });
            };
            match verdict {
                Verdict::Proved(proof) => work.deletes.push(delete(work.id, server, entry, proof)),
                // A frozen backend loses only what is proved to be dead.
                _ if frozen => {
                    work.ready += 1;
                    work.frozen_stays += 1;
                }
                Verdict::Weak(proof) if most => {
                    held(proof, majority.clone());
                    work.ready += 1;
                }
                Verdict::Doubtful { namespace, refused } if looks => match refused {
                    Some(why) => {
                        let rule = Rule::Unproved {
                            going,
                            owned: work.owned,
                            why,
                        };
                        held(Proof::NotSelected, rule);
                    }
                    None => {
                        held(Proof::NotSelected, majority.clone());
                        self.plan.doubts.insert(namespace);
                    }
                },
                Verdict::Weak(proof) => work.deletes.push(delete(work.id, server, entry, proof)),
                Verdict::Doubtful { .. } => {
                    work.deletes
                        .push(delete(work.id, server, entry, Proof::NotSelected));
                }
                Verdict::NotReady => not_ready.push((server, entry)),
                Verdict::Held(rule, proof) => held(proof, rule),
            }
        }
        if work.ready > 0 || self.rules.strict_ready || not_ready.is_empty() {
            for (server, entry) in not_ready {
                work.deletes
                    .push(delete(work.id, server, entry, Proof::NotReady));
            }
        } else {
            self.backends_kept += 1;
            let kept = not_ready.into_iter();
            let kept =
                kept.map(|(id, entry)| (id.to_owned(), entry.key.to_string(), entry_pod(entry)));
            self.plan.kept.push(Kept {
                backend: work.id.to_owned(),
                servers: kept.collect(),
            });
        }
        if !frozen && (work.owned > 0 || wanted) {
            self.backends_served += 1;
        }
        let updates = std::mem::take(&mut work.updates_of_living);
        if most {
            let held = updates.into_iter().map(|change| Held {
                change,
                rule: majority.clone(),
            });
            work.held.extend(held);
        } else {
            work.puts.extend(updates);
        }
        if let Some(why) = freeze {
            self.frozen(&work, why);
        }
        self.add(work);
    }

    /// Adds what was settled for one backend to the plan, in order.
    fn add(&mut self, work: Work) {
        let Work {
            id,
            define,
            mut puts,
            mut deletes,
            mut held,
            ..
        } = work;
        puts.sort_by(|a, b| order(a).cmp(&order(b)));
        deletes.sort_by(|a, b| order(a).cmp(&order(b)));
        held.sort_by(|a, b| order(&a.change).cmp(&order(&b.change)));
        if let Some((key, after)) = self.definition(id).filter(|_| define) {
            self.plan.changes.push(Change {
                backend: id.to_owned(),
                server: None,
                key,
                pod: None,
                action: Action::Create { after },
                proof: Proof::Define,
                defined_by: None,
                extra: Vec::new(),
            });
        }
        self.plan.changes.append(&mut puts);
        self.plan.changes.append(&mut deletes);
        self.plan.held.append(&mut held);
    }

    /// The one key and value that define a backend, where it is one.
    fn definition(&self, id: &str) -> Option<(String, String)> {
        self.layout.definition(&self.observed.prefix, id).pop()
    }

    /// Says what a frozen backend does not get, if it is anything.
    fn frozen(&mut self, work: &Work, why: Freeze) {
        let shared = matches!(why, Freeze::Owners(_));
        let frozen = Frozen {
            backend: work.id.to_owned(),
            left_out: work.frozen_puts,
            ours: match why {
                // All of ours there are at risk; elsewhere only what stays against our wish counts.
                Freeze::Undefined { .. } | Freeze::Broken { .. } => work.owned - work.deletes.len(),
                Freeze::Bleeds(_) | Freeze::Owners(_) => work.frozen_stays,
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
        plan.kept_everywhere = self.backends_kept > 0 && self.backends_kept == self.backends_served;
        let going = plan.deletes() + plan.held.len();
        let allowed = self.rules.allow_deletes.is_some_and(|most| going <= most);
        // A draft is not lifted: the second look may prove what is held in it.
        if allowed && plan.doubts.is_empty() {
            for Held { mut change, rule } in std::mem::take(&mut plan.held) {
                change.proof = Proof::Allowed(rule);
                plan.changes.push(change);
            }
            plan.changes.sort_by(|a, b| order(a).cmp(&order(b)));
        }
        plan
    }
}

/// The order of changes: by backend; within one its definition, creates, updates, deletes; then by id.
/// An update may give up an address that a create brings back under another id.
fn order(change: &Change) -> (&str, u8, Option<&str>) {
    let step = match (&change.server, &change.action) {
        (None, _) => 0,
        (_, Action::Create { .. }) => 1,
        (_, Action::Update { .. }) => 2,
        (_, Action::Delete { .. }) => 3,
    };
    (&change.backend, step, change.server.as_deref())
}

/// One backend while it is planned.
struct Work<'w> {
    id: &'w str,
    /// Whether it is to be defined.
    define: bool,
    /// The key that defines it, or will.
    defined_by: Option<String>,
    /// How many entries are ours.
    owned: usize,
    /// How many servers will be there that are Ready, or stand for it.
    ready: usize,
    /// Creates and updates that are made.
    puts: Vec<Change>,
    /// Updates that change the port or scheme of a living pod: made if few.
    updates_of_living: Vec<Change>,
    /// Deletes that are made.
    deletes: Vec<Change>,
    /// What is held.
    held: Vec<Held>,
    /// Updates of adopted entries that would give up another address: held, unless that stays.
    given_up: Vec<GivenUp<'w>>,
    /// URLs that will be in the backend under an entry of ours, whatever else happens, and its id.
    stays: Vec<(&'w ServerUrl, &'w str)>,
    /// Creates and updates left out because the backend is frozen.
    frozen_puts: usize,
    /// Entries of ours that stay because it is.
    frozen_stays: usize,
}

/// An adopted entry that would give up its address.
struct GivenUp<'w> {
    held: Held,
    /// What it gives up.
    old: Option<&'w ServerUrl>,
    /// What it gets instead, and the id of it.
    new: &'w ServerUrl,
    server: &'w str,
}

impl<'w> Work<'w> {
    /// An adopted entry may give up its URL where that stays under another entry of ours; what it gets
    /// instead stays as well then, and may free others. Returns all URLs that stay, if anybody asks.
    fn settle_adopted(&mut self, unwanted: &[&Found]) -> BTreeMap<&'w ServerUrl, &'w str> {
        if self.given_up.is_empty() && unwanted.is_empty() {
            return BTreeMap::new();
        }
        let mut stays = self.stays.drain(..).collect::<BTreeMap<_, _>>();
        loop {
            let free = self.given_up.iter().position(|adopted| {
                let old = adopted.old;
                old.is_some_and(|url| stays.contains_key(url))
            });
            let Some(free) = free else { break };
            let GivenUp {
                held, new, server, ..
            } = self.given_up.remove(free);
            stays.insert(new, server);
            self.puts.push(held.change);
        }
        let given_up = std::mem::take(&mut self.given_up);
        self.held
            .extend(given_up.into_iter().map(|adopted| adopted.held));
        stays
    }
}

fn delete(backend: &str, server: &str, entry: &Entry, proof: Proof) -> Change {
    Change {
        backend: backend.to_owned(),
        server: Some(server.to_owned()),
        key: entry.key.to_string(),
        pod: entry_pod(entry),
        action: Action::Delete {
            before: entry.value.to_vec(),
            revision: entry.revision,
        },
        proof,
        defined_by: None,
        extra: entry.others.iter().map(delete_other).collect(),
    }
}

fn delete_other(other: &Other) -> Extra {
    Extra {
        key: other.key.to_string(),
        action: Action::Delete {
            before: other.value.to_vec(),
            revision: other.revision,
        },
    }
}
