//! What is said of findings: what hurts the proxy, why, and the way out.

use super::{Etcdctl, Note, puts};
use crate::layout::{Fault, Layout, Observed, Undefined};
use crate::reconcile::findings::Finding;
use crate::reconcile::plan::NoBackends;
use crate::text::escaped;

/// What a finding says.
pub(super) fn note(finding: &Finding, etcdctl: Etcdctl) -> Note {
    let (text, items, commands) = match finding {
        Finding::Undefined {
            backend,
            servers,
            define,
            effect,
        } => (
            format!(
                "backend {}: it has servers ({servers}) and no definition: {}. Define it, or remove \
                 its servers:",
                escaped(backend),
                undefined(*effect)
            ),
            Vec::new(),
            puts(etcdctl, define),
        ),
        Finding::BrokenDefinition { key, why } => (
            format!(
                "a definition the proxy does not take: {}. Mend it.",
                escaped(why)
            ),
            vec![escaped(key).into_owned()],
            Vec::new(),
        ),
        Finding::Fault { key, fault } => {
            let command = if is_removed(*fault) {
                etcdctl.del(key)
            } else {
                None
            };
            let items = vec![escaped(key).into_owned()];
            (
                text(*fault).to_owned(),
                items,
                command.into_iter().collect(),
            )
        }
        Finding::Bleeds { shorter, longer } => (
            format!(
                "backend {} also gets the servers of {} at the proxy's next start, because its id \
                 begins the other. Give ids a fixed ending, such as `.svc`.",
                escaped(shorter),
                escaped(longer)
            ),
            Vec::new(),
            Vec::new(),
        ),
        Finding::Sibling {
            prefix,
            sibling,
            backends,
            root_option,
        } => (
            format!(
                "backends under `{sibling}/` ({backends}), while this run works under `{prefix}/`: a \
                 proxy reads only one of the two. Start it with `{root_option}`, or choose with \
                 `--prefix`."
            ),
            Vec::new(),
            Vec::new(),
        ),
        Finding::TwoOwners { ip, entries } => (
            format!(
                "address {ip} is in backends of two owners: one of them may send its traffic to a \
                 stranger."
            ),
            entries
                .iter()
                .map(|(key, owner)| format!("{}  owner {}", escaped(key), escaped(owner)))
                .collect(),
            Vec::new(),
        ),
        Finding::Stranger {
            backend,
            key,
            ip,
            pod,
        } => (
            format!(
                "backend {}: an entry without a mark at {ip}, which is now pod {}'s, of another \
                 backend: its traffic reaches a stranger. Remove it:",
                escaped(backend),
                escaped(&pod.to_string())
            ),
            vec![escaped(key).into_owned()],
            etcdctl.del(key).into_iter().collect(),
        ),
    };
    Note {
        kind: "finding",
        text,
        items,
        commands,
    }
}

/// Why a run stops where the store defines no backend at all, and the likeliest ways out.
#[must_use]
pub fn no_backends(
    none: &NoBackends,
    observed: &Observed,
    layout: &dyn Layout,
    etcdctl: Etcdctl,
) -> anyhow::Error {
    let NoBackends {
        prefix,
        wanted,
        example,
    } = none;
    let place = layout.definitions(prefix);
    let started_with = layout.root_option(prefix);
    let way_out = match layout.undefined() {
        Undefined::Stops => {
            ", one on etcd's other API with `--etcd-api`. If the store is new, give `--create-backends` \
             or define the backends"
        }
        Undefined::Unrouted => ". If the store is new, define routers that name the services",
    };
    let define = puts(etcdctl, &layout.definition(prefix, example));
    let define = define.join(" && ");
    let sibling = match &observed.sibling {
        Some(sibling) => format!(
            "There are {} backends under `{}/`: is that the right `--prefix`? ",
            sibling.backends, sibling.prefix
        ),
        None => String::new(),
    };
    anyhow::anyhow!(
        "no backend is defined under `{place}`, and pods want {wanted}: is this the right store? \
         {sibling}A proxy that keeps its keys elsewhere is told with `--prefix` (and the proxy must be \
         started for the same one: `{started_with}`){way_out}: {define}"
    )
}

/// Why a backend needs a definition.
pub(super) fn undefined(effect: Undefined) -> &'static str {
    match effect {
        Undefined::Stops => {
            "the proxy does not know it, and servers without a definition can hang or stop it at its next \
             start"
        }
        Undefined::Unrouted => {
            "no router names it, and it has no key of its own beside servers, so the proxy sends it nothing"
        }
    }
}

/// How a backend gets its definition.
pub(super) fn define(effect: Undefined) -> &'static str {
    match effect {
        Undefined::Stops => "Define it, or give `--create-backends`:",
        Undefined::Unrouted => "Define a router, with a rule of yours:",
    }
}

/// What a key or value does to the proxy, and the way out.
fn text(fault: Fault) -> &'static str {
    match fault {
        Fault::Null => "a value `null` crashes the proxy, at each start again. Remove it:",
        Fault::Malformed => "a value that is no server: the proxy stops or fails on it. Remove it:",
        Fault::NoUrl => {
            "a server without a valid URL: after a restart of the proxy every request to its \
             backend fails. Remove it:"
        }
        Fault::SlashInId => {
            "a slash in a server's id: ignored on etcd v3, and the whole backend broken on v2. \
             Remove it."
        }
        Fault::BareDirectory => {
            "a directory of a backend without a definition: on etcd v2 the proxy does not start. \
             Define the backend or remove the directory."
        }
        Fault::Freezes => {
            "a key or value that Traefik 3.7 cannot read: it stays at its last good configuration \
             until this is gone. Remove it:"
        }
        Fault::BadUrl => {
            "a server without a valid URL: its share of the requests fails, or Traefik disables its \
             whole service (404). Remove it:"
        }
        Fault::TwoSpellings => {
            "services whose names differ in case only are one to Traefik, under one of the names: \
             routers that name another answer 404. Give it one spelling."
        }
        Fault::NoRouter => {
            "servers, and no router at all: when the last service key goes Traefik keeps serving \
             the old servers. Define a router first."
        }
    }
}

/// Whether removing its key is the way out.
fn is_removed(fault: Fault) -> bool {
    match fault {
        Fault::Null | Fault::Malformed | Fault::NoUrl | Fault::Freezes | Fault::BadUrl => true,
        Fault::SlashInId | Fault::BareDirectory | Fault::NoRouter | Fault::TwoSpellings => false,
    }
}
