//! Second step of a loss: what a backend may lose. **A backend never loses more than it keeps, unless
//! what it loses is dead.** Counts servers, looks at no pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use crate::model::{Host, PodName, Scheme, ServerUrl};
use crate::reconcile::classify::{Class, Dead, Leaving, Unproved};

/// Permission to take a URL out of a backend, with its grounds. Only this module makes one: a delete
/// cannot be planned without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    grounds: Grounds,
    rests_on: Option<Rest>,
}

/// Why a URL may leave a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grounds {
    /// The entry has no URL that the proxy accepts: it gets no requests.
    NoUrl,
    /// The URL stays in the backend, under this other id of ours.
    Stays(String),
    /// Nobody is served at it any more.
    Dead(Dead),
    /// The backend keeps a Ready server like it.
    Leaving(Leaving),
    /// At least as many Ready servers like those that are lost remain.
    Outnumbered(Unproved),
    /// A hold that `--allow-deletes` released, or a kept server that `--strict-ready` gives up.
    Released(Class),
}

/// A key that must still be there when a change is applied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rest {
    /// The key.
    pub key: String,
    /// The revision it was read at; `None` if this run writes it before.
    pub revision: Option<u64>,
}

impl Permit {
    /// Why the URL may go.
    #[must_use]
    pub fn grounds(&self) -> &Grounds {
        &self.grounds
    }

    /// The entry that the backend keeps in its place, if the grounds need one.
    #[must_use]
    pub fn rests_on(&self) -> Option<&Rest> {
        self.rests_on.as_ref()
    }

    /// Whether the URL stays in the backend under another id.
    #[must_use]
    pub fn stays(&self) -> bool {
        matches!(self.grounds, Grounds::Stays(_))
    }

    /// For an entry that gets no requests.
    pub(super) fn without_url() -> Self {
        Self {
            grounds: Grounds::NoUrl,
            rests_on: None,
        }
    }

    /// For a held or kept loss that a flag of this run releases.
    pub(super) fn released(class: Class) -> Self {
        Self {
            grounds: Grounds::Released(class),
            rests_on: None,
        }
    }

    fn new(grounds: Grounds, rests_on: Option<Rest>) -> Self {
        Self { grounds, rests_on }
    }
}

/// Scheme, port and address family: a replacement must have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind {
    scheme: Scheme,
    port: u16,
    v6: bool,
}

impl Kind {
    pub(super) fn of(url: &ServerUrl) -> Self {
        Self {
            scheme: url.scheme,
            port: url.port,
            v6: matches!(url.host, Host::Ip(IpAddr::V6(_))),
        }
    }
}

/// A server of ours that pods want, and that will be there after the run unless its update is held.
pub(super) struct Server<'p> {
    pub(super) id: &'p str,
    pub(super) url: &'p ServerUrl,
    pub(super) pod: &'p PodName,
    pub(super) rest: Rest,
    /// Whether its weight is 0: it gets no requests, and replaces nothing.
    pub(super) drained: bool,
}

/// An entry of ours whose URL would leave its id: it is deleted, or updated to another URL.
pub(super) struct Loss<'p> {
    /// Its URL; `None` for one that only the proxy can read.
    pub(super) url: Option<&'p ServerUrl>,
    pub(super) class: Class,
    /// The pod behind it, if it is known.
    pub(super) pod: Option<&'p PodName>,
    /// Whether that pod is Ready.
    pub(super) ready: bool,
    /// The entry itself, for losses that rest on it while it is held.
    pub(super) rest: Rest,
    /// The server that would take its place under the same id: its place in the list of servers.
    pub(super) replaced_by: Option<usize>,
}

/// The verdict on a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Goes(Permit),
    /// Held: how many of its kind would go, and how many like them would remain.
    Held {
        lost: usize,
        remain: usize,
    },
    /// Kept: an unready server beats none.
    Kept,
}

/// The backend's losses and what will be there after the run.
pub(super) struct Backend<'p> {
    pub(super) losses: Vec<Loss<'p>>,
    /// The servers of ours that pods want there, those just created included.
    pub(super) servers: Vec<Server<'p>>,
    /// Marked servers of other owners: kind, and the entry.
    pub(super) others: Vec<(Kind, Rest)>,
}

/// The verdicts on a backend's losses, in their order, and whether it keeps servers without having a
/// Ready one.
pub(super) struct Held {
    pub(super) verdicts: Vec<Verdict>,
    pub(super) unready: bool,
}

/// The most passes in which servers whose update is held are taken out of account; after that all other updates are
/// held too. Each pass holds more; two are usual.
const PASSES: usize = 16;

impl Backend<'_> {
    /// Decides what is removed, held and kept.
    ///
    /// A held update leaves its new URL out of the backend, which may cost another loss its replacement:
    /// decided anew until nothing changes.
    pub(super) fn hold(&self, strict_ready: bool) -> Held {
        let mut stuck = vec![false; self.losses.len()];
        let mut pass = 0;
        loop {
            let held = self.pass(&stuck, strict_ready);
            let mut new = false;
            for (index, (loss, verdict)) in self.losses.iter().zip(&held.verdicts).enumerate() {
                let stays = !matches!(verdict, Verdict::Goes(_)) || pass == PASSES;
                if stays && loss.replaced_by.is_some() && !stuck[index] {
                    stuck[index] = true;
                    new = true;
                }
            }
            if !new {
                return held;
            }
            pass += 1;
        }
    }

    fn pass(&self, stuck: &[bool], strict_ready: bool) -> Held {
        let blocked = self.losses.iter().zip(stuck);
        let blocked = blocked.filter_map(|(loss, stuck)| loss.replaced_by.filter(|_| *stuck));
        let blocked = blocked.collect::<HashSet<_>>();
        let servers = self.servers.iter().enumerate();
        let servers = servers.filter(|(index, _)| !blocked.contains(index));
        let servers = servers.map(|(_, server)| server).collect::<Vec<_>>();
        let urls = servers.iter().map(|server| (server.url, *server));
        let urls = urls.collect::<HashMap<_, _>>();
        let stays = |index: usize| {
            let url = self.losses[index].url?;
            urls.get(url).copied().filter(|_| !stuck[index])
        };
        let lost = (0..self.losses.len()).filter(|index| stays(*index).is_none());
        let lost = lost.collect::<Vec<_>>();
        let count = Count::new(self, &lost, &servers, strict_ready);
        let verdict = |index: usize| {
            if let Some(server) = stays(index) {
                let grounds = Grounds::Stays(server.id.to_owned());
                return Verdict::Goes(Permit::new(grounds, Some(server.rest.clone())));
            }
            count.verdict(index, stuck[index])
        };
        let verdicts = (0..self.losses.len()).map(verdict).collect::<Vec<_>>();
        let kept = verdicts.contains(&Verdict::Kept);
        Held {
            unready: kept && count.remain.is_empty(),
            verdicts,
        }
    }
}

/// The counts of one pass.
struct Count<'b> {
    losses: &'b [Loss<'b>],
    strict_ready: bool,
    /// The number of unproved losses per kind, without adopted ones, which are always held.
    unproved: BTreeMap<Option<Kind>, usize>,
    /// For each loss its place among those.
    places: Vec<usize>,
    /// The Ready servers of each kind that remain.
    remain: BTreeMap<Kind, Vec<&'b Rest>>,
    /// Kinds of which all unproved losses are held.
    held: BTreeSet<Option<Kind>>,
    /// For each kind a Ready server that the backend keeps, or another owner's.
    serving: BTreeMap<Kind, &'b Rest>,
}

impl<'b> Count<'b> {
    fn new(
        backend: &'b Backend,
        lost: &[usize],
        servers: &[&'b Server<'b>],
        strict_ready: bool,
    ) -> Self {
        let losses = &backend.losses[..];
        let is_unproved = |index: &&usize| matches!(losses[**index].class, Class::Unproved(_));
        let kind = |index: usize| losses[index].url.map(Kind::of);
        let mut unproved = BTreeMap::<_, usize>::new();
        let mut places = vec![0; losses.len()];
        let mut losers = HashMap::<&PodName, Vec<usize>>::new();
        for index in lost.iter().filter(is_unproved).copied() {
            if losses[index].class != Class::Unproved(Unproved::Adopted) {
                let of_kind = unproved.entry(kind(index)).or_default();
                places[index] = *of_kind;
                *of_kind += 1;
            }
            if let Some(pod) = losses[index].pod {
                losers.entry(pod).or_default().push(index);
            }
        }
        // A pod that itself loses a URL is no replacement, neither for itself nor for others: its new
        // port may be a mistake.
        let mut remain = BTreeMap::<_, Vec<_>>::new();
        let mut of_losers = BTreeMap::<_, Vec<_>>::new();
        for server in servers {
            let kind = Kind::of(server.url);
            match losers.get(server.pod) {
                _ if server.drained => {}
                Some(lost) => of_losers.entry(kind).or_default().extend(lost),
                None => remain.entry(kind).or_default().push(&server.rest),
            }
        }
        let mut count = Self {
            losses,
            strict_ready,
            held: BTreeSet::new(),
            serving: BTreeMap::new(),
            unproved,
            places,
            remain,
        };
        for (kind, lost) in &count.unproved {
            if *lost > count.remain_like(*kind) {
                count.held.insert(*kind);
            }
        }
        loop {
            count.find_serving(backend, lost);
            // The next run does not see that a pod lost a URL in this one, and would count its new server
            // as a replacement: what is held now would be removed then. So such a loss is held, too.
            let kept = lost.iter().copied().filter(|index| count.is_kept(*index));
            let wanting = kept.filter_map(kind).map(Some).collect::<BTreeSet<_>>();
            let wanting = wanting.union(&count.held).copied().flatten();
            let losers = wanting.flat_map(|kind| of_losers.get(&kind).into_iter().flatten());
            let more = losers.map(|index| kind(*index)).collect::<BTreeSet<_>>();
            if more.is_subset(&count.held) {
                return count;
            }
            count.held.extend(more);
        }
    }

    fn remain_like(&self, kind: Option<Kind>) -> usize {
        let remain = kind.and_then(|kind| self.remain.get(&kind));
        remain.map_or(0, Vec::len)
    }

    fn find_serving(&mut self, backend: &'b Backend, lost: &[usize]) {
        let remain = self.remain.iter();
        let mut serving = remain
            .filter_map(|(kind, rests)| Some((*kind, *rests.first()?)))
            .collect::<BTreeMap<_, _>>();
        for index in lost {
            let loss = &self.losses[*index];
            if let Some(url) = loss.url
                && loss.ready
                && self.is_held(loss)
            {
                serving.entry(Kind::of(url)).or_insert(&loss.rest);
            }
        }
        for (kind, rest) in &backend.others {
            serving.entry(*kind).or_insert(rest);
        }
        self.serving = serving;
    }

    fn is_held(&self, loss: &Loss) -> bool {
        match &loss.class {
            Class::Unproved(Unproved::Adopted) => true,
            Class::Unproved(_) => self.held.contains(&loss.url.map(Kind::of)),
            Class::Dead(_) | Class::Leaving(_) => false,
        }
    }

    /// Whether a loss is a leaving one that must stay for want of a Ready server like it.
    fn is_kept(&self, index: usize) -> bool {
        let loss = &self.losses[index];
        let serving = loss.url.and_then(|url| self.serving.get(&Kind::of(url)));
        let must_stay = match loss.class {
            // A Ready server in its very place is better than one that is not.
            Class::Leaving(Leaving::NotReady) => loss.replaced_by.is_none(),
            Class::Leaving(Leaving::Terminating) => true,
            Class::Dead(_) | Class::Unproved(_) => false,
        };
        must_stay && serving.is_none() && !self.strict_ready
    }

    fn verdict(&self, index: usize, stuck: bool) -> Verdict {
        let loss = &self.losses[index];
        let kind = loss.url.map(Kind::of);
        match &loss.class {
            Class::Dead(dead) => Verdict::Goes(Permit::new(Grounds::Dead(dead.clone()), None)),
            Class::Leaving(_) if self.is_kept(index) || stuck => Verdict::Kept,
            Class::Leaving(leaving) => {
                let rest = kind.and_then(|kind| self.serving.get(&kind));
                Verdict::Goes(match rest {
                    None if self.strict_ready => Permit::released(loss.class.clone()),
                    rest => {
                        Permit::new(Grounds::Leaving(*leaving), rest.map(|rest| (*rest).clone()))
                    }
                })
            }
            Class::Unproved(unproved) => {
                let rests = kind.and_then(|kind| self.remain.get(&kind));
                let rest = rests.and_then(|rests| rests.get(self.places[index]));
                match rest {
                    Some(rest) if !self.is_held(loss) && !stuck => Verdict::Goes(Permit::new(
                        Grounds::Outnumbered(unproved.clone()),
                        Some((*rest).clone()),
                    )),
                    _ => Verdict::Held {
                        lost: self.unproved.get(&kind).copied().unwrap_or(1),
                        remain: self.remain_like(kind),
                    },
                }
            }
        }
    }
}
