//! etcd with faults in the middle of a run: members lost, answers lost, other runs, signals.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::api::{Api, Reply, kubectl, list, pod, web};
use crate::support::etcd::{Etcd, Settings, VERSIONS, Version, poll, signal};
use crate::support::program::{Answer, PodsFile, Program, ended, vulcanized};
use crate::support::proxy::{Loss, Proxy};

const BACKENDS: &str = "/vulcand/backends/";
const DEFINITION: &str = r#"{"Type":"http"}"#;
/// A foreign server in a backend of ours.
const FOREIGN: (&str, &str) = (
    "/vulcand/backends/b00/servers/by-hand",
    r#"{"URL":"http://192.168.0.1:80"}"#,
);

/// Pods of `backends` backends with `each` pods of fixed names, whose addresses depend on the `view`.
#[derive(Clone, Copy)]
struct Pods {
    backends: usize,
    each: usize,
}

const MANY: Pods = Pods {
    backends: 10,
    each: 100,
};
const FEW: Pods = Pods {
    backends: 5,
    each: 10,
};

/// Server keys, by backend.
type Servers = BTreeMap<String, BTreeSet<String>>;

impl Pods {
    fn backend(self, n: usize) -> String {
        format!("b{:02}", n / self.each)
    }

    fn address(view: u64, n: usize) -> String {
        format!("10.{view}.{}.{}", n / 200, n % 200 + 1)
    }

    /// In which view each pod is.
    fn all(self, view: u64) -> Vec<Option<u64>> {
        vec![Some(view); self.backends * self.each]
    }

    /// The pods, each in its view, if it is there.
    fn pods(self, views: &[Option<u64>]) -> Vec<Value> {
        let views = views.iter().enumerate();
        let pods = views.filter_map(|(n, &view)| {
            let (backend, address) = (self.backend(n), Self::address(view?, n));
            Some(pod(
                "default",
                &format!("{backend}-{n}"),
                &backend,
                &address,
            ))
        });
        pods.collect()
    }

    /// Their servers.
    fn servers_of(self, views: &[Option<u64>]) -> Servers {
        let mut servers = Servers::new();
        for (n, &view) in views.iter().enumerate() {
            let backend = self.backend(n);
            let prefix = format!("{BACKENDS}{backend}/servers/");
            let key = view.map(|view| prefix + &Self::address(view, n));
            servers.entry(backend).or_default().extend(key);
        }
        servers
    }

    fn view(self, view: u64) -> Vec<Value> {
        self.pods(&self.all(view))
    }

    fn servers(self, view: u64) -> Servers {
        self.servers_of(&self.all(view))
    }

    fn file(self, folder: &Path, view: u64) -> String {
        let path = folder.join(format!("pods-{view}.json"));
        std::fs::write(&path, kubectl(self.view(view))).expect("it is written");
        path.display().to_string()
    }

    /// Defines the backends and adds a foreign server.
    fn prepare(self, store: &dyn Look) {
        for backend in self.servers(1).keys() {
            store.set(&format!("{BACKENDS}{backend}/backend"), DEFINITION);
        }
        store.set(FOREIGN.0, FOREIGN.1);
    }

    /// Whether the store is exactly as a view wants it.
    fn is(self, found: &BTreeMap<String, String>, view: u64) -> bool {
        exact(found, &self.servers(view))
    }

    /// What is there is whole and of one of these views, and no backend lost an old server before all its new ones
    /// were there.
    #[track_caller]
    fn unbroken(self, found: &BTreeMap<String, String>, old: u64, new: u64) {
        let (old, new) = (self.servers(old), self.servers(new));
        whole(found, &[&old, &new]);
        for (backend, old) in &old {
            let all = |keys: &BTreeSet<String>| keys.iter().all(|key| found.contains_key(key));
            assert!(
                all(old) || all(&new[backend]),
                "{backend} lost servers before it got the new ones"
            );
        }
    }

    /// How many changes from one view to another are in the store.
    fn done(self, found: &BTreeMap<String, String>, old: u64, new: u64) -> usize {
        let new = self.servers(new).into_values().flatten();
        let old = self.servers(old).into_values().flatten();
        new.filter(|key| found.contains_key(key)).count()
            + old.filter(|key| !found.contains_key(key)).count()
    }
}

/// Whether the store holds these servers, their definitions and the foreign server, and nothing else.
fn exact(found: &BTreeMap<String, String>, servers: &Servers) -> bool {
    let mut wanted = servers.values().flatten().cloned().collect::<BTreeSet<_>>();
    wanted.insert(FOREIGN.0.to_owned());
    wanted.extend(
        servers
            .keys()
            .map(|backend| format!("{BACKENDS}{backend}/backend")),
    );
    found.keys().eq(&wanted)
}

/// The foreign server is as it was, every value is whole, and each server is of one of these views.
#[track_caller]
fn whole(found: &BTreeMap<String, String>, views: &[&Servers]) {
    assert_eq!(found.get(FOREIGN.0).map(String::as_str), Some(FOREIGN.1));
    for (key, value) in found {
        let value = serde_json::from_str::<Value>(value).expect("whole values");
        if key.ends_with("/backend") {
            assert_eq!(value, json!({"Type": "http"}), "{key}");
        } else if key != FOREIGN.0 {
            let (_, address) = key.rsplit_once('/').expect("a key");
            assert_eq!(value["URL"], format!("http://{address}:8080"), "{key}");
            let backend = &key[BACKENDS.len()..][..3];
            let known =
                (views.iter()).any(|view| view.get(backend).is_some_and(|keys| keys.contains(key)));
            assert!(known, "{key}");
        }
    }
}

/// A store as the tests see it, past the program.
trait Look {
    fn set(&self, key: &str, value: &str);
    fn all(&self) -> BTreeMap<String, String>;
    fn api(&self) -> &'static str;
}

struct V3<'e>(&'e Etcd);
struct V2<'e>(&'e Etcd);

impl Look for V3<'_> {
    fn set(&self, key: &str, value: &str) {
        self.0.put(key, value);
    }

    fn all(&self) -> BTreeMap<String, String> {
        self.0.get("/vulcand").into_iter().collect()
    }

    fn api(&self) -> &'static str {
        "3"
    }
}

impl Look for V2<'_> {
    fn set(&self, key: &str, value: &str) {
        self.0.put_v2(key, Some(value));
    }

    fn all(&self) -> BTreeMap<String, String> {
        let mut found = self.0.below_v2("/vulcand");
        found.retain(|key, _| !key.ends_with('/'));
        found
    }

    fn api(&self) -> &'static str {
        "2"
    }
}

fn program(endpoints: &str, more: &str) -> Program {
    let arguments = "--owner prod --cluster c1@00000000 --timeout 30s";
    vulcanized(&format!("{arguments} --etcd {endpoints} {more}"))
        .env("VULCANIZED_REQUEST_TIMEOUT", "5s")
}

/// The lines that report a change.
fn reported(answer: &Answer) -> Vec<&str> {
    let lines = answer.out.lines();
    lines.filter(|line| line.starts_with(['+', '-'])).collect()
}

/// A run paused while applying: it has printed its first change and blocks as soon as its stdout pipe is full.
struct Held {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    lines: Vec<String>,
}

impl Held {
    fn start(program: Program) -> Self {
        let mut child = program.start();
        let mut out = BufReader::with_capacity(1, child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line)
            .expect("the first change is printed");
        Self {
            child,
            out,
            lines: vec![line],
        }
    }

    /// Reads its output to the end and waits for it.
    fn finish(mut self) -> Answer {
        let mut stderr = self.child.stderr.take().expect("piped");
        let err = thread::spawn(move || {
            let mut err = String::new();
            stderr.read_to_string(&mut err).expect("UTF-8");
            err
        });
        let mut out = self.lines.concat();
        let rest = BufReader::new(self.out).lines();
        for line in rest {
            out.push_str(&line.expect("UTF-8"));
            out.push('\n');
        }
        let status = self.child.wait().expect("it ends");
        Answer {
            code: status.code().unwrap_or(-1),
            out,
            err: err.join().expect("it is read"),
        }
    }
}

/// When a member is lost.
#[derive(Debug, Clone, Copy)]
enum Moment {
    BeforeTheRun,
    /// The store is listed, but nothing is planned yet.
    Listing,
    /// The first change is printed.
    Applying,
}

/// One member after the other is lost, before and in the middle of a run of 2,000 changes.
fn members_lost(version: Version) {
    let pods = MANY;
    let mut members = Etcd::cluster(version, &Settings::default());
    let urls = members.iter().map(Etcd::url).collect::<Vec<_>>().join(",");
    pods.prepare(&V3(&members[0]));
    let views = [1, 2].map(|view| pods.view(view));
    let api = |view: u64, when_listed: Option<Box<dyn Fn() + Send + Sync>>| {
        let pods = views[usize::from(view == 2)].clone();
        let api = Api::start(move |request, number| {
            if let (0, Some(act)) = (number, &when_listed) {
                act();
            }
            list(&pods, request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        (api, kubeconfig)
    };
    let run =
        |kubeconfig: &tempfile::NamedTempFile| program(&urls, "").kubeconfig(kubeconfig).run();
    // One of the next runs succeeds: while the others choose a leader, a run may fail.
    let completes = |view| {
        let (_api, kubeconfig) = api(view, None);
        let mut answer = run(&kubeconfig);
        for _ in 0..2 {
            if answer.code == 0 {
                break;
            }
            answer = run(&kubeconfig);
        }
        assert_eq!(answer.code, 0, "{answer}");
        answer
    };
    completes(1);
    let (mut old, mut new) = (1, 2);
    let mut failed = Vec::new();
    for lost in 0..members.len() {
        for how in ["KILL", "STOP"] {
            for moment in [Moment::BeforeTheRun, Moment::Listing, Moment::Applying] {
                let process = members[lost].process();
                let lose = move || signal(process, how);
                let (_api, kubeconfig) = match moment {
                    Moment::Listing => api(new, Some(Box::new(lose))),
                    Moment::BeforeTheRun | Moment::Applying => api(new, None),
                };
                let answer = match moment {
                    Moment::BeforeTheRun => {
                        lose();
                        run(&kubeconfig)
                    }
                    Moment::Listing => run(&kubeconfig),
                    Moment::Applying => {
                        let held = Held::start(program(&urls, "").kubeconfig(&kubeconfig));
                        lose();
                        held.finish()
                    }
                };
                let witness = &members[(lost + 1) % 3];
                let found = V3(witness).all();
                match answer.code {
                    0 => assert!(pods.is(&found, new), "{answer}"),
                    1 => failed.push(format!("{lost} {how} {moment:?}: {answer}")),
                    _ => panic!("{answer}"),
                }
                pods.unbroken(&found, old, new);
                let answer = completes(new);
                assert!(pods.is(&V3(witness).all(), new), "without it: {answer}");
                if how == "STOP" {
                    members[lost].signal("CONT");
                    members[lost].wait();
                } else {
                    members[lost].restart();
                }
                let answer = completes(new);
                assert!(pods.is(&V3(&members[lost]).all(), new), "with it: {answer}");
                (old, new) = (new, old);
            }
        }
    }
    // Every run could succeed, because two members are a majority.
    assert!(failed.len() <= 3, "of 18 runs failed: {failed:#?}");
}

#[test]
fn each_of_three_members_killed_or_stopped_on_3_4() {
    members_lost(Version::V34);
}

#[test]
fn each_of_three_members_killed_or_stopped_on_3_5() {
    members_lost(Version::V35);
}

/// The answer to a transaction, or the transaction itself, is lost on the wire.
#[test]
fn lost_requests_and_answers_are_resolved_by_reading_the_store() {
    let pods = Pods {
        backends: 6,
        each: 100,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let views = [1, 2].map(|view| pods.file(folder.path(), view));
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        let store = V3(&etcd);
        pods.prepare(&store);
        program(&etcd.url(), &format!("--pods {}", views[0])).exits(0);
        let (mut old, mut new) = (1, 2);
        for loss in [Loss::Answers, Loss::Requests, Loss::Connection] {
            // One of the first transactions, one in the middle, one of the last.
            for after in [2_000, 60_000, 130_000] {
                let before = etcd.revision();
                let proxy = Proxy::start(etcd.port(), loss, after);
                let pods_file = &views[usize::from(new == 2)];
                let more = format!("--pods {pods_file} --request-timeout 3s");
                let answer = program(&proxy.url(), &more).exits(0);
                assert!(proxy.dropped() > 0, "nothing was lost");
                assert!(pods.is(&store.all(), new), "{answer}");
                // Each change was reported once and written once: 1,200 in about 12 transactions.
                let reported = reported(&answer);
                assert_eq!(reported.len(), 1200, "{answer}");
                assert_eq!(reported.iter().collect::<BTreeSet<_>>().len(), 1200);
                assert!(answer.out.contains("600 created"), "{answer}");
                let written = etcd.revision() - before;
                assert!(written <= 12, "{written} transactions");
                (old, new) = (new, old);
            }
        }
    }
}

#[test]
fn unknown_changes_are_reported() {
    let pods = Pods {
        backends: 6,
        each: 100,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let views = [1, 2].map(|view| format!("--pods {}", pods.file(folder.path(), view)));
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        for store in [&V3(&etcd) as &dyn Look, &V2(&etcd)] {
            pods.prepare(store);
            for loss in [Loss::Everything, Loss::Server] {
                let [first, second] = &views
                    .each_ref()
                    .map(|view| format!("--etcd-api {} {view}", store.api()));
                program(&etcd.url(), first).exits(0);
                let proxy = Proxy::start(etcd.port(), loss, 60_000);
                let lossy = format!("{second} --request-timeout 3s");
                let answer = program(&proxy.url(), &lossy).exits(1);
                let found = store.all();
                pods.unbroken(&found, 1, 2);
                // The message states how many changes were applied and how many are unknown.
                let counts = answer.err.split_once("applied ").expect("how far it got").1;
                let mut numbers =
                    (counts.split_whitespace()).filter_map(|word| word.parse::<usize>().ok());
                let mut number = || numbers.next().unwrap_or_else(|| panic!("{answer}"));
                let (applied, planned) = (number(), number());
                // On v2 the answer to a read before a write may be lost; then nothing is unknown.
                let lost = answer.err.contains("more unknown");
                assert!(lost || store.api() == "2", "{answer}");
                let unknown = if lost { number() } else { 0 };
                assert!(unknown <= 126, "more than a transaction holds: {answer}");
                assert_eq!(planned, 1200, "{answer}");
                assert_eq!(reported(&answer).len(), applied, "{answer}");
                assert_eq!(
                    pods.done(&found, 1, 2),
                    applied + unknown,
                    "all answers were lost after the write"
                );
                program(&etcd.url(), second).exits(0);
                assert!(pods.is(&store.all(), 2));
            }
        }
    }
}

/// A small random generator, the same in each run of the tests.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Two runs of one job at once, whose views of the pods overlap at random.
fn two_at_once(store: &dyn Look, url: &str, rounds: usize) {
    let pods = Pods {
        backends: 3,
        each: 8,
    };
    pods.prepare(store);
    let mut random = Random::new();
    let run = |pods: &[Value], delay: u64| {
        let pods = pods.to_vec();
        let api = Api::start(move |request, _| {
            thread::sleep(Duration::from_millis(delay));
            list(&pods, request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let program = program(url, &format!("--etcd-api {}", store.api()));
        (program.kubeconfig(&kubeconfig).start(), api, kubeconfig)
    };
    // The server and the kubeconfig are there until it has ended.
    let end = |(child, _api, _kubeconfig)| ended(child);
    let mut before = Servers::new();
    for round in 0..rounds {
        let mut view = || {
            // A pod is absent, or at one of three addresses.
            let views = (0..pods.backends * pods.each).map(|_| match random.below(4) {
                0 => None,
                view => Some(view),
            });
            let views = views.collect::<Vec<_>>();
            (pods.pods(&views), pods.servers_of(&views))
        };
        let ((older, first), (younger, second)) = (view(), view());
        let one = run(&older, random.below(40));
        thread::sleep(Duration::from_millis(random.below(30)));
        let two = run(&younger, random.below(40));
        let [one, two] = [one, two].map(end);
        let found = store.all();
        let what = format!("round {round}: {one}{two}{found:#?}");
        assert!(
            [0, 1].contains(&one.code) && [0, 1].contains(&two.code),
            "{what}"
        );
        whole(&found, &[&before, &first, &second]);
        let quiet = end(run(&younger, 0));
        assert_eq!(quiet.code, 0, "{what}{quiet}");
        let found = store.all();
        assert!(exact(&found, &second), "{what}{quiet}{found:#?}");
        whole(&found, &[&second]);
        before = second;
    }
}

#[test]
fn two_runs_at_once_on_v3() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        two_at_once(&V3(&etcd), &etcd.url(), 50);
    }
}

#[test]
fn two_runs_at_once_on_v2() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        two_at_once(&V2(&etcd), &etcd.url(), 50);
    }
}

/// Runs are ended by a signal at a random moment, `times` of them before they ended by themselves.
fn ended_by(name: &str, store: &dyn Look, url: &str, pods: Pods, times: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let views = [1, 2].map(|view| pods.file(folder.path(), view));
    let run = |view: u64| {
        let pods = &views[usize::from(view == 2)];
        program(url, &format!("--pods {pods} --etcd-api {}", store.api()))
    };
    pods.prepare(store);
    run(1).exits(0);
    let begin = Instant::now();
    run(2).exits(0);
    let usual = begin.elapsed().as_micros();
    let mut usual = u64::try_from(usual).expect("not that long");
    let (mut old, mut new) = (2, 1);
    let mut random = Random::new();
    let mut stopped = 0;
    for round in 0.. {
        if stopped == times {
            break;
        }
        assert!(round < 10 * times, "only {stopped} runs were caught");
        let child = run(new).start();
        let id = child.id();
        let (done, is_done) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let answer = ended(child);
            let _ = done.send(());
            answer
        });
        let moment = Duration::from_micros(random.below(usual));
        if is_done.recv_timeout(moment).is_err() {
            // It may have ended by itself just now.
            let _ = Command::new("kill")
                .args([format!("-{name}"), id.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        let answer = waiting.join().expect("it ends");
        let found = store.all();
        pods.unbroken(&found, old, new);
        match (answer.code, name) {
            (0, _) => {
                // The machine may be faster now: the next signals come earlier.
                usual = (usual * 3 / 4).max(1);
                assert!(pods.is(&found, new), "{answer}");
            }
            (1, "TERM") => {
                stopped += 1;
                usual = usual * 5 / 4;
                assert!(answer.err.contains("ended by SIGTERM"), "{answer}");
                let done = pods.done(&found, old, new);
                let reported = reported(&answer).len();
                assert_eq!(reported, done, "each change was reported: {answer}");
            }
            // The signal may arrive before the handlers are installed.
            (-1, _) => {
                stopped += 1;
                usual = usual * 5 / 4;
            }
            _ => panic!("{answer}"),
        }
        let next = run(new).exits(0);
        assert!(pods.is(&store.all(), new), "round {round}: {next}");
        (old, new) = (new, old);
    }
}

#[test]
fn sigterm_at_any_moment() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        ended_by("TERM", &V3(&etcd), &etcd.url(), MANY, 20);
        ended_by("TERM", &V2(&etcd), &etcd.url(), FEW, 5);
    }
}

#[test]
fn sigkill_at_any_moment() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        ended_by("KILL", &V3(&etcd), &etcd.url(), MANY, 20);
        ended_by("KILL", &V2(&etcd), &etcd.url(), FEW, 5);
    }
}

#[test]
fn signals_end_a_listing_run_also_as_pid_1() {
    let etcd = Etcd::start();
    etcd.define("web");
    let (sender, listed) = mpsc::channel();
    let api = Api::start(move |_, _| {
        sender.send(()).expect("the test listens");
        let mut reply = Reply::new(200, "application/json", "");
        reply.silent = true;
        reply
    });
    let kubeconfig = api.plain_kubeconfig();
    for name in ["TERM", "INT"] {
        let arguments = format!("--owner prod --etcd {} --request-timeout 20s", etcd.url());
        let child = vulcanized(&arguments).kubeconfig(&kubeconfig).start();
        listed
            .recv_timeout(Duration::from_mins(1))
            .expect("the pods are listed");
        signal(child.id(), name);
        let answer = ended(child);
        assert!(
            answer.code == 1 && answer.err.contains(&format!("ended by SIG{name}")),
            "{answer}"
        );
    }
    // As PID 1 of its own namespace, where signals without a handler are ignored.
    let mut child = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            env!("CARGO_BIN_EXE_vulcanized"),
            "--owner",
            "prod",
        ])
        .args([
            "--etcd",
            &etcd.url(),
            "--request-timeout",
            "20s",
            "--kubeconfig",
        ])
        .arg(kubeconfig.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    listed
        .recv_timeout(Duration::from_mins(1))
        .expect("the pods are listed");
    let parent = child.id().to_string();
    let inner = poll("PID 1", || {
        let children = format!("/proc/{parent}/task/{parent}/children");
        std::fs::read_to_string(children)
            .ok()?
            .split_whitespace()
            .next()?
            .parse::<u32>()
            .ok()
    });
    signal(inner, "TERM");
    let code = child.wait().expect("it ends").code();
    assert_eq!(code, Some(1));
}

#[test]
fn a_signal_ends_a_run_whose_answer_is_lost() {
    let etcd = Etcd::start();
    etcd.define("web");
    let file = PodsFile::new((1..=4_000).map(web));
    // One of the first transactions: the output up to then fits into a pipe.
    let proxy = Proxy::start(etcd.port(), Loss::Answers, 20_000);
    let child = file
        .on(&proxy.url(), "--request-timeout 5s --timeout 60s")
        .start();
    poll("a lost answer", || (proxy.dropped() > 0).then_some(()));
    signal(child.id(), "TERM");
    let answer = ended(child);
    assert!(
        answer.code == 1 && answer.err.contains("ended by SIGTERM"),
        "{answer}"
    );
    file.on(&etcd.url(), "").exits(0);
    assert_eq!(etcd.keys("/vulcand/backends/web/servers/").len(), 4_000);
}
