//! Results of batches, kept until the coordinator has acknowledged them.
//!
//! A result is on disk before it is sent and is sent again on each session
//! until its ResultAck, signed by the identity of that session. The names of acknowledged batches are remembered too
//! (the newest thousand), so that an order that comes late and twice has no
//! second effect.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use prost::Message;
use reseal_proto::v1::BatchResult;
use tokio::sync::watch;
use tracing::info;

use crate::state::{self, StateError};

const ACKNOWLEDGED: &str = "acknowledged.pb";
const DIRECTORY: &str = "results";
const EXTENSION: &str = "pb";
/// Names of acknowledged batches that are kept.
const MOST_ACKNOWLEDGED: usize = 1000;

#[derive(Clone, PartialEq, Message)]
struct Names {
    /// Oldest first.
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
    /// Whose they are: another fleet may use the same ones.
    #[prost(string, tag = "2")]
    fleet: String,
}

/// What is known of a batch that is not running.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Its result waits for an acknowledgement.
    Finished(Box<BatchResult>),
    /// Finished and acknowledged.
    Acknowledged,
}

/// The unacknowledged results.
#[derive(Debug)]
pub struct Outbox {
    state_dir: PathBuf,
    held: Mutex<Held>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Held {
    results: BTreeMap<String, BatchResult>,
    acknowledged: Names,
}

impl Outbox {
    /// Reads it back.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        let directory = state_dir.join(DIRECTORY);
        state::make_dir(&directory)?;
        let mut held = Held::default();
        for entry in std::fs::read_dir(&directory).map_err(StateError::io("list", &directory))? {
            let path = entry.map_err(StateError::io("list", &directory))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let bytes = state::read(&path)?.unwrap_or_default();
            let result = BatchResult::decode(bytes.as_slice()).map_err(|_| StateError::Damaged { path })?;
            held.results.insert(result.batch.clone(), result);
        }
        let path = state_dir.join(ACKNOWLEDGED);
        if let Some(bytes) = state::read(&path)? {
            held.acknowledged = Names::decode(bytes.as_slice()).map_err(|_| StateError::Damaged { path })?;
        }
        Ok(Self { state_dir: state_dir.to_owned(), held: Mutex::new(held), changes: watch::Sender::new(0) })
    }

    /// A coordinator of this fleet speaks: what is known of another's batches is
    /// forgotten.
    pub fn of_fleet(&self, fleet: &str) -> Result<(), StateError> {
        let mut held = self.held();
        if held.acknowledged.fleet == fleet {
            return Ok(());
        }
        let forgotten = !held.acknowledged.names.is_empty();
        held.acknowledged = Names { names: Vec::new(), fleet: fleet.to_owned() };
        if forgotten {
            info!(fleet, "the names of another fleet's batches are forgotten");
        }
        state::write(&self.state_dir, ACKNOWLEDGED, &held.acknowledged.encode_to_vec())
    }

    /// Keeps a result; it is on disk when this returns. Where the disk refuses
    /// it, the result is held in memory and sent all the same.
    pub fn put(&self, result: BatchResult) -> Result<(), StateError> {
        let name = state::file_name(&result.batch, EXTENSION);
        let written = state::write_in(&self.state_dir, DIRECTORY, &name, &result.encode_to_vec());
        self.held().results.insert(result.batch.clone(), result);
        self.changes.send_modify(|count| *count += 1);
        written
    }

    /// What is known of a batch.
    pub fn known(&self, batch: &str) -> Option<Known> {
        let held = self.held();
        if let Some(result) = held.results.get(batch) {
            return Some(Known::Finished(Box::new(result.clone())));
        }
        held.acknowledged.names.iter().any(|name| name == batch).then_some(Known::Acknowledged)
    }

    /// Names of the results that wait.
    pub fn waiting(&self) -> Vec<String> {
        self.held().results.keys().cloned().collect()
    }

    /// The coordinator has the result with this payload; a newer one for the
    /// same batch stays.
    pub fn acknowledge(&self, batch: &str, payload: &[u8]) -> Result<(), StateError> {
        let mut held = self.held();
        if held.results.get(batch).is_none_or(|result| result.payload != payload) {
            return Ok(());
        }
        let mut names = held.acknowledged.clone();
        names.names.retain(|name| name != batch);
        names.names.push(batch.to_owned());
        let surplus = names.names.len().saturating_sub(MOST_ACKNOWLEDGED);
        names.names.drain(..surplus);
        // The name first: between the two steps the batch is known twice, never not at all.
        state::write(&self.state_dir, ACKNOWLEDGED, &names.encode_to_vec())?;
        self.remove(batch)?;
        held.acknowledged = names;
        held.results.remove(batch);
        Ok(())
    }

    /// Nobody will ever take it: it is of the time when this machine was another host.
    pub fn give_up(&self, batch: &str) -> Result<(), StateError> {
        self.held().results.remove(batch);
        self.remove(batch)
    }

    fn remove(&self, batch: &str) -> Result<(), StateError> {
        state::remove(&self.state_dir.join(DIRECTORY), &state::file_name(batch, EXTENSION))
    }

    /// Changes when there is something new to send.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(batch: &str) -> BatchResult {
        BatchResult { batch: batch.into(), payload: vec![1, 2], ..BatchResult::default() }
    }

    #[test]
    fn a_result_stays_until_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.put(result("a")).unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        assert_eq!(outbox.known("a"), Some(Known::Finished(Box::new(result("a")))));
        outbox.acknowledge("a", &[1, 2]).unwrap();
        outbox.acknowledge("never heard of", &[1, 2]).unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        assert!(outbox.waiting().is_empty());
        assert_eq!(outbox.known("a"), Some(Known::Acknowledged));
        assert_eq!(outbox.known("never heard of"), None);
    }

    #[test]
    fn an_acknowledgement_of_an_older_result_leaves_the_newer() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.put(result("a")).unwrap();
        outbox.put(BatchResult { payload: vec![3], ..result("a") }).unwrap();
        outbox.acknowledge("a", &[1, 2]).unwrap();
        assert_eq!(outbox.waiting(), ["a"]);
        outbox.acknowledge("a", &[3]).unwrap();
        assert!(outbox.waiting().is_empty());
    }

    #[test]
    fn another_fleet_may_use_the_same_names() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.of_fleet("f").unwrap();
        outbox.put(result("a")).unwrap();
        outbox.acknowledge("a", &[1, 2]).unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.of_fleet("f").unwrap();
        assert_eq!(outbox.known("a"), Some(Known::Acknowledged));
        outbox.of_fleet("g").unwrap();
        assert_eq!(outbox.known("a"), None);
        assert_eq!(Outbox::open(dir.path()).unwrap().known("a"), None);
    }

    #[test]
    fn the_memory_of_names_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        outbox.held().acknowledged.names = (0..MOST_ACKNOWLEDGED).map(|n| n.to_string()).collect();
        outbox.put(result("new")).unwrap();
        outbox.acknowledge("new", &[1, 2]).unwrap();
        assert_eq!(outbox.known("0"), None);
        assert_eq!(outbox.known("1"), Some(Known::Acknowledged));
        assert_eq!(outbox.held().acknowledged.names.len(), MOST_ACKNOWLEDGED);
    }
}
