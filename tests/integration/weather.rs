//! Faults in the middle of a run: members lost, answers lost, other runs, signals.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::api::{Api, kubectl, list, pod};
use crate::support::etcd::{Etcd, Settings, VERSIONS, Version};
use crate::support::program::{Answer, Program, ended, vulcanized};
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

impl Pods {
    fn names(self) -> impl Iterator<Item = (String, usize)> {
        let of = move |b| (0..self.each).map(move |n| (format!("b{b:02}"), n));
        (0..self.backends).flat_map(of)
    }

    fn address(view: u8, n: usize) -> String {
        format!("10.{view}.{}.{}", n / 200, n % 200 + 1)
    }

    fn view(self, view: u8) -> Vec<Value> {
        let made = |(n, (backend, i)): (usize, (String, usize))| {
            let address = Self::address(view, n);
            pod("default", &format!("{backend}-{i}"), &backend, &address)
        };
        self.names().enumerate().map(made).collect()
    }

    fn file(self, folder: &Path, view: u8) -> String {
        let path = folder.join(format!("pods-{view}.json"));
        std::fs::write(&path, kubectl(self.view(view))).expect("it is written");
        path.display().to_string()
    }

    /// Defines the backends and adds a foreign server.
    fn prepare(self, store: &dyn Look) {
        for backend in 0..self.backends {
            store.set(&format!("{BACKENDS}b{backend:02}/backend"), DEFINITION);
        }
        store.set(FOREIGN.0, FOREIGN.1);
    }

    /// The server keys of a view, by backend.
    fn servers(self, view: u8) -> BTreeMap<String, BTreeSet<String>> {
        let mut servers = BTreeMap::<_, BTreeSet<_>>::new();
        for (n, (backend, _)) in self.names().enumerate() {
            let key = format!("{BACKENDS}{backend}/servers/{}", Self::address(view, n));
            servers.entry(backend).or_default().insert(key);
        }
        servers
    }

    /// Whether the store is exactly as a view wants it.
    fn is(self, found: &BTreeMap<String, String>, view: u8) -> bool {
        let mut wanted = self
            .servers(view)
            .into_values()
            .flatten()
            .collect::<BTreeSet<_>>();
        wanted.insert(FOREIGN.0.to_owned());
        for backend in 0..self.backends {
            wanted.insert(format!("{BACKENDS}b{backend:02}/backend"));
        }
        found.keys().eq(&wanted)
    }

    /// Nothing is broken: what is there is of one of these views or foreign, every value is whole, and
    /// no backend lost an old server before all its new ones were there.
    #[track_caller]
    fn unbroken(self, found: &BTreeMap<String, String>, old: u8, new: u8) {
        assert_eq!(found.get(FOREIGN.0).map(String::as_str), Some(FOREIGN.1));
        let (old, new) = (self.servers(old), self.servers(new));
        for (key, value) in found {
            let value = serde_json::from_str::<Value>(value).expect("whole values");
            if key.ends_with("/backend") {
                assert_eq!(value, json!({"Type": "http"}), "{key}");
            } else if key != FOREIGN.0 {
                let (_, address) = key.rsplit_once('/').expect("a key");
                assert_eq!(value["URL"], format!("http://{address}:8080"), "{key}");
                let backend = &key[BACKENDS.len()..][..3];
                assert!(
                    old[backend].contains(key) || new[backend].contains(key),
                    "{key}"
                );
            }
        }
        for (backend, old) in &old {
            let all = |keys: &BTreeSet<String>| keys.iter().all(|key| found.contains_key(key));
            let none = |keys: &BTreeSet<String>| keys.iter().all(|key| !found.contains_key(key));
            // Before the very first run there is nothing old to be kept.
            assert!(
                all(old) || all(&new[backend]) || none(old) && none(&new[backend]),
                "{backend} lost servers before it got the new ones"
            );
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

fn program(endpoints: &str, pods: &str, more: &str) -> Program {
    vulcanized(&format!(
        "--owner prod --pods {pods} --etcd {endpoints} --timeout 30s {more}"
    ))
    .env("VULCANIZED_REQUEST_TIMEOUT", "5s")
}

#[track_caller]
fn ends(program: Program, code: i32) -> Answer {
    let answer = program.run();
    assert_eq!(answer.code, code, "{answer}");
    answer
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

/// One member after the other is lost, before and in the middle of a run of 4,000 changes.
fn members_lost(version: Version) {
    let pods = Pods {
        backends: 20,
        each: 100,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let views = [1, 2].map(|view| pods.file(folder.path(), view));
    let mut members = Etcd::cluster(version, &Settings::default());
    let urls = members.iter().map(Etcd::url).collect::<Vec<_>>().join(",");
    pods.prepare(&V3(&members[0]));
    ends(program(&urls, &views[0], ""), 0);
    let (mut old, mut new) = (1, 2);
    let mut failed = 0;
    for lost in 0..members.len() {
        for stop in [false, true] {
            for before in [true, false] {
                let run = || program(&urls, &views[usize::from(new) - 1], "");
                let lose = |member: &mut Etcd| if stop { member.stop() } else { member.kill() };
                let answer = if before {
                    lose(&mut members[lost]);
                    run().run()
                } else {
                    let held = Held::start(run());
                    lose(&mut members[lost]);
                    held.finish()
                };
                let witness = &members[(lost + 1) % 3];
                let found = V3(witness).all();
                match answer.code {
                    0 => assert!(pods.is(&found, new), "{answer}"),
                    1 => failed += 1,
                    _ => panic!("{answer}"),
                }
                pods.unbroken(&found, old, new);
                if stop {
                    members[lost].resume();
                } else {
                    members[lost].restart();
                }
                members[lost].wait();
                ends(run(), 0);
                assert!(pods.is(&V3(&members[lost]).all(), new));
                (old, new) = (new, old);
            }
        }
    }
    // Every run could succeed, because two members are a majority.
    assert!(failed <= 2, "{failed} of 12 runs failed");
}

#[test]
fn each_member_lost_on_3_4() {
    members_lost(Version::V34);
}

#[test]
fn each_member_lost_on_3_5() {
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
        for loss in [Loss::Answers, Loss::Requests] {
            for after in [2_000, 60_000, 130_000] {
                let etcd = Etcd::version(version);
                let store = V3(&etcd);
                pods.prepare(&store);
                ends(program(&etcd.url(), &views[0], ""), 0);
                let before = etcd.revision();
                let proxy = Proxy::start(etcd.port(), loss, after);
                let answer = ends(
                    program(&proxy.url(), &views[1], "").env("VULCANIZED_REQUEST_TIMEOUT", "3s"),
                    0,
                );
                assert!(proxy.dropped() > 0, "nothing was lost");
                assert!(pods.is(&store.all(), 2), "{answer}");
                // Each change was reported once and written once: 1,200 in about 12 transactions.
                let reported = answer
                    .out
                    .lines()
                    .filter(|line| line.starts_with(['+', '-']));
                let reported = reported.collect::<Vec<_>>();
                assert_eq!(reported.len(), 1200, "{answer}");
                assert_eq!(reported.iter().collect::<BTreeSet<_>>().len(), 1200);
                let written = etcd.revision() - before;
                assert!(written <= 12, "{written} transactions");
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
    let views = [1, 2].map(|view| pods.file(folder.path(), view));
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        for store in [&V3(&etcd) as &dyn Look, &V2(&etcd)] {
            pods.prepare(store);
            let api = format!("--etcd-api {}", store.api());
            ends(program(&etcd.url(), &views[0], &api), 0);
            let proxy = Proxy::start(etcd.port(), Loss::Everything, 60_000);
            let lossy = program(&proxy.url(), &views[1], &api);
            let answer = ends(lossy.env("VULCANIZED_REQUEST_TIMEOUT", "3s"), 1);
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
            assert_eq!(planned, 1200, "{answer}");
            let lines = answer
                .out
                .lines()
                .filter(|line| line.starts_with(['+', '-']));
            assert_eq!(lines.count(), applied, "{answer}");
            let new = pods.servers(2).into_values().flatten();
            let old = pods.servers(1).into_values().flatten();
            let done = new.filter(|key| found.contains_key(key)).count()
                + old.filter(|key| !found.contains_key(key)).count();
            assert_eq!(
                done,
                applied + unknown,
                "all answers were lost after the write"
            );
            ends(program(&etcd.url(), &views[1], &api), 0);
            assert!(pods.is(&store.all(), 2));
        }
    }
}

/// A small random generator, seeded by the clock, so that delays differ between runs.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        let seed = u64::from(now.subsec_nanos()) | 1;
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Two runs of one job at once, one with an old view of the pods.
fn two_at_once(store: &dyn Look, url: &str, rounds: usize) {
    let pods = Pods {
        backends: 3,
        each: 8,
    };
    pods.prepare(store);
    let mut random = Random::new();
    let mut younger = 1;
    let run = |view: u8, delay: u64| {
        let pods = pods.view(view);
        let api = Api::start(move |request, _| {
            thread::sleep(Duration::from_millis(delay));
            list(&pods, request, 500)
        });
        let (_, kubeconfig) = api.plain_kubeconfig().keep().expect("it stays");
        let arguments = format!(
            "--owner prod --cluster c1@00000000 --etcd {url} --etcd-api {} --timeout 20s",
            store.api()
        );
        let program = vulcanized(&arguments).arg("--kubeconfig").arg(&kubeconfig);
        (program.start(), api, kubeconfig)
    };
    let wait = |(child, _api, kubeconfig): (Child, Api, std::path::PathBuf)| {
        let answer = ended(child);
        std::fs::remove_file(kubeconfig).expect("it is there");
        answer
    };
    let quiet = wait(run(younger, 0));
    assert_eq!(quiet.code, 0, "{quiet}");
    for _ in 0..rounds {
        let older = younger;
        younger = older % 3 + 1;
        let first = run(older, random.below(40));
        thread::sleep(Duration::from_millis(random.below(30)));
        let second = run(younger, random.below(40));
        let (first, second) = (wait(first), wait(second));
        let found = store.all();
        assert_eq!(found.get(FOREIGN.0).map(String::as_str), Some(FOREIGN.1));
        for (answer, name) in [(&first, "older"), (&second, "younger")] {
            assert!([0, 1, 3].contains(&answer.code), "{name}: {answer}");
        }
        if !pods.is(&found, younger) {
            let quiet = wait(run(younger, 0));
            assert_eq!(quiet.code, 0, "{quiet}");
        }
        let found = store.all();
        assert!(pods.is(&found, younger), "{first}{second}{found:#?}");
        pods.unbroken(&found, younger, younger);
    }
}

#[test]
fn two_at_once_on_v3() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        two_at_once(&V3(&etcd), &etcd.url(), 25);
    }
}

#[test]
fn two_at_once_on_v2() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        two_at_once(&V2(&etcd), &etcd.url(), 25);
    }
}

/// A run is ended by a signal at a random moment, again and again.
fn ended_by(name: &str, store: &dyn Look, url: &str, pods: Pods, rounds: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let views = [1, 2].map(|view| pods.file(folder.path(), view));
    let api = format!("--etcd-api {}", store.api());
    let run = |view: u8, more: &str| {
        program(url, &views[usize::from(view) - 1], &format!("{api} {more}"))
    };
    pods.prepare(store);
    ends(run(1, ""), 0);
    let begin = Instant::now();
    ends(run(2, ""), 0);
    let usual = begin.elapsed().as_micros();
    let usual = u64::try_from(usual).expect("not that long");
    let (mut old, mut new) = (2, 1);
    let mut random = Random::new();
    let mut stopped = 0;
    for _ in 0..rounds {
        let child = run(new, "").start();
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
            (0, _) => assert!(pods.is(&found, new), "{answer}"),
            (1, "TERM") => {
                stopped += 1;
                assert!(answer.err.contains("ended by SIGTERM"), "{answer}");
                let new = pods.servers(new).into_values().flatten();
                let old = pods.servers(old).into_values().flatten();
                let done = new.filter(|key| found.contains_key(key)).count()
                    + old.filter(|key| !found.contains_key(key)).count();
                let lines = answer
                    .out
                    .lines()
                    .filter(|line| line.starts_with(['+', '-']));
                assert_eq!(lines.count(), done, "each change was reported: {answer}");
            }
            // The signal may arrive before the handlers are installed.
            (-1, _) => stopped += 1,
            _ => panic!("{answer}"),
        }
        let next = run(new, "").run();
        if next.code == 3 {
            let flag = next
                .out
                .split_once("--allow-deletes ")
                .expect("the way out")
                .1;
            let count = flag.split(|c: char| !c.is_ascii_digit()).next();
            let count = count.expect("a number");
            ends(run(new, &format!("--allow-deletes {count}")), 0);
        } else {
            assert_eq!(next.code, 0, "{next}");
        }
        assert!(pods.is(&store.all(), new));
        (old, new) = (new, old);
    }
    assert!(
        stopped > rounds / 4,
        "only {stopped} of {rounds} runs were caught"
    );
}

const MANY: Pods = Pods {
    backends: 10,
    each: 100,
};
const FEW: Pods = Pods {
    backends: 5,
    each: 10,
};

#[test]
fn ended_by_sigterm() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        ended_by("TERM", &V3(&etcd), &etcd.url(), MANY, 10);
        ended_by("TERM", &V2(&etcd), &etcd.url(), FEW, 5);
    }
}

#[test]
fn ended_by_sigkill() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        ended_by("KILL", &V3(&etcd), &etcd.url(), MANY, 10);
        ended_by("KILL", &V2(&etcd), &etcd.url(), FEW, 5);
    }
}
