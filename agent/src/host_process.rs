//! Processes of the host itself: which one is meant, and how it reloads.
//!
//! Found by its systemd unit (the control group tells) or by a pid file that
//! only root can write. A signal goes to a process that catches it, held by a
//! pidfd and looked for again before it is sent; a command runs on the host as
//! the agent's user. Both only ever come from the agent's own configuration.
//! Called by discovery (to look) and by [`crate::reload`].

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reseal_proto::v1::Finding;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt as _;

use crate::discover::declared::HostProcess;
use crate::discover::output::{self, Output};
use crate::discover::processes::{catches, parent, words};
use crate::discover::{Command, Container, Signal, finding};

/// What a command may take before it is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// A pid file is not larger, bytes.
const PID_BYTES: u64 = 64;

/// A process of the host cannot be found or was not reloaded.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It does not run.
    #[error("{0} does not run")]
    Gone(String),
    /// The pid file cannot be trusted.
    #[error(
        "pid file {path} is not believed: {why}; say unit instead, or have the file written by root into a directory of root"
    )]
    PidFile {
        /// On the host.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Several processes could be meant.
    #[error("unit {unit} has {number} processes that none of the others started; say pid-file instead")]
    Several {
        /// The unit.
        unit: String,
        /// How many.
        number: usize,
    },
    /// Nobody says who gets the signal.
    #[error("no unit and no pid-file is declared, so there is nobody to send a signal to")]
    Unnamed,
    /// It does not catch the signal.
    #[error("process {pid} of {process} does not catch SIG{signal}, so it was not sent")]
    NotCaught {
        /// In words.
        process: String,
        /// Its number.
        pid: i32,
        /// Without `SIG`.
        signal: &'static str,
    },
    /// The kernel refuses.
    #[error("cannot {operation} of {process}; the agent needs the host's PID namespace and CAP_KILL")]
    Process {
        /// "signal process 7" ...
        operation: String,
        /// In words.
        process: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This agent sees the host under another root.
    #[error("`{command}` was not run: an agent in a container cannot run commands on the host")]
    Away {
        /// As the table of programs has it.
        command: String,
    },
    /// A command cannot be started.
    #[error("cannot run `{command}` on the host")]
    Start {
        /// As declared.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("`{command}` on the host ended with {status}: {output}")]
    Command {
        /// As declared.
        command: String,
        /// Exit status, or the signal that ended it.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// It did not end.
    #[error("`{command}` on the host did not end within 30 seconds and was killed")]
    Timeout {
        /// As declared.
        command: String,
    },
}

impl HostError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Gone(_) => "consumer-stopped",
            Self::PidFile { .. } | Self::Several { .. } | Self::Unnamed => "process-unknown",
            Self::NotCaught { .. } => "signal-not-caught",
            Self::Process { .. } => "process-invisible",
            Self::Away { .. } | Self::Start { .. } | Self::Command { .. } | Self::Timeout { .. } => {
                "exec-failed"
            }
        }
    }
}

/// Fills in what runs now; a finding where that cannot be told.
pub fn look(container: &mut Container, host_root: &Path) -> Option<Finding> {
    let process = container.host.clone()?;
    match find(&process, host_root) {
        Ok(pid) => {
            container.running = true;
            container.pid = pid;
            container.process = words(pid);
            None
        }
        // Nobody says which it is: it is taken to run.
        Err(HostError::Unnamed) => {
            container.running = true;
            None
        }
        Err(HostError::Gone(_)) => None,
        Err(error) => {
            let message = crate::chain_of(&error).to_string();
            Some(finding("process-unknown", &container.name, &message, "warning"))
        }
    }
}

/// The process's number, now.
pub fn find(process: &HostProcess, host_root: &Path) -> Result<i32, HostError> {
    match process {
        HostProcess::Unit(unit) => main_process(unit, host_root),
        HostProcess::PidFile(path) => by_pid_file(path, host_root),
        HostProcess::Unnamed => Err(HostError::Unnamed),
    }
}

fn by_pid_file(path: &str, host_root: &Path) -> Result<i32, HostError> {
    let doubt = |why: String| HostError::PidFile { path: path.to_owned(), why };
    let on_host = host_root.join(path.trim_start_matches('/'));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(&on_host, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Err(HostError::Gone(format!("host:{path}"))),
        Err(errno) => return Err(doubt(io::Error::from(errno).to_string())),
    };
    let metadata = file.metadata().map_err(|error| doubt(error.to_string()))?;
    let foreign = |owner: u32| owner != 0 && owner != rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(doubt("it is no regular file".to_owned()));
    }
    // Whoever can write it could have any process of the host signalled.
    if foreign(metadata.uid()) || metadata.mode() & 0o022 != 0 {
        return Err(doubt("others than root can write it".to_owned()));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, PID_BYTES), &mut text)
        .map_err(|error| doubt(error.to_string()))?;
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| doubt("there is no process number in it".to_owned()))?;
    match parent(pid) {
        Some(_) => Ok(pid),
        None => Err(HostError::Gone(format!("host:{path}"))),
    }
}

/// The process of the unit's control group that no other of the group started.
fn main_process(unit: &str, host_root: &Path) -> Result<i32, HostError> {
    let lists = groups(unit).into_iter().map(|group| host_root.join(group));
    let text = lists.filter_map(|list| std::fs::read_to_string(list).ok()).find(|text| !text.is_empty());
    let text = text.ok_or_else(|| HostError::Gone(format!("host:{unit}")))?;
    let members: Vec<i32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let first: Vec<i32> = members
        .iter()
        .copied()
        .filter(|pid| parent(*pid).is_some_and(|parent| !members.contains(&parent)))
        .collect();
    match first.as_slice() {
        [] => Err(HostError::Gone(format!("host:{unit}"))),
        [pid] => Ok(*pid),
        several => Err(HostError::Several { unit: unit.to_owned(), number: several.len() }),
    }
}

/// Where the members of a unit's group are listed: control groups version 2, then 1
/// (systemd.unit(5): an instance of a template lies in a slice of the template).
fn groups(unit: &str) -> Vec<PathBuf> {
    let mut below = vec![format!("system.slice/{unit}")];
    if let Some((template, _)) = unit.split_once('@') {
        let slice = template.replace('-', "\\x2d");
        below.push(format!("system.slice/system-{slice}.slice/{unit}"));
    }
    let roots = ["sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/systemd"];
    let all = roots.iter().flat_map(|root| below.iter().map(move |below| (root, below)));
    all.map(|(root, below)| PathBuf::from(root).join(below).join("cgroup.procs")).collect()
}

/// Signals it, if it catches the signal. The process is held before it is looked
/// for again, so that a number that was given to another one meanwhile is never signalled.
pub fn signal(process: &HostProcess, signal: Signal, host_root: &Path) -> Result<(), HostError> {
    let pid = find(process, host_root)?;
    let gone = || HostError::Gone(process.to_string());
    let failed = |source: io::Error| HostError::Process {
        operation: format!("signal process {pid}"),
        process: process.to_string(),
        source,
    };
    let held = match pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty()) {
        Ok(held) => held,
        Err(rustix::io::Errno::SRCH) => return Err(gone()),
        Err(errno) => return Err(failed(errno.into())),
    };
    if !catches(pid, signal).map_err(failed)? {
        return Err(HostError::NotCaught { process: process.to_string(), pid, signal: signal.name() });
    }
    if find(process, host_root)? != pid {
        return Err(gone());
    }
    match pidfd_send_signal(&held, signal.of_process()) {
        Err(rustix::io::Errno::SRCH) => Err(gone()),
        sent => sent.map_err(|errno| failed(errno.into())),
    }
}

/// Runs a command on the host: no shell, no input, an environment of its own.
pub async fn run(command: &Command) -> Result<(), HostError> {
    let text = command.to_string();
    let start = |source| HostError::Start { command: text.clone(), source };
    let (program, arguments) =
        command.0.split_first().ok_or_else(|| start(io::Error::other("the command is empty")))?;
    let (theirs, mut ours) = tokio::net::unix::pipe::pipe().map_err(start)?;
    let written = theirs.into_blocking_fd().map_err(start)?;
    let twice = written.try_clone().map_err(start)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(written)
        .stderr(twice)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut kept = Output::default();
    let wait = async {
        let mut chunk = [0; 4096];
        let mut open = true;
        loop {
            tokio::select! {
                // What it started may keep the pipe open for ever.
                ended = child.wait() => break ended,
                read = ours.read(&mut chunk), if open => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(bytes) => kept.take(&chunk[..bytes]),
                },
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, wait).await;
    let status = match ended {
        Err(_) => return Err(HostError::Timeout { command: text }),
        Ok(status) => status.map_err(start)?,
    };
    if status.success() {
        return Ok(());
    }
    let mut rest = [0; output::KEPT];
    while let Ok(bytes @ 1..) = ours.try_read(&mut rest) {
        kept.take(&rest[..bytes]);
    }
    Err(HostError::Command { command: text, status: status.to_string(), output: kept.line() })
}

#[cfg(test)]
#[path = "host_process_tests.rs"]
mod tests;
