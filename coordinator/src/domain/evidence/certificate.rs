//! Certificates of the control plane, judged at a given time (RFC 5280).
//!
//! Chains are of length one: the control-plane CA signs identities directly.

use reseal_proto::facts::{self, FactsError};
use reseal_proto::identity::{Identity, IdentityError};
use x509_parser::certificate::X509Certificate;

use super::Moment;

/// Why a certificate proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate.
    #[error("it cannot be read")]
    Read(#[from] FactsError),
    /// Not signed by the CA it should be.
    #[error("it is not signed by {0}")]
    Signature(&'static str),
    /// Not a CA certificate, or a CA certificate where none may be.
    #[error("it {0}")]
    Kind(&'static str),
    /// Not valid when it had to be.
    #[error("it was not valid at {at}: from {from} to {to}")]
    Validity {
        /// The moment it had to be.
        at: Moment,
        /// notBefore.
        from: Moment,
        /// notAfter.
        to: Moment,
    },
    /// Not an identity of the fleet.
    #[error("its identity cannot be used")]
    Identity(#[from] IdentityError),
    /// Somebody else's.
    #[error("it belongs to {found}, not to {wanted}")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it had to be.
        wanted: String,
    },
    /// A key that signs no evidence.
    #[error("its key is {0}, evidence is signed with ecdsa-p256")]
    Key(String),
}

/// Reads a CA certificate.
pub(super) fn ca(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let certificate = facts::parse(der)?;
    let signs = certificate.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
    if certificate.is_ca() && signs {
        Ok(certificate)
    } else {
        Err(CertificateError::Kind("is no CA certificate"))
    }
}

/// Checks that `ca` signed `certificate`.
pub(super) fn signed_by(
    certificate: &X509Certificate<'_>,
    ca: &X509Certificate<'_>,
    name: &'static str,
) -> Result<(), CertificateError> {
    let signed =
        certificate.issuer() == ca.subject() && certificate.verify_signature(Some(ca.public_key())).is_ok();
    if signed { Ok(()) } else { Err(CertificateError::Signature(name)) }
}

/// Checks that a certificate was valid at a moment.
pub(super) fn valid_at(certificate: &X509Certificate<'_>, at: Moment) -> Result<(), CertificateError> {
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if (from..=to).contains(&at.0) {
        Ok(())
    } else {
        Err(CertificateError::Validity { at, from: Moment(from), to: Moment(to) })
    }
}

/// The public key (an uncompressed P-256 point) of an identity of the control
/// plane: signed by its CA, an end entity, of exactly this name.
pub(super) fn identity_key(
    der: &[u8],
    control_ca: &X509Certificate<'_>,
    wanted: &Identity,
    valid: &[Moment],
) -> Result<Vec<u8>, CertificateError> {
    let certificate = facts::parse(der)?;
    signed_by(&certificate, control_ca, "the control-plane CA")?;
    if certificate.is_ca() {
        return Err(CertificateError::Kind("is a CA certificate, identities are not"));
    }
    let found = Identity::of_certificate(der)?;
    if found != *wanted {
        return Err(CertificateError::Foreign { found: found.to_string(), wanted: wanted.to_string() });
    }
    for at in valid {
        valid_at(&certificate, *at)?;
        valid_at(control_ca, *at)?;
    }
    let kind = facts::key_type(certificate.public_key());
    if kind != "ecdsa-p256" {
        return Err(CertificateError::Key(kind));
    }
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}
