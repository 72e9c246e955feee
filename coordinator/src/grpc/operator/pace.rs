//! Changing a rotation that runs: a host taken out, another pace.
//!
//! One small commit each, guarded by the rotation's revision, with its audit
//! entry in it; what follows from it on the hosts is the engine's work.

use reseal_proto::identity;
use reseal_proto::v1::{ExcludeHostRequest, ExcludedHost, PaceRotationRequest};
use tonic::Status;

use super::OperatorService;
use super::rotate::MAX_REASON;
use super::steer::unless_moved;
use crate::domain::rotation;
use crate::domain::selection;
use crate::domain::waves::{Pace, Threshold};
use crate::grpc::auth::Caller;
use crate::grpc::convert::chain;
use crate::store::Versioned;
use crate::store::record::Rotation;

/// Hosts excluded from one rotation at most: they are named in its record.
const MAX_EXCLUDED: usize = 100;
/// Characters of the reason that the record and each target keep; the audit log keeps all of it.
const KEPT_REASON: usize = 200;

impl OperatorService {
    /// Takes a host out of a rotation.
    pub(super) async fn exclude(&self, caller: &Caller, request: &ExcludeHostRequest) -> Result<(), Status> {
        unless_moved(|| self.try_exclude(caller, request)).await
    }

    async fn try_exclude(&self, caller: &Caller, request: &ExcludeHostRequest) -> Result<(), Status> {
        let ExcludeHostRequest { rotation: id, host, reason } = request;
        if reason.trim().is_empty() || reason.len() > MAX_REASON {
            return Err(Status::invalid_argument(format!(
                "--reason is needed, at most {MAX_REASON} bytes: the summary and the evidence name it beside the host"
            )));
        }
        identity::check_name("host", host).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Versioned { value: mut record, revision } = self.open_record(id).await?;
        if record.excludes(host) {
            return Ok(());
        }
        let known = {
            let state = self.view.read();
            let number = crate::view::rotation_number(id).unwrap_or_default();
            let has_targets = state
                .rotations
                .get(&number)
                .is_some_and(|rotation| rotation.batches_of(host).next().is_some());
            // What turns up on it later would join.
            let may_join = record.selection.as_ref().is_some_and(selection::means_every_certificate)
                && state.hosts.contains_key(host.as_str());
            has_targets || may_join
        };
        if !known {
            return Err(Status::not_found(format!(
                "host {host} has no target in rotation {id}; see `reseal rotation show {id} --output json`"
            )));
        }
        if record.excluded.len() >= MAX_EXCLUDED {
            return Err(Status::resource_exhausted(format!(
                "rotation {id} has {MAX_EXCLUDED} excluded hosts already: abort it, and rotate with a selection that leaves them out"
            )));
        }
        record.excluded.push(ExcludedHost {
            host: host.clone(),
            reason: reason.chars().take(KEPT_REASON).collect(),
            operator: caller.name.clone(),
            at: (self.now)(),
        });
        let detail = format!("host {host}: {reason}");
        self.change(caller, id, revision, &record, ("rotation.exclude", &detail)).await.map(drop)
    }

    /// Changes the waves that are not ordered yet, and the threshold.
    pub(super) async fn pace(&self, caller: &Caller, request: &PaceRotationRequest) -> Result<(), Status> {
        unless_moved(|| self.try_pace(caller, request)).await
    }

    async fn try_pace(&self, caller: &Caller, request: &PaceRotationRequest) -> Result<(), Status> {
        let invalid = |text: String| Status::invalid_argument(text);
        let PaceRotationRequest { id, waves, max_failures, reason } = request;
        if waves.is_empty() && max_failures.is_empty() {
            return Err(invalid("nothing to change: give --waves, --max-failures or both".into()));
        }
        if reason.len() > MAX_REASON {
            return Err(invalid(format!("a reason has at most {MAX_REASON} bytes")));
        }
        let Versioned { value: mut record, revision } = self.open_record(id).await?;
        let mut changes = Vec::new();
        if !waves.is_empty() {
            let wanted = waves.parse().map_err(|error| invalid(chain(&error)))?;
            let pace = Pace { waves: &record.waves, ordered: record.wave };
            record.waves = pace
                .change(&wanted)
                .map_err(|error| Status::failed_precondition(format!("rotation {id}: {error}")))?;
            changes.push(format!("waves {waves}, so {:?}", record.waves));
        }
        if !max_failures.is_empty() {
            let threshold: Threshold = max_failures.parse().map_err(|error| invalid(chain(&error)))?;
            (record.max_failures_basis_points, record.max_failures) = threshold.as_record();
            changes.push(format!("max failures {max_failures}"));
        }
        if !reason.is_empty() {
            changes.push(reason.clone());
        }
        self.change(caller, id, revision, &record, ("rotation.pace", &changes.join("; "))).await.map(drop)
    }

    /// A rotation that has not ended.
    async fn open_record(&self, id: &str) -> Result<Versioned<Rotation>, Status> {
        let record = self.rotation_record(id).await?;
        let state = record.value.state();
        if rotation::accepts_work(state) {
            return Ok(record);
        }
        Err(Status::failed_precondition(format!(
            "rotation {id} is {}: only one that runs can be changed",
            rotation::word(state)
        )))
    }
}
