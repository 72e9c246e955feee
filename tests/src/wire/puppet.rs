//! A host with an agent that does as it is told, until it is told otherwise.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reseal_proto::v1::agent_message::Body as ToCoordinator;
use reseal_proto::v1::coordinator_message::Body as FromCoordinator;
use reseal_proto::v1::{
    CertificateFacts, Chains, Csr, CsrBatch, EvidencePayload, Grade, Issued, Management, Order, TargetProof,
    TargetState,
};

use super::{Coordinator, Identity, Session, csr, facts_of, installation, inventory, now};

/// For [`Session::next_that`]: an order.
pub fn an_order(body: FromCoordinator) -> Option<Order> {
    match body {
        FromCoordinator::Order(order) => Some(order),
        _ => None,
    }
}

/// For [`Session::next_that`]: an answer to CSRs.
pub fn chains(body: FromCoordinator) -> Option<Chains> {
    match body {
        FromCoordinator::Chains(chains) => Some(chains),
        _ => None,
    }
}

/// For [`Session::next_that`]: the batch whose result was taken.
pub fn an_ack(body: FromCoordinator) -> Option<String> {
    match body {
        FromCoordinator::ResultAck(ack) => Some(ack.batch),
        _ => None,
    }
}

/// A host with an agent that does as it is told, until it is told otherwise.
pub struct Puppet {
    /// Who it is.
    pub identity: Identity,
    /// Installation id, name, what is installed.
    pub held: Vec<(String, String, Option<CertificateFacts>)>,
    /// Ids of those that it says were only discovered.
    pub discovered: BTreeSet<String>,
}

impl Puppet {
    /// Enrols a host with this many installations, `s0.HOST.wire.test` and on.
    pub async fn enrol(coordinator: &Coordinator, host: &str, installations: usize) -> Result<Self> {
        let identity = Identity::enrol(&coordinator.invite(host, 0).await?, None).await?;
        let held = (0..installations)
            .map(|at| (format!("/srv/{at}/site.crt"), format!("s{at}.{host}.wire.test"), None))
            .collect();
        Ok(Self { identity, held, discovered: BTreeSet::new() })
    }

    /// Everything that is on the host.
    pub fn inventory(&self) -> Result<ToCoordinator> {
        let installations = self.held.iter().map(|(id, name, facts)| {
            let mut one = installation(id, name, facts.clone());
            if self.discovered.contains(id) {
                one.set_management(Management::Discovered);
            }
            one
        });
        Ok(ToCoordinator::Inventory(inventory(installations.collect())))
    }

    /// Connects and reports what is there.
    pub async fn connect(&self) -> Result<Session> {
        let mut session = self.identity.connect().await?;
        session.next_that(|body| matches!(body, FromCoordinator::Welcome(_)).then_some(())).await?;
        session.send(self.inventory()?).await?;
        Ok(session)
    }

    /// A CSR with a new key for everything that is ordered.
    pub fn request(&self, order: &Order) -> Result<Vec<Csr>> {
        let name = |id: &String| self.held.iter().find(|held| held.0 == *id).map(|held| held.1.clone());
        order
            .installations
            .iter()
            .map(|id| csr(id, &name(id).context("ordered what is not there")?))
            .collect()
    }

    /// Asks for everything that is ordered; what comes is installed.
    pub async fn obtain(&mut self, session: &mut Session, order: &Order) -> Result<Vec<Issued>> {
        let csrs = self.request(order)?;
        session
            .send(ToCoordinator::Csrs(CsrBatch { batch: order.batch.clone(), csrs, ..CsrBatch::default() }))
            .await?;
        let answer = session.next_that(chains).await?;
        for issued in answer.issued.iter().filter(|issued| issued.refusal.is_none()) {
            let place =
                self.held.iter_mut().find(|held| held.0 == issued.installation).context("not asked for")?;
            place.2 = Some(facts_of(issued, &answer.intermediates)?);
        }
        Ok(answer.issued)
    }

    /// A proof that puts every target into `state`.
    pub fn payload(&self, order: &Order, state: TargetState) -> Result<EvidencePayload> {
        let proof = |id: &String| -> Result<TargetProof> {
            let held = self.held.iter().find(|held| held.0 == *id).context("ordered what is not there")?;
            let after = held.2.as_ref().map(|facts| facts.fingerprint.clone()).unwrap_or_default();
            Ok(TargetProof {
                installation: id.clone(),
                after,
                state: state.into(),
                grade: Grade::ReloadObserved.into(),
                ..TargetProof::default()
            })
        };
        Ok(EvidencePayload {
            format: 1,
            fleet: self.identity.fleet.clone(),
            host: self.identity.host.clone(),
            rotation: order.rotation.clone(),
            batch: order.batch.clone(),
            epoch: order.epoch,
            started_at: now(),
            finished_at: now(),
            targets: order.installations.iter().map(proof).collect::<Result<_>>()?,
            ..EvidencePayload::default()
        })
    }

    /// Sends a signed result and waits until it is taken.
    pub async fn report(&self, session: &mut Session, order: &Order, state: TargetState) -> Result<()> {
        let mut result = self.identity.sign(&self.payload(order, state)?)?;
        if let ToCoordinator::Inventory(delta) = self.inventory()? {
            result.inventory = Some(delta);
        }
        session.send(ToCoordinator::Result(result)).await?;
        session.next_that(an_ack).await?;
        Ok(())
    }

    /// Does one order as it should be done.
    pub async fn serve(&mut self, session: &mut Session) -> Result<Order> {
        let order = session.next_that(an_order).await?;
        let issued = self.obtain(session, &order).await?;
        ensure!(issued.iter().all(|issued| issued.refusal.is_none()), "refused: {issued:?}");
        self.report(session, &order, TargetState::Verified).await?;
        Ok(order)
    }

    /// Serves whatever comes, again after the coordinator was killed, until `done`.
    pub async fn serve_until(&mut self, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done().await? {
            ensure!(Instant::now() < deadline, "it did not end within 60 s");
            if let Ok(mut session) = self.connect().await {
                let _ = tokio::time::timeout(Duration::from_secs(2), async {
                    while self.serve(&mut session).await.is_ok() {}
                })
                .await;
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}
