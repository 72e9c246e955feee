//! A simulated agent: a real identity, stream, keys and signatures; no containers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::coordinator_message::Body as FromCoordinator;
use reseal_proto::v1::{
    CertificateFacts, CsrBatch, EvidencePayload, Grade, InventoryDelta, InviteHostRequest, Order,
    TargetProof, TargetState,
};
use reseal_tests::wire::{self, Coordinator, Identity, Session, csr, facts_of, installation, now};
use tokio::sync::{Semaphore, watch};

use super::figures::Tally;

/// What all agents share.
#[derive(Default)]
pub(crate) struct Fleet {
    /// Agents that have their welcome.
    pub(crate) connected: Tally,
    /// Certificates that arrived.
    pub(crate) issued: Tally,
    /// Results that were acknowledged.
    pub(crate) acknowledged: Tally,
    order_times: Mutex<Vec<Instant>>,
    declared: watch::Sender<usize>,
    paused: AtomicBool,
}

impl Fleet {
    /// From now on every agent has this many installations.
    pub(crate) fn declare(&self, number: usize) {
        self.declared.send_replace(number);
    }

    /// Agents note orders and do nothing about them.
    pub(crate) fn pause_work(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// How long after `start` each order since the last call arrived.
    pub(crate) fn orders_since(&self, start: Instant) -> Vec<Duration> {
        let times = self.order_times.lock().expect("no agent panics");
        times.iter().map(|at| at.saturating_duration_since(start)).collect()
    }

    /// Forgets what was counted so far.
    pub(crate) fn forget(&self) {
        self.issued.reset();
        self.acknowledged.reset();
        self.order_times.lock().expect("no agent panics").clear();
    }
}

/// Invites and enrols `number` hosts, as real agents do.
pub(crate) async fn enrol(coordinator: &Coordinator, number: usize) -> anyhow::Result<Vec<Identity>> {
    let slots = Arc::new(Semaphore::new(24));
    let operator = coordinator.operator().await?;
    let mut tasks = Vec::new();
    for at in 0..number {
        let (slots, mut operator) = (slots.clone(), operator.clone());
        tasks.push(tokio::spawn(async move {
            let _slot = slots.acquire().await?;
            let name = format!("sim-{at:05}");
            let request = InviteHostRequest { name, ..InviteHostRequest::default() };
            let text = operator.invite_host(request).await?.into_inner().token;
            // An address of its own for every 10,000 agents: a pair of addresses has 28,000 ports.
            let local = IpAddr::V4(Ipv4Addr::new(127, 0, 1, u8::try_from(1 + at / 10_000)?));
            Identity::enrol(&text, Some(local)).await
        }));
    }
    let mut agents = Vec::with_capacity(number);
    for task in tasks {
        agents.push(task.await??);
    }
    Ok(agents)
}

struct Held {
    id: String,
    name: String,
    facts: Option<CertificateFacts>,
}

/// Serves until it is aborted; stays away while `away` says so.
pub(crate) async fn run(identity: Identity, fleet: Arc<Fleet>, mut away: watch::Receiver<bool>) {
    let mut held = Vec::new();
    loop {
        if away.wait_for(|away| !away).await.is_err() {
            return;
        }
        if let Err(error) = session(&identity, &mut held, &fleet).await
            && !*away.borrow()
        {
            eprintln!("{}: {error:#}", identity.host);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn session(identity: &Identity, held: &mut Vec<Held>, fleet: &Fleet) -> anyhow::Result<()> {
    let mut session = identity.connect().await?;
    let mut declared = fleet.declared.subscribe();
    loop {
        tokio::select! {
            changed = declared.changed() => {
                changed?;
                let number = *declared.borrow_and_update();
                *held = (0..number).map(|at| declare(&identity.host, at)).collect();
                session.send(ToCoordinator::Inventory(inventory(held))).await?;
            }
            message = session.next() => match message? {
                FromCoordinator::Welcome(_) => fleet.connected.add(1),
                FromCoordinator::InventoryWanted(_) => session.send(ToCoordinator::Inventory(inventory(held))).await?,
                FromCoordinator::Order(order) => {
                    fleet.order_times.lock().expect("no agent panics").push(Instant::now());
                    if !fleet.paused.load(Ordering::Relaxed) {
                        work(identity, order, held, fleet, &mut session).await?;
                    }
                }
                FromCoordinator::ResultAck(_) => fleet.acknowledged.add(1),
                FromCoordinator::Chains(_) => anyhow::bail!("an answer nobody asked for"),
                FromCoordinator::Adopt(_) => anyhow::bail!("nothing is discovered here"),
            },
        }
    }
}

/// Every CSR in one message, then the signed result.
async fn work(
    identity: &Identity,
    order: Order,
    held: &mut [Held],
    fleet: &Fleet,
    session: &mut Session,
) -> anyhow::Result<()> {
    let name = |id: &String| held.iter().find(|held| held.id == *id).map(|held| held.name.clone());
    let csrs = order.installations.iter().map(|id| csr(id, &name(id).context("ordered what is not there")?));
    let csrs = csrs.collect::<anyhow::Result<Vec<_>>>()?;
    let request = CsrBatch { batch: order.batch.clone(), csrs, traceparent: order.traceparent.clone() };
    session.send(ToCoordinator::Csrs(request)).await?;
    let chains = session
        .next_that(|body| match body {
            FromCoordinator::Chains(chains) => Some(chains),
            _ => None,
        })
        .await?;
    let mut proofs = Vec::with_capacity(order.installations.len());
    for issued in chains.issued {
        ensure!(issued.refusal.is_none(), "refused: {:?}", issued.refusal);
        let facts = facts_of(&issued, &chains.intermediates)?;
        let place = held.iter_mut().find(|held| held.id == issued.installation).context("not asked for")?;
        proofs.push(TargetProof {
            installation: issued.installation,
            before: place.facts.as_ref().map(|facts| facts.fingerprint.clone()).unwrap_or_default(),
            after: facts.fingerprint.clone(),
            state: TargetState::Verified.into(),
            grade: Grade::ReloadObserved.into(),
            ..TargetProof::default()
        });
        place.facts = Some(facts);
    }
    fleet.issued.add(proofs.len());
    let mut result = identity.sign(&EvidencePayload {
        format: 1,
        fleet: identity.fleet.clone(),
        host: identity.host.clone(),
        rotation: order.rotation,
        batch: order.batch,
        epoch: order.epoch,
        started_at: now(),
        finished_at: now(),
        agent_version: "simulated".into(),
        targets: proofs,
    })?;
    result.inventory = Some(inventory(held));
    session.send(ToCoordinator::Result(result)).await
}

fn declare(host: &str, at: usize) -> Held {
    Held {
        id: format!("/srv/service-{at}/tls/site.crt"),
        name: format!("s{at}.{host}.wire.test"),
        facts: None,
    }
}

fn inventory(held: &[Held]) -> InventoryDelta {
    wire::inventory(held.iter().map(|held| installation(&held.id, &held.name, held.facts.clone())).collect())
}
