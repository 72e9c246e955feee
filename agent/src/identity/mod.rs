//! Who this host is: enrolment, the stored identity, its renewal.
//!
//! `identity.json` (0600) holds the certificate chain, its key and the
//! coordinators' addresses. A renewed identity is `identity.next.json` until
//! the coordinator has welcomed it; only then it takes the place of the old
//! one, because the answer that brought it may have been lost on the other
//! side. Where the disk takes nothing, a renewed identity lives in memory, but
//! only when the one on disk has next to no life left: a restart would fall
//! back to that one. The enrolment key is on disk before it is used: the token is bound to
//! it and only the same key may try again. The join token is never stored and
//! never logged.

mod enrol;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reseal_proto::channel::{ChannelError, Credentials};
use reseal_proto::facts::{self, sha256};
use reseal_proto::token::TokenError;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tracing::error;
use zeroize::{Zeroize, Zeroizing};

use crate::key::{KeyError, KeyType, PrivateKey};
use crate::pem::{self, PemError};
use crate::state::{self, StateError};

const CURRENT: &str = "identity.json";
const NEXT: &str = "identity.next.json";
const ENROLLING: &str = "enrolling.json";
/// Where it is tried whether the disk takes an identity.
const PROBE: &str = "identity.probe";
const TIMEOUT: Duration = Duration::from_secs(30);
/// Room that an identity needs, bytes.
const SIZE: usize = 8 * 1024;
/// An identity that cannot be written is used from memory when the one on disk lives no longer; seconds.
const LAST_MOMENTS: i64 = 2 * 3600;

/// This host has no usable identity, or got no new one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Never enrolled.
    #[error(
        "this host is not enrolled: run `reseal host invite NAME` at the coordinator, then `reseal-agent enrol TOKEN` here"
    )]
    NotEnrolled,
    /// Off for longer than its identity lives.
    #[error(
        "the identity of host {host} expired: run `reseal host invite {host}` at the coordinator, then `reseal-agent enrol TOKEN` here; journal and certificates stay"
    )]
    Expired {
        /// Its name.
        host: String,
    },
    /// Belongs to somebody else already.
    #[error(
        "this host is already enrolled as {host} of fleet {fleet}; remove {path} if it shall become another"
    )]
    Enrolled {
        /// Its name.
        host: String,
        /// Its fleet.
        fleet: String,
        /// Where the identity is.
        path: PathBuf,
    },
    /// The token is none.
    #[error("cannot use the join token")]
    Token(#[source] TokenError),
    /// The state directory.
    #[error("cannot keep the identity")]
    State(#[source] StateError),
    /// The stored identity is not usable.
    #[error("the stored identity {path} is damaged; enrol the host again")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Keys.
    #[error("cannot make an identity key")]
    Key(#[source] KeyError),
    /// PEM of the chain.
    #[error("cannot read the identity's chain")]
    Pem(#[source] PemError),
    /// No coordinator answered.
    #[error("no coordinator can be reached; the last one tried was {address}")]
    Connect {
        /// "address:port".
        address: String,
        /// Why.
        #[source]
        source: ChannelError,
    },
    /// The coordinator refused.
    #[error("the coordinator refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// The answer is not an identity for this host.
    #[error("the coordinator's answer is no identity of this host: {0}")]
    Reply(&'static str),
}

/// The identity of this host.
#[derive(Debug)]
pub struct Identity {
    /// The trust domain.
    pub fleet: String,
    /// The host's name in it.
    pub host: String,
    /// "address:port" of each coordinator.
    pub coordinators: Vec<String>,
    /// The control-plane CA.
    pub ca: CertificateDer<'static>,
    /// Leaf first, without the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub key: PrivateKey,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    /// Seconds since the Unix epoch.
    pub not_after: i64,
}

/// Which of the two files an identity came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// In use.
    Current,
    /// Not welcomed yet.
    Next,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    fleet: String,
    host: String,
    coordinators: Vec<String>,
    ca: String,
    certificate: String,
    key: String,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Identity {
    /// The TLS side of a session.
    pub fn credentials(&self) -> Result<Credentials, IdentityError> {
        let pkcs8 = self.key.to_pkcs8().map_err(IdentityError::Key)?;
        Ok(Credentials {
            chain: self.chain.clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec())),
        })
    }

    /// When to ask for the next one: two thirds into the lifetime, moved by a
    /// share (`jitter`, 0 to 1) of a tenth, so that a fleet does not come at once.
    pub fn renew_at(&self, jitter: f64) -> i64 {
        let lifetime = (self.not_after - self.not_before).max(0) as f64;
        let moved = lifetime * (2.0 / 3.0 - 0.1 * jitter);
        self.not_before + moved as i64
    }

    fn read(stored: &Stored) -> Result<Self, IdentityError> {
        let ca = pem::read_certificates(stored.ca.as_bytes()).map_err(IdentityError::Pem)?;
        let chain = pem::read_certificates(stored.certificate.as_bytes()).map_err(IdentityError::Pem)?;
        let pkcs8 = pem::read_key(stored.key.as_bytes()).map_err(IdentityError::Pem)?;
        let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &pkcs8).map_err(IdentityError::Key)?;
        let leaf = facts::parse(&chain[0]).map_err(|_| IdentityError::Reply("unreadable leaf"))?;
        if sha256(leaf.public_key().raw) != key.spki_sha256() {
            return Err(IdentityError::Reply("the certificate is for another key"));
        }
        let (not_before, not_after) =
            (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        Ok(Self {
            fleet: stored.fleet.clone(),
            host: stored.host.clone(),
            coordinators: stored.coordinators.clone(),
            ca: ca.into_iter().next().ok_or(IdentityError::Reply("no CA"))?,
            not_before,
            not_after,
            chain,
            key,
        })
    }
}

/// The identity on disk.
#[derive(Clone)]
pub struct IdentityStore {
    state_dir: PathBuf,
    /// What the disk has not taken yet, as it would be written.
    unwritten: Arc<Mutex<BTreeMap<Slot, Unwritten>>>,
}

/// In memory only, and over what file: one that somebody stores meanwhile counts.
struct Unwritten {
    bytes: Zeroizing<Vec<u8>>,
    over: Option<Stamp>,
}

/// Another one when somebody has stored another file.
pub type Stamp = (u64, std::time::SystemTime);

impl std::fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityStore({})", self.state_dir.display())
    }
}

impl IdentityStore {
    /// In this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), unwritten: Arc::default() }
    }

    /// One of the two; `None` when it is not there.
    pub fn load(&self, slot: Slot) -> Result<Option<Identity>, IdentityError> {
        let path = self.state_dir.join(name(slot));
        let over = self.stamp(slot);
        let unwritten =
            self.unwritten().get(&slot).filter(|held| held.over == over).map(|held| held.bytes.clone());
        let bytes = match unwritten {
            Some(bytes) => bytes,
            None => match state::read(&path).map_err(IdentityError::State)? {
                Some(bytes) => Zeroizing::new(bytes),
                None => return Ok(None),
            },
        };
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|_| IdentityError::Damaged { path: path.clone() })?;
        Identity::read(&stored).map(Some).map_err(|_| IdentityError::Damaged { path })
    }

    /// The one to use; `now` in seconds since the Unix epoch.
    pub fn usable(&self, now: i64) -> Result<Identity, IdentityError> {
        let current = self.load(Slot::Current)?.ok_or(IdentityError::NotEnrolled)?;
        if current.not_after <= now {
            return Err(IdentityError::Expired { host: current.host });
        }
        Ok(current)
    }

    /// Of the file as it is now.
    pub fn stamp(&self, slot: Slot) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(self.state_dir.join(name(slot))).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?))
    }

    /// The next identity was welcomed: it is the current one from here on.
    pub fn promote(&self) -> Result<(), IdentityError> {
        let next = self.unwritten().remove(&Slot::Next);
        if let Some(next) = next {
            self.hold(Slot::Current, next.bytes);
            self.write_again();
            return Ok(());
        }
        state::rename(&self.state_dir, NEXT, CURRENT).map_err(IdentityError::State)?;
        // What was only in memory is older than this.
        self.unwritten().remove(&Slot::Current);
        Ok(())
    }

    /// Can an identity be stored? Tried before one is asked for: each that is
    /// made and thrown away is the coordinator's work in vain.
    fn writable(&self) -> Result<(), IdentityError> {
        let tried = state::write(&self.state_dir, PROBE, &[0; SIZE]);
        let _ = state::remove(&self.state_dir, PROBE);
        tried.map_err(IdentityError::State)
    }

    /// Writes what the disk did not take before; fine when it still does not.
    pub fn write_again(&self) {
        self.unwritten().retain(|slot, held| {
            held.over == self.stamp(*slot) && state::write(&self.state_dir, name(*slot), &held.bytes).is_err()
        });
    }

    fn hold(&self, slot: Slot, bytes: Zeroizing<Vec<u8>>) {
        let over = self.stamp(slot);
        self.unwritten().insert(slot, Unwritten { bytes, over });
    }

    /// Where the disk refuses it, it is held in memory if `or_hold`.
    fn save(&self, slot: Slot, identity: &Identity, or_hold: bool) -> Result<(), IdentityError> {
        let pkcs8 = identity.key.to_pkcs8().map_err(IdentityError::Key)?;
        let stored = Stored {
            fleet: identity.fleet.clone(),
            host: identity.host.clone(),
            coordinators: identity.coordinators.clone(),
            ca: pem::certificates([identity.ca.as_ref()]),
            certificate: pem::certificates(identity.chain.iter().map(AsRef::as_ref)),
            key: pem::private_key(&pkcs8).to_string(),
        };
        let bytes = json(&stored);
        match state::write(&self.state_dir, name(slot), &bytes) {
            Ok(()) => {
                self.unwritten().remove(&slot);
                Ok(())
            }
            Err(error) if or_hold => {
                error!(error = %crate::chain_of(&error), "the renewed identity is in memory only: after a restart this host would have to be invited again");
                self.hold(slot, bytes);
                Ok(())
            }
            Err(error) => Err(IdentityError::State(error)),
        }
    }

    fn save_json(&self, name: &str, value: &impl Serialize) -> Result<(), IdentityError> {
        state::write(&self.state_dir, name, &json(value)).map_err(IdentityError::State)
    }

    fn unwritten(&self) -> std::sync::MutexGuard<'_, BTreeMap<Slot, Unwritten>> {
        self.unwritten.lock().expect("no panic while held")
    }
}

fn json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec_pretty(value).expect("strings are always valid JSON"))
}

fn name(slot: Slot) -> &'static str {
    match slot {
        Slot::Current => CURRENT,
        Slot::Next => NEXT,
    }
}

#[cfg(test)]
pub(crate) mod tests;
