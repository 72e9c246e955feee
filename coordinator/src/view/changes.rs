//! Tells waiters that something changed, in the order in which they began to wait.
//!
//! A `watch` channel wakes its receivers in an order that it chooses by chance;
//! with this one the same things happen in the same order again. It says that
//! there was a change, not which, nor how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The side that tells. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Changes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    number: AtomicU64,
    notify: Notify,
}

/// The side that waits.
pub struct Changed {
    shared: Arc<Shared>,
    seen: u64,
}

impl Changes {
    /// Something changed.
    pub(super) fn bump(&self) {
        self.0.number.fetch_add(1, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Waits for what changes from now on.
    pub(super) fn subscribe(&self) -> Changed {
        Changed { seen: self.0.number.load(Ordering::Acquire), shared: self.0.clone() }
    }
}

impl Changed {
    /// Returns when something has changed since it last returned, or since it was made.
    pub async fn changed(&mut self) {
        loop {
            let notified = self.shared.notify.notified();
            tokio::pin!(notified);
            // From here on no change is missed.
            notified.as_mut().enable();
            let number = self.shared.number.load(Ordering::Acquire);
            if number != self.seen {
                self.seen = number;
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Mutex;

    #[tokio::test]
    async fn wakes_in_order_and_misses_nothing() {
        let changes = Changes::default();
        let mut early = changes.subscribe();
        changes.bump();
        changes.bump();
        early.changed().await;
        let woken: Arc<Mutex<Vec<usize>>> = Arc::default();
        let waiting: Vec<_> = (0..20)
            .map(|at| {
                let (mut changed, woken) = (changes.subscribe(), woken.clone());
                tokio::spawn(async move {
                    changed.changed().await;
                    woken.lock().expect("no panic").push(at);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        changes.bump();
        for task in waiting {
            task.await.expect("no panic");
        }
        assert_eq!(*woken.lock().expect("no panic"), (0..20).collect::<Vec<_>>());
    }
}
