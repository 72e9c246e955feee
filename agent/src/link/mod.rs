//! The session with a coordinator: connect, report, receive, back off.
//!
//! One at a time, to any of the coordinators the identity knows. After the
//! first exchange (Hello, Welcome) the session carries inventory deltas,
//! CSRs, hints of progress and results out, orders, chains and acknowledgements
//! in. Losing it loses nothing: orders come again, results stay in the
//! [`crate::outbox`], and work that needs no coordinator goes on. It never
//! decides what is done with an order; it refuses those of an older epoch.

mod hello;
pub mod orders;
mod session;
pub mod told;

use std::sync::Arc;
use std::time::Duration;

use reseal_proto::channel::ChannelError;
use reseal_proto::v1::{AgentMessage, Chains, agent_message};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::adopt::Adopter;
use crate::app;
use crate::clock::{self, Clock, Standing};
use crate::discover::finding;
use crate::discover::watch::Discovery;
use crate::identity::{IdentityError, IdentityStore, Slot};
use crate::inventory::Report;
use crate::outbox::Outbox;
use crate::state::Session;
use orders::Orders;

pub use hello::time_of;

/// The protocol of this program.
pub const PROTOCOL: u32 = 1;
/// What waits to be sent in one session.
const OUTBOUND: usize = 64;
/// A frame from the coordinator may not be larger; bytes.
const MAX_FRAME: usize = 2 * 1024 * 1024;
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
/// A banned or expired host asks this often.
const REFUSED_BACKOFF: Duration = Duration::from_secs(60);
/// A result and the inventory that shows it travel together: changes wait this long.
const INVENTORY_SETTLE: Duration = Duration::from_millis(250);
/// Identities are asked for at most this often, whatever the clocks say.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// The clock and the identity's end are looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// While there is no session, a new identity is looked for this often.
const GLANCE: Duration = Duration::from_secs(1);
/// A skew that changes by more is told again; seconds.
const SKEW_STEP: u64 = 60;

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
    /// The identity has ended; whether the coordinator agrees is in the source.
    #[error(
        "the identity of host {host} has expired: run `reseal host invite {host}` at the coordinator, then `reseal-agent enrol TOKEN` here; the agent takes it up by itself, and installations, journal and certificates stay"
    )]
    Expired {
        /// Its name.
        host: String,
        /// What became of the attempt to speak all the same; none while a session was up.
        #[source]
        source: Option<Box<LinkError>>,
    },
    /// Likewise, by a clock that no coordinator has confirmed: the connection comes first.
    #[error(
        "{}; and by this host's clock, which no coordinator has confirmed yet, the identity of host {host} has expired: run `reseal host invite {host}` at the coordinator if that clock is right, then `reseal-agent enrol TOKEN` here; the agent takes it up by itself",
        crate::chain_of(.error)
    )]
    PerhapsExpired {
        /// Its name.
        host: String,
        /// What became of the attempt to speak.
        error: Box<LinkError>,
    },
    /// Orders that were turned away may come again.
    #[error("there is room again for the orders that were turned away")]
    Room,
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

/// What the link shares with the rest of the agent; cheap to clone.
#[derive(Clone)]
pub struct Shared {
    /// Who speaks.
    pub identities: IdentityStore,
    /// What the last Welcome said.
    pub session: Arc<Session>,
    /// Results to send.
    pub outbox: Arc<Outbox>,
    /// The host to report.
    pub discovery: Discovery,
    /// The coordinator's time.
    pub clock: Arc<Clock>,
    /// What is to be done.
    pub orders: Arc<Orders>,
    /// Takes on what was discovered.
    pub adopter: Arc<Adopter>,
}

/// What the rest of the agent sees of the link.
#[derive(Debug)]
pub struct Ends {
    /// The live session, if there is one.
    pub session: watch::Receiver<Option<Handle>>,
    /// Answers to CSRs.
    pub chains: mpsc::Receiver<Chains>,
    /// Grows when a Welcome brought other bundles or anchors.
    pub welcomed: watch::Receiver<u64>,
}

/// The task that keeps a session up.
pub struct Link {
    shared: Shared,
    live: watch::Sender<Option<Handle>>,
    chains: mpsc::Sender<Chains>,
    welcomed: watch::Sender<u64>,
    number: u64,
    /// A renewed identity did not work: the one before is tried in between.
    next_failed: bool,
    /// When an identity was last asked for.
    renewed: Option<Instant>,
    /// The wrong clock that was told of.
    told_skew: Option<i64>,
    /// The inventory as the coordinator has it from us; unknown after a start.
    sent: Option<Report>,
}

impl Link {
    /// Makes both sides.
    pub fn new(shared: Shared) -> (Self, Ends) {
        let (live, session) = watch::channel(None);
        let (chains, chains_end) = mpsc::channel(64);
        let (welcomed, welcomed_end) = watch::channel(0);
        let link = Self {
            shared,
            live,
            chains,
            welcomed,
            number: 0,
            next_failed: false,
            renewed: None,
            told_skew: None,
            sent: None,
        };
        (link, Ends { session, chains: chains_end, welcomed: welcomed_end })
    }

    /// Never returns: the process ends it.
    pub async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        let mut turn = 0usize;
        loop {
            let (began, sessions) = (Instant::now(), self.number);
            let error = self.once(turn).await;
            self.live.send_replace(None);
            turn = turn.wrapping_add(1);
            let longest = match &error {
                LinkError::Renewed => {
                    info!("identity renewed: speaking with the new one");
                    continue;
                }
                LinkError::Room => {
                    info!("{error}: asking for them with a new session");
                    LONGEST_BACKOFF
                }
                LinkError::Identity(_) | LinkError::Expired { .. } | LinkError::PerhapsExpired { .. } => {
                    error!(error = %crate::chain_of(&error), "no session");
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
            // It was welcomed and held for a while: what ended it may be over in a moment.
            if self.number > sessions && began.elapsed() > FIRST_BACKOFF * 2 {
                backoff = FIRST_BACKOFF;
            }
            // Full jitter: after a restart of the coordinator a fleet comes spread out.
            self.pause(backoff.mul_f64(app::random())).await;
            backoff = (backoff * 2).min(longest);
        }
    }

    /// A host that was invited again meanwhile does not wait for the end of it.
    async fn pause(&self, pause: Duration) {
        let before = self.shared.identities.stamp(Slot::Current);
        let end = Instant::now() + pause;
        while Instant::now() < end && self.shared.identities.stamp(Slot::Current) == before {
            tokio::time::sleep_until(end.min(Instant::now() + GLANCE)).await;
        }
    }

    /// One session, from the identity to the error that ends it.
    async fn once(&mut self, turn: usize) -> LinkError {
        // A renewed identity is tried first, then the one before by turns: the
        // coordinator may never have got to store the new one.
        let now = self.shared.clock.now();
        let next = self.shared.identities.load(Slot::Next).ok().flatten();
        let (slot, identity) = match next {
            Some(next) if !self.next_failed && next.not_after > now => (Slot::Next, next),
            _ => match self.shared.identities.load(Slot::Current) {
                Ok(Some(identity)) => (Slot::Current, identity),
                Ok(None) => return LinkError::Identity(IdentityError::NotEnrolled),
                Err(error) => return LinkError::Identity(error),
            },
        };
        let Some(address) = pick(&identity.coordinators, turn) else {
            return LinkError::Identity(IdentityError::NotEnrolled);
        };
        // Expired by a clock that may be wrong: the coordinator is asked all the same.
        let expired = (identity.not_after <= now).then(|| identity.host.clone());
        let sessions = self.number;
        let error = match self.speak(&address, slot, identity).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        self.next_failed = slot == Slot::Next;
        match expired {
            Some(host) if self.shared.clock.standing() == Standing::Unmeasured => {
                LinkError::PerhapsExpired { host, error: Box::new(error) }
            }
            Some(host) if self.number == sessions => {
                LinkError::Expired { host, source: Some(Box::new(error)) }
            }
            _ => error,
        }
    }

    /// Tells of a clock that is wrong, once, and of one that is right again.
    async fn mind_clock(&mut self) {
        let remembered = self.shared.clock.skew().map_or(Ok(()), |skew| self.shared.session.measured(skew));
        if let Err(error) = remembered {
            error!(error = %crate::chain_of(&error), "cannot remember how far the clock is off");
        }
        let skew = self.shared.clock.skew().filter(|skew| clock::is_wrong(*skew));
        let same = match (self.told_skew, skew) {
            (None, None) => true,
            (Some(told), Some(skew)) => told.abs_diff(skew) <= SKEW_STEP,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if same {
            return;
        }
        match skew {
            Some(skew) => warn!(skew_seconds = skew, "{}", clock::told(skew)),
            None => info!("this host's clock agrees with the coordinator's again"),
        }
        self.told_skew = skew;
        let found = skew.map(|skew| finding("clock-skew", "host", &clock::told(skew), "critical"));
        self.shared.discovery.note("clock-skew", "host", found).await;
    }
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

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_the_attempt_is_said_before_what_an_unconfirmed_clock_says() {
        let error = Box::new(LinkError::Closed("10.0.0.1:7443".into()));
        let said = LinkError::PerhapsExpired { host: "web-1".into(), error }.to_string();
        assert!(said.starts_with("the coordinator 10.0.0.1:7443 closed the session; and by this"), "{said}");
        assert!(
            said.contains("the identity of host web-1 has expired: run `reseal host invite web-1`"),
            "{said}"
        );
    }
}
