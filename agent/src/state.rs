//! What the agent remembers on disk, and how: whole files, swapped atomically.
//!
//! `state_dir` is 0700, its files 0600. A file is written under a temporary
//! name, flushed, renamed, and the directory flushed: after a crash there is
//! the old or the new one; on a full disk the [`room`] that is kept for it is
//! used. [`Session`] is what a session leaves behind for the
//! time without a coordinator. One process at a time: [`Lock`].

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use prost::Message;
use reseal_proto::v1::TrustBundle;
use rustls_pki_types::CertificateDer;

use crate::room;

/// Something in the state directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation.
    #[error("cannot {operation} {path}")]
    Io {
        /// "read" ...
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not what was written there.
    #[error("{path} is damaged; move it away and start the agent again")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Another agent uses the directory.
    #[error("another reseal-agent runs with the state directory {path}")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

impl StateError {
    /// Names operation and file.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// Makes a directory that only its owner may enter, durably.
pub fn make_dir(path: &Path) -> Result<(), StateError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StateError::io("create directory", path))?;
    // A relative path has no parent to speak of: the process's own directory.
    let parents = missing.into_iter().filter_map(Path::parent);
    parents
        .map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
        .try_for_each(sync)
}

/// Replaces `state_dir/name` by `bytes`, atomically and durably.
pub fn write(state_dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    replace(state_dir, state_dir, name, bytes)
}

/// The same for a file in a directory of the state directory.
pub fn write_in(state_dir: &Path, directory: &str, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    replace(state_dir, &state_dir.join(directory), name, bytes)
}

fn replace(state_dir: &Path, directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    match fill(&temporary, bytes) {
        // The room that is kept for this day.
        Err(error) if is_full(&error) && room::release(state_dir) => fill(&temporary, bytes),
        written => written,
    }
    .map_err(StateError::io("write", &path))?;
    std::fs::rename(&temporary, &path).map_err(StateError::io("replace", &path))?;
    sync(directory)
}

/// A whole file, flushed; on an error nothing is left behind.
fn fill(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Reads a file; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StateError::io("read", path)(error)),
    }
}

/// Removes a file durably; fine when there is none.
pub fn remove(directory: &Path, name: &str) -> Result<(), StateError> {
    let path = directory.join(name);
    match std::fs::remove_file(&path) {
        Ok(()) => sync(directory),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StateError::io("remove", &path)(error)),
    }
}

/// Gives a file of the directory another name, durably; replaces what has it.
pub fn rename(directory: &Path, from: &str, to: &str) -> Result<(), StateError> {
    let to = directory.join(to);
    std::fs::rename(directory.join(from), &to).map_err(StateError::io("replace", &to))?;
    sync(directory)
}

fn sync(directory: &Path) -> Result<(), StateError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(StateError::io("flush", directory))
}

/// A file name for a batch name: names come from the coordinator.
pub fn file_name(batch: &str, extension: &str) -> String {
    let plain = batch.len() <= 100
        && batch.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !batch.starts_with('.')
        && !batch.is_empty();
    if plain {
        format!("{batch}.{extension}")
    } else {
        let digest = reseal_proto::facts::sha256(batch.as_bytes());
        format!("x{}.{extension}", hex::encode(digest))
    }
}

/// Held while an agent runs.
#[derive(Debug)]
pub struct Lock {
    _directory: File,
}

impl Lock {
    /// Takes the directory for this process.
    pub fn take(state_dir: &Path) -> Result<Self, StateError> {
        make_dir(state_dir)?;
        // The directory itself: nothing has to be written to lock it.
        let directory = File::open(state_dir).map_err(StateError::io("open", state_dir))?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StateError::Locked { path: state_dir.to_owned() })?;
        Ok(Self { _directory: directory })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Remembered {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    anchors: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "3")]
    bundles: Vec<TrustBundle>,
    #[prost(bytes = "vec", tag = "4")]
    digest: Vec<u8>,
    /// Seconds by which this host was ahead.
    #[prost(sint64, optional, tag = "5")]
    skew: Option<i64>,
    #[prost(string, tag = "6")]
    fleet: String,
}

/// What the last session said; good until the next one.
#[derive(Debug)]
pub struct Session {
    state_dir: PathBuf,
    remembered: Mutex<Remembered>,
}

const SESSION: &str = "session.pb";
/// A skew that differs by less is the same; seconds.
const SKEW_STEP: u64 = 10;

impl Session {
    /// Reads it back.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(SESSION);
        let remembered = match read(&path)? {
            Some(bytes) => Remembered::decode(bytes.as_slice()).map_err(|_| StateError::Damaged { path })?,
            None => Remembered::default(),
        };
        Ok(Self { state_dir: state_dir.to_owned(), remembered: Mutex::new(remembered) })
    }

    /// Highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.held().epoch
    }

    /// Highest epoch seen of this fleet: each counts for itself.
    pub fn epoch_of(&self, fleet: &str) -> u64 {
        let held = self.held();
        if held.fleet == fleet { held.epoch } else { 0 }
    }

    /// Roots that new chains must build to.
    pub fn anchors(&self) -> Vec<CertificateDer<'static>> {
        self.held().anchors.iter().map(|der| CertificateDer::from(der.clone())).collect()
    }

    /// Trust bundles, as last sent.
    pub fn bundles(&self) -> Vec<TrustBundle> {
        self.held().bundles.clone()
    }

    /// Digest of the inventory that was last sent.
    pub fn digest(&self) -> Vec<u8> {
        self.held().digest.clone()
    }

    /// Takes over what a Welcome says; the caller has checked the epoch.
    pub fn welcome(
        &self,
        fleet: &str,
        epoch: u64,
        anchors: Vec<Vec<u8>>,
        bundles: Vec<TrustBundle>,
    ) -> Result<(), StateError> {
        self.change(|remembered| {
            remembered.fleet = fleet.to_owned();
            remembered.epoch = epoch;
            remembered.anchors = anchors;
            remembered.bundles = bundles;
        })
    }

    /// Remembers how far this host's clock was ahead, for `doctor`; small changes are not worth a write.
    pub fn measured(&self, skew: i64) -> Result<(), StateError> {
        let known = self.skew();
        if known.is_some_and(|known| known.abs_diff(skew) < SKEW_STEP) {
            return Ok(());
        }
        self.change(|remembered| remembered.skew = Some(skew))
    }

    /// As it was last measured.
    pub fn skew(&self) -> Option<i64> {
        self.held().skew
    }

    /// Remembers what was sent.
    pub fn sent(&self, digest: &[u8]) -> Result<(), StateError> {
        self.change(|remembered| remembered.digest = digest.to_vec())
    }

    fn change(&self, change: impl FnOnce(&mut Remembered)) -> Result<(), StateError> {
        let mut held = self.held();
        let mut changed = held.clone();
        change(&mut changed);
        if changed == *held {
            return Ok(());
        }
        let bytes = changed.encode_to_vec();
        // In memory whatever the disk says: the caller goes on with a warning.
        *held = changed;
        write(&self.state_dir, SESSION, &bytes)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_session_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::open(dir.path()).unwrap();
        session.welcome("f", 7, vec![vec![1]], Vec::new()).unwrap();
        session.sent(&[9]).unwrap();
        session.measured(-400).unwrap();
        session.measured(-395).unwrap();
        let again = Session::open(dir.path()).unwrap();
        assert_eq!((again.epoch(), again.digest(), again.skew()), (7, vec![9], Some(-400)));
        assert_eq!((again.epoch_of("f"), again.epoch_of("another")), (7, 0));
        let mode = std::fs::metadata(dir.path().join(SESSION)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SESSION), [0xff; 9]).unwrap();
        let error = Session::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(SESSION), "{error}");
    }

    #[test]
    fn only_one_agent_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(StateError::Locked { .. })));
    }

    #[test]
    fn a_batch_name_cannot_leave_the_directory() {
        for name in ["../x", "a/b", "", ".hidden", "a\0b"] {
            let file = file_name(name, "pb");
            assert!(!file.contains(['/', '\0']) && !file.starts_with('.'), "{file}");
        }
        assert_eq!(file_name("r1-web-1.0", "pb"), "r1-web-1.0.pb");
    }
}
