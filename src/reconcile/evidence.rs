//! What the pod lists prove: who stands where, and what a namespace's silence means.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use crate::reconcile::map::{SeenPod, State};

/// One complete list of pods.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The namespaces it covers.
    pub coverage: Coverage,
    /// Its pods.
    pub pods: Vec<SeenPod>,
}

/// The namespaces a list covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Coverage {
    /// All of the cluster.
    #[default]
    All,
    /// Just this one.
    Namespace(String),
    /// Those its pods are in (a file does not say more).
    Seen,
}

/// All that was listed for one decision.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    /// The lists, as the run's selectors gave them.
    pub lists: Vec<List>,
    /// Whether selectors narrowed them (the automatic one on completed pods does not count).
    pub selected: bool,
    /// Namespaces that were listed once more without selectors: their pods, or why that was refused.
    pub again: BTreeMap<String, Result<Vec<SeenPod>, String>>,
}

impl Lists {
    /// The pods of the lists, without those of the second look.
    pub fn pods(&self) -> impl Iterator<Item = &SeenPod> {
        self.lists.iter().flat_map(|list| &list.pods)
    }
}

/// An index over [`Lists`].
pub(super) struct Evidence<'l> {
    lists: &'l Lists,
    /// Whether a list without any pod is believed.
    allow_empty: bool,
    /// Made when first asked for: where nothing is to go, nothing is to be proved.
    index: OnceCell<Index<'l>>,
    /// Namespaces that occur in a list that covers just what it shows.
    seen: HashSet<&'l str>,
}

#[derive(Default)]
struct Index<'l> {
    by_name: HashMap<(&'l str, &'l str), &'l SeenPod>,
    /// Pods at an address that is theirs alone (not their node's), the completed ones left out.
    by_ip: HashMap<IpAddr, Vec<&'l SeenPod>>,
}

/// What the lists say of the pod behind an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts<'l> {
    /// Listed, at the entry's address.
    There(&'l SeenPod),
    /// Listed, but elsewhere or nowhere.
    Elsewhere(&'l SeenPod),
    /// In none of the lists that must show it: it is gone.
    Gone,
    /// Not in the selected list; it might only be relabelled.
    NotSelected,
    /// Not in the selected list, and the list without selectors was refused.
    Refused(&'l str),
    /// The list that should show it came back without any pod.
    EmptyList,
}

impl<'l> Index<'l> {
    fn new(lists: &'l Lists) -> Self {
        let mut index = Self::default();
        for pod in lists.pods() {
            index.add(pod);
        }
        for pod in lists.again.values().flatten().flatten() {
            // What the first list showed stands: the plan's other half was made from it.
            if !index
                .by_name
                .contains_key(&(&*pod.name.namespace, &*pod.name.name))
            {
                index.add(pod);
            }
        }
        index
    }

    fn add(&mut self, pod: &'l SeenPod) {
        self.by_name
            .insert((&pod.name.namespace, &pod.name.name), pod);
        if pod.state != State::Completed {
            for ip in &pod.ips {
                self.by_ip.entry(ip.to_canonical()).or_default().push(pod);
            }
        }
    }
}

impl<'l> Evidence<'l> {
    pub(super) fn new(lists: &'l Lists, allow_empty: bool) -> Self {
        let seen = lists.lists.iter();
        let seen = seen.filter(|list| list.coverage == Coverage::Seen);
        let seen = seen.flat_map(|list| &list.pods);
        Self {
            lists,
            allow_empty,
            index: OnceCell::new(),
            seen: seen.map(|pod| &*pod.name.namespace).collect(),
        }
    }

    fn index(&self) -> &Index<'l> {
        self.index.get_or_init(|| Index::new(self.lists))
    }

    /// Whether a list covers this namespace.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        self.lists.lists.iter().any(|list| match &list.coverage {
            Coverage::All => true,
            Coverage::Namespace(name) => name == namespace,
            Coverage::Seen => list.pods.is_empty() || self.seen.contains(namespace),
        })
    }

    /// Live pods that have this address to themselves.
    pub(super) fn live_at(&self, ip: IpAddr) -> impl Iterator<Item = &'l SeenPod> {
        self.at(ip)
            .filter(|pod| pod.state == State::Live && !pod.host_network)
    }

    fn at(&self, ip: IpAddr) -> impl Iterator<Item = &'l SeenPod> {
        let by_ip = &self.index().by_ip;
        by_ip.get(&ip.to_canonical()).into_iter().flatten().copied()
    }

    /// Where the pod behind an entry is. Without a pod's name it is the one at the address, of that
    /// namespace.
    pub(super) fn whereabouts(
        &self,
        namespace: &str,
        pod: Option<&str>,
        ip: Option<IpAddr>,
    ) -> Whereabouts<'l> {
        match pod {
            Some(name) => {
                if let Some(pod) = self.index().by_name.get(&(namespace, name)) {
                    let there = ip.is_some_and(|ip| {
                        pod.ips
                            .iter()
                            .any(|own| own.to_canonical() == ip.to_canonical())
                    });
                    return if there {
                        Whereabouts::There(pod)
                    } else {
                        Whereabouts::Elsewhere(pod)
                    };
                }
            }
            None => {
                let own = |pod: &&SeenPod| *pod.name.namespace == *namespace;
                if let Some(ip) = ip
                    && let Some(pod) = self.at(ip).filter(own).min_by_key(|pod| pod.state)
                {
                    return Whereabouts::There(pod);
                }
            }
        }
        let empty = self.lists.lists.iter().any(|list| {
            list.pods.is_empty()
                && match &list.coverage {
                    Coverage::All | Coverage::Seen => true,
                    Coverage::Namespace(name) => name == namespace,
                }
        });
        if empty && !self.allow_empty {
            return Whereabouts::EmptyList;
        }
        match self.lists.again.get(namespace) {
            _ if !self.lists.selected => Whereabouts::Gone,
            Some(Ok(pods)) if pods.is_empty() && !self.allow_empty => Whereabouts::EmptyList,
            Some(Ok(_)) => Whereabouts::Gone,
            Some(Err(why)) => Whereabouts::Refused(why),
            None => Whereabouts::NotSelected,
        }
    }
}
