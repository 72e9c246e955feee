//! Chain and key in one file: one rename changes both.
//!
//! The file in use has a second name in its generation's directory, so the
//! generation before can come back by one rename as well, and which
//! generation is in use can be told from the inode alone.

use zeroize::Zeroizing;

use super::{AREA, Files, InstallError, original};
use crate::dir::Dir;
use crate::pem;

impl Files {
    pub(super) fn stage_combined(
        &self,
        generation: &str,
        directory: &Dir,
        chain: &str,
    ) -> Result<Option<String>, InstallError> {
        let key = self.pending_key(generation)?.ok_or_else(|| self.no_key(generation))?;
        let key = pem::private_key(&key);
        let mut text = Zeroizing::new(String::with_capacity(chain.len() + key.len()));
        text.push_str(chain);
        text.push_str(&key);
        let file = &self.place.certificate;
        self.named(self.key_access().and_then(|access| directory.replace(file, text.as_bytes(), access)))?;
        if let Some(current) = self.current_combined()? {
            return Ok(Some(current));
        }
        let name = original(generation);
        self.named((|| {
            let area = self.area()?;
            let kept = area.make_sub(&name)?;
            if self.keep(file, &kept)? {
                kept.sync()?;
                return Ok(Some(name));
            }
            area.remove_sub(&name)?;
            Ok(None)
        })())
    }

    pub(super) fn switch_combined(&self, generation: &str) -> Result<(), InstallError> {
        let directory = self.generation(generation)?.ok_or_else(|| self.no_key(generation))?;
        let file = &self.place.certificate;
        self.named(self.dir.replace_hard_link(file, &directory, file))
    }

    pub(super) fn current_combined(&self) -> Result<Option<String>, InstallError> {
        let file = &self.place.certificate;
        self.named((|| {
            let Some((_, live)) = self.dir.kind(file)? else {
                return Ok(None);
            };
            let Some(area) = self.dir.sub(AREA)? else {
                return Ok(None);
            };
            let Some(area) = area.sub(self.place.stem())? else {
                return Ok(None);
            };
            for name in area.names()? {
                let Some(directory) = area.sub(&name).ok().flatten() else {
                    continue;
                };
                if directory.kind(file)?.is_some_and(|(_, kept)| kept == live) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        })())
    }
}
