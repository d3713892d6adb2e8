//! The proof of each delete: what the lists say of the pod behind an entry that is not wanted.

use std::collections::BTreeMap;

use crate::layout::Entry;
use crate::model::{PodName, ServerUrl};
use crate::reconcile::evidence::{Evidence, Whereabouts};
use crate::reconcile::map::State;
use crate::reconcile::plan::{Proof, Rule};

/// What becomes of an entry of ours that is not wanted at its key.
pub(super) enum Verdict {
    Proved(Proof),
    /// Not proved; goes only if few go this way.
    Weak(Proof),
    /// Not proved; goes only if few go this way, and a list without selectors would prove it.
    Doubtful {
        namespace: String,
        refused: Option<String>,
    },
    NotReady,
    Held(Rule, Proof),
}

/// Judges one entry of ours that is not wanted at its key.
pub(super) fn judge(
    evidence: &Evidence,
    stays: &BTreeMap<&ServerUrl, &str>,
    entry: &Entry,
    adopted: bool,
) -> Verdict {
    if let Some(id) = entry.url.as_ref().and_then(|url| stays.get(url)) {
        return Verdict::Proved(Proof::Stays((*id).to_owned()));
    }
    let Some(mark) = &entry.mark else {
        // Unmarked entries are adopted for a URL that is wanted here; it is not published yet.
        return Verdict::Held(Rule::Adopted, Proof::Gone);
    };
    let ip = entry.url.as_ref().and_then(ServerUrl::ip);
    let found = evidence.whereabouts(&mark.namespace, mark.pod.as_deref(), ip);
    if let Whereabouts::There(pod) = found {
        return match pod.state {
            State::Terminating => Verdict::Proved(Proof::Terminating),
            State::Completed => Verdict::Proved(Proof::Completed),
            State::NoAddress => Verdict::Proved(Proof::NoAddress),
            State::NotReady => Verdict::NotReady,
            State::Live => Verdict::Weak(Proof::Unwanted(pod.skipped.first().cloned())),
        };
    }
    if adopted {
        return Verdict::Held(Rule::Adopted, Proof::Gone);
    }
    if let Some(ip) = ip {
        let other = evidence.live_at(ip).find(|pod| {
            // Where the entry names no pod, one of its namespace would have been found above.
            mark.pod.as_deref() != Some(&*pod.name.name) || *pod.name.namespace != *mark.namespace
        });
        if let Some(other) = other {
            return Verdict::Proved(Proof::Reused(other.name.clone()));
        }
    }
    match found {
        Whereabouts::There(_) => unreachable!("answered above"),
        Whereabouts::Elsewhere(pod) => Verdict::Proved(match pod.state {
            State::Terminating => Proof::Terminating,
            State::Completed => Proof::Completed,
            _ if entry.url.is_none() => Proof::NoUrl,
            _ => pod
                .ips
                .first()
                .map_or(Proof::NoAddress, |ip| Proof::Moved(*ip)),
        }),
        Whereabouts::Gone => Verdict::Proved(Proof::Gone),
        Whereabouts::EmptyList => Verdict::Held(Rule::EmptyList, Proof::Gone),
        Whereabouts::NotSelected => Verdict::Doubtful {
            namespace: mark.namespace.to_string(),
            refused: None,
        },
        Whereabouts::Refused(why) => Verdict::Doubtful {
            namespace: mark.namespace.to_string(),
            refused: Some(why.to_owned()),
        },
    }
}

/// The pod an entry names.
pub(super) fn entry_pod(entry: &Entry) -> Option<PodName> {
    let mark = entry.mark.as_ref()?;
    Some(PodName {
        namespace: mark.namespace.clone(),
        name: mark.pod.clone()?,
    })
}
