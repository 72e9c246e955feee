use super::*;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn place(mount: &Path, directory: &str) -> Place {
    Place {
        mount: mount.to_str().unwrap().into(),
        directory: directory.into(),
        certificate: "site.crt".into(),
        key: "site.key".into(),
        ..Place::default()
    }
}

fn config() -> Config {
    Config::load(Some(Path::new("/dev/null")), None).unwrap()
}

fn own() -> Access {
    Access { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw(), mode: 0o640 }
}

#[test]
fn writes_reads_and_replaces() {
    let mount = tempfile::tempdir().unwrap();
    let dir = Dir::open(&config(), &place(mount.path(), "")).unwrap();
    dir.replace("a", b"one", own()).unwrap();
    dir.replace("a", b"two", own()).unwrap();
    let content = dir.read("a", 100).unwrap().unwrap();
    assert_eq!(content.bytes.as_slice(), b"two");
    assert_eq!(content.access, own());
    assert!(dir.create("a", b"x", own()).is_err());
    assert_eq!(dir.names().unwrap(), ["a"]);
    assert!(dir.read("b", 100).unwrap().is_none());
    assert!(matches!(dir.read("a", 2), Err(DirError::TooLarge { .. })));
}

#[test]
fn no_link_leads_out_of_the_mount() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let mount = tempfile::tempdir().unwrap();
    symlink(outside.path(), mount.path().join("out")).unwrap();
    symlink("..", mount.path().join("up")).unwrap();
    symlink(outside.path().join("secret"), mount.path().join("file")).unwrap();
    for directory in ["out", "up", "up/x"] {
        let error = Dir::open(&config(), &place(mount.path(), directory)).unwrap_err();
        assert_eq!(error.code(), "path-escapes", "{directory}: {error}");
    }
    let dir = Dir::open(&config(), &place(mount.path(), "")).unwrap();
    assert_eq!(dir.read("file", 10).err().unwrap().code(), "path-escapes");
    assert_eq!(dir.sub("out").unwrap_err().code(), "path-escapes");
    assert_eq!(dir.make_sub("out").unwrap_err().code(), "path-escapes");
}

#[test]
fn links_within_the_mount_are_followed() {
    let mount = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(mount.path().join("archive")).unwrap();
    std::fs::create_dir_all(mount.path().join("live")).unwrap();
    std::fs::write(mount.path().join("archive/1.crt"), "c").unwrap();
    symlink("../archive/1.crt", mount.path().join("live/site.crt")).unwrap();
    let dir = Dir::open(&config(), &place(mount.path(), "live")).unwrap();
    assert_eq!(dir.read("site.crt", 10).unwrap().unwrap().bytes.as_slice(), b"c");
}

#[test]
fn what_cannot_be_used_is_named() {
    let mount = tempfile::tempdir().unwrap();
    let code = |place: &Place| Dir::open(&config(), place).unwrap_err().code();
    assert_eq!(code(&place(mount.path(), "gone")), "missing-directory");
    std::fs::write(mount.path().join("file"), "x").unwrap();
    assert_eq!(code(&place(&mount.path().join("file"), "")), "missing-directory");
    std::fs::create_dir(mount.path().join("open")).unwrap();
    std::fs::set_permissions(mount.path().join("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(code(&place(mount.path(), "open")), "world-writable");
    let dir = Dir::open(&config(), &place(mount.path(), "")).unwrap();
    assert_eq!(dir.read("open", 10).err().unwrap().code(), "not-a-file");
}

#[test]
fn a_failed_write_leaves_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let dir = Dir::open(&config(), &place(mount.path(), "")).unwrap();
    let name = "n".repeat(300);
    assert!(dir.replace(&name, b"x", own()).is_err());
    assert!(dir.names().unwrap().is_empty());
}

#[test]
fn a_file_that_is_overwritten_stays_the_same_file() {
    let mount = tempfile::tempdir().unwrap();
    let dir = Dir::open(&config(), &place(mount.path(), "")).unwrap();
    std::fs::write(mount.path().join("a"), "a long text that was there").unwrap();
    std::fs::hard_link(mount.path().join("a"), mount.path().join("seen")).unwrap();
    let later = SystemTime::UNIX_EPOCH + Duration::new(4_000_000_000, 5);
    for text in ["short", "a longer text than the one before it, by far"] {
        dir.overwrite("a", text.as_bytes(), own(), later).unwrap();
        let content = dir.read("seen", 100).unwrap().unwrap();
        assert_eq!(content.bytes.as_slice(), text.as_bytes());
        assert_eq!((content.access, content.modified), (own(), later));
    }
    symlink("a", mount.path().join("link")).unwrap();
    let error = dir.overwrite("link", b"x", own(), later).unwrap_err();
    assert!(matches!(error, DirError::LinkedFile(_)), "{error}");
    assert!(dir.overwrite("gone", b"x", own(), later).is_err());
    assert_eq!(dir.read("a", 100).unwrap().unwrap().bytes.len(), 44);
}

#[test]
fn going_up_is_checked_where_links_lead_sideways() {
    let mount = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(mount.path().join("a/b")).unwrap();
    symlink("a/b", mount.path().join("side")).unwrap();
    let rises =
        |directory| Dir::open(&config(), &place(mount.path(), directory)).unwrap().rises_to_the_mount();
    assert!(rises("").unwrap() && rises("a").unwrap() && rises("a/b").unwrap());
    assert!(!rises("side").unwrap());
}
