//! Stores: the contract of all stores, and the particulars of etcd v3, etcd v2 and files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use vulcanized::internals::model::{Expect, Guard, KeyValue, Op, Transaction};
use vulcanized::internals::net::deadline::Deadline;
use vulcanized::internals::net::tls::Tls;
use vulcanized::internals::store::endpoints::Options;
use vulcanized::internals::store::etcd2::Etcd2;
use vulcanized::internals::store::etcd3::Etcd3;
use vulcanized::internals::store::file::File;
use vulcanized::internals::store::{Applied, ApplyError, Store};

use crate::support::api::{kubectl, web};
use crate::support::etcd::{Etcd, ROOT, VERSIONS};
use crate::support::program::{Program, vulcanized};

fn deadline() -> Deadline {
    Deadline::start(Duration::from_mins(1), Duration::from_secs(10))
}

fn options(etcd: &Etcd) -> Options {
    Options {
        endpoints: vec![etcd.url()],
        tls: Tls::default(),
        user: None,
        dial_timeout: Duration::MAX,
    }
}

fn v3(etcd: &Etcd) -> Etcd3 {
    Etcd3::open(options(etcd), deadline()).expect("it opens")
}

fn v2(etcd: &Etcd) -> Etcd2 {
    Etcd2::open(options(etcd), deadline()).expect("it opens")
}

fn file(path: &Path) -> File {
    File::open(path, false, deadline()).expect("it opens")
}

fn key(name: &str) -> String {
    format!("{ROOT}{name}")
}

fn put(name: &str, value: &str) -> Op {
    Op::Put {
        key: key(name),
        value: value.to_owned(),
    }
}

fn delete(name: &str) -> Op {
    Op::Delete { key: key(name) }
}

fn guard(name: &str, expect: Expect) -> Guard {
    Guard {
        key: key(name),
        expect,
    }
}

fn entries(store: &mut dyn Store, prefix: &str) -> Vec<KeyValue> {
    let mut snapshot = store.list(&[prefix]).expect("it lists");
    snapshot.ranges.remove(0).expect("it may be read")
}

/// What is there, without the root, and without the empty directories of v2.
fn held(store: &mut dyn Store) -> BTreeMap<String, String> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let entries = entries(store, ROOT).into_iter();
    entries
        .map(|entry| (text(entry.key)[ROOT.len()..].to_owned(), text(entry.value)))
        .filter(|(key, _)| !key.ends_with('/'))
        .collect()
}

fn revision(store: &mut dyn Store, name: &str) -> u64 {
    revision_of(&entries(store, ROOT), name)
}

#[track_caller]
fn apply(store: &mut dyn Store, guards: Vec<Guard>, ops: Vec<Op>) -> Applied {
    store
        .apply(&Transaction {
            guards,
            ops,
            unchanged: Vec::new(),
        })
        .expect("it is answered")
}

/// Everything that the run relies on, in one go: starting etcd takes longer than all of it.
fn contract(store: &mut dyn Store) {
    assert!(store.writable().is_ok());
    assert_eq!(held(store), BTreeMap::new(), "nothing is an empty tree");

    let create = |store: &mut dyn Store, name: &str, value: &str| {
        apply(
            store,
            vec![guard(name, Expect::Absent)],
            vec![put(name, value)],
        )
    };
    assert_eq!(create(store, "web/backend", "{}"), Applied::Whole);
    assert_eq!(create(store, "web/servers/a", "1"), Applied::Whole);
    assert_eq!(create(store, "web/servers/a", "2"), Applied::Outdated);
    assert_eq!(held(store)["web/servers/a"], "1", "what is there stays");

    let old = revision(store, "web/servers/a");
    let update = |store: &mut dyn Store, revision: u64, value: &str| {
        let guards = vec![
            guard("web/servers/a", Expect::Revision(revision)),
            guard("web/backend", Expect::Present),
        ];
        apply(store, guards, vec![put("web/servers/a", value)])
    };
    assert_eq!(update(store, old, "3"), Applied::Whole);
    assert_eq!(update(store, old, "4"), Applied::Outdated, "it was seen");
    let new = revision(store, "web/servers/a");
    assert!(new > old);
    assert_eq!(held(store)["web/servers/a"], "3");

    let undefined = vec![
        guard("shop/servers/a", Expect::Absent),
        guard("shop/backend", Expect::Present),
    ];
    let ops = vec![put("shop/servers/a", "1")];
    assert_eq!(apply(store, undefined, ops), Applied::Outdated);
    assert_eq!(held(store).len(), 2);

    let remove = |store: &mut dyn Store, revision: u64| {
        let guards = vec![guard("web/servers/a", Expect::Revision(revision))];
        apply(store, guards, vec![delete("web/servers/a")])
    };
    assert_eq!(remove(store, old), Applied::Outdated);
    assert_eq!(held(store).len(), 2);
    assert_eq!(remove(store, new), Applied::Whole);
    assert_eq!(remove(store, new), Applied::Outdated);
    assert!(!held(store).contains_key("web/servers/a"));

    odd_names(store);
    several_prefixes(store);
    limits(store);
}

fn odd_names(store: &mut dyn Store) {
    let ids = [
        "10.0.0.1",
        "10.0.0.10:8080",
        "A-b_c.d",
        "[fd00::1]:80",
        "[fd00::1]:8080",
        "x.svc",
    ];
    let values = [
        r#"{"URL":"http://10.0.0.1:80","Scope":"c1 app=web,tier!=x"}"#,
        "a=b&c=d+e%20;f",
        "ü → \u{1b}[31m\n\ttab\r\"quoted\" \\ ",
        " blank ",
        "",
        "null",
    ];
    for (id, value) in ids.iter().zip(values) {
        let name = format!("web-2/servers/{id}");
        let guards = vec![guard(&name, Expect::Absent)];
        assert_eq!(
            apply(store, guards, vec![put(&name, value)]),
            Applied::Whole
        );
    }
    let found = entries(store, &key("web-2/servers/"));
    let keys = found.iter().map(|entry| entry.key.clone());
    let wanted = ids.map(|id| key(&format!("web-2/servers/{id}")).into_bytes());
    assert_eq!(keys.collect::<Vec<_>>(), wanted, "in key order");
    let held = found.iter().map(|entry| entry.value.clone());
    assert_eq!(
        held.collect::<Vec<_>>(),
        values.map(|value| value.as_bytes().to_vec())
    );
    // `web` is not `web-2`.
    assert!(
        entries(store, &key("web/"))
            .iter()
            .all(|entry| entry.key.starts_with(key("web/").as_bytes()))
    );
    // A delete takes one key, not those that begin with it.
    for (at, id) in ids.iter().enumerate() {
        let name = format!("web-2/servers/{id}");
        let guards = vec![guard(&name, Expect::Revision(revision_of(&found, &name)))];
        assert_eq!(apply(store, guards, vec![delete(&name)]), Applied::Whole);
        let mut left = entries(store, &key("web-2/servers/"));
        // The directory of v2 remains.
        left.retain(|entry| !entry.key.ends_with(b"/"));
        assert_eq!(left, found[at + 1..]);
    }
}

fn revision_of(entries: &[KeyValue], name: &str) -> u64 {
    let found = entries
        .iter()
        .find(|entry| entry.key == key(name).as_bytes());
    found.expect("it is there").revision
}

fn several_prefixes(store: &mut dyn Store) {
    let prefixes = [key("web/"), key("none/"), key("web/")];
    let prefixes = prefixes.each_ref().map(String::as_str);
    let snapshot = store.list(&prefixes).expect("it lists");
    let counts = snapshot.ranges.iter().map(|range| {
        let range = range.as_ref().expect("it may be read");
        if let Some(at) = snapshot.revision {
            assert!(range.iter().all(|entry| entry.revision <= at));
        }
        let keys = range.iter().filter(|entry| !entry.key.ends_with(b"/"));
        keys.count()
    });
    assert_eq!(counts.collect::<Vec<_>>(), [1, 0, 1]);
}

fn limits(store: &mut dyn Store) {
    let limits = store.limits();
    let count = limits.operations.min(300);
    let names = (0..count).map(|n| format!("web/servers/{n:03}"));
    let mut guards = (names.clone())
        .map(|name| guard(&name, Expect::Absent))
        .collect::<Vec<_>>();
    if limits.guards > count {
        guards.push(guard("web/backend", Expect::Present));
    }
    let value = "v".repeat((limits.bytes / count / 2).min(4_000));
    let ops = names.map(|name| put(&name, &value)).collect::<Vec<_>>();
    assert_eq!(apply(store, guards.clone(), ops.clone()), Applied::Whole);
    assert_eq!(held(store).len(), count + 1);
    // One guard that does not hold, and nothing of it is done.
    assert_eq!(
        apply(store, guards, vec![ops[0].clone()]),
        Applied::Outdated
    );
    assert_eq!(held(store).len(), count + 1);
    if limits.operations > 1 {
        let guards = ["new", "backend"].map(|name| guard(&format!("web/{name}"), Expect::Absent));
        let ops = vec![put("web/new", "1"), delete("web/servers/000")];
        assert_eq!(apply(store, guards.into(), ops), Applied::Outdated);
        assert_eq!(held(store).len(), count + 1);
    }
}

#[test]
fn contract_etcd3() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        etcd.put("/vulcand/backendsX/a", "a neighbour");
        contract(&mut v3(&etcd));
    }
}

#[test]
fn contract_etcd2() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        contract(&mut v2(&etcd));
    }
}

#[test]
fn contract_file() {
    let folder = tempfile::tempdir().expect("a folder");
    contract(&mut file(&folder.path().join("store.json")));
}

#[test]
fn etcd3_reads_all_pages_at_one_revision() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        // 12 MB: an answer may have 4 MiB.
        let value = "x".repeat(40_000);
        let pairs = (0..300).map(|n| (key(&format!("b/servers/{n:03}")), &value));
        for pair in pairs.collect::<Vec<_>>().chunks(20) {
            etcd.put_all(pair);
        }
        let mut store = v3(&etcd);
        let snapshot = store.list(&[ROOT, "vulcand/backends/"]).expect("it lists");
        let found = snapshot.ranges[0].as_ref().expect("it may be read");
        assert_eq!(found.len(), 300);
        assert!(found.iter().all(|entry| entry.value.len() == value.len()));
        assert!(found.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(snapshot.revision, Some(etcd.revision()));
    }
}

#[test]
fn etcd3_continues_after_a_compaction_and_a_restart() {
    let mut etcd = Etcd::start();
    let mut store = v3(&etcd);
    etcd.put(&key("a/backend"), "{}");
    assert_eq!(held(&mut store).len(), 1);
    etcd.put(&key("b/backend"), "{}");
    etcd.compact();
    assert_eq!(held(&mut store).len(), 2);
    etcd.kill();
    let error = store.list(&[ROOT]).expect_err("nobody is there");
    assert!(error.to_string().contains("refused"), "{error:#}");
    etcd.restart();
    assert_eq!(held(&mut store).len(), 2);
    // The connection is dead, and a write over it was never sent: it is safe to send it again.
    etcd.kill();
    etcd.restart();
    let guards = vec![guard("b/backend", Expect::Present)];
    let ops = vec![put("b/servers/a", "1")];
    assert_eq!(apply(&mut store, guards, ops), Applied::Whole);
    assert_eq!(etcd.keys(ROOT), ["a/backend", "b/backend", "b/servers/a"]);
}

#[test]
fn etcd3_refuses_a_transaction_that_is_too_large() {
    let etcd = Etcd::start();
    let mut store = v3(&etcd);
    let ops = (0..129).map(|n| put(&format!("a/{n}"), "")).collect();
    let transaction = Transaction {
        unchanged: Vec::new(),
        guards: Vec::new(),
        ops,
    };
    let refused = store.apply(&transaction);
    assert!(
        matches!(&refused, Err(ApplyError::Refused(error)) if format!("{error:#}").contains("too many operations")),
        "{refused:?}"
    );
    assert_eq!(etcd.keys(ROOT).len(), 0);
}

#[test]
fn etcd2_lists_both_spellings_of_the_prefix_and_empty_directories() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        etcd.put_v2("/vulcand/backends/web/backend", Some("{}"));
        etcd.put_v2("/vulcand/backends/web/servers", None);
        etcd.put_v2("/vulcand/backends/bare", None);
        etcd.put_v2("/vulcand/backends/_hidden/backend", Some("{}"));
        let mut store = v2(&etcd);
        for prefix in ["/vulcand/backends/", "vulcand/backends/"] {
            let found = entries(&mut store, prefix);
            let keys = found
                .iter()
                .map(|entry| String::from_utf8_lossy(&entry.key).into_owned());
            let wanted = ["bare/", "web/backend", "web/servers/"];
            assert_eq!(
                keys.collect::<Vec<_>>(),
                wanted.map(|key| format!("{prefix}{key}"))
            );
        }
        let snapshot = store.list(&["/none/"]).expect("it lists");
        assert_eq!(snapshot.revision, Some(etcd.index_v2()));
        // A directory in the place of a key is not a success.
        let transaction = Transaction {
            unchanged: Vec::new(),
            guards: Vec::new(),
            ops: vec![put("web/servers", "x")],
        };
        let answer = store.apply(&transaction);
        assert!(
            matches!(answer, Err(ApplyError::Directory(_))),
            "{answer:?}"
        );
    }
}

#[test]
fn file_is_written_only_for_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    let mut store = file(&path);
    assert_eq!(held(&mut store), BTreeMap::new());
    assert!(!path.exists(), "a listing creates nothing");
    let guards = vec![guard("b", Expect::Absent)];
    apply(&mut store, guards, vec![put("b", "1"), put("a", "2")]);
    let text = "{\n  \"/vulcand/backends/a\": \"2\",\n  \"/vulcand/backends/b\": \"1\"\n}\n";
    assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("its mode");
    let inode = fs::metadata(&path).expect("it is there").ino();
    apply(&mut store, Vec::new(), vec![put("b", "1")]);
    assert_eq!(fs::metadata(&path).expect("it is there").ino(), inode);
    apply(&mut store, Vec::new(), vec![delete("a")]);
    let metadata = fs::metadata(&path).expect("it is there");
    assert_ne!(metadata.ino(), inode, "replaced, not overwritten");
    assert_eq!(metadata.mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn file_is_locked_from_list_to_drop() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    let mut first = file(&path);
    held(&mut first);
    apply(&mut first, Vec::new(), vec![put("a", "1")]);
    // Nothing but this time-out ends the wait for the lock.
    let soon = Deadline::start(Duration::from_millis(200), Duration::from_secs(10));
    let mut second = File::open(&path, false, soon).expect("it opens");
    let error = format!("{:#}", second.list(&[ROOT]).expect_err("it is locked"));
    let wanted = format!("another run holds its lock: `{}`", path.display());
    assert!(error.contains(&wanted), "{error}");
    assert!(error.contains("--timeout"), "{error}");
    // A dry run does not wait for the lock.
    let mut dry = File::open(&path, true, deadline()).expect("it opens");
    assert_eq!(held(&mut dry).len(), 1);
    // The waiting run sees what the first one wrote.
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || held(&mut file(&path))
    });
    apply(&mut first, Vec::new(), vec![put("b", "2")]);
    drop(first);
    assert_eq!(waiting.join().expect("it lists").len(), 2);
}

#[test]
fn file_behind_a_symlink_is_locked_at_its_target() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [path, link] = folders
        .each_ref()
        .map(|folder| folder.path().join("store.json"));
    fs::write(&path, "{}").expect("it is written");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let mut first = file(&link);
    assert_eq!(held(&mut first), BTreeMap::new());
    let soon = Deadline::start(Duration::from_millis(200), Duration::from_secs(10));
    let mut second = File::open(&path, false, soon).expect("it opens");
    second.list(&[ROOT]).expect_err("it is locked");
    apply(&mut first, Vec::new(), vec![put("a", "1")]);
    drop(first);
    assert!(link.is_symlink());
    assert_eq!(held(&mut file(&path)).len(), 1);
}

#[test]
fn file_that_is_read_only_is_not_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    fs::write(&path, "{\"a\": \"1\"}").expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("its mode");
    let mut store = file(&path);
    held(&mut store);
    let transaction = Transaction {
        unchanged: Vec::new(),
        guards: Vec::new(),
        ops: vec![put("a", "2")],
    };
    match store.apply(&transaction) {
        Err(ApplyError::Refused(error)) => {
            let error = format!("{error:#}");
            assert!(error.contains("read-only"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(
        fs::read_to_string(&path).expect("it is there"),
        "{\"a\": \"1\"}"
    );
    assert!(File::open(&folder.path().join("none/x.json"), false, deadline()).is_err());
}

#[test]
fn file_that_is_not_a_store_is_named_in_the_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    for (text, why) in [
        ("", "EOF"),
        ("[]", "a JSON object of keys and values"),
        (r#"{"a": 1}"#, "the value of key `a` is not a string"),
        (
            r#"{"count": 1}"#,
            "the value of key `count` is not a string",
        ),
        (r#"{"a": "1", "a": "2"}"#, "duplicate key `a`"),
        (r#"{"a": "1"} x"#, "trailing characters"),
        (r#"{"a": "1""#, "EOF"),
        (
            r#"{"header": {"revision": 3}, "a": "b"}"#,
            "unknown field `a`",
        ),
        (r#"{"header": {"revision": 3}, "more": true}"#, "incomplete"),
        (
            r#"{"header": {"revision": 3}, "kvs": [{"key": "?", "mod_revision": 1}]}"#,
            "not a dump",
        ),
    ] {
        fs::write(&path, text).expect("it is written");
        let error = file(&path).list(&[ROOT]).expect_err(text);
        let error = format!("{error:#}");
        assert!(error.contains(why), "{text}: {error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn file_may_be_a_dump_for_a_dry_run() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dump.json");
        for count in [0, 2] {
            if count > 0 {
                etcd.put(&key("web/backend"), "{}");
                etcd.put(&key("web/servers/a"), "ü");
            }
            let dump = etcd.ctl(&["get", "--prefix", "/vulcand", "-w", "json"]);
            fs::write(&path, dump).expect("it is written");
            let mut store = File::open(&path, true, deadline()).expect("it opens");
            let snapshot = store.list(&[ROOT]).expect("it lists");
            assert_eq!(snapshot.revision, Some(etcd.revision()));
            let mut etcd = v3(&etcd);
            assert_eq!(snapshot, etcd.list(&[ROOT]).expect("it lists"));
            assert!(store.writable().is_ok(), "it was opened to look at");
            let error = file(&path)
                .writable()
                .expect_err("it is a dump")
                .to_string();
            assert!(
                error.contains("dump") && error.contains("--dry-run"),
                "{error}"
            );
        }
    }
}

/// The program on a store file, with one pod on stdin.
fn program(path: &Path, more: &str) -> Program {
    vulcanized(&format!("--owner prod --pods - {more}"))
        .arg("--store-file")
        .arg(path)
        .input(kubectl([web(1)]))
}

#[test]
fn file_that_is_not_a_store_is_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    for text in ["", "[]", r#"{"a": "1", "a": "2"}"#] {
        fs::write(&path, text).expect("it is written");
        let answer = program(&path, "").exits(1);
        assert!(answer.err.contains("store.json"), "{text}: {answer}");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
    }
    let answer = program(Path::new("/nonexistent/store.json"), "").exits(1);
    let wanted = "the folder `/nonexistent`";
    assert!(answer.err.contains(wanted), "{answer}");
}

#[test]
fn file_that_is_read_only_allows_dry_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.json");
    let before = r#"{"/vulcand/backends/web/backend": "{\"Type\":\"http\"}"}"#;
    fs::write(&path, before).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("its mode");
    let answer = program(&path, "").exits(1);
    assert!(answer.err.contains("it is read-only"), "{answer}");
    program(&path, "--dry-run").exits(0);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), before);
}

#[test]
fn dumps_of_etcd_are_read_only() {
    let etcd = Etcd::start();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dump.json");
    for (defined, code) in [(false, 1), (true, 0)] {
        if defined {
            etcd.define("web");
        }
        let dump = etcd.ctl(&["get", "--prefix", "/vulcand/", "-w", "json"]);
        fs::write(&path, &dump).expect("it is written");
        let answer = program(&path, "--dry-run").exits(code);
        let created = format!("+++ {ROOT}web/servers/10.0.0.1");
        assert_eq!(answer.out.contains(&created), defined, "{answer}");
        let answer = program(&path, "").exits(1);
        assert!(answer.err.contains("is a dump of etcd"), "{answer}");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), dump);
    }
}
