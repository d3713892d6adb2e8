//! Where the proxy's configuration is kept: etcd v3, etcd v2, or a file.

mod connection;
pub(crate) mod endpoints;
pub(crate) mod etcd2;
pub(crate) mod etcd3;
pub(crate) mod file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use self::{etcd2::Etcd2, etcd3::Etcd3, file::File};
use crate::model::{Entry, Limits, Snapshot, Transaction};
use crate::net::deadline::Deadline;
use crate::net::tls::{Identity, SetBy, Tls};
use crate::report::etcdctl::Api;
use crate::text::{escaped, shown};

/// Where servers go.
pub enum Source {
    /// etcd.
    Etcd {
        /// Which version of its API.
        api: Api,
        /// Its endpoints, in order.
        endpoints: Vec<String>,
        /// CA certificates to trust.
        cacert: Option<PathBuf>,
        /// Client certificate and its key.
        identity: Option<(PathBuf, PathBuf)>,
        /// User, and where the password is.
        user: Option<(String, Password)>,
        /// How long connecting to an endpoint may take, where that is less than an attempt's time.
        dial_timeout: Option<Duration>,
    },
    /// A file.
    File(PathBuf),
}

/// Where a password is.
pub enum Password {
    /// Here. Not printable on purpose.
    Given(String),
    /// In this file.
    File(PathBuf),
}

/// Opens the store. Nothing is asked of it yet.
///
/// # Errors
/// A file that cannot be read, or says no.
pub(crate) fn open(
    source: &Source,
    dry_run: bool,
    deadline: Deadline,
) -> anyhow::Result<Box<dyn Store>> {
    let (api, options) = match source {
        Source::File(path) => return Ok(Box::new(File::open(path, dry_run, deadline)?)),
        Source::Etcd {
            api,
            endpoints,
            cacert,
            identity,
            user,
            dial_timeout,
        } => {
            let identity = match identity {
                Some((certificate, key)) => Some(Identity {
                    certificate: read(certificate)?,
                    key: read(key)?,
                }),
                None => None,
            };
            let user = match user {
                Some((name, password)) => {
                    let password = match password {
                        Password::Given(password) => password.clone(),
                        Password::File(path) => String::from_utf8(read(path)?)
                            .ok()
                            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                            .with_context(|| format!("`{}` is not UTF-8", path.display()))?,
                    };
                    Some(endpoints::User {
                        name: name.clone(),
                        password,
                    })
                }
                None => None,
            };
            let ca = cacert.as_deref().map(read).transpose()?;
            let endpoints = endpoints.clone();
            (
                api,
                endpoints::Options {
                    endpoints,
                    tls: Tls {
                        ca,
                        identity,
                        insecure: false,
                        set_by: SetBy::Options,
                    },
                    user,
                    dial_timeout: dial_timeout.unwrap_or(Duration::MAX),
                },
            )
        }
    };
    Ok(match api {
        Api::V3 => Box::new(Etcd3::open(options, deadline)?),
        Api::V2 => Box::new(Etcd2::open(options, deadline)?),
    })
}

/// Checks that an answer holds no other keys than those that were asked for: what is between the run and the
/// store may change them, and a listing of something else must not be taken for this one.
///
/// # Errors
/// The first key outside of the range.
fn check_range(prefix: &str, entries: &[Entry]) -> anyhow::Result<()> {
    let within = |entry: &&Entry| entry.key.starts_with(prefix.as_bytes());
    match entries.iter().find(|entry| !within(entry)) {
        None => Ok(()),
        Some(Entry { key, .. }) => bail!(
            "the answer to a listing of `{prefix}` holds another key: `{}`",
            escaped(&shown(key))
        ),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

/// A place that holds keys and values. All calls block, and end by their deadline.
pub trait Store {
    /// Reads all keys that begin with each of `prefixes`, all at one revision (on etcd v2 one after the
    /// other). They are byte prefixes, as etcd v3 has them. On etcd v2 they name directories, whose
    /// keys are spelled as the prefix is (`/vulcand` and `vulcand` are one node there); an empty
    /// directory, which can hurt vulcand too, is an entry whose key ends with `/`, without a value;
    /// names that begin with `_` are hidden by etcd itself. A range that does not exist is empty.
    /// A range that may not be read is [`crate::model::Denied`] in its place; every other failure,
    /// and an answer that is not whole, is an error.
    ///
    /// # Errors
    /// What could not be read, from where, and why.
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot>;

    /// Applies one transaction, within [`Store::limits`].
    ///
    /// # Errors
    /// [`ApplyError`] says whether anything may have been written.
    fn apply(&mut self, transaction: &Transaction) -> Result<Applied, ApplyError>;

    /// The store's revision as the latest applied transaction left it; `None` where ranges are not
    /// compared.
    fn revision(&self) -> Option<u64> {
        None
    }

    /// What [`Store::apply`] takes at most.
    fn limits(&self) -> Limits;

    /// Whether this store can be written, where it was opened for that.
    ///
    /// # Errors
    /// Why it cannot be: a dump of etcd is only to be looked at.
    fn writable(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// The store's name for messages: its first endpoint or its file, without secrets.
    fn name(&self) -> String;
}

/// What became of a transaction that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// All of it is in the store.
    Whole,
    /// A guard no longer held: somebody else wrote. None of it is in the store.
    Outdated,
}

/// A transaction that failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store refused it or was never reached: none of it is in the store.
    #[error(transparent)]
    Refused(anyhow::Error),
    /// The store can never take a change of this key, because it is a directory (etcd v2): none of it is in the
    /// store.
    #[error("`{0}` is a directory where a key should be")]
    Directory(String),
    /// The store can never take a change below this key, because it is no directory (etcd v2): none of it is in
    /// the store.
    #[error("`{0}` is a key where a directory should be")]
    NotADirectory(String),
    /// The answer was lost: all of it is in the store, or none.
    #[error(transparent)]
    Unknown(anyhow::Error),
}
