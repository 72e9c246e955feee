//! The store: the only place where the parts of the coordinator meet.
//!
//! Typed reads, one primitive that changes things ([`Store::commit`]: guards
//! and writes, all or nothing, durable when it returns), hints of what changed,
//! and leases. Everything else is derived from what is here, so that a restart
//! costs nothing. It knows no other module of the coordinator.
//!
//! - [`keys`], [`record`], [`outline`]: what is under which key.
//! - [`commit`], [`kv`]: what a commit is; what an engine must do.
//! - [`committer`], [`sled`], [`directory`]: groups, the embedded engine, its files.
//! - [`audit`]: the hash chain. [`watch`]: hints. [`export`], [`import`]: moving a store.
//! - [`presence`]: who is connected; never stored.

pub mod audit;
mod commit;
mod committer;
mod directory;
mod error;
pub mod export;
pub mod import;
pub mod keys;
pub mod kv;
pub mod outline;
pub mod presence;
pub mod record;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;
mod sled;
mod watch;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod model;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod tests;

pub use self::audit::Draft as AuditDraft;
pub use self::commit::Commit;
pub use self::error::StoreError;
pub use self::kv::Lease;
pub use self::presence::Presence;
pub use self::sled::Sled;
pub use self::watch::{Hint, Watch};

use self::committer::Committer;
use self::kv::{Entry, Kv};

use prost::Message;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Entries read at once by [`Store::range`].
const PAGE: usize = 512;

/// A record and the revision to guard a commit with.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<M> {
    /// The revision at which it was written.
    pub revision: u64,
    /// The record.
    pub value: M,
}

/// A handle to the store; clones share it. The last one to go closes it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    /// Before `kv`: its thread holds the engine too.
    committer: Committer,
    kv: Arc<dyn Kv>,
}

impl Store {
    /// Makes an embedded store in a new or empty directory; `chain` names its audit chain.
    pub fn create(path: &Path, chain: &str) -> Result<Store, StoreError> {
        Store::over(Arc::new(Sled::create(path, chain, 0)?))
    }

    /// Opens an embedded store and raises its epoch.
    pub fn open(path: &Path, chain: &str) -> Result<Store, StoreError> {
        Store::over(Arc::new(Sled::open(path, chain)?))
    }

    /// A store over any engine.
    pub fn over(kv: Arc<dyn Kv>) -> Result<Store, StoreError> {
        let committer = Committer::start(Arc::clone(&kv))?;
        Ok(Store(Arc::new(Inner { committer, kv })))
    }

    /// A store over any engine, without a thread: each commit is a group of its own.
    #[cfg(feature = "simulation")]
    pub fn inline(kv: Arc<dyn Kv>) -> Store {
        Store(Arc::new(Inner { committer: Committer::inline(Arc::clone(&kv)), kv }))
    }

    /// The record under `key`.
    pub async fn get<M: Message + Default>(&self, key: &str) -> Result<Option<Versioned<M>>, StoreError> {
        let entry = self.0.kv.get(key).await?;
        entry.map(|entry| versioned(key, &entry)).transpose()
    }

    /// All records whose keys begin with `prefix`, in key order. Read page by page:
    /// what is written meanwhile may be in it or not.
    pub async fn range<M: Message + Default>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, Versioned<M>)>, StoreError> {
        let mut records: Vec<(String, Versioned<M>)> = Vec::new();
        loop {
            let after = records.last().map(|(key, _)| key.as_str());
            let page = self.page(prefix, after, PAGE).await?;
            let full = page.len() == PAGE;
            records.extend(page);
            if !full {
                return Ok(records);
            }
        }
    }

    /// Up to `limit` records whose keys begin with `prefix` and come after `after`.
    pub async fn page<M: Message + Default>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Versioned<M>)>, StoreError> {
        let entries = self.0.kv.page(prefix, after, limit).await?;
        let typed = |(key, entry): (String, Entry)| {
            let record = versioned(&key, &entry)?;
            Ok((key, record))
        };
        entries.into_iter().map(typed).collect()
    }

    /// Writes all of it if all its guards hold, else nothing; durable when it
    /// returns. The answer is the revision of everything it wrote. If the caller
    /// stops waiting, it may still be written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], `LeaseLost` or `Limit` when refused; `Full` when
    /// there is no room; `Engine` when the store has failed for good.
    pub async fn commit(&self, commit: Commit) -> Result<u64, StoreError> {
        self.0.committer.commit(commit.into_member()).await
    }

    /// Hints of everything written from now on.
    pub fn watch(&self) -> Watch {
        self.0.kv.watch()
    }

    /// Raised at every open.
    pub fn epoch(&self) -> u64 {
        self.0.kv.epoch()
    }

    /// Takes the lease under `key`; `None` when another coordinator has it.
    /// `ttl`: how long it outlives a holder that renews it no more.
    pub async fn lease(&self, key: &str, holder: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.0.kv.acquire(key, holder, ttl).await
    }

    /// Prolongs a lease; false when it is lost.
    pub async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        self.0.kv.renew(lease).await
    }

    /// Gives a lease up.
    pub async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.0.kv.release(lease).await
    }
}

fn versioned<M: Message + Default>(key: &str, entry: &Entry) -> Result<Versioned<M>, StoreError> {
    Ok(Versioned { revision: entry.revision, value: record::decode(key, &entry.value)? })
}
