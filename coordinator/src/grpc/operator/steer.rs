//! Steering a rotation that runs: pause, resume, abort, retry.

use reseal_proto::v1::{ControlRotationRequest, RotationAction};
use tonic::{Code, Status};

use super::OperatorService;
use super::retry::{Left, Retry};
use super::rotate::MAX_REASON;
use crate::domain::rotation::{self, Event};
use crate::grpc::auth::Caller;
use crate::grpc::convert::status;
use crate::store::record::Rotation;
use crate::store::{Commit, Versioned, keys};

/// How often a change is tried on a rotation that the engine moves at the same time.
const TRIES: usize = 5;

/// Does a change again when what it read has moved meanwhile: an operator's word counts for the
/// rotation as it is by then.
pub(super) async fn unless_moved<T, F>(attempt: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    for _ in 1..TRIES {
        match attempt().await {
            Err(error) if error.code() == Code::Aborted => {}
            other => return other,
        }
    }
    attempt().await
}

impl OperatorService {
    /// Pause, resume, abort, retry.
    pub(super) async fn control(
        &self,
        caller: &Caller,
        request: &ControlRotationRequest,
    ) -> Result<(), Status> {
        unless_moved(|| self.try_control(caller, request)).await
    }

    async fn try_control(&self, caller: &Caller, request: &ControlRotationRequest) -> Result<(), Status> {
        let ControlRotationRequest { id, reason, .. } = request;
        if reason.len() > MAX_REASON {
            return Err(Status::invalid_argument(format!("a reason has at most {MAX_REASON} bytes")));
        }
        let event = match request.action() {
            RotationAction::Unspecified => return Err(Status::invalid_argument("no action given")),
            RotationAction::Pause => Event::Pause,
            RotationAction::Resume => Event::Resume,
            RotationAction::Abort => Event::Abort,
            RotationAction::Retry => Event::Retry,
        };
        let again = request.excluded && event == Event::Retry;
        if request.excluded && !again {
            return Err(Status::invalid_argument("--excluded goes with a retry only"));
        }
        let Versioned { value: mut record, mut revision } = self.rotation_record(id).await?;
        let state = rotation::apply(record.state(), event)
            .map_err(|error| Status::failed_precondition(format!("rotation {id}: {error}")))?;
        let now = (self.now)();
        let mut left = Left::default();
        if event == Event::Retry {
            if again && !record.excluded.is_empty() {
                // First: the engine takes out whatever it finds on a host that is still named.
                record.excluded.clear();
                let words = "excluded hosts are taken in again";
                revision = self.change(caller, id, revision, &record, ("rotation.retry", words)).await?;
            }
            let retry = Retry { id, rotation: &record, excluded: again, now };
            left = self.retry_batches(&retry).await?;
            record.failures_accepted = 0;
        }
        if event == Event::Resume {
            record.failures_accepted = self.failures(id);
        }
        record.set_state(state);
        record.note = if reason.is_empty() { String::new() } else { format!("{}: {reason}", caller.name) };
        for (number, why) in [
            (left.busy, "are in another rotation by now"),
            (left.unmanaged, "are not declared by their hosts any more"),
        ] {
            if number > 0 {
                let left = format!("{number} targets {why} and were not tried again");
                record.note = if record.note.is_empty() { left } else { format!("{}; {left}", record.note) };
            }
        }
        if rotation::is_end(state) {
            record.ended_at = now;
        }
        self.change(caller, id, revision, &record, (rotation::audit_action(event), reason)).await.map(drop)
    }

    /// Writes the record with its audit entry (action, detail), and waits until what is
    /// shown shows it; gives its new revision.
    pub(super) async fn change(
        &self,
        caller: &Caller,
        id: &str,
        revision: u64,
        record: &Rotation,
        (action, detail): (&str, &str),
    ) -> Result<u64, Status> {
        let key = keys::rotation(id);
        let draft = self.draft(caller, action, &key, detail);
        let commit = Commit::new().at(&key, revision).put(&key, record).audit(draft);
        let revision = self.store.commit(commit).await.map_err(|error| status(&error))?;
        self.view.reaches(id, revision).await;
        Ok(revision)
    }

    fn failures(&self, id: &str) -> u32 {
        let state = self.view.read();
        let number = crate::view::rotation_number(id).unwrap_or_default();
        state.rotations.get(&number).map_or(0, |rotation| rotation.progress().failed)
    }
}
