//! Kubeconfigs, their credentials, and the service account of a pod, with a server that checks them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::kube::{Store, contains, in_sync};
use crate::support::api::{Api, Listen, Reply, Request};
use crate::support::etcd::poll;
use crate::support::program::{ended, kubectl, vulcanized};

pub(super) fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(text)
}

/// Serves requests with this token; all others get a 401.
fn for_token(token: &'static str) -> impl Fn(&Request, usize) -> Reply + Send + Sync {
    move |request, _| match request.headers.get("authorization") {
        Some(given) if *given == format!("Bearer {token}") => in_sync(request),
        _ => Reply::recorded("errors/401-bad-token"),
    }
}

/// What is sent for each credential is tested in `credentials`.
#[test]
fn refused_and_unsupported_credentials_are_explained() {
    let explained = |api: &Api, user: &Value, reason: &str| {
        let kubeconfig = api.kubeconfig(&json!({}), user);
        let store = Store::new();
        let program = store.program("--timeout 60s").kubeconfig(&kubeconfig);
        let answer = program.exits(1);
        contains(&answer, reason, reason);
    };
    let api = Api::tls(for_token("s3cret-token"));
    explained(&api, &json!({}), "answered 401");
    let provider = json!({ "auth-provider": { "name": "gcp" } });
    explained(&api, &provider, "auth provider `gcp`");
    let listen = Listen {
        hosts: Some(&["127.0.0.1"]),
        client_certificate: true,
        ..Listen::default()
    };
    let mutual = Api::listen(&listen, |request, _| in_sync(request));
    explained(&mutual, &json!({}), "client certificate");
}

#[test]
fn a_token_file_is_read_again_after_401() {
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
    store.program("").kubeconfig(&kubeconfig).exits(0);
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
fn exec_plugins_that_succeed() {
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
            .kubeconfig(&kubeconfig)
            .env("PATH", "/bin:/usr/bin")
            .exits(0);
    }
    // What kubectl's decoder accepts: YAML, no kind, unknown fields, an empty
    // document before it.
    for answer in [
        "apiVersion: client.authentication.k8s.io/v1\\nkind: ExecCredential\\nstatus: {token: t}\\n",
        "# by hand\\n---\\napiVersion: client.authentication.k8s.io/v1\\nstatus:\\n  token: t\\n  new: 1\\n",
        r#"{"apiVersion":"client.authentication.k8s.io/v1","status":{"token":"t","expirationTimestamp":null}}"#,
        r#"\n {"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"t"}}\n"#,
    ] {
        let store = Store::new();
        let api = Api::tls(for_token("t"));
        let user = exec(&plugin(&store.folder, &format!("printf '{answer}'")), "v1");
        let kubeconfig = api.kubeconfig(&json!({}), &user);
        store
            .program("")
            .kubeconfig(&kubeconfig)
            .env("PATH", "/bin:/usr/bin")
            .exits(0);
        let theirs = kubectl(kubeconfig.path()).output().expect("kubectl runs");
        let err = String::from_utf8_lossy(&theirs.stderr);
        assert!(theirs.status.success(), "{answer}: {err}");
    }
    let store = Store::new();
    let listen = Listen {
        hosts: Some(&["127.0.0.1"]),
        client_certificate: true,
        ..Listen::default()
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
        .kubeconfig(&kubeconfig)
        .env("PATH", "/bin:/usr/bin")
        .exits(0);
}

/// A plugin's children end with it, both when it times out and at a signal.
#[test]
fn children_of_exec_plugins_are_killed_with_them() {
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
        // Long enough for the plugin to start its child, which never exits by itself.
        let time = if signal { "60s" } else { "5s" };
        let child = store
            .program(&format!("--request-timeout {time} --timeout 60s"))
            .kubeconfig(&kubeconfig)
            .env("PATH", "/bin:/usr/bin")
            .start();
        let sleeping = poll("the plugin's child", || fs::read_to_string(&pid).ok());
        let state = format!("/proc/{}/stat", sleeping.trim());
        if signal {
            crate::support::etcd::signal(child.id(), "TERM");
        }
        let answer = ended(child);
        assert_eq!(answer.code, 1, "{ending}: {answer}");
        // The child is gone, or a zombie that is not yet reaped.
        poll(&format!("{ending}: the end of the child"), || {
            let text = fs::read_to_string(&state);
            text.map_or(true, |text| text.contains(") Z "))
                .then_some(())
        });
    }
}

#[test]
fn exec_plugins_that_fail() {
    const HANGS: &str = "sleep 60";
    let api = Api::tls(for_token("never"));
    for (script, message) in [
        (
            "echo no luck >&2; exit 3",
            "it ended with exit status: 3: no luck",
        ),
        (HANGS, "it did not end within 500ms"),
        ("echo rubbish-t0ken", "its output is not an ExecCredential"),
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
        let time = if script == HANGS { "500ms" } else { "60s" };
        let kubeconfig = api.kubeconfig(&json!({}), &exec(&plugin(&store.folder, script), "v1"));
        let answer = store
            .program(&format!("--request-timeout {time} -vvv"))
            .kubeconfig(&kubeconfig)
            .env("PATH", "/bin:/usr/bin")
            .exits(1);
        contains(&answer, message, script);
        contains(&answer, "exec plugin `", script);
        assert!(!answer.err.contains("t0ken"), "{answer}");
        store.is_untouched(script);
    }
    let store = Store::new();
    let missing = exec(std::path::Path::new("/nonexistent/plugin"), "v1");
    let kubeconfig = api.kubeconfig(&json!({}), &missing);
    let answer = store.program("").kubeconfig(&kubeconfig).exits(1);
    contains(
        &answer,
        "install it from the shelf",
        "a plugin that is not there",
    );
    let kubeconfig = api.kubeconfig(&json!({}), &exec(std::path::Path::new("x"), "v9"));
    let answer = store.program("").kubeconfig(&kubeconfig).exits(1);
    contains(
        &answer,
        "wants apiVersion `client.authentication.k8s.io/v9`",
        "a strange version",
    );
}

#[test]
fn the_service_account_of_a_pod() {
    use vulcanized::internals::kube::{Options, Selection};
    use vulcanized::internals::model::Reads;
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
    let deadline = Deadline::start(Duration::from_mins(1), Duration::from_mins(1));
    let mut client = vulcanized::internals::kube::Api::open(&options, Reads::default(), deadline)
        .expect("a service account");
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
    let error = vulcanized::internals::kube::Api::open(&options, Reads::default(), deadline)
        .err()
        .expect("no token");
    assert!(error.to_string().contains("not in a pod"), "{error}");
}

/// kubectl and the program merge the same kubeconfigs: both get the same cluster, user and namespace.
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
        let message = format!("token Bearer {token} in {namespace}");
        contains(&answer, &message, &format!("{files:?} {context:?}"));
        contains(
            &answer,
            &format!("GET {server}/"),
            &format!("{files:?} {context:?}"),
        );
    }
}

#[test]
fn proxies_of_kubeconfig_and_environment_are_used() {
    // The stand-in is the proxy and sees the requested host.
    let proxy = Api::start(|_, _| Reply::new(502, "text/plain", "no way through"));
    let store = Store::new();
    let run = |cluster: &Value, proxies: &[(&str, &str)]| {
        let api = Api::start(|request, _| in_sync(request));
        let mut whole = json!({ "server": "https://api.example.invalid:6443" });
        for (key, value) in cluster.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let kubeconfig = api.kubeconfig(&whole, &json!({}));
        let program = store
            .program("--timeout 60s --request-timeout 60s")
            .kubeconfig(&kubeconfig);
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
        &[
            ("HTTPS_PROXY", &proxy.url()),
            ("NO_PROXY", ".example.invalid"),
        ],
    );
    run(&json!({}), &[("HTTP_PROXY", &proxy.url())]);
    assert_eq!(seen(), 2, "NO_PROXY, and a proxy for the other scheme");
}

#[test]
fn secrets_are_redacted_in_every_output() {
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
                vulcanized(&format!("--owner prod --timeout 60s {more}"))
            } else {
                store.program(more)
            };
            let answer = program
                .kubeconfig(&kubeconfig)
                .env("VULCANIZED_PASSWORD", "s3cret-password")
                .env("VULCANIZED_USER", "me")
                .env("ETCDCTL_USER", "me:s3cret-etcd")
                .env("RUST_LOG", "trace")
                .run();
            // A hex dump shows printable bytes in its last column.
            let dumped = answer.err.lines();
            let dumped = dumped
                .filter_map(|line| line.split_whitespace().last())
                .collect::<String>();
            let output = format!("{}{}{dumped}", answer.out, answer.err);
            for secret in secrets
                .iter()
                .copied()
                .chain([base64_of("me:s3cret-password").as_str()])
            {
                assert!(
                    !output.contains(secret),
                    "{more} prints {secret}:\n{output}"
                );
            }
        }
    }
}
