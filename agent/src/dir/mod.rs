//! A directory beneath a mount, held open: every file operation goes through it.
//!
//! Paths come from labels and the content of a mount belongs to containers, so
//! neither is trusted: directories are opened with `openat2` and
//! RESOLVE_BENEATH, which no link and no race leads out of the mount; new
//! files are created exclusively; owner and mode are set on the open file.
//! A directory that everybody may write is refused: there anybody could swap
//! the key. Blocking: call off the async threads.

mod error;
mod write;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, fsync, openat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::discover::Place;

pub use error::DirError;

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
    /// When it was changed last, by its own account.
    pub modified: SystemTime,
    /// Which file it is.
    pub identity: Identity,
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
    /// Opens the directory of an installation's certificate.
    pub fn open(config: &Config, place: &Place) -> Result<Self, DirError> {
        Self::open_at(config, &place.mount, &place.directory)
    }

    /// Opens a directory of the agent's own, such as one in its state directory.
    pub fn own(path: &Path) -> Result<Self, DirError> {
        let shown = path.display().to_string();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let open = || rustix::fs::open(path, flags, Mode::empty());
        match (open(), open()) {
            (Ok(fd), Ok(mount)) => Ok(Self { fd, mount, below: String::new(), path: shown }),
            (Err(errno), _) | (_, Err(errno)) => Err(DirError::from_errno("open", shown, errno)),
        }
    }

    /// Opens a directory beneath the source of a mount.
    pub fn open_at(config: &Config, mount: &str, below: &str) -> Result<Self, DirError> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let shown = mount.to_owned();
        let root = rustix::fs::open(&config.host_root, directory, Mode::empty())
            .map_err(|errno| DirError::from_errno("open", config.host_root.display().to_string(), errno))?;
        // Links on the host itself are the administrator's and are followed,
        // but always within the host's files.
        let source = mount.trim_start_matches('/');
        let source = if source.is_empty() { "." } else { source };
        let mount =
            resolve(&root, source, directory, ResolveFlags::IN_ROOT).map_err(|errno| match errno {
                Errno::NOENT => DirError::Missing(shown.clone()),
                Errno::NOTDIR => DirError::NoDirectory(shown.clone()),
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
        let parts = below.split('/').filter(|part| !part.is_empty());
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
        Ok(Some(Content {
            bytes,
            access: access(&stat),
            modified: modified(&stat),
            identity: Identity(stat.st_dev, stat.st_ino),
        }))
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

    /// Does going up as often as this directory lies deep lead to the mount's root?
    /// Not where a link leads sideways: then ".." means something else.
    pub fn rises_to_the_mount(&self) -> Result<bool, DirError> {
        let depth = self.below.split('/').filter(|part| !part.is_empty()).count();
        let path = format!("{}/{}.", self.below_of("."), "../".repeat(depth));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let up = match resolve(&self.mount, &path, flags, ResolveFlags::BENEATH) {
            Ok(up) => up,
            Err(Errno::XDEV) => return Ok(false),
            Err(errno) => return Err(self.error("open", ".", errno)),
        };
        let same = |errno| self.error("look at", ".", errno);
        Ok(Identity::of(&up).map_err(same)? == Identity::of(&self.mount).map_err(same)?)
    }

    /// Owner and mode of this directory itself.
    pub fn access(&self) -> Result<Access, DirError> {
        let stat = fstat(&self.fd).map_err(|errno| self.error("look at", ".", errno))?;
        Ok(access(&stat))
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

impl Identity {
    /// Of an open file.
    pub fn of(fd: impl AsFd) -> Result<Self, Errno> {
        fstat(fd).map(|stat| Self(stat.st_dev, stat.st_ino))
    }
}

fn modified(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds.min(999_999_999))
}

fn access(stat: &Stat) -> Access {
    Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o777 }
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
mod tests;
