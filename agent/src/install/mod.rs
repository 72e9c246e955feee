//! Writes certificate and key so that no reader ever sees a mismatched pair.
//!
//! Each issuance is a *generation*: a directory of its own under
//! `.reseal/<stem>/` beside the certificate. A pair becomes current by one
//! rename of the link `current` ([`pair`]); a combined file by one rename of
//! the file ([`combined`]). The generation before stays until the new one is
//! verified. Every step may be the last one before a crash, and doing it again
//! is harmless. Blocking: call off the async threads. Called by the target
//! runner only.

mod combined;
mod pair;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::dir::{Access, Dir, DirError};
use crate::discover::{Installation, Layout, Owner, Place};
use crate::pem;

/// Readable by everybody: certificates are public.
const CERTIFICATE_MODE: u32 = 0o644;
/// For the owner only, when nothing else is known.
const KEY_MODE: u32 = 0o600;
const AREA: &str = ".reseal";
const PENDING_KEY: &str = "pending.key";
const ORIGINAL: &str = "original-";

/// Nothing was installed, or what was there is back.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file operation.
    #[error("cannot install {path}")]
    Files {
        /// The certificate's path on the host.
        path: String,
        /// What failed.
        #[source]
        source: DirError,
    },
    /// The generation has no key, or a damaged one.
    #[error("generation {generation} of {path} has no readable key; order the certificate again")]
    Key {
        /// The certificate's path on the host.
        path: String,
        /// Which.
        generation: String,
    },
    /// Somebody else changed the agent's own links.
    #[error(
        "{path} has a link `current` to {target:?}, which the agent did not make; remove .reseal there and order the certificate again"
    )]
    Foreign {
        /// The certificate's path on the host.
        path: String,
        /// Where it points.
        target: String,
    },
}

impl InstallError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Files { source, .. } => source.code(),
            Self::Key { .. } => "key-missing",
            Self::Foreign { .. } => "foreign-link",
        }
    }
}

/// What there is of a generation on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    Absent,
    /// The key only: waits for its certificate.
    Keyed,
    /// Everything, not in use.
    Staged,
    /// In use.
    Live,
}

/// The files of one installation, open.
pub struct Files {
    dir: Dir,
    place: Place,
    layout: Layout,
    owner: Option<Owner>,
    mode: Option<u32>,
}

impl Files {
    /// Opens the directory; refuses what [`Dir::open`] refuses.
    pub fn open(config: &Config, installation: &Installation) -> Result<Self, InstallError> {
        let place = installation.place.clone();
        let dir =
            Dir::open(config, &place).map_err(|source| InstallError::Files { path: place.id(), source })?;
        Ok(Self {
            dir,
            place,
            layout: installation.wanted.layout,
            owner: installation.wanted.owner,
            mode: installation.wanted.mode,
        })
    }

    /// Makes the generation and writes its key: from here on the disk is known
    /// to be writable and large enough, before anything is asked for.
    pub fn prepare(&self, generation: &str, pkcs8: &[u8]) -> Result<(), InstallError> {
        self.named((|| {
            let directory = self.area()?.make_sub(generation)?;
            let access = match self.layout {
                Layout::Pair => self.key_access()?,
                Layout::Combined => self.own(KEY_MODE),
            };
            directory.replace(self.key_file(), pem::private_key(pkcs8).as_bytes(), access)
        })())
    }

    /// The key of a generation that waits for its certificate, PKCS#8.
    pub fn pending_key(&self, generation: &str) -> Result<Option<Zeroizing<Vec<u8>>>, InstallError> {
        let Some(directory) = self.generation(generation)? else {
            return Ok(None);
        };
        let content = self.named(directory.read(self.key_file(), pem::MAX_FILE_BYTES))?;
        Ok(content.and_then(|content| pem::read_key(&content.bytes).ok()))
    }

    /// Completes the generation, keeps what is there now as the previous one,
    /// and says its name; nobody sees a difference yet.
    pub fn stage(
        &self,
        generation: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<Option<String>, InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let text = pem::certificates(chain.iter().map(AsRef::as_ref));
        match self.layout {
            Layout::Pair => self.stage_pair(generation, &directory, text.as_bytes()),
            Layout::Combined => self.stage_combined(generation, &directory, &text),
        }
    }

    /// Makes a generation the current one: one rename.
    pub fn switch(&self, generation: &str) -> Result<(), InstallError> {
        match self.layout {
            Layout::Pair => self.switch_pair(generation),
            Layout::Combined => self.switch_combined(generation),
        }
    }

    /// Brings an earlier generation back; refused where its key is gone already.
    pub fn restore(&self, generation: &str) -> Result<(), InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let key = match self.layout {
            Layout::Pair => &self.place.key,
            Layout::Combined => &self.place.certificate,
        };
        let whole = self.named(directory.kind(key))?.is_some();
        // What was there before the agent comes back as it was, whole or not.
        if !whole && !generation.starts_with(ORIGINAL) {
            return Err(self.no_key(generation));
        }
        self.switch(generation)
    }

    /// The generation in use; `None` when the files are not the agent's.
    pub fn current(&self) -> Result<Option<String>, InstallError> {
        match self.layout {
            Layout::Pair => self.current_pair(),
            Layout::Combined => self.current_combined(),
        }
    }

    /// How far a generation is.
    pub fn progress(&self, generation: &str) -> Result<Progress, InstallError> {
        let Some(directory) = self.generation(generation)? else {
            return Ok(Progress::Absent);
        };
        if self.current()?.as_deref() == Some(generation) {
            return Ok(Progress::Live);
        }
        if self.named(directory.kind(&self.place.certificate))?.is_some() {
            return Ok(Progress::Staged);
        }
        match self.pending_key(generation)? {
            Some(_) => Ok(Progress::Keyed),
            None => Ok(Progress::Absent),
        }
    }

    /// What readers of the certificate's path see now.
    pub fn live(&self) -> Result<Option<Zeroizing<Vec<u8>>>, InstallError> {
        let content = self.dir.read(&self.place.certificate, pem::MAX_FILE_BYTES);
        Ok(self.named(content)?.map(|content| content.bytes))
    }

    /// Removes a generation that is not in use, key and all.
    pub fn discard(&self, generation: &str) -> Result<(), InstallError> {
        if self.current()?.as_deref() == Some(generation) {
            return Ok(());
        }
        self.named((|| match self.dir.sub(AREA)? {
            Some(area) => match area.sub(self.place.stem())? {
                Some(stem) => stem.remove_sub(generation),
                None => Ok(()),
            },
            None => Ok(()),
        })())
    }

    /// The current generation is proved: every other key goes. Of the
    /// generation before, the certificate stays, for people.
    pub fn settle(&self, previous: Option<&str>) -> Result<(), InstallError> {
        let current = self.current()?;
        self.named((|| {
            let area = self.area()?;
            for name in area.names()? {
                let Some(directory) = area.sub(&name).ok().flatten() else {
                    continue;
                };
                if Some(&name) == current.as_ref() {
                    if self.layout == Layout::Combined {
                        directory.remove(PENDING_KEY)?;
                    }
                } else if Some(name.as_str()) == previous && self.layout == Layout::Pair {
                    directory.remove(&self.place.key)?;
                    directory.sync()?;
                } else {
                    area.remove_sub(&name)?;
                }
            }
            Ok(())
        })())
    }

    /// Takes the access of a file that is replaced, or what the labels say.
    fn key_access(&self) -> Result<Access, DirError> {
        let file = match self.layout {
            Layout::Pair => &self.place.key,
            Layout::Combined => &self.place.certificate,
        };
        // The certificate's owner is the next best hint where there is no key yet.
        let there = match self.dir.read(file, pem::MAX_FILE_BYTES)? {
            Some(content) => Some(content.access),
            None => self
                .dir
                .read(&self.place.certificate, pem::MAX_FILE_BYTES)?
                .map(|content| Access { mode: KEY_MODE, ..content.access }),
        };
        let mut access = there.unwrap_or_else(|| self.own(KEY_MODE));
        if let Some(owner) = self.owner {
            (access.uid, access.gid) = (owner.uid, owner.gid);
        }
        if let Some(mode) = self.mode {
            access.mode = mode;
        }
        Ok(access)
    }

    /// The agent's own user: root on a host.
    fn own(&self, mode: u32) -> Access {
        Access { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode }
    }

    fn key_file(&self) -> &str {
        match self.layout {
            Layout::Pair => &self.place.key,
            Layout::Combined => PENDING_KEY,
        }
    }

    /// `.reseal/<stem>`, made when it is not there.
    fn area(&self) -> Result<Dir, DirError> {
        self.dir.make_sub(AREA)?.make_sub(self.place.stem())
    }

    fn generation(&self, generation: &str) -> Result<Option<Dir>, InstallError> {
        self.named((|| match self.dir.sub(AREA)? {
            Some(area) => match area.sub(self.place.stem())? {
                Some(stem) => stem.sub(generation),
                None => Ok(None),
            },
            None => Ok(None),
        })())
    }

    /// Gives a generation a further name of a file that is there now, or a
    /// copy where it is a link or the file system has no hard links.
    fn keep(&self, file: &str, to: &Dir) -> Result<bool, DirError> {
        let Some(content) = self.dir.read(file, pem::MAX_FILE_BYTES)? else {
            return Ok(false);
        };
        let regular = matches!(self.dir.kind(file)?, Some((rustix::fs::FileType::RegularFile, _)));
        if !regular || to.replace_hard_link(file, &self.dir, file).is_err() {
            to.replace(file, &content.bytes, content.access)?;
        }
        Ok(true)
    }

    fn no_key(&self, generation: &str) -> InstallError {
        InstallError::Key { path: self.place.id(), generation: generation.to_owned() }
    }

    fn named<T>(&self, result: Result<T, DirError>) -> Result<T, InstallError> {
        result.map_err(|source| InstallError::Files { path: self.place.id(), source })
    }
}

/// The name under which what was there before the agent is kept.
fn original(generation: &str) -> String {
    format!("{ORIGINAL}{generation}")
}

#[cfg(test)]
#[path = "tests.rs"]
pub(crate) mod tests;
