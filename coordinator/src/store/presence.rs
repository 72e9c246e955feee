//! Who is connected: the part of the state that is never stored.
//!
//! One small entry per host, bounded in number; heartbeats cost a map look-up
//! and no write. It is lost at a restart on purpose: whoever is there connects
//! again, and until then counts as absent since the start. Every instant is an
//! argument, in seconds since the Unix epoch. The agent service writes it;
//! engine, operator service and metrics read it.

use tokio::sync::watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One connection of one host; a later one of the same host has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Session(u64);

/// What is known of a connected host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// When its session began.
    pub since: i64,
    /// When something was last received on it.
    pub last_seen: i64,
    /// The agent's version.
    pub version: Arc<str>,
    /// The agent's clock minus ours, in milliseconds.
    pub clock_skew_ms: i64,
}

/// Every place is taken by a connected host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("host {host} cannot connect: {limit} hosts are connected already, which is the limit")]
pub struct Crowded {
    /// The host that found no place.
    pub host: String,
    /// The limit.
    pub limit: usize,
}

/// Who is connected. Clones share it.
#[derive(Clone, Debug)]
pub struct Presence(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<Box<str>, Host>,
    connected: usize,
    sessions: u64,
    /// The versions in use: few, so that a host holds a pointer only.
    versions: Vec<Arc<str>>,
}

#[derive(Debug)]
enum Host {
    Connected(Session, Connected),
    Absent { since: i64 },
}

impl Presence {
    /// Nobody yet, and never more than `limit` hosts.
    pub fn new(limit: usize) -> Presence {
        let state = Mutex::new(State::default());
        Presence(Arc::new(Shared { state, changes: watch::Sender::new(0), limit }))
    }

    /// A host has opened a session. An older one of the same host is forgotten.
    ///
    /// # Errors
    /// When the host is new and as many as the limit are connected; to make
    /// room for it, the one that is absent for the longest time is forgotten.
    pub fn connect(
        &self,
        host: &str,
        version: &str,
        clock_skew_ms: i64,
        now: i64,
    ) -> Result<Session, Crowded> {
        let mut state = self.state();
        if !state.hosts.contains_key(host) && state.hosts.len() >= self.0.limit {
            let absent = state.hosts.iter().filter_map(|(name, host)| match host {
                Host::Absent { since } => Some((*since, name)),
                Host::Connected(..) => None,
            });
            let Some(longest) = absent.min().map(|(_, name)| name.clone()) else {
                return Err(Crowded { host: host.to_owned(), limit: self.0.limit });
            };
            state.hosts.remove(&longest);
        }
        state.sessions += 1;
        let session = Session(state.sessions);
        let version = state.version(version);
        let connected = Connected { since: now, last_seen: now, version, clock_skew_ms };
        let before = state.hosts.insert(host.into(), Host::Connected(session, connected));
        if !matches!(before, Some(Host::Connected(..))) {
            state.connected += 1;
        }
        drop(state);
        self.changed();
        Ok(session)
    }

    /// Something was received on a session. False when a newer one has taken its place.
    pub fn seen(&self, host: &str, session: Session, now: i64) -> bool {
        match self.state().hosts.get_mut(host) {
            Some(Host::Connected(current, connected)) if *current == session => {
                connected.last_seen = now;
                true
            }
            _ => false,
        }
    }

    /// A session has ended; changes nothing when a newer one has taken its place.
    pub fn disconnect(&self, host: &str, session: Session, now: i64) {
        let mut state = self.state();
        let Some(entry) = state.hosts.get_mut(host) else {
            return;
        };
        if !matches!(entry, Host::Connected(current, _) if *current == session) {
            return;
        }
        *entry = Host::Absent { since: now };
        state.connected -= 1;
        drop(state);
        self.changed();
    }

    /// True while the host has a session.
    pub fn connected(&self, host: &str) -> bool {
        matches!(self.state().hosts.get(host), Some(Host::Connected(..)))
    }

    /// What is known of the host, while it has a session.
    pub fn show(&self, host: &str) -> Option<Connected> {
        match self.state().hosts.get(host) {
            Some(Host::Connected(_, connected)) => Some(connected.clone()),
            _ => None,
        }
    }

    /// Since when the host has no session, `None` while it has one. One that was
    /// not seen at all is absent since the coordinator started.
    pub fn absent_since(&self, host: &str, started_at: i64) -> Option<i64> {
        match self.state().hosts.get(host) {
            Some(Host::Connected(..)) => None,
            Some(Host::Absent { since }) => Some(*since),
            None => Some(started_at),
        }
    }

    /// Number of hosts with a session.
    pub fn count(&self) -> usize {
        self.state().connected
    }

    /// Turns over whenever a host connects or disconnects; not at heartbeats.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|turn| *turn += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn version(&mut self, version: &str) -> Arc<str> {
        /// Beyond so many, hosts hold their own; nobody runs that many versions.
        const SHARED: usize = 32;
        /// An agent chooses this text, so it is cut.
        const LONGEST: usize = 32;
        let end = version.char_indices().nth(LONGEST).map_or(version.len(), |(end, _)| end);
        let version = &version[..end];
        if let Some(known) = self.versions.iter().find(|known| &***known == version) {
            return Arc::clone(known);
        }
        let new: Arc<str> = version.into();
        if self.versions.len() < SHARED {
            self.versions.push(Arc::clone(&new));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_and_goes() {
        let presence = Presence::new(10);
        let mut changes = presence.changes();
        assert_eq!(presence.absent_since("web-1", 100), Some(100));
        let session = presence.connect("web-1", "0.1.0", -20, 110).expect("room");
        assert!(changes.has_changed().expect("alive"));
        changes.mark_unchanged();
        assert!(presence.connected("web-1"));
        assert_eq!(presence.absent_since("web-1", 100), None);
        assert!(presence.seen("web-1", session, 115));
        assert!(!changes.has_changed().expect("alive"), "a heartbeat is no change");
        let shown = presence.show("web-1").expect("connected");
        assert_eq!((shown.since, shown.last_seen, shown.clock_skew_ms), (110, 115, -20));
        presence.disconnect("web-1", session, 120);
        assert_eq!(presence.absent_since("web-1", 100), Some(120));
        assert_eq!((presence.count(), presence.show("web-1")), (0, None));
        assert!(changes.has_changed().expect("alive"));
    }

    #[test]
    fn the_end_of_an_old_session_does_not_end_the_new_one() {
        let presence = Presence::new(10);
        let old = presence.connect("web-1", "0.1.0", 0, 1).expect("room");
        let new = presence.connect("web-1", "0.1.0", 0, 2).expect("room");
        assert!(new > old);
        presence.disconnect("web-1", old, 3);
        assert!(presence.connected("web-1"));
        assert!(!presence.seen("web-1", old, 4));
        assert!(presence.seen("web-1", new, 4));
        assert_eq!(presence.count(), 1);
    }

    #[test]
    fn is_bounded() {
        let presence = Presence::new(2);
        let a = presence.connect("a", "0.1.0", 0, 1).expect("room");
        let b = presence.connect("b", "0.1.0", 0, 1).expect("room");
        let refused = presence.connect("c", "0.1.0", 0, 1).expect_err("crowded");
        assert_eq!(refused, Crowded { host: "c".to_owned(), limit: 2 });
        presence.disconnect("b", b, 2);
        presence.disconnect("a", a, 3);
        presence.connect("c", "0.1.0", 0, 4).expect("in the place of b");
        assert_eq!(presence.absent_since("b", 0), Some(0));
        assert_eq!(presence.absent_since("a", 0), Some(3));
    }

    #[test]
    fn is_small() {
        // Swiss table: at worst 16/7 places an entry, and a control byte each; a name of 24 bytes.
        let place = size_of::<(Box<str>, Host)>() + 1;
        assert!(place * 16 / 7 + 24 <= 220, "{place}");
        assert!(place * 8 / 7 + 24 <= 120, "{place}");
        let presence = Presence::new(100);
        let long = "9".repeat(4000);
        presence.connect("a", &long, 0, 1).expect("room");
        assert_eq!(presence.show("a").expect("connected").version.len(), 32);
    }
}
