//! Ownership, definitions, adoption and shared backends.

use super::*;

#[test]
fn foreign_entries_are_not_changed() {
    let world = three()
        .entry("web/servers/hand", r#"{"URL":"http://10.0.0.200:80"}"#)
        .entry(
            "web/servers/10.0.0.201",
            &value("prod", "c2", "shop/web-1", "http://10.0.0.201:80"),
        )
        .entry(
            "api/servers/x",
            &value("blue", "c1", "shop/api-1", "http://10.0.0.202:80"),
        )
        .entry("api/backend", r#"{"Type":"http"}"#)
        .entry("web/servers/null", "null");
    let plan = world.pods(web(1..=3)).plan();
    assert_eq!(plan.changes, []);
    assert_eq!((plan.counts.foreign, plan.out_of_scope.len()), (3, 1));
}

#[test]
fn a_key_with_a_foreign_entry_is_a_conflict() {
    let taken = |value: &str| {
        let world = world()
            .backend("web")
            .entry("web/servers/10.0.0.1", value)
            .pods(web([1]));
        let plan = world.plan();
        (plan.changes.len(), plan.conflicts.len(), plan.alarms())
    };
    assert_eq!(taken(r#"{"URL":"http://10.0.0.1:9"}"#), (0, 1, true));
    assert_eq!(taken("rubbish"), (0, 1, true));
    assert_eq!(taken(r#"{"URL":"http://10.0.0.1:8080/"}"#), (0, 0, false));
}

#[test]
fn another_scope_or_namespace_is_not_ours() {
    let other = |scope: &str, pod: &str| {
        let value = value("prod", scope, pod, "http://10.0.0.9:8080");
        let world = world().backend("web").entry("web/servers/10.0.0.9", &value);
        world.pods(web([1])).lines()
    };
    let joined = "+ web/10.0.0.1: pod shop/web-1 is ready\nalarm\n";
    assert_eq!(other("c1 tier=a", "shop/web-9"), joined);
    assert_eq!(other("c1", "blog/web-9"), joined);
    // Another cluster's backend is not joined either.
    assert_eq!(other("c2", "shop/web-9"), "alarm\n");
    assert_eq!(other("main@c1", "shop/web-9"), "alarm\n");
}

#[test]
fn another_owners_backend_is_not_joined() {
    let world = || {
        let theirs = value("blue", "c1", "shop/web-9", "http://10.0.0.9:8080");
        let world = world().backend("web").ours("web", [1, 2]);
        let mut gone = unready(pod("web", 2));
        gone.terminating = true;
        world
            .entry("web/servers/10.0.0.9", &theirs)
            .pods([pod("web", 1), pod("web", 3), gone])
    };
    // What is proved dead goes all the same.
    world().is("- web/10.0.0.2: pod shop/web-2 is terminating\nalarm");
    assert_eq!(
        world().rules(|rules| rules.share_backends = true).counts(),
        [1, 0, 1, 0, 0]
    );
}

#[test]
fn an_undefined_backend_is_not_changed() {
    let world = || {
        let pods = [pod("web", 1), pod("web", 2), pod("api", 7)];
        world()
            .backend("api")
            .ours("api", [7])
            .ours("web", [1])
            .pods(pods)
    };
    let plan = world().plan();
    assert_eq!(
        (plan.changes.len(), plan.undefined.len(), plan.alarms()),
        (0, 1, true)
    );
    world().rules(|rules| rules.create_backends = true).is("
        + web/backend: pods want this backend, and it is not defined
        + web/10.0.0.2: pod shop/web-2 is ready");
}

#[test]
fn a_frozen_backend_loses_only_dead_servers() {
    let world = || {
        let mut gone = unready(pod("web", 5));
        gone.terminating = true;
        let pods = [
            relabelled(pod("web", 1)),
            unready(pod("web", 2)),
            pod("web", 3),
            gone,
        ];
        world()
            .ours("web", 1..=6)
            .backend("api")
            .ours("api", [7])
            .pods([pod("api", 7)])
            .pods(pods)
    };
    let dead = "
        - web/10.0.0.4: pod shop/web-4 is gone
        - web/10.0.0.5: pod shop/web-5 is terminating
        - web/10.0.0.6: pod shop/web-6 is gone
        alarm";
    world().is(dead);
    let theirs = value("blue", "c1", "shop/x", "http://10.0.0.99:8080");
    world()
        .backend("web")
        .entry("web/servers/theirs", &theirs)
        .is(dead);
    let selected = world().selected();
    let selected = World {
        entries: Vec::new(),
        ..selected
    }
    .backend("api")
    .ours("web", 1..=6);
    assert_eq!(
        selected.counts(),
        [1, 0, 1, 0, 0],
        "absent under a selector proves nothing"
    );
}

#[test]
fn a_store_without_backends_is_an_error_unless_it_holds_owned_servers() {
    assert!(world().pods(web([1])).try_plan().is_err());
    assert!(world().pods(web([1])).ours("web", [1]).plan().alarms());
    assert!(world().try_plan().is_ok());
    let create = world()
        .pods(web([1]))
        .rules(|rules| rules.create_backends = true);
    assert_eq!(create.counts(), [2, 0, 0, 0, 0]);
}

#[test]
fn backends_that_would_bleed_are_not_created() {
    let world = world().backend("web-api").pods(web([1]));
    let plan = world.rules(|rules| rules.create_backends = true).plan();
    assert_eq!(
        (plan.changes.len(), plan.undefined.len(), plan.alarms()),
        (0, 1, true)
    );
}

#[test]
fn two_servers_that_want_one_key() {
    let two = |first: u8| {
        let pods = [at(pod("web", 1), "10.0.0.9"), at(pod("web", 2), "10.0.0.9")];
        let mut pods = pods.map(|mut pod| {
            pod.host_network = true;
            pod
        });
        pods[1].ports[0].number = 9090;
        let url = ["http://10.0.0.9:8080", "http://10.0.0.9:9090"][usize::from(first) - 1];
        let value = value("prod", "c1", &format!("shop/web-{first}"), url);
        let world = world().backend("web").entry("web/servers/10.0.0.9", &value);
        let plan = world.pods(pods).plan();
        assert_eq!((plan.changes.len(), plan.alarms()), (0, true));
        plan.duplicates[0].loser.to_string()
    };
    assert_eq!(two(1), "shop/web-2");
    assert_eq!(two(2), "shop/web-1");
}

#[test]
fn adopting_unmarked_entries() {
    let by_hand = || {
        world()
            .backend("web")
            .entry("web/servers/10.0.0.1", r#"{"URL":"http://10.0.0.1:8080"}"#)
            .entry("web/servers/second", r#"{"URL":"http://10.0.0.2:8080"}"#)
            .entry("web/servers/foreign", r#"{"URL":"http://10.0.0.9:8080"}"#)
            .pods(web([1, 2]))
    };
    assert_eq!(by_hand().counts(), [1, 0, 0, 0, 0]);
    by_hand().rules(|rules| rules.adopt.unmarked = true).is("
        + web/10.0.0.2: pod shop/web-2 is ready
        ~ web/10.0.0.1: pod shop/web-1 is ready; adopted: it was unmarked
        - web/second: its URL stays here as 10.0.0.2");
}

#[test]
fn adopting_from_the_wrong_cluster_deletes_nothing() {
    let there = || {
        let mut world = world().backend("web");
        for n in 1..=3 {
            let value = value(
                "prod",
                "c2",
                &format!("shop/web-{n}"),
                &format!("http://10.0.0.{n}:8080"),
            );
            world = world.entry(&format!("web/servers/10.0.0.{n}"), &value);
        }
        world.rules(|rules| rules.adopt.scope = true)
    };
    // The other cluster has pods of the same names, and one of the same addresses.
    let pods = [
        at(pod("web", 1), "10.0.0.11"),
        at(pod("api", 2), "10.0.0.2"),
    ];
    assert_eq!(there().backend("api").pods(pods).counts(), [2, 0, 0, 3, 0]);
    let allow = there().pods([pod("api", 9)]).backend("api");
    let allow = allow.rules(|rules| rules.allow_deletes = Some(3));
    assert_eq!(allow.counts(), [1, 0, 3, 0, 0]);
    // The right one, after `--cluster` was renamed.
    assert_eq!(there().pods(web(1..=3)).counts(), [0, 3, 0, 0, 0]);
}

#[test]
fn the_url_of_an_adopted_update_stays() {
    // 3 gives up what stays as 1; what it gets is what 2 has: that may go in the same run.
    let entry = |scope: &str, pod: &str, n: u8| {
        value("prod", scope, pod, &format!("http://10.0.0.{n}:8080"))
    };
    let world = world()
        .backend("web")
        .entry("web/servers/10.0.0.2", &entry("c2", "shop/old", 3))
        .entry("web/servers/10.0.0.3", &entry("c1", "blog/old", 1))
        .pods(web([1, 3]))
        .rules(|rules| rules.adopt.scope = true);
    assert_eq!(world.counts(), [1, 1, 1, 0, 0]);
}

#[test]
fn adopting_another_owners() {
    let there = |scope: &str| {
        let world = three().pods(web(1..=3));
        let value = value("blue", scope, "shop/web-4", "http://10.0.0.4:8080");
        world.entry("web/servers/10.0.0.4", &value)
    };
    let adopt = |world: World| {
        world.rules(|rules| rules.adopt.owners = BTreeSet::from(["blue".to_owned()]))
    };
    assert_eq!(adopt(there("c1")).pods(web([4])).counts(), [0, 1, 0, 0, 0]);
    assert_eq!(adopt(there("c1")).counts(), [0, 0, 0, 1, 0]);
    assert_eq!(adopt(there("c2")).counts(), [0, 0, 0, 0, 0]);
}

#[test]
fn an_entry_of_ours_without_a_valid_url() {
    let broken = value("prod", "c1", "shop/web-1", "localhost:80");
    let world = world()
        .backend("web")
        .entry("web/servers/10.0.0.1", &broken);
    world
        .pods(web([1]))
        .is("~ web/10.0.0.1: pod shop/web-1 is ready; changed: it had no valid URL");
}

/// Nothing is updated in a frozen backend: an entry that names a pod that is gone keeps that name.
#[test]
fn entries_of_other_pods_are_not_replacements_in_a_frozen_backend() {
    let url = "http://10.0.0.2:8080";
    let entry = |pod: &str| value("prod", "c1", pod, url);
    world()
        .entry("web/servers/10.0.0.2", &entry("shop/web-1"))
        .entry("web/servers/10.0.0.3", &entry("shop/web-2"))
        .pods([pod("web", 2)])
        .is("alarm");
    // Beside an entry that names the pod, another one with its URL goes.
    world()
        .entry("web/servers/10.0.0.2", &entry("shop/web-2"))
        .entry("web/servers/10.0.0.3", &entry("shop/web-2"))
        .pods([pod("web", 2)])
        .is("
        - web/10.0.0.3: its URL stays here as 10.0.0.2
        alarm");
}
