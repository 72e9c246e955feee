use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::*;
use crate::chain::tests::{Authority, Leaf, wanted};
use crate::discover::{Located, Owner};
use crate::key::{KeyType, PrivateKey};
use crate::keystore::{Password, jks, pkcs12};
use proptest::prelude::*;

#[path = "in_place_tests.rs"]
mod in_place_tests;
#[path = "layout_tests.rs"]
mod layouts;
#[path = "power_tests.rs"]
mod power;

/// How the files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Pair,
    Combined,
    Der,
    Pkcs12,
    Jks,
    /// The key in a directory of its own, and files with the leaf and the chain alone.
    Apart,
    /// Certificate and key mounted by themselves.
    Singles,
    /// The certificate mounted by itself, the key in a directory.
    Mixed,
    /// One file, mounted by itself.
    SingleCombined,
}

use Shape::*;

const SHAPES: [Shape; 9] = [Pair, Combined, Der, Pkcs12, Jks, Apart, Singles, Mixed, SingleCombined];
/// Those that change in one step.
const ATOMIC: [Shape; 6] = [Pair, Combined, Der, Pkcs12, Jks, Apart];
const PASSWORD: &str = "correct horse";

struct Bench {
    mount: tempfile::TempDir,
    config: Config,
    installation: Installation,
    authority: Authority,
    shape: Shape,
}

impl Bench {
    fn new(shape: Shape) -> Self {
        Self::at(tempfile::tempdir().unwrap(), shape)
    }

    fn at(mount: tempfile::TempDir, shape: Shape) -> Self {
        let mut wanted = wanted(&["a.test"]);
        wanted.layout = match shape {
            Pair | Apart | Singles | Mixed => Layout::Pair,
            Combined | SingleCombined => Layout::Combined,
            Der => Layout::Der,
            Pkcs12 => Layout::Pkcs12,
            Jks => Layout::Jks,
        };
        let root = mount.path().to_str().unwrap().to_owned();
        let located = |directory: &str, file: &str, single| Located {
            mount: root.clone(),
            directory: directory.into(),
            file: file.into(),
            single,
        };
        let mut place = Place {
            mount: root.clone(),
            certificate: "site.crt".into(),
            key: if wanted.layout.has_key_file() { "site.key".into() } else { String::new() },
            single: matches!(shape, Singles | Mixed | SingleCombined),
            ..Place::default()
        };
        for directory in ["certs", "private"] {
            fs::create_dir(mount.path().join(directory)).unwrap();
        }
        match shape {
            Pair | Combined | Der | SingleCombined => {}
            Pkcs12 | Jks => {
                put(&mount.path().join("password"), format!("{PASSWORD}\n").as_bytes());
                place.password = Some(located("", "password", false));
            }
            Apart => {
                place.directory = "certs".into();
                place.key = "site.crt".into();
                place.key_at = Some(located("private", "site.crt", false));
                place.leaf = Some(located("certs", "leaf.pem", false));
                place.chain = Some(located("", "chain.pem", false));
            }
            Singles => place.key_at = Some(located("", "site.key", true)),
            Mixed => place.key_at = Some(located("private", "site.key", false)),
        }
        sync(mount.path());
        let mut config = Config::load(Some(Path::new("/dev/null")), None).unwrap();
        config.state_dir = mount.path().join("state");
        Self {
            config,
            installation: Installation {
                id: place.id(),
                label: "web/site".into(),
                wanted,
                place,
                consumers: Vec::new(),
                certificate: None,
                management: reseal_proto::v1::Management::Labels,
            },
            mount,
            authority: Authority::new("a"),
            shape,
        }
    }

    fn files(&self) -> Files {
        Files::open(&self.config, &self.installation).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    fn certificate(&self) -> PathBuf {
        PathBuf::from(self.installation.place.id())
    }

    fn secret(&self) -> PathBuf {
        PathBuf::from(self.installation.place.secret().path())
    }

    fn issue(&self) -> (PrivateKey, Vec<CertificateDer<'static>>) {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let chain = self.authority.issue(&key, &Leaf::server(&["a.test"]));
        (key, chain)
    }

    fn try_prepare(&self, generation: &str) -> Result<(), InstallError> {
        let (key, _) = self.issue();
        self.files().prepare(generation, &key.to_pkcs8().unwrap())
    }

    /// All steps up to the switch; gives the previous generation.
    fn install(&self, generation: &str) -> (Vec<u8>, Option<String>) {
        let (leaf, previous) = self.stage(generation);
        self.files().switch(generation).unwrap();
        (leaf, previous)
    }

    fn stage(&self, generation: &str) -> (Vec<u8>, Option<String>) {
        let (key, chain) = self.issue();
        let files = self.files();
        files.prepare(generation, &key.to_pkcs8().unwrap()).unwrap();
        let previous = files.stage(generation, &chain).unwrap();
        (chain[0].to_vec(), previous)
    }

    /// Flat files as an administrator would have put them there; the key has mode 0640.
    fn put_flat(&self) -> Vec<u8> {
        let (key, chain) = self.issue();
        let pkcs8 = key.to_pkcs8().unwrap();
        let text = pem::certificates(chain.iter().map(AsRef::as_ref));
        let key = pem::private_key(&pkcs8);
        let password = Password::read(PASSWORD.as_bytes()).unwrap();
        let (certificate, secret) = match self.shape {
            Pair | Apart | Singles | Mixed => (text.into_bytes(), Some(key.as_bytes().to_vec())),
            Der => (chain[0].to_vec(), Some(pkcs8.to_vec())),
            Combined | SingleCombined => ((text + &key).into_bytes(), None),
            Pkcs12 => (pkcs12::write(&chain, &pkcs8, &password, "theirs").unwrap().to_vec(), None),
            Jks => (jks::write(&chain, &pkcs8, &password, "theirs", 1).unwrap().to_vec(), None),
        };
        put(&self.certificate(), &certificate);
        if let Some(secret) = secret {
            put(&self.secret(), &secret);
        }
        if self.shape == Apart {
            let text = |part: &[CertificateDer<'_>]| pem::certificates(part.iter().map(AsRef::as_ref));
            put(&self.path("certs/leaf.pem"), text(&chain[..1]).as_bytes());
            put(&self.path("chain.pem"), text(&chain[1..]).as_bytes());
        }
        fs::set_permissions(self.secret(), PermissionsExt::from_mode(0o640)).unwrap();
        chain[0].to_vec()
    }

    /// What a reader of the paths has; panics on a mismatched pair.
    fn served(&self) -> Option<Vec<u8>> {
        let certificate = fs::read(self.certificate()).ok();
        let secret = fs::read(self.secret()).ok();
        let (Some(certificate), Some(secret)) = (&certificate, &secret) else {
            assert_eq!(certificate.is_some(), secret.is_some(), "half a pair");
            return None;
        };
        let password = Password::read(PASSWORD.as_bytes()).unwrap();
        let (chain, key) = match self.installation.wanted.layout {
            Layout::Pair | Layout::Combined => {
                (pem::read_certificates(certificate).unwrap(), pem::read_key(secret).unwrap())
            }
            Layout::Der => (vec![CertificateDer::from(certificate.clone())], Zeroizing::new(secret.clone())),
            Layout::Pkcs12 | Layout::Jks => {
                let mut entries = read::entries(certificate, Some(&password)).unwrap();
                let entry = entries.keys.remove(0);
                (entry.chain, entry.key.unwrap())
            }
        };
        let key = PrivateKey::from_pkcs8(KeyType::EcdsaP256, &key).unwrap();
        let facts = crate::chain::facts_of(&chain).unwrap();
        assert_eq!(facts.spki_sha256, key.spki_sha256(), "mismatched pair");
        assert_eq!(read::chain(&self.config, &self.installation).unwrap().unwrap(), chain);
        if self.shape == Apart && self.path("chain.pem").exists() {
            let read = |name| pem::read_certificates(&fs::read(self.path(name)).unwrap()).unwrap();
            assert_eq!([read("certs/leaf.pem"), read("chain.pem")].concat(), chain);
        }
        Some(chain[0].to_vec())
    }

    /// Every private key below the mount, by file.
    fn keys(&self) -> Vec<PathBuf> {
        let place = &self.installation.place;
        let names = [place.secret().file, format!("key-{}", place.key)];
        let is_key = |path: &Path| {
            let text = fs::read(path).unwrap();
            let binary = !matches!(self.installation.wanted.layout, Layout::Pair | Layout::Combined);
            let name = path.file_name().unwrap().to_str().unwrap();
            String::from_utf8_lossy(&text).contains("PRIVATE")
                || (binary && (names.iter().any(|known| known == name) || name == PENDING_KEY))
        };
        let mut found = Vec::new();
        walk(self.mount.path(), &mut |path| {
            if is_key(path) {
                found.push(path.to_owned());
            }
        });
        found
    }
}

fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            walk(&path, visit);
        } else if kind.is_file() {
            visit(&path);
        }
    }
}

/// Written and flushed, so that nothing of a test's own is taken for the installer's.
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    sync(path);
    sync(path.parent().unwrap());
}

fn sync(path: &Path) {
    fs::File::open(path).and_then(|file| file.sync_all()).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_certificate_appears_whole() {
    for shape in ATOMIC {
        let bench = Bench::new(shape);
        let (leaf, previous) = bench.install("1");
        assert_eq!(previous, None, "{shape:?}");
        assert_eq!(bench.served(), Some(leaf), "{shape:?}");
        assert_eq!(mode(&bench.secret()), 0o600);
        assert_eq!(bench.files().progress("1").unwrap(), Progress::Live);
    }
}

#[test]
fn what_is_there_is_taken_over_with_owner_and_mode_and_comes_back() {
    for shape in SHAPES {
        let bench = Bench::new(shape);
        let old = bench.put_flat();
        if rustix::process::geteuid().is_root() {
            // Somebody else's file stays somebody else's.
            std::os::unix::fs::chown(bench.secret(), Some(4321), Some(4322)).unwrap();
        }
        let owner = |bench: &Bench| {
            let file = fs::metadata(bench.secret()).unwrap();
            (file.uid(), file.gid())
        };
        let theirs = owner(&bench);
        let (new, previous) = bench.install("1");
        assert_eq!(bench.served(), Some(new), "{shape:?}");
        assert_eq!(mode(&bench.secret()), 0o640, "{shape:?}");
        assert_eq!(owner(&bench), theirs, "{shape:?}");
        bench.files().restore(previous.as_deref().unwrap()).unwrap();
        assert_eq!(bench.served(), Some(old), "{shape:?}");
        assert_eq!(mode(&bench.secret()), 0o640, "{shape:?}");
        // Twice, as after a crash in the middle of a roll-back.
        bench.files().restore(previous.as_deref().unwrap()).unwrap();
        bench.files().discard("1").unwrap();
        let (again, _) = bench.install("2");
        assert_eq!(bench.served(), Some(again), "{shape:?}");
    }
}

#[test]
fn rolls_back_and_forth_and_settles() {
    for shape in SHAPES {
        let bench = Bench::new(shape);
        bench.put_flat();
        let (first, _) = bench.install("1");
        bench.files().settle(None).unwrap();
        let (second, previous) = bench.install("2");
        assert_eq!(previous.as_deref(), Some("1"), "{shape:?}");
        bench.files().restore("1").unwrap();
        assert_eq!(bench.served(), Some(first), "{shape:?}");
        assert_eq!(bench.files().progress("2").unwrap(), Progress::Staged);
        bench.files().switch("2").unwrap();
        bench.files().settle(Some("1")).unwrap();
        assert_eq!(bench.served(), Some(second), "{shape:?}");
        // Of the old generation no key is left.
        let keys = bench.keys();
        assert!(keys.iter().all(|path| !path.to_string_lossy().contains("/1/")), "{shape:?} {keys:?}");
        assert!(bench.files().restore("1").is_err(), "{shape:?}");
    }
}

#[test]
fn a_generation_that_is_live_is_not_discarded() {
    for shape in SHAPES {
        let bench = Bench::new(shape);
        bench.put_flat();
        let (leaf, _) = bench.install("1");
        bench.files().discard("1").unwrap();
        assert_eq!(bench.served(), Some(leaf));
        bench.try_prepare("2").unwrap();
        assert_eq!(bench.files().progress("2").unwrap(), Progress::Keyed, "{shape:?}");
        bench.files().discard("2").unwrap();
        assert_eq!(bench.files().progress("2").unwrap(), Progress::Absent);
        assert_eq!(bench.files().progress("3").unwrap(), Progress::Absent);
    }
}

#[test]
fn a_hostile_area_is_refused() {
    for shape in SHAPES {
        let bench = Bench::new(shape);
        bench.put_flat();
        let outside = tempfile::tempdir().unwrap();
        let area = bench.certificate().with_file_name(".reseal");
        symlink(outside.path(), area).unwrap();
        assert_eq!(bench.try_prepare("1").unwrap_err().code(), "path-escapes", "{shape:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_current_link_that_leads_elsewhere_is_refused() {
    let bench = Bench::new(Pair);
    bench.install("1");
    let current = bench.path(".reseal/site/current");
    fs::remove_file(&current).unwrap();
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
    for shape in SHAPES {
        let mut bench = Bench::new(shape);
        if bench.installation.place.in_place() {
            bench.put_flat();
        }
        bench.installation.wanted.owner = Some(Owner { uid: 101, gid: 102 });
        bench.installation.wanted.mode = Some(0o440);
        bench.install("1");
        let key = fs::metadata(bench.secret()).unwrap();
        assert_eq!((key.uid(), key.gid(), key.mode() & 0o777), (101, 102, 0o440), "{shape:?}");
        if bench.secret() != bench.certificate() {
            let certificate = fs::metadata(bench.certificate()).unwrap();
            assert_eq!((certificate.uid(), certificate.mode() & 0o777), (101, 0o644), "{shape:?}");
        }
    }
}

/// Unmounts when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn run(words: &[&str], path: &Path) -> Self {
        let status = std::process::Command::new("mount").args(words).arg(path).status().unwrap();
        assert!(status.success(), "mount {words:?}");
        Self(path.to_owned())
    }

    fn tmpfs(path: &Path) -> Self {
        Self::run(&["-t", "tmpfs", "-o", "size=64k,mode=0755", "reseal-test"], path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no small file system can be mounted here");
        return;
    }
    for shape in [Pair, Combined, Jks, Singles] {
        let mount = tempfile::tempdir().unwrap();
        let mounted = Mounted::tmpfs(mount.path());
        let bench = Bench::at(mount, shape);
        bench.put_flat();
        bench.install("1");
        let before = (fs::read(bench.certificate()).unwrap(), fs::read(bench.secret()).unwrap());
        assert!(fs::write(bench.path("filler"), vec![0; 1 << 20]).is_err(), "the disk must be full now");
        let error = bench.try_prepare("2").unwrap_err();
        assert_eq!(error.code(), "no-space", "{shape:?} {error}");
        let after = (fs::read(bench.certificate()).unwrap(), fs::read(bench.secret()).unwrap());
        assert_eq!(before, after, "{shape:?}");
        assert!(bench.files().pending_key("2").unwrap().is_none());
        drop(mounted);
    }
}

#[test]
fn a_read_only_source_and_a_missing_directory_are_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nothing can be mounted here");
        return;
    }
    for shape in ATOMIC {
        let mount = tempfile::tempdir().unwrap();
        let mounted = Mounted::tmpfs(mount.path());
        let mut bench = Bench::at(mount, shape);
        let old = bench.put_flat();
        let remount = |how: &str| {
            let path = bench.mount.path();
            let status = std::process::Command::new("mount").args(["-o", how]).arg(path).status().unwrap();
            assert!(status.success());
        };
        remount("remount,ro");
        assert_eq!(bench.try_prepare("1").unwrap_err().code(), "read-only", "{shape:?}");
        assert_eq!(bench.served(), Some(old));
        remount("remount,rw");
        bench.installation.place.directory = "gone".into();
        let error = Files::open(&bench.config, &bench.installation).err().unwrap();
        assert_eq!(error.code(), "missing-directory");
        drop(mounted);
    }
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
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_crash_between_steps_leaves_a_mismatched_pair(
        shape in proptest::sample::select(SHAPES.as_slice()),
        flat in any::<bool>(),
        stops in proptest::collection::vec(0usize..5, 1..6),
    ) {
        let bench = Bench::new(shape);
        let mut last = (flat || bench.installation.place.in_place()).then(|| bench.put_flat());
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
    fn a_half_done_conversion_shows_the_old_pair(first in any::<bool>(), links in any::<bool>()) {
        let bench = Bench::new(Pair);
        let old = bench.put_flat();
        if links {
            layouts::archive(&bench);
        }
        let (key, chain) = bench.issue();
        let files = bench.files();
        files.prepare("1", &key.to_pkcs8().unwrap()).unwrap();
        files.stage("1", &chain).unwrap();
        // Undo one of the two links: the state in the middle of a conversion.
        let name = if first { "site.crt" } else { "site.key" };
        let content = fs::read(bench.path(name)).unwrap();
        fs::remove_file(bench.path(name)).unwrap();
        if links {
            symlink(format!("archive/{name}"), bench.path(name)).unwrap();
        } else {
            fs::write(bench.path(name), content).unwrap();
        }
        prop_assert_eq!(bench.served(), Some(old.clone()));
        let previous = files.stage("1", &chain).unwrap();
        prop_assert_eq!(bench.served(), Some(old.clone()));
        files.switch("1").unwrap();
        prop_assert_eq!(bench.served(), Some(chain[0].to_vec()));
        files.restore(&previous.unwrap()).unwrap();
        prop_assert_eq!(bench.served(), Some(old));
        if links {
            for name in ["site.crt", "site.key"] {
                prop_assert_eq!(fs::read_link(bench.path(name)).unwrap(), Path::new("archive").join(name));
            }
        }
    }
}
