//! The operator's credentials file: who the operator is, and where the coordinators are.
//!
//! JSON, mode 0600, with the control-plane CA, the operator's certificate and its
//! private key as PEM. `reseal init` and `reseal operator add` write it, every
//! command that talks to a coordinator reads it. The key is in no `Debug`, no
//! error and no output.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::exit::CliError;
use super::file::NewFile;

/// The environment variable that names the file.
pub(crate) const ENVIRONMENT: &str = "RESEAL_CREDENTIALS";
/// A file larger than this is something else, bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    /// The fleet's name.
    pub(crate) fleet: String,
    /// "HOST:PORT" of each coordinator, tried in order.
    pub(crate) coordinators: Vec<String>,
    /// The operator's name.
    pub(crate) operator: String,
    /// Control-plane CA certificate, PEM.
    pub(crate) ca: String,
    /// The operator's certificate, PEM, leaf first.
    pub(crate) certificate: String,
    /// Its private key, PKCS#8 PEM.
    pub(crate) key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("fleet", &self.fleet)
            .field("operator", &self.operator)
            .field("coordinators", &self.coordinators)
            .finish_non_exhaustive()
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Credentials {
    /// Reads the file; `None` looks at `~/.config/reseal/operator.json`.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, CliError> {
        let path = path.map_or_else(default_path, Path::to_owned);
        let shown = path.display();
        let unreadable = |why: String| {
            CliError::failed(
                format!("cannot read the operator's credentials {shown}: {why}"),
                format!(
                    "name the file with --credentials or {ENVIRONMENT}; `reseal init` and `reseal operator add` make one"
                ),
            )
        };
        let facts = std::fs::metadata(&path).map_err(|error| unreadable(error.to_string()))?;
        if facts.len() > MAX_BYTES {
            return Err(unreadable(format!("{} bytes is too much for it", facts.len())));
        }
        if facts.permissions().mode() & 0o077 != 0 {
            return Err(CliError::failed(
                format!("the operator's credentials {shown} are open to others"),
                format!(
                    "take it back with `chmod 600 {shown}`; if others could read it, have the operator removed and added again"
                ),
            ));
        }
        let mut text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
        // serde_json names line and column, never the value.
        let parsed = serde_json::from_str::<Self>(&text)
            .map_err(|error| unreadable(format!("line {}: not a credentials file", error.line())));
        text.zeroize();
        let credentials = parsed?;
        if credentials.coordinators.is_empty() {
            return Err(unreadable("it names no coordinator".into()));
        }
        Ok(credentials)
    }

    /// The control-plane CA certificate.
    pub(crate) fn anchor(&self) -> Result<CertificateDer<'static>, CliError> {
        CertificateDer::from_pem_slice(self.ca.as_bytes()).map_err(|error| broken("ca", &error))
    }

    /// The TLS identity.
    pub(crate) fn identity(&self) -> Result<reseal_proto::channel::Credentials, CliError> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| broken("certificate", &error))?;
        let key =
            PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| broken("key", &error))?;
        Ok(reseal_proto::channel::Credentials { chain, key })
    }

    /// Writes the file; reserve it, mode 0600, before there is a key to lose.
    pub(crate) fn write(&self, mut file: NewFile) -> Result<(), CliError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|error| CliError::Other(error.into()))?;
        text.push('\n');
        let written = file.write(text.as_bytes());
        text.zeroize();
        written?;
        file.keep()
    }
}

/// A DER document as PEM (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn default_path() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| home.join(".config"));
    config.join("reseal").join("operator.json")
}

fn broken(field: &str, error: &rustls_pki_types::pem::Error) -> CliError {
    CliError::failed(
        format!("the credentials file has no usable {field:?}: {error:?}"),
        "an admin makes a new one with `reseal operator add`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Credentials {
        Credentials {
            fleet: "demo".into(),
            coordinators: vec!["127.0.0.1:7443".into()],
            operator: "alice".into(),
            ca: pem("CERTIFICATE", &[1; 100]),
            certificate: String::new(),
            key: "SECRET".into(),
        }
    }

    #[test]
    fn comes_back_whole_and_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alice.json");
        sample().write(NewFile::reserve(&path, 0o600).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let back = Credentials::read(Some(&path)).unwrap();
        assert_eq!((back.operator.as_str(), back.key.as_str()), ("alice", "SECRET"));
        assert_eq!(back.anchor().unwrap().as_ref(), [1; 100]);
    }

    #[test]
    fn an_open_or_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        sample().write(NewFile::reserve(&path, 0o600).unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Credentials::read(Some(&path)).unwrap_err().for_person();
        assert!(error.contains("chmod 600"), "{error}");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "{\"key\": \"SECRET\"").unwrap();
        let error = Credentials::read(Some(&path)).unwrap_err().for_person();
        assert!(error.contains("not a credentials file") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        assert!(!format!("{:?}", sample()).contains("SECRET"));
    }
}
