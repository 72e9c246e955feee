//! Policies and operators: who may have what, who may order what.

use reseal_proto::identity;
use reseal_proto::identity::Role;
use reseal_proto::v1::{
    self, AddOperatorReply, AddOperatorRequest, CheckPolicyReply, CheckPolicyRequest, OperatorRow, Usage,
};
use tonic::Status;

use super::OperatorService;
use crate::domain::csr;
use crate::domain::name::Name;
use crate::domain::policy::{self, Policy};
use crate::grpc::auth::{Caller, OperatorRole};
use crate::grpc::convert::{chain, status};
use crate::issuance::load_policies;
use crate::issuance::profile::OPERATOR_IDENTITY;
use crate::store::record::{Host, Operator};
use crate::store::{Commit, keys};

/// Policies in a fleet at most.
const MAX_POLICIES: usize = 1000;
/// Operators at most.
const MAX_OPERATORS: usize = 1000;

impl OperatorService {
    pub(super) async fn set_policy(&self, caller: &Caller, policy: v1::Policy) -> Result<(), Status> {
        Policy::try_from(&policy).map_err(|error| Status::invalid_argument(chain(&error)))?;
        let key = keys::policy(&policy.name);
        let existing =
            self.store.range::<v1::Policy>(keys::POLICIES).await.map_err(|error| status(&error))?;
        if existing.len() >= MAX_POLICIES {
            return Err(Status::resource_exhausted(format!(
                "there are {MAX_POLICIES} policies already; merge some"
            )));
        }
        let old = existing.into_iter().find(|(name, _)| *name == key);
        let verb = if old.is_some() { "changed" } else { "made" };
        let commit = match old {
            Some((_, old)) => Commit::new().at(&key, old.revision),
            None => Commit::new().absent(&key),
        };
        let draft = self.draft(caller, "policy.set", &format!("policy/{}", policy.name), verb);
        self.store.commit(commit.put(&key, &policy).audit(draft)).await.map_err(|error| status(&error))?;
        self.issuance.forget();
        Ok(())
    }

    pub(super) async fn remove_policy(&self, caller: &Caller, name: &str) -> Result<(), Status> {
        let key = keys::policy(name);
        let old = self.store.get::<v1::Policy>(&key).await.map_err(|error| status(&error))?;
        let old =
            old.ok_or_else(|| Status::not_found(format!("no policy {name:?}; see `reseal policy list`")))?;
        let draft = self.draft(caller, "policy.remove", &format!("policy/{name}"), "");
        self.store
            .commit(Commit::new().at(&key, old.revision).delete(&key).audit(draft))
            .await
            .map_err(|error| status(&error))?;
        self.issuance.forget();
        Ok(())
    }

    pub(super) async fn policies(&self) -> Result<Vec<v1::Policy>, Status> {
        let records = self.store.range::<v1::Policy>(keys::POLICIES).await.map_err(|error| status(&error))?;
        Ok(records.into_iter().map(|(_, policy)| policy.value).collect())
    }

    pub(super) async fn check_policy(&self, request: CheckPolicyRequest) -> Result<CheckPolicyReply, Status> {
        let usage = match request.usage() {
            Usage::Unspecified => Usage::Server,
            usage @ (Usage::Server | Usage::Client | Usage::Both) => usage,
        };
        let key_type = if request.key_type.is_empty() { "ecdsa-p256" } else { &request.key_type };
        let names = request.names.iter().map(|name| name.parse::<Name>()).collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|error| Status::invalid_argument(chain(&error)))?;
        let host =
            self.store.get::<Host>(&keys::host(&request.host)).await.map_err(|error| status(&error))?;
        let mut explanation = Vec::new();
        if host.is_none() {
            explanation
                .push(format!("host {} is not on record: checked as a host without labels", request.host));
        }
        let labels = host.map(|host| host.value.labels).unwrap_or_default();
        let policies = load_policies(&self.store).await.map_err(|error| status(&error))?;
        let wanted = policy::Request { host: &request.host, labels: &labels, names: &names, key_type, usage };
        Ok(match policy::admit(&policies, &wanted) {
            Ok(admission) => CheckPolicyReply {
                admitted: true,
                explanation: {
                    explanation.push(format!(
                        "policy {} admits it for {} seconds",
                        admission.policy,
                        admission.lifetime.as_secs()
                    ));
                    explanation
                },
                policy: admission.policy,
                lifetime_seconds: admission.lifetime.as_secs(),
            },
            Err(refusal) => {
                explanation.extend(refusal.explanation);
                CheckPolicyReply { admitted: false, explanation, ..CheckPolicyReply::default() }
            }
        })
    }

    pub(super) async fn add_operator(
        &self,
        caller: &Caller,
        request: AddOperatorRequest,
    ) -> Result<AddOperatorReply, Status> {
        identity::check_name("operator", &request.name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let role: OperatorRole = request.role.parse()?;
        let csr =
            csr::Request::from_der(&request.csr).map_err(|error| Status::invalid_argument(chain(&error)))?;
        let now = (self.now)();
        let certificate = self
            .control
            .certify(Role::Operator(request.name.clone()), &csr, OPERATOR_IDENTITY, now)
            .map_err(|error| Status::internal(chain(&error)))?;
        let key = keys::operator(&request.name);
        let existing = self.store.get::<Operator>(&key).await.map_err(|error| status(&error))?;
        if existing.as_ref().is_some_and(|operator| operator.value.role == "admin")
            && role != OperatorRole::Admin
        {
            self.another_admin(&request.name).await?;
        }
        let commit = match existing {
            Some(existing) => Commit::new().at(&key, existing.revision),
            None if self.operators().await?.len() >= MAX_OPERATORS => {
                return Err(Status::resource_exhausted(format!(
                    "there are {MAX_OPERATORS} operators already: `reseal operator remove` those that have gone"
                )));
            }
            None => Commit::new().absent(&key),
        };
        let record = Operator {
            role: role.word().into(),
            spki_sha256: certificate.spki_sha256,
            added_at: now,
            expires_at: certificate.expires_at,
        };
        let draft = self.draft(caller, "operator.add", &format!("operator/{}", request.name), role.word());
        self.store.commit(commit.put(&key, &record).audit(draft)).await.map_err(|error| status(&error))?;
        Ok(AddOperatorReply { chain: certificate.chain, fleet: self.control.fleet.clone() })
    }

    pub(super) async fn operators(&self) -> Result<Vec<OperatorRow>, Status> {
        let records = self.store.range::<Operator>(keys::OPERATORS).await.map_err(|error| status(&error))?;
        Ok(records
            .into_iter()
            .map(|(key, operator)| OperatorRow {
                name: key.trim_start_matches(keys::OPERATORS).to_owned(),
                role: operator.value.role,
                added_at: operator.value.added_at,
                expires_at: operator.value.expires_at,
            })
            .collect())
    }

    pub(super) async fn remove_operator(&self, caller: &Caller, name: &str) -> Result<(), Status> {
        let key = keys::operator(name);
        let existing = self.store.get::<Operator>(&key).await.map_err(|error| status(&error))?;
        let existing = existing
            .ok_or_else(|| Status::not_found(format!("no operator {name:?}; see `reseal operator list`")))?;
        if existing.value.role == "admin" {
            self.another_admin(name).await?;
        }
        let draft = self.draft(caller, "operator.remove", &format!("operator/{name}"), "");
        let commit = Commit::new().at(&key, existing.revision).delete(&key).audit(draft);
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        Ok(())
    }

    /// Fails when `name` is the last admin.
    async fn another_admin(&self, name: &str) -> Result<(), Status> {
        let others = self.operators().await?;
        if others.iter().any(|operator| operator.role == "admin" && operator.name != name) {
            Ok(())
        } else {
            Err(Status::failed_precondition(format!("{name} is the only admin: add another one first")))
        }
    }
}
