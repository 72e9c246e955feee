//! Reseal itself, run as its users run it: the real binaries, their command lines, their files.
//!
//! The coordinator listens on the bridge, each agent runs in its host's network
//! namespace. Everything the two write lies in the fleet's directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::fleet::{Fleet, Host};
use crate::process::{Daemon, code, command, line, run, signal, wait_until};

/// Name of the fleet that tests and the demo make.
pub const FLEET: &str = "demo";

/// The port of the coordinator.
const PORT: u16 = 7443;

/// Admits the names of [`crate::services`], each host its own.
pub const POLICY: &str = "\
# Each host may hold names below its own name, and no others.
names = [\"*.{host}.fleet.test\"]
key_types = [\"ecdsa-p256\", \"ecdsa-p384\", \"rsa-2048\"]
usages = [\"server\", \"client\"]
lifetime = \"30d\"
";

/// Where the two programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `reseal`.
    pub reseal: PathBuf,
    /// `reseal-agent`.
    pub agent: PathBuf,
}

impl Binaries {
    /// What `cargo build` makes: beside this program, what users run.
    pub fn built() -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut directory = own.parent().context("this program is in no directory")?;
        if directory.ends_with("deps") {
            directory = directory.parent().unwrap_or(directory);
        }
        Self::in_directory(directory, "cargo build --bins")
    }

    /// Built with fail points and TLS key logs, for tests only.
    pub fn with_fail_points() -> Result<Self> {
        let directory = crate::image::target_directory().join("failpoints");
        Self::in_directory(&directory, "tests/run build")
    }

    fn in_directory(directory: &Path, how: &str) -> Result<Self> {
        let binaries = Self { reseal: directory.join("reseal"), agent: directory.join("reseal-agent") };
        for path in [&binaries.reseal, &binaries.agent] {
            if !path.is_file() {
                bail!("{} is not built; build it with: {how}", path.display());
            }
        }
        Ok(binaries)
    }
}

/// A coordinator with its store, and the first operator's credentials.
#[derive(Debug)]
pub struct Coordinator {
    binaries: Binaries,
    directory: PathBuf,
    address: String,
    daemon: Option<Daemon>,
    /// SHA-256 of the control-plane CA: what evidence is checked against.
    pub anchor: String,
    /// For every command, too: the clock of the operator's machine.
    pub environment: Vec<(String, String)>,
}

impl Coordinator {
    /// `reseal init` on the fleet's bridge address.
    pub fn init(fleet: &Fleet, binaries: Binaries) -> Result<Self> {
        let directory = fleet.directory().join("coordinator");
        std::fs::create_dir_all(&directory)?;
        let address = format!("{}:{PORT}", fleet.gateway());
        let at = |name: &str| directory.join(name).display().to_string();
        let config = format!(
            "data_dir = {:?}\nlisten = {address:?}\nadvertise = [{address:?}]\n\
             metrics_listen = \"\"\nkek_files = [{:?}]\n",
            at("store"),
            at("kek"),
        );
        std::fs::write(directory.join("reseal.toml"), config)?;
        let mut coordinator = Self {
            binaries,
            directory: directory.clone(),
            address,
            daemon: None,
            anchor: String::new(),
            environment: Vec::new(),
        };
        let (config, out) = (at("reseal.toml"), at("admin.json"));
        let root = at("root.key");
        let made = coordinator.json(&[
            "init",
            "--config",
            &config,
            "--fleet",
            FLEET,
            "--admin",
            "alice",
            "--admin-out",
            &out,
            "--root-key-out",
            &root,
        ])?;
        let anchor = made["anchor"].as_str().context("init names no anchor")?;
        coordinator.anchor = anchor.to_owned();
        Ok(coordinator)
    }

    /// Starts `reseal serve` and waits until it answers.
    pub fn start(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut serve = command(&self.binaries.reseal, &["serve", "--config"]);
        serve.arg(self.directory.join("reseal.toml"));
        serve.envs(environment.iter().copied());
        let log = self.log();
        self.daemon = Some(Daemon::start("reseal serve", &serve, &log)?);
        self.wait()
    }

    /// Waits until the coordinator answers an operator.
    pub fn wait(&mut self) -> Result<()> {
        let up =
            wait_until("an answer of the coordinator", Duration::from_secs(30), || self.json(&["status"]));
        if let Some(daemon) = &mut self.daemon {
            daemon.check()?;
        }
        up.map(drop)
    }

    /// Kills the coordinator with SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Has it ended by itself, as at a fail point?
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.daemon {
            Some(daemon) => Ok(daemon.ended()?.is_some()),
            None => Ok(true),
        }
    }

    /// What it logged.
    pub fn log(&self) -> PathBuf {
        self.directory.join("serve.log")
    }

    /// Its own directory: configuration, store, credentials.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The first operator's credentials.
    pub fn credentials(&self) -> PathBuf {
        self.directory.join("admin.json")
    }

    /// The programs it was made with.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// `HOST:PORT` it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A `reseal` command as the first operator.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut reseal = command(&self.binaries.reseal, arguments);
        reseal.env("RESEAL_CREDENTIALS", self.credentials());
        reseal.envs(self.environment.iter().cloned());
        reseal
    }

    /// Runs a command to its end, whatever that is.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut reseal = self.command(arguments);
        reseal.output().with_context(|| format!("cannot run {}", line(&reseal)))
    }

    /// Runs a command that must succeed; its standard output.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// Runs a command that must succeed, with `--output json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut words = arguments.to_vec();
        words.extend(["--output", "json"]);
        let text = self.text(&words)?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} printed no JSON: {text}"))
    }

    /// Runs a command that must fail with this exit code; its standard error.
    pub fn refused(&self, exit: i32, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(exit) {
            bail!("{arguments:?} ended with {}, not {exit}: {said}", code(output.status));
        }
        Ok(said)
    }

    /// Sets the policy for the fleet's services, from a file.
    pub fn set_policy(&self) -> Result<()> {
        let file = self.directory.join("policy.toml");
        std::fs::write(&file, POLICY)?;
        let file = file.display().to_string();
        self.text(&["policy", "set", "fleet", "--file", &file]).map(drop)
    }

    /// Writes the managed root's certificate to a file, for clients.
    pub fn root(&self) -> Result<PathBuf> {
        let file = self.directory.join("managed-root.pem");
        std::fs::write(&file, self.text(&["trust", "show", "--pem"])?)?;
        Ok(file)
    }

    /// Fingerprint of an authority's certificate, lower-case hex.
    pub fn authority(&self, name: &str) -> Result<String> {
        let list = self.json(&["authority", "list"])?;
        let found =
            find(&list, "name", name).with_context(|| format!("there is no authority {name}: {list}"))?;
        let fingerprint = found["fingerprint"].as_str();
        Ok(fingerprint.context("an authority without a certificate")?.to_owned())
    }

    /// Invites a host; the join token.
    pub fn invite(&self, host: &str) -> Result<String> {
        let reply = self.json(&["host", "invite", host, "--label", "env=demo"])?;
        let token = reply["token"].as_str().context("an invitation without a token")?;
        Ok(token.to_owned())
    }

    /// A rotation as it stands.
    pub fn rotation(&self, id: &str) -> Result<Value> {
        self.json(&["rotation", "show", id])
    }

    /// Starts a rotation of what the words select, as an incident would, and does not wait; its id.
    pub fn rotate(&self, words: &[&str]) -> Result<String> {
        let started = self.json(&[&rotate("scenario", words)[..], &["--detach"]].concat())?;
        Ok(started["id"].as_str().context("a rotation without an id")?.to_owned())
    }

    /// Waits until a rotation is in a state; the rotation.
    pub fn in_state(&self, id: &str, state: &str, within: Duration) -> Result<Value> {
        wait_until(&format!("{state} as the state of rotation {id}"), within, || {
            let rotation = self.rotation(id)?;
            if rotation["state"] != state {
                bail!("it is {}: {}", rotation["state"], rotation);
            }
            Ok(rotation)
        })
    }

    /// Waits until a rotation has completed; its last state.
    pub fn completed(&self, id: &str, within: Duration) -> Result<Value> {
        self.in_state(id, "completed", within)
    }

    /// Audit entries of this action, oldest first.
    pub fn audited(&self, action: &str) -> Result<Vec<Value>> {
        let list = self.json(&["audit", "list"])?;
        let all = list.as_array().context("a list of audit entries")?;
        Ok(all.iter().filter(|entry| entry["action"] == action).cloned().collect())
    }

    /// The newest rotation.
    pub fn newest_rotation(&self) -> Result<Value> {
        let list = self.json(&["rotation", "list"])?;
        let all = list.as_array().context("a list of rotations")?;
        all.first().cloned().context("there is no rotation")
    }

    /// Lets it live on after this process.
    pub fn release(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.release();
        }
    }
}

/// `reseal rotate` of what the words select, without a question.
pub fn rotate<'a>(reason: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    [&["rotate", "--reason", reason, "--yes"], words].concat()
}

/// The object of a list, at whatever depth, whose `key` has this value.
pub fn find<'a>(value: &'a Value, key: &str, wanted: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) if fields.get(key).and_then(Value::as_str) == Some(wanted) => Some(value),
        Value::Object(fields) => fields.values().find_map(|value| find(value, key, wanted)),
        Value::Array(items) => items.iter().find_map(|value| find(value, key, wanted)),
        _ => None,
    }
}

/// An agent on a host.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    config: PathBuf,
    daemon: Option<Daemon>,
    /// For every command, too: the clock of its host.
    pub environment: Vec<(String, String)>,
}

impl Agent {
    /// Writes the agent's configuration on a host.
    pub fn new(host: &Host, binaries: &Binaries) -> Result<Self> {
        let state = host.directory().join("agent");
        let config = host.directory().join("agent.toml");
        let socket = format!("unix://{}", host.engine.socket().display());
        let text = format!("state_dir = {:?}\ndocker = {socket:?}\n", state.display());
        std::fs::write(&config, text)?;
        Ok(Self { program: binaries.agent.clone(), config, daemon: None, environment: Vec::new() })
    }

    /// Adds a line to its configuration, for its next start.
    pub fn configure(&self, line: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        Ok(std::fs::write(&self.config, format!("{text}{line}\n"))?)
    }

    /// Its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Has it read its declarations anew, as `systemctl reload` does.
    pub fn reread(&self) {
        if let Some(daemon) = &self.daemon {
            signal(daemon.pid(), rustix::process::Signal::HUP);
        }
    }

    /// A command of the agent on its host.
    pub fn command(&self, host: &Host, arguments: &[&str]) -> Command {
        let mut agent = host.command(&self.program, arguments);
        agent.arg("--config").arg(&self.config);
        agent.envs(self.environment.iter().cloned());
        agent
    }

    /// `reseal-agent enrol`.
    pub fn enrol(&self, host: &Host, token: &str) -> Result<()> {
        run(&mut self.command(host, &["enrol", token]))
            .map(drop)
            .with_context(|| format!("host {} did not enrol", host.name))
    }

    /// `reseal-agent run`.
    pub fn start(&mut self, host: &Host, environment: &[(&str, &str)]) -> Result<()> {
        let mut agent = self.command(host, &["run"]);
        agent.envs(environment.iter().copied());
        self.daemon = Some(host.daemon("agent", &agent)?);
        Ok(())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Has it ended by itself, as at a fail point?
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.daemon {
            Some(daemon) => Ok(daemon.ended()?.is_some()),
            None => Ok(true),
        }
    }

    /// Stops it in the middle of what it does: it keeps its session and does nothing.
    pub fn pause(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.pause();
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.resume();
        }
    }

    /// Fails, with the end of its log, when it does not run.
    pub fn check(&mut self) -> Result<()> {
        self.daemon.as_mut().map_or(Ok(()), Daemon::check)
    }

    /// Lets it live on after this process.
    pub fn release(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.release();
        }
    }
}

/// Invites, enrols and starts an agent on every host, and waits for their sessions.
pub fn agents(fleet: &Fleet, coordinator: &Coordinator) -> Result<Vec<Agent>> {
    let mut agents = Vec::new();
    for host in &fleet.hosts {
        let mut agent = Agent::new(host, coordinator.binaries())?;
        agent.enrol(host, &coordinator.invite(&host.name)?)?;
        agent.start(host, &[])?;
        agents.push(agent);
    }
    wait_for_sessions(coordinator, &mut agents)?;
    Ok(agents)
}

/// Waits until every agent has a session.
pub fn wait_for_sessions(coordinator: &Coordinator, agents: &mut [Agent]) -> Result<()> {
    wait_until("a session of every agent", Duration::from_secs(30), || {
        let status = coordinator.json(&["status"])?;
        match status["hosts_connected"].as_u64() {
            Some(connected) if connected >= agents.len() as u64 => Ok(()),
            connected => bail!("{connected:?} of {} are connected", agents.len()),
        }
    })
    .or_else(|error| {
        for agent in agents {
            agent.check()?;
        }
        Err(error)
    })
}
