//! etcd v2 with directories where keys should be: they cost their own backend, and the printed command helps.

use std::process::Command;

use serde_json::json;

use crate::support::api::{Api, Reply};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, vulcanized};

fn pods() -> String {
    let pod = |(n, app): (usize, &str)| {
        json!({
            "kind": "Pod",
            "metadata": { "name": format!("{app}-1"), "namespace": "shop", "labels": { "app": app } },
            "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 8080, "protocol": "TCP" }] }] },
            "status": { "phase": "Running", "podIP": format!("10.0.0.{n}"),
                "conditions": [{ "type": "Ready", "status": "True" }] },
        })
    };
    let items = ["admin", "shop", "web"].into_iter().enumerate().map(pod);
    let items = items.collect::<Vec<_>>();
    json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }).to_string()
}

fn run(etcd: &Etcd, more: &str) -> Answer {
    let options = format!(
        "--owner prod --pods - --etcd-api 2 {more} --etcd {}",
        etcd.url()
    );
    vulcanized(&options).input(pods()).run()
}

/// Runs the first command that a message prints.
#[track_caller]
fn obey(text: &str) {
    let command = text.lines().find_map(|line| {
        let start = line.find("ETCDCTL_API=2 ")?;
        Some(
            line[start..]
                .split("; ")
                .next()
                .unwrap_or_default()
                .to_owned(),
        )
    });
    let command = command.unwrap_or_else(|| panic!("no command in: {text}"));
    let output = Command::new("sh")
        .args(["-c", &command])
        .output()
        .expect("a shell runs");
    assert!(output.status.success(), "{command}: {output:?}");
}

fn define(etcd: &Etcd, backend: &str) {
    let key = format!("/vulcand/backends/{backend}/backend");
    etcd.put_v2(&key, Some(r#"{"Type":"http"}"#));
}

#[test]
fn an_answer_with_keys_of_another_directory_is_refused() {
    for key in [
        "/v",
        "/vulcand/backendx",
        "/vulcand/backénds/shop/servers/a",
        "/other/backends/shop/backend",
    ] {
        let api = Api::start(move |request, _| {
            let node = if request.path.contains("/vulcand/") {
                json!({"key": "/vulcand/backends", "dir": true, "nodes": [
                    {"key": "/vulcand/backends/shop/backend", "value": r#"{"Type":"http"}"#, "modifiedIndex": 3},
                    {"key": key, "value": "{}", "modifiedIndex": 4},
                ]})
            } else {
                json!({"key": "/other", "dir": true})
            };
            Reply::json(200, &json!({"action": "get", "node": node}))
        });
        let options = format!("--owner prod --pods - --etcd-api 2 --etcd {}", api.url());
        let answer = vulcanized(&options).input(pods()).run();
        let wanted =
            format!("the answer to a listing of `/vulcand/backends/` holds another key: `{key}`");
        assert!(answer.code == 1 && answer.err.contains(&wanted), "{answer}");
        let requests = api.requests();
        assert!(
            requests
                .iter()
                .all(|request| request.query.contains_key("recursive")),
            "{answer}"
        );
    }
}

#[test]
fn at_a_server_key_they_cost_only_their_backend() {
    let etcd = Etcd::start();
    for backend in ["admin", "shop", "web"] {
        define(&etcd, backend);
    }
    let key = "/vulcand/backends/shop/servers/10.0.0.1";
    etcd.put_v2(&format!("{key}/below"), Some("x"));
    let answer = run(&etcd, "");
    assert_eq!(answer.code, 1, "{answer}");
    let wanted =
        format!("backend `shop` was left as it is: `{key}` is a directory where a key should be");
    assert!(
        answer.err.contains(&wanted) && answer.err.contains("applied 2 of 3 changes"),
        "{answer}"
    );
    for (n, backend) in [(0, "admin"), (2, "web")] {
        let server = format!("/vulcand/backends/{backend}/servers/10.0.0.{n}");
        assert!(etcd.get_v2(&server).is_some(), "{server}: {answer}");
    }
    obey(&answer.err);
    let answer = run(&etcd, "");
    assert_eq!(answer.code, 0, "{answer}");
    assert!(etcd.get_v2(key).is_some(), "{answer}");
}

#[test]
fn at_a_definition_they_cost_only_their_backend() {
    for more in ["", "--create-backends"] {
        let etcd = Etcd::start();
        define(&etcd, "admin");
        define(&etcd, "web");
        etcd.put_v2("/vulcand/backends/shop/backend/below", Some("x"));
        let answer = run(&etcd, more);
        assert!(answer.code == 0 || !more.is_empty(), "{answer}");
        for (n, backend) in [(0, "admin"), (2, "web")] {
            let server = format!("/vulcand/backends/{backend}/servers/10.0.0.{n}");
            assert!(etcd.get_v2(&server).is_some(), "{server}: {answer}");
        }
        let all = format!("{}{}", answer.out, answer.err);
        assert!(all.contains("/vulcand/backends/shop/backend"), "{answer}");
        obey(&all);
        define(&etcd, "shop");
        let answer = run(&etcd, more);
        assert_eq!(answer.code, 0, "{answer}");
        let server = "/vulcand/backends/shop/servers/10.0.0.1";
        assert!(etcd.get_v2(server).is_some(), "{answer}");
    }
}
