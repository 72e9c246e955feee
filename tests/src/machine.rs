//! What the machine must have: root, a few Debian programs, Docker's daemon.
//!
//! What is missing is installed from the distribution's packages without a
//! question; where that cannot be done, the error is the command a person
//! would type. Nothing that is already there is changed.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{command, run};

/// A program, and the packages that may bring it (the first that exists is taken).
pub type Need = (&'static str, &'static [&'static str]);

/// What a fleet needs.
pub const FLEET: &[Need] = &[
    ("ip", &["iproute2"]),
    ("iptables", &["iptables"]),
    ("nsenter", &["util-linux"]),
    ("setsid", &["util-linux"]),
    ("timeout", &["coreutils"]),
    ("openssl", &["openssl"]),
    ("mmdebstrap", &["mmdebstrap"]),
    ("dockerd", &["docker.io"]),
    ("docker", &["docker-cli", "docker.io"]),
];

/// For scenarios that watch system calls.
pub const STRACE: &[Need] = &[("strace", &["strace"])];

/// For scenarios that capture and decrypt traffic.
pub const CAPTURE: &[Need] = &[("tcpdump", &["tcpdump"]), ("tshark", &["tshark"])];

/// For scenarios with a service on the host itself.
pub const NGINX: &[Need] = &[("nginx", &["nginx-light", "nginx"])];

/// For scenarios with a clock that is wrong.
pub const CLOCK: &[Need] = &[("faketime", &["faketime"])];

/// For scenarios with a small disk of their own.
pub const DISK: &[Need] = &[("mkfs.ext4", &["e2fsprogs"]), ("mount", &["mount"])];

/// Fails unless this process is root.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::args().next().unwrap_or_default();
    bail!("network namespaces and Docker daemons need root; run it again as: sudo {program}")
}

/// Installs the packages whose programs are missing.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut wanted = Vec::new();
    for (program, packages) in needs.iter().filter(|(program, _)| !has(program)) {
        match packages.iter().find(|package| known(package)) {
            Some(package) => wanted.push(*package),
            None => wanted.push(packages.last().unwrap_or(program)),
        }
    }
    // mmdebstrap checks Debian's signatures; Ubuntu does not bring the keys.
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if needs.iter().any(|(program, _)| *program == "mmdebstrap") && !Path::new(keyring).exists() {
        wanted.push("debian-archive-keyring");
    }
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install {}", wanted.join(" "));
    if !has("apt-get") {
        bail!("this machine lacks {}; on Debian: {by_hand}", wanted.join(", "));
    }
    eprintln!("installing from the distribution: {}", wanted.join(" "));
    let install = |wanted: &[&str]| {
        run(command("apt-get", &["install", "--yes", "--no-install-recommends"])
            .args(wanted)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install(&wanted).is_err() {
        // A fresh machine has no package lists yet.
        let _ = run(&mut command("apt-get", &["update"]));
        if let Err(error) = install(&wanted) {
            bail!("{error}\nrun by hand: apt-get update && {by_hand}");
        }
    }
    match needs.iter().find(|(program, _)| !has(program)) {
        Some((program, _)) => bail!("{program} is still missing after: {by_hand}"),
        None => Ok(()),
    }
}

/// The storage driver that works on this machine: the running engine's, or what
/// its configuration says; `None` leaves the choice to `dockerd`.
pub fn storage_driver() -> Option<String> {
    let running = docker_info();
    let configured = || {
        let text = std::fs::read_to_string("/etc/docker/daemon.json").ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(value.get("storage-driver")?.as_str()?.to_owned())
    };
    // A driver of containerd's image store is no name for the classic setting.
    running.filter(|driver| !driver.is_empty() && driver != "overlayfs").or_else(configured)
}

fn docker_info() -> Option<String> {
    let format = ["20", "docker", "info", "--format", "{{.Driver}}"];
    let output = run(&mut command("timeout", &format)).ok()?;
    Some(output.trim().to_owned())
}

fn known(package: &str) -> bool {
    run(&mut command("apt-cache", &["show", "--no-all-versions", package])).is_ok()
}

/// Is there such a program on the path, or where root's programs are?
pub fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .any(|directory| Path::new(directory).join(program).is_file())
}

/// A command that looks for programs where root's are, too.
pub fn with_path(command: &mut Command) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
}
