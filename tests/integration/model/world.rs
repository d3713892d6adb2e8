//! The world of the model: pods, a store, the events that change them, and the jobs that run.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use vulcanized::internals::model::{ContainerPort, Phase, Pod};

pub(super) const APPS: [&str; 3] = ["web", "api", "shop"];
const PREFIX: &str = "/vulcand/backends/";

/// A pod of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is independent of the others"
)]
pub(super) struct ModelPod {
    pub(super) name: String,
    pub(super) app: Option<usize>,
    pub(super) ip: u8,
    /// The port that the pod listens on.
    pub(super) port: u16,
    pub(super) ready: bool,
    pub(super) terminating: bool,
    pub(super) completed: bool,
    /// The API server lists its address in a form that does not parse.
    pub(super) unreadable: bool,
    /// A second container declares another port.
    pub(super) sidecar: bool,
}

impl ModelPod {
    pub(super) fn serves(&self) -> bool {
        self.ready && !self.terminating && !self.completed
    }

    pub(super) fn url(&self) -> String {
        format!("http://10.0.0.{}:{}", self.ip, self.port)
    }

    pub(super) fn json(&self) -> Value {
        let ip = if self.unreadable {
            format!("10.0.0.0{}", self.ip)
        } else {
            format!("10.0.0.{}", self.ip)
        };
        let mut ports = vec![json!({ "containerPort": self.port })];
        if self.sidecar {
            ports.push(json!({ "containerPort": 15090 }));
        }
        let mut pod = json!({
            "kind": "Pod",
            "metadata": { "namespace": "default", "name": self.name, "labels": {} },
            "spec": { "containers": [{ "ports": ports }] },
            "status": {
                "phase": if self.completed { "Failed" } else { "Running" },
                "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": if self.ready { "True" } else { "False" } }],
            },
        });
        if let Some(app) = self.app {
            pod["metadata"]["labels"]["app"] = APPS[app].into();
        }
        if self.terminating {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        pod
    }

    /// The pod as the API server lists it.
    pub(super) fn listed(&self) -> Pod<'static> {
        let port = |number| ContainerPort {
            name: None,
            number,
            tcp: true,
            sidecar: false,
        };
        let mut pod = Pod {
            namespace: "default".into(),
            name: self.name.clone().into(),
            phase: if self.completed {
                Phase::Failed
            } else {
                Phase::Running
            },
            ready: self.ready,
            terminating: self.terminating,
            unreadable_ip: self.unreadable,
            ports: vec![port(self.port)],
            ..Pod::default()
        };
        if !self.unreadable {
            pod.ips.push([10, 0, 0, self.ip].into());
        }
        if self.sidecar {
            pod.ports.push(port(15090));
        }
        if let Some(app) = self.app {
            pod.labels = [("app", APPS[app])].into_iter().collect();
        }
        pod
    }
}

/// A change to the world.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Created {
        app: usize,
        ip: u8,
    },
    /// A pod of the other cluster with the name, and perhaps the address, of one of this cluster.
    Twin {
        of: usize,
        ip: u8,
    },
    Gone(usize),
    Change(usize, Change),
    /// Half of the pods of an app lose their label, the others terminate.
    Split(usize),
    HandMade {
        app: usize,
        ip: u8,
    },
    OtherOwner {
        app: usize,
        ip: u8,
    },
    Edited {
        entry: usize,
        to: Edit,
    },
    Run(Job),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Ready(bool),
    Terminating,
    Completed,
    Relabelled(Option<usize>),
    Port(u16),
    Moved(u8),
    Unreadable(bool),
    Sidecar(bool),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Edit {
    HostName,
    Removed,
}

/// The pods that a run lists, and its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Right,
    WrongPort,
    WrongScheme,
    WrongLabel,
    PodIds,
    /// The other cluster's pods.
    WrongContext,
    /// Another namespace: no pods at all.
    NoPods,
    /// Only pods of one app are listed; whether the list without the selector is refused.
    Selected {
        refused: bool,
    },
    /// One pod, not a list.
    OnePod,
    Shared,
    Strict,
}

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let app = 0..APPS.len();
    let ip = 1..10_u8;
    let change = prop_oneof![
        any::<bool>().prop_map(Change::Ready),
        Just(Change::Terminating),
        Just(Change::Completed),
        prop::option::of(0..APPS.len()).prop_map(Change::Relabelled),
        prop::sample::select(vec![8080, 9090]).prop_map(Change::Port),
        (1..10_u8).prop_map(Change::Moved),
        any::<bool>().prop_map(Change::Unreadable),
        any::<bool>().prop_map(Change::Sidecar),
    ];
    let edit = prop_oneof![Just(Edit::HostName), Just(Edit::Removed)];
    let job = prop_oneof![
        6 => Just(Job::Right),
        1 => Just(Job::WrongPort),
        1 => Just(Job::WrongScheme),
        1 => Just(Job::WrongLabel),
        1 => Just(Job::PodIds),
        1 => Just(Job::WrongContext),
        1 => Just(Job::NoPods),
        1 => any::<bool>().prop_map(|refused| Job::Selected { refused }),
        1 => Just(Job::OnePod),
        1 => Just(Job::Shared),
        1 => Just(Job::Strict),
    ];
    prop_oneof![
        5 => (app.clone(), ip.clone()).prop_map(|(app, ip)| Event::Created { app, ip }),
        1 => (0..8_usize, ip.clone()).prop_map(|(of, ip)| Event::Twin { of, ip }),
        2 => (0..8_usize).prop_map(Event::Gone),
        6 => (0..8_usize, change).prop_map(|(pod, change)| Event::Change(pod, change)),
        1 => app.clone().prop_map(Event::Split),
        1 => (app.clone(), ip.clone()).prop_map(|(app, ip)| Event::HandMade { app, ip }),
        1 => (app, ip).prop_map(|(app, ip)| Event::OtherOwner { app, ip }),
        1 => (0..8_usize, edit).prop_map(|(entry, to)| Event::Edited { entry, to }),
        7 => job.prop_map(Event::Run),
    ]
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) pods: Vec<ModelPod>,
    pub(super) twins: Vec<ModelPod>,
    pub(super) store: BTreeMap<String, String>,
    /// The number of pods created so far.
    created: usize,
}

impl World {
    pub(super) fn new() -> Self {
        let defined = APPS.iter().map(|app| {
            let key = format!("{PREFIX}{app}/backend");
            (key, r#"{"Type":"http"}"#.to_owned())
        });
        Self {
            pods: Vec::new(),
            twins: Vec::new(),
            store: defined.collect(),
            created: 0,
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match *event {
            Event::Created { app, ip } => {
                // Two running pods of a cluster never share an address.
                self.pods.retain(|pod| pod.ip != ip || pod.completed);
                self.created += 1;
                self.pods.push(ModelPod {
                    name: format!("{}-{}", APPS[app], self.created),
                    app: Some(app),
                    ip,
                    port: 8080,
                    ready: true,
                    terminating: false,
                    completed: false,
                    unreadable: false,
                    sidecar: false,
                });
            }
            Event::Twin { of, ip } => {
                if let Some(pod) = self.pods.get(of) {
                    let name = pod.name.clone();
                    self.twins.retain(|twin| twin.ip != ip && twin.name != name);
                    self.twins.push(ModelPod {
                        ip,
                        ready: true,
                        ..pod.clone()
                    });
                }
            }
            Event::Gone(pod) => {
                if pod < self.pods.len() {
                    self.pods.remove(pod);
                }
            }
            Event::Change(pod, change) => self.change(pod, change),
            Event::Split(app) => {
                let pods = self.pods.iter_mut().filter(|pod| pod.app == Some(app));
                for (index, pod) in pods.enumerate() {
                    if index % 2 == 0 {
                        pod.app = None;
                    } else {
                        pod.terminating = true;
                        pod.ready = false;
                    }
                }
            }
            Event::HandMade { app, ip } => {
                let key = format!("{PREFIX}{}/servers/hand-{ip}", APPS[app]);
                let value = format!(r#"{{"URL":"http://10.0.0.{ip}:8080"}}"#);
                self.store.insert(key, value);
            }
            Event::OtherOwner { app, ip } => {
                let key = format!("{PREFIX}{}/servers/blue-{ip}", APPS[app]);
                let url = format!("http://10.0.1.{ip}:8080");
                let value =
                    json!({ "URL": url, "Owner": "blue", "Scope": "a", "Pod": "default/blue" });
                self.store.insert(key, value.to_string());
            }
            Event::Edited { entry, to } => self.edit(entry, to),
            Event::Run(_) => {}
        }
    }

    fn change(&mut self, pod: usize, change: Change) {
        if let Change::Moved(ip) = change
            && self.pods.iter().any(|pod| pod.ip == ip && !pod.completed)
        {
            return;
        }
        let Some(pod) = self.pods.get_mut(pod) else {
            return;
        };
        match change {
            Change::Ready(ready) => pod.ready = ready,
            Change::Terminating => pod.terminating = true,
            Change::Completed => pod.completed = true,
            Change::Relabelled(app) => pod.app = app,
            Change::Port(port) => pod.port = port,
            Change::Moved(ip) => pod.ip = ip,
            Change::Unreadable(unreadable) => pod.unreadable = unreadable,
            Change::Sidecar(sidecar) => pod.sidecar = sidecar,
        }
    }

    fn edit(&mut self, entry: usize, to: Edit) {
        let mut servers = self.store.keys().filter(|key| key.contains("/servers/"));
        let Some(key) = servers.nth(entry).cloned() else {
            return;
        };
        match to {
            Edit::Removed => {
                self.store.remove(&key);
            }
            Edit::HostName => {
                let mut value: Value = serde_json::from_str(&self.store[&key]).expect("JSON");
                value["URL"] = "http://web-1.example:8080".into();
                self.store.insert(key, value.to_string());
            }
        }
    }

    /// The backends that have a server whose pod, by the name and the cluster in its mark, is Ready at exactly that
    /// URL.
    pub(super) fn live_backends(&self) -> BTreeSet<String> {
        let served = self.store.iter().filter(|(key, value)| {
            let Some((_, mark)) = mark_of(key, value) else {
                return false;
            };
            let pods = if mark.1.starts_with('b') {
                &self.twins
            } else {
                &self.pods
            };
            let mut pods = pods.iter();
            pods.any(|pod| {
                pod.serves() && format!("default/{}", pod.name) == mark.2 && pod.url() == mark.3
            })
        });
        served.map(|(key, _)| backend(key)).collect()
    }

    /// The pods that a run of this job lists.
    pub(super) fn listed(&self, job: Job) -> Vec<&ModelPod> {
        match job {
            Job::WrongContext => self.twins.iter().collect(),
            Job::NoPods => Vec::new(),
            Job::Selected { .. } => self.pods.iter().filter(|pod| pod.app == Some(0)).collect(),
            Job::OnePod => self.pods.iter().take(1).collect(),
            _ => self.pods.iter().collect(),
        }
    }
}

pub(super) fn backend(key: &str) -> String {
    let rest = key.strip_prefix(PREFIX).expect("the prefix");
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// The id of a marked server, and its owner, scope, pod and URL.
pub(super) fn mark_of(
    key: &str,
    value: &str,
) -> Option<(String, (String, String, String, String))> {
    let (_, id) = key.split_once("/servers/")?;
    let value = serde_json::from_str::<Value>(value).ok()?;
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let mark = (text("Owner")?, text("Scope")?, text("Pod")?, text("URL")?);
    Some((id.to_owned(), mark))
}
