//! The embedded store: one JSON object of keys and values in a file. Reads dumps of etcd, too.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Applied, ApplyError, Store};
use crate::files;
use crate::model::{Expect, KeyValue, Limits, Op, Snapshot, Transaction};
use crate::net::deadline::Deadline;
use crate::text::escaped;

/// A store in a file: `{"key": "value", …}`, keys in order. The first change creates it. It is locked from
/// the first listing to the end of the run (by a lock on its folder, since each write replaces the file), and
/// not written when nothing changes.
///
/// Dumps by `etcdctl get --prefix … -w json` are read, never written.
pub struct File {
    path: PathBuf,
    read_only: bool,
    deadline: Deadline,
    lock: Option<fs::File>,
    content: Content,
    /// The latest revision: a counter of this run, since the file has none.
    clock: u64,
}

#[derive(Default)]
struct Content {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
    /// The revision of a dump; a file of our own has none.
    dump: Option<u64>,
}

impl File {
    /// Opens a store. `read_only` does not lock it, and refuses to write.
    ///
    /// # Errors
    /// When its folder does not exist.
    pub fn open(path: &Path, read_only: bool, deadline: Deadline) -> anyhow::Result<Self> {
        // Follows links: their target is locked, read and replaced.
        let path = files::target(path);
        let store = Self {
            path,
            read_only,
            deadline,
            lock: None,
            content: Content::default(),
            clock: 0,
        };
        let folder = store.folder();
        if !folder.is_dir() {
            bail!(
                "the folder `{}` of the store file does not exist",
                folder.display()
            );
        }
        Ok(store)
    }

    fn folder(&self) -> &Path {
        files::folder(&self.path)
    }

    fn lock(&mut self) -> anyhow::Result<()> {
        /// The interval of attempts at a lock that another run holds.
        const PAUSE: Duration = Duration::from_millis(20);
        if self.read_only || self.lock.is_some() {
            return Ok(());
        }
        let file = self.path.display();
        let failed = |error| anyhow!("failed to lock the folder of `{file}`: {error}");
        let folder = fs::File::open(self.folder()).map_err(failed)?;
        loop {
            match folder.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) => {
                    let held = || format!("another run holds its lock: `{file}`");
                    self.deadline.pause(PAUSE).with_context(held)?;
                }
                Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        self.lock = Some(folder);
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Content> {
        let failed = || format!("failed to read `{}`", self.path.display());
        match fs::read(&self.path) {
            Ok(text) => Content::parse(&text).with_context(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
            Err(error) => Err(error).with_context(failed),
        }
    }

    fn write(&self, entries: &BTreeMap<Vec<u8>, (Vec<u8>, u64)>) -> anyhow::Result<()> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let object = entries
            .iter()
            .map(|(key, (value, _))| (text(key), text(value)))
            .collect::<BTreeMap<_, _>>();
        let mut json = serde_json::to_vec_pretty(&object)?;
        json.push(b'\n');
        files::replace(&self.path, &json, None)
    }
}

impl Store for File {
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot> {
        self.lock()?;
        let mut content = self.read()?;
        if content.dump.is_none() {
            // Unchanged values keep their revision, so that guards detect changes.
            let next = self.clock + 1;
            for (key, (value, revision)) in &mut content.entries {
                *revision = match self.content.entries.get(key) {
                    Some((old, revision)) if old == value => *revision,
                    _ => next,
                };
            }
        }
        self.clock += 1;
        self.content = content;
        let entry = |(key, (value, revision)): (&Vec<u8>, &(Vec<u8>, u64))| KeyValue {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        };
        let range = |prefix: &&str| {
            let from = self.content.entries.range(prefix.as_bytes().to_vec()..);
            let own = from.take_while(|(key, _)| key.starts_with(prefix.as_bytes()));
            Ok(own.map(entry).collect())
        };
        Ok(Snapshot {
            revision: self.content.dump,
            ranges: prefixes.iter().map(range).collect(),
        })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Applied, ApplyError> {
        let refused = |cause: anyhow::Error| {
            let file = self.path.display();
            ApplyError::Refused(cause.context(format!("failed to write the store file `{file}`")))
        };
        if self.lock.is_none() {
            return Err(refused(anyhow!("it was not listed for writing")));
        }
        let holds = |(key, expect): (&str, Expect)| {
            let found = self.content.entries.get(key.as_bytes());
            match expect {
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::Revision(wanted) => found.is_some_and(|(_, found)| *found == wanted),
            }
        };
        if !transaction
            .guards
            .iter()
            .map(|guard| (&*guard.key, guard.expect))
            .all(holds)
        {
            return Ok(Applied::Outdated);
        }
        let mut entries = self.content.entries.clone();
        let next = self.clock + 1;
        for op in &transaction.ops {
            match op {
                Op::Put { key, value } => {
                    entries.insert(key.clone().into_bytes(), (value.clone().into_bytes(), next));
                }
                Op::Delete { key } => {
                    entries.remove(key.as_bytes());
                }
            }
        }
        let same = entries.len() == self.content.entries.len()
            && (entries.iter().zip(&self.content.entries))
                .all(|((key, (value, _)), (old_key, (old, _)))| key == old_key && value == old);
        if !same {
            self.write(&entries).map_err(refused)?;
            self.content.entries = entries;
            self.clock = next;
        }
        Ok(Applied::Whole)
    }

    fn limits(&self) -> Limits {
        // One transaction is one replacement of the file.
        Limits {
            operations: usize::MAX,
            guards: usize::MAX,
            // The lock is held from the listing on.
            ranges: false,
            bytes: usize::MAX,
        }
    }

    fn writable(&self) -> anyhow::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let content = self.read()?;
        if content.dump.is_some() {
            bail!(
                "`{}` is a dump of etcd: it can be read with `--dry-run`, not written",
                self.path.display()
            );
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Content {
    /// Parses a store file, or a dump of etcd: only a dump's `header` is an object.
    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let Members(members) = serde_json::from_slice(text)?;
        let mut seen = BTreeSet::new();
        for (key, _) in &members {
            if !seen.insert(key) {
                bail!("duplicate key `{}`", escaped(key));
            }
        }
        let header = members.iter().find(|(key, _)| key == "header");
        if header.is_some_and(|(_, value)| value.get().starts_with('{')) {
            let Dump {
                header, kvs, more, ..
            } = serde_json::from_slice(text).context("it is not a dump of etcd")?;
            if more {
                bail!("the dump is incomplete: it was made with `--limit`");
            }
            let entry = |pair: Pair| (pair.key, (pair.value, pair.mod_revision));
            return Ok(Self {
                entries: kvs.into_iter().map(entry).collect(),
                dump: Some(header.revision),
            });
        }
        let text = |(key, value): (String, Box<RawValue>)| {
            let value = serde_json::from_str::<String>(value.get())
                .map_err(|_| anyhow!("the value of key `{}` is not a string", escaped(&key)))?;
            Ok((key.into_bytes(), (value.into_bytes(), 0)))
        };
        Ok(Self {
            entries: members
                .into_iter()
                .map(text)
                .collect::<anyhow::Result<_>>()?,
            dump: None,
        })
    }
}

/// The members of a JSON object, in order and with duplicates.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of keys and values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        input.deserialize_map(Reader)
    }
}

/// The output of `etcdctl get --prefix … -w json`. Without keys it has no `kvs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dump {
    header: Header,
    #[serde(default)]
    kvs: Vec<Pair>,
    #[serde(default, rename = "count")]
    _count: u64,
    /// Whether the dump was limited and lacks further keys.
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct Header {
    revision: u64,
}

/// One key of a dump, in base64.
#[derive(Deserialize)]
struct Pair {
    #[serde(deserialize_with = "base64")]
    key: Vec<u8>,
    #[serde(default, deserialize_with = "base64")]
    value: Vec<u8>,
    mod_revision: u64,
}

fn base64<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<str>::deserialize(input)?;
    BASE64_STANDARD.decode(&*text).map_err(de::Error::custom)
}
