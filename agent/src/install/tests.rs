use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::chain::tests::{Authority, Leaf, wanted};
use crate::key::{KeyType, PrivateKey};
use proptest::prelude::*;

#[path = "power_tests.rs"]
mod power;

struct Bench {
    mount: tempfile::TempDir,
    config: Config,
    installation: Installation,
    authority: Authority,
}

impl Bench {
    fn new(layout: Layout) -> Self {
        Self::at(tempfile::tempdir().unwrap(), layout)
    }

    fn at(mount: tempfile::TempDir, layout: Layout) -> Self {
        let mut wanted = wanted(&["a.test"]);
        wanted.layout = layout;
        let place = Place {
            mount: mount.path().to_str().unwrap().into(),
            directory: String::new(),
            certificate: "site.crt".into(),
            key: match layout {
                Layout::Pair => "site.key".into(),
                Layout::Combined => String::new(),
            },
        };
        Self {
            config: Config::load(Some(Path::new("/dev/null")), None).unwrap(),
            installation: Installation {
                id: place.id(),
                label: "web/site".into(),
                management: reseal_proto::v1::Management::Labels,
                wanted,
                place,
                consumers: Vec::new(),
                certificate: None,
            },
            mount,
            authority: Authority::new("a"),
        }
    }

    fn files(&self) -> Files {
        Files::open(&self.config, &self.installation).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    fn issue(&self) -> (PrivateKey, Vec<CertificateDer<'static>>) {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let chain = self.authority.issue(&key, &Leaf::server(&["a.test"]));
        (key, chain)
    }

    /// All steps up to the switch; gives the previous generation.
    fn install(&self, generation: &str) -> (Vec<u8>, Option<String>) {
        let (key, chain) = self.issue();
        let files = self.files();
        files.prepare(generation, &key.to_pkcs8().unwrap()).unwrap();
        let previous = files.stage(generation, &chain).unwrap();
        files.switch(generation).unwrap();
        (chain[0].to_vec(), previous)
    }

    /// Flat files as an administrator would have put them there.
    fn put_flat(&self) -> Vec<u8> {
        let (key, chain) = self.issue();
        let certificate = pem::certificates(chain.iter().map(AsRef::as_ref));
        let key = pem::private_key(&key.to_pkcs8().unwrap());
        match self.installation.wanted.layout {
            Layout::Pair => {
                std::fs::write(self.path("site.crt"), certificate).unwrap();
                std::fs::write(self.path("site.key"), key.as_bytes()).unwrap();
                std::fs::set_permissions(self.path("site.key"), PermissionsExt::from_mode(0o640)).unwrap();
            }
            Layout::Combined => {
                let text = certificate + &key;
                std::fs::write(self.path("site.crt"), text).unwrap();
                std::fs::set_permissions(self.path("site.crt"), PermissionsExt::from_mode(0o640)).unwrap();
            }
        }
        chain[0].to_vec()
    }

    /// What a reader of the two paths has; panics on a mismatched pair.
    fn served(&self) -> Option<Vec<u8>> {
        let certificate = std::fs::read(self.path("site.crt")).ok();
        let key_path = match self.installation.wanted.layout {
            Layout::Pair => "site.key",
            Layout::Combined => "site.crt",
        };
        let key = std::fs::read(self.path(key_path)).ok();
        let (Some(certificate), Some(key)) = (&certificate, &key) else {
            assert_eq!(certificate.is_some(), key.is_some(), "half a pair");
            return None;
        };
        let chain = pem::read_certificates(certificate).unwrap();
        let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &pem::read_key(key).unwrap()).unwrap();
        let facts = crate::chain::facts_of(&chain).unwrap();
        assert_eq!(facts.spki_sha256, key.spki_sha256(), "mismatched pair");
        Some(chain[0].to_vec())
    }

    /// Every private key below the mount, by file.
    fn keys(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
                if kind.is_dir() {
                    walk(&path, found);
                } else if kind.is_file()
                    && String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("PRIVATE")
                {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.mount.path(), &mut found);
        found
    }
}

const LAYOUTS: [Layout; 2] = [Layout::Pair, Layout::Combined];

#[test]
fn the_first_certificate_appears_whole() {
    for layout in LAYOUTS {
        let bench = Bench::new(layout);
        let (leaf, previous) = bench.install("1");
        assert_eq!(previous, None);
        assert_eq!(bench.served(), Some(leaf));
        let key = match layout {
            Layout::Pair => "site.key",
            Layout::Combined => "site.crt",
        };
        let mode = std::fs::metadata(bench.path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(bench.files().progress("1").unwrap(), Progress::Live);
    }
}

#[test]
fn flat_files_are_taken_over_with_owner_and_mode() {
    for layout in LAYOUTS {
        let bench = Bench::new(layout);
        let old = bench.put_flat();
        let (new, previous) = bench.install("1");
        assert_eq!(bench.served(), Some(new));
        let key = match layout {
            Layout::Pair => "site.key",
            Layout::Combined => "site.crt",
        };
        let mode = std::fs::metadata(bench.path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        bench.files().switch(previous.as_deref().unwrap()).unwrap();
        assert_eq!(bench.served(), Some(old));
    }
}

#[test]
fn rolls_back_and_forth_and_settles() {
    for layout in LAYOUTS {
        let bench = Bench::new(layout);
        let (first, _) = bench.install("1");
        let (second, previous) = bench.install("2");
        assert_eq!(previous.as_deref(), Some("1"));
        bench.files().switch("1").unwrap();
        assert_eq!(bench.served(), Some(first));
        assert_eq!(bench.files().progress("2").unwrap(), Progress::Staged);
        bench.files().switch("2").unwrap();
        bench.files().settle(Some("1")).unwrap();
        assert_eq!(bench.served(), Some(second));
        // Of the old generation no key is left; of the new one there is one file (two names when combined).
        let keys = bench.keys();
        assert!(keys.iter().all(|path| !path.to_string_lossy().contains("/1/")), "{keys:?}");
    }
}

#[test]
fn a_generation_that_is_live_is_not_discarded() {
    let bench = Bench::new(Layout::Pair);
    let (leaf, _) = bench.install("1");
    bench.files().discard("1").unwrap();
    assert_eq!(bench.served(), Some(leaf));
    let (key, _) = bench.issue();
    bench.files().prepare("2", &key.to_pkcs8().unwrap()).unwrap();
    assert_eq!(bench.files().progress("2").unwrap(), Progress::Keyed);
    bench.files().discard("2").unwrap();
    assert_eq!(bench.files().progress("2").unwrap(), Progress::Absent);
    assert_eq!(bench.files().progress("3").unwrap(), Progress::Absent);
}

#[test]
fn a_link_layout_of_somebody_else_is_taken_over() {
    let bench = Bench::new(Layout::Pair);
    let old = bench.put_flat();
    std::fs::create_dir(bench.path("archive")).unwrap();
    for file in ["site.crt", "site.key"] {
        std::fs::rename(bench.path(file), bench.path("archive").join(file)).unwrap();
        symlink(format!("archive/{file}"), bench.path(file)).unwrap();
    }
    let (new, previous) = bench.install("1");
    assert_eq!(bench.served(), Some(new));
    bench.files().switch(previous.as_deref().unwrap()).unwrap();
    assert_eq!(bench.served(), Some(old));
}

#[test]
fn a_hostile_area_is_refused() {
    let bench = Bench::new(Layout::Pair);
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), bench.path(".reseal")).unwrap();
    let (key, _) = bench.issue();
    let error = bench.files().prepare("1", &key.to_pkcs8().unwrap()).unwrap_err();
    assert_eq!(error.code(), "path-escapes");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_current_link_that_leads_elsewhere_is_refused() {
    let bench = Bench::new(Layout::Pair);
    bench.install("1");
    let current = bench.path(".reseal/site/current");
    std::fs::remove_file(&current).unwrap();
    symlink("/etc", &current).unwrap();
    assert_eq!(bench.files().current().unwrap_err().code(), "foreign-link");
}

#[test]
fn owner_and_mode_by_label() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give files away; the fleet scenarios run as root always.
        eprintln!("not root: ownership is not tested here");
        return;
    }
    use std::os::unix::fs::MetadataExt as _;
    let mut bench = Bench::new(Layout::Pair);
    bench.installation.wanted.owner = Some(Owner { uid: 101, gid: 102 });
    bench.installation.wanted.mode = Some(0o640);
    bench.install("1");
    let key = std::fs::metadata(bench.path("site.key")).unwrap();
    assert_eq!((key.uid(), key.gid(), key.mode() & 0o777), (101, 102, 0o640));
    let certificate = std::fs::metadata(bench.path("site.crt")).unwrap();
    assert_eq!((certificate.uid(), certificate.mode() & 0o777), (101, 0o644));
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no small file system can be mounted here");
        return;
    }
    let mut bench = Bench::new(Layout::Pair);
    let small = bench.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=0755", "reseal-test"])
        .arg(&small)
        .status()
        .unwrap();
    assert!(mounted.success());
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let unmount = Unmount(small.clone());
    bench.installation.place.mount = small.to_str().unwrap().into();
    let (key, chain) = bench.issue();
    let files = bench.files();
    files.prepare("1", &key.to_pkcs8().unwrap()).unwrap();
    files.stage("1", &chain).unwrap();
    files.switch("1").unwrap();
    let before = std::fs::read(small.join("site.crt")).unwrap();
    let filler = std::fs::write(small.join("filler"), vec![0; 1 << 20]);
    assert!(filler.is_err(), "the file system must be full now");
    let (key, _) = bench.issue();
    let error = files.prepare("2", &key.to_pkcs8().unwrap()).unwrap_err();
    assert_eq!(error.code(), "no-space", "{error}");
    assert_eq!(std::fs::read(small.join("site.crt")).unwrap(), before);
    assert!(files.pending_key("2").unwrap().is_none());
    drop(files);
    drop(unmount);
}

/// The steps of an installation; a crash may come between any two, and the
/// whole list is then run again.
fn steps(files: &Files, generation: &str, key: &[u8], chain: &[CertificateDer<'_>], stop: usize) {
    if stop == 0 {
        return;
    }
    files.prepare(generation, key).unwrap();
    if stop == 1 {
        return;
    }
    files.stage(generation, chain).unwrap();
    if stop == 2 {
        return;
    }
    files.switch(generation).unwrap();
    if stop == 3 {
        return;
    }
    files.settle(None).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_crash_between_steps_leaves_a_mismatched_pair(
        combined in any::<bool>(),
        flat in any::<bool>(),
        stops in proptest::collection::vec(0usize..5, 1..6),
    ) {
        let bench = Bench::new(if combined { Layout::Combined } else { Layout::Pair });
        let mut last = flat.then(|| bench.put_flat());
        for (round, stop) in stops.into_iter().enumerate() {
            let (key, chain) = bench.issue();
            let generation = format!("g{round}");
            let pkcs8 = key.to_pkcs8().unwrap();
            steps(&bench.files(), &generation, &pkcs8, &chain, stop);
            let seen = bench.served();
            let new = Some(chain[0].to_vec());
            prop_assert_eq!(&seen, if stop >= 3 { &new } else { &last });
            last = seen;
        }
        // Once more to the end: it always gets there, and one key remains in use.
        let (key, chain) = bench.issue();
        let pkcs8 = key.to_pkcs8().unwrap();
        steps(&bench.files(), "end", &pkcs8, &chain, 1);
        steps(&bench.files(), "end", &pkcs8, &chain, 4);
        prop_assert_eq!(bench.served(), Some(chain[0].to_vec()));
        let others: Vec<_> = bench.keys().into_iter().filter(|path| {
            let text = path.to_string_lossy();
            text.contains("/.reseal/") && !text.contains("/end/")
        }).collect();
        prop_assert!(others.is_empty(), "{:?}", others);
    }

    /// A conversion that dies between its two links still shows the old pair.
    #[test]
    fn a_half_done_conversion_shows_the_old_pair(first in any::<bool>()) {
        let bench = Bench::new(Layout::Pair);
        let old = bench.put_flat();
        let (key, chain) = bench.issue();
        let files = bench.files();
        files.prepare("1", &key.to_pkcs8().unwrap()).unwrap();
        files.stage("1", &chain).unwrap();
        // Undo one of the two links: the state in the middle of a conversion.
        let name = if first { "site.crt" } else { "site.key" };
        let content = std::fs::read(bench.path(name)).unwrap();
        std::fs::remove_file(bench.path(name)).unwrap();
        std::fs::write(bench.path(name), content).unwrap();
        prop_assert_eq!(bench.served(), Some(old.clone()));
        let previous = files.stage("1", &chain).unwrap();
        prop_assert_eq!(bench.served(), Some(old.clone()));
        files.switch("1").unwrap();
        prop_assert_eq!(bench.served(), Some(chain[0].to_vec()));
        files.switch(&previous.unwrap()).unwrap();
        prop_assert_eq!(bench.served(), Some(old));
    }
}
