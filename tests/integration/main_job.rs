//! The main job on a real etcd: pods in, servers out.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::api::{Api, Framing, Reply, kubectl, list, pod};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, Program, vulcanized};

const SERVERS: &str = "/vulcand/backends/example/servers/";

fn example(n: u8) -> Value {
    pod(
        "default",
        &format!("example-{n}"),
        "example",
        &format!("10.200.1.{n}"),
    )
}

fn run(api: &Api, etcd: &Etcd, more: &str) -> Answer {
    program(api, etcd, more).run()
}

fn program(api: &Api, etcd: &Etcd, more: &str) -> Program {
    let kubeconfig = api.plain_kubeconfig();
    let (_, path) = kubeconfig.keep().expect("it outlives this call");
    vulcanized(&format!(
        "--owner prod --cluster c1@00000000 --etcd {} {more}",
        etcd.url()
    ))
    .arg("--kubeconfig")
    .arg(path)
}

fn mark(owner: &str, scope: &str, pod: &str, url: &str) -> String {
    format!(r#"{{"URL":"{url}","Owner":"{owner}","Scope":"{scope}","Pod":"{pod}"}}"#)
}

#[track_caller]
fn exits(answer: &Answer, code: i32) {
    assert!(
        answer.code == code,
        "wanted exit code {code}, got:\n{answer}"
    );
}

#[track_caller]
fn prints(answer: &Answer, text: &str) {
    // Output is wrapped at 80 columns: compare with single spaces.
    let output = format!("{} {}", answer.out, answer.err);
    let unwrapped = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        unwrapped(&output).contains(&unwrapped(text)),
        "wanted `{text}`, got:\n{answer}"
    );
}

#[test]
fn ready_pods_are_published_and_a_second_run_writes_nothing() {
    let etcd = Etcd::start();
    etcd.define("example");
    let api = Api::pods((2..=4).map(example).collect(), 500);
    exits(&run(&api, &etcd, ""), 0);
    let servers = etcd.get(SERVERS);
    assert_eq!(servers.len(), 3);
    for ((key, value), n) in servers.iter().zip(2..) {
        assert_eq!(*key, format!("{SERVERS}10.200.1.{n}"));
        let value = serde_json::from_str::<Value>(value).expect("JSON");
        assert_eq!(value["URL"], format!("http://10.200.1.{n}:8080"));
    }
    let revision = etcd.revision();
    let again = run(&api, &etcd, "");
    exits(&again, 0);
    prints(&again, "in sync: 3 unchanged");
    assert_eq!(etcd.revision(), revision);
    let quiet = run(&api, &etcd, "-q");
    assert_eq!(
        (quiet.code, quiet.out.as_str(), quiet.err.as_str()),
        (0, "", "")
    );
}

#[test]
fn one_run_applies_all_changes_in_one_transaction() {
    let etcd = Etcd::start();
    etcd.define("example");
    exits(
        &run(&Api::pods((1..=5).map(example).collect(), 500), &etcd, ""),
        0,
    );
    let revision = etcd.revision();
    let mut terminating = example(2);
    terminating["metadata"]["deletionTimestamp"] = json!("2026-11-22T21:00:00Z");
    let mut succeeded = example(3);
    succeeded["status"]["phase"] = json!("Succeeded");
    let reused = pod("default", "example-9", "example", "10.200.1.3");
    let moved = pod("default", "example-4", "example", "10.200.1.40");
    // 1 is gone, 6 is new, 5 stays.
    let pods = vec![
        terminating,
        succeeded,
        reused,
        moved,
        example(5),
        example(6),
    ];
    let dry = run(&Api::pods(pods.clone(), 500), &etcd, "--dry-run");
    exits(&dry, 0);
    assert_eq!(etcd.revision(), revision, "a dry run writes nothing");
    let answer = run(&Api::pods(pods, 500), &etcd, "");
    exits(&answer, 0);
    let ids = etcd.keys(SERVERS);
    assert_eq!(
        ids,
        ["10.200.1.3", "10.200.1.40", "10.200.1.5", "10.200.1.6"]
    );
    assert_eq!(etcd.revision(), revision + 1, "one transaction");
    let signs = answer.out.lines().filter_map(|line| line.chars().next());
    assert_eq!(
        signs.take(6).collect::<String>(),
        "++~---",
        "puts come before deletes"
    );
    let planned = dry.out.lines().filter(|line| {
        ["create: ", "update: ", "delete: "]
            .iter()
            .any(|word| line.starts_with(word))
    });
    let done = answer
        .out
        .lines()
        .filter(|line| line.starts_with(['+', '~', '-']));
    let why = |line: &str, at: &str| line.split_once(at).map(|(_, why)| why.to_owned());
    let planned = planned.map(|line| why(line, ": ")).collect::<Vec<_>>();
    let done = done.map(|line| why(line, "  ")).collect::<Vec<_>>();
    assert_eq!(planned, done, "a run applies what the dry run planned");
}

#[test]
fn puts_come_before_deletes_in_a_watch() {
    let etcd = Etcd::start();
    etcd.define("example");
    exits(
        &run(&Api::pods((1..=3).map(example).collect(), 500), &etcd, ""),
        0,
    );
    let from = (etcd.revision() + 1).to_string();
    exits(
        &run(&Api::pods((4..=6).map(example).collect(), 500), &etcd, ""),
        0,
    );
    // A watch from an old revision reads the history. It has to be killed.
    let mut watch = etcd.watch("/vulcand/", &from);
    let out = std::io::BufReader::new(watch.stdout.take().expect("stdout"));
    let lines = std::io::BufRead::lines(out).map(|line| line.expect("a line"));
    let events = lines
        .filter(|line| line == "PUT" || line == "DELETE")
        .take(6);
    assert_eq!(
        events.collect::<Vec<_>>(),
        ["PUT", "PUT", "PUT", "DELETE", "DELETE", "DELETE"]
    );
    watch.kill().expect("it is ended");
    watch.wait().expect("it ends");
}

#[test]
fn foreign_entries_are_not_changed() {
    let etcd = Etcd::start();
    etcd.define("example");
    let by_hand = (
        format!("{SERVERS}by-hand"),
        r#"{"URL":"http://10.9.9.9:80"}"#.to_owned(),
    );
    let taken = (
        format!("{SERVERS}10.200.1.1"),
        r#"{"URL":"http://10.200.1.1:1"}"#.to_owned(),
    );
    etcd.put(&by_hand.0, &by_hand.1);
    etcd.put(&taken.0, &taken.1);
    let both = Api::pods(vec![example(1), example(2)], 500);
    let answer = run(&both, &etcd, "");
    exits(&answer, 3);
    prints(&answer, "conflict: backend example");
    exits(&run(&Api::pods(vec![example(1)], 500), &etcd, ""), 3);
    let servers = etcd.get(SERVERS);
    assert_eq!(servers, [taken, by_hand]);
}

#[test]
fn another_owners_backend_needs_share_backends() {
    let etcd = Etcd::start();
    etcd.define("example");
    let blue = mark("blue", "c1@00000000", "default/x", "http://10.200.1.9:8080");
    etcd.put(&format!("{SERVERS}10.200.1.9"), &blue);
    let api = Api::pods(vec![example(1)], 500);
    let answer = run(&api, &etcd, "");
    exits(&answer, 3);
    prints(
        &answer,
        "not shared: backend example: it holds servers of owner blue",
    );
    assert_eq!(etcd.keys(SERVERS), ["10.200.1.9"]);
    exits(&run(&api, &etcd, "--share-backends"), 0);
    assert_eq!(etcd.keys(SERVERS), ["10.200.1.1", "10.200.1.9"]);
    assert_eq!(etcd.get(SERVERS)[1].1, blue);
}

#[test]
fn a_second_cluster_selector_or_namespace_of_the_same_owner() {
    let etcd = Etcd::start();
    etcd.define("example");
    let pods = vec![example(1), example(2)];
    let first = Api::tls(move |request, _| list(&pods, request, 500));
    let over = |api: &Api, more: &str| {
        let kubeconfig = api.plain_kubeconfig();
        let arguments = format!("--owner prod --etcd {} {more}", etcd.url());
        vulcanized(&arguments).kubeconfig(&kubeconfig).run()
    };
    exits(&over(&first, ""), 0);
    let before = etcd.get(SERVERS);
    let scope = serde_json::from_str::<Value>(&before[0].1).expect("JSON")["Scope"].clone();
    let scope = scope.as_str().expect("a scope").to_owned();
    assert_eq!(scope.len(), 8, "the first digits of the CA's hash: {scope}");
    let second = Api::tls(|request, _| {
        list(
            &[pod("default", "other-1", "other", "10.200.2.1")],
            request,
            500,
        )
    });
    etcd.define("other");
    let answer = over(&second, "");
    exits(&answer, 3);
    prints(
        &answer,
        &format!("entries of our owner from another cluster, `{scope}`; this run looks at `"),
    );
    let selected = over(&first, "-l tier=a");
    exits(&selected, 3);
    prints(
        &selected,
        &format!("with the scope `{scope}`; this run's is `{scope} tier=a`"),
    );
    let elsewhere = over(&first, "-n elsewhere");
    exits(&elsewhere, 3);
    prints(&elsewhere, "of namespaces that this run did not list");
    assert_eq!(etcd.get(SERVERS), before);
}

#[test]
fn an_undefined_backend_is_created_only_with_create_backends() {
    let etcd = Etcd::start();
    etcd.define("other");
    let api = Api::pods(vec![example(1)], 500);
    let revision = etcd.revision();
    let answer = run(&api, &etcd, "");
    exits(&answer, 0);
    prints(
        &answer,
        r#"etcdctl put '/vulcand/backends/example/backend' '{"Type":"http"}'"#,
    );
    assert_eq!(answer.out.matches("not defined:").count(), 1, "{answer}");
    assert_eq!(etcd.revision(), revision);
    exits(&run(&api, &etcd, "--create-backends"), 0);
    assert_eq!(
        etcd.revision(),
        revision + 1,
        "definition and server in one transaction"
    );
    assert_eq!(
        etcd.keys("/vulcand/backends/example/"),
        ["backend", "servers/10.200.1.1"]
    );
}

#[test]
fn a_store_without_any_backend_is_an_error() {
    let etcd = Etcd::start();
    let api = Api::pods(vec![example(1)], 500);
    let answer = run(&api, &etcd, "");
    exits(&answer, 1);
    for hint in [
        "`/vulcand/backends/`",
        "--prefix",
        "--etcd-api",
        "--create-backends",
    ] {
        prints(&answer, hint);
    }
    assert_eq!(etcd.get("/").len(), 0);
    exits(&run(&api, &etcd, "--create-backends"), 0);
}

#[test]
fn the_spelling_of_the_prefix_is_detected() {
    let etcd = Etcd::start();
    etcd.put("vulcand/backends/example/backend", r#"{"Type":"http"}"#);
    let api = Api::pods(vec![example(1)], 500);
    exits(&run(&api, &etcd, ""), 0);
    assert_eq!(
        etcd.keys("vulcand/backends/example/servers/"),
        ["10.200.1.1"]
    );
    assert_eq!(etcd.get("/vulcand").len(), 0);
    let wrong = run(&api, &etcd, "--prefix /vulcand");
    exits(&wrong, 1);
    prints(&wrong, "under `vulcand/`: is that the right `--prefix`?");
    etcd.define("example");
    let both = run(&api, &etcd, "");
    exits(&both, 2);
    prints(&both, "backends under both `/vulcand` and `vulcand`");
    for bad in ["--prefix=", "--prefix=/vulcand/"] {
        exits(&run(&api, &etcd, bad), 2);
    }
}

#[test]
fn a_definition_is_removed_but_owned_servers_remain() {
    let etcd = Etcd::start();
    etcd.define("example");
    exits(
        &run(&Api::pods(vec![example(1), example(2)], 500), &etcd, ""),
        0,
    );
    etcd.delete("/vulcand/backends/example/backend");
    let before = etcd.get(SERVERS);
    for _ in 0..2 {
        let api = Api::pods(vec![example(1), example(2), example(3)], 500);
        let answer = run(&api, &etcd, "");
        exits(&answer, 3);
        prints(&answer, "1 left out, 2 of ours stay");
        assert_eq!(api.requests().len(), 1, "planned once");
    }
    assert_eq!(etcd.get(SERVERS), before);
}

/// Serves three pages. The page with the number `fault` fails in the way `how`, at each request.
fn three_pages(fault: usize, how: &'static str) -> Api {
    let pods = (1..=6).map(example).collect::<Vec<_>>();
    Api::start(move |request, _| {
        let mut reply = list(&pods, request, 2);
        let page = request
            .query
            .get("continue")
            .map_or(0, |token| token.parse().expect("one"));
        if page / 2 != fault {
            return reply;
        }
        match how {
            "500" => {
                reply.status = 500;
                reply = reply.retry_after_the_run();
            }
            "cut" => reply.cut = Some(reply.body.len() / 2),
            "cut without framing" => {
                reply.cut = Some(reply.body.len() / 2);
                reply.framing = Framing::Neither;
            }
            "version" => {
                let text = String::from_utf8(reply.body).expect("JSON");
                reply.body = text.replace("4711", &format!("{fault}")).into_bytes();
            }
            "410" => reply = Reply::recorded("errors/410-gone-continue"),
            _ => unreachable!("a fault of this test"),
        }
        reply
    })
}

#[test]
fn each_page_failing_in_turn() {
    let etcd = Etcd::start();
    etcd.define("example");
    exits(
        &run(&Api::pods((1..=6).map(example).collect(), 500), &etcd, ""),
        0,
    );
    let revision = etcd.revision();
    for (how, cause) in [
        ("500", "answered 500"),
        ("cut", "closed before the answer was complete"),
        (
            "cut without framing",
            "a pod list that is incomplete or not JSON",
        ),
        ("version", "its pages are of resourceVersion"),
        ("410", "The provided continue parameter is too old"),
    ] {
        for page in 0..3 {
            if how == "version" && page == 0 {
                continue; // The first page is what the others are compared with.
            }
            let api = three_pages(page, how);
            // A truncated page is requested again until the timeout.
            let time = if how == "cut" { "3s" } else { "60s" };
            let answer = run(&api, &etcd, &format!("--timeout {time}"));
            exits(&answer, 1);
            prints(
                &answer,
                &format!("GET {}/api/v1/namespaces/default/pods", api.url()),
            );
            prints(&answer, cause);
            assert_eq!(etcd.revision(), revision, "{how} on page {page}");
        }
    }
}

#[test]
fn pods_with_hostile_names_are_left_out() {
    let etcd = Etcd::start();
    etcd.define("ok");
    let long = "x".repeat(300);
    let names = [
        "a/b",
        ".",
        "..",
        "_a",
        "a b",
        "a\u{1b}[31m",
        "",
        &long,
        "ok/servers/x",
        "%2e%2e",
        "a%2Fb",
    ];
    let mut pods = vec![pod("default", "ok", "ok", "10.200.1.1")];
    for (n, name) in names.iter().enumerate() {
        pods.push(pod(
            "default",
            &format!("label-{n}"),
            name,
            &format!("10.200.2.{n}"),
        ));
        let mut annotated = pod(
            "default",
            &format!("note-{n}"),
            "ok",
            &format!("10.200.3.{n}"),
        );
        annotated["metadata"]["annotations"] = json!({ "vulcanized.io/backend": name });
        pods.push(annotated);
    }
    let api = Api::pods(pods, 500);
    let answer = run(&api, &etcd, "-v --create-backends");
    exits(&answer, 0);
    let keys = etcd.keys("/");
    assert_eq!(
        keys,
        [
            "vulcand/backends/ok/backend",
            "vulcand/backends/ok/servers/10.200.1.1"
        ]
    );
    assert!(
        !answer.err.contains(|c: char| c.is_control() && c != '\n'),
        "{answer}"
    );
    assert_eq!(
        answer.err.matches("is left out").count(),
        names.len() * 2,
        "{answer}"
    );
    let several = run(&api, &etcd, "-A --backend {namespace}-{name}");
    exits(&several, 2);
    prints(&several, "--backend '{namespace}.{name}.svc'");
    let two = run(&api, &etcd, "-n a -n b");
    exits(&two, 2);
}

#[test]
fn fifty_thousand_servers() {
    let etcd = Etcd::start();
    etcd.define("example");
    let pods = (0..50_000_u32)
        .map(|n| {
            let ip = format!("10.{}.{}.{}", 1 + n / 65_536, n / 256 % 256, n % 256);
            pod("default", &format!("example-{n}"), "example", &ip)
        })
        .collect::<Vec<_>>();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let write = |pods: &[Value]| {
        let list = kubectl(pods.iter().cloned());
        std::fs::write(file.path(), list).expect("it is written");
    };
    let run = |more: &str| {
        let arguments = format!("--owner prod --etcd {} -o summary {more}", etcd.url());
        vulcanized(&arguments).arg("--pods").arg(file.path()).run()
    };
    write(&pods);
    let first = run("--timeout 120s");
    exits(&first, 0);
    prints(&first, "50000 created");
    let second = run("");
    exits(&second, 0);
    prints(&second, "in sync: 50000 unchanged");
    // 200 deletes and the comparison of their backend exceed one transaction.
    let revision = etcd.revision();
    write(&pods[200..]);
    let third = run("");
    exits(&third, 0);
    prints(&third, "200 deleted, 49800 unchanged");
    assert_eq!(etcd.revision(), revision + 2, "128 and 72");
}

#[test]
fn another_writer_between_list_and_apply() {
    let etcd = Arc::new(Etcd::start());
    etcd.define("example");
    let other = Arc::clone(&etcd);
    let pods = vec![example(1), example(2)];
    let api = Api::start(move |request, number| {
        if number == 0 {
            other.put(
                &format!("{SERVERS}10.200.1.1"),
                r#"{"URL":"http://10.200.1.1:1"}"#,
            );
        }
        list(&pods, request, 500)
    });
    let answer = run(&api, &etcd, "");
    exits(&answer, 3);
    assert_eq!(api.requests().len(), 2, "listed again, once");
    let servers = etcd.get(SERVERS);
    assert_eq!(servers[0].1, r#"{"URL":"http://10.200.1.1:1"}"#);
    assert_eq!(servers.len(), 2);
}

#[test]
fn another_writer_before_every_attempt() {
    let etcd = Arc::new(Etcd::start());
    etcd.define("example");
    let other = Arc::clone(&etcd);
    let pods = (1..=4).map(example).collect::<Vec<_>>();
    let api = Api::start(move |request, number| {
        other.put(
            &format!("{SERVERS}10.200.1.{}", number + 1),
            r#"{"URL":"http://10.9.9.9:1"}"#,
        );
        list(&pods, request, 500)
    });
    let answer = run(&api, &etcd, "");
    exits(&answer, 1);
    prints(
        &answer,
        "applied 0 of 2 changes: the store changed under the plan 3 times",
    );
    assert_eq!(api.requests().len(), 3);
    assert_eq!(
        etcd.keys(SERVERS),
        ["10.200.1.1", "10.200.1.2", "10.200.1.3"]
    );
}

#[test]
fn the_definition_is_deleted_between_list_and_apply() {
    let etcd = Arc::new(Etcd::start());
    etcd.define("example");
    etcd.define("other");
    let other = Arc::clone(&etcd);
    let api = Api::start(move |request, number| {
        if number == 0 {
            other.delete("/vulcand/backends/example/backend");
        }
        list(&[example(1)], request, 500)
    });
    let answer = run(&api, &etcd, "");
    exits(&answer, 0);
    prints(&answer, "not defined: backend example");
    assert_eq!(etcd.keys("/vulcand/backends/"), ["other/backend"]);
}

#[test]
fn a_server_registered_after_our_pods_were_listed_is_not_deleted() {
    let etcd = Arc::new(Etcd::start());
    etcd.define("example");
    exits(&run(&Api::pods(vec![example(1)], 500), &etcd, ""), 0);
    let other = Arc::clone(&etcd);
    // The list lacks a pod that another run of this job has registered since.
    let api = Api::start(move |request, _| {
        let reply = list(&[example(1)], request, 500);
        let entry = mark(
            "prod",
            "c1@00000000",
            "default/example-2",
            "http://10.200.1.2:8080",
        );
        other.put(&format!("{SERVERS}10.200.1.2"), &entry);
        reply
    });
    exits(&run(&api, &etcd, ""), 0);
    assert_eq!(etcd.keys(SERVERS), ["10.200.1.1", "10.200.1.2"]);
}

#[test]
fn every_captured_state_of_a_pod() {
    let states = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube/states");
    let table = [
        (
            "published",
            "ready ready_dual ready_hostnet ready_sidecar ready_v6only",
        ),
        (
            "not ready",
            "notready_crashloop notready_gate notready_probe pending_imagepull pending_init starting \
             unknown_nodelost",
        ),
        ("no address", "pending_creating pending_unscheduled"),
        ("terminating", "term_finalizer term_notready term_ready"),
        ("completed", "failed_evicted failed_exit succeeded"),
    ];
    let store = tempfile::tempdir().expect("a temporary folder");
    let mut seen = 0;
    for (outcome, names) in table {
        for name in names.split_whitespace() {
            let answer = vulcanized("--owner prod --create-backends --dry-run -o json")
                .arg("--pods")
                .arg(states.join(format!("{name}.json")))
                .arg("--store-file")
                .arg(store.path().join("none.json"))
                .exits(0);
            let report = serde_json::from_str::<Value>(&answer.out).expect("JSON");
            let got = match report["counts"]["published"].as_u64() {
                Some(1) => "published",
                _ => report["skipped"][0]["reason"].as_str().expect("a reason"),
            };
            assert_eq!(got, outcome, "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, std::fs::read_dir(states).expect("states").count());
}
