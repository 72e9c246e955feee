//! What can go wrong in the store, said for the person who reads it at night.
//!
//! Cloneable, because one failed flush is the answer to every commit of its
//! group. [`StoreError::code`] is the stable word that metrics, exit codes and
//! gRPC status share.

use super::record::RecordError;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// The cause of a [`StoreError`], whatever engine it is from.
type Cause = Arc<dyn Error + Send + Sync>;

/// The store could not do what was asked; nothing was written.
///
/// The one exception is [`StoreError::Engine`] from a commit: whether that
/// commit survives a restart is not known, and the store takes no more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold: read again, decide again.
    #[error("commit refused: {key} has changed since it was read")]
    Conflict {
        /// The guarded key.
        key: String,
    },
    /// The lease that guards the commit is not held any more.
    #[error("commit refused: lease {key} is held by another coordinator now")]
    LeaseLost {
        /// The key of the lease.
        key: String,
    },
    /// More than the engines promise to take.
    #[error("commit refused: {limit} ({key})")]
    Limit {
        /// The key that broke the limit.
        key: String,
        /// The limit, in words.
        limit: &'static str,
    },
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No room left on the device.
    #[error(
        "the disk that holds {} is full: free some space; if nothing else can go, stop reseal, delete {} and start it again",
        store.display(),
        ballast.display()
    )]
    Full {
        /// The store's directory.
        store: PathBuf,
        /// The file kept to be deleted in this moment.
        ballast: PathBuf,
    },
    /// Another process has it open.
    #[error("store {} is in use by {holder}: stop that one first", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
        /// Who, as far as it is known.
        holder: String,
    },
    /// There is none.
    #[error("no store in {}: make one with `reseal init`, or restore one with `reseal store import`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is something already.
    #[error("{} is not empty: a store is only made in a new directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The bytes to import are no whole export.
    #[error("import refused, nothing was written: {reason}")]
    Import {
        /// What is wrong with them.
        reason: String,
    },
    /// The database below failed.
    #[error("store failed to {operation}: restart reseal; if it stays so, restore the last export")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// The store is shut.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The stable word for this error.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Conflict { .. } => "conflict",
            StoreError::LeaseLost { .. } => "lease-lost",
            StoreError::Limit { .. } => "store-limit",
            StoreError::Record(_) => "record-damaged",
            StoreError::Full { .. } => "disk-full",
            StoreError::InUse { .. } => "store-in-use",
            StoreError::Missing { .. } => "store-missing",
            StoreError::NotEmpty { .. } => "store-not-empty",
            StoreError::Import { .. } => "import-refused",
            StoreError::Engine { .. } => "store-failed",
            StoreError::Closed => "store-closed",
        }
    }

    /// True when reading again and deciding again may succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::Conflict { .. })
    }

    pub(super) fn engine(operation: &'static str, source: impl Error + Send + Sync + 'static) -> StoreError {
        StoreError::Engine { operation, source: Arc::new(source) }
    }
}
