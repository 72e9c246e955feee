//! Makes consumers read their files again: signal, exec or, last, restart.
//!
//! Before a signal it is checked that PID 1 catches it: a signal nobody
//! catches kills the program or does nothing. Before any reload the program's
//! own configuration check runs, where one is known. A container that does not
//! run is never started. One reload at a time per container, so that two
//! certificates of one program do not disturb each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reseal_proto::v1::ReloadProof;
use tracing::info;

use crate::config::Signals;
use crate::discover::docker::{DockerError, Engine};
use crate::discover::{Command, Consumer, Reload, Signal};

/// A consumer could not be reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The program refuses its configuration.
    #[error(
        "container {container} refuses its configuration, so it was not reloaded: `{check}` ended with {status}: {output}"
    )]
    Check {
        /// Its name.
        container: String,
        /// The check.
        check: String,
        /// Exit status.
        status: i64,
        /// The end of what it wrote.
        output: String,
    },
    /// PID 1 does not catch the signal.
    #[error(
        "PID 1 of container {container} does not catch SIG{signal}, so it was not sent; a shell or init in front may hide the program: declare another reload method"
    )]
    NotCaught {
        /// Its name.
        container: String,
        /// Without `SIG`.
        signal: &'static str,
    },
    /// `/proc` does not show the process.
    #[error(
        "cannot signal process {pid} of container {container}; the agent needs the host's PID namespace and CAP_KILL"
    )]
    Invisible {
        /// Its name.
        container: String,
        /// In the host's PID namespace.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The declared command failed.
    #[error("`{command}` in container {container} ended with {status}: {output}")]
    Exec {
        /// Its name.
        container: String,
        /// As declared.
        command: String,
        /// Exit status.
        status: i64,
        /// The end of what it wrote.
        output: String,
    },
    /// It ended, or was made anew, before anything was sent to it.
    #[error("container {container} stopped before it could be reloaded")]
    Stopped {
        /// Its name.
        container: String,
    },
    /// The engine refused.
    #[error("cannot reload container {container}")]
    Docker {
        /// Its name.
        container: String,
        /// What failed.
        #[source]
        source: DockerError,
    },
}

impl ReloadError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Check { .. } => "check-refused",
            Self::NotCaught { .. } => "signal-not-caught",
            Self::Invisible { .. } => "process-invisible",
            Self::Exec { .. } => "exec-failed",
            Self::Stopped { .. } => "consumer-stopped",
            Self::Docker { .. } => "docker-failed",
        }
    }
}

/// A command whose status is above this was ended by a signal: maybe with its whole
/// container, and the engine needs a moment to say that it runs no more.
const KILLED: i64 = 128;
/// How often and how soon it is asked again.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Reloads; holds one lock per container.
#[derive(Debug, Default)]
pub struct Reloader {
    signals: Signals,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Reloader {
    /// Signals the way the settings say.
    pub fn new(signals: Signals) -> Self {
        Self { signals, locks: Mutex::default() }
    }

    /// Reloads every consumer that runs: gentle methods first, restarts one at
    /// a time and last. The first failure ends it; what was done comes back
    /// with it.
    pub async fn reload(
        &self,
        engine: &Engine,
        consumers: &[Consumer],
    ) -> (Vec<ReloadProof>, Result<(), ReloadError>) {
        let mut order: Vec<&Consumer> = consumers.iter().filter(|c| c.running).collect();
        order.sort_by_key(|consumer| consumer.reload == Reload::Restart);
        let mut proofs = Vec::new();
        for consumer in order {
            let lock = self.lock(&consumer.container);
            let _held = lock.lock().await;
            match one(engine, self.signals, consumer).await {
                Ok(Some(proof)) => proofs.push(proof),
                Ok(None) => {}
                Err(error) => return (proofs, Err(error)),
            }
        }
        (proofs, Ok(()))
    }

    fn lock(&self, container: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().expect("no panic while held");
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(container.to_owned()).or_default().clone()
    }
}

async fn one(
    engine: &Engine,
    signals: Signals,
    consumer: &Consumer,
) -> Result<Option<ReloadProof>, ReloadError> {
    let container = consumer.container.as_str();
    let docker = |source| ReloadError::Docker { container: container.to_owned(), source };
    if let Some(check) = &consumer.check
        && let Err(error) = run_check(engine, consumer, check).await
    {
        // What was stopped in the middle of its check has not refused anything.
        let looks =
            if matches!(error, ReloadError::Check { status, .. } if status > KILLED) { LOOKS } else { 1 };
        for look in 0..looks {
            if look > 0 {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            running(engine, consumer).await?;
        }
        return Err(error);
    }
    if consumer.reload == Reload::None {
        return Ok(None);
    }
    // A command needs a running container, and a restart would start a stopped one.
    let pid = running(engine, consumer).await?;
    match &consumer.reload {
        Reload::None => return Ok(None),
        Reload::Signal(signal) => {
            send(engine, signals, consumer, *signal, pid).await?;
        }
        Reload::Exec(command) => {
            let ended = engine.exec(&consumer.container_id, command).await.map_err(docker)?;
            if ended.status != 0 {
                return Err(ReloadError::Exec {
                    container: container.to_owned(),
                    command: command.to_string(),
                    status: ended.status,
                    output: ended.output,
                });
            }
        }
        Reload::Restart => engine.restart(&consumer.container_id).await.map_err(docker)?,
    }
    info!(container, method = %consumer.reload, "reloaded");
    Ok(Some(ReloadProof {
        container: container.to_owned(),
        container_id: consumer.container_id.clone(),
        method: consumer.reload.to_string(),
        at: crate::app::now(),
    }))
}

/// Its process, if it still runs.
async fn running(engine: &Engine, consumer: &Consumer) -> Result<i32, ReloadError> {
    let container = || consumer.container.clone();
    let seen = engine
        .container(&consumer.container_id)
        .await
        .map_err(|source| ReloadError::Docker { container: container(), source })?;
    match seen {
        Some(seen) if seen.running && seen.pid > 0 => Ok(seen.pid),
        Some(_) | None => Err(ReloadError::Stopped { container: container() }),
    }
}

/// Signals PID 1, if it catches the signal. The process is held by a pidfd before
/// the container is looked at again, so that a number that was given to another
/// process meanwhile is never signalled.
async fn send(
    engine: &Engine,
    signals: Signals,
    consumer: &Consumer,
    signal: Signal,
    pid: i32,
) -> Result<(), ReloadError> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
    let container = || consumer.container.clone();
    let docker = |source| ReloadError::Docker { container: container(), source };
    let invisible = |source| ReloadError::Invisible { container: container(), pid, source };
    let stopped = || ReloadError::Stopped { container: container() };
    let process = Pid::from_raw(pid).ok_or_else(stopped)?;
    let held = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(held) => held,
        // It ended just now, or this agent is in another PID namespace.
        Err(error) => {
            running(engine, consumer).await?;
            return Err(invisible(error.into()));
        }
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(invisible)?;
    if !catches(&status, signal) {
        return Err(ReloadError::NotCaught { container: container(), signal: signal.name() });
    }
    match signals {
        Signals::Engine => engine.signal(&consumer.container_id, signal).await.map_err(docker),
        Signals::Process => {
            // Still the same one: what is held is PID 1 of this container.
            if running(engine, consumer).await? != pid {
                return Err(stopped());
            }
            match pidfd_send_signal(&held, signal.of_process()) {
                Err(rustix::io::Errno::SRCH) => Err(stopped()),
                sent => sent.map_err(|error| invisible(error.into())),
            }
        }
    }
}

async fn run_check(engine: &Engine, consumer: &Consumer, check: &Command) -> Result<(), ReloadError> {
    let ended = engine
        .exec(&consumer.container_id, check)
        .await
        .map_err(|source| ReloadError::Docker { container: consumer.container.clone(), source })?;
    if ended.status == 0 {
        return Ok(());
    }
    Err(ReloadError::Check {
        container: consumer.container.clone(),
        check: check.to_string(),
        status: ended.status,
        output: ended.output,
    })
}

/// Reads SigCgt of `/proc/<pid>/status` (proc(5)): bit n-1 is signal n.
fn catches(status: &str, signal: Signal) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal.number() - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_which_signals_are_caught() {
        let status = "Name:\tnginx\nSigCgt:\t0000000000000201\n";
        assert!(catches(status, Signal::Hup));
        assert!(catches(status, Signal::Usr1));
        assert!(!catches(status, Signal::Usr2));
        assert!(!catches("Name: x\n", Signal::Hup));
        assert!(!catches("SigCgt:\tzz\n", Signal::Hup));
    }

    #[test]
    fn this_very_process_is_readable() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains("SigCgt:"));
    }

    #[tokio::test]
    async fn what_does_not_run_is_not_touched() {
        let consumer = Consumer {
            container: "web".into(),
            container_id: "x".into(),
            image: String::new(),
            program: String::new(),
            running: false,
            pid: 0,
            reload: Reload::Restart,
            check: None,
            serves: true,
            endpoints: Vec::new(),
            inside: crate::discover::Inside::default(),
        };
        // There is no engine at this address: any call would fail.
        let engine = Engine::new("unix:///nonexistent.sock");
        let reloader = Reloader::default();
        let (proofs, result) = reloader.reload(&engine, std::slice::from_ref(&consumer)).await;
        assert!(proofs.is_empty() && result.is_ok());
        let running = Consumer { running: true, ..consumer };
        assert!(reloader.reload(&engine, &[running]).await.1.is_err());
    }
}
