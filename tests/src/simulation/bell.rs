//! Wakes everybody who listens, in the order in which they began to wait.
//!
//! Tokio's `watch` wakes its receivers in an order chosen by chance, which no
//! seed decides: nothing in a simulation may have two receivers of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The side that rings. Clones share it.
#[derive(Clone, Default)]
pub struct Bell(Arc<Shared>);

#[derive(Default)]
struct Shared {
    rung: AtomicU64,
    notify: Notify,
}

/// The side that listens.
pub struct Listener {
    bell: Bell,
    heard: u64,
}

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        self.0.rung.fetch_add(1, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    /// Has it ever rung?
    pub fn has_rung(&self) -> bool {
        self.0.rung.load(Ordering::SeqCst) > 0
    }

    /// Waits until it has rung, if it has not yet.
    pub async fn once(&self) {
        Listener { bell: self.clone(), heard: 0 }.next().await;
    }

    /// Listens from now on.
    pub fn listen(&self) -> Listener {
        Listener { heard: self.0.rung.load(Ordering::SeqCst), bell: self.clone() }
    }
}

impl Listener {
    /// Waits until it has rung since the last time.
    pub async fn next(&mut self) {
        loop {
            let notified = self.bell.0.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let rung = self.bell.0.rung.load(Ordering::SeqCst);
            if rung != self.heard {
                self.heard = rung;
                return;
            }
            notified.await;
        }
    }
}
