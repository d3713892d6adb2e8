//! The losses of a backend: which entries would lose their URL, and what becomes of them.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use crate::layout::Other;
use crate::reconcile::classify::{Class, Classified, Unproved, classify};
use crate::reconcile::evidence::Absence;
use crate::reconcile::hold::{self, Kind, Loss, Permit, Rest, Server, Verdict};
use crate::reconcile::map::State;
use crate::reconcile::plan::{Extra, Losing, Reason};
use crate::reconcile::planner::Planner;
use crate::reconcile::planner::draft::{Candidate, Draft, Found, Wanted, entry_pod, may_serve};
use crate::reconcile::planner::ownership::Ownership;

impl<'a> Planner<'a> {
    /// Plans one entry that no pod wants at its id.
    pub(super) fn unwanted(&mut self, draft: &mut Draft<'a, '_>, found: &Found<'a>) {
        if !found.ownership.is_ours() {
            return;
        }
        if self.rules.upsert_only {
            self.plan.counts.left_out += 1;
        } else {
            self.losing(draft, found, None);
        }
    }

    /// Records an entry of ours that would lose its URL. For an update: the new value, the index of the server in
    /// the draft, and what wants it.
    pub(super) fn losing(
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
    pub(super) fn resolve_losses(&mut self, draft: &mut Draft<'a, '_>, found: &[Found<'a>]) {
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

    /// Moves the further keys of an entry to the id under which its URL stays.
    pub(super) fn move_others(
        &self,
        draft: &mut Draft<'a, '_>,
        found: &[Found<'a>],
        wanted: &[Wanted<'a>],
    ) {
        let moves = draft.deletes.iter().filter_map(|delete| {
            let id = delete.stays_as()?.to_owned();
            (!delete.extra.is_empty()).then(|| (delete.server.clone(), id))
        });
        let moves = moves.collect::<Vec<_>>();
        if moves.is_empty() {
            return;
        }
        let puts = draft.puts.iter().enumerate();
        let puts = puts.filter_map(|(place, put)| Some((put.server.clone()?, place)));
        let mut puts = puts.collect::<HashMap<_, _>>();
        for (from, to) in moves {
            // Both are sorted by id.
            let entry = |id: &str| {
                let place = found.binary_search_by(|found| found.id.cmp(id));
                place.ok().map(|place| &found[place])
            };
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
            let put = puts.get(&to).map(|place| &mut draft.puts[*place]);
            if let Some(put) = put {
                moved.retain(|extra| put.writes().all(|write| write.key != extra.key));
                put.extra.append(&mut moved);
            } else if !moved.is_empty()
                && let Some(found) = entry(&to)
                && let Ok(place) = wanted.binary_search_by(|wanted| (*wanted.id).cmp(&*to))
            {
                let wanted = &wanted[place];
                puts.insert(to, draft.puts.len());
                draft.touch(found, wanted.pod, Reason::Moved(from.id.to_owned()), moved);
            }
        }
    }
}
