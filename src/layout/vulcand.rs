//! vulcand's keys: `<prefix>/backends/<backend>/servers/<id>`, values in JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Backend, Definition, Entry, Fault, Layout, ObserveError, Observed, Options, Sibling, Undefined,
    Unsupported, backend,
};
use crate::model::{self, Mark, PodName, ServerUrl, Snapshot};

/// The prefix when none is given and neither spelling holds backends.
const DEFAULT_PREFIX: &str = "/vulcand";

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
    /// The prefixes to look at: the one that is meant, or likely, first.
    fn prefixes(&self) -> Vec<String> {
        let first = self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
        let mut prefixes = vec![first.to_owned()];
        if !self.one_spelling {
            prefixes.push(match first.strip_prefix('/') {
                Some(bare) => bare.to_owned(),
                None => format!("/{first}"),
            });
        }
        prefixes
    }
}

impl Layout for Vulcand {
    fn ranges(&self) -> Vec<String> {
        self.prefixes().iter().map(|prefix| range(prefix)).collect()
    }

    fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        let Snapshot { revision, ranges } = snapshot;
        let prefixes = self.prefixes();
        let holds =
            |index: usize| matches!(ranges.get(index), Some(Ok(found)) if !found.is_empty());
        let chosen = match (&self.prefix, holds(0), holds(1)) {
            (None, true, true) => {
                return Err(ObserveError::Ambiguous(
                    prefixes[0].clone(),
                    prefixes[1].clone(),
                ));
            }
            (None, false, true) => 1,
            _ => 0,
        };
        let mut entries = Vec::new();
        let mut sibling = None;
        for (index, (range, prefix)) in ranges.into_iter().zip(&prefixes).enumerate() {
            match range {
                Ok(found) if index == chosen => entries = found,
                Err(denied) if index == chosen => return Err((&denied).into()),
                Ok(found) if !found.is_empty() => {
                    let backends = Tree::read(prefix, found).backends.len();
                    sibling = Some(Sibling {
                        prefix: prefix.clone(),
                        backends,
                    });
                }
                // Nothing there, or not for us to see: the other spelling is looked at for a warning.
                Ok(_) | Err(_) => {}
            }
        }
        let prefix = prefixes[chosen].clone();
        let Tree { backends, stray } = Tree::read(&prefix, entries);
        Ok(Observed {
            revision,
            prefix,
            backends,
            sibling,
            stray,
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

    fn bleeds(&self, shorter: &str, longer: &str) -> bool {
        shorter.len() < longer.len() && longer.starts_with(shorter)
    }
}

fn range(prefix: &str) -> String {
    format!("{prefix}/backends/")
}

#[derive(Default)]
struct Tree {
    backends: BTreeMap<String, Backend>,
    stray: Vec<(String, Fault)>,
}

impl Tree {
    fn read(prefix: &str, entries: Vec<model::Entry>) -> Self {
        let skip = range(prefix).len();
        let mut tree = Self::default();
        let mut values = Values::default();
        let mut servers = Servers::default();
        for model::Entry {
            key,
            value,
            revision,
        } in entries
        {
            // vulcand cannot name what is not UTF-8, and neither can we: not a server of anybody's.
            let Ok(key) = String::from_utf8(key) else {
                continue;
            };
            let Some((backend, rest)) = key[skip..].split_once('/') else {
                continue;
            };
            if backend.is_empty() {
                continue;
            }
            match (rest, rest.strip_prefix("servers/")) {
                ("backend", _) => {
                    let definition = match defines(&value) {
                        Ok(()) => Definition::Valid {
                            key: key.clone(),
                            revision,
                        },
                        Err(why) => Definition::Broken {
                            key: key.clone(),
                            why,
                        },
                    };
                    tree.backend(backend).definition = definition;
                }
                // An empty directory of etcd v2.
                ("", _) | (_, Some("")) => {
                    tree.backend(backend);
                }
                (_, Some(id)) if id.contains('/') => {
                    tree.backend(backend);
                    tree.stray.push((key, Fault::SlashInId));
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
                (_, None) => {}
            }
        }
        tree.add(&mut servers);
        let bare = |backend: &Backend| {
            backend.definition == Definition::Absent && backend.servers.is_empty()
        };
        for (id, backend) in &tree.backends {
            if bare(backend) {
                tree.stray
                    .push((format!("{}{id}", range(prefix)), Fault::BareDirectory));
            }
        }
        tree
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

/// Servers of one backend that came one after the other.
#[derive(Default)]
struct Servers {
    backend: String,
    entries: Vec<(Box<str>, Entry)>,
}

/// Whether a `backend` key's value is a definition that vulcand takes.
fn defines(value: &[u8]) -> Result<(), String> {
    struct Type(Option<String>);
    impl<'de> Deserialize<'de> for Type {
        fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
            struct Fields;
            impl<'de> Visitor<'de> for Fields {
                type Value = Type;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a JSON object")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Type, A::Error> {
                    let mut found = Type(None);
                    while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                        if key.eq_ignore_ascii_case("type") {
                            found.0 = map.next_value()?;
                        } else {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    Ok(found)
                }
            }
            input.deserialize_map(Fields)
        }
    }
    match serde_json::from_slice(value) {
        Ok(Type(Some(kind))) if kind == "http" => Ok(()),
        Ok(Type(Some(kind))) => Err(format!("its Type is `{kind}`, not `http`")),
        Ok(Type(None)) => Err("it has no Type".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What a server's value says.
struct Value {
    url: Option<ServerUrl>,
    mark: Option<Mark>,
    fault: Option<Fault>,
}

/// The fields of a server's value that matter here, read as vulcand reads them: `URL` in any case, the
/// last one wins, unknown fields are ignored. Our own are byte-exact, and ignored when they are no
/// strings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields<'v> {
    url: Option<Cow<'v, str>>,
    owner: Option<Cow<'v, str>>,
    scope: Option<Cow<'v, str>>,
    pod: Option<Cow<'v, str>>,
}

impl<'v> Fields<'v> {
    /// Reads what [`write`] writes, as long as nothing in it is escaped: nearly all that there is to read.
    fn plain(value: &'v [u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        // Counted, because a loop without a way out is done many bytes at a time.
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

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(Borrowed(key)) = map.next_key()? {
                    let own = match key.as_ref() {
                        "Owner" => &mut fields.owner,
                        "Scope" => &mut fields.scope,
                        "Pod" => &mut fields.pod,
                        url if url.eq_ignore_ascii_case("url") => {
                            // `null` leaves Go's string as it was.
                            if let Some(Borrowed(url)) = map.next_value()? {
                                fields.url = Some(url);
                            }
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
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

/// Reads values; texts that are the same in one entry after the other are kept once.
#[derive(Default)]
struct Values {
    owner: Rc<str>,
    scope: Rc<str>,
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
        let fields = Fields::plain(value).map_or_else(|| serde_json::from_slice(value), Ok);
        let Ok(Fields {
            url,
            owner,
            scope,
            pod,
        }) = fields
        else {
            return fault(Fault::Malformed);
        };
        let url = url.as_deref().and_then(ServerUrl::parse);
        let mark = owner.filter(|owner| !owner.is_empty()).map(|owner| {
            let pod = pod.as_deref().and_then(PodName::split);
            Mark {
                owner: kept(&mut self.owner, &owner),
                scope: kept(&mut self.scope, scope.as_deref().unwrap_or_default()),
                namespace: kept(
                    &mut self.namespace,
                    pod.map_or("", |(namespace, _)| namespace),
                ),
                pod: pod.map(|(_, name)| name.into()),
            }
        });
        let fault = url.is_none().then_some(Fault::NoUrl);
        Value { url, mark, fault }
    }
}

/// The text that was kept last, if this is the same.
fn kept(last: &mut Rc<str>, text: &str) -> Rc<str> {
    if **last != *text {
        *last = text.into();
    }
    Rc::clone(last)
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
        owner: &mark.owner,
        scope: &mark.scope,
        pod,
    };
    serde_json::to_string(&server).expect("strings are JSON")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::entry;

    fn read(value: &[u8]) -> Value {
        Values::default().read(value)
    }

    fn observe(
        prefix: Option<&str>,
        ranges: [Vec<model::Entry>; 2],
    ) -> Result<Observed, ObserveError> {
        let layout = Vulcand {
            prefix: prefix.map(str::to_owned),
            one_spelling: false,
        };
        layout.observe(Snapshot {
            revision: Some(1),
            ranges: ranges.map(Ok).into(),
        })
    }

    #[test]
    fn a_value_is_read_as_vulcand_reads_it() {
        let url = |value: &str| read(value.as_bytes()).url.map(|url| url.to_string());
        let good = Some("http://10.0.0.1:80".to_owned());
        assert_eq!(url(r#"{"URL":"http://10.0.0.1:80"}"#), good);
        assert_eq!(
            url(r#"{"url":"http://10.0.0.1","Id":"x","Stats":{"a":[1]}}"#),
            good
        );
        assert_eq!(
            url(r#"{"url":"http://b:1","URL":"http://10.0.0.1:80"}"#),
            good
        );
        let fault = |value: &str| read(value.as_bytes()).fault;
        assert_eq!(fault(" null "), Some(Fault::Null));
        assert_eq!(fault("{}"), Some(Fault::NoUrl));
        assert_eq!(fault(r#"{"URL":"localhost:80"}"#), Some(Fault::NoUrl));
        assert_eq!(fault(r#"{"URL":7}"#), Some(Fault::Malformed));
        assert_eq!(fault("[]"), Some(Fault::Malformed));
        assert_eq!(fault(r#"{"URL":"http://a:1"} x"#), Some(Fault::Malformed));
    }

    #[test]
    fn a_mark_is_read_back_as_it_was_written() {
        let url = ServerUrl::parse("http://10.0.0.1:80").expect("a URL");
        let mark = Mark {
            owner: "prod".into(),
            scope: "c1 app=web".into(),
            namespace: "shop".into(),
            pod: Some("web-1".into()),
        };
        let value = write(&url, &mark);
        let expected = r#"{"URL":"http://10.0.0.1:80","Owner":"prod","Scope":"c1 app=web","Pod":"shop/web-1"}"#;
        assert_eq!(value, expected);
        let read = read(value.as_bytes());
        assert_eq!(
            (read.url, read.mark, read.fault),
            (Some(url), Some(mark), None)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_the_short_way_is_read_so_the_long_way(
            texts in prop::array::uniform4(r#"[a-z0-9/:. \"\\,{}é\n]{0,6}"#),
            (at, byte) in (any::<prop::sample::Index>(), any::<u8>()),
            changed: bool,
        ) {
            let [url, owner, scope, pod] = &texts;
            let value = format!(r#"{{"URL":"{url}","Owner":"{owner}","Scope":"{scope}","Pod":"{pod}"}}"#);
            let mut value = value.into_bytes();
            if changed {
                let at = at.index(value.len());
                value[at] = byte;
            }
            if let Some(fields) = Fields::plain(&value) {
                prop_assert_eq!(Some(fields), serde_json::from_slice(&value).ok());
            }
        }
    }

    #[test]
    fn half_a_mark_is_somebodys_and_no_mark_nobodys() {
        let mark = |value: &str| read(value.as_bytes()).mark;
        assert_eq!(mark(r#"{"URL":"http://a:1","owner":"prod"}"#), None);
        assert_eq!(
            mark(r#"{"URL":"http://a:1","Owner":7,"Scope":{"a":1}}"#),
            None
        );
        let half = mark(r#"{"URL":"http://a:1","Owner":"prod","Pod":"web"}"#).expect("a mark");
        assert_eq!(
            (&*half.owner, &*half.scope, &*half.namespace),
            ("prod", "", "")
        );
    }

    #[test]
    fn the_prefix_that_holds_backends_is_found() {
        let slash = || vec![entry("/vulcand/backends/a/backend", r#"{"Type":"http"}"#)];
        let bare = || vec![entry("vulcand/backends/a/backend", r#"{"Type":"http"}"#)];
        let prefix = |given, ranges| observe(given, ranges).map(|observed| observed.prefix);
        assert_eq!(prefix(None, [slash(), vec![]]), Ok("/vulcand".to_owned()));
        assert_eq!(prefix(None, [vec![], bare()]), Ok("vulcand".to_owned()));
        assert_eq!(prefix(None, [vec![], vec![]]), Ok("/vulcand".to_owned()));
        assert!(matches!(
            prefix(None, [slash(), bare()]),
            Err(ObserveError::Ambiguous(..))
        ));
        let chosen = observe(Some("vulcand"), [bare(), slash()]).expect("chosen");
        assert_eq!(chosen.prefix, "vulcand");
        assert_eq!(
            chosen.sibling,
            Some(Sibling {
                prefix: "/vulcand".to_owned(),
                backends: 1
            })
        );
    }

    #[test]
    fn keys_are_taken_apart() {
        let keys = vec![
            entry(
                "/vulcand/backends/a/backend",
                r#"{"Type":"http","Settings":{}}"#,
            ),
            entry("/vulcand/backends/a/servers/1", r#"{"URL":"http://a:1"}"#),
            entry("/vulcand/backends/a/servers/1/x", "{}"),
            entry("/vulcand/backends/b/", ""),
            entry("/vulcand/backends/c/backend", r#"{"Type":"tcp"}"#),
            entry("/vulcand/backends/d/servers/1", "{}"),
            entry("/vulcand/backends//servers/1", "{}"),
        ];
        let observed = observe(None, [keys, vec![]]).expect("observed");
        let definition = |id: &str| &observed.backends[id].definition;
        assert_eq!(
            observed.backends.keys().collect::<Vec<_>>(),
            ["a", "b", "c", "d"]
        );
        assert!(matches!(definition("a"), Definition::Valid { .. }));
        assert!(matches!(definition("c"), Definition::Broken { .. }));
        assert_eq!(*definition("d"), Definition::Absent);
        assert_eq!(observed.backends["a"].servers.len(), 1);
        let stray = [
            (
                "/vulcand/backends/a/servers/1/x".to_owned(),
                Fault::SlashInId,
            ),
            ("/vulcand/backends/b".to_owned(), Fault::BareDirectory),
        ];
        assert_eq!(observed.stray, stray);
    }
}
