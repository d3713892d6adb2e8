//! The command line and its environment.

use crate::support::api::{kubectl, pod};
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
fn an_empty_variable_is_absent_and_some_values_switch_a_flag_off() {
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
fn a_variable_that_nothing_reads_is_warned_of() {
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
        "the pod's own port, not the Service's: {answer}"
    );
}

#[test]
fn the_longest_time_is_no_abort() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    for option in ["--timeout", "--request-timeout"] {
        for time in ["500000000years", "500000000000years"] {
            let answer = vulcanized(&format!(
                "--owner prod --pods - {option} {time} --store-file"
            ))
            .arg(&store)
            .input(r#"{"kind":"List","apiVersion":"v1","items":[]}"#)
            .run();
            assert!([0, 2].contains(&answer.code), "{option} {time}: {answer}");
        }
    }
}
