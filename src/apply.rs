//! Applies a plan in batches, and knows how far a run got: lost answers, signals, failures.

use std::collections::BTreeMap;
use std::mem;

use anyhow::anyhow;
use log::debug;

use crate::layout::{Layout, Observed};
use crate::reconcile::batch::batches;
use crate::reconcile::plan::{Change, Plan};
use crate::report::{Etcdctl, Reporter};
use crate::signals::Signals;
use crate::store::{Applied, ApplyError, Store};

/// What a run has applied so far, over all its attempts.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Changes that are in the store.
    pub applied: Vec<Change>,
    /// Changes of the transaction whose answer was lost.
    unknown: Vec<Change>,
    /// The number of changes to make: those applied before, plus the latest plan's.
    planned: usize,
    /// Why the answer was lost.
    lost: Option<anyhow::Error>,
    /// Why the applied changes could not be printed. The run goes on: a plan applied in part is worse than
    /// missing output.
    unprinted: Option<anyhow::Error>,
}

/// How far a plan was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progressed {
    /// All of it is in the store.
    Done,
    /// The store changed since it was listed, or an answer was lost: list again.
    Outdated,
}

impl Progress {
    /// Applies a plan batch by batch. Each applied change is reported before the next batch is sent.
    ///
    /// # Errors
    /// What failed, and how far the run got; a signal ends the run after the batch in flight.
    pub(crate) fn apply(
        &mut self,
        store: &mut dyn Store,
        plan: &Plan,
        layout: &dyn Layout,
        observed: &Observed,
        signals: &Signals,
        reporter: &mut Reporter,
    ) -> anyhow::Result<Progressed> {
        self.planned = self.applied.len() + plan.changes.len();
        signals.enter_apply();
        // Per key range, the revision after which nothing may have been written: the listing's, or that of our
        // own latest transaction there.
        let mut since = BTreeMap::<String, u64>::new();
        // Backends into which the store can take no more writes, and why.
        let mut refused = BTreeMap::<&str, String>::new();
        for mut batch in batches(plan, layout, observed, store.limits()) {
            if let Some(signal) = signals.pending() {
                return Err(self.failed(anyhow!("ended by {signal}")));
            }
            let changes = &plan.changes[batch.changes];
            if changes
                .iter()
                .any(|change| refused.contains_key(&*change.backend))
            {
                continue;
            }
            debug!("applying {} changes", changes.len());
            for range in &mut batch.transaction.unchanged {
                range.since = since.get(&range.prefix).copied().unwrap_or(range.since);
            }
            match store.apply(&batch.transaction) {
                Ok(Applied::Whole) => {
                    let revision = store.revision();
                    let ranges = batch.transaction.unchanged.into_iter();
                    since.extend(ranges.filter_map(|range| Some((range.prefix, revision?))));
                    self.done(changes, reporter);
                }
                Ok(Applied::Outdated) => return self.outdated(signals),
                Err(ApplyError::Refused(cause)) => return Err(self.failed(cause)),
                Err(error @ (ApplyError::Directory(_) | ApplyError::NotADirectory(_))) => {
                    let why = wrong_node(&error, reporter.style.etcdctl);
                    refused.extend(changes.iter().map(|change| (&*change.backend, why.clone())));
                }
                Err(ApplyError::Unknown(cause)) => {
                    debug!("an answer was lost: {cause:#}");
                    self.unknown = changes.to_vec();
                    self.lost = Some(cause);
                    return self.outdated(signals);
                }
            }
        }
        // A signal that arrived meanwhile changes nothing: everything is applied.
        let _ = signals.leave_apply();
        if refused.is_empty() {
            return Ok(Progressed::Done);
        }
        if let Err(cause) = reporter.finished(plan, &self.applied) {
            debug!("{cause:#}");
        }
        let refused = refused
            .iter()
            .map(|(backend, why)| format!("backend `{backend}` is not fully applied: {why}"));
        Err(self.failed(anyhow!(refused.collect::<Vec<_>>().join("; "))))
    }

    /// Gives the plan up for a new listing, unless a signal arrived meanwhile.
    fn outdated(&mut self, signals: &Signals) -> anyhow::Result<Progressed> {
        match signals.leave_apply() {
            Some(signal) => Err(self.failed(anyhow!("ended by {signal}"))),
            None => Ok(Progressed::Outdated),
        }
    }

    /// Finds out from a new listing whether the transaction whose answer was lost was applied.
    pub(crate) fn resolve_unknown(&mut self, observed: &Observed, reporter: &mut Reporter) {
        let unknown = mem::take(&mut self.unknown);
        let is_there = |change: &Change| {
            let backend = observed.backends.get(&change.backend);
            change.server.as_ref().is_none_or(|server| {
                change.writes().all(|write| {
                    let value = backend.and_then(|backend| backend.value(server, write.key));
                    value == write.after.map(str::as_bytes)
                })
            })
        };
        // A transaction is applied whole or not at all: one change stands for all.
        if unknown.iter().all(is_there) {
            self.done(&unknown, reporter);
        }
        self.lost = None;
    }

    fn done(&mut self, changes: &[Change], reporter: &mut Reporter) {
        self.applied.extend_from_slice(changes);
        if let Err(cause) = reporter.applied(changes) {
            self.unprinted.get_or_insert(cause);
        }
    }

    /// The result of printing, for a run that has applied its plan; `Err` if any part could not be printed.
    ///
    /// # Errors
    /// What could not be printed, and how far the run got.
    pub(crate) fn printed(&mut self, last: anyhow::Result<()>) -> anyhow::Result<()> {
        let all = self.unprinted.take().map_or(last, Err);
        all.map_err(|cause| self.failed(cause))
    }

    /// Why the run gave up after its last attempt.
    #[must_use]
    pub(crate) fn gave_up(&mut self, attempts: usize) -> anyhow::Error {
        let why = if self.unknown.is_empty() {
            "the store changed under the plan"
        } else {
            "the answer was lost"
        };
        self.failed(anyhow!("{why} {attempts} times: try again later"))
    }

    /// Adds to a failure how far the run got.
    #[must_use]
    pub(crate) fn failed(&mut self, cause: anyhow::Error) -> anyhow::Error {
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

/// The message for a directory of etcd v2 where a key should be, or a key where a directory should be.
fn wrong_node(error: &ApplyError, etcdctl: &Etcdctl) -> String {
    let command = match error {
        ApplyError::Directory(key) => etcdctl.remove_directory(key, false),
        ApplyError::NotADirectory(key) => etcdctl.del(key),
        _ => None,
    };
    match command {
        Some(command) => format!("{error}: if nothing uses it, remove it with: {command}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
