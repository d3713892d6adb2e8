//! The plan, row by row: a world of pods and entries in, changes with their proofs out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::layout;
use crate::model::{Cluster, ContainerPort, Entry, Phase, Scheme, Scope, Snapshot, Texts};
use crate::reconcile::evidence::{Coverage, List, Lists};
use crate::reconcile::map::{Mapping, PortRef};
use crate::reconcile::plan::{
    Action, Adopt, DeleteLimit, Freeze, Losing, NoBackends, Plan, Reason, Rules, plan,
};
use crate::reconcile::template::Template;
use crate::report::{held, why};

type Pod = crate::model::Pod<'static>;

/// What a run sees, and what it may do.
struct World {
    entries: Vec<(String, String)>,
    pods: Vec<Pod>,
    again: Option<Result<Vec<Pod>, String>>,
    selected: bool,
    coverage: Coverage,
    mapping: Mapping,
    rules: Rules,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            entries,
            pods,
            again,
            selected,
            coverage,
            mapping: _,
            rules,
        } = self;
        let line = |pod: &Pod| {
            let Pod {
                namespace,
                name,
                labels,
                phase,
                ready,
                terminating,
                ips,
                ..
            } = pod;
            let app = labels.get("app");
            format!("{namespace}/{name} {app:?} {phase:?} ready={ready} gone={terminating} {ips:?}")
        };
        writeln!(f, "selected={selected} {coverage:?} {rules:?}")?;
        for (key, value) in entries {
            writeln!(f, "{key} {value}")?;
        }
        for pod in pods {
            writeln!(f, "{}", line(pod))?;
        }
        match again {
            Some(Ok(again)) => {
                for pod in again {
                    writeln!(f, "again {}", line(pod))?;
                }
                Ok(())
            }
            other => writeln!(f, "again {:?}", other.as_ref().map(|_| "refused")),
        }
    }
}

fn world() -> World {
    World {
        entries: Vec::new(),
        pods: Vec::new(),
        again: None,
        selected: false,
        coverage: Coverage::Namespace("shop".to_owned()),
        mapping: Mapping {
            annotation_prefix: "vulcanized.io/".to_owned(),
            backend_labels: vec!["app".to_owned()],
            backend: Template::parse("{name}").expect("a template"),
            port: None,
            scheme: Scheme::Http,
            ip_family: None,
            server_id: Template::parse("{ip}").expect("a template"),
            layout: layout::open("vulcand", layout::Options::default()).expect("vulcand's"),
        },
        rules: Rules {
            owner: "prod".to_owned(),
            scope: Scope::new(Cluster::parse("c1"), None, None),
            adopt: Adopt::default(),
            share_backends: false,
            create_backends: false,
            strict_ready: false,
            allow_empty: false,
            allow_deletes: None,
            max_deletes: None,
            upsert_only: false,
        },
    }
}

/// A live pod `shop/<app>-<n>` at `10.0.0.<n>`, port 8080.
fn pod(app: &str, n: u8) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: format!("{app}-{n}").into(),
        labels: [("app", app.to_owned())].into_iter().collect(),
        phase: Phase::Running,
        ready: true,
        ips: smallvec::smallvec![format!("10.0.0.{n}").parse().expect("an address")],
        ports: vec![ContainerPort {
            name: None,
            number: 8080,
            tcp: true,
            sidecar: false,
        }],
        ..Pod::default()
    }
}

fn unready(pod: Pod) -> Pod {
    Pod {
        ready: false,
        ..pod
    }
}

fn relabelled(mut pod: Pod) -> Pod {
    pod.labels = Texts::default();
    pod
}

fn at(mut pod: Pod, ip: &str) -> Pod {
    pod.ips = smallvec::smallvec![ip.parse().expect("an address")];
    pod
}

fn value(owner: &str, scope: &str, pod: &str, url: &str) -> String {
    format!(r#"{{"URL":"{url}","Owner":"{owner}","Scope":"{scope}","Pod":"{pod}"}}"#)
}

impl World {
    fn pods(mut self, pods: impl IntoIterator<Item = Pod>) -> Self {
        self.pods.extend(pods);
        self
    }

    fn entry(mut self, key: &str, value: &str) -> Self {
        self.entries
            .push((format!("/vulcand/backends/{key}"), value.to_owned()));
        self
    }

    fn backend(self, id: &str) -> Self {
        self.entry(&format!("{id}/backend"), r#"{"Type":"http"}"#)
    }

    /// Our entries for the pods `<app>-<n>`, as a run would have left them.
    fn ours(mut self, app: &str, numbers: impl IntoIterator<Item = u8>) -> Self {
        for n in numbers {
            let url = format!("http://10.0.0.{n}:8080");
            let scope = self.rules.scope.to_string();
            let value = value("prod", &scope, &format!("shop/{app}-{n}"), &url);
            self = self.entry(&format!("{app}/servers/10.0.0.{n}"), &value);
        }
        self
    }

    fn selected(mut self) -> Self {
        self.selected = true;
        self.rules.scope = Scope::new(Cluster::parse("c1"), Some("tier=a"), None);
        self
    }

    fn again(mut self, pods: impl IntoIterator<Item = Pod>) -> Self {
        self.again = Some(Ok(pods.into_iter().collect()));
        self
    }

    fn rules(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(&mut self.rules);
        self
    }

    fn mapping(mut self, change: impl FnOnce(&mut Mapping)) -> Self {
        change(&mut self.mapping);
        self
    }

    fn try_plan(&self) -> Result<Plan, NoBackends> {
        let mut entries = self.entries.clone();
        entries.sort();
        let entries = entries
            .into_iter()
            .zip(1..)
            .map(|((key, value), revision)| Entry {
                key: key.into_bytes(),
                value: value.into_bytes(),
                revision,
            });
        let snapshot = Snapshot {
            revision: Some(9),
            ranges: vec![Ok(entries.collect()), Ok(vec![])],
        };
        let layout = &*self.mapping.layout;
        let observed = layout.observe(snapshot).expect("one spelling");
        let map = |pods: &[Pod]| {
            pods.iter()
                .cloned()
                .map(|pod| self.mapping.map(pod))
                .collect()
        };
        let list = List {
            coverage: self.coverage.clone(),
            pods: map(&self.pods),
        };
        let mut lists = Lists {
            lists: vec![list],
            selected: self.selected,
            ..Lists::default()
        };
        let draft = plan(&observed, &lists, &self.rules, layout)?;
        if draft.doubts.is_empty() {
            return Ok(draft);
        }
        let again = self.again.clone().expect("the plan asks for a second look");
        for namespace in draft.doubts {
            let again = again.clone().map(|mut pods| {
                pods.retain(|pod| pod.namespace == namespace);
                map(&pods)
            });
            lists.again.insert(namespace, again);
        }
        let plan = plan(&observed, &lists, &self.rules, layout)?;
        assert!(plan.doubts.is_empty(), "one second look is enough");
        Ok(plan)
    }

    fn plan(&self) -> Plan {
        self.try_plan().expect("a backend is defined")
    }

    /// A line for each change, held and kept server, and alarm.
    fn says(&self) -> String {
        let plan = self.plan();
        let mut out = String::new();
        for change in &plan.changes {
            let sign = match change.action {
                Action::Create { .. } => '+',
                Action::Update { .. } => '~',
                Action::Delete { .. } => '-',
            };
            let server = change.server.as_deref().unwrap_or("backend");
            writeln!(out, "{sign} {}/{server}: {}", change.backend, why(change)).expect("a line");
        }
        for entry in &plan.held {
            let (backend, server) = (&entry.entry.backend, &entry.entry.server);
            let (why, lost, remain) = (held(entry), entry.lost, entry.remain);
            writeln!(out, "held {backend}/{server}: {why} ({lost}, {remain})").expect("a line");
        }
        for kept in &plan.kept {
            for Losing { server, .. } in &kept.servers {
                writeln!(out, "kept {}/{server}", kept.backend).expect("a line");
            }
        }
        if plan.alarms() {
            out.push_str("alarm\n");
        }
        out
    }

    #[track_caller]
    fn is(&self, wanted: &str) {
        let wanted = wanted
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        let wanted = wanted.flat_map(|line| [line, "\n"]).collect::<String>();
        pretty_equal(&self.says(), &wanted);
    }

    /// How many of each: creates, updates, deletes, held, kept.
    fn counts(&self) -> [usize; 5] {
        let plan = self.plan();
        let count = |wanted: fn(&Action) -> bool| {
            plan.changes
                .iter()
                .filter(|change| wanted(&change.action))
                .count()
        };
        [
            count(|action| matches!(action, Action::Create { .. })),
            count(|action| matches!(action, Action::Update { .. })),
            count(|action| matches!(action, Action::Delete { .. })),
            plan.held.len(),
            plan.kept.iter().map(|kept| kept.servers.len()).sum(),
        ]
    }
}

#[track_caller]
fn pretty_equal(got: &str, wanted: &str) {
    assert!(got == wanted, "got:\n{got}wanted:\n{wanted}");
}

/// A world in sync: backend `web` with the servers of its pods 1, 2 and 3.
fn three() -> World {
    world().backend("web").ours("web", 1..=3)
}

fn web(numbers: impl IntoIterator<Item = u8>) -> Vec<Pod> {
    numbers.into_iter().map(|n| pod("web", n)).collect()
}

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
fn what_others_wrote_does_not_count_as_ready() {
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

/// What section "what a backend may lose" demands, row by row: the case, the world, and what becomes of
/// it (creates, updates, deletes, held, kept; whether it alarms). Each row that holds has a twin that
/// must stay free.
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
        ips: smallvec::SmallVec::new(),
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
        // Dead goes always, the last one too.
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
                ips: smallvec::SmallVec::new(),
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
        assert_eq!(world.counts(), counts, "{case}\n{}", world.says());
        assert_eq!(world.plan().alarms(), alarms, "{case}");
    }
}

/// A part of a list: what it does not show is not looked at.
#[test]
fn an_incomplete_list_creates_and_deletes_nothing_else() {
    let mut world = three().pods(web([3, 4]));
    world.coverage = Coverage::Partial;
    assert_eq!(world.counts(), [1, 0, 0, 0, 0]);
    assert_eq!(world.plan().counts.not_looked_at, 2);
}

#[test]
fn an_emptied_backend_that_ready_pods_name_alarms() {
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
fn over_the_budget_nothing_goes_and_creates_arrive() {
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
    assert_eq!(through("main@11111111", 4).says(), "");
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

#[test]
fn an_address_on_a_nodes_network_is_no_proof() {
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
    // Another one stays there: nobody needs to ask.
    let two = last().ours("web", [2]).pods(web([2]));
    two.is("- web/10.0.0.1: pod shop/web-1 is not among the selected pods");
}

#[test]
fn relabelled_under_a_selector_and_alive_count_together() {
    // Two are not in the list, two are in it and want nothing: four of four without a proof.
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
fn the_creates_of_a_run_with_holds_arrive() {
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

#[test]
fn what_others_wrote_is_never_touched() {
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
fn a_key_that_is_taken_is_a_conflict() {
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
        world.pods(web([1])).says()
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
fn a_backend_that_is_not_defined_gets_nothing_and_loses_nothing() {
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
fn a_frozen_backend_keeps_what_is_not_proved_dead() {
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
fn no_backend_at_all_is_an_error_unless_our_own_servers_are_there() {
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
fn adopting_what_has_no_mark() {
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
fn what_an_adopted_entry_gets_stays_too() {
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

/// Worlds of all kinds, small enough that everything meets everything.
mod properties {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn any_pod() -> impl Strategy<Value = Pod> {
        let app = prop::sample::select(vec!["web", "api", "web-api"]);
        (app, 1..6_u8, 1..6_u8, 0..8_u8, any::<bool>()).prop_map(|(app, n, ip, state, own)| {
            let mut pod = pod(app, n);
            if !own {
                pod = at(pod, &format!("10.0.0.{ip}"));
            }
            match state {
                0 => pod.ready = false,
                1 => pod.terminating = true,
                2 => pod.phase = Phase::Failed,
                3 => pod.ips.clear(),
                4 => pod.labels = Texts::default(),
                5 => pod.ports[0].number = 9090,
                _ => {}
            }
            pod
        })
    }

    fn any_entry() -> impl Strategy<Value = (String, String)> {
        let backend = prop::sample::select(vec!["web", "api", "web-api"]);
        let owner = prop::sample::select(vec!["prod", "prod", "prod", "blue"]);
        let scope = prop::sample::select(vec!["c1", "c1", "c1 tier=a", "c2"]);
        let pod = prop::sample::select(vec!["shop/web-", "shop/api-", "blog/web-"]);
        let port = prop::sample::select(vec![8080, 9090]);
        let kind = 0..12_u8;
        (backend, owner, scope, pod, 1..6_u8, 1..6_u8, port, kind).prop_map(
            |(backend, owner, scope, pod, n, ip, port, kind)| {
                let url = format!("http://10.0.0.{ip}:{port}");
                let value = match kind {
                    0 => format!(r#"{{"URL":"{url}"}}"#),
                    1 => "null".to_owned(),
                    2 => "rubbish".to_owned(),
                    3 => value(owner, scope, &format!("{pod}{n}"), "localhost:80"),
                    _ => value(owner, scope, &format!("{pod}{n}"), &url),
                };
                (format!("{backend}/servers/10.0.0.{ip}"), value)
            },
        )
    }

    prop_compose! {
        fn any_world()(
            pods in prop::collection::vec(any_pod(), 0..8),
            again in prop::collection::vec(any_pod(), 0..8),
            refused in prop::bool::weighted(0.2),
            entries in prop::collection::btree_map(
                any_entry().prop_map(|(key, _)| key), any_entry().prop_map(|(_, value)| value), 0..10),
            defined in prop::collection::btree_set(
                prop::sample::select(vec!["web", "api", "web-api"]), 0..4),
            flags in prop::array::uniform8(prop::bool::weighted(0.25)),
            allow in prop::option::weighted(0.2, 0..6_usize),
            all in any::<bool>(),
        ) -> World {
            let mut world = world();
            let [selected, unmarked, scope, share, create, strict, empty, upsert] = flags;
            if selected {
                world = world.selected();
            }
            if all {
                world.coverage = Coverage::All;
            }
            for backend in defined {
                world = world.backend(backend);
            }
            for (key, value) in entries {
                world = world.entry(&key, &value);
            }
            // A list has each pod once.
            let once = |pods: Vec<Pod>| {
                pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect::<BTreeMap<_, _>>()
            };
            let pods = once(pods);
            let more = once(again).into_iter().filter(|(name, _)| !pods.contains_key(name));
            let whole = pods.values().cloned().chain(more.map(|(_, pod)| pod)).collect();
            world.again = Some(if refused { Err("403".to_owned()) } else { Ok(whole) });
            world.pods(pods.into_values()).rules(|rules| {
                rules.adopt.unmarked = unmarked;
                rules.adopt.scope = scope;
                rules.share_backends = share;
                rules.create_backends = create;
                rules.strict_ready = strict;
                rules.allow_empty = empty;
                rules.upsert_only = upsert;
                rules.allow_deletes = allow;
            })
        }
    }

    fn apply(world: &mut World, plan: &Plan) {
        let mut entries = world.entries.iter().cloned().collect::<BTreeMap<_, _>>();
        for change in &plan.changes {
            let before = entries.get(&change.key).map(String::as_bytes);
            match &change.action {
                Action::Create { after, .. } => {
                    assert_eq!(before, None, "a create finds nothing");
                    entries.insert(change.key.clone(), after.clone());
                }
                Action::Update {
                    before: read,
                    after,
                    ..
                } => {
                    assert_eq!(
                        before,
                        Some(read.as_slice()),
                        "an update knows what was there"
                    );
                    entries.insert(change.key.clone(), after.clone());
                }
                Action::Delete { before: read, .. } => {
                    assert_eq!(
                        before,
                        Some(read.as_slice()),
                        "a delete knows what was there"
                    );
                    entries.remove(&change.key);
                }
            }
        }
        world.entries = entries.into_iter().collect();
    }

    /// Whether two live pods have one address: no cluster has that, and it proves nothing.
    fn is_impossible(world: &World) -> bool {
        let unlisted = world.again.iter().flatten().flatten();
        let pods = world.pods.iter().chain(unlisted);
        let live = pods.filter(|pod| pod.ready && !pod.terminating && pod.phase == Phase::Running);
        let mut names = BTreeMap::new();
        let mut addresses = live.flat_map(|pod| pod.ips.iter().map(move |ip| (*ip, &pod.name)));
        addresses.any(|(ip, name)| *names.entry(ip).or_insert(name) != name)
    }

    /// The backends that have a server whose pod is Ready at that very URL, as the pods themselves say.
    fn live_backends(world: &World) -> BTreeSet<String> {
        let unlisted = world
            .again
            .iter()
            .filter(|_| world.selected)
            .flatten()
            .flatten();
        let pods = world.pods.iter().chain(unlisted);
        let live = pods.filter(|pod| pod.ready && !pod.terminating && pod.phase == Phase::Running);
        let urls = live.flat_map(|pod| {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let port = pod.ports[0].number;
            pod.ips.iter().map(move |ip| {
                (
                    format!(r#""Pod":"{name}""#),
                    format!(r#""http://{ip}:{port}""#),
                )
            })
        });
        let urls = urls.collect::<Vec<_>>();
        let is_live = |value: &str| {
            urls.iter()
                .any(|(pod, url)| value.contains(pod) && value.contains(url))
        };
        let live = world.entries.iter().filter(|(_, value)| is_live(value));
        let backends = live.filter_map(|(key, _)| key.split('/').nth(3));
        backends.map(str::to_owned).collect()
    }

    fn is_ours(world: &World, value: &str) -> bool {
        let rules = &world.rules;
        let owner = format!(r#""Owner":"{}""#, rules.owner);
        let scope = format!(r#""Scope":"{}""#, rules.scope);
        let listed = world.coverage == Coverage::All || value.contains(r#""Pod":"shop/"#);
        value.contains(&owner) && value.contains(&scope) && listed
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(4_000) })]

        #[test]
        fn applying_a_plan_is_enough_and_touches_nothing_foreign(mut world in any_world()) {
            if is_impossible(&world) { return Ok(()) }
            let Ok(plan) = world.try_plan() else { return Ok(()) };
            let before = world.entries.clone();
            apply(&mut world, &plan);
            let after = world.entries.iter().cloned().collect::<BTreeMap<_, _>>();
            // Nothing foreign changes, unless it was adopted.
            let adopts = world.rules.adopt.unmarked || world.rules.adopt.scope;
            for (key, value) in &before {
                if !is_ours(&world, value) && !adopts {
                    prop_assert_eq!(after.get(key), Some(value));
                }
            }
            // Only server keys are written, and definitions when told to.
            for change in &plan.changes {
                let rest = change.key.strip_prefix("/vulcand/backends/").expect("the prefix");
                let segments = rest.split('/').collect::<Vec<_>>();
                match segments.as_slice() {
                    [_, "servers", id] => prop_assert!(!id.is_empty()),
                    [_, "backend"] => prop_assert!(world.rules.create_backends),
                    _ => prop_assert!(false, "a strange key {}", change.key),
                }
            }
            // Within a backend no put comes after a delete.
            for group in plan.changes.chunk_by(|a, b| a.backend == b.backend) {
                let deletes = group.iter().map(|change| matches!(change.action, Action::Delete { .. }));
                prop_assert!(deletes.is_sorted());
            }
            // What is held stays as it is.
            for held in &plan.held {
                prop_assert_eq!(after.get(&held.entry.key), before.iter().find(|(k, _)| *k == held.entry.key).map(|(_, v)| v));
            }
            // A lifted hold is for one run.
            world.rules.allow_deletes = None;
            // A backend may be refused for bleeding with one that this very plan empties.
            let bleeds = plan.undefined.iter().any(|frozen| matches!(frozen.why, Freeze::Bleeds(_)));
            if let Ok(again) = world.try_plan()
                && !bleeds
            {
                prop_assert_eq!(again.changes, vec![], "the second plan is empty");
            }
        }

        #[test]
        fn a_backend_with_a_live_server_keeps_one(mut world in any_world()) {
            if is_impossible(&world) { return Ok(()) }
            // `--allow-deletes` is there to release what this demands.
            world.rules.allow_deletes = None;
            let Ok(plan) = world.try_plan() else { return Ok(()) };
            let before = live_backends(&world);
            apply(&mut world, &plan);
            let after = live_backends(&world);
            for backend in before {
                prop_assert!(after.contains(&backend), "{backend} has no live server any more");
            }
        }

        #[test]
        fn whoever_is_live_and_wanted_is_served(mut world in any_world()) {
            let Ok(plan) = world.try_plan() else { return Ok(()) };
            apply(&mut world, &plan);
            let after = world.entries.iter().cloned().collect::<BTreeMap<_, _>>();
            for pod in &world.pods {
                for want in world.mapping.map(pod.clone()).wants {
                    let key = format!("/vulcand/backends/{}/servers/{}", want.backend, want.server);
                    let there = after.get(&key).is_some_and(|value| value.contains(&format!("{}\"", want.url)));
                    let backend = |frozen: &crate::reconcile::plan::Frozen| frozen.backend == *want.backend;
                    let excused = plan.conflicts.iter().any(|conflict| conflict.key == key)
                        || plan.duplicates.iter().any(|duplicate| duplicate.key == key)
                        || plan.held.iter().any(|held| held.entry.key == key)
                        || plan.kept.iter().flat_map(|kept| &kept.servers).any(|entry| entry.key == key)
                        || plan.unshared.iter().any(backend)
                        || plan.undefined.iter().any(backend);
                    prop_assert!(there || excused, "{key} is not served");
                }
            }
        }
    }
}
