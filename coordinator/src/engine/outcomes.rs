//! Puts on record what the batches of an ended rotation add up to.
//!
//! So that no later start has to read them. They stay what counts: killed before
//! it is written, the next start reads them once more, and a result that comes
//! late makes it be written again.

use super::Turn;
use crate::store::record::Outcome;
use crate::store::{Commit, StoreError, keys};

/// In one activation: the rest come with the next.
const AT_ONCE: usize = 20;

/// Writes those that are due.
pub(super) async fn record(turn: &Turn<'_>) -> Result<(), StoreError> {
    let due: Vec<(String, Outcome)> = {
        let state = turn.engine.view.read();
        let due = state
            .rotations
            .iter()
            .filter_map(|(number, rotation)| Some((format!("r{number}"), rotation.outcome_due()?)));
        due.take(AT_ONCE).collect()
    };
    for (id, outcome) in due {
        let commit = Commit::new().lease(turn.lease).put(keys::outcome(&id), &outcome);
        turn.engine.store.commit(commit).await?;
    }
    Ok(())
}
