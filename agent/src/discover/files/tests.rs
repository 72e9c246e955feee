use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rcgen::{CertificateParams, KeyPair};

use super::*;

fn certificate(name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap().pem()
}

fn root(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// By a clock that is ahead: what was just written counts as old.
fn look(path: &Path, limits: Limits, cache: &mut Cache) -> Mounted {
    walk(&root(path), path.to_str().unwrap(), &[], limits, cache, crate::app::now() + 60)
}

fn paths(mounted: &Mounted) -> Vec<&str> {
    mounted.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn a_second_look_opens_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/a"), certificate("a.test")).unwrap();
    fs::write(dir.path().join("text"), "nothing").unwrap();
    let mut cache = Cache::default();
    let first = look(dir.path(), Limits::default(), &mut cache);
    assert_eq!((first.looked_at, first.opened, paths(&first)), (2, 2, vec!["sub/a"]));
    let second = look(dir.path(), Limits::default(), &mut cache);
    assert_eq!((second.looked_at, second.opened, paths(&second)), (2, 0, vec!["sub/a"]));
    fs::write(dir.path().join("text"), certificate("b.test")).unwrap();
    let third = look(dir.path(), Limits::default(), &mut cache);
    assert_eq!((third.opened, paths(&third)), (1, vec!["sub/a", "text"]));
    // What changed in the last moment may change again without a trace.
    let mut cache = Cache::default();
    for _ in 0..2 {
        let now = crate::app::now();
        let fresh = walk(&root(dir.path()), "/x", &[], Limits::default(), &mut cache, now);
        assert_eq!(fresh.opened, 2);
    }
}

#[test]
fn a_hostile_tree_neither_holds_nor_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), certificate("outside.test")).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("d")).unwrap();
    symlink("..", at("d/loop")).unwrap();
    symlink("loop-b", at("loop-a")).unwrap();
    symlink("loop-a", at("loop-b")).unwrap();
    symlink(outside.path(), at("out")).unwrap();
    symlink(outside.path().join("secret"), at("out-file")).unwrap();
    symlink("../../../../../../../../etc/passwd", at("d/up")).unwrap();
    symlink("/proc/self/root", at("magic")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    // A huge hole that begins like a certificate, and one that does not.
    let huge = fs::File::create(at("huge.pem")).unwrap();
    std::io::Write::write_all(&mut &huge, b"-----BEGIN CERTIFICATE-----\n").unwrap();
    huge.set_len(4 << 20).unwrap();
    fs::File::create(at("hole")).unwrap().set_len(1 << 40).unwrap();
    fs::write(at("name\x1b[31m\n\u{202e}"), certificate("odd.test")).unwrap();
    let mut deep = at("deep");
    for _ in 0..40 {
        fs::create_dir(&deep).unwrap();
        deep = deep.join("x");
    }
    fs::write(deep.parent().unwrap().join("a"), certificate("deep.test")).unwrap();
    let mounted = look(dir.path(), Limits::default(), &mut Cache::default());
    assert_eq!(paths(&mounted), ["name\x1b[31m\n\u{202e}"]);
    assert_eq!(mounted.bounds, [Bound::Depth, Bound::Size("huge.pem".into())]);
    assert!(mounted.links.is_empty());
}

#[test]
fn links_within_are_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for sub in ["live", "live/x", "archive", "archive/x"] {
        fs::create_dir(at(sub)).unwrap();
    }
    fs::write(at("archive/x/fullchain2.pem"), certificate("a.test")).unwrap();
    symlink("../../archive/x/fullchain2.pem", at("live/x/fullchain.pem")).unwrap();
    let mounted = look(dir.path(), Limits::default(), &mut Cache::default());
    assert_eq!(mounted.links[0].path, "live/x/fullchain.pem");
    assert_eq!(mounted.links[0].inode, mounted.files[0].inode);
}

#[test]
fn each_bound_ends_the_walk_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..50 {
        fs::write(dir.path().join(n.to_string()), certificate("a.test")).unwrap();
    }
    let bounds = |limits| look(dir.path(), limits, &mut Cache::default()).bounds;
    assert_eq!(bounds(Limits { files: 10, ..Limits::default() }), [Bound::Files]);
    assert_eq!(bounds(Limits { found: 10, ..Limits::default() }), [Bound::Found]);
    assert_eq!(bounds(Limits { time: Duration::ZERO, ..Limits::default() }), [Bound::Time]);
}

#[test]
fn a_single_file_and_a_closed_directory() {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let file = sub.join("a.pem");
    fs::write(&file, certificate("a.test")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mounted = look(&file, Limits::default(), &mut Cache::default());
    assert!(mounted.single);
    assert_eq!((paths(&mounted), mounted.files[0].access.mode), (vec![""], 0o644));
    let enclosed = |mode| {
        fs::set_permissions(&sub, fs::Permissions::from_mode(mode)).unwrap();
        look(&sub, Limits::default(), &mut Cache::default()).files[0].enclosed
    };
    assert!(enclosed(0o700));
    assert!(!enclosed(0o755));
}

#[test]
fn kernel_file_systems_are_not_entered() {
    let mounted = look(Path::new("/proc"), Limits::default(), &mut Cache::default());
    assert_eq!((mounted.looked_at, mounted.files.len()), (0, 0));
}
