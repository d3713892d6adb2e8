//! The content of the store, by any owner: `vulcanized status`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::style::{RED, Style, number};
use super::table::{self, Row};
use crate::layout::{Backend, Definition, Entry, Observed, SiblingKind};
use crate::text::{escaped, escaped_json, shown};

/// The text of an empty cell.
const NONE: &str = "-";

#[derive(Serialize)]
struct Document<'o> {
    version: u32,
    prefix: &'o str,
    revision: Option<u64>,
    backends: Vec<JsonBackend<'o>>,
    owners: BTreeMap<&'o str, usize>,
    unmarked: usize,
}

#[derive(Serialize)]
struct JsonBackend<'o> {
    backend: &'o str,
    /// `valid`, `absent`, `refused`, or `other type`.
    definition: &'static str,
    /// Why the proxy refuses it.
    refusal: Option<String>,
    servers: Vec<JsonServer<'o>>,
}

#[derive(Serialize)]
struct JsonServer<'o> {
    server: &'o str,
    key: &'o str,
    /// `null` where the value has no valid one.
    url: Option<String>,
    owner: Option<&'o str>,
    scope: Option<&'o str>,
    namespace: Option<&'o str>,
    pod: Option<&'o str>,
    value: String,
}

/// The named backends; all of them if none is named.
fn chosen<'o>(
    observed: &'o Observed,
    names: &'o [String],
) -> impl Iterator<Item = (&'o String, &'o Backend)> {
    let backends = observed.backends.iter();
    let is_chosen = |id: &String| names.is_empty() || names.contains(id);
    backends.filter(move |(id, backend)| is_chosen(id) && is_there(backend))
}

/// Whether it has a definition or servers, and not only other keys.
fn is_there(backend: &Backend) -> bool {
    !backend.servers.is_empty() || !matches!(backend.definition, Definition::Absent)
}

/// The named backends that the store has no key of.
pub(crate) fn missing<'o>(observed: &'o Observed, names: &'o [String]) -> Vec<&'o str> {
    let is_missing = |id: &&String| observed.backends.get(*id).is_none_or(|b| !is_there(b));
    let missing = names.iter().filter(is_missing);
    missing.map(String::as_str).collect()
}

/// A definition's state in a word, and what is wrong with it.
fn definition(backend: &Backend) -> (&'static str, Option<String>) {
    match &backend.definition {
        Definition::Valid { .. } => ("valid", None),
        Definition::Absent => ("absent", None),
        Definition::Broken { refusal, .. } => ("refused", Some(refusal.to_string())),
        Definition::OtherType { refusal, .. } => ("other type", Some(refusal.to_string())),
    }
}

/// The URL of an entry; where it has no valid one, the value as it is.
fn url(entry: &Entry) -> String {
    match &entry.url {
        Some(url) => url.to_string(),
        None => shown(&entry.value),
    }
}

/// Prints a table of all servers, or of those of the named backends, then what is wrong with definitions, then
/// the counts.
///
/// # Errors
/// Those of `out`.
pub(super) fn print(
    out: &mut dyn Write,
    observed: &Observed,
    names: &[String],
    style: Style,
) -> io::Result<()> {
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for (id, backend) in chosen(observed, names) {
        let is_valid = matches!(backend.definition, Definition::Valid { .. });
        let mark = if is_valid { "" } else { "!" };
        let ink = (!is_valid).then_some(RED);
        let name = format!("{id}{mark}");
        if !is_valid {
            wrong.push(match definition(backend) {
                (_, Some(refusal)) => format!("{id}: its definition is refused: {refusal}"),
                _ => format!("{id}: not defined"),
            });
        }
        for (server, entry) in &backend.servers {
            let mark = entry.mark.as_ref();
            let text = |text: Option<&str>| {
                let text = text.filter(|text| !text.is_empty());
                text.unwrap_or(NONE).to_owned()
            };
            let pod = mark.map(|mark| match &mark.pod {
                Some(pod) => format!("{}/{pod}", mark.namespace),
                None => format!("{}/{NONE}", mark.namespace),
            });
            rows.push(Row {
                cells: vec![
                    name.clone(),
                    server.to_string(),
                    url(entry),
                    text(mark.map(|mark| &*mark.author.owner)),
                    text(mark.map(|mark| &*mark.author.scope)),
                    text(pod.as_deref()),
                ],
                ink,
            });
        }
        if backend.servers.is_empty() {
            let mut cells = vec![name];
            cells.resize(6, NONE.to_owned());
            rows.push(Row { cells, ink });
        }
    }
    if !rows.is_empty() {
        let head = ["BACKEND", "SERVER", "URL", "OWNER", "SCOPE", "POD"];
        // Columns about the origin are shortened before those about the server.
        let shortened = [4, 5, 1, 0, 2];
        table::print(out, style, &head, &shortened, &rows)?;
    }
    for line in wrong {
        let line = style.wrapped(&format!("! {}", escaped(&line)));
        writeln!(out, "{}", style.paint(RED, &line))?;
    }
    writeln!(out, "{}", style.wrapped(&counts(observed, names)))?;
    for sibling in &observed.siblings {
        let kind = match sibling.kind {
            SiblingKind::Spelling => "another spelling of this prefix",
            SiblingKind::Predecessor => "that of Amdatu Vulcanized and romulus",
        };
        let line = format!(
            "under `{}` ({kind}): {}",
            escaped(&sibling.prefix),
            number(sibling.backends, "backend")
        );
        writeln!(out, "{}", style.wrapped(&line))?;
    }
    Ok(())
}

/// How many servers each owner has, and how many have none.
fn owners<'o>(observed: &'o Observed, names: &'o [String]) -> (BTreeMap<&'o str, usize>, usize) {
    let mut owners = BTreeMap::new();
    let mut unmarked = 0;
    let entries = chosen(observed, names).flat_map(|(_, backend)| backend.servers.values());
    for entry in entries {
        match &entry.mark {
            Some(mark) => *owners.entry(&*mark.author.owner).or_default() += 1,
            None => unmarked += 1,
        }
    }
    (owners, unmarked)
}

/// `2 backends, 7 servers: 6 prod, 1 unmarked`.
fn counts(observed: &Observed, names: &[String]) -> String {
    let (owners, unmarked) = owners(observed, names);
    let backends = chosen(observed, names).count();
    let servers = owners.values().sum::<usize>() + unmarked;
    let mut parts = owners
        .iter()
        .map(|(owner, servers)| format!("{servers} {}", escaped(owner)))
        .collect::<Vec<_>>();
    if unmarked > 0 {
        parts.push(format!("{unmarked} unmarked"));
    }
    let whose = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    let backends = number(backends, "backend");
    format!("{backends}, {}{whose}", number(servers, "server"))
}

/// Prints the same as one JSON document.
///
/// # Errors
/// Those of `out`.
pub(super) fn json(out: &mut dyn Write, observed: &Observed, names: &[String]) -> io::Result<()> {
    let backends = chosen(observed, names).map(|(id, backend)| {
        let (definition, refusal) = definition(backend);
        let servers = backend.servers.iter().map(|(server, entry)| JsonServer {
            server,
            key: &entry.key,
            url: entry.url.as_ref().map(ToString::to_string),
            owner: entry.mark.as_ref().map(|mark| &*mark.author.owner),
            scope: entry.mark.as_ref().map(|mark| &*mark.author.scope),
            namespace: entry.mark.as_ref().map(|mark| &*mark.namespace),
            pod: entry.mark.as_ref().and_then(|mark| mark.pod.as_deref()),
            value: shown(&entry.value),
        });
        JsonBackend {
            backend: id,
            definition,
            refusal,
            servers: servers.collect(),
        }
    });
    let (owners, unmarked) = owners(observed, names);
    let document = Document {
        version: super::json::VERSION,
        prefix: &observed.prefix,
        revision: observed.revision,
        backends: backends.collect(),
        owners,
        unmarked,
    };
    let document = serde_json::to_string_pretty(&document)?;
    writeln!(out, "{}", escaped_json(&document))
}
