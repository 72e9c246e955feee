//! Orders waves, halts, trails, completes.

use super::Turn;
use crate::domain::rotation::{self, Event, Step};
use crate::domain::waves::Threshold;
use crate::fail::point;
use crate::store::record::Rotation;
use crate::store::{AuditDraft, Commit, StoreError, keys};

/// Takes every running rotation one step further.
pub(super) async fn step(turn: &Turn<'_>) -> Result<(), StoreError> {
    for due in due(turn) {
        let Due { id, mut record, revision, step, verified } = due;
        let (action, detail) = match step {
            Step::Wait => continue,
            // An inventory that nobody has looked through may show what was missed.
            Step::Apply(Event::Complete, _) if turn.engine.view.has_moved() => continue,
            Step::OrderWave(wave) => {
                record.wave = wave;
                record.wave_at = turn.now;
                let hosts = record.waves.get(wave as usize - 1).copied().unwrap_or_default();
                ("rotation.wave", format!("wave {wave} of {}, {hosts} hosts so far", record.waves.len()))
            }
            Step::Apply(event, note) => {
                let Ok(state) = rotation::apply(record.state(), event) else { continue };
                record.set_state(state);
                record.note.clone_from(&note);
                if rotation::is_end(state) {
                    record.ended_at = turn.now;
                }
                if matches!(event, Event::Complete | Event::Trail) && record.green_at == 0 && verified > 0 {
                    record.green_at = turn.now;
                }
                (rotation::audit_action(event), note)
            }
        };
        tracing::info!(rotation = %id, action, %detail, "rotation");
        point("engine.before_step");
        let draft = AuditDraft {
            at: turn.now,
            actor: "coordinator".into(),
            action: action.into(),
            object: format!("rotation/{id}"),
            outcome: "done".into(),
            detail,
        };
        let key = keys::rotation(&id);
        let commit = Commit::new().lease(turn.lease).at(&key, revision).put(&key, &record).audit(draft);
        turn.engine.store.commit(commit).await?;
        point("engine.after_step");
    }
    Ok(())
}

struct Due {
    id: String,
    record: Rotation,
    revision: u64,
    step: Step,
    verified: u32,
}

fn due(turn: &Turn<'_>) -> Vec<Due> {
    let state = turn.engine.view.read();
    state
        .rotations
        .iter()
        // A rotation whose batches are not all in the projection yet would look further than it is.
        .filter(|(_, rotation)| {
            rotation.is_open() && rotation.batches.len() >= rotation.record.batches as usize
        })
        .map(|(number, rotation)| {
            let record = &rotation.record;
            let progress = rotation.progress();
            let step = rotation::next(
                rotation.state,
                &progress,
                threshold(record),
                record.deadline_at,
                turn.deadlines(),
            );
            Due {
                id: format!("r{number}"),
                record: record.clone(),
                revision: rotation.revision,
                step,
                verified: progress.verified,
            }
        })
        .filter(|due| due.step != Step::Wait)
        .collect()
}

/// The halt threshold of a rotation.
fn threshold(record: &Rotation) -> Threshold {
    match record.max_failures {
        0 => Threshold::BasisPoints(record.max_failures_basis_points),
        number => Threshold::Targets(number),
    }
}
