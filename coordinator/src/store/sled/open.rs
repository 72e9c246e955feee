//! Opening the embedded engine: what has to be true before the first commit.

use super::{Settled, Sled, Writer, failed, split};
use crate::store::audit::Chain;
use crate::store::directory::Directory;
use crate::store::error::StoreError;
use crate::store::watch::Hints;
use crate::store::{keys, record};

use ::sled::{Batch, Db};
use tokio::sync::watch;

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Size of a segment of the database file. A page larger than a quarter of it
/// would go to a file of its own that sled never syncs; a leaf holds up to 17
/// values, so with this no page of the largest values gets there. Written into
/// the database: changing it needs an export and an import.
const SEGMENT: usize = 8 * 1024 * 1024;
/// Bytes of pages sled keeps in memory.
const CACHE: u64 = 16 * 1024 * 1024;
/// How often sled moves what is left of nearly empty segments, so that the file
/// stops growing. Durability does not rest on it.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Bits of a revision that count commits within an epoch.
const COUNT_BITS: u32 = 40;
/// How long a database of this process that was just dropped may take to let go of its file.
const LET_GO: Duration = Duration::from_secs(5);

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
        self.epoch = old.max(floor).saturating_add(1);
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
            // Ours is the only process, by our own lock: a database dropped a moment
            // ago is still being taken down by its threads.
            Err(::sled::Error::Io(error)) if locked(&error) && begun.elapsed() < LET_GO => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(failed(directory, "open its database", error)),
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
