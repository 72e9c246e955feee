//! The operator service: what the CLI does, role by role.
//!
//! This file is the allow-list and the dispatch; the work is in the files
//! beside it. Every change is one commit with its audit entry in it.

mod adopt;
mod authorities;
pub(in crate::grpc) mod certificates;
mod choose;
mod evidence;
mod fence;
mod findings;
mod hosts;
mod pace;
mod plan;
mod policies;
mod retry;
mod rotate;
mod show;
mod steer;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use reseal_proto::telemetry;
use reseal_proto::v1::operator_server::Operator;
use reseal_proto::v1::*;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::auth::{self, Caller, OperatorRole};
use super::convert::status;
use super::sessions::Sessions;
use crate::domain::Now;
use crate::domain::allowance::Allowance;
use crate::issuance::Issuance;
use crate::issuance::control::ControlPlane;
use crate::issuance::keyring::Keyring;
use crate::store::{AuditDraft, Commit, Presence, Store, keys, record};
use crate::view::View;

/// Snapshots of a watched rotation are at least this far apart.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
/// A watched rotation is sent at least this often, so that times move.
const WATCH_TICK: Duration = Duration::from_secs(2);
/// Watched rotations at a time.
pub(super) const WATCHES: usize = 256;
/// Exports at a time.
pub(super) const EXPORTS: usize = 4;
/// Rows of a list on their way to a slow reader.
const ROWS: usize = 64;
/// Bytes in one chunk of a file.
const CHUNK: usize = 64 * 1024;

/// The operator service.
#[derive(Clone)]
pub(crate) struct OperatorService {
    /// The store.
    pub(crate) store: Store,
    /// Its projection.
    pub(crate) view: View,
    /// Who is connected.
    pub(crate) presence: Presence,
    /// Their streams: what a host is asked goes over them.
    pub(crate) sessions: Sessions,
    /// CSRs in, chains out.
    pub(crate) issuance: Issuance,
    /// The control plane.
    pub(crate) control: Arc<ControlPlane>,
    /// Wraps the keys of new authorities.
    pub(crate) keyring: Arc<Keyring>,
    /// What join tokens say about where to connect.
    pub(crate) advertise: Arc<[String]>,
    /// The clock.
    pub(crate) now: Now,
    /// When this process started.
    pub(crate) started_at: i64,
    /// Rotations are started one at a time.
    pub(crate) starting: Arc<tokio::sync::Mutex<()>>,
    /// Rotations being watched, and exports under way.
    pub(crate) watches: Arc<Semaphore>,
    /// See `watches`.
    pub(crate) exports: Arc<Semaphore>,
    /// Lists being sorted.
    pub(crate) sorts: Arc<Semaphore>,
    /// Refused calls that are audited.
    pub(crate) refusals: Arc<std::sync::Mutex<Allowance>>,
}

type Reply<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl OperatorService {
    async fn let_in<T>(
        &self,
        request: Request<T>,
        least: OperatorRole,
        call: &'static str,
    ) -> Result<(Caller, T, tracing::Span), Status> {
        let span = tracing::info_span!("operator", call, operator = tracing::field::Empty);
        telemetry::continue_trace(&span, telemetry::traceparent_of(request.metadata()));
        let caller = match auth::operator(&self.store, &self.control.fleet, &request, least).await {
            Ok(caller) => caller,
            Err(refusal) => {
                self.audit_refusal(&request, call, &refusal).await;
                return Err(refusal);
            }
        };
        span.record("operator", &caller.name);
        Ok((caller, request.into_inner(), span))
    }

    /// Somebody with an identity tried what it may not; a flood of it is only logged.
    async fn audit_refusal<T>(&self, request: &Request<T>, call: &str, refusal: &Status) {
        let Ok(peer) = auth::peer(request) else { return };
        let now = (self.now)();
        tracing::warn!(identity = %peer.identity, call, why = refusal.message(), "call refused");
        if !self.refusals.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take(now) {
            return;
        }
        let draft = AuditDraft {
            at: now,
            actor: peer.identity.role.to_string(),
            action: call.into(),
            object: "operator service".into(),
            outcome: "refused".into(),
            detail: refusal.message().into(),
        };
        if let Err(error) = self.store.commit(Commit::new().audit(draft)).await {
            tracing::error!(%error, "cannot audit a refused call");
        }
    }

    fn draft(&self, caller: &Caller, action: &str, object: &str, detail: &str) -> AuditDraft {
        AuditDraft {
            at: (self.now)(),
            actor: caller.actor(),
            action: action.into(),
            object: object.into(),
            outcome: "done".into(),
            detail: detail.into(),
        }
    }
}

/// Sends a file in chunks.
fn chunks(bytes: Vec<u8>) -> Streamed<Chunk> {
    let parts: Vec<Result<Chunk, Status>> =
        bytes.chunks(CHUNK).map(|part| Ok(Chunk { data: part.to_vec() })).collect();
    Box::pin(tokio_stream::iter(parts))
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        let (caller, _, _) = self.let_in(request, OperatorRole::Viewer, "status").await?;
        let state = self.view.read();
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(StatusReply {
            fleet: self.control.fleet.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: self.store.epoch(),
            hosts: number(state.hosts.values().filter(|host| host.state.is_some()).count()),
            hosts_connected: number(self.presence.count()),
            installations: state.hosts.values().map(|host| host.installations).sum(),
            discovered: state.hosts.values().map(|host| host.discovered).sum(),
            rotations_running: number(state.rotations.values().filter(|rotation| rotation.is_open()).count()),
            anchor: self.control.anchor().to_vec(),
            operator: caller.name,
            role: caller.role.word().into(),
        }))
    }

    async fn invite_host(&self, request: Request<InviteHostRequest>) -> Reply<InviteHostReply> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "host.invite").await?;
        self.invite(&caller, request).instrument(span).await.map(Response::new)
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Reply<ListHostsReply> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "host.list").await?;
        let hosts = self.hosts(&request.labels).instrument(span).await?;
        Ok(Response::new(ListHostsReply { hosts }))
    }

    async fn show_host(&self, request: Request<HostRequest>) -> Reply<ShowHostReply> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "host.show").await?;
        let (_, host) = self.host(&request.name).await?;
        let (installations, findings) = self.inventory(&request.name).await?;
        Ok(Response::new(ShowHostReply { host: Some(host), installations, findings }))
    }

    async fn ban_host(&self, request: Request<BanHostRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "host.ban").await?;
        self.ban(&caller, &request.name, &request.reason).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    async fn remove_host(&self, request: Request<HostRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "host.remove").await?;
        OperatorService::remove_host(self, &caller, &request.name).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    type ListCertificatesStream = Streamed<CertificateRow>;

    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Reply<Self::ListCertificatesStream> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "certs.list").await?;
        let (listing, place) = self.listing(request).await?;
        let (rows, receiver) = mpsc::channel(ROWS);
        let service = self.clone();
        let work = async move {
            let _place = place;
            if let Err(error) = service.send_certificates(&listing, &rows).await {
                let _ = rows.send(Err(error)).await;
            }
        };
        tokio::spawn(work.instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn show_certificate(
        &self,
        request: Request<ShowCertificateRequest>,
    ) -> Reply<ShowCertificateReply> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "certs.show").await?;
        let shown = OperatorService::show_certificate(self, &request.fingerprint);
        shown.instrument(span).await.map(Response::new)
    }

    type ListFindingsStream = Streamed<HostFinding>;

    async fn list_findings(&self, request: Request<ListFindingsRequest>) -> Reply<Self::ListFindingsStream> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "findings").await?;
        let (filter, hosts) = self.findings_meant(&request).await?;
        let place = self.place_to_sort()?;
        let (rows, receiver) = mpsc::channel(ROWS);
        let service = self.clone();
        let work = async move {
            let _place = place;
            if let Err(error) = service.send_findings(&request, (&filter, &hosts), &rows).await {
                let _ = rows.send(Err(error)).await;
            }
        };
        tokio::spawn(work.instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Reply<AdoptReply> {
        let look = request.get_ref().dry_run;
        let least = if look { OperatorRole::Viewer } else { OperatorRole::Operator };
        let (caller, request, span) = self.let_in(request, least, "adopt").await?;
        OperatorService::adopt(self, &caller, request).instrument(span).await.map(Response::new)
    }

    async fn set_policy(&self, request: Request<Policy>) -> Reply<Done> {
        let (caller, policy, span) = self.let_in(request, OperatorRole::Admin, "policy.set").await?;
        OperatorService::set_policy(self, &caller, policy).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    async fn remove_policy(&self, request: Request<RemovePolicyRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "policy.remove").await?;
        OperatorService::remove_policy(self, &caller, &request.name).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    async fn list_policies(&self, request: Request<ListPoliciesRequest>) -> Reply<ListPoliciesReply> {
        let (_, _, _) = self.let_in(request, OperatorRole::Viewer, "policy.list").await?;
        Ok(Response::new(ListPoliciesReply { policies: self.policies().await? }))
    }

    async fn check_policy(&self, request: Request<CheckPolicyRequest>) -> Reply<CheckPolicyReply> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "policy.check").await?;
        OperatorService::check_policy(self, request).await.map(Response::new)
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Reply<PlanReply> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "plan").await?;
        self.plan_reply(request).instrument(span).await.map(Response::new)
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Reply<RotateReply> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Operator, "rotate").await?;
        let id = self.start_rotation(&caller, request).instrument(span).await?;
        Ok(Response::new(RotateReply { id }))
    }

    async fn list_rotations(&self, request: Request<ListRotationsRequest>) -> Reply<ListRotationsReply> {
        let (_, _, _) = self.let_in(request, OperatorRole::Viewer, "rotation.list").await?;
        Ok(Response::new(ListRotationsReply { rotations: self.rotations() }))
    }

    async fn show_rotation(&self, request: Request<RotationRequest>) -> Reply<Rotation> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "rotation.show").await?;
        self.rotation(&request.id, true).await.map(Response::new)
    }

    type WatchRotationStream = Streamed<Rotation>;

    async fn watch_rotation(&self, request: Request<RotationRequest>) -> Reply<Self::WatchRotationStream> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "rotation.watch").await?;
        self.rotation_record(&request.id).await?;
        let place = self.watches.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{WATCHES} rotations are being watched; `reseal rotation show {}` shows it once",
                request.id
            ))
        })?;
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut changed = service.view.changed();
            let mut last = None;
            loop {
                let shown = service.rotation(&request.id, false).await;
                let at_rest = shown.as_ref().is_ok_and(|shown| service.is_at_rest(shown));
                let shown = if at_rest { service.rotation(&request.id, true).await } else { shown };
                let failed = shown.is_err();
                if last.as_ref() != shown.as_ref().ok() {
                    last = shown.as_ref().ok().cloned();
                    if sender.send(shown).await.is_err() {
                        return;
                    }
                }
                if failed || at_rest {
                    return;
                }
                let pause = async {
                    tokio::time::sleep(WATCH_PAUSE).await;
                    let _ = tokio::time::timeout(WATCH_TICK, changed.changed()).await;
                };
                tokio::select! {
                    () = pause => {}
                    // In a rotation where nothing happens nothing is sent, and nothing else tells.
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn control_rotation(&self, request: Request<ControlRotationRequest>) -> Reply<Rotation> {
        let (caller, request, span) =
            self.let_in(request, OperatorRole::Operator, "rotation.control").await?;
        self.control(&caller, &request).instrument(span).await?;
        self.rotation(&request.id, true).await.map(Response::new)
    }

    async fn exclude_host(&self, request: Request<ExcludeHostRequest>) -> Reply<Rotation> {
        let (caller, request, span) =
            self.let_in(request, OperatorRole::Operator, "rotation.exclude").await?;
        self.exclude(&caller, &request).instrument(span).await?;
        self.rotation(&request.rotation, true).await.map(Response::new)
    }

    async fn pace_rotation(&self, request: Request<PaceRotationRequest>) -> Reply<Rotation> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Operator, "rotation.pace").await?;
        self.pace(&caller, &request).instrument(span).await?;
        self.rotation(&request.id, true).await.map(Response::new)
    }

    type EvidenceStream = Streamed<Chunk>;

    async fn evidence(&self, request: Request<RotationRequest>) -> Reply<Self::EvidenceStream> {
        let (_, request, span) = self.let_in(request, OperatorRole::Viewer, "rotation.evidence").await?;
        let file = self.evidence_file(&request.id).instrument(span).await?;
        Ok(Response::new(chunks(file)))
    }

    async fn list_authorities(
        &self,
        request: Request<ListAuthoritiesRequest>,
    ) -> Reply<ListAuthoritiesReply> {
        let (_, _, _) = self.let_in(request, OperatorRole::Viewer, "authority.list").await?;
        self.authorities().await.map(Response::new)
    }

    async fn prepare_authority(
        &self,
        request: Request<PrepareAuthorityRequest>,
    ) -> Reply<PrepareAuthorityReply> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "authority.prepare").await?;
        OperatorService::prepare_authority(self, &caller, &request.name)
            .instrument(span)
            .await
            .map(Response::new)
    }

    async fn install_authority(&self, request: Request<InstallAuthorityRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "authority.install").await?;
        OperatorService::install_authority(self, &caller, &request.name, request.certificate)
            .instrument(span)
            .await?;
        Ok(Response::new(Done {}))
    }

    async fn activate_authority(&self, request: Request<AuthorityRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "authority.activate").await?;
        OperatorService::activate_authority(self, &caller, &request.name).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    async fn taint_authority(&self, request: Request<TaintAuthorityRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "authority.taint").await?;
        OperatorService::taint_authority(self, &caller, &request.name, &request.reason)
            .instrument(span)
            .await?;
        Ok(Response::new(Done {}))
    }

    async fn show_trust(&self, request: Request<ShowTrustRequest>) -> Reply<TrustBundle> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "trust.show").await?;
        match request.bundle.as_str() {
            "" | "managed-root" => Ok(Response::new(TrustBundle {
                name: "managed-root".into(),
                certificates: vec![self.control.managed_root.clone()],
            })),
            other => Err(Status::not_found(format!("no trust bundle {other:?}; there is managed-root"))),
        }
    }

    async fn add_operator(&self, request: Request<AddOperatorRequest>) -> Reply<AddOperatorReply> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "operator.add").await?;
        OperatorService::add_operator(self, &caller, request).instrument(span).await.map(Response::new)
    }

    async fn list_operators(&self, request: Request<ListOperatorsRequest>) -> Reply<ListOperatorsReply> {
        let (_, _, _) = self.let_in(request, OperatorRole::Viewer, "operator.list").await?;
        Ok(Response::new(ListOperatorsReply { operators: self.operators().await? }))
    }

    async fn remove_operator(&self, request: Request<RemoveOperatorRequest>) -> Reply<Done> {
        let (caller, request, span) = self.let_in(request, OperatorRole::Admin, "operator.remove").await?;
        OperatorService::remove_operator(self, &caller, &request.name).instrument(span).await?;
        Ok(Response::new(Done {}))
    }

    type ListAuditStream = Streamed<AuditEntry>;

    async fn list_audit(&self, request: Request<ListAuditRequest>) -> Reply<Self::ListAuditStream> {
        let (_, request, _) = self.let_in(request, OperatorRole::Viewer, "audit.list").await?;
        let (rows, receiver) = mpsc::channel(64);
        let store = self.store.clone();
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        tokio::spawn(async move {
            let mut after: Option<String> = None;
            let mut sent = 0;
            loop {
                let page = match store.page::<record::AuditEntry>(keys::AUDIT, after.as_deref(), 256).await {
                    Ok(page) => page,
                    Err(error) => return drop(rows.send(Err(status(&error))).await),
                };
                let Some((last, _)) = page.last() else { return };
                after = Some(last.clone());
                for (_, entry) in page.into_iter().filter(|(_, entry)| entry.value.sequence > request.after) {
                    if sent >= limit || rows.send(Ok(entry.value)).await.is_err() {
                        return;
                    }
                    sent += 1;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ExportStoreStream = Streamed<Chunk>;

    async fn export_store(&self, request: Request<ExportStoreRequest>) -> Reply<Self::ExportStoreStream> {
        let (caller, _, _) = self.let_in(request, OperatorRole::Admin, "store.export").await?;
        let place = self.exports.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{EXPORTS} exports are under way; try again when one has ended"
            ))
        })?;
        let draft = self.draft(&caller, "store.export", "store", "");
        self.store.commit(Commit::new().audit(draft)).await.map_err(|error| status(&error))?;
        let mut export = self.store.export((self.now)());
        let (parts, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            let _place = place;
            loop {
                let part = export.next().await.map_err(|error| status(&error));
                let (last, parts_of) = match part {
                    Ok(None) => return,
                    Ok(Some(bytes)) => {
                        (false, bytes.chunks(CHUNK).map(|part| Ok(Chunk { data: part.to_vec() })).collect())
                    }
                    Err(error) => (true, vec![Err(error)]),
                };
                for part in parts_of {
                    if parts.send(part).await.is_err() {
                        return;
                    }
                }
                if last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
