//! A directory beneath a mount, held open: every file operation goes through it.
//!
//! Paths come from labels and the content of a mount belongs to containers, so
//! neither is trusted: directories are opened with `openat2` and
//! RESOLVE_BENEATH, which no link and no race leads out of the mount; new
//! files are created exclusively; owner and mode are set on the open file.
//! A directory that everybody may write is refused: there anybody could swap
//! the key. Blocking: call off the async threads.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fchmod, fchown, fstat, fsync, linkat,
    mkdirat, openat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::discover::Place;

/// Directories the agent makes: readable, because containers follow links through them.
const DIRECTORY_MODE: u32 = 0o755;

/// A file operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The directory is not there.
    #[error("directory {0} does not exist on the host; create it or correct the label")]
    Missing(String),
    /// A link, or `..`, leads out of the mount.
    #[error("{0} leads out of its mount through a symbolic link; nothing is followed there")]
    Escapes(String),
    /// Everybody may write there.
    #[error("directory {0} is writable by everybody, who could swap the key; chmod o-w it")]
    WorldWritable(String),
    /// The mount's source is a file.
    #[error(
        "{0} is a single file mounted into the container, which keeps the old file when it is replaced; mount its directory instead"
    )]
    SingleFile(String),
    /// A file is larger than what is accepted.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// On the host.
        path: String,
        /// Bytes.
        limit: usize,
    },
    /// Not a regular file where one was expected.
    #[error("{0} is neither a file nor a link to one")]
    NotAFile(String),
    /// No space, or the quota is used up.
    #[error("no space left to {operation} {path}; nothing was changed")]
    NoSpace {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
    },
    /// The file system is mounted read-only on the host.
    #[error("cannot {operation} {path}: its file system is read-only on the host")]
    ReadOnly {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
    },
    /// Anything else.
    #[error("cannot {operation} {path}")]
    Io {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DirError {
    /// A stable word for findings and failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing-directory",
            Self::Escapes(_) => "path-escapes",
            Self::WorldWritable(_) => "world-writable",
            Self::SingleFile(_) => "bind-mounted-file",
            Self::TooLarge { .. } => "file-too-large",
            Self::NotAFile(_) => "not-a-file",
            Self::NoSpace { .. } => "no-space",
            Self::ReadOnly { .. } => "read-only",
            Self::Io { .. } => "io",
        }
    }

    fn from_errno(operation: &'static str, path: String, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { operation, path },
            Errno::ROFS => Self::ReadOnly { operation, path },
            Errno::XDEV | Errno::LOOP => Self::Escapes(path),
            _ => Self::Io { operation, path, source: errno.into() },
        }
    }
}

/// Who owns a file and what others may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A file as it was read.
pub struct Content {
    /// Zeroized when dropped: it may hold a key.
    pub bytes: Zeroizing<Vec<u8>>,
    /// As found.
    pub access: Access,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// The mount's root, and this directory beneath it: links are resolved from there.
    mount: OwnedFd,
    below: String,
    /// On the host, for messages.
    path: String,
}

impl Dir {
    /// Opens the directory of an installation.
    pub fn open(config: &Config, place: &Place) -> Result<Self, DirError> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let shown = place.mount.clone();
        let root = rustix::fs::open(&config.host_root, directory, Mode::empty())
            .map_err(|errno| DirError::from_errno("open", config.host_root.display().to_string(), errno))?;
        // Links on the host itself are the administrator's and are followed,
        // but always within the host's files.
        let source = place.mount.trim_start_matches('/');
        let source = if source.is_empty() { "." } else { source };
        let mount =
            resolve(&root, source, directory, ResolveFlags::IN_ROOT).map_err(|errno| match errno {
                Errno::NOENT => DirError::Missing(shown.clone()),
                Errno::NOTDIR => DirError::SingleFile(shown.clone()),
                errno => DirError::from_errno("open", shown.clone(), errno),
            })?;
        let mut dir = Self {
            fd: mount.try_clone().map_err(|source| DirError::Io {
                operation: "open",
                path: shown.clone(),
                source,
            })?,
            mount,
            below: String::new(),
            path: shown,
        };
        dir.refuse_world_writable()?;
        let parts = place.directory.split('/').filter(|part| !part.is_empty());
        for part in parts {
            if !dir.below.is_empty() {
                dir.below.push('/');
            }
            dir.below.push_str(part);
            dir.path = format!("{}/{part}", dir.path.trim_end_matches('/'));
            // From the mount's root each time: a link may lead sideways.
            dir.fd =
                resolve(&dir.mount, &dir.below, directory, ResolveFlags::BENEATH).map_err(
                    |errno| match errno {
                        Errno::NOENT | Errno::NOTDIR => DirError::Missing(dir.path.clone()),
                        errno => DirError::from_errno("open", dir.path.clone(), errno),
                    },
                )?;
            dir.refuse_world_writable()?;
        }
        Ok(dir)
    }

    /// A directory in this one, which must not be a link.
    pub fn sub(&self, name: &str) -> Result<Option<Self>, DirError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOFOLLOW;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match resolve(&self.fd, name, flags, beneath) {
            Ok(fd) => Ok(Some(Self {
                fd,
                mount: self.mount.try_clone().map_err(|source| DirError::Io {
                    operation: "open",
                    path: self.path_of(name),
                    source,
                })?,
                below: self.below_of(name),
                path: self.path_of(name),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(DirError::Escapes(self.path_of(name))),
            Err(errno) => Err(self.error("open", name, errno)),
        }
    }

    /// Like [`Dir::sub`], made when it is not there.
    pub fn make_sub(&self, name: &str) -> Result<Self, DirError> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.error("create directory", name, errno)),
        }
        let sub = self.sub(name)?.ok_or_else(|| DirError::Missing(self.path_of(name)))?;
        // The umask of the agent is strict; containers must be able to pass.
        fchmod(&sub.fd, Mode::from_raw_mode(DIRECTORY_MODE))
            .map_err(|errno| self.error("set the mode of", name, errno))?;
        self.sync()?;
        Ok(sub)
    }

    /// Reads a file, through links that stay in the mount; `None` when there is none.
    pub fn read(&self, name: &str, limit: usize) -> Result<Option<Content>, DirError> {
        let below = self.below_of(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match resolve(&self.mount, &below, flags, ResolveFlags::BENEATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("read", name, errno)),
        };
        let stat = fstat(&fd).map_err(|errno| self.error("read", name, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(DirError::NotAFile(self.path_of(name)));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit.min(16 * 1024)));
        File::from(fd)
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| self.io("read", name, source))?;
        if bytes.len() > limit {
            return Err(DirError::TooLarge { path: self.path_of(name), limit });
        }
        Ok(Some(Content { bytes, access: access(&stat) }))
    }

    /// Writes a new file, whole and flushed; one of that name must not exist.
    /// On an error nothing is left behind.
    pub fn create(&self, name: &str, bytes: &[u8], access: Access) -> Result<(), DirError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| self.error("write", name, errno))?;
        let written = self.fill(name, fd, bytes, access);
        if written.is_err() {
            let _ = unlinkat(&self.fd, name, AtFlags::empty());
        }
        written
    }

    fn fill(&self, name: &str, fd: OwnedFd, bytes: &[u8], access: Access) -> Result<(), DirError> {
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(|source| self.io("write", name, source))?;
        // Owner first: changing it takes mode bits away.
        fchown(&file, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))
            .map_err(|errno| self.error("set the owner of", name, errno))?;
        fchmod(&file, Mode::from_raw_mode(access.mode & 0o777))
            .map_err(|errno| self.error("set the mode of", name, errno))?;
        fsync(&file).map_err(|errno| self.error("flush", name, errno))
    }

    /// Puts a file in the place of `name` in one step, through a temporary name.
    pub fn replace(&self, name: &str, bytes: &[u8], access: Access) -> Result<(), DirError> {
        let temporary = temporary(name);
        self.remove(&temporary)?;
        self.create(&temporary, bytes, access)?;
        self.rename(&temporary, name)
    }

    /// Makes `name` a link to `target` in one step.
    pub fn replace_link(&self, name: &str, target: &str) -> Result<(), DirError> {
        let temporary = temporary(name);
        self.remove(&temporary)?;
        symlinkat(target, &self.fd, &temporary).map_err(|errno| self.error("link", name, errno))?;
        self.rename(&temporary, name)
    }

    /// Makes `name` another name of the file `other` in `from`, in one step.
    pub fn replace_hard_link(&self, name: &str, from: &Self, other: &str) -> Result<(), DirError> {
        let temporary = temporary(name);
        self.remove(&temporary)?;
        from.hard_link(other, self, &temporary)?;
        self.rename(&temporary, name)?;
        // Renaming between two names of one file does nothing (rename(2)).
        self.remove(&temporary)
    }

    /// Gives the file `name` the further name `other` in `to`.
    pub fn hard_link(&self, name: &str, to: &Self, other: &str) -> Result<(), DirError> {
        linkat(&self.fd, name, &to.fd, other, AtFlags::empty())
            .map_err(|errno| self.error("link", name, errno))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DirError> {
        if let Err(errno) = renameat(&self.fd, from, &self.fd, to) {
            let _ = unlinkat(&self.fd, from, AtFlags::empty());
            return Err(self.error("replace", to, errno));
        }
        self.sync()
    }

    /// Where a link points; `None` when there is no link of that name.
    pub fn link(&self, name: &str) -> Result<Option<String>, DirError> {
        match readlinkat(&self.fd, name, Vec::new()) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(errno) => Err(self.error("read the link", name, errno)),
        }
    }

    /// What `name` itself is, without following a link; `None` when there is nothing.
    pub fn kind(&self, name: &str) -> Result<Option<(FileType, Identity)>, DirError> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), Identity(stat.st_dev, stat.st_ino)))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("look at", name, errno)),
        }
    }

    /// Owner and mode of this directory itself.
    pub fn access(&self) -> Result<Access, DirError> {
        let stat = fstat(&self.fd).map_err(|errno| self.error("look at", ".", errno))?;
        Ok(access(&stat))
    }

    /// Removes a file; fine when there is none.
    pub fn remove(&self, name: &str) -> Result<(), DirError> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// Removes a directory of files; fine when there is none.
    pub fn remove_sub(&self, name: &str) -> Result<(), DirError> {
        let Some(sub) = self.sub(name)? else {
            return Ok(());
        };
        for file in sub.names()? {
            sub.remove(&file)?;
        }
        match unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => self.sync(),
            Err(errno) => Err(self.error("remove directory", name, errno)),
        }
    }

    /// The names in it, sorted; at most 10,000.
    pub fn names(&self) -> Result<Vec<String>, DirError> {
        let fd = openat(&self.fd, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.error("list", ".", errno))?;
        let mut buffer = Vec::with_capacity(4096);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| self.error("list", ".", errno))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." && names.len() < 10_000 {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Flushes the directory: renames and links survive a power loss after this.
    pub fn sync(&self) -> Result<(), DirError> {
        fsync(&self.fd).map_err(|errno| self.error("flush", ".", errno))
    }

    /// A file of this directory, as a path on the host.
    pub fn path_of(&self, name: &str) -> String {
        if name == "." { self.path.clone() } else { format!("{}/{name}", self.path.trim_end_matches('/')) }
    }

    fn below_of(&self, name: &str) -> String {
        if self.below.is_empty() { name.to_owned() } else { format!("{}/{name}", self.below) }
    }

    fn refuse_world_writable(&self) -> Result<(), DirError> {
        if self.access()?.mode & 0o002 != 0 {
            return Err(DirError::WorldWritable(self.path.clone()));
        }
        Ok(())
    }

    fn error(&self, operation: &'static str, name: &str, errno: Errno) -> DirError {
        DirError::from_errno(operation, self.path_of(name), errno)
    }

    fn io(&self, operation: &'static str, name: &str, source: std::io::Error) -> DirError {
        match source.raw_os_error() {
            Some(raw) => self.error(operation, name, Errno::from_raw_os_error(raw)),
            None => DirError::Io { operation, path: self.path_of(name), source },
        }
    }
}

/// Device and inode: two names with the same are the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u64);

fn access(stat: &Stat) -> Access {
    Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o777 }
}

fn temporary(name: &str) -> String {
    format!(".{name}.reseal")
}

/// `openat2` with the flags that are always right. EAGAIN means that a rename
/// raced with the resolution: it is tried again a few times.
fn resolve(
    from: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        match openat2(from.as_fd(), path.as_ref(), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 16 => tries += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
