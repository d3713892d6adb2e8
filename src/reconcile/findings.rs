//! What the tree holds that hurts the proxy, whoever wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::layout::{Definition, Fault, Layout, Observed, Undefined};
use crate::model::{PodName, ServerUrl};
use crate::reconcile::evidence::{Evidence, Lists};
use crate::reconcile::plan::Plan;

/// One thing that hurts the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Others' servers under a backend that is not defined.
    Undefined {
        /// The backend.
        backend: String,
        /// How many servers.
        servers: usize,
        /// The keys and values that would define it.
        define: Vec<(String, String)>,
        /// What the proxy makes of it.
        effect: Undefined,
    },
    /// A backend whose definition the proxy does not take.
    BrokenDefinition {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A key or value that the proxy cannot read, or that crashes it.
    Fault {
        /// The key.
        key: String,
        /// What is wrong.
        fault: Fault,
    },
    /// Two backends that share servers because one id begins the other.
    Bleeds {
        /// The shorter id: this backend also gets the other's servers.
        shorter: String,
        /// The longer id.
        longer: String,
    },
    /// Backends under the other spelling of the prefix.
    Sibling {
        /// The prefix of this run.
        prefix: String,
        /// The other spelling.
        sibling: String,
        /// The proxy's option for the prefix of this run.
        root_option: String,
        /// How many backends are there.
        backends: usize,
    },
    /// One address in backends of two owners.
    TwoOwners {
        /// The address.
        ip: IpAddr,
        /// Keys and owners, in key order.
        entries: Vec<(String, String)>,
    },
    /// An unmarked entry at an address that is now a pod's of another backend.
    Stranger {
        /// The backend of the entry.
        backend: String,
        /// The key of the entry.
        key: String,
        /// The address.
        ip: IpAddr,
        /// The pod that has it.
        pod: PodName,
    },
}

pub(super) fn find(
    observed: &Observed,
    lists: &Lists,
    layout: &dyn Layout,
    plan: &Plan,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(sibling) = &observed.sibling {
        found.push(Finding::Sibling {
            prefix: observed.prefix.clone(),
            sibling: sibling.prefix.clone(),
            root_option: layout.root_option(&observed.prefix),
            backends: sibling.backends,
        });
    }
    let strays = observed.stray.iter();
    found.extend(strays.map(|(key, fault)| Finding::Fault {
        key: key.clone(),
        fault: *fault,
    }));
    let ids = observed.backends.keys().collect::<Vec<_>>();
    for (index, (id, backend)) in observed.backends.iter().enumerate() {
        match &backend.definition {
            Definition::OtherType { .. } if backend.servers.is_empty() => {}
            Definition::Broken { key, why } | Definition::OtherType { key, why } => {
                found.push(Finding::BrokenDefinition {
                    key: key.clone(),
                    why: why.clone(),
                });
            }
            // A backend that the plan speaks of, or is about to define, needs no second word.
            Definition::Absent
                if !backend.servers.is_empty()
                    && !plan.undefined.iter().any(|frozen| frozen.backend == *id)
                    && !plan
                        .changes
                        .iter()
                        .any(|c| c.backend == *id && c.server.is_none()) =>
            {
                found.push(Finding::Undefined {
                    backend: id.clone(),
                    servers: backend.servers.len(),
                    define: layout.definition(&observed.prefix, id),
                    effect: layout.undefined(),
                });
            }
            Definition::Absent | Definition::Valid { .. } => {}
        }
        // Ids are in order: those that begin with this one follow it.
        let longer = ids[index + 1..]
            .iter()
            .take_while(|other| other.starts_with(id.as_str()));
        for other in longer.filter(|other| layout.bleeds(id, other)) {
            found.push(Finding::Bleeds {
                shorter: id.clone(),
                longer: (*other).clone(),
            });
        }
        let entries = backend.servers.values();
        found.extend(entries.filter_map(|entry| {
            let fault = entry.fault?;
            Some(Finding::Fault {
                key: entry.key.to_string(),
                fault,
            })
        }));
    }
    found.extend(two_owners(observed));
    found.extend(strangers(observed, lists));
    found
}

fn two_owners(observed: &Observed) -> Vec<Finding> {
    let entries = || {
        let backends = observed.backends.values();
        let entries = backends.flat_map(|backend| backend.servers.values());
        entries.filter_map(|entry| Some((entry, &*entry.mark.as_ref()?.owner)))
    };
    let mut owners = entries().map(|(_, owner)| owner);
    let first = owners.next();
    if owners.all(|owner| Some(owner) == first) {
        return Vec::new();
    }
    let mut by_ip = BTreeMap::<IpAddr, Vec<(&str, &str)>>::new();
    for (entry, owner) in entries() {
        if let Some(ip) = entry.url.as_ref().and_then(ServerUrl::ip) {
            by_ip.entry(ip).or_default().push((&entry.key, owner));
        }
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

fn strangers(observed: &Observed, lists: &Lists) -> Vec<Finding> {
    let evidence = Evidence::new(lists);
    let mut found = Vec::new();
    for (id, backend) in &observed.backends {
        for entry in backend
            .servers
            .values()
            .filter(|entry| entry.mark.is_none())
        {
            let Some(ip) = entry.url.as_ref().and_then(ServerUrl::ip) else {
                continue;
            };
            let pods = evidence.live_at(ip).collect::<Vec<_>>();
            let backends = pods
                .iter()
                .flat_map(|pod| &pod.wants)
                .map(|want| &*want.backend);
            let backends = backends.collect::<BTreeSet<&str>>();
            if let Some(pod) = pods.first()
                && !backends.is_empty()
                && !backends.contains(id.as_str())
            {
                found.push(Finding::Stranger {
                    backend: id.clone(),
                    key: entry.key.to_string(),
                    ip,
                    pod: pod.name.clone(),
                });
            }
        }
    }
    found
}
