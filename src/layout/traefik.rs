//! Traefik's keys for its etcd provider: `<prefix>/http/services/<service>/loadBalancer/servers/<id>/url`,
//! values in plain text. One key that it does not know freezes the whole provider, so the mark is in the
//! id: `<owner>.<cluster>.<namespace>.<server id>`. What is said of Traefik here was seen on 3.7.15.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::{
    Backend, Definition, Entry, Fault, Layout, ObserveError, Observed, Options, Other, Sibling,
    Undefined, Unsupported, backend,
};
use crate::model::{
    self, BackendId, InvalidId, Mark, PodName, Scope, ServerId, ServerUrl, Snapshot, check_name,
};

/// The prefix when none is given: Traefik's own.
const DEFAULT_PREFIX: &str = "traefik";

/// Services of these types have no servers of their own; a service is of one type.
const OTHER_TYPES: [&str; 4] = ["weighted", "mirroring", "failover", "highestRandomWeight"];

/// What a load balancer may have beside its servers.
const BALANCER: [&str; 7] = [
    "sticky",
    "strategy",
    "healthCheck",
    "passiveHealthCheck",
    "passHostHeader",
    "responseForwarding",
    "serversTransport",
];

/// What a server may have beside its URL.
const SERVER: [&str; 5] = ["weight", "preservePath", "fenced", "scheme", "port"];

/// What a router may have.
const ROUTER: [&str; 10] = [
    "entryPoints",
    "middlewares",
    "service",
    "rule",
    "ruleSyntax",
    "priority",
    "parentRefs",
    "tls",
    "observability",
    "deniedEncodedPathCharacters",
];

/// Traefik's layout under one prefix.
#[derive(Debug, Clone)]
struct Traefik {
    /// The prefix (Traefik's `rootkey`), without a slash at either end.
    prefix: Option<String>,
}

/// Traefik's layout: it reads etcd v3 only, and no keys that begin with a slash.
///
/// # Errors
/// [`Unsupported`].
pub(super) fn open(options: Options) -> Result<Rc<dyn Layout>, Unsupported> {
    let Options { prefix, etcd_v2 } = options;
    if etcd_v2 {
        return Err(Unsupported::EtcdV2);
    }
    if prefix.as_deref().is_some_and(|text| text.starts_with('/')) {
        return Err(Unsupported::LeadingSlash);
    }
    Ok(Rc::new(Traefik { prefix }))
}

impl Traefik {
    fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX)
    }
}

impl Layout for Traefik {
    fn ranges(&self) -> Vec<String> {
        let prefix = self.prefix();
        vec![
            services(prefix),
            routers(prefix),
            services(&format!("/{prefix}")),
        ]
    }

    fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        let Snapshot { revision, ranges } = snapshot;
        let prefix = self.prefix().to_owned();
        let mut ranges = ranges.into_iter();
        let mut next = || ranges.next().unwrap_or(Ok(Vec::new()));
        let denied = |denied| ObserveError::from(&denied);
        let mut tree = Tree::read(&prefix, next().map_err(denied)?);
        // Which services are defined is what the routers say: without them nothing can be decided.
        tree.route(&prefix, next().map_err(denied)?);
        tree.compare_spellings(&prefix);
        let slashed = format!("/{prefix}");
        // Looked at for a warning only: refused permission is silent.
        let found = next().unwrap_or_default();
        let sibling = (!found.is_empty()).then(|| Sibling {
            backends: Tree::read(&slashed, found).backends.len(),
            prefix: slashed,
        });
        let Tree {
            backends, stray, ..
        } = tree;
        Ok(Observed {
            revision,
            prefix,
            backends,
            sibling,
            stray,
        })
    }

    fn range(&self, prefix: &str, backend: &str) -> String {
        format!("{}{backend}/", services(prefix))
    }

    fn key(&self, prefix: &str, backend: &str, id: &str) -> String {
        format!(
            "{}{backend}/loadBalancer/servers/{id}/url",
            services(prefix)
        )
    }

    fn value(&self, url: &ServerUrl, _mark: &Mark) -> String {
        url.to_string()
    }

    /// A router that names the service.
    fn definition(&self, prefix: &str, backend: &str) -> Vec<(String, String)> {
        // A router of the service's own name may be there and send its requests elsewhere.
        let router = format!("{}to-{backend}", routers(prefix));
        vec![
            (
                format!("{router}/rule"),
                format!("Host(`{backend}.example.com`)"),
            ),
            (format!("{router}/entryPoints/0"), "web".to_owned()),
            (format!("{router}/service"), backend.to_owned()),
        ]
    }

    fn undefined(&self) -> Undefined {
        Undefined::Unrouted
    }

    fn definitions(&self, prefix: &str) -> String {
        format!("{prefix}/http/")
    }

    fn root_option(&self, prefix: &str) -> String {
        format!("--providers.etcd.rootkey={prefix}")
    }

    /// The cluster: the id has no room for selectors.
    fn scope(&self, scope: &Scope) -> String {
        // An id has no `@`.
        scope.cluster.to_string().replace('@', "-")
    }

    fn mark(&self, owner: Rc<str>, scope: Rc<str>, pod: &PodName) -> Mark {
        Mark {
            owner,
            scope,
            namespace: pod.namespace.clone(),
            pod: None,
        }
    }

    /// It begins the id, and one of nothing but digits could begin an address.
    fn takes_owner(&self, owner: &str) -> bool {
        !owner.bytes().all(|c| c.is_ascii_digit())
    }

    /// The mark, then the server's own id, in lower case as Traefik wants it.
    fn id<'s>(&self, server: &'s str, mark: &Mark) -> Cow<'s, str> {
        Cow::Owned(id(server, mark))
    }

    fn backend_id(&self, text: &str) -> Result<BackendId, InvalidId> {
        if text.bytes().all(|c| c.is_ascii_digit()) && !text.is_empty() {
            Err(InvalidId::OnlyDigits)
        } else {
            BackendId::new(text.to_ascii_lowercase())
        }
    }

    fn server_id(&self, text: &str) -> Result<ServerId, InvalidId> {
        ServerId::new(text.to_ascii_lowercase())
    }
}

fn services(prefix: &str) -> String {
    format!("{prefix}/http/services/")
}

fn routers(prefix: &str) -> String {
    format!("{prefix}/http/routers/")
}

/// The id of a server: its mark, then its own id, in lower case as Traefik wants it.
fn id(server: &str, mark: &Mark) -> String {
    let Mark {
        owner,
        scope,
        namespace,
        pod: _,
    } = mark;
    format!("{owner}.{scope}.{namespace}.{server}").to_ascii_lowercase()
}

/// The mark in an id, if it has one. An address has dots too, and is none.
fn mark(id: &str) -> Option<Mark> {
    if id.parse::<IpAddr>().is_ok() {
        return None;
    }
    let mut parts = id.splitn(4, '.');
    let (owner, cluster, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    let rest = parts.next()?;
    let namespaced = !namespace.is_empty()
        && namespace
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let whole = check_name(owner).is_ok() && check_name(cluster).is_ok() && namespaced;
    (whole && !rest.is_empty()).then(|| Mark {
        owner: owner.into(),
        scope: cluster.into(),
        namespace: namespace.into(),
        pod: None,
    })
}

/// Traefik takes names of fields in any case.
fn is(segment: &str, field: &str) -> bool {
    segment.eq_ignore_ascii_case(field)
}

fn is_one_of(segment: &str, fields: &[&str]) -> bool {
    fields.iter().any(|field| is(segment, field))
}

/// Whether Traefik can read a field's value: one that it cannot read freezes it.
fn is_readable(field: &str, value: &[u8]) -> bool {
    /// What Go reads as a truth value.
    const TRUTHS: [&str; 12] = [
        "1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False",
    ];
    let value = String::from_utf8_lossy(value);
    if is(field, "weight") || is(field, "priority") {
        value.parse::<i64>().is_ok()
    } else if is(field, "preservePath") || is(field, "passHostHeader") {
        TRUTHS.contains(&&*value)
    } else {
        true
    }
}

/// Whether Traefik can send requests to this URL. It knows one scheme more than we write.
fn is_served(url: &str) -> bool {
    let known = url.strip_prefix("h2c").map(|rest| format!("http{rest}"));
    ServerUrl::parse(known.as_deref().unwrap_or(url)).is_some()
}

/// The parts of a key behind its range, as Traefik takes it apart: what is between slashes, if anything.
fn segments<'k>(key: &'k str, range: &str) -> Vec<&'k str> {
    let parts = key[range.len()..].split('/');
    parts.filter(|part| !part.is_empty()).collect()
}

#[derive(Default)]
struct Tree {
    backends: BTreeMap<String, Backend>,
    stray: Vec<(String, Fault)>,
    /// What servers have beside their URL, by service and id.
    others: BTreeMap<(String, String), Vec<Other>>,
}

impl Tree {
    fn read(prefix: &str, entries: Vec<model::Entry>) -> Self {
        let range = services(prefix);
        let mut tree = Self::default();
        for entry in entries {
            // Neither Traefik nor we can name what is not UTF-8.
            let Ok(key) = String::from_utf8(entry.key) else {
                continue;
            };
            if let Some((service, fields)) = segments(&key, &range).split_first() {
                tree.add(service, fields, &key, entry.value, entry.revision);
            }
        }
        for ((service, id), others) in std::mem::take(&mut tree.others) {
            match tree.backend(&service).servers.get_mut(&*id) {
                Some(entry) => entry.others = others.into(),
                None => {
                    let first = others.into_iter().next();
                    let key = first.expect("one at least").key.into_string();
                    tree.stray.push((key, Fault::BadUrl));
                }
            }
        }
        tree
    }

    /// Adds one key of a service.
    fn add(&mut self, service: &str, fields: &[&str], key: &str, value: Vec<u8>, revision: u64) {
        let frozen = match *fields {
            [balancer, servers, id, url]
                if is(balancer, "loadBalancer") && is(servers, "servers") && is(url, "url") =>
            {
                return self.server(service, id, Other::new(key, value, revision));
            }
            [balancer, servers, id, ref field @ ..]
                if is(balancer, "loadBalancer") && is(servers, "servers") =>
            {
                let frozen = match *field {
                    [] => false,
                    [field] => !is_one_of(field, &SERVER) || !is_readable(field, &value),
                    _ => true,
                };
                if !frozen {
                    let others = self.others.entry((service.to_owned(), id.to_owned()));
                    let other = Other::new(key, value, revision);
                    others.or_default().push(other);
                }
                frozen
            }
            // A name with nothing behind it does nothing, a type freezes once nothing else is there.
            [] => false,
            [balancer] if is(balancer, "loadBalancer") => true,
            [balancer, servers] if is(balancer, "loadBalancer") && is(servers, "servers") => false,
            [balancer, field, ..] if is(balancer, "loadBalancer") => {
                let known = is_one_of(field, &BALANCER) && is_readable(field, &value);
                if known {
                    self.define(service, key, revision);
                }
                !known
            }
            [kind, ..] if is_one_of(kind, &OTHER_TYPES) => {
                self.backend(service).definition = Definition::OtherType {
                    key: key.to_owned(),
                    why: format!(
                        "it is a service of the type `{kind}`, and one that has servers too is disabled \
                         (404)"
                    ),
                };
                fields.len() == 1
            }
            [middlewares, ..] if is(middlewares, "middlewares") => {
                self.define(service, key, revision);
                false
            }
            _ => true,
        };
        self.backend(service);
        if frozen {
            self.stray.push((key.to_owned(), Fault::Freezes));
        }
    }

    fn server(&mut self, service: &str, id: &str, url: Other) {
        if self.backend(service).servers.contains_key(id) {
            // A second spelling of one key (`…/url/`) adds nothing, and goes with the first.
            let others = self.others.entry((service.to_owned(), id.to_owned()));
            return others.or_default().push(url);
        }
        let Other {
            key,
            value,
            revision,
        } = url;
        let text = std::str::from_utf8(&value).unwrap_or_default();
        let entry = Entry {
            url: ServerUrl::parse(text),
            mark: mark(id),
            fault: (!is_served(text)).then_some(Fault::BadUrl),
            key,
            value,
            revision,
            others: Box::default(),
        };
        self.backend(service).servers.insert(id.into(), entry);
    }

    /// Adds what the routers say: which services are defined by being named.
    fn route(&mut self, prefix: &str, entries: Vec<model::Entry>) {
        let range = routers(prefix);
        let mut routed = false;
        for model::Entry {
            key,
            value,
            revision,
        } in entries
        {
            routed = true;
            let Ok(key) = String::from_utf8(key) else {
                continue;
            };
            match *segments(&key, &range) {
                [_, service] if is(service, "service") => {
                    let service = String::from_utf8_lossy(&value);
                    let service = service.strip_suffix("@etcd").unwrap_or(&service);
                    // Other providers' services are named with their `@`.
                    if !service.is_empty() && !service.contains(['@', '/']) {
                        self.define(service, &key, revision);
                    }
                }
                [_, field, ..] if is_one_of(field, &ROUTER) && is_readable(field, &value) => {}
                [] | [_] => {}
                _ => self.stray.push((key, Fault::Freezes)),
            }
        }
        let defined = |backend: &Backend| matches!(backend.definition, Definition::Valid { .. });
        let served = |backend: &Backend| !backend.servers.is_empty();
        // A key of a service's own stays when its servers go, and so does a router.
        if !routed && self.backends.values().any(served) && !self.backends.values().any(defined) {
            self.stray.push((range, Fault::NoRouter));
        }
    }

    /// Finds services whose names differ in case only.
    fn compare_spellings(&mut self, prefix: &str) {
        let range = services(prefix);
        let mut spellings = BTreeMap::<String, Vec<&String>>::new();
        for service in self.backends.keys() {
            let folded = service.to_ascii_lowercase();
            spellings.entry(folded).or_default().push(service);
        }
        let mixed = spellings.into_values().filter(|names| names.len() > 1);
        let keys = mixed.flatten().map(|name| format!("{range}{name}/"));
        let found = keys.map(|key| (key, Fault::TwoSpellings));
        self.stray.extend(found.collect::<Vec<_>>());
    }

    /// Notes that this key defines a service, unless that is of another type.
    fn define(&mut self, service: &str, key: &str, revision: u64) {
        let definition = &mut self.backend(service).definition;
        if *definition == Definition::Absent {
            *definition = Definition::Valid {
                key: key.to_owned(),
                revision,
            };
        }
    }

    fn backend(&mut self, id: &str) -> &mut Backend {
        backend(&mut self.backends, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::entry;
    use crate::model::Denied;

    type Range = Result<Vec<model::Entry>, Denied>;

    fn try_observe(ranges: [Range; 3]) -> Result<Observed, ObserveError> {
        let layout = Traefik { prefix: None };
        layout.observe(Snapshot {
            revision: Some(1),
            ranges: ranges.into(),
        })
    }

    fn observe(services: Vec<model::Entry>, routers: Vec<model::Entry>) -> Observed {
        try_observe([Ok(services), Ok(routers), Ok(vec![])]).expect("it may be read")
    }

    /// Services of these keys and values, with a router that names `web`.
    fn observe_keys(keys: &[(&str, &str)]) -> Observed {
        let entries = keys
            .iter()
            .map(|(key, value)| entry(&format!("traefik/http/services/{key}"), value));
        let router = entry("traefik/http/routers/r/service", "web");
        observe(entries.collect(), vec![router])
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
            owner: "prod".into(),
            scope: "c1".into(),
            namespace: "shop".into(),
            pod: None,
        };
        assert_eq!(mark(&id("10.0.0.1", &written)), Some(written.clone()));
        assert_eq!(mark(&id("[FD00::1]:80", &written)), Some(written));
        for nobodys in [
            "0", "10.0.0.1", "web", "a.b.c", "a.b.c.", "A.b.c.d", "a_.b.c.d", "...",
        ] {
            assert_eq!(mark(nobodys), None, "{nobodys}");
        }
    }

    #[test]
    fn a_service_is_defined_by_a_router_or_a_key_of_its_own() {
        let server = "traefik/http/services/web/loadBalancer/servers/0/url";
        let other = "traefik/http/services/web/loadBalancer/passHostHeader";
        let defined = |observed: &Observed| {
            matches!(
                observed.backends["web"].definition,
                Definition::Valid { .. }
            )
        };
        let url = "http://10.0.0.1:80";
        assert!(!defined(&observe(vec![entry(server, url)], vec![])));
        assert!(defined(&observe(
            vec![entry(server, url), entry(other, "true")],
            vec![]
        )));
        for name in ["web", "web@etcd"] {
            let router = entry("traefik/http/routers/r/service", name);
            assert!(defined(&observe(vec![], vec![router])));
        }
        let elsewhere = entry("traefik/http/routers/r/service", "web@file");
        assert!(!defined(&observe(
            vec![entry(server, url)],
            vec![elsewhere]
        )));
    }

    #[test]
    fn a_server_that_cannot_be_served_is_found() {
        let found = |value: &str| {
            let key = "web/loadBalancer/servers/a/url";
            faults(&observe_keys(&[(key, value)]))
        };
        for good in ["http://10.0.0.1:80", "https://a", "h2c://10.0.0.1:80"] {
            assert_eq!(found(good), [], "{good}");
        }
        for bad in ["", "rubbish", "localhost:80", "http://", "http://a b:80"] {
            assert_eq!(found(bad), [Fault::BadUrl], "{bad}");
        }
        let weight = ("web/loadBalancer/servers/a/weight", "1");
        let url = ("web/loadBalancer/servers/a/url", "http://10.0.0.1:80");
        assert_eq!(faults(&observe_keys(&[weight])), [Fault::BadUrl]);
        assert_eq!(faults(&observe_keys(&[weight, url])), []);
    }

    #[test]
    fn names_of_fields_are_read_in_any_case() {
        let url = "http://10.0.0.1:80";
        let observed = observe_keys(&[("web/loadbalancer/Servers/a/URL", url)]);
        assert!(observed.backends["web"].servers.contains_key("a"));
        assert_eq!(faults(&observed), []);
        let twice = [
            ("web/loadBalancer/servers/a/url", url),
            ("web/loadBalancer/servers/a/url/", "http://10.0.0.2:80"),
        ];
        let observed = observe_keys(&twice);
        let server = observed.backends["web"]
            .servers
            .get("a")
            .expect("it is there");
        assert!(server.key.ends_with("/url") && *server.value == *url.as_bytes());
    }

    #[test]
    fn two_spellings_of_one_service_are_found() {
        let url = "http://10.0.0.1:80";
        let small = ("web/loadBalancer/servers/a/url", url);
        let large = ("WEB/loadBalancer/servers/a/url", url);
        assert_eq!(faults(&observe_keys(&[small])), []);
        let both = [Fault::TwoSpellings; 2];
        assert_eq!(faults(&observe_keys(&[small, large])), both);
        assert_eq!(faults(&observe_keys(&[large])), both, "the router's is one");
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
    fn servers_without_any_router_are_found() {
        let key = |field: &str| format!("traefik/http/services/web/loadBalancer/{field}");
        let server = || entry(&key("servers/a/url"), "http://10.0.0.1:80");
        let own = entry(&key("passHostHeader"), "true");
        let router = entry("traefik/http/routers/r/rule", "x");
        let alone = observe(vec![server()], vec![]);
        assert_eq!(faults(&alone), [Fault::NoRouter]);
        assert_eq!(faults(&observe(vec![own, server()], vec![])), []);
        assert_eq!(faults(&observe(vec![server()], vec![router])), []);
        assert_eq!(faults(&observe(vec![], vec![])), []);
    }

    #[test]
    fn without_the_routers_nothing_is_decided() {
        let denied = || Err(Denied("permission denied".to_owned()));
        for ranges in [
            [denied(), Ok(vec![]), Ok(vec![])],
            [Ok(vec![]), denied(), Ok(vec![])],
        ] {
            assert!(matches!(try_observe(ranges), Err(ObserveError::Denied(_))));
        }
        assert!(try_observe([Ok(vec![]), Ok(vec![]), denied()]).is_ok());
    }

    #[test]
    fn what_freezes_the_provider_is_found() {
        // What stands in this file is tried on the real Traefik, too.
        for line in include_str!("../../fixtures/traefik/keys.tsv").lines() {
            let [verdict, key, value] = *line.split('\t').collect::<Vec<_>>() else {
                panic!("three columns: {line}");
            };
            let entry = vec![entry(&format!("traefik/http/{key}"), value)];
            let observed = if key.starts_with("routers/") {
                observe(vec![], entry)
            } else {
                observe(entry, vec![])
            };
            let found = faults(&observed).contains(&Fault::Freezes);
            assert_eq!(found, verdict == "freezes", "{line}");
        }
    }
}
