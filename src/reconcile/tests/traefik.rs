//! Traefik's layout: weights, further keys of a server, and ids that carry the mark.

use super::*;
use crate::layout::Fault;
use crate::reconcile::findings::Finding;

const SERVICES: &str = "traefik/http/services";

/// A world with a router for service `web`.
fn world() -> World {
    let mut world = super::world();
    let layout = layout::open("traefik", layout::Options::default());
    world.mapping.layout = layout.expect("Traefik's");
    world.key("traefik/http/routers/web/service", "web")
}

impl World {
    fn key(mut self, key: &str, value: &str) -> Self {
        self.entries.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Further keys of the server with this id in service `web`.
    fn server(self, id: &str, keys: &[(&str, &str)]) -> Self {
        keys.iter().fold(self, |world, (key, value)| {
            world.key(
                &format!("{SERVICES}/web/loadBalancer/servers/{id}/{key}"),
                value,
            )
        })
    }

    /// Our server for pod `web-<n>`, with further keys.
    fn mine(self, n: u8, keys: &[(&str, &str)]) -> Self {
        let url = format!("http://10.0.0.{n}:8080");
        let id = format!("prod.c1.shop.10.0.0.{n}");
        self.server(&id, &[("url", &url)]).server(&id, keys)
    }

    /// A line for each key that is written, in order.
    fn writes(&self) -> String {
        let plan = self.plan();
        let mut out = String::new();
        for write in plan.changes.iter().flat_map(Change::writes) {
            let key = write.key.strip_prefix(SERVICES).expect("a service's key");
            let key = key.strip_prefix("/web/loadBalancer/").unwrap_or(key);
            let key = key.replace("servers/prod.c1.shop.10.0.0.", "");
            match write.after {
                Some(after) => writeln!(out, "{key} = {after}").expect("a line"),
                None => writeln!(out, "{key} gone").expect("a line"),
            }
        }
        out
    }

    #[track_caller]
    fn puts(&self, wanted: &str) {
        let lines = wanted.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty());
        let wanted = lines.flat_map(|line| [line, "\n"]).collect::<String>();
        pretty_equal(&self.writes(), &wanted);
    }
}

fn weighted(n: u8, weight: &str) -> Pod {
    let annotations = [("vulcanized.io/weight", weight.to_owned())];
    Pod {
        annotations: annotations.into_iter().collect(),
        ..pod("web", n)
    }
}

#[test]
fn a_weight_is_written_where_it_differs() {
    let pods = || [weighted(1, "3"), weighted(2, "0")];
    world().pods(pods()).puts(
        "1/url = http://10.0.0.1:8080
         1/weight = 3
         2/url = http://10.0.0.2:8080
         2/weight = 0",
    );
    let there = |one: &str, two: &str| {
        let world = world()
            .mine(1, &[("weight", one)])
            .mine(2, &[("weight", two)]);
        world.pods(pods())
    };
    there("3", "0").puts("");
    there("3", "5").puts(
        "2/url = http://10.0.0.2:8080
         2/weight = 0",
    );
    // Other keys of a server are not its weight, and without an annotation a weight is left alone.
    let other = world()
        .mine(1, &[("preservePath", "3")])
        .mine(2, &[("weight", "7")]);
    other.pods([weighted(1, "3"), pod("web", 2)]).puts(
        "1/url = http://10.0.0.1:8080
         1/weight = 3",
    );
    // A weight whose server has no URL.
    let id = "prod.c1.shop.10.0.0.1";
    let left = world().server(id, &[("weight", "3")]).mine(2, &[]);
    left.pods([weighted(1, "3"), pod("web", 2)])
        .puts("1/url = http://10.0.0.1:8080");
}

#[test]
fn the_pod_of_an_entry_with_a_host_name_does_not_replace_it() {
    let id = "prod.c1.shop.10.0.0.1";
    let world = world().server(id, &[("url", "http://web.local:8080")]);
    let world = world.pods([pod("web", 1)]);
    assert_eq!(world.counts(), [0, 0, 0, 1, 0]);
}

#[test]
fn invalid_weights_leave_the_pod_out() {
    let published = |weight: &str| world().pods([weighted(1, weight)]).plan().counts.published;
    assert_eq!(["0", "1000", " 7 "].map(published), [1; 3]);
    assert_eq!(["1001", "-1", "x", ""].map(published), [0; 4]);
}

#[test]
fn a_weight_in_a_shared_service_is_left_out() {
    let world = world()
        .server("blue.c1.shop.10.0.0.9", &[("url", "http://10.0.0.9:80")])
        .mine(1, &[("weight", "1")])
        .mine(2, &[("weight", "2")])
        .pods([weighted(1, "3"), weighted(2, "2")]);
    let plan = world.plan();
    assert_eq!((plan.changes.len(), plan.counts.unchanged), (0, 1));
    assert_eq!((plan.unshared.len(), plan.unshared[0].left_out), (1, 1));
}

#[test]
fn a_server_with_a_weight_comes_among_the_updates() {
    let id = "prod.c1.shop.10.0.0.1";
    let world = world().server(id, &[("url", "localhost:1")]).pods([
        pod("web", 1),
        weighted(2, "3"),
        pod("web", 3),
    ]);
    world.puts(
        "3/url = http://10.0.0.3:8080
         1/url = http://10.0.0.1:8080
         2/url = http://10.0.0.2:8080
         2/weight = 3",
    );
}

#[test]
fn a_server_of_weight_0_does_not_replace_one_that_serves() {
    // The pod has another address now, where its server is drained.
    let moved = |weight: &str| {
        let pods = [at(weighted(1, weight), "10.0.0.2"), unready(pod("web", 3))];
        world().mine(1, &[]).mine(3, &[]).pods(pods).counts()
    };
    let [creates, _, deletes, _, kept] = moved("1");
    assert_eq!((creates, deletes, kept), (1, 2, 0));
    let [creates, _, _, _, kept] = moved("0");
    assert_eq!((creates, kept), (1, 1), "the one that is not Ready is kept");
    // Without an annotation, the weight that is there counts.
    let there = |weight: &str| {
        let pods = [pod("web", 1), unready(pod("web", 3))];
        let world = world().mine(1, &[("weight", weight)]).mine(3, &[]);
        world.pods(pods).counts()
    };
    assert_eq!(there("1"), [0, 0, 1, 0, 0]);
    assert_eq!(there("0"), [0, 0, 0, 0, 1]);
}

#[test]
fn further_keys_move_to_the_id_under_which_a_url_stays() {
    let keys = [("weight", "3"), ("preservePath", "true")];
    let by_hand = || {
        world()
            .server("x", &[("url", "http://10.0.0.1:8080")])
            .server("x", &keys)
            .rules(|rules| rules.adopt.unmarked = true)
    };
    by_hand().pods(web([1])).puts(
        "1/url = http://10.0.0.1:8080
         1/preservePath = true
         1/weight = 3
         servers/x/url gone
         servers/x/preservePath gone
         servers/x/weight gone",
    );
    // Keys that are there already, and annotations, win.
    by_hand().pods([weighted(1, "5")]).puts(
        "1/url = http://10.0.0.1:8080
         1/weight = 5
         1/preservePath = true
         servers/x/url gone
         servers/x/preservePath gone
         servers/x/weight gone",
    );
    by_hand().mine(1, &[("weight", "9")]).pods(web([1])).puts(
        "1/url = http://10.0.0.1:8080
         1/preservePath = true
         servers/x/url gone
         servers/x/preservePath gone
         servers/x/weight gone",
    );
    let left = by_hand().server("prod.c1.shop.10.0.0.1", &[("weight", "9")]);
    left.pods(web([1])).puts(
        "1/url = http://10.0.0.1:8080
         1/preservePath = true
         servers/x/url gone
         servers/x/preservePath gone
         servers/x/weight gone",
    );
    // Nothing moves: the server that stays is not written.
    let same = by_hand().mine(1, &keys).pods(web([1]));
    same.puts(
        "servers/x/url gone
         servers/x/preservePath gone
         servers/x/weight gone",
    );
}

#[test]
fn ids_written_through_another_door_keep_their_spelling() {
    let mut world = world()
        .server(
            "prod.main-11111111.shop.10.0.0.1",
            &[("url", "http://10.0.0.1:8080")],
        )
        .server(
            "blue.main-11111111.shop.10.0.0.2",
            &[("url", "http://10.0.0.2:8080")],
        )
        .server(
            "prod.other-33333333.shop.10.0.0.2",
            &[("url", "http://10.9.0.2:8080")],
        )
        .rules(|rules| rules.share_backends = true)
        .pods(web([1, 2]));
    world.rules.scope = Scope::new(Cluster::parse("main@22222222"), None, None);
    let plan = world.plan();
    assert_eq!(plan.counts.unchanged, 1);
    let ids = plan
        .changes
        .iter()
        .filter_map(|change| change.server.as_deref());
    assert_eq!(
        ids.collect::<Vec<_>>(),
        ["prod.main-22222222.shop.10.0.0.2"]
    );
}

#[test]
fn a_server_by_another_scheme_is_not_doubled() {
    let by_hand = || {
        world()
            .server("x", &[("url", "h2c://10.0.0.1:8080")])
            .server("y", &[("url", "h2c://10.0.0.2:8080")])
            .pods(web([1, 2]))
    };
    let plan = by_hand().plan();
    assert_eq!((plan.changes.len(), plan.counts.satisfied_unmarked), (0, 2));
    // Such a service is served, so others may be given up.
    let unready = by_hand()
        .key("traefik/http/routers/api/service", "api")
        .key(
            &format!("{SERVICES}/api/loadBalancer/servers/prod.c1.shop.10.0.0.7/url"),
            "http://10.0.0.7:8080",
        )
        .pods([unready(pod("api", 7))])
        .plan();
    assert_eq!((unready.kept.len(), unready.kept_everywhere), (1, false));
    // One of ours is replaced instead.
    let ours = world().server("prod.c1.shop.x", &[("url", "h2c://10.0.0.1:8080")]);
    assert_eq!(ours.pods(web([1])).counts()[0], 1);
}

#[test]
fn findings_that_the_run_repairs() {
    let found = |world: &World| {
        let findings = world.plan().findings;
        let fault = |finding: Finding| match finding {
            Finding::Fault { key, fault } => format!("{fault:?} {key}"),
            other => format!("{other:?}"),
        };
        findings.into_iter().map(fault).collect::<Vec<_>>()
    };
    // A weight whose server gets its URL, and one whose server does not.
    let weight = |id: &str| {
        world()
            .server(id, &[("weight", "3")])
            .pods([weighted(1, "3")])
    };
    assert_eq!(found(&weight("prod.c1.shop.10.0.0.1")), [""; 0]);
    let key = format!("UrlMissing {SERVICES}/web/loadBalancer/servers/x/weight");
    assert_eq!(found(&weight("x")), [key]);
    // Servers without any router: a fault until the run defines a service.
    let unrouted = |create: bool| {
        let mut world = world()
            .mine(1, &[])
            .pods([pod("web", 1), pod("api", 7)])
            .rules(|rules| rules.create_backends = create);
        world.entries.retain(|(key, _)| !key.contains("routers"));
        found(&world)
            .iter()
            .any(|line| line.starts_with("NoRouter"))
    };
    assert!(unrouted(false));
    assert!(!unrouted(true));
    // Services that other routers name.
    let other = world()
        .key(&format!("{SERVICES}/api/mirroring/service"), "web")
        .pods(web([1]));
    assert_eq!(found(&other), [""; 0], "another type without servers");
}

#[test]
fn a_key_that_is_there_is_not_created_though_traefik_cannot_read_it() {
    let key = format!("{SERVICES}/web/loadBalancer/passHostHeader");
    let mut world = world()
        .key(&key, "rubbish")
        .pods(web([1]))
        .rules(|rules| rules.create_backends = true);
    world.entries.retain(|(key, _)| !key.contains("routers"));
    let plan = world.plan();
    let written = plan.changes.iter().map(|change| &*change.key);
    let server = format!("{SERVICES}/web/loadBalancer/servers/prod.c1.shop.10.0.0.1/url");
    assert_eq!(written.collect::<Vec<_>>(), [server]);
    let fault = Fault::Freezes;
    assert!(plan.findings.contains(&Finding::Fault { key, fault }));
}
