//! Takes out the targets of hosts that an operator has excluded.
//!
//! The rotation's record says which hosts; here their batches follow, whatever
//! wrote them meanwhile. A target that is proved stays verified. What the host
//! has not asked certificates for yet gets none: its batch is finished.

use reseal_proto::v1::{ExcludedHost, Failure};

use super::Turn;
use crate::domain::rotation;
use crate::domain::target::{self, Event, State};
use crate::store::record::Batch;
use crate::store::{Commit, StoreError, keys};

/// Batches in one activation: the rest come with the next.
const BATCHES: usize = 200;

/// Takes them out.
pub(super) async fn take_out(turn: &Turn<'_>) -> Result<(), StoreError> {
    for Taken { rotation, host, batch, excluded } in included(turn) {
        let key = keys::batch(&host, &batch);
        let Some(mut record) = turn.engine.store.get::<Batch>(&key).await? else { continue };
        for target in record.value.targets.iter_mut().filter(|target| !target.superseded) {
            let Ok(state) = target::apply(target.state(), Event::Exclude) else { continue };
            target.set_state(state);
            let before = target.failure.take();
            let by = format!("excluded by {}: {}", excluded.operator, excluded.reason);
            target.failure = Some(Failure {
                stage: before.as_ref().map(|before| before.stage).unwrap_or_default(),
                code: "excluded".into(),
                reason: match before {
                    Some(before) => format!("{by}; before that: {}", before.reason),
                    None => by,
                },
            });
        }
        if record.value.finished_at == 0 {
            record.value.finished_at = turn.now;
        }
        tracing::warn!(%host, %batch, "excluded from its rotation: not replaced");
        // Fenced by the rotation, too: an operator may have taken the host in again just now.
        let (id, revision) = rotation;
        let commit = Commit::new().lease(turn.lease).at(keys::rotation(&id), revision);
        let commit = commit.at(&key, record.revision).put(&key, &record.value);
        super::pass_over(&host, turn.commit_unless_moved(commit).await.map(drop))?;
    }
    Ok(())
}

/// A batch to take out.
struct Taken {
    /// Its rotation and the revision of that record.
    rotation: (String, u64),
    host: String,
    batch: String,
    excluded: ExcludedHost,
}

/// Batches of excluded hosts that are not taken out yet.
fn included(turn: &Turn<'_>) -> Vec<Taken> {
    let state = turn.engine.view.read();
    let mut found = Vec::new();
    for (number, rotation) in &state.rotations {
        if !rotation::accepts_work(rotation.state) {
            continue;
        }
        for excluded in &rotation.record.excluded {
            let batches = rotation.batches_of(&excluded.host).filter(|(_, batch)| {
                batch.counts.iter().any(|(state, _)| !matches!(state, State::Verified | State::Excluded))
            });
            found.extend(batches.map(|(name, _)| Taken {
                rotation: (format!("r{number}"), rotation.revision),
                host: excluded.host.clone(),
                batch: name.to_owned(),
                excluded: excluded.clone(),
            }));
        }
    }
    found.truncate(BATCHES);
    found
}
