//! What an installation's certificate is now, in whatever layout it lies.

use reseal_proto::v1::Finding;
use rustls_pki_types::CertificateDer;

use super::{Files, InstallError};
use crate::chain::ChainError;
use crate::config::Config;
use crate::dir::{Dir, DirError};
use crate::discover::{Installation, Layout, Located, Place, finding};
use crate::keystore::{Entries, KeyStoreError, MAX_PASSWORD_BYTES, Password, jks, pkcs12};
use crate::pem::{self, PemError};

/// Why there is no certificate to look at.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("cannot read {0}")]
    File(String, #[source] DirError),
    /// What is in it.
    #[error(transparent)]
    Chain(ChainError),
    /// A key store.
    #[error("cannot open {0}")]
    KeyStore(String, #[source] KeyStoreError),
    /// Its password.
    #[error(transparent)]
    Password(InstallError),
}

impl ReadError {
    /// The id of the finding.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File(_, source) => source.code(),
            Self::Chain(_) => "certificate-unreadable",
            Self::KeyStore(_, KeyStoreError::Password | KeyStoreError::PasswordNeeded) => {
                "password-unreadable"
            }
            Self::KeyStore(..) => "certificate-unreadable",
            Self::Password(_) => "password-unreadable",
        }
    }
}

/// The chain on disk, leaf first; `None` when there is no file.
pub fn chain(
    config: &Config,
    installation: &Installation,
) -> Result<Option<Vec<CertificateDer<'static>>>, ReadError> {
    let place = &installation.place;
    let content = Dir::open(config, place)
        .and_then(|dir| dir.read(&place.certificate, pem::MAX_FILE_BYTES))
        .map_err(|source| ReadError::File(place.id(), source))?;
    let Some(content) = content else { return Ok(None) };
    match installation.wanted.layout {
        Layout::Pair | Layout::Combined => {
            let chain = pem::read_certificates(&content.bytes);
            chain.map(Some).map_err(|source| ReadError::Chain(ChainError::Pem(source)))
        }
        Layout::Der if content.bytes.is_empty() => {
            Err(ReadError::Chain(ChainError::Pem(PemError::NoCertificate)))
        }
        Layout::Der => Ok(Some(vec![CertificateDer::from(content.bytes.to_vec())])),
        Layout::Pkcs12 | Layout::Jks => {
            let password = password(config, place).map_err(ReadError::Password)?;
            let failed = |source| ReadError::KeyStore(place.id(), source);
            let entries = entries(&content.bytes, Some(&password)).map_err(failed)?;
            let chain = entries.chain(installation.wanted.alias.as_deref()).unwrap_or_default();
            if chain.is_empty() {
                return Err(failed(KeyStoreError::Damaged("it has no key with a certificate")));
            }
            Ok(Some(chain.to_vec()))
        }
    }
}

/// Has somebody else changed what was written? Told before a renewal is refused for it.
pub fn changed(config: &Config, installation: &Installation) -> Option<Finding> {
    let unchanged = Files::open(config, installation).and_then(|files| files.refuse_changed());
    let error = unchanged.err().filter(|error| matches!(error, InstallError::Changed { .. }))?;
    Some(finding("changed-by-others", &installation.id, &error.to_string(), "warning"))
}

/// Whichever kind of store it is: what is replaced may be the other one.
pub(super) fn entries(bytes: &[u8], password: Option<&Password>) -> Result<Entries, KeyStoreError> {
    if jks::looks_like(bytes) { jks::read(bytes, password) } else { pkcs12::read(bytes, password) }
}

/// The password of a key store, from its file on the mount.
pub(super) fn password(config: &Config, place: &Place) -> Result<Password, InstallError> {
    let Located { mount, directory, file, .. } = place.password.clone().unwrap_or_default();
    let failed = |source| InstallError::PasswordFile {
        path: place.id(),
        file: place.password.as_ref().map(Located::path).unwrap_or_default(),
        source,
    };
    let dir = Dir::open_at(config, &mount, &directory).map_err(failed)?;
    // Two bytes more for the newline at its end.
    let content = dir.read(&file, MAX_PASSWORD_BYTES + 2).map_err(failed)?;
    let content = content.ok_or_else(|| failed(DirError::MissingFile(dir.path_of(&file))))?;
    Password::read(&content.bytes).map_err(|source| InstallError::KeyStore { path: place.id(), source })
}
