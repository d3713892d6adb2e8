//! One run: list the store, then the pods, decide, and print or apply.

use anyhow::Context as _;
use log::info;

use crate::apply::{Progress, Progressed};
use crate::config::Config;
use crate::exit::Exit;
use crate::kube::Pods;
use crate::layout::{Layout, Observed};
use crate::model::Pod;
use crate::net::deadline::Deadline;
use crate::reconcile::evidence::Lists;
use crate::reconcile::plan::{Change, LeftOut, Plan, Rules, name_of};
use crate::reconcile::planner::plan;
use crate::report::{self, Reporter};
use crate::signals::Signals;
use crate::store::{self, Store};
use crate::text;
use crate::waiting::waiting;

/// How many times a run plans, if the store changes while it applies.
const ATTEMPTS: usize = 3;

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// What it decided.
    pub plan: Plan,
    /// The changes that were applied, over all attempts.
    pub applied: Vec<Change>,
}

/// One run. The store is listed before the pods: a pods list older than the store's answer would
/// delete what another run has just registered.
///
/// # Errors
/// What failed, and how far the run got. If a listing failed, nothing was written.
pub fn run(config: &Config, signals: &Signals, reporter: &mut Reporter) -> anyhow::Result<Outcome> {
    let deadline = Deadline::start(config.timeout, config.request_timeout);
    let mut store = store::open(&config.store, config.dry_run, deadline)?;
    store.writable()?;
    let mut pods = Pods::open(&config.source, &config.mapping, deadline)?;
    let rules = config.rules(pods.cluster());
    let mut progress = Progress::default();
    for attempt in 1..=ATTEMPTS {
        let observed = observe(store.as_mut(), &*config.layout);
        let observed = observed.map_err(|cause| progress.failed(cause))?;
        progress.resolve_unknown(&observed, reporter);
        let decided = list_and_decide(&observed, &mut pods, &rules, config, &mut |_| ());
        let in_time = |decided| Ok(deadline.remaining().map(|_| decided)?);
        let decided = decided.and_then(in_time);
        let (_, plan) = decided.map_err(|cause| progress.failed(cause))?;
        if let Some(expected) = config.expected()
            && name_of(progress.applied.iter().chain(&plan.changes)) != expected
        {
            reporter.plan(&plan)?;
            return Ok(Outcome::unexpected(plan, progress.applied));
        }
        if config.dry_run {
            reporter.plan(&plan)?;
            return Ok(Outcome::new(config, plan, Vec::new()));
        }
        let layout = &*config.layout;
        match progress.apply(store.as_mut(), &plan, layout, &observed, signals, reporter)? {
            Progressed::Done => {
                let printed = reporter.finished(&plan, &progress.applied);
                progress.printed(printed)?;
                return Ok(Outcome::new(config, plan, progress.applied));
            }
            Progressed::Outdated => {
                info!(
                    "the store changed meanwhile: listing again (attempt {attempt} of {ATTEMPTS})"
                );
            }
        }
    }
    Err(progress.gave_up(ATTEMPTS))
}

/// Lists the pods and plans. Where a plan needs proof that the selected lists cannot give, some
/// namespaces are listed once more without selectors. `look` sees each pod.
pub(crate) fn list_and_decide(
    observed: &Observed,
    pods: &mut Pods,
    rules: &Rules,
    config: &Config,
    look: &mut dyn FnMut(&Pod<'_>),
) -> anyhow::Result<(Lists, Plan)> {
    let mut lists = waiting(&pods.place(), || pods.list(look))?;
    let mut plan = decide(observed, &lists, rules, config)?;
    if !plan.doubts.is_empty() {
        pods.list_again(&plan.doubts, &mut lists)?;
        plan = decide(observed, &lists, rules, config)?;
    }
    for LeftOut { pod, reason } in &plan.skipped {
        let reason = reason.to_string();
        info!("pod {pod} is left out: {}", text::escaped(&reason));
    }
    Ok((lists, plan))
}

pub(crate) fn observe(store: &mut dyn Store, layout: &dyn Layout) -> anyhow::Result<Observed> {
    let ranges = layout.ranges();
    let ranges = ranges.iter().map(String::as_str).collect::<Vec<_>>();
    let name = text::redacted(&store.name()).into_owned();
    let snapshot = waiting(&format!("the store at {name}"), || store.list(&ranges));
    let observed = snapshot.and_then(|snapshot| Ok(layout.observe(snapshot)?));
    observed.with_context(|| {
        format!(
            "failed to list the store at {}",
            text::redacted(&store.name())
        )
    })
}

fn decide(
    observed: &Observed,
    lists: &Lists,
    rules: &Rules,
    config: &Config,
) -> anyhow::Result<Plan> {
    let plan = plan(observed, lists, rules, &*config.layout);
    plan.map_err(|none| report::no_backends(&none, observed, &*config.layout, &config.etcdctl))
}

impl Outcome {
    fn unexpected(plan: Plan, applied: Vec<Change>) -> Self {
        Self {
            exit: Exit::Unexpected,
            plan,
            applied,
        }
    }

    fn new(config: &Config, plan: Plan, applied: Vec<Change>) -> Self {
        let output = &config.output;
        let changes = output.exit_code && !plan.changes.is_empty();
        let exit = Exit::of(plan.alarms(), changes, output.alarm_exit_code);
        Self {
            exit,
            plan,
            applied,
        }
    }
}

#[cfg(test)]
mod tests;
