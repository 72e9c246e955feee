//! Gives up on results that never come.
//!
//! A batch whose host is connected and has said nothing for a quarter of an hour
//! is failed, with a reason: a gate must not wait for ever, and a renewal must
//! be tried again. What the agent installed after all is in its inventory.

use reseal_proto::v1::{Failure, TargetState};

use super::Turn;
use crate::domain::rotation;
use crate::domain::target::{self, Event};
use crate::metrics::ends;
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, keys};

/// Seconds.
const PATIENCE: i64 = 900;

/// Fails overdue batches.
pub(super) async fn fail(turn: &Turn<'_>) -> Result<(), StoreError> {
    for (host, batch) in overdue(turn) {
        let key = keys::batch(&host, &batch);
        let Some(mut record) = turn.engine.store.get::<Batch>(&key).await? else { continue };
        if record.value.finished_at != 0 || !turn.has_passed(PATIENCE, record.value.created_at) {
            continue;
        }
        let before = ends(&record.value);
        for target in &mut record.value.targets {
            if let Ok(state) = target::apply(target.state(), Event::Report(TargetState::Failed)) {
                target.set_state(state);
                target.failure = Some(Failure {
                    code: "no-result".into(),
                    reason: format!(
                        "the agent of host {host} is connected and has sent no result for {} minutes; look at its log, then retry",
                        PATIENCE / 60
                    ),
                    ..Failure::default()
                });
            }
        }
        record.value.finished_at = turn.now;
        tracing::warn!(%host, %batch, "no result in time: failed");
        let commit = Commit::new().lease(turn.lease).at(&key, record.revision).put(&key, &record.value);
        if turn.commit_unless_moved(commit).await? {
            turn.engine.metrics.finished(&before, &record.value);
        }
    }
    Ok(())
}

/// Ordered, unfinished batches of hosts that have been connected all the time.
fn overdue(turn: &Turn<'_>) -> Vec<(String, String)> {
    let state = turn.engine.view.read();
    let mut found = Vec::new();
    for (name, host) in &state.hosts {
        if host.open.is_empty() {
            continue;
        }
        let Some(connected) = turn.engine.presence.show(name) else { continue };
        // An agent works on one batch after the other: only the first one is waited for.
        let ordered = host.open.iter().find_map(|open| {
            match open.rotation.map(|number| state.rotations.get(&number)) {
                None => Some((open, 0)),
                Some(Some(rotation))
                    if rotation::accepts_work(rotation.state) && open.place <= rotation.reach =>
                {
                    Some((open, rotation.record.wave_at))
                }
                Some(_) => None,
            }
        });
        if let Some((open, ordered_at)) = ordered
            && [ordered_at, connected.since, host.last_finished]
                .iter()
                .all(|since| turn.has_passed(PATIENCE, *since))
        {
            found.push((name.to_string(), open.batch.to_string()));
        }
    }
    found
}
