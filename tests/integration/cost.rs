//! Cost of a run: ten times the input takes at most fifteen times the instructions, as counted by valgrind.
//! No test here measures time.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::support::api::{Api, Request, list};

/// The smaller size. An item takes some 75,000 instructions: at ten times this size, a quadratic step is noticed from
/// some twenty instructions for each pair of items on.
const SIZE: usize = 250;
const BACKENDS: &str = "/vulcand/backends";
const SERVICES: &str = "traefik/http/services";

/// One run: the contents of the store, the pods, and the options.
struct Case {
    store: Map<String, Value>,
    pods: Vec<Value>,
    options: &'static str,
    /// Accepted exit codes.
    codes: &'static [i32],
}

/// A Ready pod at this address, with this label.
fn pod(number: usize, ip: &str, app: &str) -> Value {
    json!({
        "metadata": {"name": format!("web-{number}"), "namespace": "shop", "labels": {"app": app}},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn ip(number: usize) -> String {
    let [_, a, b, c] = u32::try_from(number).expect("few").to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

/// The value of a server that is owned by the run: owner `prod`, scope of a pods file.
fn owned(number: usize, pod: &str) -> Value {
    let ip = ip(number);
    let value =
        json!({"URL": format!("http://{ip}:8080"), "Owner": "prod", "Scope": "file", "Pod": pod});
    value.to_string().into()
}

fn foreign(url: &str) -> Value {
    json!({ "URL": url }).to_string().into()
}

impl Case {
    /// The backends `shop` and `site` are defined; one pod of `site` is listed.
    fn vulcand(options: &'static str) -> Self {
        let mut case = Self {
            store: Map::new(),
            pods: vec![pod(0, "10.250.0.1", "site")],
            options,
            codes: &[0],
        };
        for backend in ["shop", "site"] {
            case.put(
                format!("{BACKENDS}/{backend}/backend"),
                r#"{"Type":"http"}"#,
            );
        }
        case
    }

    fn traefik(options: &'static str) -> Self {
        let mut case = Self {
            store: Map::new(),
            pods: vec![pod(0, "10.250.0.1", "site")],
            options,
            codes: &[0],
        };
        for service in ["shop", "site"] {
            case.put(format!("traefik/http/routers/{service}/rule"), "Path(`/`)");
            case.put(format!("traefik/http/routers/{service}/service"), service);
        }
        case
    }

    fn put(&mut self, key: String, value: impl Into<Value>) {
        self.store.insert(key, value.into());
    }

    fn alarms(mut self) -> Self {
        self.codes = &[3];
        self
    }

    fn write(&self, folder: &Path) -> [String; 2] {
        let path = |name: &str| folder.join(name).display().to_string();
        let list = json!({
            "kind": "PodList",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"},
            "items": self.pods,
        });
        let (store, pods) = (path("store.json"), path("pods.json"));
        fs::write(&store, Value::Object(self.store.clone()).to_string()).expect("it is written");
        fs::write(&pods, list.to_string()).expect("it is written");
        [store, pods]
    }

    /// Counts the instructions of a run. Returns them and its stdout.
    #[track_caller]
    fn run(&self) -> (f64, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let [store, pods] = self.write(folder.path());
        let arguments = ["--store-file", &store, "--pods", &pods];
        let options = self.options.split_whitespace();
        count(arguments.into_iter().chain(options), self.codes)
    }
}

/// Counts the instructions of the program with these arguments. Returns them and its stdout.
#[track_caller]
fn count<'a>(arguments: impl Iterator<Item = &'a str>, codes: &[i32]) -> (f64, String) {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/vulcanized");
    assert!(binary.exists(), "no static binary: run `tests/static`");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args(["--owner", "prod", "--timeout", "10m"])
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().expect("valgrind: run `tests/setup`");
    let err = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| codes.contains(&code)),
        "{code:?}: {err}"
    );
    let count = err.lines().find_map(|line| {
        let (_, count) = line.split_once("Collected : ")?;
        count.trim().parse::<f64>().ok()
    });
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    (count.expect("a count"), out)
}

/// Runs a case at a size and at ten times that size, checks that the cost grows linearly, and returns the larger run's
/// stdout. The cost of a run without any work is subtracted.
#[track_caller]
fn assert_linear(size: usize, case: impl Fn(usize) -> Case) -> String {
    static BASELINE: LazyLock<f64> = LazyLock::new(|| Case::vulcand("--dry-run").run().0);
    let baseline = *BASELINE;
    let (small, _) = case(size).run();
    let (large, out) = case(10 * size).run();
    let ratio = (large - baseline) / (small - baseline);
    assert!(
        ratio <= 15.0,
        "{size}: {small}, {}: {large} instructions, baseline {baseline}: {ratio:.1} times",
        10 * size
    );
    out
}

#[test]
fn one_foreign_value_full_of_urls() {
    assert_linear(4_000, |size| {
        let mut case = Case::vulcand("--dry-run").alarms();
        let url = format!("http://{}", "u:p@x://".repeat(size));
        case.put(format!("{BACKENDS}/site/servers/10.250.0.1"), foreign(&url));
        case
    });
}

#[test]
fn servers_under_undefined_backends() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run");
        for number in 0..size {
            let key = format!("{BACKENDS}/u{number:05}/servers/a");
            case.put(key, foreign("http://10.9.0.1:80"));
        }
        case
    });
}

#[test]
fn owned_servers_under_undefined_backends() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("");
        for number in 0..size {
            let key = format!("{BACKENDS}/u{number:05}/servers/a");
            case.put(key, owned(number, "shop/gone"));
        }
        case
    });
}

#[test]
fn services_without_a_router() {
    assert_linear(SIZE, |size| {
        let mut case = Case::traefik("--layout traefik --dry-run");
        for number in 0..size {
            let key = format!("{SERVICES}/U{number:05}/loadBalancer/servers/a/url");
            case.put(key, "http://10.9.0.1:80");
        }
        case
    });
}

#[test]
fn pods_of_undefined_backends() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run");
        let pods = (1..=size).map(|number| pod(number, &ip(number), &format!("u{number:05}")));
        case.pods.extend(pods);
        case
    });
}

#[test]
fn numbered_backends_are_one_finding() {
    let out = assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--create-backends --dry-run").alarms();
        let pods = (1..=size).map(|number| pod(number, &ip(number), &format!("web-{number}")));
        case.pods.extend(pods);
        case
    });
    assert!(out.lines().count() < 20, "{out}");
    assert!(
        out.contains("not defined: 2500 backends are not created"),
        "{out}"
    );
}

#[test]
fn ids_that_are_prefixes_of_many_others() {
    assert_linear(SIZE, |size| {
        let mut case = Case::traefik("--create-backends --dry-run --layout traefik -o summary");
        let pods = (1..=size).map(|number| {
            let id = format!("{}{}", "a".repeat(number % 200 + 1), number / 200);
            pod(number, &ip(number), &id)
        });
        case.pods.extend(pods);
        case
    });
}

#[test]
fn held_changes() {
    for one_backend in [true, false] {
        assert_linear(SIZE, |size| {
            let mut case = Case::vulcand("--dry-run").alarms();
            for number in 1..=size {
                let backend = if one_backend {
                    "shop".to_owned()
                } else {
                    format!("s{number:05}")
                };
                case.put(
                    format!("{BACKENDS}/{backend}/backend"),
                    r#"{"Type":"http"}"#,
                );
                let key = format!("{BACKENDS}/{backend}/servers/{}", ip(number));
                case.put(key, owned(number, &format!("shop/web-{number}")));
                case.pods.push(pod(number, &ip(number), "site"));
            }
            case
        });
    }
}

#[test]
fn emptied_backends() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run").alarms();
        for number in 1..=size {
            let backend = format!("e{number:05}");
            case.put(
                format!("{BACKENDS}/{backend}/backend"),
                r#"{"Type":"http"}"#,
            );
            let mut pod = pod(number, &ip(number), &backend);
            pod["metadata"]["annotations"] = json!({"vulcanized.io/port": "none"});
            case.pods.push(pod);
        }
        case
    });
}

#[test]
fn values_that_crash_the_proxy() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run").alarms();
        for number in 0..size {
            case.put(format!("{BACKENDS}/shop/servers/{number:05}"), "null");
        }
        case
    });
}

#[test]
fn foreign_entries() {
    for options in ["", "--adopt unmarked"] {
        assert_linear(SIZE, |size| {
            let mut case = Case::vulcand(options);
            for number in 1..=size {
                let url = format!("http://{}:8080", ip(number));
                case.put(
                    format!("{BACKENDS}/shop/servers/{number:05}"),
                    foreign(&url),
                );
                case.pods.push(pod(number, &ip(number), "shop"));
            }
            case
        });
    }
}

#[test]
fn adopted_servers_with_further_keys() {
    assert_linear(SIZE, |size| {
        let mut case = Case::traefik("--layout traefik --adopt unmarked");
        for number in 1..=size {
            let server = format!("{SERVICES}/shop/loadBalancer/servers/a{number:05}");
            case.put(
                format!("{server}/url"),
                format!("http://{}:8080", ip(number)),
            );
            case.put(format!("{server}/weight"), "3");
            case.pods.push(pod(number, &ip(number), "shop"));
        }
        case
    });
}

#[test]
fn unmarked_entries_at_an_address_of_many_pods() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run");
        for number in 1..=size {
            let key = format!("{BACKENDS}/site/servers/{number:05}");
            case.put(key, foreign(&format!("http://10.1.1.1:{}", 1000 + number)));
            case.pods.push(pod(number, "10.1.1.1", "shop"));
        }
        case.pods.push(pod(0, "10.1.1.1", "shop"));
        case
    });
}

#[test]
fn owned_entries_at_an_address_of_many_pods() {
    for options in ["--dry-run", "--layout traefik --dry-run"] {
        assert_linear(SIZE, |size| {
            let traefik = options.contains("traefik");
            let mut case = if traefik {
                Case::traefik(options)
            } else {
                Case::vulcand(options)
            };
            for number in 1..=size {
                let url = format!("http://10.1.1.1:{}", 1000 + number);
                if traefik {
                    let id = format!("prod.file.shop.a{number:05}");
                    case.put(
                        format!("{SERVICES}/site/loadBalancer/servers/{id}/url"),
                        url,
                    );
                } else {
                    let value = json!({"URL": url, "Owner": "prod", "Scope": "file", "Pod": format!("shop/old-{number}")});
                    case.put(
                        format!("{BACKENDS}/site/servers/{number:05}"),
                        value.to_string(),
                    );
                }
                case.pods.push(pod(number, "10.1.1.1", "none"));
            }
            case.codes = &[0, 3];
            case
        });
    }
}

#[test]
fn entries_of_many_clusters() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--dry-run --cluster main@file");
        for number in 1..=size {
            let ip = ip(number);
            let value = json!({
                "URL": format!("http://{ip}:8080"),
                "Owner": "prod",
                "Scope": format!("main@{number:08x}"),
                "Pod": format!("shop/web-{number}"),
            });
            case.put(format!("{BACKENDS}/shop/servers/{ip}"), value.to_string());
            case.pods.push(pod(number, &ip, "shop"));
        }
        case.codes = &[0, 3];
        case
    });
}

#[test]
fn pods_with_the_same_key() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--server-id one").alarms();
        case.pods
            .extend((1..=size).map(|number| pod(number, &ip(number), "shop")));
        case
    });
}

#[test]
fn applied_changes() {
    assert_linear(SIZE, |size| {
        let mut case = Case::vulcand("--allow-empty");
        for number in 1..=size {
            // A third each is created, updated and deleted.
            if number % 3 > 0 {
                let key = format!("{BACKENDS}/shop/servers/{}", ip(number));
                case.put(
                    key,
                    owned(number + 1_000_000, &format!("shop/web-{number}")),
                );
            }
            if number % 3 < 2 {
                case.pods.push(pod(number, &ip(number), "shop"));
            }
        }
        case
    });
}

/// A handshake takes some 5 million instructions. A crypto provider that first collects its own entropy takes a hundred
/// times as many.
#[test]
fn tls_to_the_api_server() {
    let pods = [pod(1, "10.0.0.1", "web")];
    let respond = move |request: &Request, _| list(&pods, request, 500);
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store.json");
    fs::write(
        &store,
        r#"{"/vulcand/backends/web/backend":"{\"Type\":\"http\"}"}"#,
    )
    .expect("it is written");
    let run = |api: &Api| {
        let kubeconfig = api.plain_kubeconfig();
        let path = kubeconfig.path().to_str().expect("UTF-8");
        let store = store.to_str().expect("UTF-8");
        let arguments = [
            "--kubeconfig",
            path,
            "-n",
            "shop",
            "--store-file",
            store,
            "--dry-run",
        ];
        count(arguments.into_iter(), &[0]).0
    };
    let plain = run(&Api::start(respond.clone()));
    let secure = run(&Api::tls(respond));
    assert!(secure - plain < 50e6, "{plain} and {secure} instructions");
}
