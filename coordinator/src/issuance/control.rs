//! The control-plane CA: identities of agents, operators and coordinators.
//!
//! It is no managed issuer, shares no key with one and never signs a name that
//! a service could use. Evidence is countersigned here with a key of its own.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use reseal_proto::facts::{self, sha256};
use reseal_proto::identity::{Identity, Role};
use zeroize::Zeroizing;

use super::keyring::{Keyring, KeyringError};
use super::profile::{self, Ca, ProfileError};
use crate::domain::csr::Request;
use crate::store::record::{Authority, Fleet};
use crate::store::{Store, StoreError, keys};

/// The CA, loaded.
pub struct ControlPlane {
    /// The fleet's name.
    pub fleet: String,
    /// CA certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The managed root's certificate, DER.
    pub managed_root: Vec<u8>,
    /// Evidence certificate, DER.
    pub evidence_certificate: Vec<u8>,
    ca: Ca,
    evidence_key: EcdsaKeyPair,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlPlane({})", self.fleet)
    }
}

/// The control plane cannot come up.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No fleet on record.
    #[error("the store holds no fleet: run `reseal init` first")]
    NoFleet,
    /// A managed issuer has the control plane's key.
    #[error(
        "{0} has the same key as the control-plane CA: the CA that incidents are about must not guard the control plane; refuse to start"
    )]
    SharedKey(String),
    /// The record lacks a part.
    #[error("the fleet record lacks {0}; restore the store from an export")]
    Incomplete(&'static str),
    /// The store refused.
    #[error("cannot read the fleet")]
    Store(#[from] StoreError),
    /// A key does not unwrap.
    #[error("cannot use a control-plane key")]
    Keyring(#[from] KeyringError),
    /// A CA does not load.
    #[error("cannot load the control-plane CA")]
    Profile(#[from] ProfileError),
    /// A certificate on record is damaged.
    #[error("a certificate of the fleet record is damaged")]
    Facts(#[from] facts::FactsError),
    /// The evidence key is no P-256 key.
    #[error("the evidence key is not usable")]
    EvidenceKey,
}

/// A certificate for a client, and how it will be recognised.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// Leaf, then the control-plane CA, DER.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 over its SubjectPublicKeyInfo.
    pub spki_sha256: Vec<u8>,
    /// End of validity, seconds since the Unix epoch.
    pub expires_at: i64,
}

/// A server certificate and its key. No `Debug`: nobody prints it.
pub struct ServerKey {
    /// Leaf, then the control-plane CA, DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub pkcs8: Zeroizing<Vec<u8>>,
}

impl ControlPlane {
    /// Loads it from the store, and checks that no managed issuer shares its key.
    pub async fn load(store: &Store, keyring: &Keyring) -> Result<Self, ControlError> {
        let fleet = store.get::<Fleet>(keys::FLEET).await?.ok_or(ControlError::NoFleet)?.value;
        let own = facts::parse(&fleet.control_ca)?;
        let same_key = |der: &[u8]| {
            facts::parse(der).is_ok_and(|certificate| certificate.public_key().raw == own.public_key().raw)
        };
        if same_key(&fleet.managed_root) {
            return Err(ControlError::SharedKey("the managed root".into()));
        }
        for (key, authority) in store.range::<Authority>(keys::AUTHORITIES).await? {
            if same_key(&authority.value.certificate) {
                return Err(ControlError::SharedKey(key));
            }
        }
        let key = fleet.control_key.as_ref().ok_or(ControlError::Incomplete("the control-plane CA's key"))?;
        let pkcs8 = keyring.unwrap("the control-plane CA's key", key)?;
        let ca = profile::ca("control-plane CA", &fleet.control_ca, &pkcs8)?;
        let key = fleet.evidence_key.as_ref().ok_or(ControlError::Incomplete("the evidence key"))?;
        let pkcs8: Zeroizing<Vec<u8>> = keyring.unwrap("the evidence key", key)?;
        let evidence_key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
            .map_err(|_| ControlError::EvidenceKey)?;
        drop(own);
        Ok(Self {
            fleet: fleet.name,
            ca_certificate: fleet.control_ca,
            managed_root: fleet.managed_root,
            evidence_certificate: fleet.evidence_certificate,
            ca,
            evidence_key,
        })
    }

    /// SHA-256 of the CA certificate: pin of join tokens, anchor of evidence.
    pub fn anchor(&self) -> [u8; 32] {
        sha256(&self.ca_certificate)
    }

    /// Certifies an agent's or operator's key for `lifetime` seconds.
    pub fn certify(
        &self,
        role: Role,
        request: &Request,
        lifetime: i64,
        now: i64,
    ) -> Result<ClientCertificate, ProfileError> {
        let identity = Identity { fleet: self.fleet.clone(), role };
        let leaf = profile::client(&identity, &request.spki, lifetime, &self.ca, now)?;
        Ok(ClientCertificate {
            chain: vec![leaf, self.ca_certificate.clone()],
            spki_sha256: request.spki_sha256.to_vec(),
            expires_at: now + lifetime,
        })
    }

    /// A fresh server certificate and key for this process.
    pub fn server(&self, now: i64) -> Result<ServerKey, ProfileError> {
        let key = profile::new_key();
        let identity = Identity { fleet: self.fleet.clone(), role: Role::Coordinator };
        let leaf = profile::server(&identity, &key, &self.ca, now)?;
        Ok(ServerKey {
            chain: vec![leaf, self.ca_certificate.clone()],
            pkcs8: Zeroizing::new(key.serialize_der()),
        })
    }

    /// Signs evidence: ECDSA P-256 with SHA-256, ASN.1 DER.
    pub fn sign_evidence(&self, bytes: &[u8]) -> Vec<u8> {
        self.evidence_key
            .sign(&aws_lc_rs::rand::SystemRandom::new(), bytes)
            .expect("P-256 signing needs random bytes only")
            .as_ref()
            .to_vec()
    }
}
