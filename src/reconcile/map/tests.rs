//! What becomes of a pod: ports, names, ids, annotations.

use super::*;
use crate::layout;
use crate::model::Texts;

pub(in crate::reconcile) fn mapping() -> Mapping {
    Mapping {
        annotation_prefix: "vulcanized.io/".to_owned(),
        backend_labels: vec!["app".to_owned(), "name".to_owned()],
        backend: Template::parse("{name}").expect("a template"),
        port: None,
        scheme: Scheme::Http,
        ip_family: None,
        server_id: Template::parse("{ip}").expect("a template"),
        layout: layout::open("vulcand", layout::Options::default()).expect("vulcand's"),
    }
}

fn pod(annotations: &[(&str, &str)]) -> Pod<'static> {
    let annotations = annotations
        .iter()
        .map(|(key, value)| (format!("vulcanized.io/{key}"), (*value).to_owned()));
    Pod {
        namespace: "shop".into(),
        name: "web-1".into(),
        labels: [("app", "web")].into_iter().collect(),
        annotations: annotations.collect(),
        phase: Phase::Running,
        ready: true,
        ips: vec![
            "10.0.0.1".parse().expect("an address"),
            "fd00::1".parse().expect("one"),
        ],
        ports: vec![port("http", 8080), port("admin", 9090)],
        ..Pod::default()
    }
}

fn port(name: &'static str, number: u16) -> ContainerPort<'static> {
    ContainerPort {
        name: Some(name.into()),
        number,
        tcp: true,
        sidecar: false,
    }
}

/// `backend/server=url` of each want, or the reasons.
fn outcome(mapping: &Mapping, pod: &Pod<'_>) -> String {
    let seen = mapping.map(pod);
    let wants = seen
        .wants
        .iter()
        .map(|w| format!("{}/{}={}", w.backend, w.server, w.url));
    let reasons = seen
        .skipped
        .iter()
        .map(|skipped| format!("({})", skipped.reason));
    wants.chain(reasons).collect::<Vec<_>>().join(" ")
}

/// What [`Mapping::reads`] leaves out of a pod makes no difference.
#[test]
fn all_that_is_read_of_a_pod_is_asked_for() {
    let template = |text| Template::parse(text).expect("a template");
    let by_label = Mapping {
        backend_labels: vec!["tier".to_owned()],
        ..mapping()
    };
    let by_template = Mapping {
        backend: template("{name}-{label:track}"),
        server_id: template("{ip}-{annotation:example.com/zone}"),
        ..mapping()
    };
    for (mapping, annotations, expected) in [
        (mapping(), &[][..], "web/10.0.0.1=http://10.0.0.1:8080"),
        (
            mapping(),
            &[("backend", "shop"), ("port", "admin")][..],
            "shop/10.0.0.1=http://10.0.0.1:9090",
        ),
        (
            mapping(),
            &[("prot", "admin")][..],
            "web/10.0.0.1=http://10.0.0.1:8080 (annotation `vulcanized.io/prot`: not one that is read)",
        ),
        (by_label, &[], "front/10.0.0.1=http://10.0.0.1:8080"),
        (by_template, &[], "web-blue/10.0.0.1-a=http://10.0.0.1:8080"),
    ] {
        let mut pod = pod(annotations);
        for (name, text) in [("tier", "front"), ("track", "blue"), ("hash", "7d9f")] {
            pod.labels.insert(name.into(), text.into());
        }
        for (name, text) in [("example.com/zone", "a"), ("example.com/hash", "7d9f")] {
            pod.annotations.insert(name.into(), text.into());
        }
        assert_eq!(outcome(&mapping, &pod), expected);
        let reads = mapping.reads();
        let read = |texts: &Texts<'_>| {
            let texts = texts.iter().filter(|(n, _)| reads.contains(n.as_bytes()));
            texts.map(|(n, t)| (n.to_owned(), t.to_owned())).collect()
        };
        let less = Pod {
            labels: read(&pod.labels),
            annotations: read(&pod.annotations),
            ..pod.clone()
        };
        assert_ne!(less, pod);
        assert_eq!(outcome(&mapping, &less), expected);
    }
}

#[test]
fn a_ready_pod_is_published() {
    assert_eq!(
        outcome(&mapping(), &pod(&[])),
        "web/10.0.0.1=http://10.0.0.1:8080"
    );
}

#[test]
fn the_truth_table() {
    let state = |change: fn(&mut Pod)| {
        let mut pod = pod(&[]);
        change(&mut pod);
        mapping().map(&pod).state
    };
    assert_eq!(state(|_| {}), State::Live);
    assert_eq!(state(|pod| pod.ready = false), State::NotReady);
    assert_eq!(state(|pod| pod.terminating = true), State::Leaving);
    let dying = |pod: &mut Pod| {
        pod.terminating = true;
        pod.ready = false;
    };
    assert_eq!(state(dying), State::Dying);
    let unreadable = |pod: &mut Pod| {
        pod.ips.clear();
        pod.unreadable_ip = true;
    };
    assert_eq!(state(unreadable), State::Unreadable);
    assert_eq!(state(|pod| pod.ips.clear()), State::NoAddress);
    assert_eq!(state(|pod| pod.phase = Phase::Failed), State::Completed);
    assert_eq!(state(|pod| pod.phase = Phase::Succeeded), State::Completed);
    let ended_and_deleted = |pod: &mut Pod| {
        pod.phase = Phase::Succeeded;
        pod.terminating = true;
    };
    assert_eq!(state(ended_and_deleted), State::Completed);
}

#[test]
fn a_pod_cannot_fill_the_store_or_the_log() {
    let names = |number: usize| vec!["web"; number].join(",");
    let seen = mapping().map(&pod(&[("backend", &names(32))]));
    assert_eq!((seen.wants.len(), seen.skipped.len()), (32, 0));
    assert_eq!(
        outcome(&mapping(), &pod(&[("backend", &names(33))])),
        "(annotation `vulcanized.io/backend`: it names more than 32 backends)"
    );
    let long = "é/".repeat(100_000);
    for annotation in ["backend", "port", "scheme"] {
        let text = outcome(&mapping(), &pod(&[(annotation, &long)]));
        assert!(text.len() < 400, "{annotation}: {} bytes", text.len());
    }
}

#[test]
fn annotations_win_over_labels_and_flags() {
    for (annotations, wanted) in [
        (
            vec![("backend", "other")],
            "other/10.0.0.1=http://10.0.0.1:8080",
        ),
        (vec![("port", "admin")], "web/10.0.0.1=http://10.0.0.1:9090"),
        (vec![("port", "7")], "web/10.0.0.1=http://10.0.0.1:7"),
        (
            vec![("scheme", "https")],
            "web/10.0.0.1=https://10.0.0.1:8080",
        ),
        (
            vec![("backend", "web:http, admin:9090"), ("port", "7")],
            "web/10.0.0.1=http://10.0.0.1:8080 admin/10.0.0.1=http://10.0.0.1:9090",
        ),
        (
            vec![("ignore", "true")],
            "(ignored: its annotation says so)",
        ),
        (
            vec![("ignore", "false")],
            "web/10.0.0.1=http://10.0.0.1:8080",
        ),
    ] {
        assert_eq!(
            outcome(&mapping(), &pod(&annotations)),
            wanted,
            "{annotations:?}"
        );
    }
}

#[test]
fn invalid_values_leave_the_pod_out() {
    for (annotations, wanted) in [
        (
            vec![("port", "https")],
            "(no port: it has no TCP port named `https`)",
        ),
        (
            vec![("port", "70000")],
            "(annotation `vulcanized.io/port`: port 70000 is not within 1 to 65535)",
        ),
        (
            vec![("backend", "")],
            "(annotation `vulcanized.io/backend`: it names no backend)",
        ),
        (
            vec![("backend", "a:1,")],
            "(annotation `vulcanized.io/backend`: it names no backend)",
        ),
        (
            vec![("scheme", "ftp")],
            "(annotation `vulcanized.io/scheme`: `ftp` is neither http nor https)",
        ),
        (
            vec![("backend", "a/b")],
            "(no backend id: `a/b`: it has '/', and ids are made of letters, digits and `._:[]-`)",
        ),
        (
            vec![("backend", "..")],
            "(no backend id: `..`: it begins with '.', and ids begin with a letter, a digit or `[`)",
        ),
    ] {
        assert_eq!(
            outcome(&mapping(), &pod(&annotations)),
            wanted,
            "{annotations:?}"
        );
    }
    let mut without = pod(&[]);
    without.labels = Texts::default();
    assert!(outcome(&mapping(), &without).starts_with("(no backend"));
    let mut empty = pod(&[]);
    empty.labels.insert("app".into(), "".into());
    assert_eq!(
        outcome(&mapping(), &empty),
        "(no backend id: `{name}` is empty)"
    );
}

#[test]
fn the_port_when_none_is_named() {
    let ports = |ports: Vec<ContainerPort<'static>>| {
        let mut pod = pod(&[]);
        pod.ports = ports;
        outcome(&mapping(), &pod)
    };
    let sidecar = |port: ContainerPort<'static>| ContainerPort {
        sidecar: true,
        ..port
    };
    let udp = |port: ContainerPort<'static>| ContainerPort { tcp: false, ..port };
    let web = |number| format!("web/10.0.0.1=http://10.0.0.1:{number}");
    assert_eq!(ports(vec![port("a", 1)]), web(1));
    assert_eq!(ports(vec![port("a", 1), udp(port("b", 2))]), web(1));
    assert_eq!(ports(vec![port("a", 1), port("http", 2)]), web(2));
    assert_eq!(ports(vec![port("a", 1), sidecar(port("b", 2))]), web(1));
    assert_eq!(ports(vec![sidecar(port("b", 2))]), web(2));
    assert_eq!(
        ports(vec![port("a", 1), port("b", 2)]),
        "(several ports: name one)"
    );
    assert_eq!(
        ports(vec![udp(port("http", 1))]),
        "(no port: it declares no TCP port)"
    );
    assert_eq!(ports(vec![]), "(no port: it declares no TCP port)");
}

#[test]
fn a_pod_on_its_nodes_network_publishes_only_what_it_declares() {
    let mut pod = pod(&[("port", "22")]);
    pod.host_network = true;
    let reason = "(no port: it uses its node's network and does not declare 22)";
    assert_eq!(outcome(&mapping(), &pod), reason);
    pod.annotations
        .insert("vulcanized.io/port".into(), "9090".into());
    assert_eq!(
        outcome(&mapping(), &pod),
        "web/10.0.0.1=http://10.0.0.1:9090"
    );
}

#[test]
fn the_address_family() {
    let v6 = Mapping {
        ip_family: Some(IpFamily::Ipv6),
        ..mapping()
    };
    assert_eq!(outcome(&v6, &pod(&[])), "web/fd00::1=http://[fd00::1]:8080");
    let mut only_v4 = pod(&[]);
    only_v4.ips.truncate(1);
    assert_eq!(outcome(&v6, &only_v4), "(no IPv6 address)");
}

#[test]
fn ports_by_name_and_number() {
    let parse = |text: &str| PortRef::parse(text).map_err(|_| ());
    assert_eq!(parse("http"), Ok(PortRef::Name("http".to_owned())));
    assert_eq!(parse("1"), Ok(PortRef::Number(1)));
    assert_eq!(parse("65535"), Ok(PortRef::Number(65_535)));
    for invalid in ["", "0", "65536"] {
        assert_eq!(parse(invalid), Err(()), "{invalid}");
    }
}

#[test]
fn ports_that_a_pod_declares_beside_its_servers() {
    let declares = |annotations: &[(&str, &str)]| {
        let mut pod = pod(annotations);
        pod.ports.push(ContainerPort {
            tcp: false,
            ..port("dns", 53)
        });
        mapping().map(&pod).ports.to_vec()
    };
    assert_eq!(declares(&[]), [9090]);
    assert_eq!(declares(&[("backend", "web,admin:9090")]), [0; 0]);
    assert_eq!(
        declares(&[("ignore", "true")]),
        [0; 0],
        "no server, no port"
    );
}

#[test]
fn the_ports_of_a_pod_on_its_nodes_network() {
    let mut pod = pod(&[]);
    pod.host_network = true;
    pod.ports[1].tcp = false;
    assert_eq!(*mapping().map(&pod).ports, [8080]);
    pod.ready = false;
    assert_eq!(*mapping().map(&pod).ports, [8080]);
}

#[test]
fn where_each_part_of_a_server_comes_from() {
    let trace = |mapping: &Mapping, annotations: &[(&str, &str)]| {
        let traces = mapping.trace(&pod(annotations));
        let [trace] = traces.expect("a backend").try_into().expect("one");
        trace
    };
    let Trace {
        name,
        name_from,
        from,
        want,
    } = trace(&mapping(), &[]);
    let label = NameFrom::Label("app".to_owned());
    assert_eq!((&*name, name_from), ("web", label));
    assert_eq!(from, Some((PortFrom::Http, None)));
    assert_eq!(want.expect("a server").url.port, 8080);
    let annotation = |name: &str| format!("vulcanized.io/{name}");
    let annotated = trace(&mapping(), &[("backend", "api:1"), ("scheme", "https")]);
    assert_eq!(
        annotated.name_from,
        NameFrom::Annotation(annotation("backend"))
    );
    let from = (PortFrom::Beside, Some(annotation("scheme")));
    assert_eq!(annotated.from, Some(from));
    let port = trace(&mapping(), &[("port", "admin")]);
    assert_eq!(
        port.from,
        Some((PortFrom::Annotation(annotation("port")), None))
    );
    let flag = Mapping {
        port: Some(PortRef::Number(1)),
        ..mapping()
    };
    assert_eq!(trace(&flag, &[]).from, Some((PortFrom::Flag, None)));
    let nameless = Mapping {
        backend_labels: vec!["tier".to_owned()],
        ..mapping()
    };
    assert_eq!(nameless.trace(&pod(&[])), Err(SkipReason::NoBackend));
}

#[test]
fn unknown_annotations_are_named_and_leave_nothing_out() {
    let unknown = |name: &str| {
        let seen = mapping().map(&pod(&[(name, "1")]));
        assert_eq!(seen.wants.len(), 1);
        seen.skipped.len()
    };
    assert_eq!(unknown("prot"), 1);
    assert_eq!(unknown("port"), 0);
    // vulcand has no weights, valid or not.
    assert_eq!(unknown("weight"), 1);
    let invalid = mapping().map(&pod(&[("weight", "x")]));
    assert_eq!((invalid.wants.len(), invalid.skipped.len()), (1, 1));
    let traefik = Mapping {
        layout: layout::open("traefik", layout::Options::default()).expect("Traefik's"),
        ..mapping()
    };
    assert_eq!(traefik.map(&pod(&[("weight", "1")])).skipped.len(), 0);
}
