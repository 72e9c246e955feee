//! Checks an evidence file against one fingerprint, offline.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use reseal_proto::facts::{self, sha256};
use reseal_proto::identity::{Identity, Role};
use reseal_proto::v1::{TargetProof, TargetState};
use x509_parser::certificate::X509Certificate;

use super::certificate::{self, CertificateError};
use super::tally::{self, Read, TallyError};
use super::verified::{self, Verified};
use super::{Bundle, FORMAT, Moment, RotationRecord, signature};

/// Why a file is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Not the JSON of an evidence file.
    #[error("this is not an evidence file of format {FORMAT}")]
    Form(#[source] serde_json::Error),
    /// A format this program does not know.
    #[error(
        "the evidence has format {0:?}, this program reads {FORMAT:?}: use the reseal that wrote it, or a newer one"
    )]
    Format(String),
    /// Spelled otherwise than any writer would.
    #[error("the file is not as it was written: byte {0} was changed, added or lost")]
    Changed(usize),
    /// Another fleet's, or forged from the root.
    #[error("the evidence belongs to the control plane {found}, not to the anchor {wanted}")]
    Anchor {
        /// SHA-256 of the control-plane CA in the file, hex.
        found: String,
        /// The anchor given, hex.
        wanted: String,
    },
    /// A certificate proves nothing.
    #[error("{what} is not good")]
    Certificate {
        /// Which certificate.
        what: String,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// A signature does not verify.
    #[error("the signature of {0} does not verify")]
    Signature(String),
    /// A batch says something else than where it stands.
    #[error("the payload of batch {batch} of host {host} says {what}")]
    Payload {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
        /// What it says.
        what: String,
    },
    /// A target is called verified, and is not.
    #[error("target {installation} of host {host} is called verified, but {why}")]
    Target {
        /// The host.
        host: String,
        /// The installation.
        installation: String,
        /// Why it is not.
        why: String,
    },
    /// Messages that cannot be read, or lists that contradict the proofs.
    #[error("the evidence contradicts itself")]
    Tally(#[from] TallyError),
    /// The numbers are not those of the proofs.
    #[error("the summary in the file is not what its proofs add up to")]
    Summary,
    /// The replacing issuer is the compromised one.
    #[error("the new issuer {0:?} has the key of the compromised issuer")]
    SameKey(String),
    /// An issuer's fields contradict its certificate.
    #[error("issuer {0:?} is described otherwise than its certificate")]
    Issuer(String),
}

/// Checks a file against the fingerprint of the control-plane CA. Reads no
/// clock: certificates are judged at the times the coordinator signed for.
pub fn verify(bytes: &[u8], anchor: [u8; 32]) -> Result<Verified, EvidenceError> {
    let bundle = read(bytes)?;
    let body = &bundle.body;
    let found = sha256(&body.control_ca.0);
    if found != anchor {
        let (found, wanted) = (hex::encode(found), hex::encode(anchor));
        return Err(EvidenceError::Anchor { found, wanted });
    }
    let control_ca = certificate::ca(&body.control_ca.0)
        .map_err(|source| bad("the control-plane CA certificate", source))?;
    let coordinator = Identity { fleet: body.fleet.clone(), role: Role::Coordinator };
    let evidence_key = certificate::identity_key(
        &body.evidence_certificate.0,
        &control_ca,
        &coordinator,
        &[body.rotation.as_of],
    )
    .map_err(|source| bad("the evidence certificate", source))?;
    if signature::canonical(&bundle.signature.0).as_ref() != Some(&bundle.signature.0) {
        return Err(EvidenceError::Signature("the evidence file".into()));
    }
    check_signature(&evidence_key, &super::signed_bytes(body), &bundle.signature.0, || {
        "the evidence file".into()
    })?;
    issuers(&body.rotation)?;

    let batches = tally::read(&body.batches)?;
    evidence_was_valid(&bundle, &control_ca, &batches)?;
    for batch in &batches {
        check_batch(batch, &bundle, &control_ca, &evidence_key)?;
    }
    let tally = tally::count(&batches, &body.residual)?;
    if tally.summary != body.summary {
        return Err(EvidenceError::Summary);
    }
    let to_issuer = facts::parse(&body.rotation.to_issuer.certificate.0)
        .map_err(|error| bad("the certificate of the new issuer", error.into()))?;
    let mut issued = Issued { to_issuer, by_batch: BTreeMap::new() };
    let mut unchained = 0;
    for ((host, installation), (batch, target)) in &tally.verified {
        check_target(batch, target, &mut issued).map_err(|why| EvidenceError::Target {
            host: (*host).to_owned(),
            installation: (*installation).to_owned(),
            why,
        })?;
        unchained += target.endpoints.iter().filter(|endpoint| !endpoint.chain_valid).count();
    }
    Ok(verified::conclude(&bundle, anchor, &batches, &tally, unchained))
}

/// Reads the one spelling of a file, and no other.
fn read(bytes: &[u8]) -> Result<Bundle, EvidenceError> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(EvidenceError::Form)?;
    if bundle.format != FORMAT {
        return Err(EvidenceError::Format(bundle.format));
    }
    let written = super::file_bytes(&bundle);
    if written == bytes {
        return Ok(bundle);
    }
    let at = written.iter().zip(bytes).take_while(|(ours, theirs)| ours == theirs).count();
    Err(EvidenceError::Changed(at))
}

/// The evidence certificate was valid from the first countersignature to the last.
fn evidence_was_valid(
    bundle: &Bundle,
    control_ca: &X509Certificate<'_>,
    batches: &[Read<'_>],
) -> Result<(), EvidenceError> {
    let what = "the evidence certificate";
    let evidence =
        facts::parse(&bundle.body.evidence_certificate.0).map_err(|error| bad(what, error.into()))?;
    let times = || batches.iter().map(|batch| Moment(batch.countersignature.received_at));
    for at in times().min().into_iter().chain(times().max()) {
        certificate::valid_at(&evidence, at).map_err(|source| bad(what, source))?;
        certificate::valid_at(control_ca, at)
            .map_err(|source| bad("the control-plane CA certificate", source))?;
    }
    Ok(())
}

/// The issuers are what their certificates say, and not the same key.
fn issuers(rotation: &RotationRecord) -> Result<(), EvidenceError> {
    for issuer in rotation.compromised.iter().chain([&rotation.to_issuer]) {
        let certificate = certificate::ca(&issuer.certificate.0)
            .map_err(|source| bad(&format!("the certificate of issuer {:?}", issuer.name), source))?;
        if sha256(&issuer.certificate.0)[..] != issuer.fingerprint.0
            || sha256(certificate.public_key().raw)[..] != issuer.spki.0
        {
            return Err(EvidenceError::Issuer(issuer.name.clone()));
        }
    }
    match &rotation.compromised {
        Some(compromised) if compromised.spki == rotation.to_issuer.spki => {
            Err(EvidenceError::SameKey(rotation.to_issuer.name.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Identity, signatures and the payload's claims about itself.
fn check_batch(
    batch: &Read<'_>,
    bundle: &Bundle,
    control_ca: &X509Certificate<'_>,
    evidence_key: &[u8],
) -> Result<(), EvidenceError> {
    let record = batch.record;
    let name = |what: &str| format!("{what} of batch {} of host {}", record.batch, record.host);
    let countersignature = &batch.countersignature;
    check_signature(evidence_key, &record.countersignature.0, &record.countersignature_signature.0, || {
        name("the countersignature")
    })?;
    let covered = [&record.payload.0[..], &record.signature.0, &record.identity.0].concat();
    if countersignature.digest != sha256(&covered) {
        return Err(EvidenceError::Signature(name("the countersigned result")));
    }
    let wanted = Identity { fleet: bundle.body.fleet.clone(), role: Role::Host(record.host.clone()) };
    let at = [Moment(countersignature.received_at)];
    let key = certificate::identity_key(&record.identity.0, control_ca, &wanted, &at)
        .map_err(|source| bad(&name("the identity"), source))?;
    check_signature(&key, &record.payload.0, &record.signature.0, || name("the agent"))?;

    let payload = &batch.payload;
    let differs = [
        ("format", payload.format != 1),
        ("fleet", payload.fleet != bundle.body.fleet),
        ("host", payload.host != record.host),
        ("batch", payload.batch != record.batch),
        ("rotation", payload.rotation != bundle.body.rotation.id),
        ("epoch, later than the coordinator's", payload.epoch > countersignature.epoch),
    ];
    if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
        return Err(EvidenceError::Payload {
            host: record.host.clone(),
            batch: record.batch.clone(),
            what: format!("another {what}"),
        });
    }
    let mut seen = BTreeSet::new();
    for target in &payload.targets {
        if !seen.insert(&target.installation) {
            return Err(EvidenceError::Payload {
                host: record.host.clone(),
                batch: record.batch.clone(),
                what: format!("target {} twice", target.installation),
            });
        }
    }
    Ok(())
}

/// Leaves issued per batch whose signature was checked.
struct Issued<'a> {
    to_issuer: X509Certificate<'a>,
    by_batch: BTreeMap<(&'a str, &'a str), BTreeSet<[u8; 32]>>,
}

impl<'a> Issued<'a> {
    /// Fingerprints of the batch's leaves under the new issuer's key.
    fn of(&mut self, batch: &Read<'a>) -> Result<&BTreeSet<[u8; 32]>, String> {
        let key = (batch.record.host.as_str(), batch.record.batch.as_str());
        if !self.by_batch.contains_key(&key) {
            let mut prints = BTreeSet::new();
            for leaf in &batch.record.leaves {
                let certificate = facts::parse(&leaf.0)
                    .map_err(|error| format!("a certificate of its batch cannot be read: {error}"))?;
                certificate::signed_by(&certificate, &self.to_issuer, "the new issuer")
                    .map_err(|_| "a certificate of its batch is not signed by the new issuer".to_owned())?;
                prints.insert(sha256(&leaf.0));
            }
            self.by_batch.insert(key, prints);
        }
        Ok(&self.by_batch[&key])
    }
}

/// A verified target was issued its certificate, and served it everywhere.
fn check_target<'a>(batch: &Read<'a>, target: &TargetProof, issued: &mut Issued<'a>) -> Result<(), String> {
    debug_assert_eq!(target.state(), TargetState::Verified);
    let after: [u8; 32] =
        target.after.as_slice().try_into().map_err(|_| "it shows no SHA-256 fingerprint".to_owned())?;
    if !issued.of(batch)?.contains(&after) {
        return Err(format!("{} is none of the certificates issued for its batch", hex::encode(after)));
    }
    for endpoint in &target.endpoints {
        if endpoint.served != after {
            return Err(format!("{} served {}", endpoint.address, hex::encode(&endpoint.served)));
        }
        if endpoint.handshakes == 0 {
            return Err(format!("nobody shook hands with {}", endpoint.address));
        }
    }
    Ok(())
}

fn check_signature(
    key: &[u8],
    message: &[u8],
    signature: &[u8],
    what: impl FnOnce() -> String,
) -> Result<(), EvidenceError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
        .verify(message, signature)
        .map_err(|_| EvidenceError::Signature(what()))
}

fn bad(what: &str, source: CertificateError) -> EvidenceError {
    EvidenceError::Certificate { what: what.to_owned(), source }
}
