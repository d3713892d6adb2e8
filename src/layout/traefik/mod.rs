//! Traefik's keys for its etcd provider: `<prefix>/http/services/<service>/loadBalancer/servers/<id>/url`,
//! values in plain text. One unknown key freezes the whole provider, so the mark is in the id:
//! `<owner>.<cluster>.<namespace>.<server id>`. Statements about Traefik were measured on 3.7.15.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::{
    Backend, Definition, Entry, Fault, Layout, ObserveError, Observed, Options, Other, Refusal,
    Sibling, SiblingKind, Undefined, Unsupported, go, readable,
};
use crate::model::{
    self, Author, BackendId, Cluster, InvalidId, Mark, PodName, Scope, ServerId, ServerUrl,
    Snapshot, UrlFault, check_name,
};

mod schema;

use schema::{ERRORS, ROUTER, SERVICE, take};

/// The prefix when none is given: Traefik's own.
const DEFAULT_PREFIX: &str = "traefik";

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
        return Err(Unsupported(
            "Traefik reads etcd v3 only: `--etcd-api 2` does not go with it",
        ));
    }
    if prefix.as_deref().is_some_and(|text| text.starts_with('/')) {
        return Err(Unsupported(
            "Traefik cannot read a prefix that begins with a slash",
        ));
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
            middlewares(prefix),
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
        // Routers define services: without them nothing can be decided.
        tree.routers(&prefix, next().map_err(denied)?);
        // The other ranges are read if they may be.
        tree.middlewares(&prefix, next().unwrap_or_default());
        let slashed = format!("/{prefix}");
        let found = next().unwrap_or_default();
        let sibling = (!found.is_empty()).then(|| Sibling {
            backends: Tree::read(&slashed, found).services.len(),
            prefix: slashed,
            kind: SiblingKind::Spelling,
        });
        let mut observed = Observed {
            revision,
            prefix,
            siblings: sibling.into_iter().collect(),
            ..Observed::default()
        };
        tree.finish(&mut observed);
        Ok(observed)
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

    fn weight_key(&self, prefix: &str, backend: &str, id: &str) -> Option<String> {
        let server = self.key(prefix, backend, id);
        Some(server.strip_suffix("url")?.to_owned() + "weight")
    }

    /// The fields of a server that Traefik knows move; a further spelling of its URL does not.
    fn moved_key(&self, prefix: &str, backend: &str, id: &str, key: &str) -> Option<String> {
        let mut parts = key.split('/').rev().filter(|part| !part.is_empty());
        let name = parts.next()?;
        let (field, _) = schema::SERVER.iter().find(|(field, _)| is(name, field))?;
        let server = self.key(prefix, backend, id);
        (*field != "url").then_some(server.strip_suffix("url")?.to_owned() + field)
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

    /// A key of the service's own with the value that is the default: it stays when the last server goes,
    /// and Traefik answers 503 instead of keeping the servers that are gone.
    fn created(&self, prefix: &str, backend: &str) -> Option<(String, String)> {
        let key = format!("{}{backend}/loadBalancer/passHostHeader", services(prefix));
        Some((key, "true".to_owned()))
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
        let Cluster { name, fingerprint } = &scope.cluster;
        // Pods from a file have no fingerprint: the name alone is enough.
        match (name.as_str(), fingerprint.as_str()) {
            (name, "file") if !name.is_empty() => name.to_owned(),
            ("", fingerprint) => fingerprint.to_owned(),
            // `@` is not allowed in an id.
            (name, fingerprint) => format!("{name}-{fingerprint}"),
        }
    }

    fn mark(&self, author: Rc<Author>, pod: &PodName) -> Mark {
        Mark {
            author,
            namespace: pod.namespace.clone(),
            pod: None,
        }
    }

    /// The owner begins the id; digits alone could be the beginning of an address.
    fn check_owner(&self, owner: &str) -> Result<(), Unsupported> {
        if owner.bytes().all(|c| c.is_ascii_digit()) {
            return Err(Unsupported(
                "`--owner` needs a letter here: it begins the ids of Traefik's servers, and one of \
                 nothing but digits could be taken for an address",
            ));
        }
        Ok(())
    }

    /// The mark, then the server's own id, in lower case as Traefik wants it.
    fn id<'s>(&self, server: &'s str, mark: &Mark) -> Cow<'s, str> {
        Cow::Owned(id(server, mark))
    }

    fn backend_id(&self, text: &str) -> Result<BackendId, InvalidId> {
        if is_number(bare(text)) {
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
    let Author { owner, scope } = &*mark.author;
    format!("{owner}.{scope}.{}.{server}", mark.namespace).to_ascii_lowercase()
}

fn middlewares(prefix: &str) -> String {
    format!("{prefix}/http/middlewares/")
}

/// The mark in an id, if it has one. An address has dots too, with or without a port, and is not a mark.
fn mark(id: &str) -> Option<Mark> {
    /// A cluster is a name, a dash and a fingerprint at most.
    const CLUSTER_MAX: usize = 41;
    let mut parts = id.splitn(4, '.');
    let (owner, cluster, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    let rest = parts.next()?;
    let name = |text: &str| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !text.is_empty() && text.bytes().all(plain)
    };
    let whole = check_name(owner).is_ok() && !is_number(owner);
    let whole = whole && name(cluster) && cluster.len() <= CLUSTER_MAX && name(namespace);
    (whole && !rest.is_empty()).then(|| Mark {
        author: Author::shared(owner, cluster),
        namespace: namespace.into(),
        pod: None,
    })
}

/// Traefik takes names of fields in any case.
fn is(segment: &str, field: &str) -> bool {
    segment.eq_ignore_ascii_case(field)
        || !segment.is_ascii() && go::fold(segment) == go::fold(field)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

/// A name without the brackets that Traefik puts around digits alone.
fn bare(name: &str) -> &str {
    let inner = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    inner.filter(|inner| is_number(inner)).unwrap_or(name)
}

/// The form in which names are compared.
fn identity(name: &str) -> Cow<'_, str> {
    go::fold(bare(name))
}

/// The name that a service of this spelling has for those that refer to it.
fn referred(spelling: &str) -> Cow<'_, str> {
    if is_number(spelling) {
        Cow::Owned(format!("[{spelling}]"))
    } else {
        Cow::Borrowed(spelling)
    }
}

/// The parts of a key behind its range, as Traefik takes it apart: what is between slashes, if anything. A
/// number at the end is an item of a list, whose value the list has.
fn segments<'k>(key: &'k str, range: &str) -> Vec<&'k str> {
    let parts = key[range.len()..].split('/');
    let mut parts = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>();
    if !key.ends_with('/') {
        parts.pop_if(|last| is_number(last));
    }
    parts
}

/// What is wrong with a server's URL for Traefik.
fn url_fault(text: &str) -> Option<Fault> {
    match ServerUrl::read(text) {
        Ok(_) => None,
        Err(_) if text.is_empty() => Some(Fault::UrlMissing),
        Err(UrlFault::Unreadable) => Some(Fault::Disables),
        Err(UrlFault::NoHost | UrlFault::Unreachable) => Some(Fault::Unreachable),
    }
}

/// One service while its keys are read.
#[derive(Default)]
struct Service {
    /// Its name, as its first key spells it.
    spelling: String,
    definition: Definition,
    servers: BTreeMap<Box<str>, Server>,
}

/// One server while its keys are read.
#[derive(Default)]
struct Server {
    /// The key that its URL is read from: the last one of its spellings.
    url: Option<(Other, Option<Mark>)>,
    others: Vec<Other>,
    /// Whether one of its keys freezes the provider.
    frozen: bool,
}

#[derive(Default)]
struct Tree {
    /// By their names as they are compared.
    services: BTreeMap<String, Service>,
    stray: Vec<(String, Fault)>,
    /// Names of services that are referred to, each with the key that does, and its revision.
    references: Vec<(String, String, u64)>,
    /// Whether there is any router.
    routed: Option<bool>,
    /// The last service that was read: its spelling, and what it is compared by.
    last: (String, String),
}

impl Tree {
    fn read(prefix: &str, entries: Vec<model::KeyValue>) -> Self {
        let range = services(prefix);
        let mut tree = Self::default();
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            let Ok(key) = String::from_utf8(entry.key) else {
                continue;
            };
            // A key with others below it needs no value.
            let above = entries.peek().is_some_and(|next| {
                let below = next.key.strip_prefix(key.as_bytes());
                below.is_some_and(|below| below.starts_with(b"/") && below.len() > 1)
            });
            if let Some((service, fields)) = segments(&key, &range).split_first() {
                let fields = fields.to_vec();
                let service = (*service).to_owned();
                tree.add(
                    &service,
                    &fields,
                    Other::new(&key, entry.value, entry.revision),
                    above,
                );
            }
        }
        tree
    }

    /// Adds one key of a service.
    fn add(&mut self, name: &str, fields: &[&str], entry: Other, above: bool) {
        let value = String::from_utf8_lossy(&entry.value).into_owned();
        let frozen = match fields {
            // A name with nothing behind it does nothing.
            [] => false,
            [field, rest @ ..] => !(above || take(SERVICE, field, rest, &value)),
        };
        if frozen {
            self.stray.push((entry.key.to_string(), Fault::Freezes));
        }
        let references = match fields {
            [kind, services, _, field] if is(services, "services") && is(field, "name") => {
                is(kind, "weighted") || is(kind, "highestRandomWeight")
            }
            [kind, mirrors, _, field] => {
                is(kind, "mirroring") && is(mirrors, "mirrors") && is(field, "name")
            }
            [kind, field] => {
                is(kind, "mirroring") && is(field, "service")
                    || is(kind, "failover") && (is(field, "service") || is(field, "fallback"))
            }
            _ => false,
        };
        if references {
            self.references
                .push((value, entry.key.to_string(), entry.revision));
        }
        let service = self.service(name);
        match fields {
            [balancer, servers, id, field @ ..]
                if is(balancer, "loadBalancer") && is(servers, "servers") =>
            {
                let server = service.servers.entry(identity(id).into()).or_default();
                server.frozen |= frozen;
                if let [url] = field
                    && is(url, "url")
                {
                    // Of several spellings the last one counts.
                    let earlier = server.url.replace((entry, mark(id)));
                    server.others.extend(earlier.map(|(earlier, _)| earlier));
                } else {
                    server.others.push(entry);
                }
            }
            _ if frozen => {}
            [balancer, field, ..] if is(balancer, "loadBalancer") && !is(field, "servers") => {
                service.define(&entry.key, entry.revision);
            }
            [middlewares, ..] if is(middlewares, "middlewares") => {
                service.define(&entry.key, entry.revision);
            }
            [kind, ..] if !is(kind, "loadBalancer") => {
                service.definition = Definition::OtherType {
                    key: entry.key.to_string(),
                    refusal: Refusal::OtherType((*kind).to_owned()),
                };
            }
            _ => {}
        }
    }

    /// Adds what the routers refer to.
    fn routers(&mut self, prefix: &str, entries: Vec<model::KeyValue>) {
        let range = routers(prefix);
        self.routed = Some(!entries.is_empty());
        for (key, value, revision) in readable(entries) {
            let value = String::from_utf8_lossy(&value);
            let segments = segments(&key, &range);
            let Some((field, rest)) = segments.get(1..).and_then(<[_]>::split_first) else {
                continue;
            };
            if !take(ROUTER, field, rest, &value) {
                self.stray.push((key, Fault::Freezes));
            } else if is(field, "service") {
                self.references.push((value.into_owned(), key, revision));
            }
        }
    }

    /// Adds what `errors` middlewares refer to.
    fn middlewares(&mut self, prefix: &str, entries: Vec<model::KeyValue>) {
        let range = middlewares(prefix);
        for (key, value, revision) in readable(entries) {
            let segments = segments(&key, &range);
            let [_, errors, ref field @ ..] = *segments else {
                continue;
            };
            if !is(errors, "errors") {
                continue;
            }
            let value = String::from_utf8_lossy(&value);
            if !take(ERRORS, errors, field, &value) {
                self.stray.push((key, Fault::Freezes));
            } else if field.first().is_some_and(|field| is(field, "service")) {
                self.references.push((value.into_owned(), key, revision));
            }
        }
    }

    /// The service of this name, added if it is new.
    fn service(&mut self, name: &str) -> &mut Service {
        // Keys are sorted, so it is mostly the last one.
        if self.last.0 != name {
            self.last = (name.to_owned(), identity(name).into_owned());
        }
        if !self.services.contains_key(&self.last.1) {
            let service = Service {
                spelling: name.to_owned(),
                ..Service::default()
            };
            self.services.insert(self.last.1.clone(), service);
        }
        self.services.get_mut(&self.last.1).expect("just inserted")
    }

    /// Decides which services are defined: those that are referred to. Names are compared without case here;
    /// Traefik finds one only under the spelling of its first key.
    fn refer(&mut self) {
        for (name, key, revision) in std::mem::take(&mut self.references) {
            let name = name.strip_suffix("@etcd").unwrap_or(&name);
            // Other providers' services are named with their `@`; digits alone with brackets.
            if name.is_empty() || name.contains(['@', '/']) || is_number(name) {
                continue;
            }
            let service = self.service(bare(name));
            service.define(&key, revision);
            if referred(&service.spelling) != name {
                self.stray.push((key, Fault::OtherSpelling));
            }
        }
    }

    fn finish(mut self, observed: &mut Observed) {
        self.refer();
        let defined = |service: &Service| matches!(service.definition, Definition::Valid { .. });
        let serves =
            |service: &Service| service.servers.values().any(|server| server.url.is_some());
        // A key of a service's own stays when its servers go, and so does a router.
        if self.routed == Some(false)
            && self.services.values().any(serves)
            && !self.services.values().any(defined)
        {
            self.stray
                .push((routers(&observed.prefix), Fault::NoRouter));
        }
        for (identity, service) in self.services {
            let Service {
                spelling,
                definition,
                servers,
            } = service;
            let mut backend = Backend {
                definition,
                ..Backend::default()
            };
            for (id, server) in servers {
                let Server {
                    url,
                    others,
                    frozen,
                } = server;
                let Some((url, mark)) = url else {
                    if !frozen && let Some(first) = others.first() {
                        self.stray.push((first.key.to_string(), Fault::UrlMissing));
                    }
                    backend.leftovers.insert(id, others.into());
                    continue;
                };
                let Other {
                    key,
                    value,
                    revision,
                } = url;
                let text = String::from_utf8_lossy(&value);
                let entry = Entry {
                    url: ServerUrl::parse(&text),
                    mark,
                    fault: url_fault(&text),
                    key,
                    value,
                    revision,
                    others: others.into(),
                };
                backend.servers.insert(id, entry);
            }
            if identity != spelling {
                observed.spellings.insert(identity, spelling.clone());
            }
            observed.backends.insert(spelling, backend);
        }
        self.stray.sort();
        observed.stray = self.stray;
    }
}

impl Service {
    /// Records that this key defines it, unless it is of another type.
    fn define(&mut self, key: &str, revision: u64) {
        if self.definition == Definition::Absent {
            self.definition = Definition::Valid {
                key: key.to_owned(),
                revision,
            };
        }
    }
}

#[cfg(test)]
mod tests;
