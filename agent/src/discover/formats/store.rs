//! Key stores: PKCS#12 and the Java key store, as far as they open without a
//! password or with one that everybody knows. Pure.

use super::der::{INTEGER, OID, SEQUENCE};
use super::{Content, Format};

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

pub(super) fn read_pkcs12(_: &[u8]) -> Content {
    locked(Format::Pkcs12)
}

pub(super) fn read_jks(_: &[u8]) -> Content {
    locked(Format::Jks)
}

fn locked(format: Format) -> Content {
    Content { format, certificates: Vec::new(), count: 0, keys: Vec::new(), locked: true, cut: false }
}
