//! Reads and writes of a store: entries, snapshots, guarded transactions.

/// One key of a store with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, byte for byte.
    pub key: Vec<u8>,
    /// The value, byte for byte.
    pub value: Vec<u8>,
    /// The store revision that last wrote this key (`mod_revision`, `modifiedIndex`).
    pub revision: u64,
}

/// What a store answered to one listing of several key ranges, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision at the time of the listing; `None` for a store that has none (a file).
    pub revision: Option<u64>,
    /// Per range asked for, in that order: its entries in key order, or why they may not be read.
    pub ranges: Vec<Result<Vec<KeyValue>, Denied>>,
}

/// The store refused to read a range (permission). Holds the store's own message, with the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(pub String);

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set `key` to `value`, whatever it was.
    Put {
        /// The exact key.
        key: String,
        /// The whole value.
        value: String,
    },
    /// Remove exactly this key.
    Delete {
        /// The exact key.
        key: String,
    },
}

/// What must still hold of `key` for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The exact key.
    pub key: String,
    /// What is expected of it.
    pub expect: Expect,
}

/// An expectation of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists, whatever its value.
    Present,
    /// The key was last written by this revision ([`KeyValue::revision`]).
    Revision(u64),
}

/// Writes that are applied together, in order, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// All must hold, or nothing is written. No key occurs twice.
    pub guards: Vec<Guard>,
    /// Key ranges that must be unchanged, or nothing is written. Empty for stores without [`Limits::ranges`].
    pub unchanged: Vec<Unchanged>,
    /// In the order in which the proxy should see them. No key occurs twice.
    pub ops: Vec<Op>,
}

/// A range of keys in which nothing was written after a revision. Deletes do not count: etcd's comparison
/// does not see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    /// The range, as a byte prefix of its keys.
    pub prefix: String,
    /// The store's revision: the listing's, or that of our own latest transaction in the range.
    pub since: u64,
}

/// How large a transaction a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Operations at most.
    pub operations: usize,
    /// Guards at most, ranges included.
    pub guards: usize,
    /// Whether it compares ranges.
    pub ranges: bool,
    /// Bytes of keys and values at most, guards included.
    pub bytes: usize,
}
