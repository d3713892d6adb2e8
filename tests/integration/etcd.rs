//! etcd, API versions 2 and 3: events, TLS, users and roles, and servers that are not etcd.

use std::io::Write as _;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::docs::shell_blocks;
use crate::support::api::{Api, kubectl, pod, web};
use crate::support::certs::{Authority, Leaf};
use crate::support::etcd::{Etcd, ROOT, Version};
use crate::support::program::{PodsFile, vulcanized};

pub(super) fn v2(etcd: &Etcd, path: &str) -> Value {
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

pub(super) fn v2_put(etcd: &Etcd, key: &str, value: &str) {
    let url = format!("{}/v2/keys{key}", etcd.url());
    ureq::put(&url)
        .send_form([("value", value)])
        .expect("the key is set");
}

#[test]
fn v2_events_match_the_plan() {
    for version in [Version::V34, Version::V35] {
        let etcd = Etcd::version(version);
        v2_put(&etcd, "/vulcand/backends/web/backend", r#"{"Type":"http"}"#);
        PodsFile::new((1..=3).map(web))
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
        let pods = PodsFile::new([changed, web(3), web(4), web(5)]);
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
fn v2_entries_that_stop_vulcand_are_findings() {
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
    let answer = PodsFile::new([web(1)])
        .on(&etcd.url(), "--etcd-api 2")
        .exits(0);
    assert!(answer.out.contains("/vulcand/backends/empty"), "{answer}");
    let command = format!(
        "ETCDCTL_API=2 etcdctl --endpoints='{}' set '/vulcand/backends/old/backend'",
        etcd.url()
    );
    assert!(answer.out.contains(&command), "{answer}");
    // v2 and v3 are separate stores.
    let other = PodsFile::new([web(1)]).on(&etcd.url(), "").exits(1);
    assert!(other.err.contains("--etcd-api"), "{other}");
}

#[test]
fn v2_switched_off_in_etcd() {
    let etcd = Etcd::with(Version::V34, "http", &["--enable-v2=false"], &[]);
    let answer = PodsFile::new([web(1)])
        .on(&etcd.url(), "--etcd-api 2")
        .exits(1);
    assert!(answer.err.contains("version 2 is switched off"), "{answer}");
}

/// A folder of certificate files.
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
fn tls_with_and_without_client_certificates() {
    let files = Files::new();
    let authority = Authority::new();
    let ca = files.write("ca.crt", &authority.pem);
    let other = files.write("other.crt", &Authority::new().pem);
    let (cert, key) = files.leaf("server", &authority.leaf("etcd", &["127.0.0.1"]));
    let (client, client_key) = files.leaf("client", &authority.leaf("root", &["client"]));
    let client_auth_flags = format!("--cacert {ca} --cert {client} --key {client_key}");
    let ca_flag = format!("--cacert {ca}");
    let pods = PodsFile::new([web(1)]);
    let check = |url: &str, more: &str, reason: Option<&str>| {
        for api in ["3", "2"] {
            let more = format!("--etcd-api {api} --create-backends --request-timeout 60s {more}");
            let answer = pods.on(url, &more).run();
            match reason {
                None => assert!(answer.code == 0, "{more}: {answer}"),
                Some(reason) => {
                    assert!(answer.code == 1, "{more}: {answer}");
                    assert!(
                        answer.err.contains(reason),
                        "{more}: wanted `{reason}`: {answer}"
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
        check(&simple.url(), &ca_flag, None);
        // Without a scheme, `--cacert` means TLS, as with `etcdctl`.
        check(&simple.url().replace("https://", ""), &ca_flag, None);
        check(&simple.url(), &client_auth_flags, None);
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
        check(&mutual.url(), &client_auth_flags, None);
        check(&mutual.url(), &ca_flag, Some("client certificate"));
        // The certificate is valid for the address, not for this name.
        let renamed = simple.url().replace("127.0.0.1", "localhost");
        check(
            &renamed,
            &ca_flag,
            Some("its certificate is for another name"),
        );
        let plain = Etcd::version(version);
        check(&plain.url().replace("http", "https"), &ca_flag, Some("TLS"));
    }
}

#[test]
fn the_documented_roles_are_sufficient_and_minimal() {
    let roles = shell_blocks("the_documented_roles_are_sufficient_and_minimal");
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
            let arguments = line.strip_prefix("etcdctl ").expect("a command");
            let mut arguments = arguments.split_whitespace().collect::<Vec<_>>();
            if arguments.starts_with(&["user", "add"]) {
                // On a terminal, etcdctl prompts for the password.
                arguments.push("--new-user-password=secret");
            }
            etcd.ctl(&arguments);
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
        // The role may not write definitions of routers or frontends.
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
fn users_and_roles_of_v3() {
    for version in [Version::V34, Version::V35] {
        let mut etcd = Etcd::version(version);
        etcd.define("web");
        for arguments in [
            &["user", "add", "job:s3cret"][..],
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
        ] {
            etcd.ctl(arguments);
        }
        etcd.enable_auth();
        let pods = PodsFile::new([web(1)]);
        let run = |user: &str, password: &str, code: i32| {
            pods.on(&etcd.url(), &format!("--user {user}"))
                .env("VULCANIZED_PASSWORD", password)
                .exits(code)
        };
        // A role for the backends alone is enough: a denied read of the other prefix spelling is not reported.
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
    }
}

#[test]
fn servers_that_are_not_etcd() {
    let stopped = Etcd::start();
    stopped.signal("STOP");
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
        gone.local_addr().expect("an address")
    };
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_address = silent.local_addr().expect("an address");
    let web_server = Api::start(|_, _| crate::support::api::Reply::new(404, "text/html", "no"));
    let ca = Files::new();
    let path = ca.write("ca.crt", &Authority::new().pem);
    let pods = PodsFile::new([web(1)]);
    for api in ["3", "2"] {
        for (url, time, reason) in [
            (stopped.url(), "1s", "within 1s"),
            (format!("http://{closed}"), "60s", "refused"),
            (format!("http://{silent_address}"), "1s", "within 1s"),
            (format!("https://{silent_address}"), "1s", "within 1s"),
            ("http://nowhere.invalid:2379".to_owned(), "60s", "resolve"),
            (web_server.url(), "60s", "a web server answers"),
        ] {
            let more =
                format!("--etcd-api {api} --request-timeout {time} --timeout 60s --cacert {path}");
            let answer = pods.on(&url, &more).exits(1);
            assert!(
                answer.err.contains(reason),
                "{url}: wanted `{reason}`: {answer}"
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
    drop(silent);
    stopped.signal("CONT");
}

#[test]
fn endpoints_are_tried_in_order() {
    let etcd = Etcd::start();
    etcd.define("web");
    v2_put(&etcd, "/vulcand/backends/web/backend", r#"{"Type":"http"}"#);
    let pods = PodsFile::new([web(1)]);
    let closed = "http://127.0.0.1:1";
    for api in ["3", "2"] {
        let urls = format!("{closed},{}", etcd.url());
        pods.on(&urls, &format!("--etcd-api {api} --request-timeout 60s"))
            .exits(0);
    }
}
