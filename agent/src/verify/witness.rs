//! Takes down what a server shows in a handshake, and whether it proved to have the key.
//!
//! Accepts any chain: judging it comes later ([`super::look`]). A chain counts
//! as proved only once the server has signed the handshake with the leaf's
//! key. Which kinds of signature are offered decides which of a server's
//! certificates is shown (RFC 8446, section 4.2.3; RFC 5246, section 7.4.1.4.1).

use std::sync::Mutex;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Kind of key that a certificate may have to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// Whatever the server prefers.
    #[default]
    Any,
    /// RSA.
    Rsa,
    /// ECDSA on any curve.
    Ecdsa,
    /// Ed25519.
    EdDsa,
}

impl Family {
    /// Of a key type as [`reseal_proto::facts::key_type`] writes it; `Any` for what is none of them.
    pub fn of_key_type(key_type: &str) -> Self {
        match key_type.split('-').next() {
            Some("rsa") => Self::Rsa,
            Some("ecdsa") => Self::Ecdsa,
            Some("ed25519") => Self::EdDsa,
            _ => Self::Any,
        }
    }

    /// Does a signature of this scheme need a key of this kind?
    pub fn has(self, scheme: SignatureScheme) -> bool {
        use SignatureScheme as S;
        let rsa = matches!(
            scheme,
            S::RSA_PKCS1_SHA1
                | S::RSA_PKCS1_SHA256
                | S::RSA_PKCS1_SHA384
                | S::RSA_PKCS1_SHA512
                | S::RSA_PSS_SHA256
                | S::RSA_PSS_SHA384
                | S::RSA_PSS_SHA512
        );
        let ecdsa = matches!(
            scheme,
            S::ECDSA_SHA1_Legacy
                | S::ECDSA_NISTP256_SHA256
                | S::ECDSA_NISTP384_SHA384
                | S::ECDSA_NISTP521_SHA512
        );
        match self {
            Self::Any => true,
            Self::Rsa => rsa,
            Self::Ecdsa => ecdsa,
            Self::EdDsa => scheme == S::ED25519,
        }
    }

    /// In messages, behind a TLS version.
    pub(super) fn described(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Rsa => " with an RSA certificate",
            Self::Ecdsa => " with an ECDSA certificate",
            Self::EdDsa => " with an Ed25519 certificate",
        }
    }
}

/// The verifier of one handshake.
#[derive(Debug)]
pub(super) struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    family: Family,
    seen: Mutex<Witnessed>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Witnessed {
    /// Leaf first, as served.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The server has the leaf's key.
    pub(super) proved: bool,
}

impl Witness {
    pub(super) fn new(algorithms: WebPkiSupportedAlgorithms, family: Family) -> Self {
        Self { algorithms, family, seen: Mutex::new(Witnessed::default()) }
    }

    /// Once: it is empty afterwards.
    pub(super) fn take(&self) -> Witnessed {
        std::mem::take(&mut *self.seen.lock().expect("no panic while held"))
    }

    fn proved(&self) {
        self.seen.lock().expect("no panic while held").proved = true;
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        self.seen.lock().expect("no panic while held").chain = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid =
            rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)?;
        self.proved();
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid =
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)?;
        self.proved();
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        schemes.retain(|scheme| self.family.has(*scheme));
        schemes
    }
}
