//! Sessions that were refused: counted, logged, and audited within a bound.
//!
//! A banned host tries again for as long as it runs, and a fleet of them must
//! not fill the audit chain: some entries a minute for each, some a second in
//! all. What is beyond is counted and logged only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::Now;
use crate::domain::allowance::Allowance;
use crate::metrics::Metrics;
use crate::store::{AuditDraft, Commit, Store};

/// Audited refusals of one host in a minute.
const PER_HOST: u8 = 2;
/// Hosts counted one by one within a minute; further ones are not audited.
const HOSTS: usize = 10_000;

/// What was refused lately. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RefusedSessions(Arc<Parts>);

struct Parts {
    store: Store,
    metrics: Metrics,
    now: Now,
    tally: Mutex<Tally>,
}

/// What is left of this minute, host by host, and of this second.
#[derive(Default)]
struct Tally {
    minute: i64,
    hosts: HashMap<String, u8>,
    all: Allowance,
}

impl Tally {
    /// Takes one; false when there was enough.
    fn take(&mut self, host: &str, now: i64) -> bool {
        let minute = now.div_euclid(60);
        if self.minute != minute {
            self.minute = minute;
            self.hosts.clear();
        }
        if self.hosts.len() >= HOSTS && !self.hosts.contains_key(host) {
            return false;
        }
        let taken = self.hosts.entry(host.to_owned()).or_default();
        if *taken >= PER_HOST {
            return false;
        }
        *taken += 1;
        self.all.take(now)
    }
}

impl RefusedSessions {
    /// Over this store.
    pub(crate) fn new(store: Store, metrics: Metrics, now: Now) -> Self {
        Self(Arc::new(Parts { store, metrics, now, tally: Mutex::default() }))
    }

    /// Notes that `who` ("host/web-1") was refused a session.
    pub(crate) async fn note(&self, who: &str, why: &str) {
        let parts = &self.0;
        parts.metrics.sessions_refused.inc();
        tracing::warn!(who, why, "session refused");
        let now = (parts.now)();
        if !parts.tally.lock().unwrap_or_else(PoisonError::into_inner).take(who, now) {
            return;
        }
        let draft = AuditDraft {
            at: now,
            actor: who.to_owned(),
            action: "host.session".into(),
            object: "agent service".into(),
            outcome: "refused".into(),
            detail: why.to_owned(),
        };
        if let Err(error) = parts.store.commit(Commit::new().audit(draft)).await {
            tracing::error!(%error, "cannot audit a refused session");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_audited_twice_a_minute() {
        let mut tally = Tally::default();
        assert_eq!((0..50).filter(|_| tally.take("host/a", 600)).count(), 2);
        assert!(tally.take("host/b", 600), "another host has its own");
        assert!(tally.take("host/a", 660), "the next minute is new");
    }

    #[test]
    fn a_flood_of_hosts_is_bounded_in_all_and_in_memory() {
        let mut tally = Tally::default();
        let audited = (0..20_000).filter(|host| tally.take(&format!("host/{host}"), 600)).count();
        assert_eq!(audited, 10);
        assert_eq!(tally.hosts.len(), HOSTS);
    }
}
