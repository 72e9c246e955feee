//! What was in the files of one mount, by inode and times.
//!
//! A file that is the same (device, inode, size, modification and change time)
//! is not opened again. A file that changed in the last moment before it was
//! looked at is looked at again: its next change might leave all of these as
//! they are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustix::fs::Stat;

use crate::discover::formats::Content;

/// A file in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp([u64; 5]);

impl Stamp {
    /// Of a file.
    pub fn of(stat: &Stat) -> Self {
        let moment = |seconds: i64, nanoseconds: u64| {
            seconds.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(nanoseconds)
        };
        #[allow(clippy::unnecessary_cast)] // the width of these fields depends on the platform
        Self([
            stat.st_dev as u64,
            stat.st_ino as u64,
            stat.st_size as u64,
            moment(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            moment(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        ])
    }
}

/// What is known of one mount.
#[derive(Debug, Default)]
pub struct Cache {
    /// Neither certificate nor key in it; hashes, because there are many.
    dull: HashSet<u64>,
    known: HashMap<Stamp, Arc<Content>>,
    hasher: std::hash::RandomState,
}

/// What the cache says of a file.
#[derive(Clone, Debug)]
pub enum Known {
    /// Nothing.
    No,
    /// There is nothing in it.
    Dull,
    /// This is in it.
    Content(Arc<Content>),
}

impl Cache {
    /// Looks a file up.
    pub fn find(&self, stamp: Stamp) -> Known {
        if self.dull.contains(&self.hash(stamp)) {
            return Known::Dull;
        }
        self.known.get(&stamp).map_or(Known::No, |content| Known::Content(content.clone()))
    }

    /// Takes over what is true of a file now.
    pub fn keep(&mut self, stamp: Stamp, content: Option<&Arc<Content>>) {
        match content {
            None => {
                let hash = self.hash(stamp);
                self.dull.insert(hash);
            }
            Some(content) => {
                self.known.insert(stamp, content.clone());
            }
        }
    }

    /// An empty one that will find what this one's hashes mean.
    pub fn fresh(&self) -> Self {
        Self { hasher: self.hasher.clone(), ..Self::default() }
    }

    fn hash(&self, stamp: Stamp) -> u64 {
        use std::hash::BuildHasher as _;
        self.hasher.hash_one(stamp)
    }
}
