//! The plan, row by row: a world of pods and entries in, changes with their proofs out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::layout::{self, Observed};
use crate::model::{Cluster, ContainerPort, KeyValue, Phase, Scope, Snapshot, Texts};
use crate::reconcile::evidence::{Coverage, List, Lists};
use crate::reconcile::map::{self, Mapping, PortRef};
use crate::reconcile::plan::{
    Action, Change, DeleteLimit, Freeze, Losing, NoBackends, Plan, Reason, Rules,
};
use crate::reconcile::planner::plan;
use crate::reconcile::template::Template;
use crate::report::reasons::{held, why};

mod batches;
mod changes;
mod counts;
mod evidence;
mod findings;
mod lists;
mod losses;
mod ownership;
mod properties;
mod traefik;

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
        mapping: map::tests::mapping(),
        rules: Rules::new("prod", Scope::new(Cluster::parse("c1"), None, None)),
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
        ips: vec![format!("10.0.0.{n}").parse().expect("an address")],
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
    pod.ips = vec![ip.parse().expect("an address")];
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

    fn observed(&self) -> Observed {
        let mut entries = self.entries.clone();
        entries.sort();
        let entries = entries
            .into_iter()
            .zip(1..)
            .map(|((key, value), revision)| KeyValue {
                key: key.into_bytes(),
                value: value.into_bytes(),
                revision,
            });
        let entries = entries.collect::<Vec<_>>();
        let layout = &*self.mapping.layout;
        let ranges = layout.ranges().into_iter().map(|prefix| {
            let range = entries.iter();
            let range = range.filter(|entry| entry.key.starts_with(prefix.as_bytes()));
            Ok(range.cloned().collect())
        });
        let snapshot = Snapshot {
            revision: Some(9),
            ranges: ranges.collect(),
        };
        layout.observe(snapshot).expect("one spelling")
    }

    fn try_plan(&self) -> Result<Plan, NoBackends> {
        let observed = self.observed();
        let layout = &*self.mapping.layout;
        let map = |pods: &[Pod]| pods.iter().map(|pod| self.mapping.map(pod)).collect();
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
    fn lines(&self) -> String {
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
        pretty_equal(&self.lines(), &wanted);
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
