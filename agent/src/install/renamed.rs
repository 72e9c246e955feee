//! Chain and key in one file: one rename changes both.
//!
//! The file in use has a second name in its generation's directory, so the
//! generation before can come back by one rename as well, and which
//! generation is in use can be told from the inode alone.

use super::manifest::Manifest;
use super::{Files, InstallError, KEY_MODE, original};
use crate::dir::Dir;

impl Files {
    pub(super) fn stage_renamed(&self, generation: &str) -> Result<Option<String>, InstallError> {
        if let Some(current) = self.current_renamed()? {
            return Ok(Some(current));
        }
        let name = original(generation);
        self.named((|| {
            let area = self.area()?;
            let kept = area.make_sub(&name)?;
            match self.keep(&self.parts[0], &kept)? {
                Some(line) => {
                    let mut manifest = Manifest::default();
                    manifest.lines.insert(self.parts[0].role.name(), line);
                    manifest.write(&kept, self.own(KEY_MODE))?;
                    kept.sync()?;
                    Ok(Some(name))
                }
                None => {
                    area.remove_sub(&name)?;
                    Ok(None)
                }
            }
        })())
    }

    pub(super) fn switch_renamed(&self, generation: &str) -> Result<(), InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let part = &self.parts[0];
        self.named(part.dir.replace_hard_link(&part.located.file, &directory, &part.name))
    }

    /// One rename as well; a link of somebody else is that link again.
    pub(super) fn restore_renamed(&self, generation: &str, kept: &Dir) -> Result<(), InstallError> {
        let part = &self.parts[0];
        let manifest = self.named(Manifest::read(kept))?.unwrap_or_default();
        match manifest.line(part.role).and_then(|line| line.link.as_ref()) {
            Some(link) => self.named(part.dir.replace_link(&part.located.file, link)),
            None => self.switch_renamed(generation),
        }
    }

    pub(super) fn current_renamed(&self) -> Result<Option<String>, InstallError> {
        let part = &self.parts[0];
        self.named((|| {
            let Some((_, live)) = part.dir.kind(&part.located.file)? else {
                return Ok(None);
            };
            let Some(area) = self.find_area()? else {
                return Ok(None);
            };
            for name in area.names()? {
                let Some(directory) = area.sub(&name).ok().flatten() else {
                    continue;
                };
                if directory.kind(&part.name)?.is_some_and(|(_, kept)| kept == live) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        })())
    }
}
