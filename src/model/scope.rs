//! Owner, scope and mark: who wrote an entry, and from where it looked.

use std::fmt;
use std::rc::Rc;

/// Checks an owner's or a cluster's name: `[a-z0-9-]{1,32}`.
///
/// # Errors
/// A sentence for the usage message.
pub fn check_name(text: &str) -> Result<String, String> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 32 of the characters a-z, 0-9 and `-`".to_owned())
    }
}

/// From where a run looked: the cluster, then the selectors in canonical form. Prints as
/// `3f2a91c0 app=web,tier!=x fields(spec.nodeName=a)`, without the parts that were not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The cluster's name.
    pub cluster: String,
    /// The label selector, canonical; empty if there is none.
    pub labels: String,
    /// The field selector, canonical; empty if there is none.
    pub fields: String,
}

impl Scope {
    /// Brings the selectors into canonical form: requirements in order, each once, without needless
    /// space, `==` as `=`, the values of a set in order.
    #[must_use]
    pub fn new(cluster: impl Into<String>, labels: Option<&str>, fields: Option<&str>) -> Self {
        Self {
            cluster: cluster.into(),
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
        f.write_str(&self.cluster)?;
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

/// Who wrote an entry, from where it looked, and for which pod, as the entry itself says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The owner's name.
    pub owner: Rc<str>,
    /// The scope, as the layout writes it; empty when the entry does not say.
    pub scope: Rc<str>,
    /// The pod's namespace; empty when the entry does not say.
    pub namespace: Rc<str>,
    /// The pod's name; `None` where the layout does not carry it.
    pub pod: Option<Rc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_have_one_spelling() {
        let scope = |labels, fields| Scope::new("prod", labels, fields).to_string();
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
    fn names_of_owners() {
        assert!(check_name("prod-2").is_ok());
        for bad in ["", "Prod", "a.b", "a b", &"a".repeat(33)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
