//! Mistakes and accidents that must not delete live servers: the program publishes healthy pods, something goes wrong,
//! and it runs twice more. Checked are the URLs in the store and the exit code, in both layouts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::api::{Api, Listen, Request, kubectl, list, pod};
use crate::support::etcd::{Etcd, Version};
use crate::support::program::{Answer, Program, vulcanized};

const LAYOUTS: [&str; 2] = ["vulcand", "traefik"];

/// A store file with defined backends.
struct Site {
    layout: &'static str,
    folder: tempfile::TempDir,
}

impl Site {
    fn new(layout: &'static str, backends: &[&str]) -> Self {
        let site = Self {
            layout,
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let definitions = backends.iter().flat_map(|backend| match layout {
            "traefik" => vec![
                (
                    format!("traefik/http/routers/{backend}/rule"),
                    format!("Host(`{backend}.example.com`)"),
                ),
                (
                    format!("traefik/http/routers/{backend}/service"),
                    (*backend).to_owned(),
                ),
            ],
            _ => vec![(
                format!("/vulcand/backends/{backend}/backend"),
                r#"{"Type":"http"}"#.to_owned(),
            )],
        });
        site.write(&definitions.collect());
        site
    }

    fn write(&self, store: &BTreeMap<String, String>) {
        fs::write(
            self.folder.path().join("store.json"),
            json!(store).to_string(),
        )
        .expect("it is written");
    }

    fn store(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.folder.path().join("store.json")).expect("the store");
        serde_json::from_str(&text).expect("JSON")
    }

    fn program(&self, flags: &str) -> Program {
        let layout = self.layout;
        vulcanized(&format!("--owner prod --layout {layout} {flags}"))
            .arg("--store-file")
            .arg(self.folder.path().join("store.json"))
    }

    fn run(&self, flags: &str, pods: &[Value]) -> Answer {
        let program = self.program(&format!("--pods - {flags}"));
        program.input(kubectl(pods.iter().cloned())).run()
    }

    /// Publishes the healthy world.
    fn publish(&self, flags: &str, pods: &[Value]) {
        let program = self.program(&format!("--pods - {flags}"));
        program.input(kubectl(pods.iter().cloned())).exits(0);
    }

    /// `backend URL` of each server, whoever wrote it.
    fn servers(&self) -> BTreeSet<String> {
        let store = self.store();
        let servers = store.iter().filter_map(|(key, value)| {
            let (backend, url) = if self.layout == "traefik" {
                let rest = key.strip_prefix("traefik/http/services/")?;
                let (backend, rest) = rest.split_once("/loadBalancer/servers/")?;
                rest.ends_with("/url").then_some(())?;
                (backend, value.clone())
            } else {
                let rest = key.strip_prefix("/vulcand/backends/")?;
                let (backend, _) = rest.split_once("/servers/")?;
                let value = serde_json::from_str::<Value>(value).expect("JSON");
                (backend, value["URL"].as_str()?.to_owned())
            };
            Some(format!("{backend} {url}"))
        });
        servers.collect()
    }

    /// Adds an unmarked entry.
    fn hand_made(&self, backend: &str, url: &str) {
        let mut store = self.store();
        match self.layout {
            "traefik" => store.insert(
                format!("traefik/http/services/{backend}/loadBalancer/servers/hand/url"),
                url.to_owned(),
            ),
            _ => store.insert(
                format!("/vulcand/backends/{backend}/servers/hand"),
                json!({ "URL": url }).to_string(),
            ),
        };
        self.write(&store);
    }

    /// Edits the URLs of all servers.
    fn edit(&self, from: &str, to: &str) {
        let store = self.store().into_iter();
        let store = store.map(|(key, value)| {
            let value = if key.contains("/servers/") {
                value.replace(from, to)
            } else {
                value
            };
            (key, value)
        });
        self.write(&store.collect());
    }

    /// Runs dry, runs, and runs again. All three end with `code`; only the second may write; what serves
    /// is there after it.
    #[track_caller]
    fn keeps(
        &self,
        case: &str,
        serving: &BTreeSet<String>,
        code: i32,
        run: &dyn Fn(&Self, &str) -> Answer,
    ) -> Answer {
        let before = self.store();
        assert!(
            serving.is_subset(&self.servers()),
            "{case}: it serves before"
        );
        let dry = run(self, "--dry-run");
        assert_eq!(self.store(), before, "{case}: a dry run writes nothing");
        let first = run(self, "");
        let missing = serving
            .difference(&self.servers())
            .cloned()
            .collect::<Vec<_>>();
        assert!(
            missing.is_empty(),
            "{case}, {}: {missing:?} served and is gone:\n{first}",
            self.layout
        );
        let after = self.store();
        let again = run(self, "");
        assert_eq!(
            self.store(),
            after,
            "{case}: the second run writes: {again}"
        );
        let codes = [dry.code, first.code, again.code];
        assert_eq!(
            codes, [code; 3],
            "{case}, {}: {first}\nagain: {again}",
            self.layout
        );
        first
    }

    #[track_caller]
    fn keeps_all(
        &self,
        case: &str,
        serving: &[Value],
        code: i32,
        flags: &str,
        pods: &[Value],
    ) -> Answer {
        self.keeps(case, &urls(serving), code, &|site, more| {
            site.run(&format!("{flags} {more}"), pods)
        })
    }
}

/// The servers that these pods are, mapped as they should be.
fn urls(pods: &[Value]) -> BTreeSet<String> {
    let urls = pods.iter().map(|pod| {
        let app = pod["metadata"]["labels"]["app"].as_str();
        let annotated = pod["metadata"]["annotations"]["vulcanized.io/backend"].as_str();
        let backend = annotated.or(app).expect("it has a backend");
        let ip = pod["status"]["podIP"].as_str().expect("an address");
        format!("{backend} http://{ip}:8080")
    });
    urls.collect()
}

fn web(n: u8) -> Value {
    pod("shop", &format!("web-{n}"), "web", &format!("10.0.0.{n}"))
}

fn dual_stack(mut pod: Value) -> Value {
    let ip = pod["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let number = ip.rsplit('.').next().unwrap_or_default();
    pod["status"]["podIPs"] = json!([{ "ip": ip }, { "ip": format!("fd00::{number}") }]);
    pod
}

fn relabelled(mut pod: Value) -> Value {
    pod["metadata"]["labels"]["app"] = "elsewhere".into();
    pod
}

fn unready(mut pod: Value) -> Value {
    pod["status"]["conditions"] = json!([{ "type": "Ready", "status": "False" }]);
    pod
}

fn terminating(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = "2026-11-22T21:00:00Z".into();
    pod
}

#[test]
fn twenty_backends_of_one_server_and_a_wrong_flag() {
    let names = (1..=20).map(|n| format!("app-{n:02}")).collect::<Vec<_>>();
    let backends = names.iter().map(String::as_str).collect::<Vec<_>>();
    let pods = (1..=20).zip(&names).map(|(n, name): (u8, _)| {
        let pod = pod("shop", &format!("{name}-0"), name, &format!("10.0.0.{n}"));
        dual_stack(pod)
    });
    let pods = pods.collect::<Vec<_>>();
    // `--annotation-prefix` affects only pods with annotations.
    let annotated = pods.iter().cloned().map(|mut pod| {
        pod["metadata"]["annotations"] =
            json!({ "vulcanized.io/backend": pod["metadata"]["labels"]["app"].clone() });
        pod["metadata"]["labels"] = json!({});
        pod
    });
    let annotated = annotated.collect::<Vec<_>>();
    let single = pods.iter().cloned().map(|mut pod| {
        pod["status"]["podIPs"] = json!([{ "ip": pod["status"]["podIP"].clone() }]);
        pod
    });
    let single = single.collect::<Vec<_>>();
    for layout in LAYOUTS {
        for (pods, flags, code) in [
            (&pods, "--backend-label team", 3),
            (&pods, "--backend {name}.svc", 3),
            (&pods, "--backend everything", 3),
            (&pods, "--backend app-01", 3),
            (&pods, "--port 9090", 3),
            (&pods, "--port metrics", 3),
            (&pods, "--scheme https", 3),
            (&pods, "--ip-family ipv6", 3),
            (&single, "--ip-family ipv6", 3),
            (&annotated, "--annotation-prefix example.com/", 3),
            // The URL stays under another id: nothing is lost and there is no alarm.
            (&pods, "--server-id {pod}", 0),
            // All pods of a backend map to the same key; each backend has one pod.
            (&pods, "--server-id one", 0),
        ] {
            let site = Site::new(layout, &backends);
            site.publish("", pods);
            site.keeps_all(flags, pods, code, flags, pods);
            // With the right flag there is no alarm, except about servers that the wrong run added: their pods are
            // alive, so they are held.
            let joined = site.servers() != urls(pods);
            let right = site.run("", pods);
            assert_eq!(right.code, if joined { 3 } else { 0 }, "{flags}: {right}");
            assert!(urls(pods).is_subset(&site.servers()), "{flags}: {right}");
            assert!(joined || site.servers() == urls(pods), "{flags}: {right}");
        }
    }
}

#[test]
fn half_of_ten_terminate_and_half_are_relabelled() {
    for layout in LAYOUTS {
        for ready in [false, true] {
            let site = Site::new(layout, &["web"]);
            let pods = (1..=10).map(web).collect::<Vec<_>>();
            site.publish("", &pods);
            let (dying, moved) = pods.split_at(5);
            let dying = dying.iter().cloned().map(terminating);
            let dying = dying.map(|pod| if ready { pod } else { unready(pod) });
            let now = dying.chain(moved.iter().cloned().map(relabelled));
            let now = now.collect::<Vec<_>>();
            let answer = site.keeps_all("split", moved, 3, "", &now);
            assert!(answer.out.contains("--allow-deletes"), "{answer}");
        }
    }
}

#[test]
fn one_ready_pod_relabelled_beside_two_that_are_not_ready() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        site.publish("", &[web(1), web(2), web(3)]);
        let now = [relabelled(web(1)), unready(web(2)), unready(web(3))];
        site.keeps_all("one Ready", &[web(1)], 3, "", &now);
    }
}

#[test]
fn another_address_family_under_ids_by_pod() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        let pods = [1, 2, 3].map(|n| dual_stack(web(n)));
        site.publish("--server-id {pod}", &pods);
        let flags = "--server-id {pod} --ip-family ipv6";
        site.keeps_all("family", &pods, 3, flags, &pods);
    }
}

#[test]
fn all_unready_beside_a_stale_entry_made_by_hand() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        let pods = [1, 2, 3].map(web);
        site.publish("", &pods);
        site.hand_made("web", "http://10.9.9.9:8080");
        let now = pods.clone().map(unready);
        site.keeps_all("unready", &pods, 3, "", &now);
    }
}

#[test]
fn the_only_pod_is_terminating_and_still_ready() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        site.publish("", &[web(1)]);
        site.keeps_all("only", &[web(1)], 3, "", &[terminating(web(1))]);
        // With a successor its server is deleted.
        let answer = site.run("", &[terminating(web(1)), web(2)]);
        assert_eq!(answer.code, 0, "{answer}");
        assert_eq!(site.servers(), urls(&[web(2)]));
    }
}

#[test]
fn the_only_pod_is_relabelled() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        site.publish("", &[web(1)]);
        site.keeps_all("relabelled", &[web(1)], 3, "", &[relabelled(web(1))]);
    }
}

#[test]
fn the_only_pod_leaves_the_selector() {
    let tier = |mut pod: Value, tier: &str| {
        pod["metadata"]["labels"]["tier"] = tier.into();
        pod
    };
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        let run = |site: &Site, pods: Vec<Value>, more: &str| {
            let api = Api::pods(pods, 500);
            let kubeconfig = api.plain_kubeconfig();
            let flags = format!("--cluster c1@00000000 -n shop -l tier=a {more}");
            let program = site.program(&flags).arg("--kubeconfig");
            program.arg(kubeconfig.path()).run()
        };
        let first = run(&site, vec![tier(web(1), "a")], "");
        assert_eq!(first.code, 0, "{first}");
        let now = vec![tier(web(1), "b")];
        site.keeps("selector", &urls(&[web(1)]), 3, &|site, more| {
            run(site, now.clone(), more)
        });
        // If another selected pod remains in the backend, the server is deleted.
        let two = vec![tier(web(1), "b"), tier(web(2), "a")];
        let answer = run(&site, two, "");
        assert_eq!(answer.code, 0, "{answer}");
        assert_eq!(site.servers(), urls(&[web(2)]));
    }
}

#[test]
fn entries_edited_to_a_host_name() {
    for layout in LAYOUTS {
        let site = Site::new(layout, &["web"]);
        let pods = [1, 2, 3].map(web);
        site.publish("", &pods);
        site.edit("http://10.0.0.", "http://node.example.");
        let serving = site.servers();
        assert!(serving.iter().all(|server| server.contains("node.example")));
        site.keeps("host names", &serving, 3, &|site, more| {
            site.run(more, &pods)
        });
    }
}

#[test]
fn new_pods_have_several_ports_and_old_pods_are_deleted() {
    let several = |n: u8| {
        let mut pod = web(n);
        let ports = json!([{ "containerPort": 8080 }, { "containerPort": 9090 }]);
        pod["spec"]["containers"][0]["ports"] = ports;
        pod
    };
    let old = [1, 2, 3].map(web);
    let new = [11, 12, 13].map(several);
    let api = pod("shop", "api-1", "api", "10.0.0.100");
    for layout in LAYOUTS {
        // Terminating pods are kept as long as there is no replacement.
        let site = Site::new(layout, &["web", "api"]);
        site.publish("", &[&old[..], std::slice::from_ref(&api)].concat());
        let leaving = old.clone().map(terminating);
        let now = [&leaving[..], &new[..]].concat();
        site.keeps_all(
            "leaving",
            &old,
            0,
            "",
            &[&now[..], std::slice::from_ref(&api)].concat(),
        );
        // Afterwards the backend is empty, and every run alarms.
        let now = [&new[..], std::slice::from_ref(&api)].concat();
        let answer = site.keeps_all("emptied", std::slice::from_ref(&api), 3, "", &now);
        assert_eq!(site.servers(), urls(std::slice::from_ref(&api)));
        assert!(answer.out.contains("several ports"), "{answer}");
        // A list that shows none of ours and publishes none proves nothing.
        let site = Site::new(layout, &["web"]);
        site.publish("", &old);
        site.keeps_all("no witness", &old, 3, "", &new);
    }
}

/// Runs against an API server, by its kubeconfig with these fields of the cluster.
fn over(site: &Site, api: &Api, cluster: &Value, flags: &str) -> Answer {
    let kubeconfig = api.kubeconfig(cluster, &json!({}));
    let program = site
        .program(&format!("-n shop {flags}"))
        .arg("--kubeconfig");
    program.arg(kubeconfig.path()).run()
}

/// Checks that no entry of the first cluster is deleted or joined, and that the run prints the reason and the way out.
#[track_caller]
fn is_another_cluster(site: &Site, twins: bool, run: &dyn Fn(&str) -> Answer) {
    let before = site.store();
    let serving = site.servers();
    let answer = site.keeps("another cluster", &serving, 3, &|_, more| run(more));
    assert_eq!(site.store(), before, "it joins nothing: {answer}");
    let unwrapped = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [
        "out of scope: entries of our owner from another cluster",
        "Is this the right context?",
        "--adopt scope",
        "give this job an owner of its own",
    ] {
        assert!(unwrapped.contains(text), "wanted `{text}`: {answer}");
    }
    // If the pods of both clusters have the same keys and URLs, no pod is left out.
    let twins = twins && site.layout == "vulcand";
    let left_out = "not shared: backend web: it holds servers of another cluster";
    assert!(unwrapped.contains(left_out) != twins, "{answer}");
}

fn shop(n: u8) -> Value {
    pod("shop", &format!("web-{n}"), "web", &format!("10.1.0.{n}"))
}

#[test]
fn two_clusters_behind_one_gateway() {
    for layout in LAYOUTS {
        for twins in [false, true] {
            let gateway = Api::tls(move |request, _| {
                let (cluster, path) = request.path.split_at("/clusters/a".len());
                let pods = match cluster {
                    "/clusters/b" if !twins => vec![shop(1), shop(2)],
                    _ => vec![web(1), web(2)],
                };
                let inner = Request {
                    path: path.to_owned(),
                    ..request.clone()
                };
                list(&pods, &inner, 500)
            });
            let site = Site::new(layout, &["web"]);
            let run = |cluster: &str, more: &str| {
                let server = format!("{}/clusters/{cluster}", gateway.url());
                over(&site, &gateway, &json!({ "server": server }), more)
            };
            let first = run("a", "");
            assert_eq!(first.code, 0, "{first}");
            assert_eq!(site.servers(), urls(&[web(1), web(2)]));
            is_another_cluster(&site, twins, &|more| run("b", more));
        }
    }
}

/// CA and path are the same for both clusters, so only names distinguish them.
#[test]
fn two_api_servers_under_one_ca_with_a_name_each() {
    for layout in LAYOUTS {
        let names = Listen {
            hosts: Some(&["127.0.0.1", "localhost"]),
            ..Listen::default()
        };
        let api = Api::listen(&names, |request, _| {
            let host = request.headers.get("host").map_or("", String::as_str);
            let pods = if host.starts_with("localhost") {
                [shop(1), shop(2)]
            } else {
                [web(1), web(2)]
            };
            list(&pods, request, 500)
        });
        let second = json!({ "server": api.url().replace("127.0.0.1", "localhost") });
        let site = Site::new(layout, &["web"]);
        let first = over(&site, &api, &json!({}), "--cluster one");
        assert_eq!(first.code, 0, "{first}");
        is_another_cluster(&site, false, &|more| {
            over(&site, &api, &second, &format!("--cluster two {more}"))
        });
        is_another_cluster(&site, false, &|more| over(&site, &api, &second, more));
    }
}

#[test]
fn one_name_for_two_clusters() {
    let tls = |pods: Vec<Value>| Api::tls(move |request, _| list(&pods, request, 500));
    for layout in LAYOUTS {
        let first = tls(vec![web(1), web(2), web(3)]);
        let site = Site::new(layout, &["web"]);
        let answer = over(&site, &first, &json!({}), "--cluster main");
        assert_eq!(answer.code, 0, "{answer}");
        // Other pods, pods of the same names, and pods of which fewer than half have the same addresses too.
        for pods in [
            vec![pod("shop", "other-1", "web", "10.1.0.1")],
            vec![shop(1), shop(2), shop(3)],
            vec![web(1), shop(2), shop(3)],
        ] {
            let second = tls(pods);
            is_another_cluster(&site, false, &|more| {
                over(
                    &site,
                    &second,
                    &json!({}),
                    &format!("--cluster main {more}"),
                )
            });
        }
        // If all pods have the same addresses, the program assumes the same cluster with a renewed CA. Nothing is
        // written.
        let before = site.store();
        let renewed = tls(vec![web(1), web(2), web(3)]);
        let answer = over(&site, &renewed, &json!({}), "--cluster main");
        assert_eq!((answer.code, site.store()), (0, before), "{answer}");
    }
}

type Meddle = fn(&Etcd);

/// Another writer changes the store after it was listed. The comparison of a backend's range does not notice deletes.
#[test]
fn evidence_is_removed_between_list_and_apply() {
    const WEB: &str = "/vulcand/backends/web/";
    let mark = |owner: &str, n: u8| {
        let (pod, url) = (format!("shop/web-{n}"), format!("http://10.0.0.{n}:8080"));
        json!({ "URL": url, "Owner": owner, "Scope": "c1@00000000", "Pod": pod }).to_string()
    };
    let both = || vec![unready(web(1)), web(2)];
    let (one, two) = ("servers/10.0.0.1", "servers/10.0.0.2");
    let delete: Meddle = |etcd| etcd.delete(&format!("{WEB}servers/10.0.0.2"));
    let not_http: Meddle = |etcd| etcd.put(&format!("{WEB}backend"), r#"{"Type":"tcp"}"#);
    let joined: Meddle = |etcd| {
        let value = r#"{"URL":"http://10.9.9.9:8080","Owner":"blue","Scope":"x","Pod":"a/b"}"#;
        etcd.put(&format!("{WEB}servers/blue"), value);
    };
    for (case, before, meddle, pods, after, code) in [
        // The plan deletes `old`, because its URL is also served as 10.0.0.2.
        ("stays", ["servers/old", two], delete, both(), vec![two], 0),
        // The plan deletes the server that is not Ready, because a Ready one remains.
        ("remains", [one, two], delete, both(), vec![two], 0),
        ("type", [one, two], not_http, both(), vec![one, two], 3),
        (
            "owner",
            [one, two],
            joined,
            both(),
            vec![one, two, "servers/blue"],
            3,
        ),
    ] {
        let etcd = Arc::new(Etcd::start());
        etcd.define("web");
        for id in before {
            let n = if id == one { 1 } else { 2 };
            etcd.put(&format!("{WEB}{id}"), &mark("prod", n));
        }
        let other = Arc::clone(&etcd);
        let api = Api::start(move |request, number| {
            if number == 0 {
                meddle(&other);
            }
            list(&pods, request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let arguments = "--owner prod --cluster c1@00000000 -n shop --etcd";
        let program = vulcanized(arguments).arg(etcd.url()).arg("--kubeconfig");
        let answer = program.arg(kubeconfig.path()).run();
        assert_eq!(
            api.requests().len(),
            2,
            "{case}: planned anew, once: {answer}"
        );
        let servers = etcd.keys(&format!("{WEB}servers/"));
        let after = after.iter().filter_map(|id| id.strip_prefix("servers/"));
        assert_eq!(servers, after.collect::<Vec<_>>(), "{case}: {answer}");
        assert_eq!(answer.code, code, "{case}: {answer}");
    }
}

/// The second endpoint belongs to another cluster, and the first is killed after it was listed.
#[test]
fn an_etcd_of_another_cluster_is_not_written() {
    for (version, api_version) in [
        (Version::V34, "3"),
        (Version::V35, "3"),
        (Version::V34, "2"),
    ] {
        let first = Etcd::version(version);
        let other = Etcd::version(version);
        for etcd in [&first, &other] {
            if api_version == "2" {
                etcd.put_v2("/vulcand/backends/web/backend", Some(r#"{"Type":"http"}"#));
            } else {
                etcd.define("web");
            }
        }
        let urls = format!("{},{}", first.url(), other.url());
        let revision = other.revision();
        let index = other.index_v2();
        let first = Mutex::new(first);
        let api = Api::start(move |request, _| {
            first.lock().expect("one at a time").kill();
            list(&[web(1)], request, 500)
        });
        let kubeconfig = api.plain_kubeconfig();
        let options = "--owner prod -n shop --request-timeout 60s --timeout 60s";
        let answer = vulcanized(&format!("{options} --etcd-api {api_version} --etcd {urls}"))
            .kubeconfig(&kubeconfig)
            .run();
        assert_eq!(answer.code, 1, "{api_version}: {answer}");
        assert_eq!(other.revision(), revision, "{api_version}: {answer}");
        assert_eq!(other.index_v2(), index, "{api_version}: {answer}");
    }
}
