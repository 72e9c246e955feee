//! The session with a coordinator: connect, report, receive, back off.
//!
//! One at a time, to any of the coordinators the identity knows. After the
//! first exchange (Hello, Welcome) the session carries inventory deltas,
//! CSRs, hints of progress and results out, orders, chains and acknowledgements
//! in. Losing it loses nothing: orders come again, results stay in the
//! [`crate::outbox`], and work that needs no coordinator goes on. It never
//! decides what is done with an order; it refuses those of an older epoch.

use std::sync::Arc;
use std::time::Duration;

use reseal_proto::channel::{self, ChannelError, Trust};
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::{
    AgentMessage, BatchResult, Chains, CoordinatorMessage, Hello, Order, Welcome, agent_message,
    coordinator_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, error, info, warn};

use crate::app;
use crate::discover::watch::Discovery;
use crate::identity::{Identity, IdentityError, IdentityStore, Slot};
use crate::inventory::Report;
use crate::outbox::{Known, Outbox};
use crate::state::Session;

/// The protocol of this program.
pub const PROTOCOL: u32 = 1;
/// What waits to be sent in one session.
const OUTBOUND: usize = 64;
/// A frame from the coordinator may not be larger; bytes.
const MAX_FRAME: usize = 2 * 1024 * 1024;
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A banned or expired host asks this often.
const REFUSED_BACKOFF: Duration = Duration::from_secs(60);
/// A result and the inventory that shows it travel together: changes wait this long.
const INVENTORY_SETTLE: Duration = Duration::from_millis(250);
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No identity to speak with.
    #[error("cannot speak to a coordinator")]
    Identity(#[source] IdentityError),
    /// No connection.
    #[error("no connection")]
    Channel(#[source] ChannelError),
    /// The coordinator ended it.
    #[error("the coordinator {address} ended the session: {} ({:?})", .status.message(), .status.code())]
    Status {
        /// "address:port".
        address: String,
        /// What it said.
        status: Box<tonic::Status>,
    },
    /// The stream ended without a word.
    #[error("the coordinator {0} closed the session")]
    Closed(String),
    /// It did not say Welcome.
    #[error("the coordinator {0} did not answer Hello with Welcome within 15 seconds")]
    NoWelcome(String),
    /// It speaks another protocol.
    #[error(
        "the coordinator {address} speaks protocol {theirs}, this agent {PROTOCOL}: upgrade the older one"
    )]
    Protocol {
        /// "address:port".
        address: String,
        /// Its version.
        theirs: u32,
    },
    /// It is not the newest.
    #[error(
        "the coordinator {address} is at epoch {theirs}, this host has seen {ours}: it was restored from an old copy or another one took over"
    )]
    Epoch {
        /// "address:port".
        address: String,
        /// Its epoch.
        theirs: u64,
        /// Highest seen.
        ours: u64,
    },
    /// More orders than can wait.
    #[error("more orders came than can wait; they come again with the next session")]
    Flooded,
    /// A new identity is ready.
    #[error("the identity was renewed")]
    Renewed,
}

/// A live session, for the batch runner.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Grows with each session.
    pub number: u64,
    sender: mpsc::Sender<AgentMessage>,
}

impl Handle {
    /// Sends; `Err` when the session is over.
    pub async fn send(&self, body: agent_message::Body) -> Result<(), ()> {
        self.sender.send(message(body)).await.map_err(drop)
    }

    /// Sends unless the queue is full: for hints that may be lost.
    pub fn hint(&self, body: agent_message::Body) {
        let _ = self.sender.try_send(message(body));
    }
}

/// What the rest of the agent sees of the link.
#[derive(Debug)]
pub struct Ends {
    /// The live session, if there is one.
    pub session: watch::Receiver<Option<Handle>>,
    /// In order of arrival.
    pub orders: mpsc::Receiver<Order>,
    /// Answers to CSRs.
    pub chains: mpsc::Receiver<Chains>,
    /// Grows when a Welcome brought other bundles or anchors.
    pub welcomed: watch::Receiver<u64>,
}

/// The task that keeps a session up.
pub struct Link {
    identities: IdentityStore,
    session: Arc<Session>,
    outbox: Arc<Outbox>,
    discovery: Discovery,
    live: watch::Sender<Option<Handle>>,
    orders: mpsc::Sender<Order>,
    chains: mpsc::Sender<Chains>,
    welcomed: watch::Sender<u64>,
    number: u64,
    /// A renewed identity did not work: the one before is tried in between.
    next_failed: bool,
    /// The inventory as the coordinator has it from us; unknown after a start.
    sent: Option<Report>,
}

impl Link {
    /// Makes both sides.
    pub fn new(
        identities: IdentityStore,
        session: Arc<Session>,
        outbox: Arc<Outbox>,
        discovery: Discovery,
    ) -> (Self, Ends) {
        let (live, session_ends) = watch::channel(None);
        let (orders, orders_end) = mpsc::channel(256);
        let (chains, chains_end) = mpsc::channel(64);
        let (welcomed, welcomed_end) = watch::channel(0);
        let link = Self {
            identities,
            session,
            outbox,
            discovery,
            live,
            orders,
            chains,
            welcomed,
            number: 0,
            next_failed: false,
            sent: None,
        };
        let ends =
            Ends { session: session_ends, orders: orders_end, chains: chains_end, welcomed: welcomed_end };
        (link, ends)
    }

    /// Never returns: the process ends it.
    pub async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        let mut turn = 0usize;
        loop {
            let began = Instant::now();
            let error = self.once(turn).await;
            self.live.send_replace(None);
            turn = turn.wrapping_add(1);
            let longest = match &error {
                LinkError::Renewed => {
                    info!("identity renewed: speaking with the new one");
                    continue;
                }
                LinkError::Identity(source) => {
                    error!(error = %crate::chain_of(source), "no session");
                    REFUSED_BACKOFF
                }
                LinkError::Status { status, .. }
                    if matches!(
                        status.code(),
                        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated
                    ) =>
                {
                    error!(error = %error, "this host is refused");
                    backoff = REFUSED_BACKOFF;
                    REFUSED_BACKOFF
                }
                other => {
                    warn!(error = %crate::chain_of(other), "no session");
                    LONGEST_BACKOFF
                }
            };
            if began.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            // Full jitter: after a restart of the coordinator a fleet comes spread out.
            tokio::time::sleep(backoff.mul_f64(app::random())).await;
            backoff = (backoff * 2).min(longest);
        }
    }

    /// One session, from the identity to the error that ends it.
    async fn once(&mut self, turn: usize) -> LinkError {
        // A renewed identity is tried first, then the one before by turns: the
        // coordinator may never have got to store the new one.
        let next = self.identities.load(Slot::Next).ok().flatten();
        let usable = match next {
            Some(next) if !self.next_failed && next.not_after > app::now() => Ok((Slot::Next, next)),
            _ => self.identities.usable(app::now()).map(|identity| (Slot::Current, identity)),
        };
        let (slot, identity) = match usable {
            Ok(usable) => usable,
            Err(error) => return LinkError::Identity(error),
        };
        let Some(address) = pick(&identity.coordinators, turn) else {
            return LinkError::Identity(IdentityError::NotEnrolled);
        };
        let error = match self.speak(&address, slot, identity).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        self.next_failed = slot == Slot::Next;
        error
    }

    async fn speak(
        &mut self,
        address: &str,
        slot: Slot,
        identity: Identity,
    ) -> Result<std::convert::Infallible, LinkError> {
        let credentials = identity.credentials().map_err(LinkError::Identity)?;
        let tls = channel::client_config(Trust::Anchor(identity.ca.clone()), Some(credentials))
            .map_err(LinkError::Channel)?;
        let channel = channel::connect(address, tls).await.map_err(LinkError::Channel)?;
        let (sender, receiver) = mpsc::channel(OUTBOUND);
        let hello = Hello {
            protocol: PROTOCOL,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            inventory_digest: self.session.digest(),
            epoch: self.session.epoch(),
            now: app::now(),
        };
        let closed = || LinkError::Closed(address.to_owned());
        let failed = |status: tonic::Status| LinkError::Status {
            address: address.to_owned(),
            status: Box::new(status),
        };
        sender.send(message(agent_message::Body::Hello(hello))).await.map_err(|_| closed())?;
        let mut stream = AgentClient::new(channel.clone())
            .max_decoding_message_size(MAX_FRAME)
            .session(ReceiverStream::new(receiver))
            .await
            .map_err(failed)?
            .into_inner();
        let first = tokio::time::timeout(WELCOME_TIMEOUT, stream.message())
            .await
            .map_err(|_| LinkError::NoWelcome(address.to_owned()))?
            .map_err(failed)?
            .ok_or_else(closed)?;
        self.welcome(address, slot, first)?;
        self.number += 1;
        let handle = Handle { number: self.number, sender: sender.clone() };
        info!(coordinator = address, host = %identity.host, epoch = self.session.epoch(), "session up");
        self.live.send_replace(Some(handle.clone()));

        let mut told = Told::default();
        let mut host = self.discovery.watch();
        let mut results = self.outbox.changes();
        let renew = app::instant_at(identity.renew_at(app::random()));
        tokio::pin! {
            let renewal = tokio::time::sleep_until(renew);
            // What happened before the session is told at once.
            let inventory = tokio::time::sleep(INVENTORY_SETTLE);
        }
        let mut inventory_due = true;
        for batch in self.outbox.waiting() {
            self.tell_result(&handle, &mut told, &batch).await.map_err(|()| closed())?;
        }
        loop {
            tokio::select! {
                biased;
                received = stream.message() => {
                    let received = received.map_err(failed)?.ok_or_else(closed)?;
                    match self.receive(received)? {
                        Reply::Nothing => {}
                        Reply::Inventory => {
                            self.tell_inventory(&handle, true).await.map_err(|()| closed())?;
                            inventory_due = false;
                        }
                        Reply::Result(batch) => {
                            told.0.remove(&batch);
                            self.tell_result(&handle, &mut told, &batch).await.map_err(|()| closed())?;
                        }
                    }
                }
                changed = results.changed() => {
                    changed.map_err(|_| closed())?;
                    for batch in self.outbox.waiting() {
                        self.tell_result(&handle, &mut told, &batch).await.map_err(|()| closed())?;
                    }
                }
                changed = host.changed() => {
                    changed.map_err(|_| closed())?;
                    if !inventory_due {
                        inventory_due = true;
                        inventory.as_mut().reset(Instant::now() + INVENTORY_SETTLE);
                    }
                }
                () = &mut inventory, if inventory_due => {
                    inventory_due = false;
                    self.tell_inventory(&handle, false).await.map_err(|()| closed())?;
                }
                () = &mut renewal => {
                    match self.identities.renew(channel.clone(), &identity).await {
                        Ok(()) => return Err(LinkError::Renewed),
                        Err(error) => {
                            warn!(error = %crate::chain_of(&error), "the identity could not be renewed; it is tried again");
                            renewal.as_mut().reset(Instant::now() + RENEW_RETRY.mul_f64(0.5 + app::random()));
                        }
                    }
                }
            }
        }
    }

    fn welcome(&mut self, address: &str, slot: Slot, first: CoordinatorMessage) -> Result<(), LinkError> {
        let Some(coordinator_message::Body::Welcome(welcome)) = first.body else {
            return Err(LinkError::NoWelcome(address.to_owned()));
        };
        if welcome.protocol != PROTOCOL {
            return Err(LinkError::Protocol { address: address.to_owned(), theirs: welcome.protocol });
        }
        if welcome.epoch < self.session.epoch() {
            return Err(LinkError::Epoch {
                address: address.to_owned(),
                theirs: welcome.epoch,
                ours: self.session.epoch(),
            });
        }
        let Welcome { epoch, anchors, bundles, now, .. } = welcome;
        let skew = app::now() - now;
        if skew.abs() > 60 {
            warn!(skew_seconds = skew, "this host's clock differs from the coordinator's");
        }
        // A full disk must not keep this host out of an emergency: what cannot
        // be written is known to this process all the same.
        if let Err(error) = self.session.welcome(epoch, anchors, bundles) {
            error!(error = %crate::chain_of(&error), "cannot remember the session");
        }
        if slot == Slot::Next {
            self.identities.promote().map_err(LinkError::Identity)?;
        }
        self.welcomed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes one message in; says what is wanted in return.
    fn receive(&self, received: CoordinatorMessage) -> Result<Reply, LinkError> {
        use coordinator_message::Body;
        match received.body {
            Some(Body::Order(order)) => {
                if order.epoch < self.session.epoch() {
                    warn!(batch = %order.batch, epoch = order.epoch, "order of an older epoch refused");
                } else {
                    return self.order(order);
                }
            }
            Some(Body::Chains(chains)) => {
                // Full: the runner asks again, it has not been waiting for these.
                if self.chains.try_send(chains).is_err() {
                    warn!("certificates that nobody waits for were dropped");
                }
            }
            Some(Body::ResultAck(ack)) => {
                if let Err(error) = self.outbox.acknowledge(&ack.batch) {
                    error!(error = %crate::chain_of(&error), "cannot remember an acknowledgement");
                }
            }
            Some(Body::InventoryWanted(_)) => return Ok(Reply::Inventory),
            Some(Body::Welcome(_)) => debug!("a second Welcome was ignored"),
            // A kind that only a newer coordinator knows.
            None => debug!("a message of an unknown kind was ignored"),
        }
        Ok(Reply::Nothing)
    }

    /// A new batch goes to the runner, a finished one is answered again.
    fn order(&self, order: Order) -> Result<Reply, LinkError> {
        match self.outbox.known(&order.batch) {
            Some(Known::Finished(_)) => Ok(Reply::Result(order.batch)),
            Some(Known::Acknowledged) => {
                info!(batch = %order.batch, "order of a finished and acknowledged batch ignored");
                Ok(Reply::Nothing)
            }
            None => {
                debug!(batch = %order.batch, "order");
                self.orders.try_send(order).map_err(|_| LinkError::Flooded)?;
                Ok(Reply::Nothing)
            }
        }
    }

    /// Sends what changed, or everything.
    async fn tell_inventory(&mut self, handle: &Handle, all: bool) -> Result<(), ()> {
        let Some(report) = self.discovery.host().map(|host| Report::of(&host)) else {
            return Ok(());
        };
        let unchanged = report.digest == self.session.digest();
        if unchanged && !all {
            self.sent = Some(report);
            return Ok(());
        }
        let base = if all { None } else { self.base() };
        let delta = report.delta(base);
        handle.send(agent_message::Body::Inventory(delta)).await?;
        self.was_sent(report);
        Ok(())
    }

    /// What was sent last, if this process knows it.
    fn base(&self) -> Option<&Report> {
        self.sent.as_ref().filter(|sent| sent.digest == self.session.digest())
    }

    fn was_sent(&mut self, report: Report) {
        if let Err(error) = self.session.sent(&report.digest) {
            error!(error = %crate::chain_of(&error), "cannot remember what was sent");
        }
        self.sent = Some(report);
    }

    /// Sends a result, once per session unless it is reminded, with the
    /// inventory that shows it.
    async fn tell_result(&mut self, handle: &Handle, told: &mut Told, batch: &str) -> Result<(), ()> {
        if !told.first_time(batch) {
            return Ok(());
        }
        let Some(Known::Finished(result)) = self.outbox.known(batch) else {
            return Ok(());
        };
        let report = self.discovery.host().map(|host| Report::of(&host));
        let changed = report.filter(|report| report.digest != self.session.digest());
        let result =
            BatchResult { inventory: changed.as_ref().map(|report| report.delta(self.base())), ..*result };
        crate::fail_point("agent.before_report");
        handle.send(agent_message::Body::Result(result)).await?;
        if let Some(report) = changed {
            self.was_sent(report);
        }
        Ok(())
    }
}

/// What a message from the coordinator wants in return.
enum Reply {
    Nothing,
    Inventory,
    Result(String),
}

/// Results told in this session.
#[derive(Default)]
struct Told(std::collections::BTreeSet<String>);

impl Told {
    fn first_time(&mut self, batch: &str) -> bool {
        if self.0.len() > 4096 {
            self.0.clear();
        }
        self.0.insert(batch.to_owned())
    }
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

/// Another coordinator each time, beginning anywhere.
fn pick(coordinators: &[String], turn: usize) -> Option<String> {
    if coordinators.is_empty() {
        return None;
    }
    let start = (app::random() * coordinators.len() as f64) as usize;
    let at = if turn == 0 { start } else { turn };
    coordinators.get(at % coordinators.len()).cloned()
}
