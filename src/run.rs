//! One run: list the store, then the pods, decide, and print or apply.

use std::io::{self, Write};
use std::mem;

use anyhow::{Context as _, anyhow, bail};
use log::{debug, info};

use crate::config::{Config, Format};
use crate::connect::{self, Pods};
use crate::layout::{Layout, Observed};
use crate::model::Scope;
use crate::net::deadline::Deadline;
use crate::reconcile::batch::batches;
use crate::reconcile::evidence::Lists;
use crate::reconcile::plan::{Action, Change, NoBackends, Plan, Rules, plan};
use crate::report::{self, Etcdctl, diff::Style};
use crate::signals::Signals;
use crate::store::{Applied, ApplyError, Store};
use crate::text;

/// How often a run plans anew because somebody else wrote meanwhile.
const ATTEMPTS: usize = 3;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as it should be.
    Done,
    /// Something was held, out of scope, not shared, duplicate or in conflict.
    Alarm,
    /// A dry run with `--exit-code` found changes.
    Changes,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// What it decided.
    pub plan: Plan,
    /// What it did, over all attempts.
    pub applied: Vec<Change>,
}

/// One run. The store is listed before the pods: a pods list older than the store's answer would
/// delete what another run has just registered.
///
/// # Errors
/// What failed, and how far the run got. A listing that failed has written nothing.
pub fn run(config: &Config, signals: &Signals, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let deadline = Deadline::start(config.timeout, config.request_timeout);
    let mut store = connect::store(&config.store, config.dry_run, deadline)?;
    store.writable()?;
    let mut pods = Pods::open(&config.source, &config.mapping, deadline)?;
    let rules = rules(config, &pods);
    let mut work = Work::default();
    for attempt in 1..=ATTEMPTS {
        let observed =
            observe(store.as_mut(), &config.layout).map_err(|cause| work.failed(cause))?;
        work.settle(&observed, config, out)?;
        let mut lists = pods.list().map_err(|cause| work.failed(cause))?;
        let decided = decide(&observed, &lists, &rules, config);
        let mut plan = decided.map_err(|cause| work.failed(cause))?;
        if !plan.doubts.is_empty() {
            pods.list_again(&plan.doubts, &mut lists)
                .map_err(|cause| work.failed(cause))?;
            plan = decide(&observed, &lists, &rules, config)?;
        }
        say_skipped(&plan);
        if config.dry_run {
            print_plan(out, config, &plan)?;
            leave((observed, lists));
            return Ok(Outcome {
                exit: exit(config, &plan),
                plan,
                applied: Vec::new(),
            });
        }
        if work.apply(store.as_mut(), &plan, signals, config, out)? {
            print_result(out, config, &plan, &work.applied)?;
            leave((observed, lists));
            return Ok(Outcome {
                exit: exit(config, &plan),
                plan,
                applied: work.applied,
            });
        }
        info!("the store changed meanwhile: listing again (attempt {attempt} of {ATTEMPTS})");
    }
    let why = if work.unknown.is_empty() {
        "the store changed under the plan"
    } else {
        "the answer was lost"
    };
    Err(work.failed(anyhow!("{why} {ATTEMPTS} times: try again later")))
}

/// What was listed is left to the end of the process: to give it back piece by piece takes longer than
/// the plan took.
fn leave(listed: (Observed, Lists)) {
    mem::forget(listed);
}

fn rules(config: &Config, pods: &Pods) -> Rules {
    let (labels, fields) = match &config.source {
        crate::config::Source::Api { labels, fields, .. } => (labels.as_deref(), fields.as_deref()),
        crate::config::Source::File(_) => (None, None),
    };
    let cluster = config.cluster.clone().unwrap_or_else(|| pods.cluster());
    let changes = config.changes.clone();
    Rules {
        owner: config.owner.clone(),
        scope: Scope::new(cluster, labels, fields),
        adopt: changes.adopt,
        share_backends: changes.share_backends,
        create_backends: changes.create_backends,
        strict_ready: changes.strict_ready,
        allow_empty: changes.allow_empty,
        allow_deletes: changes.allow_deletes,
        upsert_only: changes.upsert_only,
    }
}

fn observe(store: &mut dyn Store, layout: &Layout) -> anyhow::Result<Observed> {
    let ranges = layout.ranges();
    let ranges = ranges.iter().map(String::as_str).collect::<Vec<_>>();
    let snapshot = store.list(&ranges);
    let failed = || {
        format!(
            "failed to list the store at {}",
            text::redacted(&store.name())
        )
    };
    let observed = snapshot.and_then(|snapshot| Ok(layout.observe(snapshot)?));
    observed.with_context(failed)
}

fn decide(
    observed: &Observed,
    lists: &Lists,
    rules: &Rules,
    config: &Config,
) -> anyhow::Result<Plan> {
    let plan = plan(observed, lists, rules, &config.layout);
    plan.map_err(|NoBackends { prefix, wanted, example }| {
        let layout = &config.layout;
        let (place, way_out) = layout.nothing_defined(&prefix);
        let started_with = layout.started_with(&prefix);
        let define = report::puts(style(config).etcdctl, &layout.definition(&prefix, &example));
        let define = define.join(" && ");
        let sibling = match &observed.sibling {
            Some(sibling) => format!(
                "There are {} backends under `{}/`: is that the right `--prefix`? ",
                sibling.backends, sibling.prefix
            ),
            None => String::new(),
        };
        anyhow!(
            "no backend is defined under `{place}`, and pods want {wanted}: is this the right store? \
             {sibling}A proxy that keeps its keys elsewhere is told with `--prefix` (and the proxy must \
             be started for the same one: `{started_with}`){way_out}: {define}"
        )
    })
}

/// What a run has done so far.
#[derive(Default)]
struct Work {
    /// Changes that are in the store.
    applied: Vec<Change>,
    /// Changes whose answer was lost.
    unknown: Vec<Change>,
    /// How many changes there were to make, in the latest plan and before.
    planned: usize,
    /// Why the answer was lost.
    lost: Option<anyhow::Error>,
}

impl Work {
    /// Applies a plan. `false` if it is outdated, or an answer was lost: list again.
    fn apply(
        &mut self,
        store: &mut dyn Store,
        plan: &Plan,
        signals: &Signals,
        config: &Config,
        out: &mut dyn Write,
    ) -> anyhow::Result<bool> {
        self.planned = self.applied.len() + plan.changes.len();
        signals.enter_apply();
        for batch in batches(&plan.changes, store.limits()) {
            if let Some(signal) = signals.pending() {
                return Err(self.failed(anyhow!("ended by {signal}")));
            }
            let changes = &plan.changes[batch.changes];
            debug!("applying {} changes", changes.len());
            match store.apply(&batch.transaction) {
                Ok(Applied::Whole) => self.done(changes, config, out)?,
                Ok(Applied::Outdated) => return self.again(signals),
                Err(ApplyError::Refused(cause)) => return Err(self.failed(cause)),
                Err(ApplyError::Unknown(cause)) => {
                    debug!("an answer was lost: {cause:#}");
                    self.unknown = changes.to_vec();
                    self.lost = Some(cause);
                    return self.again(signals);
                }
            }
        }
        // Whatever came meanwhile: the work is done.
        let _ = signals.leave_apply();
        Ok(true)
    }

    /// Leaves the plan for a new listing, unless a signal came meanwhile.
    fn again(&mut self, signals: &Signals) -> anyhow::Result<bool> {
        match signals.leave_apply() {
            Some(signal) => Err(self.failed(anyhow!("ended by {signal}"))),
            None => Ok(false),
        }
    }

    /// Looks up in the store what became of the changes whose answer was lost.
    fn settle(
        &mut self,
        observed: &Observed,
        config: &Config,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let unknown = mem::take(&mut self.unknown);
        let is_there = |change: &Change| {
            let backend = observed.backends.get(&change.backend);
            let value = change.server.as_ref().map(|server| {
                backend
                    .and_then(|backend| backend.servers.get(&**server))
                    .map(|entry| &*entry.value)
            });
            match (&change.action, value) {
                (Action::Create { after } | Action::Update { after, .. }, Some(value)) => {
                    value == Some(after.as_bytes())
                }
                (Action::Delete { .. }, Some(value)) => value.is_none(),
                (_, None) => true,
            }
        };
        // A transaction is applied whole or not at all: one change tells of all.
        if unknown.iter().all(is_there) {
            self.done(&unknown, config, out)?;
        }
        self.lost = None;
        Ok(())
    }

    fn done(
        &mut self,
        changes: &[Change],
        config: &Config,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        for change in changes {
            self.applied.push(change.clone());
            if config.output.format == Format::Diff {
                written(report::diff::applied(out, change, style(config)))?;
            }
        }
        // What was done is said before anything else can go wrong.
        written(out.flush())
    }

    /// Says how far the run got.
    fn failed(&mut self, cause: anyhow::Error) -> anyhow::Error {
        let (applied, planned, unknown) = (self.applied.len(), self.planned, self.unknown.len());
        let lost = self
            .lost
            .take()
            .map_or(String::new(), |lost| format!(" ({lost:#})"));
        match (planned, unknown) {
            (0, _) => cause,
            (_, 0) => cause.context(format!("applied {applied} of {planned} changes")),
            _ => cause.context(format!(
                "applied {applied} of {planned} changes, {unknown} more unknown{lost}"
            )),
        }
    }
}

fn say_skipped(plan: &Plan) {
    for (pod, reason) in &plan.skipped {
        info!(
            "pod {} is left out: {}",
            pod,
            text::escaped(&reason.to_string())
        );
    }
}

fn exit(config: &Config, plan: &Plan) -> Exit {
    if plan.alarms() {
        Exit::Alarm
    } else if config.output.exit_code && !plan.changes.is_empty() {
        Exit::Changes
    } else {
        Exit::Done
    }
}

fn style(config: &Config) -> Style {
    let etcdctl = match &config.store {
        crate::config::StoreConfig::Etcd { api, .. } => *api,
        crate::config::StoreConfig::File(_) => Etcdctl::V3,
    };
    Style {
        color: config.output.color.unwrap_or(false),
        etcdctl,
    }
}

fn print_plan(out: &mut dyn Write, config: &Config, plan: &Plan) -> anyhow::Result<()> {
    let style = style(config);
    written(match config.output.format {
        Format::Diff => report::diff::dry_run(out, plan, style),
        Format::Json => report::json::print(
            out,
            &config.owner,
            plan,
            &plan.changes,
            false,
            style.etcdctl,
        ),
        Format::Summary => {
            writeln!(
                out,
                "{}",
                report::diff::summary(plan, plan.changes.iter(), false)
            )
        }
    })
}

fn print_result(
    out: &mut dyn Write,
    config: &Config,
    plan: &Plan,
    applied: &[Change],
) -> anyhow::Result<()> {
    if config.output.quiet && applied.is_empty() && !plan.alarms() {
        return Ok(());
    }
    let style = style(config);
    written(match config.output.format {
        Format::Diff => report::diff::tail(out, plan, applied.iter(), true, style),
        Format::Json => report::json::print(out, &config.owner, plan, applied, true, style.etcdctl),
        Format::Summary => report::diff::one_line(out, plan, applied.iter(), true),
    })
}

/// A closed stdout is no failure: nobody wants to read on.
fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            bail!("failed to write to stdout: {error}")
        }
        _ => Ok(()),
    }
}
