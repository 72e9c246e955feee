//! CA keys at rest: each under a data key of its own, the data key under a
//! key-encryption key from a file (AES-256-GCM, NIST SP 800-38D).
//!
//! The first file wraps, any of them unwraps, so a KEK is replaced by putting a
//! new one in front. Nothing here is ever logged; `Debug` shows no bytes.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use reseal_proto::facts::sha256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::store::record::WrappedKey;

const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 8;

/// The key-encryption keys of this coordinator.
pub struct Keyring(Vec<Kek>);

struct Kek {
    id: [u8; ID_BYTES],
    key: LessSafeKey,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.0.len())
    }
}

/// Keys could not be read, wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// No file is configured.
    #[error("kek_files is empty: name at least one key-encryption key file in the configuration")]
    Empty,
    /// A file could not be read or written.
    #[error("cannot {operation} key-encryption key {path}")]
    File {
        /// "read", "write".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file's content is no key.
    #[error("key-encryption key {0} is not 64 hexadecimal digits (32 bytes)")]
    Form(PathBuf),
    /// No file unwraps this key.
    #[error(
        "{what} is wrapped by key-encryption key {kek}, which none of kek_files holds: put that file back"
    )]
    Missing {
        /// Whose key it is.
        what: String,
        /// Its id, hex.
        kek: String,
    },
    /// The record was changed or is damaged.
    #[error("{0} does not unwrap: the record or the key-encryption key was changed")]
    Damaged(String),
}

impl Keyring {
    /// Reads every file.
    pub fn load(files: &[PathBuf]) -> Result<Self, KeyringError> {
        if files.is_empty() {
            return Err(KeyringError::Empty);
        }
        files.iter().map(|path| read(path)).collect::<Result<_, _>>().map(Self)
    }

    /// Writes a new key file, 0600; refuses to touch one that is there.
    pub fn create_file(path: &Path) -> Result<(), KeyringError> {
        let error = |source| KeyringError::File { operation: "write", path: path.to_owned(), source };
        let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(random());
        let text = Zeroizing::new(hex::encode(key.as_slice()) + "\n");
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(error)?;
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(error)
    }

    /// Wraps a private key (PKCS#8 DER) with the first KEK.
    pub fn wrap(&self, pkcs8: &[u8]) -> WrappedKey {
        let kek = &self.0[0];
        let mut data_key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(random());
        let cipher = cipher(data_key.as_slice());
        let wrapped = WrappedKey {
            kek_id: kek.id.to_vec(),
            data_key: seal(&kek.key, data_key.as_slice()),
            sealed: seal(&cipher, pkcs8),
        };
        data_key.zeroize();
        wrapped
    }

    /// Unwraps a private key; `what` names its owner in errors.
    pub fn unwrap(&self, what: &str, wrapped: &WrappedKey) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        let kek = self.0.iter().find(|kek| kek.id[..] == wrapped.kek_id[..]).ok_or_else(|| {
            KeyringError::Missing { what: what.to_owned(), kek: hex::encode(&wrapped.kek_id) }
        })?;
        let damaged = || KeyringError::Damaged(what.to_owned());
        let data_key = open(&kek.key, &wrapped.data_key).ok_or_else(damaged)?;
        if data_key.len() != KEY_BYTES {
            return Err(damaged());
        }
        open(&cipher(&data_key), &wrapped.sealed).ok_or_else(damaged)
    }
}

/// Random bytes from the operating system's generator.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn read(path: &Path) -> Result<Kek, KeyringError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|source| KeyringError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    let key =
        hex::decode(text.trim()).map(Zeroizing::new).map_err(|_| KeyringError::Form(path.to_owned()))?;
    if key.len() != KEY_BYTES {
        return Err(KeyringError::Form(path.to_owned()));
    }
    let id = sha256(&key)[..ID_BYTES].try_into().expect("a digest is longer than an id");
    Ok(Kek { id, key: cipher(&key) })
}

fn cipher(key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key"))
}

fn seal(cipher: &LessSafeKey, plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random();
    let mut sealed = plain.to_vec();
    cipher
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .expect("a key is far below the size limit of AES-GCM");
    [&nonce[..], &sealed].concat()
}

fn open(cipher: &LessSafeKey, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let length = cipher.open_in_place(nonce, Aad::empty(), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        Keyring::create_file(&path).unwrap();
        path
    }

    #[test]
    fn any_file_unwraps_and_a_changed_byte_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (keyring(dir.path(), "old"), keyring(dir.path(), "new"));
        let wrapped = Keyring::load(std::slice::from_ref(&old)).unwrap().wrap(b"secret");
        let both = Keyring::load(&[new.clone(), old]).unwrap();
        assert_eq!(both.unwrap("x", &wrapped).unwrap().as_slice(), b"secret");
        assert!(matches!(
            Keyring::load(&[new]).unwrap().unwrap("x", &wrapped),
            Err(KeyringError::Missing { .. })
        ));
        let mut changed = wrapped.clone();
        *changed.sealed.last_mut().unwrap() ^= 1;
        assert!(matches!(both.unwrap("x", &changed), Err(KeyringError::Damaged(_))));
        assert!(!format!("{wrapped:?}").contains(&hex::encode(&wrapped.sealed)[..8]));
    }

    #[test]
    fn a_key_file_is_private_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = keyring(dir.path(), "kek");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Keyring::create_file(&path).is_err());
    }
}
