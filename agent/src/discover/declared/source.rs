//! The declarations on disk: the configuration, and `adopted.json` in the state directory.
//!
//! The configuration is looked at anew for each look at the host; a file that
//! cannot be read or is no TOML leaves what it last declared as it was, with a
//! finding, and one that others than root could have written declares nothing:
//! its commands run as root. Blocking: call off the async threads.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::adopted::Adopted;
use super::{Declarations, tables};
use crate::config::{self, Config};
use crate::discover::finding;
use crate::host_process;
use crate::state::{self, StateError};

/// In the state directory.
pub const FILE: &str = "adopted.json";
/// Certificates adopted on one host.
pub const MOST_ADOPTED: usize = 500;
/// A configuration is not larger, bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// Where declarations come from; cheap to clone.
#[derive(Clone, Debug)]
pub struct Source(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    file: Option<PathBuf>,
    state_dir: PathBuf,
    host_root: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// What the configuration last declared.
    configured: Declarations,
    /// As on disk; unknown before the first look.
    adopted: Option<Vec<Adopted>>,
}

/// `adopted.json`.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    adopted: Vec<Adopted>,
}

/// Why a certificate was not adopted or released.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The state directory.
    #[error("the host cannot remember it; nothing was adopted")]
    State(#[source] StateError),
    /// At the bound.
    #[error(
        "{MOST_ADOPTED} certificates are adopted on this host, no more are taken: put labels on their containers, then release some"
    )]
    TooMany,
}

impl Source {
    /// Reads nothing yet.
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Parts {
            file: config.file.clone(),
            state_dir: config.state_dir.clone(),
            host_root: config.host_root.clone(),
            held: Mutex::default(),
        }))
    }

    /// As they are now, with the processes they mean.
    pub fn read(&self) -> Declarations {
        let mut held = self.held();
        let mut problem = None;
        match self.configured() {
            Ok(declarations) => held.configured = declarations,
            Err(message) => {
                let object = self.0.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
                problem = Some(finding("bad-configuration", &object, &message, "critical"));
            }
        }
        let mut declarations = held.configured.clone();
        declarations.findings.extend(problem);
        match self.adopted(&mut held) {
            Ok(adopted) => declarations.adopted = adopted,
            Err(error) => {
                let object = self.0.state_dir.join(FILE).display().to_string();
                let message = crate::chain_of(&error).to_string();
                declarations.findings.push(finding("bad-configuration", &object, &message, "critical"));
            }
        }
        drop(held);
        for container in &mut declarations.host {
            declarations.findings.extend(host_process::look(container, &self.0.host_root));
        }
        declarations
    }

    /// Keeps one that was adopted; on disk when this returns. Keeping it twice keeps it once.
    pub fn keep(&self, one: Adopted) -> Result<(), KeepError> {
        let mut held = self.held();
        let mut adopted = self.adopted(&mut held).map_err(KeepError::State)?;
        adopted.retain(|known| known.id() != one.id());
        if adopted.len() >= MOST_ADOPTED {
            return Err(KeepError::TooMany);
        }
        adopted.push(one);
        adopted.sort_by(|a, b| a.id().cmp(b.id()));
        self.write(&mut held, adopted)
    }

    /// Forgets one; says whether it was there.
    pub fn release(&self, id: &str) -> Result<bool, KeepError> {
        let mut held = self.held();
        let mut adopted = self.adopted(&mut held).map_err(KeepError::State)?;
        let before = adopted.len();
        adopted.retain(|known| known.id() != id);
        if adopted.len() == before {
            return Ok(false);
        }
        self.write(&mut held, adopted).map(|()| true)
    }

    fn write(&self, held: &mut Held, adopted: Vec<Adopted>) -> Result<(), KeepError> {
        let stored = Stored { adopted };
        let bytes = serde_json::to_vec_pretty(&stored).expect("strings and numbers are always valid JSON");
        state::write(&self.0.state_dir, FILE, &bytes).map_err(KeepError::State)?;
        held.adopted = Some(stored.adopted);
        Ok(())
    }

    fn adopted(&self, held: &mut Held) -> Result<Vec<Adopted>, StateError> {
        if let Some(adopted) = &held.adopted {
            return Ok(adopted.clone());
        }
        let path = self.0.state_dir.join(FILE);
        let stored: Stored = match state::read(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| StateError::Damaged { path })?,
            None => Stored::default(),
        };
        held.adopted = Some(stored.adopted.clone());
        Ok(stored.adopted)
    }

    /// What the configuration declares, or why that is not known.
    fn configured(&self) -> Result<Declarations, String> {
        let Some(file) = &self.0.file else {
            return Ok(Declarations::default());
        };
        let text = match read(file) {
            Ok(text) => text,
            Err(error) => {
                return Err(format!("what it last declared goes on, because it cannot be read: {error}"));
            }
        };
        let unusable = |why: String| {
            format!(
                "what it last declared goes on, because it cannot be used now: {}",
                why.replace('\n', " ")
            )
        };
        // A mistyped [[certificate]] must not take away what is declared.
        config::check(file, &text.text).map_err(|error| unusable(error.to_string()))?;
        let document: toml::Table =
            toml::from_str(&text.text).map_err(|error| unusable(error.to_string()))?;
        let declarations = tables::read(&document, self.0.host_root == Path::new("/"));
        let declares =
            declarations.adopt || !declarations.containers.is_empty() || !declarations.host.is_empty();
        match text.writable {
            Some(who) if declares => {
                let message = format!(
                    "{who}, and what it declares is done as root: nothing of it is managed until only root can write there (chown root, chmod go-w)"
                );
                let object = file.display().to_string();
                let refused = finding("bad-configuration", &object, &message, "critical");
                Ok(Declarations { findings: vec![refused], ..Declarations::default() })
            }
            Some(_) | None => Ok(declarations),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.held.lock().expect("no panic while held")
    }
}

/// A configuration as it was read.
struct Text {
    text: String,
    /// Who else could have written it, in words.
    writable: Option<String>,
}

fn read(path: &Path) -> std::io::Result<Text> {
    // The file and its directories by their real names: a link may lead anywhere.
    let real = std::fs::canonicalize(path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut file = std::fs::File::from(rustix::fs::open(&real, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        // /dev/null, or a pipe that was read at the start: there is nothing to read anew.
        return Ok(Text { text: String::new(), writable: None });
    }
    let mut writable = foreign(&real, &metadata, false);
    for directory in real.ancestors().skip(1) {
        if writable.is_none() {
            writable = foreign(directory, &std::fs::metadata(directory)?, true);
        }
    }
    let mut text = String::new();
    std::io::Read::by_ref(&mut file).take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(std::io::Error::other("has more than one MiB"));
    }
    Ok(Text { text, writable })
}

/// Who but root and this process could write there.
fn foreign(path: &Path, metadata: &std::fs::Metadata, directory: bool) -> Option<String> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Some(format!("{} belongs to user {owner}", path.display()));
    }
    // In a sticky directory nobody replaces what is another's.
    let sticky = directory && mode & 0o1000 != 0;
    (mode & 0o022 != 0 && !sticky)
        .then(|| format!("{} may be written by others (mode {:04o})", path.display(), mode & 0o7777))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
