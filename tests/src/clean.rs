//! Takes down what is left of a fleet, however its owner ended.
//!
//! A process belongs to a fleet when it runs one of a fleet's programs and is
//! either in one of its network namespaces or names its directory in its
//! command line. Nothing else is touched: not a shell somebody opened there,
//! not a fleet whose owner is alive.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::engine::remove_containers;
use crate::fleet::{ROOT, State, directory};
use crate::network::Network;
use crate::process::{alive, command, run, signal, start_time, wait_quietly};

/// Names (cut to 15 characters, as the kernel keeps them) of programs a fleet starts.
const PROGRAMS: &[&str] = &[
    "dockerd",
    "containerd",
    "containerd-shim",
    "docker-proxy",
    "fuse-overlayfs",
    "nsenter",
    "setsid",
    "reseal",
    "reseal-agent",
    "tcpdump",
    "strace",
];

/// How long a directory without a state file may be one that is being made.
const YOUNG: Duration = Duration::from_secs(60);

/// Which fleets to take down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose owner has died without cleaning up.
    Abandoned,
    /// Those, and the ones that were kept on purpose.
    AbandonedAndKept,
}

/// Takes fleets down; returns their numbers.
pub fn leftovers(which: Which) -> Result<Vec<u8>> {
    let mut gone = Vec::new();
    for number in numbers() {
        if wanted(number, which) {
            take_down(number).with_context(|| format!("cannot take fleet {number} down"))?;
            gone.push(number);
        }
    }
    Ok(gone)
}

fn numbers() -> Vec<u8> {
    let mut numbers: Vec<u8> = fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn wanted(number: u8, which: Which) -> bool {
    let directory = directory(number);
    let state = fs::read(directory.join("state.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<State>(&text).ok());
    let Some(state) = state else {
        let made = fs::metadata(&directory).and_then(|data| data.modified());
        let age = made.map(|made| SystemTime::now().duration_since(made).unwrap_or_default());
        return age.is_ok_and(|age| age > YOUNG);
    };
    let alive = start_time(state.owner) == Some(state.owner_started);
    match (state.kept, which) {
        (true, Which::Abandoned) => false,
        (true, Which::AbandonedAndKept) => true,
        (false, _) => !alive,
    }
}

/// Takes one fleet down: containers, processes, mounts, network, directory.
pub fn take_down(number: u8) -> Result<()> {
    let (network, directory) = (Network { number }, directory(number));
    for host in subdirectories(&directory) {
        let socket = host.join("engine/docker.sock");
        if socket.exists() {
            remove_containers(&socket);
        }
    }
    end_processes(network, &directory)?;
    unmount(&directory)?;
    network.remove()?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn end_processes(network: Network, directory: &Path) -> Result<()> {
    // Not the shims: they would go and leave their containers running.
    let is_shim = |pid: u32| program(pid).as_deref() == Some("containerd-shim");
    for pid in processes(network, directory) {
        if !is_shim(pid) {
            signal(pid, Signal::TERM);
        }
    }
    wait_quietly(Duration::from_secs(10), || {
        // Without an engine that answers, these stay until they are killed below.
        processes(network, directory)
            .into_iter()
            .all(|pid| matches!(program(pid).as_deref(), Some("containerd-shim" | "fuse-overlayfs") | None))
    });
    let mut containers = Vec::new();
    let ended = wait_quietly(Duration::from_secs(10), || {
        let left = processes(network, directory);
        for pid in &left {
            // A shim that dies leaves its container running, or a zombie in its control
            // groups: first the container, and the shim when it has reaped it.
            let mut inside = Vec::new();
            if is_shim(*pid) {
                inside = children(*pid);
                containers.extend(container_of(*pid));
            }
            for child in &inside {
                signal(*child, Signal::KILL);
            }
            if inside.is_empty() {
                signal(*pid, Signal::KILL);
            }
        }
        left.is_empty()
    });
    remove_cgroups(&containers);
    if !ended {
        bail!("processes {:?} do not end", processes(network, directory));
    }
    Ok(())
}

/// The living processes of a fleet.
pub fn processes(network: Network, directory: &Path) -> Vec<u32> {
    let namespaces: Vec<u64> = network
        .namespaces()
        .iter()
        .filter_map(|name| fs::metadata(Path::new("/run/netns").join(name)).ok())
        .map(|data| data.ino())
        .collect();
    let marker = format!("{}/", directory.display());
    all_processes()
        .into_iter()
        .filter(|pid| *pid != std::process::id() && alive(*pid))
        .filter(|pid| program(*pid).is_some_and(|name| PROGRAMS.contains(&name.as_str())))
        .filter(|pid| {
            let inode = fs::metadata(format!("/proc/{pid}/ns/net")).map(|data| data.ino());
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            inode.is_ok_and(|inode| namespaces.contains(&inode))
                || String::from_utf8_lossy(&line).contains(&marker)
        })
        .collect()
}

fn program(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// Not every kernel lists a process's children: found by asking each for its parent.
fn children(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    all_processes()
        .into_iter()
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            after_name.split_whitespace().nth(1) == Some(&parent)
        })
        .collect()
}

fn all_processes() -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The container a shim looks after, from its command line: `... -id ID ...`.
fn container_of(pid: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    words.find(|word| *word == b"-id")?;
    String::from_utf8(words.next()?.to_vec()).ok()
}

/// Docker removes a container's control groups; one that was killed from below keeps them.
fn remove_cgroups(containers: &[String]) {
    let controllers = subdirectories(Path::new("/sys/fs/cgroup"));
    for container in containers {
        for parent in &controllers {
            let _ = fs::remove_dir(parent.join("docker").join(container));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup/docker").join(container));
    }
}

fn unmount(directory: &Path) -> Result<()> {
    let mut left = mounts_below(directory)?;
    // Deepest first; lazily, since a dying process may still hold one for a moment.
    left.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in left {
        let _ = run(command("umount", &["--lazy"]).arg(path));
    }
    match mounts_below(directory)?.first() {
        None => Ok(()),
        Some(path) => bail!("cannot unmount {}", path.display()),
    }
}

/// What is mounted below a directory.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // The table writes a blank as \040; a fleet's own paths have none.
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory))
        .collect())
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}
