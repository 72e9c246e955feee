//! Files that are mounted by themselves: the same file gets other bytes.
//!
//! A rename would give the name to another file, and the container would keep
//! the old one. So old and new bytes are kept as generations first, and then
//! each file is written in place. Between the first and the last the files do
//! not belong together: `switching` names the generation for that time, so that
//! whoever finds it finishes, and the caller lets no reload fall into it. Which
//! generation is in use is told by the bytes.

use reseal_proto::facts::sha256;
use rustix::fs::FileType;
use tracing::warn;

use super::manifest::{Line, Manifest};
use super::{Files, InstallError, KEY_MODE, Part, original};
use crate::dir::{Content, Dir, DirError};
use crate::discover::Consumer;
use crate::{inside, pem};

const SWITCHING: &str = "switching";

impl Files {
    pub(super) fn stage_in_place(&self, generation: &str) -> Result<Option<String>, InstallError> {
        let known = self.current_in_place()?;
        let name = known.unwrap_or_else(|| original(generation));
        self.named((|| {
            let kept = self.area()?.make_sub(&name)?;
            let mut manifest = Manifest::default();
            for part in &self.parts {
                let Some(live) = part.live()? else { continue };
                // A copy: a second name would be overwritten with the first.
                kept.replace(&part.name, &live.bytes, self.own(KEY_MODE))?;
                manifest.lines.insert(part.role.name(), Line { digest: sha256(&live.bytes), link: None });
            }
            manifest.write(&kept, self.own(KEY_MODE))?;
            kept.sync()
        })())?;
        Ok(Some(name))
    }

    pub(super) fn switch_in_place(&self, generation: &str) -> Result<(), InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let area = self.named(self.area())?;
        let before = self.parts.iter().map(Part::live).collect::<Result<Vec<_>, _>>();
        let before = self.named(before)?;
        self.named(area.replace_link(SWITCHING, generation))?;
        for (done, part) in self.parts.iter().enumerate() {
            if done > 0 {
                crate::fail_point("agent.in_window");
            }
            if let Err(source) = self.write_from(&directory, part) {
                return Err(self.undo(&area, &before[..=done], source));
            }
        }
        self.named(area.remove(SWITCHING).and_then(|()| area.sync()))
    }

    /// By their bytes; `None` while they are mixed or somebody else's.
    pub(super) fn current_in_place(&self) -> Result<Option<String>, InstallError> {
        self.named((|| {
            let mut live = Manifest::default();
            for part in &self.parts {
                if let Some(content) = part.live()? {
                    live.wrote(part.role, &content.bytes);
                }
            }
            let found = self.manifests()?.into_iter().find(|(_, manifest)| *manifest == live);
            Ok(found.map(|(name, _)| name))
        })())
    }

    /// Finishes what a crash cut short between two files, wherever it happened.
    pub fn recover(&self) -> Result<(), InstallError> {
        let Some(area) = self.named(self.find_area())? else { return Ok(()) };
        let Some(generation) = self.named(area.link(SWITCHING))? else { return Ok(()) };
        let whole = self.generation(&generation).ok().flatten().is_some();
        if generation.contains('/') || generation == ".." || !whole {
            return self.named(area.remove(SWITCHING));
        }
        warn!(path = %self.place.id(), generation, "files were half written when the agent was stopped: finishing");
        self.switch_in_place(&generation)
    }

    /// A link on the host is somebody else's, and so is what it points to.
    pub(super) fn refuse_linked_files(&self) -> Result<(), DirError> {
        for part in self.parts.iter().filter(|part| part.located.single) {
            match part.dir.kind(&part.located.file)? {
                Some((FileType::Symlink, _)) => return Err(DirError::LinkedFile(part.located.path())),
                // A mount of its own may be read-only where its directory is not.
                Some(_) => part.dir.check_writable(&part.located.file)?,
                None => return Err(DirError::MissingFile(part.located.path())),
            }
        }
        Ok(())
    }

    /// Does every running consumer see the very files that are written? Where its
    /// root cannot be looked at, its endpoints have to show it.
    pub fn seen_by(&self, consumers: &[Consumer]) -> Result<(), InstallError> {
        for consumer in consumers {
            for (part, path) in self.parts.iter().zip(&consumer.inside.files) {
                if !part.located.single {
                    continue;
                }
                let Some(live) = self.named(part.live())? else { continue };
                let Some(seen) = inside::content(consumer, path, pem::MAX_FILE_BYTES) else { continue };
                if !seen.is_ok_and(|seen| seen.bytes == live.bytes && seen.identity == live.identity) {
                    let (container, path) = (consumer.container.clone(), path.clone());
                    return Err(InstallError::Stale { container, path });
                }
            }
        }
        Ok(())
    }

    fn write_from(&self, generation: &Dir, part: &Part) -> Result<(), DirError> {
        let file = &part.located.file;
        let Some(content) = generation.read(&part.name, pem::MAX_FILE_BYTES)? else {
            // There was none before the agent, and there could be none if it were mounted by itself.
            return part.dir.remove(file).and_then(|()| part.dir.sync());
        };
        self.put(part, &content)
    }

    fn put(&self, part: &Part, content: &Content) -> Result<(), DirError> {
        let (file, access, modified) = (&part.located.file, self.access_of(part)?, part.later()?);
        if part.located.single {
            return part.dir.overwrite(file, &content.bytes, access, modified);
        }
        part.dir.replace(file, &content.bytes, access)?;
        part.dir.touch(file, modified)
    }

    /// A file could not be written: those before it, and what was begun of it, go back.
    fn undo(&self, area: &Dir, before: &[Option<Content>], source: DirError) -> InstallError {
        let mut back = Ok(());
        for (part, before) in self.parts.iter().zip(before).rev() {
            let there = part.live();
            let same = match (&there, before) {
                (Ok(Some(there)), Some(before)) => there.bytes == before.bytes,
                (Ok(None), None) => true,
                _ => false,
            };
            let undone = match before {
                _ if same => Ok(()),
                Some(content) => self.put(part, content),
                None => part.dir.remove(&part.located.file),
            };
            // The others are tried all the same.
            back = back.and(undone);
        }
        match back.and_then(|()| area.remove(SWITCHING)) {
            Ok(()) => InstallError::Files { path: self.place.id(), source },
            Err(undo) => {
                InstallError::Torn { path: self.place.id(), undo: crate::chain_of(&undo).to_string(), source }
            }
        }
    }
}
