//! The bodies of the fuzz targets, and the properties that they check. The program's tests call the same
//! functions with fewer inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use log::Level;
use vulcanized::internals::config::LogFormat;
use vulcanized::internals::kube;
use vulcanized::internals::layout::{self, Layout, Observed, Undefined};
use vulcanized::internals::logging;
use vulcanized::internals::model::{
    Author, Cluster, ContainerPort, Expect, Guard, Host, KeyValue, Op, Phase, Pod, Scheme, Scope,
    ServerUrl, Snapshot, Transaction,
};
use vulcanized::internals::net::deadline::Deadline;
use vulcanized::internals::reconcile::evidence::{Coverage, List, Lists};
use vulcanized::internals::reconcile::map::{IpFamily, Mapping, PortRef, SeenPod};
use vulcanized::internals::reconcile::plan::{Action, Adopt, Change, Plan, Rules, plan};
use vulcanized::internals::reconcile::template::Template;
use vulcanized::internals::report::etcdctl::{Access, Api};
use vulcanized::internals::report::metrics::{self, Run};
use vulcanized::internals::report::{self, Etcdctl, Style, notes};
use vulcanized::internals::store::{Applied, Store as _, file::File};
use vulcanized::internals::text;

/// A page of pods in JSON, and the same bytes as a `--pods` file.
pub fn pods_json(data: &[u8]) {
    if let Ok(pods) = kube::pods_from_json(data) {
        check_pods(&pods);
    }
    let file = Scratch::new("pods", data);
    if let Ok(pods) = kube::file::read(file.path(), &mut |pod| pod.into_owned()) {
        check_pods(&pods.pods);
    }
}

/// A page of pods in protobuf.
pub fn pods_protobuf(data: &[u8]) {
    if let Ok(pods) = kube::pods_from_protobuf(data.to_vec()) {
        check_pods(&pods);
    }
}

/// A kubeconfig.
pub fn kubeconfig(data: &[u8]) {
    let file = Scratch::new("kubeconfig", data);
    if let Err(error) = kube::check_kubeconfig(file.path().as_ref()) {
        check_log(&format!("{error:#}"));
    }
}

/// Alternating keys and values of a store, from any writer; the first byte sets options.
pub fn store(data: &[u8]) {
    let Some((options, data)) = data.split_first() else {
        return;
    };
    let mut fields = fields(data);
    let mut entries = BTreeMap::new();
    while let (Some(key), Some(value)) = (fields.next(), fields.next()) {
        entries.insert(key.to_vec(), value.to_vec());
    }
    for layout in layouts() {
        let mapping = mapping("{name}", "{ip}", &layout, *options);
        let seen = usual_pods().into_iter().map(|pod| mapping.map(&pod));
        check_run(&*layout, &entries, seen.collect(), *options);
    }
}

/// Two templates, then alternating keys and values of annotations and labels; the first byte sets options.
pub fn mapping_of_pods(data: &[u8]) {
    let Some((options, data)) = data.split_first() else {
        return;
    };
    let mut fields = fields(data).filter_map(|field| std::str::from_utf8(field).ok());
    let (Some(backend), Some(server)) = (fields.next(), fields.next()) else {
        return;
    };
    for text in [backend, server] {
        if let Err(error) = Template::parse(text) {
            check_plain(&text::escaped(&error), &[]);
            return;
        }
    }
    let mut pod = usual_pods().remove(0);
    pod.host_network = options & 0x80 != 0;
    while let (Some(key), Some(value)) = (fields.next(), fields.next()) {
        if options & 1 == 0 {
            pod.labels.insert(key.into(), value.into());
        }
        pod.annotations.insert(key.into(), value.into());
    }
    for layout in layouts() {
        let mapping = mapping(backend, server, &layout, *options);
        let seen = mapping.map(&pod);
        check_seen(&mapping, &pod, &seen);
    }
}

/// A store file, or a dump of etcd.
pub fn store_file(data: &[u8]) {
    let file = Scratch::new("store", data);
    let deadline = Deadline::start(Duration::from_mins(10), Duration::from_mins(10));
    let mut store = File::open(file.path().as_ref(), true, deadline).expect("its folder exists");
    let Ok(snapshot) = store.list(&[""]) else {
        return;
    };
    let all = range(&snapshot, 0);
    for layout in layouts() {
        let mapping = mapping("{name}", "{ip}", &layout, 0);
        let seen = usual_pods().into_iter().map(|pod| mapping.map(&pod));
        check_run(&*layout, &all, seen.collect(), 0);
    }
    let mut store = File::open(file.path().as_ref(), false, deadline).expect("its folder exists");
    if store.writable().is_err() {
        return;
    }
    // A write changes its key and no other.
    let snapshot = store.list(&[""]).expect("it was read before");
    assert_eq!(range(&snapshot, 0), all);
    let key = "/vulcand/backends/web/servers/10.0.0.9".to_owned();
    let expect = if all.contains_key(key.as_bytes()) {
        Expect::Present
    } else {
        Expect::Absent
    };
    let transaction = Transaction {
        unchanged: Vec::new(),
        guards: vec![Guard {
            key: key.clone(),
            expect,
        }],
        ops: vec![Op::Put {
            key: key.clone(),
            value: "new".to_owned(),
        }],
    };
    assert!(matches!(store.apply(&transaction), Ok(Applied::Whole)));
    let mut wanted = all;
    wanted.insert(key.into_bytes(), b"new".to_vec());
    let snapshot = store.list(&[""]).expect("what was written can be read");
    assert_eq!(range(&snapshot, 0), wanted);
}

/// Hostile texts in every field that takes text: names, labels, annotations, keys, values, owners, messages;
/// the first byte sets options.
pub fn hostile_text(data: &[u8]) {
    let Some((options, data)) = data.split_first() else {
        return;
    };
    // A dozen cover as much as a hundred, which would be slow.
    let texts = fields(data).map(String::from_utf8_lossy).take(12);
    let texts = texts.collect::<Vec<_>>();
    let text = |index: usize| texts[index % texts.len()].as_ref();
    let mut pods = usual_pods();
    for (index, pod) in pods.iter_mut().enumerate() {
        for (name, place) in [("backend", 0), ("port", 1), ("scheme", 2), ("other", 3)] {
            if options >> place & 1 != 0 {
                let key = format!("vulcanized.io/{name}");
                pod.annotations
                    .insert(key.into(), text(index + place).into());
            }
        }
        if options & 0x10 != 0 {
            pod.labels.insert("app".into(), text(index).into());
        }
        if options & 0x20 != 0 && !text(index).is_empty() {
            // The decoders refuse such names: this tests the outputs alone.
            pod.name = text(index).into();
        }
    }
    for layout in layouts() {
        let mut entries = BTreeMap::new();
        let mut put = |key: String, value: String| {
            entries.insert(key.into_bytes(), value.into_bytes());
        };
        for index in 0..texts.len() {
            let (a, b, c) = (text(index), text(index + 1), text(index + 2));
            let pod = format!("{b}/{c}");
            let server = |url: &str, owner: &str, scope: &str| {
                let json =
                    serde_json::json!({"URL": url, "Owner": owner, "Scope": scope, "Pod": pod});
                json.to_string()
            };
            let url = ["http://10.0.0.1:80", "http://10.0.0.77:80", a][index % 3];
            match layout.undefined() {
                Undefined::Stops => {
                    let backend = format!("/vulcand/backends/{a}");
                    put(format!("{backend}/backend"), format!(r#"{{"Type":"{b}"}}"#));
                    put(format!("{backend}/servers/{b}"), server(url, c, a));
                    let web = "/vulcand/backends/web/servers";
                    put(format!("{web}/{a}"), server(url, "prod", "c1"));
                    put(format!("{web}/{b}"), server(url, b, c));
                    put(format!("{web}/{c}"), a.to_owned());
                }
                Undefined::Unrouted => {
                    let services = "traefik/http/services";
                    put(format!("traefik/http/routers/{a}/service"), b.to_owned());
                    let service = format!("{services}/{a}/loadBalancer");
                    put(format!("{service}/servers/{b}/url"), url.to_owned());
                    put(format!("{service}/{c}"), a.to_owned());
                    let web = format!("{services}/web/loadBalancer/servers");
                    put(format!("{web}/prod.c1.{a}.{b}/url"), url.to_owned());
                    put(format!("{web}/{a}/{b}"), c.to_owned());
                }
            }
        }
        let mapping = mapping("{name}", "{ip}", &layout, *options);
        let seen = pods.iter().map(|pod| mapping.map(pod));
        check_run(&*layout, &entries, seen.collect(), *options);
    }
    for text in &texts {
        check_log(text);
    }
}

/// The fields of one input, separated by 0xff, which UTF-8 never contains.
fn fields(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == 0xff)
}

/// A file in a temporary folder of its own.
struct Scratch {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        // In memory if possible: a target writes thousands of files a second.
        let memory = std::path::Path::new("/dev/shm");
        let builder = &mut tempfile::Builder::new();
        let folder = match builder.tempdir_in(memory) {
            Ok(folder) => folder,
            Err(_) => builder.tempdir().expect("a folder"),
        };
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        Self {
            _folder: folder,
            path,
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}

fn layouts() -> [Rc<dyn Layout>; 2] {
    [("vulcand", "/vulcand"), ("traefik", "traefik")].map(|(name, prefix)| {
        let options = layout::Options {
            prefix: Some(prefix.to_owned()),
            etcd_v2: false,
        };
        layout::open(name, options).expect("on etcd v3")
    })
}

fn mapping(backend: &str, server: &str, layout: &Rc<dyn Layout>, options: u8) -> Mapping {
    Mapping {
        annotation_prefix: "vulcanized.io/".to_owned(),
        backend_labels: vec!["app".to_owned(), "name".to_owned()],
        backend: Template::parse(backend).expect("a template"),
        port: (options & 2 != 0).then_some(PortRef::Number(9999)),
        scheme: Scheme::Http,
        ip_family: (options & 4 != 0).then_some(IpFamily::Ipv6),
        server_id: Template::parse(server).expect("a template"),
        layout: Rc::clone(layout),
    }
}

/// One pod in each state that matters.
fn usual_pods<'p>() -> Vec<Pod<'p>> {
    let port = |name: &'static str, number| ContainerPort {
        name: Some(name.into()),
        number,
        tcp: true,
        sidecar: false,
    };
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let ready = Pod {
        namespace: "shop".into(),
        name: "web-1".into(),
        labels: [("app", "web")].into_iter().collect(),
        phase: Phase::Running,
        ready: true,
        ips: vec![ip("10.0.0.1"), ip("fd00::1")],
        ports: vec![port("http", 80), port("admin", 9090)],
        ..Pod::default()
    };
    let mut pods = vec![ready; 5];
    for (index, pod) in pods.iter_mut().enumerate().skip(1) {
        pod.name = format!("web-{}", index + 1).into();
        pod.ips = vec![ip(&format!("10.0.0.{}", index + 1))];
    }
    pods[1].ready = false;
    pods[2].terminating = true;
    pods[3].phase = Phase::Failed;
    pods[4].labels = vulcanized::internals::model::Texts::default();
    pods
}

/// Checks decoded pods, and maps them in both layouts.
fn check_pods(pods: &[Pod]) {
    for pod in pods {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(!pod.namespace.is_empty() && pod.namespace.chars().all(label));
        assert!(!pod.name.is_empty() && pod.name.chars().all(|c| label(c) || c == '.'));
        assert!(pod.ports.iter().all(|port| port.number > 0));
    }
    for layout in layouts() {
        let mapping = mapping("{namespace}.{name}.svc", "{ip}", &layout, 0);
        for pod in pods {
            check_seen(&mapping, pod, &mapping.map(pod));
        }
    }
}

/// A pod is published at its own address only, under keys of the layout's pattern, and in its namespace's
/// backends if the template separates namespaces; reasons are short and free of control characters.
fn check_seen(mapping: &Mapping, pod: &Pod, seen: &SeenPod) {
    let prefix = match mapping.layout.undefined() {
        Undefined::Stops => "/vulcand",
        Undefined::Unrouted => "traefik",
    };
    for want in &seen.wants {
        check_id(&want.backend);
        check_id(&want.server);
        if mapping.backend.separates_namespaces() {
            let rest = want.backend.strip_prefix(&*pod.namespace);
            let rest = rest.expect("a backend of the pod's namespace");
            assert!(rest.starts_with(['.', '_', ':']), "{}", want.backend);
        }
        let Host::Ip(ip) = want.url.host else {
            panic!("{} is no address", want.url)
        };
        assert!(pod.ips.iter().any(|own| own.to_canonical() == ip));
        let declared = |port: &ContainerPort| port.tcp && port.number == want.url.port;
        assert!(!pod.host_network || pod.ports.iter().any(declared));
        let mark = mapping
            .layout
            .mark(Author::shared("prod", "c1"), &seen.name);
        let id = mapping.layout.id(&want.server, &mark);
        let key = mapping.layout.key(prefix, &want.backend, &id);
        let value = mapping.layout.value(&want.url, &mark);
        check_key(&*mapping.layout, &key);
        // What is written reads back unchanged.
        let entries = [(key.into_bytes(), value.into_bytes())].into();
        let observed = observe(&*mapping.layout, &entries);
        let entry = &observed.backends[&*want.backend].servers[&id.as_ref().into()];
        assert_eq!(entry.url, Some(want.url.clone()));
        assert_eq!(entry.mark, Some(mark));
        assert_eq!(entry.fault, None);
    }
    for skipped in &seen.skipped {
        let text = skipped.reason.to_string();
        check_plain(&text::escaped(&text), &[]);
        assert!(text.len() < 2000, "a reason of {} bytes", text.len());
    }
}

/// `[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*`, at most 253 bytes: repeated here, so that a change of the program's
/// check is noticed.
fn check_id(id: &str) {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '[';
    let later = |c: char| first(c) || "._:]-".contains(c);
    assert!(
        id.starts_with(first) && id.chars().all(later) && id.len() <= 253,
        "{id:?}"
    );
}

/// A key of ours has exactly the segments of a server or of a definition.
fn check_key(layout: &dyn Layout, key: &str) {
    let segments = key.split('/').collect::<Vec<_>>();
    let ids = match (layout.undefined(), segments.as_slice()) {
        (Undefined::Stops, ["", "vulcand", "backends", backend, "servers", id])
        | (
            Undefined::Unrouted,
            [
                "traefik",
                "http",
                "services",
                backend,
                "loadBalancer",
                "servers",
                id,
                "url",
            ],
        ) => [*backend, *id],
        (Undefined::Stops, ["", "vulcand", "backends", backend, "backend"])
        | (
            Undefined::Unrouted,
            [
                "traefik",
                "http",
                "services",
                backend,
                "loadBalancer",
                "passHostHeader",
            ]
            | ["traefik", "http", "routers", backend, "rule" | "service"]
            | ["traefik", "http", "routers", backend, "entryPoints", "0"],
        ) => [*backend; 2],
        _ => panic!("{key:?} is not a key of ours"),
    };
    for id in ids {
        assert!(!id.is_empty() && id != "." && id != "..", "{key:?}");
    }
    check_plain(key, &[]);
}

fn range(snapshot: &Snapshot, index: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = snapshot.ranges[index].as_ref().expect("it may be read");
    let pair = |entry: &KeyValue| (entry.key.clone(), entry.value.clone());
    entries.iter().map(pair).collect()
}

fn observe(layout: &dyn Layout, entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> Observed {
    let range = |prefix: String| {
        let own = entries
            .iter()
            .filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        let entry = |(key, value): (&Vec<u8>, &Vec<u8>)| KeyValue {
            key: key.clone(),
            value: value.clone(),
            revision: 1,
        };
        Ok(own.map(entry).collect())
    };
    let snapshot = Snapshot {
        revision: Some(7),
        ranges: layout.ranges().into_iter().map(range).collect(),
    };
    layout.observe(snapshot).expect("the prefix is given")
}

/// A complete run on a store in memory: the plan changes only our entries, outputs have no control
/// characters, and after applying it nothing is left to do.
fn check_run(
    layout: &dyn Layout,
    entries: &BTreeMap<Vec<u8>, Vec<u8>>,
    seen: Vec<SeenPod>,
    options: u8,
) {
    /// One run suffices unless it holds a change because of another, or Traefik has a key in two spellings.
    const RUNS: usize = 3;
    let rules = Rules {
        adopt: Adopt {
            unmarked: options & 8 != 0,
            scope: options & 16 != 0,
            owners: BTreeSet::new(),
        },
        share_backends: options & 32 != 0,
        create_backends: options & 64 != 0,
        strict_ready: options & 128 != 0,
        allow_deletes: (options & 3 == 3).then_some(1000),
        upsert_only: options & 7 == 4,
        ..Rules::new("prod", Scope::new(Cluster::parse("c1"), None, None))
    };
    let lists = Lists {
        lists: vec![List {
            coverage: Coverage::All,
            pods: seen,
        }],
        ..Lists::default()
    };
    let mut now = entries.clone();
    for run in 0..=RUNS {
        let observed = observe(layout, &now);
        let Ok(plan) = plan(&observed, &lists, &rules, layout) else {
            // Nothing is defined, and nothing of ours is there.
            return;
        };
        check_plan(layout, &observed, &plan, &rules);
        if run == 0 {
            check_outputs(&plan);
        }
        if plan.changes.is_empty() {
            return;
        }
        assert!(run < RUNS, "still something to do: {:?}", plan.changes);
        for write in plan.changes.iter().flat_map(Change::writes) {
            let key = write.key.as_bytes().to_vec();
            let old = match write.after {
                Some(after) => now.insert(key, after.as_bytes().to_vec()),
                None => now.remove(&key),
            };
            let before = write.before.map(|(before, _)| before);
            assert_eq!(old.as_deref(), before, "it is as it was read");
        }
    }
}

fn check_plan(layout: &dyn Layout, observed: &Observed, plan: &Plan, rules: &Rules) {
    let mut keys = BTreeSet::new();
    for change in &plan.changes {
        assert!(keys.insert(&change.key), "{} twice", change.key);
        let entry = change.server.as_ref().and_then(|server| {
            observed
                .backends
                .get(&change.backend)?
                .servers
                .get(&**server)
        });
        match (&change.action, &change.server) {
            (Action::Create { after, .. }, server) => {
                check_id(&change.backend);
                check_key(layout, &change.key);
                if server.is_some() {
                    assert!(entry.is_none());
                    check_value(layout, after);
                } else {
                    assert!(rules.create_backends);
                }
            }
            (Action::Update { after, .. }, _) => {
                check_value(layout, after);
                check_ours(entry, rules, &change.key);
            }
            (Action::Delete { .. }, _) => check_ours(entry, rules, &change.key),
        }
    }
}

/// Changed entries have our owner and scope, or are adopted as the options say.
fn check_ours(entry: Option<&vulcanized::internals::layout::Entry>, rules: &Rules, key: &str) {
    let entry = entry.unwrap_or_else(|| panic!("{key} is not in the store"));
    // The key as it was read: Traefik accepts other spellings of the segments.
    assert_eq!(&*entry.key, key);
    let ours = match &entry.mark {
        Some(mark) => {
            *mark.author.owner == rules.owner && (*mark.author.scope == *"c1" || rules.adopt.scope)
        }
        None => rules.adopt.unmarked,
    };
    assert!(ours, "{key} is not ours");
}

/// A server's value is the URL of an address; in vulcand's layout, in JSON.
fn check_value(layout: &dyn Layout, value: &str) {
    let url = match layout.undefined() {
        Undefined::Stops => {
            let json = serde_json::from_str::<serde_json::Value>(value).expect("JSON");
            json["URL"].as_str().expect("a URL").to_owned()
        }
        Undefined::Unrouted => value.to_owned(),
    };
    let parsed = ServerUrl::parse(&url).expect("a URL");
    assert!(parsed.ip().is_some() && parsed.to_string() == url, "{url}");
}

/// Checks every output of a plan.
fn check_outputs(plan: &Plan) {
    let [etcdctl, v2] = &[Api::V3, Api::V2].map(|api| Etcdctl::new(api, &Access::default()));
    for color in [false, true] {
        let style = Style {
            color,
            width: 80,
            etcdctl,
        };
        let changes = || plan.changes.iter();
        let mut printed = Vec::new();
        report::diff::dry_run(&mut printed, plan, style).expect("to memory");
        report::diff::one_line(&mut printed, plan, changes(), true).expect("to memory");
        for change in changes() {
            report::diff::applied(&mut printed, change, style).expect("to memory");
        }
        let mut text = String::from_utf8(printed).expect("UTF-8");
        if color {
            for ink in ["31", "32", "33", "36", "1", "0"] {
                text = text.replace(&format!("\u{1b}[{ink}m"), "");
            }
        }
        check_plain(&text, &['\n', '\t']);
    }
    let mut printed = Vec::new();
    report::json::print(&mut printed, "prod", plan, &plan.changes, false, etcdctl)
        .expect("to memory");
    let text = std::str::from_utf8(&printed).expect("UTF-8");
    check_plain(text, &['\n']);
    let json = serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!(
        json["changes"].as_array().map(Vec::len),
        Some(plan.changes.len())
    );
    for etcdctl in [etcdctl, v2] {
        for note in notes(plan, false, etcdctl) {
            for command in &note.commands {
                check_command(command);
            }
        }
    }
    for left_out in &plan.skipped {
        let reason = &left_out.reason;
        check_log(&reason.to_string());
    }
    let text = metrics::render(
        &Run {
            owner: "prod",
            start: 1.0,
            duration: 0.5,
            exit_code: 0,
            finished: Some((plan, &plan.changes)),
        },
        "",
    );
    check_plain(&text, &['\n']);
    for line in text.lines() {
        assert!(
            line.starts_with("# ") || line.starts_with("vulcanized_"),
            "{line}"
        );
    }
}

/// A line of the log is one line without control characters.
fn check_log(message: &str) {
    let line = |format| logging::line(format, SystemTime::UNIX_EPOCH, Level::Warn, "m", message);
    check_plain(&line(LogFormat::Text), &[]);
    let json = line(LogFormat::Json);
    check_plain(&json, &[]);
    serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
}

/// No control characters except `spared`, and none that changes the direction of text.
fn check_plain(text: &str, spared: &[char]) {
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    let bad = |c: char| {
        !spared.contains(&c)
            && (c.is_control()
                || turns.contains(&c)
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c))
    };
    assert!(!text.contains(bad), "{text:?}");
}

/// A suggested command is `etcdctl`, a verb, and its number of arguments, each in single quotes.
fn check_command(command: &str) {
    let command = command.strip_prefix("ETCDCTL_API=2 ").unwrap_or(command);
    let (verb, number) = ["put", "set"]
        .iter()
        .map(|verb| (*verb, 2))
        .chain(["del", "rm", "rmdir", "rm --recursive"].map(|verb| (verb, 1)))
        .find(|(verb, _)| command.starts_with(&format!("etcdctl {verb} ")))
        .unwrap_or_else(|| panic!("{command:?}"));
    let mut rest = &command["etcdctl ".len() + verb.len()..];
    for _ in 0..number {
        rest = rest.strip_prefix(" '").expect("a word in quotes");
        assert!(!rest.starts_with('-'), "{command:?}");
        // A quote within an argument is written as `'\''`.
        loop {
            let end = rest.find('\'').expect("the end of a word");
            check_plain(&rest[..end], &[]);
            rest = &rest[end + 1..];
            match rest.strip_prefix("\\''") {
                Some(more) => rest = more,
                None => break,
            }
        }
    }
    assert_eq!(rest, "", "{command:?}");
}
