//! A run in Prometheus' text format, for the node exporter's textfile collector.

use std::fmt::Write as _;

use crate::reconcile::plan::{Action, Change, Plan};

/// Name of the metric that is kept from one file to the next.
const LAST_SUCCESS: &str = "vulcanized_last_success_timestamp_seconds";

/// What is said of one run. Times are seconds, points in time since 1970.
pub struct Run<'r> {
    /// Whose run it was.
    pub owner: &'r str,
    /// When it began.
    pub start: f64,
    /// How long it took.
    pub duration: f64,
    /// Its exit code.
    pub exit_code: u8,
    /// When the last one ended with exit code 0, before this one.
    pub last_success: Option<f64>,
    /// What it decided and did, if it got so far.
    pub plan: Option<(&'r Plan, &'r [Change])>,
}

/// Writes the file's text.
#[must_use]
pub fn render(run: &Run) -> String {
    let mut text = Text {
        owner: run.owner,
        out: String::new(),
    };
    let success = if run.exit_code == 0 {
        Some(run.start)
    } else {
        run.last_success
    };
    let name = "vulcanized_last_run_timestamp_seconds";
    text.gauge(name, "When the last run began.", run.start);
    if let Some(success) = success {
        text.gauge(
            LAST_SUCCESS,
            "When the last run began that ended with exit code 0.",
            success,
        );
    }
    text.gauge(
        "vulcanized_run_duration_seconds",
        "How long the last run took.",
        run.duration,
    );
    text.gauge(
        "vulcanized_run_exit_code",
        "Exit code of the last run.",
        f64::from(run.exit_code),
    );
    if let Some((plan, changes)) = run.plan {
        text.plan(plan, changes);
    }
    text.out
}

struct Text<'t> {
    owner: &'t str,
    out: String,
}

impl Text<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help);
        self.line(name, "", value);
    }

    fn head(&mut self, name: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(
            self.out,
            "{name}{{owner=\"{}\"{labels}}} {value}",
            self.owner
        );
    }

    fn plan(&mut self, plan: &Plan, changes: &[Change]) {
        let count = |wanted: fn(&Action) -> bool| {
            float(
                changes
                    .iter()
                    .filter(|change| wanted(&change.action))
                    .count(),
            )
        };
        let name = "vulcanized_changes";
        self.head(name, "Changes that the last run made.");
        for (action, number) in [
            (
                "create",
                count(|action| matches!(action, Action::Create { .. })),
            ),
            (
                "update",
                count(|action| matches!(action, Action::Update { .. })),
            ),
            (
                "delete",
                count(|action| matches!(action, Action::Delete { .. })),
            ),
        ] {
            self.line(name, &format!(",action=\"{action}\""), number);
        }
        let counts = plan.counts;
        let kept = plan.kept.iter().map(|kept| kept.servers.len()).sum();
        for (name, help, value) in [
            ("pods_seen", "Pods listed.", counts.pods),
            (
                "pods_published",
                "Pods with at least one server.",
                counts.published,
            ),
            (
                "servers_owned",
                "Servers of this job found in the store.",
                counts.owned,
            ),
            ("held", "Changes held for want of proof.", plan.held.len()),
            ("kept", "Servers kept though not ready.", kept),
            (
                "conflicts",
                "Wanted keys that somebody else has.",
                plan.conflicts.len(),
            ),
            (
                "findings",
                "Things in the store that hurt the proxy.",
                plan.findings.len(),
            ),
            (
                "foreign",
                "Servers in the store that are not this owner's.",
                counts.foreign,
            ),
            (
                "out_of_scope",
                "Servers of this owner from elsewhere.",
                plan.out_of_scope.len(),
            ),
        ] {
            self.gauge(&format!("vulcanized_{name}"), help, float(value));
        }
        if let Some(revision) = plan.revision {
            let name = "vulcanized_store_revision";
            #[expect(
                clippy::cast_precision_loss,
                reason = "exact up to 2^53, more than etcd counts"
            )]
            self.gauge(
                name,
                "Revision of the store when it was listed.",
                revision as f64,
            );
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, more than there are keys"
)]
fn float(count: usize) -> f64 {
    count as f64
}

/// The time of the last success that an older file tells, for this owner.
#[must_use]
pub(crate) fn last_success(text: &str, owner: &str) -> Option<f64> {
    let start = format!("{LAST_SUCCESS}{{owner=\"{owner}\"}} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_success_outlives_failures() {
        let run = |exit_code, last_success| Run {
            owner: "prod",
            start: 1_700_000_000.25,
            duration: 0.5,
            exit_code,
            last_success,
            plan: None,
        };
        let good = render(&run(0, Some(1.0)));
        assert_eq!(last_success(&good, "prod"), Some(1_700_000_000.25));
        assert_eq!(last_success(&good, "other"), None);
        let bad = render(&run(1, last_success(&good, "prod")));
        assert_eq!(last_success(&bad, "prod"), Some(1_700_000_000.25));
        assert!(!render(&run(1, None)).contains(LAST_SUCCESS));
    }
}
