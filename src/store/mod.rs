//! Where the proxy's configuration is kept: etcd v3, etcd v2, or a file.

pub(crate) mod endpoints;
pub(crate) mod etcd2;
pub(crate) mod etcd3;
pub(crate) mod file;

use crate::model::{Limits, Snapshot, Transaction};

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
    /// The answer was lost: all of it is in the store, or none.
    #[error(transparent)]
    Unknown(anyhow::Error),
}
