//! Wires the agent together and owns what belongs to the process.
//!
//! The only place that reads the clock and the random generator, takes the
//! state directory, hardens the process and starts the tasks. Called by `main`.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use reseal_proto::{channel, telemetry};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::adopt::Adopter;
use crate::clock::Clock;
use crate::config::Config;
use crate::discover::docker::Engine;
use crate::discover::watch::Discovery;
use crate::identity::{IdentityError, IdentityStore, Slot};
use crate::link::{Link, Shared};
use crate::outbox::Outbox;
use crate::reload::Reloader;
use crate::renew::Renewer;
use crate::state::{Lock, Session};
use crate::target::Tools;
use crate::unserved::Unserved;
use crate::{metrics, room, served, trust};

/// Where a join token may come from besides the argument.
pub const TOKEN_VARIABLE: &str = "RESEAL_JOIN_TOKEN";

/// Seconds since the Unix epoch, this host's clock.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since this host started, by a clock that nobody sets and that counts
/// while the host is suspended.
pub fn boot_time() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec
}

/// At least 0, less than 1.
pub fn random() -> f64 {
    let mut bytes = [0; 4];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// No core dumps (they would hold keys), no file that others may read, one
/// crypto provider. Call first in `main`.
pub fn harden() {
    channel::install_crypto();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// `reseal-agent enrol`.
pub async fn enrol(config: &Config, token: &str) -> anyhow::Result<()> {
    let store = IdentityStore::new(&config.state_dir);
    let identity = store.enrol(token, now()).await.context("this host is not enrolled")?;
    println!(
        "enrolled as host {} of fleet {}; identity in {}",
        identity.host,
        identity.fleet,
        config.state_dir.display()
    );
    Ok(())
}

/// `reseal-agent run`: until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&config.telemetry).context("cannot set up telemetry")?;
    let _lock = Lock::take(&config.state_dir)?;
    let identities = IdentityStore::new(&config.state_dir);
    ensure_enrolled(&identities).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tasks = start(Arc::new(config), identities)?;
    tokio::select! {
        _ = terminate.recv() => info!("terminated"),
        _ = interrupt.recv() => info!("interrupted"),
        () = tasks => warn!("a task ended"),
    }
    // Nothing to save: everything is on disk before it counts.
    Ok(())
}

/// A token in the environment enrols a host that has no identity yet: one line installs it.
async fn ensure_enrolled(identities: &IdentityStore) -> anyhow::Result<()> {
    if identities.load(Slot::Current)?.is_some() {
        return Ok(());
    }
    let token = std::env::var(TOKEN_VARIABLE).unwrap_or_default();
    if token.is_empty() {
        return Err(IdentityError::NotEnrolled.into());
    }
    let identity = identities.enrol(&token, now()).await?;
    info!(host = %identity.host, fleet = %identity.fleet, "enrolled");
    Ok(())
}

/// SIGHUP: what the configuration declares is read anew, at once.
async fn reread(discovery: Discovery) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return std::future::pending().await;
    };
    while hangup.recv().await.is_some() {
        info!("declarations are read anew");
        discovery.scan().await;
    }
}

/// Starts every task; the future ends when one of them does.
pub fn start(config: Arc<Config>, identities: IdentityStore) -> anyhow::Result<impl Future<Output = ()>> {
    let state_dir: &Path = &config.state_dir;
    let session = Arc::new(Session::open(state_dir)?);
    let outbox = Arc::new(Outbox::open(state_dir)?);
    let engine = Arc::new(Engine::new(&config.docker));
    let discovery = Discovery::start(config.clone(), engine);
    let clock = Arc::new(Clock::default());
    let busy = Arc::default();
    let shared = Shared {
        identities: identities.clone(),
        session: session.clone(),
        outbox: outbox.clone(),
        discovery: discovery.clone(),
        clock: clock.clone(),
        orders: Arc::default(),
        adopter: Arc::new(Adopter::new(discovery.clone(), Arc::clone(&busy))),
    };
    let (link, ends) = Link::new(shared.clone());
    let tools = Tools {
        config: config.clone(),
        discovery: discovery.clone(),
        reloader: Arc::new(Reloader::new(config.signals, &config.host_root)),
        unserved: Arc::new(Unserved::open(state_dir, identities.clone(), outbox.clone())?),
        session,
        clock,
        busy,
        windows: Arc::default(),
    };
    // Held until what a crash left behind is resumed: nobody tidies before.
    let resuming = tools.busy.clone().try_lock_owned().context("nobody else holds it yet")?;
    let renewer = Renewer {
        tools: tools.clone(),
        identities,
        outbox,
        session: ends.session.clone(),
        orders: shared.orders.clone(),
        chains: ends.chains,
    };
    info!(version = env!("CARGO_PKG_VERSION"), docker = %config.docker, "agent started");
    Ok(async move {
        tokio::select! {
            () = link.run() => {}
            () = renewer.run(resuming) => {}
            () = trust::run(tools.clone(), ends.welcomed) => {}
            () = served::run(tools) => {}
            () = room::run(config.clone(), discovery.clone()) => {}
            () = reread(discovery) => {}
            () = metrics::run(config.metrics_listen, shared, ends.session) => {}
        }
    })
}
