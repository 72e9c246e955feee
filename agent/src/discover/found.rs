//! What was found without being declared. Reported, never touched.

use reseal_proto::v1::Origin;

use super::Endpoint;
use super::formats::{Certificate, Format};
use crate::dir::Access;

/// How a certificate that was found lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lies {
    /// Its key is in another file.
    Pair,
    /// Its key is in the same file.
    Combined,
    /// No key was found for it.
    Certificate,
    /// In a PKCS#12 store.
    Pkcs12,
    /// In a Java key store.
    Jks,
    /// No file of it was found: it is only served.
    Nowhere,
}

impl Lies {
    /// As the inventory writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Combined => "combined",
            Self::Certificate => "certificate",
            Self::Pkcs12 => "pkcs12",
            Self::Jks => "jks",
            Self::Nowhere => "",
        }
    }

    /// Is its private key there?
    pub fn has_key(self) -> bool {
        match self {
            Self::Pair | Self::Combined | Self::Pkcs12 | Self::Jks => true,
            Self::Certificate | Self::Nowhere => false,
        }
    }
}

/// A certificate that nobody declared.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// The file's path on the host; "image:IMAGE:PATH"; "endpoint:CONTAINER:PORT".
    pub id: String,
    /// "<container>/<file name without extension>", for people.
    pub label: String,
    /// File, image or endpoint.
    pub origin: Origin,
    /// Where its key is.
    pub lies: Lies,
    /// Its files; `None` when it is only served.
    pub files: Option<Files>,
    /// `None` for a key store that did not open.
    pub certificate: Option<Certificate>,
    /// Subject of its issuer, when that is an intermediate which was found
    /// elsewhere on this host and is neither in the file nor beside it.
    pub missing_issuer: Option<String>,
    /// Containers that have the file, by name.
    pub users: Vec<User>,
    /// Where it is served, or should be.
    pub endpoints: Vec<SeenAt>,
}

/// An endpoint that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenAt {
    /// Where.
    pub endpoint: Endpoint,
    /// SHA-256 of the leaf that is served there.
    pub served: Vec<u8>,
}

/// Files of a certificate that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Source of the mount, on the host; the layer for an image.
    pub mount: String,
    /// On the host, under the name that programs are likely to use.
    pub certificate: String,
    /// How it is written.
    pub format: Format,
    /// Certificates in the file.
    pub count: usize,
    /// Owner and mode of the certificate file.
    pub access: Access,
    /// The file with its key.
    pub key: Option<KeyFile>,
    /// Other files of the same directory with the same certificate, on the host.
    pub also: Vec<String>,
}

/// A file with a private key in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyFile {
    /// On the host.
    pub path: String,
    /// A passphrase protects the key.
    pub encrypted: bool,
    /// Everybody on the host, or in a container that mounts it, may read it.
    pub open: bool,
    /// Permission bits.
    pub mode: u32,
}

/// A container that has the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub container: String,
    /// Its id now.
    pub container_id: String,
    /// For people.
    pub image: String,
    /// The program that was recognised, or PID 1.
    pub program: String,
    /// "signal HUP" by the table of known programs; "none".
    pub reload: String,
    /// See [`super::Container::running`].
    pub running: bool,
    /// The file inside the container; empty when it was only seen served.
    pub path: String,
}

/// A file with certificates of authorities only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrustFile {
    /// On the host.
    pub path: String,
    /// Certificates in it.
    pub count: usize,
}

impl Discovered {
    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Option<&[u8]> {
        self.certificate.as_ref().map(|certificate| certificate.facts.fingerprint.as_slice())
    }
}
