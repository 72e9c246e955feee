//! Why nothing was installed, or why what was there is back.

use crate::dir::DirError;
use crate::inside::Unreadable;
use crate::keystore::KeyStoreError;

/// Nothing was installed, or what was there is back.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file operation.
    #[error("cannot install {path}")]
    Files {
        /// The certificate's path on the host.
        path: String,
        /// What failed.
        #[source]
        source: DirError,
    },
    /// The generation has no key, or a damaged one.
    #[error("generation {generation} of {path} has no readable key; order the certificate again")]
    Key {
        /// The certificate's path on the host.
        path: String,
        /// Which.
        generation: String,
    },
    /// Somebody else changed the agent's own links.
    #[error(
        "{path} has a link `current` to {target:?}, which the agent did not make; remove .reseal there and order the certificate again"
    )]
    Foreign {
        /// The certificate's path on the host.
        path: String,
        /// Where it points.
        target: String,
    },
    /// Somebody else changed a file since it was written.
    #[error(
        "{path} is not what was last written there: somebody else changed it, and it is left alone; to let it be replaced (it is kept until the new one is proved), remove {marker} and order the certificate again"
    )]
    Changed {
        /// On the host.
        path: String,
        /// What to remove.
        marker: String,
    },
    /// A container cannot read the key.
    #[error("the new key would be of no use: {0}")]
    KeyUnreadable(#[source] Unreadable),
    /// A file that is mounted by itself was replaced on the host.
    #[error(
        "container {container} sees another file at {path} than the host: the file was replaced after the container was started; restart the container, or mount the directory"
    )]
    Stale {
        /// Its name.
        container: String,
        /// In the container.
        path: String,
    },
    /// The password of a key store.
    #[error("the password of {path} cannot be had from {file}")]
    PasswordFile {
        /// The store's path on the host.
        path: String,
        /// The password file's.
        file: String,
        /// What failed.
        #[source]
        source: DirError,
    },
    /// The key store, or its password.
    #[error("cannot make the key store {path}")]
    KeyStore {
        /// Its path on the host.
        path: String,
        /// Why.
        #[source]
        source: KeyStoreError,
    },
    /// In the middle of writing files in place something failed, and again when it was undone.
    #[error(
        "{path} and its key do not belong together now: writing failed, and so did bringing back what was there ({undo}); make the disk writable and order the certificate again"
    )]
    Torn {
        /// The certificate's path on the host.
        path: String,
        /// What failed in undoing it.
        undo: String,
        /// What failed first.
        #[source]
        source: DirError,
    },
}

impl InstallError {
    /// A stable word for failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Files { source, .. } => source.code(),
            Self::Key { .. } => "key-missing",
            Self::Foreign { .. } => "foreign-link",
            Self::Changed { .. } => "changed-by-others",
            Self::KeyUnreadable(_) => "key-unreadable",
            Self::Stale { .. } => "bind-mounted-file",
            Self::PasswordFile { .. } => "password-unreadable",
            Self::KeyStore { source: KeyStoreError::BadPassword, .. } => "password-unreadable",
            Self::KeyStore { .. } => "key-store",
            Self::Torn { .. } => "torn",
        }
    }
}
