//! Getting an identity: by join token at first, by the identity itself later.
//!
//! The enrolment key is on disk before it is used: the token is bound to it and
//! only the same key may try again. An answer counts only if it is for our key,
//! for the name we expect, and signed by the CA we know. The join token is never
//! stored and never logged.

use reseal_proto::channel::{self, Trust};
use reseal_proto::facts::{self, sha256};
use reseal_proto::identity::{Identity as Spiffe, Role};
use reseal_proto::telemetry::traced;
use reseal_proto::token;
use reseal_proto::v1::enrolment_client::EnrolmentClient;
use reseal_proto::v1::{EnrolRequest, IdentityReply, JoinToken, RenewRequest, Usage};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{CURRENT, ENROLLING, Identity, IdentityError, IdentityStore, LAST_MOMENTS, NEXT, Slot, TIMEOUT};
use crate::key::{KeyType, PrivateKey};
use crate::pem;
use crate::state;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Enrolling {
    token_id: String,
    key: String,
}

impl Drop for Enrolling {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl IdentityStore {
    /// Exchanges a join token for an identity and stores it.
    pub async fn enrol(&self, token: &str, now: i64) -> Result<Identity, IdentityError> {
        let token = token::decode(token).map_err(IdentityError::Token)?;
        state::make_dir(&self.state_dir).map_err(IdentityError::State)?;
        if let Ok(Some(there)) = self.load(Slot::Current) {
            let same = there.fleet == token.fleet && there.host == token.host;
            if !same && there.not_after > now {
                return Err(IdentityError::Enrolled {
                    host: there.host,
                    fleet: there.fleet,
                    path: self.state_dir.join(CURRENT),
                });
            }
        }
        let key = self.enrolment_key(&token.id)?;
        let request = EnrolRequest {
            token_id: token.id.clone(),
            secret: token.secret.clone(),
            csr: key.request(&[], Usage::Unspecified).map_err(IdentityError::Key)?,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let reply = ask(&token, request).await?;
        let pin = token.ca_pin.clone();
        let identity = accept(reply, key, token.coordinators.clone(), |ca| sha256(ca).as_slice() == pin)?;
        if identity.fleet != token.fleet || identity.host != token.host {
            return Err(IdentityError::Reply("it names another host than the token"));
        }
        self.save(Slot::Current, &identity, false)?;
        for name in [NEXT, ENROLLING] {
            state::remove(&self.state_dir, name).map_err(IdentityError::State)?;
        }
        Ok(identity)
    }

    /// The key that this token is or will be bound to.
    pub(super) fn enrolment_key(&self, token_id: &str) -> Result<PrivateKey, IdentityError> {
        let path = self.state_dir.join(ENROLLING);
        if let Some(bytes) = state::read(&path).map_err(IdentityError::State)? {
            let bytes = Zeroizing::new(bytes);
            let stored: Option<Enrolling> = serde_json::from_slice(&bytes).ok();
            if let Some(stored) = stored.filter(|stored| stored.token_id == token_id) {
                let pkcs8 = pem::read_key(stored.key.as_bytes()).map_err(IdentityError::Pem)?;
                return PrivateKey::from_pkcs8(KeyType::EcdsaP256, &pkcs8).map_err(IdentityError::Key);
            }
        }
        let key = PrivateKey::generate(KeyType::EcdsaP256).map_err(IdentityError::Key)?;
        let pkcs8 = key.to_pkcs8().map_err(IdentityError::Key)?;
        let enrolling =
            Enrolling { token_id: token_id.to_owned(), key: pem::private_key(&pkcs8).to_string() };
        self.save_json(ENROLLING, &enrolling)?;
        Ok(key)
    }

    /// Exchanges the current identity for the next one over a session's channel;
    /// `now` is the coordinator's time.
    pub async fn renew(
        &self,
        channel: tonic::transport::Channel,
        current: &Identity,
        now: i64,
    ) -> Result<(), IdentityError> {
        let last_moments = current.not_after.saturating_sub(now) < LAST_MOMENTS;
        if !last_moments {
            self.writable()?;
        }
        let key = PrivateKey::generate(KeyType::EcdsaP256).map_err(IdentityError::Key)?;
        let csr = key.request(&[], Usage::Unspecified).map_err(IdentityError::Key)?;
        let mut request = traced(RenewRequest { csr });
        request.set_timeout(TIMEOUT);
        let reply = EnrolmentClient::new(channel)
            .renew(request)
            .await
            .map_err(|status| IdentityError::Refused(Box::new(status)))?
            .into_inner();
        let identity = accept(reply, key, current.coordinators.clone(), |ca| ca == current.ca.as_ref())?;
        if identity.fleet != current.fleet || identity.host != current.host {
            return Err(IdentityError::Reply("it names another host"));
        }
        self.save(Slot::Next, &identity, last_moments)
    }
}

/// Tries each coordinator of the token; a refusal is final, silence is not.
async fn ask(token: &JoinToken, request: EnrolRequest) -> Result<IdentityReply, IdentityError> {
    let pin: [u8; 32] = token
        .ca_pin
        .as_slice()
        .try_into()
        .map_err(|_| IdentityError::Reply("the token's pin has not 32 bytes"))?;
    let mut last = IdentityError::Reply("the token names no coordinator");
    for address in &token.coordinators {
        let connected = match channel::client_config(Trust::Pin(pin), None) {
            Ok(tls) => channel::connect(address, tls).await,
            Err(error) => Err(error),
        };
        let channel = match connected {
            Ok(channel) => channel,
            Err(source) => {
                last = IdentityError::Connect { address: address.clone(), source };
                continue;
            }
        };
        let mut message = traced(request.clone());
        message.set_timeout(TIMEOUT);
        match EnrolmentClient::new(channel).enrol(message).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                last = IdentityError::Refused(Box::new(status));
            }
            Err(status) => return Err(IdentityError::Refused(Box::new(status))),
        }
    }
    Err(last)
}

/// Checks an answer: ours, signed by the CA we know, for the name it says.
pub(super) fn accept(
    reply: IdentityReply,
    key: PrivateKey,
    coordinators: Vec<String>,
    is_ca: impl FnOnce(&[u8]) -> bool,
) -> Result<Identity, IdentityError> {
    let mut chain: Vec<CertificateDer<'static>> = reply.chain.into_iter().map(CertificateDer::from).collect();
    let ca = chain.pop().ok_or(IdentityError::Reply("it is empty"))?;
    if !is_ca(&ca) {
        return Err(IdentityError::Reply("it ends in another CA"));
    }
    let leaf = chain.first().ok_or(IdentityError::Reply("it has no certificate"))?;
    let named = Spiffe::of_certificate(leaf)
        .map_err(|_| IdentityError::Reply("the certificate names no identity"))?;
    let expected = Spiffe { fleet: reply.fleet.clone(), role: Role::Host(reply.host.clone()) };
    if named != expected {
        return Err(IdentityError::Reply("the certificate names somebody else"));
    }
    let parsed = facts::parse(leaf).map_err(|_| IdentityError::Reply("unreadable leaf"))?;
    if sha256(parsed.public_key().raw) != key.spki_sha256() {
        return Err(IdentityError::Reply("the certificate is for another key"));
    }
    let issuer =
        facts::parse(chain.get(1).unwrap_or(&ca)).map_err(|_| IdentityError::Reply("unreadable CA"))?;
    if parsed.verify_signature(Some(issuer.public_key())).is_err() {
        return Err(IdentityError::Reply("the CA did not sign the certificate"));
    }
    let (not_before, not_after) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    Ok(Identity { fleet: reply.fleet, host: reply.host, coordinators, ca, not_before, not_after, chain, key })
}
