//! How a plan is packed into transactions: sizes, moves and ranges.

use super::*;
use crate::model::{Expect, Limits, Op, Transaction};
use crate::reconcile::batch::{Batch, batches};

const ETCD: Limits = Limits {
    operations: 128,
    guards: 128,
    bytes: 1 << 20,
    ranges: true,
};

fn packed(world: &World, limits: Limits) -> Vec<Batch> {
    let layout = &*world.mapping.layout;
    batches(&world.plan(), layout, &world.observed(), limits)
}

/// Bytes of keys and values, and 32 for each operation, guard and range: what the limit is compared with.
fn size(transaction: &Transaction) -> usize {
    let Transaction {
        guards,
        unchanged,
        ops,
    } = transaction;
    let ops_size = ops.iter().map(|op| match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    });
    let guards_size = guards.iter().map(|guard| guard.key.len());
    let ranges_size = unchanged.iter().map(|range| 2 * range.prefix.len());
    let bytes = ops_size
        .chain(guards_size)
        .chain(ranges_size)
        .sum::<usize>();
    bytes + 32 * (ops.len() + guards.len() + unchanged.len())
}

/// Checks that the plan fits into one transaction of exactly its size, and not into less.
#[track_caller]
fn fits_exactly(world: &World) -> Transaction {
    let [batch] = packed(world, ETCD).try_into().expect("one");
    let bytes = size(&batch.transaction);
    let limited = |bytes| packed(world, Limits { bytes, ..ETCD }).len();
    assert_eq!(limited(bytes), 1, "{:?}", batch.transaction);
    assert!(limited(bytes - 1) > 1, "{:?}", batch.transaction);
    let Transaction {
        guards, unchanged, ..
    } = &batch.transaction;
    let guards = guards.len() + unchanged.len();
    let limited = |guards| packed(world, Limits { guards, ..ETCD }).len();
    assert_eq!(limited(guards), 1, "{:?}", batch.transaction);
    assert!(limited(guards - 1) > 1, "{:?}", batch.transaction);
    batch.transaction
}

#[test]
fn the_size_of_a_transaction_is_known_exactly() {
    let created = fits_exactly(&world().backend("web").pods(web(1..=3)));
    assert_eq!((created.ops.len(), created.guards.len()), (3, 4));
    let changed = fits_exactly(&three().pods(web(3..=5)));
    assert_eq!((changed.ops.len(), changed.unchanged.len()), (4, 1));
    let two = world().backend("web").backend("api").pods(web(1..=2));
    let two = fits_exactly(&two.pods([pod("api", 3), pod("api", 4)]));
    assert_eq!((two.ops.len(), two.unchanged.len()), (4, 2));
    // Deletes rest on the Ready servers that remain: one of them is written by the same transaction.
    let relabelled = [relabelled(pod("web", 1)), relabelled(pod("web", 2))];
    let pods = web([3, 4]).into_iter().chain(relabelled);
    let rests = fits_exactly(&three().pods(pods));
    let expects = rests.guards.iter().map(|guard| guard.expect);
    let read = expects.filter(|expect| matches!(expect, Expect::Revision(_)));
    assert_eq!(
        (rests.ops.len(), rests.guards.len(), read.count()),
        (3, 5, 4)
    );
}

/// A large backend's range is compared where something is removed, and not otherwise.
#[test]
fn ranges_of_large_backends_cost_etcd_time() {
    let compared = |entries: usize, pods: Vec<Pod>| {
        let by_hand = |n: usize| {
            (
                format!("web/servers/x{n}"),
                format!(r#"{{"URL":"http://10.1.0.1:{n}"}}"#),
            )
        };
        let world = (1..=entries)
            .map(by_hand)
            .fold(three(), |world, (key, value)| world.entry(&key, &value));
        let batches = packed(&world.pods(pods), ETCD);
        let ranges = batches
            .iter()
            .map(|batch| batch.transaction.unchanged.len());
        ranges.sum::<usize>()
    };
    assert_eq!(compared(997, web(1..=4)), 1);
    assert_eq!(compared(998, web(1..=4)), 0);
    assert_eq!(compared(998, web(2..=4)), 1);
}

/// A server that moves with further keys goes in the transaction that writes them under its new id.
#[test]
fn a_move_is_not_split() {
    let id = |n: usize| format!("traefik/http/services/web/loadBalancer/servers/{n}");
    let mut world = world().rules(|rules| rules.adopt.unmarked = true);
    world.mapping.layout = layout::open("traefik", layout::Options::default()).expect("Traefik's");
    let router = (
        "traefik/http/routers/web/service".to_owned(),
        "web".to_owned(),
    );
    world.entries.push(router);
    for n in 1..=60_u8 {
        let id = id(usize::from(n) + 100);
        world
            .entries
            .push((format!("{id}/url"), format!("http://10.0.0.{n}:8080")));
        world.entries.push((format!("{id}/weight"), "3".to_owned()));
    }
    // Four operations each: URL and weight are put and deleted.
    let world = world.pods(web(1..=60));
    let batches = packed(&world, ETCD);
    assert!(batches.len() > 1);
    for Batch {
        transaction,
        changes,
    } in batches
    {
        assert_eq!(changes.len() % 2, 0);
        let put = transaction
            .ops
            .iter()
            .filter(|op| matches!(op, Op::Put { .. }));
        assert_eq!(2 * put.count(), transaction.ops.len());
    }
}
