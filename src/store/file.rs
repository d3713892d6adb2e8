//! The embedded store: one JSON object of keys and values in a file; and dumps of etcd, to look at.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use super::{Applied, ApplyError, Store};
use crate::deadline::Deadline;
use crate::model::{Entry, Expect, Limits, Op, Snapshot, Transaction};

/// A store in a file: `{"key": "value", …}`, keys in order. It is created by the first change, locked
/// from the first listing to the end of the run (the folder is: the file is replaced, never changed),
/// and left alone when nothing changes.
///
/// What `etcdctl get --prefix … -w json` prints is read too, and never written.
pub struct File {
    path: PathBuf,
    read_only: bool,
    deadline: Deadline,
    lock: Option<fs::File>,
    held: Content,
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
        let path = path.to_owned();
        let store = Self {
            path,
            read_only,
            deadline,
            lock: None,
            held: Content::default(),
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
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn lock(&mut self) -> anyhow::Result<()> {
        /// How often a lock that somebody else holds is asked for again.
        const PAUSE: Duration = Duration::from_millis(20);
        if self.read_only || self.lock.is_some() {
            return Ok(());
        }
        let folder = fs::File::open(self.folder())?;
        loop {
            match folder.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) => {
                    self.deadline
                        .pause(PAUSE)
                        .context("another run holds its lock")?;
                }
                Err(fs::TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        self.lock = Some(folder);
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Content> {
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| anyhow!("{error}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, entries: &BTreeMap<Vec<u8>, (Vec<u8>, u64)>) -> anyhow::Result<()> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let object = entries
            .iter()
            .map(|(key, (value, _))| (text(key), text(value)))
            .collect::<BTreeMap<_, _>>();
        let mut file = tempfile::Builder::new()
            .prefix(".vulcanized-")
            .tempfile_in(self.folder())
            .context("failed to write beside it")?;
        if let Ok(old) = fs::metadata(&self.path) {
            if old.permissions().readonly() {
                bail!("it is read-only");
            }
            file.as_file().set_permissions(old.permissions())?;
        }
        serde_json::to_writer_pretty(&mut file, &object)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

impl Store for File {
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot> {
        self.lock()?;
        self.held = self.read()?;
        let entry = |(key, (value, revision)): (&Vec<u8>, &(Vec<u8>, u64))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        };
        let range = |prefix: &&str| {
            let from = self.held.entries.range(prefix.as_bytes().to_vec()..);
            let own = from.take_while(|(key, _)| key.starts_with(prefix.as_bytes()));
            Ok(own.map(entry).collect())
        };
        Ok(Snapshot {
            revision: self.held.dump,
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
            let found = self.held.entries.get(key.as_bytes());
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
        let mut entries = self.held.entries.clone();
        let next = entries
            .values()
            .map(|(_, revision)| revision + 1)
            .max()
            .unwrap_or(1);
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
        self.write(&entries).map_err(refused)?;
        self.held.entries = entries;
        Ok(Applied::Whole)
    }

    fn limits(&self) -> Limits {
        // One transaction is one replacement of the file.
        Limits {
            operations: usize::MAX,
            guards: usize::MAX,
            bytes: usize::MAX,
        }
    }

    fn writable(&self) -> anyhow::Result<()> {
        let content = self
            .read()
            .with_context(|| format!("failed to read `{}`", self.name()))?;
        if content.dump.is_some() {
            bail!(
                "`{}` is a dump of etcd: it can be looked at with `--dry-run`, not changed",
                self.path.display()
            );
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of keys and values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(key) = map.next_key::<String>()? {
                    match map.next_value::<Value>()? {
                        Value::Text(value) => match content.entries.entry(key.into_bytes()) {
                            Slot::Vacant(slot) => {
                                slot.insert((value.into_bytes(), 1));
                            }
                            Slot::Occupied(slot) => {
                                let key = String::from_utf8_lossy(slot.key()).into_owned();
                                return Err(de::Error::custom(format!("key `{key}` stands twice")));
                            }
                        },
                        Value::Header { revision } if key == "header" => {
                            content.dump = Some(revision);
                        }
                        Value::Pairs(pairs) if key == "kvs" => {
                            for pair in pairs {
                                let (key, value, revision) =
                                    pair.decode().map_err(de::Error::custom)?;
                                content.entries.insert(key, (value, revision));
                            }
                        }
                        Value::Number(_) if key == "count" => {}
                        _ => {
                            let message = format!("the value of key `{key}` is not a string");
                            return Err(de::Error::custom(message));
                        }
                    }
                }
                if content.dump.is_none() && content.entries.values().any(|(_, r)| *r != 1) {
                    return Err(de::Error::custom(
                        "`kvs` without `header` is no dump of etcd",
                    ));
                }
                Ok(content)
            }
        }
        input.deserialize_map(Reader)
    }
}

/// A value of the file, or a part of a dump.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Header { revision: u64 },
    Pairs(Vec<Pair>),
    Number(#[expect(dead_code, reason = "a count says nothing that the keys do not")] u64),
    Other(de::IgnoredAny),
}

/// One key of a dump, in base64.
#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
    mod_revision: u64,
}

impl Pair {
    fn decode(&self) -> Result<(Vec<u8>, Vec<u8>, u64), base64::DecodeError> {
        let Self {
            key,
            value,
            mod_revision,
        } = self;
        Ok((
            BASE64_STANDARD.decode(key)?,
            BASE64_STANDARD.decode(value)?,
            *mod_revision,
        ))
    }
}
