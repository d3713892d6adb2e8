//! The Kubernetes side, as the program as a whole shows it: any credentials, any weather.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::api::{Api, Framing, Listen, Reply, Request, list, pod};
use crate::support::certs::Authority;
use crate::support::etcd::poll;
use crate::support::program::{Answer, Program, vulcanized};

/// A store with two servers of ours and a folder to keep it in.
struct Store {
    folder: tempfile::TempDir,
    before: String,
}

impl Store {
    fn new() -> Self {
        Self::of_scope("c1@00000000")
    }

    fn of_scope(scope: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = |n: u8| {
            let url = format!("http://10.0.0.{n}:8080");
            let pod = format!("default/web-{n}");
            format!(r#"{{"URL":"{url}","Owner":"prod","Scope":"{scope}","Pod":"{pod}"}}"#)
        };
        let store = json!({
            "/vulcand/backends/web/backend": r#"{"Type":"http"}"#,
            "/vulcand/backends/web/servers/10.0.0.1": server(1),
            "/vulcand/backends/web/servers/10.0.0.2": server(2),
        });
        let before = format!("{store:#}\n");
        fs::write(folder.path().join("store.json"), &before).expect("it is written");
        Self { folder, before }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.json")
    }

    fn program(&self, more: &str) -> Program {
        vulcanized(&format!("--owner prod --cluster c1@00000000 {more}"))
            .arg("--store-file")
            .arg(self.path())
    }

    #[track_caller]
    fn is_untouched(&self, why: &str) {
        let now = fs::read_to_string(self.path()).expect("the store");
        assert_eq!(now, self.before, "{why}: the store is untouched");
    }
}

fn web(n: u8) -> Value {
    pod(
        "default",
        &format!("web-{n}"),
        "web",
        &format!("10.0.0.{n}"),
    )
}

fn in_sync(request: &Request) -> Reply {
    list(&[web(1), web(2)], request, 500)
}

#[track_caller]
fn contains(answer: &Answer, text: &str, what: &str) {
    assert!(
        answer.err.contains(text),
        "{what}: wanted `{text}`, got:\n{answer}"
    );
}

/// Runs against a server that answers so, and demands exit code, words, a bound, and no write.
#[track_caller]
fn weather(
    what: &str,
    more: &str,
    code: i32,
    words: &str,
    handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> Vec<Request> {
    let store = Store::new();
    let api = Api::start(handler);
    let kubeconfig = api.plain_kubeconfig();
    let start = Instant::now();
    let more = format!("--timeout 2s --request-timeout 500ms {more}");
    let answer = store
        .program(&more)
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .run();
    assert!(answer.code == code, "{what}: wanted {code}, got:\n{answer}");
    contains(&answer, words, what);
    if code == 1 {
        contains(&answer, "/api/v1/", what);
    }
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{what}: {:?}",
        start.elapsed()
    );
    store.is_untouched(what);
    api.requests()
}

#[test]
fn every_recorded_error() {
    for (name, words, code) in [
        ("400-bad-continue", "answered 400", 1),
        ("400-bad-fieldselector", "answered 400", 1),
        ("400-bad-labelselector", "answered 400", 1),
        ("400-http-on-https", "use `https://`", 1),
        ("401-bad-token", "answered 401: Unauthorized", 1),
        ("403-all-namespaces", "answered 403: pods is forbidden", 1),
        ("403-anonymous", "answered 403: pods is forbidden", 1),
        ("403-other-namespace", "answered 403: pods is forbidden", 1),
        ("404-unknown-path", "answered 404", 1),
        ("406-accept", "answered 406", 1),
        ("410-gone-continue", "answered 410", 1),
        ("429-overload", "answered 429", 1),
        ("504-too-large-resourceversion", "answered 504", 1),
        ("etcd-down-rv-unset", "answered 504", 1),
        ("startup-2-403", "answered 403", 1),
    ] {
        weather(name, "", code, words, move |_, _| {
            Reply::recorded(&format!("errors/{name}"))
        });
    }
    for name in [
        "400-bad-continue",
        "400-bad-fieldselector",
        "400-bad-labelselector",
        "401-bad-token",
        "403-anonymous",
        "404-unknown-path",
        "504-too-large-resourceversion",
    ] {
        let words = format!("answered {}: ", &name[..3]);
        weather(name, "", 1, &words, move |_, _| {
            Reply::recorded(&format!("errors/{name}.protobuf"))
        });
    }
}

#[test]
fn servers_that_do_not_answer_in_full() {
    let with = |change: fn(&mut Reply)| {
        move |request: &Request, _: usize| {
            let mut reply = in_sync(request);
            change(&mut reply);
            reply
        }
    };
    weather(
        "silent",
        "",
        1,
        "no whole answer within 500ms",
        with(|reply| reply.silent = true),
    );
    weather(
        "stalls",
        "",
        1,
        "no whole answer",
        with(|reply| reply.stall = Some(0)),
    );
    weather(
        "stalls later",
        "",
        1,
        "no whole answer",
        with(|reply| reply.stall = Some(100)),
    );
    weather("drips", "", 1, "no whole answer", |request, _| {
        let pods = (0..50).map(web).collect::<Vec<_>>();
        let mut reply = list(&pods, request, 500);
        reply.drip = Some(Duration::from_millis(200));
        reply
    });
    for tenth in 0..10 {
        for framing in [Framing::Chunked, Framing::Length, Framing::Neither] {
            let what = format!("cut at {tenth} tenths, {framing:?}");
            weather(&what, "", 1, "GET ", move |request, _| {
                let mut reply = in_sync(request);
                reply.cut = Some(reply.body.len() * tenth / 10);
                reply.framing = framing;
                reply
            });
            weather(
                &format!("protobuf, {what}"),
                "-A --backend {namespace}.{name}",
                1,
                "",
                move |_, _| {
                    let mut reply = Reply::recorded("lists/mixed.protobuf");
                    reply.cut = Some(reply.body.len() * tenth / 10);
                    reply.framing = framing;
                    reply
                },
            );
        }
    }
}

#[test]
fn answers_that_are_no_pods() {
    weather("HTML", "", 1, "`text/html`, not pods", |_, _| {
        Reply::new(200, "text/html", "<html>sign in</html>")
    });
    weather("HTML as JSON", "", 1, "not JSON", |_, _| {
        Reply::new(200, "application/json", "<html>sign in</html>")
    });
    weather(
        "no resourceVersion",
        "",
        1,
        "without a resourceVersion",
        |_, _| {
            Reply::json(
                200,
                &json!({ "kind": "PodList", "metadata": {}, "items": [] }),
            )
        },
    );
    weather("another kind", "", 1, "got a `ServiceList`", |_, _| {
        let meta = json!({ "resourceVersion": "1" });
        Reply::json(
            200,
            &json!({ "kind": "ServiceList", "metadata": meta, "items": [] }),
        )
    });
    weather(
        "a redirect",
        "",
        1,
        "a redirect to http://elsewhere/",
        |_, _| Reply::new(302, "text/plain", "").header("Location", "http://elsewhere/"),
    );
    weather(
        "another namespace",
        "",
        1,
        "of another namespace",
        |_, _| {
            let meta = json!({ "resourceVersion": "1" });
            let pods = [pod("other", "a", "web", "10.0.0.1")];
            Reply::json(
                200,
                &json!({ "kind": "PodList", "metadata": meta, "items": pods }),
            )
        },
    );
    weather("an empty list", "", 3, "", |_, _| {
        Reply::recorded("lists/200-unknown-namespace")
    });
}

#[test]
fn weather_that_passes() {
    let seen = weather("429 once", "", 0, "", |request, number| match number {
        0 => Reply::recorded("errors/429-overload").header("Retry-After", "1"),
        _ => in_sync(request),
    });
    assert_eq!(seen.len(), 2);
    for status in [500, 502, 503, 504] {
        weather("passing", "", 0, "", move |request, number| match number {
            0 | 1 => Reply::new(status, "text/plain", "trouble"),
            _ => in_sync(request),
        });
    }
    let seen = weather("403 once", "", 0, "", |request, number| match number {
        0 => Reply::recorded("errors/startup-2-403"),
        _ => in_sync(request),
    });
    assert_eq!(seen.len(), 2);
    let seen = weather("403 always", "", 1, "answered 403", |_, _| {
        Reply::recorded("errors/403-anonymous")
    });
    assert_eq!(seen.len(), 2);
}

#[test]
fn an_expired_list_starts_over() {
    let pods = Arc::new((1..=2).map(web).collect::<Vec<_>>());
    let (once, always) = (Arc::clone(&pods), pods);
    let seen = weather("410 once", "", 0, "", move |request, number| match number {
        1 => Reply::recorded("errors/410-gone-continue"),
        _ => list(&once, request, 1),
    });
    let tokens = seen
        .iter()
        .map(|request| request.query.get("continue").cloned());
    let one = Some("1".to_owned());
    assert_eq!(
        tokens.collect::<Vec<_>>(),
        [None, one.clone(), None, one],
        "from the start"
    );
    let seen = weather(
        "410 always",
        "",
        1,
        "too old",
        move |request, _| match request.query.get("continue") {
            Some(_) => Reply::recorded("errors/410-gone-continue"),
            None => list(&always, request, 1),
        },
    );
    assert_eq!(
        seen.len(),
        8,
        "four lists of two requests, and the other token never"
    );
    assert!(
        seen.iter()
            .all(|request| request.query.get("continue").is_none_or(|t| t == "1"))
    );
}

#[test]
fn nobody_listens() {
    let store = Store::new();
    let api = Api::start(|request, _| in_sync(request));
    let kubeconfig = api.plain_kubeconfig();
    drop(api);
    // The port may take a moment to close; from then on it refuses.
    let answer = store
        .program("--timeout 2s")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .exits(1);
    contains(
        &answer,
        "connection refused; the run's time is up (--timeout 2s)",
        "refused",
    );
    store.is_untouched("refused");
    let nowhere = json!({ "server": "http://nowhere.invalid:1" });
    let api = Api::start(|request, _| in_sync(request));
    let kubeconfig = api.kubeconfig(&nowhere, &json!({}));
    let answer = store
        .program("")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .exits(1);
    contains(&answer, "its name cannot be resolved", "no such name");
}

#[test]
fn certificates_that_do_not_fit() {
    let run = |api: &Api, cluster: &Value, words: &str, code: i32| {
        let store = Store::new();
        let kubeconfig = api.kubeconfig(cluster, &json!({}));
        let answer = store
            .program("--timeout 3s --request-timeout 1s")
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .exits(code);
        contains(&answer, words, words);
        store.is_untouched(words);
    };
    let hosts = |hosts: &'static [&'static str]| {
        let listen = Listen {
            hosts: Some(hosts),
            ..Listen::default()
        };
        Api::listen(&listen, |request, _| in_sync(request))
    };
    let wrong = hosts(&["kubernetes.example.com"]);
    run(&wrong, &json!({}), "its certificate is for another name", 1);
    run(
        &wrong,
        &json!({ "tls-server-name": "kubernetes.example.com" }),
        "",
        0,
    );
    run(
        &wrong,
        &json!({ "insecure-skip-tls-verify": true, "certificate-authority-data": "" }),
        "is not verified",
        0,
    );
    let right = hosts(&["127.0.0.1"]);
    run(&right, &json!({}), "", 0);
    let other = base64_of(&Authority::new().pem);
    let other = json!({ "certificate-authority-data": other });
    run(&right, &other, "a CA that is not trusted", 1);
    let plain = Api::start(|request, _| in_sync(request));
    let secure = json!({
        "server": plain.url().replace("http:", "https:"),
        "certificate-authority-data": base64_of(&Authority::new().pem),
    });
    run(&plain, &secure, "it does not speak TLS", 1);
    let insecure = json!({ "server": right.url().replace("https:", "http:") });
    run(&right, &insecure, "GET http://", 1);
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(text)
}

/// Serves those who send this token, or a client certificate where no token is demanded.
fn for_token(token: &'static str) -> impl Fn(&Request, usize) -> Reply + Send + Sync {
    move |request, _| match request.headers.get("authorization") {
        Some(given) if *given == format!("Bearer {token}") => in_sync(request),
        _ => Reply::recorded("errors/401-bad-token"),
    }
}

#[test]
fn credentials_of_a_kubeconfig() {
    let run = |api: &Api, user: &Value, code: i32| {
        let store = Store::new();
        let kubeconfig = api.kubeconfig(&json!({}), user);
        store
            .program("--timeout 3s")
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .exits(code)
    };
    let api = Api::tls(for_token("s3cret-token"));
    run(&api, &json!({ "token": "s3cret-token" }), 0);
    contains(&run(&api, &json!({}), 1), "answered 401", "no token");
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(b"s3cret-token\n").expect("it is written");
    run(&api, &json!({ "tokenFile": file.path() }), 0);
    let provider = json!({ "auth-provider": { "name": "gcp" } });
    contains(
        &run(&api, &provider, 1),
        "auth provider `gcp`",
        "an auth provider",
    );
    let basic = Api::tls(|request, _| match request.headers.get("authorization") {
        Some(given) if *given == format!("Basic {}", base64_of("me:s3cret")) => in_sync(request),
        _ => Reply::recorded("errors/401-bad-token"),
    });
    run(
        &basic,
        &json!({ "username": "me", "password": "s3cret" }),
        0,
    );
    let listen = Listen {
        hosts: Some(&["127.0.0.1"]),
        client_certificate: true,
    };
    let mutual = Api::listen(&listen, |request, _| in_sync(request));
    let leaf = mutual.authority().leaf("me", &["me"]);
    let user = json!({
        "client-certificate-data": base64_of(&leaf.certificate),
        "client-key-data": base64_of(&leaf.key),
    });
    run(&mutual, &user, 0);
    contains(
        &run(&mutual, &json!({}), 1),
        "client certificate",
        "no certificate",
    );
}

#[test]
fn a_token_file_is_read_again_when_it_was_refused() {
    let store = Store::new();
    let token = store.folder.path().join("token");
    fs::write(&token, "old").expect("it is written");
    let renewed = token.clone();
    let api = Api::tls(move |request, _| {
        if request
            .headers
            .get("authorization")
            .is_some_and(|given| given == "Bearer new")
        {
            return in_sync(request);
        }
        fs::write(&renewed, "new").expect("it is written");
        Reply::recorded("errors/401-bad-token")
    });
    let kubeconfig = api.kubeconfig(&json!({}), &json!({ "tokenFile": token }));
    store
        .program("")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .exits(0);
    assert_eq!(api.requests().len(), 2);
}

fn plugin(folder: &tempfile::TempDir, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.path().join("plugin");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may run");
    path
}

fn exec(command: &std::path::Path, version: &str) -> Value {
    json!({ "exec": {
        "apiVersion": format!("client.authentication.k8s.io/{version}"),
        "command": command,
        "args": ["get", "credential"],
        "env": [{ "name": "GREETING", "value": "hello" }],
        "installHint": "install it from the shelf",
        "provideClusterInfo": true,
        "interactiveMode": "Never",
    } })
}

#[test]
fn exec_plugins_that_work() {
    for version in ["v1", "v1beta1"] {
        let store = Store::new();
        let api = Api::tls(for_token("from-plugin-hello-get"));
        let script = format!(
            r#"case "$KUBERNETES_EXEC_INFO" in *'"server":"{}"'*) ;; *) exit 7;; esac
printf '{{"apiVersion":"client.authentication.k8s.io/{version}","kind":"ExecCredential",'
printf '"status":{{"token":"from-plugin-%s-%s"}}}}' "$GREETING" "$1""#,
            api.url()
        );
        let user = exec(&plugin(&store.folder, &script), version);
        let kubeconfig = api.kubeconfig(&json!({}), &user);
        store
            .program("")
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .env("PATH", "/bin:/usr/bin")
            .exits(0);
    }
    let store = Store::new();
    let listen = Listen {
        hosts: Some(&["127.0.0.1"]),
        client_certificate: true,
    };
    let api = Api::listen(&listen, |request, _| in_sync(request));
    let leaf = api.authority().leaf("me", &["me"]);
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": { "clientCertificateData": leaf.certificate, "clientKeyData": leaf.key },
    });
    let answer = store.folder.path().join("credential.json");
    fs::write(&answer, credential.to_string()).expect("it is written");
    let script = format!("cat {}", answer.display());
    let kubeconfig = api.kubeconfig(&json!({}), &exec(&plugin(&store.folder, &script), "v1"));
    store
        .program("")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .env("PATH", "/bin:/usr/bin")
        .exits(0);
}

/// What a plugin has started ends with it: at the time-out and at a signal.
#[test]
fn children_of_exec_plugins_end_with_them() {
    let api = Api::tls(for_token("never"));
    for (ending, signal) in [("time-out", false), ("signal", true)] {
        let store = Store::new();
        let pid = store.folder.path().join("pid");
        // The child holds none of the plugin's pipes.
        let script = format!(
            "sleep 60 >/dev/null 2>&1 </dev/null & echo $! > {0}.new; mv {0}.new {0}; wait",
            pid.display()
        );
        let kubeconfig = api.kubeconfig(&json!({}), &exec(&plugin(&store.folder, &script), "v1"));
        let time = if signal { "60s" } else { "1s" };
        let child = store
            .program(&format!("--request-timeout {time} --timeout 60s"))
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .env("PATH", "/bin:/usr/bin")
            .start();
        let sleeping = poll("the plugin's child", || fs::read_to_string(&pid).ok());
        let state = format!("/proc/{}/stat", sleeping.trim());
        if signal {
            crate::support::etcd::signal(child.id(), "TERM");
        }
        let answer = Answer::from(child.wait_with_output().expect("it ends"));
        assert_eq!(answer.code, 1, "{ending}: {answer}");
        // Gone, or dead and not yet collected by whoever inherited it.
        poll(&format!("{ending}: the end of the child"), || {
            let text = fs::read_to_string(&state);
            text.map_or(true, |text| text.contains(") Z "))
                .then_some(())
        });
    }
}

#[test]
fn exec_plugins_that_do_not() {
    let api = Api::tls(for_token("never"));
    for (script, words) in [
        (
            "echo no luck >&2; exit 3",
            "it ended with exit status: 3: no luck",
        ),
        ("sleep 30", "it did not end within 500ms"),
        ("echo rubbish-t0ken", "its output is no ExecCredential"),
        (
            r#"echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential"}'"#,
            "its output has no status",
        ),
        (
            r#"echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{}}'"#,
            "neither a token nor a certificate",
        ),
        (r#"echo '{"kind":"Pod"}'"#, "its output is a `Pod`"),
    ] {
        let store = Store::new();
        let kubeconfig = api.kubeconfig(&json!({}), &exec(&plugin(&store.folder, script), "v1"));
        let start = Instant::now();
        let answer = store
            .program("--request-timeout 500ms -vvv")
            .arg("--kubeconfig")
            .arg(kubeconfig.path())
            .env("PATH", "/bin:/usr/bin")
            .exits(1);
        contains(&answer, words, script);
        contains(&answer, "exec plugin `", script);
        assert!(!answer.err.contains("t0ken"), "{answer}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{script}: {:?}",
            start.elapsed()
        );
        store.is_untouched(script);
    }
    let store = Store::new();
    let missing = exec(std::path::Path::new("/nonexistent/plugin"), "v1");
    let kubeconfig = api.kubeconfig(&json!({}), &missing);
    let answer = store
        .program("")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .exits(1);
    contains(
        &answer,
        "install it from the shelf",
        "a plugin that is not there",
    );
    let kubeconfig = api.kubeconfig(&json!({}), &exec(std::path::Path::new("x"), "v9"));
    let answer = store
        .program("")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .exits(1);
    contains(
        &answer,
        "wants apiVersion `client.authentication.k8s.io/v9`",
        "a strange version",
    );
}

#[test]
fn what_the_server_sees() {
    let store = Store::of_scope("c1@00000000 tier=a fields(spec.nodeName=a)");
    let pods = (3..=7).map(web).map(|mut pod| {
        pod["metadata"]["labels"]["tier"] = json!("a");
        // None of them replaces ours, so that those are looked for.
        pod["metadata"]["labels"]["app"] = json!("other");
        pod
    });
    let pods = pods.collect::<Vec<_>>();
    let api = Api::tls(move |request, _| {
        let mut plain = request.clone();
        // The stand-in knows one field: what else is selected is taken out before it answers.
        let fields = plain
            .query
            .get_mut("fieldSelector")
            .expect("one is always sent");
        *fields = fields.replace("spec.nodeName=a,", "");
        list(&pods, &plain, 2)
    });
    let kubeconfig = api.plain_kubeconfig();
    store
        .program("-l tier=a --field-selector spec.nodeName=a --dry-run")
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .run();
    let requests = api.requests();
    assert_eq!(
        requests.len(),
        3 + 3,
        "three pages, and once more without selectors"
    );
    for (number, request) in requests.iter().enumerate() {
        assert_eq!(
            request.headers["user-agent"],
            concat!("vulcanized/", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            request.headers["accept"],
            "application/vnd.kubernetes.protobuf, application/json"
        );
        assert_eq!(
            request.headers["accept-encoding"], "gzip",
            "with a kubeconfig"
        );
        assert_eq!(request.query["limit"], "500");
        assert!(!request.query.contains_key("resourceVersion"));
        assert_eq!(request.connection, 0, "one connection for all");
        let completed = "status.phase!=Failed,status.phase!=Succeeded";
        if number < 3 {
            assert_eq!(request.query["labelSelector"], "tier=a");
            assert_eq!(
                request.query["fieldSelector"],
                format!("spec.nodeName=a,{completed}")
            );
        } else {
            assert!(!request.query.contains_key("labelSelector"));
            assert_eq!(request.query["fieldSelector"], completed);
        }
    }
}

#[test]
fn a_recorded_compressed_list_is_read() {
    let store = Store::new();
    let packed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/kube/lists/gzip-100-pods.json.gz"
    );
    let packed = fs::read(packed).expect("a recording");
    let whole = serde_json::from_reader::<_, Value>(flate2::read::GzDecoder::new(&*packed));
    let version = whole.expect("JSON")["metadata"]["resourceVersion"].clone();
    let api = Api::start(move |_, number| match number {
        0 => Reply::new(200, "application/json", packed.clone()).header("Content-Encoding", "gzip"),
        // It was recorded as a page of more: here it is the last but one.
        _ => Reply::json(
            200,
            &json!({
                "kind": "PodList",
                "metadata": { "resourceVersion": version },
                "items": [],
            }),
        ),
    });
    let kubeconfig = api.plain_kubeconfig();
    let arguments = "-A --backend {namespace}.{name}.svc --dry-run -o json --create-backends";
    let answer = store
        .program(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .run();
    let report = serde_json::from_str::<Value>(&answer.out).unwrap_or_else(|_| panic!("{answer}"));
    assert_eq!(report["counts"]["pods"], 100);
}

#[test]
fn a_recorded_list_in_protobuf_is_read() {
    let store = Store::new();
    let api = Api::start(|_, _| Reply::recorded("lists/mixed.protobuf"));
    let kubeconfig = api.plain_kubeconfig();
    let arguments = "-A --backend {namespace}.{name}.svc --dry-run -o json --create-backends";
    let answer = store
        .program(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig.path())
        .run();
    let report = serde_json::from_str::<Value>(&answer.out).unwrap_or_else(|_| panic!("{answer}"));
    assert_eq!(report["counts"]["pods"], 62);
}

#[test]
fn several_namespaces_all_or_none() {
    let pods = vec![web(1), pod("blog", "web-9", "web", "10.0.0.9")];
    let (all, some) = (pods.clone(), pods);
    let seen = weather(
        "two namespaces",
        "-n default -n blog --backend {namespace}.{name}.svc --dry-run",
        3,
        "",
        move |request, _| list(&all, request, 500),
    );
    assert_eq!(seen.len(), 2, "one list each");
    weather(
        "one of two refused",
        "-n blog -n default --backend {namespace}.{name}.svc",
        1,
        "answered 403",
        move |request, _| {
            if request.path.contains("default") {
                Reply::recorded("errors/403-other-namespace")
            } else {
                list(&some, request, 500)
            }
        },
    );
}

#[test]
fn the_service_account_of_a_pod() {
    use vulcanized::internals::kube::{Options, Selection};
    use vulcanized::internals::net::deadline::Deadline;
    let api = Api::tls(for_token("of-the-pod"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write =
        |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("token", "of-the-pod\n");
    write("ca.crt", &api.authority().pem);
    write("namespace", "shop");
    let port = api.url().rsplit_once(':').expect("a port").1.to_owned();
    let options = Options {
        service: Some(("127.0.0.1".to_owned(), port)),
        service_account: folder.path().to_owned(),
        ..Options::default()
    };
    let deadline = Deadline::start(Duration::from_secs(10), Duration::from_secs(5));
    let mut client =
        vulcanized::internals::kube::Api::open(&options, deadline).expect("a service account");
    assert_eq!(client.namespace(), "shop");
    assert_eq!(client.cluster().len(), 8);
    let selection = Selection {
        namespace: Some("default"),
        labels: None,
        fields: None,
    };
    let pods = client
        .list(&selection, &mut |pod| pod.name.into_owned())
        .expect("a list");
    assert_eq!(pods, ["web-1", "web-2"]);
    let request = &api.requests()[0];
    assert_eq!(
        request.headers["accept-encoding"], "identity",
        "the network is near"
    );
    fs::remove_file(folder.path().join("token")).expect("it was there");
    let error = vulcanized::internals::kube::Api::open(&options, deadline)
        .err()
        .expect("no token");
    assert!(error.to_string().contains("not in a pod"), "{error}");
}

/// The same kubeconfigs, read by kubectl and by us: cluster, user and namespace come out alike.
#[test]
fn merged_kubeconfigs_are_read_as_kubectl_reads_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let servers = [(); 3].map(|()| {
        Api::tls(|request, _| {
            let token = request
                .headers
                .get("authorization")
                .cloned()
                .unwrap_or_default();
            let namespace = request.path.split('/').nth(4).expect("a namespace");
            Reply::json(
                400,
                &json!({ "message": format!("token {token} in {namespace}") }),
            )
        })
    });
    let url = |n: usize| servers[n].url();
    let write = |name: &str, config: &Value| {
        let path = folder.path().join(name);
        fs::write(&path, config.to_string()).expect("it is written");
        path
    };
    fs::write(folder.path().join("token-of-b"), "from-a-file").expect("it is written");
    let first = write(
        "a",
        &json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{ "name": "one", "cluster": { "server": url(0), "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "me", "user": { "token": "first" } }],
            "contexts": [
                { "name": "x", "context": { "cluster": "one", "user": "me", "namespace": "ns-x" } },
                { "name": "z", "context": { "cluster": "three", "user": "file" } },
            ],
        }),
    );
    let second = write(
        "b",
        &json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "y",
            "clusters": [
                { "name": "one", "cluster": { "server": url(1), "insecure-skip-tls-verify": true } },
                { "name": "two", "cluster": { "server": url(1), "insecure-skip-tls-verify": true } },
                { "name": "three", "cluster": { "server": url(2), "insecure-skip-tls-verify": true } },
            ],
            "users": [
                { "name": "me", "user": { "token": "second" } },
                { "name": "you", "user": { "token": "yours" } },
                { "name": "file", "user": { "tokenFile": "token-of-b" } },
            ],
            "contexts": [
                { "name": "x", "context": { "cluster": "two", "user": "you" } },
                { "name": "y", "context": { "cluster": "two", "user": "me", "namespace": "ns-y" } },
            ],
        }),
    );
    let third = write(
        "c",
        &json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x" }),
    );
    let missing = folder.path().join("missing");
    let kubectl = crate::support::etcd::test_tools().join("bin/kubectl");
    assert!(kubectl.exists(), "no kubectl: run `tests/setup`");
    for (files, context) in [
        (vec![&first, &second, &third], None),
        (vec![&third, &second, &first], None),
        (vec![&missing, &second, &first], Some("x")),
        (vec![&first, &second], Some("x")),
        (vec![&first, &second], Some("z")),
    ] {
        let list = std::env::join_paths(&files).expect("paths");
        let mut command = std::process::Command::new(&kubectl);
        command
            .env("KUBECONFIG", &list)
            .args(["config", "view", "--minify", "--raw", "-o", "json"]);
        command.args(context.map(|name| format!("--context={name}")));
        let output = command.output().expect("kubectl runs");
        let theirs = serde_json::from_slice::<Value>(&output.stdout).expect("JSON");
        let server = theirs["clusters"][0]["cluster"]["server"]
            .as_str()
            .expect("a server");
        let user = &theirs["users"][0]["user"];
        let token = match user["tokenFile"].as_str() {
            Some(path) => fs::read_to_string(folder.path().join(path)).expect("a token"),
            None => user["token"].as_str().expect("a token").to_owned(),
        };
        let namespace = theirs["contexts"][0]["context"]["namespace"]
            .as_str()
            .unwrap_or("default");
        let store = Store::new();
        let more = context.map_or(String::new(), |name| format!("--context {name}"));
        let answer = store.program(&more).env("KUBECONFIG", &list).exits(1);
        let words = format!("token Bearer {token} in {namespace}");
        contains(&answer, &words, &format!("{files:?} {context:?}"));
        contains(
            &answer,
            &format!("GET {server}/"),
            &format!("{files:?} {context:?}"),
        );
    }
}

#[test]
fn a_proxy_is_used_where_it_is_named() {
    // The stand-in plays the proxy: it sees who is asked for.
    let proxy = Api::start(|_, _| Reply::new(502, "text/plain", "no way through"));
    let store = Store::new();
    let run = |cluster: &Value, proxies: &[(&str, &str)]| {
        let api = Api::start(|request, _| in_sync(request));
        let mut whole = json!({ "server": "https://api.example.com:6443" });
        for (key, value) in cluster.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let kubeconfig = api.kubeconfig(&whole, &json!({}));
        let program = store
            .program("--timeout 1s --request-timeout 500ms")
            .arg("--kubeconfig")
            .arg(kubeconfig.path());
        proxies
            .iter()
            .fold(program, |program, (name, value)| program.env(name, value))
            .run();
    };
    let seen = || proxy.requests().len();
    run(&json!({ "proxy-url": proxy.url() }), &[]);
    assert_eq!(seen(), 1, "proxy-url");
    run(&json!({}), &[("HTTPS_PROXY", &proxy.url())]);
    assert_eq!(seen(), 2, "HTTPS_PROXY");
    run(
        &json!({}),
        &[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", ".example.com")],
    );
    run(&json!({}), &[("HTTP_PROXY", &proxy.url())]);
    assert_eq!(seen(), 2, "NO_PROXY, and a proxy for the other scheme");
}

#[test]
fn no_secret_is_ever_said() {
    let secrets = ["s3cret-token", "s3cret-password", "s3cret-etcd"];
    let store = Store::new();
    let api = Api::start(|request, _| in_sync(request));
    for user in [
        json!({ "token": "s3cret-token" }),
        json!({ "username": "me", "password": "s3cret-password" }),
    ] {
        let kubeconfig = api.kubeconfig(&json!({}), &user);
        for more in [
            "-vvv --dry-run",
            "-vvv",
            "--help",
            "-vvv --etcd http://u:s3cret-etcd@127.0.0.1:1",
        ] {
            let program = if more.contains("--etcd") {
                vulcanized(&format!("--owner prod --timeout 1s {more}"))
            } else {
                store.program(more)
            };
            let answer = program
                .arg("--kubeconfig")
                .arg(kubeconfig.path())
                .env("VULCANIZED_PASSWORD", "s3cret-password")
                .env("VULCANIZED_USER", "me")
                .env("ETCDCTL_USER", "me:s3cret-etcd")
                .env("RUST_LOG", "trace")
                .run();
            // A dump in hexadecimal has what is printable in its last column, some bytes a line.
            let dumped = answer.err.lines();
            let dumped = dumped
                .filter_map(|line| line.split_whitespace().last())
                .collect::<String>();
            let said = format!("{}{}{dumped}", answer.out, answer.err);
            for secret in secrets
                .iter()
                .copied()
                .chain([base64_of("me:s3cret-password").as_str()])
            {
                assert!(!said.contains(secret), "{more} says {secret}:\n{said}");
            }
        }
    }
}
