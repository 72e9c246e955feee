//! A clock that is wrong, and that can jump while programs run.
//!
//! libfaketime stands between a program and the C library; how far it is off is
//! in a file that every call reads. Only the clock of the day is off, as on a real
//! machine: monotonic time runs on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::machine;
use crate::process::{command, run};

/// A clock for the programs that are started with [`Clock::environment`].
#[derive(Debug)]
pub struct Clock {
    offset: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Clock {
    /// A clock that is right, until it is set; its file lies in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        machine::ensure(machine::CLOCK)?;
        let library = library().context("the package libfaketime has no library that is known")?;
        let offset = directory.join("clock");
        let environment = vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        let clock = Self { offset, environment };
        clock.set(0)?;
        Ok(clock)
    }

    /// Puts it this many seconds ahead; a negative number puts it back. At once, for all who use it.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // A rename: nobody may read half a number.
        let half = self.offset.with_extension("half");
        std::fs::write(&half, format!("{seconds:+}s\n"))?;
        Ok(std::fs::rename(half, &self.offset)?)
    }

    /// For a program that is to use it.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    /// Fails unless a program is really shown the clock.
    pub fn check(&self) -> Result<()> {
        let said = run(command("date", &["+%s"]).envs(self.environment()))?;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let off = std::fs::read_to_string(&self.offset)?;
        let wanted: i64 = off.trim().trim_end_matches('s').parse()?;
        let shown = said.trim().parse::<i64>()? - i64::try_from(now)?;
        ensure!((shown - wanted).abs() < 60, "the clock is {shown} s off instead of {wanted}");
        Ok(())
    }
}

/// Debian keeps it in a directory named after the machine's kind; the one for programs with threads.
fn library() -> Option<PathBuf> {
    let kinds = std::fs::read_dir("/usr/lib").ok()?;
    kinds.flatten().map(|kind| kind.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}
