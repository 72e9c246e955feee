//! What a seed decides once, and what everything in it shares.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reseal::simulation::{Coordinator, Fleet};
use reseal::store::Store;
use reseal::store::simulated::{Disk, Moment};
use reseal::view::View;
use tokio::time::Instant;
use tonic::service::Routes;

use super::bell::Bell;
use super::check::Checker;
use super::history::History;
use super::host::Host;
use super::network::Link;
use super::random::Random;

/// When every simulation begins; seconds since the Unix epoch.
pub const BEGIN: i64 = 1_800_000_000;
/// The simulated fleet.
pub const FLEET: &str = "sim";

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The simulated clock: seconds since the Unix epoch.
pub fn now() -> i64 {
    let passed = BEGAN.get().map_or(0, |began| began.elapsed().as_secs());
    BEGIN + i64::try_from(passed).unwrap_or(i64::MAX)
}

/// Sets the clock of this thread to the beginning.
pub fn begin() {
    BEGAN.set(Some(Instant::now()));
}

/// How bad it gets in this seed.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Milliseconds a group may take to reach the disk.
    pub slow_disk: u64,
    /// Milliseconds a read may take.
    pub slow_read: u64,
    /// Milliseconds a message may take.
    pub latency: u64,
    /// Seconds between two misfortunes at most; 0: none.
    pub misfortune: u64,
    /// Seconds between two acts of the operator at most.
    pub operator: u64,
    /// How often in a hundred a service breaks with its new certificate.
    pub broken: u64,
    /// Seconds a certificate lives.
    pub lifetime: u64,
    /// Seconds of chaos.
    pub chaos: u64,
}

impl Weather {
    fn of(random: &Random) -> Self {
        Self {
            slow_disk: *random.pick(&[0, 5, 50, 800]),
            slow_read: *random.pick(&[0, 0, 3, 100]),
            latency: *random.pick(&[1, 20, 300, 3000]),
            misfortune: *random.pick(&[0, 4, 15, 60]),
            operator: *random.pick(&[5, 20, 60]),
            broken: *random.pick(&[0, 0, 5, 30]),
            lifetime: *random.pick(&[900, 2400, 30 * 86_400]),
            chaos: *random.pick(&[60, 200, 600]),
        }
    }
}

/// A coordinator that runs.
#[derive(Clone)]
pub struct Up {
    /// Its services.
    pub routes: Routes,
    /// Its store.
    pub store: Store,
    /// Its projection.
    pub view: View,
    /// Rings when it dies.
    pub gone: Bell,
}

/// Shared by everything in one seed.
pub struct World {
    /// Chance.
    pub random: Random,
    /// What happened.
    pub history: History,
    /// What must hold.
    pub checker: Checker,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// How bad it gets.
    pub weather: Weather,
    /// Certificate of the admin, DER.
    pub admin: Vec<u8>,
    /// The fleet as it was made.
    pub fleet: Arc<Fleet>,
    /// The coordinator's disk.
    pub disk: Disk,
    running: Mutex<Option<(Up, Coordinator)>>,
    /// Open connections, by host.
    pub(super) links: Mutex<BTreeMap<Arc<str>, Vec<Link>>>,
    /// Hosts that reach nobody.
    pub(super) unreachable: Mutex<BTreeSet<Arc<str>>>,
}

impl World {
    /// A world for this seed, with nothing in it running yet.
    pub fn new(seed: u64, fleet: Arc<Fleet>) -> Arc<Self> {
        let random = Random::new(seed);
        let history = History::begin();
        let weather = Weather::of(&random);
        let lying = random.percent(25);
        let hosts: Vec<Host> = (0..2 + random.below(4))
            .map(|at| {
                let installations = 1 + random.below(3) as usize;
                Host::new(&format!("h{at}"), installations, lying && at == 1)
            })
            .collect();
        history.note("seed", format!("{seed}: {} hosts, {weather:?}, a liar: {lying}", hosts.len()));
        let disk = fleet.disk.copy();
        let checker = Checker::new(history.clone(), hosts.clone(), &disk);
        let watching = checker.clone();
        disk.observed_by(Arc::new(move |revision, writes| watching.commit(revision, writes)));
        let world = Arc::new(Self {
            random,
            history,
            checker,
            hosts,
            weather,
            admin: fleet.admin.clone(),
            fleet,
            disk,
            running: Mutex::default(),
            links: Mutex::default(),
            unreachable: Mutex::default(),
        });
        let (random, weather) = (world.random.clone(), world.weather.clone());
        world.disk.delayed_by(Arc::new(move |moment| match moment {
            Moment::Read if random.percent(70) => Duration::ZERO,
            Moment::Read => random.millis(0, weather.slow_read),
            Moment::Write => random.millis(0, weather.slow_disk),
            Moment::Answer => random.millis(0, weather.slow_disk / 2),
        }));
        world
    }

    /// The coordinator, if it runs.
    pub fn up(&self) -> Option<Up> {
        lock(&self.running).as_ref().map(|(up, _)| up.clone())
    }

    /// Starts the coordinator; what ran before is killed.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.crash();
        let coordinator = Coordinator::start(&self.disk, self.fleet.keyring.clone(), now).await?;
        let up = Up {
            routes: coordinator.routes.clone(),
            store: coordinator.store.clone(),
            view: coordinator.view.clone(),
            gone: Bell::default(),
        };
        self.history.note("coord", format!("up, epoch {}", up.store.epoch()));
        *lock(&self.running) = Some((up, coordinator));
        Ok(())
    }

    /// kill -9.
    pub fn crash(&self) {
        if let Some((up, coordinator)) = lock(&self.running).take() {
            self.history.note("coord", "killed");
            coordinator.kill();
            up.gone.ring();
        }
    }

    /// Lets a moment pass that something could happen in.
    pub async fn pause(&self, from: u64, to: u64) {
        tokio::time::sleep(self.random.millis(from, to)).await;
    }
}

/// Locks what nobody panics with.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
