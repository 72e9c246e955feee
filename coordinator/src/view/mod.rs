//! The projection: what the store says, small enough to keep in memory.
//!
//! Fed by the store's hints, rebuilt at start and after a resync. It
//! decides nothing and is never written to the store. The engine asks it what
//! is due, sessions ask it which batches are ordered, the operator service asks
//! it for counts. Certificates and names stay in the store: a host is a few
//! numbers here, so a million certificates cost little.

mod batches;
mod changes;
mod hosts;
mod load;
mod outcome;
mod refresh;

pub use batches::{BatchView, Counts, RotationView};
pub use changes::Changed;
pub use hosts::HostView;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use reseal_proto::v1::TargetState;
use tokio::sync::Notify;

use self::changes::Changes;
use crate::domain::rotation;
use crate::domain::selection::IssuerKey;
use crate::domain::target::PER_BATCH;

/// The projection of one process. Cheap to clone.
#[derive(Clone)]
pub struct View(Arc<Shared>);

struct Shared {
    state: RwLock<State>,
    changed: Changes,
    wakes: Mutex<BTreeSet<Arc<str>>>,
    woken: Notify,
    moved: Mutex<BTreeSet<Arc<str>>>,
}

/// Everything in it; read it through [`View::read`], briefly and without awaiting.
#[derive(Default)]
pub struct State {
    /// By name.
    pub hosts: BTreeMap<Arc<str>, HostView>,
    /// By number, so that `r10` follows `r9`.
    pub rotations: BTreeMap<u64, RotationView>,
    /// Keys of the authorities, by slot name.
    pub authorities: BTreeMap<String, IssuerKey>,
    /// Everything up to this revision of the store is in here.
    pub seen: u64,
}

impl Default for View {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: RwLock::default(),
            changed: Changes::default(),
            wakes: Mutex::default(),
            woken: Notify::new(),
            moved: Mutex::default(),
        }))
    }
}

impl View {
    /// Looks at the state. Do not hold it over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whenever something has changed.
    pub fn changed(&self) -> Changed {
        self.0.changed.subscribe()
    }

    /// Waits until sessions have something to look at, and says of which hosts.
    pub async fn woken(&self) -> BTreeSet<Arc<str>> {
        loop {
            let hosts = std::mem::take(&mut *self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner));
            if !hosts.is_empty() {
                return hosts;
            }
            self.0.woken.notified().await;
        }
    }

    /// Hosts whose inventory changed since this was last asked: the engine looks
    /// there for targets that a running rotation has missed.
    pub fn take_moved(&self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Is there a host that would be in [`View::take_moved`]?
    pub fn has_moved(&self) -> bool {
        !self.0.moved.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until the projection has seen this revision of a rotation; two seconds at most.
    pub async fn reaches(&self, id: &str, revision: u64) {
        let mut changed = self.changed();
        let seen = || {
            let number = rotation_number(id).unwrap_or_default();
            self.read().rotations.get(&number).is_some_and(|rotation| rotation.revision >= revision)
        };
        let wait = async {
            while !seen() {
                changed.changed().await;
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), wait).await;
    }

    /// Waits until everything up to this revision is in here; false after five seconds.
    pub async fn catches_up(&self, revision: u64) -> bool {
        let mut changed = self.changed();
        let wait = async {
            while self.read().seen < revision {
                changed.changed().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), wait).await.is_ok()
    }

    /// Gives back hosts that could not be looked at now.
    pub fn put_moved(&self, hosts: impl IntoIterator<Item = Arc<str>>) {
        self.0.moved.lock().unwrap_or_else(PoisonError::into_inner).extend(hosts);
    }

    /// Notes that renewals of a host wait until then.
    pub fn renewals_wait(&self, host: &str, until: i64) {
        self.write(|state| {
            if let Some(host) = state.hosts.get_mut(host) {
                host.renewals_after = until;
            }
        });
    }

    /// Takes an agent's word on how far targets of a batch are, for display only.
    pub fn progress(&self, host: &str, batch: &str, rotation: u64, targets: Vec<(Box<str>, TargetState)>) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(batch) = state
            .rotations
            .get_mut(&rotation)
            .and_then(|rotation| rotation.batches.get_mut(&(Arc::from(host), Box::from(batch))))
            && !batch.finished
        {
            let mut moved = false;
            for (installation, said) in targets {
                moved |= batch.live.insert(installation, said) != Some(said);
            }
            while batch.live.len() > PER_BATCH {
                batch.live.pop_last();
            }
            drop(state);
            if moved {
                self.bump();
            }
        }
    }

    fn bump(&self) {
        self.0.changed.bump();
    }
}

/// Certificates of one authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IssuedBy {
    /// Can be replaced.
    pub managed: u32,
    /// Were discovered: nobody looks after them.
    pub unmanaged: u32,
}

impl State {
    /// Is work of this rotation still to be done? True for a planned renewal (no rotation).
    pub fn is_live(&self, rotation: &str) -> bool {
        rotation.is_empty()
            || rotation_number(rotation)
                .and_then(|number| self.rotations.get(&number))
                .is_some_and(|rotation| !rotation::is_end(rotation.state))
    }

    /// Certificates on record that the authority of this name issued: the managed ones,
    /// and those that nobody looks after.
    pub fn issued_by(&self, authority: &str) -> IssuedBy {
        let Some(key) = self.authorities.get(authority) else { return IssuedBy::default() };
        let add = |sum: IssuedBy, host: &HostView| IssuedBy {
            managed: sum.managed + host.issued_by(key),
            unmanaged: sum.unmanaged + host.unmanaged_of(key),
        };
        self.hosts.values().fold(IssuedBy::default(), add)
    }

    /// Batches of a host that are ordered and unfinished, in the order of their names.
    pub fn ordered(&self, host: &str) -> Vec<Box<str>> {
        let Some(view) = self.hosts.get(host) else {
            return Vec::new();
        };
        view.open
            .iter()
            .filter(|open| match open.rotation {
                None => true,
                Some(rotation) => self.rotations.get(&rotation).is_some_and(|rotation| {
                    rotation::accepts_work(rotation.state) && open.place <= rotation.reach
                }),
            })
            .map(|open| open.batch.clone())
            .collect()
    }
}

/// The number in a rotation's id: `r7` is 7.
pub fn rotation_number(id: &str) -> Option<u64> {
    id.strip_prefix('r')?.parse().ok()
}
