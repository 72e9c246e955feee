//! Hints: what changed, never what to do about it.
//!
//! A hint is sent after its commit is durable. It carries no decision: who
//! gets one reads the store and decides from what is there. One message per
//! group of commits, so that a busy store costs its watchers little; a watcher
//! that falls behind gets [`Hint::Resync`] instead of an unbounded queue.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use std::sync::Arc;

/// Groups a watcher may be behind before it is told to resync.
const BACKLOG: usize = 1024;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// This key was written or deleted.
    Key {
        /// The key.
        key: Arc<str>,
        /// The revision of the commit.
        revision: u64,
    },
    /// Hints were missed: read everything again.
    Resync,
}

/// The sending side, one per engine.
#[derive(Debug)]
pub(super) struct Hints(broadcast::Sender<Arc<[Hint]>>);

impl Default for Hints {
    fn default() -> Hints {
        Hints(broadcast::channel(BACKLOG).0)
    }
}

impl Hints {
    /// False when nobody listens, and hints need not be made.
    pub(super) fn wanted(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Tells everyone.
    pub(super) fn send(&self, hints: Vec<Hint>) {
        // An error only says that nobody listens.
        let _ = self.0.send(hints.into());
    }

    /// Listens from now on.
    pub(super) fn subscribe(&self) -> Watch {
        Watch { receiver: self.0.subscribe(), group: Arc::new([]), next: 0 }
    }
}

/// The listening side.
#[derive(Debug)]
pub struct Watch {
    receiver: broadcast::Receiver<Arc<[Hint]>>,
    group: Arc<[Hint]>,
    next: usize,
}

impl Watch {
    /// The next hint; `None` when the store is closed. Loses nothing when dropped half-way.
    pub async fn next(&mut self) -> Option<Hint> {
        loop {
            if let Some(hint) = self.held() {
                return Some(hint);
            }
            match self.receiver.recv().await {
                Ok(group) => self.take(group),
                Err(RecvError::Lagged(_)) => return Some(Hint::Resync),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next hint if one is there.
    pub fn ready(&mut self) -> Option<Hint> {
        loop {
            if let Some(hint) = self.held() {
                return Some(hint);
            }
            match self.receiver.try_recv() {
                Ok(group) => self.take(group),
                Err(TryRecvError::Lagged(_)) => return Some(Hint::Resync),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    fn held(&mut self) -> Option<Hint> {
        let hint = self.group.get(self.next)?.clone();
        self.next += 1;
        Some(hint)
    }

    fn take(&mut self, group: Arc<[Hint]>) {
        self.group = group;
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(revision: u64) -> Hint {
        Hint::Key { key: "host/web-1".into(), revision }
    }

    #[tokio::test]
    async fn groups_come_one_by_one() {
        let hints = Hints::default();
        assert!(!hints.wanted());
        let mut watch = hints.subscribe();
        assert!(hints.wanted());
        hints.send(vec![hint(1), hint(2)]);
        hints.send(vec![hint(3)]);
        assert_eq!(watch.next().await, Some(hint(1)));
        assert_eq!(watch.ready(), Some(hint(2)));
        assert_eq!(watch.next().await, Some(hint(3)));
        assert_eq!(watch.ready(), None);
        drop(hints);
        assert_eq!(watch.next().await, None);
    }

    #[tokio::test]
    async fn who_falls_behind_resyncs() {
        let hints = Hints::default();
        let mut watch = hints.subscribe();
        for revision in 0..=BACKLOG as u64 {
            hints.send(vec![hint(revision)]);
        }
        assert_eq!(watch.next().await, Some(Hint::Resync));
        assert_eq!(watch.next().await, Some(hint(1)));
    }
}
