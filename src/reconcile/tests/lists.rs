//! What lists prove, and the flags that release or limit deletes.

use super::*;

/// A part of a list: what it does not show is not looked at.
#[test]
fn an_incomplete_list_creates_and_deletes_nothing_else() {
    let mut world = three().pods(web([3, 4]));
    world.coverage = Coverage::Partial;
    assert_eq!(world.counts(), [1, 0, 0, 0, 0]);
    assert_eq!(world.plan().counts.not_looked_at, 2);
}

#[test]
fn an_emptied_backend_with_ready_pods_is_an_alarm() {
    let two_ports = |n| {
        let mut pod = pod("web", n);
        pod.ports.push(ContainerPort {
            number: 15090,
            ..pod.ports[0].clone()
        });
        pod
    };
    let emptied = world().backend("web").pods([two_ports(1)]).plan();
    assert_eq!(emptied.emptied.len(), 1);
    assert!(emptied.alarms());
    let served = world().backend("web").pods([two_ports(1), pod("web", 2)]);
    assert!(!served.plan().alarms());
}

#[test]
fn over_the_limit_no_server_is_deleted_and_creates_are_applied() {
    let limited = |limit| {
        let world = three().pods(web([3, 4]));
        world.rules(|rules| rules.max_deletes = Some(limit))
    };
    assert_eq!(limited(DeleteLimit::Servers(2)).counts(), [1, 0, 2, 0, 0]);
    assert_eq!(limited(DeleteLimit::Servers(1)).counts(), [1, 0, 0, 0, 0]);
    // Two of the four that will be ours.
    assert_eq!(limited(DeleteLimit::Percent(50)).counts(), [1, 0, 2, 0, 0]);
    assert_eq!(limited(DeleteLimit::Percent(49)).counts(), [1, 0, 0, 0, 0]);
    let over = limited(DeleteLimit::Percent(49)).plan();
    assert!(
        over.alarms()
            && over
                .over_budget
                .is_some_and(|over| (over.lost, over.owned) == (2, 4))
    );
}

/// The same cluster through another door: ours while half of those entries are seen, and left as they are.
#[test]
fn a_renewed_certificate_keeps_what_it_sees() {
    let through = |door: &str, shown: u8| {
        let mut world = world().backend("web");
        world.rules.scope = Scope::new(Cluster::parse(door), None, None);
        let mut world = world.ours("web", 1..=4);
        world.rules.scope = Scope::new(Cluster::parse("main@22222222"), None, None);
        world.pods(web(1..=shown))
    };
    assert_eq!(through("main@11111111", 4).lines(), "");
    assert_eq!(through("main@11111111", 2).counts(), [0, 0, 2, 0, 0]);
    let frozen = through("main@11111111", 1);
    assert_eq!((frozen.counts(), frozen.plan().alarms()), ([0; 5], true));
    // Without the name, or under another one, it is another cluster.
    for other in ["11111111", "test@22222222"] {
        let frozen = through(other, 4);
        assert_eq!(
            (frozen.counts(), frozen.plan().alarms()),
            ([0; 5], true),
            "{other}"
        );
    }
}

#[test]
fn unready_and_new_at_once() {
    let pods = web(1..=3).into_iter().map(unready).chain(web([4]));
    assert_eq!(three().pods(pods).counts(), [1, 0, 3, 0, 0]);
}

#[test]
fn an_address_reused_by_another_pod_goes_at_once() {
    // The list has pods, but not ours: without the new owner of the address this would be held.
    let pods = web(1..=3).into_iter().map(relabelled).skip(1);
    let stranger = at(pod("api", 1), "10.0.0.1");
    three().backend("api").pods(pods).pods([stranger]).is("
        + api/10.0.0.1: pod shop/api-1 is ready
        - web/10.0.0.1: address reused by pod shop/api-1
        held web/10.0.0.2: pod shop/web-2 no longer maps to this backend (2, 0)
        held web/10.0.0.3: pod shop/web-3 no longer maps to this backend (2, 0)
        alarm");
}

/// A node that is lost leaves pods that are not Ready, and their addresses are given away.
#[test]
fn an_address_reused_while_its_old_pod_is_still_listed() {
    let one = || world().backend("web").ours("web", [1]).backend("api");
    let stranger = || at(pod("api", 9), "10.0.0.1");
    one().pods([unready(pod("web", 1)), stranger()]).is("
        + api/10.0.0.1: pod shop/api-9 is ready
        - web/10.0.0.1: address reused by pod shop/api-9");
}

#[test]
fn an_address_reused_by_a_pod_of_the_same_name_elsewhere() {
    let mut twin = relabelled(pod("web", 1));
    twin.namespace = "blog".into();
    let mut world = world().backend("web").ours("web", [1]).pods([twin]);
    world.coverage = Coverage::All;
    world.is("- web/10.0.0.1: address reused by pod blog/web-1");
}

/// A server with a host name is judged by its pod.
#[test]
fn a_host_name_whose_pod_is_gone() {
    let edited = value("prod", "c1", "shop/web-2", "http://web-2.example:8080");
    let world = world().backend("web").ours("web", [1]);
    let world = world.entry("web/servers/10.0.0.2", &edited);
    world
        .pods([pod("web", 1)])
        .is("- web/10.0.0.2: pod shop/web-2 is gone");
}

#[test]
fn an_address_on_a_nodes_network_is_not_evidence() {
    let mut other = at(pod("api", 1), "10.0.0.1");
    other.host_network = true;
    other.ports[0].number = 9090;
    let mut own = relabelled(pod("web", 1));
    own.host_network = true;
    let pods = [own, relabelled(pod("web", 2)), pod("web", 3), other];
    assert_eq!(three().backend("api").pods(pods).counts(), [1, 0, 0, 2, 0]);
}

#[test]
fn few_absent_under_a_selector() {
    let world = world()
        .selected()
        .backend("web")
        .ours("web", 1..=4)
        .pods(web([3, 4]));
    world.is("
        - web/10.0.0.1: pod shop/web-1 is not among the selected pods
        - web/10.0.0.2: pod shop/web-2 is not among the selected pods");
}

#[test]
fn many_absent_under_a_selector_are_looked_for_without_it() {
    let many = || {
        world()
            .selected()
            .backend("web")
            .ours("web", 1..=3)
            .pods(web([3]))
    };
    many().again(web([3])).is("
        - web/10.0.0.1: pod shop/web-1 is gone
        - web/10.0.0.2: pod shop/web-2 is gone");
    // Alive there: the row of what is alive and not wanted.
    assert_eq!(many().again(web(1..=3)).counts(), [0, 0, 0, 2, 0]);
    assert_eq!(many().again(web([1, 3])).counts(), [0, 0, 2, 0, 0]);
    let mut refused = many();
    refused.again = Some(Err("403 forbidden".to_owned()));
    let rule = "is not among the selected pods, and the list without selectors was refused: 403 \
                forbidden (2, 1)";
    refused.is(&format!(
        "held web/10.0.0.1: pod shop/web-1 {rule}\nheld web/10.0.0.2: pod shop/web-2 {rule}\nalarm"
    ));
    // An empty answer proves nothing.
    assert_eq!(many().again([]).counts(), [0, 0, 0, 2, 0]);
}

#[test]
fn the_last_one_under_a_selector_is_looked_for_without_it() {
    let other = || relabelled(pod("web", 9));
    let last = || {
        world()
            .selected()
            .backend("web")
            .ours("web", [1])
            .pods([other()])
    };
    last()
        .again([other()])
        .is("- web/10.0.0.1: pod shop/web-1 is gone");
    let empty = "pod shop/web-1 is absent from a list that shows none of our pods (1, 0)";
    last()
        .again([])
        .is(&format!("held web/10.0.0.1: {empty}\nalarm"));
    let mut refused = last();
    refused.again = Some(Err("403 forbidden".to_owned()));
    let why = "pod shop/web-1 is not among the selected pods, and the list without selectors was \
               refused: 403 forbidden (1, 0)";
    refused.is(&format!("held web/10.0.0.1: {why}\nalarm"));
    let mut down = pod("web", 1);
    down.ready = false;
    let kept = last().again([down, other()]);
    assert_eq!(kept.counts(), [0, 0, 0, 0, 1], "nobody else is there");
    // Another server remains there: no second look is needed.
    let two = last().ours("web", [2]).pods(web([2]));
    two.is("- web/10.0.0.1: pod shop/web-1 is not among the selected pods");
}

#[test]
fn relabelled_under_a_selector_and_alive_count_together() {
    // Two are absent, two are listed and want nothing: four of four are unproved.
    let world = world().selected().backend("web").ours("web", 1..=4);
    let world = world.pods(web([3, 4]).into_iter().map(relabelled));
    assert_eq!(world.again(web(1..=4)).counts(), [0, 0, 0, 4, 0]);
}

#[test]
fn every_hold_is_lifted_by_its_number_and_not_by_one_less() {
    let held = || three().pods(web(1..=3).into_iter().map(relabelled));
    let allow = |n| held().rules(|rules| rules.allow_deletes = Some(n)).counts();
    assert_eq!(allow(2), [0, 0, 0, 3, 0]);
    assert_eq!(allow(3), [0, 0, 3, 0, 0]);
    let empty = three().rules(|rules| rules.allow_deletes = Some(3));
    assert_eq!(empty.counts(), [0, 0, 3, 0, 0]);
    let port = |n| {
        let world = three()
            .pods(web(1..=3))
            .rules(|rules| rules.allow_deletes = Some(n));
        world
            .mapping(|mapping| mapping.port = Some(PortRef::Number(9)))
            .counts()
    };
    assert_eq!(port(2), [0, 0, 0, 3, 0]);
    assert_eq!(port(3), [0, 3, 0, 0, 0]);
}

#[test]
fn creates_of_a_run_with_holds_are_applied() {
    let pods = web(1..=3).into_iter().map(relabelled).chain(web([4]));
    assert_eq!(three().pods(pods).counts(), [1, 0, 0, 3, 0]);
}

#[test]
fn upsert_only_leaves_deletes_out_without_alarm() {
    let world = three()
        .pods(web([4]))
        .rules(|rules| rules.upsert_only = true);
    world.is("+ web/10.0.0.4: pod shop/web-4 is ready");
    assert_eq!(world.plan().counts.left_out, 3);
}
