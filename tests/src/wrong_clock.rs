//! A clock that is wrong, and can be set while the program runs: libfaketime.
//!
//! Only the time of day is faked. Clocks that nobody sets (monotonic, boot
//! time) go on as they do on a host whose administrator sets the date.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::machine;

/// The clock of one program.
#[derive(Debug)]
pub struct WrongClock {
    file: PathBuf,
    library: PathBuf,
}

impl WrongClock {
    /// Off by so much, such as `+30h`; kept in a file in `directory`.
    pub fn new(directory: &Path, offset: &str) -> Result<Self> {
        machine::ensure(machine::FAKETIME)?;
        let library = fs::read_dir("/usr/lib")?
            .flatten()
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.is_file())
            .context("faketime is installed without its library")?;
        let clock = Self { file: directory.join("wrong-clock"), library };
        clock.set(offset)?;
        Ok(clock)
    }

    /// Sets it, at once, in the running program too.
    pub fn set(&self, offset: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{offset}\n"))?;
        fs::rename(&new, &self.file).context("cannot set the clock")
    }

    /// What the program is started with.
    pub fn environment(&self) -> Result<Vec<(&'static str, &str)>> {
        Ok(vec![
            ("LD_PRELOAD", self.library.to_str().context("a plain path")?),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().context("a plain path")?),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ])
    }
}
