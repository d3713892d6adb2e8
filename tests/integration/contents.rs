//! Store files with the contents that people and other tools leave behind, and how a run handles each kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};

use crate::support::api::{kubectl, pod};
use crate::support::program::{Answer, vulcanized};

type Keys = BTreeMap<String, String>;

/// Keys and values of a case.
type Pairs = &'static [(&'static str, &'static str)];

/// Keys and values below a prefix.
fn keys(prefix: &str, pairs: &[(&str, &str)]) -> Keys {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (format!("{prefix}{key}"), (*value).to_owned()))
        .collect()
}

/// Runs once on this store. Returns the answer and the store afterwards.
fn run(store: &Keys, pods: &[Value], options: &str) -> (Answer, Keys) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("store.json");
    fs::write(&file, json!(store).to_string()).expect("it is written");
    let program = vulcanized(&format!("--owner t --cluster main --pods - {options}"));
    let program = program.arg("--store-file").arg(&file);
    let answer = program.input(kubectl(pods.iter().cloned())).run();
    let text = fs::read_to_string(&file).expect("the store");
    (answer, serde_json::from_str(&text).expect("JSON"))
}

/// The pod with an annotation of the program.
fn annotated(mut pod: Value, annotation: &str, value: &str) -> Value {
    pod["metadata"]["annotations"] = json!({ format!("vulcanized.io/{annotation}"): value });
    pod
}

/// A Traefik router for this service, and more keys below `traefik/http/`.
fn traefik(service: &str, more: &[(&str, &str)]) -> Keys {
    let mut store = keys(
        "traefik/http/",
        &[
            ("routers/r/rule", "Host(`shop.example.com`)"),
            ("routers/r/entryPoints/0", "web"),
            ("routers/r/service", service),
        ],
    );
    store.extend(keys("traefik/http/", more));
    store
}

/// The fields of each server, by server id. Ids and field names are in lower case.
fn servers(store: &Keys) -> BTreeMap<String, Keys> {
    let mut servers = BTreeMap::<String, Keys>::new();
    for (key, value) in store {
        let key = key.to_lowercase();
        if let Some((_, server)) = key.split_once("/loadbalancer/servers/") {
            let (id, field) = server.split_once('/').expect("a field");
            let field = field.trim_end_matches('/').to_owned();
            let id = id.trim_matches(['[', ']']).to_owned();
            servers.entry(id).or_default().insert(field, value.clone());
        }
    }
    servers
}

#[test]
fn adopting_a_server_deletes_its_old_keys() {
    const WEB: &str = "services/web/loadBalancer/servers/";
    let ours = "t.main.default.10.1.0.1";
    // Keys of servers at one pod's address (an empty value stands for its URL), the argument of
    // `--adopt`, and the weight that the adopted server has.
    let cases: &[(Pairs, &str, Option<&str>)] = &[
        (
            &[("0/url", ""), ("0/weight", "5"), ("0/fenced", "true")],
            "unmarked",
            Some("5"),
        ),
        (
            &[("a/preservePath", "true"), ("a/url", "")],
            "unmarked",
            None,
        ),
        (
            &[("Zero/URL", ""), ("Zero/Weight", "5")],
            "unmarked",
            Some("5"),
        ),
        (
            &[("[0]/url", ""), ("[0]/weight", "5")],
            "unmarked",
            Some("5"),
        ),
        (&[("0/url/", ""), ("0/weight/", "5")], "unmarked", Some("5")),
        (
            &[
                ("0/url", ""),
                ("0/weight", "5"),
                ("1/url", ""),
                ("1/weight", "5"),
            ],
            "unmarked",
            Some("5"),
        ),
        (
            &[
                ("x.main.default.10.1.0.1/url", ""),
                ("x.main.default.10.1.0.1/weight", "5"),
            ],
            "owner:x",
            Some("5"),
        ),
        (
            &[
                ("t.old.default.10.1.0.1/url", ""),
                ("t.old.default.10.1.0.1/weight", "5"),
            ],
            "scope",
            Some("5"),
        ),
    ];
    for (pairs, adopt, weight) in cases {
        let pairs = pairs.iter().map(|(key, value)| {
            let url = if value.is_empty() {
                "http://10.1.0.1:8080"
            } else {
                value
            };
            (format!("{WEB}{key}"), url)
        });
        let pairs = pairs.collect::<Vec<_>>();
        let pairs = pairs.iter().map(|(key, value)| (&**key, *value));
        let store = traefik("web", &pairs.collect::<Vec<_>>());
        let pods = [1, 2].map(|n| {
            pod(
                "default",
                &format!("web-{n}"),
                "web",
                &format!("10.1.0.{n}"),
            )
        });
        let options = format!("--layout traefik --adopt {adopt}");
        let (answer, after) = run(&store, &pods, &options);
        assert_eq!(answer.code, 0, "{store:?}: {answer}");
        let left = servers(&after);
        let ids = left.keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(ids, [ours, "t.main.default.10.1.0.2"], "{answer}");
        assert_eq!(left[ours].get("weight").map(String::as_str), *weight);
        assert!(
            left.values().all(|fields| fields.contains_key("url")),
            "{left:?}"
        );
        // All keys of the server are deleted with its pod.
        let (answer, after) = run(&after, &pods[1..], "--layout traefik");
        assert_eq!(answer.code, 0, "{answer}");
        let left = servers(&after).into_keys().collect::<Vec<_>>();
        assert_eq!(left, ["t.main.default.10.1.0.2"], "{answer}");
    }
}

#[test]
fn services_referenced_by_services_or_middlewares() {
    let cases: &[(Pairs, &[&str])] = &[
        (
            &[
                ("services/shop/weighted/services/0/name", "blue"),
                ("services/shop/weighted/services/1/name", "green@etcd"),
                ("services/shop/weighted/sticky/cookie/name", "c"),
            ],
            &["blue", "green"],
        ),
        (
            &[
                ("services/shop/mirroring/service", "live"),
                ("services/shop/mirroring/mirrors/0/name", "next"),
                ("services/shop/mirroring/mirrors/0/percent", "10"),
            ],
            &["live", "next"],
        ),
        (
            &[
                ("services/shop/failover/service", "first"),
                ("services/shop/failover/fallback", "second"),
                ("services/shop/failover/errors/status/0", "500-599"),
            ],
            &["first", "second"],
        ),
        (
            &[
                ("services/shop/highestRandomWeight/services/0/name", "a"),
                ("services/a/weighted/services/0/name", "b"),
                ("services/b/mirroring/service", "c"),
            ],
            &["c"],
        ),
        (
            &[
                ("routers/r/middlewares/0", "pages"),
                ("middlewares/pages/errors/status/0", "500-599"),
                ("middlewares/pages/errors/service", "sorry@etcd"),
                ("middlewares/pages/errors/query", "/{status}.html"),
            ],
            &["shop", "sorry"],
        ),
        (
            &[
                ("routers/r/middlewares/0", "all"),
                ("middlewares/all/chain/middlewares/0", "pages"),
                ("middlewares/pages/Errors/Service", "sorry"),
                ("middlewares/pages/Errors/Status/0", "404"),
            ],
            &["shop", "sorry"],
        ),
    ];
    for (more, apps) in cases {
        let store = traefik("shop", more);
        let pods = apps.iter().enumerate();
        let pods = pods.map(|(n, app)| pod("default", app, app, &format!("10.3.0.{n}")));
        let pods = pods.collect::<Vec<_>>();
        let (answer, after) = run(&store, &pods, "--layout traefik");
        assert_eq!(answer.code, 0, "{more:?}: {answer}");
        for text in ["finding", "sends it", "undefined"] {
            assert!(!answer.out.contains(text), "{more:?}: {answer}");
        }
        for (n, app) in apps.iter().enumerate() {
            let key = format!(
                "traefik/http/services/{app}/loadBalancer/servers/t.main.default.10.3.0.{n}/url"
            );
            assert!(after.contains_key(&key), "{app}: {answer}");
        }
        let (again, _) = run(&after, &pods, "--layout traefik");
        let in_sync = format!("in sync: {} unchanged\n", apps.len());
        assert_eq!(again.out, in_sync, "{more:?}");
    }
}

#[test]
fn service_names_are_compared_ignoring_case() {
    // The service as spelt in the store, and a pod whose label or annotation spells it differently.
    let cases = [
        ("Site1", pod("default", "p", "site1", "10.4.0.1")),
        ("SITE1", pod("default", "p", "Site1", "10.4.0.1")),
        ("site1", pod("default", "p", "SITE1", "10.4.0.1")),
        (
            "Site1",
            annotated(pod("default", "p", "x", "10.4.0.1"), "backend", "sITE1"),
        ),
    ];
    for (service, pod) in cases {
        for port in ["8080", "9090"] {
            let server = format!("services/{service}/loadBalancer/servers/0/url");
            let url = format!("http://10.4.0.1:{port}");
            let store = traefik(service, &[(&server, &url)]);
            let (answer, after) = run(&store, std::slice::from_ref(&pod), "--layout traefik");
            assert_eq!(answer.code, 0, "{service}: {answer}");
            assert!(!answer.out.contains("finding"), "{service}: {answer}");
            let services = after.keys().filter_map(|key| {
                let service = key.strip_prefix("traefik/http/services/")?;
                service.split('/').next()
            });
            let services = services.collect::<BTreeSet<_>>();
            assert_eq!(services, BTreeSet::from([service]), "{answer}");
            let ours = format!("{service}/t.main.default.10.4.0.1");
            assert!(answer.out.contains(&format!("+ {ours}")), "{answer}");
        }
    }
}

#[test]
fn urls_that_traefik_accepts_are_not_findings() {
    for url in [
        "http://10.1.0.9:80/a b",
        "http://10.1.0.9:80/a?b=c d",
        "http://10.1.0.9:80/é",
        "http://10.1.0.9:80#x",
        "http://10.1.0.9:/",
        "http://10.1.0.9:",
        "http://10.1.0.9",
        "HTTP://10.1.0.9:80",
        "https://web.example.com",
        "http://user:password@10.1.0.9:80",
        "http://[fd00::1]:80/",
        "h2c://10.1.0.9:80",
    ] {
        let server = ("services/web/loadBalancer/servers/0/url", url);
        let store = traefik("web", &[server]);
        let pods = [pod("default", "web-1", "web", "10.1.0.1")];
        let (answer, after) = run(&store, &pods, "--layout traefik");
        assert_eq!(answer.code, 0, "{url}: {answer}");
        assert_eq!(answer.out.lines().count(), 2, "{url}: {answer}");
        assert!(!answer.out.contains("finding"), "{url}: {answer}");
        assert_eq!(after[&format!("traefik/http/{}", server.0)], url);
    }
}

const BACKENDS: &str = "/vulcand/backends/";
const HTTP: &str = r#"{"Type":"http"}"#;

#[test]
fn servers_are_written_only_if_vulcand_accepts_the_definition() {
    let refused = [
        r#"{"Type":"http","Settings":{"Timeouts":{"Read":"5"}}}"#,
        r#"{"Type":"http","Settings":{"Timeouts":{"Dial":"5 s"}}}"#,
        r#"{"Type":"http","Settings":{"Timeouts":{"TLSHandshake":5}}}"#,
        r#"{"type":"http","settings":{"keepalive":{"period":"4"}}}"#,
        r#"{"Type":"http","Settings":{"KeepAlive":{"MaxIdleConnsPerHost":1.5}}}"#,
        r#"{"Type":"http","Settings":{"TLS":{"MinVersion":"1.2"}}}"#,
        r#"{"Type":"http","Settings":[]}"#,
        r#"{"Type":"http","Id":5}"#,
        r#"{"Type":"http","Stats":"x"}"#,
        r#"{"Type":"http"} x"#,
        r#"{"Type":"HTTP"}"#,
        "{}",
        "[]",
        "",
    ];
    let accepted = [
        r#"{"Type":"http","Settings":{"Timeouts":{"Read":"1m0.5s"}}}"#,
        r#"{"Type":"http","Settings":{"KeepAlive":{"Period":""}}}"#,
        r#"{"type":"http","settings":null,"note":1}"#,
        r#" {"Type" : "http"} "#,
    ];
    let pods = [pod("default", "web-1", "web", "10.1.0.1")];
    let server = format!("{BACKENDS}web/servers/10.1.0.1");
    let cases = refused.map(|value| (value, false)).into_iter();
    for (value, accepted) in cases.chain(accepted.map(|value| (value, true))) {
        let store = keys(BACKENDS, &[("web/backend", value), ("other/backend", HTTP)]);
        let (answer, after) = run(&store, &pods, "");
        assert_eq!(answer.code, 0, "{value}: {answer}");
        assert_eq!(after.contains_key(&server), accepted, "{value}: {answer}");
        let key = format!("{BACKENDS}web/backend");
        assert_eq!(answer.out.contains(&key), !accepted, "{value}: {answer}");
        assert_eq!(after[&key], value);
        // The printed store line repairs the definition.
        let repair = answer.out.lines().find_map(|line| {
            let line = line.trim().strip_prefix(&format!("\"{key}\": "))?;
            serde_json::from_str::<String>(line).ok()
        });
        assert_eq!(repair.is_some(), !accepted, "{value}: {answer}");
        if let Some(repair) = repair {
            let repaired = keys(BACKENDS, &[("web/backend", &repair)]);
            let (answer, after) = run(&repaired, &pods, "");
            assert!(after.contains_key(&server), "{repair}: {answer}");
        }
    }
}

#[test]
fn keys_under_a_predecessors_prefix_are_found() {
    const SERVER: &str = r#"{"URL": "http://10.1.0.1:8080"}"#;
    let cases: &[Pairs] = &[
        &[("web/backend", HTTP), ("web/servers/10.1.0.1", SERVER)],
        &[("default-web/servers/10.1.0.1", SERVER)],
        &[
            ("web.default/backend", HTTP),
            ("web.default/servers/10.1.0.1", SERVER),
            ("api.default/backend", HTTP),
        ],
    ];
    let pods = [pod("default", "web-1", "web", "10.1.0.1")];
    for pairs in cases {
        let store = keys("/vulcan/backends/", pairs);
        let backends = pairs.iter().map(|(key, _)| key.split('/').next());
        let backends = backends.collect::<BTreeSet<_>>().len();
        for options in ["", "--dry-run", "-q"] {
            let (answer, after) = run(&store, &pods, options);
            assert_eq!(answer.code, 1, "{answer}");
            let found = format!("There are {backends} backends under `/vulcan/`");
            assert!(answer.err.contains(&found), "{answer}");
            assert_eq!(after, store);
        }
        // Next to a tree under the current prefix they are a finding.
        let mut beside = store.clone();
        beside.extend(keys(BACKENDS, &[("web/backend", HTTP)]));
        let (answer, _) = run(&beside, &pods, "");
        assert_eq!(answer.code, 0, "{answer}");
        let found = format!("backends under `/vulcan/` ({backends})");
        assert!(answer.out.contains(&found), "{answer}");
    }
}

/// All new Ready pods of `web` are left out, each for another reason.
#[test]
fn an_emptied_backend_alarms_until_it_has_a_server() {
    let new = |n: u8| {
        pod(
            "default",
            &format!("new-{n}"),
            "web",
            &format!("10.5.0.{n}"),
        )
    };
    let two_ports = |n: u8| {
        let mut pod = new(n);
        let ports = json!([{ "containerPort": 8080 }, { "containerPort": 15090 }]);
        pod["spec"]["containers"][0]["ports"] = ports;
        pod
    };
    let without_ports = |n: u8| {
        let mut pod = new(n);
        pod["spec"]["containers"][0]["ports"] = json!([]);
        pod
    };
    let cases: [(Vec<Value>, &str); 6] = [
        (vec![two_ports(1), two_ports(2)], "several ports"),
        (vec![without_ports(1)], "declares no TCP port"),
        (
            vec![
                annotated(new(1), "port", "metrics"),
                annotated(new(2), "port", "metrics"),
            ],
            "no TCP port named `metrics`",
        ),
        (vec![annotated(new(1), "port", "0")], "port 0 is not within"),
        (vec![annotated(new(1), "scheme", "gopher")], "`gopher`"),
        (
            vec![annotated(new(1), "backend", "web:admin")],
            "named `admin`",
        ),
    ];
    let server = |n: u8| {
        let value = json!({
            "URL": format!("http://10.1.0.{n}:8080"), "Owner": "t", "Scope": "main@file", "Pod": format!("default/old-{n}"),
        });
        (
            format!("{BACKENDS}web/servers/10.1.0.{n}"),
            value.to_string(),
        )
    };
    let api = pod("default", "api-1", "api", "10.5.0.50");
    for (pods, why) in cases {
        let mut vulcand = keys(BACKENDS, &[("web/backend", HTTP), ("api/backend", HTTP)]);
        vulcand.extend([1, 2].map(server));
        let traefik = traefik(
            "web",
            &[
                ("routers/api/service", "api"),
                (
                    "services/web/loadBalancer/servers/t.main.default.10.1.0.1/url",
                    "http://10.1.0.1:8080",
                ),
            ],
        );
        for (layout, mut store) in [("vulcand", vulcand), ("traefik", traefik)] {
            let options = format!("--layout {layout}");
            let mut listed = pods.clone();
            listed.push(api.clone());
            for _ in 0..3 {
                let answer;
                (answer, store) = run(&store, &listed, &options);
                assert_eq!(answer.code, 3, "{why}: {answer}");
                let text = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
                for part in ["emptied: backend web", why, "1 backend emptied"] {
                    assert!(text.contains(part), "{part}: {answer}");
                }
            }
            // A pod of `web` is published again.
            listed.push(new(9));
            let (answer, _) = run(&store, &listed, &options);
            assert_eq!(answer.code, 0, "{why}: {answer}");
            assert!(!answer.out.contains("emptied"), "{answer}");
        }
    }
}

/// Ten times the findings print at most eleven times the output, and repeated problems are one finding. `cost` counts
/// the instructions.
#[test]
fn output_size_is_linear_in_the_number_of_findings() {
    let vulcand = |make: &dyn Fn(usize) -> (String, &'static str), size: usize| {
        let mut store = keys(BACKENDS, &[("web/backend", HTTP)]);
        store.extend((0..size).map(|n| {
            let (key, value) = make(n);
            (format!("{BACKENDS}{key}"), value.to_owned())
        }));
        let (answer, _) = run(&store, &[pod("default", "web-1", "web", "10.1.0.1")], "");
        answer
    };
    let bytes_per_finding =
        |make: &dyn Fn(usize) -> (String, &'static str), size: usize, code: i32| {
            let [small, large] = [size / 10, size].map(|size| {
                let answer = vulcand(make, size);
                assert_eq!(answer.code, code, "{}", answer.err);
                assert_eq!(answer.out.matches("finding: ").count(), size);
                answer.out.len()
            });
            assert!(large <= small * 11, "{small} and {large} bytes");
            large / size
        };
    // Backends without a definition, each with the command that defines it.
    let undefined = |n| {
        let server = r#"{"URL":"http://10.9.9.9:80"}"#;
        (format!("u{n:05}/servers/a"), server)
    };
    assert!(bytes_per_finding(&undefined, 20_000, 0) < 400);
    // Values that crash the proxy.
    let null = |n| (format!("web/servers/a{n:05}"), "null");
    assert!(bytes_per_finding(&null, 10_000, 3) < 200);
    // `web` is a prefix of all these ids: one finding, with a few examples.
    let numbered = |n| (format!("web-{n}/backend"), HTTP);
    let answer = vulcand(&numbered, 1_000);
    assert_eq!(answer.code, 0, "{answer}");
    assert_eq!(answer.out.matches("finding").count(), 1, "{answer}");
    assert!(answer.out.lines().count() < 15, "{answer}");
    let text = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("web gets the servers of web-0"), "{answer}");
    // The pairs of `web` with all 1,000 others, and pairs such as `web-1` and `web-10`.
    let numbers = (0..1_000).map(|n: usize| n.to_string()).collect::<Vec<_>>();
    let longer_ones = |n: &String| {
        let longer = numbers
            .iter()
            .filter(|m| m.len() > n.len() && m.starts_with(n.as_str()));
        longer.count()
    };
    let pairs = 1_000 + numbers.iter().map(longer_ones).sum::<usize>();
    assert!(text.contains(&format!("begin alike ({pairs})")), "{answer}");
    assert!(
        text.contains(&format!("and {} more", pairs - 5)),
        "{answer}"
    );
}
