//! Writes certificate and key so that no reader ever sees a mismatched pair.
//!
//! Each issuance is a *generation*: a directory of its own under
//! `.reseal/<stem>/` beside the certificate, with everything that is declared
//! ([`parts`]) and what its bytes were ([`manifest`]). Several files become
//! current by one rename of the link `current` ([`linked`]); a file that holds
//! all by one rename of itself ([`renamed`]). Only files that are mounted by
//! themselves are written in place ([`in_place`]). The generation before stays
//! until the new one is verified. Every step may be the last one before a
//! crash, and doing it again is harmless. What somebody else changed since is
//! never written over. Blocking: call off the async threads. Called by the
//! target runner, and for reading by [`read`].

mod error;
mod in_place;
mod linked;
mod manifest;
mod parts;
pub mod read;
mod renamed;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::dir::{Dir, DirError};
use crate::discover::{Consumer, Installation, Layout, Place, Wanted};
use crate::{inside, pem, state};

pub use error::InstallError;
use manifest::Manifest;
use parts::{Part, Role};

/// For the owner only, when nothing else is known.
const KEY_MODE: u32 = 0o600;
const AREA: &str = ".reseal";
const PENDING_KEY: &str = "pending.key";
const ORIGINAL: &str = "original-";
/// In the state directory: generations of files whose own directory takes none.
const IN_PLACE: &str = "in-place";

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

/// How a generation becomes current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Links through one link: one rename.
    Linked,
    /// The file itself: one rename.
    Renamed,
    /// The same file, other bytes: what is mounted by itself.
    InPlace,
}

/// The files of one installation, open.
pub struct Files {
    config: Config,
    place: Place,
    wanted: Wanted,
    /// "web/site": the name of a key store's entry when nothing else says one.
    label: String,
    way: Way,
    parts: Vec<Part>,
}

impl Files {
    /// Opens the directories; refuses what [`Dir::open_at`] refuses.
    pub fn open(config: &Config, installation: &Installation) -> Result<Self, InstallError> {
        let place = installation.place.clone();
        let parts =
            Part::all(config, &place).map_err(|source| InstallError::Files { path: place.id(), source })?;
        let way = match (place.in_place(), parts.len()) {
            (true, _) => Way::InPlace,
            (false, 1) => Way::Renamed,
            (false, _) => Way::Linked,
        };
        let (wanted, label) = (installation.wanted.clone(), installation.label.clone());
        Ok(Self { config: config.clone(), place, wanted, label, way, parts })
    }

    /// Makes the generation and writes its key: from here on the disk is known
    /// to be writable and large enough, the password readable and the files our
    /// own, before anything is asked for.
    pub fn prepare(&self, generation: &str, pkcs8: &[u8]) -> Result<(), InstallError> {
        self.recover()?;
        self.refuse_changed()?;
        match self.way {
            Way::Linked => self.named(self.links_stay_in_the_mount())?,
            Way::Renamed => {}
            Way::InPlace => self.named(self.refuse_linked_files())?,
        }
        if self.wanted.layout.is_key_store() {
            read::password(&self.config, &self.place)?;
        }
        self.named((|| {
            let directory = self.area()?.make_sub(generation)?;
            let access = match self.part(Role::Key) {
                Some(key) if self.way == Way::Linked => self.access_of(key)?,
                Some(_) | None => self.own(KEY_MODE),
            };
            match self.wanted.layout {
                Layout::Der => directory.replace(self.key_name(), pkcs8, access),
                Layout::Pair | Layout::Combined | Layout::Pkcs12 | Layout::Jks => {
                    directory.replace(self.key_name(), pem::private_key(pkcs8).as_bytes(), access)
                }
            }
        })())
    }

    /// Can every running consumer read the key as it will be? Looked at from
    /// inside: owner and mode of the file, and the directories on the way.
    pub fn check_readers(&self, consumers: &[Consumer]) -> Result<(), InstallError> {
        let secret = self.part(Role::Key).unwrap_or(&self.parts[0]);
        let access = self.named(self.access_of(secret))?;
        let number = usize::from(self.place.key_located().is_some());
        match consumers.iter().find_map(|consumer| inside::cannot_read(consumer, number, access)) {
            Some(why) => Err(InstallError::KeyUnreadable(why)),
            None => Ok(()),
        }
    }

    /// The key of a generation that waits for its certificate, PKCS#8.
    pub fn pending_key(&self, generation: &str) -> Result<Option<Zeroizing<Vec<u8>>>, InstallError> {
        let Some(directory) = self.generation(generation)? else {
            return Ok(None);
        };
        let content = self.named(directory.read(self.key_name(), pem::MAX_FILE_BYTES))?;
        Ok(content.and_then(|content| match self.wanted.layout {
            Layout::Der => Some(content.bytes),
            Layout::Pair | Layout::Combined | Layout::Pkcs12 | Layout::Jks => {
                pem::read_key(&content.bytes).ok()
            }
        }))
    }

    /// Completes the generation, keeps what is there now as the previous one,
    /// and says its name; nobody sees a difference yet.
    pub fn stage(
        &self,
        generation: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<Option<String>, InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let key = self.pending_key(generation)?.ok_or_else(|| self.no_key(generation))?;
        let mut manifest = Manifest::default();
        for part in &self.parts {
            let bytes = self.render(part.role, chain, &key)?;
            self.named((|| {
                let access = match self.way {
                    Way::Linked | Way::Renamed => self.access_of(part)?,
                    Way::InPlace => self.own(KEY_MODE),
                };
                let modified = part.later()?;
                directory.replace(&part.name, &bytes, access)?;
                directory.touch(&part.name, modified)
            })())?;
            manifest.wrote(part.role, &bytes);
        }
        self.named(manifest.write(&directory, self.own(KEY_MODE)))?;
        let previous = match self.way {
            Way::Linked => self.stage_linked(generation)?,
            Way::Renamed => self.stage_renamed(generation)?,
            Way::InPlace => self.stage_in_place(generation)?,
        };
        if let Some(previous) = &previous {
            self.named(self.complete_manifest(previous))?;
        }
        Ok(previous)
    }

    /// Makes a generation the current one: one rename, unless files are mounted by themselves.
    pub fn switch(&self, generation: &str) -> Result<(), InstallError> {
        match self.way {
            Way::Linked => self.switch_linked(generation)?,
            Way::Renamed => self.switch_renamed(generation)?,
            Way::InPlace => self.switch_in_place(generation)?,
        }
        self.named(self.mark_installed(generation))
    }

    /// Brings an earlier generation back; refused where its key is gone already.
    /// What was there before the agent is again what it was: where the paths were
    /// links of somebody else, they are those links again.
    pub fn restore(&self, generation: &str) -> Result<(), InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let secret = self.part(Role::Key).unwrap_or(&self.parts[0]);
        let whole = self.named(directory.kind(&secret.name))?.is_some();
        let original = generation.starts_with(ORIGINAL);
        // What was there before the agent comes back as it was, whole or not.
        if !whole && !original {
            return Err(self.no_key(generation));
        }
        // Programs tell by the time that a file is another one: back in content is
        // forward in time.
        for part in &self.parts {
            self.named((|| match directory.kind(&part.name)? {
                Some(_) => directory.touch(&part.name, part.later()?),
                None => Ok(()),
            })())?;
        }
        match self.way {
            Way::Linked => self.switch_linked(generation)?,
            Way::Renamed => self.restore_renamed(generation, &directory)?,
            Way::InPlace => self.switch_in_place(generation)?,
        }
        if !original {
            return self.named(self.mark_installed(generation));
        }
        if self.way == Way::Linked {
            self.named(self.restore_links(&directory))?;
        }
        self.named(self.unmark_installed())
    }

    /// The generation in use; `None` when the files are not the agent's.
    pub fn current(&self) -> Result<Option<String>, InstallError> {
        match self.way {
            Way::Linked => self.current_linked(),
            Way::Renamed => self.current_renamed(),
            Way::InPlace => self.current_in_place(),
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
        // The manifest is the last thing that is staged.
        if self.named(Manifest::read(&directory))?.is_some() {
            return Ok(Progress::Staged);
        }
        match self.pending_key(generation)? {
            Some(_) => Ok(Progress::Keyed),
            None => Ok(Progress::Absent),
        }
    }

    /// Removes a generation that is not in use, key and all.
    pub fn discard(&self, generation: &str) -> Result<(), InstallError> {
        if self.current()?.as_deref() == Some(generation) {
            return Ok(());
        }
        self.named((|| match self.find_area()? {
            Some(area) => area.remove_sub(generation),
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
                match (&current, self.part(Role::Key)) {
                    (Some(current), _) if *current == name => match self.way {
                        Way::Linked => {}
                        Way::Renamed => directory.remove(PENDING_KEY)?,
                        // The files themselves are all there need be.
                        Way::InPlace => Manifest::keep_only(&directory)?,
                    },
                    (_, Some(key)) if previous == Some(name.as_str()) && self.way == Way::Linked => {
                        directory.remove(&key.name)?;
                        directory.sync()?;
                    }
                    _ => area.remove_sub(&name)?,
                }
            }
            match &current {
                Some(current) if !current.starts_with(ORIGINAL) => self.mark_installed(current),
                Some(_) | None => Ok(()),
            }
        })())
    }

    fn part(&self, role: Role) -> Option<&Part> {
        self.parts.iter().find(|part| part.role == role)
    }

    /// The certificate's own directory.
    fn dir(&self) -> &Dir {
        &self.parts[0].dir
    }

    fn key_name(&self) -> &str {
        self.part(Role::Key).map_or(PENDING_KEY, |key| key.name.as_str())
    }

    /// `.reseal/<stem>`, made when it is not there.
    fn area(&self) -> Result<Dir, DirError> {
        let beside = self.dir().make_sub(AREA).and_then(|area| area.make_sub(self.place.stem()));
        match beside {
            Err(error) if self.way == Way::InPlace && error.is_refusal() => {
                let path = self.own_area();
                state::make_dir(&path).map_err(|source| DirError::Io {
                    operation: "make",
                    path: path.display().to_string(),
                    source: std::io::Error::other(source),
                })?;
                Dir::own(&path)
            }
            beside => beside,
        }
    }

    fn find_area(&self) -> Result<Option<Dir>, DirError> {
        let beside = match self.dir().sub(AREA)? {
            Some(area) => area.sub(self.place.stem())?,
            None => None,
        };
        match beside {
            None if self.way == Way::InPlace && self.own_area().is_dir() => {
                Dir::own(&self.own_area()).map(Some)
            }
            beside => Ok(beside),
        }
    }

    /// Where generations lie that cannot lie beside their files.
    fn own_area(&self) -> std::path::PathBuf {
        let name = reseal_proto::facts::sha256(self.place.id().as_bytes());
        self.config.state_dir.join(IN_PLACE).join(hex::encode(&name[..16]))
    }

    fn generation(&self, generation: &str) -> Result<Option<Dir>, InstallError> {
        self.named((|| match self.find_area()? {
            Some(area) => area.sub(generation),
            None => Ok(None),
        })())
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
