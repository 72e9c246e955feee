//! Several real Docker hosts on one machine, taken down whatever happens.
//!
//! A fleet claims a free number by making its directory, which nobody else can
//! do twice; everything it starts is named after the number. Its state file
//! says who owns it, so that [`crate::clean`] can take down what a killed run
//! left, and leaves alone what somebody is using.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::network::Network;
use crate::process::{Daemon, command, start_time};
use crate::{clean, image, machine};

/// All fleets of this machine, one directory each, named by number.
pub const ROOT: &str = "/var/lib/reseal-fleet";

/// What a fleet's directory says of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Process that made it.
    pub owner: u32,
    /// Start time of that process, in ticks since boot.
    pub owner_started: u64,
    /// It is meant to outlive its owner.
    pub kept: bool,
    /// Names of its hosts.
    pub hosts: Vec<String>,
}

/// A Docker host: a network namespace, an engine, a directory.
#[derive(Debug)]
pub struct Host {
    /// Its name, unique in the fleet.
    pub name: String,
    /// Its address on the bridge; published ports answer here.
    pub address: Ipv4Addr,
    /// Its Docker Engine.
    pub engine: Engine,
    network: Network,
    index: u8,
    namespace: PathBuf,
    directory: PathBuf,
}

/// Hosts on a bridge. Dropping it takes everything down.
#[derive(Debug)]
pub struct Fleet {
    /// In the order of their names given to [`Fleet::start`].
    pub hosts: Vec<Host>,
    network: Network,
    directory: PathBuf,
    kept: bool,
}

impl Fleet {
    /// Starts one host per name. Leftovers of killed runs are taken down first.
    pub fn start(names: &[&str]) -> Result<Self> {
        machine::require_root()?;
        machine::ensure(machine::FLEET)?;
        clean::leftovers(clean::Which::Abandoned)?;
        image::SERVICES.tar()?;
        let driver = machine::storage_driver();
        let network = claim(names)?;
        let mut fleet =
            Self { hosts: Vec::new(), network, directory: directory(network.number), kept: false };
        network.create()?;
        let mut places = Vec::new();
        for (index, name) in (0_u8..).zip(names) {
            places.push((index, *name, network.plug(name, index)?));
        }
        // Engines start and unpack the image side by side.
        let hosts = std::thread::scope(|scope| {
            let started: Vec<_> = places
                .into_iter()
                .map(|(index, name, namespace)| {
                    let directory = fleet.directory.join(name);
                    let driver = driver.as_deref();
                    scope.spawn(move || Host::start(network, index, name, namespace, directory, driver))
                })
                .collect();
            let ended: Vec<_> = started.into_iter().map(|thread| thread.join()).collect();
            ended
                .into_iter()
                .map(|host| host.map_err(|_| anyhow!("a thread that starts a host panicked"))?)
                .collect::<Result<Vec<Host>>>()
        })?;
        fleet.hosts = hosts;
        Ok(fleet)
    }

    /// The address on the bridge that belongs to the machine itself.
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway()
    }

    /// The bridge, for captures.
    pub fn bridge(&self) -> String {
        self.network.bridge()
    }

    /// Where this fleet keeps everything; removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.with_context(|| format!("the fleet has no host {name}"))
    }

    /// Like [`Fleet::host`], to change it.
    pub fn host_mut(&mut self, name: &str) -> Result<&mut Host> {
        let found = self.hosts.iter_mut().find(|host| host.name == name);
        found.with_context(|| format!("the fleet has no host {name}"))
    }

    /// Copies what everything logged to a directory that outlives the fleet, named after the
    /// test; the last thing a fleet does, too.
    pub fn save_logs(&self) -> Result<PathBuf> {
        let name = std::thread::current().name().unwrap_or("main").replace("::", "-");
        let to = image::target_directory().join("fleet-logs").join(name);
        let _ = std::fs::remove_dir_all(&to);
        std::fs::create_dir_all(&to)?;
        for host in &self.hosts {
            let save =
                |name: &str, text: &str| std::fs::write(to.join(format!("{}-{name}", host.name)), text);
            for file in ["agent.log", "engine/dockerd.log"] {
                let text = std::fs::read(host.directory.join(file)).unwrap_or_default();
                save(&file.replace('/', "-"), &String::from_utf8_lossy(&text))?;
            }
            let all = host.engine.docker(&["ps", "--all"]).unwrap_or_default();
            save("containers.log", &all)?;
            let names = ["ps", "--all", "--format", "{{.Names}}"];
            for name in host.engine.docker(&names).unwrap_or_default().lines() {
                let log = host.engine.logs(name).unwrap_or_else(|error| error.to_string());
                save(&format!("{name}.log"), &log)?;
            }
        }
        let coordinator = self.directory.join("coordinator/serve.log");
        let text = std::fs::read(coordinator).unwrap_or_default();
        std::fs::write(to.join("coordinator.log"), text)?;
        Ok(to)
    }

    /// Lets the fleet live on after this process, until `clean` takes it down.
    pub fn keep(mut self) -> Result<()> {
        let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        write_state(&self.directory, &names, true)?;
        self.kept = true;
        for host in &mut self.hosts {
            host.engine.release();
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.save_logs() {
            eprintln!("could not keep the logs: {error:#}");
        }
        std::thread::scope(|scope| {
            for host in &mut self.hosts {
                scope.spawn(|| host.engine.stop());
            }
        });
        if let Err(error) = clean::take_down(self.network.number) {
            eprintln!("could not take the fleet down whole: {error:#}");
        }
    }
}

impl Host {
    fn start(
        network: Network,
        index: u8,
        name: &str,
        namespace: PathBuf,
        directory: PathBuf,
        driver: Option<&str>,
    ) -> Result<Self> {
        let engine = Engine::start(&directory.join("engine"), &namespace, driver)
            .with_context(|| format!("host {name}"))?;
        engine.import(&image::SERVICES).with_context(|| format!("host {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            address: network.address(index),
            engine,
            network,
            index,
            namespace,
            directory,
        })
    }

    /// The host's own directory: its engine, its agent's state, its services' files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that runs on this host: in its network namespace, talking to its engine.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = command("nsenter", &[]);
        command
            .arg(format!("--net={}", self.namespace.display()))
            .arg(program)
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.engine.socket().display()));
        command
    }

    /// Starts a daemon on this host; its log is `<name>.log` in the host's directory.
    pub fn daemon(&self, name: &str, command: &Command) -> Result<Daemon> {
        Daemon::start(name, command, &self.directory.join(format!("{name}.log")))
    }

    /// Takes the host's cable out.
    pub fn cut(&self) -> Result<()> {
        self.network.set_cable(self.index, false)
    }

    /// Puts it in again.
    pub fn heal(&self) -> Result<()> {
        self.network.set_cable(self.index, true)
    }
}

/// The directory of fleet `number`.
pub fn directory(number: u8) -> PathBuf {
    Path::new(ROOT).join(number.to_string())
}

fn claim(names: &[&str]) -> Result<Network> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(ROOT)
        .with_context(|| format!("cannot make {ROOT}"))?;
    for number in 1..=254 {
        let network = Network { number };
        if network.taken()? {
            continue;
        }
        match std::fs::create_dir(directory(number)) {
            Ok(()) => {
                write_state(&directory(number), names, false)?;
                return Ok(network);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", directory(number).display()));
            }
        }
    }
    bail!("no 10.77.x.0/24 network is free; take old fleets down with: deploy/demo clean")
}

fn write_state(directory: &Path, names: &[&str], kept: bool) -> Result<()> {
    let owner = std::process::id();
    let state = State {
        owner,
        owner_started: start_time(owner).unwrap_or_default(),
        kept,
        hosts: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let half = directory.join("state.half");
    std::fs::write(&half, serde_json::to_vec_pretty(&state)?)?;
    std::fs::rename(&half, directory.join("state.json"))?;
    Ok(())
}
