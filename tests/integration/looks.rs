//! `status` and `explain`, and what a dry run prints as lines: at 80 and 140 columns, with and without colour.
//! What comes out is kept in `fixtures/looks`; `BLESS=1` accepts it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::api::pod;
use crate::support::etcd::Etcd;
use crate::support::golden;
use crate::support::program::{Answer, Program, vulcanized};

/// A store with entries of every kind.
fn store() -> Value {
    let server = |owner: &str, scope: &str, pod: &str, url: &str| {
        json!({ "URL": url, "Owner": owner, "Scope": scope, "Pod": pod }).to_string()
    };
    let ours = |pod: &str, url: &str| server("prod", "file", pod, url);
    json!({
        "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
        "/vulcand/backends/web/servers/10.0.0.1": ours("shop/web-1", "http://10.0.0.1:8080"),
        "/vulcand/backends/web/servers/10.0.0.3": r#"{"URL":"http://10.0.0.99:8080"}"#,
        "/vulcand/backends/web/servers/10.0.0.8": ours("shop/web-8", "http://10.0.0.8:8080"),
        "/vulcand/backends/cart/backend": r#"{"Type":"http"}"#,
        "/vulcand/backends/cart/servers/10.0.1.1": ours("shop/cart-1", "http://10.0.1.1:8080"),
        "/vulcand/backends/pay/backend": r#"{"Type":"http"}"#,
        "/vulcand/backends/pay/servers/blue": server(
            "blue", "main@3f2a91c0 app=pay,tier!=test", "payments/pay-7d9f8c6b5-x2x4k", "https://10.7.0.1:8443"
        ),
        "/vulcand/backends/old/backend": r#"{"Type":"http","Settings":{"KeepAlive":{"Period":"soon"}}}"#,
        "/vulcand/backends/old/servers/a": "null",
        "/vulcand/backends/lost/servers/10.0.2.1": r#"{"URL":"http://10.0.2.1:8080"}"#,
        "/vulcand/backends/empty/backend": r#"{"Type":"http"}"#,
    })
}

/// Pods of all kinds: see the names.
fn pods() -> Value {
    let with = |mut pod: Value, change: fn(&mut Value)| {
        change(&mut pod);
        pod
    };
    let named = |name: &str, app: &str, ip: &str| pod("shop", name, app, ip);
    let mut several = named("several-ports", "web", "10.0.0.5");
    several["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": 8080 }, { "containerPort": 9090, "name": "admin" }]);
    json!({ "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": [
        named("web-1", "web", "10.0.0.1"),
        named("new", "web", "10.0.0.2"),
        named("conflict", "web", "10.0.0.3"),
        with(named("not-ready", "web", "10.0.0.4"), |pod| pod["status"]["conditions"] = json!([])),
        several,
        named("undefined", "nowhere", "10.0.0.6"),
        named("others", "pay", "10.0.0.7"),
        // It was in `cart`, alone.
        named("cart-1", "web", "10.0.1.1"),
        with(named("ignored", "web", "10.0.0.9"), |pod| {
            pod["metadata"]["annotations"] = json!({ "vulcanized.io/ignore": "yes" });
        }),
        with(named("annotated", "x", "10.0.0.10"), |pod| {
            pod["metadata"]["annotations"] =
                json!({ "vulcanized.io/backend": "web:8081, pay", "vulcanized.io/scheme": "https" });
        }),
        with(named("going", "web", "10.0.0.8"), |pod| {
            pod["metadata"]["name"] = json!("web-8");
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }),
        with(named("nameless", "x", "10.0.0.11"), |pod| pod["metadata"]["labels"] = json!({})),
    ] })
}

struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, value: &Value| {
            fs::write(folder.path().join(name), value.to_string()).expect("it is written");
        };
        write("store.json", &store());
        write("pods.json", &pods());
        Self(folder)
    }

    fn program(&self, arguments: &str) -> Program {
        vulcanized(arguments)
            .arg("--store-file")
            .arg(self.0.path().join("store.json"))
    }

    fn run(&self, arguments: &str) -> Program {
        self.program(&format!("--owner prod {arguments}"))
            .arg("--pods")
            .arg(self.0.path().join("pods.json"))
    }

    fn explain(&self, pod: &str, more: &str) -> Program {
        self.program(&format!("explain {pod} --owner prod {more}"))
            .arg("--pods")
            .arg(self.0.path().join("pods.json"))
    }
}

/// Compares with the file of this name in `fixtures/looks`.
#[track_caller]
pub(super) fn golden(name: &str, answer: &Answer) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/looks")
        .join(name);
    let got = format!("{}{}exit code {}\n", answer.out, answer.err, answer.code);
    golden::golden(&path, &got);
}

/// Compares the output at both widths, with and without colour; colour adds only escape sequences.
#[track_caller]
fn at_all_widths(name: &str, program: &dyn Fn() -> Program) {
    for columns in ["80", "140"] {
        let plain = program().env("COLUMNS", columns).run();
        golden(&format!("{name}.{columns}"), &plain);
        let colour = program()
            .env("COLUMNS", columns)
            .arg("--color")
            .arg("always")
            .run();
        golden(&format!("{name}.{columns}.colour"), &colour);
        let mut stripped = colour.out;
        while let Some(start) = stripped.find('\u{1b}') {
            let end = stripped[start..].find('m').expect("the colour's end");
            stripped.replace_range(start..=start + end, "");
        }
        assert_eq!(stripped, plain.out, "{name}");
    }
    let by_default = program().run();
    let narrow = program().env("COLUMNS", "80").run();
    assert_eq!(by_default.out, narrow.out, "80 columns by default");
}

#[test]
fn status_of_every_kind_of_entry() {
    let site = Site::new();
    at_all_widths("status", &|| site.program("status"));
    at_all_widths("status.web", &|| site.program("status web empty"));
    golden(
        "status.json",
        &site.program("status -o json lost old").exits(0),
    );
    let narrow = site.program("status").env("COLUMNS", "80").run();
    let table = narrow.out.lines().take_while(|line| !line.starts_with('!'));
    assert!(table.clone().count() > 8);
    for line in table {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let missing = site.program("status nosuch web").exits(1);
    assert!(missing.err.contains("no backend `nosuch`"), "{missing}");
    // `status` needs no owner, and writes nothing even with the flags of a run.
    let before = fs::read_to_string(site.0.path().join("store.json")).expect("the store");
    site.program("--owner prod --create-backends status")
        .exits(0);
    let after = fs::read_to_string(site.0.path().join("store.json")).expect("the store");
    assert_eq!(before, after);
}

#[test]
fn status_of_an_etcd_and_of_traefik() {
    let etcd = Etcd::start();
    for (key, value) in store().as_object().expect("an object") {
        etcd.put(key, value.as_str().expect("a text"));
    }
    let revision = etcd.revision();
    let answer = vulcanized("status cart --etcd").arg(etcd.url()).exits(0);
    assert!(
        answer
            .out
            .contains("cart     10.0.1.1  http://10.0.1.1:8080  prod   file   shop/cart-1"),
        "{answer}"
    );
    assert!(
        answer.out.contains("1 backend, 1 server: 1 prod"),
        "{answer}"
    );
    etcd.put(
        "traefik/http/services/web/loadBalancer/servers/prod.main-3f2a91c0.shop.10.0.0.1/url",
        "http://10.0.0.1:80",
    );
    etcd.put("traefik/http/routers/r/service", "web");
    let answer = vulcanized("status --layout traefik --etcd")
        .arg(etcd.url())
        .exits(0);
    let row = answer.out.lines().nth(1).unwrap_or_default();
    assert!(row.chars().count() <= 80, "{answer}");
    assert!(
        row.contains("  http://10.0.0.1:80  prod   main-3f…  shop/-"),
        "{answer}"
    );
    assert_eq!(etcd.revision(), revision + 2);
}

#[test]
fn explain_follows_a_pod() {
    let site = Site::new();
    for (pod, published) in [
        ("web-1", true),
        ("new", true),
        ("not-ready", false),
        ("several-ports", false),
        ("undefined", false),
        ("conflict", false),
        ("others", false),
        ("ignored", false),
        ("annotated", true),
        ("web-8", false),
        ("nameless", false),
        ("cart-1", true),
    ] {
        let name = format!("explain.{pod}");
        at_all_widths(&name, &|| site.explain(pod, ""));
        let code = if published { 0 } else { 3 };
        site.explain(&format!("shop/{pod}"), "").exits(code);
        // The run does what `explain` announced.
        let run = site.run("--dry-run -o json").run();
        let run = serde_json::from_str::<Value>(&run.out).expect("JSON");
        let changes = run["changes"].as_array().expect("a list");
        let creates = changes
            .iter()
            .any(|change| change["action"] == "create" && change["pod"] == format!("shop/{pod}"));
        let explained = site.explain(pod, "-o json").run();
        let explained = serde_json::from_str::<Value>(&explained.out).expect("JSON");
        let steps = explained["steps"].as_array().expect("a list");
        let predicts = |text: &str| {
            let mut steps = steps.iter();
            steps.any(|step| {
                step["step"] == "run"
                    && step["text"]
                        .as_str()
                        .is_some_and(|step| step.starts_with(text))
            })
        };
        assert_eq!(predicts("creates it"), creates, "{pod}: {explained}");
        assert_eq!(explained["published"], published, "{pod}");
    }
    golden("explain.json", &site.explain("annotated", "-o json").run());
    let held = site.explain("cart-1", "").run();
    assert!(held.out.contains("nothing: held"), "{held}");
}

/// One pod and one store for each further reason that `explain` knows.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn explain_follows_unusual_pods() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let web = || pod("shop", "web-1", "web", "10.0.0.1");
    let ours = |url: &str| {
        let value = json!({ "URL": url, "Owner": "prod", "Scope": "file", "Pod": "shop/web-1" });
        ("/vulcand/backends/web/servers/10.0.0.1", value.to_string())
    };
    let blue = r#"{"URL":"http://10.0.0.77:80","Owner":"blue","Scope":"x","Pod":"a/b"}"#;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut pod = web();
        change(&mut pod);
        pod
    };
    let annotated = |name: &str, text: &str| {
        changed(&|pod| {
            pod["metadata"]["annotations"] = json!({ format!("vulcanized.io/{name}"): text });
        })
    };
    let dual = || {
        changed(&|pod| pod["status"]["podIPs"] = json!([{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }]))
    };
    let not_ready = || changed(&|pod| pod["status"]["conditions"] = json!([]));
    let twin = {
        let mut twin = web();
        twin["metadata"]["name"] = json!("web-0");
        twin
    };
    let mut text = String::new();
    for (case, flags, pods, entry) in [
        ("a refused definition", "--backend old", vec![web()], None),
        (
            "one port without a name",
            "",
            vec![changed(&|pod| {
                pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80 }]);
            })],
            None,
        ),
        ("IPv4", "--ip-family ipv4", vec![dual()], None),
        ("IPv6", "--ip-family ipv6", vec![dual()], None),
        ("no IPv6", "--ip-family ipv6", vec![web()], None),
        (
            "a twin",
            "--server-id {ip}",
            vec![
                twin,
                changed(&|pod| {
                    pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 81 }]);
                }),
            ],
            None,
        ),
        (
            "another owner's entry",
            "--share-backends",
            vec![web()],
            Some((ours("").0, blue.to_owned())),
        ),
        (
            "a held update",
            "--port 9999",
            vec![web()],
            Some(ours("http://10.0.0.1:8080")),
        ),
        (
            "an update over budget",
            "--port 9999 --allow-deletes 1 --max-deletes 0",
            vec![web()],
            Some(ours("http://10.0.0.1:8080")),
        ),
        (
            "a delete over budget",
            "--strict-ready --max-deletes 0",
            vec![not_ready()],
            Some(ours("http://10.0.0.1:8080")),
        ),
        (
            "kept",
            "",
            vec![not_ready()],
            Some(ours("http://10.0.0.1:8080")),
        ),
        (
            "Ready without an address",
            "",
            vec![changed(&|pod| {
                pod["status"]
                    .as_object_mut()
                    .expect("an object")
                    .remove("podIP");
                pod["status"]["podIPs"] = json!([]);
            })],
            None,
        ),
        (
            "waiting",
            "",
            vec![changed(&|pod| {
                pod["status"] = json!({ "phase": "Pending" });
            })],
            None,
        ),
        (
            "completed",
            "",
            vec![changed(&|pod| pod["status"]["phase"] = json!("Succeeded"))],
            None,
        ),
        (
            "an address that cannot be read",
            "",
            vec![changed(&|pod| {
                pod["status"]["podIP"] = json!("010.0.0.1");
                pod["status"]["podIPs"] = json!([{ "ip": "010.0.0.1" }]);
            })],
            None,
        ),
        (
            "an undeclared port of the node",
            "--port 22",
            vec![changed(&|pod| pod["spec"]["hostNetwork"] = json!(true))],
            None,
        ),
        ("a bad annotation", "", vec![annotated("port", "0")], None),
        (
            "an unknown annotation",
            "",
            vec![annotated("prot", "80")],
            None,
        ),
        (
            "an empty field",
            "--server-id {label:zone}",
            vec![web()],
            None,
        ),
        ("a bad id", "--backend {name}/x", vec![web()], None),
        (
            "a bad first character",
            "--server-id .{ip}",
            vec![web()],
            None,
        ),
    ] {
        let mut tree = json!({
            "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
            "/vulcand/backends/old/backend": "[]",
        });
        if let Some((key, value)) = entry {
            tree[key] = json!(value);
        }
        fs::write(&store, tree.to_string()).expect("it is written");
        let list =
            json!({ "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": pods });
        let mut program =
            vulcanized("explain shop/web-1 --owner prod --pods - --store-file").arg(&store);
        for flag in flags.split_whitespace() {
            program = program.arg(flag);
        }
        let answer = program.input(list.to_string()).run();
        assert!([0, 3].contains(&answer.code), "{case}: {answer}");
        let Answer { code, out, err } = answer;
        text.extend([format!("# {case}: {flags}\n{out}{err}exit code {code}\n\n")]);
    }
    let all = Answer {
        code: 0,
        out: text,
        err: String::new(),
    };
    golden("explain.odd", &all);
}

#[test]
fn explain_of_unknown_and_ambiguous_pods() {
    let site = Site::new();
    let answer = site.explain("nosuch", "").exits(1);
    assert!(
        answer.err.contains("no pod `nosuch` among the 12"),
        "{answer}"
    );
    let answer = site.explain("blog/web-1", "").exits(1);
    assert!(answer.err.contains("no pod `blog/web-1`"), "{answer}");
    let answer = site.program("explain web-1 --pods -").exits(2);
    assert!(
        answer.err.contains("`--owner NAME` is required"),
        "{answer}"
    );
    let twice = json!({ "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": [
        pod("a", "web-1", "web", "10.0.0.1"),
        pod("b", "web-1", "web", "10.0.0.2"),
    ] });
    let answer = site
        .program(
            "explain web-1 --owner prod --backend {namespace}.{name} --create-backends --pods -",
        )
        .input(twice.to_string())
        .exits(1);
    assert!(
        answer.err.contains("give one of `a/web-1`, `b/web-1`"),
        "{answer}"
    );
}

#[test]
fn lines_of_a_dry_run() {
    let site = Site::new();
    at_all_widths("lines", &|| site.run("--dry-run -o lines"));
}

/// Lines that no scenario has: a server whose pod moved, one that moves with its further keys, one of another owner,
/// and entries that are out of scope for a single pod.
#[test]
fn lines_of_rare_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let run = |name: &str, arguments: &str, tree: &Value, pods: &Value| {
        fs::write(&store, tree.to_string()).expect("it is written");
        let answer = vulcanized(&format!(
            "--owner prod --dry-run -o lines --pods - {arguments} --store-file"
        ))
        .arg(&store)
        .input(pods.to_string())
        .run();
        golden(name, &answer);
    };
    let list = |pods: &[Value]| json!({ "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": pods });
    let web = pod("shop", "web-1", "web", "10.0.0.1");
    let server = |owner: &str, ip: &str| {
        let url = format!("http://{ip}:8080");
        json!({ "URL": url, "Owner": owner, "Scope": "file", "Pod": "shop/web-1" }).to_string()
    };
    let tree = |id: &str, value: &str| {
        json!({
            "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
            format!("/vulcand/backends/web/servers/{id}"): value,
        })
    };
    let moved = tree("web-1", &server("prod", "10.0.0.9"));
    run(
        "lines.moved-pod",
        "--server-id {pod}",
        &moved,
        &list(std::slice::from_ref(&web)),
    );
    let theirs = tree("10.0.0.1", &server("blue", "10.0.0.1"));
    run(
        "lines.others",
        "--share-backends",
        &theirs,
        &list(std::slice::from_ref(&web)),
    );
    let gone = tree("10.0.0.9", &server("prod", "10.0.0.9"));
    let mut single = web.clone();
    single["kind"] = json!("Pod");
    single["metadata"]["name"] = json!("web-2");
    run("lines.one-pod", "", &gone, &single);
    let services = "traefik/http/services/web/loadBalancer/servers";
    for (name, id, arguments) in [
        ("lines.further-keys", "0", "--adopt unmarked"),
        (
            "lines.renamed",
            "prod.file.shop.10.0.0.1",
            "--server-id {ip}:{port}",
        ),
    ] {
        let traefik = json!({
            "traefik/http/routers/web/service": "web",
            format!("{services}/{id}/url"): "http://10.0.0.1:8080",
            format!("{services}/{id}/weight"): "3",
        });
        let arguments = format!("--layout traefik {arguments}");
        run(
            name,
            &arguments,
            &traefik,
            &list(std::slice::from_ref(&web)),
        );
    }
    let both = json!({
        "traefik/http/routers/web/service": "web",
        format!("{services}/0/url"): "http://10.0.0.1:8080",
        format!("{services}/0/weight"): "3",
        format!("{services}/prod.file.shop.10.0.0.1/url"): "http://10.0.0.1:8080",
    });
    let pods = list(&[web]);
    run(
        "lines.moved-keys",
        "--layout traefik --adopt unmarked",
        &both,
        &pods,
    );
}

#[test]
fn status_names_other_prefixes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let tree = json!({
        "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
        "vulcand/backends/web/backend": r#"{"Type":"http"}"#,
        "/vulcan/backends/web/servers/10.0.0.1": r#"{"URL":"http://10.0.0.1:80"}"#,
    });
    fs::write(&store, tree.to_string()).expect("it is written");
    golden(
        "status.siblings",
        &vulcanized("status --prefix /vulcand --store-file")
            .arg(&store)
            .exits(0),
    );
}

/// With `-o json` a failed run prints a JSON document, also with `-q`.
#[test]
fn failed_runs_print_a_json_document() {
    let site = Site::new();
    for (arguments, exit) in [
        ("-o json --pods /nonexistent", 1),
        ("-o json -q --pods /nonexistent", 1),
        ("-o json --dry-run --pods /nonexistent", 1),
        ("explain web-1 -o json --pods /nonexistent", 1),
    ] {
        let answer = site
            .program(&format!("--owner prod {arguments}"))
            .exits(exit);
        let document = serde_json::from_str::<Value>(&answer.out).expect("JSON");
        assert_eq!(document["exit"], exit, "{answer}");
        let error = document["error"].as_str().expect("a text");
        assert!(error.contains("/nonexistent"), "{answer}");
        assert!(answer.err.contains(error), "{answer}");
    }
    let quiet = site.program("--owner prod -q --pods /nonexistent").exits(1);
    assert_eq!(quiet.out, "");
}

/// `-q` suppresses only output about what is in order.
#[test]
fn quiet_still_reports_mistakes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.json");
    let fresh = || {
        let store = json!({
            "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
            "/vulcand/backends/web/servers/10.0.0.1":
                r#"{"URL":"http://10.0.0.1:8080","Owner":"prod","Scope":"file","Pod":"shop/web-1"}"#,
        });
        fs::write(&path, store.to_string()).expect("it is written");
    };
    let run = |more: &str, others: &[Value]| {
        fresh();
        let mut items = vec![pod("shop", "web-1", "web", "10.0.0.1")];
        items.extend_from_slice(others);
        vulcanized(&format!("--owner prod {more} --pods - --store-file"))
            .arg(&path)
            .input(json!({ "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": items }).to_string())
            .exits(0)
            .out
    };
    let mut portless = pod("shop", "web-2", "web", "10.0.0.2");
    portless["spec"]["containers"][0]["ports"] = json!([]);
    let mut nameless = pod("shop", "job", "x", "10.0.0.3");
    nameless["metadata"]["labels"] = json!({});
    let mistake = "1 pod not published as meant: 1 without a port; `-v` names it";
    for more in [
        "",
        "-q",
        "-o summary",
        "-q -o summary",
        "--dry-run",
        "--dry-run -o lines",
    ] {
        let out = run(more, std::slice::from_ref(&portless));
        assert!(out.contains(mistake), "{more}: {out}");
    }
    let document = run("-o json -q", std::slice::from_ref(&portless));
    assert!(document.contains("no TCP port"), "{document}");
    assert_eq!(
        run("-q", &[nameless.clone()]),
        "",
        "the pod was not meant to be published"
    );
    assert!(run("", &[nameless]).contains("1 pod without a backend"));
    assert_eq!(run("-q", &[]), "");
}

/// A wait of more than two seconds is explained, on a terminal only.
#[test]
fn a_wait_is_explained_on_a_terminal() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let program = env!("CARGO_BIN_EXE_vulcanized");
    let arguments = format!(
        "--owner prod --pods - --etcd-api 2 --etcd {url} --timeout 4s --request-timeout 4s"
    );
    let script = format!("echo '{{\"kind\":\"List\",\"items\":[]}}' | {program} {arguments}");
    // `script` gives it a terminal.
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &script, "/dev/null"])
        .output()
        .expect("script runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(&format!("waiting for the store at {url}")),
        "{text}"
    );
    let answer = vulcanized(&arguments)
        .input(r#"{"kind":"List","items":[]}"#)
        .exits(1);
    assert!(!answer.err.contains("waiting"), "{answer}");
}
