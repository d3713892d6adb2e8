//! The credentials sent to the API server, for each source of credentials and each kind of connection. The expected
//! values are taken from client-go's source; kubectl runs with the same kubeconfigs and must agree.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vulcanized::internals::kube::{self, Options, Selection};
use vulcanized::internals::model::Reads;
use vulcanized::internals::net::deadline::Deadline;

use super::kubeconfig::base64_of;
use crate::support::api::{Api, Listen, Reply, Request};
use crate::support::certs::Leaf;
use crate::support::front::Front;
use crate::support::program::{kubectl, vulcanized};

/// What the server receives: the header `Authorization`, and whether there was a client certificate.
type Arrives = (Option<&'static str>, bool);

/// A host name for the API server behind a proxy: proxies are not used for loopback addresses.
const FAR: &str = "api.example.internal";

const TOKEN: Option<&str> = Some("Bearer t");

/// Sources of credentials, and what the server receives over `https`.
///
/// - tokens, basic auth: `transport/round_trippers.go`, `HTTPWrappersForConfig`;
/// - a token file wins over a token: `tools/clientcmd/client_config.go`, `getUserIdentificationPartialConfig`,
///   and `rest/transport.go`, `TransportConfig`;
/// - plugins: `plugin/pkg/client/auth/exec/exec.go`, `UpdateTransportConfig`;
/// - client certificates: `transport/transport.go`, `TLSConfigFor`.
const CREDENTIALS: [(&str, Arrives); 8] = [
    ("token", (TOKEN, false)),
    ("token file", (TOKEN, false)),
    ("exec token", (TOKEN, false)),
    ("exec certificate", (None, true)),
    ("client certificate", (None, true)),
    ("client certificate in the kubeconfig", (None, true)),
    ("basic", (Some("Basic bjpw"), false)),
    ("none", (None, false)),
];

/// Over `http` no credential is sent: `tools/clientcmd/client_config.go`, `ClientConfig`, merges the user's part
/// only where `rest.IsConfigTransportTLS` holds.
const NOTHING: Arrives = (None, false);

fn respond(_: &Request, _: usize) -> Reply {
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [] });
    Reply::json(200, &list)
}

fn arrived(request: &Request) -> (Option<&str>, bool) {
    let authorization = request.headers.get("authorization");
    (authorization.map(String::as_str), request.certificate)
}

/// A server over TLS that requests a client certificate, or a server over plain HTTP.
fn server(scheme: &str) -> Api {
    if scheme == "http" {
        return Api::start(respond);
    }
    let listen = Listen {
        hosts: Some(&["127.0.0.1", FAR]),
        client_certificate_asked: true,
        ..Listen::default()
    };
    Api::listen(&listen, respond)
}

/// A kubeconfig's user with this credential. What it consists of is in `folder`.
fn user(credential: &str, folder: &Path, leaf: &Leaf) -> Value {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).expect("it is written");
        path
    };
    let plugin = |status: &Value| {
        let answer = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": status,
        });
        let answer = file("answer", &answer.to_string());
        let script = format!("#!/bin/sh\nexec cat {}\n", answer.display());
        let plugin = file("plugin", &script);
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o700)).expect("it may run");
        json!({ "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": plugin,
            "interactiveMode": "Never",
        } })
    };
    match credential {
        "token" => json!({ "token": "t" }),
        "token file" => json!({ "tokenFile": file("token", "t\n"), "token": "another" }),
        "exec token" => plugin(&json!({ "token": "t" })),
        "exec certificate" => plugin(&json!({
            "clientCertificateData": leaf.certificate,
            "clientKeyData": leaf.key,
        })),
        "client certificate" => json!({
            "client-certificate": file("crt", &leaf.certificate),
            "client-key": file("key", &leaf.key),
        }),
        "client certificate in the kubeconfig" => json!({
            "client-certificate-data": base64_of(&leaf.certificate),
            "client-key-data": base64_of(&leaf.key),
        }),
        "basic" => json!({ "username": "n", "password": "p" }),
        _ => json!({}),
    }
}

#[test]
fn each_credential_of_a_kubeconfig_is_sent_as_by_kubectl() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let definition = json!({ "/vulcand/backends/web/backend": r#"{"Type":"http"}"# });
    fs::write(&store, definition.to_string()).expect("it is written");
    for scheme in ["https", "http"] {
        let api = server(scheme);
        let leaf = match scheme {
            "https" => api.authority().leaf("me", &["me"]),
            _ => crate::support::certs::Authority::new().leaf("me", &["me"]),
        };
        for way in ["direct", "http", "socks5"] {
            let front = (way != "direct").then(|| Front::proxy(way, None));
            let cluster = front.as_ref().map_or(
                json!({}),
                |front| json!({ "proxy-url": format!("{way}://127.0.0.1:{}", front.port) }),
            );
            let mut ways = 0;
            for (credential, over_tls) in CREDENTIALS {
                let case = format!("{credential}, {scheme}, {way}");
                let user = user(credential, folder.path(), &leaf);
                let kubeconfig = api.kubeconfig(&cluster, &user);
                let before = api.requests().len();
                vulcanized("--owner t --dry-run --timeout 20s --store-file")
                    .arg(&store)
                    .kubeconfig(&kubeconfig)
                    .env("PATH", "/bin:/usr/bin")
                    .exits(0);
                let asked = || front.as_ref().map_or(0, |front| front.requests().len());
                let by_us = asked();
                let theirs = kubectl(kubeconfig.path()).output().expect("kubectl runs");
                // Over TLS without a credential, kubectl prompts for one.
                let asks = credential == "none" && scheme == "https";
                let err = String::from_utf8_lossy(&theirs.stderr);
                assert!(theirs.status.success() != asks, "{case}: {err}");
                let wanted = if scheme == "https" { over_tls } else { NOTHING };
                let wanted = vec![wanted; if asks { 1 } else { 2 }];
                let requests = &api.requests()[before..];
                let arrived = requests.iter().map(arrived).collect::<Vec<_>>();
                assert_eq!(arrived, wanted, "{case}: we and kubectl");
                if front.is_some() {
                    assert_eq!(by_us, ways + 1, "{case}: we went through it");
                    ways += wanted.len();
                    assert_eq!(asked(), ways, "{case}: kubectl, too");
                }
            }
        }
    }
}

/// In a pod the only credential is the service account's token file, and the only scheme is `https`: `rest/config.go`,
/// `InClusterConfig`. Proxies are the environment's.
#[test]
fn the_service_account_token_of_a_pod_is_sent_directly_and_through_proxies() {
    for way in ["direct", "http", "socks5"] {
        let api = server("https");
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in [
            ("token", "t\n"),
            ("ca.crt", api.ca()),
            ("namespace", "shop"),
        ] {
            fs::write(folder.path().join(name), text).expect("it is written");
        }
        let port = api.url().rsplit_once(':').expect("a port").1.to_owned();
        let front = (way != "direct").then(|| Front::proxy(way, None));
        let host = if way == "direct" { "127.0.0.1" } else { FAR };
        let options = Options {
            service: Some((host.to_owned(), port)),
            service_account: folder.path().to_owned(),
            https_proxy: front
                .as_ref()
                .map(|front| format!("{way}://127.0.0.1:{}", front.port)),
            ..Options::default()
        };
        let deadline = Deadline::start(Duration::from_mins(1), Duration::from_secs(20));
        let mut client =
            kube::Api::open(&options, Reads::default(), deadline).expect("a service account");
        let selection = Selection {
            namespace: Some("shop"),
            labels: None,
            fields: None,
        };
        client
            .list(&selection, &mut |pod| pod.name.into_owned())
            .expect("a list");
        let requests = api.requests();
        let arrived = requests.iter().map(arrived).collect::<Vec<_>>();
        assert_eq!(arrived, [(TOKEN, false)], "{way}");
        if let Some(front) = front {
            assert_eq!(front.requests().len(), 1, "{way}");
        }
    }
}

/// Without a token file, the variables of the environment do not make an in-cluster configuration: the kubeconfig is
/// used, as in `tools/clientcmd/client_config.go`, `inClusterClientConfig.Possible`.
#[test]
fn in_cluster_configuration_needs_a_token() {
    let in_cluster = server("https");
    let elsewhere = Api::start(respond);
    let port = in_cluster
        .url()
        .rsplit_once(':')
        .expect("a port")
        .1
        .to_owned();
    for (case, token, kubeconfig, home, wanted) in [
        (
            "token, nothing else",
            Some("t"),
            false,
            false,
            Some("in the cluster"),
        ),
        (
            "token and ~/.kube/config",
            Some("t"),
            false,
            true,
            Some("in the cluster"),
        ),
        (
            "token and KUBECONFIG",
            Some("t"),
            true,
            false,
            Some("elsewhere"),
        ),
        ("no token, KUBECONFIG", None, true, false, Some("elsewhere")),
        (
            "no token, ~/.kube/config",
            None,
            false,
            true,
            Some("elsewhere"),
        ),
        (
            "a folder as token, ~/.kube/config",
            Some("/"),
            false,
            true,
            Some("elsewhere"),
        ),
        ("an empty token", Some(""), false, false, None),
        ("no token, nothing else", None, false, false, None),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("ca.crt"), in_cluster.ca()).expect("it is written");
        match token {
            Some("/") => fs::create_dir(path("token")).expect("it is made"),
            Some(token) => fs::write(path("token"), token).expect("it is written"),
            None => {}
        }
        let config = elsewhere.plain_kubeconfig();
        if home {
            fs::create_dir(path(".kube")).expect("it is made");
            fs::copy(config.path(), path(".kube/config")).expect("it is copied");
        }
        let options = Options {
            service: Some(("127.0.0.1".to_owned(), port.clone())),
            service_account: folder.path().to_owned(),
            kubeconfig: if kubeconfig {
                vec![config.path().to_owned()]
            } else {
                vec![]
            },
            home: Some(folder.path().to_owned()),
            ..Options::default()
        };
        let before = (in_cluster.requests().len(), elsewhere.requests().len());
        let deadline = Deadline::start(Duration::from_mins(1), Duration::from_secs(20));
        let selection = Selection {
            namespace: Some("shop"),
            labels: None,
            fields: None,
        };
        let listed =
            kube::Api::open(&options, Reads::default(), deadline).is_ok_and(|mut client| {
                client
                    .list(&selection, &mut |pod| pod.name.into_owned())
                    .is_ok()
            });
        let asked = match (
            in_cluster.requests().len() - before.0,
            elsewhere.requests().len() - before.1,
        ) {
            (0, 0) => None,
            (_, 0) => Some("in the cluster"),
            _ => Some("elsewhere"),
        };
        assert_eq!((listed, asked), (wanted.is_some(), wanted), "{case}");
    }
}

/// Unusual kubeconfigs, as text: `SERVER`, `PLAIN`, `CA` and `DIR` stand for the servers over TLS and
/// plain HTTP (without their schemes), the CA in base64, and a folder with `token` (which holds `f`), `ca` and
/// `plugin` in it.
const KUBECONFIGS: [(&str, &str, &str); 32] = [
    // Several credentials: which one counts.
    (
        "token and plugin",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, exec: PLUGIN}",
    ),
    (
        "basic and plugin",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{username: 'n', password: p, exec: PLUGIN}",
    ),
    (
        "token file and plugin",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{tokenFile: DIR/token, exec: PLUGIN}",
    ),
    (
        "token and user name",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, username: 'n', password: p}",
    ),
    (
        "token file and user name",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{tokenFile: DIR/token, username: 'n', password: p}",
    ),
    // What counts as empty.
    (
        "empty token, plugin",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: '', exec: PLUGIN}",
    ),
    (
        "null token, basic",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: null, username: 'n', password: p}",
    ),
    (
        "user name without password",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{username: 'n'}",
    ),
    (
        "empty file names",
        "{server: 'https://SERVER', certificate-authority: '', certificate-authority-data: CA}",
        "{token: t, client-certificate: '', client-key: '', tokenFile: ''}",
    ),
    // Token files that do not do.
    (
        "missing token file",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{tokenFile: DIR/none, token: t}",
    ),
    (
        "token file that is a folder",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{tokenFile: DIR, token: t}",
    ),
    (
        "token file and token",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{tokenFile: DIR/token, token: t}",
    ),
    // As whom to act.
    (
        "as",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, as: me}",
    ),
    (
        "as with all of it",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, as: me, as-uid: '7', as-groups: [a, b], as-user-extra: {'x/y': [v, w], z: ['']}}",
    ),
    (
        "groups of nobody",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, as-groups: [a]}",
    ),
    (
        "uid of nobody",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, as-uid: '7'}",
    ),
    (
        "as over http",
        "{server: 'http://PLAIN'}",
        "{token: t, as: me}",
    ),
    // Certificate authorities.
    (
        "insecure",
        "{server: 'https://SERVER', insecure-skip-tls-verify: true}",
        "{token: t}",
    ),
    (
        "insecure and a CA",
        "{server: 'https://SERVER', insecure-skip-tls-verify: true, certificate-authority-data: CA}",
        "{token: t}",
    ),
    (
        "insecure and a CA file",
        "{server: 'https://SERVER', insecure-skip-tls-verify: true, certificate-authority: DIR/ca}",
        "{token: t}",
    ),
    (
        "CA file, relative",
        "{server: 'https://SERVER', certificate-authority: ca}",
        "{token: t}",
    ),
    ("no CA", "{server: 'https://SERVER'}", "{token: t}"),
    // Servers.
    (
        "scheme in capitals",
        "{server: 'HTTPS://SERVER', certificate-authority-data: CA}",
        "{token: t}",
    ),
    (
        "scheme in some capitals",
        "{server: 'HttP://PLAIN'}",
        "{token: t}",
    ),
    ("no scheme, nothing else", "{server: 'PLAIN'}", "{token: t}"),
    (
        "slash at the end",
        "{server: 'https://SERVER/', certificate-authority-data: CA}",
        "{token: t}",
    ),
    (
        "a path",
        "{server: 'https://SERVER/k8s/c1/', certificate-authority-data: CA}",
        "{token: t}",
    ),
    // Twice.
    (
        "user twice",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t}\n- name: test\n  user: {token: u}",
    ),
    (
        "cluster twice",
        "{server: 'https://SERVER', certificate-authority-data: CA}\n- name: test\n  cluster: {server: 'http://PLAIN'}",
        "{token: t}",
    ),
    (
        "server twice",
        "{server: 'http://PLAIN', server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t}",
    ),
    (
        "token twice",
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t, token: u}",
    ),
    // Unknown fields.
    (
        "unknown fields",
        "{server: 'https://SERVER', certificate-authority-data: CA, colour: blue}",
        "{token: t, colour: blue}",
    ),
];

type Encode = fn(&str) -> Vec<u8>;

/// Encodings and ends of a whole file.
const FILES: [(&str, Encode); 9] = [
    ("as it is", |text| text.as_bytes().to_vec()),
    ("UTF-8 with a mark", |text| {
        format!("\u{feff}{text}").into_bytes()
    }),
    ("UTF-16, little end first", |text| {
        utf_16(text, u16::to_le_bytes)
    }),
    ("UTF-16, big end first", |text| {
        utf_16(text, u16::to_be_bytes)
    }),
    ("a document mark before it", |text| {
        format!("---\n{text}").into_bytes()
    }),
    ("a document mark behind it", |text| {
        format!("{text}---\n").into_bytes()
    }),
    ("a document mark and no line's end", |text| {
        format!("{text}---").into_bytes()
    }),
    ("blank lines and a comment behind a mark", |text| {
        format!("{text}---\n\n# end\n").into_bytes()
    }),
    ("an end mark", |text| format!("{text}...\n").into_bytes()),
];

fn utf_16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let text = format!("\u{feff}{text}");
    text.encode_utf16().flat_map(bytes).collect()
}

/// A request as the server received it: path, credentials, impersonation.
fn seen(request: &Request) -> String {
    let path = request
        .path
        .trim_end_matches("/api/v1/namespaces/default/pods");
    let headers = request.headers.iter();
    let headers = headers.filter(|(name, _)| name.starts_with("impersonate"));
    let headers = headers.map(|(name, value)| format!(" {name}={value}"));
    format!(
        "{path} {:?}{}",
        arrived(request),
        headers.collect::<String>()
    )
}

#[test]
fn unusual_kubeconfigs_are_read_as_kubectl_reads_them() {
    use base64::Engine as _;
    let (api, plain) = (server("https"), server("http"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let leaf = api.authority().leaf("me", &["me"]);
    let plugin = user("exec token", folder.path(), &leaf)["exec"].to_string();
    for (name, text) in [("token", "f\n"), ("ca", api.ca())] {
        fs::write(folder.path().join(name), text).expect("it is written");
    }
    let store = folder.path().join("store.json");
    let definition = json!({ "/vulcand/backends/web/backend": r#"{"Type":"http"}"# });
    fs::write(&store, definition.to_string()).expect("it is written");
    let host = |api: &Api| api.url().split_once("://").expect("a scheme").1.to_owned();
    let ca = base64::prelude::BASE64_STANDARD.encode(api.ca());
    let config = |cluster: &str, user: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\ncontexts:\n- name: test\n  context: {{cluster: \
             test, user: test}}\nclusters:\n- name: test\n  cluster: {cluster}\nusers:\n- name: test\n  user: {user}\n"
        );
        text.replace("SERVER", &host(&api))
            .replace("PLAIN", &host(&plain))
            .replace("PLUGIN", &plugin)
            .replace("DIR", &folder.path().display().to_string())
            .replace("data: CA", &format!("data: {ca}"))
    };
    let path = folder.path().join("kubeconfig");
    let mut differ = Vec::new();
    let mut compare = |case: &str, text: Vec<u8>| {
        fs::write(&path, text).expect("it is written");
        let before = (api.requests().len(), plain.requests().len());
        let new = || {
            let (over_tls, over_http) = (api.requests(), plain.requests());
            let new = over_tls[before.0..].iter().chain(&over_http[before.1..]);
            new.map(seen).collect::<Vec<_>>()
        };
        let answer = vulcanized("--owner t --dry-run --timeout 20s --store-file")
            .arg(&store)
            .arg("--kubeconfig")
            .arg(&path)
            .env("PATH", "/bin:/usr/bin")
            .run();
        let ours = new();
        let theirs = kubectl(&path).output().expect("kubectl runs");
        let err = String::from_utf8_lossy(&theirs.stderr);
        let both = new();
        let theirs = (theirs.status.success(), &both[ours.len()..]);
        if (answer.code == 0, &*ours) != theirs {
            differ.push(format!(
                "{case}: {ours:?}, kubectl: {:?}: {err}{answer}",
                theirs.1
            ));
        }
        ours.len()
    };
    let taken = KUBECONFIGS
        .iter()
        .filter(|(case, cluster, user)| compare(case, config(cluster, user).into_bytes()) > 0);
    assert!(taken.count() > 20, "most are good");
    let good = config(
        "{server: 'https://SERVER', certificate-authority-data: CA}",
        "{token: t}",
    );
    for (case, file) in FILES {
        compare(case, file(&good));
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
