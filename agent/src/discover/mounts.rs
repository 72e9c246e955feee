//! A path inside a container → mount and path on the host. Pure.
//!
//! The mount with the longest destination that contains the path decides, as
//! it does in the kernel. What is not on a bind or volume mount is in the
//! container's own layer and cannot be managed.

/// A mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the host; empty for kinds that have none.
    pub source: String,
    /// In the container.
    pub destination: String,
    /// "bind", "volume", "tmpfs" ...
    pub kind: String,
}

/// Where a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The mount's source.
    pub mount: String,
    /// Directory beneath it; empty for the mount itself.
    pub directory: String,
    /// The file name.
    pub file: String,
}

/// Why a path cannot be managed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// In the container's own layer.
    #[error(
        "{path} is on no mount of the container, so it would be lost with the container; mount a directory there"
    )]
    NotMounted {
        /// Inside the container.
        path: String,
    },
    /// The file itself is the mount.
    #[error(
        "{path} is a single-file bind mount: the container keeps the old file when it is replaced; mount its directory instead"
    )]
    SingleFile {
        /// Inside the container.
        path: String,
    },
    /// tmpfs and the like.
    #[error(
        "{path} is on a {kind} mount, which has no files on the host; mount a directory or a volume there"
    )]
    Kind {
        /// Inside the container.
        path: String,
        /// As the engine calls it.
        kind: String,
    },
}

impl MountError {
    /// The id of the finding.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SingleFile { .. } => "bind-mounted-file",
            Self::NotMounted { .. } | Self::Kind { .. } => "path-not-mounted",
        }
    }
}

/// Finds `path`, which is absolute and has plain components only.
pub fn locate(mounts: &[Mount], path: &str) -> Result<Located, MountError> {
    let (mount, below) = mounts
        .iter()
        .filter_map(|mount| beneath(&mount.destination, path).map(|below| (mount, below)))
        .max_by_key(|(mount, _)| mount.destination.trim_end_matches('/').len())
        .ok_or_else(|| MountError::NotMounted { path: path.to_owned() })?;
    if !matches!(mount.kind.as_str(), "bind" | "volume") || !mount.source.starts_with('/') {
        return Err(MountError::Kind { path: path.to_owned(), kind: mount.kind.clone() });
    }
    if below.is_empty() {
        return Err(MountError::SingleFile { path: path.to_owned() });
    }
    let (directory, file) = below.rsplit_once('/').unwrap_or(("", below));
    Ok(Located { mount: mount.source.clone(), directory: directory.to_owned(), file: file.to_owned() })
}

/// What is left of `path` beneath `destination`; whole components only.
fn beneath<'a>(destination: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(destination.trim_end_matches('/'))?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mount(source: &str, destination: &str, kind: &str) -> Mount {
        Mount { source: source.into(), destination: destination.into(), kind: kind.into() }
    }

    #[test]
    fn the_deepest_mount_decides() {
        let mounts = [mount("/srv/all", "/etc", "bind"), mount("/srv/tls", "/etc/tls", "volume")];
        assert_eq!(
            locate(&mounts, "/etc/tls/sub/a.crt").unwrap(),
            Located { mount: "/srv/tls".into(), directory: "sub".into(), file: "a.crt".into() }
        );
        assert_eq!(locate(&mounts, "/etc/tlsx/a.crt").unwrap().mount, "/srv/all");
    }

    #[test]
    fn what_cannot_be_managed() {
        let mounts = [mount("/srv/a.crt", "/tls/a.crt", "bind"), mount("", "/run", "tmpfs")];
        let code = |path| locate(&mounts, path).unwrap_err().code();
        assert_eq!(code("/tls/a.crt"), "bind-mounted-file");
        assert_eq!(code("/tls/b.crt"), "path-not-mounted");
        assert_eq!(code("/run/b.crt"), "path-not-mounted");
    }

    proptest! {
        #[test]
        fn source_and_rest_are_the_path(parts in proptest::collection::vec("[a-z]{1,3}", 2..6), cut in 1usize..5) {
            let cut = cut.min(parts.len() - 1);
            let destination = format!("/{}", parts[..cut].join("/"));
            let path = format!("/{}", parts.join("/"));
            let located = locate(&[mount("/m", &destination, "bind")], &path).unwrap();
            let rest = if located.directory.is_empty() { located.file.clone() } else { format!("{}/{}", located.directory, located.file) };
            prop_assert_eq!(format!("{destination}/{rest}"), path);
        }
    }
}
