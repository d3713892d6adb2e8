//! First step of a loss: what is known of the pod behind a URL that would leave its backend. Looks at
//! pods, counts nothing.

use std::net::IpAddr;

use crate::layout::Entry;
use crate::model::{PodName, ServerUrl};
use crate::reconcile::evidence::{Absence, Evidence};
use crate::reconcile::map::{SeenPod, SkipReason, State};

/// What is known of the pod behind a loss, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// It gets no requests any more: the URL is removed.
    Dead(Dead),
    /// It is not Ready or terminating: the URL is removed while the backend keeps a Ready server like it.
    Leaving(Leaving),
    /// It may serve: the URL is removed only if as many servers like it remain.
    Unproved(Unproved),
}

/// Why a pod serves no requests at its entry's URL any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dead {
    /// It ended.
    Completed,
    /// It is being deleted and not Ready.
    Terminating,
    /// It is at this address now.
    Moved(IpAddr),
    /// It has no address now.
    NoAddress,
    /// Its address belongs to this other live pod alone.
    Reused(PodName),
    /// It is absent from a list that is a witness.
    Gone,
}

/// Why a pod will not serve for long, or does not right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It is being deleted and still Ready.
    Terminating,
    /// It is at the entry's address and not Ready.
    NotReady,
}

/// Why nothing proves that a pod does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unproved {
    /// It is Ready and no longer maps to this backend: why, if a reason is known.
    Unmapped(Option<SkipReason>),
    /// It is Ready and maps to this URL now.
    Changed(ServerUrl),
    /// It is absent from a list with selectors, which may leave it out.
    Unselected,
    /// The list without selectors, which would tell, was refused: why.
    Refused(String),
    /// It is absent from a list that shows none of our pods and publishes none.
    NoWitness,
    /// Its address, or the entry's, cannot be read.
    Unreadable,
    /// The entry is adopted and its pod is not seen at its address: it may be another cluster's.
    Adopted,
}

/// A classified loss.
pub(super) struct Classified<'l> {
    pub(super) class: Class,
    /// The pod behind the entry, if a list shows it.
    pub(super) pod: Option<&'l SeenPod>,
}

/// Classifies the loss of an entry's URL. `wanted` is the URL that the entry's pod wants in the same
/// backend, if any; `witness` tells whether absence from a list counts. `None` for a pod outside a partial
/// input.
pub(super) fn classify<'l>(
    evidence: &Evidence<'l>,
    witness: impl Fn(Absence) -> bool,
    backend: &str,
    entry: &Entry,
    adopted: bool,
) -> Option<Classified<'l>> {
    let unproved = |unproved, pod| {
        let class = Class::Unproved(unproved);
        Some(Classified { class, pod })
    };
    let Some(mark) = &entry.mark else {
        return unproved(Unproved::Adopted, None);
    };
    let address = entry.address();
    let pod = evidence.pod(mark, address);
    let is_there = |pod: &SeenPod| address.is_some_and(|(ip, _)| pod.is_at(ip));
    if adopted && !pod.is_some_and(is_there) {
        return unproved(Unproved::Adopted, None);
    }
    let dead = |dead| {
        let class = Class::Dead(dead);
        Some(Classified { class, pod })
    };
    let lives_there = |pod: &SeenPod| pod.state == State::Live && is_there(pod);
    if let Some((ip, _)) = address
        && !pod.is_some_and(lives_there)
        && let Some(other) = evidence.other_live_at(ip, mark)
    {
        return dead(Dead::Reused(other.name.clone()));
    }
    let Some(pod) = pod else {
        if mark.pod.is_none() && address.is_none() {
            return unproved(Unproved::Unreadable, None);
        }
        let absence = evidence.absence(&mark.namespace);
        if absence != Absence::NotShown && witness(absence) {
            return dead(Dead::Gone);
        }
        let why = match absence {
            Absence::NotShown => return None,
            Absence::Unselected => Unproved::Unselected,
            Absence::Refused(why) => Unproved::Refused(why.to_owned()),
            Absence::SecondLook { .. } | Absence::List(_) => Unproved::NoWitness,
        };
        return unproved(why, None);
    };
    match pod.state {
        State::Completed => return dead(Dead::Completed),
        State::Dying => return dead(Dead::Terminating),
        State::NoAddress => return dead(Dead::NoAddress),
        State::Live | State::NotReady | State::Leaving | State::Unreadable => {}
    }
    if !is_there(pod) {
        return match pod.ips.first() {
            Some(ip) if address.is_some() && !pod.unreadable_ip => dead(Dead::Moved(*ip)),
            _ => unproved(Unproved::Unreadable, Some(pod)),
        };
    }
    let leaving = |leaving| {
        let class = Class::Leaving(leaving);
        Some(Classified {
            class,
            pod: Some(pod),
        })
    };
    match pod.state {
        State::NotReady => leaving(Leaving::NotReady),
        State::Leaving => leaving(Leaving::Terminating),
        _ => {
            let mut wants = pod.wants.iter();
            let here = wants.find(|want| *want.backend == *backend);
            unproved(
                match here {
                    Some(want) => Unproved::Changed(want.url.clone()),
                    None => Unproved::Unmapped(pod.skipped.first().map(|s| s.reason.clone())),
                },
                Some(pod),
            )
        }
    }
}
