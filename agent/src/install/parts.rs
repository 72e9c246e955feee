//! The files of an installation, one by one: where each is, what it holds, whose it is.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{Files, InstallError, KEY_MODE, read};
use crate::config::Config;
use crate::dir::{Access, Content, Dir, DirError};
use crate::discover::{Layout, Located, Place};
use crate::keystore::{self, jks, pkcs12};
use crate::{app, pem};

/// Readable by everybody: certificates are public.
const CERTIFICATE_MODE: u32 = 0o644;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The declared path: the chain, with the key where there is no key file.
    Certificate,
    /// The key alone.
    Key,
    /// The leaf alone, besides.
    Leaf,
    /// What is between leaf and root, besides.
    Chain,
}

impl Role {
    pub(super) const ALL: [Self; 4] = [Self::Certificate, Self::Key, Self::Leaf, Self::Chain];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Leaf => "leaf",
            Self::Chain => "chain",
        }
    }
}

/// One file.
pub(super) struct Part {
    pub(super) role: Role,
    pub(super) located: Located,
    /// Its name in a generation's directory.
    pub(super) name: String,
    /// The directory it lies in.
    pub(super) dir: Dir,
}

impl Part {
    /// Every one, the certificate first.
    pub(super) fn all(config: &Config, place: &Place) -> Result<Vec<Self>, DirError> {
        let home = place.located();
        let roles = [
            (Role::Certificate, Some(home.clone())),
            (Role::Key, place.key_located()),
            (Role::Leaf, place.leaf.clone()),
            (Role::Chain, place.chain.clone()),
        ];
        let declared = roles.into_iter().filter_map(|(role, located)| Some((role, located?)));
        declared
            .map(|(role, located)| {
                let dir = Dir::open_at(config, &located.mount, &located.directory)?;
                // Two directories may have a file of one name.
                let beside = located.mount == home.mount && located.directory == home.directory;
                let name = match beside {
                    true => located.file.clone(),
                    false => format!("{}-{}", role.name(), located.file),
                };
                Ok(Self { role, located, name, dir })
            })
            .collect()
    }

    /// What readers of the path see now.
    pub(super) fn live(&self) -> Result<Option<Content>, DirError> {
        self.dir.read(&self.located.file, pem::MAX_FILE_BYTES)
    }

    /// A modification time for what comes next: now, and at least a second later
    /// than what is there. Programs that compare times must see another one, also
    /// after two renewals in one second and by a clock that was set back.
    pub(super) fn later(&self) -> Result<SystemTime, DirError> {
        let now = Duration::from_secs(u64::try_from(app::now()).unwrap_or(0));
        let now = SystemTime::UNIX_EPOCH + now;
        let there = self.live()?.and_then(|there| there.modified.checked_add(Duration::from_secs(1)));
        Ok(there.map_or(now, |there| there.max(now)))
    }
}

impl Files {
    /// Owner and mode: of the file that is replaced, or what the labels say, or
    /// what the other file of the pair has.
    pub(super) fn access_of(&self, part: &Part) -> Result<Access, DirError> {
        let secret = match part.role {
            Role::Key => true,
            Role::Certificate => !self.wanted.layout.has_key_file(),
            Role::Leaf | Role::Chain => false,
        };
        let mode = if secret { KEY_MODE } else { CERTIFICATE_MODE };
        let mut access = match part.live()? {
            Some(there) => there.access,
            None => self.neighbour(part)?.map_or_else(|| self.own(mode), |near| Access { mode, ..near }),
        };
        if let Some(owner) = self.wanted.owner {
            (access.uid, access.gid) = (owner.uid, owner.gid);
        }
        if let (true, Some(mode)) = (secret, self.wanted.mode) {
            access.mode = mode;
        }
        Ok(access)
    }

    /// Whose the other files are: the next best hint where there is none yet.
    fn neighbour(&self, part: &Part) -> Result<Option<Access>, DirError> {
        for other in self.parts.iter().filter(|other| other.role != part.role) {
            if let Some(there) = other.live()? {
                return Ok(Some(there.access));
            }
        }
        Ok(None)
    }

    /// The agent's own user: root on a host.
    pub(super) fn own(&self, mode: u32) -> Access {
        Access { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode }
    }

    /// The bytes of a file.
    pub(super) fn render(
        &self,
        role: Role,
        chain: &[CertificateDer<'_>],
        key: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, InstallError> {
        let pem = |part: &[CertificateDer<'_>]| {
            Zeroizing::new(pem::certificates(part.iter().map(AsRef::as_ref)).into_bytes())
        };
        let (leaf, rest) = chain.split_at(chain.len().min(1));
        match (role, self.wanted.layout) {
            (Role::Leaf, _) => Ok(pem(leaf)),
            (Role::Chain, _) => Ok(pem(rest)),
            (Role::Key, Layout::Der) => Ok(Zeroizing::new(key.to_vec())),
            (Role::Key, Layout::Pair | Layout::Combined | Layout::Pkcs12 | Layout::Jks) => {
                Ok(Zeroizing::new(pem::private_key(key).as_bytes().to_vec()))
            }
            (Role::Certificate, Layout::Pair) => Ok(pem(chain)),
            (Role::Certificate, Layout::Der) => {
                Ok(Zeroizing::new(leaf.first().map(|leaf| leaf.to_vec()).unwrap_or_default()))
            }
            (Role::Certificate, Layout::Combined) => {
                let (certificates, key) = (pem(chain), pem::private_key(key));
                let mut text = Zeroizing::new(Vec::with_capacity(certificates.len() + key.len()));
                text.extend_from_slice(&certificates);
                text.extend_from_slice(key.as_bytes());
                Ok(text)
            }
            (Role::Certificate, Layout::Pkcs12 | Layout::Jks) => self.key_store(chain, key),
        }
    }

    fn key_store(
        &self,
        chain: &[CertificateDer<'_>],
        key: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, InstallError> {
        let password = read::password(&self.config, &self.place)?;
        let there = self.parts[0].live();
        let there = there.ok().flatten().and_then(|there| read::entries(&there.bytes, Some(&password)).ok());
        // Programs name the entry: it keeps its name.
        let kept = || there.as_ref()?.keys.first()?.alias.clone().filter(|alias| !alias.is_empty());
        let name = || self.label.rsplit('/').next().unwrap_or_default().to_owned();
        let alias = self.wanted.alias.clone().or_else(kept).unwrap_or_else(name);
        let made = match self.wanted.layout {
            Layout::Jks => jks::write(chain, key, &password, &alias, app::now()),
            Layout::Pair | Layout::Combined | Layout::Der | Layout::Pkcs12 => {
                pkcs12::write(chain, key, &password, &alias)
            }
        };
        made.map_err(|source: keystore::KeyStoreError| InstallError::KeyStore {
            path: self.place.id(),
            source,
        })
    }
}
