//! What `deploy/demo` shows: an intermediate CA is compromised, and a fleet is resealed.
//!
//! The driver plays the operator at the command line and, apart from it, the
//! client and the intruder outside. What it sums up is what those two saw; the
//! product's own report stands beside it, never instead of it.

mod outside;
mod screen;
mod summary;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::fleet::Fleet;
use crate::process::{code, interrupted, wait_for};
use crate::product::Binaries;
use crate::world::{HOSTS, World, ten_services};
use crate::{image, probe};
use outside::Intruder;
use screen::Screen;
use summary::Summary;

/// New connections a second and endpoint.
const CONNECTIONS_PER_SECOND: u32 = 20;

/// Why the rotation is ordered, in the audit log and the evidence.
const REASON: &str = "demo: the key of intermediate A was found on a laptop";

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave the fleet running.
    pub keep: bool,
    /// Write the summary as JSON, too.
    pub json: Option<PathBuf>,
}

/// Shows it all; true when everything is replaced and verified and no connection failed.
pub fn run(options: &Options) -> Result<bool> {
    let mut screen = Screen::new();
    screen.title("Reseal: an intermediate CA is compromised, three Docker hosts depend on it");
    let binaries = Binaries::built()?;
    let world = World::start(&HOSTS, binaries, ten_services, &mut |done| screen.done(done))?;
    let coordinator = &world.coordinator;
    screen.command("reseal certs");
    show(coordinator.command(&["certs"]))?;

    let (a, b) = (coordinator.authority("builtin/a")?, coordinator.authority("builtin/b")?);
    let intruder = Intruder::steal(&world, "oslo-1", "gateway")?;
    let endpoints = world.endpoints();
    screen.heading("The key of A is stolen. Clients keep connecting; watch the fleet move to B.");
    let client = probe::Client::start(&endpoints, &world.root, CONNECTIONS_PER_SECOND)?;
    wait_for("the first connections", Duration::from_secs(30), || {
        let tally = client.tally();
        Ok((tally.len() == endpoints.len()).then_some(()))
    })?;

    screen.command("reseal plan --compromised-issuer a");
    show(coordinator.command(&["plan", "--compromised-issuer", "a"]))?;
    screen.command(&format!("reseal rotate --compromised-issuer a --reason {REASON:?} --waves 1,100% --yes"));
    let ordered_at = Instant::now();
    let rotate = coordinator.command(&[
        "rotate",
        "--compromised-issuer",
        "a",
        "--reason",
        REASON,
        "--waves",
        "1,100%",
        "--yes",
    ]);
    let exit = show_any(rotate)?;

    // The old chain may be in flight for a moment more: a second of the client's time.
    let before = probe::totals(&client.tally()).0;
    let second = u64::from(CONNECTIONS_PER_SECOND) * endpoints.len() as u64;
    wait_for("a second of connections after the rotation", Duration::from_secs(30), || {
        Ok((probe::totals(&client.tally()).0 >= before + second).then_some(()))
    })?;
    let rotation = coordinator.newest_rotation()?;
    let served = outside::look(&world, &a, &b)?;
    let verdicts = intruder.knock(&world)?;
    let evidence = fetch_evidence(&world, &rotation)?;
    let summary = Summary {
        hosts: world.fleet.hosts.len(),
        certificates: world.certificates(),
        containers: world.services.len(),
        rotation,
        rotate_exit: exit,
        ordered_at,
        served,
        verdicts,
        tally: client.stop(),
        compromised: a,
        evidence,
        anchor: coordinator.anchor.clone(),
    };
    summary.print(&screen);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&summary.json())? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let good = summary.good();
    if options.keep {
        keep(world, &screen, &summary)?;
    }
    Ok(good)
}

/// Fetches the evidence and has it verified offline against the anchor.
fn fetch_evidence(world: &World, rotation: &Value) -> Result<PathBuf> {
    let id = rotation["id"].as_str().context("a rotation without an id")?;
    let directory = image::target_directory().join("demo");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("evidence.json");
    let _ = std::fs::remove_file(&file);
    let path = file.display().to_string();
    let coordinator = &world.coordinator;
    coordinator.text(&["rotation", "evidence", id, "--file", &path])?;
    coordinator.text(&["evidence", "verify", &path, "--anchor", &coordinator.anchor])?;
    Ok(file)
}

/// Leaves everything running and says what can be done with it.
fn keep(world: World, screen: &Screen, summary: &Summary) -> Result<()> {
    let directory = image::target_directory().join("demo");
    let reseal = world.coordinator.binaries().reseal.clone();
    let programs = reseal.parent().unwrap_or(Path::new("/")).display().to_string();
    let environment = format!(
        "export RESEAL_CREDENTIALS={}\nexport RESEAL_DEMO_ROOT={}\nexport PATH={programs}:$PATH\n",
        world.coordinator.credentials().display(),
        world.root.display(),
    );
    let file = directory.join("env");
    std::fs::write(&file, environment)?;
    let site = world.services.first().context("a service")?;
    screen.try_next(&file, &site.endpoint, &summary.id(), &world.fleet);
    let World { agents, coordinator, fleet, .. } = world;
    for agent in agents {
        agent.release();
    }
    coordinator.release();
    Fleet::keep(fleet)
}

/// Runs a command on the user's own terminal; it must succeed.
fn show(command: Command) -> Result<()> {
    match show_any(command)? {
        0 => Ok(()),
        exit => bail!("the command above ended with exit code {exit}"),
    }
}

/// The same, whatever its exit code.
fn show_any(mut command: Command) -> Result<i32> {
    let mut child = command.spawn()?;
    let ended = wait_for("the command above", Duration::from_secs(600), || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    if interrupted() {
        bail!("interrupted");
    }
    status.code().with_context(|| format!("the command above ended with {}", code(status)))
}
