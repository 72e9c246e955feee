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

mod open;

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
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

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
        sweep(written.len());
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
                Guard::Lease(_) => {
                    return Err(StoreError::LeaseLost { key: key.to_owned() });
                }
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
        let done = done.map_err(|error| failed(&self.directory, "write", error)).and_then(|_| {
            let synced = self.database.sync_data();
            synced.map_err(|error| self.directory.failed("sync its database file", error))
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

/// Frees what the pages just replaced leave behind. sled does so every 128th
/// time that it is called; a group is one call and replaces a page per write,
/// so without this the memory of a busy store grows for ever.
fn sweep(writes: usize) {
    /// Freed by one flush at most: 8 bags of 64. Half, for pages split and merged.
    const FREED: usize = 256;
    for _ in 0..=writes / FREED {
        ::sled::pin().flush();
    }
}

fn failed(directory: &Directory, operation: &'static str, error: ::sled::Error) -> StoreError {
    match error {
        ::sled::Error::Io(error) => directory.failed(operation, error),
        error => StoreError::engine(operation, error),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    /// A reader never sees what a power loss could still take back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_shown_what_is_not_durable() {
        let home = tempfile::tempdir().expect("a directory");
        let engine = Arc::new(Sled::create(&home.path().join("store"), "c1", 0).expect("new"));
        let (writer, enough) = (Arc::clone(&engine), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let stop = Arc::clone(&enough);
        let writing = std::thread::spawn(move || {
            let mut round = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let write = match round % 3 {
                    2 => Write::Delete("k/1".to_owned()),
                    _ => Write::Put("k/1".to_owned(), round.to_be_bytes().to_vec()),
                };
                let member = Member { writes: vec![write], ..Member::default() };
                writer.commit_now(vec![member]).expect("works");
                round += 1;
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        let mut deleted = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while (seen.len() <= 20 || deleted == 0) && std::time::Instant::now() < deadline {
            let entry = engine.get("k/1").await.expect("works");
            let after_get = engine.settled.borrow().revision;
            let page = engine.page("k/", None, 10).await.expect("works");
            let after_page = engine.settled.borrow().revision;
            assert!(entry.iter().all(|entry| entry.revision <= after_get));
            assert!(page.iter().all(|(_, entry)| entry.revision <= after_page));
            seen.extend(entry.iter().map(|entry| entry.revision));
            deleted += u32::from(entry.is_none());
        }
        enough.store(true, Ordering::Relaxed);
        writing.join().expect("no panic");
        assert!(seen.len() > 20 && deleted > 0, "{} seen, {deleted} times deleted", seen.len());
    }
}
