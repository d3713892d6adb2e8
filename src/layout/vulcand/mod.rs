//! vulcand's keys: `<prefix>/backends/<backend>/servers/<id>`, values in JSON.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Backend, Contents, Definition, Entry, Fault, Layout, ObserveError, Observed, Options, Refusal,
    Sibling, SiblingKind, Undefined, Unsupported, backend, go, readable,
};
use crate::model::{self, Author, Mark, PodName, Scheme, ServerUrl, Snapshot, UrlFault};

mod definition;

/// The prefix when none is given and neither spelling holds backends.
const DEFAULT_PREFIX: &str = "/vulcand";

/// The prefix of Amdatu Vulcanized and romulus.
const PREDECESSOR: &str = "/vulcan";

/// vulcand's layout under one prefix, or under the one that holds backends.
#[derive(Debug, Clone)]
struct Vulcand {
    /// The prefix, without a slash at its end; `None` looks at `/vulcand` and `vulcand`.
    prefix: Option<String>,
    /// Whether `/vulcand` and `vulcand` are one node in this store (etcd v2), not two.
    one_spelling: bool,
}

/// vulcand's layout: it reads etcd v2 and v3.
#[expect(clippy::unnecessary_wraps, reason = "of the type `Open`")]
pub(super) fn open(options: Options) -> Result<Rc<dyn Layout>, Unsupported> {
    Ok(Rc::new(Vulcand {
        prefix: options.prefix,
        one_spelling: options.etcd_v2,
    }))
}

impl Vulcand {
    /// The prefixes to list: the given or likely one first, then those that only a warning is about.
    fn prefixes(&self) -> Vec<(String, SiblingKind)> {
        let first = self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
        let mut prefixes = vec![(first.to_owned(), SiblingKind::Spelling)];
        if !self.one_spelling {
            let other = match first.strip_prefix('/') {
                Some(bare) => bare.to_owned(),
                None => format!("/{first}"),
            };
            prefixes.push((other, SiblingKind::Spelling));
        }
        let is_it = |prefix: &str| {
            prefix == PREDECESSOR || self.one_spelling && prefix == &PREDECESSOR[1..]
        };
        if !prefixes.iter().any(|(prefix, _)| is_it(prefix)) {
            prefixes.push((PREDECESSOR.to_owned(), SiblingKind::Predecessor));
        }
        prefixes
    }
}

impl Layout for Vulcand {
    fn ranges(&self) -> Vec<String> {
        let prefixes = self.prefixes();
        prefixes.iter().map(|(prefix, _)| range(prefix)).collect()
    }

    fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        let Snapshot { revision, ranges } = snapshot;
        let prefixes = self.prefixes();
        let holds = |index: usize| {
            let spelling = prefixes.get(index).map(|(_, kind)| *kind);
            spelling == Some(SiblingKind::Spelling)
                && matches!(ranges.get(index), Some(Ok(found)) if !found.is_empty())
        };
        let chosen = match (&self.prefix, holds(0), holds(1)) {
            (None, true, true) => {
                return Err(ObserveError::Ambiguous(
                    prefixes[0].0.clone(),
                    prefixes[1].0.clone(),
                ));
            }
            (None, false, true) => 1,
            _ => 0,
        };
        let mut entries = Vec::new();
        let mut siblings = Vec::new();
        for (index, (range, (prefix, kind))) in ranges.into_iter().zip(&prefixes).enumerate() {
            match range {
                Ok(found) if index == chosen => entries = found,
                Err(denied) if index == chosen => return Err((&denied).into()),
                Ok(found) if !found.is_empty() => {
                    let backends = self.read(prefix, found).backends.len();
                    siblings.push(Sibling {
                        prefix: prefix.clone(),
                        backends,
                        kind: *kind,
                    });
                }
                // Nothing there, or not for us to see: it is looked at for a warning.
                Ok(_) | Err(_) => {}
            }
        }
        let prefix = prefixes[chosen].0.clone();
        let Tree {
            backends, stray, ..
        } = self.read(&prefix, entries);
        Ok(Observed {
            revision,
            prefix,
            backends,
            siblings,
            stray,
            ..Observed::default()
        })
    }

    fn range(&self, prefix: &str, backend: &str) -> String {
        format!("{prefix}/backends/{backend}/")
    }

    fn key(&self, prefix: &str, backend: &str, id: &str) -> String {
        format!("{prefix}/backends/{backend}/servers/{id}")
    }

    fn value(&self, url: &ServerUrl, mark: &Mark) -> String {
        write(url, mark)
    }

    fn definition(&self, prefix: &str, backend: &str) -> Vec<(String, String)> {
        let key = format!("{prefix}/backends/{backend}/backend");
        vec![(key, r#"{"Type":"http"}"#.to_owned())]
    }

    fn undefined(&self) -> Undefined {
        Undefined::Stops
    }

    fn definitions(&self, prefix: &str) -> String {
        range(prefix)
    }

    fn root_option(&self, prefix: &str) -> String {
        format!("-etcdKey={prefix}")
    }

    /// On etcd v3 vulcand finds servers by the prefix of their keys; on v2 it walks directories.
    fn bleeds(&self, shorter: &str, longer: &str) -> bool {
        !self.one_spelling && shorter.len() < longer.len() && longer.starts_with(shorter)
    }
}

fn range(prefix: &str) -> String {
    format!("{prefix}/backends/")
}

#[derive(Default)]
struct Tree {
    backends: BTreeMap<String, Backend>,
    stray: Vec<(String, Fault)>,
    /// What is in directories of backends that may turn out to have neither definition nor servers (etcd
    /// v2).
    contents: BTreeMap<String, Contents>,
    /// The directory that was found where a key should be (etcd v2), to name it once.
    directory: String,
}

impl Vulcand {
    fn read(&self, prefix: &str, entries: Vec<model::KeyValue>) -> Tree {
        let skip = range(prefix).len();
        let v2 = self.one_spelling;
        let mut tree = Tree::default();
        let mut values = Values::default();
        let mut servers = Servers::default();
        for (key, value, revision) in readable(entries) {
            let Some((backend, rest)) = key[skip..].split_once('/') else {
                if v2 && key.len() > skip {
                    tree.stray.push((key, Fault::NotADirectory));
                }
                continue;
            };
            if backend.is_empty() {
                continue;
            }
            match (rest, rest.strip_prefix("servers/")) {
                ("backend", _) => {
                    tree.backend(backend).definition = define(&key, &value, revision);
                }
                (_, None) if v2 && rest.starts_with("backend/") => {
                    let end = skip + backend.len() + "/backend".len();
                    tree.backend(backend).definition = Definition::Broken {
                        key: key[..end].to_owned(),
                        refusal: Refusal::Directory {
                            empty: rest == "backend/",
                        },
                        mended: definition::SMALLEST.to_owned(),
                    };
                }
                ("servers", None) if v2 => {
                    tree.holds(backend, Contents::Other);
                    tree.stray.push((key, Fault::NotADirectory));
                }
                // An empty directory of etcd v2.
                ("", _) => tree.holds(backend, Contents::Nothing),
                (_, Some("")) => tree.holds(backend, Contents::EmptyServers),
                (_, Some(id)) if let Some((id, below)) = id.split_once('/') => {
                    tree.holds(backend, Contents::Other);
                    if v2 {
                        let end = skip + backend.len() + "/servers/".len() + id.len();
                        tree.directory(&key[..end], below.is_empty());
                    } else {
                        tree.stray.push((key, Fault::SlashInId));
                    }
                }
                (_, Some(id)) => {
                    let Value { url, mark, fault } = values.read(&value);
                    let id = id.into();
                    if servers.backend != backend {
                        tree.add(&mut servers);
                        backend.clone_into(&mut servers.backend);
                    }
                    let entry = Entry {
                        key: key.into(),
                        value: value.into(),
                        revision,
                        url,
                        mark,
                        fault,
                        others: Box::default(),
                    };
                    servers.entries.push((id, entry));
                }
                // Whatever it holds, the proxy expects a definition there.
                (_, None) if v2 => tree.holds(backend, Contents::Other),
                (_, None) => {}
            }
        }
        tree.add(&mut servers);
        if v2 {
            tree.find_bare(prefix);
        }
        tree
    }
}

impl Tree {
    fn directory(&mut self, key: &str, empty: bool) {
        if self.directory != key {
            key.clone_into(&mut self.directory);
            self.stray.push((key.to_owned(), Fault::Directory(empty)));
        }
    }

    /// Records what a backend's directory holds beside its definition and servers.
    fn holds(&mut self, backend: &str, contents: Contents) {
        self.backend(backend);
        self.contents
            .entry(backend.to_owned())
            .and_modify(|before| *before = Contents::Other)
            .or_insert(contents);
    }

    /// Finds the directories of backends without definition and servers.
    fn find_bare(&mut self, prefix: &str) {
        let bare = |backend: &Backend| {
            backend.definition == Definition::Absent && backend.servers.is_empty()
        };
        for (id, contents) in &self.contents {
            if self.backends.get(id).is_some_and(bare) {
                let key = format!("{}{id}", range(prefix));
                self.stray.push((key, Fault::BareDirectory(*contents)));
            }
        }
    }

    fn backend(&mut self, id: &str) -> &mut Backend {
        backend(&mut self.backends, id)
    }

    fn add(&mut self, servers: &mut Servers) {
        let entries = servers.entries.drain(..);
        if entries.len() > 0 {
            self.backend(&servers.backend).servers.extend(entries);
        }
    }
}

/// Reads the value of a definition.
fn define(key: &str, value: &[u8], revision: u64) -> Definition {
    let key = key.to_owned();
    match definition::check(value) {
        Ok(()) => Definition::Valid { key, revision },
        Err((refusal, mended)) => Definition::Broken {
            key,
            refusal,
            mended,
        },
    }
}

/// Servers of one backend that came one after the other.
#[derive(Default)]
struct Servers {
    backend: String,
    entries: Vec<(Box<str>, Entry)>,
}

/// A server's value, read.
struct Value {
    url: Option<ServerUrl>,
    mark: Option<Mark>,
    fault: Option<Fault>,
}

/// The fields of a server's value that matter here, read as vulcand reads them: `URL` in any case, the
/// last one wins, unknown fields are ignored. Our own are byte-exact, and ignored when they are no
/// strings.
#[derive(Debug, Default, PartialEq, Eq)]
struct ServerFields<'v> {
    url: Option<Cow<'v, str>>,
    owner: Option<Cow<'v, str>>,
    scope: Option<Cow<'v, str>>,
    pod: Option<Cow<'v, str>>,
    /// Whether there is a field for which vulcand may refuse the whole value.
    suspect: bool,
}

impl<'v> ServerFields<'v> {
    /// Reads what [`write()`] writes, as long as nothing in it is escaped: nearly all that there is to read.
    fn plain(value: &'v [u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        // Counted in a loop without an exit, which the compiler vectorises.
        let special = |c: &u8| *c < b' ' || *c == b'\\';
        if value.bytes().filter(special).count() > 0 {
            return None;
        }
        let (url, rest) = value.strip_prefix(r#"{"URL":""#)?.split_once('"')?;
        let (owner, rest) = rest.strip_prefix(r#","Owner":""#)?.split_once('"')?;
        let (scope, rest) = rest.strip_prefix(r#","Scope":""#)?.split_once('"')?;
        let (pod, rest) = rest.strip_prefix(r#","Pod":""#)?.split_once('"')?;
        let text = |text| Some(Cow::Borrowed(text));
        (rest == "}").then_some(Self {
            url: text(url),
            owner: text(owner),
            scope: text(scope),
            pod: text(pod),
            suspect: false,
        })
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Borrowed<'v>(#[serde(borrow)] Cow<'v, str>);

/// A string, or something else.
struct Text<'v>(Option<Cow<'v, str>>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(input)?.get();
        let text = serde_json::from_str::<Borrowed>(raw).ok();
        Ok(Self(text.map(|Borrowed(text)| text)))
    }
}

impl<'de> Deserialize<'de> for ServerFields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = ServerFields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<ServerFields<'de>, A::Error> {
                let mut fields = ServerFields::default();
                while let Some(Borrowed(key)) = map.next_key()? {
                    let own = match key.as_ref() {
                        "Owner" => &mut fields.owner,
                        "Scope" => &mut fields.scope,
                        "Pod" => &mut fields.pod,
                        other => {
                            let name = go::fold(other);
                            if name == "url" {
                                // `null` leaves Go's string as it was.
                                match map.next_value()? {
                                    Some(Text(Some(url))) => fields.url = Some(url),
                                    Some(Text(None)) => fields.suspect = true,
                                    None => {}
                                }
                            } else {
                                fields.suspect |= name == "id" || name == "stats";
                                map.next_value::<IgnoredAny>()?;
                            }
                            continue;
                        }
                    };
                    let Text(text) = map.next_value()?;
                    *own = text;
                }
                Ok(fields)
            }
        }
        input.deserialize_map(Reader)
    }
}

/// Reads values. A text that repeats from entry to entry is kept once.
#[derive(Default)]
struct Values {
    author: Rc<Author>,
    namespace: Rc<str>,
}

impl Values {
    fn read(&mut self, value: &[u8]) -> Value {
        let fault = |fault| Value {
            url: None,
            mark: None,
            fault: Some(fault),
        };
        if value.trim_ascii() == b"null" {
            return fault(Fault::Null);
        }
        // Go, too, reads what is not UTF-8 as U+FFFD.
        let text = LazyCell::new(|| String::from_utf8_lossy(value));
        let fields = ServerFields::plain(value).map_or_else(|| serde_json::from_str(&text), Ok);
        let Ok(ServerFields {
            url,
            owner,
            scope,
            pod,
            suspect,
        }) = fields
        else {
            return fault(Fault::Malformed);
        };
        let refused = suspect.then(|| definition::refused_server_field(&text));
        let (url, of_url) = read_url(url.as_deref().unwrap_or_default());
        let mark = owner.filter(|owner| !owner.is_empty()).map(|owner| {
            let pod = pod.as_deref().and_then(PodName::split);
            let scope = scope.as_deref().unwrap_or_default();
            let namespace = pod.map_or("", |(namespace, _)| namespace);
            if *self.author.owner != *owner || *self.author.scope != *scope {
                self.author = Author::shared(&owner, scope);
            }
            if *self.namespace != *namespace {
                self.namespace = namespace.into();
            }
            Mark {
                author: Rc::clone(&self.author),
                namespace: Rc::clone(&self.namespace),
                pod: pod.map(|(_, name)| name.into()),
            }
        });
        let fault = refused.flatten().map(Fault::Refused).or(of_url);
        Value { url, mark, fault }
    }
}

/// A server's URL, and what is wrong with it for vulcand.
fn read_url(text: &str) -> (Option<ServerUrl>, Option<Fault>) {
    let fault = match ServerUrl::read(text) {
        // vulcand accepts this scheme and cannot speak it.
        Ok(url) if url.scheme == Scheme::H2c => return (Some(url), Some(Fault::Unreachable)),
        Ok(url) => return (Some(url), None),
        Err(_) if text.is_empty() => Fault::NoUrl,
        Err(UrlFault::Unreadable) => Fault::Refused("URL"),
        // Go's `ParseRequestURI` requires a scheme or a path.
        Err(UrlFault::NoHost) if !text.contains(':') && !text.starts_with('/') => {
            Fault::Refused("URL")
        }
        Err(UrlFault::NoHost) => Fault::NoHost,
        Err(UrlFault::Unreachable) => Fault::Unreachable,
    };
    (None, Some(fault))
}

fn write(url: &ServerUrl, mark: &Mark) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Server<'s> {
        #[serde(rename = "URL")]
        url: String,
        owner: &'s str,
        scope: &'s str,
        pod: String,
    }
    let pod = format!(
        "{}/{}",
        mark.namespace,
        mark.pod.as_deref().unwrap_or_default()
    );
    let server = Server {
        url: url.to_string(),
        owner: &mark.author.owner,
        scope: &mark.author.scope,
        pod,
    };
    serde_json::to_string(&server).expect("strings are JSON")
}

#[cfg(test)]
mod tests;
