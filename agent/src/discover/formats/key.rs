//! A private key's public half, from PKCS#8 (RFC 5958), PKCS#1 (RFC 8017,
//! A.1.2) and SEC1 (RFC 5915). Pure.
//!
//! Taken from the encoding where it is there, so that weak keys and curves of
//! any kind can be paired with their certificates; computed only where it is
//! not. Nothing of the key itself is returned or kept.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
};
use reseal_proto::facts::sha256;

use super::der::{self, BITS, Fields, INTEGER, OCTETS, OID, SEQUENCE};

/// 1.2.840.113549.1.1.1
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.10045.2.1
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.3.101.112
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const CURVES: [(&[u8], &EcdsaSigningAlgorithm); 3] = [
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], &ECDSA_P256_SHA256_ASN1_SIGNING),
    (&[0x2b, 0x81, 0x04, 0x00, 0x22], &ECDSA_P384_SHA384_ASN1_SIGNING),
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], &ECDSA_P521_SHA512_ASN1_SIGNING),
];

/// Is it a private key in one of the three forms?
pub fn is_private(der: &[u8]) -> bool {
    let Some(mut fields) = Fields::of(der) else { return false };
    let Some(version) = fields.take(INTEGER) else { return false };
    match (version.content, fields.any().map(|field| field.tag)) {
        // PKCS#8, or PKCS#1 with the modulus next.
        ([0 | 1], Some(SEQUENCE)) => fields.take(OCTETS).is_some(),
        ([0], Some(INTEGER)) => (0..7).all(|_| fields.take(INTEGER).is_some()),
        ([1], Some(OCTETS)) => true,
        _ => false,
    }
}

/// Is it an EncryptedPrivateKeyInfo (RFC 5958, section 3) with a password-based scheme?
pub fn is_encrypted(der: &[u8]) -> bool {
    // pkcs-5 or pkcs-12PbeIds
    const SCHEMES: [&[u8]; 2] = [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05],
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01],
    ];
    let Some(mut fields) = Fields::of(der) else { return false };
    let scheme = fields.take(SEQUENCE).and_then(|one| Fields::of(one.raw)).and_then(|mut one| one.take(OID));
    let known = scheme.is_some_and(|oid| SCHEMES.iter().any(|scheme| oid.content.starts_with(scheme)));
    known && fields.take(OCTETS).is_some() && fields.any().is_none()
}

/// SHA-256 over the SubjectPublicKeyInfo; `None` for kinds that are not known.
pub fn spki_sha256(der: &[u8]) -> Option<[u8; 32]> {
    spki(der).map(|spki| sha256(&spki))
}

fn spki(der: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Fields::of(der)?;
    let version = fields.take(INTEGER)?.content;
    let mut rest = fields;
    if let Some(algorithm) = rest.take(SEQUENCE) {
        let key = rest.take(OCTETS)?.content;
        return pkcs8(der, algorithm, key);
    }
    match version {
        [0] => Some(rsa(fields.take(INTEGER)?.raw, fields.take(INTEGER)?.raw)),
        [1] => sec1(der, None),
        _ => None,
    }
}

fn pkcs8(whole: &[u8], algorithm: der::Value<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let oid = Fields::of(algorithm.raw)?.take(OID)?.content;
    if oid == RSA {
        let mut fields = Fields::of(key)?;
        fields.take(INTEGER)?;
        return Some(rsa(fields.take(INTEGER)?.raw, fields.take(INTEGER)?.raw));
    }
    if oid == EC {
        return sec1(key, Some((whole, algorithm)));
    }
    if oid == ED25519 {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(whole).ok()?;
        return Some(public(algorithm.raw, pair.public_key().as_ref()));
    }
    None
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let algorithm = der::write(SEQUENCE, &[&der::write(OID, &[RSA]), &[0x05, 0x00]]);
    public(&algorithm, &der::write(SEQUENCE, &[modulus, exponent]))
}

/// `outer` is the PKCS#8 document around it, and its algorithm with the curve.
fn sec1(key: &[u8], outer: Option<(&[u8], der::Value<'_>)>) -> Option<Vec<u8>> {
    const PARAMETERS: u8 = 0xa0;
    const PUBLIC_KEY: u8 = 0xa1;
    let mut fields = Fields::of(key)?;
    fields.take(INTEGER)?;
    fields.take(OCTETS)?;
    let parameters = fields.take(PARAMETERS);
    let algorithm = match (outer, parameters) {
        (Some((_, algorithm)), _) => algorithm.raw.to_vec(),
        (None, Some(curve)) => der::write(SEQUENCE, &[&der::write(OID, &[EC]), curve.content]),
        (None, None) => return None,
    };
    if let Some(bits) = fields.take(PUBLIC_KEY) {
        let (bits, _) = der::value(bits.content)?;
        return match (bits.tag, bits.content) {
            (BITS, [0, point @ ..]) => Some(public(&algorithm, point)),
            _ => None,
        };
    }
    let mut inside = Fields::of(&algorithm)?;
    inside.take(OID)?;
    let curve = inside.take(OID)?.content;
    let (_, known) = CURVES.iter().find(|(oid, _)| *oid == curve)?;
    let document = outer.map_or(key, |(whole, _)| whole);
    let pair = EcdsaKeyPair::from_private_key_der(known, document).ok()?;
    Some(public(&algorithm, pair.public_key().as_ref()))
}

fn public(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    der::write(SEQUENCE, &[algorithm, &der::write(BITS, &[&[0], key])])
}
