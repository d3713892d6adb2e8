//! Operating the program: crontab, systemd units, output that cannot be written, log format, the static binary.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::docs::{blocks, sh};
use crate::support::api::{Api, kubectl, list, pod};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, program, root, vulcanized};

#[test]
fn the_crontab_line_works_as_pasted() {
    let etcd = Etcd::start();
    etcd.define("web");
    let api =
        Api::start(|request, _| list(&[pod("default", "web-1", "web", "10.0.0.1")], request, 500));
    let kubeconfig = api.plain_kubeconfig();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [line] = blocks("crontab").try_into().expect("one line");
    let command = line.trim().strip_prefix("* * * * * ").expect("each minute");
    let lock = folder.path().join("lock").display().to_string();
    let command = command.replace("/tmp/vulcanized.lock", &lock);
    let command = command.replace("http://127.0.0.1:2379", &etcd.url());
    let command = command.replace(
        "/usr/local/bin/vulcanized",
        &program().display().to_string(),
    );
    // cron sets PATH (see `sh`), HOME and SHELL, and no KUBECONFIG.
    let home = folder.path().display().to_string();
    fs::create_dir(folder.path().join(".kube")).expect("a folder");
    fs::copy(kubeconfig.path(), folder.path().join(".kube/config")).expect("it is copied");
    let environment = [("HOME", home.as_str()), ("SHELL", "/bin/sh")];
    let first = sh(&command, &environment);
    assert!(
        first.code == 0 && first.out.contains("1 created"),
        "{first}"
    );
    let second = sh(&command, &environment);
    assert_eq!(
        (second.code, second.out.as_str(), second.err.as_str()),
        (0, "", "")
    );
}

#[test]
fn the_systemd_units_are_valid() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [service, timer] = blocks("systemd").try_into().expect("two units");
    let service = service.replace(
        "/usr/local/bin/vulcanized",
        &program().display().to_string(),
    );
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("it is written");
        path
    };
    let service = write("vulcanized.service", &service);
    let timer = write("vulcanized.timer", &timer);
    let verify = |paths: &[&PathBuf]| {
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .args(paths)
            .output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.expect("systemd-analyze: run `tests/setup`");
        let output = [stdout, stderr]
            .map(|text| String::from_utf8(text).expect("UTF-8"))
            .concat();
        (status.success(), output)
    };
    let security = |path: &PathBuf| {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
            .arg(path)
            .output()
            .expect("systemd-analyze: run `tests/setup`");
        Answer::from(output)
    };
    // 20 means an exposure of 2.0 out of 10. A unit without hardening has 9.6.
    let exposed = security(&service);
    assert!(exposed.code == 0, "{exposed}");
    let bare = write(
        "bare.service",
        "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    );
    let exposed = security(&bare);
    assert!(exposed.code != 0, "the check can fail: {exposed}");
    assert!(exposed.out.contains("9.6 UNSAFE"), "{exposed}");
    let (ok, output) = verify(&[&service, &timer]);
    assert!(ok && !output.contains("vulcanized."), "{output}");
    let broken = write(
        "broken.service",
        "[Service]\nType=oneshot\nExecStartt=/bin/true\n",
    );
    let (_, output) = verify(&[&broken]);
    let unknown = "Unknown key 'ExecStartt' in section [Service]";
    assert!(output.contains(unknown), "the check can fail: {output}");
}

#[test]
fn a_metrics_file_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let run = |path: &str| {
        vulcanized(&format!(
            "--owner prod --create-backends --pods - --metrics-file {path}"
        ))
        .arg("--store-file")
        .arg(&store)
        .input(pod_text())
        .exits(1)
    };
    let answer = run("/nonexistent/vulcanized.prom");
    assert!(
        answer.err.contains("failed to write the metrics file"),
        "{answer}"
    );
    assert!(
        answer.out.contains("1 created"),
        "all changes are applied: {answer}"
    );
    // A full disk: a file system of 4 KiB in a mount namespace.
    let full = folder.path().join("full");
    fs::create_dir(&full).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=4k none {full} && echo old > {full}/old.prom && \
         dd if=/dev/zero of={full}/fill bs=4k count=1 2>/dev/null; cp {full}/old.prom {full}/../before; \
         {program} --owner prod --pods - --store-file {store} --metrics-file {full}/old.prom; code=$?; \
         cmp {full}/old.prom {full}/../before && ls -A {full} | wc -l && exit $code",
        full = full.display(),
        program = program().display(),
        store = store.display(),
    );
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(pod_text().as_bytes())
        .expect("it reads");
    let answer = Answer::from(child.wait_with_output().expect("it ends"));
    assert!(answer.code == 1, "{answer}");
    assert!(answer.err.contains("No space left on device"), "{answer}");
    assert!(
        answer.out.ends_with("2\n"),
        "the old file is unchanged, no other file is left: {answer}"
    );
}

fn pod_text() -> String {
    kubectl([pod("default", "web-1", "web", "10.0.0.1")])
}

#[test]
fn a_closed_stdout_is_not_a_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let pods = folder.path().join("pods.json");
    let many = (1..=250).map(|n| {
        pod(
            "default",
            &format!("web-{n}"),
            "web",
            &format!("10.0.0.{n}"),
        )
    });
    fs::write(&pods, kubectl(many)).expect("it is written");
    for more in ["--dry-run", "", "-o json"] {
        let script = format!(
            "({} --owner prod --create-backends --pods {} --store-file {} {more}; echo $? >&2) | true",
            program().display(),
            pods.display(),
            store.display(),
        );
        let answer = sh(&script, &[]);
        assert_eq!(answer.err, "0\n", "{more}: {answer}");
    }
}

#[test]
fn a_full_stdout_does_not_stop_applying() {
    let etcd = Etcd::start();
    etcd.define("web");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pods = folder.path().join("pods.json");
    let web = |n| {
        pod(
            "default",
            &format!("web-{n}"),
            "web",
            &format!("10.0.0.{n}"),
        )
    };
    fs::write(&pods, kubectl((1..=250).map(web))).expect("it is written");
    let run = |more: &str| {
        let script = format!(
            "{} --owner prod --pods {} --etcd {} {more} > /dev/full",
            program().display(),
            pods.display(),
            etcd.url(),
        );
        sh(&script, &[])
    };
    let answer = run("--dry-run");
    let unwritten = "failed to write to stdout: No space left on device";
    assert!(
        answer.code == 1 && answer.err.contains(unwritten),
        "{answer}"
    );
    // 250 changes take more than one transaction.
    let answer = run("");
    assert_eq!(
        etcd.keys("/vulcand/backends/web/servers/").len(),
        250,
        "{answer}"
    );
    let wanted = format!("applied 250 of 250 changes: {unwritten}");
    assert!(answer.code == 1 && answer.err.contains(&wanted), "{answer}");
}

#[test]
fn a_plan_after_the_timeout_is_not_applied() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, pods) = (
        folder.path().join("store.json"),
        folder.path().join("pods.json"),
    );
    fs::write(&pods, pod_text()).expect("it is written");
    for more in ["", "--dry-run"] {
        let answer = vulcanized(&format!(
            "--owner prod --create-backends --timeout 1ns {more}"
        ))
        .arg("--pods")
        .arg(&pods)
        .arg("--store-file")
        .arg(&store)
        .exits(1);
        assert!(answer.err.contains("--timeout 1ns"), "{answer}");
        assert!(!store.exists() && answer.out.is_empty(), "{answer}");
    }
}

#[test]
fn log_lines_in_json() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let answer = vulcanized("--owner prod --create-backends --pods - -vv --log-format json")
        .arg("--store-file")
        .arg(folder.path().join("store.json"))
        .input(pod_text().replace("\"True\"", "\"False\""))
        .exits(0);
    assert!(answer.err.lines().count() > 0);
    for line in answer.err.lines() {
        let line = serde_json::from_str::<serde_json::Value>(line).expect("one object a line");
        for field in ["time", "level", "message", "fields"] {
            assert!(!line[field].is_null(), "{field}: {line}");
        }
    }
}

/// The static binary in a chroot and a network namespace: it resolves etcd's name through `/etc/hosts` and through a
/// DNS server, and trusts the CA of `--cacert`.
#[test]
fn the_static_binary_runs_in_an_empty_chroot() {
    let binary = root().join("target/static/vulcanized");
    assert!(binary.exists(), "no static binary: run `tests/static`");
    let ldd = Command::new("ldd").arg(&binary).output().expect("ldd runs");
    let linkage = [ldd.stdout, ldd.stderr]
        .map(|text| String::from_utf8(text).expect("UTF-8"))
        .concat();
    assert!(
        linkage.contains("statically linked") || linkage.contains("not a dynamic"),
        "{linkage}"
    );
    let size = fs::metadata(&binary).expect("it is there").len();
    assert!(size < 10 << 20, "{size} bytes");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = crate::support::certs::Authority::new();
    let leaf = authority.leaf("etcd", &["by-hosts.test", "by-dns.test", "127.0.0.1"]);
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it is made");
        fs::write(path, text).expect("it is written");
    };
    write("root/ca.crt", &authority.pem);
    write("root/pods.json", &pod_text());
    write("root/etc/hosts", "127.0.0.1 by-hosts.test\n");
    write(
        "root/etc/resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n",
    );
    write("tls.crt", &leaf.certificate);
    write("tls.key", &leaf.key);
    fs::copy(&binary, folder.path().join("root/vulcanized")).expect("it is copied");
    write("dns.py", DNS);
    let output = Command::new("unshare")
        .args(["--net", "bash", "-c", CHROOT])
        .current_dir(folder.path())
        .output()
        .expect("unshare runs");
    let answer = Answer::from(output);
    assert!(answer.code == 0, "{answer}");
    assert_eq!(answer.out.matches("1 created").count(), 2, "{answer}");
}

/// Answers queries for the address of `by-dns` with 127.0.0.1, and all others without a record.
const DNS: &str = r#"
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    known = query[end - 4:end - 2] == b"\0\1" and b"by-dns" in query
    head = query[:2] + b"\x85\x80\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if known else b""
    server.sendto(head + query[12:end] + record, client)
"#;

/// Runs in the network namespace, where all ports are free and nothing outside is reachable.
const CHROOT: &str = r#"
set -euo pipefail
ip link set lo up
coproc python3 dns.py
dns=$COPROC_PID
read -r _ <&"${COPROC[0]}"
etcd --data-dir data --log-level error --logger zap --cert-file tls.crt --key-file tls.key \
    --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 2>log &
etcd=$!
trap 'kill $etcd $dns; wait' EXIT
for _ in $(seq 100); do
    ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:2379 --cacert root/ca.crt endpoint health \
        >/dev/null 2>&1 && break
    sleep 0.1
done
for name in by-hosts.test by-dns.test; do
    chroot root /vulcanized --owner "${name%%.*}" --etcd "https://$name:2379" --cacert /ca.crt \
        --pods /pods.json --backend "{name}.$name" --create-backends -o summary
done
"#;
