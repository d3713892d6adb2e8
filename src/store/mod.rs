//! Stores of the proxy's configuration: etcd v3, etcd v2, or a file.

mod connection;
pub(crate) mod endpoints;
pub(crate) mod etcd2;
pub(crate) mod etcd3;
pub(crate) mod file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use self::{etcd2::Etcd2, etcd3::Etcd3, file::File};
use crate::model::{KeyValue, Limits, Snapshot, Transaction};
use crate::net::deadline::Deadline;
use crate::net::pem::Identity;
use crate::net::tls::{SetBy, Tls};
use crate::report::etcdctl::Api;
use crate::text::{escaped, shown};

/// The store to open.
pub enum Source {
    /// etcd.
    Etcd {
        /// Version of its API.
        api: Api,
        /// Its endpoints, in order.
        endpoints: Vec<String>,
        /// CA certificates to trust.
        cacert: Option<PathBuf>,
        /// Client certificate and its key.
        identity: Option<(PathBuf, PathBuf)>,
        /// User and password.
        user: Option<(String, Password)>,
        /// Time limit for connecting to an endpoint, within an attempt's.
        dial_timeout: Option<Duration>,
    },
    /// A file.
    File(PathBuf),
}

/// A password, or the file with it.
pub enum Password {
    /// The password. Without `Debug` on purpose.
    Given(String),
    /// The path of a file that holds it.
    File(PathBuf),
}

/// Opens the store. Sends no request yet.
///
/// # Errors
/// A file or certificate that cannot be read, or an endpoint that is not valid.
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

/// Checks that an answer holds only keys of the requested range: a gateway may rewrite requests, and another
/// listing must not be taken for this one.
///
/// # Errors
/// The first key outside of the range.
fn check_range(prefix: &str, entries: &[KeyValue]) -> anyhow::Result<()> {
    let within = |entry: &&KeyValue| entry.key.starts_with(prefix.as_bytes());
    match entries.iter().find(|entry| !within(entry)) {
        None => Ok(()),
        Some(KeyValue { key, .. }) => bail!(
            "the answer to a listing of `{prefix}` holds another key: `{}`",
            escaped(&shown(key))
        ),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

/// A key-value store. All calls block, and return by their deadline.
pub trait Store {
    /// Reads all keys that begin with each of `prefixes`, all at one revision (on etcd v2 one after the
    /// other). They are byte prefixes, as etcd v3 has them. On etcd v2 they name directories, whose keys are
    /// spelled as the prefix is (`/vulcand` and `vulcand` are one node there); an empty directory, which can
    /// hurt vulcand too, is an entry whose key ends with `/`, without a value; names that begin with `_` are
    /// hidden by etcd itself. A range that does not exist is empty. A range that may not be read is
    /// [`crate::model::Denied`] in its place; every other failure, and an incomplete answer, is an error.
    ///
    /// # Errors
    /// The range that could not be read, from where, and why.
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot>;

    /// Applies one transaction, within [`Store::limits`].
    ///
    /// # Errors
    /// [`ApplyError`], which tells whether anything may have been applied.
    fn apply(&mut self, transaction: &Transaction) -> Result<Applied, ApplyError>;

    /// The store's revision as the latest applied transaction left it; `None` where ranges are not
    /// compared.
    fn revision(&self) -> Option<u64> {
        None
    }

    /// The limits of one [`Store::apply`].
    fn limits(&self) -> Limits;

    /// Checks that the store can be written, if it was opened for writing.
    ///
    /// # Errors
    /// A dump of etcd is read-only.
    fn writable(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// The store's name for messages: its first endpoint or its file, without secrets.
    fn name(&self) -> String;
}

/// The outcome of a transaction that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was applied.
    Whole,
    /// A guard failed because another client wrote: nothing was applied.
    Outdated,
}

/// A transaction that failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store refused it or was never reached: nothing was applied.
    #[error(transparent)]
    Refused(anyhow::Error),
    /// This key is a directory and can never be written (etcd v2): nothing was applied.
    #[error("`{0}` is a directory where a key should be")]
    Directory(String),
    /// This key is not a directory, so nothing below it can ever be written (etcd v2): nothing was applied.
    #[error("`{0}` is a key where a directory should be")]
    NotADirectory(String),
    /// The answer was lost: all of it was applied, or nothing.
    #[error(transparent)]
    Unknown(anyhow::Error),
}
