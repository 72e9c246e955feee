//! The certificate profiles: what Reseal writes into the certificates it signs.
//!
//! RFC 5280 throughout: AKI and SKI everywhere, critical basicConstraints and
//! keyUsage, pathlen 0 on intermediates, serials of 16 random bytes, notBefore
//! an hour back because clocks differ. A leaf takes its key and names from the
//! CSR and nothing else.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use reseal_proto::identity::{COORDINATOR_DNS_NAME, Identity};
use reseal_proto::v1::Usage;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::keyring::random;
use crate::domain::name::Name;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Lifetime of an agent's identity.
pub const AGENT_IDENTITY: i64 = DAY;
/// Lifetime of an operator's identity.
pub const OPERATOR_IDENTITY: i64 = 90 * DAY;
/// Lifetime of a coordinator's server certificate; it is made anew at every start, and each time a third of it is over.
pub const SERVER: i64 = 90 * DAY;
const CONTROL_CA: i64 = 10 * 365 * DAY;
const ROOT: i64 = 10 * 365 * DAY;
const INTERMEDIATE: i64 = 5 * 365 * DAY;

/// A signing step failed inside the library.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the {what} certificate")]
pub struct ProfileError {
    /// Which certificate.
    pub what: &'static str,
    /// What rcgen said.
    #[source]
    pub source: rcgen::Error,
}

/// A CA that signs: its certificate and key.
pub type Ca = Issuer<'static, KeyPair>;

/// A new P-256 key.
pub fn new_key() -> KeyPair {
    KeyPair::generate().expect("P-256 key generation needs random bytes only")
}

/// Loads a CA from its certificate and PKCS#8 key.
pub fn ca(what: &'static str, certificate: &[u8], pkcs8: &[u8]) -> Result<Ca, ProfileError> {
    let error = |source| ProfileError { what, source };
    let key = KeyPair::try_from(pkcs8).map_err(error)?;
    Issuer::from_ca_cert_der(&CertificateDer::from(certificate.to_vec()), key).map_err(error)
}

/// A random serial number: 16 bytes, positive, not zero (RFC 5280, 4.1.2.2).
pub fn serial() -> [u8; 16] {
    let mut bytes: [u8; 16] = random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    bytes
}

/// The self-signed control-plane CA of a fleet.
pub fn control_ca(fleet: &str, key: &KeyPair, now: i64) -> Result<Vec<u8>, ProfileError> {
    let params = authority_params(&format!("Reseal {fleet} control plane"), now, CONTROL_CA, Some(0));
    self_sign("control-plane CA", &params, key)
}

/// The self-signed managed root of a fleet.
pub fn managed_root(fleet: &str, key: &KeyPair, now: i64) -> Result<Vec<u8>, ProfileError> {
    let params = authority_params(&format!("Reseal {fleet} root"), now, ROOT, Some(1));
    self_sign("managed root", &params, key)
}

/// The common name of an authority.
pub fn authority_name(fleet: &str, slot: &str) -> String {
    format!("Reseal {fleet} issuing {slot}")
}

/// An intermediate, signed by the root.
pub fn intermediate(
    common_name: &str,
    spki: &[u8],
    root: &Issuer<'_, KeyPair>,
    now: i64,
) -> Result<Vec<u8>, ProfileError> {
    let params = authority_params(common_name, now, INTERMEDIATE, Some(0));
    sign("intermediate", &params, spki, root)
}

/// The server certificate of a coordinator.
pub fn server(identity: &Identity, key: &KeyPair, control: &Ca, now: i64) -> Result<Vec<u8>, ProfileError> {
    let mut params = identity_params(identity, now, SERVER, ExtendedKeyUsagePurpose::ServerAuth);
    params
        .subject_alt_names
        .push(SanType::DnsName(COORDINATOR_DNS_NAME.try_into().expect("a constant DNS name")));
    sign("coordinator", &params, &spki_of(key), control)
}

/// An agent's or operator's client certificate.
pub fn client(
    identity: &Identity,
    spki: &[u8],
    lifetime: i64,
    control: &Ca,
    now: i64,
) -> Result<Vec<u8>, ProfileError> {
    sign(
        "client",
        &identity_params(identity, now, lifetime, ExtendedKeyUsagePurpose::ClientAuth),
        spki,
        control,
    )
}

/// The certificate that countersigns evidence; as long-lived as its CA, because evidence is.
pub fn evidence(identity: &Identity, key: &KeyPair, control: &Ca, now: i64) -> Result<Vec<u8>, ProfileError> {
    let mut params = identity_params(identity, now, CONTROL_CA, ExtendedKeyUsagePurpose::ServerAuth);
    // No TLS usage: this key signs documents only.
    params.extended_key_usages.clear();
    sign("evidence", &params, &spki_of(key), control)
}

/// A leaf for a host: names and key from its CSR, all else from here.
pub fn leaf(
    names: &[Name],
    spki: &[u8],
    usage: Usage,
    serial: &[u8],
    not_after: i64,
    authority: &Ca,
    now: i64,
) -> Result<Vec<u8>, ProfileError> {
    let lifetime = not_after - now;
    let mut params = params(now, lifetime);
    // Clocks differ, but a short life must not look like a long one.
    params.not_before = moment(now - HOUR.min(lifetime / 4));
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match usage {
        Usage::Unspecified | Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    // The subject stays short (X.520 ub-common-name is 64); clients look at the SAN (RFC 9525).
    if let Some(first) = names.iter().map(Name::to_string).find(|name| name.len() <= 64) {
        params.distinguished_name.push(DnType::CommonName, first);
    }
    params.subject_alt_names = names.iter().filter_map(san).collect();
    sign("leaf", &params, spki, authority)
}

/// SubjectPublicKeyInfo of a key, DER.
pub fn spki_of(key: &KeyPair) -> Vec<u8> {
    rcgen::PublicKeyData::subject_public_key_info(key)
}

fn san(name: &Name) -> Option<SanType> {
    match name {
        Name::Dns(name) | Name::Wildcard(name) => name.as_str().try_into().ok().map(SanType::DnsName),
        Name::Address(address) => Some(SanType::IpAddress(IpAddr::clone(address))),
    }
}

fn params(now: i64, lifetime: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(now - HOUR);
    params.not_after = moment(now + lifetime);
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params(
    common_name: &str,
    now: i64,
    lifetime: i64,
    path_length: Option<u8>,
) -> CertificateParams {
    let mut params = params(now, lifetime);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca =
        IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn identity_params(
    identity: &Identity,
    now: i64,
    lifetime: i64,
    usage: ExtendedKeyUsagePurpose,
) -> CertificateParams {
    let mut params = params(now, lifetime);
    params.is_ca = IsCa::ExplicitNoCa;
    params.distinguished_name.push(DnType::CommonName, identity.role.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.subject_alt_names =
        vec![SanType::URI(identity.to_string().try_into().expect("an identity is ASCII"))];
    params
}

fn sign(
    what: &'static str,
    params: &CertificateParams,
    spki: &[u8],
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Vec<u8>, ProfileError> {
    let error = |source| ProfileError { what, source };
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(error)?;
    Ok(params.signed_by(&key, issuer).map_err(error)?.der().to_vec())
}

fn self_sign(what: &'static str, params: &CertificateParams, key: &KeyPair) -> Result<Vec<u8>, ProfileError> {
    Ok(params.self_signed(key).map_err(|source| ProfileError { what, source })?.der().to_vec())
}

fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
