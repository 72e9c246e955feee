//! What a container sees of its files, looked at through `/proc/PID/root`.
//!
//! Needs the host's PID namespace; where a container's first process cannot be
//! seen, nothing is said. Paths are resolved in the container's root by
//! `openat2`, so that no link of its leads the agent elsewhere. Whether a key
//! can be read is judged by the user that the first process runs as, whatever
//! its image or its configuration calls it: a program that starts as root reads
//! its key before it gives that up. Never changes anything. Called by the
//! installer and by discovery.

use std::fmt;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use reseal_proto::v1::Finding;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::dir::{Access, Dir, Identity};
use crate::discover::{Consumer, Installation, finding};
use crate::pem;

/// Capabilities that read any file: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)).
const READS_ANYTHING: u64 = 1 << 1 | 1 << 2;

/// Why a container cannot use a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("container {container}, whose program runs as {who}, cannot read {path}: {why}")]
pub struct Unreadable {
    /// Its name.
    pub container: String,
    /// User and groups.
    pub who: String,
    /// In the container.
    pub path: String,
    /// Which file or directory is in the way, and what to do.
    pub why: String,
}

/// Whom the kernel takes a process for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    /// The first is its own; `None`: not known.
    groups: Option<Vec<u32>>,
    /// May read what it does not own, if its user namespace knows the owner.
    reads_anything: bool,
    /// Users and groups that its user namespace has, as the host counts them.
    known: [Ranges; 2],
}

/// Ids from, and how many.
type Ranges = Vec<(u64, u64)>;

/// Of a user namespace: the second number of each line is the id outside
/// (user_namespaces(7)). With remapped users root in a container is nobody here.
fn ranges(map: &str) -> Ranges {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    map.lines().filter_map(range).collect()
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.uid)?;
        match &self.groups {
            Some(groups) => {
                let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                write!(f, " with groups {}", groups.join(", "))
            }
            None => Ok(()),
        }
    }
}

impl Credentials {
    /// Of a process that can be seen.
    fn of(pid: i32) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        Self::of_process(&read("status")?, [&read("uid_map")?, &read("gid_map")?])
    }

    /// By `/proc/PID/status` (proc_pid_status(5)); ids as the host counts them.
    fn of_process(status: &str, maps: [&str; 2]) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // Real, effective, saved, file system: the last one opens files.
        let last = |name: &str| field(name)?.split_whitespace().nth(3)?.parse().ok();
        let (uid, gid) = (last("Uid:")?, last("Gid:")?);
        let more = field("Groups:")?.split_whitespace().filter_map(|group| group.parse().ok());
        let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
        let groups = Some(std::iter::once(gid).chain(more).collect());
        let reads_anything = capabilities & READS_ANYTHING != 0;
        Some(Self { uid, groups, reads_anything, known: maps.map(ranges) })
    }

    /// Of a container that does not run, by its configuration, if that is a number.
    fn of_configuration(user: &str) -> Option<Self> {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user, None),
        };
        let uid = uid.parse().ok().filter(|uid| *uid != 0)?;
        let groups = gid.and_then(|gid| gid.parse().ok()).map(|gid| vec![gid]);
        Some(Self { uid, groups, reads_anything: false, known: Default::default() })
    }

    /// `Some(false)` only where it is certain. `bit` is 4 to read, 1 to pass.
    fn may(&self, access: Access, bit: u32) -> bool {
        let knows = |ranges: &Ranges, id: u32| {
            ranges.iter().any(|(first, count)| (*first..first.saturating_add(*count)).contains(&id.into()))
        };
        if self.reads_anything && knows(&self.known[0], access.uid) && knows(&self.known[1], access.gid) {
            return true;
        }
        if access.uid == self.uid {
            return access.mode >> 6 & bit != 0;
        }
        match &self.groups {
            Some(groups) if groups.contains(&access.gid) => access.mode >> 3 & bit != 0,
            Some(_) => access.mode & bit != 0,
            // One of them may be the right one.
            None => (access.mode | access.mode >> 3) & bit != 0,
        }
    }
}

/// A file as a container sees it.
pub struct Seen {
    /// Zeroized: it may hold a key.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Which file it is.
    pub identity: Identity,
}

/// Reads a file as the container sees it; `None` where that cannot be done from here.
pub fn content(consumer: &Consumer, path: &str, limit: usize) -> Option<Result<Seen, Errno>> {
    let root = root(consumer)?;
    let read = || {
        let fd = open(&root, path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let identity = Identity::of(&fd)?;
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
        let read = std::fs::File::from(fd).take(limit as u64).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(Seen { bytes, identity })
    };
    Some(read())
}

/// Would this container's program be refused a key with that owner and mode? `number`
/// is the key's place among the consumer's files; the directories are those on the way.
pub fn cannot_read(consumer: &Consumer, number: usize, key: Access) -> Option<Unreadable> {
    let path = consumer.inside.files.get(number)?;
    let root = root(consumer);
    let who = match &root {
        Some(_) => Credentials::of(consumer.pid)?,
        None if consumer.running => return None,
        None => Credentials::of_configuration(&consumer.inside.user)?,
    };
    let unreadable = |why: String| Unreadable {
        container: consumer.container.clone(),
        who: who.to_string(),
        path: path.clone(),
        why,
    };
    if !who.may(key, 4) {
        return Some(unreadable(format!(
            "the file belongs to {}:{} with mode {:04o}; declare reseal.cert.NAME.owner={}, or a mode that its group can read",
            key.uid, key.gid, key.mode, who.uid
        )));
    }
    // The links of a pair lead through the certificate's directory.
    let certificate = consumer.inside.files.first().filter(|_| number > 0);
    for directory in parents(path).chain(certificate.into_iter().flat_map(|path| parents(path))) {
        let Some(access) = root.as_ref().and_then(|root| access(root, directory)) else { continue };
        if !who.may(access, 1) {
            return Some(unreadable(format!(
                "it may not pass the directory {directory}, which belongs to {}:{} with mode {:04o}; change owner or mode of the directory",
                access.uid, access.gid, access.mode
            )));
        }
    }
    None
}

/// What is wrong with the key of an installation as it lies there.
pub fn findings(config: &Config, installation: &Installation) -> Vec<Finding> {
    let place = &installation.place;
    let secret = place.secret();
    let key = Dir::open_at(config, &secret.mount, &secret.directory)
        .and_then(|dir| dir.read(&secret.file, pem::MAX_FILE_BYTES));
    let Ok(Some(key)) = key else { return Vec::new() };
    let access = key.access;
    let mut found = Vec::new();
    if access.mode & 0o004 != 0 {
        let message = format!(
            "the private key {} has mode {:04o}: everybody who reaches the file can read it; chmod o-rwx it, or declare reseal.cert.NAME.mode",
            secret.path(),
            access.mode
        );
        found.push(finding("key-too-open", &installation.id, &message, "warning"));
    }
    let number = usize::from(place.key_located().is_some());
    let unreadable = |consumer| cannot_read(consumer, number, access);
    if let Some(why) = installation.consumers.iter().find_map(unreadable) {
        found.push(finding("key-unreadable", &installation.id, &why.to_string(), "critical"));
    }
    found
}

/// Every directory on the way to a file, the outermost first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|directory| !directory.is_empty())
}

fn root(consumer: &Consumer) -> Option<OwnedFd> {
    if !consumer.running || consumer.pid <= 0 {
        return None;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{}/root", consumer.pid), flags, Mode::empty()).ok()
}

fn access(root: &OwnedFd, path: &str) -> Option<Access> {
    let fd = open(root, path, OFlags::PATH).ok()?;
    let stat = fstat(&fd).ok()?;
    Some(Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o777 })
}

fn open(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let below = path.trim_start_matches('/');
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, below, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{Inside, Ladder};
    use proptest::prelude::*;

    fn access(uid: u32, gid: u32, mode: u32) -> Access {
        Access { uid, gid, mode }
    }

    fn consumer(pid: i32, user: &str, path: &str) -> Consumer {
        Consumer {
            container: "web".into(),
            container_id: "x".into(),
            image: String::new(),
            program: String::new(),
            running: pid > 0,
            pid,
            reload: Ladder::default(),
            check: None,
            serves: false,
            endpoints: Vec::new(),
            inside: Inside { user: user.into(), files: vec![path.into()] },
            host: None,
        }
    }

    const STATUS: &str = "Name:\tpostgres\nUid:\t999\t999\t999\t999\nGid:\t999\t999\t999\t998\nGroups:\t101 102 \nCapEff:\t0000000000000000\n";

    #[test]
    fn a_process_is_who_the_kernel_says() {
        let all = ["0 0 4294967295\n"; 2];
        let postgres = Credentials::of_process(STATUS, all).unwrap();
        assert_eq!((postgres.uid, postgres.groups.clone()), (999, Some(vec![998, 101, 102])));
        assert!(postgres.may(access(999, 0, 0o600), 4));
        assert!(postgres.may(access(0, 102, 0o640), 4));
        assert!(!postgres.may(access(0, 0, 0o640), 4));
        // The owner's bits count for the owner, also where others have more.
        assert!(!postgres.may(access(999, 0, 0o044), 4));
        assert!(postgres.may(access(0, 0, 0o711), 1) && !postgres.may(access(0, 0, 0o711), 4));
        // Root without its capabilities is a user like others.
        let bare = STATUS.replace("999", "0");
        assert!(!Credentials::of_process(&bare, all).unwrap().may(access(101, 101, 0o600), 4));
        let root = bare.replace("0000000000\n", "0000000002\n");
        assert!(Credentials::of_process(&root, all).unwrap().may(access(101, 101, 0o600), 4));
        // Root of a container whose users are remapped is not root here.
        let remapped = STATUS.replace("999", "100000").replace("998", "100000");
        let remapped = remapped.replace("0000000000\n", "0000000002\n");
        let remapped = Credentials::of_process(&remapped, ["0 100000 65536\n"; 2]);
        let remapped = remapped.unwrap();
        assert!(!remapped.may(access(0, 0, 0o600), 4) && remapped.may(access(100_101, 100_101, 0o600), 4));
        assert_eq!(Credentials::of_process("Uid:\tx", all), None);
    }

    #[test]
    fn what_does_not_run_is_judged_by_number_and_only_when_certain() {
        let key = access(0, 50, 0o640);
        let refused = |user: &str| cannot_read(&consumer(0, user, "/tls/site.key"), 0, key).is_some();
        assert!(!refused("") && !refused("root") && !refused("0") && !refused("postgres"));
        // Its group is not known, and might be the right one.
        assert!(!refused("999"));
        assert!(refused("999:999") && !refused("999:50"));
        let why = cannot_read(&consumer(0, "999:999", "/tls/site.key"), 0, key).unwrap().to_string();
        assert!(why.contains("0:50 with mode 0640") && why.contains("owner=999"), "{why}");
    }

    #[test]
    fn this_process_is_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("site.key");
        std::fs::write(&file, b"secret").unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = consumer(pid, "", file.to_str().unwrap());
        let seen = content(&this, file.to_str().unwrap(), 100).unwrap().unwrap();
        assert_eq!(seen.bytes.as_slice(), b"secret");
        assert!(content(&this, "/gone/file", 100).unwrap().is_err());
        assert!(content(&this, dir.path().to_str().unwrap(), 100).unwrap().is_err());
        let own = access(rustix::process::geteuid().as_raw(), 0, 0o600);
        assert_eq!(cannot_read(&this, 0, own), None);
    }

    #[test]
    fn a_directory_in_the_way_is_named() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nobody else can be run here");
            return;
        }
        use std::os::unix::fs::PermissionsExt as _;
        use std::os::unix::process::CommandExt as _;
        let dir = tempfile::tempdir().unwrap();
        let chmod =
            |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("60").uid(1234).gid(1234).spawn().unwrap();
        let file = dir.path().join("site.key");
        let them = consumer(i32::try_from(sleeper.id()).unwrap(), "", file.to_str().unwrap());
        chmod(0o700);
        let why = cannot_read(&them, 0, access(1234, 1234, 0o600)).unwrap().to_string();
        chmod(0o711);
        let passed = cannot_read(&them, 0, access(1234, 1234, 0o600));
        let refused = cannot_read(&them, 0, access(0, 0, 0o640));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(why.contains(&format!("directory {}", dir.path().display())), "{why}");
        assert_eq!(passed, None);
        assert!(refused.is_some());
    }

    #[test]
    fn every_directory_on_the_way() {
        assert_eq!(
            parents("/etc/ssl/private/x.key").collect::<Vec<_>>(),
            ["/etc", "/etc/ssl", "/etc/ssl/private"]
        );
    }

    proptest! {
        #[test]
        fn more_permission_never_refuses(uid in 0u32..3, gid in 0u32..3, mode in 0u32..0o1000, group in 0u32..3) {
            let known = Default::default();
            let who = Credentials { uid: 1, groups: Some(vec![group]), reads_anything: false, known };
            let unknown = Credentials { groups: None, ..who.clone() };
            let key = access(uid, gid, mode);
            // What is refused without knowing the groups is refused with any.
            prop_assert!(unknown.may(key, 4) || !who.may(key, 4));
            prop_assert!(!who.may(key, 4) || who.may(access(uid, gid, mode | 0o444), 4));
        }
    }
}
