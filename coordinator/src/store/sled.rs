//! The embedded engine: sled, one tree, made durable by us.
//!
//! A value is stored as its revision (8 bytes, big-endian) and its bytes.
//! Revisions are `epoch << 40 | count`: the epoch is durable before the first
//! commit, so no revision is ever given twice and none needs a record of its own.
//!
//! sled's `flush` leaves the file to the page cache (`sync_file_range`), so
//! each group is followed by an fdatasync of its database file before anyone
//! is told, and nobody is shown a value before that. Nothing here may be
//! called with untrusted sizes: the committer and the tests are the callers.

use super::audit::{Chain, Draft};
use super::directory::Directory;
use super::error::StoreError;
use super::kv::{Entry, Guard, Kv, Lease, Member, Write};
use super::watch::{Hint, Hints, Watch};
use super::{keys, record};

use ::sled::{Batch, Db, IVec};
use async_trait::async_trait;
use tokio::sync::watch;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Size of a segment of the database file. A page larger than a quarter of it
/// would go to a file of its own that sled never syncs; a leaf holds up to 17
/// values, so with this no page of the largest values gets there. Written into
/// the database: changing it needs an export and an import.
pub(super) const SEGMENT: usize = 8 * 1024 * 1024;
/// Bytes of pages sled keeps in memory.
const CACHE: u64 = 64 * 1024 * 1024;
/// How often sled moves what is left of nearly empty segments, so that the file
/// stops growing. Durability does not rest on it.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Bits of a revision that count commits within an epoch.
const COUNT_BITS: u32 = 40;
/// How long a database of this process that was just dropped may take to let go of its file.
const LET_GO: Duration = Duration::from_secs(5);

/// The embedded engine.
pub struct Sled {
    tree: Db,
    /// sled's file, opened once more: an fdatasync is for the file, whoever wrote to it.
    database: File,
    epoch: u64,
    writer: Mutex<Writer>,
    settled: watch::Sender<Settled>,
    /// Revision of the newest group that deletes something.
    deleted: AtomicU64,
    hints: Hints,
    /// After `tree`: the lock is given back last.
    directory: Directory,
}

/// What only the one that commits may touch.
struct Writer {
    revision: u64,
    chain: Chain,
    /// Reused for each value.
    scratch: Vec<u8>,
}

/// Up to where everything is durable.
#[derive(Default)]
struct Settled {
    revision: u64,
    /// Why it will go no further.
    failed: Option<StoreError>,
}

impl Sled {
    /// Makes a store in a new or empty directory; its epoch is above `floor`.
    pub fn create(path: &Path, chain: &str, floor: u64) -> Result<Sled, StoreError> {
        Sled::start(Directory::create(path)?, chain, floor)
    }

    /// Opens an existing one and raises its epoch.
    pub fn open(path: &Path, chain: &str) -> Result<Sled, StoreError> {
        Sled::start(Directory::open(path)?, chain, 0)
    }

    fn start(directory: Directory, chain: &str, floor: u64) -> Result<Sled, StoreError> {
        let tree = open_tree(&directory)?;
        let database = File::open(directory.database().join("db"))
            .map_err(|error| StoreError::engine("open its database file", error))?;
        let chain = recover(&tree, chain)?;
        let mut engine = Sled {
            tree,
            database,
            epoch: 0,
            writer: Mutex::new(Writer { revision: 0, chain, scratch: Vec::new() }),
            settled: watch::Sender::new(Settled::default()),
            deleted: AtomicU64::new(0),
            hints: Hints::default(),
            directory,
        };
        engine.raise_epoch(floor)?;
        engine.directory.sync()?;
        Ok(engine)
    }

    /// The epoch is durable before anything is committed in it. The same sync
    /// makes durable what a killed process wrote and had no time to sync.
    fn raise_epoch(&mut self, floor: u64) -> Result<(), StoreError> {
        let old = match self.read(keys::EPOCH)? {
            Some(entry) => record::decode::<record::Counter>(keys::EPOCH, &entry.value)?.value,
            None => 0,
        };
        self.epoch = old.max(floor) + 1;
        if self.epoch >> (u64::BITS - COUNT_BITS) != 0 {
            let spent = io::Error::other("all epochs are used up");
            return Err(StoreError::engine("raise its epoch", spent));
        }
        let revision = self.epoch << COUNT_BITS;
        let value = record::encode(&record::Counter { value: self.epoch });
        let mut batch = Batch::default();
        let mut writer = self.writer();
        batch.insert(keys::EPOCH, writer.stored(revision, &value));
        writer.revision = revision;
        drop(writer);
        self.write(batch, revision)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic half-way leaves numbers that were never used; `settled` says what counts.
        self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let stored = self.tree.get(key).map_err(|error| StoreError::engine("read", error))?;
        stored.map(|stored| entry(key, &stored)).transpose()
    }

    /// The commit of a group, on the caller's thread: some microseconds per
    /// write, and one flush.
    fn commit_now(&self, group: Vec<Member>) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let mut writer = self.writer();
        if let Some(error) = &self.settled.borrow().failed {
            return Err(error.clone());
        }
        self.directory.room(group.iter().map(|member| member.size() as u64).sum())?;

        let mut batch = Batch::default();
        let mut written: HashMap<&str, Option<u64>> = HashMap::new();
        let mut answers = Vec::with_capacity(group.len());
        let mut audited = Vec::new();
        let mut deletes = false;
        let before = writer.revision;
        // Of a group of one nobody reads what it wrote.
        let alone = group.len() == 1;
        for member in &group {
            if let Err(refused) = self.judge(member, &written) {
                answers.push(Err(refused));
                continue;
            }
            if member.writes.is_empty() && member.audit.is_none() {
                answers.push(Ok(writer.revision));
                continue;
            }
            let revision = writer.revision + 1;
            writer.revision = revision;
            for write in &member.writes {
                match write {
                    Write::Put(key, value) => {
                        batch.insert(key.as_str(), writer.stored(revision, value));
                        if !alone {
                            written.insert(key, Some(revision));
                        }
                    }
                    Write::Delete(key) => {
                        batch.remove(key.as_str());
                        deletes = true;
                        if !alone {
                            written.insert(key, None);
                        }
                    }
                }
            }
            if let Some(draft) = &member.audit {
                let (key, value) = writer.audit(draft.clone(), revision);
                batch.insert(key.as_str(), value);
                audited.push(Hint::Key { key: key.into(), revision });
            }
            answers.push(Ok(revision));
        }
        if writer.revision == before {
            return Ok(answers);
        }
        if deletes {
            self.deleted.store(writer.revision, Ordering::Release);
        }
        self.write(batch, writer.revision)?;
        // Hints of one group never overtake those of the one before.
        self.tell(&group, &answers, audited);
        drop(writer);
        Ok(answers)
    }

    /// Fails with what refuses the member, given what the group has written so far.
    fn judge(&self, member: &Member, written: &HashMap<&str, Option<u64>>) -> Result<(), StoreError> {
        member.check()?;
        for guard in &member.guards {
            let key = guard.key();
            let current = match written.get(key) {
                Some(current) => *current,
                None => self.revision(key)?,
            };
            let holds = match guard {
                Guard::Absent(_) => current.is_none(),
                Guard::Revision(_, revision) => current == Some(*revision),
                Guard::Lease(lease) if current == Some(lease.revision) => true,
                Guard::Lease(_) => return Err(StoreError::LeaseLost { key: key.to_owned() }),
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.to_owned() });
            }
        }
        Ok(())
    }

    /// Applies a batch and makes it durable. Failing here is for good: the
    /// kernel may have dropped the pages it could not write, so that a second
    /// fdatasync would succeed and mean nothing.
    fn write(&self, batch: Batch, revision: u64) -> Result<(), StoreError> {
        let done = self.tree.apply_batch(batch).and_then(|()| self.tree.flush());
        let done = done.map_err(|error| StoreError::engine("write", error)).and_then(|_| {
            let synced = self.database.sync_data();
            synced.map_err(|error| StoreError::engine("sync its database file", error))
        });
        self.settled.send_modify(|settled| match &done {
            Ok(()) => settled.revision = revision,
            Err(error) => settled.failed = Some(error.clone()),
        });
        done
    }

    fn tell(&self, group: &[Member], answers: &[Result<u64, StoreError>], audited: Vec<Hint>) {
        if !self.hints.wanted() {
            return;
        }
        let mut hints = audited;
        for (member, answer) in group.iter().zip(answers) {
            if let Ok(revision) = *answer {
                let keys = member.writes.iter().map(|write| Hint::Key { key: write.key().into(), revision });
                hints.extend(keys);
            }
        }
        self.hints.send(hints);
    }

    fn revision(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let stored = self.tree.get(key).map_err(|error| StoreError::engine("read", error))?;
        stored.map(|stored| Ok(split(key, &stored)?.0)).transpose()
    }

    /// Waits until everything up to `revision` is durable.
    async fn settle(&self, revision: u64) -> Result<(), StoreError> {
        if self.settled.borrow().revision >= revision {
            return Ok(());
        }
        let mut settled = self.settled.subscribe();
        let settled = settled
            .wait_for(|settled| settled.revision >= revision || settled.failed.is_some())
            .await
            .map_err(|_| StoreError::Closed)?;
        match &settled.failed {
            Some(error) if settled.revision < revision => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Writer {
    fn stored(&mut self, revision: u64, value: &[u8]) -> IVec {
        self.scratch.clear();
        self.scratch.extend_from_slice(&revision.to_be_bytes());
        self.scratch.extend_from_slice(value);
        IVec::from(self.scratch.as_slice())
    }

    fn audit(&mut self, draft: Draft, revision: u64) -> (String, IVec) {
        let entry = self.chain.append(draft);
        let key = keys::audit(&entry.chain, entry.sequence);
        let value = record::encode(&entry);
        (key, self.stored(revision, &value))
    }
}

#[async_trait]
impl Kv for Sled {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.read(key)?;
        // What is not there may have been deleted by a group that is still being flushed.
        let seen =
            entry.as_ref().map_or_else(|| self.deleted.load(Ordering::Acquire), |entry| entry.revision);
        self.settle(seen).await?;
        Ok(entry)
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.as_bytes()),
            _ => Bound::Included(prefix.as_bytes()),
        };
        let mut entries = Vec::new();
        let mut seen = 0;
        for found in self.tree.range::<&[u8], _>((from, Bound::Unbounded)).take(limit) {
            let (key, stored) = found.map_err(|error| StoreError::engine("read", error))?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let key = String::from_utf8_lossy(&key).into_owned();
            let entry = entry(&key, &stored)?;
            seen = entry.revision.max(seen);
            entries.push((key, entry));
        }
        self.settle(seen.max(self.deleted.load(Ordering::Acquire))).await?;
        Ok(entries)
    }

    async fn commit(&self, group: Vec<Member>) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        self.commit_now(group)
    }

    /// The file lock has made sure that every holder of an earlier epoch is gone.
    async fn acquire(&self, key: &str, holder: &str, _ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let lease = |revision| Lease { key: key.to_owned(), holder: holder.to_owned(), revision };
        let guard = match self.read(key)? {
            Some(entry) => {
                let current: record::Lease = record::decode(key, &entry.value)?;
                if current.epoch == self.epoch {
                    let same = current.holder == holder;
                    return Ok(same.then(|| lease(entry.revision)));
                }
                Guard::Revision(key.to_owned(), entry.revision)
            }
            None => Guard::Absent(key.to_owned()),
        };
        let value = record::encode(&record::Lease { holder: holder.to_owned(), epoch: self.epoch });
        let member =
            Member { guards: vec![guard], writes: vec![Write::Put(key.to_owned(), value)], audit: None };
        match self.commit_now(vec![member])?.remove(0) {
            Ok(revision) => Ok(Some(lease(revision))),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        Ok(self.revision(&lease.key)? == Some(lease.revision))
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let member = Member {
            guards: vec![Guard::Lease(lease.clone())],
            writes: vec![Write::Delete(lease.key.clone())],
            audit: None,
        };
        match self.commit_now(vec![member])?.remove(0) {
            Ok(_) | Err(StoreError::LeaseLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn watch(&self) -> Watch {
        self.hints.subscribe()
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }
}

fn open_tree(directory: &Directory) -> Result<Db, StoreError> {
    let config = ::sled::Config::new()
        .path(directory.database())
        .cache_capacity(CACHE)
        .segment_size(SEGMENT)
        .flush_every_ms(u64::try_from(TIDY_EVERY.as_millis()).ok());
    let begun = Instant::now();
    loop {
        // sled asserts what it reads from disk.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| {
            let damaged = io::Error::other("the database file is damaged");
            StoreError::engine("open its database", damaged)
        })?;
        match opened {
            Ok(tree) => return Ok(tree),
            Err(::sled::Error::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
                return Err(directory.full());
            }
            // Ours is the only process, by our own lock: a database dropped a moment
            // ago is still being taken down by its threads.
            Err(::sled::Error::Io(error)) if locked(&error) && begun.elapsed() < LET_GO => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(StoreError::engine("open its database", error)),
        }
    }
}

fn locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// The head of the chain, from its newest entry.
fn recover(tree: &Db, name: &str) -> Result<Chain, StoreError> {
    let failed = |error| StoreError::engine("find the head of its audit chain", error);
    let end = keys::audit(name, u64::MAX);
    let Some((key, stored)) = tree.get_lt(end.as_bytes()).map_err(failed)? else {
        return Ok(Chain::empty(name));
    };
    let key = String::from_utf8_lossy(&key).into_owned();
    let first = keys::audit(name, 0);
    if key < first {
        return Ok(Chain::empty(name));
    }
    let entry: record::AuditEntry = record::decode(&key, split(&key, &stored)?.1)?;
    Chain::at(&entry).map_err(|broken| StoreError::engine("go on with its audit chain", broken))
}

fn entry(key: &str, stored: &[u8]) -> Result<Entry, StoreError> {
    let (revision, value) = split(key, stored)?;
    Ok(Entry { revision, value: value.to_vec() })
}

fn split<'a>(key: &str, stored: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
    match stored.split_first_chunk() {
        Some((revision, value)) => Ok((u64::from_be_bytes(*revision), value)),
        None => Err(record::RecordError::Damaged { key: key.to_owned(), source: None }.into()),
    }
}
