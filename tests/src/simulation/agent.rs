//! The link of a model agent: connect, report, receive, back off.
//!
//! It says what `reseal-agent` says, in the same order (`agent/src/link`):
//! results before inventory, each result until it is acknowledged, orders of an
//! older epoch refused. The disk is a [`Host`]; the agent may be killed between
//! any two steps.

use std::sync::Arc;
use std::time::Duration;

use reseal_agent::inventory::Report;
use reseal_agent::link::told::Told;
use reseal_proto::v1::agent_message::Body;
use reseal_proto::v1::coordinator_message::Body as Said;
use reseal_proto::v1::{AgentMessage, BatchResult, Chains, Hello, Order};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use super::host::Host;
use super::liar;
use super::network::Line;
use super::runner::Runner;
use super::world::{World, now};

/// Changes of the host wait this long: a result and its inventory travel together.
const SETTLE: Duration = Duration::from_millis(250);

/// A live session.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) number: u64,
    pub(super) sender: mpsc::Sender<AgentMessage>,
}

impl Live {
    /// Sends; `Err` when the session is over.
    pub(super) async fn send(&self, body: Body) -> Result<(), ()> {
        self.sender.send(AgentMessage { body: Some(body) }).await.map_err(drop)
    }
}

/// Runs an agent for ever: a task, to be aborted at any step.
pub async fn run(world: Arc<World>, host: Host) {
    let (live, session) = watch::channel(None);
    let (orders, ordered) = mpsc::channel(256);
    let (chains, answers) = mpsc::channel(64);
    let agent =
        Agent { world: world.clone(), host: host.clone(), live, orders, chains, number: 0, sent: None };
    let runner = Runner::new(world, host, session, ordered, answers);
    // One task: aborting it stops both at the same moment.
    tokio::join!(agent.link(), runner.run());
}

struct Agent {
    world: Arc<World>,
    host: Host,
    live: watch::Sender<Option<Live>>,
    orders: mpsc::Sender<Order>,
    chains: mpsc::Sender<Chains>,
    number: u64,
    /// The inventory as the coordinator has it from us; unknown after a start.
    sent: Option<Report>,
}

impl Agent {
    async fn link(mut self) {
        let mut backoff = 500;
        loop {
            let sessions = self.number;
            let error = self.session().await.err().unwrap_or_else(|| Status::unavailable("ended"));
            self.live.send_replace(None);
            self.world.history.note(&self.host.name, format!("no session: {:?}", error.code()));
            let longest = match error.code() {
                Code::PermissionDenied | Code::Unauthenticated => 60_000,
                _ => 15_000,
            };
            if self.number > sessions {
                backoff = 500;
            }
            self.world.pause(0, backoff).await;
            backoff = (backoff * 2).min(longest);
        }
    }

    async fn session(&mut self) -> Result<(), Status> {
        let closed = || Status::unavailable("closed");
        let identity = self.host.disk().identity.clone().ok_or_else(closed)?;
        let Line { sender, mut receiver } = self.world.dial(&self.host.name, &identity.certificate).await?;
        let (digest, epoch) = {
            let disk = self.host.disk();
            (disk.digest.clone(), disk.epoch)
        };
        let hello =
            Hello { protocol: 1, agent_version: "model".into(), inventory_digest: digest, epoch, now: now() };
        self.number += 1;
        let live = Live { number: self.number, sender };
        live.send(Body::Hello(hello)).await.map_err(|()| closed())?;
        let first = tokio::time::timeout(Duration::from_secs(15), receiver.recv());
        let first = first.await.map_err(|_| closed())?.ok_or_else(closed)??;
        let Some(Said::Welcome(welcome)) = first.body else { return Err(closed()) };
        self.world.checker.welcomed(&self.host, welcome.epoch);
        if welcome.epoch < epoch {
            return Err(closed());
        }
        self.host.disk().epoch = welcome.epoch;
        self.live.send_replace(Some(live.clone()));
        self.talk(&live, &mut receiver).await
    }

    async fn talk(
        &mut self,
        live: &Live,
        receiver: &mut mpsc::Receiver<Result<reseal_proto::v1::CoordinatorMessage, Status>>,
    ) -> Result<(), Status> {
        let closed = || Status::unavailable("closed");
        let mut told = Told::default();
        let mut picture = self.host.picture();
        let mut results = self.host.results();
        let inventory = tokio::time::sleep(SETTLE);
        tokio::pin!(inventory);
        let mut due = true;
        self.tell_results(live, &mut told).await.map_err(|()| closed())?;
        let whim = tokio::time::sleep(self.world.random.seconds(1, 60));
        tokio::pin!(whim);
        loop {
            tokio::select! {
                biased;
                received = receiver.recv() => {
                    let received = received.ok_or_else(closed)??;
                    self.receive(live, &mut told, received.body).await?;
                }
                () = results.next() => self.tell_results(live, &mut told).await.map_err(|()| closed())?,
                () = picture.next() => {
                    if !due {
                        due = true;
                        inventory.as_mut().reset(tokio::time::Instant::now() + SETTLE);
                    }
                }
                () = &mut inventory, if due => {
                    due = false;
                    self.tell_inventory(live, false).await.map_err(|()| closed())?;
                }
                () = &mut whim, if self.host.lies => {
                    whim.as_mut().reset(tokio::time::Instant::now() + self.world.random.seconds(1, 60));
                    if let Some(body) = liar::unasked(&self.world, &self.host) {
                        live.send(body).await.map_err(|()| closed())?;
                    }
                }
            }
        }
    }

    async fn receive(&mut self, live: &Live, told: &mut Told, body: Option<Said>) -> Result<(), Status> {
        let closed = || Status::unavailable("closed");
        match body {
            Some(Said::Order(order)) => {
                let (epoch, result, known) = {
                    let disk = self.host.disk();
                    let known = disk.acknowledged.contains(&order.batch);
                    (disk.epoch, disk.results.get(&order.batch).cloned(), known)
                };
                self.world.checker.ordered(&self.host, &order);
                if order.epoch < epoch || known {
                    return Ok(());
                }
                match result {
                    Some(result) => self.tell_result(live, told, result, true).await.map_err(|()| closed()),
                    None => self.orders.try_send(order).map_err(|_| closed()),
                }
            }
            Some(Said::Chains(chains)) => {
                self.world.checker.delivered(&self.host, &chains);
                let _ = self.chains.try_send(chains);
                Ok(())
            }
            Some(Said::ResultAck(ack)) => {
                self.world.checker.acknowledged(&self.host, &ack.batch);
                if let Some(payload) = told.acknowledged(&ack.batch) {
                    let mut disk = self.host.disk();
                    if disk.results.get(&ack.batch).is_some_and(|result| result.payload == payload) {
                        disk.acknowledged.insert(ack.batch.clone());
                        disk.results.remove(&ack.batch);
                    }
                }
                Ok(())
            }
            Some(Said::InventoryWanted(_)) => self.tell_inventory(live, true).await.map_err(|()| closed()),
            // Nothing is discovered on these hosts, and nobody asks.
            Some(Said::Welcome(_) | Said::Adopt(_)) | None => Ok(()),
        }
    }

    async fn tell_inventory(&mut self, live: &Live, all: bool) -> Result<(), ()> {
        let report = self.host.report();
        if report.digest == self.host.disk().digest && !all {
            self.sent = Some(report);
            return Ok(());
        }
        let base = if all { None } else { self.base() };
        let mut delta = report.delta(base);
        if self.host.lies {
            liar::about_inventory(&self.world, &mut delta);
        }
        live.send(Body::Inventory(delta)).await?;
        self.was_sent(report);
        Ok(())
    }

    async fn tell_results(&mut self, live: &Live, told: &mut Told) -> Result<(), ()> {
        let waiting: Vec<BatchResult> = self.host.disk().results.values().cloned().collect();
        for result in waiting {
            self.tell_result(live, told, result, false).await?;
        }
        Ok(())
    }

    async fn tell_result(
        &mut self,
        live: &Live,
        told: &mut Told,
        result: BatchResult,
        again: bool,
    ) -> Result<(), ()> {
        if told.is_last(&result.batch, &result.payload) && !again {
            return Ok(());
        }
        let report = self.host.report();
        let changed = Some(report).filter(|report| report.digest != self.host.disk().digest);
        let inventory = changed.as_ref().map(|report| report.delta(self.base()));
        self.world.history.note(&self.host.name, format!("sends result {}", result.batch));
        let (batch, payload) = (result.batch.clone(), result.payload.clone());
        let mut result = BatchResult { inventory, ..result };
        if self.host.lies {
            liar::about_result(&self.world, &self.host, &mut result);
        }
        live.send(Body::Result(result)).await?;
        told.sent(&batch, payload);
        if let Some(report) = changed {
            self.was_sent(report);
        }
        Ok(())
    }

    /// What was sent last, if this process knows it.
    fn base(&self) -> Option<&Report> {
        let digest = self.host.disk().digest.clone();
        self.sent.as_ref().filter(|sent| sent.digest == digest)
    }

    fn was_sent(&mut self, report: Report) {
        self.host.disk().digest.clone_from(&report.digest);
        self.sent = Some(report);
    }
}
