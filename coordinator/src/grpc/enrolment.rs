//! Enrolment: a token for an identity, once; and a new identity for an old one.
//!
//! Every refusal is answered the same way whatever was wrong with the token, is
//! audited with the real reason, and a flood of them is counted instead of
//! filling the audit chain.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use reseal_proto::facts::sha256;
use reseal_proto::identity::Role;
use reseal_proto::v1::enrolment_server::Enrolment;
use reseal_proto::v1::{EnrolRequest, IdentityReply, RenewRequest};
use tonic::{Request, Response, Status};

use super::auth;
use super::convert::{chain, status};
use crate::domain::Now;
use crate::domain::allowance::Allowance;
use crate::domain::csr;
use crate::issuance::control::{ClientCertificate, ControlPlane};
use crate::issuance::profile::AGENT_IDENTITY;
use crate::metrics::Metrics;
use crate::store::record::{Host, HostState, Token};
use crate::store::{AuditDraft, Commit, Store, Versioned, keys};

/// The enrolment service.
pub(crate) struct EnrolmentService {
    store: Store,
    control: Arc<ControlPlane>,
    metrics: Metrics,
    now: Now,
    refusals: Mutex<Allowance>,
}

impl EnrolmentService {
    /// A service over this store.
    pub(crate) fn new(store: Store, control: Arc<ControlPlane>, metrics: Metrics, now: Now) -> Self {
        Self { store, control, metrics, now, refusals: Mutex::default() }
    }

    async fn token(&self, request: &EnrolRequest, now: i64) -> Result<(String, Versioned<Token>), String> {
        if request.token_id.is_empty()
            || request.token_id.len() > 64
            || !request.token_id.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err("malformed token".into());
        }
        let key = keys::token(&request.token_id);
        let found = self.store.get::<Token>(&key).await.map_err(|error| chain(&error))?;
        // Compare even when nothing was found: the answer takes the same time.
        let expected = found.as_ref().map_or([0; 32].to_vec(), |token| token.value.secret_sha256.clone());
        let equal = verify_slices_are_equal(&sha256(request.secret.as_bytes()), &expected).is_ok();
        match found {
            None => Err("unknown token".into()),
            Some(token) if !equal => Err(format!("forged token for host {}", token.value.host)),
            Some(token) if token.value.expires_at <= now => {
                Err(format!("expired token for host {}", token.value.host))
            }
            Some(token) => Ok((key, token)),
        }
    }

    async fn refuse(&self, object: &str, why: String, now: i64) -> Status {
        self.metrics.enrolments_refused.inc();
        tracing::warn!(object, %why, "enrolment refused");
        let audited = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(now);
        if audited {
            let draft = AuditDraft {
                at: now,
                actor: "unknown".into(),
                action: "host.enrol".into(),
                object: object.into(),
                outcome: "refused".into(),
                detail: why,
            };
            if let Err(error) = self.store.commit(Commit::new().audit(draft)).await {
                tracing::error!(%error, "cannot audit a refused enrolment");
            }
        }
        Status::permission_denied(
            "the join token is unknown, used, expired or not of this fleet; ask for a new one: reseal host invite NAME",
        )
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<IdentityReply>, Status> {
        let request = request.into_inner();
        let now = (self.now)();
        let (token_key, token) = match self.token(&request, now).await {
            Ok(found) => found,
            Err(why) => return Err(self.refuse("token", why, now).await),
        };
        let name = token.value.host.clone();
        let object = format!("host/{name}");
        let csr = match csr::Request::from_der(&request.csr) {
            Ok(csr) => csr,
            Err(error) => return Err(Status::invalid_argument(chain(&error))),
        };
        let bound = &token.value.bound_spki_sha256;
        if !bound.is_empty() && bound[..] != csr.spki_sha256[..] {
            return Err(self
                .refuse(&object, format!("used token for host {name}, with another key"), now)
                .await);
        }
        let host_key = keys::host(&name);
        let host = self.store.get::<Host>(&host_key).await.map_err(|error| status(&error))?;
        let Some(host) = host else {
            return Err(self.refuse(&object, format!("host {name} was removed"), now).await);
        };
        if host.value.state() == HostState::Banned {
            return Err(self
                .refuse(&object, format!("host {name} is banned: {}", host.value.ban_reason), now)
                .await);
        }
        let certificate = self
            .control
            .certify(Role::Host(name.clone()), &csr, AGENT_IDENTITY, now)
            .map_err(|error| Status::internal(chain(&error)))?;
        let mut enrolled = host.value;
        enrolled.set_state(HostState::Enrolled);
        enrolled.identity_spki_sha256.clone_from(&certificate.spki_sha256);
        enrolled.next_spki_sha256.clear();
        enrolled.identity_expires_at = certificate.expires_at;
        enrolled.enrolled_at = now;
        enrolled.labels.clone_from(&token.value.labels);
        let mut used = token.value;
        used.bound_spki_sha256.clone_from(&certificate.spki_sha256);
        let draft = AuditDraft {
            at: now,
            actor: object.clone(),
            action: "host.enrol".into(),
            object,
            outcome: "done".into(),
            detail: format!("agent {}", reseal_proto::facts::printable(&request.agent_version)),
        };
        // Both guards: of two agents that race for one token, one wins.
        let commit = Commit::new()
            .at(&token_key, token.revision)
            .at(&host_key, host.revision)
            .put(&token_key, &used)
            .put(&host_key, &enrolled)
            .audit(draft);
        match self.store.commit(commit).await {
            Ok(_) => {}
            Err(error) if error.is_conflict() => {
                return Err(self
                    .refuse("token", format!("token for host {name} was used at the same moment"), now)
                    .await);
            }
            Err(error) => return Err(status(&error)),
        }
        tracing::info!(host = %name, "host enrolled");
        Ok(Response::new(reply(&self.control, name, certificate, now)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IdentityReply>, Status> {
        let (name, _) = auth::agent(&self.store, &self.control.fleet, &request).await?;
        let now = (self.now)();
        let csr = csr::Request::from_der(&request.into_inner().csr)
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        let key = keys::host(&name);
        let host = self.store.get::<Host>(&key).await.map_err(|error| status(&error))?;
        let Some(host) = host else {
            return Err(Status::permission_denied(format!("host {name} was removed")));
        };
        let certificate = self
            .control
            .certify(Role::Host(name.clone()), &csr, AGENT_IDENTITY, now)
            .map_err(|error| Status::internal(chain(&error)))?;
        let mut renewed = host.value;
        renewed.next_spki_sha256.clone_from(&certificate.spki_sha256);
        renewed.identity_expires_at = certificate.expires_at;
        let draft = AuditDraft {
            at: now,
            actor: format!("host/{name}"),
            action: "host.renew".into(),
            object: format!("host/{name}"),
            outcome: "done".into(),
            detail: String::new(),
        };
        let commit = Commit::new().at(&key, host.revision).put(&key, &renewed).audit(draft);
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        Ok(Response::new(reply(&self.control, name, certificate, now)))
    }
}

fn reply(control: &ControlPlane, host: String, certificate: ClientCertificate, now: i64) -> IdentityReply {
    IdentityReply { fleet: control.fleet.clone(), host, chain: certificate.chain, now }
}
