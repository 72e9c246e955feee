//! Steering a rotation that runs: pause, resume, abort, retry.

use reseal_proto::v1::RotationAction;
use tonic::Status;

use super::OperatorService;
use super::rotate::MAX_REASON;
use crate::domain::rotation::{self, Event};
use crate::domain::target;
use crate::grpc::auth::Caller;
use crate::grpc::convert::status;
use crate::issuance::profile::serial;
use crate::store::record::{Batch, Rotation, Target};
use crate::store::{AuditDraft, Commit, Versioned, keys};

impl OperatorService {
    /// Pause, resume, abort, retry.
    pub(super) async fn control(
        &self,
        caller: &Caller,
        id: &str,
        action: RotationAction,
        reason: &str,
    ) -> Result<(), Status> {
        let event = match action {
            RotationAction::Unspecified => return Err(Status::invalid_argument("no action given")),
            RotationAction::Pause => Event::Pause,
            RotationAction::Resume => Event::Resume,
            RotationAction::Abort => Event::Abort,
            RotationAction::Retry => Event::Retry,
        };
        let Versioned { value: mut record, revision } = self.rotation_record(id).await?;
        let state = rotation::apply(record.state(), event)
            .map_err(|error| Status::failed_precondition(format!("rotation {id}: {error}")))?;
        let now = (self.now)();
        if event == Event::Retry {
            self.retry_batches(id, &record, now).await?;
            record.failures_accepted = 0;
        }
        if event == Event::Resume {
            record.failures_accepted = self.failures(id);
        }
        record.set_state(state);
        record.note = if reason.is_empty() { String::new() } else { format!("{}: {reason}", caller.name) };
        if rotation::is_end(state) {
            record.ended_at = now;
        }
        let draft = AuditDraft {
            at: now,
            actor: caller.actor(),
            action: rotation::audit_action(event).into(),
            object: format!("rotation/{id}"),
            outcome: "done".into(),
            detail: reason.chars().take(MAX_REASON).collect(),
        };
        let key = keys::rotation(id);
        let commit = Commit::new().at(&key, revision).put(&key, &record).audit(draft);
        let revision = self.store.commit(commit).await.map_err(|error| status(&error))?;
        self.view.reaches(id, revision).await;
        Ok(())
    }

    /// New batches for the failed targets; the old ones count no more.
    async fn retry_batches(&self, id: &str, rotation: &Rotation, now: i64) -> Result<(), Status> {
        let failed: Vec<(String, String)> = {
            let state = self.view.read();
            let number = crate::view::rotation_number(id).unwrap_or_default();
            let Some(view) = state.rotations.get(&number) else { return Ok(()) };
            view.batches
                .iter()
                .filter(|(_, batch)| {
                    batch.finished && batch.counts.iter().any(|(state, _)| target::is_failure(state))
                })
                .map(|((host, batch), _)| (host.to_string(), batch.to_string()))
                .collect()
        };
        for (host, batch) in failed {
            let key = keys::batch(&host, &batch);
            let Some(old) = self.store.get::<Batch>(&key).await.map_err(|error| status(&error))? else {
                continue;
            };
            let all =
                self.store.range::<Batch>(&keys::batches_of(&host)).await.map_err(|error| status(&error))?;
            let taken = all.iter().filter(|(_, batch)| batch.value.rotation == id).count();
            let next_key = keys::batch(&host, &target::batch_name(id, taken, self.store.epoch()));
            let mut record = old.value;
            let next = Batch {
                rotation: id.to_owned(),
                wave: record.wave.min(rotation.wave),
                targets: record
                    .targets
                    .iter_mut()
                    .filter(|target| !target.superseded && target::is_failure(target.state()))
                    .map(|target| {
                        target.superseded = true;
                        Target {
                            installation: target.installation.clone(),
                            label: target.label.clone(),
                            before: target.before.clone(),
                            state: target::State::Pending.into(),
                            serial: serial().to_vec(),
                            ..Target::default()
                        }
                    })
                    .collect(),
                created_at: now,
                attempt: record.attempt + 1,
                traceparent: rotation.traceparent.clone(),
                on_failure: rotation.on_failure,
                ..Batch::default()
            };
            if next.targets.is_empty() {
                continue;
            }
            let commit = Commit::new()
                .at(&key, old.revision)
                .put(&key, &record)
                .absent(&next_key)
                .put(&next_key, &next);
            self.store.commit(commit).await.map_err(|error| status(&error))?;
        }
        Ok(())
    }

    fn failures(&self, id: &str) -> u32 {
        let state = self.view.read();
        let number = crate::view::rotation_number(id).unwrap_or_default();
        state.rotations.get(&number).map_or(0, |rotation| rotation.progress().failed)
    }
}
