//! What a batch was about to do, on disk before it is done.
//!
//! One file per batch under `state_dir/journal`, rewritten atomically at each
//! phase. It holds no key: keys are in the generation's directory beside the
//! certificate. A batch ends with its result in the outbox; only then its
//! journal is removed. Read back by the batch runner after a crash.
//!
//! A full disk must not keep a host out of an emergency: what cannot be
//! written is held in memory and work goes on. A crash then forgets how far
//! the batch was, nothing else: the pair on disk matches at every moment, and
//! the coordinator orders what has no result again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use reseal_proto::v1::{Failure, Order, TargetProof};
use tokio::sync::Mutex;
use tracing::error;

use crate::state::{self, StateError};

const DIRECTORY: &str = "journal";
const EXTENSION: &str = "pb";

/// How far a target was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Nothing was done.
    Ordered = 0,
    /// A key is being made, a certificate asked for.
    Requested = 1,
    /// Validated; the pair is being switched, reloaded, verified.
    Installing = 2,
    /// It failed; the generation before is being brought back.
    RollingBack = 3,
    /// The proof is complete.
    Done = 4,
}

/// One target of a batch.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Its id.
    #[prost(string, tag = "1")]
    pub installation: String,
    /// A [`Phase`].
    #[prost(enumeration = "Phase", tag = "2")]
    pub phase: i32,
    /// The generation that is being made.
    #[prost(string, tag = "3")]
    pub generation: String,
    /// The generation that was current before; absent: none.
    #[prost(string, optional, tag = "4")]
    pub previous: Option<String>,
    /// Fingerprint of what was there before; empty: nothing.
    #[prost(bytes = "vec", tag = "5")]
    pub before: Vec<u8>,
    /// Fingerprint of the new certificate, once there is one.
    #[prost(bytes = "vec", tag = "6")]
    pub new: Vec<u8>,
    /// Why it is being rolled back.
    #[prost(message, optional, tag = "7")]
    pub failure: Option<Failure>,
    /// The result.
    #[prost(message, optional, tag = "8")]
    pub proof: Option<TargetProof>,
    /// For people, as it was when the batch began.
    #[prost(string, tag = "9")]
    pub label: String,
}

/// A batch.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// As it came.
    #[prost(message, optional, tag = "1")]
    pub order: Option<Order>,
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub started_at: i64,
    /// In the order's order.
    #[prost(message, repeated, tag = "3")]
    pub entries: Vec<Entry>,
    /// Whose order it is.
    #[prost(string, tag = "4")]
    pub fleet: String,
}

/// The journal of one running batch; cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    state_dir: PathBuf,
    batch: Arc<Mutex<Batch>>,
}

impl Journal {
    /// Begins a batch: from here on a crash resumes it.
    pub fn begin(state_dir: &Path, fleet: &str, order: Order, started_at: i64) -> Self {
        let entries = order
            .installations
            .iter()
            .map(|installation| Entry { installation: installation.clone(), ..Entry::default() });
        let batch =
            Batch { entries: entries.collect(), order: Some(order), started_at, fleet: fleet.to_owned() };
        let journal = Self::of(state_dir, batch.clone());
        written(store(state_dir, &batch));
        journal
    }

    /// The batches of this fleet that a crash has left behind. Those of another,
    /// in which this machine was before, are set aside: nobody waits for them.
    /// Without a fleet nothing is.
    pub fn unfinished(state_dir: &Path, fleet: Option<&str>) -> Result<Vec<Self>, StateError> {
        let directory = directory(state_dir);
        state::make_dir(&directory)?;
        let list = std::fs::read_dir(&directory).map_err(StateError::io("list", &directory))?;
        let mut found = Vec::new();
        for entry in list {
            let path = entry.map_err(StateError::io("list", &directory))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let bytes = state::read(&path)?.unwrap_or_default();
            let batch = Batch::decode(bytes.as_slice()).ok();
            match batch.filter(|batch| batch.order.is_some()) {
                Some(batch) if fleet.is_none_or(|fleet| batch.fleet == fleet) => found.push(batch),
                Some(batch) => set_aside(&directory, &batch)?,
                None => return Err(StateError::Damaged { path }),
            }
        }
        found.sort_by_key(|batch| batch.started_at);
        let journals = found.into_iter().map(|batch| Self::of(state_dir, batch));
        Ok(journals.collect())
    }

    fn of(state_dir: &Path, batch: Batch) -> Self {
        Self { state_dir: state_dir.to_owned(), batch: Arc::new(Mutex::new(batch)) }
    }

    /// As it stands.
    pub async fn batch(&self) -> Batch {
        self.batch.lock().await.clone()
    }

    /// One entry as it stands.
    pub async fn entry(&self, at: usize) -> Entry {
        self.batch.lock().await.entries[at].clone()
    }

    /// Changes entries; on disk when this returns, unless the disk refuses.
    pub async fn update(&self, change: impl FnOnce(&mut Vec<Entry>)) {
        let mut batch = self.batch.lock().await;
        change(&mut batch.entries);
        let (state_dir, copy) = (self.state_dir.clone(), batch.clone());
        // The lock is held: writes come in order.
        let stored = tokio::task::spawn_blocking(move || store(&state_dir, &copy)).await;
        written(stored.expect("writing a file does not panic"));
    }

    /// The result is safe elsewhere.
    pub async fn finish(&self) -> Result<(), StateError> {
        let batch = self.batch.lock().await;
        state::remove(&directory(&self.state_dir), &name_of(&batch))
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join(DIRECTORY)
}

fn set_aside(directory: &Path, batch: &Batch) -> Result<(), StateError> {
    let name = name_of(batch);
    let aside = format!("{name}.aside");
    error!(
        fleet = %batch.fleet,
        batch = %name,
        "a batch of another fleet was not finished: its journal is set aside as {aside}; see that what it names is served, with a certificate of this fleet"
    );
    state::rename(directory, &name, &aside)
}

fn name_of(batch: &Batch) -> String {
    let name = batch.order.as_ref().map_or("", |order| order.batch.as_str());
    state::file_name(name, EXTENSION)
}

fn written(result: Result<(), StateError>) {
    if let Err(error) = result {
        error!(error = %crate::chain_of(&error), "the journal cannot be written: a crash now would forget how far the batch is");
    }
}

fn store(state_dir: &Path, batch: &Batch) -> Result<(), StateError> {
    state::make_dir(&directory(state_dir))?;
    state::write_in(state_dir, DIRECTORY, &name_of(batch), &batch.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(batch: &str) -> Order {
        Order { batch: batch.into(), installations: vec!["/a".into(), "/b".into()], ..Order::default() }
    }

    #[tokio::test]
    async fn what_was_begun_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::begin(dir.path(), "f", order("r1.0"), 5);
        journal.update(|entries| entries[1].generation = "g".into()).await;
        let found = Journal::unfinished(dir.path(), Some("f")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].batch().await, journal.batch().await);
        assert_eq!(found[0].entry(1).await.generation, "g");
        journal.finish().await.unwrap();
        assert!(Journal::unfinished(dir.path(), Some("f")).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_batch_of_another_fleet_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Journal::begin(dir.path(), "g", order("r2.0"), 6);
        Journal::begin(dir.path(), "f", order("r1.0"), 5);
        let found = Journal::unfinished(dir.path(), Some("g")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].batch().await, ours.batch().await);
        let aside = directory(dir.path()).join("r1.0.pb.aside");
        assert!(aside.exists() && !aside.with_extension("").exists());
        // Not taken up in its own fleet either, nor looked at again.
        assert_eq!(Journal::unfinished(dir.path(), None).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_torn_write_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::begin(dir.path(), "f", order("r1.0"), 5);
        // What a crash in the middle of a write leaves behind.
        std::fs::write(directory(dir.path()).join(".r1.0.pb.new"), b"torn").unwrap();
        let found = Journal::unfinished(dir.path(), Some("f")).unwrap();
        assert_eq!(found[0].batch().await, journal.batch().await);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let not_a_directory = dir.path().join("file");
        std::fs::write(&not_a_directory, b"").unwrap();
        let journal = Journal::begin(&not_a_directory, "f", order("r1.0"), 5);
        journal.update(|entries| entries[0].generation = "g".into()).await;
        assert_eq!(journal.entry(0).await.generation, "g");
    }

    #[test]
    fn a_damaged_journal_is_named() {
        let dir = tempfile::tempdir().unwrap();
        Journal::begin(dir.path(), "f", order("r1.0"), 5);
        std::fs::write(directory(dir.path()).join("r1.0.pb"), b"\xff\xff").unwrap();
        let error = Journal::unfinished(dir.path(), Some("f")).unwrap_err().to_string();
        assert!(error.contains("r1.0.pb"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            Journal::unfinished(dir.path(), Some("f")).unwrap();
            std::fs::write(directory(dir.path()).join("x.pb"), &bytes).unwrap();
            let _ = Journal::unfinished(dir.path(), Some("f"));
        }
    }
}
