//! Room on the disk of the state directory, kept for the day it is full.
//!
//! A file `ballast` is laid down while there is room. When a write finds none
//! the ballast is given up, once, and the write is tried again: journal,
//! results and identity go on, so that a host with a full disk can still take
//! part in an emergency. A finding says so until there is room again.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, StatVfsMountFlags};
use rustix::io::Errno;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::discover::finding;
use crate::discover::watch::Discovery;

const BALLAST: &str = "ballast";
/// A hundred results or so.
const BALLAST_BYTES: u64 = 4 * 1024 * 1024;
/// The ballast is laid down where so much stays free; less is told.
const ENOUGH: u64 = 16 * 1024 * 1024;
const LOOK: Duration = Duration::from_secs(60);
const FINDING: &str = "state-disk";

/// What a file system has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes, for root.
    pub free: u64,
    /// Mounted so that nothing can be written.
    pub read_only: bool,
}

impl Room {
    /// Of the file system that holds `path`.
    pub fn at(path: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(path)?;
        let blocks = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
        Ok(Self {
            free: blocks.saturating_mul(disk.f_frsize),
            read_only: disk.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// What is wrong with it, for people.
    pub fn problem(self) -> Option<String> {
        if self.read_only {
            Some("its file system is read-only: remount it (look at dmesg for why)".to_owned())
        } else if self.free < ENOUGH {
            Some(format!("{} KiB are free: make room", self.free / 1024))
        } else {
            None
        }
    }
}

/// Keeps the ballast, and says when there is no room. Never returns.
pub async fn run(config: Arc<Config>, discovery: Discovery) {
    let mut told = None;
    loop {
        let problem = look(&config.state_dir);
        if problem != told {
            match &problem {
                Some(problem) => warn!(state_dir = %config.state_dir.display(), "{problem}"),
                None => info!(state_dir = %config.state_dir.display(), "there is room again"),
            }
            let object = config.state_dir.display().to_string();
            let found = problem.as_ref().map(|problem| finding(FINDING, &object, problem, "critical"));
            discovery.note(FINDING, &object, found).await;
            told = problem;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Lays the ballast down where it is missing; says what is wrong.
fn look(state_dir: &Path) -> Option<String> {
    let room = match Room::at(state_dir) {
        Ok(room) => room,
        Err(error) => return Some(format!("the disk of the state directory cannot be looked at: {error}")),
    };
    if !room.read_only && room.free >= ENOUGH + BALLAST_BYTES && !is_laid(state_dir) {
        lay(state_dir);
    }
    if room.read_only {
        let why = "the state directory cannot be written: this agent goes on in memory and would forget at a restart";
        return Some(format!("{why}; {}", room.problem()?));
    }
    // How much is free changes all the time; what is said of it does not.
    (room.free < ENOUGH).then(|| {
        let reserve = if is_laid(state_dir) { "kept" } else { "in use" };
        format!("less than {} MiB are free on the disk of the state directory: make room; the agent's own reserve is {reserve}", ENOUGH / 1024 / 1024)
    })
}

/// A crash may have left a part of it.
fn is_laid(state_dir: &Path) -> bool {
    let path = state_dir.join(BALLAST);
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == BALLAST_BYTES)
}

fn lay(state_dir: &Path) {
    let path = state_dir.join(BALLAST);
    let lay = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                io::copy(&mut io::repeat(0).take(BALLAST_BYTES), &mut file)?;
            }
            Err(errno) => return Err(errno.into()),
        }
        file.sync_all()
    };
    if let Err(error) = lay() {
        let _ = std::fs::remove_file(&path);
        warn!(%error, path = %path.display(), "no room is kept for the day the disk is full");
    }
}

/// Gives the ballast up; says whether there was any.
pub fn release(state_dir: &Path) -> bool {
    let released = std::fs::remove_file(state_dir.join(BALLAST)).is_ok();
    if released {
        error!(state_dir = %state_dir.display(), "the disk is full: the reserve of the state directory is in use now; make room");
    }
    released
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_laid_down_given_up_once_and_laid_down_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!release(dir.path()));
        assert_eq!(look(dir.path()), None);
        let ballast = dir.path().join(BALLAST);
        assert_eq!(ballast.metadata().unwrap().len(), BALLAST_BYTES);
        assert!(release(dir.path()));
        assert!(!ballast.exists() && !release(dir.path()));
        look(dir.path());
        assert!(ballast.exists());
    }

    #[test]
    fn what_a_crash_left_of_the_reserve_is_laid_down_whole() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = dir.path().join(BALLAST);
        std::fs::write(&ballast, b"a part").unwrap();
        assert_eq!(look(dir.path()), None);
        assert_eq!(ballast.metadata().unwrap().len(), BALLAST_BYTES);
    }

    #[test]
    fn a_file_of_that_name_beside_the_state_directory_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        std::fs::create_dir(&state_dir).unwrap();
        let foreign = dir.path().join(BALLAST);
        std::fs::write(&foreign, b"somebody's").unwrap();
        assert!(!release(&state_dir) && foreign.exists());
    }

    #[test]
    fn says_what_is_wrong_with_a_disk() {
        let good = Room { free: ENOUGH, read_only: false };
        assert_eq!(good.problem(), None);
        assert!(Room { free: 2048, ..good }.problem().unwrap().contains("2 KiB"));
        assert!(Room { read_only: true, ..good }.problem().unwrap().contains("read-only"));
        let look = look(Path::new("/nonexistent")).unwrap();
        assert!(look.contains("cannot be looked at"), "{look}");
    }
}
