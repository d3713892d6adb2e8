//! The core and the file store, driven in this process: listing, mapping, planning, batches, guards.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use proptest::test_runner::TestCaseError;
use vulcanized::layout::{self, Layout, Observed};
use vulcanized::model::{self, ContainerPort, Limits, Op, Scheme, Scope, Transaction};
use vulcanized::net::deadline::Deadline;
use vulcanized::reconcile::batch::batches;
use vulcanized::reconcile::evidence::{Coverage, List, Lists};
use vulcanized::reconcile::map::Mapping;
use vulcanized::reconcile::plan::{Action, Adopt, Plan, Proof, Rule, Rules, plan};
use vulcanized::reconcile::template::Template;
use vulcanized::report::deletes_to_allow;
use vulcanized::store::file::File;
use vulcanized::store::{Applied, Store as _};

use super::judge::{self, Run};
use super::world::{
    Case, Fate, Fault, Flags, Hand, JOBS, Job, NAMESPACES, Phase, Pod, Proxy, State, Step, World,
    case, shown,
};

/// How many stories are told, in each of two tests so that both cores have work.
const CASES: u32 = 10_000;

type Told<T = ()> = Result<T, String>;

/// A world with a store in a file.
struct Site<'c> {
    case: &'c Case,
    world: World,
    path: PathBuf,
    store: File,
    met: &'c Met,
}

/// What the stories came across, and how often: a model that meets nothing proves nothing.
type Met = RefCell<BTreeMap<&'static str, usize>>;

/// What stories must come across.
const EVENTS: [&str; 22] = [
    "create",
    "update",
    "delete",
    "define",
    "terminating",
    "gone",
    "moved",
    "reused",
    "not ready",
    "not selected",
    "unwanted",
    "stays",
    "allowed",
    "adopted",
    "held by majority",
    "held by an empty list",
    "held by a refused second look",
    "held for adoption",
    "kept",
    "conflict",
    "undefined",
    "outdated",
];

/// What one run saw and decided.
struct Decided {
    job: Job,
    flags: Flags,
    pods: Vec<Pod>,
    emptied: BTreeSet<&'static str>,
    second: BTreeMap<String, bool>,
    read: State,
    plan: Plan,
}

impl Decided {
    fn run<'d>(&'d self, case: &Case, prefix: &'d str) -> Run<'d> {
        Run {
            proxy: case.proxy,
            prefix,
            job: self.job,
            flags: self.flags,
            completed_listed: case.completed_listed,
            pods: &self.pods,
            emptied: self.emptied.clone(),
            second: self.second.clone(),
            read: &self.read,
        }
    }
}

fn layout(proxy: Proxy) -> Rc<dyn Layout> {
    let name = match proxy {
        Proxy::Vulcand => "vulcand",
        Proxy::Traefik => "traefik",
    };
    layout::open(name, layout::Options::default()).expect("on etcd v3")
}

fn mapping(proxy: Proxy, job: &Job) -> Mapping {
    let template = |text: &str| Template::parse(text).expect("a template");
    Mapping {
        annotation_prefix: "vulcanized.io/".to_owned(),
        backend_labels: vec!["app".to_owned()],
        backend: template(if job.mixes() {
            "{namespace}.{name}.svc"
        } else {
            "{name}"
        }),
        port: None,
        scheme: Scheme::Http,
        ip_family: None,
        server_id: template(if job.with_port { "{ip}:{port}" } else { "{ip}" }),
        layout: layout(proxy),
    }
}

fn rules(job: &Job, flags: &Flags) -> Rules {
    Rules {
        owner: job.owner.to_owned(),
        scope: Scope::new(
            job.cluster_name(),
            job.tier.map(|tier| format!("tier={tier}")).as_deref(),
            None,
        ),
        adopt: Adopt {
            unmarked: flags.adopt_unmarked,
            scope: flags.adopt_scope,
            owners: BTreeSet::new(),
        },
        share_backends: flags.share,
        create_backends: flags.create,
        strict_ready: flags.strict,
        allow_empty: flags.allow_empty,
        allow_deletes: flags.allow,
        upsert_only: flags.upsert_only,
    }
}

/// A pod as Kubernetes lists it.
fn listed(pod: &Pod) -> model::Pod<'_> {
    let mut labels = BTreeMap::from([("tier".to_owned(), pod.tier.to_owned())]);
    labels.extend(pod.app.map(|app| ("app".to_owned(), app.to_owned())));
    let mut annotations = BTreeMap::new();
    let mut annotate = |name: &str, value: &str| {
        annotations.insert(format!("vulcanized.io/{name}"), value.to_owned());
    };
    if let Some(backends) = pod.backends {
        annotate("backend", backends);
    }
    if pod.ignored {
        annotate("ignore", "true");
    }
    if pod.https {
        annotate("scheme", "https");
    }
    model::Pod {
        namespace: pod.namespace.into(),
        name: pod.name.as_str().into(),
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        phase: match pod.phase {
            Phase::Running => model::Phase::Running,
            Phase::Pending => model::Phase::Pending,
            Phase::Succeeded => model::Phase::Succeeded,
            Phase::Failed => model::Phase::Failed,
        },
        ready: pod.ready,
        terminating: pod.terminating,
        host_network: pod.host,
        ips: pod.ip.map(|ip| [10, 0, 0, ip].into()).into_iter().collect(),
        ports: vec![ContainerPort {
            name: Some("http".into()),
            number: pod.port,
            tcp: true,
            sidecar: false,
        }],
    }
}

impl<'c> Site<'c> {
    fn open(case: &'c Case, folder: &Path, met: &'c Met) -> Self {
        let path = folder.join("store.json");
        let _ = fs::remove_file(&path);
        let day = Duration::from_hours(24);
        let store = File::open(&path, false, Deadline::start(day, day)).expect("it opens");
        let prefix = match case.proxy {
            Proxy::Vulcand => "/vulcand",
            Proxy::Traefik => "traefik",
        };
        let mut site = Self {
            case,
            world: World::new(case, prefix),
            path,
            store,
            met,
        };
        site.store.list(&[""]).expect("it can be listed");
        let ops = site.world.raw().into_iter();
        let ops = ops.map(|(key, value)| (key, Some(value))).collect();
        site.write(ops);
        site
    }

    fn met(&self, event: &'static str) {
        *self.met.borrow_mut().entry(event).or_default() += 1;
    }

    fn count(&self, plan: &Plan) {
        for change in &plan.changes {
            self.met(match change.action {
                Action::Create { .. } => "create",
                Action::Update { .. } => "update",
                Action::Delete { .. } => "delete",
            });
            match change.proof {
                Proof::Define => self.met("define"),
                Proof::Terminating => self.met("terminating"),
                Proof::Gone => self.met("gone"),
                Proof::Moved(_) => self.met("moved"),
                Proof::Reused(_) => self.met("reused"),
                Proof::NotReady => self.met("not ready"),
                Proof::NotSelected => self.met("not selected"),
                Proof::Unwanted(_) => self.met("unwanted"),
                Proof::Stays(_) => self.met("stays"),
                Proof::Allowed(_) => self.met("allowed"),
                Proof::Adopted(_) => self.met("adopted"),
                _ => {}
            }
        }
        for held in &plan.held {
            self.met(match held.rule {
                Rule::Majority { .. } => "held by majority",
                Rule::Unproved { .. } => "held by a refused second look",
                Rule::EmptyList => "held by an empty list",
                Rule::Adopted => "held for adoption",
            });
        }
        for (event, some) in [
            ("kept", !plan.kept.is_empty()),
            ("conflict", !plan.conflicts.is_empty()),
            ("undefined", !plan.undefined.is_empty()),
        ] {
            if some {
                self.met(event);
            }
        }
    }

    /// Writes past the program.
    fn write(&mut self, ops: Vec<judge::Op>) {
        let op = |(key, value)| match value {
            Some(value) => Op::Put { key, value },
            None => Op::Delete { key },
        };
        let transaction = Transaction {
            guards: Vec::new(),
            ops: ops.into_iter().map(op).collect(),
        };
        self.store.apply(&transaction).expect("it can be written");
    }

    fn hand(&mut self, hand: Hand) {
        let ops = self.world.hand(hand);
        self.write(ops);
    }

    /// The store is what the model says, to the byte.
    fn compare(&self) -> Told {
        let found = match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice::<BTreeMap<String, String>>(&text)
                .map_err(|error| error.to_string())?,
            Err(_) => BTreeMap::new(),
        };
        let wanted = self.world.raw();
        if found == wanted {
            return Ok(());
        }
        Err(format!(
            "the store is not what was written: {:?}",
            super::world::changes(&wanted, &found)
        ))
    }

    fn observe(&mut self) -> Told<Observed> {
        let layout = layout(self.case.proxy);
        let ranges = layout.ranges();
        let ranges = ranges.iter().map(String::as_str).collect::<Vec<_>>();
        let snapshot = self.store.list(&ranges).expect("it can be listed");
        layout.observe(snapshot).map_err(|error| error.to_string())
    }

    /// Lists both sides and plans. `None` where the program refuses: no backend is defined.
    fn decide(
        &mut self,
        job: Job,
        flags: Flags,
        fault: Fault,
        meanwhile: impl FnOnce(&mut Self) -> Told,
    ) -> Told<Option<Decided>> {
        let proxy = self.case.proxy;
        let observed = self.observe()?;
        let read = self.world.state.clone();
        let emptied = match fault {
            Fault::Empty(n) => {
                let name = NAMESPACES[usize::from(n) % 2];
                [job.namespaces.map_or("*", |_| name)].into()
            }
            _ => BTreeSet::new(),
        };
        let mut decided = Decided {
            job,
            flags,
            pods: self.world.pods_of(job.cluster),
            emptied,
            second: BTreeMap::new(),
            read,
            plan: Plan::default(),
        };
        let mapping = mapping(proxy, &job);
        let mut lists = Lists {
            selected: job.tier.is_some(),
            ..Lists::default()
        };
        let run = decided.run(self.case, &self.world.prefix);
        for namespace in job.lists() {
            let seen = run.seen().into_iter();
            let own = seen.filter(|pod| namespace.is_none_or(|name| name == pod.namespace));
            lists.lists.push(List {
                coverage: namespace
                    .map_or(Coverage::All, |name| Coverage::Namespace(name.to_owned())),
                pods: own.map(|pod| mapping.map(listed(pod))).collect(),
            });
        }
        meanwhile(self)?;
        let layout = layout(proxy);
        let rules = rules(&job, &flags);
        let Ok(mut decision) = plan(&observed, &lists, &rules, &*layout) else {
            let defined = decided.read.keys().any(|key| {
                super::world::BACKENDS.iter().any(|backend| {
                    let of = self.case.proxy.definition_key(&self.world.prefix, backend);
                    *key == of
                        && decided.read[key].value != "other@file"
                        && decided.read[key].value != r#"{"Type":"tcp"}"#
                })
            });
            if defined {
                return Err("no backend is defined, it says".to_owned());
            }
            return Ok(None);
        };
        if !decision.doubts.is_empty() {
            for namespace in &decision.doubts {
                let refused = fault == Fault::SecondRefused;
                let own = decided.pods.iter().filter(|pod| pod.namespace == namespace);
                let own = own.filter(|pod| !pod.completed());
                let pods = own.map(|pod| mapping.map(listed(pod))).collect();
                let answer = if refused {
                    Err("403".to_owned())
                } else {
                    Ok(pods)
                };
                lists.again.insert(namespace.clone(), answer);
                decided.second.insert(namespace.clone(), !refused);
            }
            let again = plan(&observed, &lists, &rules, &*layout);
            decision = again.map_err(|error| error.to_string())?;
        }
        if !decision.held.is_empty() && !decision.alarms() {
            return Err("something is held, and nobody is told".to_owned());
        }
        self.count(&decision);
        decided.plan = decision;
        Ok(Some(decided))
    }

    /// Applies a plan, `chunk` operations at a time, at most so many transactions. `false` if it is
    /// outdated.
    fn apply(&mut self, decided: &Decided, chunk: u8, most: usize, alone: bool) -> Told<bool> {
        let limits = Limits {
            operations: if chunk == 3 { 128 } else { usize::from(chunk) },
            guards: if chunk == 3 {
                128
            } else {
                usize::from(chunk) + 1
            },
            bytes: 1 << 20,
        };
        let batches = batches(&decided.plan.changes, limits);
        let count = batches.len();
        let mut ops = Vec::<judge::Op>::new();
        let mut outdated = false;
        for batch in batches.into_iter().take(most) {
            match self.store.apply(&batch.transaction).expect("it is written") {
                Applied::Outdated => {
                    self.met("outdated");
                    outdated = true;
                    break;
                }
                Applied::Whole => {}
            }
            for op in batch.transaction.ops {
                let (key, value) = match op {
                    Op::Put { key, value } => (key, Some(value)),
                    Op::Delete { key } => (key, None),
                };
                // Nobody may have written since it was read.
                let now = self.world.state.get(&key);
                if now != decided.read.get(&key) {
                    return Err(format!(
                        "{key} was written over, though it changed since it was read: {now:?}"
                    ));
                }
                if value.is_some()
                    && let Some(backend) = self.case.proxy.backend_of(&self.world.prefix, &key)
                {
                    let definition = self.case.proxy.definition_key(&self.world.prefix, &backend);
                    let own = ops.iter().any(|(key, _)| *key == definition);
                    if !own && !self.world.state.contains_key(&definition) {
                        return Err(format!("{key} was written, and {definition} is gone"));
                    }
                }
                ops.push((key, value));
            }
        }
        let whole = alone && !outdated && most >= count;
        let run = decided.run(self.case, &self.world.prefix);
        let after = run.judge(&ops, whole)?;
        for (key, value) in &ops {
            match value {
                Some(_) => self.world.state.insert(key.clone(), after[key].clone()),
                None => self.world.state.remove(key),
            };
        }
        self.compare()?;
        Ok(!outdated)
    }

    /// One whole run without faults. `None` where the program refuses.
    fn calm(&mut self, job: Job, flags: Flags) -> Told<Option<Decided>> {
        let decided = self.decide(job, flags, Fault::None, |_| Ok(()))?;
        if let Some(decided) = &decided
            && !self.apply(decided, 3, usize::MAX, true)?
        {
            return Err("nobody else wrote, and the plan was outdated".to_owned());
        }
        Ok(decided)
    }

    fn run(&mut self, job: Job, flags: Flags, fault: Fault, chunk: u8) -> Told {
        let flags = Flags {
            // The program refuses this one.
            create: flags.create && self.case.proxy == Proxy::Vulcand,
            ..flags
        };
        let mut rival = None;
        let meanwhile = |site: &mut Self| match fault {
            Fault::Race(other) => {
                let other = JOBS[usize::from(other) % JOBS.len()];
                rival = site.decide(other, Flags::default(), Fault::None, |_| Ok(()))?;
                Ok(())
            }
            Fault::Meanwhile { pod, app, ip } => {
                site.world.pod(
                    pod,
                    Fate::Come {
                        app,
                        ip,
                        host: false,
                    },
                );
                site.calm(job, Flags::default()).map(|_| ())
            }
            Fault::Hand(hand) => {
                site.hand(hand);
                Ok(())
            }
            _ => Ok(()),
        };
        let decided = self.decide(job, flags, fault, meanwhile)?;
        let calm = !matches!(
            fault,
            Fault::Race(_) | Fault::Meanwhile { .. } | Fault::Hand(_)
        );
        if let Some(rival) = rival {
            self.apply(&rival, 3, usize::MAX, false)?;
        }
        let Some(decided) = decided else {
            return Ok(());
        };
        let most = match fault {
            Fault::Kill(n) | Fault::Store(n) => usize::from(n) % 5,
            _ => usize::MAX,
        };
        // A run whose lists failed has decided nothing.
        if matches!(fault, Fault::List(_)) {
            return Ok(());
        }
        if !self.apply(&decided, chunk, most, calm)? {
            if calm {
                return Err("nobody else wrote, and the plan was outdated".to_owned());
            }
            self.calm(job, flags)?;
        }
        Ok(())
    }

    /// When nothing fails any more one run is enough, or says which flag is, and the next has nothing
    /// to do.
    fn converge(&mut self, job: Job) -> Told {
        let Some(first) = self.calm(job, Flags::default())? else {
            return Ok(());
        };
        if !first.plan.held.is_empty() {
            let flags = Flags {
                allow: Some(deletes_to_allow(&first.plan, true)),
                ..Flags::default()
            };
            let second = self.calm(job, flags)?;
            let held = second.map_or(0, |second| second.plan.held.len());
            if held > 0 {
                return Err(format!(
                    "{held} are held, though the printed flag was given"
                ));
            }
        }
        let last = self.calm(job, Flags::default())?;
        let more = last.map_or(Vec::new(), |last| last.plan.changes);
        if more.is_empty() {
            Ok(())
        } else {
            Err(format!("the next run still has something to do: {more:?}"))
        }
    }
}

/// Tells one story.
fn tell(case: &Case, folder: &Path, met: &Met) -> Result<(), TestCaseError> {
    let mut site = Site::open(case, folder, met);
    let fail = |when: &str, site: &Site, why: &str| {
        Err(TestCaseError::fail(format!(
            "{when}: {why}\n{}",
            site.world.shown()
        )))
    };
    for (number, step) in case.steps.iter().enumerate() {
        let before = shown(&site.world.state);
        let told = match *step {
            Step::Pod(slot, fate) => {
                site.world.pod(slot, fate);
                Ok(())
            }
            Step::Empty(namespace) => {
                site.world.empty(namespace);
                Ok(())
            }
            Step::Hand(hand) => {
                site.hand(hand);
                Ok(())
            }
            Step::Run {
                job,
                flags,
                fault,
                chunk,
            } => site.run(JOBS[usize::from(job)], flags, fault, chunk),
        };
        if let Err(why) = told {
            return fail(
                &format!("step {number}"),
                &site,
                &format!("{why}\nbefore the step, {before}"),
            );
        }
    }
    let before = shown(&site.world.state);
    if let Err(why) = site.converge(JOBS[usize::from(case.last)]) {
        return fail(
            "at the end",
            &site,
            &format!("{why}\nbefore the end, {before}"),
        );
    }
    Ok(())
}

/// Tells so many stories, on a file system in memory where there is one.
pub fn stories(cases: u32, length: usize) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder");
    let met = Met::default();
    let told =
        super::runner(cases, 20_000).run(&case(length), |case| tell(&case, folder.path(), &met));
    if let Err(failure) = told {
        panic!("{failure}");
    }
    let met = met.into_inner();
    let missed = EVENTS.iter().filter(|event| !met.contains_key(*event));
    let missed = missed.collect::<Vec<_>>();
    assert!(missed.is_empty(), "never met: {missed:?}; met: {met:?}");
}

#[test]
fn short_stories() {
    stories(CASES, 8);
}

#[test]
fn long_stories() {
    stories(CASES, 16);
}
