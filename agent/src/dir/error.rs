//! What can go wrong with a file, told for people and by a stable word.

use rustix::io::Errno;

/// A file operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The directory is not there.
    #[error("directory {0} does not exist on the host; create it or correct the label")]
    Missing(String),
    /// A file is not there.
    #[error("{0} does not exist on the host; create it or correct the label")]
    MissingFile(String),
    /// A link, or `..`, leads out of the mount.
    #[error(
        "{0} leads out of its mount through a symbolic link, where nothing is followed; mount the directory that holds both the link and what it points to"
    )]
    Escapes(String),
    /// Everybody may write there.
    #[error("directory {0} is writable by everybody, who could swap the key; chmod o-w it")]
    WorldWritable(String),
    /// The mount's source is not a directory (any more).
    #[error("{0} is a file and no directory; correct the mount")]
    NoDirectory(String),
    /// A file that is mounted by itself is a link on the host.
    #[error(
        "{0} is mounted by itself and is a link on the host: what it points to belongs to somebody else and is not written; mount the directory instead"
    )]
    LinkedFile(String),
    /// A file is larger than what is accepted.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// On the host.
        path: String,
        /// Bytes.
        limit: usize,
    },
    /// Not a regular file where one was expected.
    #[error("{0} is neither a file nor a link to one")]
    NotAFile(String),
    /// No space, or the quota is used up.
    #[error("no space left to {operation} {path}; nothing was changed")]
    NoSpace {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
    },
    /// The file system is mounted read-only on the host.
    #[error("cannot {operation} {path}: its file system is read-only on the host")]
    ReadOnly {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
    },
    /// Anything else.
    #[error("cannot {operation} {path}")]
    Io {
        /// "write" ...
        operation: &'static str,
        /// On the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DirError {
    /// A stable word for findings and failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing-directory",
            Self::MissingFile(_) => "missing-file",
            Self::Escapes(_) => "path-escapes",
            Self::WorldWritable(_) => "world-writable",
            Self::NoDirectory(_) => "missing-directory",
            Self::LinkedFile(_) => "bind-mounted-file",
            Self::TooLarge { .. } => "file-too-large",
            Self::NotAFile(_) => "not-a-file",
            Self::NoSpace { .. } => "no-space",
            Self::ReadOnly { .. } => "read-only",
            Self::Io { .. } => "io",
        }
    }

    /// Does the place take no files of ours, whatever they are?
    pub fn is_refusal(&self) -> bool {
        let denied = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
        matches!(self, Self::ReadOnly { .. }) || matches!(self, Self::Io { source, .. } if denied(source))
    }

    pub(super) fn from_errno(operation: &'static str, path: String, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { operation, path },
            Errno::ROFS => Self::ReadOnly { operation, path },
            Errno::XDEV | Errno::LOOP => Self::Escapes(path),
            _ => Self::Io { operation, path, source: errno.into() },
        }
    }
}
