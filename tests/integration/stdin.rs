//! Pods on stdin: read once, in time, and without anybody waiting meanwhile.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::etcd::{Etcd, poll};
use crate::support::program::{Answer, vulcanized};
use crate::support::proxy::{Loss, Proxy};

fn pods(count: u8) -> String {
    let pod = |n: u8| {
        json!({
            "kind": "Pod",
            "metadata": { "name": format!("web-{n}"), "namespace": "shop", "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 8080, "protocol": "TCP" }] }] },
            "status": { "phase": "Running", "podIP": format!("10.0.0.{n}"),
                "conditions": [{ "type": "Ready", "status": "True" }] },
        })
    };
    let items = (1..=count).map(pod).collect::<Vec<_>>();
    json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }).to_string()
}

/// The program with a stdin that stays open.
fn waiting(arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vulcanized"))
        .env_clear()
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

#[test]
fn a_stdin_that_stays_open_ends_with_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let options = format!(
        "--owner prod --create-backends --store-file {}",
        store.display()
    );
    let mut child = waiting(&format!("{options} --pods - --timeout 1s"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(pods(1).as_bytes()).expect("it is read");
    poll("the end of the run", || {
        child.try_wait().expect("its state is known")
    });
    let answer = Answer::from(child.wait_with_output().expect("it ended"));
    drop(stdin);
    assert_eq!(answer.code, 1, "{answer}");
    let wanted = "stdin did not end: the run's time is up (--timeout 1s)";
    assert!(answer.err.contains(wanted), "{answer}");
    assert!(!store.exists(), "{answer}");
}

#[test]
fn the_store_is_not_locked_while_stdin_is_waited_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let options = format!(
        "--owner prod --create-backends --store-file {} --pods -",
        store.display()
    );
    let mut child = waiting(&format!("{options} --timeout 60s"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(b" ").expect("it is read");
    vulcanized(&options).input(pods(1)).exits(0);
    stdin.write_all(pods(2).as_bytes()).expect("it is read");
    drop(stdin);
    let answer = Answer::from(child.wait_with_output().expect("it ends"));
    assert_eq!(answer.code, 0, "{answer}");
    assert!(
        answer.out.contains("+ web/10.0.0.2") && !answer.out.contains("10.0.0.1 "),
        "{answer}"
    );
}

/// When the answer to a write is lost, the run lists the store again, and has its pods still.
#[test]
fn pods_from_stdin_are_kept_for_planning_anew() {
    let mut planned_anew = 0;
    for after in (200..2600).step_by(200) {
        let etcd = Etcd::start();
        etcd.define("web");
        let wire = Proxy::start(etcd.port(), Loss::Answers, after);
        let options = "--owner prod -v --request-timeout 1s --timeout 20s --pods - --etcd";
        let answer = vulcanized(options).arg(wire.url()).input(pods(3)).run();
        let servers = etcd.keys("/vulcand/backends/web/servers/");
        if answer.code == 0 {
            assert_eq!(
                servers,
                ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
                "{after}: {answer}"
            );
            planned_anew += usize::from(answer.err.contains("listing again"));
        } else {
            // The only endpoint did not answer the listing.
            assert!(
                servers.is_empty() && answer.err.contains("failed to list"),
                "{after}: {answer}"
            );
        }
    }
    assert!(planned_anew > 0, "no answer to a write was lost");
}
