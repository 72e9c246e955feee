//! Which host is on which stream, and the way to wake it.
//!
//! One session per host: a newer one ends the older. The dispatcher takes the
//! projection's wake-ups to the sessions; a wake-up carries no order, the
//! session looks for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::view::View;

/// The sessions of this process. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<Arc<str>, Arc<Slot>>>>);

/// One session's place.
#[derive(Default)]
pub(crate) struct Slot {
    notify: Notify,
    ended: std::sync::atomic::AtomicBool,
}

impl Slot {
    /// Waits to be woken; false when this session has to end.
    pub(crate) async fn woken(&self) -> bool {
        self.notify.notified().await;
        !self.ended.load(std::sync::atomic::Ordering::Acquire)
    }

    fn end(&self) {
        self.ended.store(true, std::sync::atomic::Ordering::Release);
        self.notify.notify_one();
    }
}

impl Sessions {
    /// Takes the host's place; a session that had it ends.
    pub(crate) fn enter(&self, host: &Arc<str>) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let old = self.map().insert(host.clone(), slot.clone());
        if let Some(old) = old {
            old.end();
        }
        slot
    }

    /// Leaves it, unless somebody newer has it.
    pub(crate) fn leave(&self, host: &Arc<str>, slot: &Arc<Slot>) {
        let mut map = self.map();
        if map.get(host).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            map.remove(host);
        }
    }

    /// Takes wake-ups to sessions, for ever.
    pub(crate) async fn dispatch(self, view: View) {
        loop {
            let hosts = view.woken().await;
            let map = self.map();
            for host in hosts {
                if let Some(slot) = map.get(&host) {
                    slot.notify.notify_one();
                }
            }
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
