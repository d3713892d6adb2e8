//! The commands that findings print for etcd v3: each is run, its effect is checked, and together they repair the tree.

use std::process::Command;

use crate::support::api::{kubectl, pod};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, vulcanized};

const HTTP: &str = r#"{"Type":"http"}"#;
const SERVER: &str = r#"{"URL":"http://10.9.9.9:80"}"#;

fn run(etcd: &Etcd, layout: &str) -> Answer {
    let options = format!(
        "--owner prod --pods - --layout {layout} --etcd {}",
        etcd.url()
    );
    let pods = ["shop", "web"].iter().enumerate();
    let pods = pods.map(|(n, app)| pod("default", app, app, &format!("10.0.0.{n}")));
    vulcanized(&options).input(kubectl(pods)).run()
}

/// Runs each printed command and checks its effect. Returns how many there were.
#[track_caller]
fn run_commands(etcd: &Etcd, answer: &Answer) -> usize {
    let lines = answer.out.lines().map(str::trim);
    let commands = lines.filter(|line| line.starts_with("etcdctl "));
    let mut count = 0;
    for command in commands {
        count += 1;
        let shell = Command::new("sh")
            .args(["-c", command])
            .env("ETCDCTL_API", "3")
            .output();
        let output = shell.expect("a shell runs");
        assert!(output.status.success(), "{command}: {output:?}");
        let parts = command.split('\'').collect::<Vec<_>>();
        let value = |key: &str| {
            let found = etcd.get(key).into_iter().find(|(found, _)| found == key);
            found.map(|(_, value)| value)
        };
        match *parts.as_slice() {
            ["etcdctl put ", key, " ", wanted, " --endpoints=", _, ""] => {
                assert_eq!(value(key).as_deref(), Some(wanted), "{command}");
            }
            ["etcdctl del ", key, " --endpoints=", _, ""] => {
                assert_eq!(value(key), None, "{command}");
            }
            _ => panic!("unexpected command: {command}"),
        }
    }
    count
}

/// Runs the printed commands on a tree with these keys below `prefix` until there are none, and checks that both pods
/// are published without findings.
#[track_caller]
fn assert_repaired(layout: &str, prefix: &str, defined: &[(&str, &str)], broken: &[(&str, &str)]) {
    let etcd = Etcd::start();
    for (key, value) in defined.iter().chain(broken) {
        etcd.put(&format!("{prefix}{key}"), value);
    }
    let first = run(&etcd, layout);
    assert_ne!(run_commands(&etcd, &first), 0, "{broken:?}: {first}");
    let mut answer = run(&etcd, layout);
    for _ in 0..3 {
        if run_commands(&etcd, &answer) == 0 {
            break;
        }
        answer = run(&etcd, layout);
    }
    assert_eq!(answer.code, 0, "{broken:?}: {answer}");
    assert!(!answer.out.contains("finding"), "{broken:?}: {answer}");
    assert!(!answer.out.contains("not defined"), "{broken:?}: {answer}");
    let servers = etcd.keys(prefix).into_iter();
    let published = servers.filter(|key| key.contains("10.0.0.0") || key.contains("10.0.0.1"));
    assert_eq!(published.count(), 2, "{broken:?}: {answer}");
}

#[test]
fn printed_commands_repair_vulcands_tree() {
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[("shop/backend", "null")],
        &[("shop/backend", "x")],
        &[("shop/backend", r#"{"Type":"tcp"}"#)],
        &[(
            "shop/backend",
            r#"{"Type":"http","Settings":{"KeepAlive":{"Period":"4"}}}"#,
        )],
        &[("shop/backend", HTTP), ("shop/servers/a", "null")],
        &[("shop/backend", HTTP), ("shop/servers/a", "x")],
        &[("shop/backend", HTTP), ("shop/servers/a", "{}")],
        &[("shop/servers/a", SERVER)],
        &[("shop/backend", HTTP), ("other/servers/a", SERVER)],
        &[("shop/backend", HTTP), ("other/backend", "null")],
        &[
            ("shop/backend", HTTP),
            ("other/backend", r#"{"Type":"http","Id":5}"#),
        ],
    ];
    for broken in cases {
        assert_repaired(
            "vulcand",
            "/vulcand/backends/",
            &[("web/backend", HTTP)],
            broken,
        );
    }
}

#[test]
fn printed_commands_repair_traefiks_tree() {
    let web = ("routers/web/service", "web");
    let shop = ("routers/shop/service", "shop");
    let url = "http://10.9.9.9:80";
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[("services/shop/loadBalancer/servers/a/url", url)],
        &[shop, ("services/shop/loadBalancer/servers/a/url", "")],
        &[shop, ("services/shop/loadBalancer/servers/a/weight", "3")],
        &[
            shop,
            ("services/shop/loadBalancer/servers/a/preservePath", "true"),
        ],
        &[shop, ("services/other/loadBalancer/servers/a/url", url)],
    ];
    for broken in cases {
        assert_repaired("traefik", "traefik/http/", &[web], broken);
    }
}
