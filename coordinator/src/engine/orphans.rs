//! Removes batches of rotations that never began.
//!
//! A rotation's batches are written first and its record reveals them. When the
//! coordinator dies in between, they belong to nothing and would never be
//! ordered; after ten minutes nobody is still writing that rotation.

use super::Turn;
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, keys};

/// Seconds after which an unrevealed batch is an orphan.
const AGE: i64 = 600;

/// Removes them.
pub(super) async fn remove(turn: &Turn<'_>) -> Result<(), StoreError> {
    let suspects: Vec<(String, String)> = {
        let state = turn.engine.view.read();
        let unrevealed = state.rotations.values().filter(|rotation| rotation.revision == 0);
        unrevealed
            .flat_map(|rotation| rotation.batches.keys())
            .take(200)
            .map(|(host, batch)| (host.to_string(), batch.to_string()))
            .collect()
    };
    for (host, batch) in suspects {
        let key = keys::batch(&host, &batch);
        let Some(record) = turn.engine.store.get::<Batch>(&key).await? else { continue };
        let rotation = keys::rotation(&record.value.rotation);
        if record.value.created_at + AGE > turn.now {
            continue;
        }
        tracing::info!(%host, %batch, "removing a batch whose rotation never began");
        let commit = Commit::new().lease(turn.lease).absent(&rotation).at(&key, record.revision).delete(&key);
        turn.engine.store.commit(commit).await?;
    }
    Ok(())
}
