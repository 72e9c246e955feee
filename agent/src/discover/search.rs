//! The search for certificates that nobody declared, on a thread of its own.
//!
//! The thread has a low priority of processor and disk (the kernel takes the
//! disk's from the processor's, ioprio_set(2)) and works on one thing at a
//! time, so that services and renewals come first. What did not change since
//! the last search is not read again. Started by [`super::watch`]; a scan from
//! the command line calls [`Search::run`] itself.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use reseal_proto::v1::Finding;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::files::cache::Cache;
use super::files::walk::{Limits, walk};
use super::files::{Bound, Mounted};
use super::images::{Baked, Images};
use super::pairing::{Paired, pair};
use super::settings::Settings;
use super::{Container, finding, mounts};
use crate::config::Config;

/// Of the thread; nice(2).
const NICE: i32 = 15;
/// Kernel interfaces, whatever is mounted from beneath them.
const PSEUDO: [&str; 3] = ["/proc", "/sys", "/dev"];
/// As a mount these hold more than a container's files: what lies beneath them
/// is searched where a container mounts it by itself.
const TOO_MUCH: [&str; 4] = ["/", "/var/lib/docker", "/var/lib/containerd", "/var/lib/docker/volumes"];
/// Never entered on the way through a mount.
const LAYERS: [&str; 2] = ["/var/lib/docker/overlay2", "/var/lib/containerd"];

/// What a search is for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// All of the host.
    pub containers: Vec<Container>,
    /// Ids of those that changed; `None`: look at everything again.
    pub changed: Option<BTreeSet<String>>,
}

impl Request {
    /// This one and `newer` in one.
    pub fn and(self, newer: Self) -> Self {
        let changed = match (self.changed, newer.changed) {
            (Some(before), Some(now)) => Some(&before | &now),
            _ => None,
        };
        Self { containers: newer.containers, changed }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Certificates, keys, trust stores.
    pub paired: Paired,
    /// Where the search ended early.
    pub findings: Vec<Finding>,
    /// Regular files that were looked at.
    pub files: usize,
    /// Of those, files that were opened.
    pub opened: usize,
    /// Mounts that were searched, and how many there are.
    pub mounts: usize,
    /// What is in images; of the search before while the images are looked at.
    pub baked: Arc<Baked>,
}

/// What the thread says: twice for each request, because images take longer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The newest.
    pub picture: Arc<Picture>,
    /// The next request may come.
    pub done: bool,
    /// Everything was looked at.
    pub full: bool,
}

/// Remembers what it saw.
#[derive(Debug)]
pub struct Search {
    host_root: PathBuf,
    settings: Settings,
    known: BTreeMap<String, (Cache, Arc<Mounted>)>,
    images: Images,
    baked: Arc<Baked>,
}

/// Starts the thread; it ends when the sender is dropped. One request at a time:
/// the next one is sent when the answer is there.
pub fn start(config: &Config, answers: mpsc::Sender<Answer>) -> SyncSender<Request> {
    let (requests, received) = sync_channel(1);
    let search = Search::new(config);
    let thread = std::thread::Builder::new().name("search".into()).stack_size(1024 * 1024);
    if let Err(error) = thread.spawn(move || serve(search, &received, &answers)) {
        tracing::warn!(%error, "no thread for the search for certificates: only labels are looked at");
    }
    requests
}

fn serve(mut search: Search, requests: &Receiver<Request>, answers: &mpsc::Sender<Answer>) {
    // Of the calling thread alone, on Linux.
    let _ = rustix::process::setpriority_process(None, NICE);
    while let Ok(request) = requests.recv() {
        let (containers, changed) = (&request.containers, request.changed.as_ref());
        let mut picture = search.run(containers, changed, crate::app::now());
        let first = Answer { picture: Arc::new(picture.clone()), done: false, full: false };
        if answers.blocking_send(first).is_err() {
            return;
        }
        search.look_into_images(containers, changed, crate::app::now(), &mut picture);
        tracing::debug!(
            mounts = picture.mounts,
            files = picture.files,
            opened = picture.opened,
            "searched for certificates"
        );
        if answers
            .blocking_send(Answer { picture: Arc::new(picture), done: true, full: changed.is_none() })
            .is_err()
        {
            return;
        }
    }
}

impl Search {
    /// Knows nothing yet.
    pub fn new(config: &Config) -> Self {
        Self {
            host_root: config.host_root.clone(),
            settings: config.discovery.clone(),
            known: BTreeMap::new(),
            images: Images::default(),
            baked: Arc::default(),
        }
    }

    /// Looks into images, too; after [`Search::run`], and slower.
    pub fn look_into_images(
        &mut self,
        containers: &[Container],
        changed: Option<&BTreeSet<String>>,
        now: i64,
        picture: &mut Picture,
    ) {
        if self.settings.no_images {
            return;
        }
        let mut images = std::mem::take(&mut self.images);
        let open = |path: &str| self.open(path);
        let baked = images.look(containers, changed, self.settings.limits, &open, now);
        self.images = images;
        picture.files += baked.files;
        if let Some((container, why)) = baked.unseen.first_key_value() {
            let what = format!(
                "of {} containers not all that is in the image was looked at; of {container}: {why}",
                baked.unseen.len()
            );
            picture.findings.push(incomplete("images", &what));
        }
        self.baked = Arc::new(baked);
        picture.baked = self.baked.clone();
    }

    /// Searches the mounts of `containers`: those of changed ones again, the others where
    /// nothing is known yet. `now` is the wall clock, seconds since the Unix epoch.
    pub fn run(&mut self, containers: &[Container], changed: Option<&BTreeSet<String>>, now: i64) -> Picture {
        let mut picture = Picture { baked: self.baked.clone(), ..Picture::default() };
        let mut before = std::mem::take(&mut self.known);
        let mut never: Vec<String> = LAYERS.iter().chain(&PSEUDO).map(|path| (*path).to_owned()).collect();
        never.extend(containers.iter().filter_map(|container| engine_layers(&container.layers.upper)));
        never.dedup();
        never.extend(self.settings.skip.iter().cloned());
        for (source, again) in self.sources(containers, changed, &mut picture) {
            let covered = self.known.values().any(|(_, outer)| {
                outer.bounds.is_empty() && mounts::beneath(&outer.source, &source).is_some()
            });
            if covered {
                continue;
            }
            let (mut cache, old) = before
                .remove(&source)
                .map_or_else(|| (Cache::default(), None), |(cache, mounted)| (cache, Some(mounted)));
            let mounted = match old {
                Some(old) if !again => old,
                _ => match self.open(&source) {
                    Ok(root) => {
                        let found = walk(&root, &source, &never, self.settings.limits, &mut cache, now);
                        picture.files += found.looked_at;
                        picture.opened += found.opened;
                        Arc::new(found)
                    }
                    // What is not there holds nothing.
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    Err(errno) => {
                        let what = format!("it cannot be opened: {}", std::io::Error::from(errno));
                        picture.findings.push(incomplete(&source, &what));
                        continue;
                    }
                },
            };
            for bound in &mounted.bounds {
                picture.findings.push(incomplete(&source, &told(bound, self.settings.limits)));
            }
            self.known.insert(source, (cache, mounted));
        }
        picture.mounts = self.known.len();
        let mounted: Vec<Arc<Mounted>> = self.known.values().map(|(_, mounted)| mounted.clone()).collect();
        picture.paired = pair(&mounted, containers);
        picture
    }

    /// Sources of bind mounts and volumes, an outer one before those within it, and
    /// whether to look again.
    fn sources(
        &self,
        containers: &[Container],
        changed: Option<&BTreeSet<String>>,
        picture: &mut Picture,
    ) -> BTreeMap<String, bool> {
        let mut sources: BTreeMap<String, bool> = BTreeMap::new();
        for container in containers {
            let again = changed.is_none_or(|changed| changed.contains(&container.id));
            for mount in &container.mounts {
                let source = mount.source.as_str();
                let held = matches!(mount.kind.as_str(), "bind" | "volume") && source.starts_with('/');
                let beneath = |one: &&str| mounts::beneath(one, source).is_some();
                if !held || PSEUDO.iter().any(beneath) {
                    continue;
                }
                if self.settings.skip.iter().any(|one| mounts::beneath(one, source).is_some()) {
                    continue;
                }
                if TOO_MUCH.contains(&source) {
                    let what = format!(
                        "container {} mounts it whole; it is not searched, only what containers mount from beneath it",
                        container.name
                    );
                    let found = finding("scan-incomplete", source, &what, "info");
                    if !picture.findings.contains(&found) {
                        picture.findings.push(found);
                    }
                    continue;
                }
                *sources.entry(source.to_owned()).or_default() |= again;
            }
        }
        // An outer one is walked for all within it.
        let inner: Vec<String> =
            sources.iter().filter(|(_, again)| **again).map(|(source, _)| source.clone()).collect();
        for (outer, again) in &mut sources {
            *again |= inner.iter().any(|source| mounts::beneath(outer, source).is_some());
        }
        sources
    }

    /// Links on the host itself are the administrator's and are followed, within the host's files.
    fn open(&self, source: &str) -> Result<OwnedFd, Errno> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::open(&self.host_root, directory, Mode::empty())?;
        let below = source.trim_start_matches('/');
        let below = if below.is_empty() { "." } else { below };
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)
    }
}

/// Where the engine keeps all layers, of the path of one: `.../overlay2/<id>/diff`.
fn engine_layers(layer: &str) -> Option<String> {
    let (above, _) = layer.rsplit_once('/')?;
    above.rsplit_once('/').map(|(all, _)| all.to_owned()).filter(|all| !all.is_empty())
}

fn incomplete(source: &str, what: &str) -> Finding {
    super::findings::kind("scan-incomplete", source, what)
}

/// A bound in words.
pub(super) fn told(bound: &Bound, limits: Limits) -> String {
    match bound {
        Bound::Depth => {
            format!("directories more than {} deep were not entered (discovery.max_depth)", limits.depth)
        }
        Bound::Files => format!("it has more than {} entries (discovery.max_files)", limits.files),
        Bound::Time => format!(
            "it takes longer than {} s to look through (discovery.max_seconds)",
            limits.time.as_secs()
        ),
        Bound::Size(path) => format!(
            "{path} looks like a certificate, but is larger than {} bytes (discovery.max_file_bytes)",
            limits.size
        ),
        Bound::Found => {
            format!("more than {} of its files hold certificates or keys", limits.found)
        }
        Bound::Unreadable(why) => format!("it cannot be read whole; for one: {why}"),
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
