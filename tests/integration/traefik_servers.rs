//! Servers of Traefik that have more keys than their URL: weights, what was set by hand, what moves with an
//! adopted or renamed one; with the real Traefik on real etcds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::etcd::{Etcd, VERSIONS, Version};
use crate::support::program::Program;
use crate::support::traefik::{Site, Traefik, Traffic};
use crate::traefik::{SERVERS, pod_of, run, seed_router, urls};

fn weighing(pod: &Value, weight: &str) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["annotations"] = json!({ "vulcanized.io/weight": weight });
    pod
}

/// The keys below the service's servers, with their values.
fn servers(etcd: &Etcd) -> BTreeMap<String, String> {
    let found = etcd.get(SERVERS).into_iter();
    found
        .map(|(key, value)| (key[SERVERS.len()..].to_owned(), value))
        .collect()
}

fn id(site: &Site) -> String {
    format!("prod.c1-00000000.shop.{}", site.ip)
}

/// A hand-made server with a weight is taken over: its weight moves with it, no request fails, and nothing is
/// left of the old id.
fn a_weight_made_by_hand_moves_with_its_server(version: Version, test: u8) {
    let etcd = Etcd::version(version);
    seed_router(&etcd);
    let [heavy, light] = [1, 2].map(|n| Site::start(test, n));
    etcd.put(&format!("{SERVERS}0/url"), &heavy.url());
    etcd.put(&format!("{SERVERS}0/weight"), "4");
    etcd.put(&format!("{SERVERS}0/preservePath"), "true");
    etcd.put(&format!("{SERVERS}1/url"), &light.url());
    let traefik = Traefik::start(&etcd);
    traefik.wait_for("web", &urls(&[&heavy, &light]));
    let traffic = Traffic::start(traefik.web(), 2);
    let [a, b] = traffic.shares([&heavy, &light], 200);
    assert!(a > 3 * b, "{a} to {b} before");
    let pods = [pod_of(&heavy), pod_of(&light)];
    run(&etcd, &pods, "--adopt unmarked").exits(0);
    let wanted = BTreeMap::from([
        (format!("{}/url", id(&heavy)), heavy.url()),
        (format!("{}/weight", id(&heavy)), "4".to_owned()),
        (format!("{}/preservePath", id(&heavy)), "true".to_owned()),
        (format!("{}/url", id(&light)), light.url()),
    ]);
    assert_eq!(servers(&etcd), wanted);
    let revision = etcd.revision();
    let again = run(&etcd, &pods, "").exits(0);
    assert!(again.out.contains("in sync: 2 unchanged"), "{again}");
    assert_eq!(etcd.revision(), revision);
    let [a, b] = traffic.shares([&heavy, &light], 200);
    assert!(a > 3 * b, "{a} to {b} after");
    // All keys of a server are deleted with its pod.
    run(&etcd, &pods[1..], "").exits(0);
    let left = BTreeMap::from([(format!("{}/url", id(&light)), light.url())]);
    assert_eq!(servers(&etcd), left);
    traefik.wait_for("web", &urls(&[&light]));
    traffic.more(20);
    let (_, failed) = traffic.end();
    assert_eq!(failed, [""; 0]);
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

#[test]
fn a_weight_made_by_hand_moves_with_its_server_on_etcd_3_4() {
    a_weight_made_by_hand_moves_with_its_server(VERSIONS[0], 64);
}

#[test]
fn a_weight_made_by_hand_moves_with_its_server_on_etcd_3_5() {
    a_weight_made_by_hand_moves_with_its_server(VERSIONS[1], 65);
}

#[test]
fn a_weight_annotation_sets_the_weight_and_drains() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let traefik = Traefik::start(&etcd);
    let [first, second] = [1, 2].map(|n| Site::start(66, n));
    let pods = [pod_of(&first), pod_of(&second)];
    run(&etcd, &[weighing(&pods[0], "4"), pods[1].clone()], "").exits(0);
    assert_eq!(servers(&etcd)[&format!("{}/weight", id(&first))], "4");
    traefik.wait_for("web", &urls(&[&first, &second]));
    let traffic = Traffic::start(traefik.web(), 2);
    let [a, b] = traffic.shares([&first, &second], 200);
    assert!(a > 3 * b, "{a} to {b}");
    let drain = [weighing(&pods[0], "0"), pods[1].clone()];
    let drained = run(&etcd, &drain, "").exits(0);
    assert!(drained.out.contains("~ web/"), "{drained}");
    assert!(drained.out.contains("1 updated, 1 unchanged"), "{drained}");
    crate::support::etcd::poll("the drained one to get nothing", || {
        (traffic.shares([&first, &second], 20)[0] == 0).then_some(())
    });
    let again = run(&etcd, &drain, "").exits(0);
    assert!(again.out.contains("in sync: 2 unchanged"), "{again}");
    // Without the annotation the weight is not changed; a new annotation sets it again.
    run(&etcd, &pods, "").exits(0);
    assert_eq!(servers(&etcd)[&format!("{}/weight", id(&first))], "0");
    run(&etcd, &[weighing(&pods[0], "1"), pods[1].clone()], "").exits(0);
    crate::support::etcd::poll("it to be back", || {
        (traffic.shares([&first, &second], 20)[0] > 0).then_some(())
    });
    // It is deleted with its server.
    run(&etcd, &pods[1..], "").exits(0);
    assert_eq!(servers(&etcd).len(), 1);
    let (_, failed) = traffic.end();
    assert_eq!(failed, [""; 0]);
    assert_eq!(traefik.provider_errors(), [""; 0]);
}

#[test]
fn an_invalid_weight_leaves_the_pod_out() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let site = Site::start(67, 1);
    for bad in ["-1", "1001", "many", "1.5", ""] {
        let pods = [weighing(&pod_of(&site), bad)];
        let answer = run(&etcd, &pods, "-v").run();
        let why =
            format!("annotation `vulcanized.io/weight`: `{bad}` is not a weight from 0 to 1000");
        assert!(answer.err.contains(&why), "{bad}: {answer}");
        assert_eq!(servers(&etcd).len(), 0, "{bad}");
    }
    for (good, weight) in [("0", "0"), (" 7 ", "7"), ("1000", "1000")] {
        run(&etcd, &[weighing(&pod_of(&site), good)], "").exits(0);
        assert_eq!(servers(&etcd)[&format!("{}/weight", id(&site))], weight);
    }
}

/// A server whose URL was deleted by hand, but not its weight, is repaired.
#[test]
fn a_weight_without_a_url_is_repaired_or_a_finding() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let site = Site::start(68, 1);
    let weight = format!("{}/weight", id(&site));
    etcd.put(&format!("{SERVERS}{weight}"), "3");
    let pod = pod_of(&site);
    let look = run(&etcd, std::slice::from_ref(&pod), "--dry-run").exits(0);
    assert!(!look.out.contains("finding"), "it will have one: {look}");
    run(&etcd, &[weighing(&pod, "5")], "").exits(0);
    assert_eq!(servers(&etcd)[&weight], "5");
    assert_eq!(servers(&etcd).len(), 2);
    // An unwanted one is a finding, with the command that removes it.
    let other = format!("{SERVERS}old/weight");
    etcd.put(&other, "3");
    let look = run(&etcd, &[weighing(&pod, "5")], "").exits(0);
    let command = format!("etcdctl del '{other}' --endpoints='{}'", etcd.url());
    assert!(look.out.contains(&command), "{look}");
}

/// A drained server does not count as a replacement.
#[test]
fn a_drained_server_does_not_replace_a_live_one() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let [first, second] = [1, 2].map(|n| Site::start(69, n));
    let pods = [pod_of(&first), pod_of(&second)];
    run(&etcd, &pods, "").exits(0);
    let mut relabelled = pods[0].clone();
    relabelled["metadata"]["labels"] = json!({ "app": "elsewhere" });
    let drained = [relabelled.clone(), weighing(&pods[1], "0")];
    let held = run(&etcd, &drained, "").exits(3);
    assert!(held.out.contains("held"), "{held}");
    assert!(servers(&etcd).contains_key(&format!("{}/url", id(&first))));
}

/// A hand-made server of another scheme at a pod's address is not served a second time.
#[test]
fn a_server_of_another_scheme_is_not_duplicated() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let site = Site::start(70, 1);
    let url = site.url().replace("http:", "h2c:");
    etcd.put(&format!("{SERVERS}grpc/url"), &url);
    for more in ["", "--adopt unmarked"] {
        let answer = run(&etcd, &[pod_of(&site)], more).exits(0);
        assert!(
            answer.out.contains("1 served by unmarked entries"),
            "{answer}"
        );
        assert!(!answer.out.contains("finding"), "{answer}");
        assert_eq!(
            servers(&etcd),
            BTreeMap::from([("grpc/url".to_owned(), url.clone())])
        );
    }
}

/// Another template for ids: the weight moves with its server.
#[test]
fn a_renamed_server_keeps_its_weight() {
    let etcd = Etcd::start();
    seed_router(&etcd);
    let site = Site::start(71, 1);
    let pod = pod_of(&site);
    run(&etcd, std::slice::from_ref(&pod), "").exits(0);
    etcd.put(&format!("{SERVERS}{}/weight", id(&site)), "3");
    let again = |more: &str| -> Program { run(&etcd, std::slice::from_ref(&pod), more) };
    again("--server-id {pod}").exits(0);
    let name = pod["metadata"]["name"].as_str().expect("a name");
    let id = format!("prod.c1-00000000.shop.{name}");
    let wanted = BTreeMap::from([
        (format!("{id}/url"), site.url()),
        (format!("{id}/weight"), "3".to_owned()),
    ]);
    assert_eq!(servers(&etcd), wanted);
}
