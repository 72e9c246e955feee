//! What a caller wants to be true, and then written.

use super::audit::Draft;
use super::kv::{Guard, Lease, Member, Write};
use super::record;

use prost::Message;

/// Guards and writes: all guards hold, or nothing is written.
///
/// At most 64 guards and 64 writes, each key once, 64 KiB a value, 1 MiB in
/// all; beyond that the commit is refused and the error names the key.
/// Records are encoded here, on the caller's thread.
#[derive(Clone, Debug, Default)]
#[must_use = "a commit does nothing until it is given to the store"]
pub struct Commit(Member);

impl Commit {
    /// Nothing yet.
    pub fn new() -> Commit {
        Commit::default()
    }

    /// Only if nothing is under `key`.
    pub fn absent(mut self, key: impl Into<String>) -> Commit {
        self.0.guards.push(Guard::Absent(key.into()));
        self
    }

    /// Only if `key` was last written at `revision`.
    pub fn at(mut self, key: impl Into<String>, revision: u64) -> Commit {
        self.0.guards.push(Guard::Revision(key.into(), revision));
        self
    }

    /// Only while the lease is held.
    pub fn lease(mut self, lease: &Lease) -> Commit {
        self.0.guards.push(Guard::Lease(lease.clone()));
        self
    }

    /// Sets the record under `key`.
    pub fn put<M: Message>(mut self, key: impl Into<String>, record: &M) -> Commit {
        self.0.writes.push(Write::Put(key.into(), record::encode(record)));
        self
    }

    /// Removes what is under `key`, if anything.
    pub fn delete(mut self, key: impl Into<String>) -> Commit {
        self.0.writes.push(Write::Delete(key.into()));
        self
    }

    /// Appends to the audit chain, together with the writes.
    pub fn audit(mut self, draft: Draft) -> Commit {
        self.0.audit = Some(draft);
        self
    }

    /// Number of writes so far; at most 64 are taken.
    pub fn writes(&self) -> usize {
        self.0.writes.len()
    }

    /// Bytes of its keys and values so far; at most 1 MiB is taken.
    pub fn size(&self) -> usize {
        self.0.size()
    }

    pub(super) fn into_member(self) -> Member {
        self.0
    }
}
