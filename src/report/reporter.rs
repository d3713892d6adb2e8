//! The only owner of stdout: format, style and quiet are chosen once.

use std::io::{self, Write};

use anyhow::bail;

use super::explain::{self, Explained};
use super::style::Style;
use super::{diff, json, status};
use crate::config::Format;
use crate::layout::Observed;
use crate::reconcile::plan::{Change, Plan};

/// Writes what a run decides and does to stdout.
pub struct Reporter<'o> {
    /// Where to.
    pub out: &'o mut dyn Write,
    /// What is printed.
    pub format: Format,
    /// How.
    pub style: Style<'o>,
    /// Print nothing when in sync.
    pub quiet: bool,
    /// The run's owner.
    pub owner: &'o str,
}

impl Reporter<'_> {
    /// Prints the plan of a dry run: exactly what would be applied.
    ///
    /// # Errors
    /// A stdout that cannot be written to; a closed one is not an error.
    pub fn plan(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let Self { format, style, .. } = *self;
        let out = &mut *self.out;
        written(match format {
            Format::Diff => diff::dry_run(out, plan, style),
            Format::Lines => diff::lines(out, plan, style),
            Format::Json => {
                let changes = &plan.changes;
                json::print(out, self.owner, plan, changes, false, style.etcdctl)
            }
            Format::Summary => diff::one_line(out, plan, plan.changes.iter(), false),
        })
    }

    /// Prints what is in the store, of the named backends or of all.
    ///
    /// # Errors
    /// As for [`Reporter::plan`].
    pub(crate) fn status(&mut self, observed: &Observed, names: &[String]) -> anyhow::Result<()> {
        let out = &mut *self.out;
        written(match self.format {
            Format::Json => status::json(out, observed, names),
            _ => status::print(out, observed, names, self.style),
        })
    }

    /// Prints what becomes of one pod.
    ///
    /// # Errors
    /// As for [`Reporter::plan`].
    pub(crate) fn explained(&mut self, explained: &Explained) -> anyhow::Result<()> {
        let out = &mut *self.out;
        written(match self.format {
            Format::Json => explain::json(out, explained),
            _ => explain::print(out, explained, self.style),
        })
    }

    /// With `-o json`: prints why there is no document of a plan, with the program's exit code.
    ///
    /// # Errors
    /// As for [`Reporter::plan`].
    pub fn failed(&mut self, error: &str, exit: u8) -> anyhow::Result<()> {
        match self.format {
            Format::Json => written(json::failed(self.out, self.owner, error, exit)),
            _ => Ok(()),
        }
    }

    /// Prints changes that have just been applied.
    ///
    /// # Errors
    /// As for [`Reporter::plan`].
    pub fn applied(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        if matches!(self.format, Format::Diff | Format::Lines) {
            for change in changes {
                written(diff::applied(self.out, change, self.style))?;
            }
        }
        // Flushed before anything else can fail.
        written(self.out.flush())
    }

    /// Prints the result of a run, after its last change.
    ///
    /// # Errors
    /// As for [`Reporter::plan`].
    pub fn finished(&mut self, plan: &Plan, applied: &[Change]) -> anyhow::Result<()> {
        let in_order = !plan.alarms() && plan.findings.is_empty() && diff::mistakes(plan).is_none();
        if self.quiet && applied.is_empty() && in_order {
            return Ok(());
        }
        let Self { format, style, .. } = *self;
        let out = &mut *self.out;
        written(match format {
            Format::Diff | Format::Lines => diff::tail(out, plan, applied.iter(), true, style),
            Format::Json => json::print(out, self.owner, plan, applied, true, style.etcdctl),
            Format::Summary => diff::one_line(out, plan, applied.iter(), true),
        })
    }
}

/// A closed stdout is not a failure: its reader has seen enough.
fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            bail!("failed to write to stdout: {error}")
        }
        _ => Ok(()),
    }
}
