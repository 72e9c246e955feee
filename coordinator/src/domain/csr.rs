//! A certification request (RFC 2986) from a host: parsed once, possession proved.
//!
//! Only the public key and the wanted names are taken from it; subject and
//! every other attribute are ignored, so a host cannot write into its own
//! certificate.

use reseal_proto::facts;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use super::name::{Name, NameError};

/// A longer request is refused unread, bytes. RSA 4096 with 100 names fits.
pub const MAX_BYTES: usize = 8 * 1024;

/// What a CSR asks for, after its signature was verified with its own key.
#[derive(Clone, Debug)]
pub struct Request {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// SHA-256 over it.
    pub spki_sha256: [u8; 32],
    /// From the SAN extension request.
    pub names: Vec<Name>,
    /// "ecdsa-p256" ...
    pub key_type: String,
}

/// Why a CSR is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Over [`MAX_BYTES`].
    #[error("CSR has {0} bytes, more than the {MAX_BYTES} that are accepted")]
    Size(usize),
    /// Not PKCS#10.
    #[error("CSR is not readable PKCS#10: {0}")]
    Parse(String),
    /// Bytes behind the end.
    #[error("CSR is followed by {0} stray bytes")]
    Trailing(usize),
    /// The proof of possession fails (RFC 2986, 3).
    #[error("CSR signature does not verify: the sender does not hold the private key")]
    Possession,
    /// A name that no certificate gets.
    #[error("CSR asks for a name that cannot be")]
    Name(#[source] NameError),
    /// A SAN kind that is not a DNS name or an address.
    #[error("CSR asks for a name that is neither DNS nor IP: {0}")]
    NameKind(String),
}

impl Request {
    /// Parses and verifies a CSR.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_BYTES {
            return Err(CsrError::Size(der.len()));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|error| CsrError::Parse(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Trailing(rest.len()));
        }
        csr.verify_signature().map_err(|_| CsrError::Possession)?;
        let info = &csr.certification_request_info;
        let mut names = Vec::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                for name in &san.general_names {
                    let text =
                        facts::general_name(name).ok_or_else(|| CsrError::NameKind(name.to_string()))?;
                    names.push(text.parse().map_err(CsrError::Name)?);
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(Self {
            spki: info.subject_pki.raw.to_vec(),
            spki_sha256: facts::sha256(info.subject_pki.raw),
            names,
            key_type: facts::key_type(&info.subject_pki),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(names: &[&str]) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn takes_key_and_names() {
        let request = Request::from_der(&sample(&["b.test", "a.test", "10.0.0.1"])).unwrap();
        assert_eq!(request.names.len(), 3);
        assert_eq!(request.key_type, "ecdsa-p256");
    }

    #[test]
    fn a_foreign_signature_is_no_possession() {
        let mut der = sample(&["a.test"]);
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(Request::from_der(&der), Err(CsrError::Possession | CsrError::Parse(_))));
    }

    #[test]
    fn stray_bytes_and_giants_are_refused() {
        let mut der = sample(&["a.test"]);
        der.push(0);
        assert!(matches!(Request::from_der(&der), Err(CsrError::Trailing(1))));
        assert!(matches!(Request::from_der(&[0; MAX_BYTES + 1]), Err(CsrError::Size(_))));
    }

    proptest! {
        /// Whatever byte is changed: refused, or nothing that counts has changed.
        #[test]
        fn a_changed_byte_never_changes_what_is_asked(at in 0usize..300, byte: u8) {
            let mut der = sample(&["a.test"]);
            let honest = Request::from_der(&der).unwrap();
            let at = at % der.len();
            der[at] = byte;
            if let Ok(request) = Request::from_der(&der) {
                prop_assert_eq!(request.spki, honest.spki);
                prop_assert_eq!(request.names, honest.names);
            }
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::from_der(&bytes);
        }
    }
}
