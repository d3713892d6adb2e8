//! The plan as a person reads it: patches before it is applied, lines when it is.

use std::collections::BTreeMap;
use std::io::{self, Write};

use similar::TextDiff;

use super::reasons::why;
use super::style::{BOLD, CYAN, GREEN, RED, Style, YELLOW};
use super::{Note, notes};
use crate::reconcile::map::SkipReason;
use crate::reconcile::plan::{self, Action, Change, Counts, Frozen, LeftOut, Plan};
use crate::text::{escaped, shown};

/// Prints one patch per key, in the order in which they would be applied, then what is not done and
/// why, then the counts.
///
/// # Errors
/// Those of `out`.
pub fn dry_run(out: &mut dyn Write, plan: &Plan, style: Style) -> io::Result<()> {
    for change in &plan.changes {
        patches(out, change, style)?;
    }
    tail(out, plan, plan.changes.iter(), false, style)?;
    name(out, plan)
}

/// Prints one line per change, what is not done and why, then the counts.
///
/// # Errors
/// Those of `out`.
pub(crate) fn lines(out: &mut dyn Write, plan: &Plan, style: Style) -> io::Result<()> {
    for change in &plan.changes {
        applied(out, change, style)?;
    }
    tail(out, plan, plan.changes.iter(), false, style)?;
    name(out, plan)
}

/// Prints the name of the plan, for `--expect`, if there are changes.
fn name(out: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    if plan.changes.is_empty() {
        return Ok(());
    }
    writeln!(out, "plan {}", plan::name_of(plan.changes.iter()))
}

/// Prints what is not done and why, then the counts of `changes`: those of the plan that are, or would
/// be, applied.
///
/// # Errors
/// Those of `out`.
pub(crate) fn tail<'c>(
    out: &mut dyn Write,
    plan: &Plan,
    changes: impl Iterator<Item = &'c Change>,
    applied: bool,
    style: Style,
) -> io::Result<()> {
    for entry in notes(plan, applied, style.etcdctl) {
        let ink = if matches!(entry.kind, "finding" | "not defined" | "kept") {
            YELLOW
        } else {
            RED
        };
        note(out, &entry, &style.paint(ink, entry.kind), style)?;
    }
    writeln!(out, "{}", style.wrapped(&summary(plan, changes, applied)))?;
    match loud(plan) {
        Some(line) => writeln!(out, "{}", style.wrapped(&line)),
        None => Ok(()),
    }
}

fn note(out: &mut dyn Write, note: &Note, kind: &str, style: Style) -> io::Result<()> {
    let Note {
        kind: plain,
        text,
        items,
        commands,
    } = note;
    let wrapped = style.wrapped(&format!("{plain}: {text}"));
    // The colour comes after the wrapping: it has no width.
    writeln!(out, "{kind}{}", &wrapped[plain.len()..])?;
    for item in items {
        writeln!(out, "    {item}")?;
    }
    for command in commands {
        writeln!(out, "    {command}")?;
    }
    Ok(())
}

/// Prints what is done and why, then a patch for each key.
fn patches(out: &mut dyn Write, change: &Change, style: Style) -> io::Result<()> {
    let (word, ink) = match change.action {
        Action::Create { .. } => ("create", GREEN),
        Action::Update { .. } => ("update", YELLOW),
        Action::Delete { .. } => ("delete", RED),
    };
    writeln!(out, "{}: {}", style.paint(ink, word), escaped(&why(change)))?;
    for write in change.writes() {
        patch(out, write, style)?;
    }
    Ok(())
}

fn patch(out: &mut dyn Write, write: plan::Write, style: Style) -> io::Result<()> {
    let key = escaped(write.key);
    let before = write.before.map(|(before, _)| shown(before));
    let after = write.after.map(|after| shown(after.as_bytes()));
    let file = |value: &Option<String>| {
        if value.is_some() {
            key.as_ref()
        } else {
            "/dev/null"
        }
    };
    let (old, new) = (file(&before).to_owned(), file(&after).to_owned());
    let text = |value: Option<String>| value.map_or(String::new(), |value| value + "\n");
    let (before, after) = (text(before), text(after));
    let diff = TextDiff::from_lines(&before, &after);
    let diff = diff
        .unified_diff()
        .missing_newline_hint(false)
        .header(&old, &new)
        .to_string();
    for line in diff.lines() {
        let ink = match line.as_bytes() {
            [b'-', b'-', b'-', ..] | [b'+', b'+', b'+', ..] => Some(BOLD),
            [b'@', ..] => Some(CYAN),
            [b'-', ..] => Some(RED),
            [b'+', ..] => Some(GREEN),
            _ => None,
        };
        match ink {
            Some(ink) => writeln!(out, "{}", style.paint(ink, line))?,
            None => writeln!(out, "{line}")?,
        }
    }
    Ok(())
}

/// Prints one applied change: `- shop/10.0.1.7  pod shop/web-x is terminating`.
///
/// # Errors
/// Those of `out`.
pub fn applied(out: &mut dyn Write, change: &Change, style: Style) -> io::Result<()> {
    let (sign, ink) = match change.action {
        Action::Create { .. } => ("+", GREEN),
        Action::Update { .. } => ("~", YELLOW),
        Action::Delete { .. } => ("-", RED),
    };
    let server = change.server.as_deref().unwrap_or("backend");
    let name = format!("{}/{server}", change.backend);
    writeln!(
        out,
        "{} {}  {}",
        style.paint(ink, sign),
        escaped(&name),
        escaped(&why(change))
    )
}

/// The counts in one line: what changes, what stays, what is held back.
#[must_use]
pub(crate) fn summary<'c>(
    plan: &Plan,
    changes: impl Iterator<Item = &'c Change>,
    applied: bool,
) -> String {
    let Counts {
        pods: _,
        published: _,
        owned: _,
        unchanged,
        satisfied_unmarked,
        satisfied_marked,
        foreign,
        left_out,
        not_looked_at,
    } = plan.counts;
    let (mut creates, mut updates, mut deletes, mut defines) = (0, 0, 0, 0);
    for change in changes {
        match (&change.server, &change.action) {
            (None, _) => defines += 1,
            (_, Action::Create { .. }) => creates += 1,
            (_, Action::Update { .. }) => updates += 1,
            (_, Action::Delete { .. }) => deletes += 1,
        }
    }
    let changed = creates + updates + deletes + defines > 0;
    let word = |done: &'static str, planned: &'static str| if applied { done } else { planned };
    let mut parts = Vec::new();
    let mut part = |number: usize, word: &str| {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    };
    part(defines, word("backends defined", "backends to define"));
    part(creates, word("created", "to create"));
    part(updates, word("updated", "to update"));
    part(deletes, word("deleted", "to delete"));
    part(unchanged, "unchanged");
    part(satisfied_unmarked, "served by unmarked entries");
    part(satisfied_marked, "served by others' entries");
    part(plan.held.len(), "held");
    part(
        plan.over_budget.as_ref().map_or(0, |over| over.lost),
        "over budget",
    );
    match plan.emptied.len() {
        1 => part(1, "backend emptied"),
        many => part(many, "backends emptied"),
    }
    part(
        plan.kept.iter().map(|kept| kept.servers.len()).sum(),
        "kept",
    );
    part(plan.conflicts.len(), "in conflict");
    part(plan.duplicates.len(), "duplicate");
    part(plan.out_of_scope.len(), "out of scope");
    let frozen = |frozen: &[Frozen]| {
        frozen
            .iter()
            .map(|frozen| frozen.left_out + frozen.ours)
            .sum::<usize>()
    };
    part(frozen(&plan.unshared), "not shared");
    part(frozen(&plan.undefined), "without a defined backend");
    let nameless = plan.skipped.iter();
    let nameless = nameless.filter(|left_out| left_out.reason == SkipReason::NoBackend);
    match nameless.count() {
        1 => part(1, "pod without a backend"),
        many => part(many, "pods without a backend"),
    }
    part(left_out, "deletes left out");
    part(not_looked_at, "not looked at");
    part(foreign, "foreign");
    let parts = if parts.is_empty() {
        "nothing there".to_owned()
    } else {
        parts.join(", ")
    };
    match (changed, plan.alarms() || !plan.undefined.is_empty()) {
        (true, _) => parts,
        (false, true) => format!("nothing to change: {parts}"),
        (false, false) => format!("in sync: {parts}"),
    }
}

/// Prints the counts, and nothing else, in one line.
///
/// # Errors
/// Those of `out`.
pub fn one_line<'c>(
    out: &mut dyn Write,
    plan: &Plan,
    changes: impl Iterator<Item = &'c Change>,
    applied: bool,
) -> io::Result<()> {
    let loud = loud(plan).map_or(String::new(), |line| format!("; {line}"));
    let name = if applied || plan.changes.is_empty() {
        String::new()
    } else {
        format!("; plan {}", plan::name_of(plan.changes.iter()))
    };
    writeln!(out, "{}{loud}{name}", summary(plan, changes, applied))
}

/// The last line, about the pods: mistakes, or that no pod was listed (which `-q` silences).
pub(crate) fn loud(plan: &Plan) -> Option<String> {
    const NONE: &str =
        "no pod was listed: does the namespace exist (`-n`, `-A`), and do the selectors fit?";
    let nobody = plan.counts.pods == 0;
    mistakes(plan).or_else(|| nobody.then(|| NONE.to_owned()))
}

/// Pods that are not published although they are meant to be, reported with `-q` too: `0 of 37 pods published: 37
/// without a backend`, or `2 pods not published as meant: 1 without a port, 1 with several ports`. While others are
/// published, a pod that names no backend is not meant to be.
#[must_use]
pub(crate) fn mistakes(plan: &Plan) -> Option<String> {
    let Counts {
        pods, published, ..
    } = plan.counts;
    let none = pods > 0 && published == 0;
    let mut left_out = BTreeMap::new();
    for LeftOut { pod, reason } in &plan.skipped {
        if none || reason.is_mistake() && *reason != SkipReason::NoBackend {
            left_out.entry(pod).or_insert(reason);
        }
    }
    let mut kinds = BTreeMap::<&str, usize>::new();
    for reason in left_out.values() {
        *kinds.entry(reason.kind()).or_default() += 1;
    }
    let mut kinds = kinds.into_iter().collect::<Vec<_>>();
    kinds.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let kinds = kinds
        .iter()
        .map(|(kind, number)| format!("{number} {kind}"));
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    match (none, left_out.len()) {
        (true, _) => Some(format!("0 of {pods} pods published: {kinds}")),
        (false, 0) => None,
        (false, 1) => Some(format!(
            "1 pod not published as meant: {kinds}; `-v` names it"
        )),
        (false, many) => Some(format!(
            "{many} pods not published as meant: {kinds}; `-v` names them"
        )),
    }
}
