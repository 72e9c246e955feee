//! The agent service: one stream per host.
//!
//! After Hello the session sends what is ordered, takes CSRs to the issuance
//! and results to the record. It keeps next to nothing: a wake-up makes it look
//! into the projection again, a lost stream costs nothing but the reconnect.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use reseal_proto::telemetry;
use reseal_proto::v1::agent_message::Body as FromAgent;
use reseal_proto::v1::agent_server::Agent;
use reseal_proto::v1::coordinator_message::Body as ToAgent;
use reseal_proto::v1::{
    AgentMessage, CoordinatorMessage, Hello, InventoryWanted, Order, Progress, ResultAck, TrustBundle,
    Welcome,
};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::auth;
use super::convert::{chain, issuance_status, status};
use super::inventory::Inventories;
use super::outbox::Outbox;
use super::refused::RefusedSessions;
use super::results::{Fingerprints, Results, Work};
use super::sessions::{Sessions, Slot};
use super::tls::PeerIdentity;
use crate::domain::{Now, host, put_forward};
use crate::issuance::control::ControlPlane;
use crate::issuance::{Issuance, Known};
use crate::metrics::Metrics;
use crate::store::record::{Batch, Host};
use crate::store::{Presence, Store, Versioned, keys};
use crate::view::{View, rotation_number};

/// The newest version of the protocol this coordinator speaks.
pub(crate) const PROTOCOL: u32 = 1;
/// The agent keeps the time of its Welcome: when the clock here is set by more than this, it has to hear it anew.
const SET: i64 = 60;
/// How long a stream may be open before its Hello.
const HELLO: Duration = Duration::from_secs(10);

/// The agent service.
#[derive(Clone)]
pub(crate) struct AgentService(Arc<Parts>);

struct Parts {
    store: Store,
    view: View,
    presence: Presence,
    sessions: Sessions,
    issuance: Issuance,
    control: Arc<ControlPlane>,
    results: Results,
    inventories: Inventories,
    refused: RefusedSessions,
    metrics: Metrics,
    now: Now,
}

/// What the service is made of.
pub(crate) struct AgentParts {
    /// The store.
    pub(crate) store: Store,
    /// Its projection.
    pub(crate) view: View,
    /// Who is connected.
    pub(crate) presence: Presence,
    /// Which stream is whose.
    pub(crate) sessions: Sessions,
    /// CSRs in, chains out.
    pub(crate) issuance: Issuance,
    /// The control plane.
    pub(crate) control: Arc<ControlPlane>,
    /// Counters.
    pub(crate) metrics: Metrics,
    /// The clock.
    pub(crate) now: Now,
}

impl AgentService {
    /// A service over these parts.
    pub(crate) fn new(parts: AgentParts) -> Self {
        let AgentParts { store, view, presence, sessions, issuance, control, metrics, now } = parts;
        let results = Results::new(store.clone(), control.clone(), metrics.clone(), now);
        let inventories = Inventories::new(store.clone(), now);
        let refused = RefusedSessions::new(store.clone(), metrics.clone(), now);
        Self(Arc::new(Parts {
            store,
            view,
            presence,
            sessions,
            issuance,
            control,
            results,
            inventories,
            refused,
            metrics,
            now,
        }))
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (host, peer) = match auth::agent(&self.0.store, &self.0.control.fleet, &request).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let who = auth::peer(&request).map(|peer| peer.identity.role.to_string());
                self.0.refused.note(&who.unwrap_or_else(|_| "unknown".into()), refusal.message()).await;
                return Err(refusal);
            }
        };
        let host: Arc<str> = host.into();
        let (outbox, messages) = Outbox::new(host.clone());
        let session = Session {
            parts: self.0.clone(),
            host,
            peer,
            inbox: request.into_inner(),
            outbox,
            began_at: self.0.view.read().seen,
            began: ((self.0.now)(), Instant::now()),
            record: Versioned { revision: 0, value: Host::default() },
            work: BTreeMap::new(),
        };
        tokio::spawn(session.run());
        Ok(Response::new(Box::pin(messages.map(|message| *message))))
    }
}

struct Session {
    parts: Arc<Parts>,
    host: Arc<str>,
    peer: Arc<PeerIdentity>,
    inbox: Streaming<AgentMessage>,
    outbox: Outbox,
    /// The store's revision when it began.
    began_at: u64,
    /// When it began, by the clock of the day and by one that only runs.
    began: (i64, Instant),
    /// The host's record, as it was last looked at.
    record: Versioned<Host>,
    /// Batches sent on this stream, until their results come.
    work: BTreeMap<Box<str>, Work>,
}

impl Session {
    async fn run(mut self) {
        let hello = match tokio::time::timeout(HELLO, self.inbox.message()).await {
            Ok(Ok(Some(AgentMessage { body: Some(FromAgent::Hello(hello)) }))) => hello,
            Ok(Ok(_)) => {
                return self.outbox.fail(Status::invalid_argument("a session begins with Hello")).await;
            }
            Ok(Err(_)) => return,
            Err(_) => {
                return self.outbox.fail(Status::deadline_exceeded("no Hello within ten seconds")).await;
            }
        };
        let now = (self.parts.now)();
        let version: String = reseal_proto::facts::printable(&hello.agent_version).chars().take(40).collect();
        let skew = hello.now.saturating_sub(now);
        let presence = match self.parts.presence.connect(&self.host, &version, skew.saturating_mul(1000), now)
        {
            Ok(presence) => presence,
            Err(crowded) => return self.outbox.fail(Status::resource_exhausted(crowded.to_string())).await,
        };
        tracing::debug!(host = %self.host, agent = %version, skew, "session");
        let slot = self.parts.sessions.enter(&self.host);
        self.parts.metrics.sessions.inc();
        let ended = self.serve(&hello, &slot).await;
        self.parts.sessions.leave(&self.host, &slot);
        self.parts.presence.disconnect(&self.host, presence, (self.parts.now)());
        self.parts.metrics.sessions.dec();
        if let Err(error) = ended {
            tracing::debug!(host = %self.host, error = %error.message(), "session ended");
            // What an honest agent never sends.
            if matches!(error.code(), tonic::Code::InvalidArgument | tonic::Code::OutOfRange) {
                self.parts.refused.note(&format!("host/{}", self.host), error.message()).await;
            }
            self.outbox.fail(error).await;
        }
    }

    async fn serve(&mut self, hello: &Hello, slot: &Slot) -> Result<(), Status> {
        // Boxed throughout: ten thousand idle sessions should not each keep room for the busiest moment.
        // It may have been banned between the opening of the stream and its Hello.
        Box::pin(self.recheck()).await?;
        Box::pin(self.greet(hello)).await?;
        Box::pin(self.order()).await?;
        loop {
            tokio::select! {
                // A ban comes before whatever the host has to say.
                biased;
                go_on = slot.woken() => {
                    if !go_on {
                        return Err(Status::aborted(format!("another session of host {} took over", self.host)));
                    }
                    self.same_clock()?;
                    Box::pin(self.recheck()).await?;
                    for adopt in slot.questions() {
                        self.outbox.send(ToAgent::Adopt(adopt)).await?;
                    }
                    Box::pin(self.order()).await?;
                }
                message = self.inbox.message() => match message? {
                    Some(AgentMessage { body: Some(body) }) => Box::pin(self.take(body, slot)).await?,
                    // A kind of message from a newer agent.
                    Some(AgentMessage { body: None }) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    async fn greet(&mut self, hello: &Hello) -> Result<(), Status> {
        if hello.protocol == 0 {
            return Err(Status::failed_precondition(format!(
                "agent of host {} speaks protocol {}, this coordinator speaks {PROTOCOL}: upgrade the agent",
                self.host, hello.protocol
            )));
        }
        let parts = &self.parts;
        if hello.epoch > parts.store.epoch() {
            let why = format!(
                "host {} has seen epoch {}, this coordinator is at {}: if other hosts say so too, its store is an older copy that was put back without an import, or a newer coordinator of this fleet runs somewhere: stop this one; if there is no other, `reseal store export --config FILE` and `reseal store import` raise the epoch. If only this host says so, look into the host: `reseal host ban` cuts it off",
                self.host,
                hello.epoch,
                parts.store.epoch()
            );
            tracing::error!(host = %self.host, "{why}");
            parts.refused.note(&format!("host/{}", self.host), &why).await;
            return Err(Status::failed_precondition(why));
        }
        let now = (parts.now)();
        let root = parts.control.managed_root.clone();
        self.outbox
            .send(ToAgent::Welcome(Welcome {
                protocol: PROTOCOL.min(hello.protocol),
                fleet: parts.control.fleet.clone(),
                epoch: parts.store.epoch(),
                now,
                anchors: vec![root.clone()],
                bundles: vec![TrustBundle { name: "managed-root".into(), certificates: vec![root] }],
            }))
            .await?;
        let known = parts.inventories.digest(&self.host).await?;
        if known != hello.inventory_digest || known.is_empty() {
            self.outbox.send(ToAgent::InventoryWanted(InventoryWanted {})).await?;
        }
        Ok(())
    }

    /// Does the time that the Welcome told still hold?
    fn same_clock(&self) -> Result<(), Status> {
        let (wall, read) = self.began;
        if put_forward(wall, (self.parts.now)(), read.elapsed()).saturating_abs() > SET {
            return Err(Status::unavailable(
                "the coordinator's clock was set: connect again to hear the time",
            ));
        }
        Ok(())
    }

    /// Is this host still welcome?
    async fn recheck(&mut self) -> Result<(), Status> {
        let record =
            self.parts.store.get::<Host>(&keys::host(&self.host)).await.map_err(|error| status(&error))?;
        host::standing(&self.host, record.as_ref().map(|record| &record.value), &self.peer.spki_sha256)
            .map_err(|refused| Status::permission_denied(refused.to_string()))?;
        self.record = record.unwrap_or_else(|| Versioned { revision: 0, value: Host::default() });
        Ok(())
    }

    /// Sends what is ordered and was not sent on this stream.
    async fn order(&mut self) -> Result<(), Status> {
        let due = self.parts.view.read().ordered(&self.host);
        self.work.retain(|sent, _| due.contains(sent));
        for name in due {
            if self.work.contains_key(&name) {
                continue;
            }
            let batch = self.parts.store.get::<Batch>(&keys::batch(&self.host, &name)).await;
            let Some(batch) = batch.map_err(|error| status(&error))? else { continue };
            let record = &batch.value;
            if record.finished_at != 0 {
                continue;
            }
            let span = tracing::info_span!("order.send", host = %self.host, batch = %name, rotation = %record.rotation);
            telemetry::continue_trace(&span, &record.traceparent);
            let order = Order {
                batch: name.to_string(),
                traceparent: span.in_scope(telemetry::traceparent),
                rotation: record.rotation.clone(),
                epoch: self.parts.store.epoch(),
                installations: record
                    .targets
                    .iter()
                    .filter(|target| !target.superseded)
                    .map(|target| target.installation.clone())
                    .collect(),
                on_failure: record.on_failure,
            };
            self.outbox.send(ToAgent::Order(order)).instrument(span).await?;
            // A batch younger than this stream was on no earlier one.
            let fresh = batch.revision > self.began_at;
            self.work.insert(name, Work { batch, issued: Fingerprints::default(), fresh });
        }
        Ok(())
    }

    async fn take(&mut self, body: FromAgent, slot: &Slot) -> Result<(), Status> {
        if self.peer.not_after < (self.parts.now)() {
            return Err(Status::unauthenticated(format!(
                "the identity of host {} has expired on this stream",
                self.host
            )));
        }
        match body {
            FromAgent::Hello(_) => Err(Status::invalid_argument("a session has one Hello")),
            FromAgent::Inventory(delta) => {
                if !self.parts.inventories.apply(&self.host, &delta).await? {
                    self.outbox.send(ToAgent::InventoryWanted(InventoryWanted {})).await?;
                }
                Ok(())
            }
            FromAgent::Csrs(csrs) => {
                let span = tracing::info_span!("csrs", host = %self.host, batch = %csrs.batch);
                telemetry::continue_trace(&span, &csrs.traceparent);
                let began = std::time::Instant::now();
                let names: Vec<String> = csrs.csrs.iter().map(|csr| csr.installation.clone()).collect();
                let batch = csrs.batch.clone();
                // Once: what was asked for before has to be looked at.
                let known = match self.work.get_mut(batch.as_str()) {
                    Some(work) => std::mem::take(&mut work.fresh)
                        .then_some(Known { host: &self.record, batch: &work.batch }),
                    None => None,
                };
                let result = self.parts.issuance.issue(&self.host, csrs, known).instrument(span).await;
                if let (Ok(chains), Some(work)) = (&result, self.work.get_mut(batch.as_str())) {
                    for issued in &chains.issued {
                        work.issued.add(&issued.installation, &issued.certificate);
                    }
                }
                self.parts.metrics.issued(result.as_ref().ok(), names.len(), began.elapsed());
                match result {
                    Ok(chains) => self.outbox.send(ToAgent::Chains(chains)).await,
                    Err(error) => {
                        let code = issuance_status(&error).code();
                        tracing::warn!(host = %self.host, %batch, error = %chain(&error), "nothing issued");
                        if matches!(
                            code,
                            tonic::Code::Unavailable | tonic::Code::Aborted | tonic::Code::ResourceExhausted
                        ) {
                            // The store's trouble, not the agent's: it asks again after the reconnect.
                            return Err(issuance_status(&error));
                        }
                        self.outbox
                            .send(ToAgent::Chains(super::results::refuse_all(batch, names, &error)))
                            .await
                    }
                }
            }
            FromAgent::Progress(progress) => {
                self.show(progress);
                Ok(())
            }
            FromAgent::Adopted(adopted) => {
                slot.answered(adopted);
                Ok(())
            }
            FromAgent::Result(result) => {
                let batch = result.batch.clone();
                let work = self.work.remove(batch.as_str());
                let wanted = self.parts.results.take(&self.host, &self.peer, result, work).await?;
                self.outbox.send(ToAgent::ResultAck(ResultAck { batch })).await?;
                if wanted {
                    self.outbox.send(ToAgent::InventoryWanted(InventoryWanted {})).await?;
                }
                Ok(())
            }
        }
    }

    fn show(&self, progress: Progress) {
        let Some(rotation) =
            progress.batch.split_once('.').and_then(|(rotation, _)| rotation_number(rotation))
        else {
            return;
        };
        let targets = progress.targets.iter().take(crate::domain::target::PER_BATCH);
        let targets = targets
            .map(|target| (target.installation.chars().take(512).collect::<String>().into(), target.state()));
        let targets = targets.collect();
        self.parts.view.progress(&self.host, &progress.batch, rotation, targets);
    }
}
