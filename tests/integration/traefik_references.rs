//! Services that get requests without a router in etcd: children of other services, services of error pages, services
//! of routers in files. Their pods are published, and the real Traefik sends them requests.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::etcd::{Etcd, VERSIONS, Version, agent, poll};
use crate::support::program::Answer;
use crate::support::traefik::{Site, Traefik, Traffic};
use crate::traefik::{pod_of, run, urls};

/// Writes a router that sends all requests to the service `shop`, and further keys below `traefik/http/`.
fn seed(etcd: &Etcd, keys: &[(&str, &str)]) {
    let router = [
        ("routers/all/rule", "PathPrefix(`/`)"),
        ("routers/all/entryPoints/0", "web"),
        ("routers/all/service", "shop"),
    ];
    for (key, value) in router.iter().chain(keys) {
        etcd.put(&format!("traefik/http/{key}"), value);
    }
}

/// The pod of a site, with this service in its label.
fn labelled(site: &Site, app: &str) -> Value {
    let mut pod = pod_of(site);
    pod["metadata"]["labels"] = json!({ "app": app });
    pod
}

fn without_findings(answer: Answer) -> Answer {
    for text in ["finding", "sends it nothing"] {
        assert!(!answer.out.contains(text), "{answer}");
    }
    answer
}

/// Publishes these pods, without findings in the dry run, the run or a second run, and waits for the proxy.
fn publish(etcd: &Etcd, traefik: &Traefik, sites: &[(&Site, &str)], more: &str) {
    let pods = sites.iter().map(|(site, app)| labelled(site, app));
    let pods = pods.collect::<Vec<_>>();
    without_findings(run(etcd, &pods, &format!("{more} --dry-run")).exits(0));
    let answer = without_findings(run(etcd, &pods, more).exits(0));
    assert!(
        answer.out.contains(&format!("{} created", sites.len())),
        "{answer}"
    );
    let revision = etcd.revision();
    let again = without_findings(run(etcd, &pods, more).exits(0));
    let in_sync = format!("in sync: {} unchanged", sites.len());
    assert!(again.out.contains(&in_sync), "{again}");
    assert_eq!(etcd.revision(), revision);
    for (site, app) in sites {
        traefik.wait_for(app, &urls(&[site]));
    }
}

/// How many of the next requests each site answers. No request may fail.
fn shares<const N: usize>(traefik: &Traefik, sites: [&Site; N], requests: usize) -> [usize; N] {
    let traffic = Traffic::start(traefik.web(), 2);
    let shares = traffic.shares(sites, requests);
    let (_, failed) = traffic.end();
    assert_eq!(failed, [""; 0]);
    shares
}

/// Status and body of one request.
fn request(traefik: &Traefik) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}/", traefik.web());
    let answer = agent(Duration::from_secs(10)).get(&url).call();
    let mut answer = answer.expect("Traefik answers");
    let body = answer.body_mut().read_to_string().expect("a body");
    (answer.status().as_u16(), body)
}

fn weighted(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed(
        &etcd,
        &[
            ("services/shop/weighted/services/0/name", "shop-blue"),
            ("services/shop/weighted/services/0/weight", "3"),
            ("services/shop/weighted/services/1/name", "Shop-Green@etcd"),
            ("services/shop/weighted/services/1/weight", "1"),
        ],
    );
    let traefik = Traefik::start(&etcd);
    let [blue, green] = [1, 2].map(|n| Site::start(test, n));
    let sites = [(&blue, "shop-blue"), (&green, "Shop-Green")];
    publish(&etcd, &traefik, &sites, "");
    let [three, one] = shares(&traefik, [&blue, &green], 200);
    assert!(three > 2 * one && one > 0, "{three} to {one}");
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

fn mirrored(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed(
        &etcd,
        &[
            ("services/shop/mirroring/service", "shop-live"),
            ("services/shop/mirroring/mirrors/0/name", "shop-next"),
            ("services/shop/mirroring/mirrors/0/percent", "100"),
        ],
    );
    let traefik = Traefik::start(&etcd);
    let [live, next] = [1, 2].map(|n| Site::start(test, n));
    let sites = [(&live, "shop-live"), (&next, "shop-next")];
    publish(&etcd, &traefik, &sites, "");
    let [answered, _] = shares(&traefik, [&live, &next], 50);
    assert!(answered >= 50, "{answered}");
    // Traefik does not wait for the mirror's answer.
    poll("the mirror to get the requests", || {
        (next.served() >= 50).then_some(())
    });
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

fn failed_over(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    // Traefik accepts a fail-over service only if its first service has a health check.
    let health = "services/shop-first/loadBalancer/healthCheck";
    seed(
        &etcd,
        &[
            ("services/shop/failover/service", "shop-first"),
            ("services/shop/failover/fallback", "shop-second"),
            (&format!("{health}/path"), "/"),
            (&format!("{health}/interval"), "100ms"),
            (&format!("{health}/timeout"), "1s"),
        ],
    );
    let traefik = Traefik::start(&etcd);
    let [first, second] = [1, 2].map(|n| Site::start(test, n));
    let sites = [(&first, "shop-first"), (&second, "shop-second")];
    publish(&etcd, &traefik, &sites, "");
    let [answered, by_fallback] = shares(&traefik, [&first, &second], 50);
    assert!(
        answered >= 50 && by_fallback == 0,
        "{answered} and {by_fallback}"
    );
    // The first pod stays Ready but refuses connections.
    first.close();
    poll("the fallback to answer", || {
        (request(&traefik).0 == 200).then_some(())
    });
    let [_, by_fallback] = shares(&traefik, [&first, &second], 50);
    assert!(by_fallback >= 50, "{by_fallback}");
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

fn error_page(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed(
        &etcd,
        &[
            ("routers/all/middlewares/0", "oops"),
            ("middlewares/oops/errors/status/0", "500-599"),
            ("middlewares/oops/errors/service", "pages"),
            ("middlewares/oops/errors/query", "/{status}.html"),
        ],
    );
    let traefik = Traefik::start(&etcd);
    let [shop, pages] = [1, 2].map(|n| Site::start(test, n));
    publish(&etcd, &traefik, &[(&shop, "shop"), (&pages, "pages")], "");
    assert_eq!(shares(&traefik, [&pages], 20), [0]);
    shop.close();
    let served = pages.served();
    assert_eq!(request(&traefik), (502, "ok".to_owned()), "the page's body");
    assert_eq!(pages.served(), served + 1);
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

/// A weighted service with a mirrored child, which has a fail-over child.
fn nested(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed(
        &etcd,
        &[
            ("services/shop/weighted/services/0/name", "a"),
            ("services/shop/weighted/services/1/name", "b"),
            ("services/b/mirroring/service", "c"),
            ("services/b/mirroring/mirrors/0/name", "d"),
            ("services/b/mirroring/mirrors/0/percent", "100"),
            ("services/c/failover/service", "e"),
            ("services/c/failover/fallback", "f"),
            ("services/e/loadBalancer/healthCheck/path", "/"),
            ("services/e/loadBalancer/healthCheck/interval", "100ms"),
        ],
    );
    let traefik = Traefik::start(&etcd);
    let [a, d, e, f] = [1, 2, 3, 4].map(|n| Site::start(test, n));
    let sites = [(&a, "a"), (&d, "d"), (&e, "e"), (&f, "f")];
    publish(&etcd, &traefik, &sites, "");
    let [one, other] = shares(&traefik, [&a, &e], 100);
    assert!(one >= 40 && other >= 40, "{one} and {other}");
    poll("the mirror to get requests", || {
        (d.served() >= 40).then_some(())
    });
    e.close();
    poll("the fallback to answer", || {
        (request(&traefik).0 == 200 && f.served() > 0).then_some(())
    });
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

/// A router in a file names `shop@etcd`; no key in etcd refers to it.
fn router_in_a_file(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    let file = "http:\n  routers:\n    all:\n      rule: PathPrefix(`/`)\n      entryPoints: [web]\n      \
                service: shop@etcd\n";
    let traefik = Traefik::with_file(&etcd, file);
    let site = Site::start(test, 1);
    let pods = [labelled(&site, "shop")];
    let answer = run(&etcd, &pods, "").exits(1);
    assert!(answer.err.contains("--create-backends"), "{answer}");
    assert_eq!(etcd.get("traefik"), []);
    publish(&etcd, &traefik, &[(&site, "shop")], "--create-backends");
    let [answered] = shares(&traefik, [&site], 50);
    assert!(answered >= 50, "{answered}");
    // A published service counts as defined, also without the option.
    without_findings(run(&etcd, &pods, "").exits(0));
}

/// A test of each case for each version of etcd.
macro_rules! on_each_etcd {
    ($($case:ident, $v34:ident, $v35:ident, $test:literal;)*) => {$(
        #[test]
        fn $v34() {
            $case(VERSIONS[0], $test);
        }

        #[test]
        fn $v35() {
            $case(VERSIONS[1], $test + 1);
        }
    )*};
}

on_each_etcd! {
    weighted, children_of_a_weighted_service_on_etcd_3_4, children_of_a_weighted_service_on_etcd_3_5, 80;
    mirrored, children_of_a_mirrored_service_on_etcd_3_4, children_of_a_mirrored_service_on_etcd_3_5, 82;
    failed_over, children_of_a_fail_over_service_on_etcd_3_4, children_of_a_fail_over_service_on_etcd_3_5, 84;
    error_page, the_service_of_an_error_page_on_etcd_3_4, the_service_of_an_error_page_on_etcd_3_5, 86;
    nested, children_at_any_depth_on_etcd_3_4, children_at_any_depth_on_etcd_3_5, 88;
    router_in_a_file, a_service_of_a_router_in_a_file_on_etcd_3_4, a_service_of_a_router_in_a_file_on_etcd_3_5, 90;
}

/// The keys below `traefik/http/` that a row's service or middleware needs to be valid: `web` is the service that the
/// row may refer to, `dead` a service whose server refuses connections.
fn context_of(key: &str) -> Vec<(String, &'static str)> {
    const DEAD: (&str, &str) = (
        "services/dead/loadBalancer/servers/0/url",
        "http://127.1.92.9:9",
    );
    const ROUTED: (&str, &str) = ("routers/r/service", "w");
    const INTERVAL: &str = "100ms";
    let plain = key.to_lowercase();
    let keys: &[(&str, &str)] = match plain.split('/').next() {
        Some("routers") => &[],
        Some("middlewares") => &[
            DEAD,
            ("routers/r/service", "dead"),
            ("routers/r/middlewares/0", "m"),
            ("middlewares/m/errors/status/0", "502"),
            ("middlewares/m/errors/query", "/"),
        ],
        _ if plain.contains("/mirroring/mirror") => {
            &[DEAD, ROUTED, ("services/w/mirroring/service", "dead")]
        }
        _ if plain.contains("/failover/fallbac") => &[
            DEAD,
            ("services/dead/loadBalancer/healthCheck/path", "/"),
            ("services/dead/loadBalancer/healthCheck/interval", INTERVAL),
            ROUTED,
            ("services/w/failover/service", "dead"),
        ],
        _ if plain.contains("/failover/") => &[
            DEAD,
            ROUTED,
            ("services/web/loadBalancer/healthCheck/path", "/"),
            ("services/web/loadBalancer/healthCheck/interval", INTERVAL),
            ("services/w/failover/fallback", "dead"),
        ],
        _ => &[ROUTED],
    };
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), *value));
    let mut keys = keys.collect::<Vec<_>>();
    if plain.contains("/mirroring/mirror") {
        // Traefik merges an item's fields only if all of them spell the list's name alike.
        let item = key.trim_end_matches('/').rsplit_once('/');
        keys.push((format!("{}/percent", item.expect("an item").0), "100"));
    }
    keys
}

/// Each row of the table that refers to `web`, or almost does: whether it makes `web` get requests.
#[test]
fn references_to_a_service_match_the_real_traefik() {
    let table = include_str!("../../fixtures/traefik/keys.tsv");
    let rows = table.lines().filter_map(|line| {
        let columns = line.split('\t').collect::<Vec<_>>();
        let [verdict @ ("serves" | "misses"), key, value] = *columns.as_slice() else {
            return None;
        };
        Some((verdict == "serves", key, value))
    });
    let rows = rows.collect::<Vec<_>>();
    assert!(rows.len() >= 80, "{}", rows.len());
    let etcd = Etcd::start();
    let site = Site::start(92, 1);
    let url = site.url();
    let traefik = Traefik::start(&etcd);
    for (number, (serves, key, value)) in rows.iter().enumerate() {
        let canary = format!("canary-{number}");
        let mut keys = context_of(key);
        keys.extend([
            ("services/web/loadBalancer/servers/0/url".to_owned(), &*url),
            ("routers/r/rule".to_owned(), "PathPrefix(`/`)"),
            ("routers/r/entryPoints/0".to_owned(), "web"),
            (
                format!("services/{canary}/loadBalancer/servers/0/url"),
                "http://127.0.0.1:9",
            ),
            ((*key).to_owned(), value),
        ]);
        let keys = keys.into_iter();
        let keys = keys.map(|(key, value)| (format!("traefik/http/{key}"), value));
        etcd.put_all(&keys.collect::<Vec<_>>());
        poll(&format!("Traefik to take {key} = {value}"), || {
            traefik.service(&canary).map(|_| ())
        });
        let before = site.served();
        // Health checks reach the site, too, so its answer to the client counts, where the site is the one to answer.
        let answers_client =
            !key.to_lowercase().contains("/mirroring/mirror") && !key.starts_with("middlewares/");
        let gets_requests = || {
            let (status, _) = request(&traefik);
            let served = site.served() > before;
            (if answers_client {
                status == 200 && served
            } else {
                served
            })
            .then_some(())
        };
        if *serves {
            poll(&format!("requests through {key} = {value}"), gets_requests);
        } else {
            let reached = (0..3).find_map(|_| gets_requests());
            assert_eq!(reached, None, "{key} = {value}");
        }
        etcd.call(
            "kv/deleterange",
            &json!({"key": "AA==", "range_end": "AA=="}),
        );
    }
}
