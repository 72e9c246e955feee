//! What a file holds, told by its content: certificates, keys, key stores. Pure.
//!
//! Names and extensions are not looked at. [`pem`] and [`der`] read bytes,
//! [`key`] computes public keys, [`certificate`] reads what matters of a
//! certificate. The files are hostile: no input panics, sizes and counts are
//! bounded, and what cannot be read is not there. A private key is in memory
//! only as long as its public key takes to compute, zeroized, and in no error.
//! Called by [`super::files`] and [`super::images`].

pub mod certificate;
pub mod der;
pub mod key;
pub mod pem;
mod store;

pub use certificate::Certificate;

/// So much of a file decides whether the rest is read, bytes.
pub const HEAD: usize = 8 * 1024;
/// More blocks of one PEM file are not read.
pub const MAX_BLOCKS: usize = 1_000;
/// Of a file with more certificates only their number is kept: it is a trust store.
pub const MAX_KEPT: usize = 32;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// RFC 7468.
    Pem,
    /// One certificate or key, X.690.
    Der,
    /// RFC 7292.
    Pkcs12,
    /// The Java key store.
    Jks,
}

impl Format {
    /// For people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pem => "pem",
            Self::Der => "der",
            Self::Pkcs12 => "pkcs12",
            Self::Jks => "jks",
        }
    }
}

/// A private key that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// SHA-256 over its SubjectPublicKeyInfo; `None` when it is encrypted or of
    /// a kind that is not known.
    pub spki_sha256: Option<[u8; 32]>,
    /// A passphrase protects it.
    pub encrypted: bool,
}

/// What was recognised in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// How it is written.
    pub format: Format,
    /// In the order of the file; empty when there are more than [`MAX_KEPT`]
    /// and all of them belong to authorities.
    pub certificates: Vec<Certificate>,
    /// How many certificates there are, kept or not.
    pub count: usize,
    /// In the order of the file.
    pub keys: Vec<Key>,
    /// A key store that could not be opened: what is in it is not known.
    pub locked: bool,
    /// There is more than is read.
    pub cut: bool,
}

/// Does the beginning of a file of `size` bytes look like one of the formats?
pub fn may_be(head: &[u8], size: u64) -> Option<Format> {
    match head {
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => Some(Format::Jks),
        [0x30, ..] => der::whole_value(head, size)
            .then(|| if store::is_pkcs12(head) { Format::Pkcs12 } else { Format::Der }),
        _ => pem::begins(head).then_some(Format::Pem),
    }
}

/// Reads a whole file; `None` when there is neither certificate nor key in it.
pub fn read(bytes: &[u8]) -> Option<Content> {
    match may_be(bytes, bytes.len() as u64)? {
        Format::Pem => read_pem(bytes),
        Format::Der => read_der(bytes),
        Format::Pkcs12 => Some(store::read_pkcs12(bytes)),
        Format::Jks => Some(store::read_jks(bytes)),
    }
}

fn read_pem(bytes: &[u8]) -> Option<Content> {
    let mut certificates: Vec<Vec<u8>> = Vec::new();
    let mut keys = Vec::new();
    let mut blocks = 0;
    for block in pem::blocks(bytes).take(MAX_BLOCKS + 1) {
        blocks += 1;
        match block.kind {
            pem::Kind::Certificate => certificates.push(block.bytes.to_vec()),
            pem::Kind::TrustedCertificate => {
                // OpenSSL's own form: the certificate, then what it is trusted for.
                let one = der::first(&block.bytes).unwrap_or_default();
                certificates.push(one.to_vec());
            }
            pem::Kind::EncryptedKey => keys.push(Key { spki_sha256: None, encrypted: true }),
            pem::Kind::Key => {
                keys.push(Key { spki_sha256: key::spki_sha256(&block.bytes), encrypted: false });
            }
        }
    }
    let content = Content { cut: blocks > MAX_BLOCKS, keys, ..kept(Format::Pem, &certificates) };
    (content.count > 0 || !content.keys.is_empty()).then_some(content)
}

fn read_der(bytes: &[u8]) -> Option<Content> {
    let der = der::first(bytes)?;
    if key::is_private(der) {
        let key = Key { spki_sha256: key::spki_sha256(der), encrypted: false };
        return Some(Content { keys: vec![key], ..kept(Format::Der, &[]) });
    }
    if key::is_encrypted(der) {
        let key = Key { spki_sha256: None, encrypted: true };
        return Some(Content { keys: vec![key], ..kept(Format::Der, &[]) });
    }
    let content = kept(Format::Der, &[der.to_vec()]);
    (content.count > 0).then_some(content)
}

/// Certificates as they are kept; what is none is left out.
fn kept(format: Format, certificates: &[Vec<u8>]) -> Content {
    let certificates = certificate::read_all(certificates);
    let count = certificates.len();
    let store = count > MAX_KEPT && certificates.iter().all(|one| one.authority);
    Content {
        format,
        certificates: if store { Vec::new() } else { certificates },
        count,
        keys: Vec::new(),
        locked: false,
        cut: false,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
