//! The root's part, away from the coordinator: sign a prepared authority.
//!
//! Run by `reseal authority prepare` on the machine that holds the root key for
//! the moment. The coordinator sends a CSR and gets a certificate; the root key
//! file is read here, used once and forgotten.

use std::path::{Path, PathBuf};

use prost::Message as _;
use rcgen::PublicKeyData as _;

use super::keyring::{Keyring, KeyringError};
use super::profile::{self, ProfileError};
use crate::domain::csr::{CsrError, Request};
use crate::store::record::WrappedKey;

/// What the root key file holds.
#[derive(Clone, PartialEq, prost::Message)]
struct RootFile {
    /// The root certificate, DER.
    #[prost(bytes = "vec", tag = "1")]
    certificate: Vec<u8>,
    /// Its key, wrapped by the key-encryption key of the day of `reseal init`.
    #[prost(message, optional, tag = "2")]
    key: Option<WrappedKey>,
    /// The fleet.
    #[prost(string, tag = "3")]
    fleet: String,
}

/// The ceremony failed.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// The root key file could not be read or written.
    #[error("cannot {operation} root key file {path}")]
    File {
        /// "read", "write".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not what `reseal init` wrote.
    #[error("{0} is not a root key file of reseal init")]
    Form(PathBuf),
    /// The key does not unwrap.
    #[error("cannot unwrap the root key")]
    Keyring(#[from] KeyringError),
    /// The coordinator's CSR is not good.
    #[error("the coordinator sent a bad request")]
    Csr(#[from] CsrError),
    /// Signing failed.
    #[error("cannot sign")]
    Profile(#[from] ProfileError),
}

/// Writes the root key file, 0600, never over an existing one.
pub fn write_root(
    path: &Path,
    fleet: &str,
    certificate: &[u8],
    pkcs8: &[u8],
    keyring: &Keyring,
) -> Result<(), CeremonyError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let error = |source| CeremonyError::File { operation: "write", path: path.to_owned(), source };
    let file = RootFile {
        certificate: certificate.to_vec(),
        key: Some(keyring.wrap(pkcs8)),
        fleet: fleet.to_owned(),
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    let mut out =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
    out.write_all(&file.encode_to_vec()).and_then(|()| out.sync_all()).map_err(error)
}

/// Signs the CSR of authority `slot` with the root of `root_file`; gives its certificate, DER.
pub fn sign_authority(
    slot: &str,
    csr: &[u8],
    root_file: &Path,
    kek_files: &[PathBuf],
    now: i64,
) -> Result<Vec<u8>, CeremonyError> {
    let bytes = std::fs::read(root_file).map_err(|source| CeremonyError::File {
        operation: "read",
        path: root_file.to_owned(),
        source,
    })?;
    let form = || CeremonyError::Form(root_file.to_owned());
    let root = RootFile::decode(&bytes[..]).map_err(|_| form())?;
    let wrapped = root.key.ok_or_else(form)?;
    let pkcs8 = Keyring::load(kek_files)?.unwrap("the root key", &wrapped)?;
    let issuer = profile::ca("managed root", &root.certificate, &pkcs8)?;
    let request = Request::from_der(csr)?;
    let name = profile::authority_name(&root.fleet, slot);
    Ok(profile::intermediate(&name, &request.spki, &issuer, now)?)
}

/// A CSR for a new authority key; its names do not matter, the root chooses them.
pub fn authority_csr(key: &rcgen::KeyPair) -> Result<Vec<u8>, ProfileError> {
    let error = |source| ProfileError { what: "authority request", source };
    debug_assert!(!key.der_bytes().is_empty());
    let params = rcgen::CertificateParams::default();
    Ok(params.serialize_request(key).map_err(error)?.der().to_vec())
}
