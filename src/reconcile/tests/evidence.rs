//! What lists say of the pod behind an entry, for marks with a pod's name and, as Traefik's, without one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Author, Mark, PodName};
use crate::reconcile::evidence::{Absence, Coverage, Evidence, List, Lists};
use crate::reconcile::map::{SeenPod, State};

fn seen(name: &str, ip: &str, state: State) -> SeenPod {
    SeenPod {
        name: PodName::parse(name).expect("a pod's name"),
        ips: [ip.parse().expect("an address")].into(),
        unreadable_ip: false,
        host_network: false,
        ports: [].into(),
        state,
        wants: [].into(),
        skipped: [].into(),
    }
}

fn live(name: &str, ip: &str) -> SeenPod {
    seen(name, ip, State::Live)
}

/// A pod on its node's network.
fn on_node(name: &str, ip: &str, ports: &[u16]) -> SeenPod {
    SeenPod {
        host_network: true,
        ports: ports.into(),
        ..live(name, ip)
    }
}

fn complete(pods: Vec<SeenPod>) -> Lists {
    Lists {
        lists: vec![List {
            coverage: Coverage::All,
            pods,
        }],
        ..Lists::default()
    }
}

/// The mark of a pod's entry; one that ends in a slash has no pod's name.
fn mark(pod: &str) -> Mark {
    let (namespace, name) = pod.split_once('/').expect("a namespace");
    Mark {
        author: Author::shared("prod", "c1"),
        namespace: namespace.into(),
        pod: (!name.is_empty()).then(|| name.into()),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(pod: Option<&SeenPod>) -> String {
    pod.map_or("nobody".to_owned(), |pod| pod.name.to_string())
}

#[test]
fn the_pod_behind_an_entry() {
    let lists = complete(vec![
        // At one address: the most alive counts, and of those the first; a completed one never.
        seen("shop/ended", "10.0.0.1", State::Completed),
        seen("shop/old", "10.0.0.1", State::NotReady),
        live("shop/new", "10.0.0.1"),
        live("shop/newer", "10.0.0.1"),
        seen("shop/unready", "10.0.0.1", State::NotReady),
        live("blog/web", "10.0.0.1"),
        // On a node each by the ports that it declares.
        on_node("shop/dns", "10.9.0.1", &[53, 54]),
        on_node("shop/proxy", "10.9.0.1", &[80]),
        // An IPv4 address in IPv6.
        live("shop/mapped", "::ffff:10.0.0.7"),
        seen("shop/only-ended", "10.0.0.8", State::Completed),
    ]);
    let evidence = Evidence::new(&lists);
    for (of, at, port, wanted) in [
        ("shop/", "10.0.0.1", 80, "shop/new"),
        ("blog/", "10.0.0.1", 80, "blog/web"),
        ("none/", "10.0.0.1", 80, "nobody"),
        ("shop/old", "10.0.0.1", 80, "shop/old"),
        ("shop/ended", "10.0.0.9", 80, "shop/ended"),
        ("shop/nosuch", "10.0.0.1", 80, "nobody"),
        ("shop/", "10.9.0.1", 54, "shop/dns"),
        ("shop/", "10.9.0.1", 80, "shop/proxy"),
        ("shop/", "10.9.0.1", 8080, "nobody"),
        ("shop/", "10.0.0.7", 80, "shop/mapped"),
        ("shop/", "::ffff:10.0.0.7", 80, "shop/mapped"),
        ("shop/", "10.0.0.8", 80, "nobody"),
    ] {
        let pod = evidence.pod(&mark(of), Some((ip(at), port)));
        assert_eq!(name(pod), wanted, "{of} at {at}:{port}");
    }
    assert_eq!(name(evidence.pod(&mark("shop/"), None)), "nobody");
}

#[test]
fn pods_at_one_address_are_ordered_by_state() {
    for (own, on_node_first, wanted) in [
        (State::NotReady, false, "shop/node"),
        (State::Live, false, "shop/own"),
        (State::Live, true, "shop/node"),
    ] {
        let mut pods = vec![
            seen("shop/own", "10.9.0.1", own),
            on_node("shop/node", "10.9.0.1", &[80]),
        ];
        if on_node_first {
            pods.reverse();
        }
        let lists = complete(pods);
        let pod = Evidence::new(&lists).pod(&mark("shop/"), Some((ip("10.9.0.1"), 80)));
        assert_eq!(name(pod), wanted, "{own:?}, node first: {on_node_first}");
    }
}

#[test]
fn another_pod_that_has_the_address_to_itself() {
    let lists = complete(vec![
        live("shop/a", "10.0.0.1"),
        live("shop/b", "10.0.0.1"),
        live("blog/c", "10.0.0.1"),
        live("docs/d", "10.0.0.1"),
        live("shop/a", "10.0.0.2"),
        live("shop/b", "10.0.0.2"),
        seen("blog/c", "10.0.0.3", State::NotReady),
        seen("blog/d", "10.0.0.3", State::Leaving),
        on_node("blog/e", "10.0.0.3", &[80]),
        live("blog/c", "::ffff:10.0.0.4"),
    ]);
    let evidence = Evidence::new(&lists);
    for (of, at, wanted) in [
        ("shop/a", "10.0.0.1", "shop/b"),
        ("shop/b", "10.0.0.1", "shop/a"),
        ("blog/a", "10.0.0.1", "shop/a"),
        ("shop/z", "10.0.0.1", "shop/a"),
        // Without a name a pod of the same namespace may be the one behind the entry.
        ("shop/", "10.0.0.1", "blog/c"),
        ("blog/", "10.0.0.1", "shop/a"),
        ("none/", "10.0.0.1", "shop/a"),
        ("shop/", "10.0.0.2", "nobody"),
        ("blog/", "10.0.0.2", "shop/a"),
        // One that is not Ready, or terminating, or on its node's network, has none to itself.
        ("shop/", "10.0.0.3", "nobody"),
        ("shop/a", "10.0.0.3", "nobody"),
        ("shop/", "10.0.0.4", "blog/c"),
        ("shop/a", "::ffff:10.0.0.4", "blog/c"),
    ] {
        let other = evidence.other_live_at(ip(at), &mark(of));
        assert_eq!(name(other), wanted, "not {of} at {at}");
    }
}

#[test]
fn a_second_look_only_adds_pods() {
    let mut lists = complete(vec![live("shop/a", "10.0.0.1")]);
    lists.again = BTreeMap::from([
        (
            "shop".to_owned(),
            Ok(vec![live("shop/a", "10.0.0.9"), live("shop/b", "10.0.0.2")]),
        ),
        ("blog".to_owned(), Err("refused".to_owned())),
    ]);
    let evidence = Evidence::new(&lists);
    let pod = |name: &str| evidence.pod(&mark(name), None).map(|pod| pod.ips[0]);
    assert_eq!(pod("shop/a"), Some(ip("10.0.0.1")));
    assert_eq!(pod("shop/b"), Some(ip("10.0.0.2")));
    assert_eq!(
        name(evidence.other_live_at(ip("10.0.0.9"), &mark("x/"))),
        "nobody"
    );
}

#[test]
fn the_meaning_of_absence() {
    let list = |coverage, pods| List { coverage, pods };
    let shop = || vec![live("shop/a", "10.0.0.1")];
    let of = |namespace: &str| Coverage::Namespace(namespace.to_owned());
    // The lists, whether they had selectors, the namespace, and the meaning.
    let rows = [
        (
            vec![list(Coverage::All, shop())],
            false,
            "blog",
            Absence::List(0),
        ),
        (
            vec![list(of("blog"), vec![]), list(of("shop"), shop())],
            false,
            "shop",
            Absence::List(1),
        ),
        (
            vec![list(of("blog"), vec![])],
            false,
            "shop",
            Absence::NotShown,
        ),
        (
            vec![list(Coverage::Partial, shop())],
            false,
            "shop",
            Absence::NotShown,
        ),
        (
            vec![list(Coverage::Seen, shop())],
            false,
            "shop",
            Absence::List(0),
        ),
        (
            vec![list(Coverage::Seen, shop())],
            false,
            "docs",
            Absence::NotShown,
        ),
        (
            vec![list(Coverage::Seen, vec![])],
            false,
            "docs",
            Absence::List(0),
        ),
        (
            vec![list(Coverage::All, shop())],
            true,
            "docs",
            Absence::Unselected,
        ),
        (
            vec![list(Coverage::All, shop())],
            true,
            "full",
            Absence::SecondLook { any: true },
        ),
        (
            vec![list(Coverage::All, shop())],
            true,
            "void",
            Absence::SecondLook { any: false },
        ),
        (
            vec![list(Coverage::All, shop())],
            true,
            "secret",
            Absence::Refused("no"),
        ),
        // Without selectors nothing was listed again.
        (
            vec![list(Coverage::All, shop())],
            false,
            "full",
            Absence::List(0),
        ),
    ];
    for (lists, selected, namespace, wanted) in rows {
        let lists = Lists {
            lists,
            selected,
            again: BTreeMap::from([
                ("full".to_owned(), Ok(vec![live("full/a", "10.0.0.5")])),
                ("void".to_owned(), Ok(vec![])),
                ("secret".to_owned(), Err("no".to_owned())),
            ]),
        };
        let evidence = Evidence::new(&lists);
        assert_eq!(
            evidence.absence(namespace),
            wanted,
            "{namespace}: {lists:?}"
        );
        let partial = lists.lists[0].coverage == Coverage::Partial;
        assert_eq!(
            evidence.covers(namespace),
            wanted != Absence::NotShown || partial,
            "{namespace}: {lists:?}"
        );
    }
}

#[test]
fn a_list_shows_a_pod_at_its_entrys_address() {
    let lists = complete(vec![live("shop/a", "10.0.0.1"), live("blog/b", "10.0.0.2")]);
    let evidence = Evidence::new(&lists);
    let shown = |of: &str, at: &str| evidence.shown_in(&mark(of), Some((ip(at), 80)));
    assert_eq!(shown("shop/a", "10.0.0.1"), Some(0));
    assert_eq!(shown("shop/a", "10.0.0.2"), None);
    assert_eq!(shown("shop/", "10.0.0.1"), Some(0));
    assert_eq!(shown("shop/", "10.0.0.2"), None);
    assert_eq!(evidence.shown_in(&mark("shop/a"), None), None);
}
