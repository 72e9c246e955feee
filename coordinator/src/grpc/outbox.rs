//! What waits to be sent to one agent, bounded in number and time.

use std::sync::Arc;
use std::time::Duration;

use reseal_proto::v1::CoordinatorMessage;
use reseal_proto::v1::coordinator_message::Body;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that may wait; an agent that reads slower than this is cut off.
const MOST_WAITING: usize = 16;
/// How long one message may wait for a place.
const SLOW: Duration = Duration::from_secs(30);

/// Boxed: a channel reserves room for 32 of its items.
type Message = Box<Result<CoordinatorMessage, Status>>;

/// The session's end of it.
pub(super) struct Outbox {
    host: Arc<str>,
    sender: mpsc::Sender<Message>,
    patience: Duration,
}

impl Outbox {
    /// For this host, with the stream that goes to it.
    pub(super) fn new(host: Arc<str>) -> (Self, ReceiverStream<Message>) {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        (Self { host, sender, patience: SLOW }, ReceiverStream::new(receiver))
    }

    /// Sends it, when there is a place in time.
    pub(super) async fn send(&self, body: Body) -> Result<(), Status> {
        self.put(Ok(CoordinatorMessage { body: Some(body) })).await
    }

    /// Says why the session ends, if the agent still reads.
    pub(super) async fn fail(&self, error: Status) {
        let _ = self.put(Err(error)).await;
    }

    async fn put(&self, message: Result<CoordinatorMessage, Status>) -> Result<(), Status> {
        match tokio::time::timeout(self.patience, self.sender.send(Box::new(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the agent is gone")),
            Err(_) => Err(Status::resource_exhausted(format!("host {} reads too slowly", self.host))),
        }
    }
}

#[cfg(test)]
mod tests {
    use reseal_proto::v1::InventoryWanted;
    use tokio_stream::StreamExt as _;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn who_reads_too_slowly_is_cut_off() {
        let (mut outbox, mut stream) = Outbox::new("h1".into());
        assert_eq!(outbox.patience, Duration::from_secs(30));
        outbox.patience = Duration::from_millis(50);
        let say = || Body::InventoryWanted(InventoryWanted {});
        for at in 0..16 {
            assert!(outbox.send(say()).await.is_ok(), "message {at}");
        }
        let refused = outbox.send(say()).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::ResourceExhausted, "host h1 reads too slowly")
        );
        // The last word waits no longer, either; what was taken goes out, and then the stream ends.
        outbox.fail(refused).await;
        assert!(stream.next().await.is_some());
        assert!(outbox.send(say()).await.is_ok(), "it reads again");
        drop(outbox);
        let left: Vec<Message> = stream.collect().await;
        assert!(left.len() == 16 && left.iter().all(|message| message.is_ok()));
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_is_not_waited_for() {
        let (outbox, stream) = Outbox::new("h1".into());
        drop(stream);
        let refused = outbox.send(Body::InventoryWanted(InventoryWanted {})).await.unwrap_err();
        assert_eq!(refused.code(), Code::Cancelled);
    }
}
