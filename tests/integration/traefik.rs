//! Traefik's layout, with the real Traefik on real etcds: what is written is served, nothing that freezes
//! the provider is ever written, and no request fails or reaches a stranger while pods come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use vulcanized::internals::layout::{self, Fault, Layout};
use vulcanized::internals::model::{self, Author, PodName, ServerUrl};

use crate::support::api::{Api, kubectl, list, pod};
use crate::support::etcd::{Etcd, VERSIONS, Version};
use crate::support::program::{Program, vulcanized};
use crate::support::traefik::{Site, Traefik, Traffic};

pub const SERVERS: &str = "traefik/http/services/web/loadBalancer/servers/";

/// Defines the service `web` by a router that sends everything to it.
pub fn seed_router(etcd: &Etcd) {
    etcd.put("traefik/http/routers/web/rule", "PathPrefix(`/`)");
    etcd.put("traefik/http/routers/web/entryPoints/0", "web");
    etcd.put("traefik/http/routers/web/service", "web");
}

fn program(etcd: &Etcd, owner: &str) -> Program {
    vulcanized(&format!(
        "--layout traefik --owner {owner} --cluster c1@00000000 --etcd {}",
        etcd.url()
    ))
}

/// One run on these pods.
pub fn run(etcd: &Etcd, pods: &[Value], more: &str) -> Program {
    let program = program(etcd, "prod").arg("--pods").arg("-");
    let program = more.split_whitespace().fold(program, Program::arg);
    program.input(kubectl(pods.iter().cloned()))
}

pub fn pod_of(site: &Site) -> Value {
    let ip = site.ip.to_string();
    let mut pod = pod("shop", &format!("web-{}", ip.replace('.', "-")), "web", &ip);
    pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(site.port);
    pod
}

pub fn urls(sites: &[&Site]) -> BTreeSet<String> {
    sites.iter().map(|site| site.url()).collect()
}

/// Must show 1: both answer; one leaves, and only the other does; no request fails.
fn a_pod_comes_and_goes(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed_router(&etcd);
    let traefik = Traefik::start(&etcd);
    let (first, second) = (Site::start(test, 1), Site::start(test, 2));
    let pods = [pod_of(&first), pod_of(&second)];
    run(&etcd, &pods, "").exits(0);
    traefik.wait_for("web", &urls(&[&first, &second]));
    let traffic = Traffic::start(traefik.web(), 2);
    traffic.more(50);
    assert!(first.served() > 0 && second.served() > 0, "both answer");
    run(&etcd, &pods[..1], "").exits(0);
    traefik.wait_for("web", &urls(&[&first]));
    traffic.more(10);
    let (before, others) = (second.served(), first.served());
    traffic.more(50);
    assert_eq!(second.served(), before, "only the other answers");
    assert!(first.served() > others);
    let (requests, failed) = traffic.end();
    assert!(requests >= 110 && failed.is_empty(), "{failed:?}");
    assert_eq!(traefik.provider_errors(), [""; 0]);
    let revision = etcd.revision();
    let again = run(&etcd, &pods[..1], "").exits(0);
    assert!(again.out.contains("in sync: 1 unchanged"), "{again}");
    assert_eq!(etcd.revision(), revision);
}

#[test]
fn a_pod_comes_and_goes_on_etcd_3_4() {
    a_pod_comes_and_goes(VERSIONS[0], 34);
}

#[test]
fn a_pod_comes_and_goes_on_etcd_3_5() {
    a_pod_comes_and_goes(VERSIONS[1], 35);
}

#[test]
fn churn_under_traffic_fails_no_request() {
    const SITES: u8 = 8;
    const ROUNDS: usize = 200;
    let etcd = Etcd::version(Version::V35);
    seed_router(&etcd);
    let sites = (1..=SITES).map(|n| Site::start(200, n)).collect::<Vec<_>>();
    let all = sites.iter().map(pod_of).collect::<Vec<_>>();
    // What the API server lists: the pods that are there, changed between two runs.
    let there = Arc::new(Mutex::new(Vec::<Value>::new()));
    let listed = Arc::clone(&there);
    let api = Api::start(move |request, _| list(&listed.lock().expect("no panic"), request, 3));
    let kubeconfig = api.plain_kubeconfig();
    let run_once = |pods: Vec<Value>| {
        *there.lock().expect("no panic") = pods;
        let program = program(&etcd, "prod").arg("-A").arg("--backend");
        let program = program.arg("{namespace}.{label:app}");
        program.kubeconfig(&kubeconfig).run()
    };
    etcd.put("traefik/http/routers/web/service", "shop.web");
    let traefik = Traefik::start(&etcd);
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    // At least one server stays: an empty service cannot answer.
    let subsets =
        proptest::sample::subsequence((0..SITES as usize).collect::<Vec<_>>(), 1..=SITES as usize);
    let mut now = (0..SITES as usize).collect::<Vec<_>>();
    let mut traffic = None;
    for round in 0..=ROUNDS {
        let pods = now.iter().map(|n| all[*n].clone()).collect();
        for n in &now {
            sites[*n].is_removed(false);
        }
        let answer = run_once(pods);
        assert_eq!(answer.code, 0, "round {round}: {answer}");
        let wanted = now.iter().map(|n| &sites[*n]).collect::<Vec<_>>();
        traefik.wait_for("shop.web", &urls(&wanted));
        let traffic = traffic.get_or_insert_with(|| Traffic::start(traefik.web(), 2));
        // Requests in flight during the change have ended after these.
        traffic.more(10);
        for (n, site) in sites.iter().enumerate() {
            if !now.contains(&n) {
                site.is_removed(true);
            }
        }
        traffic.more(5);
        now = subsets.new_tree(&mut runner).expect("a subset").current();
    }
    let (requests, failed) = traffic.expect("there was a round").end();
    assert!(
        requests > 1000 && failed.is_empty(),
        "{requests}: {failed:?}"
    );
    for site in &sites {
        assert!(site.served() > 0, "{}", site.url());
        assert_eq!(site.late(), 0, "{} after it was removed", site.url());
    }
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

#[test]
fn a_rolling_update_fails_no_request() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let traefik = Traefik::start(&etcd);
    let sites = (1..=12).map(|n| Site::start(201, n)).collect::<Vec<_>>();
    let round = |listed: &[Value], served: &[&Site]| {
        run(&etcd, listed, "").exits(0);
        traefik.wait_for("web", &urls(served));
    };
    let mut now = sites.iter().take(3).collect::<Vec<_>>();
    let pods = |sites: &[&Site]| sites.iter().map(|site| pod_of(site)).collect::<Vec<_>>();
    round(&pods(&now), &now);
    let traffic = Traffic::start(traefik.web(), 2);
    for next in &sites[3..] {
        // The new pod is Ready before the old one terminates.
        now.push(next);
        round(&pods(&now), &now);
        let old = now.remove(0);
        let mut terminating = pod_of(old);
        terminating["metadata"]["deletionTimestamp"] = json!("2026-11-22T21:00:00Z");
        let mut listed = pods(&now);
        listed.push(terminating);
        round(&listed, &now);
        traffic.more(20);
        // Its `preStop` was longer than the period: one run has been since.
        old.close();
        traffic.more(20);
    }
    let (requests, failed) = traffic.end();
    assert!(requests >= 360 && failed.is_empty(), "{failed:?}");
    assert_eq!(traefik.provider_errors(), [""; 0]);
    // The test would notice a shorter `preStop`.
    let traffic = Traffic::start(traefik.web(), 2);
    now[0].close();
    traffic.more(50);
    let (_, failed) = traffic.end();
    assert!(!failed.is_empty());
}

#[test]
fn foreign_servers_are_not_changed_and_stay_served() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let traefik = Traefik::start(&etcd);
    let [ours, next, foreign, other, elsewhere] = [1, 2, 3, 4, 5].map(|n| Site::start(3, n));
    etcd.put(&format!("{SERVERS}0/url"), &foreign.url());
    etcd.put(&format!("{SERVERS}0/weight"), "2");
    let theirs = format!("{SERVERS}green.c1.shop.{}/url", other.ip);
    etcd.put(&theirs, &other.url());
    let far = format!("{SERVERS}prod.c2.shop.{}/url", elsewhere.ip);
    etcd.put(&far, &elsewhere.url());
    let before = etcd.get("traefik");
    // Servers of another owner and of another cluster are there: exit code 3.
    run(&etcd, &[pod_of(&ours)], "").exits(3);
    assert_eq!(etcd.get("traefik"), before, "not shared");
    run(&etcd, &[pod_of(&ours)], "--share-backends").exits(3);
    traefik.wait_for("web", &urls(&[&ours, &foreign, &other, &elsewhere]));
    run(&etcd, &[pod_of(&next)], "--share-backends").exits(3);
    traefik.wait_for("web", &urls(&[&next, &foreign, &other, &elsewhere]));
    // Our last server is deleted, the foreign ones are not.
    run(&etcd, &[], "--share-backends --allow-empty").exits(3);
    traefik.wait_for("web", &urls(&[&foreign, &other, &elsewhere]));
    assert_eq!(
        etcd.get("traefik"),
        before,
        "foreign entries, byte for byte"
    );
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

#[test]
fn keys_that_freeze_the_real_provider() {
    let table = include_str!("../../fixtures/traefik/keys.tsv");
    let rows = table.lines().map(|line| {
        let columns = line.split('\t').collect::<Vec<_>>();
        let [verdict, key, value] = *columns.as_slice() else {
            panic!("three columns: {line}");
        };
        (verdict == "freezes", format!("traefik/http/{key}"), value)
    });
    let (freezing, harmless): (Vec<_>, Vec<_>) = rows.partition(|(freezes, ..)| *freezes);
    assert!(freezing.len() >= 10 && harmless.len() >= 30);
    let etcd = Etcd::start();
    seed_router(&etcd);
    // Whether the provider still accepts changes: a new service appears.
    let mut number = 0;
    let mut takes = |traefik: &Traefik, etcd: &Etcd| {
        number += 1;
        let service = format!("canary-{number}");
        let key = format!("traefik/http/services/{service}/loadBalancer/servers/0/url");
        etcd.put(&key, "http://127.0.0.1:9");
        let errors = traefik.provider_errors().len();
        crate::support::etcd::poll("Traefik to take it, or to complain", || {
            let taken = traefik.service(&service).map(|_| true);
            taken.or((traefik.provider_errors().len() > errors).then_some(false))
        })
    };
    {
        let traefik = Traefik::start(&etcd);
        assert!(takes(&traefik, &etcd));
        for (_, key, value) in &harmless {
            let was_there = etcd.get(key).into_iter().any(|(found, _)| found == *key);
            etcd.put(key, value);
            assert!(
                takes(&traefik, &etcd),
                "{key} = {value}: {:?}",
                traefik.provider_errors()
            );
            if !was_there {
                etcd.delete(key);
            }
        }
    }
    // A frozen provider retries with growing delays, so each key gets a new Traefik.
    for (_, key, value) in &freezing {
        etcd.put(key, value);
        let traefik = Traefik::start(&etcd);
        let complaint = crate::support::etcd::poll("Traefik to read its provider", || {
            let frozen = !traefik.provider_errors().is_empty();
            let fine = traefik.service("canary-1").is_some();
            (frozen || fine).then_some(frozen)
        });
        assert!(complaint, "{key} = {value} does not freeze it");
        etcd.delete(key);
    }
}

/// Text for labels and annotations, valid or not.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9]{1,8}",
        "[A-Z][a-zA-Z.:_-]{0,12}",
        "[0-9]{1,4}",
        "[a-z0-9\\[][a-z0-9._:\\[\\]-]{0,20}",
        "[ -~]{0,20}",
        "\\PC{0,12}",
        ".{0,12}",
        Just("servers/a/owner".to_owned()),
        Just("../../routers/web".to_owned()),
        Just("web@internal".to_owned()),
        Just("a//b".to_owned()),
        Just("loadBalancer".to_owned()),
        "[a-z]{250,260}",
    ]
}

/// A pod with random labels and annotations.
fn hostile_pod() -> impl Strategy<Value = model::Pod<'static>> {
    let annotation = |name: &'static str| {
        proptest::option::weighted(0.3, hostile())
            .prop_map(move |value| value.map(|value| (format!("vulcanized.io/{name}"), value)))
    };
    let labels = proptest::collection::btree_map("app|name|id", hostile(), 0..3);
    let annotations = (
        annotation("backend"),
        annotation("port"),
        annotation("scheme"),
    );
    (labels, annotations, any::<[u8; 3]>()).prop_map(|(labels, (a, b, c), ip)| model::Pod {
        namespace: "shop".into(),
        name: "web-1".into(),
        labels: labels.into_iter().collect(),
        annotations: [a, b, c].into_iter().flatten().collect(),
        phase: model::Phase::Running,
        ready: true,
        ips: vec![IpAddr::from([10, ip[0], ip[1], ip[2]])],
        ports: vec![model::ContainerPort {
            name: Some("http".into()),
            number: 8080,
            tcp: true,
            sidecar: false,
        }],
        ..model::Pod::default()
    })
}

fn layout() -> Rc<dyn Layout> {
    layout::open("traefik", layout::Options::default()).expect("on etcd v3")
}

/// The keys and values that a pod would get, under ids made of its labels.
fn writes(pod: &model::Pod) -> Vec<(String, String)> {
    use vulcanized::internals::reconcile::map::Mapping;
    use vulcanized::internals::reconcile::template::Template;
    let template = |text: &str| Template::parse(text).expect("a template");
    let mapping = Mapping {
        annotation_prefix: "vulcanized.io/".to_owned(),
        backend_labels: vec!["app".to_owned(), "name".to_owned()],
        backend: template("{name}"),
        port: None,
        scheme: model::Scheme::Http,
        ip_family: None,
        server_id: template(if pod.labels.get("id").is_some() {
            "{label:id}"
        } else {
            "{ip}"
        }),
        layout: layout(),
    };
    let seen = mapping.map(pod);
    let name = seen.name.clone();
    let write = |want: &vulcanized::internals::reconcile::map::Want| {
        let mark = layout().mark(Author::shared("prod", "c1"), &name);
        let id = layout().id(&want.server, &mark);
        let key = layout().key("traefik", &want.backend, &id);
        (key, layout().value(&want.url, &mark))
    };
    seen.wants.iter().map(write).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// With any labels and annotations, a key has the form that Traefik knows, in lower case and without further
    /// segments, and is read back with our mark.
    #[test]
    fn labels_never_make_a_key_that_freezes_the_provider(pod in hostile_pod()) {
        for (key, value) in writes(&pod) {
            let segments = key.split('/').collect::<Vec<_>>();
            let [_, "http", "services", service, "loadBalancer", "servers", id, "url"] = *segments else {
                panic!("{key}");
            };
            prop_assert!(!service.bytes().all(|c| c.is_ascii_digit()), "{}", key);
            for part in [service, id] {
                prop_assert!(!part.is_empty());
                let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._:[]-".contains(&c);
                prop_assert!(part.bytes().all(plain), "{}", key);
            }
            prop_assert!(ServerUrl::parse(&value).is_some(), "{}", value);
            let entry = model::KeyValue { key: key.clone().into(), value: value.into(), revision: 1 };
            let ranges = vec![Ok(vec![entry]), Ok(vec![]), Ok(vec![])];
            let observed = layout().observe(model::Snapshot { revision: None, ranges }).expect("observed");
            let server = &observed.backends[service].servers[&id.into()];
            let mark = layout().mark(Author::shared("prod", "c1"), &PodName::parse("shop/web-1").expect("a name"));
            prop_assert_eq!(server.mark.as_ref(), Some(&mark));
            prop_assert_eq!(server.fault, None);
            let stray = observed.stray.iter().map(|(_, fault)| *fault).collect::<Vec<_>>();
            prop_assert_eq!(stray, vec![Fault::NoRouter], "no fault of the key's own");
        }
    }
}

#[test]
fn the_real_provider_accepts_keys_of_hostile_labels() {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut pods = Vec::new();
    let mut services = BTreeSet::new();
    for number in 0..2000 {
        let made = hostile_pod()
            .new_tree(&mut runner)
            .expect("a pod")
            .current();
        for (key, _) in writes(&made) {
            services.insert(key.split('/').nth(3).expect("a service").to_owned());
        }
        let ip = made.ips[0].to_string();
        let mut value = pod("shop", &format!("web-{number}"), "x", &ip);
        value["metadata"]["labels"] = made.labels.iter().collect();
        value["metadata"]["annotations"] = made.annotations.iter().collect();
        pods.push(value);
    }
    assert!(services.len() > 100, "many are valid: {}", services.len());
    let etcd = Etcd::start();
    seed_router(&etcd);
    let definition = |service: &String| {
        let key = format!("traefik/http/services/{service}/loadBalancer/passHostHeader");
        (key, "true")
    };
    etcd.put_all(&services.iter().map(definition).collect::<Vec<_>>());
    let traefik = Traefik::start(&etcd);
    let answer = run(&etcd, &pods, "").run();
    // Ids cannot clash here, so there is no alarm.
    assert_eq!(answer.code, 0, "{answer}");
    for service in &services {
        let prefix = format!("traefik/http/services/{service}/loadBalancer/servers/");
        let written = etcd.get(&prefix).into_iter().map(|(_, url)| url);
        let written = written.collect::<BTreeSet<_>>();
        assert!(!written.is_empty(), "{service}");
        traefik.wait_for(service, &written);
    }
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

#[test]
fn usage_errors() {
    let rejects = |more: &str, text: &str| {
        let all = format!("--layout traefik --pods - --etcd http://127.0.0.1:1 {more}");
        let answer = vulcanized(&all).input(kubectl([])).exits(2);
        assert!(answer.err.contains(text), "{more}: {answer}");
    };
    rejects("--owner prod --etcd-api 2", "etcd v3 only");
    rejects("--owner prod --prefix /traefik", "begins with a slash");
    rejects(
        "--owner prod --prefix traefik/",
        "does not end with a slash",
    );
    rejects("--owner 10", "needs a letter");
}

#[test]
fn an_empty_traefik_store_is_an_error() {
    let etcd = Etcd::start();
    let web = pod("shop", "web-1", "web", "10.0.0.1");
    let answer = run(&etcd, std::slice::from_ref(&web), "").exits(1);
    for text in [
        "no backend is defined under `traefik/http/`",
        "--providers.etcd.rootkey=traefik",
        "etcdctl put 'traefik/http/routers/to-web/service' 'web'",
    ] {
        assert!(answer.err.contains(text), "{text}: {answer}");
    }
    assert!(!answer.err.contains("--etcd-api"), "{answer}");
    assert_eq!(etcd.get("traefik"), []);
    // The printed command helps.
    let commands = answer
        .err
        .split("This defines `web`: ")
        .nth(1)
        .expect("commands");
    for command in commands.trim().split(" && ") {
        let parts = command.split('\'').collect::<Vec<_>>();
        etcd.put(parts[1], parts[3]);
    }
    run(&etcd, &[web], "").exits(0);
    assert_eq!(etcd.keys(SERVERS), ["prod.c1-00000000.shop.10.0.0.1/url"]);
}

#[test]
fn adopting_a_hand_made_server_fails_no_request() {
    let etcd = Etcd::version(Version::V35);
    seed_router(&etcd);
    let traefik = Traefik::start(&etcd);
    let site = Site::start(9, 1);
    etcd.put(&format!("{SERVERS}0/url"), &site.url());
    traefik.wait_for("web", &urls(&[&site]));
    let traffic = Traffic::start(traefik.web(), 2);
    let pods = [pod_of(&site)];
    run(&etcd, &pods, "--adopt unmarked").exits(0);
    let adopted = format!("prod.c1-00000000.shop.{}/url", site.ip);
    assert_eq!(etcd.keys(SERVERS), [adopted]);
    traffic.more(50);
    let (_, failed) = traffic.end();
    assert_eq!(failed, [""; 0]);
    let again = run(&etcd, &pods, "").exits(0);
    assert!(again.out.contains("in sync: 1 unchanged"), "{again}");
}
