//! Messages beside the changes: what was held, left out or found, and the way out.

mod findings;
mod losses;

use super::etcdctl::Etcdctl;
use crate::model::PodName;
use crate::reconcile::plan::{Conflict, Duplicate, Freeze, Frozen, Plan};
use crate::text::{escaped, shown};

pub(crate) use findings::no_backends;
pub(super) use losses::deletes_to_allow;

/// How many examples a note for many backends names.
const EXAMPLES: usize = 5;

/// A message beside the changes: a heading, the lines under it, and commands to paste.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `held`, `over budget`, `emptied`, `kept`, `conflict`, `duplicate`, `out of scope`, `not shared`, `not defined`
    /// or `finding`.
    pub kind: &'static str,
    /// What, where, why it matters, and the way out.
    pub text: String,
    /// Keys it is about, with what is known of each.
    pub items: Vec<String>,
    /// Commands to paste.
    pub commands: Vec<String>,
}

/// All messages of a plan beside its changes, alarms first.
#[must_use]
pub fn notes(plan: &Plan, applied: bool, etcdctl: &Etcdctl) -> Vec<Note> {
    let mut notes = Vec::new();
    notes.extend(losses::held(plan, applied));
    notes.extend(plan.over_budget.iter().map(losses::over_budget));
    notes.extend(plan.emptied.iter().map(losses::emptied));
    let everywhere = plan.kept_everywhere;
    notes.extend(plan.kept.iter().map(|kept| losses::kept(kept, everywhere)));
    notes.extend(plan.conflicts.iter().map(conflict_note));
    notes.extend(plan.duplicates.iter().map(duplicate_note));
    notes.extend(losses::out_of_scope(plan));
    notes.extend(
        plan.unshared
            .iter()
            .map(|frozen| frozen_note(frozen, etcdctl)),
    );
    let (bleeding, undefined) = plan
        .undefined
        .iter()
        .partition::<Vec<_>, _>(|frozen| matches!(frozen.why, Freeze::Bleeds(_)));
    let undefined = undefined.into_iter();
    notes.extend(undefined.map(|frozen| frozen_note(frozen, etcdctl)));
    notes.extend(bleeding_note(&bleeding, etcdctl));
    notes.extend(
        plan.findings
            .iter()
            .map(|finding| findings::note(finding, etcdctl)),
    );
    notes
}

fn item(key: &str, pod: Option<&PodName>) -> String {
    let key = escaped(key);
    pod.map_or_else(
        || key.to_string(),
        |pod| format!("{key}  pod {}", escaped(&pod.to_string())),
    )
}

fn conflict_note(conflict: &Conflict) -> Note {
    let Conflict {
        backend,
        key,
        pod,
        wanted,
        value,
        owner,
    } = conflict;
    let whose = match owner {
        Some(owner) => format!("is of owner {}", escaped(owner)),
        None => "is unmarked".to_owned(),
    };
    let way_out = match owner {
        Some(_) => "Its owner has to remove it.",
        None => "Remove it if it is a leftover.",
    };
    Note {
        kind: "conflict",
        text: format!(
            "backend {}: pod {} wants {wanted} at a key whose entry {whose} and has another value. It is \
             not overwritten. {way_out}",
            escaped(backend),
            escaped(&pod.to_string())
        ),
        items: vec![format!("{}  {}", escaped(key), escaped(&shown(value)))],
        commands: Vec::new(),
    }
}

fn duplicate_note(duplicate: &Duplicate) -> Note {
    let Duplicate {
        key,
        winner,
        loser,
        url,
    } = duplicate;
    Note {
        kind: "duplicate",
        text: format!(
            "pod {} gets no server for {url}: pod {} has that key. Make ids that differ, for \
             example `--server-id '{{ip}}:{{port}}'`.",
            escaped(&loser.to_string()),
            escaped(&winner.to_string())
        ),
        items: vec![escaped(key).into_owned()],
        commands: Vec::new(),
    }
}

/// One note for all backends that are not created because ids share a prefix: there may be thousands.
fn bleeding_note(bleeding: &[&Frozen], etcdctl: &Etcdctl) -> Option<Note> {
    if let [frozen] = bleeding {
        return Some(frozen_note(frozen, etcdctl));
    }
    let pairs = bleeding.iter().filter_map(|frozen| match &frozen.why {
        Freeze::Bleeds(other) => Some(format!(
            "{} and {}",
            escaped(&frozen.backend),
            escaped(other)
        )),
        _ => None,
    });
    let mut items = pairs.take(EXAMPLES).collect::<Vec<_>>();
    if bleeding.len() > items.len() {
        items.push(format!("and {} more", bleeding.len() - items.len()));
    }
    let left_out = bleeding.iter().map(|frozen| frozen.left_out).sum::<usize>();
    let ours = bleeding.iter().map(|frozen| frozen.ours).sum::<usize>();
    (!bleeding.is_empty()).then(|| Note {
        kind: "not defined",
        text: format!(
            "{} backends are not created, because their ids and others begin alike, and the proxy would mix \
             their servers ({left_out} left out, {ours} of ours stay as they are). End ids alike, for example \
             `--backend '{{name}}.svc'`.",
            bleeding.len()
        ),
        items,
        commands: Vec::new(),
    })
}

fn frozen_note(frozen: &Frozen, etcdctl: &Etcdctl) -> Note {
    let Frozen {
        backend,
        left_out,
        ours,
        why,
    } = frozen;
    let backend = escaped(backend);
    let count = format!("{left_out} left out, {ours} of ours stay as they are");
    let mut items = Vec::new();
    let (kind, text, commands) = match why {
        Freeze::Undefined { define, effect } => {
            let why = findings::undefined(*effect);
            let way_out = findings::define(*effect);
            (
                "not defined",
                format!("backend {backend}: {why} ({count}). {way_out}"),
                puts(etcdctl, define),
            )
        }
        Freeze::Broken { key, refusal, mend } => {
            let commands = findings::mend(etcdctl, key, refusal, mend.as_deref());
            let end = if commands.is_empty() { '.' } else { ':' };
            items.push(escaped(key).into_owned());
            (
                "not defined",
                format!(
                    "backend {backend}: the proxy does not take its definition: {} ({count}). Mend \
                     it{end}",
                    escaped(&shown(refusal.to_string().as_bytes()))
                ),
                commands,
            )
        }
        Freeze::Bleeds(other) => (
            "not defined",
            format!(
                "backend {backend}: not created, because its id and `{}` begin alike, and the proxy \
                 would mix their servers ({count}). End ids alike, for example `--backend \
                 '{{name}}.svc'`.",
                escaped(other)
            ),
            Vec::new(),
        ),
        Freeze::Clusters(scopes) => (
            "not shared",
            format!(
                "backend {backend}: it holds servers of another cluster ({}), so ours are not added or \
                 changed there ({count}). If both belong: `--share-backends`.",
                scopes
                    .iter()
                    .map(|scope| escaped(scope))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Vec::new(),
        ),
        Freeze::Owners(owners) => (
            "not shared",
            format!(
                "backend {backend}: it holds servers of owner {}, so ours are not added, changed or \
                 given up there ({count}). If both belong: `--share-backends`.",
                owners
                    .iter()
                    .map(|owner| escaped(owner))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Vec::new(),
        ),
    };
    Note {
        kind,
        text,
        items,
        commands,
    }
}

/// The commands that set these keys; empty if one of them cannot be pasted.
#[must_use]
fn puts(etcdctl: &Etcdctl, pairs: &[(String, String)]) -> Vec<String> {
    let commands = pairs.iter().map(|(key, value)| etcdctl.put(key, value));
    commands.collect::<Option<_>>().unwrap_or_default()
}
