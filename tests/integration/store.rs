//! Stores: the contract that all of them keep, and files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use vulcanized::internals::model::{Expect, Guard, Op, Transaction};
use vulcanized::internals::net::deadline::Deadline;
use vulcanized::internals::net::tls::Tls;
use vulcanized::internals::store::endpoints::Options;
use vulcanized::internals::store::etcd2::Etcd2;
use vulcanized::internals::store::etcd3::Etcd3;
use vulcanized::internals::store::file::File;
use vulcanized::internals::store::{Applied, Store};

use crate::support::api::{kubectl, pod};
use crate::support::etcd::{Etcd, Version};
use crate::support::program::{Program, vulcanized};

pub(super) const ROOT: &str = "/vulcand/backends/";

fn deadline() -> Deadline {
    Deadline::start(Duration::from_mins(1), Duration::from_mins(1))
}

fn options(url: &str) -> Options {
    Options {
        endpoints: vec![url.to_owned()],
        tls: Tls::default(),
        user: None,
        dial_timeout: Duration::MAX,
    }
}

fn guard(key: &str, expect: Expect) -> Guard {
    Guard {
        key: format!("{ROOT}{key}"),
        expect,
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: format!("{ROOT}{key}"),
        value: value.to_owned(),
    }
}

fn delete(key: &str) -> Op {
    Op::Delete {
        key: format!("{ROOT}{key}"),
    }
}

/// Keys below the root, values and revisions.
fn entries(store: &mut dyn Store) -> Vec<(String, String, u64)> {
    let snapshot = store.list(&[ROOT]).expect("a listing");
    let [Ok(entries)] = snapshot.ranges.as_slice() else {
        panic!("{snapshot:?}")
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let entries = entries.iter().map(|entry| {
        (
            text(&entry.key)[ROOT.len()..].to_owned(),
            text(&entry.value),
            entry.revision,
        )
    });
    entries.collect()
}

fn apply(store: &mut dyn Store, guards: Vec<Guard>, ops: Vec<Op>) -> Applied {
    store
        .apply(&Transaction {
            guards,
            ops,
            unchanged: Vec::new(),
        })
        .expect("an answer")
}

/// What every store does alike.
fn contract(store: &mut dyn Store) {
    let absent = |key: &str| guard(key, Expect::Absent);
    assert_eq!(entries(store), [], "a range that does not exist is empty");
    // A key is created once.
    let value = "{\"URL\":\"http://10.0.0.1:80\",\"é\":\"+&=%20 ;\"}";
    assert_eq!(
        apply(
            store,
            vec![absent("a/backend")],
            vec![put("a/backend", value)]
        ),
        Applied::Whole
    );
    assert_eq!(
        apply(
            store,
            vec![absent("a/backend")],
            vec![put("a/backend", "x")]
        ),
        Applied::Outdated
    );
    let first = entries(store);
    assert_eq!(
        (first[0].0.as_str(), first[0].1.as_str()),
        ("a/backend", value)
    );
    // A guard can require that a key exists.
    let defined = |key: &str| guard(key, Expect::Present);
    let server = "a/servers/[fd00::1]:80";
    let create = |store: &mut dyn Store, backend: &str| {
        apply(
            store,
            vec![absent(server), defined(backend)],
            vec![put(server, "1")],
        )
    };
    assert_eq!(create(store, "b/backend"), Applied::Outdated);
    assert_eq!(entries(store), first);
    assert_eq!(create(store, "a/backend"), Applied::Whole);
    // A change needs the revision that was read.
    let (_, _, revision) = entries(store)[1].clone();
    let update = |store: &mut dyn Store, revision, value| {
        apply(
            store,
            vec![guard(server, Expect::Revision(revision))],
            vec![put(server, value)],
        )
    };
    assert_eq!(update(store, revision, "2"), Applied::Whole);
    assert_eq!(update(store, revision, "3"), Applied::Outdated);
    let (_, value, newer) = entries(store)[1].clone();
    assert_eq!(value, "2");
    assert!(newer > revision);
    // A delete takes one key, and only as it was read.
    let longer = "a/servers/[fd00::1]:8080";
    apply(store, vec![absent(longer)], vec![put(longer, "long")]);
    let remove = |store: &mut dyn Store, revision| {
        apply(
            store,
            vec![guard(server, Expect::Revision(revision))],
            vec![delete(server)],
        )
    };
    assert_eq!(remove(store, revision), Applied::Outdated);
    assert_eq!(remove(store, newer), Applied::Whole);
    assert_eq!(remove(store, newer), Applied::Outdated, "it is gone");
    let keys = entries(store)
        .into_iter()
        .map(|(key, ..)| key)
        .collect::<Vec<_>>();
    assert_eq!(keys, ["a/backend", longer]);
    // Many at once, where the store takes many: all or nothing.
    if store.limits().operations > 1 {
        let ops = || vec![put("c/1", "1"), put("c/2", "2"), delete(longer)];
        let both = apply(store, vec![absent("c/1"), absent("a/backend")], ops());
        assert_eq!(both, Applied::Outdated);
        assert_eq!(entries(store).len(), 2);
        assert_eq!(
            apply(store, vec![absent("c/1"), absent("c/2")], ops()),
            Applied::Whole
        );
        let keys = entries(store)
            .into_iter()
            .map(|(key, ..)| key)
            .collect::<Vec<_>>();
        assert_eq!(keys, ["a/backend", "c/1", "c/2"]);
    }
}

#[test]
fn the_contract_on_etcd_v3() {
    for version in [Version::V34, Version::V35] {
        let etcd = Etcd::version(version);
        etcd.put("/vulcand/backendsX/a", "a neighbour");
        contract(&mut Etcd3::open(options(&etcd.url()), deadline()).expect("options"));
    }
}

#[test]
fn the_contract_on_etcd_v2() {
    for version in [Version::V34, Version::V35] {
        let etcd = Etcd::version(version);
        contract(&mut Etcd2::open(options(&etcd.url()), deadline()).expect("options"));
    }
}

#[test]
fn the_contract_on_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.json");
    contract(&mut File::open(&path, false, deadline()).expect("a folder"));
    let names = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        });
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["store.json"],
        "nothing else is left"
    );
}

#[test]
fn a_file_is_locked_from_list_to_rename() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.json");
    let mut first = File::open(&path, false, deadline()).expect("a folder");
    first.list(&[ROOT]).expect("a listing");
    let short = Deadline::start(Duration::from_millis(200), Duration::from_secs(1));
    let mut second = File::open(&path, false, short).expect("a folder");
    let error = second.list(&[ROOT]).expect_err("it is locked");
    assert!(
        format!("{error:#}").contains("another run holds its lock"),
        "{error:#}"
    );
    let mut reader = File::open(&path, true, deadline()).expect("a folder");
    reader.list(&[ROOT]).expect("a dry run waits for nobody");
    drop(first);
    let mut third = File::open(&path, false, deadline()).expect("a folder");
    third.list(&[ROOT]).expect("it is free again");
    assert!(!path.exists(), "nothing was written");
}

#[test]
fn a_link_is_locked_where_it_points() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [file, link] = folders
        .each_ref()
        .map(|folder| folder.path().join("store.json"));
    std::fs::write(&file, "{}").expect("it is written");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let mut first = File::open(&link, false, deadline()).expect("a folder");
    first.list(&[ROOT]).expect("a listing");
    let short = Deadline::start(Duration::from_millis(200), Duration::from_secs(1));
    let mut second = File::open(&file, false, short).expect("a folder");
    second
        .list(&[ROOT])
        .expect_err("it is locked through the link");
    let written = apply(
        &mut first,
        vec![guard("a/backend", Expect::Absent)],
        vec![put("a/backend", "1")],
    );
    assert_eq!(written, Applied::Whole);
    assert!(
        std::fs::read_to_string(&file)
            .expect("it is there")
            .contains("a/backend")
    );
    assert!(link.is_symlink(), "a link stays a link");
}

#[test]
fn files_that_are_no_store() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.json");
    for bad in [
        "",
        "[]",
        "{\"a\":1}",
        "{\"a\":\"1\",\"a\":\"2\"}",
        "{} x",
        "{\"a\":\"1\"",
    ] {
        std::fs::write(&path, bad).expect("it is written");
        let answer = program(&path, "").exits(1);
        assert!(answer.err.contains("store.json"), "{bad}: {answer}");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), bad);
    }
    let nowhere = vulcanized("--owner prod --store-file /nonexistent/store.json --pods -").exits(1);
    assert!(
        nowhere.err.contains("the folder `/nonexistent`"),
        "{nowhere}"
    );
}

/// The program on a store file, with one pod on stdin.
fn program(path: &Path, more: &str) -> Program {
    vulcanized(&format!("--owner prod --pods - {more}"))
        .arg("--store-file")
        .arg(path)
        .input(kubectl([pod("default", "web-1", "web", "10.0.0.1")]))
}

#[test]
fn dumps_of_etcd_are_looked_at_and_never_changed() {
    let etcd = Etcd::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("dump.json");
    for (defined, code) in [(false, 1), (true, 0)] {
        if defined {
            etcd.define("web");
        }
        let dump = etcd.ctl(&["get", "--prefix", "/vulcand/", "-w", "json"]);
        std::fs::write(&path, &dump).expect("it is written");
        let answer = program(&path, "--dry-run").exits(code);
        if defined {
            assert!(
                answer
                    .out
                    .contains("+++ /vulcand/backends/web/servers/10.0.0.1"),
                "{answer}"
            );
        }
        let answer = program(&path, "").exits(1);
        assert!(answer.err.contains("is a dump of etcd"), "{answer}");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), dump);
    }
}

/// A `--pods` file with these pods.
pub(super) struct Pods {
    file: tempfile::NamedTempFile,
}

impl Pods {
    pub(super) fn new(pods: impl IntoIterator<Item = Value>) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), kubectl(pods)).expect("it is written");
        Self { file }
    }

    /// The program with these pods on this etcd.
    pub(super) fn on(&self, url: &str, more: &str) -> Program {
        vulcanized(&format!("--owner prod --etcd {url} {more}"))
            .arg("--pods")
            .arg(self.file.path())
    }
}

pub(super) fn web(n: u32) -> Value {
    pod(
        "default",
        &format!("web-{n}"),
        "web",
        &format!("10.0.{}.{}", n / 250, n % 250),
    )
}

#[test]
fn a_store_file_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.json");
    let before = r#"{"/vulcand/backends/web/backend":"{\"Type\":\"http\"}"}"#;
    std::fs::write(&path, before).expect("it is written");
    let read_only: PathBuf = path.clone();
    let mut permissions = std::fs::metadata(&read_only)
        .expect("it is there")
        .permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&read_only, permissions).expect("they are set");
    let answer = program(&path, "").exits(1);
    assert!(answer.err.contains("it is read-only"), "{answer}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), before);
    program(&path, "--dry-run").exits(0);
}
