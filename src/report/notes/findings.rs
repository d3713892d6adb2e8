//! Messages about findings: what harms the proxy, why, and the way out.

use super::{Note, puts};
use crate::layout::{Contents, Fault, Layout, Observed, Refusal, Sibling, SiblingKind, Undefined};
use crate::reconcile::findings::Finding;
use crate::reconcile::plan::NoBackends;
use crate::report::etcdctl::{Api, Etcdctl};
use crate::text::{escaped, shown};

/// The message of a finding.
pub(super) fn note(finding: &Finding, etcdctl: &Etcdctl) -> Note {
    let mut items = Vec::new();
    let mut commands = Vec::new();
    let text = match finding {
        Finding::Undefined {
            backend,
            servers,
            define,
            effect,
        } => {
            commands = puts(etcdctl, define);
            format!(
                "backend {}: it has servers ({servers}) and no definition: {}. Define it{}",
                escaped(backend),
                undefined(*effect),
                end(&commands)
            )
        }
        Finding::BrokenDefinition { key, refusal, mend } => {
            items.push(escaped(key).into_owned());
            commands = self::mend(etcdctl, key, refusal, mend.as_deref());
            format!(
                "a definition that the proxy does not take: {}. Mend it{}",
                reason(refusal),
                end(&commands)
            )
        }
        Finding::Fault { key, fault } => {
            items.push(escaped(key).into_owned());
            commands = remove(etcdctl, key, *fault);
            let text = text(*fault, etcdctl.api());
            match (way_out(*fault), commands.is_empty()) {
                (Some(way_out), _) => format!("{text}. {way_out}"),
                (None, true) => format!("{text}. Remove it."),
                (None, false) => format!("{text}. Remove it:"),
            }
        }
        Finding::Bleeds { pairs, examples } => {
            items.extend(examples.iter().map(|(shorter, longer)| {
                format!(
                    "{} gets the servers of {}",
                    escaped(shorter),
                    escaped(longer)
                )
            }));
            if *pairs > examples.len() {
                items.push(format!("and {} more", pairs - examples.len()));
            }
            format!(
                "backends whose ids begin alike ({pairs}): at the proxy's next start the shorter one also gets \
                 the servers of the longer one. Give ids a fixed ending, such as `.svc`."
            )
        }
        Finding::Sibling {
            prefix,
            sibling,
            root_option,
        } => self::sibling(prefix, sibling, root_option),
        Finding::TwoOwners { ip, entries } => {
            items.extend(
                entries
                    .iter()
                    .map(|(key, owner)| format!("{}  owner {}", escaped(key), escaped(owner))),
            );
            format!(
                "address {ip} is in backends of two owners: one of them may send its traffic to a stranger."
            )
        }
        Finding::Stranger {
            backend,
            key,
            ip,
            pod,
        } => {
            items.push(escaped(key).into_owned());
            format!(
                "backend {}: an entry without a mark at {ip}, which is now the address of pod {}, which \
                 names other backends and does not declare that port: the entry's traffic may reach a \
                 stranger.",
                escaped(backend),
                escaped(&pod.to_string())
            )
        }
    };
    Note {
        kind: "finding",
        text,
        items,
        commands,
    }
}

fn sibling(prefix: &str, sibling: &Sibling, root_option: &str) -> String {
    let Sibling {
        prefix: other,
        backends,
        kind,
    } = sibling;
    match kind {
        SiblingKind::Spelling => format!(
            "backends under `{other}/` ({backends}), while this run works under `{prefix}/`: a proxy reads \
             only one of the two. Start it with `{root_option}`, or choose with `--prefix`."
        ),
        SiblingKind::Predecessor => format!(
            "backends under `{other}/` ({backends}), where Amdatu Vulcanized and romulus kept theirs, while \
             this run works under `{prefix}/`. If the proxy reads those: `--prefix {other}`; if not, they \
             are leftovers."
        ),
    }
}

/// A colon if commands follow the sentence, else a full stop.
fn end(commands: &[String]) -> char {
    if commands.is_empty() { '.' } else { ':' }
}

fn reason(refusal: &Refusal) -> String {
    escaped(&shown(refusal.to_string().as_bytes())).into_owned()
}

/// The commands that mend a definition.
pub(super) fn mend(
    etcdctl: &Etcdctl,
    key: &str,
    refusal: &Refusal,
    mended: Option<&str>,
) -> Vec<String> {
    let directory = match refusal {
        Refusal::Directory { empty } => Some(etcdctl.remove_directory(key, *empty)),
        _ => None,
    };
    let put = mended.map(|mended| etcdctl.put(key, mended));
    let commands = directory.into_iter().chain(put);
    commands.collect::<Option<_>>().unwrap_or_default()
}

/// Why a run stops where the store defines no backend at all, and the likeliest ways out.
#[must_use]
pub(crate) fn no_backends(
    none: &NoBackends,
    observed: &Observed,
    layout: &dyn Layout,
    etcdctl: &Etcdctl,
) -> anyhow::Error {
    let NoBackends {
        prefix,
        wanted,
        example,
    } = none;
    let place = layout.definitions(prefix);
    let started_with = layout.root_option(prefix);
    let (way_out, other_api) = match layout.undefined() {
        Undefined::Stops => (
            "If the store is new, give `--create-backends`, or define the backends",
            ", `--etcd-api`",
        ),
        Undefined::Unrouted => (
            "If the store is new, define routers that name the services; if their routers are elsewhere (in files), \
             give `--create-backends`",
            "",
        ),
    };
    let define = puts(etcdctl, &layout.definition(prefix, example));
    let define = define.join(match etcdctl.api() {
        Some(_) => " && ",
        None => ", ",
    });
    let siblings = observed.siblings.iter().map(|sibling| {
        let whose = match sibling.kind {
            SiblingKind::Spelling => "",
            SiblingKind::Predecessor => ", where Amdatu Vulcanized and romulus kept theirs",
        };
        format!(
            "There are {} backends under `{}/`{whose}: is that the right `--prefix`? ",
            sibling.backends, sibling.prefix
        )
    });
    let siblings = siblings.collect::<String>();
    anyhow::anyhow!(
        "no backend is defined under `{place}`, and pods want {wanted}. {siblings}{way_out}. If it is not new, \
         check `--etcd`{other_api} and `--prefix` (the proxy is started for the same one: `{started_with}`). This \
         defines `{example}`: {define}"
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
            "no router, service or middleware in etcd names it, and it has no key of its own beside \
             servers, so the proxy sends it nothing unless a router elsewhere does"
        }
    }
}

/// How a backend gets its definition.
pub(super) fn define(effect: Undefined) -> &'static str {
    match effect {
        Undefined::Stops => "Define it, or give `--create-backends`:",
        Undefined::Unrouted => {
            "Give `--create-backends` if its router is in a file, or define a router, with a rule of yours:"
        }
    }
}

/// The effect of a fault on the proxy.
fn text(fault: Fault, api: Option<Api>) -> String {
    let v2 = api == Some(Api::V2);
    let text = match fault {
        Fault::Null => "a value `null` crashes the proxy, at each start again",
        Fault::Malformed if v2 => {
            "a value that is not the JSON of a server: every request to its backend fails"
        }
        Fault::Malformed => {
            "a value that is not the JSON of a server: vulcand 0.9.1 does not start with it, 0.9.2 ignores \
             it"
        }
        Fault::NoUrl if v2 => "a server without a URL: every request to its backend fails",
        Fault::NoUrl => "a server without a URL: the proxy ignores it",
        Fault::Refused(field) => {
            let effect = if v2 {
                "every request to its backend fails"
            } else {
                "it gets no requests, and a backend without another server answers 503"
            };
            return format!("a server that the proxy refuses for its `{field}`: {effect}");
        }
        Fault::NoHost => {
            "a URL without a host: after a restart of the proxy every request to its backend fails"
        }
        Fault::Unreachable => {
            "a server at a URL that the proxy cannot send requests to: its share of the requests fails"
        }
        Fault::SlashInId => "a slash in a server's id: the proxy ignores it on etcd v3",
        Fault::BareDirectory(_) => {
            "a directory of a backend without a definition: on etcd v2 the proxy does not start"
        }
        Fault::Directory(_) => {
            "a directory where a server's key should be: every request to its backend fails"
        }
        Fault::NotADirectory => {
            "a key where a directory should be: the proxy finds nothing in it, and nothing can be written \
             below it"
        }
        Fault::Freezes => {
            "a key or value that Traefik 3.7 cannot read: it stays at its last good configuration until \
             this is gone"
        }
        Fault::UrlMissing => "a server without a URL: its share of the requests fails (500)",
        Fault::Disables => "a URL that Traefik cannot read: it disables the whole service (404)",
        Fault::OtherSpelling => {
            "a service is named here in another spelling than that of its first key: Traefik finds it only \
             under that one, and answers 404"
        }
        Fault::NoRouter => {
            "servers, and no router at all: when the last service key goes Traefik keeps serving the old \
             servers"
        }
    };
    text.to_owned()
}

/// The way out, if it is not to remove the key.
fn way_out(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::Null
        | Fault::Malformed
        | Fault::NoUrl
        | Fault::UrlMissing
        | Fault::Directory(_)
        | Fault::NotADirectory
        | Fault::SlashInId => None,
        Fault::Refused(_) | Fault::NoHost | Fault::Unreachable | Fault::Disables => {
            Some("Mend or remove it.")
        }
        Fault::Freezes => Some("Mend or remove it; a newer Traefik may know it."),
        Fault::BareDirectory(_) => Some("Define the backend or remove the directory."),
        Fault::OtherSpelling => Some("Give it one spelling."),
        Fault::NoRouter => Some("Define a router first."),
    }
}

/// The commands that remove a key that serves no requests; empty for one that may be live.
fn remove(etcdctl: &Etcdctl, key: &str, fault: Fault) -> Vec<String> {
    let command = match fault {
        Fault::Null
        | Fault::Malformed
        | Fault::NoUrl
        | Fault::UrlMissing
        | Fault::NotADirectory => etcdctl.del(key),
        Fault::Directory(empty) => etcdctl.remove_directory(key, empty),
        Fault::BareDirectory(contents) => {
            let servers = format!("{key}/servers");
            let empty: &[&str] = match contents {
                Contents::Nothing => &[key],
                Contents::EmptyServers => &[&servers, key],
                Contents::Other => &[],
            };
            let commands = empty.iter().map(|key| etcdctl.remove_directory(key, true));
            return commands.collect::<Option<_>>().unwrap_or_default();
        }
        Fault::Refused(_)
        | Fault::NoHost
        | Fault::Unreachable
        | Fault::SlashInId
        | Fault::Freezes
        | Fault::Disables
        | Fault::OtherSpelling
        | Fault::NoRouter => None,
    };
    command.into_iter().collect()
}
