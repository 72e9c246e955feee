//! Follows a rotation until it ends, halts, or only waits for stragglers.
//!
//! The rotation runs in the coordinator: when that goes away the watcher says
//! so, comes back by itself and goes on. Nothing here changes the rotation.

use std::time::Duration;

use reseal_proto::telemetry::traced;
use reseal_proto::v1::{self, RotationState};
use tokio::time::{Instant, timeout_at};

use super::progress::Progress;
use super::rotate::may_have_been_lost;
use super::summary;
use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::exit::{CliError, Exit};
use crate::cli::view::RotationView;

/// A halted rotation's hosts finish what they are at; no longer than this.
const SETTLE_HALTED: Duration = Duration::from_secs(30);
/// A trailing rotation with nobody working is quiet for this long.
const SETTLE_TRAILING: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Watches and prints the summary.
pub(super) async fn run(context: &Context, client: &mut Client, id: &str) -> Result<Exit, CliError> {
    let mut progress = Progress::new(context.out);
    let view = tokio::select! {
        view = follow(client, id, &mut progress) => view,
        _ = tokio::signal::ctrl_c() => {
            progress.finish();
            return Err(CliError::failed(
                format!("no longer watching: rotation {id} goes on by itself"),
                format!("`reseal rotation watch {id}` follows it again, `reseal rotation pause {id}` holds it"),
            ));
        }
    };
    progress.finish();
    let view = view?;
    summary::print(context.out, &view)?;
    Ok(summary::exit(&view))
}

async fn follow(client: &mut Client, id: &str, progress: &mut Progress) -> Result<RotationView, CliError> {
    let mut last: Option<RotationView> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let message = traced(v1::RotationRequest { id: id.to_owned() });
        let lost = match client.rpc.watch_rotation(message).await {
            Err(status) => status,
            Ok(reply) => {
                let mut stream = reply.into_inner();
                let mut settled = None;
                loop {
                    let next = match settled {
                        None => stream.message().await,
                        Some(deadline) => match timeout_at(deadline, stream.message()).await {
                            Ok(next) => next,
                            // Nothing moves any more.
                            Err(_) => Ok(None),
                        },
                    };
                    match next {
                        Ok(Some(snapshot)) => {
                            let view = RotationView::from(snapshot);
                            pause = FIRST_PAUSE;
                            progress.show(&view)?;
                            if has_ended(&view) {
                                return Ok(view);
                            }
                            settled = settle(&view, settled, last.as_ref().map(|last| last.phase));
                            last = Some(view);
                        }
                        Ok(None) => match last.take() {
                            Some(view) if stands_still(&view) => return Ok(view),
                            before => {
                                last = before;
                                break tonic::Status::unavailable("the coordinator ended the stream");
                            }
                        },
                        Err(status) => break status,
                    }
                }
            }
        };
        // The first connection was good: from now on only a clear no ends the watching.
        if !may_have_been_lost(lost.code()) {
            return Err(lost.into());
        }
        progress.away(lost.message());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        while let Err(error) = client.reconnect().await {
            tracing::debug!(%error, "no coordinator yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Will nothing more happen in this rotation?
fn has_ended(view: &RotationView) -> bool {
    match view.phase {
        RotationState::Completed | RotationState::Expired | RotationState::Aborted => true,
        RotationState::Halted => view.in_flight() == 0,
        RotationState::Unspecified
        | RotationState::Draft
        | RotationState::AwaitingApproval
        | RotationState::Running
        | RotationState::Paused
        | RotationState::Trailing => false,
    }
}

/// Does it wait for somebody: an operator, or hosts that are away?
fn stands_still(view: &RotationView) -> bool {
    has_ended(view) || matches!(view.phase, RotationState::Halted | RotationState::Trailing)
}

/// Until when a rotation that stands still is watched for a last word.
fn settle(view: &RotationView, running: Option<Instant>, before: Option<RotationState>) -> Option<Instant> {
    match view.phase {
        RotationState::Halted if before == Some(RotationState::Halted) => running,
        RotationState::Halted => Some(Instant::now() + SETTLE_HALTED),
        RotationState::Trailing if view.in_flight() == 0 => Some(Instant::now() + SETTLE_TRAILING),
        RotationState::Unspecified
        | RotationState::Draft
        | RotationState::AwaitingApproval
        | RotationState::Running
        | RotationState::Paused
        | RotationState::Trailing
        | RotationState::Completed
        | RotationState::Expired
        | RotationState::Aborted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::{Fake, Script};
    use crate::cli::output::{Format, Output};
    use reseal_proto::v1::TargetState;

    fn view(state: RotationState, ordered: u32) -> RotationView {
        RotationView::from(v1::Rotation {
            state: state.into(),
            targets: [(TargetState::Ordered as u32, ordered), (TargetState::Verified as u32, 1)].into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_halted_rotation_is_over_when_nobody_works() {
        assert!(!has_ended(&view(RotationState::Halted, 2)));
        assert!(has_ended(&view(RotationState::Halted, 0)));
        assert!(!has_ended(&view(RotationState::Paused, 0)), "a pause is not an end");
        assert!(!has_ended(&view(RotationState::Trailing, 0)), "the stream's end decides");
        assert!(stands_still(&view(RotationState::Trailing, 0)));
        assert!(!stands_still(&view(RotationState::Running, 0)));
    }

    fn snapshot(state: RotationState, verified: u32) -> v1::Rotation {
        v1::Rotation {
            id: "r1".into(),
            state: state.into(),
            targets: [(TargetState::Verified as u32, verified)].into(),
            ..Default::default()
        }
    }

    async fn followed(fake: &Fake) -> (Result<RotationView, CliError>, Client) {
        let folder = tempfile::tempdir().unwrap();
        let mut client = Client::connect(Some(&fake.credentials(folder.path()))).await.unwrap();
        let mut progress = Progress::new(Output::stdout(Format::Table));
        let end =
            timeout_at(Instant::now() + Duration::from_secs(30), follow(&mut client, "r1", &mut progress));
        let view = end.await.expect("the watching ends");
        (view, client)
    }

    #[tokio::test]
    async fn streams_that_break_or_end_early_are_taken_up_again() {
        use RotationState::{Completed, Running};
        let fake = Fake::start(Script {
            watches: [
                vec![Ok(snapshot(Running, 1)), Err(tonic::Status::unavailable("going away"))],
                vec![Ok(snapshot(Running, 2))],
                vec![Err(tonic::Status::internal("connection reset"))],
                vec![Ok(snapshot(Running, 2)), Ok(snapshot(Completed, 3)), Ok(snapshot(Running, 9))],
            ]
            .into(),
            ..Default::default()
        })
        .await;
        let (view, _) = followed(&fake).await;
        let view = view.unwrap();
        assert_eq!((view.state, view.verified()), ("completed", 3));
        assert!(fake.script.lock().unwrap().watches.is_empty());
    }

    #[tokio::test]
    async fn a_coordinator_that_died_is_waited_for() {
        let mut fake = Fake::start(Script {
            watches: [vec![Ok(snapshot(RotationState::Running, 1))]].into(),
            ..Default::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let mut client = Client::connect(Some(&fake.credentials(folder.path()))).await.unwrap();
        let watching = tokio::spawn(async move {
            let mut progress = Progress::new(Output::stdout(Format::Table));
            follow(&mut client, "r1", &mut progress).await
        });
        // Its one stream has ended; now the process goes, and comes back with the end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fake.script.lock().unwrap().watches.is_empty() {
            assert!(Instant::now() < deadline, "nobody watched");
            tokio::task::yield_now().await;
        }
        fake.die().await;
        fake.script.lock().unwrap().watches.push_back(vec![Ok(snapshot(RotationState::Completed, 3))]);
        fake.revive().await;
        let view = timeout_at(deadline, watching).await.expect("the watching ends").unwrap().unwrap();
        assert_eq!(view.state, "completed");
        assert!(fake.script.lock().unwrap().connections > 1, "it connected again");
    }

    #[tokio::test]
    async fn trailing_ends_with_the_stream_and_a_clear_no_ends_at_once() {
        let fake = Fake::start(Script {
            watches: [
                vec![Ok(snapshot(RotationState::Trailing, 1))],
                vec![Err(tonic::Status::not_found("no rotation r1"))],
            ]
            .into(),
            ..Default::default()
        })
        .await;
        let (view, _) = followed(&fake).await;
        assert_eq!(view.unwrap().state, "trailing");
        let (view, _) = followed(&fake).await;
        assert_eq!(view.err().expect("a clear no").to_string(), "no rotation r1");
    }

    #[tokio::test]
    async fn settling_is_bounded_once() {
        let first = settle(&view(RotationState::Halted, 1), None, Some(RotationState::Running));
        assert!(first.is_some());
        let again = settle(&view(RotationState::Halted, 1), first, Some(RotationState::Halted));
        assert_eq!(again, first, "a snapshot does not move the end");
        assert_eq!(settle(&view(RotationState::Running, 1), first, None), None);
    }
}
