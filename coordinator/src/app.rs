//! The coordinator, wired: the only place that builds the parts, and reads the clock.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use reseal_proto::telemetry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::domain::Now;
use crate::engine::Engine;
use crate::grpc;
use crate::issuance::Issuance;
use crate::issuance::control::ControlPlane;
use crate::issuance::keyring::Keyring;
use crate::metrics::Metrics;
use crate::monitor;
use crate::store::{Presence, Store};
use crate::view::View;

/// Hosts of one coordinator at most.
const HOSTS: usize = 100_000;

/// The clock: seconds since the Unix epoch.
#[allow(clippy::disallowed_methods)]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Runs a coordinator until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&telemetry::Settings {
        service: "reseal-coordinator",
        level: config.telemetry.log_level.clone(),
        format: config.telemetry.log_format,
        otlp_endpoint: config.telemetry.otlp_endpoint.clone(),
        sample_ratio: config.telemetry.sample_ratio,
    })?;
    // Keys are in memory: no dump of it may land on a disk.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
        .context("cannot switch core dumps off")?;
    raise_descriptor_limit();

    let keyring = Arc::new(Keyring::load(&config.kek_files)?);
    let store = Store::open(&config.data_dir, &config.name)?;
    crate::restore::check(&store).await?;
    let (stop, stopping) = watch::channel(false);
    let wiring = Wiring { name: config.name.clone(), advertise: config.advertise.into(), now };
    let App { parts, engine, follower } = App::start(store, keyring, wiring, stopping.clone()).await?;
    if let Some(address) = config.metrics_listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on metrics_listen {address}"))?;
        tokio::spawn(monitor::serve(listener, parts.metrics.clone(), parts.view.clone()));
    }
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(
        name = %config.name,
        listen = %config.listen,
        fleet = %parts.control.fleet,
        epoch = parts.store.epoch(),
        hosts = parts.view.read().hosts.len(),
        "coordinator is up"
    );
    let server = tokio::spawn(grpc::serve(listener, parts, stopping));
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    let _ = stop.send(true);
    let grace = std::time::Duration::from_secs(5);
    if let Ok(result) = tokio::time::timeout(grace, server).await {
        result??;
    }
    let _ = tokio::time::timeout(grace, engine).await;
    follower.abort();
    Ok(())
}

/// A coordinator that runs, and what its services are made of.
pub(crate) struct App {
    pub(crate) parts: grpc::Parts,
    /// Ends when it is told to stop.
    pub(crate) engine: JoinHandle<()>,
    /// Brings the projection up to date.
    pub(crate) follower: JoinHandle<()>,
}

/// What an [`App`] is told about itself.
pub(crate) struct Wiring {
    /// Name of this coordinator.
    pub(crate) name: String,
    /// What join tokens say about where to connect.
    pub(crate) advertise: Arc<[String]>,
    /// The clock.
    pub(crate) now: Now,
}

impl App {
    /// Wires the parts over an open store and starts the engine.
    pub(crate) async fn start(
        store: Store,
        keyring: Arc<Keyring>,
        wiring: Wiring,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let Wiring { name, advertise, now } = wiring;
        let control = Arc::new(ControlPlane::load(&store, &keyring).await?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let issuance = Issuance::new(store.clone(), keyring.clone(), cores, now);
        let view = View::default();
        let hints = store.watch();
        view.load(&store).await?;
        let presence = Presence::new(HOSTS);
        let started_at = now();
        let follower = {
            let (view, store, issuance) = (view.clone(), store.clone(), issuance.clone());
            tokio::spawn(async move { view.follow(store, hints, move || issuance.forget()).await })
        };
        let metrics = Metrics::default();
        let engine = Engine {
            store: store.clone(),
            view: view.clone(),
            presence: presence.clone(),
            metrics: metrics.clone(),
            now,
            name,
            started_at,
        };
        let engine = tokio::spawn(engine.run(stopping));
        let parts = grpc::Parts {
            store,
            view,
            presence,
            issuance,
            control,
            keyring,
            metrics,
            advertise,
            now,
            started_at,
        };
        Ok(Self { parts, engine, follower })
    }
}

/// Ten thousand agents are ten thousand descriptors.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
