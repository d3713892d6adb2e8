//! The rule of losses as a table: each case beside its twin that must stay free.

use super::*;

#[test]
fn foreign_entries_do_not_count_as_ready() {
    let unready_ones = || web(1..=3).into_iter().map(unready);
    for by_hand in [r#"{"URL":"http://10.9.9.9:8080"}"#, "rubbish"] {
        let world = three().entry("web/servers/hand", by_hand);
        assert_eq!(world.pods(unready_ones()).counts(), [0, 0, 0, 0, 3]);
    }
    // Another owner's does where backends are shared, if it is like them.
    let shared = |url: &str| {
        let theirs = value("blue", "c1", "shop/blue-9", url);
        let world = three().entry("web/servers/blue", &theirs);
        let world = world.rules(|rules| rules.share_backends = true);
        world.pods(unready_ones()).counts()
    };
    assert_eq!(shared("http://10.9.9.9:8080"), [0, 0, 3, 0, 0]);
    assert_eq!(shared("http://10.9.9.9:9090"), [0, 0, 0, 0, 3]);
}

/// The deletion rules row by row: the case, the world, and the result (creates, updates, deletes, held, kept; whether
/// it alarms). Each row that holds something has a twin that must not.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_a_backend_may_lose() {
    let gone = |n, ready| Pod {
        terminating: true,
        ready,
        ..pod("web", n)
    };
    let elsewhere = |n: u8| at(pod("web", n), &format!("10.0.1.{n}"));
    let unreadable = |n| Pod {
        unreadable_ip: true,
        ips: Vec::new(),
        ..pod("web", n)
    };
    let on_port = |n, number| {
        let mut pod = pod("web", n);
        pod.ports[0].number = number;
        pod
    };
    let one = || world().backend("web").ours("web", [1]);
    let ten = || world().backend("web").ours("web", 1..=10);
    let named = |n: u8| {
        let url = "http://web-1.example:8080";
        let value = value("prod", "c1", &format!("shop/web-{n}"), url);
        world()
            .backend("web")
            .entry(&format!("web/servers/10.0.0.{n}"), &value)
    };
    let rows: Vec<(&str, World, [usize; 5], bool)> = vec![
        // Dead entries are always deleted, the last one too.
        (
            "completed",
            one()
                .pods([
                    Pod {
                        phase: Phase::Failed,
                        ..pod("web", 1)
                    },
                    pod("x", 9),
                ])
                .backend("x"),
            [1, 0, 1, 0, 0],
            false,
        ),
        (
            "terminating, not ready",
            one().pods([gone(1, false)]),
            [0, 0, 1, 0, 0],
            false,
        ),
        ("moved", one().pods([elsewhere(1)]), [1, 0, 1, 0, 0], false),
        (
            "no address",
            one().pods([Pod {
                ips: Vec::new(),
                ..pod("web", 1)
            }]),
            [0, 0, 1, 0, 0],
            false,
        ),
        (
            "address reused",
            one().backend("api").pods([at(pod("api", 7), "10.0.0.1")]),
            [1, 0, 1, 0, 0],
            false,
        ),
        (
            "gone from a list that publishes",
            one().backend("api").pods([pod("api", 7)]),
            [1, 0, 1, 0, 0],
            false,
        ),
        (
            "gone, all 20 to 2",
            world().backend("web").ours("web", 1..=20).pods(web(1..=2)),
            [0, 0, 18, 0, 0],
            false,
        ),
        (
            "gone, 100 % rolled",
            three().pods(web(11..=13)),
            [3, 0, 3, 0, 0],
            false,
        ),
        // Absent from a list that is no witness.
        ("absent from an empty list", one(), [0, 0, 0, 1, 0], true),
        (
            "absent from strangers' list",
            one().pods([pod("api", 7)]),
            [0, 0, 0, 1, 0],
            true,
        ),
        (
            "absent, and --allow-empty",
            one().rules(|rules| rules.allow_empty = true),
            [0, 0, 1, 0, 0],
            false,
        ),
        (
            "absent, one of ours shown",
            three().pods([unready(pod("web", 1))]),
            [0, 0, 2, 0, 1],
            true,
        ),
        // Leaving.
        (
            "the only one, terminating and ready",
            one().pods([gone(1, true)]),
            [0, 0, 0, 0, 1],
            true,
        ),
        (
            "terminating and ready, another remains",
            three().pods([gone(1, true), pod("web", 2), pod("web", 3)]),
            [0, 0, 1, 0, 0],
            false,
        ),
        (
            "all not ready",
            three().pods(web(1..=3).into_iter().map(unready)),
            [0, 0, 0, 0, 3],
            true,
        ),
        (
            "all not ready, --strict-ready",
            three()
                .pods(web(1..=3).into_iter().map(unready))
                .rules(|r| r.strict_ready = true),
            [0, 0, 3, 0, 0],
            false,
        ),
        (
            "all not ready beside a hand-made entry",
            three()
                .entry("web/servers/x", r#"{"URL":"http://10.9.9.9:8080"}"#)
                .pods(web(1..=3).into_iter().map(unready)),
            [0, 0, 0, 0, 3],
            true,
        ),
        (
            "one relabelled and ready beside two not ready",
            three().pods([
                relabelled(pod("web", 1)),
                unready(pod("web", 2)),
                unready(pod("web", 3)),
            ]),
            [0, 0, 2, 1, 0],
            true,
        ),
        // Alive and no longer wanted.
        (
            "one of one relabelled",
            one().pods([relabelled(pod("web", 1))]),
            [0, 0, 0, 1, 0],
            true,
        ),
        (
            "one of two relabelled",
            world()
                .backend("web")
                .ours("web", [1, 2])
                .pods([relabelled(pod("web", 1)), pod("web", 2)]),
            [0, 0, 1, 0, 0],
            false,
        ),
        (
            "relabelled, and a new one created",
            one().pods([relabelled(pod("web", 1)), pod("web", 2)]),
            [1, 0, 1, 0, 0],
            false,
        ),
        (
            "5 terminating beside 5 relabelled",
            ten().pods(
                (1..=5)
                    .map(|n| gone(n, false))
                    .chain(web(6..=10).into_iter().map(relabelled)),
            ),
            [0, 0, 5, 5, 0],
            true,
        ),
        (
            "5 terminating and ready beside 5 relabelled",
            ten().pods(
                (1..=5)
                    .map(|n| gone(n, true))
                    .chain(web(6..=10).into_iter().map(relabelled)),
            ),
            [0, 0, 5, 5, 0],
            true,
        ),
        // Another port: a pod that loses a URL is no replacement.
        (
            "all at another port",
            three().pods((1..=3).map(|n| on_port(n, 9090))),
            [0, 0, 0, 3, 0],
            true,
        ),
        (
            "one of three at another port",
            three().pods([on_port(1, 9090), pod("web", 2), pod("web", 3)]),
            [0, 1, 0, 0, 0],
            false,
        ),
        (
            "new ones at another port",
            one().pods([relabelled(pod("web", 1)), on_port(2, 9090)]),
            [1, 0, 0, 1, 0],
            true,
        ),
        // Addresses that cannot be read.
        (
            "the pod's address cannot be read",
            one().pods([unreadable(1)]),
            [0, 0, 0, 1, 0],
            true,
        ),
        (
            "the same, and two remain",
            three().pods([unreadable(1), pod("web", 2), pod("web", 3)]),
            [0, 0, 1, 0, 0],
            false,
        ),
        (
            "the entry has a host name",
            named(1).pods([pod("web", 1)]),
            [0, 0, 0, 1, 0],
            true,
        ),
        (
            "a host name, its pod is completed",
            named(1).pods([
                Pod {
                    phase: Phase::Failed,
                    ..pod("web", 1)
                },
                pod("web", 2),
            ]),
            [1, 0, 1, 0, 0],
            false,
        ),
        // A URL that stays under another id of ours is no loss.
        (
            "renamed",
            three()
                .pods(web(1..=3))
                .mapping(|m| m.server_id = Template::parse("{pod}").expect("a template")),
            [3, 0, 3, 0, 0],
            false,
        ),
    ];
    for (case, world, counts, alarms) in rows {
        assert_eq!(world.counts(), counts, "{case}\n{}", world.lines());
        assert_eq!(world.plan().alarms(), alarms, "{case}");
    }
}

/// A held update leaves its new URL out of the backend: it is nobody's replacement then.
#[test]
fn the_url_of_a_held_update_is_not_a_replacement() {
    let slot = |pod: Pod, slot: &'static str| {
        let mut pod = pod;
        pod.labels.insert("slot".into(), slot.into());
        pod
    };
    let mut world = world().selected().backend("web");
    let scope = world.rules.scope.to_string();
    world.mapping.server_id = Template::parse("{label:slot}").expect("a template");
    for n in [1, 3, 4] {
        let url = format!("http://10.0.0.{n}:8080");
        let value = value("prod", &scope, &format!("shop/web-{n}"), &url);
        world = world.entry(&format!("web/servers/s{n}"), &value);
    }
    // Pods 1 and 3 are gone, as far as can be seen; pod 2 gets the place of 1.
    world.again = Some(Err("refused".to_owned()));
    let down = unready(slot(pod("web", 4), "s4"));
    let world = world.pods([slot(pod("web", 2), "s1"), down]);
    let why = "is not among the selected pods, and the list without selectors was refused: refused";
    world.is(&format!(
        "held web/s1: pod shop/web-1 {why} (2, 0)
        held web/s3: pod shop/web-3 {why} (2, 0)
        kept web/s4
        alarm"
    ));
}

/// What a loss rests on is part of its permit: a transaction is guarded by it.
#[test]
fn a_permit_names_the_entry_that_remains() {
    let rests_on = |world: World| {
        let plan = world.plan();
        let rests = plan.changes.iter().filter_map(|change| {
            let rest = change.permit()?.rests_on();
            Some(rest.map(|rest| (rest.key.clone(), rest.revision.is_some())))
        });
        rests.collect::<Vec<_>>()
    };
    let key = |n: u8| format!("/vulcand/backends/web/servers/10.0.0.{n}");
    let two = || world().backend("web").ours("web", [1]);
    let alive = || relabelled(pod("web", 1));
    assert_eq!(rests_on(three().pods(web([2]))), [None, None], "dead");
    let there = two().ours("web", [2]).pods([alive(), pod("web", 2)]);
    assert_eq!(rests_on(there), [Some((key(2), true))], "one that is there");
    let comes = two().pods([alive(), pod("web", 2)]);
    assert_eq!(rests_on(comes), [Some((key(2), false))], "one that comes");
    let leaving = two().ours("web", [2]);
    let leaving = leaving.pods([unready(pod("web", 1)), pod("web", 2)]);
    assert_eq!(rests_on(leaving), [Some((key(2), true))], "leaving");
}
