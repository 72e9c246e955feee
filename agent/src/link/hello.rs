//! The first words of a session: Hello, and what comes back.
//!
//! Part of [`super::Link`]. `doctor` says Hello, too, to learn what time it is.

use reseal_proto::v1::agent_client::AgentClient;
use reseal_proto::v1::{AgentMessage, CoordinatorMessage, Hello, agent_message, coordinator_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{LinkError, MAX_FRAME, OUTBOUND, PROTOCOL, WELCOME_TIMEOUT, message};
use crate::app;
use crate::state::Session;

/// A stream with its first answer.
pub(super) struct Opened {
    pub(super) sender: mpsc::Sender<AgentMessage>,
    pub(super) stream: Streaming<CoordinatorMessage>,
    pub(super) first: CoordinatorMessage,
}

/// Says Hello and waits for the answer.
pub(super) async fn open(channel: Channel, address: &str, session: &Session) -> Result<Opened, LinkError> {
    let (sender, receiver) = mpsc::channel(OUTBOUND);
    let hello = Hello {
        protocol: PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        inventory_digest: session.digest(),
        epoch: session.epoch(),
        now: app::now(),
    };
    let closed = || LinkError::Closed(address.to_owned());
    sender.send(message(agent_message::Body::Hello(hello))).await.map_err(|_| closed())?;
    let mut stream = AgentClient::new(channel)
        .max_decoding_message_size(MAX_FRAME)
        .session(ReceiverStream::new(receiver))
        .await
        .map_err(failed(address))?
        .into_inner();
    let first = tokio::time::timeout(WELCOME_TIMEOUT, stream.message())
        .await
        .map_err(|_| LinkError::NoWelcome(address.to_owned()))?
        .map_err(failed(address))?
        .ok_or_else(closed)?;
    Ok(Opened { sender, stream, first })
}

pub(super) fn failed(address: &str) -> impl Fn(tonic::Status) -> LinkError + Copy + use<'_> {
    move |status| LinkError::Status { address: address.to_owned(), status: Box::new(status) }
}

/// What time it is by the coordinator's clock: a session that says Hello and ends.
pub async fn time_of(channel: Channel, address: &str, session: &Session) -> Result<i64, LinkError> {
    match open(channel, address, session).await?.first.body {
        Some(coordinator_message::Body::Welcome(welcome)) => Ok(welcome.now),
        Some(_) | None => Err(LinkError::NoWelcome(address.to_owned())),
    }
}
