use super::*;
use crate::layout::entry;
use crate::model::Denied;

type Range = Result<Vec<model::KeyValue>, Denied>;

fn try_observe(ranges: [Range; 4]) -> Result<Observed, ObserveError> {
    let layout = Traefik { prefix: None };
    layout.observe(Snapshot {
        revision: Some(1),
        ranges: ranges.into(),
    })
}

/// Keys and values under `traefik/http/`, each in its range.
fn observe(keys: &[(&str, &str)]) -> Observed {
    let range = |start: &str| {
        let own = keys.iter().filter(|(key, _)| key.starts_with(start));
        let own = own.map(|(key, value)| entry(&format!("traefik/http/{key}"), value));
        let mut own = own.collect::<Vec<_>>();
        own.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(own)
    };
    let ranges = ["services/", "routers/", "middlewares/", "none"].map(range);
    try_observe(ranges).expect("it may be read")
}

/// Services of these keys and values, with a router that names `web`.
fn observe_keys(keys: &[(&str, &str)]) -> Observed {
    let keys = keys
        .iter()
        .map(|(key, value)| (format!("services/{key}"), *value));
    let mut keys = keys.collect::<Vec<_>>();
    keys.push(("routers/r/service".to_owned(), "web"));
    observe(
        &keys
            .iter()
            .map(|(key, value)| (&**key, *value))
            .collect::<Vec<_>>(),
    )
}

fn is_defined(observed: &Observed, id: &str) -> bool {
    let backend = observed.backends.get(id);
    backend.is_some_and(|backend| matches!(backend.definition, Definition::Valid { .. }))
}

/// All that is found wrong.
fn faults(observed: &Observed) -> Vec<Fault> {
    let servers = observed.backends.values().flat_map(|b| b.servers.values());
    let own = servers.filter_map(|entry| entry.fault);
    own.chain(observed.stray.iter().map(|(_, fault)| *fault))
        .collect()
}

#[test]
fn a_mark_is_read_back_from_its_id() {
    let written = Mark {
        author: Author::shared("prod", "c1"),
        namespace: "shop".into(),
        pod: None,
    };
    assert_eq!(mark(&id("10.0.0.1", &written)), Some(written.clone()));
    assert_eq!(mark(&id("[FD00::1]:80", &written)), Some(written));
    for (owner, cluster, namespace) in [
        ("prod", "main-3f2a91c0", "shop-2"),
        ("7-up", "3f2a91c0", "0"),
        ("a", &"c".repeat(41), "team-1-web"),
    ] {
        let found = mark(&format!("{owner}.{cluster}.{namespace}.10.0.0.1:80")).expect("a mark");
        assert_eq!(
            (&*found.author.owner, &*found.author.scope),
            (owner, cluster)
        );
        assert_eq!(&*found.namespace, namespace);
    }
    for unmarked in [
        "0",
        "10.0.0.1",
        "10.0.0.1:8080",
        "10.0.0.1.nip.io",
        "web",
        "a.b.c",
        "a.b.c.",
        "A.b.c.d",
        "a_.b.c.d",
        "a.b.c_.d",
        "...",
        &format!("a.{}.c.d", "b".repeat(42)),
    ] {
        assert_eq!(mark(unmarked), None, "{unmarked}");
    }
}

const SERVER_KEY: (&str, &str) = (
    "services/web/loadBalancer/servers/0/url",
    "http://10.0.0.1:80",
);

#[test]
fn a_service_is_defined_by_what_refers_to_it_or_a_key_of_its_own() {
    assert!(!is_defined(&observe(&[SERVER_KEY]), "web"));
    for (key, value) in [
        ("routers/r/service", "web"),
        ("routers/r/service", "web@etcd"),
        ("routers/r/Service", "WEB"),
        ("routers/r/service/0", "web"),
        ("services/w/weighted/services/0/name", "web"),
        ("services/w/Weighted/Services/x/Name", "web@etcd"),
        ("services/w/highestRandomWeight/services/0/name", "web"),
        ("services/w/mirroring/service", "web"),
        ("services/w/mirroring/mirrors/0/name", "web"),
        ("services/w/failover/service", "web"),
        ("services/w/failover/fallback", "web"),
        ("middlewares/m/errors/service", "web"),
        ("services/web/loadBalancer/passHostHeader", "true"),
        ("services/WEB/middlewares/0", "m"),
    ] {
        let observed = observe(&[SERVER_KEY, (key, value)]);
        assert!(is_defined(&observed, observed.spelled("web")), "{key}");
    }
    for (key, value) in [
        ("routers/r/service", "web@file"),
        ("routers/r/service", "web@ETCD"),
        ("routers/r/service", "we"),
        ("routers/r/rule", "web"),
        ("routers/r/middlewares/0", "web"),
        ("services/w/weighted/services/0/weight", "3"),
        ("services/w/mirroring/mirrors/0/percent", "10"),
        ("middlewares/m/errors/query", "web"),
        ("middlewares/m/forwardAuth/service", "web"),
        ("services/web/foo", "x"),
        ("services/w/weighted/mirrors/0/name", "web"),
        ("services/w/weighted/service", "web"),
        ("services/w/weighted/fallback", "web"),
        ("services/w/mirroring/services/0/name", "web"),
        ("services/w/mirroring/others/0/name", "web"),
        ("services/w/mirroring/mirrors/0/percent", "web"),
        ("services/w/mirroring/maxBodySize", "web"),
        ("services/w/failover/mirrors/0/name", "web"),
        ("services/w/failover/healthCheck", "web"),
        // A key that Traefik cannot read defines nothing.
        ("services/web/loadBalancer/passHostHeader", "rubbish"),
    ] {
        assert!(
            !is_defined(&observe(&[SERVER_KEY, (key, value)]), "web"),
            "{key}"
        );
    }
}

#[test]
fn a_service_that_has_no_key_yet_is_spelled_as_it_is_referred_to() {
    let observed = observe(&[("routers/r/service", "Site1")]);
    assert!(is_defined(&observed, "Site1"));
    assert_eq!(observed.spelled("site1"), "Site1");
    assert_eq!(observed.spelled("other"), "other");
    // The store's first key names it.
    let url = "http://10.0.0.1:80";
    let first = ("services/SITE1/loadBalancer/servers/a/url", url);
    let second = ("services/site1/loadBalancer/servers/b/url", url);
    let observed = observe(&[first, second, ("routers/r/service", "SITE1")]);
    assert_eq!(observed.spelled("site1"), "SITE1");
    assert_eq!(observed.backends["SITE1"].servers.len(), 2);
    assert_eq!(faults(&observed), []);
    let observed = observe(&[first, second, ("routers/r/service", "site1")]);
    assert_eq!(faults(&observed), [Fault::OtherSpelling]);
    assert!(is_defined(&observed, "SITE1"));
}

#[test]
fn references_to_names_of_digits_have_brackets() {
    let server = (
        "services/123/loadBalancer/servers/0/url",
        "http://10.0.0.1:80",
    );
    assert!(!is_defined(
        &observe(&[server, ("routers/r/service", "123")]),
        "123"
    ));
    let observed = observe(&[server, ("routers/r/service", "[123]")]);
    assert!(is_defined(&observed, "123"));
    assert_eq!(faults(&observed), []);
    let layout = Traefik { prefix: None };
    for digits in ["123", "[123]"] {
        assert_eq!(layout.backend_id(digits), Err(InvalidId::OnlyDigits));
    }
}

#[test]
fn a_server_has_several_keys() {
    let observed = observe_keys(&[
        ("web/loadBalancer/servers/a/preservePath", "true"),
        ("web/loadBalancer/servers/a/url", "http://10.0.0.1:80"),
        ("web/loadBalancer/servers/a/weight", "3"),
        ("web/loadbalancer/Servers/A/URL", "http://10.0.0.2:80"),
        ("web/loadBalancer/servers/a/owner", "x"),
        ("web/loadBalancer/servers/b/url", "http://10.0.0.3:80"),
        ("web/loadBalancer/servers/5/url", "http://10.0.0.4:80"),
        ("web/loadBalancer/servers/[5]/weight", "2"),
    ]);
    let servers = &observed.backends["web"].servers;
    let keys = |id: &str| {
        let others = servers.get(id).expect(id).others.iter();
        others
            .map(|other| other.key.rsplit('/').next().expect("a field"))
            .collect::<Vec<_>>()
    };
    assert_eq!(keys("a"), ["owner", "preservePath", "weight", "url"]);
    assert_eq!(keys("5"), ["weight"]);
    assert_eq!(keys("b"), [""; 0]);
}

#[test]
fn unreachable_servers_are_faults() {
    let found = |value: &str| {
        let key = "web/loadBalancer/servers/a/url";
        faults(&observe_keys(&[(key, value)]))
    };
    for good in [
        "http://10.0.0.1:80",
        "https://a",
        "h2c://10.0.0.1:80",
        "http://10.0.0.1:80/a b",
        "http://10.0.0.1:",
        "HTTP://u:p@10.0.0.1",
    ] {
        assert_eq!(found(good), [], "{good}");
    }
    for share in [
        "rubbish",
        "localhost:80",
        "http://",
        "ftp://a",
        "http://a:0",
    ] {
        assert_eq!(found(share), [Fault::Unreachable], "{share}");
    }
    for whole in ["http://a b:80", "10.0.0.1:80", "http://a:x", "http://a/%zz"] {
        assert_eq!(found(whole), [Fault::Disables], "{whole}");
    }
    assert_eq!(found(""), [Fault::UrlMissing]);
    let weight = ("web/loadBalancer/servers/a/weight", "1");
    let url = ("web/loadBalancer/servers/a/url", "http://10.0.0.1:80");
    assert_eq!(faults(&observe_keys(&[weight])), [Fault::UrlMissing]);
    assert_eq!(faults(&observe_keys(&[weight, url])), []);
    let alone = ("web/loadBalancer/servers/a", "x");
    assert_eq!(faults(&observe_keys(&[alone])), [Fault::UrlMissing]);
    let listed = ("web/loadBalancer/servers/5", "x");
    assert_eq!(faults(&observe_keys(&[listed])), []);
}

#[test]
fn the_last_spelling_of_a_url_counts() {
    let observed = observe_keys(&[
        ("web/loadBalancer/servers/a/url", "http://10.0.0.1:80"),
        ("web/loadBalancer/servers/a/url/", "http://10.0.0.2:80"),
    ]);
    let server = observed.backends["web"].servers.get("a").expect("a server");
    assert!(server.key.ends_with("/url/"));
    assert_eq!(server.url, ServerUrl::parse("http://10.0.0.2:80"));
    assert!(server.others[0].key.ends_with("/url"));
    assert_eq!(faults(&observed), []);
}

#[test]
fn a_service_of_another_type_gets_no_servers() {
    let balancer = ("web/loadBalancer/passHostHeader", "true");
    let weighted = ("web/weighted/services/0/name", "x");
    for keys in [&[balancer, weighted][..], &[weighted, balancer]] {
        let observed = observe_keys(keys);
        let definition = &observed.backends["web"].definition;
        assert!(matches!(definition, Definition::OtherType { .. }));
    }
}

#[test]
fn servers_without_any_router_are_faults() {
    let own = ("services/web/loadBalancer/passHostHeader", "true");
    let router = ("routers/r/rule", "x");
    assert_eq!(faults(&observe(&[SERVER_KEY])), [Fault::NoRouter]);
    assert_eq!(faults(&observe(&[own, SERVER_KEY])), []);
    assert_eq!(faults(&observe(&[SERVER_KEY, router])), []);
    assert_eq!(faults(&observe(&[])), []);
}

#[test]
fn unreadable_routers_are_an_error() {
    let denied = || Err(Denied("permission denied".to_owned()));
    let nothing = || Ok(vec![]);
    for ranges in [
        [denied(), nothing(), nothing(), nothing()],
        [nothing(), denied(), nothing(), nothing()],
    ] {
        assert!(matches!(try_observe(ranges), Err(ObserveError::Denied(_))));
    }
    assert!(try_observe([nothing(), nothing(), denied(), denied()]).is_ok());
}

#[test]
fn keys_that_freeze_the_provider_are_faults() {
    // What stands in this file is tried on the real Traefik, too.
    for line in include_str!("../../../fixtures/traefik/keys.tsv").lines() {
        let [verdict, key, value] = *line.split('\t').collect::<Vec<_>>() else {
            panic!("three columns: {line}");
        };
        let observed = observe(&[(key, value)]);
        let found = faults(&observed).contains(&Fault::Freezes);
        assert_eq!(found, verdict == "freezes", "{line}");
    }
}

#[test]
fn references_agree_with_the_real_traefik() {
    let mut rows = 0;
    for line in include_str!("../../../fixtures/traefik/keys.tsv").lines() {
        let [verdict @ ("serves" | "misses"), key, value] = *line.split('\t').collect::<Vec<_>>()
        else {
            continue;
        };
        rows += 1;
        let observed = observe(&[SERVER_KEY, (key, value)]);
        // One in another case is meant, and found.
        let found = faults(&observed).contains(&Fault::OtherSpelling);
        let followed = is_defined(&observed, "web") && !found;
        assert_eq!(followed, verdict == "serves", "{line}");
        let meant = value.trim_end_matches("@etcd").eq_ignore_ascii_case("web");
        assert_eq!(is_defined(&observed, "web"), meant, "{line}");
    }
    assert!(rows >= 80, "{rows}");
}

#[test]
fn keys_and_values_of_a_service() {
    let open = |prefix: Option<&str>| {
        let prefix = prefix.map(str::to_owned);
        super::open(Options {
            prefix,
            etcd_v2: false,
        })
        .expect("a layout")
    };
    let ranges = |prefix: &str| {
        let kinds = ["services", "routers", "middlewares"];
        let mut ranges = kinds.map(|kind| format!("{prefix}/http/{kind}/")).to_vec();
        ranges.push(format!("/{prefix}/http/services/"));
        ranges
    };
    assert_eq!(open(None).ranges(), ranges("traefik"));
    assert_eq!(open(Some("lb")).ranges(), ranges("lb"));
    let layout = open(Some("lb"));
    let server = "lb/http/services/web/loadBalancer/servers/a";
    assert_eq!(layout.range("lb", "web"), "lb/http/services/web/");
    assert_eq!(layout.key("lb", "web", "a"), format!("{server}/url"));
    let weight = layout.weight_key("lb", "web", "a");
    assert_eq!(weight, Some(format!("{server}/weight")));
    assert!(layout.has_weights());
    for (key, moved) in [
        ("servers/old/weight", Some("weight")),
        ("servers/old/PreservePath", Some("preservePath")),
        ("servers/old/preservePath/", Some("preservePath")),
        ("servers/old/URL", None),
        ("servers/old/owner", None),
        ("", None),
    ] {
        let moved = moved.map(|field| format!("{server}/{field}"));
        assert_eq!(layout.moved_key("lb", "web", "a", key), moved, "{key}");
    }
    let created = (
        "lb/http/services/web/loadBalancer/passHostHeader".to_owned(),
        "true".to_owned(),
    );
    assert_eq!(layout.created("lb", "web"), Some(created));
    let definition = layout.definition("lb", "web");
    let definition = definition.iter().map(|(key, value)| (&**key, &**value));
    assert_eq!(
        definition.collect::<Vec<_>>(),
        [
            ("lb/http/routers/to-web/rule", "Host(`web.example.com`)"),
            ("lb/http/routers/to-web/entryPoints/0", "web"),
            ("lb/http/routers/to-web/service", "web"),
        ]
    );
    assert_eq!(layout.definitions("lb"), "lb/http/");
    assert_eq!(layout.root_option("lb"), "--providers.etcd.rootkey=lb");
    assert_eq!(layout.undefined(), Undefined::Unrouted);
    assert!(!layout.bleeds("a", "aa"));
}

#[test]
fn the_mark_in_an_id() {
    let layout = Traefik { prefix: None };
    for (cluster, scope) in [
        ("3f2a91c0", "3f2a91c0"),
        ("main@3f2a91c0", "main-3f2a91c0"),
        ("file", "file"),
        ("main@file", "main"),
    ] {
        let scoped = Scope::new(Cluster::parse(cluster), Some("app=web"), None);
        assert_eq!(layout.scope(&scoped), scope, "{cluster}");
    }
    let pod = PodName::parse("shop/web-1").expect("a pod's name");
    let mark = layout.mark(Author::shared("prod", "c1"), &pod);
    assert_eq!((&*mark.namespace, &mark.pod), ("shop", &None));
    assert_eq!(layout.id("10.0.0.1", &mark), "prod.c1.shop.10.0.0.1");
    assert_eq!(layout.id("[FD00::1]", &mark), "prod.c1.shop.[fd00::1]");
    let url = ServerUrl::parse("http://10.0.0.1:8080").expect("a URL");
    assert_eq!(layout.value(&url, &mark), "http://10.0.0.1:8080");
    for (owner, taken) in [("prod", true), ("7-up", true), ("7", false), ("10", false)] {
        assert_eq!(layout.check_owner(owner).is_ok(), taken, "{owner}");
    }
}

#[test]
fn strays_and_siblings_of_a_listing() {
    let services = |prefix: &str| {
        let key = format!("{prefix}/http/services/web/loadBalancer/servers/a/url");
        Ok(vec![entry(&key, "http://10.0.0.1:80")])
    };
    let nothing = || Ok(vec![]);
    let found = try_observe([services("traefik"), nothing(), nothing(), nothing()]);
    let found = found.expect("it may be read");
    assert_eq!((found.revision, &*found.prefix), (Some(1), "traefik"));
    assert_eq!(found.siblings, []);
    let found = try_observe([nothing(), nothing(), nothing(), services("/traefik")]);
    let sibling = Sibling {
        prefix: "/traefik".to_owned(),
        backends: 1,
        kind: SiblingKind::Spelling,
    };
    assert_eq!(found.expect("it may be read").siblings, [sibling]);
}

#[test]
fn a_key_with_others_below_it_needs_no_value() {
    let frozen = |keys: &[&str]| {
        let keys = keys.iter().map(|key| (*key, "x")).collect::<Vec<_>>();
        let faults = faults(&observe_keys(&keys));
        faults
            .iter()
            .filter(|fault| **fault == Fault::Freezes)
            .count()
    };
    assert_eq!(frozen(&["web/foo"]), 1);
    assert_eq!(frozen(&["web/foo", "web/foo/bar"]), 1, "the lower one");
    assert_eq!(frozen(&["web/foo", "web/food"]), 2, "not below it");
    assert_eq!(frozen(&["web/foo", "web/foo/"]), 2, "nothing is below");
}

#[test]
fn a_server_that_freezes_the_provider_is_one_fault() {
    for keys in [
        [("owner", "x"), ("weight", "1")],
        [("preservePath", "true"), ("weight", "x")],
    ] {
        let keys =
            keys.map(|(field, value)| (format!("web/loadBalancer/servers/a/{field}"), value));
        let keys = keys.each_ref().map(|(key, value)| (&**key, *value));
        assert_eq!(faults(&observe_keys(&keys)), [Fault::Freezes], "{keys:?}");
    }
}

#[test]
fn servers_are_those_of_a_load_balancer() {
    let url = "http://10.0.0.1:80";
    for key in [
        "web/loadBalancer/others/a/url",
        "web/weighted/servers/a/url",
    ] {
        let observed = observe_keys(&[(key, url)]);
        assert_eq!(observed.backends["web"].servers.len(), 0, "{key}");
    }
    // The name alone, with servers below it, is of no other type.
    let observed = observe_keys(&[
        ("web/loadBalancer", ""),
        ("web/loadBalancer/servers/a/url", url),
    ]);
    assert!(is_defined(&observed, "web"));
    assert_eq!(observed.backends["web"].servers.len(), 1);
}

#[test]
fn invalid_service_names_are_ignored() {
    for name in ["", "web@file", "a/b", "123"] {
        let observed = observe(&[("routers/r/service", name)]);
        assert_eq!(observed.backends.len(), 0, "{name}");
    }
}
