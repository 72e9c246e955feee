//! The processes of a container as the kernel shows them.
//!
//! PID 1, and what runs behind it where it is a shell or an init. Reads
//! `/proc` (proc(5)) and nothing else; bounded in depth and number, because a
//! container decides how many processes it has. Whether a process may be
//! signalled is decided in [`crate::reload`], on a fresh look.

use std::time::Duration;

use reseal_proto::facts::printable;

use super::methods::Signal;
use super::programs::wrappers;

/// A shell in an init in a supervisor is deep enough.
const MAX_DEPTH: usize = 4;
/// Behind one PID 1.
const MAX_PROCESSES: usize = 64;
/// Of the kernel's times in `/proc`, on every architecture that Docker runs on.
const USER_HZ: f64 = 100.0;
/// Of a command line.
const MAX_WORDS: usize = 256;

/// A process behind PID 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// In the host's PID namespace.
    pub pid: i32,
    /// The process that started it, likewise.
    pub parent: i32,
    /// Its command line.
    pub words: Vec<String>,
}

/// Words of a process's command line; empty when it cannot be seen.
pub fn words(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .take(MAX_WORDS)
        .map(|word| printable(&String::from_utf8_lossy(word)))
        .collect()
}

/// What runs behind a PID 1 that is a shell or an init: its children, and theirs where
/// they are shells, too. Empty for every other PID 1.
pub fn behind(pid: i32, first: &[String]) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut open = vec![(pid, first.to_vec(), 0)];
    while let Some((parent, its_words, depth)) = open.pop() {
        if depth >= MAX_DEPTH || wrappers::of(&its_words).is_none() {
            continue;
        }
        for pid in children(parent) {
            if found.len() >= MAX_PROCESSES {
                return found;
            }
            let words = words(pid);
            open.push((pid, words.clone(), depth + 1));
            found.push(Process { pid, parent, words });
        }
    }
    found
}

/// Does it catch the signal? `None`: the process cannot be seen.
pub fn catches(pid: i32, signal: Signal) -> std::io::Result<bool> {
    std::fs::read_to_string(format!("/proc/{pid}/status")).map(|status| caught(&status, signal))
}

/// How long ago it was started.
pub fn age(pid: i32) -> Option<Duration> {
    let up = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = up.split_whitespace().next()?.parse().ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have blanks; start time is field 22.
    let started: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_secs_f64((up - started / USER_HZ).max(0.0)))
}

/// The process that started it.
pub fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Is it one of this container's? Docker puts the container's id into the path of its
/// control group, in version 1 and 2 and with either driver (cgroups(7)).
pub fn belongs(pid: i32, container_id: &str) -> std::io::Result<bool> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(in_group(&groups, container_id))
}

fn in_group(groups: &str, container_id: &str) -> bool {
    // Anything shorter than an id could be part of another word.
    container_id.len() == 64 && groups.lines().any(|line| line.contains(container_id))
}

/// SigCgt of `/proc/<pid>/status`: bit n-1 is signal n.
fn caught(status: &str, signal: Signal) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal.number() - 1)) != 0)
}

/// Of all its threads: each lists those that it started.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads.flatten().take(MAX_PROCESSES).filter_map(|thread| {
        let list = std::fs::read_to_string(thread.path().join("children")).ok()?;
        Some(list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
    });
    let mut all: Vec<i32> = lists.flatten().collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_which_signals_are_caught() {
        let status = "Name:\tnginx\nSigCgt:\t0000000000000201\n";
        assert!(caught(status, Signal::Hup));
        assert!(caught(status, Signal::Usr1));
        assert!(!caught(status, Signal::Usr2));
        assert!(!caught("Name: x\n", Signal::Hup));
        assert!(!caught("SigCgt:\tzz\n", Signal::Hup));
    }

    #[test]
    fn a_container_is_told_by_its_whole_id() {
        let id = "a".repeat(64);
        for groups in [
            format!("12:cpu:/\n1:name=systemd:/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/../../docker/{id}/init.scope\n"),
        ] {
            assert!(in_group(&groups, &id), "{groups}");
        }
        assert!(!in_group(&format!("0::/docker/{}\n", "b".repeat(64)), &id));
        assert!(!in_group(&format!("0::/docker/{id}\n"), "aaaa"));
        assert!(!in_group("0::/\n", ""));
    }

    #[test]
    fn a_real_shell_is_looked_through() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60; true"]).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            let found = behind(pid, &words(pid));
            if found.iter().any(|one| one.words == ["sleep", "60"]) {
                break found;
            }
            assert!(std::time::Instant::now() < deadline, "{found:?}");
            std::thread::yield_now();
        };
        assert_eq!(found.len(), 1);
        assert_eq!(parent(found[0].pid), Some(pid));
        assert!(!catches(found[0].pid, Signal::Hup).unwrap());
        assert!(age(found[0].pid).unwrap() < Duration::from_secs(60));
        assert!(age(1).unwrap() >= age(found[0].pid).unwrap());
        assert!(!belongs(found[0].pid, &"0".repeat(64)).unwrap());
        // What is no shell is not looked behind.
        assert_eq!(behind(pid, &["nginx".into()]), []);
        let sleep = rustix::process::Pid::from_raw(found[0].pid).unwrap();
        rustix::process::kill_process(sleep, rustix::process::Signal::KILL).unwrap();
        shell.kill().ok();
        shell.wait().unwrap();
    }
}
