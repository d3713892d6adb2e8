//! The model's own truth: pods, jobs, and what every entry of the store is; and the steps that change it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use proptest::prelude::*;

pub const NAMESPACES: [&str; 2] = ["shop", "work"];
const APPS: [&str; 3] = ["web", "web-2", "api"];
/// Of each app there is a backend with its bare name, and one per namespace.
pub const BACKENDS: [&str; 7] = [
    "web",
    "web-2",
    "api",
    "shop.web.svc",
    "shop.api.svc",
    "work.web.svc",
    "work.web-2.svc",
];
/// Last bytes of addresses; some begin others.
const ADDRESSES: [u8; 5] = [1, 2, 11, 12, 21];
/// The address of the one node.
const NODE: u8 = 100;
pub const DEFINITION: &str = r#"{"Type":"http"}"#;

/// A proxy's layout, as the model writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Vulcand,
    Traefik,
}

impl Proxy {
    /// What all keys of its begin with, under the prefix that stands for the case.
    pub fn server_key(self, prefix: &str, backend: &str, id: &str) -> String {
        match self {
            Self::Vulcand => format!("{prefix}/backends/{backend}/servers/{id}"),
            Self::Traefik => {
                format!("{prefix}/http/services/{backend}/loadBalancer/servers/{id}/url")
            }
        }
    }

    pub fn definition_key(self, prefix: &str, backend: &str) -> String {
        match self {
            Self::Vulcand => format!("{prefix}/backends/{backend}/backend"),
            Self::Traefik => format!("{prefix}/http/routers/r-{backend}/service"),
        }
    }

    /// The backend whose server stands at this key.
    pub fn backend_of(self, prefix: &str, key: &str) -> Option<String> {
        let parts = key.strip_prefix(prefix)?.split('/').collect::<Vec<_>>();
        match (self, parts.as_slice()) {
            (Self::Vulcand, ["", "backends", backend, "servers", _])
            | (
                Self::Traefik,
                [
                    "",
                    "http",
                    "services",
                    backend,
                    "loadBalancer",
                    "servers",
                    _,
                    "url",
                ],
            ) => Some((*backend).to_owned()),
            _ => None,
        }
    }
}

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    pub https: bool,
    pub ip: u8,
    pub port: u16,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://10.0.0.{}:{}", self.ip, self.port)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Running,
    Pending,
    Succeeded,
    Failed,
}

/// A pod as it really is.
#[expect(
    clippy::struct_excessive_bools,
    reason = "what may be true of a pod, each by itself"
)]
#[derive(Clone, PartialEq, Eq)]
pub struct Pod {
    pub cluster: usize,
    pub namespace: &'static str,
    pub name: String,
    pub app: Option<&'static str>,
    pub tier: &'static str,
    /// The annotation that names backends, each with a port or without.
    pub backends: Option<&'static str>,
    pub ignored: bool,
    pub https: bool,
    pub port: u16,
    pub phase: Phase,
    pub ready: bool,
    pub terminating: bool,
    pub ip: Option<u8>,
    pub host: bool,
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            namespace,
            name,
            app,
            tier,
            backends,
            ignored,
            https,
            port,
            phase,
            ready,
            terminating,
            ip,
            host,
        } = self;
        write!(
            f,
            "c{cluster} {namespace}/{name} {phase:?} ready={ready} terminating={terminating} \
             ip={ip:?} host={host} port={port} https={https} app={app:?} tier={tier} \
             backends={backends:?} ignored={ignored}"
        )
    }
}

impl Pod {
    pub fn completed(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether it may get traffic: K1.
    pub fn live(&self) -> bool {
        !self.terminating && !self.completed() && self.ip.is_some() && self.ready
    }

    /// The backends it names, and the port in each.
    fn names(&self) -> Vec<(&str, u16)> {
        if self.ignored {
            return Vec::new();
        }
        match (self.backends, self.app) {
            (Some(text), _) => text
                .split(',')
                .map(|item| match item.split_once(':') {
                    Some((name, port)) => (name, port.parse().expect("a number")),
                    None => (item, self.port),
                })
                .collect(),
            (None, Some(app)) => vec![(app, self.port)],
            (None, None) => Vec::new(),
        }
    }
}

/// One configured job: who runs it and from where it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    pub owner: &'static str,
    pub cluster: usize,
    /// `None` is all.
    pub namespaces: Option<&'static [&'static str]>,
    pub tier: Option<&'static str>,
    /// Server ids with their port.
    pub with_port: bool,
}

const fn job(owner: &'static str, cluster: usize, tier: Option<&'static str>) -> Job {
    Job {
        owner,
        cluster,
        namespaces: Some(&["shop"]),
        tier,
        with_port: false,
    }
}

pub const JOBS: [Job; 7] = [
    job("prod", 1, None),
    job("prod", 1, Some("a")),
    job("prod", 2, None),
    job("blue", 1, None),
    Job {
        namespaces: None,
        ..job("prod", 1, None)
    },
    Job {
        namespaces: Some(&["shop", "work"]),
        ..job("prod", 1, None)
    },
    Job {
        with_port: true,
        ..job("prod", 1, None)
    },
];

impl Job {
    pub fn cluster_name(&self) -> String {
        format!("c{}", self.cluster)
    }

    /// Its scope as entries carry it.
    pub fn scope(&self, proxy: Proxy) -> String {
        match (proxy, self.tier) {
            (Proxy::Vulcand, Some(tier)) => format!("{} tier={tier}", self.cluster_name()),
            _ => self.cluster_name(),
        }
    }

    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces
            .is_none_or(|names| names.contains(&namespace))
    }

    pub fn mixes(&self) -> bool {
        self.namespaces.is_none_or(|names| names.len() > 1)
    }

    /// The namespaces of its lists: one per name, or one for all.
    pub fn lists(&self) -> Vec<Option<&'static str>> {
        match self.namespaces {
            Some(names) => names.iter().copied().map(Some).collect(),
            None => vec![None],
        }
    }
}

/// Whose an entry is, as its writer left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub owner: String,
    pub scope: String,
    pub namespace: String,
    /// vulcand only.
    pub pod: Option<String>,
}

/// One key of the store: its bytes, and what the model knows of it because it saw it written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub value: String,
    pub mark: Option<Mark>,
    pub url: Option<Url>,
}

pub type State = BTreeMap<String, Record>;

/// A server that a pod wants to be, as it must be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub backend: String,
    pub key: String,
    pub record: Record,
}

/// What these pods want of a job.
pub fn wants<'p>(
    pods: impl IntoIterator<Item = &'p Pod>,
    job: &Job,
    proxy: Proxy,
    prefix: &str,
) -> Vec<Want> {
    let mut wants = Vec::new();
    for pod in pods.into_iter().filter(|pod| pod.live()) {
        for (name, port) in pod.names() {
            // A tenant must not reach the node's own services.
            let Some(ip) = pod.ip.filter(|_| !pod.host || port == pod.port) else {
                continue;
            };
            let url = Url {
                https: pod.https,
                ip,
                port,
            };
            let backend = if job.mixes() {
                format!("{}.{name}.svc", pod.namespace)
            } else {
                name.to_owned()
            };
            let server = if job.with_port {
                format!("10.0.0.{ip}:{port}")
            } else {
                format!("10.0.0.{ip}")
            };
            let scope = job.scope(proxy);
            let (id, value, of) = match proxy {
                Proxy::Vulcand => (
                    server,
                    format!(
                        r#"{{"URL":"{url}","Owner":"{}","Scope":"{scope}","Pod":"{}/{}"}}"#,
                        job.owner, pod.namespace, pod.name
                    ),
                    Some(pod.name.clone()),
                ),
                Proxy::Traefik => (
                    format!("{}.{scope}.{}.{server}", job.owner, pod.namespace),
                    url.to_string(),
                    None,
                ),
            };
            wants.push(Want {
                key: proxy.server_key(prefix, &backend, &id),
                backend,
                record: Record {
                    value,
                    mark: Some(Mark {
                        owner: job.owner.to_owned(),
                        scope,
                        namespace: pod.namespace.to_owned(),
                        pod: of,
                    }),
                    url: Some(url),
                },
            });
        }
    }
    wants
}

/// What befalls one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Come { app: u8, ip: u8, host: bool },
    Gone,
    Ready(bool),
    Move(u8),
    App(Option<u8>),
    Tier(bool),
    Backends(Option<&'static str>),
    Port(bool),
    Https(bool),
    Ignore(bool),
    Terminate,
    Complete(bool),
    Restart,
}

/// What somebody does by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    /// An unmarked server, at the key a pod of this address would want or at one of its own.
    Add {
        backend: u8,
        ip: u8,
        own_id: bool,
        respelled: bool,
    },
    Unmark(u8),
    Rubbish(u8),
    BreakUrl(u8),
    Respell(u8),
    Point(u8, u8),
    Remove(u8),
    Define(u8),
    Undefine(u8),
    BreakDefinition(u8),
    Stray(u8),
}

/// What a run is told beside its job.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags are independent of each other"
)]
pub struct Flags {
    pub share: bool,
    pub create: bool,
    pub strict: bool,
    pub allow_empty: bool,
    pub allow: Option<usize>,
    pub upsert_only: bool,
    pub adopt_unmarked: bool,
    pub adopt_scope: bool,
}

impl Flags {
    /// As the program is told.
    pub fn arguments(&self) -> String {
        let mut arguments = String::new();
        for (set, text) in [
            (self.share, " --share-backends"),
            (self.create, " --create-backends"),
            (self.strict, " --strict-ready"),
            (self.allow_empty, " --allow-empty"),
            (self.upsert_only, " --policy upsert-only"),
            (self.adopt_unmarked, " --adopt unmarked"),
            (self.adopt_scope, " --adopt scope"),
        ] {
            if set {
                arguments.push_str(text);
            }
        }
        if let Some(allow) = self.allow {
            write!(arguments, " --allow-deletes {allow}").expect("a text takes all");
        }
        arguments
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.arguments().trim())
    }
}

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The list of this namespace comes back empty with 200, whatever is there.
    Empty(u8),
    /// The second look, without selectors, is refused.
    SecondRefused,
    /// A list fails: how is for the driver to choose.
    List(u8),
    /// The store fails: how is for the driver to choose.
    Store(u8),
    /// The run ends after so many transactions (or bytes), without a word.
    Kill(u8),
    /// Somebody writes between the listing and the writing.
    Hand(Hand),
    /// A pod comes while the run has listed, and another run of the same job registers it.
    Meanwhile {
        pod: u8,
        app: u8,
        ip: u8,
    },
    /// Another job runs at the same time, from the same state of the store.
    Race(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Pod(u8, Fate),
    /// A namespace loses all its pods.
    Empty(u8),
    Hand(Hand),
    Run {
        job: u8,
        flags: Flags,
        fault: Fault,
        chunk: u8,
    },
}

/// One story.
#[derive(Clone)]
pub struct Case {
    pub proxy: Proxy,
    /// Whether lists show completed pods (those of a file do, the API's do not).
    pub completed_listed: bool,
    /// Which backends are defined at first, by bit.
    pub defined: u8,
    pub steps: Vec<Step>,
    /// The job that is to converge when all is over.
    pub last: u8,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            proxy,
            completed_listed,
            defined,
            steps,
            last,
        } = self;
        writeln!(
            f,
            "{proxy:?}, completed pods listed: {completed_listed}, defined: {defined:#b}, last job {last}"
        )?;
        for (number, step) in steps.iter().enumerate() {
            writeln!(f, "  {number}. {step:?}")?;
        }
        for (number, job) in JOBS.iter().enumerate() {
            writeln!(f, "  job {number}: {job:?}")?;
        }
        Ok(())
    }
}

/// The world of one case.
pub struct World {
    pub proxy: Proxy,
    pub prefix: String,
    pub pods: Vec<Pod>,
    pub state: State,
}

impl World {
    pub fn new(case: &Case, prefix: &str) -> Self {
        let mut world = Self {
            proxy: case.proxy,
            prefix: prefix.to_owned(),
            pods: Vec::new(),
            state: State::new(),
        };
        for index in 0..7 {
            if case.defined & 1 << index != 0 {
                world.hand(Hand::Define(index));
            }
        }
        world
    }

    pub fn pods_of(&self, cluster: usize) -> Vec<Pod> {
        let own = self.pods.iter().filter(|pod| pod.cluster == cluster);
        own.cloned().collect()
    }

    /// The keys and values that the store must have.
    pub fn raw(&self) -> BTreeMap<String, String> {
        let pairs = self.state.iter();
        pairs
            .map(|(key, record)| (key.clone(), record.value.clone()))
            .collect()
    }

    pub fn pod(&mut self, slot: u8, fate: Fate) {
        // Most pods are the first cluster's, in the first namespace.
        let cluster = if slot >= 10 { 2 } else { 1 };
        let namespace = NAMESPACES[usize::from((6..10).contains(&slot))];
        let name = format!("p{}", slot % 10);
        let found = self
            .pods
            .iter()
            .position(|pod| (pod.cluster, pod.namespace, &pod.name) == (cluster, namespace, &name));
        if let Fate::Come { app, ip, host } = fate {
            if let Some(old) = found {
                self.pods.remove(old);
            }
            let ip = if host {
                NODE
            } else {
                ADDRESSES[usize::from(ip) % 5]
            };
            if !host {
                self.vacate(cluster, ip);
            }
            self.pods.push(Pod {
                cluster,
                namespace,
                name,
                app: Some(APPS[usize::from(app) % 3]),
                tier: "a",
                backends: None,
                ignored: false,
                https: false,
                port: 8080,
                phase: Phase::Running,
                ready: true,
                terminating: false,
                ip: Some(ip),
                host,
            });
            return;
        }
        let Some(found) = found else { return };
        match fate {
            Fate::Gone => {
                self.pods.remove(found);
                return;
            }
            Fate::Move(ip) if !self.pods[found].host && !self.pods[found].completed() => {
                let mut pod = self.pods.remove(found);
                let ip = ADDRESSES[usize::from(ip) % 5];
                self.vacate(cluster, ip);
                pod.ip = Some(ip);
                self.pods.push(pod);
                return;
            }
            _ => {}
        }
        let pod = &mut self.pods[found];
        match fate {
            Fate::Ready(ready) => pod.ready = ready,
            Fate::App(app) => pod.app = app.map(|app| APPS[usize::from(app) % 3]),
            Fate::Tier(a) => pod.tier = if a { "a" } else { "b" },
            Fate::Backends(text) => pod.backends = text,
            Fate::Port(other) => pod.port = if other { 9090 } else { 8080 },
            Fate::Https(https) => pod.https = https,
            Fate::Ignore(ignored) => pod.ignored = ignored,
            Fate::Terminate => pod.terminating = true,
            Fate::Complete(failed) => {
                pod.phase = if failed {
                    Phase::Failed
                } else {
                    Phase::Succeeded
                };
                pod.ready = false;
            }
            Fate::Restart if !pod.completed() => {
                pod.phase = Phase::Pending;
                pod.ready = false;
                pod.ip = None;
            }
            _ => {}
        }
    }

    /// An address is one pod's at a time; completed ones no longer count.
    fn vacate(&mut self, cluster: usize, ip: u8) {
        self.pods
            .retain(|pod| pod.cluster != cluster || pod.ip != Some(ip) || pod.completed());
    }

    pub fn empty(&mut self, namespace: u8) {
        let namespace = NAMESPACES[usize::from(namespace) % 2];
        self.pods
            .retain(|pod| pod.cluster != 1 || pod.namespace != namespace);
    }

    /// Does something by hand. Returns the keys that changed, with their new values.
    pub fn hand(&mut self, hand: Hand) -> Vec<(String, Option<String>)> {
        let before = self.raw();
        self.edit(hand);
        let after = self.raw();
        changes(&before, &after)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing a hand does")]
    fn edit(&mut self, hand: Hand) {
        let proxy = self.proxy;
        let servers = self
            .state
            .keys()
            .filter(|key| proxy.backend_of(&self.prefix, key).is_some());
        let servers = servers.cloned().collect::<Vec<_>>();
        let nth = |n: u8| {
            let index = usize::from(n).checked_rem(servers.len())?;
            Some(servers[index].clone())
        };
        let backend = |n: u8| BACKENDS[usize::from(n) % BACKENDS.len()];
        let text = |record: &Record, url: &str| match (proxy, &record.mark) {
            (Proxy::Vulcand, Some(mark)) => format!(
                r#"{{"URL":"{url}","Owner":"{}","Scope":"{}","Pod":"{}/{}"}}"#,
                mark.owner,
                mark.scope,
                mark.namespace,
                mark.pod.as_deref().unwrap_or_default()
            ),
            (Proxy::Vulcand, None) => format!(r#"{{"URL":"{url}"}}"#),
            (Proxy::Traefik, _) => url.to_owned(),
        };
        match hand {
            Hand::Add {
                backend: n,
                ip,
                own_id,
                respelled,
            } => {
                let ip = ADDRESSES[usize::from(ip) % 5];
                let url = Url {
                    https: false,
                    ip,
                    port: 8080,
                };
                let id = if own_id {
                    "by-hand".to_owned()
                } else {
                    format!("10.0.0.{ip}")
                };
                let key = proxy.server_key(&self.prefix, backend(n), &id);
                let mut record = Record {
                    value: String::new(),
                    mark: None,
                    url: Some(url),
                };
                let spelled = if respelled {
                    respell(url)
                } else {
                    url.to_string()
                };
                record.value = text(&record, &spelled);
                self.state.insert(key, record);
            }
            Hand::Unmark(n) => {
                let Some(key) = nth(n) else { return };
                match proxy {
                    Proxy::Vulcand => {
                        let record = self.state.get_mut(&key).expect("it is there");
                        let Some(url) = record.url else { return };
                        record.mark = None;
                        record.value = text(record, &url.to_string());
                    }
                    Proxy::Traefik => {
                        self.state.remove(&key);
                    }
                }
            }
            Hand::Rubbish(n) => {
                let Some(key) = nth(n) else { return };
                let record = self.state.get_mut(&key).expect("it is there");
                "rubbish".clone_into(&mut record.value);
                record.url = None;
                if proxy == Proxy::Vulcand {
                    record.mark = None;
                }
            }
            Hand::BreakUrl(n) => {
                let Some(key) = nth(n) else { return };
                let record = self.state.get_mut(&key).expect("it is there");
                record.url = None;
                record.value = text(record, "localhost:80");
            }
            Hand::Respell(n) => {
                let Some(key) = nth(n) else { return };
                let record = self.state.get_mut(&key).expect("it is there");
                let Some(url) = record.url else { return };
                record.value = text(record, &respell(url));
            }
            Hand::Point(n, ip) => {
                let Some(key) = nth(n) else { return };
                let record = self.state.get_mut(&key).expect("it is there");
                let url = Url {
                    https: false,
                    ip: ADDRESSES[usize::from(ip) % 5],
                    port: 8080,
                };
                record.url = Some(url);
                record.value = text(record, &url.to_string());
            }
            Hand::Remove(n) => {
                if let Some(key) = nth(n) {
                    self.state.remove(&key);
                }
            }
            Hand::Define(n) | Hand::BreakDefinition(n) => {
                let value = match (proxy, hand) {
                    (Proxy::Vulcand, Hand::Define(_)) => DEFINITION,
                    (Proxy::Vulcand, _) => r#"{"Type":"tcp"}"#,
                    (Proxy::Traefik, Hand::Define(_)) => backend(n),
                    // Another provider's service.
                    (Proxy::Traefik, _) => "other@file",
                };
                let key = proxy.definition_key(&self.prefix, backend(n));
                let record = Record {
                    value: value.to_owned(),
                    mark: None,
                    url: None,
                };
                self.state.insert(key, record);
            }
            Hand::Undefine(n) => {
                let key = proxy.definition_key(&self.prefix, backend(n));
                self.state.remove(&key);
            }
            Hand::Stray(n) => {
                let backend = backend(n);
                let key = match proxy {
                    Proxy::Vulcand => format!("{}/backends/{backend}/servers/a/b", self.prefix),
                    Proxy::Traefik => format!("{}/http/middlewares/{backend}/x", self.prefix),
                };
                let record = Record {
                    value: "x".to_owned(),
                    mark: None,
                    url: None,
                };
                self.state.insert(key, record);
            }
        }
    }

    /// Everything, for a failure's message.
    pub fn shown(&self) -> String {
        let mut text = String::from("pods:\n");
        for pod in &self.pods {
            writeln!(text, "  {pod:?}").expect("a text takes all");
        }
        text + &shown(&self.state)
    }
}

pub fn shown(state: &State) -> String {
    let lines = state
        .iter()
        .map(|(key, record)| format!("  {key} = {}\n", record.value));
    format!("store:\n{}", lines.collect::<String>())
}

/// Another spelling of the same URL.
fn respell(url: Url) -> String {
    let url = url.to_string();
    let (scheme, rest) = url.split_once(':').expect("a scheme");
    format!("{}:{rest}/", scheme.to_uppercase())
}

/// The keys that differ, with their new values.
pub fn changes(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<(String, Option<String>)> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), None));
    let put = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(*value));
    let put = put.map(|(key, value)| (key.clone(), Some(value.clone())));
    gone.chain(put).collect()
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => (0..4_u8, 0..5_u8, prop::bool::weighted(0.08))
            .prop_map(|(app, ip, host)| Fate::Come { app: app.saturating_sub(1), ip, host }),
        3 => Just(Fate::Gone),
        3 => prop::bool::weighted(0.3).prop_map(Fate::Ready),
        2 => (0..5_u8).prop_map(Fate::Move),
        2 => prop::option::of(0..3_u8).prop_map(Fate::App),
        4 => prop::bool::weighted(0.2).prop_map(Fate::Tier),
        1 => prop::option::weighted(0.8, prop::sample::select(vec!["web", "web,api", "api:9090,web", "web:9090"]))
            .prop_map(Fate::Backends),
        2 => prop::bool::weighted(0.7).prop_map(Fate::Port),
        1 => any::<bool>().prop_map(Fate::Https),
        1 => prop::bool::weighted(0.7).prop_map(Fate::Ignore),
        2 => Just(Fate::Terminate),
        1 => any::<bool>().prop_map(Fate::Complete),
        1 => Just(Fate::Restart),
    ]
}

fn hand() -> impl Strategy<Value = Hand> {
    let backend = || prop_oneof![3 => Just(0_u8), 2 => 0..7_u8];
    let server = 0..12_u8;
    prop_oneof![
        3 => (backend(), 0..5_u8, any::<bool>(), any::<bool>()).prop_map(
            |(backend, ip, own_id, respelled)| Hand::Add { backend, ip, own_id, respelled }),
        1 => server.clone().prop_map(Hand::Unmark),
        1 => server.clone().prop_map(Hand::Rubbish),
        1 => server.clone().prop_map(Hand::BreakUrl),
        1 => server.clone().prop_map(Hand::Respell),
        1 => (server.clone(), 0..5_u8).prop_map(|(n, ip)| Hand::Point(n, ip)),
        1 => server.prop_map(Hand::Remove),
        2 => backend().prop_map(Hand::Define),
        2 => backend().prop_map(Hand::Undefine),
        1 => backend().prop_map(Hand::BreakDefinition),
        1 => backend().prop_map(Hand::Stray),
    ]
}

fn flags() -> impl Strategy<Value = Flags> {
    let rare = || prop::bool::weighted(0.08);
    let all = (
        rare(),
        rare(),
        rare(),
        rare(),
        prop::option::weighted(0.1, 0..5_usize),
        rare(),
        rare(),
        rare(),
    );
    all.prop_map(
        |(share, create, strict, allow_empty, allow, upsert_only, adopt_unmarked, adopt_scope)| {
            Flags {
                share,
                create,
                strict,
                allow_empty,
                allow,
                upsert_only,
                adopt_unmarked,
                adopt_scope,
            }
        },
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        10 => Just(Fault::None),
        1 => (0..3_u8).prop_map(Fault::Empty),
        4 => Just(Fault::SecondRefused),
        1 => any::<u8>().prop_map(Fault::List),
        1 => any::<u8>().prop_map(Fault::Store),
        2 => any::<u8>().prop_map(Fault::Kill),
        1 => hand().prop_map(Fault::Hand),
        2 => (0..6_u8, 0..3_u8, 0..5_u8).prop_map(|(pod, app, ip)| Fault::Meanwhile { pod, app, ip }),
        1 => any_job().prop_map(Fault::Race),
    ]
}

fn any_job() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0_u8), 2 => Just(1_u8), 3 => 2..7_u8]
}

fn step() -> impl Strategy<Value = Step> {
    let run = (any_job(), flags(), fault(), 1..4_u8);
    let run = run.prop_map(|(job, flags, fault, chunk)| Step::Run {
        job,
        flags,
        fault,
        chunk,
    });
    let slot = prop_oneof![4 => 0..6_u8, 1 => 6..13_u8];
    prop_oneof![
        6 => (slot, fate()).prop_map(|(slot, fate)| Step::Pod(slot, fate)),
        1 => (0..2_u8).prop_map(Step::Empty).boxed(),
        2 => hand().prop_map(Step::Hand),
        4 => run,
    ]
}

/// What chance alone hardly brings about: most of a backend leaves the selection, and the look without
/// it is refused.
fn refused_look() -> Vec<Step> {
    let come = |slot, app, ip| {
        let host = false;
        Step::Pod(slot, Fate::Come { app, ip, host })
    };
    let run = |fault| Step::Run {
        job: 1,
        flags: Flags::default(),
        fault,
        chunk: 3,
    };
    vec![
        come(0, 0, 0),
        come(1, 0, 1),
        come(2, 2, 2),
        run(Fault::None),
        Step::Pod(0, Fate::Tier(false)),
        Step::Pod(1, Fate::Tier(false)),
        run(Fault::SecondRefused),
    ]
}

/// A story: some pods come, a job runs, and then anything goes.
pub fn case(length: usize) -> impl Strategy<Value = Case> {
    let comes = (0..9_u8, 0..4_u8, 0..5_u8).prop_map(|(slot, app, ip)| {
        let app = app.saturating_sub(1);
        Step::Pod(
            slot,
            Fate::Come {
                app,
                ip,
                host: false,
            },
        )
    });
    let first = any_job().prop_map(|job| Step::Run {
        job,
        flags: Flags::default(),
        fault: Fault::None,
        chunk: 3,
    });
    let proxy = prop_oneof![3 => Just(Proxy::Vulcand), 2 => Just(Proxy::Traefik)];
    (
        proxy,
        any::<bool>(),
        prop_oneof![2 => Just(0b111_1111_u8), 1 => 0..128_u8],
        prop_oneof![
            19 => prop::collection::vec(comes, 0..7),
            1 => Just(refused_look()),
        ],
        first,
        prop::collection::vec(step(), 0..length),
        any_job(),
    )
        .prop_map(
            |(proxy, completed_listed, defined, pods, first, steps, last)| Case {
                proxy,
                completed_listed,
                defined,
                steps: pods.into_iter().chain([first]).chain(steps).collect(),
                last,
            },
        )
}
