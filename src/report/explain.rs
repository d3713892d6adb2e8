//! How one pod becomes an entry of the store, or why it does not: `vulcanized explain`.

use std::io::{self, Write};

use serde::Serialize;

use super::notes::deletes_to_allow;
use super::reasons::{held, why};
use super::style::{BOLD, GREEN, RED, Style, YELLOW};
use crate::layout::{Definition, Entry, Layout, Observed};
use crate::model::{Author, Pod, PodName};
use crate::reconcile::map::{IpFamily, Mapping, NameFrom, PortFrom, SeenPod, SkipReason, State};
use crate::reconcile::map::{Trace, Want};
use crate::reconcile::plan::{Action, Freeze, Frozen, Plan, Rules};
use crate::text::{escaped, escaped_json, quoted, shown};

/// How a pod gets into the store, step by step.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    version: u32,
    pod: String,
    /// Whether an entry of its own is in the store after a run.
    pub(crate) published: bool,
    steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    text: String,
}

/// The inputs and the plan of a run.
pub(crate) struct Run<'r> {
    pub(crate) observed: &'r Observed,
    pub(crate) plan: &'r Plan,
    pub(crate) rules: &'r Rules,
    pub(crate) mapping: &'r Mapping,
    pub(crate) layout: &'r dyn Layout,
}

/// Follows a pod, as listed and as mapped, through the run's plan.
pub(crate) fn explain(run: &Run, pod: &Pod, seen: &SeenPod) -> Explained {
    let mut explained = Explained {
        version: super::json::VERSION,
        pod: seen.name.to_string(),
        published: false,
        steps: Vec::new(),
    };
    explained.add("state", state(pod, seen.state).to_owned());
    let mut keys = Vec::new();
    let reason = seen.skipped.first().map(|skipped| &skipped.reason);
    match (seen.state, reason) {
        (State::Live, Some(SkipReason::Ignored)) => explained.left_out(run, &SkipReason::Ignored),
        (State::Live, _) => match run.mapping.trace(pod) {
            Ok(traces) => {
                for trace in traces {
                    explained.backend(run, pod, seen, &trace, &mut keys);
                }
                for skipped in &seen.skipped {
                    if let SkipReason::UnknownAnnotation(_) = skipped.reason {
                        explained.left_out(run, &skipped.reason);
                    }
                }
            }
            Err(reason) => explained.left_out(run, &reason),
        },
        (_, Some(reason)) => explained.left_out(run, reason),
        (_, None) => {}
    }
    explained.other_entries(run, pod, seen, &keys);
    explained
}

impl Explained {
    fn add(&mut self, step: &'static str, text: String) {
        self.steps.push(Step { step, text });
    }

    /// The pod, or one of its backends, is left out: why, and the way out.
    fn left_out(&mut self, run: &Run, reason: &SkipReason) {
        self.add("left out", reason.to_string());
        if let Some(way_out) = way_out(reason, run.mapping) {
            self.add("change", way_out);
        }
    }

    /// One backend that the pod names, from its name to what a run does.
    fn backend(
        &mut self,
        run: &Run,
        pod: &Pod,
        seen: &SeenPod,
        trace: &Trace,
        keys: &mut Vec<String>,
    ) {
        let from = match &trace.name_from {
            NameFrom::Annotation(key) => format!("annotation `{key}`"),
            NameFrom::Label(key) => format!("label `{key}`"),
        };
        self.add("name", format!("{}, from {from}", trace.name));
        let want = match &trace.want {
            Ok(want) => want,
            Err(reason) => return self.left_out(run, reason),
        };
        self.steps_of(run, pod, trace, want);
        let backend = run.observed.spelled(&want.backend);
        let name = &seen.name;
        let author = Author::shared(&run.rules.owner, &run.plan.scope);
        let mark = run.layout.mark(author, name);
        let id = run.layout.id(&want.server, &mark);
        let key = run.layout.key(&run.plan.prefix, backend, &id);
        let found = run.observed.backends.get(backend);
        let entry = found.and_then(|found| found.servers.get(&*id));
        let definition = match found.map(|found| &found.definition) {
            Some(Definition::Valid { key, .. }) => format!("yes, by {key}"),
            Some(Definition::Broken { key, refusal, .. }) => {
                format!("no: the proxy refuses {key}: {refusal}")
            }
            Some(Definition::OtherType { key, refusal }) => format!("no: {key}: {refusal}"),
            Some(Definition::Absent) | None => "no".to_owned(),
        };
        self.add("defined", definition);
        self.add("key", key.clone());
        self.add(
            "there",
            entry.map_or("nothing".to_owned(), |entry| shown(&entry.value)),
        );
        self.run(run, name, backend, (&key, entry), want);
        keys.push(key);
    }

    /// Port, scheme, address and the ids made of them.
    fn steps_of(&mut self, run: &Run, pod: &Pod, trace: &Trace, want: &Want) {
        if let Some((port, scheme)) = &trace.from {
            let from = match port {
                PortFrom::Beside => "given beside the backend's name".to_owned(),
                PortFrom::Annotation(key) => format!("from annotation `{key}`"),
                PortFrom::Flag => "from `--port`".to_owned(),
                PortFrom::Http => "the container port named `http`".to_owned(),
                PortFrom::Only => "the only TCP port".to_owned(),
            };
            self.add("port", format!("{}, {from}", want.url.port));
            let from = match scheme {
                Some(key) => format!("annotation `{key}`"),
                None => "`--scheme`".to_owned(),
            };
            self.add(
                "scheme",
                format!("{}, from {from}", want.url.scheme.as_str()),
            );
        }
        let which = match run.mapping.ip_family {
            None => "the primary address",
            Some(IpFamily::Ipv4) => "the first IPv4 address",
            Some(IpFamily::Ipv6) => "the first IPv6 address",
        };
        let others = match pod.ips.len() {
            0 | 1 => String::new(),
            many => format!(" of {many}"),
        };
        self.add("url", format!("{}, at {which}{others}", want.url));
        let template = run.mapping.backend.to_string();
        self.add(
            "backend",
            format!("{}, by `--backend '{template}'`", want.backend),
        );
    }

    /// What a run does for a server that the pod wants, and the way out if it does nothing.
    fn run(
        &mut self,
        run: &Run,
        pod: &PodName,
        backend: &str,
        (key, entry): (&str, Option<&Entry>),
        want: &Want,
    ) {
        let plan = run.plan;
        let serves = entry.is_some_and(|entry| entry.url.as_ref() == Some(&want.url));
        let is_here = |frozen: &&Frozen| frozen.backend == *backend;
        let change = plan.changes.iter().find(|change| change.key == *key);
        let held_here = plan.held.iter().find(|held| held.entry.key == *key);
        let conflict = plan.conflicts.iter().find(|conflict| conflict.key == *key);
        let duplicate = plan
            .duplicates
            .iter()
            .find(|duplicate| duplicate.loser == *pod && duplicate.url == want.url);
        let (text, change, published) = if let Some(duplicate) = duplicate {
            let text = format!("nothing: pod {} has this key", duplicate.winner);
            let change = "make ids that differ: `--server-id '{ip}:{port}'`".to_owned();
            (text, Some(change), false)
        } else if let Some(conflict) = conflict {
            let whose = match &conflict.owner {
                Some(owner) => format!("is of owner {owner}"),
                None => "is unmarked".to_owned(),
            };
            let text = format!("nothing: a conflict, the entry {whose} and has another value");
            let change = match conflict.owner {
                Some(_) => "its owner has to remove it",
                None => "remove the entry if it is a leftover",
            };
            (text, Some(change.to_owned()), false)
        } else if let Some(change) = change {
            let verb = match change.action {
                Action::Create { .. } => "creates it",
                Action::Update { .. } => "updates it",
                Action::Delete { .. } => "deletes it",
            };
            let published = !matches!(change.action, Action::Delete { .. });
            (format!("{verb}: {}", why(change)), None, published)
        } else if let Some(entry) = held_here {
            let text = format!("nothing: held, because {}", held(entry));
            let allow = deletes_to_allow(plan, false);
            let change = format!("if this is right: `--allow-deletes {allow}`");
            (text, Some(change), false)
        } else if is_over_budget(plan, key) {
            let change = "if this is right: a higher `--max-deletes`".to_owned();
            (OVER_BUDGET.to_owned(), Some(change), serves)
        } else if let Some(frozen) = plan.unshared.iter().find(is_here) {
            let others = match &frozen.why {
                Freeze::Owners(owners) => format!("servers of owner {}", join(owners)),
                Freeze::Clusters(scopes) => {
                    format!("servers of another cluster ({})", join(scopes))
                }
                _ => "others' servers".to_owned(),
            };
            let text = format!("nothing: the backend holds {others}");
            (
                text,
                Some("if both belong: `--share-backends`".to_owned()),
                serves,
            )
        } else if let Some(frozen) = plan.undefined.iter().find(is_here) {
            let text = "nothing: the backend is not defined".to_owned();
            let change = match frozen.why {
                Freeze::Broken { .. } => "mend its definition: a dry run prints how",
                _ => "define it, or give `--create-backends`",
            };
            let change = change.to_owned();
            (text, Some(change), serves)
        } else if serves {
            ("nothing: in sync".to_owned(), None, true)
        } else {
            ("nothing".to_owned(), None, false)
        };
        self.add("run", text);
        if let Some(change) = change {
            self.add("change", change);
        }
        self.published |= published;
    }

    /// The entries that the pod has under other keys, and what a run does with them.
    fn other_entries(&mut self, run: &Run, pod: &Pod, seen: &SeenPod, keys: &[String]) {
        let is_its_own = |entry: &Entry| {
            let Some(mark) = &entry.mark else {
                return false;
            };
            let at = || entry.address().is_some_and(|(ip, _)| seen.is_at(ip));
            *mark.author.owner == *run.rules.owner
                && *mark.namespace == *pod.namespace
                && match &mark.pod {
                    Some(name) => **name == *pod.name,
                    None => at(),
                }
        };
        let backends = run.observed.backends.values();
        let entries = backends.flat_map(|backend| backend.servers.values());
        let entries = entries.filter(|entry| is_its_own(entry));
        for entry in entries.filter(|entry| !keys.iter().any(|key| **key == *entry.key)) {
            let plan = run.plan;
            let change = plan.changes.iter().find(|change| *change.key == *entry.key);
            let held_here = plan.held.iter().find(|held| *held.entry.key == *entry.key);
            let mut kept = plan.kept.iter().flat_map(|kept| &kept.servers);
            self.add("entry", format!("{}: {}", entry.key, shown(&entry.value)));
            self.add(
                "run",
                if let Some(change) = change {
                    let verb = match change.action {
                        Action::Delete { .. } => "deletes it",
                        _ => "updates it",
                    };
                    format!("{verb}: {}", why(change))
                } else if let Some(entry) = held_here {
                    format!("nothing: held, because {}", held(entry))
                } else if is_over_budget(plan, &entry.key) {
                    OVER_BUDGET.to_owned()
                } else if kept.any(|kept| *kept.key == *entry.key) {
                    "nothing: kept, because its backend would have no Ready server".to_owned()
                } else {
                    "nothing".to_owned()
                },
            );
        }
    }
}

/// What a run does with a change that `--max-deletes` forbids.
const OVER_BUDGET: &str = "nothing: more servers would go than `--max-deletes` allows";

fn is_over_budget(plan: &Plan, key: &str) -> bool {
    let mut entries = plan.over_budget.iter().flat_map(|over| &over.entries);
    entries.any(|entry| entry.key == *key)
}

fn join(texts: &std::collections::BTreeSet<String>) -> String {
    let texts = texts.iter().map(String::as_str);
    texts.collect::<Vec<_>>().join(", ")
}

fn state(pod: &Pod, state: State) -> &'static str {
    match state {
        State::Live => "Ready",
        State::NotReady => "not Ready: it gets no requests from Services either",
        State::Leaving => "being deleted, and still Ready",
        State::Dying => "being deleted",
        State::Unreadable => "its address cannot be read",
        State::NoAddress if pod.ready => "Ready, without an address",
        State::NoAddress => "without an address: it may be waiting for a node",
        State::Completed => "completed: its containers have ended",
    }
}

/// What to change so that a pod is published.
fn way_out(reason: &SkipReason, mapping: &Mapping) -> Option<String> {
    let annotation = |name: &str| format!("`{}{name}`", mapping.annotation_prefix);
    Some(match reason {
        SkipReason::NotReady => {
            "nothing here: it is published once its condition `Ready` is `True`; see its readiness probe"
                .to_owned()
        }
        SkipReason::NoAddress => "nothing here: it gets an address when it is started".to_owned(),
        SkipReason::UnreadableAddress => {
            "its status: addresses are written without leading zeros and zones".to_owned()
        }
        SkipReason::Completed | SkipReason::Terminating => return None,
        SkipReason::Ignored => format!("remove its annotation {}", annotation("ignore")),
        SkipReason::NoBackend => {
            let labels = mapping.backend_labels.iter().map(|key| format!("`{key}`"));
            let labels = labels.collect::<Vec<_>>().join(" or ");
            format!(
                "give it the label {labels}, or the annotation {}, or name its label with `--backend-label`",
                annotation("backend")
            )
        }
        SkipReason::NoPort | SkipReason::NoSuchPort(_) | SkipReason::SeveralPorts => format!(
            "name one of its TCP ports: `--port NAME`, or its annotation {}",
            annotation("port")
        ),
        SkipReason::UndeclaredHostPort(port) => {
            format!("declare {port} as a container port of the pod")
        }
        SkipReason::NoSuchAddress(_) => "leave `--ip-family` out, or give the pod such an address".to_owned(),
        SkipReason::BadAnnotation(name, _) => format!("correct its annotation `{name}`"),
        SkipReason::UnknownAnnotation(_) => {
            "remove the annotation, or give it the name of one that is read".to_owned()
        }
        SkipReason::EmptyField(id, field) => format!(
            "give the pod what {} stands for, or change {}",
            quoted(field),
            template(id)
        ),
        SkipReason::BadId(id, ..) => format!("change the name, or {}", template(id)),
    })
}

fn template(id: &str) -> &'static str {
    if id == "server" {
        "`--server-id`"
    } else {
        "`--backend`"
    }
}

/// Prints the steps, then whether the pod is published.
///
/// # Errors
/// Those of `out`.
pub(super) fn print(out: &mut dyn Write, explained: &Explained, style: Style) -> io::Result<()> {
    /// The width of the column of step names.
    const NAMES: usize = 10;
    writeln!(out, "pod {}", escaped(&explained.pod))?;
    let indent = " ".repeat(NAMES + 2);
    for Step { step, text } in &explained.steps {
        let text = style.filled(&escaped(text), &indent, &indent);
        let name = format!("{step:NAMES$}");
        let name = match *step {
            "left out" | "change" => style.paint(YELLOW, &name),
            _ => style.paint(BOLD, &name),
        };
        writeln!(out, "  {name}{}", text.trim_start())?;
    }
    let (ink, verdict) = if explained.published {
        (GREEN, "published after a run")
    } else {
        (RED, "not published")
    };
    writeln!(out, "{}", style.paint(ink, verdict))
}

/// Prints the same as one JSON document.
///
/// # Errors
/// Those of `out`.
pub(super) fn json(out: &mut dyn Write, explained: &Explained) -> io::Result<()> {
    let document = serde_json::to_string_pretty(explained)?;
    writeln!(out, "{}", escaped_json(&document))
}
