//! Ids of backends and servers: checked texts that cannot add a path segment to a key.

use std::borrow::Borrow;
use std::fmt;
use std::rc::Rc;

/// The longest id, in bytes.
const ID_MAX: usize = 253;

/// Why a text is not a valid id. Prints as the reason alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// Longer than 253 bytes.
    #[error("it is longer than {ID_MAX} bytes")]
    TooLong,
    /// Only digits, where the proxy takes those for an index of a list.
    #[error("it is nothing but digits")]
    OnlyDigits,
    /// A character outside the alphabet.
    #[error("it has {0:?}, and ids are made of letters, digits and `._:[]-`")]
    Character(char),
    /// A character that must not come first.
    #[error("it begins with {0:?}, and ids begin with a letter, a digit or `[`")]
    First(char),
}

/// Checks that `text` matches `[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*` and is at most 253 bytes long, so
/// that as part of a key it cannot add a path segment, nor be hidden or redirected by etcd v2.
fn check_id(text: &str) -> Result<(), InvalidId> {
    let mut characters = text.chars();
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._:[]-".contains(&c);
    match characters.next() {
        None => return Err(InvalidId::Empty),
        Some(first) if first.is_ascii_alphanumeric() || first == '[' => {}
        Some(first) => return Err(InvalidId::First(first)),
    }
    if text.len() <= ID_MAX && text.bytes().all(allowed) {
        return Ok(());
    }
    match characters.find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        Some(strange) => Err(InvalidId::Character(strange)),
        None if text.len() > ID_MAX => Err(InvalidId::TooLong),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($text:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name($text);

        impl $name {
            /// Checks `text` and makes it an id.
            ///
            /// # Errors
            /// [`InvalidId`].
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                check_id(text)?;
                Ok(Self(text.into()))
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The id of a backend (vulcand) or service (Traefik): `[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*`, at
    /// most 253 bytes. Pods of one backend share it.
    BackendId(Rc<str>)
}
id! {
    /// The id of a server within its backend: the same alphabet as [`BackendId`].
    ServerId(Box<str>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_add_a_path_segment() {
        for good in ["web", "10.200.1.2", "[fd00::1]:80", "a_b", "a..b", "0"] {
            assert_eq!(
                BackendId::new(good).map(|id| id.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "", "/", "a/b", ".", "..", "_a", "a b", "a\u{1b}", "é", "-a", "a%2Fb", ":80",
        ] {
            assert!(ServerId::new(bad).is_err(), "{bad:?} is no id");
        }
        assert!(BackendId::new("a".repeat(253)).is_ok());
        assert_eq!(BackendId::new("a".repeat(254)), Err(InvalidId::TooLong));
    }
}
