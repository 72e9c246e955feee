//! One mount, from its root to its bounds.
//!
//! Directories are opened from the directory above them, never through a link;
//! a file is opened only after the kernel has said of the very same inode that
//! it is a regular one (a device or a pipe is never opened), and only its first
//! bytes are read unless they look like a certificate, a key or a key store.

use std::ffi::{CStr, CString};
use std::fs::File as Open;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fgetxattr, fstat, fstatfs, openat, openat2,
    statat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::cache::{Cache, Known, Stamp};
use super::{Bound, File, Inode, Link, Mounted};
use crate::dir::Access;
use crate::discover::formats::{self, Content, Format, HEAD};

/// Bounds of one walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Directories below the mount's root.
    pub depth: usize,
    /// Directory entries.
    pub files: usize,
    /// Of a file that is read whole, bytes.
    pub size: u64,
    /// For the mount.
    pub time: Duration,
    /// Files with certificates or keys.
    pub found: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 24, files: 200_000, size: 1024 * 1024, time: Duration::from_secs(60), found: 4_000 }
    }
}

/// Kernel file systems that hold no files of anybody (statfs(2)).
const PSEUDO: [u64; 14] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xcafe_4a11, // bpf
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x1980_0202, // mqueue
    0x6e73_6673, // nsfs
    0x0187,      // autofs: entering mounts something
    0x4249_4e4d, // binfmt_misc
];

/// Goes through a mount. `never` are directories of the host that are not entered,
/// `now` is the wall clock, seconds since the Unix epoch.
pub fn walk(
    root: &OwnedFd,
    source: &str,
    never: &[String],
    limits: Limits,
    cache: &mut Cache,
    now: i64,
) -> Mounted {
    walk_as(Root::Mount, root, source, never, limits, cache, now)
}

/// What the root of a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// A mount: file systems that are mounted beneath it belong to it.
    Mount,
    /// A layer of an image: it says what it takes away from those below.
    Layer,
    /// The file system that a container sees: its mounts are somebody else's.
    Container,
}

/// [`walk`], of any kind of root.
pub fn walk_as(
    kind: Root,
    root: &OwnedFd,
    source: &str,
    never: &[String],
    limits: Limits,
    cache: &mut Cache,
    now: i64,
) -> Mounted {
    let mut walk = Walk {
        kind,
        limits,
        never,
        until: Instant::now() + limits.time,
        now,
        entries: 0,
        before: std::mem::take(cache),
        after: Cache::default(),
        head: vec![0; HEAD].into_boxed_slice(),
        buffer: Vec::with_capacity(16 * 1024),
        links: Vec::new(),
        mounted: Mounted { source: source.to_owned(), ..Mounted::default() },
    };
    walk.after = walk.before.fresh();
    match fstat(root) {
        Err(errno) => walk.unreadable("", errno),
        Ok(stat) if is_regular(&stat) => {
            walk.mounted.single = true;
            walk.entries = 1;
            if let Err(errno) = walk.file(root, None, "", &stat, false) {
                walk.unreadable("", errno);
            }
        }
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            if is_pseudo(root) {
                return walk.mounted;
            }
            match openat(root, ".", DIRECTORY, Mode::empty()) {
                Ok(directory) => {
                    let _ = walk.directory(&directory, "", 0, closed(&stat));
                    walk.resolve_links(root);
                }
                Err(errno) => walk.unreadable("", errno),
            }
        }
        // A socket or a device: nothing is in it.
        Ok(_) => {}
    }
    *cache = walk.after;
    let mut mounted = walk.mounted;
    mounted.files.sort_by(|a, b| a.path.cmp(&b.path));
    mounted.links.sort_by(|a, b| a.path.cmp(&b.path));
    mounted.bounds.sort();
    mounted
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

struct Walk<'a> {
    kind: Root,
    limits: Limits,
    never: &'a [String],
    until: Instant,
    now: i64,
    entries: usize,
    before: Cache,
    after: Cache,
    head: Box<[u8]>,
    buffer: Vec<u8>,
    /// Paths of links, resolved at the end.
    links: Vec<String>,
    mounted: Mounted,
}

/// The walk is over.
struct Over;

impl Walk<'_> {
    fn bound(&mut self, bound: Bound) {
        let same = |known: &Bound| std::mem::discriminant(known) == std::mem::discriminant(&bound);
        if !self.mounted.bounds.iter().any(same) {
            self.mounted.bounds.push(bound);
        }
    }

    fn unreadable(&mut self, path: &str, errno: Errno) {
        // Gone between listing and opening.
        if errno != Errno::NOENT {
            self.bound(Bound::Unreadable(format!("{path}: {}", std::io::Error::from(errno))));
        }
    }

    fn directory(&mut self, fd: &OwnedFd, path: &str, depth: usize, enclosed: bool) -> Result<(), Over> {
        let mut directories = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut over = Ok(());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    self.unreadable(path, errno);
                    break;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            over = self.entry(fd, name, entry.file_type(), path, enclosed, &mut directories);
            if over.is_err() {
                break;
            }
        }
        self.buffer = buffer;
        over?;
        for name in directories {
            self.sub(fd, &name, path, depth, enclosed)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        fd: &OwnedFd,
        name: &CStr,
        kind: FileType,
        path: &str,
        enclosed: bool,
        directories: &mut Vec<CString>,
    ) -> Result<(), Over> {
        self.entries += 1;
        if self.entries > self.limits.files {
            self.bound(Bound::Files);
            return Err(Over);
        }
        if self.entries.is_multiple_of(16) && Instant::now() > self.until {
            self.bound(Bound::Time);
            return Err(Over);
        }
        if self.kind == Root::Layer && self.takes_away(fd, name, kind, path) {
            return Ok(());
        }
        match kind {
            FileType::Directory | FileType::RegularFile | FileType::Symlink | FileType::Unknown => {}
            // Pipes, sockets and devices are never opened.
            _ => return Ok(()),
        }
        let mut stat = None;
        if matches!(kind, FileType::RegularFile | FileType::Unknown) {
            match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(seen) => stat = Some(seen),
                Err(errno) => {
                    self.unreadable(&joined(path, name), errno);
                    return Ok(());
                }
            }
        }
        match stat.map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode)) {
            FileType::Directory => directories.push(name.to_owned()),
            FileType::Symlink => self.links.push(joined(path, name)),
            FileType::RegularFile => {
                if let Some(stat) = stat
                    && let Err(errno) = self.file(fd, Some(name), path, &stat, enclosed)
                {
                    self.unreadable(&joined(path, name), errno);
                }
                if self.mounted.files.len() >= self.limits.found {
                    self.bound(Bound::Found);
                    return Err(Over);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A whiteout of overlayfs (a device 0/0) or of fuse-overlayfs (a name).
    fn takes_away(&mut self, fd: &OwnedFd, name: &CStr, kind: FileType, path: &str) -> bool {
        if let Some(hidden) = name.to_bytes().strip_prefix(b".wh.") {
            match hidden {
                b".wh..opq" => self.mounted.opaque.push(path.to_owned()),
                hidden => {
                    let hidden = String::from_utf8_lossy(hidden);
                    let below =
                        if path.is_empty() { hidden.into_owned() } else { format!("{path}/{hidden}") };
                    self.mounted.whiteouts.push(below);
                }
            }
            return true;
        }
        let none = |stat: Stat| stat.st_rdev == 0;
        let whiteout =
            kind == FileType::CharacterDevice && statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(none);
        if whiteout {
            self.mounted.whiteouts.push(joined(path, name));
        }
        whiteout
    }

    fn sub(
        &mut self,
        fd: &OwnedFd,
        name: &CStr,
        path: &str,
        depth: usize,
        enclosed: bool,
    ) -> Result<(), Over> {
        if depth == self.limits.depth {
            self.bound(Bound::Depth);
            return Ok(());
        }
        if Instant::now() > self.until {
            self.bound(Bound::Time);
            return Err(Over);
        }
        let path = joined(path, name);
        let on_host = format!("{}/{path}", self.mounted.source.trim_end_matches('/'));
        if self.never.contains(&on_host) {
            return Ok(());
        }
        let opened = match openat2(fd, name, DIRECTORY, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV) {
            // Another file system is mounted there: entered if it holds files.
            Err(Errno::XDEV) if self.kind == Root::Container => return Ok(()),
            Err(Errno::XDEV) => match openat2(fd, name, DIRECTORY, Mode::empty(), BENEATH) {
                Ok(other) if is_pseudo(&other) => return Ok(()),
                other => other,
            },
            opened => opened,
        };
        match opened.and_then(|directory| fstat(&directory).map(|stat| (directory, stat))) {
            Ok((directory, stat)) => {
                if self.kind == Root::Layer && is_opaque(&directory) {
                    self.mounted.opaque.push(path.clone());
                }
                self.directory(&directory, &path, depth + 1, enclosed || closed(&stat))
            }
            Err(errno) => {
                self.unreadable(&path, errno);
                Ok(())
            }
        }
    }

    /// A regular file: `name` in the directory `fd`, or `fd` itself.
    fn file(
        &mut self,
        fd: &OwnedFd,
        name: Option<&CStr>,
        path: &str,
        stat: &Stat,
        enclosed: bool,
    ) -> Result<(), Errno> {
        self.mounted.looked_at += 1;
        let stamp = Stamp::of(stat);
        let content = match self.before.find(stamp) {
            Known::Dull => None,
            Known::Content(content) => Some(content),
            Known::No => {
                let Some(file) = open_regular(fd, name, stat)? else { return Ok(()) };
                self.mounted.opened += 1;
                let shown = || name.map_or_else(|| path.to_owned(), |name| joined(path, name));
                match self
                    .read(file, size(stat))
                    .map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or_default()))?
                {
                    Read::Nothing => None,
                    Read::TooLarge => {
                        self.bound(Bound::Size(shown()));
                        None
                    }
                    Read::Content(content) => Some(Arc::new(*content)),
                }
            }
        };
        // One second is what coarse file systems and clocks differ by.
        if changed(stat) < self.now - 1 {
            self.after.keep(stamp, content.as_ref());
        }
        if let Some(content) = content {
            self.mounted.files.push(File {
                path: name.map_or_else(|| path.to_owned(), |name| joined(path, name)),
                inode: inode(stat),
                access: Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o777 },
                enclosed,
                content,
            });
        }
        Ok(())
    }

    fn read(&mut self, mut file: Open, size: u64) -> std::io::Result<Read> {
        let mut length = 0;
        while length < self.head.len() {
            match file.read(&mut self.head[length..])? {
                0 => break,
                more => length += more,
            }
            if length as u64 >= size {
                break;
            }
        }
        let head = &self.head[..length];
        let whole = length as u64 >= size && length < HEAD;
        let size = if whole { length as u64 } else { size };
        let format = formats::may_be(head, size);
        let found = match format {
            None => Read::Nothing,
            Some(_) if whole => formats::read(head).map_or(Read::Nothing, Read::content),
            Some(format) if size > self.limits.size => match format {
                // A large file that only mentions one, such as a log, is no loss.
                Format::Pem if size > 16 * self.limits.size => Read::Nothing,
                _ => Read::TooLarge,
            },
            Some(_) => {
                let most = usize::try_from(self.limits.size).unwrap_or(usize::MAX);
                let mut bytes = Zeroizing::new(Vec::with_capacity(most.min(size as usize + 1)));
                bytes.extend_from_slice(head);
                file.take((most - length) as u64).read_to_end(&mut bytes)?;
                formats::read(&bytes).map_or(Read::Nothing, Read::content)
            }
        };
        if format.is_some() {
            // It may have held a key.
            zeroize::Zeroize::zeroize(&mut self.head[..length]);
        }
        Ok(found)
    }

    /// Links that lead to a file that was found.
    fn resolve_links(&mut self, root: &OwnedFd) {
        let found: std::collections::HashSet<Inode> =
            self.mounted.files.iter().map(|file| file.inode).collect();
        for path in std::mem::take(&mut self.links) {
            if Instant::now() > self.until {
                self.bound(Bound::Time);
                return;
            }
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let target = openat2(root, path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath)
                .and_then(|target| fstat(&target));
            match target {
                Ok(stat) if found.contains(&inode(&stat)) => {
                    self.mounted.links.push(Link { path, inode: inode(&stat) });
                }
                Ok(_) => {}
                Err(_) => self.mounted.loose_links += 1,
            }
        }
    }
}

enum Read {
    Nothing,
    TooLarge,
    Content(Box<Content>),
}

impl Read {
    fn content(content: Content) -> Self {
        Self::Content(Box::new(content))
    }
}

/// Opens the regular file that `stat` is of; `None` when there is another now.
fn open_regular(fd: &OwnedFd, name: Option<&CStr>, stat: &Stat) -> Result<Option<Open>, Errno> {
    let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held;
    let held = match name {
        None => fd.as_fd(),
        Some(name) => {
            held = openat(fd, name, path, Mode::empty())?;
            held.as_fd()
        }
    };
    let now = fstat(held)?;
    if !is_regular(&now) || inode(&now) != inode(stat) {
        return Ok(None);
    }
    // Through the descriptor: what is opened is what was looked at.
    let itself = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(&itself, flags | OFlags::NOATIME, Mode::empty()) {
        // Only its owner and root may leave the access time alone.
        Err(Errno::PERM) => rustix::fs::open(&itself, flags, Mode::empty()),
        opened => opened,
    }
    .map(|file| Some(Open::from(file)))
}

fn joined(path: &str, name: &CStr) -> String {
    let name = name.to_string_lossy();
    if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") }
}

fn inode(stat: &Stat) -> Inode {
    #[allow(clippy::unnecessary_cast)] // the width of these fields depends on the platform
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

#[allow(clippy::unnecessary_cast)] // the width of these fields depends on the platform
fn changed(stat: &Stat) -> i64 {
    stat.st_ctime as i64
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// May others neither list nor enter it?
fn closed(stat: &Stat) -> bool {
    stat.st_mode & 0o001 == 0
}

/// Marked so by overlayfs or fuse-overlayfs.
fn is_opaque(fd: &OwnedFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"].iter().any(|name| {
        let mut value = [0; 4];
        fgetxattr(fd, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"y")
    })
}

fn is_pseudo(fd: &OwnedFd) -> bool {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    // a bit pattern, of a width that depends on the platform
    fstatfs(fd).is_ok_and(|stats| PSEUDO.contains(&(u64::from(stats.f_type as u32))))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
