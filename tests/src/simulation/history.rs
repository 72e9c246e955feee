//! Everything that happened, in order: what two runs of a seed are compared by,
//! and what a person reads when one fails.
//!
//! Serials, fingerprints and keys are random bytes to which nothing may react;
//! here they get the number of their first appearance.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Clones share it.
#[derive(Clone)]
pub struct History(Arc<Mutex<Lines>>);

struct Lines {
    began: Instant,
    lines: Vec<String>,
    names: BTreeMap<Vec<u8>, usize>,
}

impl History {
    /// Begins now, by the simulated clock.
    pub fn begin() -> Self {
        let lines = Lines { began: Instant::now(), lines: Vec::new(), names: BTreeMap::new() };
        Self(Arc::new(Mutex::new(lines)))
    }

    /// Something happened to somebody.
    pub fn note(&self, who: &str, what: impl Display) {
        let mut inner = self.lines();
        let line = format!("{:10.3} {who:<9} {what}", inner.began.elapsed().as_secs_f64());
        inner.lines.push(line);
    }

    /// A short name for random bytes.
    pub fn name(&self, bytes: &[u8]) -> String {
        if bytes.is_empty() {
            return "-".into();
        }
        let mut inner = self.lines();
        let next = inner.names.len();
        format!("#{}", inner.names.entry(bytes.to_vec()).or_insert(next))
    }

    /// All of it.
    pub fn all(&self) -> Vec<String> {
        self.lines().lines.clone()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
