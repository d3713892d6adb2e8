//! etcd with faults: members lost, answers lost, two runs at once, signals.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;

use super::etcd::{v2, v2_put};
use crate::support::api::{Api, list, pod, web};
use crate::support::etcd::cluster::Cluster;
use crate::support::etcd::{Etcd, ROOT, Version, poll, signal};
use crate::support::program::{PodsFile, ended, vulcanized};
use crate::support::proxy::{Loss, Proxy as Wire};

fn many(from: u32) -> Vec<Value> {
    // Ten backends of 200 pods.
    let pods = (from..from + 2_000).map(|n| {
        let app = format!("app-{}", n % 10);
        let ip = format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256);
        pod("default", &format!("{app}-{n}"), &app, &ip)
    });
    pods.collect()
}

fn addresses(pods: &[Value]) -> BTreeSet<String> {
    pods.iter()
        .map(|pod| pod["status"]["podIP"].as_str().expect("one").to_owned())
        .collect()
}

/// A killed member does not come back: each loss gets its own cluster.
fn losses(version: Version, how: &'static str) {
    for member in 0..3 {
        for middle in [false, true] {
            loss(&Arc::new(Cluster::start(version)), member, how, middle);
        }
    }
}

#[test]
fn each_of_three_members_killed_on_3_4() {
    losses(Version::V34, "KILL");
}

#[test]
fn each_of_three_members_killed_on_3_5() {
    losses(Version::V35, "KILL");
}

#[test]
fn each_of_three_members_stopped_on_3_4() {
    losses(Version::V34, "STOP");
}

#[test]
fn each_of_three_members_stopped_on_3_5() {
    losses(Version::V35, "STOP");
}

fn loss(cluster: &Arc<Cluster>, member: usize, how: &'static str, middle: bool) {
    for n in 0..10 {
        let key = format!("{ROOT}app-{n}/backend");
        cluster
            .ctl(&["put", &key, r#"{"Type":"http"}"#])
            .expect("it is defined");
    }
    let pods = many(1);
    let (lost, served) = (Arc::clone(cluster), pods.clone());
    let api = Api::start(move |request, number| {
        // In the middle of the run: the store is listed, but nothing is planned yet.
        if number == 0 && middle {
            lost.signal(member, how);
        }
        list(&served, request, 500)
    });
    if !middle {
        cluster.signal(member, how);
    }
    let kubeconfig = api.plain_kubeconfig();
    let run = || {
        let arguments =
            "--owner prod --cluster c1@00000000 -o summary --request-timeout 3s --timeout 60s";
        vulcanized(&format!("{arguments} --etcd {}", cluster.urls()))
            .kubeconfig(&kubeconfig)
            .run()
    };
    let first = run();
    assert!(matches!(first.code, 0 | 1), "{how} {member}: {first}");
    let mut last = first;
    for _ in 0..3 {
        if last.code == 0 {
            break;
        }
        last = run();
    }
    assert!(
        last.code == 0,
        "{how} {member}: the next run succeeds: {last}"
    );
    let keys = cluster
        .ctl(&["get", "--prefix", "--keys-only", ROOT])
        .expect("keys");
    let found = keys
        .lines()
        .filter_map(|key| Some(key.split_once("/servers/")?.1.to_owned()));
    assert_eq!(
        found.collect::<BTreeSet<_>>(),
        addresses(&pods),
        "{how} {member}"
    );
}

/// Stands between the program and etcd, and drops the answer to one transaction.
struct Proxy {
    port: u16,
    /// Which transaction loses its answer, counted from 1 over all connections.
    _victim: Arc<AtomicUsize>,
    dead: Arc<AtomicBool>,
}

impl Proxy {
    /// `for_good`: after that, all connections are closed.
    fn start(etcd: u16, victim: usize, for_good: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let left = Arc::new(AtomicUsize::new(victim));
        let dead = Arc::new(AtomicBool::new(false));
        let (counter, end) = (Arc::clone(&left), Arc::clone(&dead));
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                if end.load(Ordering::SeqCst) {
                    continue; // Closed at once.
                }
                let server = TcpStream::connect(("127.0.0.1", etcd)).expect("etcd listens");
                let (counter, end) = (Arc::clone(&counter), Arc::clone(&end));
                thread::spawn(move || pass(client, server, &counter, &end, for_good));
            }
        });
        Self {
            port,
            _victim: left,
            dead,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn pass(
    client: TcpStream,
    server: TcpStream,
    left: &AtomicUsize,
    end: &Arc<AtomicBool>,
    for_good: bool,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let drop_it = Arc::new(AtomicBool::new(false));
    let (mut from_client, mut to_server) = (clone(&client), clone(&server));
    let (mut from_server, mut to_client) = (server, client);
    let (pending, victim) = (Arc::clone(&asked), Arc::clone(&drop_it));
    let answers = thread::spawn({
        let end = Arc::clone(end);
        move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from_server.read(&mut buffer) {
                // Window updates do not count: headers mark the answer to a transaction.
                let answer = buffer[..read].windows(4).any(|frame| frame == b"etcd") || read > 60;
                if victim.load(Ordering::SeqCst) && answer {
                    end.store(for_good, Ordering::SeqCst);
                    break;
                }
                if answer {
                    pending.store(false, Ordering::SeqCst);
                }
                if to_client.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(std::net::Shutdown::Both);
            let _ = from_server.shutdown(std::net::Shutdown::Both);
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from_client.read(&mut buffer) {
        let part = &buffer[..read];
        let transaction = part.windows(7).any(|window| window == b"\"Owner\"");
        if transaction && !asked.swap(true, Ordering::SeqCst) {
            let before = left.fetch_sub(1, Ordering::SeqCst);
            if before == 1 {
                drop_it.store(true, Ordering::SeqCst);
            }
        }
        if to_server.write_all(part).is_err() {
            break;
        }
    }
    let _ = answers.join();
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("another handle")
}

#[test]
fn a_lost_answer_is_resolved_by_reading_the_store() {
    for version in [Version::V34, Version::V35] {
        lost_and_settled(&Etcd::version(version));
    }
}

fn lost_and_settled(etcd: &Etcd) {
    let pods = (1..=400).map(web).collect::<Vec<_>>();
    let file = PodsFile::new(pods.clone());
    for victim in 1..=3 {
        etcd.ctl(&["del", "--prefix", "/vulcand"]);
        etcd.define("web");
        let proxy = Proxy::start(etcd.port(), victim, false);
        let answer = file.on(&proxy.url(), "--request-timeout 60s").exits(0);
        let lines = answer
            .out
            .lines()
            .filter(|line| line.starts_with('+'))
            .collect::<Vec<_>>();
        let once = lines.iter().collect::<BTreeSet<_>>();
        assert_eq!(
            (lines.len(), once.len()),
            (400, 400),
            "each change is reported once"
        );
        assert!(
            answer.out.contains("400 created"),
            "{}",
            answer.out.lines().last().expect("one")
        );
        assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 400);
        assert!(!proxy.dead.load(Ordering::SeqCst));
    }
}

#[test]
fn a_lost_answer_with_no_member_left_is_reported() {
    for version in [Version::V34, Version::V35] {
        lost_for_good(&Etcd::version(version));
    }
}

fn lost_for_good(etcd: &Etcd) {
    etcd.define("web");
    let file = PodsFile::new((1..=400).map(web));
    let proxy = Proxy::start(etcd.port(), 2, true);
    let answer = file
        .on(&proxy.url(), "--request-timeout 60s --timeout 60s")
        .exits(1);
    let wanted = "applied 126 of 400 changes, 126 more unknown";
    assert!(answer.err.contains(wanted), "{}", answer.err);
    assert!(proxy.dead.load(Ordering::SeqCst));
    // The unknown changes were applied.
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 252);
    file.on(&etcd.url(), "").exits(0);
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 400);
}

fn some_pods() -> impl Strategy<Value = BTreeSet<u32>> {
    prop::collection::btree_set(1..12_u32, 1..8)
}

#[test]
fn two_runs_at_once_on_3_4() {
    two_runs_at_once(Version::V34);
}

#[test]
fn two_runs_at_once_on_3_5() {
    two_runs_at_once(Version::V35);
}

fn two_runs_at_once(version: Version) {
    let mut runner = TestRunner::default();
    for api in ["3", "2"] {
        let etcd = Etcd::version(version);
        let foreign = r#"{"URL":"http://10.9.9.9:80"}"#;
        let (root, by_hand) = (
            format!("{ROOT}web/backend"),
            format!("{ROOT}web/servers/by-hand"),
        );
        for (key, value) in [(&root, r#"{"Type":"http"}"#), (&by_hand, foreign)] {
            etcd.put(key, value);
            v2_put(&etcd, key, value);
        }
        let more = format!("--etcd-api {api} --allow-empty -o summary");
        for round in 0..100 {
            let views = (some_pods(), some_pods())
                .new_tree(&mut runner)
                .expect("views")
                .current();
            let first = PodsFile::new(views.0.iter().copied().map(web));
            let second = PodsFile::new(views.1.iter().copied().map(web));
            let (one, two) = (
                first.on(&etcd.url(), &more).start(),
                second.on(&etcd.url(), &more).start(),
            );
            for child in [one, two] {
                let answer = ended(child);
                assert!(matches!(answer.code, 0 | 1), "{api} {round}: {answer}");
            }
            let quiet = second.on(&etcd.url(), &more).run();
            assert!(quiet.code == 0, "{api} {round} {views:?}: {quiet}");
            let found = servers(&etcd, api);
            let ids = found
                .iter()
                .filter(|(id, _)| id != "by-hand")
                .map(|(id, _)| id.clone());
            let wanted = addresses(&views.1.iter().copied().map(web).collect::<Vec<_>>());
            assert_eq!(ids.collect::<BTreeSet<_>>(), wanted, "{api} {round}");
            assert!(
                found.contains(&("by-hand".to_owned(), foreign.to_owned())),
                "{api} {round}"
            );
        }
    }
}

/// The servers of backend `web`: ids and values.
fn servers(etcd: &Etcd, api: &str) -> Vec<(String, String)> {
    let root = format!("{ROOT}web/servers/");
    if api == "3" {
        let found = etcd.get(&root).into_iter();
        return found
            .map(|(key, value)| (key[root.len()..].to_owned(), value))
            .collect();
    }
    let answer = v2(etcd, root.trim_end_matches('/'));
    let nodes = answer["node"]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |node: &Value, field: &str| node[field].as_str().expect("text").to_owned();
    nodes
        .iter()
        .map(|node| {
            (
                text(node, "key")[root.len()..].to_owned(),
                text(node, "value"),
            )
        })
        .collect()
}

/// Two thousand changes each time: all servers are replaced by others.
struct Churn {
    etcd: Etcd,
    sets: [(PodsFile, BTreeSet<String>); 2],
}

impl Churn {
    fn new(version: Version) -> Self {
        let etcd = Etcd::version(version);
        for n in 0..10 {
            etcd.define(&format!("app-{n}"));
        }
        let sets = [1, 5_001].map(|from| {
            let pods = many(from).into_iter().take(1_000).collect::<Vec<_>>();
            let ips = addresses(&pods);
            (PodsFile::new(pods), ips)
        });
        sets[0].0.on(&etcd.url(), "-o summary").exits(0);
        Self { etcd, sets }
    }

    /// No malformed value, and no backend without a server.
    fn check(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut served = BTreeSet::new();
        for (key, value) in self.etcd.get(ROOT) {
            let Some((backend, id)) = key.split_once("/servers/") else {
                continue;
            };
            let value = serde_json::from_str::<Value>(&value).expect("JSON");
            assert_eq!(value["URL"], format!("http://{id}:8080"));
            served.insert(backend.to_owned());
            found.insert(id.to_owned());
        }
        assert_eq!(served.len(), 10, "no backend is emptied");
        found
    }

    fn rounds(&self, how: &str) {
        let mut runner = TestRunner::default();
        let mut stopped = 0;
        for round in 0..50 {
            let (pods, wanted) = &self.sets[(round + 1) % 2];
            let child = pods.on(&self.etcd.url(), "-o summary").start();
            let moment = (0..120_u64)
                .new_tree(&mut runner)
                .expect("a moment")
                .current();
            thread::sleep(Duration::from_millis(moment));
            // It may have ended by itself in the meantime.
            let _ = std::process::Command::new("kill")
                .args([&format!("-{how}"), &child.id().to_string()])
                .stderr(std::process::Stdio::null())
                .status();
            let answer = ended(child);
            if answer.code != 0 {
                stopped += 1;
                // Before the first line of `main` a signal ends it as it ends any program.
                if how == "TERM" && answer.code != -1 {
                    assert!(
                        answer.code == 1 && answer.err.contains("ended by SIGTERM"),
                        "{answer}"
                    );
                }
            }
            self.check();
            let next = pods.on(&self.etcd.url(), "-o summary").exits(0);
            assert_eq!(self.check(), *wanted, "round {round}: {next}");
        }
        assert!(stopped > 5, "some runs were ended early: {stopped}");
    }
}

#[test]
fn sigterm_at_any_moment_on_3_4() {
    Churn::new(Version::V34).rounds("TERM");
}

#[test]
fn sigterm_at_any_moment_on_3_5() {
    Churn::new(Version::V35).rounds("TERM");
}

#[test]
fn sigkill_at_any_moment_on_3_4() {
    Churn::new(Version::V34).rounds("KILL");
}

#[test]
fn sigkill_at_any_moment_on_3_5() {
    Churn::new(Version::V35).rounds("KILL");
}

#[test]
fn signals_end_a_listing_run_also_as_pid_1() {
    let etcd = Etcd::start();
    etcd.define("web");
    let (sender, listed) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let api = Api::start(move |_, _| {
        sender
            .lock()
            .expect("no panic")
            .send(())
            .expect("the test listens");
        let mut reply = crate::support::api::Reply::new(200, "application/json", "");
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
    let mut child = std::process::Command::new("unshare")
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
        .stderr(std::process::Stdio::piped())
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
    let wire = Wire::start(etcd.port(), Loss::Answers, 20_000);
    let child = file
        .on(&wire.url(), "--request-timeout 5s --timeout 60s")
        .start();
    poll("a lost answer", || (wire.dropped() > 0).then_some(()));
    signal(child.id(), "TERM");
    let answer = ended(child);
    assert!(
        answer.code == 1 && answer.err.contains("ended by SIGTERM"),
        "{answer}"
    );
    file.on(&etcd.url(), "").exits(0);
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 4_000);
}
