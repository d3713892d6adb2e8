//! Finds what in the tree harms the proxy after the run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use crate::layout::{Definition, Entry, Fault, Layout, Observed};
use crate::model::ServerUrl;
use crate::reconcile::evidence::{Evidence, Lists};
use crate::reconcile::findings::Finding;
use crate::reconcile::map::SeenPod;
use crate::reconcile::plan::{Action, Plan};

/// How many pairs of backends that share servers a finding names.
const EXAMPLES: usize = 5;

/// The plan's effect on the tree.
struct After<'p> {
    /// The keys that it writes or deletes: their present faults are gone after the run.
    changed: HashSet<&'p str>,
    /// The servers that it gives a URL, by their key up to its last slash.
    given_url: HashSet<&'p str>,
    /// The servers that it deletes, per backend.
    deleted: BTreeMap<&'p str, usize>,
    /// The backends that it defines.
    defined: BTreeSet<&'p str>,
    /// Backends that the plan reports itself.
    told: BTreeSet<&'p str>,
}

impl<'p> After<'p> {
    fn new(plan: &'p Plan) -> Self {
        let mut after = Self {
            changed: HashSet::new(),
            given_url: HashSet::new(),
            deleted: BTreeMap::new(),
            defined: BTreeSet::new(),
            told: plan
                .undefined
                .iter()
                .map(|frozen| &*frozen.backend)
                .collect(),
        };
        for change in &plan.changes {
            let backend = change.backend.as_str();
            after.changed.extend(change.writes().map(|write| write.key));
            match (&change.server, &change.action) {
                (None, _) => {
                    after.defined.insert(backend);
                }
                (_, Action::Delete { .. }) => *after.deleted.entry(backend).or_default() += 1,
                _ => {
                    let server = change.key.rsplit_once('/').map(|(server, _)| server);
                    after.given_url.extend(server);
                }
            }
        }
        after
    }

    fn leaves(&self, key: &str, fault: Fault) -> bool {
        let repaired = match fault {
            Fault::UrlMissing => key
                .rsplit_once('/')
                .is_some_and(|(server, _)| self.given_url.contains(server)),
            Fault::NoRouter => !self.defined.is_empty(),
            Fault::BareDirectory(_) => key
                .rsplit_once('/')
                .is_some_and(|(_, backend)| self.defined.contains(backend)),
            _ => false,
        };
        !repaired && !self.changed.contains(key)
    }
}

pub(super) fn find(
    observed: &Observed,
    lists: &Lists,
    layout: &dyn Layout,
    plan: &Plan,
) -> Vec<Finding> {
    let after = After::new(plan);
    let mut found = Vec::new();
    found.extend(observed.siblings.iter().map(|sibling| Finding::Sibling {
        prefix: observed.prefix.clone(),
        sibling: sibling.clone(),
        root_option: layout.root_option(&observed.prefix),
    }));
    let fault = |key: &str, fault: Fault| {
        let key = after.leaves(key, fault).then(|| key.to_owned())?;
        Some(Finding::Fault { key, fault })
    };
    let strays = observed.stray.iter();
    found.extend(strays.filter_map(|(key, of)| fault(key, *of)));
    for (id, backend) in &observed.backends {
        let told = after.told.contains(id.as_str());
        match &backend.definition {
            Definition::OtherType { .. } if backend.servers.is_empty() => {}
            Definition::Broken { .. } | Definition::OtherType { .. } if told => {}
            Definition::Broken {
                key,
                refusal,
                mended,
            } => found.push(Finding::BrokenDefinition {
                key: key.clone(),
                refusal: refusal.clone(),
                mend: Some(mended.clone()),
            }),
            Definition::OtherType { key, refusal } => found.push(Finding::BrokenDefinition {
                key: key.clone(),
                refusal: refusal.clone(),
                mend: None,
            }),
            // A backend that the plan reports or defines is not reported twice.
            Definition::Absent if !told && !after.defined.contains(id.as_str()) => {
                let deleted = after.deleted.get(id.as_str()).copied().unwrap_or_default();
                let servers = backend.servers.len() - deleted.min(backend.servers.len());
                if servers > 0 {
                    found.push(Finding::Undefined {
                        backend: id.clone(),
                        servers,
                        define: layout.definition(&observed.prefix, id),
                        effect: layout.undefined(),
                    });
                }
            }
            Definition::Absent | Definition::Valid { .. } => {}
        }
        let entries = backend.servers.values();
        found.extend(entries.filter_map(|entry| fault(&entry.key, entry.fault?)));
    }
    found.extend(bleeds(observed, layout, &after));
    found.extend(two_owners(observed, &after));
    found.extend(strangers(observed, lists, &after));
    found
}

fn bleeds(observed: &Observed, layout: &dyn Layout, after: &After) -> Option<Finding> {
    let ids = observed.backends.keys().map(String::as_str);
    let ids = ids.chain(after.defined.iter().copied());
    let ids = ids.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let (mut pairs, mut examples) = (0, Vec::new());
    for (index, id) in ids.iter().enumerate() {
        // Ids are sorted: those with this one as a prefix follow it.
        let later = &ids[index + 1..];
        let longer = &later[..later.partition_point(|other| other.starts_with(id))];
        if longer.first().is_some_and(|other| layout.bleeds(id, other)) {
            pairs += longer.len();
            let more = EXAMPLES - examples.len();
            let named = longer.iter().take(more);
            examples.extend(named.map(|other| ((*id).to_owned(), (*other).to_owned())));
        }
    }
    (pairs > 0).then_some(Finding::Bleeds { pairs, examples })
}

/// Entries that the run does not change, each with its address.
fn at_addresses<'o>(
    observed: &'o Observed,
    after: &'o After,
) -> impl Iterator<Item = (&'o str, &'o Entry, &'o ServerUrl, IpAddr)> {
    let backends = observed.backends.iter();
    let entries = backends.flat_map(|(id, backend)| {
        backend
            .servers
            .values()
            .map(move |entry| (id.as_str(), entry))
    });
    let entries = entries.filter(|(_, entry)| !after.changed.contains(&*entry.key));
    entries.filter_map(|(id, entry)| {
        let url = entry.url.as_ref()?;
        Some((id, entry, url, url.ip()?))
    })
}

fn two_owners(observed: &Observed, after: &After) -> Vec<Finding> {
    let entries = || {
        at_addresses(observed, after)
            .filter_map(|(_, entry, _, ip)| Some((entry, ip, &*entry.mark.as_ref()?.author.owner)))
    };
    let mut owners = entries().map(|(_, _, owner)| owner);
    let first = owners.next();
    if owners.all(|owner| Some(owner) == first) {
        return Vec::new();
    }
    let mut by_ip = BTreeMap::<IpAddr, Vec<(&str, &str)>>::new();
    for (entry, ip, owner) in entries() {
        by_ip.entry(ip).or_default().push((&entry.key, owner));
    }
    let several = |entries: &[(&str, &str)]| entries.iter().any(|(_, o)| *o != entries[0].1);
    by_ip
        .into_iter()
        .filter(|(_, entries)| several(entries))
        .map(|(ip, entries)| {
            let entries = entries
                .into_iter()
                .map(|(k, o)| (k.to_owned(), o.to_owned()));
            Finding::TwoOwners {
                ip,
                entries: entries.collect(),
            }
        })
        .collect()
}

/// The backends and ports of the live pods at one address.
#[derive(Default)]
struct AtAddress<'l> {
    /// The first one that wants to be a server.
    pod: Option<&'l SeenPod>,
    /// The ports that pods with servers declare or publish.
    ports: HashSet<u16>,
    /// The backends that they want.
    backends: HashSet<&'l str>,
}

impl<'l> AtAddress<'l> {
    fn new(pods: &[&'l SeenPod], observed: &'l Observed) -> Self {
        let mut here = Self::default();
        for pod in pods.iter().filter(|pod| !pod.wants.is_empty()) {
            here.pod.get_or_insert(pod);
            here.ports.extend(&pod.ports);
            for want in &pod.wants {
                here.ports.insert(want.url.port);
                here.backends.insert(observed.spelled(&want.backend));
            }
        }
        here
    }
}

fn strangers(observed: &Observed, lists: &Lists, after: &After) -> Vec<Finding> {
    let evidence = Evidence::new(lists);
    let mut addresses = HashMap::<IpAddr, AtAddress>::new();
    let unmarked = at_addresses(observed, after).filter(|(_, entry, _, _)| entry.mark.is_none());
    let found = unmarked.filter_map(|(id, entry, url, ip)| {
        let here = addresses
            .entry(ip)
            .or_insert_with(|| AtAddress::new(evidence.live_at(ip), observed));
        // An alias, or a second backend for another port of the pod, was made by hand on purpose.
        let meant = here.ports.contains(&url.port) || here.backends.contains(id);
        let pod = here.pod.filter(|_| !meant)?;
        Some(Finding::Stranger {
            backend: id.to_owned(),
            key: entry.key.to_string(),
            ip,
            pod: pod.name.clone(),
        })
    });
    found.collect()
}
