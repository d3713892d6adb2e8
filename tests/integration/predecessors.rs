//! Migrating from Amdatu Vulcanized and romulus, with the keys that they wrote: from the first dry run to the deletion
//! of the last leftover entry, on both APIs of a real etcd.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::api::{Api, kubectl, pod};
use crate::support::etcd::Etcd;
use crate::support::program::{Answer, Program, vulcanized};

/// A store with a predecessor's keys, accessed through one of etcd's APIs.
struct Store {
    etcd: Etcd,
    v2: bool,
}

const BACKENDS: &str = "/vulcan/backends/";

impl Store {
    /// A store with these keys below `/vulcan/`.
    fn new(v2: bool, keys: &[(&str, &str)]) -> Self {
        let etcd = Etcd::start();
        let store = Self { etcd, v2 };
        for (key, value) in keys {
            store.put(&format!("/vulcan/{key}"), value);
        }
        store
    }

    fn put(&self, key: &str, value: &str) {
        if self.v2 {
            self.etcd.put_v2(key, Some(value));
        } else {
            self.etcd.put(key, value);
        }
    }

    /// All keys below `/vulcan/`.
    fn keys(&self) -> BTreeMap<String, String> {
        if self.v2 {
            let mut keys = self.etcd.below_v2("/vulcan");
            keys.retain(|key, _| !key.ends_with('/'));
            keys
        } else {
            self.etcd.get("/vulcan/").into_iter().collect()
        }
    }

    /// The owners of the servers by `backend/id`; an unmarked server has the empty owner.
    fn owners(&self) -> BTreeMap<String, String> {
        let keys = self.keys();
        let servers = keys.iter().filter_map(|(key, value)| {
            let (backend, id) = key.strip_prefix(BACKENDS)?.split_once("/servers/")?;
            let value = serde_json::from_str::<Value>(value).expect("JSON");
            let owner = value["Owner"].as_str().unwrap_or_default().to_owned();
            Some((format!("{backend}/{id}"), owner))
        });
        servers.collect()
    }

    fn program(&self, more: &str) -> Program {
        vulcanized(&format!("{more} --etcd {}", self.etcd.url())).arg(if self.v2 {
            "--etcd-api=2"
        } else {
            "--etcd-api=3"
        })
    }

    /// Runs with these pods. The prefix is detected unless `more` sets it.
    fn run(&self, pods: &[Value], more: &str) -> Answer {
        let program = self.program(&format!("--owner prod --pods - {more}"));
        program.input(kubectl(pods.iter().cloned())).run()
    }

    /// Deletes a server by hand, as the recipe says.
    fn remove(&self, server: &str) {
        let (backend, id) = server.split_once('/').expect("a backend and an id");
        let key = format!("{BACKENDS}{backend}/servers/{id}");
        if self.v2 {
            self.etcd.remove_v2(&key);
        } else {
            self.etcd.ctl(&["del", &key]);
        }
    }
}

/// Pairs of `backend/id` and owner.
fn owners(owned: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = owned.iter();
    owned
        .map(|(server, owner)| ((*server).to_owned(), (*owner).to_owned()))
        .collect()
}

const HTTP: &str = r#"{"Type": "http"}"#;
const FRONTEND: (&str, &str) = (
    "frontends/web/frontend",
    r#"{"Type": "http", "BackendId": "web", "Route": "Path(`/`)"}"#,
);

/// The first releases: backends are named by the label `name`, server ids are addresses.
fn from_amdatu_vulcanized(v2: bool) {
    let store = Store::new(
        v2,
        &[
            FRONTEND,
            ("backends/web/backend", HTTP),
            (
                "backends/web/servers/10.0.0.1",
                r#"{"URL": "http://10.0.0.1:8080"}"#,
            ),
            (
                "backends/web/servers/10.0.0.2",
                r#"{"URL": "http://10.0.0.2:8080"}"#,
            ),
            (
                "backends/web/servers/10.0.0.9",
                r#"{"URL": "http://10.0.0.9:8080"}"#,
            ),
        ],
    );
    let web = |n: u8| {
        let ip = format!("10.0.0.{n}");
        let mut pod = pod("default", &format!("web-{n}"), "", &ip);
        pod["metadata"]["labels"] = json!({ "name": "web" });
        pod
    };
    let pods = [web(1), web(2), web(3)];
    let before = store.keys();
    // Without the prefix, the error names the place of the keys.
    let hint = store.run(&pods, "--dry-run");
    assert_eq!(hint.code, 1, "{hint}");
    assert!(
        hint.err
            .contains("under `/vulcan/`, where Amdatu Vulcanized"),
        "{hint}"
    );
    let look = store.run(&pods, "--prefix /vulcan --dry-run");
    assert_eq!(look.code, 0, "{look}");
    assert!(look.out.contains("2 served by unmarked entries"), "{look}");
    assert!(!look.out.contains("finding"), "{look}");
    assert_eq!(store.keys(), before);
    // The predecessor is stopped from here on.
    let adopted = store.run(&pods, "--prefix /vulcan --adopt unmarked");
    assert_eq!(adopted.code, 0, "{adopted}");
    let mut wanted = owners(&[
        ("web/10.0.0.1", "prod"),
        ("web/10.0.0.2", "prod"),
        ("web/10.0.0.3", "prod"),
        // Its pod disappeared while the predecessor was stopped.
        ("web/10.0.0.9", ""),
    ]);
    assert_eq!(store.owners(), wanted);
    assert!(adopted.out.contains(" 1 foreign"), "{adopted}");
    store.remove("web/10.0.0.9");
    wanted.remove("web/10.0.0.9");
    let again = store.run(&pods, "--prefix /vulcan");
    assert!(
        again.code == 0 && again.out.starts_with("in sync: 3 unchanged\n"),
        "{again}"
    );
    assert_eq!(store.owners(), wanted);
    let others = ["frontends/web/frontend", "backends/web/backend"];
    for key in others.map(|key| format!("/vulcan/{key}")) {
        assert_eq!(store.keys()[&key], before[&key], "{key}");
    }
    // Adopted servers are deleted with their pods.
    store.run(&pods[..2], "--prefix /vulcan");
    wanted.remove("web/10.0.0.3");
    assert_eq!(store.owners(), wanted);
}

#[test]
fn from_amdatu_vulcanized_on_etcd_v2() {
    from_amdatu_vulcanized(true);
}

#[test]
fn from_amdatu_vulcanized_on_etcd_v3() {
    from_amdatu_vulcanized(false);
}

/// Later releases: backends are named `<namespace>-<name>`. A job for each namespace, with its own owner, replaces
/// them.
fn from_later_amdatu_vulcanized(v2: bool) {
    let mut keys = Vec::new();
    for (backend, n) in [("default-web", 1), ("shop-web", 2), ("shop-web", 9)] {
        let server = format!("backends/{backend}/servers/10.0.0.{n}");
        keys.push((server, format!(r#"{{"URL": "http://10.0.0.{n}:8080"}}"#)));
        keys.push((format!("backends/{backend}/backend"), HTTP.to_owned()));
    }
    let keys = keys.iter().map(|(key, value)| (&**key, &**value));
    let store = Store::new(v2, &keys.collect::<Vec<_>>());
    let pods = vec![
        pod("default", "web-1", "web", "10.0.0.1"),
        pod("shop", "web-2", "web", "10.0.0.2"),
        pod("shop", "web-3", "web", "10.0.0.3"),
    ];
    // Such ids are ambiguous when a run covers several namespaces.
    let both = store.run(&pods, "--prefix /vulcan --backend {namespace}-{name}");
    assert_eq!(both.code, 2, "{both}");
    let api = Api::pods(pods, 100);
    let kubeconfig = api.plain_kubeconfig();
    let run = |namespace: &str, more: &str| {
        let options = format!(
            "--owner prod-{namespace} --prefix /vulcan --backend {{namespace}}-{{name}} -n {namespace} {more}"
        );
        let program = store.program(&options).arg("--kubeconfig");
        program.arg(kubeconfig.path()).exits(0)
    };
    let before = store.keys();
    for namespace in ["default", "shop"] {
        let look = run(namespace, "--dry-run");
        assert!(look.out.contains("1 served by unmarked entries"), "{look}");
        assert!(!look.out.contains("finding"), "{look}");
    }
    assert_eq!(store.keys(), before);
    for namespace in ["default", "shop"] {
        run(namespace, "--adopt unmarked");
    }
    let mut wanted = owners(&[
        ("default-web/10.0.0.1", "prod-default"),
        ("shop-web/10.0.0.2", "prod-shop"),
        ("shop-web/10.0.0.3", "prod-shop"),
        ("shop-web/10.0.0.9", ""),
    ]);
    assert_eq!(store.owners(), wanted);
    store.remove("shop-web/10.0.0.9");
    wanted.remove("shop-web/10.0.0.9");
    // Each job leaves the entries of the other namespace unchanged.
    for (namespace, servers) in [("default", 1), ("shop", 2), ("default", 1)] {
        let again = run(namespace, "");
        let in_sync = format!("in sync: {servers} unchanged");
        assert!(again.out.starts_with(&in_sync), "{again}");
        assert_eq!(store.owners(), wanted);
    }
}

#[test]
fn from_later_amdatu_vulcanized_on_etcd_v2() {
    from_later_amdatu_vulcanized(true);
}

#[test]
fn from_later_amdatu_vulcanized_on_etcd_v3() {
    from_later_amdatu_vulcanized(false);
}

/// romulus: backends are named `<name>.<namespace>`, definitions have settings, server ids are addresses.
fn from_romulus(v2: bool) {
    let settings =
        r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":128,"Period":"4s"}}}"#;
    let store = Store::new(
        v2,
        &[
            (
                "frontends/example.default/frontend",
                r#"{"Type":"http","BackendId":"example.default","Route":"Path(`/guestbook`)"}"#,
            ),
            ("backends/example.default/backend", settings),
            (
                "backends/example.default/servers/10.246.1.7",
                r#"{"URL":"http://10.246.1.7:8080"}"#,
            ),
            (
                "backends/example.default/servers/10.246.1.8",
                r#"{"URL":"http://10.246.1.8:8080"}"#,
            ),
        ],
    );
    let pods = [7, 9].map(|n| {
        let ip = format!("10.246.1.{n}");
        pod("default", &format!("example-{n}"), "example", &ip)
    });
    let before = store.keys();
    let options = "--prefix /vulcan --backend {name}.{namespace}";
    let look = store.run(&pods, &format!("{options} --dry-run"));
    assert_eq!(look.code, 0, "{look}");
    assert!(look.out.contains("1 served by unmarked entries"), "{look}");
    assert!(!look.out.contains("finding"), "{look}");
    assert_eq!(store.keys(), before);
    let adopted = store.run(&pods, &format!("{options} --adopt unmarked"));
    assert_eq!(adopted.code, 0, "{adopted}");
    let mut wanted = owners(&[
        ("example.default/10.246.1.7", "prod"),
        ("example.default/10.246.1.8", ""),
        ("example.default/10.246.1.9", "prod"),
    ]);
    assert_eq!(store.owners(), wanted);
    assert!(adopted.out.contains(" 1 foreign"), "{adopted}");
    store.remove("example.default/10.246.1.8");
    wanted.remove("example.default/10.246.1.8");
    let again = store.run(&pods, options);
    assert!(again.out.starts_with("in sync: 2 unchanged\n"), "{again}");
    assert_eq!(store.owners(), wanted);
    let definition = &store.keys()[&format!("{BACKENDS}example.default/backend")];
    assert_eq!(definition, settings, "the settings are unchanged");
}

#[test]
fn from_romulus_on_etcd_v2() {
    from_romulus(true);
}

#[test]
fn from_romulus_on_etcd_v3() {
    from_romulus(false);
}

/// Findings about a predecessor's keys, and their commands, name keys under the predecessor's prefix.
#[test]
fn findings_name_keys_under_the_predecessors_prefix() {
    for v2 in [true, false] {
        let store = Store::new(
            v2,
            &[
                ("backends/web/backend", HTTP),
                // Early romulus: UUIDs as backend ids, and durations as numbers, which vulcand rejects.
                (
                    "backends/4f2c6a5e-0b1d-4e57-9d0a-1c2b3a4d5e6f/backend",
                    r#"{"Type":"http","Settings":{"Timeouts":{"Read":5000000000}}}"#,
                ),
                (
                    "backends/gone/servers/10.0.0.8",
                    r#"{"URL": "http://10.0.0.8:8080"}"#,
                ),
                ("backends/web/servers/10.0.0.7", r#"{"URL": ""}"#),
                ("backends/web/servers/10.0.0.6", "null"),
            ],
        );
        let pods = [pod("default", "web-1", "web", "10.0.0.1")];
        let answer = store.run(&pods, "--prefix /vulcan");
        assert_eq!(answer.code, 3, "`null` crashes vulcand: {answer}");
        for key in [
            "4f2c6a5e-0b1d-4e57-9d0a-1c2b3a4d5e6f/backend",
            "gone/backend",
            "web/servers/10.0.0.7",
            "web/servers/10.0.0.6",
        ] {
            let key = format!("{BACKENDS}{key}");
            assert!(answer.out.contains(&key), "{key}: {answer}");
        }
        assert!(!answer.out.contains("/vulcand/"), "{answer}");
        // If the run uses another prefix, they are one finding, which suggests `--prefix /vulcan`.
        store.put("/vulcand/backends/web/backend", HTTP);
        let beside = store.run(&pods, "");
        assert_eq!(beside.code, 0, "{beside}");
        let text = beside.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains("backends under `/vulcan/` (3)") && text.contains("`--prefix /vulcan`"),
            "{beside}"
        );
        assert_eq!(beside.out.matches("finding").count(), 1, "{beside}");
    }
}
