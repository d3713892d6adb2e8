//! Traefik's keys for its etcd provider: `<prefix>/http/services/<service>/loadBalancer/servers/<id>/url`,
//! values in plain text. One key that it does not know freezes the whole provider, so the mark is in the
//! id: `<owner>.<cluster>.<namespace>.<server id>`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Backend, Definition, Entry, Fault, ObserveError, Observed, Sibling};
use crate::model::{self, Mark, ServerUrl, Snapshot, check_name};

/// The prefix when none is given: Traefik's own.
const DEFAULT_PREFIX: &str = "traefik";

/// What a server may have beside its URL.
const KNOWN: [&str; 2] = ["weight", "preservePath"];

/// Traefik's layout under one prefix.
#[derive(Debug, Clone)]
pub struct Traefik {
    /// The prefix (Traefik's `rootkey`), without a slash at either end.
    pub prefix: Option<String>,
}

impl Traefik {
    fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX)
    }

    pub(super) fn ranges(&self) -> Vec<String> {
        let prefix = self.prefix();
        vec![
            services(prefix),
            routers(prefix),
            services(&format!("/{prefix}")),
        ]
    }

    pub(super) fn observe(&self, snapshot: Snapshot) -> Result<Observed, ObserveError> {
        let Snapshot { revision, ranges } = snapshot;
        let prefix = self.prefix().to_owned();
        let mut ranges = ranges.into_iter();
        let mut tree = match ranges.next() {
            Some(Ok(entries)) => Tree::read(&prefix, entries),
            Some(Err(denied)) => return Err((&denied).into()),
            None => Tree::default(),
        };
        // Without permission to read the routers only other keys of a service define it.
        tree.route(
            &prefix,
            ranges.next().and_then(Result::ok).unwrap_or_default(),
        );
        let slashed = format!("/{prefix}");
        let sibling = ranges
            .next()
            .and_then(Result::ok)
            .filter(|found| !found.is_empty());
        let sibling = sibling.map(|found| Sibling {
            backends: Tree::read(&slashed, found).backends.len(),
            prefix: slashed,
        });
        let Tree {
            backends,
            mut stray,
            routed,
        } = tree;
        if !routed && backends.values().any(|backend| !backend.servers.is_empty()) {
            stray.push((routers(&prefix), Fault::NoRouter));
        }
        Ok(Observed {
            revision,
            prefix,
            backends,
            sibling,
            stray,
        })
    }
}

fn services(prefix: &str) -> String {
    format!("{prefix}/http/services/")
}

fn routers(prefix: &str) -> String {
    format!("{prefix}/http/routers/")
}

pub(super) fn server_key(prefix: &str, service: &str, id: &str) -> String {
    format!("{prefix}/http/services/{service}/loadBalancer/servers/{id}/url")
}

/// The id of a server: its mark, then its own id, in lower case as Traefik wants it.
pub(super) fn id(server: &str, mark: &Mark) -> String {
    let Mark {
        owner,
        scope,
        namespace,
        pod: _,
    } = mark;
    format!("{owner}.{scope}.{namespace}.{server}").to_ascii_lowercase()
}

/// The keys and values that define a service: a router that names it.
pub(super) fn definition(prefix: &str, service: &str) -> Vec<(String, String)> {
    let router = format!("{}{service}", routers(prefix));
    vec![
        (
            format!("{router}/rule"),
            format!("Host(`{service}.example.com`)"),
        ),
        (format!("{router}/entryPoints/0"), "web".to_owned()),
        (format!("{router}/service"), service.to_owned()),
    ]
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

#[derive(Default)]
struct Tree {
    backends: BTreeMap<String, Backend>,
    stray: Vec<(String, Fault)>,
    routed: bool,
}

impl Tree {
    fn read(prefix: &str, entries: Vec<model::Entry>) -> Self {
        let skip = services(prefix).len();
        let mut tree = Self::default();
        for model::Entry {
            key,
            value,
            revision,
        } in entries
        {
            let Ok(key) = String::from_utf8(key) else {
                continue;
            };
            let segments = key[skip..].split('/').collect::<Vec<_>>();
            match *segments.as_slice() {
                [service, "loadBalancer", "servers", id, "url"] if !id.is_empty() => {
                    let url = std::str::from_utf8(&value).ok().and_then(ServerUrl::parse);
                    let fault = url.is_none().then_some(Fault::BadUrl);
                    let (service, id) = (service.to_owned(), id.to_owned());
                    let mark = mark(&id);
                    let entry = Entry {
                        key,
                        value,
                        revision,
                        url,
                        mark,
                        fault,
                    };
                    tree.backend(&service).servers.insert(id, entry);
                }
                [service, "loadBalancer", "servers", _, field] if KNOWN.contains(&field) => {
                    tree.backend(service);
                }
                [service, "loadBalancer", "servers", ..] => {
                    tree.backend(service);
                    tree.stray.push((key, Fault::Freezes));
                }
                [service, _, ..] if !service.is_empty() => {
                    tree.backend(service).definition = Definition::Valid { key: key.clone() };
                }
                _ => tree.stray.push((key, Fault::Freezes)),
            }
        }
        tree
    }

    /// Adds what the routers say: which services are defined by being named.
    fn route(&mut self, prefix: &str, entries: Vec<model::Entry>) {
        let skip = routers(prefix).len();
        for model::Entry {
            key,
            value,
            revision: _,
        } in entries
        {
            self.routed = true;
            let (Ok(key), Ok(value)) = (String::from_utf8(key), String::from_utf8(value)) else {
                continue;
            };
            let [_, "service"] = *key[skip..].split('/').collect::<Vec<_>>().as_slice() else {
                continue;
            };
            let service = value.strip_suffix("@etcd").unwrap_or(&value);
            if !service.is_empty() && !service.contains('@') {
                self.backend(service).definition = Definition::Valid { key };
            }
        }
    }

    fn backend(&mut self, id: &str) -> &mut Backend {
        self.backends.entry(id.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> model::Entry {
        model::Entry {
            key: key.into(),
            value: value.into(),
            revision: 1,
        }
    }

    fn observe(services: Vec<model::Entry>, routers: Vec<model::Entry>) -> Observed {
        let ranges = vec![Ok(services), Ok(routers), Ok(vec![])];
        let layout = Traefik { prefix: None };
        layout
            .observe(Snapshot {
                revision: Some(1),
                ranges,
            })
            .expect("it may be read")
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
    fn keys_that_freeze_the_provider_are_found() {
        let faults = |key: &str, value: &str| {
            let key = format!("traefik/http/services/{key}");
            let router = entry("traefik/http/routers/r/rule", "x");
            let observed = observe(vec![entry(&key, value)], vec![router]);
            let entries = observed.backends.values().flat_map(|b| b.servers.values());
            let own = entries.filter_map(|entry| entry.fault);
            own.chain(observed.stray.iter().map(|(_, fault)| *fault))
                .collect::<Vec<_>>()
        };
        let good = "http://10.0.0.1:80";
        assert_eq!(faults("web/loadBalancer/servers/a/url", good), []);
        assert_eq!(faults("web/loadBalancer/servers/a/weight", "1"), []);
        assert_eq!(
            faults("web/loadBalancer/servers/a/url", "rubbish"),
            [Fault::BadUrl]
        );
        for key in ["a/owner", "a/b/url", "a"] {
            let key = format!("web/loadBalancer/servers/{key}");
            assert_eq!(faults(&key, good), [Fault::Freezes], "{key}");
        }
    }
}
