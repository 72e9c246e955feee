//! Starting a rotation.
//!
//! A number is reserved, the batches are written, and one last commit reveals
//! them: it makes the rotation, taints the compromised authority and activates
//! the new one, all or nothing. Killed before it, nothing has happened.

use reseal_proto::telemetry;
use reseal_proto::v1::{OnFailure, RotateRequest};
use tonic::Status;

use super::OperatorService;
use super::choose::{Choice, Chosen, radius};
use super::plan::{WAVES, nothing_to_rotate};
use crate::domain::rotation::State;
use crate::domain::selection;
use crate::domain::target;
use crate::domain::waves::{Threshold, Waves};
use crate::fail::point;
use crate::grpc::auth::Caller;
use crate::grpc::convert::{chain, status};
use crate::issuance::profile::serial;
use crate::store::record::{AuthorityState, Batch, Counter, Rotation};
use crate::store::{AuditDraft, Commit, Versioned, keys};

/// Batches written in one commit.
const GROUP: usize = 8;
/// Rotations that have not ended, at most: the engine looks at each whenever something changes.
const MAX_OPEN: usize = 100;
pub(super) const MAX_REASON: usize = 1000;
const DEFAULT_DEADLINE: u64 = 24 * 3600;
const MAX_DEADLINE: u64 = 90 * 24 * 3600;

/// What the operator ordered, understood.
struct Orders {
    waves: Waves,
    threshold: Threshold,
    deadline: i64,
    on_failure: OnFailure,
}

impl Orders {
    fn parse(request: &RotateRequest) -> Result<Self, Status> {
        let invalid = |text: String| Status::invalid_argument(text);
        if request.reason.trim().is_empty() || request.reason.len() > MAX_REASON {
            return Err(invalid(format!(
                "--reason is needed, at most {MAX_REASON} bytes: it goes into the audit log and the evidence"
            )));
        }
        if request.idempotency_key.len() != 16 {
            return Err(invalid("idempotency_key must be 16 random bytes".into()));
        }
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let waves = or(&request.waves, WAVES).parse().map_err(|error| invalid(chain(&error)))?;
        let threshold = or(&request.max_failures, "2%").parse().map_err(|error| invalid(chain(&error)))?;
        let deadline = match request.deadline_seconds {
            0 => DEFAULT_DEADLINE,
            seconds @ 1..=MAX_DEADLINE => seconds,
            seconds => return Err(invalid(format!("a deadline of {seconds} seconds is more than 90 days"))),
        };
        let on_failure = match request.on_failure() {
            OnFailure::Unspecified | OnFailure::Rollback => OnFailure::Rollback,
            OnFailure::Hold => OnFailure::Hold,
        };
        Ok(Self { waves, threshold, deadline: i64::try_from(deadline).unwrap_or(i64::MAX), on_failure })
    }
}

impl OperatorService {
    /// Starts a rotation and gives its id.
    pub(super) async fn start_rotation(
        &self,
        caller: &Caller,
        request: RotateRequest,
    ) -> Result<String, Status> {
        let orders = Orders::parse(&request)?;
        let _one_at_a_time = self.starting.lock().await;
        if let Some(id) = self.same_request(&request.idempotency_key).await? {
            return Ok(id);
        }
        if self.open_rotations() >= MAX_OPEN {
            return Err(Status::resource_exhausted(format!(
                "{MAX_OPEN} rotations have not ended: let some end, or abort them; `reseal rotation list`"
            )));
        }
        let wire = request.selection.clone().unwrap_or_default();
        if wire.all {
            return Err(Status::invalid_argument(
                "a rotation needs a selection; to mean every host say --host '*'",
            ));
        }
        let chosen_at_revision = self.catch_up().await?;
        let (wanted, compromised) = self.selection(&wire).await?;
        let Choice { hosts: chosen, unmanaged } = self.choose(&wanted, Some(&orders.waves)).await?;
        // A compromised issuer is tainted even when it has issued nothing that is on record.
        if chosen.is_empty() && !selection::means_every_certificate(&wire) {
            return Err(Status::failed_precondition(format!(
                "{}: nothing to rotate; try `reseal plan` with it",
                nothing_to_rotate(unmanaged.total)
            )));
        }
        let conflicts = self.conflicts(&chosen).await?;
        if !conflicts.is_empty() {
            let shown = conflicts.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
            return Err(Status::failed_precondition(format!(
                "{} targets are in another rotation: {shown}; let it end or abort it first",
                conflicts.len()
            )));
        }
        let (to_name, to_authority) = self.new_issuer(&request.to_issuer, compromised.as_ref()).await?;
        if to_authority.value.state() == AuthorityState::Prepared
            && let Some(rotation) = self.open_rotation()
        {
            return Err(Status::failed_precondition(format!(
                "this would activate builtin/{to_name} while rotation {rotation} is issuing from the active authority: let it end or abort it first"
            )));
        }
        let (number, reserved) = self.reserve_number().await?;
        let id = format!("r{number}");
        let now = (self.now)();
        let traceparent = telemetry::traceparent();
        point("rotate.before_batches");
        let batches = self.write_batches(&id, &chosen, &orders, &traceparent, now).await?;
        point("rotate.after_batches");
        let (containers, endpoints) = radius(&chosen);
        let (basis_points, max_failures) = orders.threshold.as_record();
        let targets: usize = chosen.iter().map(|host| host.installations.len()).sum();
        let record = Rotation {
            state: State::Running.into(),
            selection: Some(wire),
            reason: request.reason.clone(),
            operator: caller.name.clone(),
            compromised: compromised.as_ref().map(|issuer| issuer.name.clone()).unwrap_or_default(),
            to_issuer: to_name.clone(),
            created_at: now,
            deadline_at: now.saturating_add(orders.deadline),
            waves: orders.waves.sizes(u32::try_from(chosen.len()).unwrap_or(u32::MAX)),
            wave: u32::from(!chosen.is_empty()),
            wave_at: now,
            max_failures_basis_points: basis_points,
            max_failures,
            on_failure: orders.on_failure.into(),
            traceparent,
            idempotency_key: request.idempotency_key,
            batches,
            containers,
            endpoints,
            chosen_at_revision,
            ..Rotation::default()
        };
        let key = keys::rotation(&id);
        let commit =
            Commit::new().at(keys::ROTATIONS, reserved).absent(&key).put(&key, &record).audit(AuditDraft {
                at: now,
                actor: caller.actor(),
                action: "rotation.start".into(),
                object: format!("rotation/{id}"),
                outcome: "done".into(),
                detail: format!(
                    "{} hosts, {targets} targets, to builtin/{to_name}{}: {}",
                    chosen.len(),
                    match unmanaged.total {
                        0 => String::new(),
                        number => format!(", {number} certificates not managed"),
                    },
                    request.reason
                ),
            });
        let commit = self
            .change_authorities(commit, compromised.as_ref(), &request.reason, &to_name, &to_authority)
            .await?;
        match self.store.commit(commit).await {
            Ok(revision) => self.view.reaches(&id, revision).await,
            Err(error) => {
                self.remove_batches(&id, &chosen).await;
                return Err(status(&error));
            }
        }
        point("rotate.after_reveal");
        self.issuance.forget();
        tracing::info!(rotation = %id, operator = %caller.name, hosts = chosen.len(), targets, unmanaged = unmanaged.total, "rotation started");
        Ok(id)
    }

    /// A repeated request gets the rotation it made the first time.
    async fn same_request(&self, key: &[u8]) -> Result<Option<String>, Status> {
        for (path, rotation) in
            self.store.range::<Rotation>(keys::ROTATION).await.map_err(|error| status(&error))?
        {
            if rotation.value.idempotency_key == key {
                return Ok(Some(path.trim_start_matches(keys::ROTATION).to_owned()));
            }
        }
        Ok(None)
    }

    /// Brings the projection to the newest revision there is, and gives that: what
    /// is on record by now is seen by the choice of targets.
    async fn catch_up(&self) -> Result<u64, Status> {
        let last = self.store.get::<Counter>(keys::ROTATIONS).await.map_err(|error| status(&error))?;
        let (value, commit) = match last {
            Some(last) => (last.value, Commit::new().at(keys::ROTATIONS, last.revision)),
            None => (Counter::default(), Commit::new().absent(keys::ROTATIONS)),
        };
        let touched =
            self.store.commit(commit.put(keys::ROTATIONS, &value)).await.map_err(|error| status(&error))?;
        if self.view.catches_up(touched).await {
            Ok(touched)
        } else {
            Err(Status::unavailable("the coordinator is behind with its records; try again in a moment"))
        }
    }

    /// A number nobody else has, and the revision that says so.
    async fn reserve_number(&self) -> Result<(u64, u64), Status> {
        let last = self.store.get::<Counter>(keys::ROTATIONS).await.map_err(|error| status(&error))?;
        let (number, commit) = match last {
            Some(last) => (last.value.value + 1, Commit::new().at(keys::ROTATIONS, last.revision)),
            None => (1, Commit::new().absent(keys::ROTATIONS)),
        };
        let commit = commit.put(keys::ROTATIONS, &Counter { value: number });
        let revision = self.store.commit(commit).await.map_err(|error| status(&error))?;
        Ok((number, revision))
    }

    async fn write_batches(
        &self,
        id: &str,
        chosen: &[Chosen],
        orders: &Orders,
        traceparent: &str,
        now: i64,
    ) -> Result<u32, Status> {
        let mut batches = Vec::new();
        for host in chosen {
            for (number, installations) in host.installations.chunks(target::PER_BATCH).enumerate() {
                let record = Batch {
                    rotation: id.to_owned(),
                    place: host.place,
                    targets: installations
                        .iter()
                        .map(|installation| target::pending(installation, serial()))
                        .collect(),
                    created_at: now,
                    traceparent: traceparent.to_owned(),
                    on_failure: orders.on_failure.into(),
                    ..Batch::default()
                };
                batches.push((
                    keys::batch(&host.host, &target::batch_name(id, number, self.store.epoch())),
                    record,
                ));
            }
        }
        let count = u32::try_from(batches.len()).unwrap_or(u32::MAX);
        let mut writing = Vec::new();
        for group in batches.chunks(GROUP) {
            let commit =
                group.iter().fold(Commit::new(), |commit, (key, record)| commit.absent(key).put(key, record));
            let store = self.store.clone();
            writing.push(async move { store.commit(commit).await });
        }
        for written in futures_util::future::join_all(writing).await {
            written.map_err(|error| status(&error))?;
        }
        Ok(count)
    }

    /// Best effort: what stays is removed by the engine.
    async fn remove_batches(&self, id: &str, chosen: &[Chosen]) {
        for host in chosen {
            for number in 0..host.installations.len().div_ceil(target::PER_BATCH) {
                let commit = Commit::new()
                    .delete(keys::batch(&host.host, &target::batch_name(id, number, self.store.epoch())));
                if let Err(error) = self.store.commit(commit).await {
                    tracing::warn!(rotation = id, %error, "cannot remove a batch of a rotation that did not begin");
                }
            }
        }
    }

    pub(super) async fn rotation_record(&self, id: &str) -> Result<Versioned<Rotation>, Status> {
        let known = crate::view::rotation_number(id).is_some();
        let record = if known {
            self.store.get::<Rotation>(&keys::rotation(id)).await.map_err(|error| status(&error))?
        } else {
            None
        };
        let id: String = id.chars().take(40).collect();
        record.ok_or_else(|| Status::not_found(format!("no rotation {id:?}; see `reseal rotation list`")))
    }
}
