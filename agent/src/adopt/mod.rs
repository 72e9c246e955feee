//! Takes on what was discovered, and lets go of it: `reseal adopt` on the host.
//!
//! Of the wire counts the id and nothing else: what the certificate is to be,
//! who uses it and how that reloads is inferred anew from a fresh look at this
//! host, and only where its own configuration says `adopt = true`. It is on disk
//! before it is answered; asked again it does nothing more. Bounded in rate.
//! Called by the session.

mod ports;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reseal_proto::v1::{self, Adopt, AdoptOutcome, Management, Usage};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::discover::Host;
use crate::discover::declared::adopted::Adopted;
use crate::discover::declared::source::KeepError;
use crate::discover::watch::Discovery;

/// Requests that are worked on or wait for their turn.
const AT_ONCE: usize = 8;
/// Requests in a minute.
const PER_MINUTE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
/// How long a release waits for a renewal that is under way: the one who asked waits not much longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// An id is not longer, bytes.
const MOST_ID: usize = 600;

/// Adopts and releases, one after the other.
#[derive(Debug)]
pub struct Adopter {
    discovery: Discovery,
    /// Held while a batch runs.
    busy: Arc<tokio::sync::Mutex<()>>,
    turn: tokio::sync::Mutex<()>,
    places: Semaphore,
    rate: Mutex<Rate>,
}

/// Why not.
struct Refusal {
    outcome: AdoptOutcome,
    reasons: Vec<String>,
}

impl Refusal {
    fn new(outcome: AdoptOutcome, reason: impl Into<String>) -> Self {
        Self { outcome, reasons: vec![reason.into()] }
    }
}

impl From<KeepError> for Refusal {
    fn from(error: KeepError) -> Self {
        Self::new(AdoptOutcome::Failed, crate::chain_of(&error).to_string())
    }
}

impl Adopter {
    /// `busy` is held while a batch runs.
    pub fn new(discovery: Discovery, busy: Arc<tokio::sync::Mutex<()>>) -> Self {
        Self {
            discovery,
            busy,
            turn: tokio::sync::Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            rate: Mutex::default(),
        }
    }

    /// Does what is asked, if that may be.
    pub async fn answer(&self, asked: Adopt) -> v1::Adopted {
        let done = self.act(&asked).await;
        let (outcome, reasons) = match done {
            Ok(outcome) => (outcome, Vec::new()),
            Err(refusal) => {
                warn!(installation = %reseal_proto::facts::printable(&asked.installation), release = asked.release, reasons = ?refusal.reasons, "not adopted");
                (refusal.outcome, refusal.reasons)
            }
        };
        v1::Adopted { request: asked.request, outcome: outcome.into(), reasons }
    }

    async fn act(&self, asked: &Adopt) -> Result<AdoptOutcome, Refusal> {
        let often = |what: &str| Refusal::new(AdoptOutcome::Failed, what);
        let _place = self
            .places
            .try_acquire()
            .map_err(|_| often("8 requests of this kind wait already: ask again in a moment"))?;
        if !self.rate.lock().expect("no panic while held").take(Instant::now()) {
            return Err(often("this was asked 30 times within a minute: ask again in a minute"));
        }
        let _turn = self.turn.lock().await;
        if asked.installation.len() > MOST_ID {
            return Err(Refusal::new(AdoptOutcome::Unknown, "no id is that long"));
        }
        match asked.release {
            true => self.release(&asked.installation).await,
            false => self.adopt(&asked.installation).await,
        }
    }

    async fn adopt(&self, id: &str) -> Result<AdoptOutcome, Refusal> {
        let host = self.look().await?;
        if let Some(known) = host.installations.get(id) {
            return match known.management {
                Management::Adopted => Ok(AdoptOutcome::Adopted),
                Management::Labels | Management::Configuration | Management::Discovered => {
                    Err(Refusal::new(AdoptOutcome::Declared, format!("as {}", known.label)))
                }
            };
        }
        if !self.declarations().await.adopt {
            let why = "adopt = true is not in this host's configuration";
            return Err(Refusal::new(AdoptOutcome::NotAllowed, why));
        }
        let Some(inferred) = host.inferred.get(id).cloned() else {
            return Err(Refusal::new(
                AdoptOutcome::Unknown,
                "nothing of that id is discovered on this host (any more)",
            ));
        };
        if !inferred.obstacles.is_empty() {
            return Err(Refusal { outcome: AdoptOutcome::Obstacles, reasons: inferred.obstacles });
        }
        let mut declaration = inferred.declaration;
        declaration.at = crate::app::now();
        self.find_ports(&host, id, &mut declaration).await;
        crate::fail_point("agent.before_adopted");
        self.source(move |source| source.keep(declaration)).await?;
        crate::fail_point("agent.after_adopted");
        let host = self.look().await?;
        if host.installations.get(id).is_some_and(|known| known.management == Management::Adopted) {
            info!(installation = %id, "adopted");
            return Ok(AdoptOutcome::Adopted);
        }
        // Something else claims its files: the finding says what.
        let gone = id.to_owned();
        self.source(move |source| source.release(&gone)).await?;
        self.discovery.scan().await;
        let about = host.findings.iter().filter(|found| found.object == id || found.message.contains(id));
        Err(Refusal {
            outcome: AdoptOutcome::Obstacles,
            reasons: about.map(|found| format!("{}: {}", found.id, found.message)).take(10).collect(),
        })
    }

    /// Asks those users that were seen on no port yet where they serve it.
    async fn find_ports(&self, host: &Host, id: &str, declaration: &mut Adopted) {
        let Ok(wanted) = declaration.certificate() else { return };
        let Some(print) = host.discovered.get(id).and_then(|found| found.fingerprint()) else { return };
        if wanted.usage == Usage::Client {
            return;
        }
        let mut containers = Vec::new();
        for user in declaration.users.iter().filter(|user| user.verify.is_empty()) {
            // One that cannot be inspected now is seen by the scan after.
            containers.extend(self.discovery.engine().container(&user.container).await.ok().flatten());
        }
        let served = ports::serving(containers, &wanted.sni(), print).await;
        for user in &mut declaration.users {
            if let Some(ports) = served.get(&user.container) {
                user.verify = ports.iter().cloned().collect::<Vec<_>>().join(",");
            }
        }
    }

    async fn release(&self, id: &str) -> Result<AdoptOutcome, Refusal> {
        // In the middle of a renewal nobody would reload its consumers any more.
        let Ok(_idle) = tokio::time::timeout(PATIENCE, self.busy.lock()).await else {
            let why = "a renewal is under way on this host: ask again when it has ended";
            return Err(Refusal::new(AdoptOutcome::Failed, why));
        };
        let gone = id.to_owned();
        if self.source(move |source| source.release(&gone)).await? {
            info!(installation = %id, "released");
            self.discovery.scan().await;
            // As it lies there now it is discovered again.
            self.discovery.search().await;
            return Ok(AdoptOutcome::Released);
        }
        let host = self.look().await?;
        match host.installations.get(id) {
            Some(known) => Err(Refusal::new(AdoptOutcome::Declared, format!("as {}", known.label))),
            None => Err(Refusal::new(AdoptOutcome::Unknown, "it is not adopted (any more)")),
        }
    }

    /// A fresh picture; the one that was last seen where the engine is away.
    async fn look(&self) -> Result<Arc<Host>, Refusal> {
        let why = "this host was not looked at yet: its Docker Engine does not answer";
        self.discovery.scan().await.ok_or_else(|| Refusal::new(AdoptOutcome::Failed, why))
    }

    async fn declarations(&self) -> crate::discover::declared::Declarations {
        let source = self.discovery.source().clone();
        tokio::task::spawn_blocking(move || source.read()).await.expect("reading files does not panic")
    }

    async fn source<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::discover::declared::Source) -> Result<T, KeepError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let source = self.discovery.source().clone();
        let done = tokio::task::spawn_blocking(move || work(&source)).await;
        Ok(done.expect("file operations do not panic")?)
    }
}

/// Requests of this minute.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    taken: u32,
}

impl Rate {
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            *self = Self { since: Some(now), taken: 0 };
        }
        self.taken += 1;
        self.taken <= PER_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_a_minute() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        assert_eq!((0..100).filter(|_| rate.take(now)).count(), 30);
        assert!(!rate.take(now + Duration::from_secs(59)));
        assert!(rate.take(now + MINUTE));
    }
}
