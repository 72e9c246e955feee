//! Writing in a directory: new files, replaced files, links, and files in place.
//!
//! What is new is whole and flushed before anybody can see it. Only
//! [`Dir::overwrite`] changes a file that is already seen: for files that are
//! mounted by themselves, where nothing else reaches the container.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fallocate, fchmod,
    fchown, fstat, fsync, futimens, linkat, mkdirat, openat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::{Access, Dir, DirError, resolve};

/// Directories the agent makes: readable, because containers follow links through them.
const DIRECTORY_MODE: u32 = 0o755;

impl Dir {
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

    /// Moves the modification time of a file, flushed: programs tell by it that
    /// the file is another one. Of a link, nothing.
    pub fn touch(&self, name: &str, modified: SystemTime) -> Result<(), DirError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(self.error("set the time of", name, errno)),
        };
        stamp(&fd, modified).map_err(|errno| self.error("set the time of", name, errno))?;
        fsync(&fd).map_err(|errno| self.error("flush", name, errno))
    }

    /// Could [`Dir::overwrite`] write to this file? Changes nothing.
    pub fn check_writable(&self, name: &str) -> Result<(), DirError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.error("write", name, errno)),
        }
    }

    /// Gives a file other bytes and keeps it the same file. Room for them is made
    /// before anything is changed; the name must not be a link, and there must be
    /// such a file. A reader in the middle may see some of both.
    pub fn overwrite(
        &self,
        name: &str,
        bytes: &[u8],
        access: Access,
        modified: SystemTime,
    ) -> Result<(), DirError> {
        let failed = |operation| move |errno| self.error(operation, name, errno);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = resolve(&self.fd, name, flags, ResolveFlags::BENEATH).map_err(|errno| match errno {
            Errno::LOOP => DirError::LinkedFile(self.path_of(name)),
            errno => self.error("write", name, errno),
        })?;
        let stat = fstat(&fd).map_err(failed("look at"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(DirError::NotAFile(self.path_of(name)));
        }
        let length = bytes.len() as u64;
        match fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, length.max(1)) {
            // Some file systems cannot promise room.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(self.error("write", name, errno)),
        }
        let file = File::from(fd);
        file.write_all_at(bytes, 0).map_err(|source| self.io("write", name, source))?;
        file.set_len(length).map_err(|source| self.io("write", name, source))?;
        if (access.uid, access.gid) != (stat.st_uid, stat.st_gid) {
            fchown(&file, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))
                .map_err(failed("set the owner of"))?;
        }
        fchmod(&file, Mode::from_raw_mode(access.mode & 0o777)).map_err(failed("set the mode of"))?;
        stamp(&file, modified).map_err(failed("set the time of"))?;
        fsync(&file).map_err(failed("flush"))
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
}

fn stamp(fd: impl std::os::fd::AsFd, modified: SystemTime) -> Result<(), Errno> {
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = Timespec {
        tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: since.subsec_nanos().into(),
    };
    futimens(fd, &Timestamps { last_access: time, last_modification: time })
}

fn temporary(name: &str) -> String {
    format!(".{name}.reseal")
}
