//! Certificates and keys in the files beneath the mounts of containers.
//!
//! [`walk`] goes through one mount, [`cache`] remembers what was in files that
//! did not change. Everything is read, nothing is written; no link leads out of
//! a mount, nothing but regular files is opened, and each walk ends at a bound
//! of depth, number, size or time, which is said. Blocking: call on a thread of
//! its own.

pub mod cache;
pub mod walk;

use std::sync::Arc;

use super::formats::Content;
use crate::dir::Access;

/// Device and inode.
pub type Inode = (u64, u64);

/// A file with certificates or keys in it.
#[derive(Clone, Debug)]
pub struct File {
    /// Beneath the mount; empty when the mount is this file.
    pub path: String,
    /// Two names with the same are the same file.
    pub inode: Inode,
    /// Owner and mode.
    pub access: Access,
    /// A directory on the way to it lets nobody else in.
    pub enclosed: bool,
    /// What is in it.
    pub content: Arc<Content>,
}

/// A symbolic link to a file of the same mount.
#[derive(Clone, Debug)]
pub struct Link {
    /// Beneath the mount.
    pub path: String,
    /// Of the file it leads to.
    pub inode: Inode,
}

/// What a walk was ended or narrowed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// Directories below this depth were not entered.
    Depth,
    /// There are more files.
    Files,
    /// It took longer.
    Time,
    /// A file that looks like one is larger; its path beneath the mount.
    Size(String),
    /// There are more files with certificates or keys.
    Found,
    /// A directory or file could not be read, and why.
    Unreadable(String),
}

/// What lies beneath a mount.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    /// The mount's source on the host.
    pub source: String,
    /// The mount is a single file.
    pub single: bool,
    /// In the order of their paths.
    pub files: Vec<File>,
    /// Links to one of `files`.
    pub links: Vec<Link>,
    /// Regular files that were looked at.
    pub looked_at: usize,
    /// Of those, files that were opened: the others had not changed.
    pub opened: usize,
    /// Links that lead out of the mount, or nowhere.
    pub loose_links: usize,
    /// Where it ended; each kind once.
    pub bounds: Vec<Bound>,
    /// Of an image layer: paths that it takes away from the layers below.
    pub whiteouts: Vec<String>,
    /// Of an image layer: directories that hide those of the layers below.
    pub opaque: Vec<String>,
}
