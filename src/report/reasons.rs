//! Why a change is made or held, in a line: beside each change, in notes and in `explain`.

use crate::model::PodName;
use crate::reconcile::classify::{Class, Dead, Leaving, Unproved};
use crate::reconcile::hold::Grounds;
use crate::reconcile::map::SkipReason;
use crate::reconcile::plan::{Action, Change, Held, Reason};
use crate::text::escaped;

/// Why a change is made, in a line.
#[must_use]
pub(crate) fn why(change: &Change) -> String {
    let pod = named(change.pod.as_ref());
    let reason = |reason: &Reason| match reason {
        Reason::Define => "pods want this backend, and it is not defined".to_owned(),
        Reason::Ready => format!("{pod} is ready"),
        Reason::Differs(what) => format!("{pod} is ready; changed: {what}"),
        Reason::Adopted(what) => format!("{pod} is ready; adopted: {what}"),
        Reason::Moved(id) => format!("{pod} is ready; it was {id} too, with further keys"),
    };
    match &change.action {
        Action::Create { reason: why, .. } => reason(why),
        Action::Update {
            reason: why,
            permit,
            ..
        } => match permit {
            Some(permit) => {
                let grounds = grounds("the pod of the old one", permit.grounds());
                format!("{} ({grounds})", reason(why))
            }
            None => reason(why),
        },
        Action::Delete { permit, .. } => grounds(&pod, permit.grounds()),
    }
}

/// Why a change is held, in a line.
#[must_use]
pub(crate) fn held(held: &Held) -> String {
    unproved(&named(held.entry.pod.as_ref()), &held.evidence)
}

/// The pod behind an entry, for the middle of a sentence.
pub(super) fn named(pod: Option<&PodName>) -> String {
    match pod {
        Some(pod) => format!("pod {}", escaped(&pod.to_string())),
        None => "its pod".to_owned(),
    }
}

/// Why a URL may go, in a line.
pub(super) fn grounds(pod: &str, grounds: &Grounds) -> String {
    match grounds {
        Grounds::NoUrl => "it has no valid URL".to_owned(),
        Grounds::Stays(id) => format!("its URL stays here as {id}"),
        Grounds::Dead(dead) => self::dead(pod, dead),
        Grounds::Leaving(leaving) => self::leaving(pod, *leaving),
        Grounds::Outnumbered(unproved) => self::unproved(pod, unproved),
        Grounds::Released(class) => {
            let (why, flag) = match class {
                Class::Dead(dead) => (self::dead(pod, dead), "--allow-deletes"),
                Class::Leaving(leaving) => (self::leaving(pod, *leaving), "--strict-ready"),
                Class::Unproved(unproved) => (self::unproved(pod, unproved), "--allow-deletes"),
            };
            format!("{why} ({flag})")
        }
    }
}

fn dead(pod: &str, dead: &Dead) -> String {
    match dead {
        Dead::Completed => format!("{pod} is completed"),
        Dead::Terminating => format!("{pod} is terminating"),
        Dead::Moved(ip) => format!("{pod} is now at {ip}"),
        Dead::NoAddress => format!("{pod} has no address"),
        Dead::Reused(other) => format!("address reused by {}", named(Some(other))),
        Dead::Gone => format!("{pod} is gone"),
    }
}

fn leaving(pod: &str, leaving: Leaving) -> String {
    match leaving {
        Leaving::Terminating => format!("{pod} is terminating"),
        Leaving::NotReady => format!("{pod} is not ready"),
    }
}

/// Why a loss is unproved, in a line.
pub(super) fn unproved(pod: &str, unproved: &Unproved) -> String {
    match unproved {
        Unproved::Unmapped(None | Some(SkipReason::NoBackend)) => {
            format!("{pod} no longer maps to this backend")
        }
        Unproved::Unmapped(Some(reason)) => format!(
            "{pod} no longer maps to this backend: {}",
            escaped(&reason.to_string())
        ),
        Unproved::Changed(url) => format!("{pod} maps to {url} now"),
        Unproved::Unselected => format!("{pod} is not among the selected pods"),
        Unproved::Refused(why) => format!(
            "{pod} is not among the selected pods, and the list without selectors was refused: {}",
            escaped(why)
        ),
        Unproved::NoWitness => {
            format!("{pod} is absent from a list that shows none of our pods")
        }
        Unproved::Unreadable => "its address cannot be read".to_owned(),
        Unproved::Adopted => format!("{pod} is not seen at the adopted entry's address"),
    }
}
