//! What a generation's files were when they were written.
//!
//! A text file in each generation's directory, for people as well: role, digest
//! of the bytes, and where a path of somebody else's link pointed. By it the
//! agent knows its own files from what somebody else put in their place, and
//! puts links back as they were. Beside the generations, `installed` says that
//! the paths are the agent's; an administrator takes that back by removing it.

use std::collections::BTreeMap;

use reseal_proto::facts::sha256;

use super::{Files, InstallError, Role};
use crate::dir::{Access, Dir, DirError};
use crate::pem;

/// A name that no declared file has.
const MANIFEST: &str = ".reseal-manifest";
const INSTALLED: &str = "installed";
const MAX_BYTES: usize = 16 * 1024;

/// What one file was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// SHA-256 over its bytes.
    pub(super) digest: [u8; 32],
    /// The path was a link of somebody else, to here.
    pub(super) link: Option<String>,
}

/// By role; a file that was not there has no line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) lines: BTreeMap<&'static str, Line>,
}

impl Manifest {
    pub(super) fn wrote(&mut self, role: Role, bytes: &[u8]) {
        self.lines.insert(role.name(), Line { digest: sha256(bytes), link: None });
    }

    pub(super) fn line(&self, role: Role) -> Option<&Line> {
        self.lines.get(role.name())
    }

    /// Durably, at once.
    pub(super) fn write(&self, directory: &Dir, access: Access) -> Result<(), DirError> {
        directory.replace(MANIFEST, self.text().as_bytes(), access)
    }

    /// `None` when there is none, or a damaged one: then nothing is known.
    pub(super) fn read(directory: &Dir) -> Result<Option<Self>, DirError> {
        let content = directory.read(MANIFEST, MAX_BYTES)?;
        Ok(content.and_then(|content| Self::parse(std::str::from_utf8(&content.bytes).ok()?)))
    }

    /// Removes everything else of a generation.
    pub(super) fn keep_only(directory: &Dir) -> Result<(), DirError> {
        for name in directory.names()?.iter().filter(|name| *name != MANIFEST) {
            directory.remove(name)?;
        }
        directory.sync()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (role, line) in &self.lines {
            text.push_str(&format!("{role} sha256:{}", hex::encode(line.digest)));
            if let Some(link) = &line.link {
                text.push_str(&format!(" link:{link}"));
            }
            text.push('\n');
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut manifest = Self::default();
        for line in text.lines() {
            let (role, rest) = line.split_once(" sha256:")?;
            let role = Role::ALL.into_iter().find(|known| known.name() == role)?;
            let (digest, link) = match rest.split_once(" link:") {
                Some((digest, link)) => (digest, Some(link.to_owned())),
                None => (rest, None),
            };
            let digest = hex::decode(digest).ok()?.try_into().ok()?;
            manifest.lines.insert(role.name(), Line { digest, link });
        }
        Some(manifest)
    }
}

impl Files {
    /// By generation.
    pub(super) fn manifests(&self) -> Result<Vec<(String, Manifest)>, DirError> {
        let Some(area) = self.find_area()? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in area.names()? {
            let Some(directory) = area.sub(&name).ok().flatten() else { continue };
            if let Some(manifest) = Manifest::read(&directory)? {
                found.push((name, manifest));
            }
        }
        Ok(found)
    }

    /// Refuses to go on where a path shows bytes that no generation has: they
    /// are somebody else's work. A file that is gone is no loss.
    pub(super) fn refuse_changed(&self) -> Result<(), InstallError> {
        let Some(area) = self.named(self.find_area())? else { return Ok(()) };
        if self.named(area.kind(INSTALLED))?.is_none() {
            return Ok(());
        }
        let manifests = self.named(self.manifests())?;
        for part in &self.parts {
            let Some(live) = self.named(part.live())? else { continue };
            let digest = sha256(&live.bytes);
            let ours = manifests.iter().filter_map(|(_, manifest)| manifest.line(part.role));
            if !ours.into_iter().any(|line| line.digest == digest) {
                let (path, marker) = (part.located.path(), area.path_of(INSTALLED));
                return Err(InstallError::Changed { path, marker });
            }
        }
        Ok(())
    }

    /// What a generation of an earlier agent, or of nobody, holds.
    pub(super) fn complete_manifest(&self, generation: &str) -> Result<(), DirError> {
        let Some(area) = self.find_area()? else { return Ok(()) };
        let Some(directory) = area.sub(generation)? else { return Ok(()) };
        if Manifest::read(&directory)?.is_some() {
            return Ok(());
        }
        let mut manifest = Manifest::default();
        for part in &self.parts {
            if let Some(content) = directory.read(&part.name, pem::MAX_FILE_BYTES)? {
                manifest.wrote(part.role, &content.bytes);
            }
        }
        manifest.write(&directory, self.own(0o600))
    }

    /// From here on the paths are the agent's.
    pub(super) fn mark_installed(&self, generation: &str) -> Result<(), DirError> {
        let area = self.area()?;
        let text = format!(
            "{generation}\nThe files of {} were written by reseal-agent. Remove this file to let it replace what somebody else has put there since.\n",
            self.place.id()
        );
        let there = area.read(INSTALLED, MAX_BYTES)?;
        if there.is_some_and(|there| there.bytes.as_slice() == text.as_bytes()) {
            return Ok(());
        }
        area.replace(INSTALLED, text.as_bytes(), self.own(0o644))
    }

    /// They are what they were before it.
    pub(super) fn unmark_installed(&self) -> Result<(), DirError> {
        let Some(area) = self.find_area()? else { return Ok(()) };
        area.remove(INSTALLED)?;
        area.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            digests in proptest::collection::vec(any::<[u8; 32]>(), 4),
            link in proptest::option::of("[a-z./ :]{1,40}"),
        ) {
            let mut manifest = Manifest::default();
            for (role, digest) in Role::ALL.into_iter().zip(digests) {
                manifest.lines.insert(role.name(), Line { digest, link: link.clone() });
            }
            prop_assert_eq!(Manifest::parse(&manifest.text()), Some(manifest));
        }

        #[test]
        fn any_text_is_read_or_not(text in "\\PC{0,80}") {
            let _ = Manifest::parse(&text);
        }
    }
}
