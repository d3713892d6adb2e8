//! The recipes of `docs/recipes.md`; those for predecessors are in `predecessors`.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::docs::{sh, shell_block};
use crate::support::api::{Api, kubectl, list, web};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, Program, vulcanized};

/// A store file and the pods of the next run.
struct World {
    folder: tempfile::TempDir,
    pods: Vec<Value>,
}

impl World {
    fn new(entries: &[(&str, &str)]) -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            pods: Vec::new(),
        };
        let store = entries.iter().copied().collect::<BTreeMap<_, _>>();
        world.write(&json!(store));
        world
    }

    fn write(&self, store: &Value) {
        fs::write(self.folder.path().join("store.json"), store.to_string()).expect("it is written");
    }

    fn pods(mut self, numbers: impl IntoIterator<Item = u32>) -> Self {
        self.pods = numbers.into_iter().map(web).collect();
        self
    }

    fn program(&self, more: &str) -> Program {
        vulcanized(&format!("--pods - {more}"))
            .arg("--store-file")
            .arg(self.folder.path().join("store.json"))
            .input(kubectl(self.pods.iter().cloned()))
    }

    fn run(&self, more: &str, code: i32) -> Answer {
        self.program(more).exits(code)
    }

    fn store(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.folder.path().join("store.json")).expect("the store");
        serde_json::from_str(&text).expect("JSON")
    }

    /// `backend/id` and owner of each server; `unmarked` without an owner.
    fn servers(&self) -> Vec<(String, String)> {
        let store = self.store();
        let servers = store.iter().filter_map(|(key, value)| {
            let (backend, id) = key
                .strip_prefix("/vulcand/backends/")?
                .split_once("/servers/")?;
            let value = serde_json::from_str::<Value>(value).expect("JSON");
            let owner = value["Owner"].as_str().unwrap_or("unmarked").to_owned();
            Some((format!("{backend}/{id}"), owner))
        });
        servers.collect()
    }
}

fn owned(owner: &str, ids: &[&str]) -> Vec<(String, String)> {
    ids.iter()
        .map(|id| ((*id).to_owned(), owner.to_owned()))
        .collect()
}

const DEFINED: (&str, &str) = ("/vulcand/backends/web/backend", r#"{"Type":"http"}"#);

#[test]
fn from_hand_made_entries() {
    let world = World::new(&[
        DEFINED,
        (
            "/vulcand/backends/web/servers/first",
            r#"{"URL": "http://10.0.0.1:8080"}"#,
        ),
        (
            "/vulcand/backends/web/servers/10.0.0.2",
            r#"{"Id": "x", "url": "http://10.0.0.2:8080/"}"#,
        ),
        (
            "/vulcand/backends/web/servers/other",
            r#"{"URL": "http://legacy.example.com:80"}"#,
        ),
    ])
    .pods([1, 2]);
    let look = world.run("--owner prod --dry-run", 0);
    assert!(look.out.contains("1 served by unmarked entries"), "{look}");
    world.run("--owner prod --adopt unmarked", 0);
    let mut wanted = owned("prod", &["web/10.0.0.1", "web/10.0.0.2"]);
    wanted.extend(owned("unmarked", &["web/other"]));
    assert_eq!(world.servers(), wanted);
    // Adopted servers are deleted with their pods.
    let world = World {
        pods: vec![web(2)],
        ..world
    };
    world.run("--owner prod", 0);
    assert_eq!(world.servers()[0].0, "web/10.0.0.2");
}

#[test]
fn adopt_unmarked_does_not_change_marked_entries() {
    let blue =
        r#"{"URL":"http://10.0.0.1:8080","Owner":"blue","Scope":"file","Pod":"default/web-1"}"#;
    let world = World::new(&[DEFINED, ("/vulcand/backends/web/servers/10.0.0.1", blue)]).pods([1]);
    world.run("--owner prod --adopt unmarked", 0);
    assert_eq!(world.servers(), owned("blue", &["web/10.0.0.1"]));
}

#[test]
fn another_template_for_server_ids() {
    let world = World::new(&[DEFINED]).pods([1, 2]);
    world.run("--owner prod", 0);
    let answer = world.run("--owner prod --server-id {pod}", 0);
    let signs = answer
        .out
        .chars()
        .filter(|c| matches!(c, '+' | '-'))
        .collect::<String>();
    assert!(
        answer.out.lines().take(2).all(|line| line.starts_with('+')),
        "{signs}: {answer}"
    );
    assert_eq!(world.servers(), owned("prod", &["web/web-1", "web/web-2"]));
}

#[test]
fn another_template_for_backends() {
    let world = World::new(&[
        DEFINED,
        ("/vulcand/backends/web.svc/backend", r#"{"Type":"http"}"#),
    ]);
    let world = world.pods([1, 2]);
    world.run("--owner prod", 0);
    let both = world.run("--owner prod --backend {name}.svc", 3);
    assert!(both.out.contains("held: backend web:"), "{both}");
    assert_eq!(world.servers().len(), 4, "old and new servers");
    assert!(both.out.contains("--allow-deletes 2"), "{both}");
    world.run("--owner prod --backend {name}.svc --allow-deletes 2", 0);
    assert_eq!(
        world.servers(),
        owned("prod", &["web.svc/10.0.0.1", "web.svc/10.0.0.2"])
    );
}

#[test]
fn another_name_for_the_cluster() {
    let world = World::new(&[DEFINED]).pods([1, 2]);
    world.run("--owner prod --cluster old", 0);
    let out_of_scope = world.run("--owner prod --cluster new", 3);
    assert!(out_of_scope.out.contains("out of scope"), "{out_of_scope}");
    world.run("--owner prod --cluster new --adopt scope", 0);
    assert!(
        world
            .store()
            .values()
            .all(|value| !value.contains("\"old\""))
    );
    world.run("--owner prod --cluster new", 0);
    // From the wrong cluster it deletes nothing: the entries' pods are not in its list.
    let elsewhere = World {
        pods: vec![web(9)],
        ..world
    };
    let answer = elsewhere.run("--owner prod --cluster third --adopt scope", 3);
    assert!(answer.out.contains("--allow-deletes 2"), "{answer}");
    let ids = elsewhere.servers();
    assert_eq!(
        ids,
        owned("prod", &["web/10.0.0.1", "web/10.0.0.2", "web/10.0.0.9"])
    );
}

#[test]
fn another_owner() {
    let world = World::new(&[DEFINED]).pods([1, 2]);
    world.run("--owner old", 0);
    world.run("--owner new --adopt owner:old", 0);
    assert_eq!(
        world.servers(),
        owned("new", &["web/10.0.0.1", "web/10.0.0.2"])
    );
    let elsewhere = World {
        pods: vec![web(9)],
        ..world
    };
    let answer = elsewhere.run("--owner third --adopt owner:new --share-backends", 3);
    assert!(answer.out.contains("--allow-deletes 2"), "{answer}");
    let mut wanted = owned("new", &["web/10.0.0.1", "web/10.0.0.2"]);
    wanted.extend(owned("third", &["web/10.0.0.9"]));
    assert_eq!(elsewhere.servers(), wanted);
}

#[test]
fn blue_and_green() {
    let world = World::new(&[DEFINED]).pods([1]);
    world.run("--owner blue", 0);
    let green = World {
        pods: vec![web(2)],
        ..world
    };
    green.run("--owner green", 3);
    green.run("--owner green --share-backends", 0);
    assert_eq!(green.servers().len(), 2);
}

#[test]
fn leaving_deletes_every_entry_of_the_owner() {
    let world = World::new(&[
        DEFINED,
        (
            "/vulcand/backends/web/servers/by-hand",
            r#"{"URL":"http://10.9.9.9:80"}"#,
        ),
    ]);
    let world = world.pods([1, 2]);
    world.run("--owner prod --cluster main", 0);
    let world = world.pods([]);
    world.run("--owner prod --cluster main", 3);
    world.run("--owner prod --cluster main --allow-empty", 0);
    assert_eq!(world.servers(), owned("unmarked", &["web/by-hand"]));
}

#[test]
fn a_renewed_ca() {
    let fingerprints = ["11111111", "22222222"];
    let world = World::new(&[DEFINED]).pods([1, 2, 3]);
    // With a name there is nothing to do; the entries keep the old fingerprint.
    world.run("--owner named --cluster main@11111111", 0);
    let before = world.store();
    let after = world.run("--owner named --cluster main@22222222", 0);
    assert!(after.out.starts_with("in sync"), "{after}");
    assert_eq!(world.store(), before);
    // Without a name the entries are out of scope until they are adopted.
    let world = World::new(&[DEFINED]).pods([1, 2, 3]);
    world.run(&format!("--owner prod --cluster {}", fingerprints[0]), 0);
    let renewed = format!("--owner prod --cluster {}", fingerprints[1]);
    let seen = world.run(&renewed, 3);
    assert!(seen.out.contains("--adopt scope"), "{seen}");
    world.run(&format!("{renewed} --adopt scope"), 0);
    let again = world.run(&renewed, 0);
    assert!(again.out.starts_with("in sync: 3 unchanged"), "{again}");
}

#[test]
fn pods_moved_to_another_cluster() {
    let here = World::new(&[DEFINED]).pods([1, 2]);
    here.run("--owner old --cluster 11111111", 0);
    let there = here.pods([11, 12]);
    there.run("--owner new --cluster 22222222 --share-backends", 0);
    assert_eq!(there.servers().len(), 4);
    let gone = there.pods([]);
    gone.run(
        "--owner old --cluster 11111111 --allow-empty --share-backends",
        0,
    );
    assert_eq!(
        gone.servers(),
        owned("new", &["web/10.0.0.11", "web/10.0.0.12"])
    );
}

#[test]
fn the_leaving_recipe_as_pasted() {
    let etcd = Etcd::start();
    etcd.define("web");
    vulcanized("--owner prod --cluster main@3f2a91c0 --pods -")
        .arg("--etcd")
        .arg(etcd.url())
        .input(kubectl([web(1), web(2)]))
        .exits(0);
    assert_eq!(etcd.keys("/vulcand/backends/web/servers/").len(), 2);
    let block =
        shell_block("the_leaving_recipe_as_pasted").replace("http://127.0.0.1:2379", &etcd.url());
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_vulcanized"));
    let bin = program.parent().expect("a folder").display();
    let answer = sh(&block, &[("PATH", &format!("{bin}:/usr/bin:/bin"))]);
    assert!(answer.code == 0, "{answer}");
    assert_eq!(etcd.keys("/vulcand/backends/web/servers/"), [""; 0]);
}

#[test]
fn another_prefix() {
    let world = World::new(&[DEFINED, ("/new/backends/web/backend", r#"{"Type":"http"}"#)]);
    let world = world.pods([1, 2]);
    world.run("--owner prod", 0);
    world.run("--owner prod --prefix /new", 0);
    let under = |prefix: &str| {
        let store = world.store();
        let start = format!("{prefix}/backends/web/servers/");
        store.keys().filter(|key| key.starts_with(&start)).count()
    };
    assert_eq!((under("/vulcand"), under("/new")), (2, 2));
    let leaving = vulcanized("--pods - --owner prod --allow-empty --prefix /vulcand")
        .arg("--store-file")
        .arg(world.folder.path().join("store.json"));
    leaving.input(kubectl([])).exits(0);
    assert_eq!((under("/vulcand"), under("/new")), (0, 2));
}

#[test]
fn from_etcd_v2_to_v3() {
    let etcd = Etcd::start();
    let definition = r#"{"Type":"http"}"#;
    etcd.put_v2("/vulcand/backends/web/backend", Some(definition));
    etcd.define("web");
    for api in ["2", "3"] {
        let program = vulcanized(&format!("--owner prod --pods - --etcd-api {api}"));
        let program = program.arg("--etcd").arg(etcd.url());
        program.input(kubectl([web(1), web(2)])).exits(0);
    }
    assert_eq!(etcd.keys("/vulcand/backends/web/servers/").len(), 2);
    let before = etcd.below_v2("/vulcand/backends/web/servers");
    assert_eq!(before.len(), 2, "the v2 store is unchanged");
}

#[test]
fn a_job_that_moves_behind_a_gateway() {
    let api = || Api::start(|request, _| list(&[web(1), web(2)], request, 500));
    let (direct, gateway) = (api(), api());
    let run = |api: &Api, etcd: &Etcd, more: &str| {
        let kubeconfig = api.plain_kubeconfig();
        vulcanized(&format!("--owner prod {more}"))
            .arg("--etcd")
            .arg(etcd.url())
            .kubeconfig(&kubeconfig)
            .run()
    };
    // With the same name for both there is nothing to do.
    let etcd = Etcd::start();
    etcd.define("web");
    assert_eq!(run(&direct, &etcd, "--cluster main").code, 0);
    let moved = run(&gateway, &etcd, "--cluster main");
    assert!(
        moved.code == 0 && moved.out.starts_with("in sync"),
        "{moved}"
    );
    // Without a name the entries are adopted once, and none is deleted.
    let etcd = Etcd::start();
    etcd.define("web");
    assert_eq!(run(&direct, &etcd, "").code, 0);
    let entries = etcd.keys("/vulcand/backends/web/servers/");
    let moved = run(&gateway, &etcd, "");
    assert!(
        moved.code == 3 && moved.out.contains("--adopt scope"),
        "{moved}"
    );
    assert_eq!(run(&gateway, &etcd, "--adopt scope").code, 0);
    assert_eq!(etcd.keys("/vulcand/backends/web/servers/"), entries);
    let again = run(&gateway, &etcd, "");
    assert!(
        again.code == 0 && again.out.starts_with("in sync: 2 unchanged"),
        "{again}"
    );
}
