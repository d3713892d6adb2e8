//! Messages about servers that leave a backend, and those held or kept in it.

use super::{Note, item};
use crate::model::Cluster;
use crate::reconcile::classify::Unproved;
use crate::reconcile::plan::{
    Emptied, Held, Kept, LeftOut, Losing, OutOfScope, OverBudget, Plan, ScopeDiffers,
};
use crate::report::reasons::{named, unproved};
use crate::report::style::number;
use crate::text::{escaped, shown};

/// How many servers `--allow-deletes` must allow to release all that is held.
#[must_use]
pub(crate) fn deletes_to_allow(plan: &Plan, applied: bool) -> usize {
    // After a run its deletes are done and no longer count; after a dry run they still do.
    plan.held.len() + if applied { 0 } else { plan.lost() }
}

/// An entry with the evidence, and what an update would change.
fn line(entry: &Losing, why: Option<&str>) -> String {
    let mut line = item(&entry.key, entry.pod.as_ref());
    if let Some(after) = &entry.after {
        line += ": ";
        line += &shown(&entry.before);
        line += " would become ";
        line += &shown(after.as_bytes());
    }
    match why {
        Some(why) => format!("{line}: {why}"),
        None => line,
    }
}

pub(super) fn held(plan: &Plan, applied: bool) -> Vec<Note> {
    let allow = deletes_to_allow(plan, applied);
    let groups = plan.held.chunk_by(|a, b| {
        let same = std::mem::discriminant(&a.evidence) == std::mem::discriminant(&b.evidence);
        same && a.entry.backend == b.entry.backend && a.remain == b.remain && a.lost == b.lost
    });
    let note = |group: &[Held]| {
        let Held {
            entry,
            evidence,
            lost,
            remain,
        } = &group[0];
        let count = number(group.len(), "server");
        let why = match evidence {
            Unproved::Adopted => "an adopted entry's pod is not seen at its address, and that \
                                  proves nothing: it may be another cluster's"
                .to_owned(),
            _ => format!(
                "nothing proves that the pods are gone, {lost} would go, and {remain} Ready like \
                 them would remain"
            ),
        };
        let empty = match evidence {
            Unproved::NoWitness => " `--allow-empty` treats the pod list as real for one run.",
            _ => "",
        };
        Note {
            kind: "held",
            text: format!(
                "backend {}: held {count}: {why}. Nothing of it was changed. If this is \
                 intended, rerun with `--allow-deletes {allow}` (all servers that go in that run \
                 count).{empty}",
                escaped(&entry.backend)
            ),
            items: group
                .iter()
                .map(|held| {
                    let pod = match &held.entry.pod {
                        Some(_) => "it",
                        None => "its pod",
                    };
                    line(&held.entry, Some(&unproved(pod, &held.evidence)))
                })
                .collect(),
            commands: Vec::new(),
        }
    };
    groups.map(note).collect()
}

pub(super) fn kept(kept: &Kept, everywhere: bool) -> Note {
    let all = if everywhere {
        " No backend of ours has a ready server: more often the control plane's trouble than the \
         pods'."
    } else {
        ""
    };
    Note {
        kind: "kept",
        text: format!(
            "backend {}: no ready server like these remains in it, so they stay.{all} \
             `--strict-ready` deletes them.",
            escaped(&kept.backend)
        ),
        items: kept.servers.iter().map(|entry| line(entry, None)).collect(),
        commands: Vec::new(),
    }
}

pub(super) fn emptied(emptied: &Emptied) -> Note {
    let Emptied { backend, pods } = emptied;
    let count = match pods.len() {
        1 => "a ready pod names it and is".to_owned(),
        many => format!("{many} ready pods name it and are"),
    };
    let pods = pods.iter().map(|LeftOut { pod, reason }| {
        let reason = reason.to_string();
        format!("{}: {}", named(Some(pod)), escaped(&reason))
    });
    Note {
        kind: "emptied",
        text: format!(
            "backend {}: it has no server, though {count} left out. Correct the pods, or the \
             options that map them:",
            escaped(backend)
        ),
        items: pods.collect(),
        commands: Vec::new(),
    }
}

pub(super) fn over_budget(over: &OverBudget) -> Note {
    let OverBudget {
        lost,
        owned,
        limit,
        entries,
    } = over;
    Note {
        kind: "over budget",
        text: format!(
            "{lost} of {owned} servers would go, more than `--max-deletes {limit}` allows: none \
             was deleted. If this is intended, rerun with a higher limit."
        ),
        items: entries.iter().map(|entry| line(entry, None)).collect(),
        commands: Vec::new(),
    }
}

/// Whether a scope is that of a run with `--pods` without a whole cluster id.
fn is_of_a_file(scope: &str) -> bool {
    scope == "file" || scope.ends_with("@file")
}

pub(super) fn out_of_scope(plan: &Plan) -> Vec<Note> {
    let mut entries = plan.out_of_scope.iter().collect::<Vec<_>>();
    entries.sort_by(|a, b| (&a.scope, a.differs, &a.key).cmp(&(&b.scope, b.differs, &b.key)));
    let groups = entries.chunk_by(|a, b| a.scope == b.scope && a.differs == b.differs);
    let note = |group: &[&OutOfScope]| {
        let OutOfScope { scope, differs, .. } = group[0];
        let ours = escaped(&plan.scope);
        let theirs = escaped(scope);
        let text = match differs {
            ScopeDiffers::Namespace => format!(
                "entries of our owner and scope `{ours}`, of namespaces that this run did not \
                 list. They stay. One owner is one job: list all its namespaces, or give this job \
                 an owner of its own."
            ),
            ScopeDiffers::Selectors => format!(
                "entries of our owner with the scope `{theirs}`; this run's is `{ours}`. They stay. \
                 One owner is one job: give this job an owner of its own, or take them over with \
                 `--adopt scope`."
            ),
            ScopeDiffers::Cluster if is_of_a_file(&plan.scope) => format!(
                "entries of our owner from cluster `{theirs}`; these pods come from a file. They stay, and \
                 their backends get nothing. For a preview of that cluster's run give `--cluster {}`.",
                Cluster::parse(theirs.split(' ').next().unwrap_or_default())
            ),
            ScopeDiffers::Cluster => format!(
                "entries of our owner from another cluster, `{theirs}`; this run looks at `{ours}`. \
                 They stay, and their backends get nothing. Is this the right context? If the \
                 cluster is the same one (a renewed CA, another address), take them over with \
                 `--adopt scope`; if not, give this job an owner of its own."
            ),
        };
        Note {
            kind: "out of scope",
            text,
            items: group
                .iter()
                .map(|entry| item(&entry.key, entry.pod.as_ref()))
                .collect(),
            commands: Vec::new(),
        }
    };
    groups.map(note).collect()
}
