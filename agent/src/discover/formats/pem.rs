//! PEM blocks (RFC 7468) in any order, among any other text. Pure.
//!
//! Lenient where programs are: headers, spaces and ends of lines of any kind. A
//! block that is damaged is skipped, the others count.

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use memchr::memmem;
use zeroize::Zeroizing;

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";
/// A block with more text is none that we look for, bytes.
const MAX_BODY: usize = 64 * 1024;
/// Some writers leave odd bits at the end.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// X.509.
    Certificate,
    /// `TRUSTED CERTIFICATE` of OpenSSL.
    TrustedCertificate,
    /// PKCS#8, PKCS#1 or SEC1, or one of the kinds that are only counted.
    Key,
    /// With a passphrase; nothing of it is read.
    EncryptedKey,
}

/// A block; zeroized, because it may be a key.
pub struct Block {
    /// What its label says.
    pub kind: Kind,
    /// Empty for an encrypted key.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// Is there a block among the first bytes of a text?
pub fn begins(head: &[u8]) -> bool {
    memmem::find(head, BEGIN).is_some()
}

/// The blocks that are certificates or private keys.
pub fn blocks(text: &[u8]) -> impl Iterator<Item = Block> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = memmem::find(rest, BEGIN)? + BEGIN.len();
            rest = &rest[start..];
            if let Some((block, after)) = block(rest) {
                rest = after;
                return Some(block);
            }
        }
    })
}

/// Behind "-----BEGIN ": a block that counts, and what follows it.
fn block(text: &[u8]) -> Option<(Block, &[u8])> {
    let line = &text[..text.len().min(64)];
    let label = &line[..memmem::find(line, DASHES)?];
    let kind = match label {
        b"CERTIFICATE" | b"X509 CERTIFICATE" => Kind::Certificate,
        b"TRUSTED CERTIFICATE" => Kind::TrustedCertificate,
        b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" | b"DSA PRIVATE KEY" => Kind::Key,
        b"ENCRYPTED PRIVATE KEY" => Kind::EncryptedKey,
        _ => return None,
    };
    let body = &text[label.len() + DASHES.len()..];
    // The first end there is: a block without its own ends at another's beginning.
    let end = memmem::find(body, DASHES)?;
    let (body, after) = body.split_at(end);
    let ended = after[DASHES.len()..].strip_prefix(b"END ")?;
    if !ended.starts_with(label) || body.len() > MAX_BODY {
        return None;
    }
    if kind == Kind::EncryptedKey || memmem::find(body, b"ENCRYPTED").is_some() {
        let block = Block { kind: Kind::EncryptedKey, bytes: Zeroizing::default() };
        return Some((block, after));
    }
    let mut dense = Zeroizing::new(Vec::with_capacity(body.len()));
    dense.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; dense.len() / 4 * 3 + 3]);
    let length = LENIENT.decode_slice(dense.as_slice(), &mut bytes).ok()?;
    bytes.truncate(length);
    Some((Block { kind, bytes }, after))
}
