//! The program itself on a real etcd, with a stand-in API server and a wire that loses things: each story
//! under a prefix of its own. What it wrote is what a watch saw, in that order.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};
use std::sync::{Arc, Mutex};

use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use super::judge::{Op, Run};
use super::world::{
    Case, Fault, Flags, JOBS, Job, NAMESPACES, Phase, Pod, Proxy as Balancer, Step, World, case,
    shown,
};
use crate::support::api::{Api, Framing, Reply, Request, list};
use crate::support::etcd::{Etcd, Version};
use crate::support::program::{Answer, Program, vulcanized};
use crate::support::proxy::{Loss, Proxy};

/// How many stories are told, in each of two tests so that both cores have work.
const CASES: u32 = 125;

type Told<T = ()> = Result<T, String>;

/// What the API server has, and what is wrong with it.
#[derive(Default)]
struct Served {
    pods: Vec<Value>,
    selects: bool,
    emptied: BTreeSet<&'static str>,
    second_refused: bool,
    broken: Option<u8>,
}

impl Served {
    fn answer(&self, request: &Request) -> Reply {
        let second = self.selects && !request.query.contains_key("labelSelector");
        if second && self.second_refused {
            return Reply::recorded("errors/403-other-namespace");
        }
        let namespace = request.path.strip_prefix("/api/v1/namespaces/");
        let namespace = namespace.and_then(|rest| rest.strip_suffix("/pods"));
        let emptied = !second && self.emptied.contains(namespace.unwrap_or("*"));
        let pods = if emptied { &[][..] } else { &self.pods };
        let mut reply = list(pods, request, 2);
        let last = !String::from_utf8_lossy(&reply.body).contains("\"continue\"");
        match self.broken.map(|how| how % 6) {
            Some(0) => return Reply::new(302, "text/plain", "").header("Location", "http://x/"),
            Some(1) => return Reply::new(200, "text/html", "<html>sign in</html>"),
            Some(2) => reply.cut = Some(reply.body.len() / 2),
            // The last page: the others were whole.
            Some(3) if last => {
                reply.cut = Some(reply.body.len() - 2);
                reply.framing = Framing::Neither;
            }
            Some(5) => return Reply::recorded("errors/403-other-namespace"),
            Some(4) if last => return Reply::recorded("errors/404-unknown-path"),
            _ => {}
        }
        reply
    }
}

/// All that is written to an etcd, in order.
struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    marks: usize,
}

impl Watch {
    fn start(etcd: &Etcd) -> Self {
        let mut child = etcd.watch("", "1");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        Self {
            child,
            lines,
            marks: 0,
        }
    }

    /// What was written under a prefix since this was last asked.
    fn events(&mut self, etcd: &Etcd, prefix: &str) -> Vec<Op> {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        etcd.put(&mark, "");
        let mut next = || {
            self.lines
                .next()
                .expect("the watch goes on")
                .expect("a line")
        };
        let mut events = Vec::new();
        loop {
            let (kind, key, value) = (next(), next(), next());
            if key == mark {
                return events;
            }
            if key.starts_with(prefix) {
                events.push((key, (kind == "PUT").then_some(value)));
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all stories of one test share.
struct Stage {
    etcd: Etcd,
    api: Api,
    kubeconfig: tempfile::NamedTempFile,
    served: Arc<Mutex<Served>>,
    watch: std::cell::RefCell<Watch>,
    story: Cell<usize>,
    runs: Cell<usize>,
}

impl Stage {
    fn set(version: Version) -> Self {
        let etcd = Etcd::version(version);
        let served = Arc::new(Mutex::new(Served::default()));
        let seen = Arc::clone(&served);
        let api = Api::start(move |request, _| seen.lock().expect("no panic").answer(request));
        Self {
            watch: Watch::start(&etcd).into(),
            kubeconfig: api.plain_kubeconfig(),
            etcd,
            api,
            served,
            story: Cell::new(0),
            runs: Cell::new(0),
        }
    }
}

struct Site<'s> {
    stage: &'s Stage,
    case: &'s Case,
    world: World,
}

/// A pod as the API shows it.
fn listed(pod: &Pod) -> Value {
    let mut meta = json!({
        "namespace": pod.namespace, "name": pod.name,
        "labels": { "tier": pod.tier }, "annotations": {},
    });
    if let Some(app) = pod.app {
        meta["labels"]["app"] = json!(app);
    }
    if let Some(backends) = pod.backends {
        meta["annotations"]["vulcanized.io/backend"] = json!(backends);
    }
    if pod.ignored {
        meta["annotations"]["vulcanized.io/ignore"] = json!("true");
    }
    if pod.https {
        meta["annotations"]["vulcanized.io/scheme"] = json!("https");
    }
    if pod.terminating {
        meta["deletionTimestamp"] = json!("2026-11-22T21:00:00Z");
    }
    let mut status = json!({
        "phase": match pod.phase {
            Phase::Running => "Running",
            Phase::Pending => "Pending",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        },
        "conditions": [{ "type": "Ready", "status": if pod.ready { "True" } else { "False" } }],
    });
    if let Some(ip) = pod.ip {
        let ip = format!("10.0.0.{ip}");
        status["podIPs"] = json!([{ "ip": ip }]);
        status["podIP"] = json!(ip);
    }
    json!({
        "metadata": meta,
        "spec": {
            "hostNetwork": pod.host,
            "containers": [{ "ports": [{ "name": "http", "containerPort": pod.port }] }],
        },
        "status": status,
    })
}

impl<'s> Site<'s> {
    fn open(stage: &'s Stage, case: &'s Case) -> Self {
        let story = stage.story.get() + 1;
        stage.story.set(story);
        let prefix = match case.proxy {
            Balancer::Vulcand => format!("/story-{story}"),
            Balancer::Traefik => format!("story-{story}"),
        };
        let site = Self {
            stage,
            case,
            world: World::new(case, &prefix),
        };
        for (key, value) in site.world.raw() {
            stage.etcd.put(&key, &value);
        }
        site.events();
        site
    }

    /// What was written since this was last asked, under this story's prefix.
    fn events(&self) -> Vec<Op> {
        let prefix = format!("{}/", self.world.prefix);
        self.stage
            .watch
            .borrow_mut()
            .events(&self.stage.etcd, &prefix)
    }

    fn program(&self, job: &Job, flags: &Flags, etcd: &str) -> Program {
        self.stage.runs.set(self.stage.runs.get() + 1);
        let mut all = format!(
            "--owner {} --cluster {} --etcd {etcd} --prefix {} --backend-label app -o json \
             --timeout 5s --request-timeout 1s {}",
            job.owner,
            job.cluster_name(),
            self.world.prefix,
            flags.arguments(),
        );
        if self.case.proxy == Balancer::Traefik {
            all += " --layout traefik";
        }
        match job.namespaces {
            None => all += " -A",
            Some(names) => names.iter().for_each(|name| all.extend([" -n ", name])),
        }
        if let Some(tier) = job.tier {
            all.extend([" -l tier=", tier]);
        }
        if job.mixes() {
            all += " --backend {namespace}.{name}.svc";
        }
        if job.with_port {
            all += " --server-id {ip}:{port}";
        }
        vulcanized(&all)
            .arg("--kubeconfig")
            .arg(self.stage.kubeconfig.path())
    }

    /// The store is what the model says, to the byte.
    fn compare(&self) -> Told {
        let found = self.stage.etcd.get(&format!("{}/", self.world.prefix));
        let found = found.into_iter().collect::<BTreeMap<_, _>>();
        let wanted = self.world.raw();
        if found == wanted {
            return Ok(());
        }
        let differ = super::world::changes(&wanted, &found);
        Err(format!("the store is not what was written: {differ:?}"))
    }

    /// The namespaces that were listed without the job's selector since so many requests, and whether
    /// that was answered.
    fn second_looks(&self, asked: usize, job: &Job, fault: Fault) -> BTreeMap<String, bool> {
        let requests = self.stage.api.requests();
        let second = requests[asked..]
            .iter()
            .filter(|request| job.tier.is_some() && !request.query.contains_key("labelSelector"));
        let second = second.filter_map(|request| {
            let rest = request.path.strip_prefix("/api/v1/namespaces/")?;
            let answered = fault != Fault::SecondRefused;
            Some((rest.strip_suffix("/pods")?.to_owned(), answered))
        });
        second.collect()
    }

    /// One run, judged. Its report, if it has one.
    fn run(&mut self, job: Job, flags: Flags, fault: Fault) -> Told<Option<Value>> {
        let flags = Flags {
            // The program refuses this one.
            create: flags.create && self.case.proxy == Balancer::Vulcand,
            ..flags
        };
        let pods = self.world.pods_of(job.cluster);
        let emptied = match fault {
            Fault::Empty(n) => {
                let name = NAMESPACES[usize::from(n) % 2];
                [job.namespaces.map_or("*", |_| name)].into()
            }
            _ => BTreeSet::new(),
        };
        *self.stage.served.lock().expect("no panic") = Served {
            pods: pods.iter().map(listed).collect(),
            selects: job.tier.is_some(),
            emptied: emptied.clone(),
            second_refused: fault == Fault::SecondRefused,
            broken: match fault {
                Fault::List(how) => Some(how),
                _ => None,
            },
        };
        let direct = self.stage.etcd.url();
        let calm = matches!(fault, Fault::None | Fault::Empty(_) | Fault::SecondRefused);
        let dry = calm.then(|| self.program(&job, &flags, &direct).arg("--dry-run").run());
        if dry.is_some() && !self.events().is_empty() {
            return Err("a dry run wrote".to_owned());
        }
        let asked = self.stage.api.requests().len();
        let answers = match fault {
            // Two at once: the guards make one of what they do.
            Fault::Race(_) => {
                let both = [(); 2].map(|()| self.program(&job, &flags, &direct).start());
                both.map(|child| Answer::from(child.wait_with_output().expect("it ends")))
                    .into()
            }
            Fault::Kill(n) | Fault::Store(n) => {
                let loss = match fault {
                    Fault::Kill(_) => Loss::Everything,
                    _ => Loss::Answers,
                };
                let proxy = Proxy::start(self.stage.etcd.port(), loss, 200 + 16 * usize::from(n));
                vec![self.program(&job, &flags, &proxy.url()).run()]
            }
            _ => vec![self.program(&job, &flags, &direct).run()],
        };
        let ops = self.events();
        let said = || format!("\n{}", answers[0]);
        let failed = answers.iter().any(|answer| answer.code == 1);
        if answers
            .iter()
            .any(|answer| ![0, 1, 3].contains(&answer.code))
        {
            return Err(format!("an exit code of its own{}", said()));
        }
        let undefined = answers[0].err.contains("no backend is defined");
        if calm && failed && !undefined {
            return Err(format!("it failed, and nothing was wrong{}", said()));
        }
        if (matches!(fault, Fault::List(_)) || undefined) && !(failed && ops.is_empty()) {
            return Err(format!("it did not fail, or it wrote: {ops:?}{}", said()));
        }
        let run = Run {
            proxy: self.case.proxy,
            prefix: &self.world.prefix,
            job,
            flags,
            completed_listed: false,
            pods: &pods,
            emptied,
            second: self.second_looks(asked, &job, fault),
            read: &self.world.state,
        };
        let after = run.judge(&ops, calm && !failed);
        let after = after.map_err(|why| format!("{why}\n{ops:?}{}", said()))?;
        for (key, value) in &ops {
            match value {
                Some(_) => self.world.state.insert(key.clone(), after[key].clone()),
                None => self.world.state.remove(key),
            };
        }
        self.compare()?;
        if failed {
            return Ok(None);
        }
        let report = |answer: &Answer| serde_json::from_str::<Value>(&answer.out).expect("JSON");
        let done = report(&answers[0]);
        let held = done["held"].as_array().is_some_and(|held| !held.is_empty());
        if held && answers[0].code != 3 {
            return Err(format!("something is held, and nobody is told{}", said()));
        }
        if let Some(dry) = dry {
            let planned = report(&dry);
            for part in ["changes", "held", "kept", "conflicts", "findings"] {
                if planned[part] != done[part] {
                    return Err(format!("the dry run said something else: {dry}{}", said()));
                }
            }
        }
        Ok(Some(done))
    }

    /// When nothing fails any more one run is enough, or says which flag is, and the next has nothing
    /// to do.
    fn converge(&mut self, job: Job) -> Told {
        let Some(first) = self.run(job, Flags::default(), Fault::None)? else {
            return Ok(());
        };
        let none = |list: &Value| list.as_array().is_some_and(Vec::is_empty);
        if !none(&first["held"]) {
            let allow = first["allow_deletes"].as_u64();
            let allow = allow.and_then(|allow| usize::try_from(allow).ok());
            let flags = Flags {
                allow: Some(allow.ok_or("no number lifts what is held")?),
                ..Flags::default()
            };
            let second = self.run(job, flags, Fault::None)?;
            if second.is_some_and(|second| !none(&second["held"])) {
                return Err("something is held, though the printed flag was given".to_owned());
            }
        }
        let last = self.run(job, Flags::default(), Fault::None)?;
        if last.is_some_and(|last| !none(&last["changes"])) {
            return Err("the next run still has something to do".to_owned());
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Told {
        match step {
            Step::Pod(slot, fate) => self.world.pod(slot, fate),
            Step::Empty(namespace) => self.world.empty(namespace),
            Step::Hand(hand) => {
                for (key, value) in self.world.hand(hand) {
                    match value {
                        Some(value) => self.stage.etcd.put(&key, &value),
                        None => self.stage.etcd.delete(&key),
                    }
                }
                self.events();
            }
            Step::Run {
                job, flags, fault, ..
            } => {
                let fault = match fault {
                    // These are told in this process only, where a moment can be chosen.
                    Fault::Hand(_) | Fault::Meanwhile { .. } => Fault::None,
                    fault => fault,
                };
                self.run(JOBS[usize::from(job)], flags, fault)?;
            }
        }
        Ok(())
    }
}

/// Tells one story.
fn tell(stage: &Stage, case: &Case) -> Result<(), TestCaseError> {
    let mut site = Site::open(stage, case);
    let fail = |when: &str, site: &Site, before: &str, why: &str| {
        let world = site.world.shown();
        Err(TestCaseError::fail(format!(
            "{when}: {why}\nbefore, {before}\n{world}"
        )))
    };
    for (number, step) in case.steps.iter().enumerate() {
        let before = shown(&site.world.state);
        if let Err(why) = site.step(*step) {
            return fail(&format!("step {number}"), &site, &before, &why);
        }
    }
    let before = shown(&site.world.state);
    if let Err(why) = site.converge(JOBS[usize::from(case.last)]) {
        return fail("at the end", &site, &before, &why);
    }
    Ok(())
}

fn stories(version: Version) {
    let stage = Stage::set(version);
    let told = super::runner(CASES, 300).run(&case(10), |case| tell(&stage, &case));
    if let Err(failure) = told {
        panic!("{failure}");
    }
    let runs = stage.runs.get();
    assert!(runs > 4 * CASES as usize, "{runs} runs");
}

#[test]
fn stories_on_etcd_3_4() {
    stories(Version::V34);
}

#[test]
fn stories_on_etcd_3_5() {
    stories(Version::V35);
}
