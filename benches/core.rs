//! The decoders and the planner, without processes or servers: one page of 500 pods in both encodings, and
//! the plan for 10,000 pods in sync.

use std::hint::black_box;

use divan::Bencher;

use pods::{Encoding, Pods};
use vulcanized::internals::kube::{pods_from_json, pods_from_protobuf};
use vulcanized::internals::layout::{self, Observed};
use vulcanized::internals::model::{Cluster, KeyValue, Pod, Scheme, Scope, Snapshot};
use vulcanized::internals::reconcile::evidence::{Coverage, List, Lists};
use vulcanized::internals::reconcile::map::Mapping;
use vulcanized::internals::reconcile::plan::{Action, Plan, Rules, plan};
use vulcanized::internals::reconcile::template::Template;

#[path = "support/pods.rs"]
#[expect(
    unreachable_pub,
    reason = "modules of one program: nothing is exported"
)]
mod pods;

fn main() {
    divan::main();
}

/// The number of pods, and of servers.
const NUMBER: usize = 10_000;
const PAGE: usize = 500;

#[divan::bench]
fn decode_json(bencher: Bencher) {
    let page = Pods::recorded().page(Encoding::Json, 0..PAGE, None);
    bencher.bench_local(|| pods_from_json(black_box(&page)).expect("a page").len());
}

#[divan::bench]
fn decode_protobuf(bencher: Bencher) {
    let page = Pods::recorded().page(Encoding::Protobuf, 0..PAGE, None);
    bencher
        .with_inputs(|| page.clone())
        .bench_local_values(|page| pods_from_protobuf(page).expect("a page").len());
}

/// Maps pods to servers.
#[divan::bench]
fn map(bencher: Bencher) {
    let world = World::new();
    bencher.bench_local(|| world.listed());
}

/// Parses keys and values to servers.
#[divan::bench]
fn observe(bencher: Bencher) {
    let world = World::new();
    let snapshot = world.snapshot();
    bencher
        .with_inputs(|| snapshot.clone())
        .bench_local_values(|snapshot| world.observed(snapshot));
}

/// Plans for servers that are in sync.
#[divan::bench]
fn plan_in_sync(bencher: Bencher) {
    let world = World::new();
    let lists = world.listed();
    let observed = world.observed(world.snapshot());
    let decided = || in_sync(&world, &observed, &lists);
    assert_eq!(decided().counts.unchanged, NUMBER);
    bencher.bench_local(decided);
}

/// Not inlined, for `callgrind --toggle-collect`.
#[inline(never)]
fn in_sync(world: &World, observed: &Observed, lists: &Lists) -> Plan {
    plan(observed, lists, &world.rules, &*world.mapping.layout).expect("a plan")
}

struct World {
    pods: Vec<Pod<'static>>,
    mapping: Mapping,
    rules: Rules,
}

impl World {
    fn new() -> Self {
        let pods = Pods::recorded().page(Encoding::Protobuf, 0..NUMBER, None);
        let template = |text| Template::parse(text).expect("a template");
        Self {
            pods: pods_from_protobuf(pods).expect("a page"),
            mapping: Mapping {
                annotation_prefix: "vulcanized.io/".to_owned(),
                backend_labels: vec!["app.kubernetes.io/name".to_owned()],
                backend: template("{namespace}.{name}.svc"),
                port: None,
                scheme: Scheme::Http,
                ip_family: None,
                server_id: template("{ip}"),
                layout: layout::open(
                    "vulcand",
                    layout::Options {
                        prefix: None,
                        etcd_v2: true,
                    },
                )
                .expect("vulcand's"),
            },
            rules: Rules {
                create_backends: true,
                ..Rules::new("bench", Scope::new(Cluster::parse("bench"), None, None))
            },
        }
    }

    fn listed(&self) -> Lists {
        let pods = self.pods.iter();
        let list = List {
            coverage: Coverage::All,
            pods: pods.map(|pod| self.mapping.map(pod)).collect(),
        };
        Lists {
            lists: vec![list],
            ..Lists::default()
        }
    }

    fn observed(&self, snapshot: Snapshot) -> Observed {
        self.mapping.layout.observe(snapshot).expect("a store")
    }

    /// The plan for an empty store.
    fn first_plan(&self) -> Plan {
        let nothing = Snapshot {
            revision: Some(1),
            ranges: vec![Ok(Vec::new())],
        };
        in_sync(self, &self.observed(nothing), &self.listed())
    }

    /// The store after [`World::first_plan`].
    fn snapshot(&self) -> Snapshot {
        let mut entries = Vec::new();
        for change in &self.first_plan().changes {
            let Action::Create { after, .. } = &change.action else {
                panic!("all are new");
            };
            entries.push(KeyValue {
                key: change.key.clone().into_bytes(),
                value: after.clone().into_bytes(),
                revision: 1,
            });
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Snapshot {
            revision: Some(1),
            ranges: vec![Ok(entries)],
        }
    }
}
