//! What discovery keeps of a certificate. Pure.

use reseal_proto::facts::{self, sha256};
use reseal_proto::v1::{CertificateFacts, Usage};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

/// A certificate of a file or of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// What is reported.
    pub facts: CertificateFacts,
    /// basicConstraints says that it may sign others.
    pub authority: bool,
    /// It has signed itself.
    pub self_signed: bool,
    /// It is named as the issuer of another one beside it.
    pub signs_another: bool,
    /// Its issuer is beside it.
    pub issuer_beside: bool,
    /// "SHA-1", "MD5": how it was signed, where that is weak.
    pub weak_signature: Option<&'static str>,
    /// Bits of its key, where that is an RSA or EC key.
    pub bits: Option<usize>,
    /// By its extended key usages; `Unspecified` when they name neither.
    pub usage: Usage,
    /// subjectKeyIdentifier, for [`Certificate::issued_by`].
    pub key_id: Vec<u8>,
}

impl Certificate {
    /// Is `other` named as its issuer, by key identifier and name?
    pub fn issued_by(&self, other: &Self) -> bool {
        !self.facts.authority_key_id.is_empty()
            && self.facts.authority_key_id == other.key_id
            && self.facts.issuer == other.facts.subject
    }

    /// Too weak for today: RSA below 2048 bits, EC below 256.
    pub fn weak_key(&self) -> Option<String> {
        let bits = self.bits?;
        let rsa = self.facts.key_type.starts_with("rsa");
        let least = if rsa { 2048 } else { 256 };
        (bits < least).then(|| format!("{} with {bits} bits", if rsa { "RSA" } else { "elliptic curve" }))
    }
}

/// Reads what is a certificate and leaves out the rest.
pub fn read_all(certificates: &[Vec<u8>]) -> Vec<Certificate> {
    let parsed: Vec<(&[u8], X509Certificate<'_>)> = certificates
        .iter()
        .filter_map(|der| facts::parse(der).ok().map(|certificate| (der.as_slice(), certificate)))
        .collect();
    // Signatures are checked among the few of a chain, not within a trust store.
    let chain: Vec<&[u8]> = if parsed.len() <= super::MAX_KEPT {
        parsed.iter().map(|(der, _)| *der).collect()
    } else {
        Vec::new()
    };
    let mut read: Vec<Certificate> = Vec::with_capacity(parsed.len());
    for (index, (der, certificate)) in parsed.iter().enumerate() {
        let Ok(facts) = facts::of_chain(der, chain.iter().copied()) else { continue };
        let (subject, issuer) = (certificate.subject().as_raw(), certificate.issuer().as_raw());
        let mut others = parsed.iter().enumerate().filter(|(at, _)| *at != index);
        let signs_another = others.clone().any(|(_, (_, other))| other.issuer().as_raw() == subject);
        let issuer_beside = others.any(|(_, (_, other))| other.subject().as_raw() == issuer);
        let key_id = facts::subject_key_id(certificate).unwrap_or_default();
        // Keys that are too weak verify nothing here: then the identifiers have to do.
        let own_key = match facts::authority_key_id(certificate) {
            Some(authority) if !key_id.is_empty() => authority == key_id,
            _ => chain.is_empty() || certificate.verify_signature(None).is_ok(),
        };
        let self_signed = subject == issuer && own_key;
        read.push(Certificate {
            authority: certificate.is_ca(),
            self_signed,
            signs_another,
            issuer_beside,
            weak_signature: weak_signature(certificate),
            bits: bits(certificate),
            usage: usage(certificate),
            key_id: key_id.to_vec(),
            facts,
        });
    }
    read
}

/// SHA-256 over the SubjectPublicKeyInfo of a certificate.
pub fn spki_sha256(der: &[u8]) -> Option<[u8; 32]> {
    facts::parse(der).ok().map(|certificate| sha256(certificate.public_key().raw))
}

fn weak_signature(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.2" => Some("MD2"),
        "1.2.840.113549.1.1.4" => Some("MD5"),
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" | "1.3.14.3.2.29" => Some("SHA-1"),
        _ => None,
    }
}

fn bits(certificate: &X509Certificate<'_>) -> Option<usize> {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(rsa)) => Some(rsa.key_size()),
        Ok(PublicKey::EC(point)) => Some(point.key_size()),
        _ => None,
    }
}

fn usage(certificate: &X509Certificate<'_>) -> Usage {
    let Ok(Some(extended)) = certificate.extended_key_usage() else { return Usage::Unspecified };
    let extended = extended.value;
    match (extended.server_auth, extended.client_auth) {
        (true, true) => Usage::Both,
        (true, false) => Usage::Server,
        (false, true) => Usage::Client,
        (false, false) => Usage::Unspecified,
    }
}
