//! Two files that change together: both are links through one link.
//!
//! ```text
//! site.crt -> .reseal/site/current/site.crt
//! site.key -> .reseal/site/current/site.key
//! .reseal/site/current -> <generation>        (the one rename)
//! ```
//!
//! Flat files are converted first, with their old content: at no moment does
//! either path show anything else than before.

use super::{AREA, CERTIFICATE_MODE, Files, InstallError, original};
use crate::dir::{Access, Dir, DirError};

const CURRENT: &str = "current";

impl Files {
    pub(super) fn stage_pair(
        &self,
        generation: &str,
        directory: &Dir,
        chain: &[u8],
    ) -> Result<Option<String>, InstallError> {
        if self.pending_key(generation)?.is_none() {
            return Err(self.no_key(generation));
        }
        self.named((|| {
            let access = Access { mode: CERTIFICATE_MODE, ..self.key_access()? };
            directory.replace(&self.place.certificate, chain, access)
        })())?;
        if !self.named(self.is_ours(&self.place.certificate))?
            || !self.named(self.is_ours(&self.place.key))?
        {
            self.named(self.convert(generation))?;
        }
        self.current_pair()
    }

    pub(super) fn switch_pair(&self, generation: &str) -> Result<(), InstallError> {
        self.named(self.area().and_then(|area| area.replace_link(CURRENT, generation)))
    }

    pub(super) fn current_pair(&self) -> Result<Option<String>, InstallError> {
        let target = self.named((|| match self.dir.sub(AREA)? {
            Some(area) => match area.sub(self.place.stem())? {
                Some(stem) => stem.link(CURRENT),
                None => Ok(None),
            },
            None => Ok(None),
        })())?;
        match target {
            Some(target) if target.contains('/') || target == ".." || target == "." => {
                Err(InstallError::Foreign { path: self.place.id(), target })
            }
            target => Ok(target),
        }
    }

    fn is_ours(&self, file: &str) -> Result<bool, DirError> {
        Ok(self.dir.link(file)?.as_deref() == Some(self.target(file).as_str()))
    }

    fn target(&self, file: &str) -> String {
        format!("{AREA}/{}/{CURRENT}/{file}", self.place.stem())
    }

    /// Keeps what the two paths show as a generation, makes it current, and
    /// only then replaces the paths by links to it, one by one.
    fn convert(&self, generation: &str) -> Result<(), DirError> {
        let area = self.area()?;
        let kept = area.make_sub(&original(generation))?;
        let mut any = false;
        for file in [&self.place.certificate, &self.place.key] {
            any |= self.keep(file, &kept)?;
        }
        kept.sync()?;
        if any {
            area.replace_link(CURRENT, &original(generation))?;
        } else {
            area.remove_sub(&original(generation))?;
            // A link to nothing shows nothing: the same as no file.
            area.remove(CURRENT)?;
        }
        for file in [&self.place.key, &self.place.certificate] {
            if !self.is_ours(file)? {
                self.dir.replace_link(file, &self.target(file))?;
            }
        }
        Ok(())
    }
}
