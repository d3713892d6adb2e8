//! Pods on stdin: read once, within `--timeout`, and without locking the store meanwhile.

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
fn an_open_stdin_ends_at_the_timeout() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let options = format!(
        "--owner prod --create-backends --store-file {}",
        store.display()
    );
    let mut child = waiting(&format!("{options} --pods - --timeout 3s"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(pods(1).as_bytes()).expect("it is read");
    poll("the end of the run", || {
        child.try_wait().expect("its state is known")
    });
    let answer = Answer::from(child.wait_with_output().expect("it ended"));
    drop(stdin);
    assert_eq!(answer.code, 1, "{answer}");
    let wanted = "stdin did not end: the run's time is up (--timeout 3s)";
    assert!(answer.err.contains(wanted), "{answer}");
    assert!(!store.exists(), "{answer}");
}

#[test]
fn the_store_is_not_locked_while_waiting_for_stdin() {
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

/// When the answer to a write is lost, the run lists the store again and keeps its pods.
#[test]
fn pods_from_stdin_are_reused_when_planning_again() {
    let mut planned_anew = 0;
    for after in (200..2600).step_by(200) {
        let etcd = Etcd::start();
        etcd.define("web");
        let wire = Proxy::start(etcd.port(), Loss::Answers, after);
        let options = "--owner prod -v --request-timeout 3s --timeout 60s --pods - --etcd";
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

/// Pod lists as kubectl and people produce them, in the encodings of their shells: accepted, or rejected with a message
/// that names the problem, and nothing is written.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn pod_list_formats_and_encodings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, file) = (folder.path().join("store.json"), folder.path().join("pods"));
    let before = json!({ "/vulcand/backends/web/backend": r#"{"Type":"http"}"# }).to_string();
    let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| {
        let text = format!("\u{feff}{text}");
        text.encode_utf16().flat_map(bytes).collect::<Vec<_>>()
    };
    let list = pods(2);
    let parsed = serde_json::from_str::<serde_json::Value>(&list).expect("JSON");
    let items = &parsed["items"];
    let typed = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "7" }, "items": items });
    let page = json!({ "kind": "PodList", "metadata": { "resourceVersion": "7", "continue": "x" }, "items": items });
    let mixed = json!({ "kind": "List", "items": [items[0], { "kind": "Service", "metadata": { "name": "a" } }] });
    for (case, input, message) in [
        ("a List", list.clone().into_bytes(), None),
        ("a PodList", typed.to_string().into_bytes(), None),
        (
            "indented",
            serde_json::to_vec_pretty(&parsed).expect("JSON"),
            None,
        ),
        ("one Pod", items[0].to_string().into_bytes(), None),
        (
            "UTF-8 with a mark",
            format!("\u{feff}{list}").into_bytes(),
            None,
        ),
        (
            "UTF-16, little end first",
            utf_16(&list, u16::to_le_bytes),
            None,
        ),
        (
            "UTF-16, big end first",
            utf_16(&list, u16::to_be_bytes),
            None,
        ),
        (
            "blank lines around",
            format!("\r\n\r\n{list}\r\n\r\n").into_bytes(),
            None,
        ),
        ("nothing", Vec::new(), Some("it is empty")),
        (
            "a mark and nothing else",
            "\u{feff}".into(),
            Some("it is empty"),
        ),
        (
            "an array",
            items.to_string().into_bytes(),
            Some("it is an array, not a `List`"),
        ),
        (
            "an array of one, after blanks",
            format!(" \n[{}]", items[0]).into_bytes(),
            Some("it is an array"),
        ),
        (
            "YAML",
            b"apiVersion: v1\nitems: []\nkind: List\n".to_vec(),
            Some("it is not JSON: use `-o json`"),
        ),
        (
            "YAML with a mark",
            b"---\napiVersion: v1\nkind: Pod\n".to_vec(),
            Some("it is not JSON: use `-o json`"),
        ),
        (
            "a table",
            b"NAME   READY   STATUS\nweb-1  1/1     Running\n".to_vec(),
            Some("it is not JSON"),
        ),
        (
            "names",
            b"pod/web-1\npod/web-2\n".to_vec(),
            Some("it is not JSON"),
        ),
        (
            "a page",
            page.to_string().into_bytes(),
            Some("`continue` says that there are more pods"),
        ),
        (
            "two lists",
            format!("{list}\n{list}").into_bytes(),
            Some("trailing characters"),
        ),
        (
            "a list and a word",
            format!("{list} end").into_bytes(),
            Some("trailing characters"),
        ),
        (
            "a cut list",
            list.as_bytes()[..list.len() / 2].to_vec(),
            Some("EOF"),
        ),
        (
            "another kind",
            b"{\"kind\":\"Deployment\"}".to_vec(),
            Some("it is a `Deployment`"),
        ),
        (
            "a Service among them",
            mixed.to_string().into_bytes(),
            Some("its list has a `Service` in it"),
        ),
        (
            "Latin-1",
            b"{\"kind\":\"List\",\"items\":[],\"x\":\"\xe9\"}".to_vec(),
            Some("neither UTF-8 nor UTF-16"),
        ),
    ] {
        std::fs::write(&file, &input).expect("it is written");
        for from in ["-", file.to_str().expect("UTF-8")] {
            std::fs::write(&store, &before).expect("it is written");
            let program =
                vulcanized(&format!("--owner prod --pods {from} --store-file")).arg(&store);
            let answer = program.input(input.clone()).run();
            let after = std::fs::read_to_string(&store).expect("the store");
            match message {
                None => {
                    assert_eq!(answer.code, 0, "{case}: {answer}");
                    assert!(after.contains("servers/10.0.0.1"), "{case}: {answer}");
                }
                Some(message) => {
                    assert_eq!((answer.code, &after), (1, &before), "{case}: {answer}");
                    assert!(answer.err.contains(message), "{case}: {answer}");
                }
            }
        }
    }
}
