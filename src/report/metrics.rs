//! A run in Prometheus' text format, for the node exporter's textfile collector and for a Pushgateway.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::reconcile::map::SkipReason;
use crate::reconcile::plan::{Action, Change, LeftOut, Plan};

/// The job by which a Pushgateway groups these metrics.
pub(crate) const JOB: &str = "vulcanized";

/// One run, for its metrics. Times are in seconds, points in time since 1970.
pub struct Run<'r> {
    /// Owner of the run's entries.
    pub owner: &'r str,
    /// When it began.
    pub start: f64,
    /// How long it took.
    pub duration: f64,
    /// Its exit code.
    pub exit_code: u8,
    /// What it decided and did; `None` when it failed.
    pub finished: Option<(&'r Plan, &'r [Change])>,
}

/// A gauge: its name, its help, and the values of its label beside the owner, where it has one.
struct Metric {
    name: &'static str,
    help: &'static str,
    label: Option<(&'static str, &'static [&'static str])>,
}

const fn metric(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        help,
        label: None,
    }
}

/// All of them, in the order in which they are written.
const METRICS: [Metric; 18] = [
    metric(
        "vulcanized_last_run_timestamp_seconds",
        "When the last run began.",
    ),
    metric(
        "vulcanized_last_finished_timestamp_seconds",
        "When the last run began that finished, with an alarm or without; 0 if none did.",
    ),
    metric(
        "vulcanized_last_success_timestamp_seconds",
        "When the last run began that finished without an alarm; 0 if none did.",
    ),
    metric(
        "vulcanized_run_duration_seconds",
        "How long the last run took.",
    ),
    metric("vulcanized_run_exit_code", "Exit code of the last run."),
    metric(
        "vulcanized_alarm",
        "1 if the last finished run ended with an alarm, whatever its exit code.",
    ),
    Metric {
        name: "vulcanized_changes",
        help: "Changes that the last finished run made.",
        label: Some(("action", &["create", "update", "delete"])),
    },
    metric("vulcanized_pods_seen", "Pods listed."),
    metric(
        "vulcanized_pods_published",
        "Pods with at least one server.",
    ),
    Metric {
        name: "vulcanized_pods_left_out",
        help: "Pods left out by a mistake in the pod or in the options.",
        label: Some(("reason", SkipReason::MISTAKES)),
    },
    metric(
        "vulcanized_servers_owned",
        "Servers of this job found in the store.",
    ),
    metric(
        "vulcanized_held",
        "Changes held because nothing proves that the pods are gone.",
    ),
    metric("vulcanized_kept", "Servers kept though not ready."),
    metric(
        "vulcanized_conflicts",
        "Wanted keys that are not ours and hold another URL.",
    ),
    metric(
        "vulcanized_findings",
        "Entries in the store that hurt the proxy.",
    ),
    metric(
        "vulcanized_foreign",
        "Servers in the store that are not this owner's.",
    ),
    metric(
        "vulcanized_out_of_scope",
        "Servers of this owner from another cluster or selector.",
    ),
    metric(
        "vulcanized_store_revision",
        "Revision of the store when it was listed; 0 where it has none.",
    ),
];

/// Values by metric and label value (empty where the metric has no label).
type Values = BTreeMap<(String, String), f64>;

/// Writes the metrics of a run. What a failed run does not know keeps the value of `old`, the text written
/// before, or is 0: every series exists from the first run on.
#[must_use]
pub fn render(run: &Run, old: &str) -> String {
    let mut values = read(old, run.owner);
    values.extend(values_of(run));
    let mut out = String::new();
    for Metric { name, help, label } in METRICS {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        let mut line = |labels: &str, value: &str| {
            let key = (name.to_owned(), value.to_owned());
            let value = values.get(&key).copied().unwrap_or_default();
            let _ = writeln!(out, "{name}{{owner=\"{}\"{labels}}} {value}", run.owner);
        };
        match label {
            None => line("", ""),
            Some((label, known)) => {
                for value in known {
                    line(&format!(",{label}=\"{value}\""), value);
                }
            }
        }
    }
    out
}

fn values_of(run: &Run) -> Values {
    let mut values = Values::new();
    let mut set = |name: &str, label: &str, value: f64| {
        values.insert((format!("vulcanized_{name}"), label.to_owned()), value);
    };
    set("last_run_timestamp_seconds", "", run.start);
    set("run_duration_seconds", "", run.duration);
    set("run_exit_code", "", f64::from(run.exit_code));
    let Some((plan, changes)) = run.finished else {
        return values;
    };
    set("last_finished_timestamp_seconds", "", run.start);
    let alarm = plan.alarms();
    set("alarm", "", f64::from(u8::from(alarm)));
    if !alarm {
        set("last_success_timestamp_seconds", "", run.start);
    }
    let count = |wanted: fn(&Action) -> bool| {
        let found = changes.iter().filter(|change| wanted(&change.action));
        float(found.count())
    };
    let creates = count(|action| matches!(action, Action::Create { .. }));
    let updates = count(|action| matches!(action, Action::Update { .. }));
    let deletes = count(|action| matches!(action, Action::Delete { .. }));
    set("changes", "create", creates);
    set("changes", "update", updates);
    set("changes", "delete", deletes);
    let mut left_out = BTreeMap::<&str, usize>::new();
    for LeftOut { reason, .. } in &plan.skipped {
        if reason.is_mistake() {
            *left_out.entry(reason.kind()).or_default() += 1;
        }
    }
    for reason in SkipReason::MISTAKES {
        let pods = left_out.get(reason).copied().unwrap_or_default();
        set("pods_left_out", reason, float(pods));
    }
    let counts = plan.counts;
    let kept = plan.kept.iter().map(|kept| kept.servers.len()).sum();
    for (name, value) in [
        ("pods_seen", counts.pods),
        ("pods_published", counts.published),
        ("servers_owned", counts.owned),
        ("held", plan.held.len()),
        ("kept", kept),
        ("conflicts", plan.conflicts.len()),
        ("findings", plan.findings.len()),
        ("foreign", counts.foreign),
        ("out_of_scope", plan.out_of_scope.len()),
    ] {
        set(name, "", float(value));
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact up to 2^53, more than etcd counts"
    )]
    set("store_revision", "", plan.revision.unwrap_or(0) as f64);
    values
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, more than there are keys"
)]
fn float(count: usize) -> f64 {
    count as f64
}

/// The values that a text has for this owner: a file of ours, or what a Pushgateway shows, which has all its
/// groups in it.
fn read(text: &str, owner: &str) -> Values {
    let value = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        // No value of ours has a quote or a comma in it.
        let labels = labels.split(',').filter_map(|label| {
            let (name, value) = label.split_once('=')?;
            Some((name, value.trim_matches('"')))
        });
        let mut of_label = "";
        let mut is_ours = false;
        for (name, value) in labels {
            match name {
                "owner" => is_ours = value == owner,
                "job" if value != JOB => return None,
                "job" | "instance" => {}
                _ => of_label = value,
            }
        }
        let key = (name.to_owned(), of_label.to_owned());
        is_ours.then_some((key, value.parse().ok()?))
    };
    text.lines().filter_map(value).collect()
}

/// Names, labels and help as a table for the reference.
pub(crate) fn table() -> String {
    let mut text = String::from("| gauge | |\n|---|---|\n");
    for Metric { name, help, label } in METRICS {
        let labels = match label {
            Some((label, values)) => format!(" `{label}`: `{}`.", values.join("`, `")),
            None => String::new(),
        };
        let _ = writeln!(text, "| `{name}` | {help}{labels} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(owner: &str) -> Run<'_> {
        Run {
            owner,
            start: 1_700_000_060.25,
            duration: 0.5,
            exit_code: 1,
            finished: None,
        }
    }

    fn value(text: &str, name: &str, label: &str) -> Option<f64> {
        let key = (format!("vulcanized_{name}"), label.to_owned());
        read(text, "prod").get(&key).copied()
    }

    #[test]
    fn all_series_exist_after_a_first_run_that_failed() {
        let text = render(&failed("prod"), "");
        assert_eq!(value(&text, "run_exit_code", ""), Some(1.0));
        for metric in METRICS {
            for label in metric.label.map_or(&[""][..], |(_, values)| values) {
                let key = (metric.name.to_owned(), (*label).to_owned());
                assert!(read(&text, "prod").contains_key(&key), "{key:?}");
            }
        }
        assert_eq!(
            value(&text, "last_finished_timestamp_seconds", ""),
            Some(0.0)
        );
        assert_eq!(value(&text, "changes", "delete"), Some(0.0));
    }

    #[test]
    fn metrics_of_the_last_finished_run_survive_a_failure() {
        let gateway = "\
            vulcanized_held{instance=\"\",job=\"vulcanized\",owner=\"prod\"} 7\n\
            vulcanized_held{instance=\"\",job=\"vulcanized\",owner=\"other\"} 8\n\
            vulcanized_held{instance=\"\",job=\"copy\",owner=\"prod\"} 9\n\
            vulcanized_changes{action=\"delete\",instance=\"\",job=\"vulcanized\",owner=\"prod\"} 2\n\
            vulcanized_last_success_timestamp_seconds{instance=\"\",job=\"vulcanized\",owner=\"prod\"} \
            1.70000000025e+09\n\
            push_time_seconds{instance=\"\",job=\"vulcanized\",owner=\"prod\"} 1.7e+09\n";
        let first = render(&failed("prod"), gateway);
        let second = render(&failed("prod"), &first);
        assert_eq!(first, second);
        assert_eq!(value(&second, "held", ""), Some(7.0));
        assert_eq!(value(&second, "changes", "delete"), Some(2.0));
        let success = value(&second, "last_success_timestamp_seconds", "");
        assert_eq!(success, Some(1_700_000_000.25));
        assert_eq!(value(&render(&failed("new"), &second), "held", ""), None);
    }
}
