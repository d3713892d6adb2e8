//! Random sequences of events: changed pods, runs, misconfigured jobs and hand-made entries. The outcome is checked
//! against the model's pods, not against the program's view of them. 20,000 sequences run through the core in
//! process, 250 through the program with a store file. The seed is printed, and failing sequences are shrunk.
//!
//! After every run:
//! 1. a backend that had a server whose pod is Ready at exactly that URL still has one;
//! 2. no server of a dead pod remains, if the job is configured correctly, sees all pods and publishes at least one;
//! 3. the server of each published pod is in the store, or the run alarms or prints a reason;
//! 4. a second run over the same lists writes nothing and has the same alarms;
//! 5. foreign entries, entries of other scopes and definitions are unchanged.
//!
//! Bugs of earlier versions, reintroduced one at a time, and the tests that caught each (`core` and `program` are the
//! two tests of this file, `table` is `what_a_backend_may_lose` in `src/reconcile/tests/losses.rs`; the others
//! are in `tests/integration/losses.rs` or `src/reconcile/tests`):
//!
//! | bug | caught by |
//! |---|---|
//! | a single loss is never held ("at least two") | core, program, table, `the_only_pod_is_relabelled` |
//! | changes are held only if they affect at least half of all owned servers | core, program, table, `half_of_ten_terminate_and_half_are_relabelled` |
//! | foreign entries count as Ready | core, table, `foreign_entries_do_not_count_as_ready` |
//! | servers of unready pods are deleted, whatever remains | table, `the_only_pod_is_terminating_and_still_ready`, `all_pods_of_one_backend_unready` |
//! | the pod of an adopted entry is matched by name alone | `adopting_from_the_wrong_cluster_deletes_nothing` |
//! | the same cluster is recognised by pod names, not by addresses | `one_name_for_two_clusters` |
//! | servers at another port count as remaining | core, table, `the_port_changed_by_mistake` |
//! | remaining servers are counted before the run's own creates | core, table, `unready_and_new_at_once` |
//! | the fingerprint covers the CA alone | `two_clusters_behind_one_gateway` |
//! | the cluster's name replaces the fingerprint | `one_name_for_two_clusters` |
//! | a URL that the plan relies on is not compared when it is applied | `evidence_is_removed_between_list_and_apply` |
//! | a URL counts as kept by an entry whose update is held | core |
//! | absence from any list is proof | table, `new_pods_have_several_ports_and_old_pods_are_deleted`, `scaled_to_zero_the_only_pods_of_a_namespace` |

use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use vulcanized::internals::layout::{self, Layout};
use vulcanized::internals::model::{Cluster, KeyValue, Scheme, Scope, ServerUrl, Snapshot};
use vulcanized::internals::reconcile::evidence::{Coverage, List, Lists};
use vulcanized::internals::reconcile::map::{Mapping, PortRef};
use vulcanized::internals::reconcile::plan::{Change as Planned, Rules, plan};
use vulcanized::internals::reconcile::template::Template;

use self::world::{APPS, Event, Job, ModelPod, World, any_event, backend, mark_of};
use crate::support::program::vulcanized;

mod world;

/// The outcome of a run.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    writes: usize,
    alarms: bool,
    /// Whether the run prints a reason: an entry is kept or a pod is skipped.
    reasons: bool,
}

fn mapping(job: Job) -> Mapping {
    let label = if job == Job::WrongLabel {
        "nope"
    } else {
        "app"
    };
    Mapping {
        annotation_prefix: "vulcanized.io/".to_owned(),
        backend_labels: vec![label.to_owned()],
        backend: Template::parse("{name}").expect("a template"),
        port: (job == Job::WrongPort).then_some(PortRef::Number(9999)),
        scheme: if job == Job::WrongScheme {
            Scheme::Https
        } else {
            Scheme::Http
        },
        ip_family: None,
        server_id: Template::parse(if job == Job::PodIds { "{pod}" } else { "{ip}" })
            .expect("a template"),
        layout: vulcand(),
    }
}

fn vulcand() -> Rc<dyn Layout> {
    layout::open("vulcand", layout::Options::default()).expect("vulcand's")
}

/// The scope of a job. Cluster `a` is the job's own cluster, `b` the other one.
fn scope(job: Job) -> Scope {
    let cluster = Cluster::parse(if job == Job::WrongContext { "b" } else { "a" });
    let selector = matches!(job, Job::Selected { .. }).then_some("app=web");
    Scope::new(cluster, selector, None)
}

/// One run of the core; `None` if it fails.
fn run_core(world: &mut World, job: Job) -> Option<Outcome> {
    let mapping = mapping(job);
    let rules = Rules {
        share_backends: job == Job::Shared,
        strict_ready: job == Job::Strict,
        ..Rules::new("prod", scope(job))
    };
    let entries = world.store.iter().zip(1..);
    let entries = entries.map(|((key, value), revision)| KeyValue {
        key: key.clone().into_bytes(),
        value: value.clone().into_bytes(),
        revision,
    });
    let snapshot = Snapshot {
        revision: Some(1000),
        ranges: vec![Ok(entries.collect()), Ok(Vec::new())],
    };
    let layout = vulcand();
    let observed = layout.observe(snapshot).expect("one spelling");
    let map = |pods: Vec<&ModelPod>| pods.iter().map(|pod| mapping.map(&pod.listed())).collect();
    let mut lists = Lists {
        lists: vec![List {
            coverage: if job == Job::OnePod {
                Coverage::Partial
            } else {
                Coverage::Namespace("default".to_owned())
            },
            pods: map(world.listed(job)),
        }],
        selected: matches!(job, Job::Selected { .. }),
        ..Lists::default()
    };
    let mut decided = plan(&observed, &lists, &rules, &*layout).ok()?;
    if !decided.doubts.is_empty() {
        let refused = job == Job::Selected { refused: true };
        for namespace in &decided.doubts {
            let answer = if refused {
                Err("403".to_owned())
            } else {
                Ok(map(world.pods.iter().collect()))
            };
            lists.again.insert(namespace.clone(), answer);
        }
        decided = plan(&observed, &lists, &rules, &*layout).ok()?;
        assert!(decided.doubts.is_empty(), "listing again once is enough");
    }
    for write in decided.changes.iter().flat_map(Planned::writes) {
        let old = match write.after {
            Some(after) => world.store.insert(write.key.to_owned(), after.to_owned()),
            None => world.store.remove(write.key),
        };
        let before = write.before.map(|(before, _)| before);
        assert_eq!(old.as_deref().map(str::as_bytes), before, "as it was read");
    }
    Some(Outcome {
        writes: decided.changes.len(),
        alarms: decided.alarms(),
        reasons: !decided.kept.is_empty() || !decided.skipped.is_empty(),
    })
}

/// One run of the program with `Job::Right`, over files; `None` if it fails.
fn run_program(world: &mut World) -> Option<Outcome> {
    let folder = tempfile::tempdir().expect("a folder");
    let (pods, store) = (
        folder.path().join("pods.json"),
        folder.path().join("store.json"),
    );
    let items = world.pods.iter().map(ModelPod::json).collect::<Vec<_>>();
    let list = json!({ "kind": "List", "items": items });
    std::fs::write(&pods, list.to_string()).expect("written");
    let text = serde_json::to_string(&world.store).expect("JSON");
    std::fs::write(&store, &text).expect("written");
    let answer = vulcanized("--owner prod --cluster a@file -o json --backend-label app --pods")
        .arg(&pods)
        .arg("--store-file")
        .arg(&store)
        .run();
    let after = std::fs::read_to_string(&store).expect("read");
    world.store = serde_json::from_str(&after).expect("JSON");
    if answer.code == 1 {
        assert_eq!(
            after, text,
            "a run that fails before it applies writes nothing"
        );
        return None;
    }
    let plan = serde_json::from_str::<Value>(&answer.out).expect("JSON");
    let has = |field: &str| plan[field].as_array().is_some_and(|list| !list.is_empty());
    Some(Outcome {
        writes: plan["changes"].as_array().expect("a list").len(),
        alarms: answer.code == 3,
        reasons: has("kept") || has("skipped"),
    })
}

/// Checks the properties that hold after every run (the head of this file).
fn check(
    before: &World,
    after: &World,
    job: Job,
    job_scope: &str,
    outcome: &Outcome,
) -> Result<(), String> {
    let live = after.live_backends();
    for backend in before.live_backends() {
        if !live.contains(&backend) {
            return Err(format!("{backend} lost its last live server"));
        }
    }
    for (key, value) in &before.store {
        let mark = mark_of(key, value);
        let owned = mark.is_some_and(|(_, mark)| mark.0 == "prod" && mark.1 == job_scope);
        if !owned && after.store.get(key) != Some(value) {
            return Err(format!("{key} is foreign and was changed"));
        }
    }
    let right = matches!(job, Job::Right | Job::Shared);
    if !right {
        return Ok(());
    }
    let published =
        |pod: &&ModelPod| pod.serves() && pod.app.is_some() && !pod.unreadable && !pod.sidecar;
    for pod in after.pods.iter().filter(published) {
        let app = APPS[pod.app.expect("it has one")];
        let served = after.store.iter().any(|(key, value)| {
            let url = serde_json::from_str::<Value>(value);
            let url = url
                .ok()
                .and_then(|value| ServerUrl::parse(value["URL"].as_str()?));
            backend(key) == app && url == ServerUrl::parse(&pod.url())
        });
        if !served && !outcome.alarms && !outcome.reasons {
            return Err(format!(
                "{} is not served, without alarm or reason",
                pod.name
            ));
        }
    }
    if !after.pods.iter().any(|pod| published(&pod)) {
        return Ok(());
    }
    for (key, value) in &after.store {
        let Some((_, (owner, scope, name, url))) = mark_of(key, value) else {
            continue;
        };
        if owner != "prod" || scope != job_scope {
            continue;
        }
        let mut pods = after.pods.iter();
        let pod = pods.find(|pod| format!("default/{}", pod.name) == name);
        let dead =
            pod.is_none_or(|pod| pod.completed || pod.terminating && !pod.ready && !pod.unreadable);
        // The address may have been reused by another pod of this backend.
        let app = APPS.iter().position(|app| *app == backend(key));
        let served = |pod: &&ModelPod| published(pod) && pod.app == app && pod.url() == url;
        if dead && !after.pods.iter().any(|pod| served(&pod)) {
            return Err(format!("{key} remains, but its pod is dead"));
        }
    }
    Ok(())
}

/// Applies the events to a new world, and checks each run and a second one after it.
fn replay(
    events: &[Event],
    run: &mut dyn FnMut(&mut World, Job) -> Option<Outcome>,
    scope_of: &dyn Fn(Job) -> String,
) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for event in events {
        world.apply(event);
        let Event::Run(job) = *event else { continue };
        let before = world.clone();
        let Some(outcome) = run(&mut world, job) else {
            prop_assert_eq!(&before.store, &world.store);
            continue;
        };
        let checked = check(&before, &world, job, &scope_of(job), &outcome);
        prop_assert_eq!(
            checked,
            Ok(()),
            "{:?}\nbefore {:#?}\nafter {:#?}",
            job,
            before,
            world.store
        );
        let stored = world.store.clone();
        let again = run(&mut world, job).expect("the first run succeeded");
        prop_assert_eq!(&stored, &world.store, "the second run writes: {:?}", job);
        prop_assert_eq!(
            (again.writes, again.alarms),
            (0, outcome.alarms),
            "{:?}",
            job
        );
    }
    Ok(())
}

/// Generates the same sequences each time, so that failures are reproducible. `VULCANIZED_MODEL_SEED`, a number,
/// selects others.
#[expect(clippy::print_stdout, reason = "a test prints its seed")]
fn runner(cases: u32) -> TestRunner {
    let seed = std::env::var("VULCANIZED_MODEL_SEED").ok();
    let seed = seed.map_or(1, |text| text.parse::<u64>().expect("a number"));
    println!("VULCANIZED_MODEL_SEED={seed}");
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(cases)
    };
    let seed = [seed.to_le_bytes(); 4].concat();
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

#[test]
fn event_sequences_in_the_core() {
    let sequences = prop::collection::vec(any_event(), 4..24);
    let result = runner(20_000).run(&sequences, |events| {
        replay(&events, &mut run_core, &|job| scope(job).to_string())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn event_sequences_in_the_program() {
    let sequences = prop::collection::vec(any_event(), 4..16);
    let result = runner(250).run(&sequences, |events| {
        let events = events.into_iter().map(|event| match event {
            Event::Run(_) => Event::Run(Job::Right),
            event => event,
        });
        let events = events.collect::<Vec<_>>();
        replay(&events, &mut |world, _| run_program(world), &|_| {
            "a@file".to_owned()
        })
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
