//! The images that service containers of a fleet run.
//!
//! There is no registry to pull from: an image is a minimal Debian made from
//! the distribution's packages, kept as a tar file under the target directory
//! and imported into each engine. Its name carries a hash of how it was made.
//! Every fleet has the small one; the one with every program that a scenario
//! reloads is made and imported only where it is asked for.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};

use crate::process::{command, run};

/// How an image is made.
#[derive(Debug)]
pub struct Image {
    /// What containers name.
    pub name: &'static str,
    packages: &'static [&'static str],
    /// Paths of packages that are not unpacked.
    leave_out: &'static [&'static str],
}

/// What every fleet has.
pub const SERVICES: Image = Image {
    name: NAME,
    packages: &["ca-certificates", "haproxy", "nginx-light", "openssl", "procps"],
    leave_out: LEAVE_OUT,
};

/// Every program that reloads, from Debian.
pub const PROGRAMS: Image = Image {
    name: "reseal-test/programs:bookworm",
    packages: &[
        "apache2",
        "caddy",
        "dovecot-imapd",
        "dovecot-pop3d",
        "haproxy",
        "mosquitto",
        "nginx-light",
        "openssl",
        "postfix",
        "postgresql",
        "procps",
        "redis-server",
        "stunnel4",
        "tini",
    ],
    leave_out: &[
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
        // PostgreSQL does without its compiler.
        "/usr/lib/*/libLLVM*",
        "/usr/lib/llvm*",
        "/usr/lib/postgresql/*/lib/bitcode/*",
    ],
};

/// The name of [`SERVICES`].
pub const NAME: &str = "reseal-test/services:bookworm";

const SUITE: &str = "bookworm";
/// Nothing here is read by a service, and three engines unpack it.
const LEAVE_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

impl Image {
    /// The image as a tar file, made on the first call; waits while another process makes it.
    pub fn tar(&self) -> Result<PathBuf> {
        let cache = target_directory().join("fleet-cache");
        std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let recipe = format!("{SUITE}\n{:?}\n{:?}", self.packages, self.leave_out);
        let hash = hex::encode(&digest(&SHA256, recipe.as_bytes()).as_ref()[..8]);
        let tar = cache.join(format!("services-{hash}.tar"));
        if tar.exists() {
            return Ok(tar);
        }
        let lock = File::create(cache.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        if !tar.exists() {
            self.make(&tar)?;
        }
        Ok(tar)
    }

    fn make(&self, tar: &Path) -> Result<()> {
        // A name without .tar keeps a killed run's half file from being taken for the image.
        let half = tar.with_extension(format!("half-{}.tar", std::process::id()));
        let mut mmdebstrap = command("mmdebstrap", &["--quiet", "--format=tar", "--variant=minbase"]);
        mmdebstrap.arg(format!("--include={}", self.packages.join(",")));
        for pattern in self.leave_out {
            mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        mmdebstrap.arg(SUITE).arg(&half);
        let made = run(&mut mmdebstrap).with_context(|| format!("cannot make the image {}", self.name));
        if let Err(error) = made {
            let _ = std::fs::remove_file(&half);
            return Err(error);
        }
        std::fs::rename(&half, tar)?;
        Ok(())
    }
}

/// The workspace's target directory.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The root of the checkout these tests were built from.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}
