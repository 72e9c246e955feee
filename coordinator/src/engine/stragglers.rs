//! Names hosts that are away when they are ordered.
//!
//! A target is a straggler when its host has had no session for thirty seconds
//! while its wave is ordered. It leaves the gate, stays in the rotation and is
//! worked on as soon as its host is back.

use super::Turn;
use crate::domain::rotation;
use crate::domain::target::{self, Event};
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, keys};

/// Seconds without a session.
const ABSENCE: i64 = 30;

/// Marks the targets of absent hosts.
pub(super) async fn mark(turn: &Turn<'_>) -> Result<(), StoreError> {
    for (host, batch) in absent(turn) {
        let key = keys::batch(&host, &batch);
        let Some(mut record) = turn.engine.store.get::<Batch>(&key).await? else { continue };
        if record.value.finished_at != 0 {
            continue;
        }
        for target in &mut record.value.targets {
            if let Ok(state) = target::apply(target.state(), Event::Lose) {
                target.set_state(state);
            }
        }
        tracing::warn!(%host, %batch, "host has no session: its targets are stragglers until it is back");
        let commit = Commit::new().lease(turn.lease).at(&key, record.revision).put(&key, &record.value);
        turn.commit_unless_moved(commit).await?;
    }
    Ok(())
}

/// Ordered batches whose host is away, and that are not marked yet.
fn absent(turn: &Turn<'_>) -> Vec<(String, String)> {
    let engine = turn.engine;
    let state = engine.view.read();
    let mut found = Vec::new();
    for rotation in state.rotations.values() {
        if !rotation::accepts_work(rotation.state) || !turn.has_passed(ABSENCE, rotation.record.wave_at) {
            continue;
        }
        for ((host, batch), view) in &rotation.batches {
            if view.finished || view.straggling || view.place > rotation.reach {
                continue;
            }
            let since = engine.presence.absent_since(host, engine.started_at);
            if since.is_some_and(|since| turn.has_passed(ABSENCE, since)) {
                found.push((host.to_string(), batch.to_string()));
            }
        }
    }
    found
}
