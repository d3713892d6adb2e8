//! Options and environment variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::api::{Api, kubectl, list, pod};
use crate::support::etcd::Etcd;
use crate::support::program::{Program, vulcanized};

fn dry_run(folder: &tempfile::TempDir, arguments: &str) -> Program {
    vulcanized(&format!(
        "--owner prod --pods - --create-backends {arguments}"
    ))
    .arg("--store-file")
    .arg(folder.path().join("store.json"))
    .input(kubectl([pod("default", "web-1", "web", "10.0.0.1")]))
}

#[test]
fn empty_and_falsey_environment_variables() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for off in ["", "0", "false", "No", "off"] {
        // `--pods` conflicts with `--all-namespaces` and `--selector`.
        let answer = dry_run(&folder, "--dry-run")
            .env("VULCANIZED_ALL_NAMESPACES", off)
            .env("VULCANIZED_SELECTOR", "")
            .env("VULCANIZED_PREFIX", "")
            .exits(0);
        assert_eq!(answer.err, "", "{off}");
    }
    for on in ["1", "true", "yes"] {
        let answer = dry_run(&folder, "").env("VULCANIZED_DRY_RUN", on).exits(0);
        assert!(answer.out.contains("1 to create"), "{on}: {answer}");
    }
    let both = dry_run(&folder, "--dry-run")
        .env("VULCANIZED_ALL_NAMESPACES", "1")
        .exits(2);
    assert!(both.err.contains("--all-namespaces"), "{both}");
}

#[test]
fn unknown_environment_variables_are_warnings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let answer = dry_run(&folder, "--dry-run")
        .env("VULCANIZED_NAMESPACES", "shop")
        .env("VULCANIZED_ALLOW_DELETES", "9")
        .env("VULCANIZED_SERVICE_HOST", "10.96.0.7")
        .env("VULCANIZED_PORT", "tcp://10.96.0.7:80")
        .env("VULCANIZED_PORT_80_TCP_ADDR", "10.96.0.7")
        .exits(0);
    assert_eq!(
        answer.err,
        "warn: environment variable `VULCANIZED_ALLOW_DELETES` is not read: `--allow-deletes` is for one \
         run, on the command line only\n\
         warn: environment variable `VULCANIZED_NAMESPACES` is not read; did you mean \
         `VULCANIZED_NAMESPACE`?\n"
    );
    assert!(
        answer.out.contains("http://10.0.0.1:8080"),
        "the port of the pod, not of the Service: {answer}"
    );
}

#[test]
fn huge_timeouts_do_not_panic() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    for option in ["--timeout", "--request-timeout"] {
        // The last does not fit into 64 bits of seconds.
        let times = [
            ("500000000years", 0),
            ("500000000000years", 0),
            ("600000000000years", 2),
        ];
        for (time, code) in times {
            let answer = vulcanized(&format!(
                "--owner prod --pods - {option} {time} --store-file"
            ))
            .arg(&store)
            .input(r#"{"kind":"List","apiVersion":"v1","items":[]}"#)
            .run();
            assert_eq!(answer.code, code, "{option} {time}: {answer}");
        }
    }
}

/// `--expect` takes the hash of a dry run: that plan is applied, or nothing.
#[test]
fn only_the_expected_plan_is_applied() {
    let etcd = Etcd::start();
    etcd.define("web");
    let pods = |count: u8| {
        kubectl(
            (1..=count).map(|n| pod("shop", &format!("web-{n}"), "web", &format!("10.0.0.{n}"))),
        )
    };
    let run = |more: &str, pods: &str| {
        let url = etcd.url();
        vulcanized(&format!("--owner prod --pods - --etcd {url} {more}"))
            .input(pods)
            .run()
    };
    let two = pods(2);
    let dry = run("--dry-run", &two);
    let hash = dry.plan();
    for format in ["lines", "summary", "json"] {
        let answer = run(&format!("--dry-run -o {format}"), &two);
        assert!(answer.out.contains(hash), "{answer}");
    }
    let lines = run("--dry-run -o lines", &two);
    assert_eq!(
        lines
            .out
            .lines()
            .filter(|line| line.starts_with("+ web/"))
            .count(),
        2,
        "{lines}"
    );
    let revision = etcd.revision();
    // Not applied: a plan for other pods, and a plan with another hash.
    let expect = format!("--expect {hash}");
    for (more, pods) in [(&*expect, &pods(1)), ("--expect 00000000", &two)] {
        let answer = run(more, pods);
        assert_eq!(answer.code, 5, "{answer}");
        assert!(
            answer.err.contains("not the expected one") && answer.out.contains("plan "),
            "{answer}"
        );
        assert_eq!(etcd.revision(), revision, "{answer}");
    }
    // Nor after another writer has taken a key.
    let foreign = "/vulcand/backends/web/servers/10.0.0.1";
    etcd.put(foreign, r#"{"URL":"http://10.9.9.9:80"}"#);
    let written = etcd.revision();
    let answer = run(&expect, &two);
    assert_eq!(answer.code, 5, "{answer}");
    assert_eq!(etcd.revision(), written, "{answer}");
    etcd.delete(foreign);
    let answer = run(&expect, &two);
    assert_eq!(answer.code, 0, "{answer}");
    assert_eq!(
        etcd.keys("/vulcand/backends/web/servers/").len(),
        2,
        "{answer}"
    );
    // 5 takes precedence over 3. A hash with seven digits is a usage error.
    etcd.put(
        "/vulcand/backends/web/servers/blue",
        r#"{"URL":"http://10.9.9.9:80","Owner":"blue","Scope":"x"}"#,
    );
    let three = pods(3);
    assert_eq!(run("--dry-run --exit-code", &three).code, 3);
    assert_eq!(
        run("--dry-run --exit-code --expect 00000000", &three).code,
        5
    );
    assert_eq!(run("--expect 0000000", &three).code, 2);
}

#[test]
fn endpoints_with_more_than_scheme_host_and_port_are_rejected() {
    for (endpoint, why) in [
        (
            "http://etcd:99999",
            "its port is not a number from 1 to 65535",
        ),
        (
            "http://root:s3cret@etcd:2379",
            "it holds a user: give `--user`",
        ),
        (
            "http://etcd:2379/v3",
            "it holds more than scheme, host and port",
        ),
        (
            "http://etcd:2379?x=1",
            "it holds more than scheme, host and port",
        ),
        ("ftp://etcd", "its scheme must be http or https"),
        ("http://good:1,bad:port", "`bad:port` is not an endpoint"),
    ] {
        for variable in [false, true] {
            let program = vulcanized("--owner prod --pods -");
            let program = if variable {
                program.env("ETCDCTL_ENDPOINTS", endpoint)
            } else {
                program.arg("--etcd").arg(endpoint)
            };
            let answer = program.exits(2);
            assert!(
                answer.err.contains(why) && !answer.err.contains("s3cret"),
                "{answer}"
            );
        }
    }
}

/// Another writer changes the store after it was listed: the run plans again, and applies the new plan only if it is
/// the expected one.
#[test]
fn a_foreign_write_between_list_and_apply_with_expect() {
    let foreign = r#"{"URL":"http://10.9.9.9:80"}"#;
    for (key, expected) in [
        // The plan stays the same.
        ("/vulcand/backends/web/servers/hand", true),
        // The plan changes: one of its keys is taken.
        ("/vulcand/backends/web/servers/10.0.0.1", false),
    ] {
        let etcd = Arc::new(Etcd::start());
        etcd.define("web");
        let pods = [
            pod("shop", "web-1", "web", "10.0.0.1"),
            pod("shop", "web-2", "web", "10.0.0.2"),
        ];
        let (other, calls) = (Arc::clone(&etcd), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&calls);
        let api = Api::start(move |request, _| {
            // The first list is the dry run's.
            if seen.fetch_add(1, Ordering::SeqCst) == 1 {
                other.put(key, foreign);
            }
            list(&pods, request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let run = |more: &str| {
            let url = etcd.url();
            vulcanized(&format!(
                "--owner prod -n shop --etcd {url} {more} --kubeconfig"
            ))
            .arg(kubeconfig.path())
            .run()
        };
        let dry = run("--dry-run");
        let hash = dry.plan();
        let revision = etcd.revision();
        let answer = run(&format!("--expect {hash}"));
        assert_eq!(calls.load(Ordering::SeqCst), 3, "planned anew: {answer}");
        let servers = etcd.keys("/vulcand/backends/web/servers/").len();
        if expected {
            assert_eq!((answer.code, servers), (0, 3), "{answer}");
        } else {
            assert_eq!((answer.code, servers), (5, 1), "{answer}");
            assert_eq!(
                etcd.revision(),
                revision + 1,
                "only the foreign write: {answer}"
            );
        }
    }
}
