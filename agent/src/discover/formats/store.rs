//! Key stores: PKCS#12 and the Java key store, as far as they open without a
//! password or with one that everybody knows. Pure.

use super::der::{INTEGER, OID, SEQUENCE};
use super::{Content, Format, Key, certificate, kept, key};
use crate::keystore::{Entries, KeyStoreError, Password, jks, pkcs12};

/// 1.2.840.113549.1.7: the content of a PKCS#12 file is one of these.
const PKCS7: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07];

/// PFX ::= SEQUENCE { version INTEGER (3), authSafe ContentInfo, ... }
pub(super) fn is_pkcs12(head: &[u8]) -> bool {
    // Only the head may be there: the outer length is not looked at.
    let skip = match head.get(1) {
        Some(short) if *short < 0x80 => 2,
        Some(long) => 2 + usize::from(long & 0x7f),
        None => return false,
    };
    let Some([INTEGER, 1, 3, SEQUENCE, rest @ ..]) = head.get(skip..) else { return false };
    let skip = match rest.first() {
        Some(short) if *short < 0x80 => 1,
        Some(long) => 1 + usize::from(long & 0x7f),
        None => return false,
    };
    matches!(rest.get(skip..), Some([OID, 9, oid @ ..]) if oid.starts_with(PKCS7))
}

/// What Java's tools propose, and many leave.
const WELL_KNOWN: &[u8] = b"changeit";

pub(super) fn read_pkcs12(bytes: &[u8]) -> Content {
    let opened = match pkcs12::read(bytes, None) {
        Err(KeyStoreError::PasswordNeeded) => {
            Password::read(WELL_KNOWN).and_then(|password| pkcs12::read(bytes, Some(&password)))
        }
        opened => opened,
    };
    opened.map_or_else(|_| locked(Format::Pkcs12), |entries| content(Format::Pkcs12, &entries))
}

pub(super) fn read_jks(bytes: &[u8]) -> Content {
    jks::read(bytes, None).map_or_else(|_| locked(Format::Jks), |entries| content(Format::Jks, &entries))
}

fn content(format: Format, entries: &Entries) -> Content {
    let mut certificates: Vec<Vec<u8>> = Vec::new();
    let mut keys = Vec::new();
    for entry in &entries.keys {
        let opened = entry.key.as_ref().and_then(|key| key::spki_sha256(key));
        // A key that stays hidden is that of the certificate it comes with.
        let of_leaf = || entry.chain.first().and_then(|leaf| certificate::spki_sha256(leaf));
        keys.push(Key { spki_sha256: opened.or_else(of_leaf), encrypted: true });
        certificates.extend(entry.chain.iter().map(|one| one.to_vec()));
    }
    certificates.extend(entries.certificates.iter().map(|one| one.to_vec()));
    Content { keys, ..kept(format, &certificates) }
}

fn locked(format: Format) -> Content {
    Content { format, certificates: Vec::new(), count: 0, keys: Vec::new(), locked: true, cut: false }
}
