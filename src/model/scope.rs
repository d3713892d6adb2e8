//! Owner, scope and mark: who wrote an entry, and from where it looked.

use std::fmt;
use std::rc::Rc;

/// Checks an owner's or a cluster's name: `[a-z0-9-]{1,32}`.
///
/// # Errors
/// A sentence for the usage message.
pub(crate) fn check_name(text: &str) -> Result<String, String> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 32 of the characters a-z, 0-9 and `-`".to_owned())
    }
}

/// A cluster: a fingerprint of how its API server is reached, with a name before it where one was given.
/// Prints as `3f2a91c0` or `main@3f2a91c0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The name; empty if none was given.
    pub name: String,
    /// Eight hexadecimal digits, or `file` for pods from a file.
    pub fingerprint: String,
}

impl Cluster {
    /// Reads `main@3f2a91c0` and `main-3f2a91c0` (as ids of Traefik carry it); without a name it is all
    /// fingerprint.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (name, fingerprint) = text
            .rsplit_once('@')
            .or_else(|| text.rsplit_once('-'))
            .unwrap_or(("", text));
        Self {
            name: name.to_owned(),
            fingerprint: fingerprint.to_owned(),
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.name.is_empty() {
            write!(f, "{}@", self.name)?;
        }
        f.write_str(&self.fingerprint)
    }
}

/// What `--cluster` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterName {
    /// A name; the fingerprint is computed.
    Name(String),
    /// Name and fingerprint, as entries carry them.
    Whole(Cluster),
}

impl ClusterName {
    /// Reads `main`, `main@3f2a91c0`, or `3f2a91c0` alone (a fingerprint).
    ///
    /// # Errors
    /// A sentence for the usage message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_fingerprint = |text: &str| {
            let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            text == "file" || text.len() == 8 && text.bytes().all(hex)
        };
        match text.split_once('@') {
            Some((name, fingerprint)) if is_fingerprint(fingerprint) => {
                check_name(name)?;
                Ok(Self::Whole(Cluster::parse(text)))
            }
            Some(_) => Err(
                "not a cluster such as `main@3f2a91c0`: a name, `@`, and the \
                            fingerprint's 8 hexadecimal digits"
                    .to_owned(),
            ),
            None if is_fingerprint(text) => Ok(Self::Whole(Cluster::parse(text))),
            None => check_name(text).map(Self::Name),
        }
    }

    /// The cluster; a missing fingerprint is filled in with the computed one.
    #[must_use]
    pub fn cluster(given: Option<&Self>, fingerprint: String) -> Cluster {
        match given {
            Some(Self::Whole(cluster)) => cluster.clone(),
            Some(Self::Name(name)) => Cluster {
                name: name.clone(),
                fingerprint,
            },
            None => Cluster {
                name: String::new(),
                fingerprint,
            },
        }
    }
}

/// What a run lists: the cluster, then the selectors in canonical form. Prints as
/// `main@3f2a91c0 app=web,tier!=x fields(spec.nodeName=a)`, without the parts that were not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The cluster.
    pub cluster: Cluster,
    /// The label selector, canonical; empty if there is none.
    pub labels: String,
    /// The field selector, canonical; empty if there is none.
    pub fields: String,
}

impl Scope {
    /// Brings the selectors into canonical form: requirements in order, each once, without needless
    /// space, `==` as `=`, the values of a set in order.
    #[must_use]
    pub fn new(cluster: Cluster, labels: Option<&str>, fields: Option<&str>) -> Self {
        Self {
            cluster,
            labels: canonical_selector(labels.unwrap_or_default()),
            fields: canonical_selector(fields.unwrap_or_default()),
        }
    }

    /// Whether any selector was given.
    #[must_use]
    pub fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cluster.fmt(f)?;
        if !self.labels.is_empty() {
            write!(f, " {}", self.labels)?;
        }
        if !self.fields.is_empty() {
            write!(f, " fields({})", self.fields)?;
        }
        Ok(())
    }
}

fn canonical_selector(text: &str) -> String {
    let mut depth = 0_usize;
    let outside_sets = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    let mut requirements = text
        .split(outside_sets)
        .map(canonical_requirement)
        .filter(|requirement| !requirement.is_empty())
        .collect::<Vec<_>>();
    requirements.sort_unstable();
    requirements.dedup();
    requirements.join(",")
}

/// `env  in ( b,a )` becomes `env in (a,b)`; `app == web` becomes `app=web`.
fn canonical_requirement(text: &str) -> String {
    if let Some((head, set)) = text.split_once('(') {
        let set = set.trim_end().trim_end_matches(')');
        let mut values = set.split(',').map(str::trim).collect::<Vec<_>>();
        values.sort_unstable();
        values.dedup();
        let head = head.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{head} ({})", values.join(","))
    } else {
        let packed = text.split_whitespace().collect::<String>();
        packed.replace("==", "=")
    }
}

/// Who writes entries. One for many of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Author {
    /// The owner's name.
    pub owner: Rc<str>,
    /// The scope, as the layout writes it; empty when the entry does not say.
    pub scope: Rc<str>,
}

impl Author {
    /// An author whom many marks can share.
    #[must_use]
    pub fn shared(owner: &str, scope: &str) -> Rc<Self> {
        let (owner, scope) = (owner.into(), scope.into());
        Rc::new(Self { owner, scope })
    }
}

/// What an entry says of its origin: its author and its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its author.
    pub author: Rc<Author>,
    /// The pod's namespace; empty when the entry does not say.
    pub namespace: Rc<str>,
    /// The pod's name; `None` where the layout does not carry it.
    pub pod: Option<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_have_one_spelling() {
        let scope = |labels, fields| Scope::new(Cluster::parse("prod"), labels, fields).to_string();
        assert_eq!(scope(None, None), "prod");
        assert_eq!(
            scope(Some("tier!=x, app == web"), None),
            "prod app=web,tier!=x"
        );
        assert_eq!(
            scope(Some("env in ( b,a ),!x"), None),
            "prod !x,env in (a,b)"
        );
        assert_eq!(
            scope(None, Some("spec.nodeName=a")),
            "prod fields(spec.nodeName=a)"
        );
        assert_eq!(scope(Some("a,a"), Some("b=c")), "prod a fields(b=c)");
    }

    #[test]
    fn a_cluster_is_a_fingerprint_with_a_name_or_without() {
        let found = |given: &str| {
            let given = ClusterName::parse(given).ok()?;
            Some(ClusterName::cluster(Some(&given), "0badcafe".to_owned()).to_string())
        };
        let nameless = ClusterName::cluster(None, "0badcafe".to_owned());
        assert_eq!(nameless.to_string(), "0badcafe");
        for (given, whole) in [
            ("main", Some("main@0badcafe")),
            ("main@3f2a91c0", Some("main@3f2a91c0")),
            ("3f2a91c0", Some("3f2a91c0")),
            ("main@file", Some("main@file")),
            ("main@3f2a", None),
            ("@3f2a91c0", None),
            ("Main", None),
        ] {
            assert_eq!(found(given).as_deref(), whole, "{given}");
        }
        let read = Cluster::parse("eu-1-3f2a91c0");
        assert_eq!((&*read.name, &*read.fingerprint), ("eu-1", "3f2a91c0"));
    }

    #[test]
    fn names_of_owners() {
        assert!(check_name("prod-2").is_ok());
        for bad in ["", "Prod", "a.b", "a b", &"a".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
