//! What harms the proxy after the run is found, and what the run repairs is not.

use super::*;
use crate::layout::Fault;
use crate::reconcile::findings::Finding;

/// A line for each finding.
fn found(world: &World) -> Vec<String> {
    let plan = world.plan();
    let line = |finding: &Finding| match finding {
        Finding::Undefined {
            backend, servers, ..
        } => format!("undefined {backend}: {servers}"),
        Finding::BrokenDefinition { key, mend, .. } => {
            format!("broken {key}: {}", mend.is_some())
        }
        Finding::Fault { key, fault } => format!("{fault:?} {key}"),
        Finding::Sibling { .. } => "sibling".to_owned(),
        Finding::Bleeds { pairs, examples } => format!("{pairs} bleed, {}", examples.len()),
        Finding::TwoOwners { ip, entries } => format!("{ip}: {}", entries.len()),
        Finding::Stranger { key, pod, .. } => format!("{pod} at {key}"),
    };
    plan.findings.iter().map(line).collect()
}

const ROOT: &str = "/vulcand/backends";

fn unmarked(url: &str) -> String {
    format!(r#"{{"URL":"{url}"}}"#)
}

#[test]
fn servers_without_a_definition() {
    let api = || world().backend("api").pods([pod("api", 7)]);
    let x = unmarked("http://10.1.0.1:80");
    let world = || api().entry("web/servers/x", &x).entry("web/servers/y", &x);
    assert_eq!(found(&world()), ["undefined web: 2"]);
    // One of three is ours and dead: two remain.
    assert_eq!(found(&world().ours("web", [1])), ["undefined web: 2"]);
    // Ours alone, and all of them go.
    assert_eq!(found(&api().ours("web", [1])), [""; 0]);
    // The run defines it.
    let defined = world().pods(web([1]));
    let defined = defined.rules(|rules| rules.create_backends = true);
    assert_eq!(found(&defined), [""; 0]);
}

#[test]
fn definitions_that_the_proxy_refuses() {
    let world = |id: &str| {
        let api = world().backend("api").pods([pod("api", 7)]);
        api.entry(&format!("{id}/backend"), r#"{"Type":"tcp"}"#)
    };
    let broken = format!("broken {ROOT}/web/backend: true");
    assert_eq!(found(&world("web")), [broken]);
    // The plan reports it where pods want the backend.
    let wanted = world("web").pods(web([1]));
    assert_eq!(
        (found(&wanted).len(), wanted.plan().undefined.len()),
        (0, 1)
    );
}

#[test]
fn faults_that_stay_and_faults_that_the_run_repairs() {
    let world = |key: &str, value: &str| {
        let world = world().backend("web").entry(key, value);
        world.pods([pod("web", 7)])
    };
    let stays = world("web/servers/x", "null");
    assert_eq!(
        found(&stays),
        [format!("{:?} {ROOT}/web/servers/x", Fault::Null)]
    );
    let broken = value("prod", "c1", "shop/web-7", "localhost:80");
    let repaired = world("web/servers/10.0.0.7", &broken);
    assert_eq!((found(&repaired).len(), repaired.counts()[1]), (0, 1));
    let deleted = world(
        "web/servers/x",
        &value("prod", "c1", "shop/web-8", "localhost:80"),
    );
    assert_eq!((found(&deleted).len(), deleted.counts()[2]), (0, 1));
}

#[test]
fn a_directory_of_a_backend_that_the_run_defines() {
    let bare = |create: bool| {
        let options = layout::Options {
            etcd_v2: true,
            ..layout::Options::default()
        };
        let world = world()
            .mapping(|mapping| mapping.layout = layout::open("vulcand", options).expect("v2"))
            .entry("web/", "")
            .backend("api")
            .pods([pod("api", 7), pod("web", 1)]);
        world.rules(|rules| rules.create_backends = create)
    };
    let faults = |world: &World| {
        let mut found = found(world);
        found.retain(|line| line.starts_with("BareDirectory"));
        found.len()
    };
    assert_eq!(faults(&bare(false)), 1);
    let defined = bare(true);
    assert_eq!((faults(&defined), defined.counts()[0]), (0, 3));
}

#[test]
fn backends_that_mix_their_servers() {
    let world = |ids: &[&str]| {
        let world = world().backend("web").pods([pod("web", 7)]);
        ids.iter().fold(world, |world, id| world.backend(id))
    };
    let numbered = ["web1", "web2", "web3", "web4", "web5", "web6"];
    assert_eq!(found(&world(&["api"])), [""; 0]);
    assert_eq!(found(&world(&["web1"])), ["1 bleed, 1"]);
    assert_eq!(found(&world(&numbered[..5])), ["5 bleed, 5"]);
    assert_eq!(found(&world(&numbered)), ["6 bleed, 5"]);
    // Another group counts, too, and only five of all are named.
    assert_eq!(found(&world(&["web1", "a", "ab", "abc"])), ["4 bleed, 4"]);
    let both = [&numbered[..4], &["a", "ab", "ac"]].concat();
    assert_eq!(found(&world(&both)), ["6 bleed, 5"]);
}

#[test]
fn one_address_in_entries_of_two_owners() {
    let theirs = |url: &str| value("blue", "c1", "shop/x", url);
    let world = |entry: &str| {
        let world = three().pods(web(1..=3)).backend("api");
        world.entry("api/servers/x", entry)
    };
    let twice = world(&theirs("http://10.0.0.2:80"));
    assert_eq!(found(&twice), ["10.0.0.2: 2"]);
    assert_eq!(found(&world(&theirs("http://10.0.0.9:80"))), [""; 0]);
    assert_eq!(found(&world(&theirs("http://host:80"))), [""; 0]);
    let mine = value("prod", "c1", "shop/x", "http://10.0.0.2:80");
    assert_eq!(found(&world(&mine)), [""; 0], "one owner");
    // What the run deletes is not there afterwards.
    let gone = world(&theirs("http://10.0.0.2:80"));
    let gone = World {
        pods: web([1, 3]),
        ..gone
    };
    assert_eq!((found(&gone).len(), gone.counts()[2]), (0, 1));
}

#[test]
fn an_unmarked_entry_at_the_address_of_a_pod_of_another_backend() {
    let world = |key: &str, url: &str| {
        let world = three().pods(web(1..=3)).backend("api");
        world.entry(key, &unmarked(url))
    };
    let stranger = format!("shop/web-2 at {ROOT}/api/servers/x");
    assert_eq!(
        found(&world("api/servers/x", "http://10.0.0.2:9")),
        [stranger]
    );
    // A port that the pod publishes or declares, or its own backend: made on purpose.
    assert_eq!(
        found(&world("api/servers/x", "http://10.0.0.2:8080")),
        [""; 0]
    );
    assert_eq!(found(&world("web/servers/x", "http://10.0.0.2:9")), [""; 0]);
    let mut declares = world("api/servers/x", "http://10.0.0.2:9").mapping(|mapping| {
        mapping.port = Some(PortRef::Number(8080));
    });
    declares.pods[1].ports.push(ContainerPort {
        name: None,
        number: 9,
        tcp: true,
        sidecar: false,
    });
    assert_eq!(found(&declares), [""; 0]);
    // A pod that wants no server, or that is not there, is not the address's owner.
    let mut unwanted = world("api/servers/x", "http://10.0.0.2:9");
    unwanted.pods[1] = relabelled(pod("web", 2));
    assert_eq!(found(&unwanted), [""; 0]);
    assert_eq!(found(&world("api/servers/x", "http://10.0.0.9:9")), [""; 0]);
}
