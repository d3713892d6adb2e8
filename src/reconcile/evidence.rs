//! Evidence from the pod lists: which pod is at which address, and what a pod's absence means.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use crate::model::Mark;
use crate::reconcile::map::{SeenPod, State};

/// One list of pods.
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
    /// This one.
    Namespace(String),
    /// Those that its pods are in: a file does not tell more.
    Seen,
    /// None completely: there may be more pods (one `Pod`, a kubelet's list).
    Partial,
}

/// All lists for one decision.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    /// The lists, as the run's selectors gave them.
    pub lists: Vec<List>,
    /// Whether they had selectors (the automatic one on completed pods does not count).
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
    /// Built on first use: where nothing is lost, nothing has to be proved.
    index: OnceCell<Index<'l>>,
    /// Namespaces that occur in a list that covers just what it shows.
    seen: HashSet<&'l str>,
}

#[derive(Default)]
struct Index<'l> {
    by_name: HashMap<(&'l str, &'l str), &'l SeenPod>,
    /// The pod of a namespace at an address, the completed ones left out: of several the one that is most
    /// alive, and of those the first. On its node's address a pod is found by each port that it declares.
    by_place: HashMap<Place<'l>, (State, usize, &'l SeenPod)>,
    /// Live pods that have an address to themselves (not their node's).
    live: HashMap<IpAddr, Vec<&'l SeenPod>>,
    /// If several pods have an address: the first that is in another namespace than the very first.
    elsewhere: HashMap<IpAddr, &'l SeenPod>,
}

/// An address, a namespace, and on a node's address a port.
type Place<'l> = (IpAddr, &'l str, Option<u16>);

/// What a pod's absence from the lists means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence<'l> {
    /// Nothing: the input is partial.
    NotShown,
    /// Selectors may have left it out: a list without them would tell.
    Unselected,
    /// The list without selectors was refused: why.
    Refused(&'l str),
    /// The list without selectors does not show it; whether that list shows any pod.
    SecondLook {
        /// Whether it has pods.
        any: bool,
    },
    /// The complete list of this index does not show it.
    List(usize),
}

impl<'l> Index<'l> {
    fn new(lists: &'l Lists) -> Self {
        let mut index = Self::default();
        for pod in lists.pods() {
            index.add(pod);
        }
        for pod in lists.again.values().flatten().flatten() {
            // The first list takes precedence: the rest of the plan was made from it.
            let name = (&*pod.name.namespace, &*pod.name.name);
            if !index.by_name.contains_key(&name) {
                index.add(pod);
            }
        }
        index
    }

    fn add(&mut self, pod: &'l SeenPod) {
        self.by_name
            .insert((&pod.name.namespace, &pod.name.name), pod);
        if pod.state == State::Completed {
            return;
        }
        let (namespace, order) = (&*pod.name.namespace, self.by_name.len());
        for ip in pod.ips.iter().map(IpAddr::to_canonical) {
            let mut place = |port| {
                let found = (pod.state, order, pod);
                let first = self.by_place.entry((ip, namespace, port)).or_insert(found);
                if (found.0, found.1) < (first.0, first.1) {
                    *first = found;
                }
            };
            if pod.host_network {
                pod.ports.iter().copied().map(Some).for_each(place);
            } else {
                place(None);
            }
            if pod.state == State::Live && !pod.host_network {
                let live = self.live.entry(ip).or_default();
                live.push(pod);
                if live[0].name.namespace != pod.name.namespace {
                    self.elsewhere.entry(ip).or_insert(pod);
                }
            }
        }
    }
}

impl<'l> Evidence<'l> {
    pub(super) fn new(lists: &'l Lists) -> Self {
        let seen = lists.lists.iter();
        let seen = seen.filter(|list| list.coverage == Coverage::Seen);
        let seen = seen.flat_map(|list| &list.pods);
        Self {
            lists,
            index: OnceCell::new(),
            seen: seen.map(|pod| &*pod.name.namespace).collect(),
        }
    }

    fn index(&self) -> &Index<'l> {
        self.index.get_or_init(|| Index::new(self.lists))
    }

    /// Whether a list covers this namespace, or is one that does not say what it covers.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        self.list_of(namespace).is_some()
    }

    /// The list that would show a pod of this namespace.
    fn list_of(&self, namespace: &str) -> Option<usize> {
        self.lists
            .lists
            .iter()
            .position(|list| match &list.coverage {
                Coverage::All | Coverage::Partial => true,
                Coverage::Namespace(name) => name == namespace,
                Coverage::Seen => list.pods.is_empty() || self.seen.contains(namespace),
            })
    }

    /// Live pods that have this address to themselves (not their node's).
    pub(super) fn live_at(&self, ip: IpAddr) -> &[&'l SeenPod] {
        let live = self.index().live.get(&ip.to_canonical());
        live.map_or(&[][..], Vec::as_slice)
    }

    /// A live pod that has this address to itself and is not the one behind a mark. Where the mark names no
    /// pod, one of its namespace is the one behind it.
    pub(super) fn other_live_at(&self, ip: IpAddr, mark: &Mark) -> Option<&'l SeenPod> {
        let mut live = self.live_at(ip).iter().copied();
        let is_other = |pod: &&SeenPod| pod.name.namespace != mark.namespace;
        match &mark.pod {
            Some(name) => live.find(|pod| is_other(pod) || *pod.name.name != **name),
            None => live.next().filter(is_other).or_else(|| {
                let elsewhere = self.index().elsewhere.get(&ip.to_canonical());
                elsewhere.copied().filter(is_other)
            }),
        }
    }

    /// The listed pod behind an entry: by its name where the mark carries it; else the one of its
    /// namespace at its address. Of the pods that share a node's address only those count that declare
    /// the port.
    pub(super) fn pod(&self, mark: &Mark, address: Option<(IpAddr, u16)>) -> Option<&'l SeenPod> {
        if let Some(name) = mark.pod.as_deref() {
            let name = (&*mark.namespace, name);
            return self.index().by_name.get(&name).copied();
        }
        let (ip, port) = address?;
        let by_place = &self.index().by_place;
        let candidates = [None, Some(port)].into_iter().filter_map(|port| {
            let place = (ip.to_canonical(), &*mark.namespace, port);
            by_place.get(&place).copied()
        });
        let first = candidates.min_by_key(|(state, order, _)| (*state, *order));
        first.map(|(_, _, pod)| pod)
    }

    /// The meaning of a pod's absence, for its namespace. Namespaces that no list covers are out of scope and
    /// never asked for.
    pub(super) fn absence(&self, namespace: &str) -> Absence<'l> {
        let Some(list) = self.list_of(namespace) else {
            return Absence::NotShown;
        };
        if self.lists.lists[list].coverage == Coverage::Partial {
            return Absence::NotShown;
        }
        match self.lists.again.get(namespace) {
            _ if !self.lists.selected => Absence::List(list),
            Some(Ok(pods)) => Absence::SecondLook {
                any: !pods.is_empty(),
            },
            Some(Err(why)) => Absence::Refused(why),
            None => Absence::Unselected,
        }
    }

    /// The index of the list that shows the pod behind an entry, at the entry's address.
    pub(super) fn shown_in(&self, mark: &Mark, address: Option<(IpAddr, u16)>) -> Option<usize> {
        let pod = self.pod(mark, address)?;
        let (ip, _) = address?;
        pod.is_at(ip)
            .then(|| self.list_of(&mark.namespace))
            .flatten()
    }
}
