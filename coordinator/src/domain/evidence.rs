//! The evidence file: what proves, offline and later, how a rotation ended.
//!
//! Pure: bytes and facts in, bytes out; the caller brings the signature. The
//! server calls [`seal`], `reseal evidence verify` calls [`verify`].
//!
//! The file is pretty JSON of one fixed form: `verify` writes again what it
//! read and requires the same bytes, so any changed byte fails, white space
//! included. The coordinator signs the compact JSON of `body` with its evidence
//! key (ECDSA P-256, SHA-256, ASN.1 DER). Inside, every batch carries the exact
//! bytes its agent signed with its 24-hour identity, and the coordinator's
//! countersignature, which says when they arrived: identities are judged at
//! that moment, so evidence outlives them.

mod certificate;
mod signature;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod verified;
mod verify;

use std::collections::BTreeMap;

use reseal_proto::v1;
use serde::{Deserialize, Serialize};

pub use certificate::CertificateError;
pub use tally::{Grades, Summary, TallyError, summarise};
pub use text::{Base64, Hex, Moment};
pub use verified::Verified;
pub use verify::{EvidenceError, verify};

/// The `format` of the files this program writes and reads.
pub const FORMAT: &str = "reseal-evidence/1";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`FORMAT`].
    pub format: String,
    /// What is signed.
    pub body: Body,
    /// ECDSA P-256 with SHA-256, ASN.1 DER with the smaller s, over the compact JSON of `body`.
    pub signature: Base64,
}

/// What the coordinator signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// The fleet's name.
    pub fleet: String,
    /// Which rotation, and how it was ordered.
    pub rotation: RotationRecord,
    /// Numbers; `verify` computes them again.
    pub summary: Summary,
    /// What is not proved.
    pub residual: Residual,
    /// Control-plane CA certificate, DER: its SHA-256 is the anchor.
    pub control_ca: Base64,
    /// The certificate whose key signs this body and the countersignatures, DER;
    /// its only URI name is `spiffe://<fleet>/coordinator`.
    pub evidence_certificate: Base64,
    /// One entry per batch that has a result, in order of host, then arrival.
    pub batches: Vec<BatchRecord>,
}

/// Which rotation, and how it was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRecord {
    /// Its id.
    pub id: String,
    /// The operator's words.
    pub reason: String,
    /// Who ordered it.
    pub operator: String,
    /// As ordered.
    pub selection: SelectionRecord,
    /// The issuer that is replaced because it cannot be trusted.
    pub compromised: Option<IssuerRecord>,
    /// The issuer of the new certificates.
    pub to_issuer: IssuerRecord,
    /// "completed", "trailing", "halted" ...
    pub state: String,
    /// When it was ordered, the coordinator's clock.
    pub created_at: Moment,
    /// When it ended.
    pub ended_at: Option<Moment>,
    /// When this file was made.
    pub as_of: Moment,
    /// Hosts per wave, cumulative.
    pub waves: Vec<u32>,
    /// "2%" or a number of targets.
    pub max_failures: String,
}

/// A selection, as ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionRecord {
    /// Name, fingerprint, SKI or SPKI hash; empty when no issuer was named.
    pub compromised_issuer: String,
    /// Host names.
    pub hosts: Vec<String>,
    /// Host labels, all of them.
    pub host_labels: BTreeMap<String, String>,
    /// Name patterns.
    pub names: Vec<String>,
    /// Serials.
    pub serials: Vec<String>,
    /// Key types.
    pub key_types: Vec<String>,
    /// Only what expires before.
    pub expires_before: Option<Moment>,
}

impl From<&v1::Selection> for SelectionRecord {
    fn from(selection: &v1::Selection) -> Self {
        Self {
            compromised_issuer: selection.compromised_issuer.clone(),
            hosts: selection.hosts.clone(),
            host_labels: selection.host_labels.clone(),
            names: selection.names.clone(),
            serials: selection.serials.clone(),
            key_types: selection.key_types.clone(),
            expires_before: (selection.expires_before != 0).then_some(Moment(selection.expires_before)),
        }
    }
}

/// An issuer. Subject and name are for people; keys decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerRecord {
    /// "builtin/a".
    pub name: String,
    /// Its subject.
    pub subject: String,
    /// SHA-256 of `certificate`.
    pub fingerprint: Hex,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub spki: Hex,
    /// CA certificate, DER.
    pub certificate: Base64,
}

/// What one host proved about one batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRecord {
    /// The host.
    pub host: String,
    /// The batch's name, unique on its host for ever.
    pub batch: String,
    /// The exact bytes of a [`v1::EvidencePayload`].
    pub payload: Base64,
    /// The agent's signature over `payload`.
    pub signature: Base64,
    /// The agent's identity certificate, DER.
    pub identity: Base64,
    /// The exact bytes of a [`v1::Countersignature`].
    pub countersignature: Base64,
    /// The evidence key's signature over `countersignature`.
    pub countersignature_signature: Base64,
    /// Leaf certificates issued for this batch, DER.
    pub leaves: Vec<Base64>,
}

/// What is not proved: the residual risk, named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// Targets without a result that nobody could order yet, or that are under way.
    pub pending: Vec<TargetRecord>,
    /// Targets whose host had no session when they were ordered.
    pub stragglers: Vec<TargetRecord>,
    /// Targets that are installed, without a running consumer to prove them.
    pub unserved: Vec<TargetRecord>,
    /// Targets that failed, were rolled back or held.
    pub failed: Vec<TargetRecord>,
    /// Targets that an operator took out: not replaced.
    pub excluded: Vec<TargetRecord>,
    /// No targets: certificates of the compromised issuer that nobody looks after, as hosts
    /// reported them when this file was made. Not replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmanaged: Vec<TargetRecord>,
    /// Whoever decides whether to accept the compromised issuer.
    pub relying_parties: Vec<RelyingPartyRecord>,
}

/// A target that is not proved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRecord {
    /// The host.
    pub host: String,
    /// The installation's id.
    pub installation: String,
    /// "<container>/<certificate name>", for people.
    pub label: String,
    /// Why, when there is a reason to give.
    pub reason: Option<String>,
}

/// Whoever decides whether to accept a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelyingPartyRecord {
    /// The host.
    pub host: String,
    /// The container.
    pub container: String,
    /// The trust bundle it loads.
    pub bundle: String,
    /// What it does with the compromised issuer.
    pub verdict: Verdict,
}

/// What a relying party does with a certificate of the compromised issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nobody looked.
    Untested,
    /// It was seen to accept one.
    Accepts,
    /// It was seen to refuse one.
    Refuses,
}

/// Makes the file. `sign` gets the compact JSON of the body and returns the
/// evidence key's signature over it (ECDSA P-256, SHA-256, ASN.1 DER).
pub fn seal(body: Body, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let signature = sign(&signed_bytes(&body));
    let signature = Base64(signature::canonical(&signature).unwrap_or(signature));
    file_bytes(&Bundle { format: FORMAT.to_owned(), body, signature })
}

/// The bytes the coordinator signs.
fn signed_bytes(body: &Body) -> Vec<u8> {
    serde_json::to_vec(body).expect("texts, numbers and lists are always JSON")
}

/// The one form of the file.
fn file_bytes(bundle: &Bundle) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(bundle).expect("texts, numbers and lists are always JSON");
    bytes.push(b'\n');
    bytes
}
