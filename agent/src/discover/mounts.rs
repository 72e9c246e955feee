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
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// The mount's source; of a single file that is mounted, the directory it lies in.
    pub mount: String,
    /// Directory beneath it; empty for the mount itself.
    pub directory: String,
    /// The file name.
    pub file: String,
    /// The file itself is what is mounted: a container goes on seeing it when its
    /// name is given to another file.
    pub single: bool,
}

impl Located {
    /// Its path on the host.
    pub fn path(&self) -> String {
        let mount = self.mount.trim_end_matches('/');
        if self.directory.is_empty() {
            format!("{mount}/{}", self.file)
        } else {
            format!("{mount}/{}/{}", self.directory, self.file)
        }
    }
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
    /// Two files that must change at once are on two mounts.
    #[error(
        "{path} and {other} are on two mounts, so no single step could change both: mount one directory that holds both"
    )]
    Apart {
        /// Inside the container.
        path: String,
        /// Likewise.
        other: String,
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
            Self::Apart { .. } => "split-pair",
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
        let (directory, file) = mount.source.rsplit_once('/').unwrap_or(("", &mount.source));
        let directory = if directory.is_empty() { "/" } else { directory };
        let (mount, file) = (directory.to_owned(), file.to_owned());
        return Ok(Located { mount, directory: String::new(), file, single: true });
    }
    let (directory, file) = below.rsplit_once('/').unwrap_or(("", below));
    Ok(Located {
        mount: mount.source.clone(),
        directory: directory.to_owned(),
        file: file.to_owned(),
        single: false,
    })
}

/// Sources that hold the whole system: who mounts one of them looks at the host, and is
/// no user of a certificate that happens to lie there.
const WHOLE: [&str; 10] = [
    "/",
    "/etc",
    "/home",
    "/opt",
    "/root",
    "/usr",
    "/var",
    "/var/lib",
    "/var/lib/docker",
    "/var/lib/docker/volumes",
];

/// Where a container uses a file of the host, if it does: where it sees it, but for a
/// mount of the whole system.
pub fn used_at(mounts: &[Mount], path: &str) -> Option<String> {
    through(mounts, mounts.iter().filter(|mount| !WHOLE.contains(&mount.source.as_str())), path)
}

/// Where a container sees a file of the host, if it does: its mounts the other way round.
pub fn seen_at(mounts: &[Mount], path: &str) -> Option<String> {
    through(mounts, mounts.iter(), path)
}

fn through<'a>(mounts: &[Mount], candidates: impl Iterator<Item = &'a Mount>, path: &str) -> Option<String> {
    candidates
        .filter_map(|mount| {
            let below = beneath(&mount.source, path)?;
            let destination = mount.destination.trim_end_matches('/');
            Some(if below.is_empty() { destination.to_owned() } else { format!("{destination}/{below}") })
        })
        // Another mount may lie over it.
        .find(|inside| locate(mounts, inside).is_ok_and(|located| located.path() == path))
}

/// What is left of `path` beneath `destination`; whole components only.
pub(super) fn beneath<'a>(destination: &str, path: &'a str) -> Option<&'a str> {
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
            Located {
                mount: "/srv/tls".into(),
                directory: "sub".into(),
                file: "a.crt".into(),
                single: false
            }
        );
        assert_eq!(locate(&mounts, "/etc/tlsx/a.crt").unwrap().mount, "/srv/all");
    }

    #[test]
    fn what_cannot_be_managed() {
        let mounts = [mount("/srv/a.crt", "/tls/a.crt", "bind"), mount("", "/run", "tmpfs")];
        let code = |path| locate(&mounts, path).unwrap_err().code();
        assert_eq!(code("/tls/b.crt"), "path-not-mounted");
        assert_eq!(code("/run/b.crt"), "path-not-mounted");
    }

    #[test]
    fn a_single_file_lies_in_its_own_directory() {
        let mounts = [mount("/srv/a/site.crt", "/tls/cert.pem", "bind"), mount("/site.crt", "/b", "bind")];
        let found = locate(&mounts, "/tls/cert.pem").unwrap();
        assert_eq!(found.path(), "/srv/a/site.crt");
        assert!(found.single && found.mount == "/srv/a" && found.directory.is_empty());
        let found = locate(&mounts, "/b").unwrap();
        assert_eq!((found.path().as_str(), found.mount.as_str()), ("/site.crt", "/"));
    }

    #[test]
    fn a_file_of_the_host_is_found_in_a_container() {
        let mounts = [
            mount("/srv/tls", "/etc/tls", "bind"),
            mount("/srv/other", "/etc/tls/sub", "bind"),
            mount("/", "/host", "bind"),
        ];
        assert_eq!(used_at(&mounts, "/srv/tls/a.crt").as_deref(), Some("/etc/tls/a.crt"));
        assert_eq!(used_at(&mounts, "/srv/tls/sub/a.crt"), None, "another mount lies over it");
        assert_eq!(used_at(&mounts, "/srv/tlsx/a.crt"), None);
        assert_eq!(used_at(&mounts, "/root/a.crt"), None, "the whole host is mounted: no user");
    }

    proptest! {
        #[test]
        fn there_and_back(parts in proptest::collection::vec("[a-z]{1,3}", 1..4)) {
            let mounts = [mount("/srv/m", "/in", "volume")];
            let path = format!("/srv/m/{}", parts.join("/"));
            let inside = used_at(&mounts, &path).unwrap();
            prop_assert_eq!(locate(&mounts, &inside).unwrap().path(), path);
        }

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
