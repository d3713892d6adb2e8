//! Random stories of pods, jobs, operators' mistakes and hand-made entries, judged by their outcome alone:
//! what the model knows of the pods, not what the program thinks of them. 20,000 are told to the core
//! in process, 250 to the program itself with a store file. The seed is printed; what fails shrinks.
//!
//! After every run:
//! 1. a backend that had a server whose pod is Ready at that very URL still has one;
//! 2. nothing dead stays, in a run of the right job that sees all pods and publishes one;
//! 3. what pods want is there, or the run alarms, or prints a reason;
//! 4. a second run over the same lists writes nothing and alarms the same;
//! 5. what is foreign, of another scope, or a definition is unchanged.
//!
//! Bugs of earlier versions, put back one at a time, and what caught each (`core` and `program` are the two
//! tests of this file, `table` is `what_a_backend_may_lose` in `src/reconcile/tests/losses.rs`; the others
//! are in `tests/integration/losses.rs` or `src/reconcile/tests`):
//!
//! | bug | caught by |
//! |---|---|
//! | a single loss is never held ("at least two") | core, program, table, `the_only_pod_is_relabelled` |
//! | held only from half of all that is owned on | core, program, table, `half_of_ten_terminate_and_half_are_relabelled` |
//! | strangers' entries count as Ready | core, table, `what_others_wrote_does_not_count_as_ready` |
//! | pods not Ready are deleted whatever remains | table, `the_only_pod_is_terminating_and_still_ready`, `all_pods_of_one_backend_unready` |
//! | an adopted entry's pod moved, by its name alone | `adopting_from_the_wrong_cluster_deletes_nothing` |
//! | the same cluster by the names of pods, not their addresses | `one_name_for_two_clusters` |
//! | servers at another port count as what remains | core, table, `the_port_changed_by_mistake` |
//! | what remains is counted before the run's own creates | core, table, `unready_and_new_at_once` |
//! | the fingerprint is of the CA alone | `two_clusters_behind_one_gateway` |
//! | a name in place of the fingerprint | `one_name_for_two_clusters` |
//! | a URL that stays is not compared when it is applied | `what_a_loss_rests_on_is_taken_away_between_list_and_apply` |
//! | a URL stays under an id whose update is held | core |
//! | absence from any list is believed | table, `the_new_pods_have_several_ports_and_the_old_ones_go`, `scaled_to_zero_the_only_pods_of_a_namespace` |

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use vulcanized::internals::layout::{self, Layout};
use vulcanized::internals::model::{
    Cluster, ContainerPort, Entry, Phase, Pod, Scheme, Scope, ServerUrl, Snapshot,
};
use vulcanized::internals::reconcile::evidence::{Coverage, List, Lists};
use vulcanized::internals::reconcile::map::{Mapping, PortRef};
use vulcanized::internals::reconcile::plan::{Adopt, Change as Planned, Rules, plan};
use vulcanized::internals::reconcile::template::Template;

use crate::support::program::vulcanized;

const APPS: [&str; 3] = ["web", "api", "shop"];
const PREFIX: &str = "/vulcand/backends/";

/// A pod as it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each can be true of a pod by itself"
)]
struct Real {
    name: String,
    app: Option<usize>,
    ip: u8,
    /// The port that it listens on.
    port: u16,
    ready: bool,
    terminating: bool,
    completed: bool,
    /// Its address is written in a form that cannot be read.
    unreadable: bool,
    /// A sidecar declares a port beside its own.
    sidecar: bool,
}

impl Real {
    fn serves(&self) -> bool {
        self.ready && !self.terminating && !self.completed
    }

    fn url(&self) -> String {
        format!("http://10.0.0.{}:{}", self.ip, self.port)
    }

    fn json(&self) -> Value {
        let ip = if self.unreadable {
            format!("10.0.0.0{}", self.ip)
        } else {
            format!("10.0.0.{}", self.ip)
        };
        let mut ports = vec![json!({ "containerPort": self.port })];
        if self.sidecar {
            ports.push(json!({ "containerPort": 15090 }));
        }
        let mut pod = json!({
            "kind": "Pod",
            "metadata": { "namespace": "default", "name": self.name, "labels": {} },
            "spec": { "containers": [{ "ports": ports }] },
            "status": {
                "phase": if self.completed { "Failed" } else { "Running" },
                "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": if self.ready { "True" } else { "False" } }],
            },
        });
        if let Some(app) = self.app {
            pod["metadata"]["labels"]["app"] = APPS[app].into();
        }
        if self.terminating {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        pod
    }

    fn listed(&self) -> Pod<'static> {
        let port = |number| ContainerPort {
            name: None,
            number,
            tcp: true,
            sidecar: false,
        };
        let mut pod = Pod {
            namespace: "default".into(),
            name: self.name.clone().into(),
            phase: if self.completed {
                Phase::Failed
            } else {
                Phase::Running
            },
            ready: self.ready,
            terminating: self.terminating,
            unreadable_ip: self.unreadable,
            ports: vec![port(self.port)],
            ..Pod::default()
        };
        if !self.unreadable {
            pod.ips.push([10, 0, 0, self.ip].into());
        }
        if self.sidecar {
            pod.ports.push(port(15090));
        }
        if let Some(app) = self.app {
            pod.labels = [("app", APPS[app])].into_iter().collect();
        }
        pod
    }
}

/// What happens to the world.
#[derive(Debug, Clone)]
enum Event {
    Created {
        app: usize,
        ip: u8,
    },
    /// A pod of another cluster: the name and perhaps the address are one of ours.
    Twin {
        of: usize,
        ip: u8,
    },
    Gone(usize),
    Change(usize, Change),
    /// Half of the pods of an app are relabelled, the other half dies.
    Split(usize),
    HandMade {
        app: usize,
        ip: u8,
    },
    OtherOwner {
        app: usize,
        ip: u8,
    },
    Edited {
        entry: usize,
        to: Edit,
    },
    Run(Job),
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Ready(bool),
    Terminating,
    Completed,
    Relabelled(Option<usize>),
    Port(u16),
    Moved(u8),
    Unreadable(bool),
    Sidecar(bool),
}

#[derive(Debug, Clone, Copy)]
enum Edit {
    HostName,
    Removed,
}

/// What a run sees and is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Right,
    WrongPort,
    WrongScheme,
    WrongLabel,
    PodIds,
    /// The other cluster's pods.
    WrongContext,
    /// Another namespace: no pods at all.
    NoPods,
    /// Only pods of one app are listed; whether the list without the selector is refused.
    Selected {
        refused: bool,
    },
    /// One pod, not a list.
    OnePod,
    Shared,
    Strict,
}

fn any_event() -> impl Strategy<Value = Event> {
    let app = 0..APPS.len();
    let ip = 1..10_u8;
    let change = prop_oneof![
        any::<bool>().prop_map(Change::Ready),
        Just(Change::Terminating),
        Just(Change::Completed),
        prop::option::of(0..APPS.len()).prop_map(Change::Relabelled),
        prop::sample::select(vec![8080, 9090]).prop_map(Change::Port),
        (1..10_u8).prop_map(Change::Moved),
        any::<bool>().prop_map(Change::Unreadable),
        any::<bool>().prop_map(Change::Sidecar),
    ];
    let edit = prop_oneof![Just(Edit::HostName), Just(Edit::Removed)];
    let job = prop_oneof![
        6 => Just(Job::Right),
        1 => Just(Job::WrongPort),
        1 => Just(Job::WrongScheme),
        1 => Just(Job::WrongLabel),
        1 => Just(Job::PodIds),
        1 => Just(Job::WrongContext),
        1 => Just(Job::NoPods),
        1 => any::<bool>().prop_map(|refused| Job::Selected { refused }),
        1 => Just(Job::OnePod),
        1 => Just(Job::Shared),
        1 => Just(Job::Strict),
    ];
    prop_oneof![
        5 => (app.clone(), ip.clone()).prop_map(|(app, ip)| Event::Created { app, ip }),
        1 => (0..8_usize, ip.clone()).prop_map(|(of, ip)| Event::Twin { of, ip }),
        2 => (0..8_usize).prop_map(Event::Gone),
        6 => (0..8_usize, change).prop_map(|(pod, change)| Event::Change(pod, change)),
        1 => app.clone().prop_map(Event::Split),
        1 => (app.clone(), ip.clone()).prop_map(|(app, ip)| Event::HandMade { app, ip }),
        1 => (app, ip).prop_map(|(app, ip)| Event::OtherOwner { app, ip }),
        1 => (0..8_usize, edit).prop_map(|(entry, to)| Event::Edited { entry, to }),
        7 => job.prop_map(Event::Run),
    ]
}

#[derive(Debug, Clone)]
struct World {
    pods: Vec<Real>,
    twins: Vec<Real>,
    store: BTreeMap<String, String>,
    born: usize,
}

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    writes: usize,
    alarms: bool,
    /// Whether something is held, kept, frozen, skipped or a duplicate: reasons that are printed.
    reasons: bool,
}

impl World {
    fn new() -> Self {
        let defined = APPS.iter().map(|app| {
            let key = format!("{PREFIX}{app}/backend");
            (key, r#"{"Type":"http"}"#.to_owned())
        });
        Self {
            pods: Vec::new(),
            twins: Vec::new(),
            store: defined.collect(),
            born: 0,
        }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Created { app, ip } => {
                // No two pods of a cluster have one address at a time.
                self.pods.retain(|pod| pod.ip != ip || pod.completed);
                self.born += 1;
                self.pods.push(Real {
                    name: format!("{}-{}", APPS[app], self.born),
                    app: Some(app),
                    ip,
                    port: 8080,
                    ready: true,
                    terminating: false,
                    completed: false,
                    unreadable: false,
                    sidecar: false,
                });
            }
            Event::Twin { of, ip } => {
                if let Some(pod) = self.pods.get(of) {
                    let name = pod.name.clone();
                    self.twins.retain(|twin| twin.ip != ip && twin.name != name);
                    self.twins.push(Real {
                        ip,
                        ready: true,
                        ..pod.clone()
                    });
                }
            }
            Event::Gone(pod) => {
                if pod < self.pods.len() {
                    self.pods.remove(pod);
                }
            }
            Event::Change(pod, change) => self.change(pod, change),
            Event::Split(app) => {
                let pods = self.pods.iter_mut().filter(|pod| pod.app == Some(app));
                for (index, pod) in pods.enumerate() {
                    if index % 2 == 0 {
                        pod.app = None;
                    } else {
                        pod.terminating = true;
                        pod.ready = false;
                    }
                }
            }
            Event::HandMade { app, ip } => {
                let key = format!("{PREFIX}{}/servers/hand-{ip}", APPS[app]);
                let value = format!(r#"{{"URL":"http://10.0.0.{ip}:8080"}}"#);
                self.store.insert(key, value);
            }
            Event::OtherOwner { app, ip } => {
                let key = format!("{PREFIX}{}/servers/blue-{ip}", APPS[app]);
                let url = format!("http://10.0.1.{ip}:8080");
                let value =
                    json!({ "URL": url, "Owner": "blue", "Scope": "a", "Pod": "default/blue" });
                self.store.insert(key, value.to_string());
            }
            Event::Edited { entry, to } => self.edit(entry, to),
            Event::Run(_) => {}
        }
    }

    fn change(&mut self, pod: usize, change: Change) {
        if let Change::Moved(ip) = change
            && self.pods.iter().any(|pod| pod.ip == ip && !pod.completed)
        {
            return;
        }
        let Some(pod) = self.pods.get_mut(pod) else {
            return;
        };
        match change {
            Change::Ready(ready) => pod.ready = ready,
            Change::Terminating => pod.terminating = true,
            Change::Completed => pod.completed = true,
            Change::Relabelled(app) => pod.app = app,
            Change::Port(port) => pod.port = port,
            Change::Moved(ip) => pod.ip = ip,
            Change::Unreadable(unreadable) => pod.unreadable = unreadable,
            Change::Sidecar(sidecar) => pod.sidecar = sidecar,
        }
    }

    fn edit(&mut self, entry: usize, to: Edit) {
        let mut servers = self.store.keys().filter(|key| key.contains("/servers/"));
        let Some(key) = servers.nth(entry).cloned() else {
            return;
        };
        match to {
            Edit::Removed => {
                self.store.remove(&key);
            }
            Edit::HostName => {
                let mut value: Value = serde_json::from_str(&self.store[&key]).expect("JSON");
                value["URL"] = "http://web-1.example:8080".into();
                self.store.insert(key, value.to_string());
            }
        }
    }

    /// The backends that have a server whose pod is Ready at that very URL: as the mark names the pod, in
    /// the cluster that it names.
    fn alive(&self) -> BTreeSet<String> {
        let served = self.store.iter().filter(|(key, value)| {
            let Some((_, mark)) = marked(key, value) else {
                return false;
            };
            let pods = if mark.1.starts_with('b') {
                &self.twins
            } else {
                &self.pods
            };
            let mut pods = pods.iter();
            pods.any(|pod| {
                pod.serves() && format!("default/{}", pod.name) == mark.2 && pod.url() == mark.3
            })
        });
        served.map(|(key, _)| backend(key)).collect()
    }

    fn listed(&self, job: Job) -> Vec<&Real> {
        match job {
            Job::WrongContext => self.twins.iter().collect(),
            Job::NoPods => Vec::new(),
            Job::Selected { .. } => self.pods.iter().filter(|pod| pod.app == Some(0)).collect(),
            Job::OnePod => self.pods.iter().take(1).collect(),
            _ => self.pods.iter().collect(),
        }
    }
}

fn backend(key: &str) -> String {
    let rest = key.strip_prefix(PREFIX).expect("the prefix");
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// The id of a marked server, and its owner, scope, pod and URL.
fn marked(key: &str, value: &str) -> Option<(String, (String, String, String, String))> {
    let (_, id) = key.split_once("/servers/")?;
    let value = serde_json::from_str::<Value>(value).ok()?;
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let mark = (text("Owner")?, text("Scope")?, text("Pod")?, text("URL")?);
    Some((id.to_owned(), mark))
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

/// The scope of a job: cluster `a` is the right one.
fn scope(job: Job) -> Scope {
    let cluster = Cluster::parse(if job == Job::WrongContext { "b" } else { "a" });
    let selector = matches!(job, Job::Selected { .. }).then_some("app=web");
    Scope::new(cluster, selector, None)
}

/// One run of the core: `None` if it ends with an error.
fn in_process(world: &mut World, job: Job) -> Option<Ran> {
    let mapping = mapping(job);
    let rules = Rules {
        owner: "prod".to_owned(),
        scope: scope(job),
        adopt: Adopt::default(),
        share_backends: job == Job::Shared,
        create_backends: false,
        strict_ready: job == Job::Strict,
        allow_empty: false,
        allow_deletes: None,
        max_deletes: None,
        upsert_only: false,
    };
    let entries = world.store.iter().zip(1..);
    let entries = entries.map(|((key, value), revision)| Entry {
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
    let map = |pods: Vec<&Real>| pods.iter().map(|pod| mapping.map(&pod.listed())).collect();
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
        assert!(decided.doubts.is_empty(), "one second look is enough");
    }
    for write in decided.changes.iter().flat_map(Planned::writes) {
        let old = match write.after {
            Some(after) => world.store.insert(write.key.to_owned(), after.to_owned()),
            None => world.store.remove(write.key),
        };
        let before = write.before.map(|(before, _)| before);
        assert_eq!(old.as_deref().map(str::as_bytes), before, "as it was read");
    }
    Some(Ran {
        writes: decided.changes.len(),
        alarms: decided.alarms(),
        reasons: !decided.kept.is_empty() || !decided.skipped.is_empty(),
    })
}

/// One run of the program itself, of the right job, over files.
fn whole(world: &mut World) -> Option<Ran> {
    let folder = tempfile::tempdir().expect("a folder");
    let (pods, store) = (
        folder.path().join("pods.json"),
        folder.path().join("store.json"),
    );
    let items = world.pods.iter().map(Real::json).collect::<Vec<_>>();
    let list = json!({ "kind": "List", "items": items });
    std::fs::write(&pods, list.to_string()).expect("written");
    let text = serde_json::to_string(&world.store).expect("JSON");
    std::fs::write(&store, &text).expect("written");
    let done = vulcanized("--owner prod --cluster a@file -o json --backend-label app --pods")
        .arg(&pods)
        .arg("--store-file")
        .arg(&store)
        .run();
    let after = std::fs::read_to_string(&store).expect("read");
    world.store = serde_json::from_str(&after).expect("JSON");
    if done.code == 1 {
        assert_eq!(
            after, text,
            "a run that fails before it applies writes nothing"
        );
        return None;
    }
    let plan = serde_json::from_str::<Value>(&done.out).expect("JSON");
    let some = |field: &str| plan[field].as_array().is_some_and(|list| !list.is_empty());
    Some(Ran {
        writes: plan["changes"].as_array().expect("a list").len(),
        alarms: done.code == 3,
        reasons: some("kept") || some("skipped"),
    })
}

/// Checks what a run did to the world.
fn judge(
    before: &World,
    after: &World,
    job: Job,
    own_scope: &str,
    ran: &Ran,
) -> Result<(), String> {
    let alive = after.alive();
    for backend in before.alive() {
        if !alive.contains(&backend) {
            return Err(format!("{backend} has no live server any more"));
        }
    }
    for (key, value) in &before.store {
        let mark = marked(key, value);
        let ours = mark.is_some_and(|(_, mark)| mark.0 == "prod" && mark.1 == own_scope);
        if !ours && after.store.get(key) != Some(value) {
            return Err(format!("{key} is not ours and was changed"));
        }
    }
    let right = matches!(job, Job::Right | Job::Shared);
    if !right {
        return Ok(());
    }
    let published =
        |pod: &&Real| pod.serves() && pod.app.is_some() && !pod.unreadable && !pod.sidecar;
    for pod in after.pods.iter().filter(published) {
        let app = APPS[pod.app.expect("it has one")];
        let there = after.store.iter().any(|(key, value)| {
            let url = serde_json::from_str::<Value>(value);
            let url = url
                .ok()
                .and_then(|value| ServerUrl::parse(value["URL"].as_str()?));
            backend(key) == app && url == ServerUrl::parse(&pod.url())
        });
        if !there && !ran.alarms && !ran.reasons {
            return Err(format!("{} is not served, and nothing is said", pod.name));
        }
    }
    if !after.pods.iter().any(|pod| published(&pod)) {
        return Ok(());
    }
    for (key, value) in &after.store {
        let Some((_, (owner, scope, name, url))) = marked(key, value) else {
            continue;
        };
        if owner != "prod" || scope != own_scope {
            continue;
        }
        let mut pods = after.pods.iter();
        let pod = pods.find(|pod| format!("default/{}", pod.name) == name);
        let dead =
            pod.is_none_or(|pod| pod.completed || pod.terminating && !pod.ready && !pod.unreadable);
        // Its address may be that of another pod that wants it just there.
        let app = APPS.iter().position(|app| *app == backend(key));
        let served = |pod: &&Real| published(pod) && pod.app == app && pod.url() == url;
        if dead && !after.pods.iter().any(|pod| served(&pod)) {
            return Err(format!("{key} stays, and its pod is dead"));
        }
    }
    Ok(())
}

fn tell(
    story: &[Event],
    run: &mut dyn FnMut(&mut World, Job) -> Option<Ran>,
    scope_of: &dyn Fn(Job) -> String,
) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for event in story {
        world.happens(event);
        let Event::Run(job) = *event else { continue };
        let before = world.clone();
        let Some(ran) = run(&mut world, job) else {
            prop_assert_eq!(&before.store, &world.store);
            continue;
        };
        let verdict = judge(&before, &world, job, &scope_of(job), &ran);
        prop_assert_eq!(
            verdict,
            Ok(()),
            "{:?}\nbefore {:#?}\nafter {:#?}",
            job,
            before,
            world.store
        );
        let stored = world.store.clone();
        let again = run(&mut world, job).expect("it ran before");
        prop_assert_eq!(&stored, &world.store, "a second run writes: {:?}", job);
        prop_assert_eq!((again.writes, again.alarms), (0, ran.alarms), "{:?}", job);
    }
    Ok(())
}

/// Tells the same stories each time, so that what failed fails again; others with another
/// `VULCANIZED_MODEL_SEED`, a number.
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
fn stories_of_the_core() {
    let stories = prop::collection::vec(any_event(), 4..24);
    let told = runner(20_000).run(&stories, |story| {
        tell(&story, &mut in_process, &|job| scope(job).to_string())
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn stories_of_the_whole_program() {
    let stories = prop::collection::vec(any_event(), 4..16);
    let told = runner(250).run(&stories, |story| {
        let right = story.into_iter().map(|event| match event {
            Event::Run(_) => Event::Run(Job::Right),
            event => event,
        });
        let right = right.collect::<Vec<_>>();
        tell(&right, &mut |world, _| whole(world), &|_| {
            "a@file".to_owned()
        })
    });
    told.unwrap_or_else(|failure| panic!("{failure}"));
}
