//! PEM (RFC 7468), written and read: certificates and PKCS#8 keys, nothing else.
//!
//! What holds a key is zeroized. Called by the installer, the identity store
//! and the inventory; the sizes that are accepted are bounded here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// A file larger than this is not read as a certificate or key, bytes.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// More certificates in one file are not a chain.
pub const MAX_CERTIFICATES: usize = 32;

/// Why a text is not the PEM that was expected.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Base64 or framing is broken.
    #[error("the PEM is damaged: {0}")]
    Damaged(String),
    /// There is no certificate in it.
    #[error("there is no CERTIFICATE block in it")]
    NoCertificate,
    /// Over [`MAX_CERTIFICATES`].
    #[error("there are more than {MAX_CERTIFICATES} certificates in it")]
    TooMany,
    /// There is no private key in it.
    #[error("there is no PRIVATE KEY block in it")]
    NoKey,
}

/// One CERTIFICATE block per certificate, in order.
pub fn certificates<'a>(chain: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for der in chain {
        block(&mut text, "CERTIFICATE", der);
    }
    text
}

/// A PRIVATE KEY block around a PKCS#8 document.
pub fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    // Reserved up front: growing would leave unzeroized copies behind.
    let mut text = Zeroizing::new(String::with_capacity(pkcs8.len() * 2 + 128));
    block(&mut text, "PRIVATE KEY", pkcs8);
    text
}

/// The certificates of a PEM text, in order; other blocks are skipped.
pub fn read_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| PemError::Damaged(error.to_string()))?;
        if found.len() == MAX_CERTIFICATES {
            return Err(PemError::TooMany);
        }
        found.push(certificate);
    }
    if found.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(found)
}

/// The PKCS#8 document of the first private key of a PEM text.
pub fn read_key(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, PemError> {
    // The parser's error may quote what it read: not repeated.
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(PrivateKeyDer::Pkcs8(key)) => Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec())),
        _ => Err(PemError::NoKey),
    }
}

fn block(text: &mut String, label: &str, der: &[u8]) {
    let body = Zeroizing::new(STANDARD.encode(der));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes in proptest::collection::vec(any::<u8>(), 1..500)) {
            let text = certificates([bytes.as_slice(), bytes.as_slice()]);
            let read = read_certificates(text.as_bytes()).unwrap();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(read[1].as_ref(), bytes.as_slice());
            let key = read_key(private_key(&bytes).as_bytes()).unwrap();
            prop_assert_eq!(key.as_slice(), bytes.as_slice());
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = read_certificates(&bytes);
            let _ = read_key(&bytes);
        }
    }

    #[test]
    fn a_text_without_a_certificate_is_an_error() {
        assert!(matches!(read_certificates(b"hello"), Err(PemError::NoCertificate)));
    }
}
