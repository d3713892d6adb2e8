//! The plan as one JSON document. Its shape is stable: fields are added, never changed or removed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::notes::deletes_to_allow;
use super::reasons::{held, why};
use super::{Etcdctl, Note, notes};
use crate::model::PodName;
use crate::reconcile::plan::{
    self, Action, Change, Conflict, Duplicate, Emptied, Frozen, Held, LeftOut, Losing, OutOfScope,
    Plan,
};
use crate::text::{escaped_json, shown};

/// The version of the document's shape.
pub(super) const VERSION: u32 = 1;

/// The program and its version.
const PROGRAM: &str = concat!("vulcanized ", env!("CARGO_PKG_VERSION"));

#[derive(Serialize)]
struct Document<'p> {
    version: u32,
    program: &'static str,
    owner: &'p str,
    scope: &'p str,
    prefix: &'p str,
    revision: Option<u64>,
    dry_run: bool,
    plan: String,
    counts: BTreeMap<&'static str, usize>,
    changes: Vec<JsonChange<'p>>,
    held: Vec<JsonHeld<'p>>,
    /// What `--allow-deletes` needs for everything that is held.
    allow_deletes: Option<usize>,
    kept: Vec<JsonServer<'p>>,
    emptied: &'p [Emptied],
    over_budget: Vec<JsonServer<'p>>,
    conflicts: &'p [Conflict],
    duplicates: &'p [Duplicate],
    out_of_scope: &'p [OutOfScope],
    not_shared: &'p [Frozen],
    not_defined: &'p [Frozen],
    findings: Vec<JsonFinding>,
    skipped: &'p [LeftOut],
}

#[derive(Serialize)]
struct JsonChange<'p> {
    action: &'static str,
    backend: &'p str,
    server: Option<&'p str>,
    key: &'p str,
    pod: Option<&'p PodName>,
    before: Option<String>,
    after: Option<String>,
    proof: String,
    /// Further keys of the server that change with it.
    others: Vec<JsonWrite<'p>>,
}

#[derive(Serialize)]
struct JsonWrite<'p> {
    action: &'static str,
    key: &'p str,
    before: Option<String>,
    after: Option<String>,
}

#[derive(Serialize)]
struct JsonHeld<'p> {
    #[serde(flatten)]
    change: JsonChange<'p>,
    rule: String,
}

#[derive(Serialize)]
struct JsonServer<'p> {
    backend: &'p str,
    key: &'p str,
    pod: Option<&'p PodName>,
}

#[derive(Serialize)]
struct JsonFinding {
    text: String,
    keys: Vec<String>,
    command: Option<String>,
}

/// Prints one document: the plan, with `changes` as those that are, or would be, applied.
///
/// # Errors
/// Those of `out`.
pub fn print(
    out: &mut dyn Write,
    owner: &str,
    plan: &Plan,
    changes: &[Change],
    applied: bool,
    etcdctl: &Etcdctl,
) -> io::Result<()> {
    let findings = notes(plan, applied, etcdctl)
        .into_iter()
        .filter(|note| note.kind == "finding");
    let document = Document {
        version: VERSION,
        program: PROGRAM,
        owner,
        scope: &plan.scope,
        prefix: &plan.prefix,
        revision: plan.revision,
        dry_run: !applied,
        plan: plan::name_of(changes.iter()),
        counts: counts(plan, changes),
        changes: changes.iter().map(change).collect(),
        held: plan
            .held
            .iter()
            .map(|entry| JsonHeld {
                change: losing(&entry.entry, held(entry)),
                rule: rule(entry),
            })
            .collect(),
        allow_deletes: (!plan.held.is_empty()).then(|| deletes_to_allow(plan, applied)),
        kept: plan
            .kept
            .iter()
            .flat_map(|kept| kept.servers.iter().map(|server| (&kept.backend, server)))
            .map(|(backend, entry)| JsonServer {
                backend,
                key: &entry.key,
                pod: entry.pod.as_ref(),
            })
            .collect(),
        emptied: &plan.emptied,
        over_budget: over_budget(plan),
        conflicts: &plan.conflicts,
        duplicates: &plan.duplicates,
        out_of_scope: &plan.out_of_scope,
        not_shared: &plan.unshared,
        not_defined: &plan.undefined,
        findings: findings
            .map(
                |Note {
                     text,
                     items,
                     commands,
                     kind: _,
                 }| JsonFinding {
                    text,
                    keys: items,
                    // As one text, to paste.
                    command: (!commands.is_empty()).then(|| commands.join("\n")),
                },
            )
            .collect(),
        skipped: &plan.skipped,
    };
    let document = serde_json::to_string_pretty(&document)?;
    writeln!(out, "{}", escaped_json(&document))
}

#[derive(Serialize)]
struct Failed<'p> {
    version: u32,
    program: &'static str,
    owner: &'p str,
    error: &'p str,
    exit: u8,
}

/// Prints the document of a run that failed.
///
/// # Errors
/// Those of `out`.
pub(super) fn failed(out: &mut dyn Write, owner: &str, error: &str, exit: u8) -> io::Result<()> {
    let document = Failed {
        version: VERSION,
        program: PROGRAM,
        owner,
        error,
        exit,
    };
    let document = serde_json::to_string_pretty(&document)?;
    writeln!(out, "{}", escaped_json(&document))
}

fn over_budget(plan: &Plan) -> Vec<JsonServer<'_>> {
    let over = plan.over_budget.iter().flat_map(|over| &over.entries);
    over.map(|entry| JsonServer {
        backend: &entry.backend,
        key: &entry.key,
        pod: entry.pod.as_ref(),
    })
    .collect()
}

fn counts(plan: &Plan, changes: &[Change]) -> BTreeMap<&'static str, usize> {
    let counts = plan.counts;
    let action = |wanted: &str| {
        changes
            .iter()
            .filter(|change| word(&change.action) == wanted)
            .count()
    };
    [
        ("pods", counts.pods),
        ("published", counts.published),
        ("owned", counts.owned),
        ("unchanged", counts.unchanged),
        ("served_by_unmarked", counts.satisfied_unmarked),
        ("served_by_others", counts.satisfied_marked),
        ("foreign", counts.foreign),
        ("left_out", counts.left_out),
        ("not_looked_at", counts.not_looked_at),
        ("create", action("create")),
        ("update", action("update")),
        ("delete", action("delete")),
        ("held", plan.held.len()),
        (
            "kept",
            plan.kept.iter().map(|kept| kept.servers.len()).sum(),
        ),
        ("conflicts", plan.conflicts.len()),
        ("findings", plan.findings.len()),
        ("out_of_scope", plan.out_of_scope.len()),
        ("skipped", plan.skipped.len()),
    ]
    .into()
}

fn word(action: &Action) -> &'static str {
    match action {
        Action::Create { .. } => "create",
        Action::Update { .. } => "update",
        Action::Delete { .. } => "delete",
    }
}

fn values(write: plan::Write) -> (Option<String>, Option<String>) {
    let before = write.before.map(|(before, _)| shown(before));
    (before, write.after.map(str::to_owned))
}

/// What is done to a key: `create`, `update` or `delete`.
fn verb(write: plan::Write) -> &'static str {
    match (write.before, write.after) {
        (None, _) => "create",
        (Some(_), Some(_)) => "update",
        (Some(_), None) => "delete",
    }
}

fn write(write: plan::Write<'_>) -> JsonWrite<'_> {
    let (before, after) = values(write);
    JsonWrite {
        action: verb(write),
        key: write.key,
        before,
        after,
    }
}

/// Why a change is held, in numbers.
fn rule(held: &Held) -> String {
    let Held { lost, remain, .. } = held;
    format!("{lost} would go without proof, {remain} Ready like them would remain")
}

fn losing(entry: &Losing, proof: String) -> JsonChange<'_> {
    JsonChange {
        action: if entry.after.is_some() {
            "update"
        } else {
            "delete"
        },
        backend: &entry.backend,
        server: Some(&entry.server),
        key: &entry.key,
        pod: entry.pod.as_ref(),
        before: Some(shown(&entry.before)),
        after: entry.after.clone(),
        proof,
        others: Vec::new(),
    }
}

fn change(change: &Change) -> JsonChange<'_> {
    let mut writes = change.writes();
    let (before, after) = writes.next().map_or((None, None), values);
    JsonChange {
        action: word(&change.action),
        backend: &change.backend,
        server: change.server.as_deref(),
        key: &change.key,
        pod: change.pod.as_ref(),
        before,
        after,
        proof: why(change),
        others: writes.map(write).collect(),
    }
}
