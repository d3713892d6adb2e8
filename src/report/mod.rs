//! What is said of a plan: as a diff, as lines, as JSON. The same words everywhere.

use crate::model::PodName;
use crate::reconcile::plan::{Change, Conflict, Duplicate, Freeze, Frozen, Kept, OutOfScope, Plan};
use crate::reconcile::plan::{Proof, Rule};
use crate::text::{escaped, quoted, shown};

pub mod diff;
mod findings;
pub mod json;
pub mod metrics;
mod reporter;

pub use findings::no_backends;
pub use reporter::{Reporter, Style};

/// Which `etcdctl` a suggested command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etcdctl {
    /// API version 3.
    V3,
    /// API version 2.
    V2,
}

impl Etcdctl {
    /// The command that sets a key, quoted for `sh`; `None` for a key that nobody should paste, and for a
    /// value that `etcdctl` would take for a flag.
    #[must_use]
    pub fn put(self, key: &str, value: &str) -> Option<String> {
        if value.starts_with('-') {
            return None;
        }
        let (key, value) = (plain(key)?, quoted(value));
        Some(match self {
            Self::V3 => format!("etcdctl put {key} {value}"),
            Self::V2 => format!("ETCDCTL_API=2 etcdctl set {key} {value}"),
        })
    }

    /// The command that removes a key, quoted for `sh`; `None` for a key that nobody should paste.
    #[must_use]
    pub fn del(self, key: &str) -> Option<String> {
        let key = plain(key)?;
        Some(match self {
            Self::V3 => format!("etcdctl del {key}"),
            Self::V2 => format!("ETCDCTL_API=2 etcdctl rm {key}"),
        })
    }
}

/// A key made of what ids and prefixes are made of, in quotes.
fn plain(key: &str) -> Option<String> {
    let harmless = |c: u8| c.is_ascii_alphanumeric() || b"/._:[]-".contains(&c);
    key.bytes().all(harmless).then(|| quoted(key))
}

/// Why a change is made, in a line.
#[must_use]
pub fn why(change: &Change) -> String {
    let pod = || match &change.pod {
        Some(pod) => format!("pod {pod}"),
        None => "its pod".to_owned(),
    };
    match &change.proof {
        Proof::Define => "pods want this backend, and it is not defined".to_owned(),
        Proof::Ready => format!("{} is ready", pod()),
        Proof::Differs(what) => format!("{} is ready; changed: {what}", pod()),
        Proof::Adopted(what) => format!("{} is ready; adopted: {what}", pod()),
        Proof::Terminating => format!("{} is terminating", pod()),
        Proof::Completed => format!("{} is completed", pod()),
        Proof::Moved(ip) => format!("{} is now at {ip}", pod()),
        Proof::NoAddress => format!("{} has no address", pod()),
        Proof::Gone => format!("{} is gone", pod()),
        Proof::NotSelected => format!("{} is not among the selected pods", pod()),
        Proof::Unwanted(Some(reason)) => {
            format!(
                "{} does not want it: {}",
                pod(),
                escaped(&reason.to_string())
            )
        }
        Proof::Unwanted(None) => format!("{} does not want it any more", pod()),
        Proof::NotReady => format!("{} is not ready", pod()),
        Proof::Stays(id) => format!("its URL stays here as {id}"),
        Proof::Reused(other) => format!("its address is now pod {other}'s"),
        Proof::NoUrl => "it has no valid URL".to_owned(),
        Proof::Allowed(_) => format!("{} was held, and --allow-deletes lifts it", pod()),
    }
}

/// Why a change is held, in a line.
#[must_use]
pub fn held(rule: &Rule) -> String {
    match rule {
        Rule::Majority { going, owned } => {
            format!("{going} of {owned} servers would go without proof that their pods are gone")
        }
        Rule::Unproved { going, owned, why } => format!(
            "{going} of {owned} servers would go, and the list that could prove it failed: {}",
            escaped(why)
        ),
        Rule::EmptyList => "the list that should show its pod has no pod at all".to_owned(),
        Rule::Adopted => {
            "it is adopted, and that its pod is not seen here proves nothing".to_owned()
        }
    }
}

/// One thing to say beside the changes: a heading, the lines under it, and a command to paste.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `held`, `kept`, `conflict`, `duplicate`, `out of scope`, `not shared`, `not defined` or `finding`.
    pub kind: &'static str,
    /// What is, where, why it matters, and the way out.
    pub text: String,
    /// Keys it is about, with what is known of each.
    pub items: Vec<String>,
    /// Commands to paste.
    pub commands: Vec<String>,
}

/// Everything there is to say of a plan beside its changes, alarms first.
#[must_use]
pub fn notes(plan: &Plan, applied: bool, etcdctl: Etcdctl) -> Vec<Note> {
    let mut notes = Vec::new();
    notes.extend(held_notes(plan, applied));
    notes.extend(
        plan.kept
            .iter()
            .map(|kept| kept_note(kept, plan.kept_everywhere)),
    );
    notes.extend(plan.conflicts.iter().map(conflict_note));
    notes.extend(plan.duplicates.iter().map(duplicate_note));
    notes.extend(out_of_scope_notes(plan));
    notes.extend(
        plan.unshared
            .iter()
            .map(|frozen| frozen_note(frozen, etcdctl)),
    );
    notes.extend(
        plan.undefined
            .iter()
            .map(|frozen| frozen_note(frozen, etcdctl)),
    );
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

/// How many deletes a run must be allowed to do all that is held.
#[must_use]
pub fn deletes_to_allow(plan: &Plan, applied: bool) -> usize {
    // What this run deletes is done when the next one asks; after a dry run it is not.
    plan.held.len() + if applied { 0 } else { plan.deletes() }
}

fn held_notes(plan: &Plan, applied: bool) -> Vec<Note> {
    let number = deletes_to_allow(plan, applied);
    plan.held
        .chunk_by(|a, b| a.change.backend == b.change.backend && a.rule == b.rule)
        .map(|group| {
            let first = &group[0];
            let way_out = match first.rule {
                Rule::EmptyList => format!(
                    "If it is right: `--allow-empty` believes it for one run, `--allow-deletes \
                     {number}` lets all that is held go."
                ),
                Rule::Majority { .. } | Rule::Unproved { .. } | Rule::Adopted => {
                    format!("If it is right: `--allow-deletes {number}`, for one run.")
                }
            };
            Note {
                kind: "held",
                text: format!(
                    "backend {}: {}. Nothing of it is changed. {way_out}",
                    escaped(&first.change.backend),
                    held(&first.rule)
                ),
                items: group
                    .iter()
                    .map(|held| item(&held.change.key, held.change.pod.as_ref()))
                    .collect(),
                commands: Vec::new(),
            }
        })
        .collect()
}

fn kept_note(kept: &Kept, everywhere: bool) -> Note {
    let all = if everywhere {
        " This is so in every backend we serve: more often the control plane's trouble than the \
         pods'."
    } else {
        ""
    };
    Note {
        kind: "kept",
        text: format!(
            "backend {}: no server in it is ready, so those that are not ready stay.{all} \
             `--strict-ready` deletes them.",
            escaped(&kept.backend)
        ),
        items: kept
            .servers
            .iter()
            .map(|(_, key, pod)| item(key, pod.as_ref()))
            .collect(),
        commands: Vec::new(),
    }
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
        Some(owner) => format!("owner {}", escaped(owner)),
        None => "nobody's mark".to_owned(),
    };
    let way_out = match owner {
        Some(_) => "Its owner has to remove it.",
        None => "Remove it if it is a leftover.",
    };
    Note {
        kind: "conflict",
        text: format!(
            "backend {}: pod {} wants {wanted} at a key that has {whose} and another value. It is \
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

fn out_of_scope_notes(plan: &Plan) -> Vec<Note> {
    let mut entries = plan.out_of_scope.iter().collect::<Vec<_>>();
    entries.sort_by(|a, b| (&a.scope, a.namespace, &a.key).cmp(&(&b.scope, b.namespace, &b.key)));
    entries
        .chunk_by(|a, b| a.scope == b.scope && a.namespace == b.namespace)
        .map(|group| {
            let OutOfScope { scope, namespace, .. } = group[0];
            let ours = escaped(&plan.scope);
            let text = if *namespace {
                format!(
                    "entries of our owner and scope `{ours}`, but of namespaces this run did not \
                     list. They stay. One owner is one job: list all its namespaces, or give this \
                     job an owner of its own."
                )
            } else {
                format!(
                    "entries of our owner with the scope `{}`; this run's is `{ours}`. They stay. One \
                     owner is one job: give this job an owner of its own, or take them over with \
                     `--adopt scope`.",
                    escaped(scope)
                )
            };
            Note {
                kind: "out of scope",
                text,
                items: group.iter().map(|entry| item(&entry.key, entry.pod.as_ref())).collect(),
                commands: Vec::new(),
            }
        })
        .collect()
}

fn frozen_note(frozen: &Frozen, etcdctl: Etcdctl) -> Note {
    let Frozen {
        backend,
        left_out,
        ours,
        why,
    } = frozen;
    let backend = escaped(backend);
    let count = format!("{left_out} left out, {ours} of ours stay as they are");
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
        Freeze::Broken { why, mend } => {
            let commands = puts(etcdctl, mend);
            let end = if commands.is_empty() { '.' } else { ':' };
            let why = escaped(why);
            (
                "not defined",
                format!(
                    "backend {backend}: the proxy does not take its definition: {why} ({count}). Mend \
                     it{end}"
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
        items: Vec::new(),
        commands,
    }
}

/// The commands that set these keys; none of them if one is nothing to paste.
#[must_use]
pub fn puts(etcdctl: Etcdctl, pairs: &[(String, String)]) -> Vec<String> {
    let commands = pairs.iter().map(|(key, value)| etcdctl.put(key, value));
    commands.collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggested_commands_are_harmless() {
        let command = Etcdctl::V3.del("/vulcand/backends/a/servers/[fd00::1]:80");
        assert_eq!(
            command.as_deref(),
            Some("etcdctl del '/vulcand/backends/a/servers/[fd00::1]:80'")
        );
        for key in ["/a'; rm -rf $HOME #", "/a b", "/a\n", "/$(x)", "/é"] {
            assert_eq!(Etcdctl::V3.del(key), None, "{key}");
        }
        assert_eq!(Etcdctl::V3.put("traefik/x", "--prefix"), None);
        let command = Etcdctl::V2.put("/a/backend", "it's");
        assert_eq!(
            command.as_deref(),
            Some(r"ETCDCTL_API=2 etcdctl set '/a/backend' 'it'\''s'")
        );
    }
}
