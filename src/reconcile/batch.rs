//! Packs a plan's changes into transactions.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::layout::{Layout, Observed};
use crate::model::{Expect, Guard, Limits, Op, Transaction, Unchanged};
use crate::reconcile::hold::Rest;
use crate::reconcile::plan::{Change, Plan, Write};

/// The largest backend, in entries, whose whole range is compared by each transaction that touches it. In larger
/// ones only transactions that remove something compare it: the comparison costs etcd time per key.
const RANGE_COMPARED: usize = 1_000;

/// A transaction and the changes it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The transaction to send.
    pub transaction: Transaction,
    /// The changes it makes, as a range of the plan's.
    pub changes: Range<usize>,
}

/// Packs changes in their order: a backend's go into one transaction where they fit, whole backends
/// together. Each change is guarded by what was read of its key and of the keys it rests on: its
/// backend's definition, and the entry that stays in place of a lost one. Where the store compares ranges
/// nothing else may have been written in the backend either.
#[must_use]
pub(crate) fn batches(
    plan: &Plan,
    layout: &dyn Layout,
    observed: &Observed,
    limits: Limits,
) -> Vec<Batch> {
    let since = observed.revision.filter(|_| limits.ranges);
    let ranges = |backend: &str| {
        let since = since?;
        let entries = observed.backends.get(backend);
        Some(Ranged {
            range: Unchanged {
                prefix: layout.range(&plan.prefix, backend),
                since,
            },
            always: entries.map_or(0, |found| found.servers.len()) <= RANGE_COMPARED,
        })
    };
    pack(&plan.changes, limits, &ranges)
}

/// A backend's key range, and whether each transaction that touches the backend compares it.
struct Ranged {
    range: Unchanged,
    always: bool,
}

fn pack(changes: &[Change], limits: Limits, ranges: &dyn Fn(&str) -> Option<Ranged>) -> Vec<Batch> {
    let mut packer = Packer {
        limits,
        full: Vec::new(),
        open: Open::default(),
    };
    let mut start = 0;
    for group in changes.chunk_by(|a, b| a.backend == b.backend) {
        let range = start..start + group.len();
        start = range.end;
        let ranged = ranges(&group[0].backend);
        let mut alone = Open::default();
        for change in group {
            alone.add(change, ranged.as_ref());
        }
        if !packer.open.fits(&alone, limits) {
            packer.close(range.start);
        }
        if packer.open.fits(&alone, limits) {
            packer.open.append(alone, range.start);
            continue;
        }
        let mut index = range.start;
        // The delete of a server that moves to another id stays with the put of its keys there.
        for unit in group.chunk_by(|put, delete| {
            delete
                .moves_to()
                .is_some_and(|to| put.server.as_deref() == Some(to))
        }) {
            let mut next = Open::default();
            for change in unit {
                next.add(change, ranged.as_ref());
            }
            if !packer.open.fits(&next, limits) {
                packer.close(index);
            }
            packer.open.append(next, index);
            index += unit.len();
        }
    }
    packer.close(changes.len());
    packer.full
}

struct Packer {
    limits: Limits,
    full: Vec<Batch>,
    open: Open,
}

impl Packer {
    /// Finishes the open transaction; the next one begins with the change at `next`.
    fn close(&mut self, next: usize) {
        let Open {
            ops,
            written,
            rests,
            ranges,
            start,
            ..
        } = std::mem::take(&mut self.open);
        if ops.is_empty() {
            return;
        }
        // A single change is not split.
        debug_assert!(ops.len() <= self.limits.operations || next - start == 1);
        let guard = |(key, expect): (&String, &Expect)| Guard {
            key: key.clone(),
            expect: *expect,
        };
        let guards = rests.iter().chain(&written).map(guard);
        self.full.push(Batch {
            transaction: Transaction {
                guards: guards.collect(),
                unchanged: ranges.into_values().collect(),
                ops,
            },
            changes: start..next,
        });
    }
}

#[derive(Default)]
struct Open {
    ops: Vec<Op>,
    /// The keys that are written, and what was read of them.
    written: BTreeMap<String, Expect>,
    /// The keys that changes rest on and that are not written here, with what was read of them.
    rests: BTreeMap<String, Expect>,
    /// The ranges that are compared, by their prefix.
    ranges: BTreeMap<String, Unchanged>,
    bytes: usize,
    start: usize,
}

impl Open {
    fn add(&mut self, change: &Change, ranged: Option<&Ranged>) {
        let rests = change.permit().and_then(|permit| permit.rests_on());
        for Rest { key, revision } in change.defined_by.iter().chain(rests) {
            let expect = revision.map_or(Expect::Present, Expect::Revision);
            if self.written.contains_key(key) {
                continue;
            }
            if self.rests.insert(key.clone(), expect).is_none() {
                self.bytes += key.len();
            }
        }
        if let Some(Ranged { range, always }) = ranged
            && (*always || change.permit().is_some())
            && self
                .ranges
                .insert(range.prefix.clone(), range.clone())
                .is_none()
        {
            self.bytes += 2 * range.prefix.len();
        }
        for write in change.writes() {
            self.write(write);
        }
    }

    fn write(&mut self, Write { key, before, after }: Write) {
        let expect = before.map_or(Expect::Absent, |(_, revision)| Expect::Revision(revision));
        let key = key.to_owned();
        self.bytes += 2 * key.len() + after.map_or(0, str::len);
        self.rests.remove(&key);
        self.written.insert(key.clone(), expect);
        self.ops.push(match after {
            Some(after) => Op::Put {
                key,
                value: after.to_owned(),
            },
            None => Op::Delete { key },
        });
    }

    fn fits(&self, more: &Self, limits: Limits) -> bool {
        /// The most that a guard or an operation adds on the wire to its key and value, in bytes.
        const FRAME: usize = 32;
        let operations = self.ops.len() + more.ops.len();
        let rests = more
            .rests
            .keys()
            .filter(|key| !self.rests.contains_key(*key) && !self.written.contains_key(*key));
        let ranges = more
            .ranges
            .keys()
            .filter(|key| !self.ranges.contains_key(*key));
        let guards = self.guards() + more.written.len() + rests.count() + ranges.count();
        let bytes = self.bytes + more.bytes + FRAME * (operations + guards);
        operations <= limits.operations && guards <= limits.guards && bytes <= limits.bytes
    }

    fn guards(&self) -> usize {
        self.written.len() + self.rests.len() + self.ranges.len()
    }

    /// Adds changes, of which the first is the plan's at `start`.
    fn append(&mut self, mut more: Self, start: usize) {
        if self.ops.is_empty() {
            self.start = start;
        }
        self.ops.append(&mut more.ops);
        // Not `append`, which rebuilds the whole map: a file takes everything in one transaction.
        for key in more.written.keys() {
            self.rests.remove(key);
        }
        let rests = more.rests.into_iter();
        let rests = rests.filter(|(key, _)| !self.written.contains_key(key));
        self.rests.extend(rests);
        self.written.extend(more.written);
        self.ranges.extend(more.ranges);
        self.bytes += more.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::plan::{Action, Extra, Reason};

    const ETCD: Limits = Limits {
        operations: 128,
        guards: 128,
        bytes: 1 << 20,
        ranges: true,
    };

    fn create(backend: &str, server: usize) -> Change {
        Change {
            backend: backend.to_owned(),
            server: Some(format!("{server:04}")),
            key: format!("/b/{backend}/{server:04}"),
            pod: None,
            action: Action::Create {
                after: "x".repeat(100),
                reason: Reason::Ready,
            },
            defined_by: Some(Rest {
                key: format!("/b/{backend}/backend"),
                revision: Some(1),
            }),
            extra: Vec::new(),
        }
    }

    fn sizes(changes: &[Change], limits: Limits) -> Vec<(usize, usize)> {
        let batches = pack(changes, limits, &|_| None);
        let covered = batches
            .iter()
            .flat_map(|batch| batch.changes.clone())
            .collect::<Vec<_>>();
        assert_eq!(
            covered,
            (0..changes.len()).collect::<Vec<_>>(),
            "each change once, in order"
        );
        batches
            .iter()
            .map(|batch| {
                assert_eq!(batch.transaction.ops.len(), batch.changes.len());
                (batch.transaction.ops.len(), batch.transaction.guards.len())
            })
            .collect()
    }

    #[test]
    fn whole_backends_are_packed_together() {
        let changes = |sizes: &[(&str, usize)]| {
            let backends = sizes
                .iter()
                .flat_map(|(id, n)| (0..*n).map(|i| create(id, i)));
            backends.collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[], ETCD), []);
        assert_eq!(sizes(&changes(&[("a", 3), ("b", 3)]), ETCD), [(6, 8)]);
        assert_eq!(
            sizes(&changes(&[("a", 100), ("b", 100)]), ETCD),
            [(100, 101), (100, 101)]
        );
        assert_eq!(sizes(&changes(&[("a", 127)]), ETCD), [(127, 128)]);
        assert_eq!(sizes(&changes(&[("a", 128)]), ETCD), [(127, 128), (1, 2)]);
        assert_eq!(sizes(&changes(&[("a", 200)]), ETCD), [(127, 128), (73, 74)]);
        assert_eq!(
            sizes(&changes(&[("a", 1), ("b", 200)]), ETCD),
            [(1, 2), (127, 128), (73, 74)]
        );
    }

    #[test]
    fn bytes_count_too() {
        let limits = Limits {
            bytes: 2_000,
            ..ETCD
        };
        let changes = (0..20).map(|i| create("a", i)).collect::<Vec<_>>();
        assert!(sizes(&changes, limits).len() > 1);
    }

    #[test]
    fn all_keys_of_a_server_are_one_transaction() {
        let weight = |n| Extra {
            key: format!("/b/a/{n:04}/weight"),
            before: None,
            after: Some("3".to_owned()),
        };
        let change = |n| Change {
            extra: vec![weight(n)],
            ..create("a", n)
        };
        let changes = (0..100).map(change).collect::<Vec<_>>();
        let batches = pack(&changes, ETCD, &|_| None);
        let sizes = batches.iter().map(|batch| {
            let Transaction { guards, ops, .. } = &batch.transaction;
            (batch.changes.clone(), ops.len(), guards.len())
        });
        let sizes = sizes.collect::<Vec<_>>();
        // The definition is a guard too.
        assert_eq!(sizes, [(0..63, 126, 127), (63..100, 74, 75)]);
    }

    #[test]
    fn one_at_a_time_where_the_store_takes_one() {
        let limits = Limits {
            operations: 1,
            guards: 2,
            bytes: 1 << 20,
            ranges: true,
        };
        let changes = (0..3).map(|i| create("a", i)).collect::<Vec<_>>();
        assert_eq!(sizes(&changes, limits), [(1, 2), (1, 2), (1, 2)]);
    }

    #[test]
    fn a_definition_and_its_servers_are_one_transaction() {
        let define = Change {
            server: None,
            key: "/b/a/backend".to_owned(),
            defined_by: None,
            ..create("a", 0)
        };
        let batches = pack(&[define, create("a", 1)], ETCD, &|_| None);
        assert_eq!(batches.len(), 1);
        let guards = batches[0].transaction.guards.iter();
        let guards = guards
            .map(|guard| (guard.key.as_str(), guard.expect))
            .collect::<Vec<_>>();
        assert_eq!(
            guards,
            [
                ("/b/a/0001", Expect::Absent),
                ("/b/a/backend", Expect::Absent)
            ]
        );
    }
}
