//! One Docker Engine per host: a `dockerd` of its own, with a containerd of its own.
//!
//! Everything of an engine lies under one directory, whose path is in the
//! command line of each of its processes; with the network namespace it is how
//! [`crate::clean`] knows them. The machine's own engine is only asked for its
//! storage driver.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::image::Image;
use crate::process::{Daemon, alive, command, run, tail, wait_until};

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    directory: PathBuf,
    namespace: PathBuf,
    daemon: Option<Daemon>,
}

impl Engine {
    /// Starts `dockerd` in a network namespace and waits until it answers.
    pub fn start(directory: &Path, namespace: &Path, driver: Option<&str>) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let at = |name: &str| directory.join(name).display().to_string();
        let mut settings = json!({
            "hosts": [format!("unix://{}", at("docker.sock"))],
            "data-root": at("data"),
            "exec-root": at("exec"),
            "pidfile": at("pid"),
            // Containers outlive a killed dockerd, as on a host that is run with care.
            "live-restore": true,
        });
        if let Some(driver) = driver {
            settings["storage-driver"] = json!(driver);
        }
        // A file of its own: the machine's /etc/docker/daemon.json must not be mixed in.
        std::fs::write(directory.join("daemon.json"), settings.to_string())?;
        let mut engine =
            Self { directory: directory.to_owned(), namespace: namespace.to_owned(), daemon: None };
        engine.boot()?;
        Ok(engine)
    }

    /// Starts the daemon, again after [`Engine::kill`].
    pub fn boot(&mut self) -> Result<()> {
        // A process id on file whose process is gone, or was never reaped, would be taken
        // for a running daemon.
        for file in ["pid", "exec/containerd/containerd.pid"] {
            let path = self.directory.join(file);
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            if !pid.trim().parse().is_ok_and(alive) {
                let _ = std::fs::remove_file(path);
            }
        }
        let mut dockerd = command("nsenter", &[]);
        crate::machine::with_path(&mut dockerd)
            .arg(format!("--net={}", self.namespace.display()))
            .args(["dockerd", "--config-file"])
            .arg(self.directory.join("daemon.json"));
        let log = self.directory.join("dockerd.log");
        let daemon = Daemon::start("dockerd", &dockerd, &log)?;
        let daemon = self.daemon.insert(daemon);
        let socket = format!("unix://{}", self.directory.join("docker.sock").display());
        let mut dead = None;
        let up = wait_until("an answer of dockerd", Duration::from_secs(60), || {
            if let Err(error) = daemon.check() {
                // Nothing to wait for; reported below.
                dead = Some(error);
                return Ok(());
            }
            let words = ["-H", &socket, "version", "--format", "{{.Server.Version}}"];
            run(&mut command("docker", &words)).map(drop)
        });
        match dead {
            Some(error) => Err(error),
            None => up.with_context(|| format!("dockerd's log ends:\n{}", tail(&log, 20))),
        }
    }

    /// The engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    /// Runs a `docker` command on this engine.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        docker(&self.socket(), "60", arguments)
    }

    /// Imports an image.
    pub fn import(&self, image: &Image) -> Result<()> {
        let tar = image.tar()?.display().to_string();
        docker(&self.socket(), "300", &["import", &tar, image.name]).map(drop)
    }

    /// A container's state: "running", "restarting", "exited" ...
    pub fn state(&self, container: &str) -> Result<String> {
        let state = self.docker(&["inspect", "--format", "{{.State.Status}}", container])?;
        Ok(state.trim().to_owned())
    }

    /// What a container wrote.
    pub fn logs(&self, container: &str) -> Result<String> {
        let output = command("docker", &["-H"])
            .arg(format!("unix://{}", self.socket().display()))
            .args(["logs", "--tail", "200", container])
            .output()?;
        if !output.status.success() {
            bail!("docker logs {container} failed");
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// SIGKILL for `dockerd`; its containers live on, as on a real host.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Removes all containers and ends the daemon in good order.
    pub fn stop(&mut self) {
        if self.daemon.is_some() {
            remove_containers(&self.socket());
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop(Duration::from_secs(15));
        }
    }

    /// Lets the daemon live on after this process.
    pub fn release(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.release();
        }
    }
}

/// Removes all containers of the engine behind a socket, if it answers.
pub fn remove_containers(socket: &Path) {
    let Ok(all) = docker(socket, "10", &["ps", "--all", "--quiet", "--no-trunc"]) else {
        return;
    };
    let mut words = vec!["rm", "--force", "--volumes"];
    words.extend(all.split_whitespace());
    if words.len() > 3 {
        let _ = docker(socket, "60", &words);
    }
}

fn docker(socket: &Path, seconds: &str, arguments: &[&str]) -> Result<String> {
    let mut docker = command("timeout", &[seconds, "docker", "-H"]);
    docker.arg(format!("unix://{}", socket.display())).args(arguments);
    run(&mut docker)
}
