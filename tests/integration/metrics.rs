//! Metrics in files and in a real Pushgateway, and the README's alert rules.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::docs::blocks;
use crate::support::api::{kubectl, web};
use crate::support::etcd::{Etcd, free_ports, poll, test_tools};
use crate::support::program::{Answer, Program, vulcanized};

/// Runs promtool with this stdin. Returns whether it succeeded, and its stdout and stderr.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let tool = test_tools().join("prometheus/usr/bin/promtool");
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: run `tests/setup`");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(input.as_bytes())
        .expect("it reads");
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().expect("it ends");
    (
        status.success(),
        [stdout, stderr]
            .map(|text| String::from_utf8(text).expect("UTF-8"))
            .concat(),
    )
}

/// The value of a gauge of `owner` whose line contains `label`.
#[track_caller]
fn value(text: &str, name: &str, owner: &str, label: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.starts_with(&format!("vulcanized_{name}{{"))
            && line.contains(&format!("owner=\"{owner}\""))
            && line.contains(label)
    });
    let line = line.unwrap_or_else(|| panic!("{name} {owner} {label} in {text}"));
    let value = line.rsplit(' ').next().expect("a value");
    value.parse().expect("a number")
}

/// Compares bit by bit: the metrics are copied, not computed.
#[track_caller]
fn assert_same(a: f64, b: f64) {
    assert_eq!(a.to_bits(), b.to_bits(), "{a} and {b}");
}

fn run(etcd: &str, pods: &[Value], more: &str) -> Program {
    vulcanized(&format!(
        "--owner prod --etcd {etcd} --pods - --request-timeout 60s {more}"
    ))
    .input(kubectl(pods.iter().cloned()))
}

#[test]
fn metrics_after_success_alarm_and_failure() {
    let etcd = Etcd::start();
    etcd.define("web");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vulcanized.prom");
    let run = |pods: &[Value], url: &str, more: &str| {
        let program = run(url, pods, more).arg("--metrics-file").arg(&path);
        program.run()
    };
    let text = || fs::read_to_string(&path).expect("it is there");
    let value = |name: &str| value(&text(), name, "prod", "");
    let valid = || {
        let (ok, output) = promtool(&["check", "metrics"], &text());
        assert!(ok && output.is_empty(), "{output}");
    };
    run(&[web(1)], &etcd.url(), "--dry-run");
    assert!(!path.exists(), "a dry run leaves none");
    // All series exist even if the first run fails.
    assert_eq!(run(&[web(1)], "http://127.0.0.1:1", "").code, 1);
    valid();
    let series = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| line.rsplit_once(' '));
        names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    let first = series(&text());
    assert!(first.len() > 20, "{first:?}");
    assert_same(value("last_finished_timestamp_seconds"), 0.0);
    assert_same(value("run_exit_code"), 1.0);
    // A success with one pod left out by a misconfiguration.
    let mut several = web(3);
    let ports = &mut several["spec"]["containers"][0]["ports"];
    *ports = serde_json::json!([{"containerPort": 1}, {"containerPort": 2}]);
    assert_eq!(run(&[web(1), web(2), several], &etcd.url(), "").code, 0);
    valid();
    assert_eq!(series(&text()), first);
    assert_same(value("pods_seen"), 3.0);
    assert_same(value("pods_published"), 2.0);
    assert_same(value("changes"), 2.0);
    assert_same(
        self::value(
            &text(),
            "pods_left_out",
            "prod",
            "reason=\"with several ports\"",
        ),
        1.0,
    );
    assert!(value("store_revision") > 1.0);
    let success = value("last_success_timestamp_seconds");
    assert_same(value("last_finished_timestamp_seconds"), success);
    assert_same(value("alarm"), 0.0);
    // A run with an alarm is finished but not successful, also with `--alarm-exit-code 0`.
    for (more, code) in [
        ("", 3),
        ("--alarm-exit-code 0", 0),
        ("--alarm-exit-code 17", 17),
    ] {
        assert_eq!(run(&[], &etcd.url(), more).code, code);
        valid();
        assert_same(value("held"), 2.0);
        assert_same(value("servers_owned"), 2.0);
        assert_same(value("alarm"), 1.0);
        assert_same(value("run_exit_code"), f64::from(code));
        assert_same(value("last_success_timestamp_seconds"), success);
    }
    let finished = value("last_finished_timestamp_seconds");
    assert!(finished > success);
    assert_same(value("last_run_timestamp_seconds"), finished);
    // A failed run keeps the values of the last finished one.
    assert_eq!(run(&[web(1)], "http://127.0.0.1:1", "").code, 1);
    valid();
    assert_same(value("run_exit_code"), 1.0);
    assert_same(value("last_success_timestamp_seconds"), success);
    assert_same(value("last_finished_timestamp_seconds"), finished);
    assert!(value("last_run_timestamp_seconds") > finished);
    assert_same(value("held"), 2.0);
    assert_same(value("alarm"), 1.0);
    assert_eq!(series(&text()), first);
    assert_eq!(
        fs::read_dir(folder.path()).expect("a folder").count(),
        1,
        "nothing else is left"
    );
}

#[test]
fn alarm_exit_code_0_still_reports_changes() {
    let etcd = Etcd::start();
    etcd.define("web");
    etcd.put(
        "/vulcand/backends/web/servers/10.0.0.2",
        r#"{"URL":"http://10.0.0.9:8080"}"#,
    );
    let run = |more: &str| run(&etcd.url(), &[web(1), web(2)], &format!("--dry-run {more}"));
    run("--exit-code").exits(3);
    run("--alarm-exit-code 0").exits(0);
    run("--exit-code --alarm-exit-code 0").exits(4);
    run("--exit-code --alarm-exit-code 7").exits(7);
    let bad = vulcanized("--owner a --pods - --alarm-exit-code 256").exits(2);
    assert!(bad.err.contains("--alarm-exit-code"), "{bad}");
}

/// Debian's Pushgateway on a free port.
struct Pushgateway {
    child: Child,
    port: u16,
}

impl Pushgateway {
    fn start() -> Self {
        let [port] = free_ports();
        let program = test_tools().join("pushgateway/usr/bin/prometheus-pushgateway");
        let child = Command::new(program)
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the Pushgateway: run `tests/setup`");
        let gateway = Self { child, port };
        poll("the Pushgateway", || gateway.text());
        gateway
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The text that Prometheus would scrape.
    fn text(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.0 200").then_some(text)
    }
}

impl Drop for Pushgateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn pushed_metrics_after_success_alarm_and_failure() {
    let etcd = Etcd::start();
    etcd.define("web");
    let gateway = Pushgateway::start();
    let push = format!("--metrics-push {}/", gateway.url());
    let run = |pods: &[Value], url: &str, more: &str| -> Answer {
        run(url, pods, &format!("{push} {more}")).run()
    };
    let value = |name: &str, label: &str| {
        let text = gateway.text().expect("it answers");
        assert!(!text.contains("vulcanized_") || text.contains("job=\"vulcanized\""));
        value(&text, name, "prod", label)
    };
    let dead = "http://127.0.0.1:1";
    run(&[web(1)], &etcd.url(), "--dry-run");
    assert!(!gateway.text().expect("it answers").contains("vulcanized_"));
    // A failed first run, and one of another owner, whose metrics must not change afterwards.
    assert_eq!(run(&[], dead, "").code, 1);
    assert_same(value("run_exit_code", ""), 1.0);
    assert_same(value("last_finished_timestamp_seconds", ""), 0.0);
    assert_eq!(run(&[], dead, "--owner other").code, 2, "given twice");
    let other = vulcanized(&format!("--owner other --etcd {dead} --pods - {push}"));
    other.input(kubectl([])).exits(1);
    let success = run(&[web(1), web(2)], &etcd.url(), "");
    assert_eq!((success.code, &*success.err), (0, ""), "{success}");
    assert_same(value("changes", "action=\"create\""), 2.0);
    assert_same(value("run_exit_code", ""), 0.0);
    let success = value("last_success_timestamp_seconds", "");
    assert!(success > 0.0);
    assert_eq!(run(&[], &etcd.url(), "").code, 3);
    assert_same(value("held", ""), 2.0);
    assert_same(value("alarm", ""), 1.0);
    assert_same(value("last_success_timestamp_seconds", ""), success);
    let finished = value("last_finished_timestamp_seconds", "");
    assert!(finished > success);
    let failed = run(&[web(1)], dead, "");
    assert!(failed.code == 1 && !failed.err.contains("push"), "{failed}");
    assert_same(value("run_exit_code", ""), 1.0);
    assert_same(value("held", ""), 2.0);
    assert_same(value("alarm", ""), 1.0);
    assert_same(value("last_success_timestamp_seconds", ""), success);
    assert_same(value("last_finished_timestamp_seconds", ""), finished);
    let text = gateway.text().expect("it answers");
    assert_same(self::value(&text, "run_exit_code", "other", ""), 1.0);
    // With `--metrics-file` too, the file and the Pushgateway have the same values.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("vulcanized.prom");
    let both = format!("--metrics-file {}", file.display());
    assert_eq!(run(&[web(1), web(2)], &etcd.url(), &both).code, 0);
    let text = fs::read_to_string(&file).expect("it is there");
    for name in [
        "last_success_timestamp_seconds",
        "run_duration_seconds",
        "servers_owned",
    ] {
        assert_same(value(name, ""), self::value(&text, name, "prod", ""));
    }
}

#[test]
fn an_unreachable_pushgateway_is_a_warning() {
    let etcd = Etcd::start();
    etcd.define("web");
    let [port] = free_ports();
    let push = format!("--metrics-push http://127.0.0.1:{port}");
    for (pods, code) in [(&[web(1)][..], 0), (&[], 3)] {
        let answer = run(&etcd.url(), pods, &push).exits(code);
        assert_eq!(
            answer.err,
            format!(
                "warn: failed to push metrics to `http://127.0.0.1:{port}`: connection refused\n"
            )
        );
    }
    // A path that the Pushgateway does not serve.
    let gateway = Pushgateway::start();
    let wrong = format!("--metrics-push {}/nothing-here", gateway.url());
    let answer = run(&etcd.url(), &[web(1)], &wrong).exits(0);
    assert!(answer.err.contains("it answered 404"), "{answer}");
    for bad in [
        "pushgateway:9091",
        "ftp://h",
        "http://",
        "http://a:b@h:9091",
        "http://h/?a=b",
    ] {
        let answer = run(&etcd.url(), &[], "")
            .arg("--metrics-push")
            .arg(bad)
            .exits(2);
        assert!(answer.err.contains("--metrics-push"), "{answer}");
    }
}

/// A name, series with their values, and the expected alerts.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], String);

/// Runs `promtool test rules` with these series and expected alerts. Returns whether it passed, and its output.
fn alerts_test(rules: &str, name: &str, series: &[(&str, &str)], alerts: &str) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("it is written");
        path
    };
    write("rules.yaml", rules);
    let series = series.iter().map(|(series, values)| {
        format!("      - series: '{series}'\n        values: '{values}'\n")
    });
    let text = format!(
        "rule_files: [rules.yaml]\nevaluation_interval: 1m\ntests:\n  - name: {name}\n    interval: 1m\n    \
         input_series:\n{}    alert_rule_test:\n{alerts}",
        series.collect::<String>()
    );
    let test = write("test.yaml", &text);
    promtool(&["test", "rules", &test.display().to_string()], "")
}

/// One line of an `alert_rule_test`: at `at` the alert fires with this severity and these further labels, or not.
fn alert(at: &str, name: &str, fires: Option<(&str, &str)>) -> String {
    let expected = match fires {
        None => "[]".to_owned(),
        Some((severity, rest)) => {
            format!("[{{exp_labels: {{severity: {severity}{rest}}}}}]")
        }
    };
    format!("      - {{eval_time: {at}, alertname: {name}, exp_alerts: {expected}}}\n")
}

#[test]
fn alerts_fire_after_their_thresholds() {
    let [rules] = blocks("yaml").try_into().expect("one block");
    // Without annotations, which the expected alerts would have to repeat.
    let lines = rules.lines().filter(|line| !line.contains("annotations:"));
    let rules = lines.collect::<Vec<_>>().join("\n");
    let owner = r#"{owner="prod"}"#;
    let finished = format!("vulcanized_last_finished_timestamp_seconds{owner}");
    let last_run = format!("vulcanized_last_run_timestamp_seconds{owner}");
    let alarm = format!("vulcanized_alarm{owner}");
    let left_out = r#"vulcanized_pods_left_out{owner="prod",reason="with several ports"}"#;
    let of_prod = |severity| Some((severity, ", owner: prod"));
    let stale = |at, fires: bool| {
        alert(
            at,
            "VulcanizedStale",
            fires.then_some(of_prod("page")).flatten(),
        )
    };
    let alarms = |at, fires: bool| {
        alert(
            at,
            "VulcanizedAlarm",
            fires.then_some(of_prod("page")).flatten(),
        )
    };
    let missing = |at, fires: bool| alert(at, "VulcanizedMissing", fires.then_some(("page", "")));
    let success =
        r#"kube_cronjob_status_last_successful_time{cronjob="vulcanized",namespace="default"}"#;
    let created = r#"kube_cronjob_created{cronjob="vulcanized",namespace="default"}"#;
    let cronjob = |at, fires: bool| {
        let labels = ("page", ", cronjob: vulcanized, namespace: default");
        alert(at, "VulcanizedCronJobStale", fires.then_some(labels))
    };
    let cases: [Case; 7] = [
        (
            "healthy",
            &[
                (&finished, "0+60x1440"),
                (&last_run, "0+60x1440"),
                (&alarm, "0x1440"),
                (left_out, "0x1440"),
            ],
            stale("1d", false)
                + &alarms("1d", false)
                + &missing("1d", false)
                + &alert("1d", "VulcanizedPodsLeftOut", None),
        ),
        (
            "never succeeded",
            &[
                (&finished, "0x60"),
                (&last_run, "0+60x60"),
                (&alarm, "0x60"),
            ],
            stale("10m", true) + &stale("1h", true) + &alarms("1h", false) + &missing("1h", false),
        ),
        (
            "alarms for a day",
            &[
                (&finished, "0+60x1440"),
                (&last_run, "0+60x1440"),
                (&alarm, "0x5 1x1434"),
            ],
            alarms("4m", false) + &alarms("15m", true) + &alarms("1d", true) + &stale("1d", false),
        ),
        (
            "died",
            &[
                (&finished, "0+60x10 600x60"),
                (&last_run, "0+60x10 600x60"),
                (&alarm, "0x70"),
            ],
            stale("10m", false)
                + &stale("14m", false)
                + &stale("17m", true)
                + &missing("1h", false),
        ),
        (
            "never ran",
            &[("other", "1x60")],
            missing("2m", false) + &missing("10m", true),
        ),
        (
            "left out",
            &[(left_out, "2x60")],
            alert("30m", "VulcanizedPodsLeftOut", of_prod("ticket")),
        ),
        (
            "CronJobs",
            &[(created, "0x60"), (success, "_x10 600x50")],
            cronjob("3m", false)
                + &cronjob("9m", true)
                + &cronjob("12m", false)
                + &cronjob("30m", true),
        ),
    ];
    for case in cases {
        check_alerts(&rules, &case);
    }
}

/// Checks the alerts of a case, and that the check fails with rules that never fire.
fn check_alerts(rules: &str, (name, series, alerts): &Case) {
    let (ok, output) = alerts_test(rules, name, series, alerts);
    assert!(ok, "{name}: {output}");
    let broken = rules
        .replace(" > 300", " > 1e12")
        .replace("> 0", "> 99")
        .replace("absent(", "absent(other or ");
    let has_alert = alerts.contains("exp_labels");
    assert!(
        !has_alert || !alerts_test(&broken, name, series, alerts).0,
        "{name}: the test can fail"
    );
}

#[test]
fn the_alert_rules_are_valid() {
    let [rules] = blocks("yaml").try_into().expect("one block");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rules.yaml");
    fs::write(&path, &rules).expect("it is written");
    let (ok, output) = promtool(&["check", "rules", &path.display().to_string()], "");
    assert!(ok && output.contains("6 rules found"), "{output}");
    // The rules use only metrics that exist.
    let reference = vulcanized("--generate reference").exits(0).out;
    let names = rules.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let names = names.filter(|name| name.starts_with("vulcanized_"));
    for name in names {
        assert!(reference.contains(&format!("| `{name}` |")), "{name}");
    }
}
