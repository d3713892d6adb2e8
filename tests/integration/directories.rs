//! etcd v2 with directories where keys should be, and the reverse: only their backend is affected, and the printed
//! commands repair the tree.

use std::collections::BTreeMap;
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

/// The printed commands without duplicates: a finding and an error may suggest the same one.
fn commands(answer: &Answer) -> Vec<String> {
    let all = format!("{}{}", answer.out, answer.err);
    let commands = all.lines().flat_map(|line| {
        let mut parts = line.split("ETCDCTL_API=2 etcdctl ");
        parts.next();
        parts.map(|part| {
            let end = part.find("; backend ").unwrap_or(part.len());
            format!("ETCDCTL_API=2 etcdctl {}", &part[..end])
        })
    });
    let mut distinct = Vec::new();
    for command in commands {
        if !distinct.contains(&command) {
            distinct.push(command);
        }
    }
    distinct
}

/// Runs each printed command and checks its effect. Returns how many there were.
#[track_caller]
fn run_commands(etcd: &Etcd, answer: &Answer) -> usize {
    let commands = commands(answer);
    for command in &commands {
        let output = Command::new("sh").args(["-c", command]).output();
        let output = output.expect("a shell runs");
        assert!(output.status.success(), "{command}: {output:?}");
        // `--endpoints='…' rm '…'`, or `set` with a value after the key.
        let parts = command.split('\'').collect::<Vec<_>>();
        match *parts.as_slice() {
            [_, _, " set ", key, " ", value, ""] => {
                assert_eq!(etcd.get_v2(key).as_deref(), Some(value), "{command}");
            }
            [_, _, " rm " | " rmdir " | " rm --recursive ", key, ""] => {
                assert_eq!(etcd.below_v2(key), BTreeMap::new(), "{command}");
            }
            _ => panic!("unexpected command: {command}"),
        }
    }
    commands.len()
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
fn a_directory_at_a_server_key_fails_only_its_backend() {
    let etcd = Etcd::start();
    for backend in ["admin", "shop", "web"] {
        define(&etcd, backend);
    }
    let key = "/vulcand/backends/shop/servers/10.0.0.1";
    etcd.put_v2(&format!("{key}/below"), Some("x"));
    let answer = run(&etcd, "");
    assert_eq!(answer.code, 1, "{answer}");
    let wanted = format!(
        "backend `shop` is not fully applied: `{key}` is a directory where a key should be"
    );
    assert!(
        answer.err.contains(&wanted) && answer.err.contains("applied 2 of 3 changes"),
        "{answer}"
    );
    for (n, backend) in [(0, "admin"), (2, "web")] {
        let server = format!("/vulcand/backends/{backend}/servers/10.0.0.{n}");
        assert!(etcd.get_v2(&server).is_some(), "{server}: {answer}");
    }
    assert_eq!(run_commands(&etcd, &answer), 1, "{answer}");
    let answer = run(&etcd, "");
    assert_eq!(answer.code, 0, "{answer}");
    assert!(etcd.get_v2(key).is_some(), "{answer}");
}

#[test]
fn a_directory_at_a_definition_affects_only_its_backend() {
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
        assert!(run_commands(&etcd, &answer) > 0, "{answer}");
        define(&etcd, "shop");
        let answer = run(&etcd, more);
        assert_eq!(answer.code, 0, "{answer}");
        let server = "/vulcand/backends/shop/servers/10.0.0.1";
        assert!(etcd.get_v2(server).is_some(), "{answer}");
    }
}

#[test]
fn backends_with_a_common_prefix_are_created() {
    let etcd = Etcd::start();
    let ids = ["api", "api-v2", "api.v3", "ap"];
    let pods = ids.iter().enumerate().map(|(n, id)| {
        let ip = format!("10.0.1.{n}");
        crate::support::api::pod("shop", &format!("{id}-1"), id, &ip)
    });
    let list = crate::support::api::kubectl(pods);
    let options = format!(
        "--owner prod --pods - --etcd-api 2 --create-backends --etcd {}",
        etcd.url()
    );
    let answer = vulcanized(&options).input(list.clone()).exits(0);
    assert!(
        answer.out.contains("4 backends defined, 4 created"),
        "{answer}"
    );
    for (n, id) in ids.iter().enumerate() {
        let backend = format!("/vulcand/backends/{id}");
        let definition = etcd.get_v2(&format!("{backend}/backend"));
        assert_eq!(definition.as_deref(), Some(r#"{"Type":"http"}"#));
        let server = etcd.get_v2(&format!("{backend}/servers/10.0.1.{n}"));
        assert!(server.is_some(), "{id}: {answer}");
    }
    let index = etcd.index_v2();
    let again = vulcanized(&options).input(list).exits(0);
    assert!(again.out.starts_with("in sync: 4 unchanged"), "{again}");
    assert!(!again.out.contains("alike"), "{again}");
    assert_eq!(etcd.index_v2(), index);
}

/// Each kind of node with the wrong type or a value that the proxy cannot use: the printed commands repair the tree in
/// at most four rounds, and the other backends get their servers in the first run.
#[test]
fn printed_commands_repair_an_etcd_v2_tree() {
    /// Keys below `/vulcand/backends/` with their values; `None` is an empty directory.
    type Nodes = &'static [(&'static str, Option<&'static str>)];
    const HTTP: Option<&str> = Some(r#"{"Type":"http"}"#);
    const SERVER: Option<&str> = Some(r#"{"URL":"http://10.9.9.9:80"}"#);
    const ANY: Option<&str> = Some("x");
    let cases: &[Nodes] = &[
        &[("shop", ANY)],
        &[("shop", None)],
        &[("shop/servers", ANY)],
        &[("shop/servers", None)],
        &[("shop/backend", HTTP), ("shop/servers", ANY)],
        &[("shop/backend", None)],
        &[("shop/backend/below", ANY)],
        &[("shop/backend", None), ("shop/servers/a", SERVER)],
        &[("shop/backend", Some("null"))],
        &[("shop/backend", ANY)],
        &[("shop/backend", HTTP), ("shop/servers/10.0.0.1", None)],
        &[("shop/backend", HTTP), ("shop/servers/10.0.0.1/x", None)],
        &[("shop/backend", HTTP), ("shop/servers/10.0.0.1/x", ANY)],
        &[("shop/backend", HTTP), ("shop/servers/a", None)],
        &[("shop/backend", HTTP), ("shop/servers/a/b", ANY)],
        &[("shop/backend", HTTP), ("shop/servers/a", Some("null"))],
        &[("shop/backend", HTTP), ("shop/servers/a", ANY)],
        &[("shop/backend", HTTP), ("shop/servers/a", Some("{}"))],
        &[("other", ANY)],
        &[("other", None)],
        &[("other/servers", ANY)],
        &[("other/servers", None)],
        &[("other/backend", None)],
        &[("other/backend/below", ANY)],
        &[("other/backend", Some("null"))],
        &[("other/servers/a", None)],
        &[("other/servers/a/b", ANY)],
        &[("other/servers/a", SERVER)],
    ];
    let etcd = Etcd::start();
    for nodes in cases {
        define(&etcd, "admin");
        for (key, value) in *nodes {
            etcd.put_v2(&format!("/vulcand/backends/{key}"), *value);
        }
        let mut answer = run(&etcd, "--create-backends");
        for (n, backend) in [(0, "admin"), (2, "web")] {
            let server = format!("/vulcand/backends/{backend}/servers/10.0.0.{n}");
            assert!(etcd.get_v2(&server).is_some(), "{nodes:?}: {answer}");
        }
        for _ in 0..4 {
            if run_commands(&etcd, &answer) == 0 {
                break;
            }
            answer = run(&etcd, "--create-backends");
        }
        assert_eq!(answer.code, 0, "{nodes:?}: {answer}");
        assert!(!answer.out.contains("finding"), "{nodes:?}: {answer}");
        let server = etcd.get_v2("/vulcand/backends/shop/servers/10.0.0.1");
        assert!(server.is_some(), "{nodes:?}: {answer}");
        etcd.remove_v2("/vulcand");
    }
}

/// No command is printed for keys that neither the proxy nor this program reads.
#[test]
fn a_backend_with_only_unknown_keys_is_a_finding() {
    let etcd = Etcd::start();
    etcd.put_v2("/vulcand/backends/other/note", Some("x"));
    let answer = run(&etcd, "--create-backends");
    assert_eq!(answer.code, 0, "{answer}");
    assert!(
        answer.out.contains("the proxy\n  does not start"),
        "{answer}"
    );
    assert!(
        answer.out.contains("    /vulcand/backends/other\n"),
        "{answer}"
    );
    assert_eq!(commands(&answer), [""; 0], "{answer}");
}

#[test]
fn a_key_in_place_of_the_backends_directory_is_an_error() {
    let etcd = Etcd::start();
    etcd.put_v2("/vulcand/backends", Some("x"));
    let answer = run(&etcd, "--create-backends");
    assert_eq!(answer.code, 1, "{answer}");
    let wanted = "`/vulcand/backends` is a key where a directory should be";
    assert!(answer.err.contains(wanted), "{answer}");
    etcd.remove_v2("/vulcand");
    etcd.put_v2("/vulcand", Some("x"));
    let answer = run(&etcd, "--create-backends");
    assert_eq!(answer.code, 1, "{answer}");
    let wanted = "`/vulcand` is a key where a directory should be";
    assert!(answer.err.contains(wanted), "{answer}");
    etcd.remove_v2("/vulcand");
    // `/vulcan/` is listed only to find predecessors' keys: a key in its place is not an error.
    etcd.put_v2("/vulcan", Some("x"));
    let answer = run(&etcd, "--create-backends");
    assert_eq!(answer.code, 0, "{answer}");
}
