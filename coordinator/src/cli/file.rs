//! Files the CLI writes for the operator: whole or not at all, never over another.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::exit::CliError;

/// A file that is being written beside its place; dropped, it leaves nothing behind.
pub(crate) struct NewFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    folder: PathBuf,
}

impl NewFile {
    /// Reserves the place, so that nothing is begun that could not be kept.
    pub(crate) fn reserve(path: &Path, mode: u32) -> Result<Self, CliError> {
        let next = "choose another place; an existing file is never overwritten";
        if path.exists() {
            return Err(CliError::failed(format!("{} exists already", path.display()), next));
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".reseal-")
            .permissions(std::fs::Permissions::from_mode(mode))
            .tempfile_in(folder)
            .map_err(|error| {
                CliError::failed(format!("cannot write in {}: {error}", folder.display()), next)
            })?;
        Ok(Self { file, path: path.to_owned(), folder: folder.to_owned() })
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.file.write_all(bytes).map_err(|error| unwritten(&self.path, &error))
    }

    /// Puts the file in its place, on disk when this returns.
    pub(crate) fn keep(self) -> Result<(), CliError> {
        let Self { file, path, folder } = self;
        file.as_file().sync_all().map_err(|error| unwritten(&path, &error))?;
        file.persist_noclobber(&path).map_err(|error| unwritten(&path, &error.error))?;
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| unwritten(&path, &error))
    }
}

fn unwritten(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("cannot write {}: {error}", path.display()), "nothing was left there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut file = NewFile::reserve(&path, 0o600).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let mut file = NewFile::reserve(&path, 0o600).unwrap();
        file.write(b"whole").unwrap();
        file.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(NewFile::reserve(&path, 0o600).is_err(), "never over another");
    }
}
