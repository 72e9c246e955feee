//! Key stores: one file with a key, its chain and a password.
//!
//! [`pkcs12`] (RFC 7292) and [`jks`] (the Java key store of OpenJDK) are read
//! and written here, from bytes to bytes: no file, no clock. [`der`] is the
//! little ASN.1 both need. What comes from a container's mount is hostile:
//! sizes, counts and iterations are bounded, and no input panics. Passwords and
//! keys are zeroized and appear in no error. Called by the installer and by
//! discovery.

pub mod der;
pub mod jks;
pub mod pkcs12;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

/// A password file larger than this is none, bytes.
pub const MAX_PASSWORD_BYTES: usize = 1024;
/// More entries in one store are not read.
const MAX_ENTRIES: usize = 256;
/// A store that wants more rounds of its key derivation would keep the agent busy.
const MAX_ITERATIONS: u32 = 1_000_000;

/// Why bytes are not a key store that can be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyStoreError {
    /// The structure is broken.
    #[error("the key store is damaged: {0}")]
    Damaged(&'static str),
    /// Something that this reader does not know.
    #[error("the key store uses {0}, which is not supported")]
    Unsupported(String),
    /// Over a bound.
    #[error("the key store has more {0} than are read")]
    TooMuch(&'static str),
    /// Nothing in it can be read without one.
    #[error("the key store needs a password: declare password-file")]
    PasswordNeeded,
    /// The integrity check failed.
    #[error("the password does not open the key store, or it was changed")]
    Password,
    /// A password that key stores cannot have.
    #[error("the password file must hold 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8 text, one line")]
    BadPassword,
    /// The cryptographic library refused.
    #[error("the key store cannot be encrypted")]
    Crypto,
}

/// The password of a store; never shown.
pub struct Password(Zeroizing<String>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    /// As a file holds it: one newline at the end (LF or CRLF) is none of it.
    pub fn read(content: &[u8]) -> Result<Self, KeyStoreError> {
        let text = std::str::from_utf8(content).map_err(|_| KeyStoreError::BadPassword)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let good = (1..=MAX_PASSWORD_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
        if !good {
            return Err(KeyStoreError::BadPassword);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// As PBKDF2 takes it.
    fn utf8(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Two bytes for each character, most significant first.
    fn utf16(&self) -> Zeroizing<Vec<u8>> {
        // Never more bytes than twice the UTF-8 form, and two for an end mark: no growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.0.len() * 2 + 2));
        self.0.encode_utf16().for_each(|unit| bytes.extend_from_slice(&unit.to_be_bytes()));
        bytes
    }
}

/// What a store holds.
#[derive(Default)]
pub struct Entries {
    /// Private keys with their chains.
    pub keys: Vec<KeyEntry>,
    /// Certificates without a key.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A private key and its certificates.
pub struct KeyEntry {
    /// Its name in the store.
    pub alias: Option<String>,
    /// PKCS#8, where the password was given.
    pub key: Option<Zeroizing<Vec<u8>>>,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Entries {
    /// The chain a server would send: of the entry of that name, or of the only one.
    pub fn chain(&self, alias: Option<&str>) -> Option<&[CertificateDer<'static>]> {
        let named =
            alias.and_then(|alias| self.keys.iter().find(|entry| entry.alias.as_deref() == Some(alias)));
        named.or(self.keys.first()).map(|entry| entry.chain.as_slice())
    }
}

#[cfg(test)]
mod tests;
