//! The seam below the store: what an engine must do, and its limits.
//!
//! An engine keeps opaque values under ordered keys and changes them by one
//! primitive: a group of [`Member`]s, each with guards and writes, each judged
//! by itself in order, all durable when the call returns. It never looks into
//! a value, save into those it writes itself (epoch, leases, audit).
//! The store above it is the only caller. The same suite of tests runs over
//! each engine, so nothing here may mean two things.

use super::audit::Draft;
use super::error::StoreError;
use super::watch::Watch;

use async_trait::async_trait;

use std::time::Duration;

/// Guards in one member at most.
pub const MAX_GUARDS: usize = 64;
/// Writes in one member at most.
pub const MAX_WRITES: usize = 64;
/// Bytes of a key at most.
pub const MAX_KEY: usize = 1024;
/// Bytes of a value at most.
pub const MAX_VALUE: usize = 64 * 1024;
/// Bytes of all keys and values of a member at most.
pub const MAX_MEMBER: usize = 1024 * 1024;

/// What is under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Grows with every commit, for ever; equal for all writes of one commit.
    pub revision: u64,
    /// The bytes that were put.
    pub value: Vec<u8>,
}

/// A lease that was acquired: proof to fence commits with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The key it is under.
    pub key: String,
    /// The coordinator that holds it.
    pub holder: String,
    /// The revision at which it was acquired; another acquisition has another.
    pub revision: u64,
}

/// What must hold for a member to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing is under the key.
    Absent(String),
    /// The key was last written at this revision.
    Revision(String, u64),
    /// The lease is still the one that was acquired.
    Lease(Lease),
}

impl Guard {
    /// The key it looks at.
    pub fn key(&self) -> &str {
        match self {
            Guard::Absent(key) | Guard::Revision(key, _) => key,
            Guard::Lease(lease) => &lease.key,
        }
    }
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets the value.
    Put(String, Vec<u8>),
    /// Removes the key; removing what is not there is no error.
    Delete(String),
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

/// One commit within a group.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// All hold, or nothing of this member is written.
    pub guards: Vec<Guard>,
    /// Written together.
    pub writes: Vec<Write>,
    /// Appended to the audit chain together with the writes.
    pub audit: Option<Draft>,
}

impl Member {
    /// Bytes of its keys and values.
    pub fn size(&self) -> usize {
        let writes = self.writes.iter().map(|write| match write {
            Write::Put(key, value) => key.len() + value.len(),
            Write::Delete(key) => key.len(),
        });
        let guards = self.guards.iter().map(|guard| guard.key().len());
        writes.sum::<usize>() + guards.sum::<usize>() + self.audit.as_ref().map_or(0, Draft::size)
    }

    /// Fails with [`StoreError::Limit`] when it is larger than every engine takes.
    pub fn check(&self) -> Result<(), StoreError> {
        let refuse = |key: &str, limit| {
            let key = key.chars().take(128).collect();
            Err(StoreError::Limit { key, limit })
        };
        if let Some(guard) = self.guards.get(MAX_GUARDS) {
            return refuse(guard.key(), "more than 64 guards");
        }
        if let Some(write) = self.writes.get(MAX_WRITES) {
            return refuse(write.key(), "more than 64 writes");
        }
        for write in &self.writes {
            match write {
                Write::Put(key, value) if value.len() > MAX_VALUE => {
                    return refuse(key, "a value of more than 64 KiB");
                }
                _ => {}
            }
        }
        let guards = self.guards.iter().map(Guard::key);
        let writes = self.writes.iter().map(Write::key);
        for key in guards.clone().chain(writes.clone()) {
            if key.is_empty() || key.len() > MAX_KEY {
                return refuse(key, "a key that is empty or longer than 1024 bytes");
            }
        }
        if let Some(key) = twice(guards) {
            return refuse(key, "a key guarded twice");
        }
        if let Some(key) = twice(writes) {
            return refuse(key, "a key written twice");
        }
        if self.audit.as_ref().is_some_and(|draft| draft.size() > MAX_VALUE / 2) {
            return refuse("audit", "an audit entry of more than 32 KiB");
        }
        if self.size() > MAX_MEMBER {
            let key = self.writes.first().map_or("", Write::key);
            return refuse(key, "more than 1 MiB in all");
        }
        Ok(())
    }
}

fn twice<'a>(keys: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut keys: Vec<&str> = keys.collect();
    keys.sort_unstable();
    keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// An engine.
#[async_trait]
pub trait Kv: Send + Sync {
    /// What is under `key`; never something that a power loss could take back.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Up to `limit` entries whose keys begin with `prefix`, in byte order, after key `after`.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Entry)>, StoreError>;

    /// Judges each member in order, as if each were alone, and writes those whose
    /// guards hold. When it returns, what was written is durable; the answers are
    /// the revisions. A refusal is [`StoreError::Conflict`], `LeaseLost` or `Limit`.
    ///
    /// # Errors
    /// When the group as a whole could not be written.
    async fn commit(&self, group: Vec<Member>) -> Result<Vec<Result<u64, StoreError>>, StoreError>;

    /// Takes the lease under `key`, or tells with `None` that another has it.
    /// Acquiring what one holds already gives the same lease.
    /// `ttl`: how long it outlives a holder that renews it no more.
    async fn acquire(&self, key: &str, holder: &str, ttl: Duration) -> Result<Option<Lease>, StoreError>;

    /// Prolongs it; false when it is lost.
    async fn renew(&self, lease: &Lease) -> Result<bool, StoreError>;

    /// Gives it up, so that another need not wait for the `ttl`.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Hints of everything written from now on, by anyone.
    fn watch(&self) -> Watch;

    /// Raised at every open; agents refuse orders of a lower one.
    fn epoch(&self) -> u64;
}
