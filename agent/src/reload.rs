//! Makes consumers read their files again: signal, exec or, last, restart.
//!
//! One step at a time; which steps, in which order and how far is decided by
//! [`crate::target`], which looks after each. Before a signal it is made sure
//! that it goes to the program and not to a shell in front of it, that the
//! process is one of the container's, and that it catches the signal: one that
//! nobody catches kills the program or does nothing. Before any reload the
//! program's own configuration check runs, where one is known. A container that
//! does not run is never started. One reload at a time per container, so that
//! two certificates of one program do not disturb each other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reseal_proto::v1::ReloadProof;
use tracing::info;

use crate::config::Signals;
use crate::discover::declared::HostProcess;
use crate::discover::docker::{DockerError, Engine};
use crate::discover::programs::{self, Hidden};
use crate::discover::{Command, Consumer, Container, Reload, Signal, processes};
use crate::host_process::{self, HostError};

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
    /// The program does not catch the signal.
    #[error(
        "{program} in container {container} does not catch SIG{signal}, so it was not sent: declare another reload method"
    )]
    NotCaught {
        /// Its name.
        container: String,
        /// What was looked at.
        program: String,
        /// Without `SIG`.
        signal: &'static str,
    },
    /// A shell or an init is in front of something.
    #[error("no signal was sent to container {container}")]
    Hidden {
        /// Its name.
        container: String,
        /// What is in front of what.
        #[source]
        source: Hidden,
    },
    /// The engine signals PID 1 only.
    #[error(
        "PID 1 of container {container} is {wrapper}, which passes no signal on, and with signals = \"engine\" nothing else can be signalled: declare an exec"
    )]
    OnlyFirst {
        /// Its name.
        container: String,
        /// What is in front.
        wrapper: &'static str,
    },
    /// Not what the engine says it is.
    #[error(
        "process {pid}, which the engine says is in container {container}, is not in its control group, so it was not signalled: does the engine run on this host?"
    )]
    Foreign {
        /// Its name.
        container: String,
        /// In this PID namespace.
        pid: i32,
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
    /// A process of the host.
    #[error("{process} was not reloaded")]
    Host {
        /// In words.
        process: String,
        /// Why.
        #[source]
        source: HostError,
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
    /// Several steps, and none could be made.
    #[error("no step could be made for container {container}; first {tried}; then")]
    Ladder {
        /// Its name.
        container: String,
        /// The steps before the last, and why not.
        tried: String,
        /// The last.
        #[source]
        source: Box<ReloadError>,
    },
}

impl ReloadError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Check { .. } => "check-refused",
            Self::NotCaught { .. } => "signal-not-caught",
            Self::Hidden { .. } | Self::OnlyFirst { .. } => "program-hidden",
            Self::Foreign { .. } => "process-foreign",
            Self::Invisible { .. } => "process-invisible",
            Self::Exec { .. } => "exec-failed",
            Self::Stopped { .. } => "consumer-stopped",
            Self::Host { source, .. } => source.code(),
            Self::Docker { .. } => "docker-failed",
            Self::Ladder { source, .. } => source.code(),
        }
    }

    /// Is it about the consumer, so that no other step would go better?
    pub fn is_final(&self) -> bool {
        match self {
            Self::Check { .. } | Self::Stopped { .. } | Self::Ladder { .. } => true,
            Self::NotCaught { .. }
            | Self::Hidden { .. }
            | Self::OnlyFirst { .. }
            | Self::Foreign { .. }
            | Self::Invisible { .. }
            | Self::Exec { .. }
            | Self::Host { .. }
            | Self::Docker { .. } => false,
        }
    }
}

/// A command whose status is above this was ended by a signal: maybe with its whole
/// container, and the engine needs a moment to say that it runs no more.
const KILLED: i64 = 128;
/// How often and how soon it is asked again.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// A program that is older has installed the handlers of its signals.
const STARTING: Duration = Duration::from_secs(3);

/// A step that was made.
#[derive(Debug)]
pub struct Made {
    /// For the evidence.
    pub proof: ReloadProof,
    /// What the command wrote, in case the step did not help.
    pub output: String,
}

/// Reloads; holds one lock per container.
#[derive(Debug, Default)]
pub struct Reloader {
    signals: Signals,
    host_root: PathBuf,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Reloader {
    /// Signals the way the settings say; processes of the host are looked for beneath `host_root`.
    pub fn new(signals: Signals, host_root: &Path) -> Self {
        Self { signals, host_root: host_root.to_owned(), locks: Mutex::default() }
    }

    /// Reloads every consumer that runs where nothing can be seen from outside: the
    /// first step of each that can be made; restarts last. The first failure ends it;
    /// what was done comes back with it.
    pub async fn reload(
        &self,
        engine: &Engine,
        consumers: &[Consumer],
    ) -> (Vec<ReloadProof>, Result<(), ReloadError>) {
        let mut order: Vec<&Consumer> = consumers.iter().filter(|c| c.running).collect();
        order.sort_by_key(|consumer| consumer.reload.only_restarts());
        let mut proofs = Vec::new();
        for consumer in order {
            match self.first_that_works(engine, consumer).await {
                Ok(proof) => proofs.extend(proof),
                Err(error) => return (proofs, Err(error)),
            }
        }
        (proofs, Ok(()))
    }

    async fn first_that_works(
        &self,
        engine: &Engine,
        consumer: &Consumer,
    ) -> Result<Option<ReloadProof>, ReloadError> {
        self.check(engine, consumer).await?;
        let mut failures = Vec::new();
        for step in &consumer.reload.0 {
            match self.step(engine, consumer, step).await {
                Ok(made) => return Ok(Some(made.proof)),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => failures.push((step.clone(), error)),
            }
        }
        match none_could_be_made(&consumer.container, failures) {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Would the program take its configuration? Runs its own check, if it has one.
    pub async fn check(&self, engine: &Engine, consumer: &Consumer) -> Result<(), ReloadError> {
        let Some(check) = &consumer.check else { return Ok(()) };
        let lock = self.lock(&consumer.container);
        let _held = lock.lock().await;
        if consumer.host.is_some() {
            // In a container the agent cannot run what the table of programs would check with.
            if self.host_root != Path::new("/") {
                return Ok(());
            }
            let failed = |source| ReloadError::Host { process: consumer.container.clone(), source };
            return host_process::run(check).await.map_err(failed);
        }
        let Err(error) = run_check(engine, consumer, check).await else { return Ok(()) };
        // What was stopped in the middle of its check has not refused anything.
        let looks =
            if matches!(error, ReloadError::Check { status, .. } if status > KILLED) { LOOKS } else { 1 };
        for look in 0..looks {
            if look > 0 {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            running(engine, consumer).await?;
        }
        Err(error)
    }

    /// Makes one step; says nothing about whether it helped.
    pub async fn step(
        &self,
        engine: &Engine,
        consumer: &Consumer,
        step: &Reload,
    ) -> Result<Made, ReloadError> {
        let lock = self.lock(&consumer.container);
        let _held = lock.lock().await;
        let container = consumer.container.as_str();
        let docker = |source| ReloadError::Docker { container: container.to_owned(), source };
        let mut output = String::new();
        // A command needs a running container, and a restart would start a stopped one.
        let seen = match &consumer.host {
            Some(process) => {
                step_on_host(process, consumer, step, &self.host_root).await?;
                return Ok(made(consumer, step, output));
            }
            None => running(engine, consumer).await?,
        };
        match step {
            Reload::Signal(signal) => send(engine, self.signals, consumer, *signal, &seen).await?,
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
                output = ended.output;
            }
            Reload::Restart => engine.restart(&consumer.container_id).await.map_err(docker)?,
        }
        Ok(made(consumer, step, output))
    }

    fn lock(&self, container: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().expect("no panic while held");
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(container.to_owned()).or_default().clone()
    }
}

/// One error of all the steps that failed; `None` when there were none.
pub fn none_could_be_made(container: &str, mut failures: Vec<(Reload, ReloadError)>) -> Option<ReloadError> {
    let (_, last) = failures.pop()?;
    if failures.is_empty() {
        return Some(last);
    }
    let tried: Vec<String> =
        failures.iter().map(|(step, error)| format!("{step}: {}", crate::chain_of(error))).collect();
    Some(ReloadError::Ladder {
        container: container.to_owned(),
        tried: tried.join("; "),
        source: Box::new(last),
    })
}

fn made(consumer: &Consumer, step: &Reload, output: String) -> Made {
    info!(container = %consumer.container, method = %step, "reloaded");
    let proof = ReloadProof {
        container: consumer.container.clone(),
        container_id: consumer.container_id.clone(),
        method: step.to_string(),
        at: crate::app::now(),
    };
    Made { proof, output }
}

/// One step of a process of the host: what is done, the host's own configuration declares.
async fn step_on_host(
    process: &HostProcess,
    consumer: &Consumer,
    step: &Reload,
    host_root: &Path,
) -> Result<(), ReloadError> {
    let failed = |source| ReloadError::Host { process: consumer.container.clone(), source };
    match step {
        Reload::Signal(signal) => {
            let (process, signal, root) = (process.clone(), *signal, host_root.to_owned());
            let sent =
                tokio::task::spawn_blocking(move || host_process::signal(&process, signal, &root)).await;
            sent.expect("a signal does not panic").map_err(failed)
        }
        // From the table of programs: in a container it would run in the wrong place.
        Reload::Exec(_) if host_root != Path::new("/") => {
            Err(failed(HostError::Away { command: step.to_string() }))
        }
        Reload::Exec(command) => host_process::run(command).await.map_err(failed),
        // Never declared for a process: the configuration refuses it.
        Reload::Restart => Ok(()),
    }
}

/// As it is now, if it still runs.
async fn running(engine: &Engine, consumer: &Consumer) -> Result<Container, ReloadError> {
    let container = || consumer.container.clone();
    let seen = engine
        .container(&consumer.container_id)
        .await
        .map_err(|source| ReloadError::Docker { container: container(), source })?;
    match seen {
        Some(seen) if seen.running && seen.pid > 0 => Ok(seen),
        Some(_) | None => Err(ReloadError::Stopped { container: container() }),
    }
}

/// Signals the program, if it catches the signal. The process is held by a pidfd before
/// the container is looked at again, so that a number that was given to another
/// process meanwhile is never signalled.
async fn send(
    engine: &Engine,
    signals: Signals,
    consumer: &Consumer,
    signal: Signal,
    seen: &Container,
) -> Result<(), ReloadError> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
    let container = || consumer.container.clone();
    let docker = |source| ReloadError::Docker { container: container(), source };
    let hidden = |source| ReloadError::Hidden { container: container(), source };
    let stopped = || ReloadError::Stopped { container: container() };
    let receiver = programs::recognise(seen).map_err(hidden)?;
    let pid = receiver.pid;
    let invisible = |source| ReloadError::Invisible { container: container(), pid, source };
    let process = Pid::from_raw(pid).ok_or_else(stopped)?;
    let held = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(held) => held,
        // It ended just now, or this agent is in another PID namespace.
        Err(error) => {
            running(engine, consumer).await?;
            return Err(invisible(error.into()));
        }
    };
    if !soon_catches(pid, signal).await.map_err(invisible)? {
        let program = programs::described(seen);
        return Err(ReloadError::NotCaught { container: container(), program, signal: signal.name() });
    }
    match (signals, receiver.behind) {
        (Signals::Engine, Some(wrapper)) if !wrapper.forwards => {
            Err(ReloadError::OnlyFirst { container: container(), wrapper: wrapper.name })
        }
        (Signals::Engine, _) => engine.signal(&consumer.container_id, signal).await.map_err(docker),
        (Signals::Process, _) => {
            // Still the same one: what is held is the program of this container.
            let again = running(engine, consumer).await?;
            if programs::recognise(&again).map_err(hidden)?.pid != pid {
                return Err(stopped());
            }
            if !processes::belongs(pid, &again.id).map_err(invisible)? {
                return Err(ReloadError::Foreign { container: container(), pid });
            }
            match pidfd_send_signal(&held, signal.of_process()) {
                Err(rustix::io::Errno::SRCH) => Err(stopped()),
                sent => sent.map_err(|error| invisible(error.into())),
            }
        }
    }
}

/// Does it catch the signal? One that has just been started is given a moment to say so.
async fn soon_catches(pid: i32, signal: Signal) -> std::io::Result<bool> {
    loop {
        let caught = processes::catches(pid, signal)?;
        if caught || processes::age(pid).is_none_or(|age| age > STARTING) {
            return Ok(caught);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Ladder;

    fn consumer() -> Consumer {
        Consumer {
            container: "web".into(),
            container_id: "x".into(),
            image: String::new(),
            program: String::new(),
            running: false,
            pid: 0,
            reload: Ladder(vec![Reload::Restart]),
            check: None,
            serves: true,
            endpoints: Vec::new(),
            inside: crate::discover::Inside::default(),
            host: None,
        }
    }

    #[tokio::test]
    async fn what_does_not_run_is_not_touched() {
        // There is no engine at this address: any call would fail.
        let engine = Engine::new("unix:///nonexistent.sock");
        let reloader = Reloader::default();
        let (proofs, result) = reloader.reload(&engine, &[consumer()]).await;
        assert!(proofs.is_empty() && result.is_ok());
        let running = Consumer { running: true, ..consumer() };
        assert!(reloader.reload(&engine, &[running]).await.1.is_err());
    }

    #[test]
    fn the_error_names_every_step() {
        let exec = |status| ReloadError::Exec {
            container: "web".into(),
            command: "x".into(),
            status,
            output: "no".into(),
        };
        let step = || Reload::Exec(Command::of(["x"]));
        assert!(none_could_be_made("web", Vec::new()).is_none());
        let one = none_could_be_made("web", vec![(step(), exec(1))]).unwrap();
        assert!(matches!(one, ReloadError::Exec { status: 1, .. }));
        let two = none_could_be_made("web", vec![(step(), exec(1)), (step(), exec(2))]).unwrap();
        let said = crate::chain_of(&two).to_string();
        assert!(said.contains("ended with 1") && said.contains("ended with 2"), "{said}");
        assert_eq!(two.code(), "exec-failed");
    }
}
