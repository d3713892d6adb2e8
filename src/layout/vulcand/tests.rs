//! Keys and values of vulcand, and what of them hurts it.

use proptest::prelude::*;

use super::*;
use crate::layout::entry;
use crate::model::{Denied, PodName};

/// The layout without a given prefix; `one_spelling`: on etcd v2.
fn vulcand(one_spelling: bool) -> Vulcand {
    Vulcand {
        prefix: None,
        one_spelling,
    }
}

fn read(value: &[u8]) -> Value {
    Values::default().read(value)
}

fn observe(
    prefix: Option<&str>,
    ranges: [Vec<model::KeyValue>; 2],
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
    assert_eq!(fault(r#"{"URL":""}"#), Some(Fault::NoUrl));
    assert_eq!(fault(r#"{"URL":"localhost:80"}"#), Some(Fault::NoHost));
    assert_eq!(fault(r#"{"URL":"http://"}"#), Some(Fault::NoHost));
    for refused in ["10.0.0.1:80", "rubbish", "http://a:x", "http://a b"] {
        let value = format!(r#"{{"URL":"{refused}"}}"#);
        assert_eq!(fault(&value), Some(Fault::Refused("URL")), "{refused}");
    }
    for unreachable in ["ftp://a:1", "h2c://a:1", "http://a:0"] {
        let value = format!(r#"{{"URL":"{unreachable}"}}"#);
        assert_eq!(fault(&value), Some(Fault::Unreachable), "{unreachable}");
    }
    assert_eq!(fault(r#"{"URL":7}"#), Some(Fault::Refused("URL")));
    assert_eq!(
        fault(r#"{"URL":"http://a:1","iD":7}"#),
        Some(Fault::Refused("Id"))
    );
    assert_eq!(
        fault(r#"{"URL":"http://a:1","ſtats":[]}"#),
        Some(Fault::Refused("Stats"))
    );
    assert_eq!(fault(r#"{"URL":"http://a:1","Id":"x","Stats":null}"#), None);
    assert_eq!(read(b"{\"URL\":\"http://a:1\",\"x\":\"\xff\"}").fault, None);
    assert_eq!(fault("[]"), Some(Fault::Malformed));
    assert_eq!(fault(r#"{"URL":"http://a:1"} x"#), Some(Fault::Malformed));
}

#[test]
fn a_written_mark_is_read_back() {
    let url = ServerUrl::parse("http://10.0.0.1:80").expect("a URL");
    let mark = Mark {
        author: Author::shared("prod", "c1 app=web"),
        namespace: "shop".into(),
        pod: Some("web-1".into()),
    };
    let value = write(&url, &mark);
    let expected =
        r#"{"URL":"http://10.0.0.1:80","Owner":"prod","Scope":"c1 app=web","Pod":"shop/web-1"}"#;
    assert_eq!(value, expected);
    assert!(
        ServerFields::plain(value.as_bytes()).is_some(),
        "the short way"
    );
    let read = read(value.as_bytes());
    assert_eq!(
        (read.url, read.mark, read.fault),
        (Some(url), Some(mark), None)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_short_way_agrees_with_the_json_parser(
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
        if let Some(fields) = ServerFields::plain(&value) {
            prop_assert_eq!(Some(fields), serde_json::from_slice(&value).ok());
        }
    }
}

#[test]
fn marks_in_values() {
    let mark = |value: &str| read(value.as_bytes()).mark;
    assert_eq!(mark(r#"{"URL":"http://a:1","owner":"prod"}"#), None);
    assert_eq!(
        mark(r#"{"URL":"http://a:1","Owner":7,"Scope":{"a":1}}"#),
        None
    );
    let half = mark(r#"{"URL":"http://a:1","Owner":"prod","Pod":"web"}"#).expect("a mark");
    assert_eq!(
        (&*half.author.owner, &*half.author.scope, &*half.namespace),
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
    assert_eq!((&*chosen.prefix, chosen.revision), ("vulcand", Some(1)));
    assert_eq!(
        chosen.siblings,
        [Sibling {
            prefix: "/vulcand".to_owned(),
            backends: 1,
            kind: SiblingKind::Spelling
        }]
    );
}

#[test]
fn only_the_prefix_of_the_run_must_be_readable() {
    let backend = |prefix: &str| entry(&format!("{prefix}/backends/a/backend"), "{}");
    let answer = |ranges: Vec<Result<Vec<model::KeyValue>, Denied>>| {
        let layout = vulcand(false);
        let revision = Some(1);
        let observed = layout.observe(Snapshot { revision, ranges });
        observed.map(|observed| (observed.prefix, observed.siblings.len()))
    };
    let denied = || Err(Denied("no permission".to_owned()));
    let there = || Ok(vec![backend("/vulcand")]);
    let slash = || "/vulcand".to_owned();
    assert_eq!(answer(vec![there(), denied(), denied()]), Ok((slash(), 0)));
    assert!(answer(vec![denied(), Ok(vec![]), Ok(vec![])]).is_err());
    let bare = Ok(vec![backend("vulcand")]);
    let found = answer(vec![denied(), bare, Ok(vec![])]);
    assert_eq!(found, Ok(("vulcand".to_owned(), 0)));
    // A predecessor's backends are counted, and never chosen.
    let old = || Ok(vec![backend("/vulcan")]);
    assert_eq!(
        answer(vec![Ok(vec![]), Ok(vec![]), old()]),
        Ok((slash(), 1))
    );
    assert_eq!(answer(vec![there(), Ok(vec![]), old()]), Ok((slash(), 1)));
}

#[test]
fn ids_that_begin_alike_on_etcd_v3() {
    for (shorter, longer, bleeds) in [
        ("web", "web2", true),
        ("web", "web", false),
        ("web2", "web", false),
        ("api", "web2", false),
    ] {
        assert_eq!(
            vulcand(false).bleeds(shorter, longer),
            bleeds,
            "{shorter} {longer}"
        );
        assert!(!vulcand(true).bleeds(shorter, longer));
    }
}

#[test]
fn a_key_in_place_of_a_directory_of_etcd_v2() {
    let stray = |one_spelling: bool, key: &str| {
        let layout = vulcand(one_spelling);
        layout.read("/vulcand", vec![entry(key, "")]).stray
    };
    let key = "/vulcand/backends/web";
    assert_eq!(stray(true, key), [(key.to_owned(), Fault::NotADirectory)]);
    assert_eq!(stray(false, key), []);
    assert_eq!(stray(true, "/vulcand/backends/"), []);
}

#[test]
fn keys_beside_servers_and_definitions() {
    let read = |one_spelling: bool, key: &str| {
        let layout = vulcand(one_spelling);
        let key = format!("/vulcand/backends/{key}");
        let mut tree = layout.read("/vulcand", vec![entry(&key, "x")]);
        tree.stray
            .retain(|(_, fault)| !matches!(fault, Fault::BareDirectory(_)));
        let strays = tree.stray.iter().map(|(_, fault)| *fault);
        let definition = tree
            .backends
            .pop_first()
            .map(|(_, backend)| backend.definition);
        (strays.collect::<Vec<_>>(), definition)
    };
    let absent = || Some(Definition::Absent);
    assert_eq!(
        read(true, "a/servers"),
        (vec![Fault::NotADirectory], absent())
    );
    assert_eq!(read(false, "a/servers"), (vec![], None));
    assert_eq!(read(true, "a/zone"), (vec![], absent()));
    assert_eq!(read(false, "a/zone"), (vec![], None));
    let directory = |key: &str, empty: bool| match read(true, key) {
        (strays, Some(Definition::Broken { key, refusal, .. })) => {
            assert_eq!((strays, refusal), (vec![], Refusal::Directory { empty }));
            assert_eq!(key, "/vulcand/backends/a/backend");
        }
        other => panic!("{key}: {other:?}"),
    };
    directory("a/backend/", true);
    directory("a/backend/x", false);
    assert_eq!(read(false, "a/backend/x"), (vec![], None));
    assert_eq!(read(true, "a/servers/1/x").0, [Fault::Directory(false)]);
    let layout = vulcand(true);
    let strays = |keys: &[&str]| {
        let keys = keys.iter().map(|key| format!("/vulcand/backends/{key}"));
        let entries = keys.map(|key| entry(&key, "{}")).collect();
        layout.read("/vulcand", entries).stray
    };
    // One fault for each directory, however many keys are below it.
    let directories = [
        "a/backend",
        "a/servers/1/x/y",
        "a/servers/1/z",
        "a/servers/2/x",
    ];
    let wanted = ["1", "2"].map(|id| {
        let key = format!("/vulcand/backends/a/servers/{id}");
        (key, Fault::Directory(false))
    });
    assert_eq!(strays(&directories), wanted);
    // A definition or a server is enough for a directory not to be bare.
    assert_eq!(strays(&["a/backend", "a/zone"]), []);
    assert_eq!(strays(&["a/servers/1", "a/zone"]), []);
    assert_eq!(read(true, "a/servers/1/").0, [Fault::Directory(true)]);
    assert_eq!(read(false, "a/servers/1/x").0, [Fault::SlashInId]);
}

#[test]
fn keys_are_parsed() {
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
    let stray = [(
        "/vulcand/backends/a/servers/1/x".to_owned(),
        Fault::SlashInId,
    )];
    assert_eq!(observed.stray, stray);
}

#[test]
fn bare_directories_of_etcd_v2_and_their_contents() {
    let keys = [
        "a/",
        "b/servers/",
        "c/other",
        "d/other/",
        "d/servers/",
        "e/servers/",
        "e/zone",
        "f/servers",
        "g/servers/1/",
    ];
    let keys = keys.map(|key| entry(&format!("/vulcand/backends/{key}"), "x"));
    let of = |one_spelling| {
        let vulcand = vulcand(one_spelling);
        let found = vulcand.read("/vulcand", keys.to_vec()).stray.into_iter();
        found
            .filter_map(|(key, fault)| match fault {
                Fault::BareDirectory(contents) => {
                    Some((key["/vulcand/backends/".len()..].to_owned(), contents))
                }
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let wanted = [
        ("a", Contents::Nothing),
        ("b", Contents::EmptyServers),
        ("c", Contents::Other),
        ("d", Contents::Other),
        ("e", Contents::Other),
        ("f", Contents::Other),
        ("g", Contents::Other),
    ];
    assert_eq!(of(true), wanted.map(|(key, what)| (key.to_owned(), what)));
    assert_eq!(of(false), [], "etcd v3 has no directories");
}

#[test]
fn the_ranges_that_are_listed() {
    for (prefix, one_spelling, wanted) in [
        (None, false, &["/vulcand/", "vulcand/", "/vulcan/"][..]),
        (None, true, &["/vulcand/", "/vulcan/"]),
        (Some("/lb"), false, &["/lb/", "lb/", "/vulcan/"]),
        (Some("lb"), false, &["lb/", "/lb/", "/vulcan/"]),
        (Some("/vulcan"), false, &["/vulcan/", "vulcan/"]),
        (Some("vulcan"), false, &["vulcan/", "/vulcan/"]),
        (Some("/vulcan"), true, &["/vulcan/"]),
        (Some("vulcan"), true, &["vulcan/"]),
    ] {
        let layout = Vulcand {
            prefix: prefix.map(str::to_owned),
            one_spelling,
        };
        let wanted = wanted.iter().map(|prefix| format!("{prefix}backends/"));
        let case = format!("{prefix:?}, one spelling: {one_spelling}");
        assert_eq!(layout.ranges(), wanted.collect::<Vec<_>>(), "{case}");
    }
}

#[test]
fn keys_and_values_of_a_backend() {
    let layout = vulcand(false);
    assert_eq!(layout.range("/lb", "web"), "/lb/backends/web/");
    assert_eq!(layout.key("/lb", "web", "a"), "/lb/backends/web/servers/a");
    assert_eq!(
        layout.definition("/lb", "web"),
        [(
            "/lb/backends/web/backend".to_owned(),
            r#"{"Type":"http"}"#.to_owned()
        )]
    );
    assert_eq!(layout.created("/lb", "web"), None);
    assert!(!layout.has_weights());
    assert_eq!(layout.weight_key("/lb", "web", "a"), None);
    assert_eq!(layout.moved_key("/lb", "web", "a", "x/weight"), None);
    let pod = PodName::parse("shop/web-1").expect("a pod's name");
    let mark = layout.mark(Author::shared("prod", "c1"), &pod);
    assert_eq!(layout.id("a", &mark), "a");
    assert_eq!(mark.pod.as_deref(), Some("web-1"));
}
