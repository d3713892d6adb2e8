//! Packs a plan's changes into transactions.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::model::{Expect, Guard, Limits, Op, Transaction};
use crate::reconcile::plan::{Action, Change};

/// A transaction and the changes it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What is sent.
    pub transaction: Transaction,
    /// The changes it makes, as a range of the plan's.
    pub changes: Range<usize>,
}

/// Packs changes in their order: a backend's go into one transaction where they fit, whole backends
/// together. Each change is guarded by what was read of its key, each put by its backend's definition.
#[must_use]
pub fn batches(changes: &[Change], limits: Limits) -> Vec<Batch> {
    let mut packer = Packer {
        limits,
        full: Vec::new(),
        open: Open::default(),
    };
    let mut start = 0;
    for group in changes.chunk_by(|a, b| a.backend == b.backend) {
        let range = start..start + group.len();
        start = range.end;
        let mut alone = Open::default();
        for change in group {
            alone.add(change);
        }
        if packer.open.fits(&alone, limits) {
            packer.open.append(alone, range);
            continue;
        }
        packer.close(range.start);
        if packer.open.fits(&alone, limits) {
            packer.open.append(alone, range);
            continue;
        }
        for (index, change) in range.zip(group) {
            let mut next = Open::default();
            next.add_after(change, &packer.open);
            if !packer.open.fits(&next, limits) {
                packer.close(index);
                next = Open::default();
                next.add(change);
            }
            packer.open.append(next, index..index + 1);
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
            transaction, start, ..
        } = std::mem::take(&mut self.open);
        if !transaction.ops.is_empty() {
            // A single change is not split.
            debug_assert!(transaction.ops.len() <= self.limits.operations || next - start == 1);
            self.full.push(Batch {
                transaction,
                changes: start..next,
            });
        }
    }
}

#[derive(Default)]
struct Open {
    transaction: Transaction,
    guarded: BTreeSet<String>,
    bytes: usize,
    start: usize,
}

impl Open {
    fn add(&mut self, change: &Change) {
        self.add_after(change, &Self::default());
    }

    /// Adds a change, without the guards that `before` has already.
    fn add_after(&mut self, change: &Change, before: &Self) {
        if let Some(definition) = &change.defined_by
            && !before.guarded.contains(definition)
        {
            self.guard(definition, Expect::Present);
        }
        for (key, action) in change.writes() {
            self.write(key, action);
        }
    }

    fn write(&mut self, key: &str, action: &Action) {
        let owned = || key.to_owned();
        let (expect, op) = match action {
            Action::Create { after } => (
                Expect::Absent,
                Op::Put {
                    key: owned(),
                    value: after.clone(),
                },
            ),
            Action::Update {
                revision,
                after,
                before: _,
            } => (
                Expect::Revision(*revision),
                Op::Put {
                    key: owned(),
                    value: after.clone(),
                },
            ),
            Action::Delete {
                revision,
                before: _,
            } => (Expect::Revision(*revision), Op::Delete { key: owned() }),
        };
        self.guard(key, expect);
        self.bytes += match &op {
            Op::Put { key, value } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        };
        self.transaction.ops.push(op);
    }

    fn guard(&mut self, key: &str, expect: Expect) {
        // A definition that this very transaction writes is guarded by its absence.
        if self.guarded.insert(key.to_owned()) {
            self.bytes += key.len();
            self.transaction.guards.push(Guard {
                key: key.to_owned(),
                expect,
            });
        }
    }

    fn fits(&self, more: &Self, limits: Limits) -> bool {
        /// What a guard or an operation costs on the wire beside its key and value, at most.
        const FRAME: usize = 32;
        let operations = self.transaction.ops.len() + more.transaction.ops.len();
        let guards = self.transaction.guards.len() + more.transaction.guards.len();
        let bytes = self.bytes + more.bytes + FRAME * (operations + guards);
        operations <= limits.operations && guards <= limits.guards && bytes <= limits.bytes
    }

    fn append(&mut self, mut more: Self, range: Range<usize>) {
        if self.transaction.ops.is_empty() {
            self.start = range.start;
        }
        self.transaction.guards.append(&mut more.transaction.guards);
        self.transaction.ops.append(&mut more.transaction.ops);
        self.guarded.append(&mut more.guarded);
        self.bytes += more.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::plan::{Extra, Proof};

    const ETCD: Limits = Limits {
        operations: 128,
        guards: 128,
        bytes: 1 << 20,
    };

    fn create(backend: &str, server: usize) -> Change {
        Change {
            backend: backend.to_owned(),
            server: Some(format!("{server:04}")),
            key: format!("/b/{backend}/{server:04}"),
            pod: None,
            action: Action::Create {
                after: "x".repeat(100),
            },
            proof: Proof::Ready,
            defined_by: Some(format!("/b/{backend}/backend")),
            extra: Vec::new(),
        }
    }

    fn sizes(changes: &[Change], limits: Limits) -> Vec<(usize, usize)> {
        let batches = batches(changes, limits);
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
            action: Action::Create {
                after: "3".to_owned(),
            },
        };
        let change = |n| Change {
            extra: vec![weight(n)],
            ..create("a", n)
        };
        let changes = (0..100).map(change).collect::<Vec<_>>();
        let batches = batches(&changes, ETCD);
        let sizes = batches.iter().map(|batch| {
            let Transaction { guards, ops } = &batch.transaction;
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
        let batches = batches(&[define, create("a", 1)], ETCD);
        assert_eq!(batches.len(), 1);
        let guards = batches[0].transaction.guards.iter();
        let guards = guards
            .map(|guard| (guard.key.as_str(), guard.expect))
            .collect::<Vec<_>>();
        assert_eq!(
            guards,
            [
                ("/b/a/backend", Expect::Absent),
                ("/b/a/0001", Expect::Absent)
            ]
        );
    }
}
