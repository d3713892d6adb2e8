//! The Kubernetes API server: its answers, good and bad, and connections that fail.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::api::{Api, Framing, Listen, Reply, Request, list, pod, web};
use crate::support::certs::Authority;
use crate::support::program::{Answer, Program, vulcanized};
use crate::support::proxy::Proxy;

/// A store file with two servers of ours, in its own folder.
pub(super) struct Store {
    pub(super) folder: tempfile::TempDir,
    before: String,
}

impl Store {
    pub(super) fn new() -> Self {
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

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("store.json")
    }

    pub(super) fn program(&self, more: &str) -> Program {
        vulcanized(&format!("--owner prod --cluster c1@00000000 {more}"))
            .arg("--store-file")
            .arg(self.path())
    }

    #[track_caller]
    pub(super) fn is_untouched(&self, why: &str) {
        let now = fs::read_to_string(self.path()).expect("the store");
        assert_eq!(now, self.before, "{why}: the store is untouched");
    }
}

pub(super) fn in_sync(request: &Request) -> Reply {
    list(&[web(1), web(2)], request, 500)
}

#[track_caller]
pub(super) fn contains(answer: &Answer, text: &str, what: &str) {
    assert!(
        answer.err.contains(text),
        "{what}: wanted `{text}`, got:\n{answer}"
    );
}

/// Runs against a server with this handler, and checks the exit code, the message and that nothing was written.
/// Returns the requests. The timeouts are 60 seconds unless `more` sets others.
#[track_caller]
fn check_run(
    what: &str,
    more: &str,
    code: i32,
    message: &str,
    handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> Vec<Request> {
    let store = Store::new();
    let api = Api::start(handler);
    let kubeconfig = api.plain_kubeconfig();
    let answer = store
        .program(more)
        .env("VULCANIZED_TIMEOUT", "60s")
        .env("VULCANIZED_REQUEST_TIMEOUT", "60s")
        .kubeconfig(&kubeconfig)
        .run();
    assert!(answer.code == code, "{what}: wanted {code}, got:\n{answer}");
    contains(&answer, message, what);
    if code == 1 {
        contains(&answer, "/api/v1/", what);
    }
    store.is_untouched(what);
    api.requests()
}

#[test]
fn every_recorded_error() {
    for (name, message, code) in [
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
        check_run(name, "", code, message, move |_, _| {
            Reply::recorded(&format!("errors/{name}")).retry_after_the_run()
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
        let message = format!("answered {}: ", &name[..3]);
        check_run(name, "", 1, &message, move |_, _| {
            Reply::recorded(&format!("errors/{name}.protobuf")).retry_after_the_run()
        });
    }
}

#[test]
fn missing_slow_and_truncated_answers() {
    let with = |change: fn(&mut Reply)| {
        move |request: &Request, _: usize| {
            let mut reply = in_sync(request);
            change(&mut reply);
            reply
        }
    };
    let short = "--request-timeout 500ms";
    check_run(
        "silent",
        short,
        1,
        "no complete answer within 500ms",
        with(|reply| reply.silent = true),
    );
    check_run(
        "stalls",
        short,
        1,
        "no complete answer",
        with(|reply| reply.stall = Some(0)),
    );
    check_run(
        "stalls later",
        short,
        1,
        "no complete answer",
        with(|reply| reply.stall = Some(100)),
    );
    check_run("drips", short, 1, "no complete answer", |request, _| {
        let pods = (0..50).map(web).collect::<Vec<_>>();
        let mut reply = list(&pods, request, 500);
        reply.drip = Some(Duration::from_millis(200));
        reply
    });
    for tenth in 0..10 {
        for framing in [Framing::Chunked, Framing::Length, Framing::Neither] {
            let what = format!("cut at {tenth} tenths, {framing:?}");
            // A repeated request is answered with 503.
            let busy = || Reply::new(503, "text/plain", "busy").retry_after_the_run();
            let cut = move |mut reply: Reply| {
                reply.cut = Some(reply.body.len() * tenth / 10);
                reply.framing = framing;
                reply
            };
            check_run(&what, "", 1, "GET ", move |request, number| match number {
                0 => cut(in_sync(request)),
                _ => busy(),
            });
            check_run(
                &format!("protobuf, {what}"),
                "-A --backend {namespace}.{name}",
                1,
                "GET ",
                move |_, number| match number {
                    0 => cut(Reply::recorded("lists/mixed.protobuf")),
                    _ => busy(),
                },
            );
        }
    }
}

#[test]
fn answers_that_are_not_pod_lists() {
    check_run("HTML", "", 1, "`text/html`, not pods", |_, _| {
        Reply::new(200, "text/html", "<html>sign in</html>")
    });
    check_run("HTML as JSON", "", 1, "not JSON", |_, _| {
        Reply::new(200, "application/json", "<html>sign in</html>")
    });
    check_run(
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
    check_run("another kind", "", 1, "got a `ServiceList`", |_, _| {
        let meta = json!({ "resourceVersion": "1" });
        Reply::json(
            200,
            &json!({ "kind": "ServiceList", "metadata": meta, "items": [] }),
        )
    });
    check_run(
        "a redirect",
        "",
        1,
        "a redirect to http://elsewhere/",
        |_, _| Reply::new(302, "text/plain", "").header("Location", "http://elsewhere/"),
    );
    check_run(
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
    check_run("an empty list", "", 3, "", |_, _| {
        Reply::recorded("lists/200-unknown-namespace")
    });
}

#[test]
fn transient_errors_are_retried() {
    let seen = check_run("429 once", "", 0, "", |request, number| match number {
        0 => Reply::recorded("errors/429-overload").header("Retry-After", "1"),
        _ => in_sync(request),
    });
    assert_eq!(seen.len(), 2);
    for status in [500, 502, 503, 504] {
        check_run("passing", "", 0, "", move |request, number| match number {
            0 | 1 => Reply::new(status, "text/plain", "trouble"),
            _ => in_sync(request),
        });
    }
    let seen = check_run("403 once", "", 0, "", |request, number| match number {
        0 => Reply::recorded("errors/startup-2-403"),
        _ => in_sync(request),
    });
    assert_eq!(seen.len(), 2);
    let seen = check_run("403 always", "", 1, "answered 403", |_, _| {
        Reply::recorded("errors/403-anonymous")
    });
    assert_eq!(seen.len(), 2);
}

/// A restarting server resets connections: in the handshake, before or within an answer. The request is repeated unless
/// pods of its answer have been taken already.
#[test]
fn reset_connections_are_retried() {
    let number_of_requests = |cut: fn(&Reply) -> usize| {
        let handler = move |request: &Request, number: usize| {
            let mut reply = in_sync(request);
            if number < 2 {
                reply.cut = Some(cut(&reply));
            }
            reply
        };
        check_run("cut twice", "", 0, "", handler).len()
    };
    assert_eq!(number_of_requests(|_| 0), 3, "before the list");
    assert_eq!(number_of_requests(|_| 20), 3, "before its pods");
    let almost = |reply: &Reply| reply.body.len() - 10;
    assert_eq!(number_of_requests(almost), 3, "in the first page");
    let more = "-A --backend {namespace}.{name}";
    let seen = check_run("protobuf", more, 1, "closed before", |_, _| {
        let mut reply = Reply::recorded("lists/mixed.protobuf");
        reply.cut = Some(reply.body.len() - 10);
        reply
    });
    assert_eq!(seen.len(), 1, "pods of the answer were taken already");
    for secure in [true, false] {
        let store = Store::new();
        let respond = |request: &Request, _| in_sync(request);
        let api = if secure {
            Api::tls(respond)
        } else {
            Api::start(respond)
        };
        let through = |closed: usize, time: &str| {
            let (scheme, port) = api.url().rsplit_once(':').map_or_else(
                || panic!("a port"),
                |(scheme, port)| (scheme.to_owned(), port.parse().expect("a port")),
            );
            let proxy = Proxy::resetting(port, closed);
            let port = proxy.url().rsplit(':').next().map(str::to_owned);
            let server = format!("{scheme}:{}", port.expect("a port"));
            let kubeconfig = api.kubeconfig(&json!({ "server": server }), &json!({}));
            let answer = store
                .program(&format!("--timeout {time}"))
                .kubeconfig(&kubeconfig)
                .run();
            (answer, proxy.dropped())
        };
        let (answer, dropped) = through(3, "60s");
        assert_eq!((answer.code, dropped), (0, 3), "{secure}: {answer}");
        let (answer, dropped) = through(usize::MAX, "3s");
        assert_eq!(answer.code, 1, "{secure}: {answer}");
        assert!(dropped > 1, "{secure}: {answer}");
        contains(&answer, "the run's time is up (--timeout 3s)", "reset");
        // Over TLS either error may come first.
        let messages = ["the connection was reset", "it closed the connection"];
        assert!(
            messages.iter().any(|message| answer.err.contains(message)),
            "{answer}"
        );
    }
}

#[test]
fn an_expired_list_starts_over() {
    let pods = Arc::new((1..=2).map(web).collect::<Vec<_>>());
    let (once, always) = (Arc::clone(&pods), pods);
    let seen = check_run("410 once", "", 0, "", move |request, number| match number {
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
    let seen = check_run(
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
fn explain_counts_pods_of_a_restarted_list_once() {
    let pods = (1..=2).map(web).collect::<Vec<_>>();
    let api = Api::start(move |request, number| match number {
        1 => Reply::recorded("errors/410-gone-continue"),
        _ => list(&pods, request, 1),
    });
    let answer = Store::new()
        .program("explain web-1")
        .kubeconfig(&api.plain_kubeconfig())
        .exits(0);
    assert_eq!(api.requests().len(), 4);
    assert!(answer.out.contains("published after a run"), "{answer}");
}

#[test]
fn connection_refused_or_unknown_host() {
    let store = Store::new();
    let api = Api::start(|request, _| in_sync(request));
    let kubeconfig = api.plain_kubeconfig();
    drop(api);
    // A closed port refuses connections.
    let answer = store
        .program("--timeout 3s")
        .kubeconfig(&kubeconfig)
        .exits(1);
    contains(
        &answer,
        "connection refused; the run's time is up (--timeout 3s)",
        "refused",
    );
    store.is_untouched("refused");
    let nowhere = json!({ "server": "http://nowhere.invalid:1" });
    let api = Api::start(|request, _| in_sync(request));
    let kubeconfig = api.kubeconfig(&nowhere, &json!({}));
    let answer = store.program("").kubeconfig(&kubeconfig).exits(1);
    contains(&answer, "its name cannot be resolved", "no such name");
}

#[test]
fn certificates_that_do_not_verify() {
    let run = |api: &Api, cluster: &Value, message: &str, code: i32| {
        let store = Store::new();
        let kubeconfig = api.kubeconfig(cluster, &json!({}));
        let answer = store
            .program("--timeout 60s --request-timeout 60s")
            .kubeconfig(&kubeconfig)
            .exits(code);
        contains(&answer, message, message);
        store.is_untouched(message);
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
    let other = super::kubeconfig::base64_of(&Authority::new().pem);
    let other = json!({ "certificate-authority-data": other });
    run(&right, &other, "a CA that is not trusted", 1);
    let plain = Api::start(|request, _| in_sync(request));
    let secure = json!({
        "server": plain.url().replace("http:", "https:"),
        "certificate-authority-data": super::kubeconfig::base64_of(&Authority::new().pem),
    });
    run(&plain, &secure, "it does not speak TLS", 1);
    let insecure = json!({ "server": right.url().replace("https:", "http:") });
    run(&right, &insecure, "GET http://", 1);
}

#[test]
fn headers_and_queries_of_a_selected_list() {
    let store = Store::of_scope("c1@00000000 tier=a fields(spec.nodeName=a)");
    let pods = (3..=7).map(web).map(|mut pod| {
        pod["metadata"]["labels"]["tier"] = json!("a");
        // None of them replaces the stored pods, so that the run lists again without selectors.
        pod["metadata"]["labels"]["app"] = json!("other");
        pod
    });
    let pods = pods.collect::<Vec<_>>();
    let api = Api::tls(move |request, _| {
        let mut plain = request.clone();
        // The stand-in supports one field selector only, so the other one is removed.
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
        .kubeconfig(&kubeconfig)
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
    let packed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/kube/lists/gzip-100-pods.json.gz"
    );
    let packed = fs::read(packed).expect("a recording");
    let whole = serde_json::from_reader::<_, Value>(flate2::read::GzDecoder::new(&*packed));
    let version = whole.expect("JSON")["metadata"]["resourceVersion"].clone();
    let api = Api::start(move |_, number| match number {
        0 => Reply::new(200, "application/json", packed.clone()).header("Content-Encoding", "gzip"),
        // The recorded page has a continue token; the next page is empty.
        _ => Reply::json(
            200,
            &json!({
                "kind": "PodList",
                "metadata": { "resourceVersion": version },
                "items": [],
            }),
        ),
    });
    assert_eq!(pods_seen(&api), 100);
}

#[test]
fn a_recorded_list_in_protobuf_is_read() {
    let api = Api::start(|_, _| Reply::recorded("lists/mixed.protobuf"));
    assert_eq!(pods_seen(&api), 62);
}

/// How many pods a dry run over all namespaces sees.
#[track_caller]
fn pods_seen(api: &Api) -> u64 {
    let arguments = "-A --backend {namespace}.{name}.svc --dry-run -o json --create-backends";
    let answer = Store::new()
        .program(arguments)
        .kubeconfig(&api.plain_kubeconfig())
        .run();
    let report = serde_json::from_str::<Value>(&answer.out).unwrap_or_else(|_| panic!("{answer}"));
    report["counts"]["pods"].as_u64().expect("a number")
}

#[test]
fn several_namespaces_all_or_none() {
    let pods = vec![web(1), pod("blog", "web-9", "web", "10.0.0.9")];
    let (all, some) = (pods.clone(), pods);
    let seen = check_run(
        "two namespaces",
        "-n default -n blog --backend {namespace}.{name}.svc --dry-run",
        3,
        "",
        move |request, _| list(&all, request, 500),
    );
    assert_eq!(seen.len(), 2, "one list each");
    check_run(
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
