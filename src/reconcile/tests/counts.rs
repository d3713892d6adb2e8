//! What a plan holds beside its changes: counts, what each change rests on, and the order.

use super::*;
use crate::reconcile::hold::Rest;

/// An unmarked entry.
fn unmarked(url: &str) -> String {
    format!(r#"{{"URL":"{url}"}}"#)
}

#[test]
fn the_listing_and_its_counts() {
    let theirs = value("blue", "c1", "shop/x", "http://10.0.0.5:8080");
    let world = three()
        .entry("web/servers/10.0.0.4", &unmarked("http://10.0.0.4:8080"))
        .entry("web/servers/10.0.0.5", &theirs)
        .pods(web(1..=6))
        .pods([unready(pod("web", 7))])
        .rules(|rules| rules.share_backends = true);
    let plan = world.plan();
    assert_eq!(
        (&*plan.prefix, &*plan.scope, plan.revision),
        ("/vulcand", "c1", Some(9))
    );
    let counts = plan.counts;
    assert_eq!((counts.pods, counts.published), (7, 6));
    assert_eq!((counts.owned, counts.unchanged, counts.foreign), (3, 3, 2));
    let satisfied = (counts.satisfied_unmarked, counts.satisfied_marked);
    assert_eq!((satisfied, plan.changes.len()), ((1, 1), 1));
    // What is in the way of several pods is counted for each.
    let two = world
        .entry("api/servers/10.0.0.8", &unmarked("http://10.0.0.8:8080"))
        .entry("api/servers/10.0.0.9", &unmarked("http://10.0.0.9:8080"))
        .backend("api")
        .pods([pod("api", 8), pod("api", 9)]);
    assert_eq!(two.plan().counts.satisfied_unmarked, 3);
}

#[test]
fn only_servers_of_one_key_are_duplicates() {
    // Two pods of one address and key, and a third with another key.
    let on_node = |n: u8| Pod {
        host_network: true,
        ..at(pod("web", n), "10.0.0.9")
    };
    let mut other_port = on_node(2);
    other_port.ports[0].number = 9090;
    let world = world()
        .backend("web")
        .pods([on_node(1), other_port, pod("web", 3)]);
    let plan = world.plan();
    let losers = plan
        .duplicates
        .iter()
        .map(|duplicate| duplicate.loser.to_string());
    assert_eq!(losers.collect::<Vec<_>>(), ["shop/web-2"]);
    // The pod of the entry keeps its key, though neither has the entry's URL.
    let old = value("prod", "c1", "shop/web-2", "http://10.0.0.9:1");
    let plan = world.entry("web/servers/10.0.0.9", &old).plan();
    assert_eq!(plan.duplicates[0].loser.to_string(), "shop/web-1");
}

#[test]
fn a_put_rests_on_the_definition() {
    let rest = |world: World| {
        let plan = world.pods(web([1])).plan();
        let change = plan
            .changes
            .into_iter()
            .find(|change| change.server.is_some());
        change.expect("a server").defined_by
    };
    let key = "/vulcand/backends/web/backend".to_owned();
    let listed = Rest {
        key: key.clone(),
        revision: Some(1),
    };
    assert_eq!(rest(world().backend("web")), Some(listed));
    let created = world().rules(|rules| rules.create_backends = true);
    let written = Rest {
        key,
        revision: None,
    };
    assert_eq!(rest(created), Some(written));
}

#[test]
fn backends_without_a_ready_server_everywhere() {
    let everywhere = |world: World| {
        let plan = world.pods([unready(pod("web", 1))]).plan();
        assert_eq!(plan.kept.len(), 1);
        plan.kept_everywhere
    };
    let world = || world().backend("web").ours("web", [1]);
    assert!(everywhere(world()));
    // Backends in which nothing of ours is, or that are frozen, say nothing.
    let theirs = value("blue", "c1", "shop/x", "http://10.0.0.5:8080");
    assert!(everywhere(
        world().backend("api").entry("api/servers/x", &theirs)
    ));
    assert!(everywhere(world().ours("api", [7]).pods([pod("api", 7)])));
    let by_hand = unmarked("http://10.0.0.7:8080");
    assert!(everywhere(
        world().backend("api").entry("api/servers/x", &by_hand)
    ));
    // One with a server says that the control plane works: new, there, or by hand at the pod's key.
    let api = || world().backend("api").pods([pod("api", 7)]);
    assert!(!everywhere(api()));
    assert!(!everywhere(api().ours("api", [7])));
    let by_hand = unmarked("http://10.0.0.7:8080");
    assert!(!everywhere(api().entry("api/servers/10.0.0.7", &by_hand)));
}

#[test]
fn counts_of_a_frozen_backend() {
    // Of four of ours one is dead; a wanted server is missing, and one has another port now.
    let world = world()
        .ours("web", 1..=3)
        .entry(
            "web/servers/10.0.0.4",
            &value("prod", "c1", "shop/web-4", "http://10.0.0.4:1"),
        )
        .pods(web([2, 3, 4, 5]))
        .backend("api")
        .pods([pod("api", 7)]);
    let plan = world.plan();
    let [frozen] = plan.undefined.as_slice() else {
        panic!("{:?}", plan.undefined)
    };
    assert_eq!((frozen.left_out, frozen.ours), (2, 3));
    let plan = world
        .ours("api", [7])
        .ours("db", [8])
        .pods([pod("db", 8)])
        .plan();
    assert_eq!(plan.undefined.len(), 2, "in sync, and undefined");
}

#[test]
fn counts_of_a_shared_backend() {
    // One is in sync, one is of a pod that is gone though another has its address.
    let theirs = value("blue", "c1", "shop/x", "http://10.0.0.9:8080");
    let gone = value("prod", "c1", "shop/gone", "http://10.0.0.2:8080");
    let world = world()
        .backend("web")
        .entry("web/servers/theirs", &theirs)
        .ours("web", [1])
        .entry("web/servers/10.0.0.2", &gone)
        .pods(web(1..=2));
    let plan = world.plan();
    let [frozen] = plan.unshared.as_slice() else {
        panic!("{:?}", plan.unshared)
    };
    assert_eq!((frozen.left_out, frozen.ours), (1, 1));
}

#[test]
fn values_that_stop_the_proxy_are_alarms() {
    let alarms = |definition: &str, pods: &[u8]| {
        let world = world()
            .entry("web/backend", definition)
            .backend("api")
            .pods([pod("api", 7)])
            .pods(web(pods.iter().copied()));
        world.plan().alarms()
    };
    // Where pods want the backend the plan reports it, elsewhere a finding.
    for pods in [&[1][..], &[]] {
        assert!(alarms("null", pods));
        assert!(!alarms(r#"{"Type":"tcp"}"#, pods));
    }
}

#[test]
fn limits_of_deletes() {
    let parse = |text: &str| DeleteLimit::parse(text).map_err(|_| ());
    assert_eq!(parse("3"), Ok(DeleteLimit::Servers(3)));
    assert_eq!(parse("100%"), Ok(DeleteLimit::Percent(100)));
    assert_eq!(parse("0%"), Ok(DeleteLimit::Percent(0)));
    for invalid in ["", "101%", "%", "-1", "many"] {
        assert_eq!(parse(invalid), Err(()), "{invalid}");
    }
}

#[test]
fn entries_over_the_limit_are_named() {
    let world = three().pods([pod("web", 9)]);
    let world = world.rules(|rules| rules.max_deletes = Some(DeleteLimit::Servers(0)));
    let over = world.plan().over_budget.expect("three would go");
    let servers = over
        .entries
        .iter()
        .map(|entry| (&*entry.server, entry.after.is_some()));
    let wanted = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|id| (id, false));
    assert_eq!(servers.collect::<Vec<_>>(), wanted);
}

#[test]
fn a_value_that_the_proxy_refuses_is_written_again() {
    let refused = value("prod", "c1", "shop/web-1", "http://10.0.0.1:8080");
    let refused = refused.replace('{', r#"{"Id":7,"#);
    let world = world()
        .backend("web")
        .entry("web/servers/10.0.0.1", &refused);
    world
        .pods(web([1]))
        .is("~ web/10.0.0.1: pod shop/web-1 is ready; changed: a value the proxy refuses");
    // Its URL may be served nevertheless: it does not go without a reason.
    let relabelled = [relabelled(pod("web", 1)), pod("api", 7)];
    let world = super::world()
        .backend("web")
        .entry("web/servers/10.0.0.1", &refused)
        .backend("api")
        .pods(relabelled);
    assert_eq!(world.counts(), [1, 0, 0, 1, 0]);
}

#[test]
fn a_scope_of_which_nothing_is_seen_is_another_cluster() {
    let mut world = world().backend("web");
    world.rules.scope = Scope::new(Cluster::parse("main@11111111"), None, None);
    let mut world = world.ours("web", 1..=2);
    world.rules.scope = Scope::new(Cluster::parse("main@22222222"), None, None);
    let plan = world.pods([pod("web", 3)]).plan();
    assert_eq!((plan.changes.len(), plan.out_of_scope.len()), (0, 2));
}
