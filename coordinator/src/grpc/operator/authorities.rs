//! Authorities: prepared with the offline root, activated, tainted.

use reseal_proto::facts;
use reseal_proto::identity;
use reseal_proto::v1::{AuthorityInfo, ListAuthoritiesReply, PrepareAuthorityReply};
use tonic::Status;
use zeroize::Zeroizing;

use super::OperatorService;
use crate::domain::authority::{self, Event};
use crate::grpc::auth::Caller;
use crate::grpc::convert::{authority_info, chain, status};
use crate::issuance::{ceremony, profile};
use crate::store::record::{Authority, AuthorityState};
use crate::store::{Commit, Versioned, keys};

/// Authorities at most, in all states.
const MAX_AUTHORITIES: usize = 200;

impl OperatorService {
    pub(super) async fn authorities(&self) -> Result<ListAuthoritiesReply, Status> {
        let records =
            self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?;
        let state = self.view.read();
        let authorities = records
            .iter()
            .map(|(key, authority)| {
                let name = key.trim_start_matches(keys::AUTHORITIES);
                authority_info(name, &authority.value, state.issued_by(name))
            })
            .collect();
        Ok(ListAuthoritiesReply { authorities, root: Some(self.root()) })
    }

    /// The managed root.
    pub(super) fn root(&self) -> AuthorityInfo {
        let root = facts::of_chain(&self.control.managed_root, []).unwrap_or_default();
        AuthorityInfo {
            name: "managed-root".into(),
            subject: root.subject,
            fingerprint: root.fingerprint,
            spki_sha256: root.spki_sha256,
            state: "offline".into(),
            not_after: root.not_after,
            ..AuthorityInfo::default()
        }
    }

    /// Names of tainted and revoked authorities.
    pub(super) async fn tainted(&self) -> Result<Vec<String>, Status> {
        let records =
            self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?;
        Ok(records
            .into_iter()
            .filter(|(_, authority)| {
                matches!(authority.value.state(), AuthorityState::Tainted | AuthorityState::Revoked)
            })
            .map(|(key, _)| key.trim_start_matches(keys::AUTHORITIES).to_owned())
            .collect())
    }

    pub(super) async fn prepare_authority(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<PrepareAuthorityReply, Status> {
        identity::check_name("authority", name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = profile::new_key();
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let csr = ceremony::authority_csr(&key).map_err(|error| Status::internal(chain(&error)))?;
        let record = Authority {
            state: AuthorityState::PendingSignature.into(),
            key: Some(self.keyring.wrap(&pkcs8)),
            created_at: (self.now)(),
            ..Authority::default()
        };
        let path = keys::authority(name);
        let slots = self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?;
        let commit = match self.store.get::<Authority>(&path).await.map_err(|error| status(&error))? {
            None if slots.len() >= MAX_AUTHORITIES => {
                return Err(Status::resource_exhausted(format!(
                    "there are {MAX_AUTHORITIES} authorities: each selection and each inventory is held against all of them"
                )));
            }
            None => Commit::new().absent(&path),
            // A ceremony that was broken off begins again with a new key.
            Some(old) if old.value.state() == AuthorityState::PendingSignature => {
                Commit::new().at(&path, old.revision)
            }
            Some(old) => {
                return Err(Status::already_exists(format!(
                    "authority {name} is {}: a slot and its name are used once; choose another name",
                    authority::word(old.value.state())
                )));
            }
        };
        let draft = self.draft(caller, "authority.prepare", &format!("authority/{name}"), "");
        self.store.commit(commit.put(&path, &record).audit(draft)).await.map_err(|error| status(&error))?;
        Ok(PrepareAuthorityReply { csr })
    }

    pub(super) async fn install_authority(
        &self,
        caller: &Caller,
        name: &str,
        certificate: Vec<u8>,
    ) -> Result<(), Status> {
        let (path, Versioned { mut value, revision }) = self.slot(name).await?;
        let state = authority::apply(value.state(), Event::Sign)
            .map_err(|error| Status::failed_precondition(format!("authority {name}: {error}")))?;
        self.check_signed(name, &value, &certificate).map_err(Status::invalid_argument)?;
        value.set_state(state);
        value.certificate = certificate;
        let draft = self.draft(caller, "authority.install", &format!("authority/{name}"), "");
        let commit = Commit::new().at(&path, revision).put(&path, &value).audit(draft);
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        Ok(())
    }

    pub(super) async fn activate_authority(&self, caller: &Caller, name: &str) -> Result<(), Status> {
        if let Some(rotation) = self.open_rotation() {
            return Err(Status::failed_precondition(format!(
                "rotation {rotation} is issuing from the active authority: let it end or abort it first"
            )));
        }
        let (path, Versioned { mut value, revision }) = self.slot(name).await?;
        let state = authority::apply(value.state(), Event::Activate)
            .map_err(|error| Status::failed_precondition(format!("authority {name}: {error}")))?;
        value.set_state(state);
        let draft = self.draft(caller, "authority.activate", &format!("authority/{name}"), "");
        let mut commit = Commit::new().at(&path, revision).put(&path, &value).audit(draft);
        for (other_path, other) in
            self.store.range::<Authority>(keys::AUTHORITIES).await.map_err(|error| status(&error))?
        {
            if other.value.state() == AuthorityState::Active {
                let mut record = other.value;
                let state = authority::apply(record.state(), Event::Retire)
                    .map_err(|error| Status::failed_precondition(error.to_string()))?;
                record.set_state(state);
                commit = commit.at(&other_path, other.revision).put(&other_path, &record);
            }
        }
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        self.issuance.forget();
        Ok(())
    }

    pub(super) async fn taint_authority(
        &self,
        caller: &Caller,
        name: &str,
        reason: &str,
    ) -> Result<(), Status> {
        if reason.trim().is_empty() || reason.len() > 1000 {
            return Err(Status::invalid_argument("a taint needs a reason of at most 1000 bytes"));
        }
        let found = self.resolve_issuer(name).await?;
        let mut record = found.authority.value;
        let state = authority::apply(record.state(), Event::Taint)
            .map_err(|error| Status::failed_precondition(format!("authority {}: {error}", found.name)))?;
        record.set_state(state);
        record.reason = reason.to_owned();
        let path = keys::authority(&found.name);
        let draft = self.draft(caller, "authority.taint", &format!("authority/{}", found.name), reason);
        let commit = Commit::new().at(&path, found.authority.revision).put(&path, &record).audit(draft);
        self.store.commit(commit).await.map_err(|error| status(&error))?;
        self.issuance.forget();
        Ok(())
    }

    async fn slot(&self, name: &str) -> Result<(String, Versioned<Authority>), Status> {
        let name = name.strip_prefix("builtin/").unwrap_or(name);
        let path = keys::authority(name);
        let record = self.store.get::<Authority>(&path).await.map_err(|error| status(&error))?;
        let record = record.ok_or_else(|| {
            Status::not_found(format!("no authority {name:?}; see `reseal authority list`"))
        })?;
        Ok((path, record))
    }

    /// The root signed the very key of the slot, as an intermediate that can sign leaves only.
    fn check_signed(&self, name: &str, slot: &Authority, certificate: &[u8]) -> Result<(), String> {
        let parsed = facts::parse(certificate).map_err(|error| chain(&error))?;
        let root = facts::parse(&self.control.managed_root).map_err(|error| chain(&error))?;
        parsed
            .verify_signature(Some(root.public_key()))
            .map_err(|_| format!("the certificate for authority {name} is not signed by the managed root"))?;
        let wrapped = slot.key.as_ref().ok_or("the slot has no key")?;
        let pkcs8 = self
            .keyring
            .unwrap(&format!("the key of authority {name}"), wrapped)
            .map_err(|error| chain(&error))?;
        let key = rcgen::KeyPair::try_from(pkcs8.as_slice()).map_err(|error| error.to_string())?;
        if profile::spki_of(&key) != parsed.public_key().raw {
            return Err(format!("the certificate for authority {name} is for another key than the slot's"));
        }
        let constraints = parsed.basic_constraints().ok().flatten().map(|extension| extension.value);
        if constraints.is_some_and(|constraints| constraints.ca && constraints.path_len_constraint == Some(0))
        {
            Ok(())
        } else {
            Err(format!("the certificate for authority {name} must be a CA with pathlen 0"))
        }
    }
}
