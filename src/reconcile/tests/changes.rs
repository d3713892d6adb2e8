//! What is created, updated and deleted, and in which order.

use super::*;

#[test]
fn nothing_to_do() {
    three().pods(web(1..=3)).is("");
}

#[test]
fn created_with_the_mark() {
    let plan = world().backend("web").pods(web([1])).plan();
    let after = r#"{"URL":"http://10.0.0.1:8080","Owner":"prod","Scope":"c1","Pod":"shop/web-1"}"#;
    let [change] = plan.changes.as_slice() else {
        panic!("one change")
    };
    assert_eq!(
        change.action,
        Action::Create {
            after: after.to_owned(),
            reason: Reason::Ready
        }
    );
    assert_eq!(change.key, "/vulcand/backends/web/servers/10.0.0.1");
}

#[test]
fn puts_come_before_deletes() {
    three().pods(web([3, 4])).is("
        + web/10.0.0.4: pod shop/web-4 is ready
        - web/10.0.0.1: pod shop/web-1 is gone
        - web/10.0.0.2: pod shop/web-2 is gone");
}

#[test]
fn creates_come_before_updates() {
    // What pod 1's entry gives up is pod 2's, whose own key is yet to come.
    let of_1 = value("prod", "c1", "shop/web-1", "http://10.0.0.2:8080");
    let world = world().backend("web").entry("web/servers/10.0.0.1", &of_1);
    world.pods(web([1, 2])).is("
        + web/10.0.0.2: pod shop/web-2 is ready
        ~ web/10.0.0.1: pod shop/web-1 is ready; changed: its URL (its URL stays here as 10.0.0.2)
    ");
}

#[test]
fn terminating_but_ready_is_deleted() {
    let mut pods = web(1..=3);
    pods[0].terminating = true;
    three()
        .pods(pods)
        .is("- web/10.0.0.1: pod shop/web-1 is terminating");
}

#[test]
fn completed_with_its_address_reused() {
    let mut pods = web(1..=3);
    pods[0].phase = Phase::Succeeded;
    pods.push(at(pod("web", 9), "10.0.0.1"));
    three()
        .pods(pods)
        .is("~ web/10.0.0.1: pod shop/web-9 is ready; changed: its pod");
}

#[test]
fn recreated_at_another_address() {
    let mut pods = web(1..=3);
    pods[0] = at(pods.remove(0), "10.0.0.9");
    pods.insert(1, pod("web", 2));
    three().pods(pods).is("
        + web/10.0.0.9: pod shop/web-1 is ready
        - web/10.0.0.1: pod shop/web-1 is now at 10.0.0.9");
}

#[test]
fn restarted_without_an_address() {
    let mut pods = web(1..=3);
    pods[0].ips.clear();
    three()
        .pods(pods)
        .is("- web/10.0.0.1: pod shop/web-1 has no address");
}

#[test]
fn scaled_from_twenty_to_two() {
    let world = world().backend("web").ours("web", 1..=20).pods(web([1, 2]));
    assert_eq!(world.counts(), [0, 0, 18, 0, 0]);
}

#[test]
fn scaled_to_zero_one_backend_of_several() {
    let world = three()
        .backend("api")
        .ours("api", [7])
        .pods([pod("api", 7)]);
    assert_eq!(world.counts(), [0, 0, 3, 0, 0]);
}

#[test]
fn scaled_to_zero_the_only_pods_of_a_namespace() {
    let rule = "is absent from a list that shows none of our pods (3, 0)";
    three().is(&format!(
        "held web/10.0.0.1: pod shop/web-1 {rule}
         held web/10.0.0.2: pod shop/web-2 {rule}
         held web/10.0.0.3: pod shop/web-3 {rule}
         alarm"
    ));
    assert_eq!(
        three().rules(|rules| rules.allow_empty = true).counts(),
        [0, 0, 3, 0, 0]
    );
}

#[test]
fn a_rolling_update_replaces_all() {
    assert_eq!(three().pods(web(11..=13)).counts(), [3, 0, 3, 0, 0]);
}

#[test]
fn one_relabelled_pod_of_three() {
    let pods = [relabelled(pod("web", 1)), pod("web", 2), pod("web", 3)];
    three()
        .pods(pods)
        .is("- web/10.0.0.1: pod shop/web-1 no longer maps to this backend");
}

#[test]
fn three_relabelled_pods_of_three() {
    let rule = "no longer maps to this backend (3, 0)";
    three()
        .pods(web(1..=3).into_iter().map(relabelled))
        .is(&format!(
            "held web/10.0.0.1: pod shop/web-1 {rule}
         held web/10.0.0.2: pod shop/web-2 {rule}
         held web/10.0.0.3: pod shop/web-3 {rule}
         alarm"
        ));
}

#[test]
fn relabelled_pods_are_followed_while_as_many_remain() {
    let relabel = |n, of| {
        let pods = web(1..=of).into_iter().enumerate();
        let pods = pods.map(|(i, pod)| if i < n { relabelled(pod) } else { pod });
        world()
            .backend("web")
            .ours("web", 1..=of)
            .pods(pods)
            .counts()
    };
    assert_eq!(relabel(2, 3), [0, 0, 0, 2, 0]);
    assert_eq!(relabel(2, 4), [0, 0, 2, 0, 0]);
    assert_eq!(relabel(1, 1), [0, 0, 0, 1, 0]);
}

#[test]
fn the_port_changed_by_mistake() {
    let port = |mapping: &mut Mapping| mapping.port = Some(PortRef::Number(9090));
    assert_eq!(
        three().pods(web(1..=3)).mapping(port).counts(),
        [0, 0, 0, 3, 0]
    );
    // With ids that carry the port, new servers arrive and the old ones are held.
    let mut with_ports = world().backend("web");
    for n in 1..=3 {
        let url = format!("http://10.0.0.{n}:8080");
        let value = value("prod", "c1", &format!("shop/web-{n}"), &url);
        with_ports = with_ports.entry(&format!("web/servers/10.0.0.{n}:8080"), &value);
    }
    let with_ports = with_ports.pods(web(1..=3)).mapping(|mapping| {
        port(mapping);
        mapping.server_id = Template::parse("{ip}:{port}").expect("a template");
    });
    assert_eq!(with_ports.counts(), [3, 0, 0, 3, 0]);
}

#[test]
fn the_port_of_one_pod_of_three_changes() {
    let mut pods = web(1..=3);
    pods[0].ports[0].number = 9090;
    let changed = "~ web/10.0.0.1: pod shop/web-1 is ready; changed: its URL (the pod of the old one maps to http://10.0.0.1:9090 now)";
    three().pods(pods).is(changed);
}

#[test]
fn another_template_for_ids_renames_without_a_gap() {
    let id = |mapping: &mut Mapping| {
        mapping.server_id = Template::parse("{pod}").expect("a template");
    };
    three().pods(web(1..=3)).mapping(id).is("
        + web/web-1: pod shop/web-1 is ready
        + web/web-2: pod shop/web-2 is ready
        + web/web-3: pod shop/web-3 is ready
        - web/10.0.0.1: its URL stays here as web-1
        - web/10.0.0.2: its URL stays here as web-2
        - web/10.0.0.3: its URL stays here as web-3");
}

#[test]
fn all_pods_of_one_backend_unready() {
    let world = three()
        .backend("api")
        .ours("api", [7])
        .pods([pod("api", 7)]);
    let world = world.pods(web(1..=3).into_iter().map(unready));
    world.is("
        kept web/10.0.0.1
        kept web/10.0.0.2
        kept web/10.0.0.3");
    assert_eq!(
        world.rules(|rules| rules.strict_ready = true).counts(),
        [0, 0, 3, 0, 0]
    );
}

#[test]
fn all_pods_of_all_backends_unready() {
    three().pods(web(1..=3).into_iter().map(unready)).is("
        kept web/10.0.0.1
        kept web/10.0.0.2
        kept web/10.0.0.3
        alarm");
}

#[test]
fn one_unready_pod_of_three() {
    let pods = [unready(pod("web", 1)), pod("web", 2), pod("web", 3)];
    three()
        .pods(pods)
        .is("- web/10.0.0.1: pod shop/web-1 is not ready");
}

#[test]
fn a_ready_pod_takes_the_place_of_one_that_is_not_ready() {
    let of_1 = value("prod", "c1", "shop/web-1", "http://10.0.0.1:8080");
    let world = world().backend("web").entry("web/servers/10.0.0.2", &of_1);
    world.pods([unready(pod("web", 1)), pod("web", 2)]).is("
        ~ web/10.0.0.2: pod shop/web-2 is ready; changed: its URL (the pod of the old one is not ready)
    ");
    // Even where its port is another one.
    let of_1 = of_1.replace(":8080", ":9090");
    let world = super::world()
        .backend("web")
        .entry("web/servers/10.0.0.2", &of_1);
    world.pods([unready(pod("web", 1)), pod("web", 2)]).is("
        ~ web/10.0.0.2: pod shop/web-2 is ready; changed: its URL (the pod of the old one is not ready)
    ");
}
