//! The store side: what every store does alike, and etcd under all that may happen to it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use vulcanized::internals::model::{Expect, Guard, Op, Transaction};
use vulcanized::internals::net::deadline::Deadline;
use vulcanized::internals::net::tls::Tls;
use vulcanized::internals::store::endpoints::Options;
use vulcanized::internals::store::etcd2::Etcd2;
use vulcanized::internals::store::etcd3::Etcd3;
use vulcanized::internals::store::file::File;
use vulcanized::internals::store::{Applied, Store};

use crate::docs::shell_blocks;
use crate::support::api::{Api, kubectl, list, pod};
use crate::support::certs::{Authority, Leaf};
use crate::support::etcd::{Cluster, Etcd, Version, poll, signal};
use crate::support::program::{Answer, Program, vulcanized};

const ROOT: &str = "/vulcand/backends/";

fn deadline() -> Deadline {
    Deadline::start(Duration::from_secs(30), Duration::from_secs(10))
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
    // What must be there is demanded.
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
    let mut reader = File::open(&path, true, short).expect("a folder");
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
struct Pods {
    file: tempfile::NamedTempFile,
}

impl Pods {
    fn new(pods: impl IntoIterator<Item = Value>) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), kubectl(pods)).expect("it is written");
        Self { file }
    }

    /// The program with these pods on this etcd.
    fn on(&self, url: &str, more: &str) -> Program {
        vulcanized(&format!("--owner prod --etcd {url} {more}"))
            .arg("--pods")
            .arg(self.file.path())
    }
}

fn web(n: u32) -> Value {
    pod(
        "default",
        &format!("web-{n}"),
        "web",
        &format!("10.0.{}.{}", n / 250, n % 250),
    )
}

fn v2(etcd: &Etcd, path: &str) -> Value {
    let url = format!("{}/v2/keys{path}", etcd.url());
    let agent = ureq::Agent::new_with_config(
        ureq::config::Config::builder()
            .http_status_as_error(false)
            .build(),
    );
    let mut answer = agent.get(&url).call().expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn v2_put(etcd: &Etcd, key: &str, value: &str) {
    let url = format!("{}/v2/keys{key}", etcd.url());
    ureq::put(&url)
        .send_form([("value", value)])
        .expect("it is put");
}

#[test]
fn v2_events_are_those_that_vulcand_sees() {
    for version in [Version::V34, Version::V35] {
        let etcd = Etcd::version(version);
        v2_put(&etcd, "/vulcand/backends/web/backend", r#"{"Type":"http"}"#);
        Pods::new((1..=3).map(web))
            .on(&etcd.url(), "--etcd-api 2")
            .exits(0);
        let last = |etcd: &Etcd| {
            let url = format!("{}/v2/keys/vulcand", etcd.url());
            let answer = ureq::get(&url).call().expect("an answer");
            answer.headers()["x-etcd-index"]
                .to_str()
                .expect("text")
                .parse::<u64>()
                .expect("one")
        };
        let before = last(&etcd);
        let mut changed = web(2);
        changed["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
        let pods = Pods::new([changed, web(3), web(4), web(5)]);
        let planned = pods
            .on(&etcd.url(), "--etcd-api 2 --dry-run -o json")
            .exits(0);
        assert_eq!(last(&etcd), before, "a dry run writes nothing");
        pods.on(&etcd.url(), "--etcd-api 2").exits(0);
        let events = (before + 1..=last(&etcd)).map(|index| {
            v2(
                &etcd,
                &format!("/vulcand?wait=true&recursive=true&waitIndex={index}"),
            )
        });
        let events = events.map(|event| {
            let key = event["node"]["key"].as_str().expect("a key").to_owned();
            (event["action"].as_str().expect("an action").to_owned(), key)
        });
        let events = events.collect::<Vec<_>>();
        let planned = serde_json::from_str::<Value>(&planned.out).expect("JSON");
        let planned = planned["changes"]
            .as_array()
            .expect("changes")
            .iter()
            .map(|change| {
                let action = match change["action"].as_str() {
                    Some("update") => "set",
                    action => action.expect("an action"),
                };
                (
                    action.to_owned(),
                    change["key"].as_str().expect("a key").to_owned(),
                )
            });
        assert_eq!(events, planned.collect::<Vec<_>>());
        let actions = events
            .iter()
            .map(|(action, _)| action.as_str())
            .collect::<Vec<_>>();
        assert_eq!(actions, ["create", "create", "set", "delete"]);
        pods.on(&etcd.url(), "--etcd-api 2").exits(0);
        assert_eq!(last(&etcd), before + 4, "the second run writes nothing");
    }
}

#[test]
fn v2_shows_what_stops_vulcand() {
    let etcd = Etcd::start();
    v2_put(&etcd, "/vulcand/backends/web/backend", r#"{"Type":"http"}"#);
    v2_put(
        &etcd,
        "/vulcand/backends/old/servers/x",
        r#"{"URL":"http://10.9.9.9:80"}"#,
    );
    let url = format!("{}/v2/keys/vulcand/backends/empty?dir=true", etcd.url());
    ureq::put(&url)
        .send_form([("dir", "true")])
        .expect("a directory");
    let answer = Pods::new([web(1)]).on(&etcd.url(), "--etcd-api 2").exits(0);
    assert!(answer.out.contains("/vulcand/backends/empty"), "{answer}");
    let command = format!(
        "ETCDCTL_API=2 etcdctl --endpoints='{}' set '/vulcand/backends/old/backend'",
        etcd.url()
    );
    assert!(answer.out.contains(&command), "{answer}");
    // v2 and v3 are two stores.
    let other = Pods::new([web(1)]).on(&etcd.url(), "").exits(1);
    assert!(other.err.contains("--etcd-api"), "{other}");
}

#[test]
fn v2_that_is_switched_off() {
    let etcd = Etcd::with(Version::V34, "http", &["--enable-v2=false"], &[]);
    let answer = Pods::new([web(1)]).on(&etcd.url(), "--etcd-api 2").exits(1);
    assert!(answer.err.contains("version 2 is switched off"), "{answer}");
}

/// Certificates in files.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("it is written");
        path.display().to_string()
    }

    fn leaf(&self, name: &str, leaf: &Leaf) -> (String, String) {
        let certificate = self.write(&format!("{name}.crt"), &leaf.certificate);
        (certificate, self.write(&format!("{name}.key"), &leaf.key))
    }
}

#[test]
fn tls_of_all_kinds() {
    let files = Files::new();
    let authority = Authority::new();
    let ca = files.write("ca.crt", &authority.pem);
    let other = files.write("other.crt", &Authority::new().pem);
    let (cert, key) = files.leaf("server", &authority.leaf("etcd", &["127.0.0.1"]));
    let (client, client_key) = files.leaf("client", &authority.leaf("root", &["client"]));
    let mine = format!("--cacert {ca} --cert {client} --key {client_key}");
    let trust = format!("--cacert {ca}");
    let pods = Pods::new([web(1)]);
    let check = |url: &str, more: &str, words: Option<&str>| {
        for api in ["3", "2"] {
            let more = format!("--etcd-api {api} --create-backends --request-timeout 3s {more}");
            let answer = pods.on(url, &more).run();
            match words {
                None => assert!(answer.code == 0, "{more}: {answer}"),
                Some(words) => {
                    assert!(answer.code == 1, "{more}: {answer}");
                    assert!(
                        answer.err.contains(words),
                        "{more}: wanted `{words}`: {answer}"
                    );
                }
            }
        }
    };
    for version in [Version::V34, Version::V35] {
        let ctl = |more: &[&String]| {
            let more = more.iter().map(|text| (*text).clone());
            ["--cacert".to_owned(), ca.clone()]
                .into_iter()
                .chain(more)
                .collect::<Vec<_>>()
        };
        let start = |arguments: &[&str], certificates: Vec<String>| {
            Etcd::with(version, "https", arguments, &certificates)
        };
        let simple = start(&["--cert-file", &cert, "--key-file", &key], ctl(&[]));
        check(&simple.url(), &trust, None);
        // Without a scheme a CA means TLS, as `etcdctl` has it.
        check(&simple.url().replace("https://", ""), &trust, None);
        check(&simple.url(), &mine, None);
        check(
            &simple.url(),
            &format!("--cacert {other}"),
            Some("a CA that is not trusted"),
        );
        let plain = simple.url().replace("https", "http");
        check(&plain, "", Some("https://"));
        let flags = ["--cert".to_owned(), "--key".to_owned()];
        let client_auth = [
            "--cert-file",
            &cert,
            "--key-file",
            &key,
            "--client-cert-auth",
        ];
        let client_auth = [&client_auth[..], &["--trusted-ca-file", &ca]].concat();
        let mutual = start(
            &client_auth,
            ctl(&[&flags[0], &client, &flags[1], &client_key]),
        );
        check(&mutual.url(), &mine, None);
        check(&mutual.url(), &trust, Some("client certificate"));
        // Its certificate is for the address, not for this name.
        let renamed = simple.url().replace("127.0.0.1", "localhost");
        check(
            &renamed,
            &trust,
            Some("its certificate is for another name"),
        );
        let plain = Etcd::version(version);
        check(&plain.url().replace("http", "https"), &trust, Some("TLS"));
    }
}

#[test]
fn the_roles_of_the_readme_are_enough_and_not_more() {
    let roles = shell_blocks("the_roles_of_the_readme_are_enough_and_not_more");
    assert_eq!(roles.len(), 2, "vulcand's and Traefik's");
    let server =
        "traefik/http/services/web/loadBalancer/servers/prod.c1-00000000.shop.10.0.0.1/url";
    for (block, more, definition, server) in [
        (
            &roles[0],
            "",
            ("/vulcand/backends/web/backend", r#"{"Type":"http"}"#),
            "/vulcand/backends/web/servers/10.0.0.1",
        ),
        (
            &roles[1],
            "--layout traefik",
            ("traefik/http/routers/web/service", "web"),
            server,
        ),
    ] {
        let mut etcd = Etcd::version(Version::V35);
        etcd.put(definition.0, definition.1);
        for line in block.lines() {
            let words = line.strip_prefix("etcdctl ").expect("a command");
            let mut words = words.split_whitespace().collect::<Vec<_>>();
            if words.starts_with(&["user", "add"]) {
                // A person is asked for it.
                words.push("--new-user-password=secret");
            }
            etcd.ctl(&words);
        }
        etcd.enable_auth();
        let web = || kubectl([pod("shop", "web-1", "web", "10.0.0.1")]);
        let program = |pods: String| {
            let all =
                format!("--owner prod --cluster c1@00000000 --pods - --user vulcanized {more}");
            let program = vulcanized(&all).env("VULCANIZED_PASSWORD", "secret");
            program.arg("--etcd").arg(etcd.url()).input(pods)
        };
        program(web()).exits(0);
        assert!(etcd.get(server).len() == 1, "{server} is there");
        let quiet = program(web()).arg("-q").exits(0);
        assert_eq!((&*quiet.out, &*quiet.err), ("", ""));
        program(kubectl([])).arg("--allow-empty").exits(0);
        assert!(etcd.get(server).is_empty());
        // Not more than that: the definition of a router or frontend is not its to write.
        let elsewhere = [
            "/vulcand/frontends/web/frontend",
            "traefik/http/routers/web/rule",
        ];
        for key in elsewhere {
            let credentials = "--user=vulcanized:secret";
            let refused = etcd.try_ctl(&[credentials, "put", key, "x"]);
            assert!(
                refused.is_err_and(|why| why.contains("permission denied")),
                "{key}"
            );
        }
    }
}

#[test]
fn users_of_all_kinds() {
    for version in [Version::V34, Version::V35] {
        let etcd = Etcd::with(version, "http", &["--auth-token-ttl", "1"], &[]);
        etcd.define("web");
        for arguments in [
            &["user", "add", "root:root"][..],
            &["user", "grant-role", "root", "root"],
            &["user", "add", "job:s3cret"],
            &["role", "add", "job"],
            &[
                "role",
                "grant-permission",
                "--prefix=true",
                "job",
                "readwrite",
                ROOT,
            ],
            &["user", "grant-role", "job", "job"],
            &["user", "add", "nobody:s3cret"],
            &["auth", "enable"],
        ] {
            // `root` is a role of its own accord on some versions, and must be added on others.
            if arguments[1] == "grant-role" && arguments[2] == "root" {
                etcd.try_role_root();
            }
            etcd.ctl(arguments);
        }
        let pods = Pods::new([web(1)]);
        let run = |user: &str, password: &str, code: i32| {
            pods.on(&etcd.url(), &format!("--user {user}"))
                .env("VULCANIZED_PASSWORD", password)
                .exits(code)
        };
        // A role for the backends alone is enough; the other spelling may not be read, silently.
        let answer = run("job", "s3cret", 0);
        assert_eq!(answer.err, "", "{answer}");
        let wrong = run("job", "wrong", 1);
        assert!(
            wrong.err.contains("user `job`") && wrong.err.contains("wrong name or password"),
            "{wrong}"
        );
        let denied = run("nobody", "s3cret", 1);
        assert!(
            denied.err.contains("permission denied") && denied.err.contains(ROOT),
            "{denied}"
        );
        let without = pods.on(&etcd.url(), "").exits(1);
        assert!(without.err.contains("give `--user`"), "{without}");
        pods.on(&etcd.url(), "")
            .env("ETCDCTL_USER", "job:s3cret")
            .exits(0);
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"s3cret\n").expect("it is written");
        let path = file.path().display();
        pods.on(&etcd.url(), &format!("--user job --password-file {path}"))
            .exits(0);
        // The token expires while the pods are listed.
        let api = Api::start(|request, _| {
            thread::sleep(Duration::from_secs(4));
            list(&[web(1), web(2)], request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let answer = vulcanized(&format!(
            "--owner other --etcd {} --user job -vv --share-backends",
            etcd.url()
        ))
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .env("VULCANIZED_PASSWORD", "s3cret")
        .exits(0);
        assert!(
            answer.err.contains("the token is not valid any more"),
            "{answer}"
        );
        assert!(answer.out.contains("1 created"), "{answer}");
    }
}

#[test]
fn servers_that_are_no_etcd() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("an address");
    let stopped = Etcd::start();
    stopped.signal("STOP");
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
        gone.local_addr().expect("an address")
    };
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let deaf_address = deaf.local_addr().expect("an address");
    let web_server = Api::start(|_, _| crate::support::api::Reply::new(404, "text/html", "no"));
    let ca = Files::new();
    let path = ca.write("ca.crt", &Authority::new().pem);
    let pods = Pods::new([web(1)]);
    for api in ["3", "2"] {
        for (url, words) in [
            (format!("http://{silent}"), ""),
            (stopped.url(), "within 1s"),
            (format!("http://{closed}"), "refused"),
            (format!("http://{deaf_address}"), "within 1s"),
            (format!("https://{deaf_address}"), "within 1s"),
            ("http://nowhere.invalid:2379".to_owned(), "resolve"),
            (web_server.url(), "a web server answers"),
        ] {
            let start = Instant::now();
            let more =
                format!("--etcd-api {api} --request-timeout 1s --timeout 5s --cacert {path}");
            let answer = pods.on(&url, &more).exits(1);
            assert!(
                answer.err.contains(words),
                "{url}: wanted `{words}`: {answer}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(9),
                "{url}: {:?}",
                start.elapsed()
            );
        }
        let both = format!("http://{closed},{}", stopped.url());
        let more = format!("--etcd-api {api} --request-timeout 1s");
        let answer = pods.on(&both, &more).exits(1);
        assert!(
            answer.err.contains("none of 2 endpoints answered"),
            "{answer}"
        );
    }
    drop(deaf);
    stopped.signal("CONT");
}

#[test]
fn endpoints_are_tried_in_order() {
    let etcd = Etcd::start();
    etcd.define("web");
    v2_put(&etcd, "/vulcand/backends/web/backend", r#"{"Type":"http"}"#);
    let pods = Pods::new([web(1)]);
    let closed = "http://127.0.0.1:1";
    for api in ["3", "2"] {
        let urls = format!("{closed},{}", etcd.url());
        pods.on(&urls, &format!("--etcd-api {api} --request-timeout 2s"))
            .exits(0);
    }
}

fn many(from: u32) -> Vec<Value> {
    // Ten backends of 200 pods.
    let pods = (from..from + 2_000).map(|n| {
        let app = format!("app-{}", n % 10);
        let ip = format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256);
        pod("default", &format!("{app}-{n}"), &app, &ip)
    });
    pods.collect()
}

fn addresses(pods: &[Value]) -> BTreeSet<String> {
    pods.iter()
        .map(|pod| pod["status"]["podIP"].as_str().expect("one").to_owned())
        .collect()
}

/// A killed member is gone for good: each loss has a cluster of its own.
fn losses(version: Version, how: &'static str) {
    for member in 0..3 {
        for middle in [false, true] {
            loss(&Arc::new(Cluster::start(version)), member, how, middle);
        }
    }
}

#[test]
fn each_of_three_members_killed_on_3_4() {
    losses(Version::V34, "KILL");
}

#[test]
fn each_of_three_members_killed_on_3_5() {
    losses(Version::V35, "KILL");
}

#[test]
fn each_of_three_members_stopped_on_3_4() {
    losses(Version::V34, "STOP");
}

#[test]
fn each_of_three_members_stopped_on_3_5() {
    losses(Version::V35, "STOP");
}

fn loss(cluster: &Arc<Cluster>, member: usize, how: &'static str, middle: bool) {
    for n in 0..10 {
        let key = format!("{ROOT}app-{n}/backend");
        cluster
            .ctl(&["put", &key, r#"{"Type":"http"}"#])
            .expect("it is defined");
    }
    let pods = many(1);
    let (lost, served) = (Arc::clone(cluster), pods.clone());
    let api = Api::start(move |request, number| {
        // The store was listed, the plan is not made: the middle of the run.
        if number == 0 && middle {
            lost.signal(member, how);
        }
        list(&served, request, 500)
    });
    if !middle {
        cluster.signal(member, how);
    }
    let kubeconfig = api.plain_kubeconfig();
    let run = || {
        let arguments =
            "--owner prod --cluster c1@00000000 -o summary --request-timeout 3s --timeout 20s";
        let start = Instant::now();
        let answer = vulcanized(&format!("{arguments} --etcd {}", cluster.urls()))
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .run();
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "{:?}: {answer}",
            start.elapsed()
        );
        answer
    };
    let first = run();
    assert!(matches!(first.code, 0 | 1), "{how} {member}: {first}");
    let mut last = first;
    for _ in 0..3 {
        if last.code == 0 {
            break;
        }
        last = run();
    }
    assert!(
        last.code == 0,
        "{how} {member}: the next run ends right: {last}"
    );
    let keys = cluster
        .ctl(&["get", "--prefix", "--keys-only", ROOT])
        .expect("keys");
    let found = keys
        .lines()
        .filter_map(|key| Some(key.split_once("/servers/")?.1.to_owned()));
    assert_eq!(
        found.collect::<BTreeSet<_>>(),
        addresses(&pods),
        "{how} {member}"
    );
}

/// Stands between the program and etcd, and drops the answer to one transaction.
struct Proxy {
    port: u16,
    /// Which transaction loses its answer, counted from 1 over all connections.
    _victim: Arc<AtomicUsize>,
    dead: Arc<AtomicBool>,
}

impl Proxy {
    /// `for_good`: nothing is passed on any more after that.
    fn start(etcd: u16, victim: usize, for_good: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let left = Arc::new(AtomicUsize::new(victim));
        let dead = Arc::new(AtomicBool::new(false));
        let (counter, end) = (Arc::clone(&left), Arc::clone(&dead));
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                if end.load(Ordering::SeqCst) {
                    continue; // Closed at once.
                }
                let server = TcpStream::connect(("127.0.0.1", etcd)).expect("etcd listens");
                let (counter, end) = (Arc::clone(&counter), Arc::clone(&end));
                thread::spawn(move || pass(client, server, &counter, &end, for_good));
            }
        });
        Self {
            port,
            _victim: left,
            dead,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn pass(
    client: TcpStream,
    server: TcpStream,
    left: &AtomicUsize,
    end: &Arc<AtomicBool>,
    for_good: bool,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let drop_it = Arc::new(AtomicBool::new(false));
    let (mut from_client, mut to_server) = (clone(&client), clone(&server));
    let (mut from_server, mut to_client) = (server, client);
    let (pending, victim) = (Arc::clone(&asked), Arc::clone(&drop_it));
    let answers = thread::spawn({
        let end = Arc::clone(end);
        move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from_server.read(&mut buffer) {
                // A window update is no answer: the answer to a transaction is told by its headers.
                let answer = buffer[..read].windows(4).any(|frame| frame == b"etcd") || read > 60;
                if victim.load(Ordering::SeqCst) && answer {
                    end.store(for_good, Ordering::SeqCst);
                    break;
                }
                if answer {
                    pending.store(false, Ordering::SeqCst);
                }
                if to_client.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(std::net::Shutdown::Both);
            let _ = from_server.shutdown(std::net::Shutdown::Both);
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from_client.read(&mut buffer) {
        let part = &buffer[..read];
        let transaction = part.windows(7).any(|window| window == b"\"Owner\"");
        if transaction && !asked.swap(true, Ordering::SeqCst) {
            let before = left.fetch_sub(1, Ordering::SeqCst);
            if before == 1 {
                drop_it.store(true, Ordering::SeqCst);
            }
        }
        if to_server.write_all(part).is_err() {
            break;
        }
    }
    let _ = answers.join();
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("another handle")
}

#[test]
fn an_answer_lost_on_the_wire_is_settled() {
    for version in [Version::V34, Version::V35] {
        lost_and_settled(&Etcd::version(version));
    }
}

fn lost_and_settled(etcd: &Etcd) {
    let pods = (1..=400).map(web).collect::<Vec<_>>();
    let file = Pods::new(pods.clone());
    for victim in 1..=3 {
        etcd.ctl(&["del", "--prefix", "/vulcand"]);
        etcd.define("web");
        let proxy = Proxy::start(etcd.port(), victim, false);
        let answer = file.on(&proxy.url(), "--request-timeout 3s").exits(0);
        let lines = answer
            .out
            .lines()
            .filter(|line| line.starts_with('+'))
            .collect::<Vec<_>>();
        let once = lines.iter().collect::<BTreeSet<_>>();
        assert_eq!(
            (lines.len(), once.len()),
            (400, 400),
            "each change is said once"
        );
        assert!(
            answer.out.contains("400 created"),
            "{}",
            answer.out.lines().last().expect("one")
        );
        assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 400);
        assert!(!proxy.dead.load(Ordering::SeqCst));
    }
}

#[test]
fn an_answer_lost_for_good_is_said() {
    for version in [Version::V34, Version::V35] {
        lost_for_good(&Etcd::version(version));
    }
}

fn lost_for_good(etcd: &Etcd) {
    etcd.define("web");
    let file = Pods::new((1..=400).map(web));
    let proxy = Proxy::start(etcd.port(), 2, true);
    let answer = file
        .on(&proxy.url(), "--request-timeout 2s --timeout 10s")
        .exits(1);
    let wanted = "applied 126 of 400 changes, 126 more unknown";
    assert!(answer.err.contains(wanted), "{}", answer.err);
    assert!(proxy.dead.load(Ordering::SeqCst));
    // It was applied: what is said is true.
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 252);
    file.on(&etcd.url(), "").exits(0);
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 400);
}

fn some_pods() -> impl Strategy<Value = BTreeSet<u32>> {
    prop::collection::btree_set(1..12_u32, 1..8)
}

#[test]
fn two_runs_at_once_on_3_4() {
    two_runs_at_once(Version::V34);
}

#[test]
fn two_runs_at_once_on_3_5() {
    two_runs_at_once(Version::V35);
}

fn two_runs_at_once(version: Version) {
    let mut runner = TestRunner::default();
    for api in ["3", "2"] {
        let etcd = Etcd::version(version);
        let foreign = r#"{"URL":"http://10.9.9.9:80"}"#;
        let (root, by_hand) = (
            format!("{ROOT}web/backend"),
            format!("{ROOT}web/servers/by-hand"),
        );
        for (key, value) in [(&root, r#"{"Type":"http"}"#), (&by_hand, foreign)] {
            etcd.put(key, value);
            v2_put(&etcd, key, value);
        }
        let more = format!("--etcd-api {api} --allow-empty -o summary");
        for round in 0..100 {
            let views = (some_pods(), some_pods())
                .new_tree(&mut runner)
                .expect("views")
                .current();
            let first = Pods::new(views.0.iter().copied().map(web));
            let second = Pods::new(views.1.iter().copied().map(web));
            let (one, two) = (
                first.on(&etcd.url(), &more).start(),
                second.on(&etcd.url(), &more).start(),
            );
            for child in [one, two] {
                let answer = Answer::from(child.wait_with_output().expect("it ends"));
                assert!(matches!(answer.code, 0 | 1), "{api} {round}: {answer}");
            }
            let quiet = second.on(&etcd.url(), &more).run();
            assert!(quiet.code == 0, "{api} {round} {views:?}: {quiet}");
            let found = servers(&etcd, api);
            let ids = found
                .iter()
                .filter(|(id, _)| id != "by-hand")
                .map(|(id, _)| id.clone());
            let wanted = addresses(&views.1.iter().copied().map(web).collect::<Vec<_>>());
            assert_eq!(ids.collect::<BTreeSet<_>>(), wanted, "{api} {round}");
            assert!(
                found.contains(&("by-hand".to_owned(), foreign.to_owned())),
                "{api} {round}"
            );
        }
    }
}

/// The servers of backend `web`: ids and values.
fn servers(etcd: &Etcd, api: &str) -> Vec<(String, String)> {
    let root = format!("{ROOT}web/servers/");
    if api == "3" {
        let found = etcd.get(&root).into_iter();
        return found
            .map(|(key, value)| (key[root.len()..].to_owned(), value))
            .collect();
    }
    let answer = v2(etcd, root.trim_end_matches('/'));
    let nodes = answer["node"]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |node: &Value, field: &str| node[field].as_str().expect("text").to_owned();
    nodes
        .iter()
        .map(|node| {
            (
                text(node, "key")[root.len()..].to_owned(),
                text(node, "value"),
            )
        })
        .collect()
}

/// Two thousand changes each time: all servers are replaced by others.
struct Churn {
    etcd: Etcd,
    sets: [(Pods, BTreeSet<String>); 2],
}

impl Churn {
    fn new(version: Version) -> Self {
        let etcd = Etcd::version(version);
        for n in 0..10 {
            etcd.define(&format!("app-{n}"));
        }
        let sets = [1, 5_001].map(|from| {
            let pods = many(from).into_iter().take(1_000).collect::<Vec<_>>();
            let ips = addresses(&pods);
            (Pods::new(pods), ips)
        });
        sets[0].0.on(&etcd.url(), "-o summary").exits(0);
        Self { etcd, sets }
    }

    /// No malformed value, and no backend without a server.
    fn check(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut served = BTreeSet::new();
        for (key, value) in self.etcd.get(ROOT) {
            let Some((backend, id)) = key.split_once("/servers/") else {
                continue;
            };
            let value = serde_json::from_str::<Value>(&value).expect("JSON");
            assert_eq!(value["URL"], format!("http://{id}:8080"));
            served.insert(backend.to_owned());
            found.insert(id.to_owned());
        }
        assert_eq!(served.len(), 10, "no backend is emptied");
        found
    }

    fn rounds(&self, how: &str) {
        let mut runner = TestRunner::default();
        let mut ended = 0;
        for round in 0..50 {
            let (pods, wanted) = &self.sets[(round + 1) % 2];
            let child = pods.on(&self.etcd.url(), "-o summary").start();
            let moment = (0..120_u64)
                .new_tree(&mut runner)
                .expect("a moment")
                .current();
            thread::sleep(Duration::from_millis(moment));
            // It may have ended by itself in the meantime.
            let _ = std::process::Command::new("kill")
                .args([&format!("-{how}"), &child.id().to_string()])
                .stderr(std::process::Stdio::null())
                .status();
            let answer = Answer::from(child.wait_with_output().expect("it ends"));
            if answer.code != 0 {
                ended += 1;
                // Before the first line of `main` a signal ends it as it ends any program.
                if how == "TERM" && answer.code != -1 {
                    assert!(
                        answer.code == 1 && answer.err.contains("ended by SIGTERM"),
                        "{answer}"
                    );
                }
            }
            self.check();
            let next = pods.on(&self.etcd.url(), "-o summary").exits(0);
            assert_eq!(self.check(), *wanted, "round {round}: {next}");
        }
        assert!(ended > 5, "some runs were ended early: {ended}");
    }
}

#[test]
fn ended_at_any_moment_on_3_4() {
    Churn::new(Version::V34).rounds("TERM");
}

#[test]
fn ended_at_any_moment_on_3_5() {
    Churn::new(Version::V35).rounds("TERM");
}

#[test]
fn killed_at_any_moment_on_3_4() {
    Churn::new(Version::V34).rounds("KILL");
}

#[test]
fn killed_at_any_moment_on_3_5() {
    Churn::new(Version::V35).rounds("KILL");
}

#[test]
fn signals_end_a_run_that_lists_at_once_as_pid_1_too() {
    let etcd = Etcd::start();
    etcd.define("web");
    let (sender, listed) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let api = Api::start(move |_, _| {
        sender
            .lock()
            .expect("no panic")
            .send(())
            .expect("the test listens");
        let mut reply = crate::support::api::Reply::new(200, "application/json", "");
        reply.silent = true;
        reply
    });
    let kubeconfig = api.plain_kubeconfig();
    for name in ["TERM", "INT"] {
        let arguments = format!("--owner prod --etcd {} --request-timeout 20s", etcd.url());
        let child = vulcanized(&arguments)
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .start();
        listed
            .recv_timeout(Duration::from_secs(10))
            .expect("the pods are listed");
        let start = Instant::now();
        signal(child.id(), name);
        let answer = Answer::from(child.wait_with_output().expect("it ends"));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(
            answer.code == 1 && answer.err.contains(&format!("ended by SIG{name}")),
            "{answer}"
        );
    }
    // As PID 1 of a namespace of its own: there no signal ends a process that has no handler.
    let mut child = std::process::Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            env!("CARGO_BIN_EXE_vulcanized"),
            "--owner",
            "prod",
        ])
        .args([
            "--etcd",
            &etcd.url(),
            "--request-timeout",
            "20s",
            "--kubeconfig",
        ])
        .arg(kubeconfig.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("unshare runs");
    listed
        .recv_timeout(Duration::from_secs(10))
        .expect("the pods are listed");
    let parent = child.id().to_string();
    let inner = poll("PID 1", || {
        let children = format!("/proc/{parent}/task/{parent}/children");
        std::fs::read_to_string(children)
            .ok()?
            .split_whitespace()
            .next()?
            .parse::<u32>()
            .ok()
    });
    let start = Instant::now();
    signal(inner, "TERM");
    let code = child.wait().expect("it ends").code();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(code, Some(1));
}

#[test]
fn a_signal_ends_a_run_whose_answer_is_lost() {
    let etcd = Etcd::start();
    etcd.define("web");
    let file = Pods::new((1..=4_000).map(web));
    let mut child = file
        .on(&etcd.url(), "--request-timeout 2s --timeout 30s")
        .start();
    // It says more than a pipe holds: it cannot end before the rest is read.
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    etcd.signal("STOP");
    let rest = thread::spawn(move || out.read_to_string(&mut String::new()));
    // Meanwhile a transaction gets under way that etcd does not answer.
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    signal(child.id(), "TERM");
    let answer = Answer::from(child.wait_with_output().expect("it ends"));
    etcd.signal("CONT");
    // One attempt's time, and not that of a listing on top.
    assert!(start.elapsed() < Duration::from_millis(3500), "{answer}");
    rest.join().expect("no panic").expect("stdout is UTF-8");
    assert!(
        answer.code == 1 && answer.err.contains("ended by SIGTERM"),
        "{answer}"
    );
    file.on(&etcd.url(), "").exits(0);
    assert_eq!(etcd.keys(&format!("{ROOT}web/servers/")).len(), 4_000);
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
