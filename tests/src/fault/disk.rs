//! A small disk of its own: a file system in a file, which fills up or fails.
//!
//! ext4 on a loop device, so that it can be made read-only under a running
//! program, as the kernel does when a disk fails.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::machine;
use crate::process::{command, run};

/// A mounted disk; unmounted and removed with the value. Programs that use it must end first.
#[derive(Debug)]
pub struct Disk {
    home: TempDir,
}

impl Disk {
    /// Makes one of this many MiB, empty.
    pub fn new(mebibytes: u64) -> Result<Self> {
        machine::require_root()?;
        machine::ensure(machine::DISK)?;
        let disk = Self { home: tempfile::tempdir()? };
        File::create(disk.image())?.set_len(mebibytes << 20)?;
        run(command("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"]).arg(disk.image()))
            .context("cannot make a file system")?;
        std::fs::create_dir(disk.path())?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// Takes all room there is, but for this many MiB.
    pub fn fill(&self, but_mebibytes: u64) -> Result<()> {
        let mut filler = File::create(self.filler())?;
        let block = vec![1; 1 << 20];
        loop {
            match filler.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
        let size = filler.metadata()?.len();
        filler.set_len(size.saturating_sub(but_mebibytes << 20))?;
        Ok(filler.sync_all()?)
    }

    /// Gives the room back.
    pub fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    /// The kernel finds an error on it and allows no more writing, whoever has files open.
    pub fn fail(&self) -> Result<()> {
        run(command("mount", &["-o", "remount,abort"]).arg(self.path())).map(drop)?;
        match File::create(self.filler()) {
            Ok(_) => bail!("the disk can still be written"),
            Err(_) => Ok(()),
        }
    }

    /// Somebody repairs it: checked, and mounted again. Programs that use it must end first.
    pub fn repair(&self) -> Result<()> {
        self.unmount()?;
        let status = command("e2fsck", &["-f", "-y"]).arg(self.image()).output()?.status;
        // 1: errors were found and mended.
        if !matches!(status.code(), Some(0 | 1)) {
            bail!("e2fsck could not repair the disk: {status}");
        }
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        let mut mount = command("mount", &["-o", "loop,errors=remount-ro"]);
        run(mount.arg(self.image()).arg(self.path())).map(drop).context("cannot mount a small disk")
    }

    fn unmount(&self) -> Result<()> {
        run(command("umount", &[]).arg(self.path())).map(drop)
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    fn filler(&self) -> PathBuf {
        Path::new(&self.path()).join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = run(command("umount", &["--lazy"]).arg(self.path()));
        }
    }
}
