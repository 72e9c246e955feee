//! The engine: what is due, done once, by whoever holds the lease.
//!
//! One driver, woken by the projection or the clock. Each activation takes no
//! input: it looks at the state, asks the domain what is next, and commits that
//! under the lease. Killed at any line, the next engine finds the same question
//! and gives the same answer.
//!
//! - [`rotations`]: orders waves, halts, trails, completes.
//! - [`stragglers`]: names hosts that are away when they are ordered.
//! - [`overdue`]: gives up on results that never come.
//! - [`excluded`]: takes out the targets of hosts that an operator excluded.
//! - [`overtaken`]: notes which unserved targets nothing can prove any more.
//! - [`missed`]: finds targets that a running rotation did not know of.
//! - [`outcomes`]: puts on record what an ended rotation came to.
//! - [`renewals`]: orders what is due by plan.
//! - [`orphans`]: removes batches of rotations that never began.
//! - [`steady`]: notices a clock that was put forward or back, so that patience is not measured by it.

mod excluded;
mod missed;
mod orphans;
mod outcomes;
mod overdue;
mod overtaken;
mod renewals;
mod rotations;
mod steady;
mod stragglers;

use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use self::steady::Steady;
use crate::domain::Now;
use crate::metrics::Metrics;
use crate::store::record::Batch;
use crate::store::{Commit, Lease, Presence, Store, StoreError, Versioned, keys};
use crate::view::{Changed, View};

/// The clock's part: deadlines, thresholds and absences are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// How long the lease is held without renewal.
const LEASE: Duration = Duration::from_secs(15);
/// After an error of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// The engine of one coordinator.
pub struct Engine {
    /// Where everything is.
    pub store: Store,
    /// What it says, in short.
    pub view: View,
    /// Who is connected.
    pub presence: Presence,
    /// Counters.
    pub metrics: Metrics,
    /// The clock.
    pub now: Now,
    /// Name of this coordinator: holder of the lease.
    pub name: String,
    /// When this process started: absence is counted from here at the earliest.
    pub started_at: i64,
}

/// One activation's surroundings.
struct Turn<'a> {
    engine: &'a Engine,
    lease: &'a Lease,
    now: i64,
    /// Patience is counted from here at the earliest; see [`steady`].
    settled: i64,
}

impl Engine {
    /// Runs until `shutdown` says so.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let mut changed = self.view.changed();
        while !*shutdown.borrow() {
            let lease = match self.store.lease(keys::ENGINE_LEASE, &self.name, LEASE).await {
                Ok(Some(lease)) => lease,
                Ok(None) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot take the engine's lease");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            self.hold(&lease, &mut changed, &mut shutdown).await;
        }
    }

    async fn hold(&self, lease: &Lease, changed: &mut Changed, shutdown: &mut watch::Receiver<bool>) {
        let mut steady = Steady::new(self.started_at, (self.now)());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let by_clock = tokio::select! {
                biased;
                _ = shutdown.changed() => return,
                _ = tick.tick() => true,
                () = changed.changed() => false,
            };
            if by_clock {
                match self.store.renew(lease).await {
                    Ok(true) => {}
                    Ok(false) => return tracing::warn!("another coordinator runs the engine now"),
                    Err(error) => return tracing::error!(%error, "cannot renew the engine's lease"),
                }
            }
            let now = (self.now)();
            let turn = Turn { engine: self, lease, now, settled: steady.settled(now) };
            let span = tracing::debug_span!("engine.turn", by_clock);
            match turn.take(by_clock).instrument(span).await {
                Ok(()) => {}
                Err(error) if error.is_conflict() => {
                    tracing::debug!(%error, "something moved; looking again")
                }
                Err(error @ StoreError::LeaseLost { .. }) => return tracing::warn!(%error, "stopping"),
                Err(error) => {
                    tracing::error!(%error, "the engine could not do what is due");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// An error that is about one host's records is told and passed over; one that is
/// about the store or the lease, or that looking again mends, is handed on.
fn pass_over(host: &str, result: Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Err(error @ (StoreError::Limit { .. } | StoreError::Record(_))) => {
            tracing::error!(host, %error, "what is due on this host cannot be recorded");
            Ok(())
        }
        other => other,
    }
}

/// Batches of a host that are not finished, of rotations that are meant; renewals are, too,
/// when the empty name is.
async fn open_batches(
    turn: &Turn<'_>,
    host: &str,
    means: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Versioned<Batch>)>, StoreError> {
    let names: Vec<(Box<str>, String)> = {
        let state = turn.engine.view.read();
        let open = state.hosts.get(host).into_iter().flat_map(|host| &host.open);
        let rotation = |number: Option<u64>| number.map(|number| format!("r{number}")).unwrap_or_default();
        open.map(|open| (open.batch.clone(), rotation(open.rotation))).collect()
    };
    let mut batches = Vec::new();
    for (name, _) in names.iter().filter(|(_, rotation)| means(rotation)) {
        let key = keys::batch(host, name);
        let batch = turn.engine.store.get::<Batch>(&key).await?;
        batches.extend(batch.filter(|batch| batch.value.finished_at == 0).map(|batch| (key, batch)));
    }
    Ok(batches)
}

impl Turn<'_> {
    /// Is work of this rotation still to be done?
    fn is_live(&self, rotation: &str) -> bool {
        self.engine.view.read().is_live(rotation)
    }

    /// Commits what is right for the records as they were read. When one of them has moved
    /// meanwhile, such as by a result that arrived, nothing is written (false) and the next turn looks again.
    async fn commit_unless_moved(&self, commit: Commit) -> Result<bool, StoreError> {
        match self.engine.store.commit(commit).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The time for deadlines: none passes just because the clock was put forward. Somebody has
    /// [`steady::GRACE`] to put it right.
    fn deadlines(&self) -> i64 {
        if self.settled > self.engine.started_at && self.now < self.settled + steady::GRACE {
            i64::MIN
        } else {
            self.now
        }
    }

    /// Have so many seconds passed since then?
    fn has_passed(&self, seconds: i64, since: i64) -> bool {
        steady::has_passed(seconds, since, self.settled, self.now)
    }

    async fn take(&self, by_clock: bool) -> Result<(), StoreError> {
        // What was missed first: a rotation must not complete over it.
        missed::add(self).await?;
        excluded::take_out(self).await?;
        rotations::step(self).await?;
        if by_clock {
            stragglers::mark(self).await?;
            overdue::fail(self).await?;
            renewals::order(self).await?;
            orphans::remove(self).await?;
            outcomes::record(self).await?;
        }
        Ok(())
    }
}
