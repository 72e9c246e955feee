//! The directory of an embedded store: who may open it, whether it has room,
//! and what must be synced for its files to be found again after a power loss.
//!
//! `lock` is held by the one process that has the store open; `ballast` is
//! room to be given back by deleting it on the day the disk is full; `sled/`
//! is the database's own. Called by the engine only.

use super::error::StoreError;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Room to give back when the disk is full: more than [`OPENING`].
const BALLAST: u64 = 16 * 1024 * 1024;
/// What opening takes: the rest of one segment of the database, and small files.
const OPENING: u64 = 12 * 1024 * 1024;
/// Commits are refused when less than this would stay free: the database does
/// not survive a write that fails, so it is never asked to make one.
const HEADROOM: u64 = 32 * 1024 * 1024;
/// Bytes written for each byte committed, at worst: the value, and its page again.
const AMPLIFICATION: u64 = 3;

/// An embedded store's directory, locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl Directory {
    /// Makes and locks a new one, mode 0700; it may exist if it is empty.
    pub(super) fn create(path: &Path) -> Result<Directory, StoreError> {
        let failed = |error| StoreError::engine("make its directory", error);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(failed)?;
        if path.read_dir().map_err(failed)?.next().is_some() {
            return Err(StoreError::NotEmpty { path: path.to_owned() });
        }
        let directory = Directory::lock(path)?;
        let made = DirBuilder::new().mode(0o700).create(directory.database());
        made.map_err(failed)?;
        directory.lay_ballast()?;
        Ok(directory)
    }

    /// Locks an existing one.
    pub(super) fn open(path: &Path) -> Result<Directory, StoreError> {
        if !path.join("sled/db").is_file() {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        let directory = Directory::lock(path)?;
        let free = directory.free()?;
        if free < OPENING {
            return Err(directory.full());
        }
        if free > HEADROOM + BALLAST && !directory.ballast().exists() {
            directory.lay_ballast()?;
        }
        Ok(directory)
    }

    /// Where the database is.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("sled")
    }

    /// Fails with [`StoreError::Full`] when there is no safe room for a commit of `bytes`.
    pub(super) fn room(&self, bytes: u64) -> Result<(), StoreError> {
        if self.free()? < HEADROOM.saturating_add(bytes.saturating_mul(AMPLIFICATION)) {
            return Err(self.full());
        }
        Ok(())
    }

    fn free(&self) -> Result<u64, StoreError> {
        let disk = rustix::fs::statvfs(&self.path)
            .map_err(|errno| StoreError::engine("ask how full its disk is", io::Error::from(errno)))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The error for a failed operation, which may be that the disk is full.
    pub(super) fn failed(&self, operation: &'static str, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(),
            _ => StoreError::engine(operation, error),
        }
    }

    fn full(&self) -> StoreError {
        StoreError::Full { store: self.path.clone(), ballast: self.ballast() }
    }

    /// Syncs what the database itself leaves to chance: its small files and all
    /// directories up to the one that holds ours. Its large file is not among them.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let database = self.database();
        let parent = self.path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
        let paths = [database.join("conf"), database.join("blobs"), database, self.path.clone()];
        let synced = paths.iter().chain(parent.iter()).try_for_each(|path| File::open(path)?.sync_all());
        synced.map_err(|error| StoreError::engine("sync its directory", error))
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    fn lock(path: &Path) -> Result<Directory, StoreError> {
        let failed = |error| StoreError::engine("lock its directory", error);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = lock.take(64).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(StoreError::InUse { path: path.to_owned(), holder });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        // Only for people, so a full disk must not stop it here.
        let _ = lock.set_len(0).and_then(|()| lock.rewind());
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(Directory { path: path.to_owned(), _lock: lock })
    }

    /// Allocates the ballast's blocks now; where the file system cannot, writes zeros.
    fn lay_ballast(&self) -> Result<(), StoreError> {
        let lay = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(self.ballast())?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    io::copy(&mut io::repeat(0).take(BALLAST), &mut file)?;
                }
                Err(errno) => return Err(errno.into()),
            }
            file.sync_all()
        };
        match lay() {
            Ok(()) => Ok(()),
            Err(error) => {
                let _ = std::fs::remove_file(self.ballast());
                Err(self.failed("lay down its ballast file", error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("store");
        let held = Directory::create(&path).expect("new");
        assert_eq!(path.join("ballast").metadata().expect("laid").len(), BALLAST);
        let refused = Directory::lock(&path).expect_err("locked");
        assert_eq!(refused.code(), "store-in-use");
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        Directory::lock(&path).expect("free again");
        let refused = Directory::create(&path).expect_err("not empty");
        assert_eq!(refused.code(), "store-not-empty");
        let refused = Directory::open(home.path()).expect_err("no database");
        assert_eq!(refused.code(), "store-missing");
    }

    #[test]
    fn says_full_before_it_is() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = Directory::create(&home.path().join("store")).expect("new");
        directory.room(1024).expect("room for a little");
        let full = directory.room(u64::MAX).expect_err("no disk has that");
        assert_eq!(full.code(), "disk-full");
        assert!(full.to_string().contains("ballast"), "{full}");
    }
}
