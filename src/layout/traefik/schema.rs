//! The fields that Traefik 3.7 decodes of services and routers: the structures of its pkg/config/dynamic, as its kv
//! provider and paerser read them.

use super::is;
use crate::layout::go;

/// What Traefik decodes of a key's path and value (`kv` and `parser` of its paerser): names of fields in any
/// case, and one key that does not fit freezes the whole provider.
pub(super) enum Kind {
    Text,
    Whole,
    Bool,
    /// Seconds, or a duration with its unit.
    Duration,
    /// A list of texts, an item a key.
    Texts,
    /// Texts by name.
    Map,
    /// Whole numbers by name.
    WholeMap,
    Struct(Fields),
    /// A list of structures: an item's name is anything.
    Structs(Fields),
    /// A structure that may be a key itself, with or without a value.
    Switch(Fields),
}

pub(super) type Fields = &'static [(&'static str, Kind)];

/// A service is of one type; those but the first have no servers of their own.
pub(super) const SERVICE: Fields = &[
    ("loadBalancer", Kind::Struct(BALANCER)),
    (
        "weighted",
        Kind::Struct(&[
            ("services", Kind::Structs(CHILD)),
            ("sticky", Kind::Struct(STICKY)),
            ("healthCheck", Kind::Switch(&[])),
        ]),
    ),
    (
        "highestRandomWeight",
        Kind::Struct(&[
            ("services", Kind::Structs(CHILD)),
            ("healthCheck", Kind::Switch(&[])),
        ]),
    ),
    (
        "mirroring",
        Kind::Struct(&[
            ("service", Kind::Text),
            ("mirrorBody", Kind::Bool),
            ("maxBodySize", Kind::Whole),
            (
                "mirrors",
                Kind::Structs(&[("name", Kind::Text), ("percent", Kind::Whole)]),
            ),
            ("healthCheck", Kind::Switch(&[])),
        ]),
    ),
    (
        "failover",
        Kind::Struct(&[
            ("service", Kind::Text),
            ("fallback", Kind::Text),
            ("healthCheck", Kind::Struct(&[])),
            (
                "errors",
                Kind::Struct(&[
                    ("maxRequestBodyBytes", Kind::Whole),
                    ("status", Kind::Texts),
                ]),
            ),
        ]),
    ),
    ("middlewares", Kind::Texts),
];

const CHILD: Fields = &[("name", Kind::Text), ("weight", Kind::Whole)];

const STICKY: Fields = &[(
    "cookie",
    Kind::Switch(&[
        ("name", Kind::Text),
        ("secure", Kind::Bool),
        ("httpOnly", Kind::Bool),
        ("sameSite", Kind::Text),
        ("maxAge", Kind::Whole),
        ("path", Kind::Text),
        ("domain", Kind::Text),
    ]),
)];

const BALANCER: Fields = &[
    ("servers", Kind::Structs(SERVER)),
    ("sticky", Kind::Switch(STICKY)),
    ("strategy", Kind::Text),
    (
        "healthCheck",
        Kind::Struct(&[
            ("scheme", Kind::Text),
            ("mode", Kind::Text),
            ("path", Kind::Text),
            ("method", Kind::Text),
            ("status", Kind::Whole),
            ("port", Kind::Whole),
            ("interval", Kind::Duration),
            ("unhealthyInterval", Kind::Duration),
            ("timeout", Kind::Duration),
            ("hostname", Kind::Text),
            ("followRedirects", Kind::Bool),
            ("headers", Kind::Map),
        ]),
    ),
    (
        "passiveHealthCheck",
        Kind::Struct(&[
            ("failureWindow", Kind::Duration),
            ("maxFailedAttempts", Kind::Whole),
        ]),
    ),
    ("passHostHeader", Kind::Bool),
    (
        "responseForwarding",
        Kind::Struct(&[("flushInterval", Kind::Duration)]),
    ),
    ("serversTransport", Kind::Text),
];

pub(super) const SERVER: Fields = &[
    ("url", Kind::Text),
    ("weight", Kind::Whole),
    ("preservePath", Kind::Bool),
    ("fenced", Kind::Bool),
    ("scheme", Kind::Text),
    ("port", Kind::Text),
];

/// An error page: the one middleware that names a service.
pub(super) const ERRORS: Fields = &[(
    "errors",
    Kind::Struct(&[
        ("status", Kind::Texts),
        ("statusRewrites", Kind::WholeMap),
        ("service", Kind::Text),
        ("query", Kind::Text),
    ]),
)];

pub(super) const ROUTER: Fields = &[
    ("entryPoints", Kind::Texts),
    ("middlewares", Kind::Texts),
    ("service", Kind::Text),
    ("rule", Kind::Text),
    ("ruleSyntax", Kind::Text),
    ("priority", Kind::Whole),
    ("parentRefs", Kind::Texts),
    (
        "tls",
        Kind::Switch(&[
            ("options", Kind::Text),
            ("certResolver", Kind::Text),
            (
                "domains",
                Kind::Structs(&[("main", Kind::Text), ("sans", Kind::Texts)]),
            ),
        ]),
    ),
    (
        "observability",
        Kind::Struct(&[
            ("accessLogs", Kind::Bool),
            ("metrics", Kind::Bool),
            ("tracing", Kind::Bool),
            ("traceVerbosity", Kind::Text),
        ]),
    ),
    (
        "deniedEncodedPathCharacters",
        Kind::Switch(&[
            ("allowEncodedSlash", Kind::Bool),
            ("allowEncodedBackSlash", Kind::Bool),
            ("allowEncodedNullCharacter", Kind::Bool),
            ("allowEncodedSemicolon", Kind::Bool),
            ("allowEncodedPercent", Kind::Bool),
            ("allowEncodedQuestionMark", Kind::Bool),
            ("allowEncodedHash", Kind::Bool),
        ]),
    ),
];

impl Kind {
    /// Whether Traefik can read a key of this path below, with this value.
    fn takes(&self, path: &[&str], value: &str) -> bool {
        match (self, path) {
            (Self::Text | Self::Texts | Self::Structs(_) | Self::Switch(_), [])
            | (Self::Texts | Self::Structs(_), [_]) => true,
            (Self::Whole, []) | (Self::WholeMap, [_]) => value.parse::<i64>().is_ok(),
            (Self::Bool, []) => go::is_bool(value),
            (Self::Duration, []) => value.parse::<i64>().is_ok() || go::is_duration(value),
            (Self::Map, path) => !path.is_empty(),
            (Self::Struct(fields) | Self::Switch(fields), [name, rest @ ..]) => {
                take(fields, name, rest, value)
            }
            (Self::Structs(fields), [_, name, rest @ ..]) => take(fields, name, rest, value),
            (Self::Struct(_), [])
            | (
                Self::Text
                | Self::Whole
                | Self::Bool
                | Self::Duration
                | Self::Texts
                | Self::WholeMap,
                _,
            ) => false,
        }
    }
}

/// Whether Traefik can read a key with this name and path below a structure of these fields.
pub(super) fn take(fields: Fields, name: &str, rest: &[&str], value: &str) -> bool {
    let kind = fields.iter().find(|(field, _)| is(name, field));
    kind.is_some_and(|(_, kind)| kind.takes(rest, value))
}
