//! Certificates and keys in images, and in what containers wrote themselves.
//!
//! The engine says in which directories of the host the layers of a container
//! lie; each is walked once, because a layer never changes. Upper layers hide
//! what lower ones hold, and whiteouts take it away. Where the engine does not
//! say, the file system of a running container is walked as its first process
//! sees it. What the distribution and its packages bring along is known by its
//! place and is not found. Called by [`super::search`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use reseal_proto::v1::Origin;
use rustix::io::Errno;

use super::files::cache::Cache;
use super::files::walk::{Limits, Root, walk_as};
use super::files::{File, Mounted};
use super::found::{Discovered, KeyFile, Lies};
use super::pairing::{self, pair};
use super::{Container, mounts};

/// Hex digits of an image's id that people know it by.
const SHORT: usize = 12;
/// Trust stores and what belongs to them, wherever a distribution keeps them.
const TRUST: [&str; 9] = [
    "etc/ssl/certs",
    "etc/pki/ca-trust",
    "etc/pki/tls/certs",
    "etc/pki/java",
    "etc/ca-certificates",
    "usr/share/ca-certificates",
    "usr/local/share/ca-certificates",
    "usr/share/pki",
    "usr/lib/ssl",
];
/// Host keys of SSH are a matter of their own.
const NOT_TLS: [&str; 1] = ["etc/ssh"];
/// Directories of packages with samples of theirs.
const SAMPLES: [&str; 11] = [
    "test",
    "tests",
    "testdata",
    "test-data",
    "testing",
    "fixtures",
    "example",
    "examples",
    "doc",
    "docs",
    "demos",
];
/// Where packages are.
const PACKAGES: [&str; 4] = ["usr", "opt", "site-packages", "node_modules"];

/// What was found, and what ended the search early.
#[derive(Clone, Debug, Default)]
pub struct Baked {
    /// By id.
    pub discovered: BTreeMap<String, Discovered>,
    /// Keys in images whose certificate was not found.
    pub keys: Vec<KeyFile>,
    /// Containers whose file system was not seen, and why.
    pub unseen: BTreeMap<String, String>,
    /// Files that were looked at.
    pub files: usize,
}

/// Remembers layers.
#[derive(Debug, Default)]
pub struct Images {
    layers: BTreeMap<String, Arc<Mounted>>,
    /// Upper layers and whole file systems, by the container's id.
    written: BTreeMap<String, (Cache, Arc<Mounted>)>,
}

/// How to open a directory of the host.
pub type Open<'a> = &'a dyn Fn(&str) -> Result<OwnedFd, Errno>;

impl Images {
    /// Looks into the images of all containers: at new layers, and at what changed
    /// containers wrote. `now` is the wall clock, seconds since the Unix epoch.
    pub fn look(
        &mut self,
        containers: &[Container],
        changed: Option<&BTreeSet<String>>,
        limits: Limits,
        open: Open<'_>,
        now: i64,
    ) -> Baked {
        let mut baked = Baked::default();
        self.forget(containers);
        let mut images: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
        for container in containers {
            images.entry(&container.image_id).or_default().push(container);
        }
        for (image, of_image) in images {
            let mut lower: Option<Arc<Mounted>> = None;
            for container in of_image.iter().filter(|one| !one.layers.lower.is_empty()) {
                if lower.is_none() {
                    lower = self.image(image, container, limits, open, now, &mut baked).map(Arc::new);
                }
                let again = changed.is_none_or(|changed| changed.contains(&container.id));
                let source = format!("container:{}:", container.name);
                let upper = container.layers.upper.as_str();
                let written = self.written(container, upper, Root::Layer, &source, again, limits, open, now);
                match written {
                    Ok((written, looked_at)) => {
                        baked.files += looked_at;
                        let parts: Vec<_> = lower.iter().cloned().chain([written]).collect();
                        take(&parts, std::slice::from_ref(*container), &mut baked);
                    }
                    // Not there while nothing was written.
                    Err(Errno::NOENT) => {}
                    Err(errno) => unseen(&mut baked, container, &std::io::Error::from(errno).to_string()),
                }
            }
            if let Some(lower) = lower {
                take(&[lower], &of_image, &mut baked);
            }
            // Without its layers, as the container itself sees it.
            for container in of_image.iter().filter(|one| one.layers.lower.is_empty()) {
                if container.pid == 0 {
                    unseen(
                        &mut baked,
                        container,
                        "the engine does not say where its files are, and it does not run",
                    );
                    continue;
                }
                let root = format!("/proc/{}/root", container.pid);
                // A process of the host itself has no image.
                if is_same(&root, open) {
                    continue;
                }
                let again = changed.is_none_or(|changed| changed.contains(&container.id));
                let source = image_name(image);
                let seen =
                    self.written(container, &root, Root::Container, &source, again, limits, &open_here, now);
                match seen {
                    Ok((seen, looked_at)) => {
                        baked.files += looked_at;
                        take(&[seen], std::slice::from_ref(container), &mut baked);
                    }
                    Err(errno) => unseen(&mut baked, container, &std::io::Error::from(errno).to_string()),
                }
            }
        }
        baked
    }

    /// What no container has any more.
    fn forget(&mut self, containers: &[Container]) {
        let layers: HashSet<&String> = containers.iter().flat_map(|one| &one.layers.lower).collect();
        self.layers.retain(|path, _| layers.contains(path));
        self.written.retain(|id, _| containers.iter().any(|one| one.id == *id));
    }

    /// All layers of an image as one.
    fn image(
        &mut self,
        image: &str,
        container: &Container,
        limits: Limits,
        open: Open<'_>,
        now: i64,
        baked: &mut Baked,
    ) -> Option<Mounted> {
        let mut whole = Mounted { source: image_name(image), ..Mounted::default() };
        let mut hidden = Hidden::default();
        for path in &container.layers.lower {
            let layer = match self.layers.get(path) {
                Some(layer) => layer.clone(),
                None => {
                    let root = match open(path) {
                        Ok(root) => root,
                        Err(errno) => {
                            let why = format!("{path}: {}", std::io::Error::from(errno));
                            unseen(baked, container, &why);
                            return None;
                        }
                    };
                    let mut layer = walk_as(Root::Layer, &root, "", &[], limits, &mut Cache::default(), now);
                    layer.files.retain(|file| !is_known(&file.path, file));
                    layer.links.clear();
                    baked.files += layer.looked_at;
                    if let Some(bound) = layer.bounds.first() {
                        unseen(baked, container, &super::search::told(bound, limits));
                    }
                    let layer = Arc::new(layer);
                    self.layers.insert(path.clone(), layer.clone());
                    layer
                }
            };
            whole.files.extend(layer.files.iter().filter(|file| !hidden.hides(&file.path)).cloned());
            hidden.add(&layer);
        }
        Some(whole)
    }

    /// What lies in `directory`, which is the container's own; how many files were looked at.
    #[allow(clippy::too_many_arguments)]
    fn written(
        &mut self,
        container: &Container,
        directory: &str,
        kind: Root,
        source: &str,
        again: bool,
        limits: Limits,
        open: Open<'_>,
        now: i64,
    ) -> Result<(Arc<Mounted>, usize), Errno> {
        if let Some((_, known)) = self.written.get(&container.id).filter(|_| !again) {
            return Ok((known.clone(), 0));
        }
        if directory.is_empty() {
            return Err(Errno::NOENT);
        }
        let root = open(directory)?;
        let (mut cache, _) = self.written.remove(&container.id).unwrap_or_default();
        let mut found = walk_as(kind, &root, source, &[], limits, &mut cache, now);
        found.files.retain(|file| !is_known(&file.path, file));
        let looked_at = found.looked_at;
        let found = Arc::new(found);
        self.written.insert(container.id.clone(), (cache, found.clone()));
        Ok((found, looked_at))
    }
}

fn open_here(path: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags};
    // `root` is a link of the kernel, and leads into the container.
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Is it the host's own file system?
fn is_same(root: &str, open: Open<'_>) -> bool {
    let place = |fd: OwnedFd| rustix::fs::fstat(&fd).map(|stat| (stat.st_dev, stat.st_ino));
    match (open_here(root).and_then(place), open("/").and_then(place)) {
        (Ok(root), Ok(host)) => root == host,
        (Err(_), _) | (_, Err(_)) => false,
    }
}

fn image_name(image: &str) -> String {
    format!("image:{}:", image.get(..SHORT).unwrap_or(image))
}

fn unseen(baked: &mut Baked, container: &Container, why: &str) {
    baked.unseen.entry(container.name.clone()).or_insert_with(|| why.to_owned());
}

/// Paths that layers further up hold or take away.
#[derive(Default)]
struct Hidden {
    paths: HashSet<String>,
    opaque: Vec<String>,
}

impl Hidden {
    fn hides(&self, path: &str) -> bool {
        let beneath = |directory: &String| {
            directory.is_empty()
                || path.strip_prefix(directory.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.paths.contains(path)
            || self.opaque.iter().any(beneath)
            // A directory that was taken away.
            || path.match_indices('/').any(|(at, _)| self.paths.contains(&path[..at]))
    }

    fn add(&mut self, layer: &Mounted) {
        self.paths.extend(layer.files.iter().map(|file| file.path.clone()));
        self.paths.extend(layer.whiteouts.iter().cloned());
        self.opaque.extend(layer.opaque.iter().cloned());
    }
}

/// Does the distribution or a package bring it along?
fn is_known(path: &str, file: &File) -> bool {
    let beneath = |directory: &&str| mounts::beneath(directory, path).is_some();
    if NOT_TLS.iter().any(beneath) || path.ends_with("/cacerts") {
        return true;
    }
    let content = &file.content;
    // A key, or a certificate of a program, in one of these is somebody's.
    let trust = content.keys.is_empty()
        && !content.locked
        && content.certificates.iter().all(|one| one.authority || one.self_signed);
    if trust && (TRUST.iter().any(beneath) || content.certificates.len() != 1) {
        return true;
    }
    let mut parts = path.split('/').rev().skip(1);
    let samples = parts.clone().any(|part| SAMPLES.contains(&part));
    samples && parts.any(|part| PACKAGES.contains(&part))
}

/// Pairs what is in `parts` and adds what is new.
fn take(parts: &[Arc<Mounted>], containers: &[impl std::borrow::Borrow<Container>], baked: &mut Baked) {
    let paired = pair(parts, &[]);
    for (id, mut found) in paired.discovered {
        if baked.discovered.contains_key(&id) {
            continue;
        }
        let Some(files) = &found.files else { continue };
        // What a root or a peer is known by belongs there.
        let bare = found.lies == Lies::Certificate
            && found.certificate.as_ref().is_none_or(|one| one.authority || one.self_signed);
        if bare {
            continue;
        }
        let in_image = files.certificate.starts_with("image:");
        found.origin = if in_image { Origin::Image } else { Origin::File };
        let path = in_container(&files.certificate).to_owned();
        for container in containers {
            let container = container.borrow();
            let covered =
                container.mounts.iter().any(|mount| mounts::beneath(&mount.destination, &path).is_some());
            if !covered {
                found.users.push(pairing::user(container, &path));
            }
        }
        found.users.sort_by(|a, b| a.container.cmp(&b.container));
        let of = found.users.first().map(|user| user.container.clone());
        let of = of.or_else(|| containers.first().map(|one| one.borrow().name.clone())).unwrap_or_default();
        found.label = format!("{of}/{}", pairing::stem(&path));
        baked.discovered.insert(id, found);
    }
    for key in paired.keys {
        if key.path.starts_with("image:") && !baked.keys.contains(&key) {
            baked.keys.push(key);
        }
    }
}

/// "image:0123:/etc/x" → "/etc/x".
fn in_container(id: &str) -> &str {
    id.find(":/").map_or(id, |at| &id[at + 1..])
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
