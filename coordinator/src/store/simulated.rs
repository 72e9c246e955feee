//! An engine in memory with a crash that can be simulated; never in a release.
//!
//! The [`Disk`] is what survives: a group is on it, whole, or it is not. Between
//! the call and that moment, and between that moment and the answer, time
//! passes as the simulation says, so that a crash may lose a group, or keep one
//! nobody was told of. A crash is [`Disk::seize`]: for the engine that had the
//! disk nothing returns any more. The conformance suite runs over it like over
//! any engine; the simulation in `tests/` is its only user.

use super::audit::Chain;
use super::error::StoreError;
use super::kv::{Entry, Guard, Kv, Lease, Member, Write};
use super::watch::{Hint, Hints, Watch};
use super::{keys, record};

use async_trait::async_trait;
use tokio::sync::oneshot;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bits of a revision that count commits within an epoch.
const COUNT_BITS: u32 = 40;

/// Where time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before or after a read.
    Read,
    /// Before a group is on disk.
    Write,
    /// Before its callers are told.
    Answer,
}

/// How long each moment takes.
pub type Delay = Arc<dyn Fn(Moment) -> Duration + Send + Sync>;
/// Sees each commit at the moment in which it is on disk: revision and writes, an audit entry among them.
pub type Observer = Arc<dyn Fn(u64, &[Write]) + Send + Sync>;

/// What survives a crash. Clones share it.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    entries: BTreeMap<String, Entry>,
    /// Who may use it: the newest engine.
    owner: u64,
    full: bool,
    delay: Option<Delay>,
    observer: Option<Observer>,
}

impl Disk {
    /// Takes the disk from whoever has it: for that engine nothing returns any more.
    pub fn seize(&self) {
        self.contents().owner += 1;
    }

    /// Refuses every group until it is not full any more.
    pub fn fill(&self, full: bool) {
        self.contents().full = full;
    }

    /// Lets time pass.
    pub fn delayed_by(&self, delay: Delay) {
        self.contents().delay = Some(delay);
    }

    /// Has every commit seen.
    pub fn observed_by(&self, observer: Observer) {
        self.contents().observer = Some(observer);
    }

    /// A disk with the same entries, used and seen by nobody.
    pub fn copy(&self) -> Disk {
        let entries = self.contents().entries.clone();
        Disk(Arc::new(Mutex::new(Contents { entries, ..Contents::default() })))
    }

    /// Everything on it.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        self.contents().entries.clone()
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine.
#[derive(Clone)]
pub struct Simulated(Arc<Inner>);

struct Inner {
    disk: Disk,
    owner: u64,
    epoch: u64,
    writer: Mutex<Writer>,
    hints: Hints,
    /// Groups go one after the other, in the order of their calls.
    turn: tokio::sync::Mutex<()>,
}

struct Writer {
    revision: u64,
    chain: Chain,
}

impl Simulated {
    /// Opens a disk, takes it from whoever had it and raises the epoch.
    pub fn open(disk: &Disk, chain: &str) -> Self {
        disk.seize();
        let mut contents = disk.contents();
        let newest = contents.entries.iter().rfind(|(key, _)| key.starts_with(keys::AUDIT));
        let chain = newest.map_or_else(
            || Chain::empty(chain),
            |(key, entry)| {
                let entry = record::decode(key, &entry.value).expect("an audit entry");
                Chain::at(&entry).expect("nobody has changed it")
            },
        );
        let old = contents.entries.get(keys::EPOCH).map_or(0, |entry| {
            record::decode::<record::Counter>(keys::EPOCH, &entry.value).expect("a counter").value
        });
        let epoch = old + 1;
        let revision = epoch << COUNT_BITS;
        let value = record::encode(&record::Counter { value: epoch });
        contents.entries.insert(keys::EPOCH.to_owned(), Entry { revision, value: value.clone() });
        let owner = contents.owner;
        let observer = contents.observer.clone();
        drop(contents);
        if let Some(observer) = observer {
            observer(revision, &[Write::Put(keys::EPOCH.to_owned(), value)]);
        }
        Self(Arc::new(Inner {
            disk: disk.clone(),
            owner,
            epoch,
            writer: Mutex::new(Writer { revision, chain }),
            hints: Hints::default(),
            turn: tokio::sync::Mutex::default(),
        }))
    }
}

impl Inner {
    async fn pass(&self, moment: Moment) {
        let delay = self.disk.contents().delay.as_ref().map_or(Duration::ZERO, |delay| delay(moment));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.disk.contents().owner != self.owner {
            std::future::pending::<()>().await;
        }
    }

    fn commit_now(&self, group: &[Member]) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let mut contents = self.disk.contents();
        if contents.full {
            let path = || PathBuf::from("simulated");
            return Err(StoreError::Full { store: path(), ballast: path() });
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers = Vec::with_capacity(group.len());
        let (mut hints, mut seen) = (Vec::new(), Vec::new());
        for member in group {
            if let Err(refused) = judge(member, &contents.entries) {
                answers.push(Err(refused));
                continue;
            }
            if member.writes.is_empty() && member.audit.is_none() {
                answers.push(Ok(writer.revision));
                continue;
            }
            writer.revision += 1;
            let revision = writer.revision;
            let mut writes = member.writes.clone();
            if let Some(draft) = &member.audit {
                let entry = writer.chain.append(draft.clone());
                writes.push(Write::Put(keys::audit(&entry.chain, entry.sequence), record::encode(&entry)));
            }
            for write in &writes {
                match write {
                    Write::Put(key, value) => {
                        contents.entries.insert(key.clone(), Entry { revision, value: value.clone() });
                    }
                    Write::Delete(key) => drop(contents.entries.remove(key)),
                }
                hints.push(Hint::Key { key: write.key().into(), revision });
            }
            seen.push((revision, writes));
            answers.push(Ok(revision));
        }
        let observer = contents.observer.clone();
        drop(contents);
        for (revision, writes) in observer.iter().flat_map(|_| &seen) {
            observer.as_ref().expect("there is one")(*revision, writes);
        }
        if !hints.is_empty() && self.hints.wanted() {
            self.hints.send(hints);
        }
        Ok(answers)
    }

    fn revision(&self, key: &str) -> Option<u64> {
        self.disk.contents().entries.get(key).map(|entry| entry.revision)
    }
}

fn judge(member: &Member, entries: &BTreeMap<String, Entry>) -> Result<(), StoreError> {
    member.check()?;
    for guard in &member.guards {
        let current = entries.get(guard.key()).map(|entry| entry.revision);
        let holds = match guard {
            Guard::Absent(_) => current.is_none(),
            Guard::Revision(_, revision) => current == Some(*revision),
            Guard::Lease(lease) if current == Some(lease.revision) => true,
            Guard::Lease(_) => return Err(StoreError::LeaseLost { key: guard.key().to_owned() }),
        };
        if !holds {
            return Err(StoreError::Conflict { key: guard.key().to_owned() });
        }
    }
    Ok(())
}

#[async_trait]
impl Kv for Simulated {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.pass(Moment::Read).await;
        let entry = self.0.disk.contents().entries.get(key).cloned();
        self.0.pass(Moment::Read).await;
        Ok(entry)
    }

    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError> {
        self.0.pass(Moment::Read).await;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let entries = {
            let contents = self.0.disk.contents();
            let found = contents.entries.range::<str, _>((from, Bound::Unbounded));
            let found = found.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
            found.map(|(key, entry)| (key.clone(), entry.clone())).collect()
        };
        self.0.pass(Moment::Read).await;
        Ok(entries)
    }

    /// Goes on when the caller has stopped waiting.
    async fn commit(&self, group: Vec<Member>) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let inner = self.0.clone();
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let turn = inner.turn.lock().await;
            inner.pass(Moment::Write).await;
            let result = inner.commit_now(&group);
            drop(turn);
            inner.pass(Moment::Answer).await;
            // An error only says that the caller has left.
            let _ = answer.send(result);
        });
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Whoever had the disk before is gone.
    async fn acquire(&self, key: &str, holder: &str, _ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.0.pass(Moment::Write).await;
        let lease = |revision| Lease { key: key.to_owned(), holder: holder.to_owned(), revision };
        let entry = self.0.disk.contents().entries.get(key).cloned();
        let guard = match entry {
            Some(entry) => {
                let current: record::Lease = record::decode(key, &entry.value)?;
                if current.epoch == self.0.epoch {
                    return Ok((current.holder == holder).then(|| lease(entry.revision)));
                }
                Guard::Revision(key.to_owned(), entry.revision)
            }
            None => Guard::Absent(key.to_owned()),
        };
        let value = record::encode(&record::Lease { holder: holder.to_owned(), epoch: self.0.epoch });
        let writes = vec![Write::Put(key.to_owned(), value)];
        let member = Member { guards: vec![guard], writes, audit: None };
        match self.0.commit_now(&[member])?.remove(0) {
            Ok(revision) => Ok(Some(lease(revision))),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        self.0.pass(Moment::Read).await;
        Ok(self.0.revision(&lease.key) == Some(lease.revision))
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.0.pass(Moment::Write).await;
        let writes = vec![Write::Delete(lease.key.clone())];
        let member = Member { guards: vec![Guard::Lease(lease.clone())], writes, audit: None };
        match self.0.commit_now(&[member])?.remove(0) {
            Ok(_) | Err(StoreError::LeaseLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn watch(&self) -> Watch {
        self.0.hints.subscribe()
    }

    fn epoch(&self) -> u64 {
        self.0.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Vec<Member> {
        vec![Member { writes: vec![Write::Put(key.to_owned(), Vec::new())], ..Member::default() }]
    }

    #[tokio::test]
    async fn a_crash_loses_what_was_not_on_disk_and_keeps_what_was() {
        for (stands_still, kept) in [(Moment::Write, false), (Moment::Answer, true)] {
            let disk = Disk::default();
            let delay = move |moment| if moment == stands_still { Duration::MAX } else { Duration::ZERO };
            disk.delayed_by(Arc::new(delay));
            let engine = Simulated::open(&disk, "c1");
            let writing = tokio::spawn(async move { engine.commit(put("k")).await });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let after = Simulated::open(&disk, "c1");
            assert_eq!(after.get("k").await.expect("works").is_some(), kept);
            assert_eq!(after.epoch(), 2);
            assert!(!writing.is_finished(), "nobody was told");
        }
    }
}
