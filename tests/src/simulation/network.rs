//! The network between agents and coordinator: connections that are slow, cut
//! with what is on its way, and noticed to be cut by each side in its own time.
//!
//! Below it are the real services, called through tonic's own codec in the same
//! process; TLS is left out, and who calls is said instead of proved.

use std::sync::Arc;
use std::time::Duration;

use reseal::simulation::identify;
use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::coordinator_message::Body;
use reseal_proto::v1::operator_client::OperatorClient;
use reseal_proto::v1::{AgentMessage, CoordinatorMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Status, Streaming};

use super::bell::Bell;
use super::world::{Up, World, lock};

/// Seconds after which a silent connection is given up (the keep-alive's 30 and 20).
const KEEP_ALIVE: u64 = 50;

/// A connection, to be cut.
pub struct Link(Bell);

/// An agent's end of a connection.
pub struct Line {
    /// To the coordinator.
    pub sender: mpsc::Sender<AgentMessage>,
    /// From it; ends with the connection.
    pub receiver: mpsc::Receiver<Result<CoordinatorMessage, Status>>,
}

/// One direction's view of the connection.
#[derive(Clone)]
struct Wire {
    world: Arc<World>,
    host: Arc<str>,
    cut: Bell,
    gone: Bell,
}

impl World {
    /// Connects as `host`; an error is what the agent's client would see.
    pub async fn dial(self: &Arc<Self>, host: &Arc<str>, certificate: &[u8]) -> Result<Line, Status> {
        self.pause(0, self.weather.latency).await;
        let unreachable = lock(&self.unreachable).contains(host);
        let Some(up) = self.up().filter(|_| !unreachable) else {
            return Err(Status::unavailable("no connection"));
        };
        let (to_server, from_agent) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(from_agent));
        identify(&mut request, certificate).map_err(Status::internal)?;
        let mut client = AgentClient::new(up.routes.clone()).max_decoding_message_size(4 << 20);
        let inbox = tokio::select! {
            biased;
            () = up.gone.once() => return Err(Status::unavailable("the coordinator died")),
            () = tokio::time::sleep(Duration::from_secs(15)) => return Err(Status::unavailable("no answer")),
            opened = client.session(request) => opened?.into_inner(),
        };
        let cut = Bell::default();
        lock(&self.links).entry(host.clone()).or_default().push(Link(cut.clone()));
        let wire = Wire { world: self.clone(), host: host.clone(), cut, gone: up.gone };
        let (sender, outgoing) = mpsc::channel(64);
        let (to_agent, receiver) = mpsc::channel(64);
        tokio::spawn(wire.clone().up(outgoing, to_server));
        tokio::spawn(wire.down(inbox, to_agent));
        Ok(Line { sender, receiver })
    }

    /// Cuts every connection of a host; what is on its way is lost.
    pub fn cut(&self, host: &Arc<str>) {
        for Link(cutter) in lock(&self.links).remove(host).unwrap_or_default() {
            cutter.ring();
        }
    }

    /// Lets a host reach the coordinator, or not.
    pub fn reachable(&self, host: &Arc<str>, reachable: bool) {
        self.history.note(host, if reachable { "reachable" } else { "unreachable" });
        if reachable {
            lock(&self.unreachable).remove(host);
        } else {
            lock(&self.unreachable).insert(host.clone());
            self.cut(host);
        }
    }

    /// A client of the operator service, and the request with the admin's identity.
    pub fn operator<T>(&self, up: &Up, message: T) -> (OperatorClient<Routes>, Request<T>) {
        let mut request = Request::new(message);
        identify(&mut request, &self.admin).expect("the admin has an identity");
        (OperatorClient::new(up.routes.clone()), request)
    }
}

impl Wire {
    /// Takes what the agent says to the coordinator.
    async fn up(self, mut outgoing: mpsc::Receiver<AgentMessage>, to_server: mpsc::Sender<AgentMessage>) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.broken() => break,
                message = outgoing.recv() => message,
            };
            let Some(message) = message else {
                // The agent hung up: that is on its way like everything else.
                self.world.pause(0, self.world.weather.latency).await;
                return;
            };
            self.world.pause(0, self.world.weather.latency).await;
            if self.is_broken() {
                break;
            }
            if to_server.send(message).await.is_err() {
                // The coordinator has ended the session; the other direction tells.
                while outgoing.recv().await.is_some() {}
                return;
            }
        }
        // The coordinator notices in its own time; meanwhile it holds the session open.
        drop(outgoing);
        let silence = self.silence();
        tokio::time::sleep(silence).await;
        drop(to_server);
    }

    /// Takes what the coordinator says to the agent.
    async fn down(
        self,
        mut inbox: Streaming<CoordinatorMessage>,
        to_agent: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    ) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.broken() => break,
                message = inbox.message() => message,
            };
            if let Ok(Some(CoordinatorMessage { body: Some(body) })) = &message {
                self.world.checker.said(&self.host, body);
            }
            self.world.pause(0, self.world.weather.latency).await;
            if self.cut.has_rung() {
                break;
            }
            let last = !matches!(message, Ok(Some(_)));
            if let Some(message) = message.transpose()
                && to_agent.send(message).await.is_err()
            {
                return;
            }
            if last {
                return;
            }
        }
        // Read on, so that the coordinator does not notice by a full window.
        let silence = self.silence();
        let reading = async { while let Ok(Some(_)) = inbox.message().await {} };
        let _ = tokio::time::timeout(silence, reading).await;
        drop(to_agent);
    }

    async fn broken(&self) {
        tokio::select! {
            biased;
            () = self.cut.once() => {}
            () = self.gone.once() => {}
        }
    }

    fn is_broken(&self) -> bool {
        self.cut.has_rung() || self.gone.has_rung()
    }

    /// How long a side does not notice.
    fn silence(&self) -> Duration {
        let random = &self.world.random;
        if self.gone.has_rung() || random.percent(50) {
            random.millis(0, 2000)
        } else {
            random.seconds(0, KEEP_ALIVE)
        }
    }
}

/// For the history: what a message is, without its bytes.
pub(super) fn described(body: &Body) -> String {
    match body {
        Body::Welcome(welcome) => format!("Welcome epoch {}", welcome.epoch),
        Body::Order(order) => format!("Order {} of {:?}", order.batch, order.installations),
        Body::Chains(chains) => format!("Chains {} for {}", chains.batch, chains.issued.len()),
        Body::ResultAck(ack) => format!("ResultAck {}", ack.batch),
        Body::InventoryWanted(_) => "InventoryWanted".into(),
        Body::Adopt(adopt) => format!("Adopt {}", adopt.installation),
    }
}
