//! Proxies to the API server: kubectl sends the same requests through them, with the same kubeconfig and environment.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::api::{Api, Reply};
use crate::support::certs::Authority;
use crate::support::front::Front;
use crate::support::program::{kubectl, vulcanized};

#[test]
fn each_kind_of_proxy_gets_the_requests_kubectl_sends() {
    let authority = Authority::new();
    let leaf = authority.leaf("proxy", &["127.0.0.1"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("it is written");
        path
    };
    let (certificate, key) = (file("crt", &leaf.certificate), file("key", &leaf.key));
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [] });
    for (kind, scheme, user, secure) in [
        ("http", "http://", "", true),
        ("http", "", "", true),
        ("http", "HTTP://", "me:p%40ss@", true),
        ("https", "https://", "", true),
        ("https", "https://", "me:p%40ss@", true),
        ("socks5", "socks5://", "", true),
        ("socks5", "socks5://", "me:p%40ss@", true),
        ("http", "http://", "", false),
        ("http", "http://", "me:p%40ss@", false),
        ("https", "https://", "me:p%40ss@", false),
        ("socks5", "socks5://", "", false),
    ] {
        let case = format!("{kind} {scheme} {user} {secure}");
        let answer = list.clone();
        let respond = move |_: &_, _| Reply::json(200, &answer);
        let api = if secure {
            Api::tls(respond)
        } else {
            Api::start(respond)
        };
        let port = api.url().rsplit(':').next().expect("a port").to_owned();
        let pair = Some((certificate.as_path(), key.as_path())).filter(|_| kind == "https");
        let proxy = Front::proxy(kind, pair);
        let protocol = if secure { "https" } else { "http" };
        // The host name does not resolve: the proxy connects to 127.0.0.1 whatever the host.
        let ca = file("ca", &format!("{}{}", authority.pem, api.ca()));
        // For a server with plain HTTP, kubectl ignores the cluster's CA, so the proxy's CA comes from the environment.
        let trusted = if secure {
            Path::new("/nonexistent")
        } else {
            &ca
        };
        let cluster = json!({
            "certificate-authority": ca,
            "certificate-authority-data": null,
            "server": format!("{protocol}://api.example.internal:{port}"),
            "tls-server-name": "127.0.0.1",
        });
        let kubeconfig = api.kubeconfig(&cluster, &json!({ "token": "t" }));
        let url = format!("{scheme}{user}127.0.0.1:{}", proxy.port);
        let store = file(
            "store.json",
            r#"{"/vulcand/backends/web/backend":"{\"Type\":\"http\"}"}"#,
        );
        let variable = if secure { "HTTPS_PROXY" } else { "HTTP_PROXY" };
        vulcanized("--owner t --dry-run --timeout 20s --store-file")
            .arg(&store)
            .kubeconfig(&kubeconfig)
            .env(variable, &url)
            .env("SSL_CERT_FILE", trusted)
            .exits(0);
        let ours = proxy.requests();
        let theirs = kubectl(kubeconfig.path())
            .env(variable, &url)
            .env("SSL_CERT_FILE", trusted)
            .output()
            .expect("kubectl runs");
        assert!(
            theirs.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&theirs.stderr)
        );
        let all = proxy.requests();
        // The requests are equal except for the query of the list.
        let without_query = |line: &String| {
            let (before, after) = line.split_once('?').unwrap_or((line, ""));
            let after = after.split_once(" HTTP/1.1").map_or("", |(_, rest)| rest);
            format!("{before} {after}")
                .replace(" HTTP/1.1", "")
                .trim()
                .replace("  ", " ")
        };
        let ours = ours.iter().map(without_query).collect::<Vec<_>>();
        let theirs = all[ours.len()..]
            .iter()
            .map(without_query)
            .collect::<Vec<_>>();
        assert_eq!(ours, theirs, "{case}");
        assert_eq!(ours.len(), 1, "{case}");
    }
}
