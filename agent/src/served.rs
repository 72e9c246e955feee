//! Looks at consumers that have just started: do they serve what is on disk?
//!
//! A certificate may be installed while nothing runs that could prove it
//! (*unserved*). When its consumer starts, its endpoints are looked at; what
//! they serve instead, or that they do not answer, is a finding until they do.
//! Never reloads and never restarts anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::Finding;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

use crate::clock::Standing;
use crate::discover::{Consumer, Host, Installation, finding};
use crate::install::Files;
use crate::target::{Tools, endpoints_of, unseen};
use crate::verify::{self, Expected, VerifyError};

const CONCURRENT: usize = 4;
/// The file may change while we look (a renewal is under way): looked at anew.
const ROUND: Duration = Duration::from_secs(5);

/// What still waits for its proof is looked at this often, if it runs.
const AGAIN: Duration = Duration::from_secs(10);

/// Follows the picture of the host for ever.
pub async fn run(tools: Tools) {
    let mut host = tools.discovery.watch();
    let limit = Arc::new(Semaphore::new(CONCURRENT));
    let mut seen: BTreeMap<(String, String), i32> = BTreeMap::new();
    let mut looks = JoinSet::new();
    // Installation by task: one look at a time.
    let mut busy: BTreeMap<tokio::task::Id, String> = BTreeMap::new();
    let mut again = tokio::time::interval_at(Instant::now() + AGAIN, AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let newest = host.borrow_and_update().clone();
        if let Some(newest) = newest {
            for installation in started(&newest, &mut seen, &busy.values().collect()) {
                let (tools, limit, id) = (tools.clone(), limit.clone(), installation.id.clone());
                let look = looks.spawn(async move {
                    let _permit = limit.acquire_owned().await;
                    look(&tools, &installation).await;
                });
                busy.insert(look.id(), id);
            }
        }
        // A consumer may have started while its batch was still under way: nobody waited yet.
        tools.unserved.clock_is(tools.clock.standing());
        let waiting = tools.unserved.installations();
        tokio::select! {
            changed = host.changed() => if changed.is_err() {
                return;
            },
            Some(ended) = looks.join_next_with_id(), if !looks.is_empty() => {
                busy.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            _ = again.tick(), if !waiting.is_empty() => {
                let busy: BTreeSet<&String> = busy.values().collect();
                seen.retain(|(id, _), _| !waiting.contains(id) || busy.contains(id));
            }
        }
    }
}

/// Installations with a consumer that was not running when last seen, each
/// with those consumers only. `seen` remembers container id and PID. A `busy` one is
/// being looked at: what started there meanwhile is found when that has ended.
fn started(
    host: &Host,
    seen: &mut BTreeMap<(String, String), i32>,
    busy: &BTreeSet<&String>,
) -> Vec<Installation> {
    let mut running = BTreeMap::new();
    let mut new = Vec::new();
    for installation in host.installations.values() {
        if installation.certificate.is_none() {
            // Nothing to serve yet; looked at once there is.
            continue;
        }
        if busy.contains(&installation.id) {
            let known = seen.iter().filter(|((id, _), _)| *id == installation.id);
            running.extend(known.map(|(key, pid)| (key.clone(), *pid)));
            continue;
        }
        let mut fresh: Vec<Consumer> = Vec::new();
        for consumer in installation.consumers.iter().filter(|c| c.running) {
            let key = (installation.id.clone(), consumer.container_id.clone());
            if seen.get(&key) != Some(&consumer.pid) && !consumer.endpoints.is_empty() {
                fresh.push(consumer.clone());
            }
            running.insert(key, consumer.pid);
        }
        if !fresh.is_empty() {
            new.push(Installation { consumers: fresh, ..installation.clone() });
        }
    }
    *seen = running;
    new
}

async fn look(tools: &Tools, installation: &Installation) {
    let deadline = Instant::now() + tools.config.verify_timeout;
    let endpoints = endpoints_of(&installation.consumers);
    let mut problem = loop {
        let Some(fingerprint) = on_disk(tools, installation).await else {
            return;
        };
        let expected = Expected { fingerprint, anchors: None, now: tools.clock.unix_time() };
        let round = deadline.min(Instant::now() + ROUND);
        match verify::endpoints(&endpoints, expected, round).await.1 {
            Ok(()) => break None,
            Err(error) if Instant::now() + Duration::from_millis(100) >= deadline => {
                // A consumer that has ended by now is not at fault.
                if still_running(tools, installation).await {
                    break Some(error);
                }
                return;
            }
            Err(_) => {}
        }
    };
    if problem.is_none() {
        info!(installation = %installation.id, "a started consumer serves what is on disk");
        problem = prove(tools, installation).await;
    }
    let found = problem.as_ref().map(|error| described(installation, error));
    for id in ["served-differs-from-file", "endpoint-unreachable"] {
        let this = found.clone().filter(|found| found.id == id);
        tools.discovery.note(id, &installation.id, this).await;
    }
}

fn described(installation: &Installation, error: &VerifyError) -> Finding {
    let id = match error {
        VerifyError::Differs { .. } | VerifyError::Chain { .. } => "served-differs-from-file",
        VerifyError::Probe { .. } => "endpoint-unreachable",
    };
    let message = crate::chain_of(error).to_string();
    finding(id, &installation.id, &message, "warning")
}

async fn on_disk(tools: &Tools, installation: &Installation) -> Option<[u8; 32]> {
    let (config, copy) = (tools.config.clone(), installation.clone());
    let read = tokio::task::spawn_blocking(move || {
        let text = Files::open(&config, &copy).and_then(|files| files.live());
        let facts = crate::chain::facts(&text.ok()??).ok()?;
        facts.fingerprint.try_into().ok()
    });
    read.await.ok().flatten()
}

async fn still_running(tools: &Tools, installation: &Installation) -> bool {
    let now = tools.discovery.consumers(installation).await;
    let Ok(now) = now else { return true };
    installation
        .consumers
        .iter()
        .any(|consumer| now.iter().any(|now| now.running && now.container_id == consumer.container_id))
}

/// A target may have waited for this. Every consumer that runs is looked at,
/// and this time with what clients trust, at a time that is known. A chain that
/// clients refuse is what it goes on waiting for.
async fn prove(tools: &Tools, installation: &Installation) -> Option<VerifyError> {
    let fingerprint = on_disk(tools, installation).await?;
    let (Ok(consumers), anchors) = (tools.discovery.consumers(installation).await, tools.session.anchors())
    else {
        return None;
    };
    if unseen(&consumers) || tools.clock.standing() != Standing::Right {
        return None;
    }
    let expected = Expected { fingerprint, anchors: Some(&anchors), now: tools.clock.unix_time() };
    let deadline = Instant::now() + tools.config.verify_timeout;
    let (proofs, outcome) = verify::endpoints(&endpoints_of(&consumers), expected, deadline).await;
    let waits = tools.unserved.waits(&installation.id, &fingerprint);
    match outcome {
        Err(error @ VerifyError::Chain { .. }) if waits => return Some(error),
        Err(_) => return None,
        Ok(()) if proofs.is_empty() => return None,
        Ok(()) => {}
    }
    settle(tools, installation).await;
    if waits {
        tools.unserved.proved(&installation.id, &fingerprint, &proofs);
    }
    None
}

/// What is current is proved now: the key before it goes.
async fn settle(tools: &Tools, installation: &Installation) {
    let (config, copy) = (tools.config.clone(), installation.clone());
    let busy = tools.busy.clone();
    let work = tokio::task::spawn_blocking(move || {
        // A batch that is under way may still need the generation before.
        let Ok(_idle) = busy.try_lock() else { return };
        if let Ok(files) = Files::open(&config, &copy)
            && let Ok(Some(_)) = files.current()
        {
            let _ = files.settle(None);
        }
    });
    let _ = work.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::{assemble, tests::web};
    use reseal_proto::v1::CertificateFacts;

    fn host(running: bool, pid: i32, certificate: bool) -> Host {
        let mut container = web("web", "/srv/tls");
        container.running = running;
        container.pid = pid;
        let mut host = assemble(vec![container]);
        if certificate {
            for installation in host.installations.values_mut() {
                installation.certificate = Some(CertificateFacts::default());
            }
        }
        host
    }

    #[test]
    fn a_start_is_seen_once() {
        let mut seen = BTreeMap::new();
        let mut found = |host: Host| started(&host, &mut seen, &BTreeSet::new()).len();
        assert_eq!(found(host(false, 0, true)), 0);
        assert_eq!(found(host(true, 5, false)), 0);
        assert_eq!(found(host(true, 5, true)), 1);
        assert_eq!(found(host(true, 5, true)), 0);
        assert_eq!(found(host(true, 6, true)), 1);
        assert_eq!(found(host(false, 0, true)), 0);
        assert_eq!(found(host(true, 6, true)), 1);
    }

    #[test]
    fn what_starts_while_it_is_looked_at_waits_for_its_turn() {
        let mut seen = BTreeMap::new();
        let first = started(&host(true, 5, true), &mut seen, &BTreeSet::new());
        let busy = BTreeSet::from([&first[0].id]);
        assert_eq!(started(&host(true, 6, true), &mut seen, &busy).len(), 0);
        assert_eq!(started(&host(true, 6, true), &mut seen, &BTreeSet::new()).len(), 1);
        assert_eq!(started(&host(true, 6, true), &mut seen, &BTreeSet::new()).len(), 0);
    }
}
