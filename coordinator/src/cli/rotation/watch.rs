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

    #[tokio::test]
    async fn settling_is_bounded_once() {
        let first = settle(&view(RotationState::Halted, 1), None, Some(RotationState::Running));
        assert!(first.is_some());
        let again = settle(&view(RotationState::Halted, 1), first, Some(RotationState::Halted));
        assert_eq!(again, first, "a snapshot does not move the end");
        assert_eq!(settle(&view(RotationState::Running, 1), first, None), None);
    }
}
