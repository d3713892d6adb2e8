//! Definitions of vulcand's backends, read as vulcand 0.9 reads them (`BackendFromJSON` in its
//! engine/json.go, the structures of engine/model.go and engine/tls.go): with Go's encoding/json, all the
//! fields that it decodes. What it refuses is named with its field, and mended.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::layout::{Refusal, go};
use crate::text::json_line;

/// The smallest definition.
pub(super) const SMALLEST: &str = r#"{"Type":"http"}"#;

/// What a field may hold.
enum Kind {
    Text,
    Duration,
    OneOf(&'static [&'static str], &'static str),
    Int,
    NotNegative,
    Float,
    Bool,
    /// A structure. Go keeps it where the field comes twice, so that their fields add up.
    Struct(&'static [(&'static str, Kind)]),
    List(&'static Kind),
    /// Decoded separately, later: if it comes several times, only the last counts.
    Settings,
}

const BACKEND: &[(&str, Kind)] = &[
    ("Id", Kind::Text),
    ("Type", Kind::OneOf(&["http"], "`\"http\"`")),
    ("Settings", Kind::Settings),
    ("Stats", Kind::Struct(STATS)),
];

/// A server; its URL is checked elsewhere.
const SERVER: &[(&str, Kind)] = &[
    ("Id", Kind::Text),
    ("URL", Kind::Text),
    ("Stats", Kind::Struct(STATS)),
];

const SETTINGS: &[(&str, Kind)] = &[
    (
        "Timeouts",
        Kind::Struct(&[
            ("Read", Kind::Duration),
            ("Dial", Kind::Duration),
            ("TLSHandshake", Kind::Duration),
        ]),
    ),
    (
        "KeepAlive",
        Kind::Struct(&[
            ("Period", Kind::Duration),
            ("MaxIdleConnsPerHost", Kind::Int),
        ]),
    ),
    ("TLS", Kind::Struct(TLS)),
];

const TLS: &[(&str, Kind)] = &[
    ("PreferServerCipherSuites", Kind::Bool),
    ("InsecureSkipVerify", Kind::Bool),
    ("MinVersion", TLS_VERSION),
    ("MaxVersion", TLS_VERSION),
    ("SessionTicketsDisabled", Kind::Bool),
    (
        "SessionCache",
        Kind::Struct(&[
            ("Type", Kind::OneOf(&["", "LRU"], "`\"LRU\"`")),
            ("Settings", Kind::Struct(&[("Capacity", Kind::NotNegative)])),
        ]),
    ),
    ("CipherSuites", Kind::List(&CIPHER_SUITE)),
    ("ClientCertFile", Kind::Text),
    ("ClientKeyFile", Kind::Text),
    ("CACertFile", Kind::List(&Kind::Text)),
];

/// The checked fields that are pointers in Go.
const POINTERS: [&str; 2] = ["Settings.TLS", "Settings.TLS.SessionCache.Settings"];

const TLS_VERSION: Kind = Kind::OneOf(
    &["", "VersionTLS10", "VersionTLS11", "VersionTLS12"],
    "one of `VersionTLS10`, `VersionTLS11` and `VersionTLS12`",
);

const CIPHER_SUITE: Kind = Kind::OneOf(
    &[
        "TLS_RSA_WITH_RC4_128_SHA",
        "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
        "TLS_RSA_WITH_AES_128_CBC_SHA",
        "TLS_RSA_WITH_AES_256_CBC_SHA",
        "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
        "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
        "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
        "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    ],
    "a cipher suite that vulcand knows",
);

const STATS: &[(&str, Kind)] = &[
    (
        "Verdict",
        Kind::Struct(&[
            ("IsBad", Kind::Bool),
            (
                "Anomalies",
                Kind::List(&Kind::Struct(&[
                    ("Code", Kind::Int),
                    ("Message", Kind::Text),
                ])),
            ),
        ]),
    ),
    (
        "Counters",
        Kind::Struct(&[
            ("Period", Kind::Int),
            ("NetErrors", Kind::Int),
            ("Total", Kind::Int),
            (
                "StatusCodes",
                Kind::List(&Kind::Struct(&[("Code", Kind::Int), ("Count", Kind::Int)])),
            ),
        ]),
    ),
    (
        "LatencyBrackets",
        Kind::List(&Kind::Struct(&[
            ("Quantile", Kind::Float),
            ("Value", Kind::Int),
        ])),
    ),
];

/// Whether vulcand takes a definition; if not, why, and the value that it would take.
///
/// # Errors
/// Why it does not, and what would mend it.
pub(super) fn check(value: &[u8]) -> Result<(), (Refusal, String)> {
    // Go, too, reads what is not UTF-8 as U+FFFD.
    let text = String::from_utf8_lossy(value);
    match refused(&text) {
        Ok(()) => Ok(()),
        Err((refusal, change)) => Err((refusal, mended(&text, change))),
    }
}

/// The first field of a server that vulcand refuses, if there is one.
pub(super) fn refused_server_field(value: &str) -> Option<&'static str> {
    let raw = serde_json::from_str::<&RawValue>(value).ok()?;
    let mut found = Decoded::default();
    found.object(raw, SERVER, "");
    let field = found.refused?.field;
    SERVER.iter().map(|(name, _)| *name).find(|name| {
        let rest = field.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// How a definition is mended: a part of it is replaced.
enum Change {
    /// By the smallest definition.
    Whole,
    /// The bytes from here to there, by this.
    Part(usize, usize, Cow<'static, str>),
}

/// Changes a definition until vulcand takes it.
fn mended(text: &str, first: Change) -> String {
    /// Each round removes one refused value.
    const CHANGES: usize = 32;
    let mut text = text.to_owned();
    let mut change = first;
    for _ in 0..CHANGES {
        match change {
            Change::Whole => return SMALLEST.to_owned(),
            Change::Part(start, end, new) => text.replace_range(start..end, &new),
        }
        match refused(&text) {
            // The value becomes part of a printed command.
            Ok(()) => return json_line(&text),
            Err((_, next)) => change = next,
        }
    }
    SMALLEST.to_owned()
}

fn refused(text: &str) -> Result<(), (Refusal, Change)> {
    let Ok(raw) = serde_json::from_str::<&RawValue>(text) else {
        return Err((Refusal::Syntax, Change::Whole));
    };
    if raw.get() == "null" {
        return Err((Refusal::Null, Change::Whole));
    }
    if !raw.get().starts_with('{') {
        return Err((Refusal::NotAnObject, Change::Whole));
    }
    let within = |part: &str| {
        // Both are parts of one text.
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        (start, start + part.len())
    };
    let mut found = Decoded::default();
    found.object(raw, BACKEND, "");
    if found.refused.is_none() && !found.leaves.contains_key("Type") {
        let (start, _) = within(raw.get());
        let empty = raw.get()[1..].trim_start().starts_with('}');
        let new = if empty {
            r#""Type":"http""#
        } else {
            r#""Type":"http","#
        };
        let change = Change::Part(start + 1, start + 1, new.into());
        return Err((Refusal::NoType, change));
    }
    found.check_leaves();
    if found.refused.is_none()
        && let Some(settings) = found.settings
    {
        let mut inner = Decoded::default();
        inner.value(settings, &Kind::Struct(SETTINGS), "Settings");
        inner.check_leaves();
        found.refused = inner.refused;
    }
    let Some(Refused {
        field,
        raw,
        wanted,
        better,
    }) = found.refused
    else {
        return Ok(());
    };
    let (start, end) = within(raw);
    let refusal = Refusal::Field {
        field,
        value: raw.to_owned(),
        wanted,
    };
    // `null` is accepted everywhere: it leaves a field unchanged.
    let better = better.unwrap_or(Cow::Borrowed("null"));
    Err((refusal, Change::Part(start, end, better)))
}

/// A value that is refused.
struct Refused<'v> {
    field: String,
    raw: &'v str,
    wanted: &'static str,
    /// What was probably meant.
    better: Option<Cow<'static, str>>,
}

/// A value as encoding/json decodes it.
#[derive(Default)]
struct Decoded<'v> {
    /// The final texts and numbers by field, each with the field's type.
    leaves: BTreeMap<String, (&'v str, &'static Kind)>,
    /// The final `Settings`.
    settings: Option<&'v RawValue>,
    /// The first value of a wrong type: Go decodes the rest, then refuses the whole.
    refused: Option<Refused<'v>>,
}

impl<'v> Decoded<'v> {
    fn object(&mut self, raw: &'v RawValue, fields: &'static [(&str, Kind)], path: &str) {
        let Ok(Members(members)) = serde_json::from_str::<Members>(raw.get()) else {
            return self.refuse(path.trim_end_matches('.'), raw, "an object");
        };
        for (name, value) in members {
            let exact = fields.iter().find(|(field, _)| *field == name);
            let folded = || {
                let name = go::fold(&name);
                fields.iter().find(|(field, _)| go::fold(field) == name)
            };
            if let Some((field, kind)) = exact.or_else(folded) {
                self.value(value, kind, &format!("{path}{field}"));
            }
        }
    }

    fn value(&mut self, raw: &'v RawValue, kind: &'static Kind, path: &str) {
        let text = raw.get();
        if let Kind::Settings = kind {
            self.settings = Some(raw);
            return;
        }
        if text == "null" {
            // It leaves what is there; but a structure behind a pointer is gone then, with all in it, and
            // an item of a list is empty.
            match kind {
                Kind::Struct(_) if POINTERS.contains(&path) => {
                    self.leaves.retain(|leaf, _| !leaf.starts_with(path));
                }
                Kind::OneOf(_, wanted) if path.ends_with(']') => self.refuse(path, raw, wanted),
                _ => {}
            }
            return;
        }
        match kind {
            Kind::Text | Kind::Duration | Kind::OneOf(..) if !text.starts_with('"') => {
                self.refuse(path, raw, "a string");
            }
            Kind::Int | Kind::NotNegative if text.parse::<i64>().is_err() => {
                self.refuse(path, raw, "a whole number");
            }
            Kind::Float if !text.parse::<f64>().is_ok_and(f64::is_finite) => {
                self.refuse(path, raw, "a number");
            }
            Kind::Bool if text != "true" && text != "false" => {
                self.refuse(path, raw, "`true` or `false`");
            }
            Kind::Struct(fields) if text.starts_with('{') => {
                self.object(raw, fields, &format!("{path}."));
            }
            Kind::Struct(_) => self.refuse(path, raw, "an object"),
            Kind::List(kind) => {
                self.leaves
                    .retain(|leaf, _| !leaf.starts_with(&format!("{path}[")));
                let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text) else {
                    return self.refuse(path, raw, "a list");
                };
                for (index, item) in items.into_iter().enumerate() {
                    self.value(item, kind, &format!("{path}[{index}]"));
                }
            }
            _ => {
                self.leaves.insert(path.to_owned(), (text, kind));
            }
        }
    }

    fn refuse(&mut self, field: &str, raw: &'v RawValue, wanted: &'static str) {
        if self.refused.is_some() {
            return;
        }
        let text = raw.get();
        let inner = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let is_scalar = text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c));
        let better = match (wanted, inner) {
            ("a whole number", Some(inner)) if inner.parse::<i64>().is_ok() => {
                Some(inner.to_owned())
            }
            ("`true` or `false`", Some(inner @ ("true" | "false"))) => Some(inner.to_owned()),
            ("a string", None) if is_scalar => Some(format!("\"{text}\"")),
            _ => None,
        };
        self.refused = Some(Refused {
            field: field.to_owned(),
            raw: text,
            wanted,
            better: better.map(Cow::Owned),
        });
    }

    /// vulcand's checks after decoding.
    fn check_leaves(&mut self) {
        if self.refused.is_some() {
            return;
        }
        let tickets = self.leaves.get("Settings.TLS.SessionTicketsDisabled");
        let no_cache = tickets.is_some_and(|(raw, _)| *raw == "true");
        for (field, (raw, kind)) in &self.leaves {
            if no_cache && field.starts_with("Settings.TLS.SessionCache.") {
                continue;
            }
            let text = || text(raw);
            let (wanted, better) = match kind {
                // An empty text counts as absent.
                Kind::Duration if !text().is_empty() && !go::is_duration(&text()) => {
                    let text = text();
                    let seconds = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
                    let better = seconds.then(|| format!("\"{text}s\"").into());
                    ("a duration with a unit, such as `4s`", better)
                }
                Kind::OneOf(values, wanted) if !values.contains(&&*text()) => {
                    let better = (field == "Type").then_some(Cow::Borrowed("\"http\""));
                    (*wanted, better)
                }
                Kind::NotNegative if raw.starts_with('-') => ("0 or more", None),
                _ => continue,
            };
            self.refused = Some(Refused {
                field: field.clone(),
                raw,
                wanted,
                better,
            });
            return;
        }
    }
}

/// A JSON string's text; half of a surrogate pair is read as something else than any field wants.
fn text(raw: &str) -> String {
    struct Lossy;
    impl Visitor<'_> for Lossy {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
            Ok(String::from_utf8_lossy(bytes).into_owned())
        }
    }
    let mut input = serde_json::Deserializer::from_str(raw);
    (&mut input).deserialize_bytes(Lossy).unwrap_or_default()
}

/// An object's members in order, duplicates included.
struct Members<'v>(Vec<(String, &'v RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        input.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_read_as_vulcand_reads_them() {
        // Go's encoding/json said the same of each, with the structures of vulcand 0.9.
        let table = include_str!("../../../fixtures/vulcand/definitions.tsv");
        let mut rows = 0;
        for line in table.lines() {
            let [verdict, value] = *line.split('\t').collect::<Vec<_>>() else {
                panic!("two columns: {line}");
            };
            rows += 1;
            match (verdict, check(value.as_bytes())) {
                ("taken", Ok(())) => {}
                ("taken", Err((refusal, _))) => panic!("{value}: {refusal}"),
                (_, Ok(())) => panic!("{value}: taken"),
                (field, Err((refusal, mended))) => {
                    let text = refusal.to_string();
                    assert!(
                        text.contains(&format!("`{field}`")) || text.contains(field),
                        "{value}: {text}"
                    );
                    assert_eq!(
                        check(mended.as_bytes()),
                        Ok(()),
                        "{value}: mended by {mended}"
                    );
                }
            }
        }
        assert!(rows >= 60, "{rows} rows");
    }

    #[test]
    fn a_definition_is_mended_with_the_least_change() {
        for (value, better) in [
            (
                r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":128,"Period":"4"}}}"#,
                r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":128,"Period":"4s"}}}"#,
            ),
            (
                r#"{"Type":"http", "Settings":{"KeepAlive":{"MaxIdleConnsPerHost":"128","Period":4}}}"#,
                r#"{"Type":"http", "Settings":{"KeepAlive":{"MaxIdleConnsPerHost":128,"Period":"4s"}}}"#,
            ),
            (r#"{"Settings":{}}"#, r#"{"Type":"http","Settings":{}}"#),
            (" { } ", r#" {"Type":"http" } "#),
            (
                "{\n\t\"A\u{7f}\u{9b}\":\r\"é\u{202e}\"}",
                "{\"Type\":\"http\",  \"A\\u007f\\u009b\": \"é\\u202e\"}",
            ),
            (r#"{"type":"HTTP"}"#, r#"{"type":"http"}"#),
            (
                r#"{"Type":"http","Settings":{"Timeouts":[]}}"#,
                r#"{"Type":"http","Settings":{"Timeouts":null}}"#,
            ),
            (
                r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":"many"}}}"#,
                r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":null}}}"#,
            ),
            (
                r#"{"Type":"http","Settings":{"TLS":{"InsecureSkipVerify":"true"}}}"#,
                r#"{"Type":"http","Settings":{"TLS":{"InsecureSkipVerify":true}}}"#,
            ),
            (
                r#"{"Type":"http","Id":[4],"Settings":{}}"#,
                r#"{"Type":"http","Id":null,"Settings":{}}"#,
            ),
            (r#"{"Type":"http","Id":4}"#, r#"{"Type":"http","Id":"4"}"#),
            // Other fields are checked beside a cache that is not used.
            (
                r#"{"Type":"http","Settings":{"KeepAlive":{"Period":"4"},"TLS":{"SessionTicketsDisabled":true}}}"#,
                r#"{"Type":"http","Settings":{"KeepAlive":{"Period":"4s"},"TLS":{"SessionTicketsDisabled":true}}}"#,
            ),
            // `null` empties a structure behind a pointer, and no other.
            (
                r#"{"Type":"http","Settings":{"Timeouts":{"Read":"4"},"Timeouts":null}}"#,
                r#"{"Type":"http","Settings":{"Timeouts":{"Read":"4s"},"Timeouts":null}}"#,
            ),
            (
                r#"{"Type":"http","Settings":{"Timeouts":"x"}}"#,
                r#"{"Type":"http","Settings":{"Timeouts":null}}"#,
            ),
            (
                r#"{"Type":"http","Stats":{"LatencyBrackets":[{"Quantile":"x"}]}}"#,
                r#"{"Type":"http","Stats":{"LatencyBrackets":[{"Quantile":null}]}}"#,
            ),
            (
                r#"{"Type":"http","Settings":{"TLS":{"CipherSuites":[null]}}}"#,
                SMALLEST,
            ),
            ("http", SMALLEST),
            ("null", SMALLEST),
            ("", SMALLEST),
        ] {
            let (_, mended) = check(value.as_bytes()).expect_err(value);
            assert_eq!(mended, better, "{value}");
        }
    }

    #[test]
    fn fields_of_servers_are_checked_too() {
        for (value, field) in [
            (r#"{"URL":"http://a:1"}"#, None),
            (
                r#"{"URL":"http://a:1","Id":"x","Stats":{"Counters":{"Total":3}}}"#,
                None,
            ),
            (
                r#"{"URL":"http://a:1","Id":null,"Stats":null,"x":[1]}"#,
                None,
            ),
            (r#"{"URL":"http://a:1","Id":7}"#, Some("Id")),
            (r#"{"URL":"http://a:1","iD":7,"Id":"x"}"#, Some("Id")),
            (r#"{"URL":"http://a:1","Stats":"x"}"#, Some("Stats")),
            (r#"{"URL":"http://a:1","ſtats":[]}"#, Some("Stats")),
            (
                r#"{"URL":"http://a:1","Stats":{"Counters":{"Total":1.5}}}"#,
                Some("Stats"),
            ),
            (r#"{"uRl":["http://a:1"]}"#, Some("URL")),
        ] {
            assert_eq!(refused_server_field(value), field, "{value}");
        }
    }
}
