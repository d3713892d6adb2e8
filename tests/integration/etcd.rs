//! etcd: TLS, users and roles, servers that answer in its place, and version 2 of its API.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

use crate::docs::shell_blocks;
use crate::support::api::{Api, kubectl, list, pod, web};
use crate::support::certs::{Authority, Leaf};
use crate::support::etcd::{Etcd, ROOT_PASSWORD, Settings, VERSIONS, Version};
use crate::support::program::{Answer, PodsFile, Program, vulcanized};

const BACKENDS: &str = "/vulcand/backends/";
const WEB: &str = "/vulcand/backends/web/backend";

/// A folder with what the program is given: pods, certificates, passwords.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.pods(&[pod("default", "web-1", "web", "10.0.0.1")]);
        folder
    }

    fn pods(&self, pods: &[Value]) {
        self.write("pods.json", &kubectl(pods.iter().cloned()));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("it is written");
    }

    fn leaf(&self, name: &str, Leaf { certificate, key }: &Leaf) {
        self.write(&format!("{name}.pem"), certificate);
        self.write(&format!("{name}.key"), key);
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The program; `%name` in its arguments is a file of this folder.
    fn program(&self, arguments: &str) -> Program {
        let folder = format!("{}/", self.path().display());
        let arguments = arguments.replace('%', &folder);
        vulcanized(&format!(
            "--owner prod --pods {folder}pods.json {arguments}"
        ))
        .env("VULCANIZED_TIMEOUT", "60s")
        .env("VULCANIZED_REQUEST_TIMEOUT", "60s")
    }

    fn run(&self, arguments: &str) -> Answer {
        self.program(arguments).run()
    }
}

#[track_caller]
fn works(answer: &Answer) {
    assert_eq!(answer.code, 0, "{answer}");
}

/// Checks that it fails and that the message gives these reasons.
#[track_caller]
fn fails(folder: &Folder, arguments: &str, why: &[&str]) {
    let answer = folder.run(arguments);
    assert_eq!(answer.code, 1, "{arguments}\n{answer}");
    for why in why {
        let err = answer.err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(err.contains(why), "wanted `{why}`: {arguments}\n{answer}");
    }
    assert!(!answer.err.contains("s3cret"), "{answer}");
}

fn define(etcd: &Etcd) {
    etcd.define("web");
    etcd.put_v2(WEB, Some(r#"{"Type":"http"}"#));
}

/// The one pod is in both stores.
fn is_in(etcd: &Etcd) {
    let id = "web/servers/10.0.0.1";
    assert!(etcd.keys(BACKENDS).iter().any(|key| key == id));
    assert!(etcd.get_v2(&format!("{BACKENDS}{id}")).is_some());
}

#[test]
fn tls_matrix() {
    let authority = Authority::new();
    let other = Authority::new();
    let folder = Folder::new();
    folder.write("ca", &authority.pem);
    folder.write("other-ca", &other.pem);
    folder.leaf("client", &authority.leaf("client", &[]));
    folder.leaf("stranger", &other.leaf("client", &[]));
    for version in VERSIONS {
        let server = Etcd::set_up(version, &Settings::tls(&authority));
        let mutual = Etcd::set_up(version, &Settings::mutual(&authority));
        let elsewhere = Etcd::set_up(
            version,
            &Settings {
                tls: Some(authority.leaf("etcd", &["etcd.elsewhere"])),
                ..Settings::default()
            },
        );
        let plain = Etcd::version(version);
        let client = "--cert %client.pem --key %client.key";
        define(&server);
        define(&mutual);
        for api in ["--etcd-api 3", "--etcd-api 2"] {
            let url = server.url();
            let by_name = format!("https://localhost:{}", server.port());
            works(&folder.run(&format!("{api} --etcd {url} --cacert %ca")));
            // Without a scheme, `--cacert` means TLS, as with `etcdctl`.
            let bare = url.replace("https://", "");
            works(&folder.run(&format!("{api} --etcd {bare} --cacert %ca")));
            works(&folder.run(&format!("{api} --etcd {by_name} --cacert %ca {client}")));
            let untrusted = "signed by a CA that is not trusted";
            let wrong = format!("{api} --etcd {url} --cacert %other-ca");
            fails(&folder, &wrong, &[&url, untrusted]);
            fails(&folder, &format!("{api} --etcd {url}"), &[&url, untrusted]);
            // By its address and by a name.
            for host in ["127.0.0.1", "localhost"] {
                let url = format!("https://{host}:{}", elsewhere.port());
                let other = format!("{api} --etcd {url} --cacert %ca");
                let why = ["its certificate is for another name", "etcd.elsewhere"];
                fails(&folder, &other, &why);
            }
            let url = mutual.url();
            works(&folder.run(&format!("{api} --etcd {url} --cacert %ca {client}")));
            let missing = format!("{api} --etcd {url} --cacert %ca");
            fails(&folder, &missing, &[&url, "client certificate"]);
            let stranger = format!("{missing} --cert %stranger.pem --key %stranger.key");
            fails(&folder, &stranger, &[&url, "client certificate"]);
            let plaintext = format!("{api} --etcd http://127.0.0.1:{}", server.port());
            fails(&folder, &plaintext, &["TLS", "use `https://`"]);
            let reverse = format!("{api} --etcd https://127.0.0.1:{}", plain.port());
            fails(&folder, &reverse, &["not speak TLS", "use `http://`"]);
        }
        is_in(&server);
        is_in(&mutual);
    }
}

#[test]
fn user_matrix() {
    let folder = Folder::new();
    folder.write("password", "s3cret\n");
    folder.write("wrong", "s3cret-wrong");
    folder.write("root", ROOT_PASSWORD);
    for version in VERSIONS {
        let mut etcd = Etcd::version(version);
        etcd.define("web");
        // A user name does no harm while authentication is off.
        works(&folder.run(&format!(
            "--etcd {} --user x --password-file %wrong",
            etcd.url()
        )));
        etcd.add_user("prod", "s3cret", BACKENDS);
        etcd.add_user("elsewhere", "s3cret", "/elsewhere/");
        etcd.ctl(&["user", "add", "roleless:s3cret"]);
        etcd.enable_auth();
        folder.pods(&[pod("default", "web-2", "web", "10.0.0.2")]);
        let url = etcd.url();
        let at = format!("--etcd {url}");
        // A role for the backends alone is enough: that it may not read the other spelling of the prefix is not reported.
        let answer = folder.run(&format!("{at} --user prod --password-file %password"));
        works(&answer);
        assert_eq!(answer.err, "", "{answer}");
        assert_eq!(etcd.keys(BACKENDS), ["web/backend", "web/servers/10.0.0.2"]);
        works(&folder.program(&at).env("ETCDCTL_USER", "prod:s3cret").run());
        let by_environment = folder.program(&format!("{at} --user prod"));
        works(&by_environment.env("VULCANIZED_PASSWORD", "s3cret").run());
        works(&folder.run(&format!("{at} --user root --password-file %root")));
        fails(&folder, &at, &[&url, "give `--user`"]);
        let wrong = format!("{at} --user prod --password-file %wrong -v");
        fails(
            &folder,
            &wrong,
            &[&url, "user `prod`", "wrong name or password"],
        );
        let nobody = format!("{at} --user nobody --password-file %password");
        fails(
            &folder,
            &nobody,
            &["user `nobody`", "wrong name or password"],
        );
        for user in ["elsewhere", "roleless"] {
            let denied = format!("{at} --user {user} --password-file %password");
            fails(
                &folder,
                &denied,
                &["permission denied", "`/vulcand/backends/`"],
            );
        }
        // A user who may read but not write.
        etcd.add_reader("reader", "s3cret", BACKENDS);
        folder.pods(&[pod("default", "web-3", "web", "10.0.0.3")]);
        let reader = format!("{at} --user reader --password-file %password");
        let range =
            "`/vulcand/backends/web/servers/10.0.0.2` to `/vulcand/backends/web/servers/10.0.0.3`";
        fails(
            &folder,
            &reader,
            &["permission denied", range, "applied 0 of"],
        );
        assert_eq!(etcd.keys(BACKENDS), ["web/backend", "web/servers/10.0.0.2"]);
        folder.pods(&[pod("default", "web-1", "web", "10.0.0.1")]);
    }
}

#[test]
fn user_matrix_on_v2() {
    let folder = Folder::new();
    folder.write("password", "s3cret\n");
    folder.write("wrong", "s3cret-wrong");
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        define(&etcd);
        etcd.enable_auth_v2("prod", "s3cret", "/vulcand/backends/*");
        let url = etcd.url();
        let at = format!("--etcd-api 2 --etcd {url}");
        works(&folder.run(&format!("{at} --user prod --password-file %password")));
        let again = folder.run(&format!("{at} --user prod --password-file %password"));
        assert!(again.out.contains("in sync"), "{again}");
        fails(&folder, &at, &[&url, "401", "give `--user`"]);
        let wrong = format!("{at} --user prod --password-file %wrong -v");
        fails(&folder, &wrong, &[&url, "401", "user `prod`"]);
        let elsewhere = format!("{at} --user prod --password-file %password --prefix /elsewhere");
        fails(&folder, &elsewhere, &["401", "elsewhere"]);
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
            let why = refused.expect_err(key);
            assert!(why.contains("permission denied"), "{key}: {why}");
        }
    }
}

/// A server that handles each connection with `serve`.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    // It ends with the test's process.
    thread::spawn(move || {
        // The streams stay open.
        let mut streams = Vec::new();
        for stream in listener.incoming().flatten() {
            streams.push(stream.try_clone());
            serve(stream);
        }
    });
    port
}

#[test]
fn endpoints_that_do_not_answer_as_etcd() {
    let folder = Folder::new();
    // No server listens on port 1.
    let closed = 1;
    let stopped = Etcd::start();
    stopped.signal("STOP");
    let etcd = Etcd::start();
    define(&etcd);
    let silent = server(|_| {});
    let slammed = server(|stream| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let web = server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno",
        );
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let moved = server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(
            b"HTTP/1.1 301 Moved\r\nLocation: http://u:s3cret@else.where/\r\nContent-Length: 0\r\n\r\n",
        );
    });
    for api in ["--etcd-api 3", "--etcd-api 2"] {
        let check = |url: &str, why: &[&str]| {
            fails(&folder, &format!("{api} --etcd {url}"), why);
        };
        check(&format!("http://127.0.0.1:{closed}"), &["refused"]);
        let unknown = ["resolve", "lookup address"];
        check("http://no-such-host.invalid:2379", &unknown);
        let short = "--request-timeout 2s";
        check(
            &format!("http://127.0.0.1:{silent} {short}"),
            &["answer within 2s"],
        );
        check(&format!("{} {short}", stopped.url()), &["answer within 2s"]);
        check(
            &format!("https://127.0.0.1:{silent} {short}"),
            &["within 2s"],
        );
        check(
            &format!("https://127.0.0.1:{slammed}"),
            &["closed the connection"],
        );
        check(&format!("http://127.0.0.1:{slammed}"), &["closed"]);
        // The next endpoint is asked.
        for port in [closed, slammed] {
            let urls = format!("http://127.0.0.1:{port},{}", etcd.url());
            works(&folder.run(&format!("{api} --etcd {urls}")));
        }
        // Each endpoint is reported with its own problem.
        check(
            &format!("http://127.0.0.1:{closed},http://127.0.0.1:{silent} {short}"),
            &[
                "none of 2 endpoints answered",
                "refused",
                "answer within 2s",
            ],
        );
    }
    let http = |port| format!("--etcd http://127.0.0.1:{port}");
    fails(&folder, &http(web), &["a web server", "not etcd"]);
    // Each endpoint is reported with its own problem.
    let both = format!("{},http://127.0.0.1:{closed}", http(web));
    let first = format!("127.0.0.1:{web}: a web server answers there");
    let second = format!("127.0.0.1:{closed}: failed to connect");
    fails(&folder, &both, &[&first, &second]);
    // `--timeout` ends the run before all endpoints were asked.
    let late = format!("{0},http://127.0.0.1:{silent} --timeout 3s", http(silent));
    fails(
        &folder,
        &late,
        &["time is up (--timeout 3s)", "no answer within"],
    );
    let v2 = |port| format!("--etcd-api 2 {}", http(port));
    fails(&folder, &v2(web), &["a web server answers at", "not etcd"]);
    fails(
        &folder,
        &v2(moved),
        &["301", "redirect to http://***@else.where/"],
    );
}

#[test]
fn v2_switched_off_is_reported() {
    for version in VERSIONS {
        let settings = Settings {
            no_v2: true,
            ..Settings::default()
        };
        let etcd = Etcd::set_up(version, &settings);
        let folder = Folder::new();
        let v2 = format!("--etcd-api 2 --etcd {}", etcd.url());
        fails(
            &folder,
            &v2,
            &["version 2 is switched off", "--enable-v2", "--etcd-api 3"],
        );
    }
}

#[test]
fn a_token_that_expires_mid_run_is_renewed() {
    for version in VERSIONS {
        let settings = Settings {
            token_ttl: Some(1),
            ..Settings::default()
        };
        let mut etcd = Etcd::set_up(version, &settings);
        etcd.define("web");
        etcd.add_user("prod", "s3cret", BACKENDS);
        etcd.enable_auth();
        let etcd = Arc::new(etcd);
        let store = Arc::clone(&etcd);
        let pods = [pod("default", "web-1", "web", "10.0.0.1")];
        // The pods arrive after the token with which the store was listed has expired.
        let api = Api::start(move |request, _| {
            store.wait_until_tokens_expire();
            list(&pods, request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let arguments = format!(
            "--owner prod --cluster c1@00000000 --etcd {} --user prod",
            etcd.url()
        );
        let answer = vulcanized(&arguments)
            .kubeconfig(&kubeconfig)
            .env("VULCANIZED_PASSWORD", "s3cret")
            .env("RUST_LOG", "vulcanized=debug")
            .run();
        works(&answer);
        assert_eq!(etcd.keys(BACKENDS), ["web/backend", "web/servers/10.0.0.1"]);
        let expired = "the token is no longer valid";
        assert!(answer.err.contains(expired), "{answer}");
        let authenticated = answer.err.matches("authenticating as `prod`").count();
        assert_eq!(authenticated, 2, "{answer}");
        assert!(!answer.err.contains("s3cret"), "{answer}");
    }
}

#[test]
fn v2_events_match_the_plan() {
    for version in VERSIONS {
        let etcd = Etcd::version(version);
        etcd.put_v2(WEB, Some(r#"{"Type":"http"}"#));
        PodsFile::new((1..=3).map(web))
            .on(&etcd.url(), "--etcd-api 2")
            .exits(0);
        let before = etcd.index_v2();
        let mut changed = web(2);
        changed["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
        let pods = PodsFile::new([changed, web(3), web(4), web(5)]);
        let planned = pods
            .on(&etcd.url(), "--etcd-api 2 --dry-run -o json")
            .exits(0);
        assert_eq!(etcd.index_v2(), before, "a dry run writes nothing");
        pods.on(&etcd.url(), "--etcd-api 2").exits(0);
        let events = (before + 1..=etcd.index_v2()).map(|index| etcd.event_v2("/vulcand", index));
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
        assert_eq!(etcd.index_v2(), before + 4, "the second run writes nothing");
    }
}

#[test]
fn v2_entries_that_stop_vulcand_are_findings() {
    let etcd = Etcd::start();
    etcd.put_v2(WEB, Some(r#"{"Type":"http"}"#));
    let server = Some(r#"{"URL":"http://10.9.9.9:80"}"#);
    etcd.put_v2("/vulcand/backends/old/servers/x", server);
    etcd.put_v2("/vulcand/backends/empty", None);
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
