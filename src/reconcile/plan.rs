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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::layout::{Backend, Definition, Entry, Layout, Observed};
use crate::model::{BackendId, Mark, PodName, Scope, ServerUrl};
use crate::reconcile::desired::{Reason, SeenPod, State, Want};
use crate::reconcile::evidence::{Evidence, Lists, Whereabouts};
use crate::reconcile::findings::{self, Finding};

/// What a run may do.
#[derive(Debug, Clone)]
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

/// One change of one key.
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
    /// It has no definition; the key and value that would define it.
    Undefined {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Its definition is not valid: the key, and what is wrong.
    Broken {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// It would be created, but its id and this one begin alike, and would share servers.
    Bleeds(String),
    /// These owners have servers in it.
    Owners(BTreeSet<String>),
}

/// The store defines no backend at all, and none is to be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no backend is defined under `{prefix}/backends/`, and pods want {wanted}")]
pub struct NoBackends {
    /// The prefix that was looked at.
    pub prefix: String,
    /// How many backends the pods want.
    pub wanted: usize,
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

/// Decides. `observed` was listed before `lists`: otherwise what another run has just registered would
/// look like something whose pod is gone.
///
/// # Errors
/// [`NoBackends`]: a wrong or wiped store must not look like success.
pub fn plan(
    observed: &Observed,
    lists: &Lists,
    rules: &Rules,
    layout: &Layout,
) -> Result<Plan, NoBackends> {
    let scope = layout.scope(&rules.scope);
    let mut planner = Planner {
        observed,
        evidence: Evidence::new(lists, rules.allow_empty),
        rules,
        layout,
        scope: &scope,
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
    let wanted = desired.len();
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
    if wanted > 0
        && !rules.create_backends
        && !observed.backends.values().any(defined)
        && !own_somewhere()
    {
        return Err(NoBackends {
            prefix: observed.prefix.clone(),
            wanted,
        });
    }
    let ids = observed
        .backends
        .keys()
        .map(String::as_str)
        .chain(desired.keys().copied());
    let ids = ids.collect::<BTreeSet<_>>();
    let nothing = BTreeMap::new();
    for id in &ids {
        planner.backend(id, desired.get(id).unwrap_or(&nothing), &ids);
    }
    let mut plan = planner.finish();
    plan.findings = findings::find(observed, lists, rules, layout, &plan);
    Ok(plan)
}

/// A server wanted by a pod, placed by the layout.
struct Wanted<'l> {
    pod: &'l PodName,
    url: &'l ServerUrl,
    mark: Mark,
}

/// The wanted servers of one backend, by the id in their key.
type WantedServers<'l> = BTreeMap<String, Wanted<'l>>;

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

/// What becomes of an entry of ours that is not wanted at its key.
enum Verdict {
    Proved(Proof),
    /// Not proved; goes only if few go this way.
    Weak(Proof),
    /// Not proved; goes only if few go this way, and a list without selectors would prove it.
    Doubtful {
        namespace: String,
        refused: Option<String>,
    },
    NotReady,
    Held(Rule, Proof),
}

struct Planner<'a> {
    observed: &'a Observed,
    evidence: Evidence<'a>,
    rules: &'a Rules,
    layout: &'a Layout,
    scope: &'a str,
    plan: Plan,
    backends_served: usize,
    backends_kept: usize,
}

impl<'a> Planner<'a> {
    /// Gathers what the pods want, and settles who gets a key that several want.
    fn desired(&mut self, lists: &'a Lists) -> BTreeMap<&'a str, WantedServers<'a>> {
        type Candidates<'l> = BTreeMap<(&'l str, String), Vec<(&'l SeenPod, &'l Want, Mark)>>;
        let mut candidates = Candidates::new();
        for pod in lists.pods() {
            self.plan.counts.pods += 1;
            self.plan.counts.published += usize::from(!pod.wants.is_empty());
            for reason in &pod.skipped {
                self.plan.skipped.push((pod.name.clone(), reason.clone()));
            }
            for want in &pod.wants {
                let mark = self.layout.mark(&self.rules.owner, self.scope, &pod.name);
                let id = self.layout.id(&want.server, &mark);
                candidates
                    .entry((&want.backend, id))
                    .or_default()
                    .push((pod, want, mark));
            }
        }
        self.plan.skipped.sort();
        let mut desired = BTreeMap::<&str, WantedServers>::new();
        for ((backend, id), mut candidates) in candidates {
            let there = self
                .observed
                .backends
                .get(backend)
                .and_then(|found| found.servers.get(&id));
            candidates.sort_by_key(|(pod, want, mark)| {
                // The one already in the store keeps it; false sorts before true.
                let same_url = there.is_some_and(|entry| entry.url.as_ref() == Some(&want.url));
                let same_mark = there.is_some_and(|entry| entry.mark.as_ref() == Some(mark));
                (!same_url, !same_mark, &pod.name, want.url.port)
            });
            let mut candidates = candidates.into_iter();
            let Some((pod, want, mark)) = candidates.next() else {
                continue;
            };
            for (loser, other, _) in candidates {
                if other.url != want.url {
                    self.plan.duplicates.push(Duplicate {
                        key: self.layout.key(&self.observed.prefix, backend, &id),
                        winner: pod.name.clone(),
                        loser: loser.name.clone(),
                        url: other.url.clone(),
                    });
                }
            }
            let wanted = Wanted {
                pod: &pod.name,
                url: &want.url,
                mark,
            };
            desired.entry(backend).or_default().insert(id, wanted);
        }
        desired
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
        let same_scope = *mark.scope == *self.scope;
        if *mark.owner == *self.rules.owner {
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
    fn backend(&mut self, id: &str, wanted: &WantedServers<'a>, all: &BTreeSet<&str>) {
        let none = Backend::default();
        let backend = self.observed.backends.get(id).unwrap_or(&none);
        let urls = wanted
            .values()
            .map(|wanted| wanted.url)
            .collect::<BTreeSet<_>>();
        let entries = backend
            .servers
            .iter()
            .map(|(server, entry)| (server.as_str(), (entry, self.whose(entry, &urls))))
            .collect::<BTreeMap<_, _>>();
        for (entry, whose) in entries.values() {
            match whose {
                Whose::Ours | Whose::Adopted(_) => self.plan.counts.owned += 1,
                Whose::OutOfScope(namespace) => self.plan.out_of_scope.push(OutOfScope {
                    key: entry.key.clone(),
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
        let owned = entries
            .values()
            .filter(|(_, whose)| whose.is_ours())
            .count();
        let freeze = self.freeze(id, backend, &entries, wanted, all);
        let define = freeze.is_none()
            && !wanted.is_empty()
            && !matches!(backend.definition, Definition::Valid { .. });
        let mut work = Work {
            id,
            define,
            defined_by: match (&backend.definition, define) {
                (Definition::Valid { key }, _) => Some(key.clone()),
                (_, true) => Some(self.layout.definition(&self.observed.prefix, id).0),
                _ => None,
            },
            owned,
            ready: 0,
            puts: Vec::new(),
            updates_of_living: Vec::new(),
            held: Vec::new(),
            stays: BTreeMap::new(),
            frozen_puts: 0,
            frozen_stays: 0,
        };
        for (server, wanted) in wanted {
            self.wanted(
                &mut work,
                server,
                wanted,
                entries.get(server.as_str()),
                freeze.as_ref(),
            );
        }
        work.settle_adopted();
        let mut judged = Vec::new();
        for (server, (entry, whose)) in &entries {
            if !whose.is_ours() {
                // Whatever stands there by somebody else's word counts as Ready.
                work.ready += usize::from(!wanted.contains_key(*server));
            } else if !wanted.contains_key(*server) {
                if self.rules.upsert_only {
                    self.plan.counts.left_out += 1;
                } else {
                    judged.push((*server, *entry, self.judge(&work, entry, *whose)));
                }
            }
        }
        self.deletes(work, judged, freeze, !wanted.is_empty());
    }

    /// Whether a backend gets nothing from us.
    fn freeze(
        &self,
        id: &str,
        backend: &Backend,
        entries: &BTreeMap<&str, (&Entry, Whose)>,
        wanted: &WantedServers,
        all: &BTreeSet<&str>,
    ) -> Option<Freeze> {
        let owners = entries.values().filter_map(|(_, whose)| match whose {
            Whose::Other(owner) => Some((*owner).to_owned()),
            _ => None,
        });
        let owners = owners.collect::<BTreeSet<_>>();
        let (key, value) = self.layout.definition(&self.observed.prefix, id);
        match &backend.definition {
            Definition::Broken { key, why } => Some(Freeze::Broken {
                key: key.clone(),
                why: why.clone(),
            }),
            Definition::Absent if !self.rules.create_backends || wanted.is_empty() => {
                Some(Freeze::Undefined { key, value })
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
    fn wanted(
        &mut self,
        work: &mut Work,
        server: &str,
        wanted: &Wanted<'a>,
        there: Option<&(&Entry, Whose)>,
        freeze: Option<&Freeze>,
    ) {
        let frozen = freeze.is_some();
        let after = self.layout.value(wanted.url, &wanted.mark);
        let change = |key: &str, action, proof| Change {
            backend: work.id.to_owned(),
            server: Some(server.to_owned()),
            key: key.to_owned(),
            pod: Some(wanted.pod.clone()),
            action,
            proof,
            defined_by: work.defined_by.clone(),
        };
        match there {
            None if frozen => work.frozen_puts += 1,
            None => {
                let key = self.layout.key(&self.observed.prefix, work.id, server);
                work.ready += 1;
                work.stays.insert(wanted.url.clone(), server.to_owned());
                let change = change(&key, Action::Create { after }, Proof::Ready);
                work.puts.push(change);
            }
            Some((entry, whose)) if whose.is_ours() => {
                let same_url = entry.url.as_ref() == Some(wanted.url);
                work.ready += 1;
                if same_url && entry.mark.as_ref() == Some(&wanted.mark) {
                    self.plan.counts.unchanged += 1;
                    work.stays.insert(wanted.url.clone(), server.to_owned());
                    return;
                }
                if frozen {
                    work.frozen_puts += 1;
                    work.frozen_stays += 1;
                    return;
                }
                let action = Action::Update {
                    before: entry.value.clone(),
                    revision: entry.revision,
                    after,
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
                    work.held.push((
                        Held {
                            change,
                            rule: Rule::Adopted,
                        },
                        entry.url.clone(),
                    ));
                } else {
                    work.stays.insert(wanted.url.clone(), server.to_owned());
                    work.puts.push(change);
                }
            }
            Some((entry, whose)) if entry.url.as_ref() == Some(wanted.url) => {
                work.ready += 1;
                match whose {
                    Whose::Unmarked => self.plan.counts.satisfied_unmarked += 1,
                    _ => self.plan.counts.satisfied_marked += 1,
                }
            }
            Some((entry, _)) => {
                work.ready += 1;
                self.plan.conflicts.push(Conflict {
                    backend: work.id.to_owned(),
                    key: entry.key.clone(),
                    pod: wanted.pod.clone(),
                    wanted: wanted.url.clone(),
                    value: entry.value.clone(),
                    owner: entry.mark.as_ref().map(|mark| mark.owner.to_string()),
                });
            }
        }
    }

    /// Judges one entry of ours that is not wanted at its key.
    fn judge(&self, work: &Work, entry: &Entry, whose: Whose) -> Verdict {
        let adopted = matches!(whose, Whose::Adopted(_));
        if let Some(id) = entry.url.as_ref().and_then(|url| work.stays.get(url)) {
            return Verdict::Proved(Proof::Stays(id.clone()));
        }
        let Some(mark) = &entry.mark else {
            // Unmarked entries are adopted for a URL that is wanted here; it is not published yet.
            return Verdict::Held(Rule::Adopted, Proof::Gone);
        };
        let ip = entry.url.as_ref().and_then(ServerUrl::ip);
        let found = self
            .evidence
            .whereabouts(&mark.namespace, mark.pod.as_deref(), ip);
        if let Whereabouts::There(pod) = found {
            return match pod.state {
                State::Terminating => Verdict::Proved(Proof::Terminating),
                State::Completed => Verdict::Proved(Proof::Completed),
                State::NoAddress => Verdict::Proved(Proof::NoAddress),
                State::NotReady => Verdict::NotReady,
                State::Live => Verdict::Weak(Proof::Unwanted(pod.skipped.first().cloned())),
            };
        }
        if adopted {
            return Verdict::Held(Rule::Adopted, Proof::Gone);
        }
        if let Some(ip) = ip {
            let other = self.evidence.live_at(ip).find(|pod| {
                // Where the entry names no pod, one of its namespace would have been found above.
                mark.pod.as_deref() != Some(&*pod.name.name)
                    || *pod.name.namespace != *mark.namespace
            });
            if let Some(other) = other {
                return Verdict::Proved(Proof::Reused(other.name.clone()));
            }
        }
        match found {
            Whereabouts::There(_) => unreachable!("answered above"),
            Whereabouts::Elsewhere(pod) => Verdict::Proved(match pod.state {
                State::Terminating => Proof::Terminating,
                State::Completed => Proof::Completed,
                _ if entry.url.is_none() => Proof::NoUrl,
                _ => pod
                    .ips
                    .first()
                    .map_or(Proof::NoAddress, |ip| Proof::Moved(*ip)),
            }),
            Whereabouts::Gone => Verdict::Proved(Proof::Gone),
            Whereabouts::EmptyList => Verdict::Held(Rule::EmptyList, Proof::Gone),
            Whereabouts::NotSelected => Verdict::Doubtful {
                namespace: mark.namespace.to_string(),
                refused: None,
            },
            Whereabouts::Refused(why) => Verdict::Doubtful {
                namespace: mark.namespace.to_string(),
                refused: Some(why.to_owned()),
            },
        }
    }

    /// Settles what goes, what is held and what is kept in one backend, and adds it to the plan.
    fn deletes(
        &mut self,
        mut work: Work,
        judged: Vec<(&str, &Entry, Verdict)>,
        freeze: Option<Freeze>,
        wanted: bool,
    ) {
        let frozen = freeze.is_some();
        let weak = judged
            .iter()
            .filter(|(_, _, verdict)| {
                matches!(verdict, Verdict::Weak(_) | Verdict::Doubtful { .. })
            })
            .count();
        let going = weak + work.updates_of_living.len();
        let most = going >= 2 && going * 2 > work.owned;
        let majority = Rule::Majority {
            going,
            owned: work.owned,
        };
        let change = |server: &str, entry: &Entry, proof| Change {
            backend: work.id.to_owned(),
            server: Some(server.to_owned()),
            key: entry.key.clone(),
            pod: entry_pod(entry),
            action: Action::Delete {
                before: entry.value.clone(),
                revision: entry.revision,
            },
            proof,
            defined_by: None,
        };
        let mut deletes = Vec::new();
        let mut held = Vec::new();
        let mut not_ready = Vec::new();
        let mut doubts = BTreeSet::new();
        for (server, entry, verdict) in judged {
            match verdict {
                Verdict::Proved(proof) => deletes.push(change(server, entry, proof)),
                // A frozen backend loses only what is proved to be dead.
                _ if frozen => {
                    work.ready += 1;
                    work.frozen_stays += 1;
                }
                Verdict::Weak(proof) if most => {
                    work.ready += 1;
                    held.push(Held {
                        change: change(server, entry, proof),
                        rule: majority.clone(),
                    });
                }
                Verdict::Weak(proof) => deletes.push(change(server, entry, proof)),
                Verdict::Doubtful { namespace, refused } if most => {
                    let rule = match refused {
                        Some(why) => Rule::Unproved {
                            going,
                            owned: work.owned,
                            why,
                        },
                        None => {
                            doubts.insert(namespace);
                            majority.clone()
                        }
                    };
                    held.push(Held {
                        change: change(server, entry, Proof::NotSelected),
                        rule,
                    });
                }
                Verdict::Doubtful { .. } => {
                    deletes.push(change(server, entry, Proof::NotSelected));
                }
                Verdict::NotReady => not_ready.push((server, entry)),
                Verdict::Held(rule, proof) => {
                    held.push(Held {
                        change: change(server, entry, proof),
                        rule,
                    });
                }
            }
        }
        if work.ready > 0 || self.rules.strict_ready || not_ready.is_empty() {
            let gone = not_ready.into_iter();
            deletes.extend(gone.map(|(server, entry)| change(server, entry, Proof::NotReady)));
            deletes.sort_by(|a, b| a.server.cmp(&b.server));
        } else {
            self.backends_kept += 1;
            let kept = not_ready.into_iter();
            let kept = kept.map(|(id, entry)| (id.to_owned(), entry.key.clone(), entry_pod(entry)));
            self.plan.kept.push(Kept {
                backend: work.id.to_owned(),
                servers: kept.collect(),
            });
        }
        if !frozen && (work.owned > 0 || wanted) {
            self.backends_served += 1;
        }
        if most {
            let updates = work.updates_of_living.into_iter();
            held.extend(updates.map(|change| Held {
                change,
                rule: majority.clone(),
            }));
        } else {
            work.puts.append(&mut work.updates_of_living);
        }
        held.extend(work.held.into_iter().map(|(held, _)| held));
        held.sort_by(|a, b| a.change.server.cmp(&b.change.server));
        work.puts.sort_by(|a, b| a.server.cmp(&b.server));
        if work.define {
            let (key, after) = self.layout.definition(&self.observed.prefix, work.id);
            self.plan.changes.push(Change {
                backend: work.id.to_owned(),
                server: None,
                key,
                pod: None,
                action: Action::Create { after },
                proof: Proof::Define,
                defined_by: None,
            });
        }
        self.plan.changes.append(&mut work.puts);
        self.plan.changes.append(&mut deletes);
        self.plan.held.append(&mut held);
        self.plan.doubts.append(&mut doubts);
        if let Some(why) = freeze {
            let frozen = Frozen {
                backend: work.id.to_owned(),
                left_out: work.frozen_puts,
                ours: match why {
                    // All of ours there are at risk; elsewhere only what stays against our wish counts.
                    Freeze::Undefined { .. } | Freeze::Broken { .. } => {
                        work.owned - self.deleted(work.id)
                    }
                    Freeze::Bleeds(_) | Freeze::Owners(_) => work.frozen_stays,
                },
                why,
            };
            match frozen.why {
                Freeze::Owners(_) if frozen.left_out + frozen.ours > 0 => {
                    self.plan.unshared.push(frozen);
                }
                Freeze::Owners(_) => {}
                _ if frozen.left_out + frozen.ours > 0 => self.plan.undefined.push(frozen),
                _ => {}
            }
        }
    }

    fn deleted(&self, backend: &str) -> usize {
        let changes = self.plan.changes.iter().rev();
        let own = changes.take_while(|change| change.backend == backend);
        own.filter(|change| matches!(change.action, Action::Delete { .. }))
            .count()
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

/// The order of changes: by backend; within one its definition, puts, deletes; then by id.
fn order(change: &Change) -> (&str, u8, Option<&str>) {
    let step = match (&change.server, &change.action) {
        (None, _) => 0,
        (_, Action::Create { .. } | Action::Update { .. }) => 1,
        (_, Action::Delete { .. }) => 2,
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
    /// Updates of adopted entries that give up another address, with their old URL.
    held: Vec<(Held, Option<ServerUrl>)>,
    /// URLs that will be in the backend under an entry of ours, whatever else happens, and its id.
    stays: BTreeMap<ServerUrl, String>,
    /// Creates and updates left out because the backend is frozen.
    frozen_puts: usize,
    /// Entries of ours that stay because it is.
    frozen_stays: usize,
}

impl Work<'_> {
    /// An adopted entry may give up its URL where that stays under another entry of ours.
    fn settle_adopted(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (free, held) = held.into_iter().partition::<Vec<_>, _>(|(_, url)| {
            url.as_ref().is_some_and(|url| self.stays.contains_key(url))
        });
        self.held = held;
        self.puts
            .extend(free.into_iter().map(|(held, _)| held.change));
    }
}

fn entry_pod(entry: &Entry) -> Option<PodName> {
    let mark = entry.mark.as_ref()?;
    Some(PodName {
        namespace: mark.namespace.clone(),
        name: mark.pod.clone()?,
    })
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Majority { going, owned } => {
                write!(
                    f,
                    "{going} of {owned} would go, and their pods are not known to be gone"
                )
            }
            Self::Unproved { going, owned, .. } => {
                write!(
                    f,
                    "{going} of {owned} would go, and the list that would tell was refused"
                )
            }
            Self::EmptyList => f.write_str("the list that should show the pod has no pod at all"),
            Self::Adopted => {
                f.write_str("adopted, and its pod is not seen here: that proves nothing")
            }
        }
    }
}
