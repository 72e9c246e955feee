//! Several files that change together: all are links through one link.
//!
//! ```text
//! site.crt -> .reseal/site/current/site.crt
//! site.key -> .reseal/site/current/site.key
//! ../private/site.key -> ../certs/.reseal/site/current/key-site.key
//! .reseal/site/current -> <generation>        (the one rename)
//! ```
//!
//! What was there is kept first, with its content and as the link it was: at no
//! moment does a path show anything else than before.

use super::manifest::{Line, Manifest};
use super::{AREA, Files, InstallError, KEY_MODE, Part, original};
use crate::dir::{Dir, DirError};
use reseal_proto::facts::sha256;

const CURRENT: &str = "current";

impl Files {
    pub(super) fn stage_linked(&self, generation: &str) -> Result<Option<String>, InstallError> {
        let ours = self.parts.iter().map(|part| self.is_ours(part)).collect::<Result<Vec<_>, _>>();
        if !self.named(ours)?.into_iter().all(|ours| ours) {
            self.named(self.convert(generation))?;
        }
        self.current_linked()
    }

    pub(super) fn switch_linked(&self, generation: &str) -> Result<(), InstallError> {
        self.named(self.area().and_then(|area| area.replace_link(CURRENT, generation)))
    }

    pub(super) fn current_linked(&self) -> Result<Option<String>, InstallError> {
        let target = self.named((|| match self.find_area()? {
            Some(area) => area.link(CURRENT),
            None => Ok(None),
        })())?;
        match target {
            Some(target) if target.contains('/') || target == ".." || target == "." => {
                Err(InstallError::Foreign { path: self.place.id(), target })
            }
            target => Ok(target),
        }
    }

    /// Links go up to the mount and down again: "up" must mean what it says.
    pub(super) fn links_stay_in_the_mount(&self) -> Result<(), DirError> {
        for part in &self.parts[1..] {
            if part.located.directory != self.place.directory && !part.dir.rises_to_the_mount()? {
                return Err(DirError::Escapes(part.located.path()));
            }
        }
        Ok(())
    }

    fn is_ours(&self, part: &Part) -> Result<bool, DirError> {
        Ok(part.dir.link(&part.located.file)?.as_deref() == Some(self.target(part).as_str()))
    }

    /// Where a part's link points, relative to its own directory.
    fn target(&self, part: &Part) -> String {
        let area = format!("{AREA}/{}/{CURRENT}/{}", self.place.stem(), part.name);
        if part.located.directory == self.place.directory {
            return area;
        }
        let depth = part.located.directory.split('/').filter(|step| !step.is_empty()).count();
        let up = "../".repeat(depth);
        match self.place.directory.as_str() {
            "" => format!("{up}{area}"),
            down => format!("{up}{down}/{area}"),
        }
    }

    /// Keeps what the paths show as a generation, makes it current, and only then
    /// replaces the paths by links to it, one by one.
    fn convert(&self, generation: &str) -> Result<(), DirError> {
        let area = self.area()?;
        let name = original(generation);
        let kept = area.make_sub(&name)?;
        // Of a conversion that was cut short: what is a link of ours by now is in it.
        let begun = Manifest::read(&kept)?.unwrap_or_default();
        let mut manifest = Manifest::default();
        for part in &self.parts {
            match begun.line(part.role) {
                Some(line) if self.is_ours(part)? => {
                    manifest.lines.insert(part.role.name(), line.clone());
                }
                Some(_) | None => {
                    if let Some(line) = self.keep(part, &kept)? {
                        manifest.lines.insert(part.role.name(), line);
                    }
                }
            }
        }
        manifest.write(&kept, self.own(KEY_MODE))?;
        kept.sync()?;
        if manifest.lines.is_empty() {
            area.remove_sub(&name)?;
            // A link to nothing shows nothing: the same as no file.
            area.remove(CURRENT)?;
        } else {
            area.replace_link(CURRENT, &name)?;
        }
        for part in self.parts.iter().rev() {
            if !self.is_ours(part)? {
                part.dir.replace_link(&part.located.file, &self.target(part))?;
            }
        }
        Ok(())
    }

    /// Gives a generation a further name of a file that is there now, or a
    /// copy where it is a link or the file system has no hard links.
    pub(super) fn keep(&self, part: &Part, to: &Dir) -> Result<Option<Line>, DirError> {
        let Some(content) = part.live()? else { return Ok(None) };
        let file = &part.located.file;
        let link = part.dir.link(file)?.filter(|_| !self.is_ours(part).unwrap_or(true));
        let regular = matches!(part.dir.kind(file)?, Some((rustix::fs::FileType::RegularFile, _)));
        if !regular || to.replace_hard_link(&part.name, &part.dir, file).is_err() {
            to.replace(&part.name, &content.bytes, content.access)?;
        }
        let link = link.filter(|link| !link.chars().any(char::is_control));
        Ok(Some(Line { digest: sha256(&content.bytes), link }))
    }

    /// The paths become the links they were. Each shows what it shows already.
    pub(super) fn restore_links(&self, kept: &Dir) -> Result<(), DirError> {
        let manifest = Manifest::read(kept)?.unwrap_or_default();
        for part in &self.parts {
            if let Some(link) = manifest.line(part.role).and_then(|line| line.link.as_ref()) {
                part.dir.replace_link(&part.located.file, link)?;
            }
        }
        Ok(())
    }
}
