//! What an X.509 certificate says, as a message: read once, at the border.
//!
//! Decisions elsewhere use keys and fingerprints; subject and issuer strings
//! are for people and are stripped of control characters here.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::v1::{CertificateFacts, Installation, Management};

/// A certificate larger than this is refused before it is parsed, bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// Why bytes are no certificate we can use.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// Over [`MAX_CERTIFICATE_BYTES`].
    #[error("certificate has {0} bytes, more than the {MAX_CERTIFICATE_BYTES} that are accepted")]
    Size(usize),
    /// Not DER, or not X.509.
    #[error("not an X.509 certificate: {0}")]
    Parse(String),
    /// Bytes behind the end.
    #[error("certificate is followed by {0} stray bytes")]
    Trailing(usize),
}

impl Installation {
    /// Is it declared or adopted? Only then is it ever renewed.
    pub fn is_managed(&self) -> bool {
        self.management().is_managed()
    }
}

impl Management {
    /// Does anybody look after it?
    pub fn is_managed(self) -> bool {
        match self {
            Self::Labels | Self::Configuration | Self::Adopted => true,
            Self::Discovered => false,
        }
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Reads a certificate, whole.
pub fn parse(der: &[u8]) -> Result<X509Certificate<'_>, FactsError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(FactsError::Size(der.len()));
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| FactsError::Parse(error.to_string()))?;
    if rest.is_empty() { Ok(certificate) } else { Err(FactsError::Trailing(rest.len())) }
}

/// The facts of `leaf`; `chain` are the certificates found beside it, in any
/// order, among which its issuer is recognised by its signature.
pub fn of_chain<'a>(
    leaf: &[u8],
    chain: impl IntoIterator<Item = &'a [u8]>,
) -> Result<CertificateFacts, FactsError> {
    let certificate = parse(leaf)?;
    let issuer = chain
        .into_iter()
        .filter_map(|der| parse(der).ok())
        .find(|candidate| {
            candidate.subject() == certificate.issuer()
                && certificate.verify_signature(Some(candidate.public_key())).is_ok()
        })
        .map(|issuer| sha256(issuer.public_key().raw).to_vec());
    Ok(CertificateFacts {
        fingerprint: sha256(leaf).to_vec(),
        serial: strip_leading_zeros(certificate.raw_serial()).to_vec(),
        subject: printable(&certificate.subject().to_string()),
        issuer: printable(&certificate.issuer().to_string()),
        spki_sha256: sha256(certificate.public_key().raw).to_vec(),
        authority_key_id: authority_key_id(&certificate).unwrap_or_default().to_vec(),
        issuer_spki_sha256: issuer.unwrap_or_default(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        names: names(&certificate),
        key_type: key_type(certificate.public_key()),
    })
}

/// keyIdentifier of the authorityKeyIdentifier extension (RFC 5280, 4.2.1.1).
pub fn authority_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

/// subjectKeyIdentifier (RFC 5280, 4.2.1.2).
pub fn subject_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(ski) => Some(ski.0),
        _ => None,
    })
}

/// The names of the SAN extension: DNS, IP and URI, in order.
pub fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(san)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    san.value.general_names.iter().filter_map(general_name).collect()
}

/// A SAN entry as text; kinds that Reseal does not handle are left out.
pub fn general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some(printable(&dns.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(printable(uri)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::Ipv4Addr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// "ecdsa-p256", "rsa-2048", "ed25519" ...; "unknown" for what is not recognised.
pub fn key_type(spki: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        return match spki.parsed() {
            Ok(x509_parser::public_key::PublicKey::RSA(rsa)) => format!("rsa-{}", rsa.key_size()),
            _ => "unknown".into(),
        };
    }
    if *algorithm == oid::OID_SIG_ED25519 {
        return "ed25519".into();
    }
    if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == oid::OID_EC_P256 => "ecdsa-p256".into(),
            Some(curve) if curve == oid::OID_NIST_EC_P384 => "ecdsa-p384".into(),
            Some(curve) if curve == oid::OID_NIST_EC_P521 => "ecdsa-p521".into(),
            _ => "unknown".into(),
        };
    }
    "unknown".into()
}

/// Without control characters: what comes from a certificate or a label ends
/// up on terminals and in logs.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_bidi_control(c) { '\u{fffd}' } else { c }).collect()
}

fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn strip_leading_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros.min(serial.len().saturating_sub(1))..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_rcgen_wrote() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params =
            rcgen::CertificateParams::new(vec!["WWW.example.test".into(), "10.1.2.3".into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let facts = of_chain(certificate.der(), [certificate.der().as_ref()]).unwrap();
        assert_eq!(facts.names, ["www.example.test", "10.1.2.3"]);
        assert_eq!(facts.key_type, "ecdsa-p256");
        assert_eq!(facts.issuer_spki_sha256, facts.spki_sha256);
        assert_eq!(facts.fingerprint, sha256(certificate.der()));
    }

    #[test]
    fn a_giant_is_refused_unread() {
        let giant = vec![0x30; MAX_CERTIFICATE_BYTES + 1];
        assert!(of_chain(&giant, []).unwrap_err().to_string().contains("16385 bytes"));
    }

    #[test]
    fn terminal_escapes_do_not_pass() {
        assert_eq!(printable("a\x1b[31mb\u{202e}"), "a\u{fffd}[31mb\u{fffd}");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = of_chain(&bytes, []);
        }

        #[test]
        fn a_torn_certificate_is_an_error(cut in 1usize..200) {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(&key).unwrap();
            let der = certificate.der();
            prop_assert!(of_chain(&der[..der.len() - cut], []).is_err());
        }
    }
}
