//! The built-in CA: an authority's key in memory, signing off the async threads.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::IssuanceError;
use super::issuer::{Grant, Issuer, Step};
use super::keyring::Keyring;
use super::profile::{self, Ca};
use crate::domain::authority;
use crate::domain::selection::IssuerKey;
use crate::store::Versioned;
use crate::store::record::{Authority, AuthorityState};
use reseal_proto::facts;

/// An authority that can sign.
pub struct Builtin {
    /// Slot name, such as "a".
    pub name: String,
    /// Revision of its record: the fence of everything it signs.
    pub revision: u64,
    not_after: i64,
    chain: Vec<Vec<u8>>,
    ca: Arc<Ca>,
    cores: Arc<Semaphore>,
}

impl fmt::Debug for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Builtin({})", self.name)
    }
}

impl Builtin {
    /// Unwraps the key of an active authority; any other state is refused.
    pub fn load(
        name: &str,
        authority: &Versioned<Authority>,
        keyring: &Keyring,
        cores: Arc<Semaphore>,
    ) -> Result<Self, IssuanceError> {
        let record = &authority.value;
        match record.state() {
            AuthorityState::Active => {}
            state @ (AuthorityState::Unknown
            | AuthorityState::PendingSignature
            | AuthorityState::Prepared
            | AuthorityState::Old
            | AuthorityState::Tainted
            | AuthorityState::Revoked) => {
                return Err(IssuanceError::Authority {
                    name: name.to_owned(),
                    state: authority::word(state),
                });
            }
        }
        let missing = || IssuanceError::Authority { name: name.to_owned(), state: "without a key" };
        let what = format!("the key of authority {name}");
        let pkcs8 = keyring.unwrap(&what, record.key.as_ref().ok_or_else(missing)?)?;
        let certificate = facts::parse(&record.certificate)?;
        Ok(Self {
            name: name.to_owned(),
            revision: authority.revision,
            not_after: certificate.validity().not_after.timestamp(),
            chain: vec![record.certificate.clone()],
            ca: Arc::new(profile::ca("authority", &record.certificate, &pkcs8)?),
            cores,
        })
    }
}

#[async_trait]
impl Issuer for Builtin {
    async fn step(&self, grants: Vec<Grant>, now: i64) -> Vec<Step> {
        let (ca, not_after) = (self.ca.clone(), self.not_after);
        off_thread(&self.cores, grants.len(), move || {
            grants.iter().map(|grant| sign(&ca, grant, not_after, now)).collect()
        })
        .await
    }

    fn intermediates(&self) -> &[Vec<u8>] {
        &self.chain
    }
}

/// The key of an authority, by which certificates are recognised as its own.
pub fn issuer_key(certificate: &[u8]) -> Result<IssuerKey, facts::FactsError> {
    let certificate = facts::parse(certificate)?;
    Ok(IssuerKey {
        spki_sha256: facts::sha256(certificate.public_key().raw).to_vec(),
        subject_key_id: facts::subject_key_id(&certificate).unwrap_or_default().to_vec(),
    })
}

/// Signatures that are quicker computed where one stands than handed to another thread.
const FEW: usize = 12;

/// Runs the signing or verifying of `signatures` where it does not hold up the
/// network: at most as many threads at a time as there are cores.
pub(super) async fn off_thread<T: Send + 'static>(
    cores: &Arc<Semaphore>,
    signatures: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if signatures <= FEW {
        return work();
    }
    let permit = cores.clone().acquire_owned().await.expect("the semaphore is never closed");
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    })
    .await
    .expect("signing does not panic")
}

fn sign(ca: &Ca, grant: &Grant, authority_not_after: i64, now: i64) -> Step {
    let lifetime = i64::try_from(grant.lifetime.as_secs()).unwrap_or(i64::MAX);
    // A leaf never outlives its issuer (RFC 5280, 6.1.3 checks both).
    let not_after = now.saturating_add(lifetime).min(authority_not_after);
    if not_after <= now {
        return Step::Refused {
            reason: "the authority's certificate has expired; prepare and activate another".into(),
        };
    }
    match profile::leaf(&grant.names, &grant.spki, grant.usage, &grant.serial, not_after, ca, now) {
        Ok(certificate) => Step::Issued { certificate },
        Err(error) => Step::Refused { reason: format!("{error}: {}", error.source) },
    }
}
