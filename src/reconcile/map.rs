//! From a pod to the servers it should be: which pods count, and how each becomes servers.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::rc::Rc;

use serde::{Serialize, Serializer};

use crate::layout::Layout;
use crate::model::{
    BackendId, ContainerPort, InvalidId, Phase, Pod, PodName, Reads, Scheme, ServerId, ServerUrl,
};
use crate::reconcile::template::{Field, Template};
use crate::text::shortened;

/// The most backends that a pod may name: an annotation has room for a hundred thousand, each of which would be a
/// key, and with `--create-backends` a backend.
const BACKENDS: usize = 32;

/// The annotations that are read, behind the prefix.
const ANNOTATIONS: [&str; 5] = ["backend", "port", "scheme", "weight", "ignore"];

/// The largest weight an annotation may give.
const WEIGHT_MAX: u16 = 1_000;

/// How pods become servers: the flags. Annotations of a pod win over them.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Begins the names of our annotations, such as `vulcanized.io/`.
    pub annotation_prefix: String,
    /// Labels that may name the backend; the first one present wins.
    pub backend_labels: Vec<String>,
    /// Makes the backend's id.
    pub backend: Template,
    /// The port to publish, unless the pod says otherwise.
    pub port: Option<PortRef>,
    /// The scheme to publish, unless the pod says otherwise.
    pub scheme: Scheme,
    /// The address family to publish; `None` is the pod's primary address.
    pub ip_family: Option<IpFamily>,
    /// Makes the server's id.
    pub server_id: Template,
    /// Which ids the proxy can read.
    pub layout: Rc<dyn Layout>,
}

/// A port, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// A container port's name.
    Name(String),
    /// A number, 1 to 65535.
    Number(u16),
}

impl PortRef {
    /// Reads a name or a number; all digits are a number.
    ///
    /// # Errors
    /// A sentence that says what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Err("a port is a name or a number".to_owned())
        } else if text.bytes().all(|c| c.is_ascii_digit()) {
            match text.parse() {
                Ok(number) if number > 0 => Ok(Self::Number(number)),
                _ => Err(format!("port {text} is not within 1 to 65535")),
            }
        } else {
            Ok(Self::Name(text.to_owned()))
        }
    }
}

/// An address family.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

impl IpFamily {
    fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::Ipv4 => ip.is_ipv4(),
            Self::Ipv6 => ip.is_ipv6(),
        }
    }
}

/// A pod as it was mapped: what evidence needs of it, the servers it wants, and why it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPod {
    /// Its full name.
    pub name: PodName,
    /// All its addresses.
    pub ips: Box<[IpAddr]>,
    /// Whether one of its addresses cannot be read.
    pub unreadable_ip: bool,
    /// Whether it is on its node's network, so that its addresses are its node's.
    pub host_network: bool,
    /// The TCP ports it declares. On its node's network all of them; else those beside the ports of its servers,
    /// if it has any server.
    pub ports: Box<[u16]>,
    /// Whether it may get traffic.
    pub state: State,
    /// The servers it wants to be.
    pub wants: Box<[Want]>,
    /// Why it is left out, or one of the backends it names.
    pub skipped: Box<[Skipped]>,
}

/// Why a pod is left out, or one of the backends it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Why.
    pub reason: SkipReason,
    /// The backend that a Ready pod names nevertheless, if its id is known.
    pub backend: Option<BackendId>,
}

impl From<SkipReason> for Skipped {
    fn from(reason: SkipReason) -> Self {
        let backend = None;
        Self { reason, backend }
    }
}

impl SeenPod {
    /// Whether this is one of its addresses.
    #[must_use]
    pub fn is_at(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.ips.iter().any(|own| own.to_canonical() == ip)
    }
}

/// Whether a pod may get traffic: the truth table. In the order in which one of several pods at an
/// address counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It has an address and is Ready.
    Live,
    /// It has an address and is not Ready.
    NotReady,
    /// It is being deleted and still Ready.
    Leaving,
    /// It is being deleted and not Ready.
    Dying,
    /// It has no address that can be read, and one that cannot.
    Unreadable,
    /// It has no address.
    NoAddress,
    /// It ended: its address may be another pod's by now.
    Completed,
}

impl State {
    fn of(pod: &Pod) -> Self {
        // Comes first: the address may be another pod's by now, terminating or not.
        if matches!(pod.phase, Phase::Failed | Phase::Succeeded) {
            Self::Completed
        } else if pod.ips.is_empty() && pod.unreadable_ip {
            Self::Unreadable
        } else {
            match (pod.terminating, pod.ready) {
                (true, true) => Self::Leaving,
                (true, false) => Self::Dying,
                _ if pod.ips.is_empty() => Self::NoAddress,
                (false, true) => Self::Live,
                (false, false) => Self::NotReady,
            }
        }
    }
}

/// A server that a pod wants to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// In this backend.
    pub backend: BackendId,
    /// Under this id.
    pub server: ServerId,
    /// At this URL.
    pub url: ServerUrl,
    /// With this weight, if the pod gives it one.
    pub weight: Option<u16>,
}

/// Why a pod is left out, or one of its servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    /// Its condition `Ready` is not `True`.
    NotReady,
    /// It has no address.
    NoAddress,
    /// It has no address that can be read.
    UnreadableAddress,
    /// It ended.
    Completed,
    /// It is being deleted.
    Terminating,
    /// The annotation that takes it out is set.
    Ignored,
    /// Neither annotation nor label names a backend.
    NoBackend,
    /// It declares no TCP port, and none is named.
    NoPort,
    /// It declares several TCP ports, and none is named.
    SeveralPorts,
    /// It has no TCP port of this name.
    NoSuchPort(String),
    /// It shares its node's network and does not declare this port.
    UndeclaredHostPort(u16),
    /// It has no address of the wanted family.
    NoSuchAddress(&'static str),
    /// An annotation cannot be read: its name, and what is wrong.
    BadAnnotation(String, String),
    /// An annotation under our prefix that nothing reads: its name. It leaves nothing out.
    UnknownAnnotation(String),
    /// A template's field is empty: which id, and the field.
    EmptyField(&'static str, String),
    /// An id would not be valid: which, its text, and what is wrong.
    BadId(&'static str, String, String),
}

impl SkipReason {
    /// Whether the pod was meant to be published, so that the pod or an option needs a correction.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        Self::MISTAKES.contains(&self.kind())
    }

    /// The kinds that are mistakes, in alphabetical order; the others are states that pass, or a wish.
    pub(crate) const MISTAKES: &[&str] = &[
        "with a bad annotation",
        "with an unknown annotation",
        "with an unreadable address",
        "with several ports",
        "without a backend",
        "without a port",
        "without a valid id",
        "without an address of that family",
    ];

    /// The kind of reason, in a word or three, for the count in the last line.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotReady => "not ready",
            Self::NoAddress => "without an address",
            Self::UnreadableAddress => "with an unreadable address",
            Self::UnknownAnnotation(_) => "with an unknown annotation",
            Self::Completed => "completed",
            Self::Terminating => "terminating",
            Self::Ignored => "ignored",
            Self::NoBackend => "without a backend",
            Self::NoPort | Self::NoSuchPort(_) | Self::UndeclaredHostPort(_) => "without a port",
            Self::SeveralPorts => "with several ports",
            Self::NoSuchAddress(_) => "without an address of that family",
            Self::BadAnnotation(..) => "with a bad annotation",
            Self::EmptyField(..) | Self::BadId(..) => "without a valid id",
        }
    }
}

impl Serialize for SkipReason {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("not ready"),
            Self::NoAddress => f.write_str("no address"),
            Self::UnreadableAddress => f.write_str("its address cannot be read"),
            Self::UnknownAnnotation(name) => {
                write!(f, "annotation `{}`: not one that is read", short(name))
            }
            Self::Completed => f.write_str("completed"),
            Self::Terminating => f.write_str("terminating"),
            Self::Ignored => f.write_str("ignored: its annotation says so"),
            Self::NoBackend => {
                f.write_str("no backend: neither an annotation nor a label names one")
            }
            Self::NoPort => f.write_str("no port: it declares no TCP port"),
            Self::SeveralPorts => f.write_str("several ports: name one"),
            Self::NoSuchPort(name) => {
                write!(f, "no port: it has no TCP port named `{}`", short(name))
            }
            Self::UndeclaredHostPort(port) => {
                write!(
                    f,
                    "no port: it uses its node's network and does not declare {port}"
                )
            }
            Self::NoSuchAddress(family) => write!(f, "no {family} address"),
            Self::BadAnnotation(name, why) => write!(f, "annotation `{name}`: {}", short(why)),
            Self::EmptyField(id, field) => write!(f, "no {id} id: `{field}` is empty"),
            Self::BadId(id, text, why) => write!(f, "no {id} id: `{}`: {why}", short(text)),
        }
    }
}

/// A hostile text may be long: its beginning is enough.
fn short(text: &str) -> Cow<'_, str> {
    shortened(text, 120)
}

/// Backends' names, each with the port beside it.
type Names<'p> = Vec<(&'p str, Option<PortRef>)>;

/// Where the name of a backend came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameFrom {
    /// The annotation of this name.
    Annotation(String),
    /// The label of this name.
    Label(String),
}

/// Where a port came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortFrom {
    /// It stands beside the backend's name in the annotation.
    Beside,
    /// The annotation of this name.
    Annotation(String),
    /// The flag.
    Flag,
    /// It is the container port named `http`.
    Http,
    /// It is the only TCP port.
    Only,
}

/// How a pod came to name a backend, and what it becomes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The name, before the template.
    pub(crate) name: String,
    /// Where it came from.
    pub(crate) name_from: NameFrom,
    /// Where the port came from, and the whole name of the annotation that gives the scheme, if one does.
    pub(crate) from: Option<(PortFrom, Option<String>)>,
    /// The server, or why there is none.
    pub(crate) want: Result<Want, SkipReason>,
}

/// A pod's annotations that are for us: what is behind the prefix, and the text.
struct Own<'p> {
    prefix: &'p str,
    texts: Vec<(&'p str, &'p str)>,
}

impl<'p> Own<'p> {
    fn new(prefix: &'p str, pod: &'p Pod<'_>) -> Self {
        let texts = pod.annotations.iter();
        let texts = texts.filter_map(|(key, text)| Some((key.strip_prefix(prefix)?, text)));
        Self {
            prefix,
            texts: texts.collect(),
        }
    }

    /// The whole name of one of them, and its text. The last one of a name counts.
    fn get(&self, name: &str) -> Option<(String, &'p str)> {
        let mut latest = self.texts.iter().rev();
        let (_, text) = latest.find(|(own, _)| *own == name)?;
        Some((format!("{}{name}", self.prefix), *text))
    }
}

impl Mapping {
    /// The labels and annotations that are read.
    #[must_use]
    pub fn reads(&self) -> Reads {
        let templates = self.backend.fields().chain(self.server_id.fields());
        let named = templates.filter_map(|field| match field {
            Field::Label(key) | Field::Annotation(key) => Some(key),
            _ => None,
        });
        Reads {
            names: self.backend_labels.iter().chain(named).cloned().collect(),
            prefix: self.annotation_prefix.clone(),
        }
    }

    /// Maps a pod to its servers. Little of the pod is kept.
    #[must_use]
    pub fn map(&self, pod: &Pod) -> SeenPod {
        let state = State::of(pod);
        let mut wants = Vec::<Want>::new();
        let mut skipped = Vec::new();
        match state {
            State::NotReady => skipped.push(SkipReason::NotReady.into()),
            State::NoAddress => skipped.push(SkipReason::NoAddress.into()),
            State::Unreadable => skipped.push(SkipReason::UnreadableAddress.into()),
            State::Completed => skipped.push(SkipReason::Completed.into()),
            State::Leaving | State::Dying => skipped.push(SkipReason::Terminating.into()),
            State::Live => self.wants(pod, &mut wants, &mut skipped),
        }
        let is_beside = |port: u16| wants.iter().all(|want| want.url.port != port);
        let is_kept = |port: &u16| pod.host_network || !wants.is_empty() && is_beside(*port);
        let ports = pod.ports.iter().filter(|port| port.tcp);
        let ports = ports.map(|port| port.number).filter(is_kept).collect();
        SeenPod {
            name: PodName {
                namespace: pod.namespace.as_ref().into(),
                name: pod.name.as_ref().into(),
            },
            ips: pod.ips.as_slice().into(),
            unreadable_ip: pod.unreadable_ip,
            host_network: pod.host_network,
            ports,
            state,
            wants: wants.into(),
            skipped: skipped.into(),
        }
    }

    /// Maps a pod as [`Mapping::map`] does a Ready one, and records where each part came from.
    ///
    /// # Errors
    /// Why the pod names no backend.
    pub(crate) fn trace(&self, pod: &Pod) -> Result<Vec<Trace>, SkipReason> {
        let own = Own::new(&self.annotation_prefix, pod);
        let (from, names) = self.backend_names(pod, &own)?;
        let traces = names.into_iter().map(|(name, port)| Trace {
            name: name.to_owned(),
            name_from: from.clone(),
            from: self
                .port(pod, &own, port.clone())
                .ok()
                .map(|(_, from)| (from, own.get("scheme").map(|(key, _)| key))),
            want: self.want(pod, &own, name, port),
        });
        Ok(traces.collect())
    }

    fn wants(&self, pod: &Pod, wants: &mut Vec<Want>, skipped: &mut Vec<Skipped>) {
        let own = Own::new(&self.annotation_prefix, pod);
        match own.get("ignore").map(|(key, value)| (key, ignores(value))) {
            None | Some((_, Ok(false))) => {}
            Some((_, Ok(true))) => return skipped.push(SkipReason::Ignored.into()),
            Some((key, Err(why))) => {
                return skipped.push(SkipReason::BadAnnotation(key, why).into());
            }
        }
        for (name, _) in &own.texts {
            let weightless = *name == "weight" && !self.layout.has_weights();
            if weightless || !ANNOTATIONS.contains(name) {
                let name = format!("{}{name}", own.prefix);
                skipped.push(SkipReason::UnknownAnnotation(name).into());
            }
        }
        let names = match self.backend_names(pod, &own) {
            Ok((_, names)) => names,
            Err(reason) => return skipped.push(reason.into()),
        };
        wants.reserve_exact(names.len());
        for (name, port) in names {
            match self.want(pod, &own, name, port) {
                Ok(want) => wants.push(want),
                Err(reason) => skipped.push(Skipped {
                    reason,
                    backend: self.backend_id(pod, name, None).ok(),
                }),
            }
        }
    }

    /// The backends a pod names, each with its own port if it gives one there.
    fn backend_names<'p>(
        &self,
        pod: &'p Pod<'_>,
        own: &Own<'p>,
    ) -> Result<(NameFrom, Names<'p>), SkipReason> {
        let Some((key, value)) = own.get("backend") else {
            let mut labels = self.backend_labels.iter();
            let label = labels.find_map(|key| Some((key, pod.labels.get(key)?)));
            return match label {
                Some((key, name)) => Ok((NameFrom::Label(key.clone()), vec![(name, None)])),
                None => Err(SkipReason::NoBackend),
            };
        };
        let bad = |why: String| SkipReason::BadAnnotation(key.clone(), why);
        if value.split(',').nth(BACKENDS).is_some() {
            return Err(bad(format!("it names more than {BACKENDS} backends")));
        }
        let names = value
            .split(',')
            .map(|item| {
                let item = item.trim();
                let (name, port) = match item.rsplit_once(':') {
                    Some((name, port)) => (name.trim(), Some(port.trim())),
                    None => (item, None),
                };
                if name.is_empty() {
                    return Err(bad("it names no backend".to_owned()));
                }
                let port = port.map(PortRef::parse).transpose().map_err(bad)?;
                Ok((name, port))
            })
            .collect::<Result<Names, _>>()?;
        Ok((NameFrom::Annotation(key), names))
    }

    fn want(
        &self,
        pod: &Pod,
        own: &Own,
        name: &str,
        port: Option<PortRef>,
    ) -> Result<Want, SkipReason> {
        let (port, _) = self.port(pod, own, port)?;
        let scheme = match own.get("scheme") {
            None => self.scheme,
            Some((key, value)) => Scheme::parse(value).ok_or_else(|| {
                SkipReason::BadAnnotation(key, format!("`{value}` is neither http nor https"))
            })?,
        };
        let ip = match self.ip_family {
            None => pod.ips.first(),
            Some(family) => pod.ips.iter().find(|ip| family.has(**ip)),
        };
        let ip = ip.ok_or(SkipReason::NoSuchAddress(match self.ip_family {
            Some(IpFamily::Ipv6) => "IPv6",
            Some(IpFamily::Ipv4) | None => "IPv4",
        }))?;
        let weight = match own.get("weight") {
            Some((key, value)) if self.layout.has_weights() => {
                let weight = value.trim().parse::<u16>().ok();
                let weight = weight.filter(|weight| *weight <= WEIGHT_MAX);
                let why = || format!("`{value}` is not a weight from 0 to {WEIGHT_MAX}");
                Some(weight.ok_or_else(|| SkipReason::BadAnnotation(key, why()))?)
            }
            _ => None,
        };
        let published = Some((*ip, port));
        Ok(Want {
            weight,
            backend: self.backend_id(pod, name, published)?,
            server: {
                let text = render("server", &self.server_id, pod, name, published)?;
                let id = self.layout.server_id(&text);
                id.map_err(|why| bad_id("server", &text, &why))?
            },
            url: ServerUrl::new(scheme, *ip, port),
        })
    }

    /// The id of a backend that a pod names; `published` is its address and port, where they are known.
    fn backend_id(
        &self,
        pod: &Pod,
        name: &str,
        published: Option<(IpAddr, u16)>,
    ) -> Result<BackendId, SkipReason> {
        let text = render("backend", &self.backend, pod, name, published)?;
        let id = self.layout.backend_id(&text);
        id.map_err(|why| bad_id("backend", &text, &why))
    }

    /// The port beside the backend's name beats the annotation, which beats the flag.
    fn port(
        &self,
        pod: &Pod,
        own: &Own,
        beside: Option<PortRef>,
    ) -> Result<(u16, PortFrom), SkipReason> {
        let named = match (beside, own.get("port")) {
            (Some(beside), _) => Some((beside, PortFrom::Beside)),
            (None, Some((key, value))) => match PortRef::parse(value) {
                Ok(port) => Some((port, PortFrom::Annotation(key))),
                Err(why) => return Err(SkipReason::BadAnnotation(key, why)),
            },
            (None, None) => self.port.clone().map(|port| (port, PortFrom::Flag)),
        };
        let tcp = || pod.ports.iter().filter(|port| port.tcp);
        let by_name = |name: &str| tcp().find(|port| port.name.as_deref() == Some(name));
        match named {
            Some((PortRef::Name(name), from)) => match by_name(&name) {
                Some(port) => Ok((port.number, from)),
                None => Err(SkipReason::NoSuchPort(name)),
            },
            Some((PortRef::Number(number), from)) => {
                // A node's other services must not be reachable through a pod's annotation.
                if pod.host_network && !tcp().any(|port| port.number == number) {
                    Err(SkipReason::UndeclaredHostPort(number))
                } else {
                    Ok((number, from))
                }
            }
            None => match by_name("http") {
                Some(port) => Ok((port.number, PortFrom::Http)),
                None => only(tcp().filter(|port| !port.sidecar))
                    .or_else(|| only(tcp().filter(|port| port.sidecar)))
                    .unwrap_or(Err(SkipReason::NoPort))
                    .map(|port| (port, PortFrom::Only)),
            },
        }
    }
}

/// Fills in the template of one kind of id.
fn render(
    kind: &'static str,
    template: &Template,
    pod: &Pod,
    name: &str,
    published: Option<(IpAddr, u16)>,
) -> Result<String, SkipReason> {
    let write = |field: &Field, out: &mut String| {
        let text = match field {
            Field::Namespace => &*pod.namespace,
            Field::Name => name,
            Field::Pod => &*pod.name,
            Field::Label(key) => pod.labels.get(key).unwrap_or_default(),
            Field::Annotation(key) => pod.annotations.get(key).unwrap_or_default(),
            Field::Ip | Field::Port => {
                // Writing to a string cannot fail.
                let _ = match (field, published) {
                    (Field::Ip, Some((ip, _))) => write!(out, "{ip}"),
                    (_, Some((_, port))) => write!(out, "{port}"),
                    (_, None) => Ok(()),
                };
                return;
            }
        };
        out.push_str(text);
    };
    let rendered = template.render(write);
    rendered.map_err(|field| SkipReason::EmptyField(kind, field.to_string()))
}

fn bad_id(kind: &'static str, text: &str, why: &InvalidId) -> SkipReason {
    SkipReason::BadId(kind, short(text).into(), why.to_string())
}

/// Whether the annotation `ignore` leaves a pod out. An unknown value leaves it out too: whoever wrote it wanted
/// that.
fn ignores(text: &str) -> Result<bool, String> {
    let text = text.trim();
    let is_one_of = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(&["true", "1", "yes", "on"]) {
        Ok(true)
    } else if is_one_of(&["false", "0", "no", "off", ""]) {
        Ok(false)
    } else {
        Err(format!("`{text}` is neither true nor false"))
    }
}

/// The only port; `None` if there is no port.
fn only<'p>(
    mut ports: impl Iterator<Item = &'p ContainerPort<'p>>,
) -> Option<Result<u16, SkipReason>> {
    let first = ports.next()?.number;
    // The same number declared by two containers is one port: they share an address.
    Some(if ports.all(|port| port.number == first) {
        Ok(first)
    } else {
        Err(SkipReason::SeveralPorts)
    })
}

#[cfg(test)]
pub(super) mod tests;
