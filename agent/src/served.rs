//! Looks at consumers that have just started: do they serve what is on disk?
//!
//! A certificate may be installed while nothing runs that could prove it
//! (*unserved*). When its consumer starts, its endpoints are looked at; what
//! they serve instead, or that they do not answer, is a finding until they do.
//! So is what clients will mind although it is the right certificate: a name it
//! does not have, intermediates that are in the file and are not sent. Never
//! reloads and never restarts anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::Finding;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

use crate::chain;
use crate::clock::Standing;
use crate::discover::{Consumer, Endpoint, Host, Installation, finding};
use crate::install::Files;
use crate::target::{Tools, endpoints_of, unseen};
use crate::verify::probe::{self, Ask, Family};
use crate::verify::{self, Expected, VerifyError};

const CONCURRENT: usize = 4;
/// The file may change while we look (a renewal is under way): looked at anew.
const ROUND: Duration = Duration::from_secs(5);

/// Every finding that a look may end with.
const FINDINGS: [&str; 4] =
    ["served-differs-from-file", "endpoint-unreachable", "name-mismatch", "incomplete-chain"];

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
    let (mut problem, file) = loop {
        let Some(file) = on_disk(tools, installation).await else {
            return;
        };
        let expected = Expected { family: file.family, ..Expected::just(file.fingerprint) };
        let round = deadline.min(Instant::now() + ROUND);
        match verify::endpoints(&endpoints, expected, round).await.1 {
            Ok(()) => break (None, file),
            Err(error) if Instant::now() + Duration::from_millis(100) >= deadline => {
                // A consumer that has ended by now is not at fault.
                if still_running(tools, installation).await {
                    break (Some(error), file);
                }
                return;
            }
            Err(_) => {}
        }
    };
    let mut found = Vec::new();
    if problem.is_none() {
        info!(installation = %installation.id, "a started consumer serves what is on disk");
        found = flaws(installation, &endpoints, &file).await;
        problem = prove(tools, installation).await;
    }
    found.extend(problem.as_ref().map(|error| described(installation, error)));
    for id in FINDINGS {
        let this = found.iter().find(|found| found.id == id).cloned();
        tools.discovery.note(id, &installation.id, this).await;
    }
}

/// What clients will mind, although it is the certificate that is on disk.
async fn flaws(installation: &Installation, endpoints: &[Endpoint], file: &OnDisk) -> Vec<Finding> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        let served = probe::handshake(endpoint, Ask::ANYTHING).await.map(|seen| seen.chain);
        let served = served.unwrap_or_default();
        let flaws = [
            ("name-mismatch", unnamed(endpoint, &file.chain)),
            ("incomplete-chain", unsent(endpoint, &file.chain, &served)),
        ];
        let flaws = flaws.into_iter().filter_map(|(id, message)| Some((id, message?)));
        found.extend(flaws.map(|(id, message)| finding(id, &installation.id, &message, "warning")));
    }
    found
}

/// The name that is asked for there is not in the certificate.
fn unnamed(endpoint: &Endpoint, chain: &[CertificateDer<'_>]) -> Option<String> {
    let name = ServerName::try_from(endpoint.sni.as_str()).ok()?;
    if chain::covers(chain.first()?, &name) {
        return None;
    }
    let facts = chain::facts_of(chain).ok()?;
    let names = if facts.names.is_empty() { "no name".to_owned() } else { facts.names.join(", ") };
    Some(format!(
        "{} is asked for {} and serves a certificate for {names}: clients refuse it",
        endpoint.address, endpoint.sni
    ))
}

/// Intermediates that the file has and the program does not send. A root need not be sent.
fn unsent(endpoint: &Endpoint, file: &[CertificateDer<'_>], served: &[CertificateDer<'_>]) -> Option<String> {
    // Nothing was seen, or something else by now.
    if served.first()? != file.first()? {
        return None;
    }
    let beside = file.iter().skip(1).filter(|certificate| !chain::is_self_issued(certificate));
    let missing = beside.filter(|certificate| !served.contains(certificate)).count();
    (missing > 0).then(|| {
        format!(
            "{} sends {} of the {} certificates in the file, {missing} intermediates are missing: make the program send the whole file",
            endpoint.address,
            served.len(),
            file.len()
        )
    })
}

fn described(installation: &Installation, error: &VerifyError) -> Finding {
    let id = match error {
        VerifyError::Differs { .. } | VerifyError::Chain { .. } => "served-differs-from-file",
        VerifyError::Probe { .. } => "endpoint-unreachable",
    };
    let message = crate::chain_of(error).to_string();
    finding(id, &installation.id, &message, "warning")
}

/// The certificate file as it is now.
struct OnDisk {
    fingerprint: [u8; 32],
    family: Family,
    /// Leaf first.
    chain: Vec<CertificateDer<'static>>,
}

async fn on_disk(tools: &Tools, installation: &Installation) -> Option<OnDisk> {
    let (config, copy) = (tools.config.clone(), installation.clone());
    let read = tokio::task::spawn_blocking(move || {
        let chain = crate::install::read::chain(&config, &copy).ok()??;
        let facts = chain::facts_of(&chain).ok()?;
        let family = Family::of_key_type(&facts.key_type);
        Some(OnDisk { fingerprint: facts.fingerprint.try_into().ok()?, family, chain })
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
    let OnDisk { fingerprint, family, .. } = on_disk(tools, installation).await?;
    let (Ok(consumers), anchors) = (tools.discovery.consumers(installation).await, tools.session.anchors())
    else {
        return None;
    };
    if unseen(&consumers) || tools.clock.standing() != Standing::Right {
        return None;
    }
    let (anchors, now) = (Some(anchors.as_slice()), tools.clock.unix_time());
    let expected = Expected { family, anchors, now, ..Expected::just(fingerprint) };
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
    use crate::chain::tests::{Authority, Leaf};
    use crate::discover::assemble::{assemble, tests::web};
    use crate::key::{KeyType, PrivateKey};
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
    fn a_name_and_an_intermediate_that_clients_miss_are_told() {
        let authority = Authority::new("a");
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let mut file = authority.issue(&key, &Leaf::server(&["a.test", "10.0.0.5"]));
        let at = |sni: &str| Endpoint { address: "x:443".into(), sni: sni.into(), ..Endpoint::default() };
        assert_eq!(unnamed(&at("a.test"), &file), None);
        assert_eq!(unnamed(&at("10.0.0.5"), &file), None);
        let told = unnamed(&at("b.test"), &file).unwrap();
        assert!(told.contains("b.test") && told.contains("a.test, 10.0.0.5"), "{told}");

        assert_eq!(unsent(&at("a.test"), &file, &file), None);
        let told = unsent(&at("a.test"), &file, &file[..1]).unwrap();
        assert!(told.contains("sends 1 of the 2"), "{told}");
        // Nobody misses a root, and of something else nothing is said.
        let served = file.clone();
        file.push(authority.root.clone());
        assert_eq!(unsent(&at("a.test"), &file, &served), None);
        assert_eq!(unsent(&at("a.test"), &file, &[]), None);
        assert_eq!(unsent(&at("a.test"), &file, &file[1..]), None);
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
