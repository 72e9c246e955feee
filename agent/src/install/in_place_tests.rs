//! Files that are mounted by themselves. A second name stands for the container,
//! which holds on to the file whatever happens to its first name.

use super::*;
use crate::discover::{Consumer, Inside, Ladder};

const IN_PLACE: [Shape; 3] = [Singles, Mixed, SingleCombined];

#[test]
fn the_same_file_gets_other_bytes() {
    for shape in IN_PLACE {
        let bench = Bench::new(shape);
        bench.put_flat();
        let held = bench.path("held");
        fs::hard_link(bench.certificate(), &held).unwrap();
        for generation in ["1", "2"] {
            bench.install(generation);
            assert_eq!(fs::read(&held).unwrap(), fs::read(bench.certificate()).unwrap(), "{shape:?}");
            bench.files().settle(None).unwrap();
        }
        bench.served();
        // Nothing with a key is left beside it.
        assert!(bench.keys().iter().all(|path| !path.to_string_lossy().contains(".reseal")), "{shape:?}");
    }
}

#[test]
fn what_fails_between_two_files_is_undone() {
    let bench = Bench::new(Singles);
    let old = bench.put_flat();
    let before = (fs::read(bench.certificate()).unwrap(), fs::read(bench.secret()).unwrap());
    bench.stage("1");
    // The second file cannot be written: somebody made it a link meanwhile.
    fs::rename(bench.path("site.key"), bench.path("real.key")).unwrap();
    symlink("real.key", bench.path("site.key")).unwrap();
    let error = bench.files().switch("1").unwrap_err();
    assert_eq!(error.code(), "bind-mounted-file", "{error}");
    let after = (fs::read(bench.certificate()).unwrap(), fs::read(bench.secret()).unwrap());
    assert_eq!(before, after);
    assert!(fs::symlink_metadata(bench.path(".reseal/site/switching")).is_err());
    assert_eq!(bench.served(), Some(old));
}

#[test]
fn what_a_crash_left_between_two_files_is_finished() {
    for back in [false, true] {
        let bench = Bench::new(Singles);
        bench.put_flat();
        let (first, _) = bench.install("1");
        let (second, _) = bench.install("2");
        let (generation, expected) = if back { ("1", first) } else { ("2", second) };
        if !back {
            bench.files().restore("1").unwrap();
        }
        // The certificate is written, the key is not.
        let area = bench.path(".reseal/site");
        symlink(generation, area.join("switching")).unwrap();
        let kept = fs::read(area.join(generation).join("site.crt")).unwrap();
        fs::write(bench.certificate(), kept).unwrap();
        assert_eq!(bench.files().current().unwrap(), None);
        bench.files().recover().unwrap();
        assert_eq!(bench.served(), Some(expected));
        assert!(!area.join("switching").exists());
        assert_eq!(bench.files().progress(generation).unwrap(), Progress::Live);
    }
}

#[test]
fn a_mark_that_makes_no_sense_is_taken_away() {
    for target in ["/etc", "gone", "../x", ".."] {
        let bench = Bench::new(Singles);
        let old = bench.put_flat();
        bench.files().area().unwrap();
        symlink(target, bench.path(".reseal/site/switching")).unwrap();
        bench.files().recover().unwrap();
        assert_eq!(bench.served(), Some(old));
        assert!(fs::symlink_metadata(bench.path(".reseal/site/switching")).is_err());
    }
}

#[test]
fn a_mounted_file_that_is_a_link_on_the_host_is_refused() {
    let bench = Bench::new(Singles);
    bench.put_flat();
    fs::rename(bench.path("site.crt"), bench.path("fullchain1.pem")).unwrap();
    symlink("fullchain1.pem", bench.path("site.crt")).unwrap();
    let before = fs::read(bench.path("fullchain1.pem")).unwrap();
    let error = bench.try_prepare("1").unwrap_err();
    assert_eq!(error.code(), "bind-mounted-file");
    assert!(crate::chain_of(&error).to_string().contains("mount the directory"), "{error}");
    assert_eq!(fs::read(bench.path("fullchain1.pem")).unwrap(), before);
}

#[test]
fn a_directory_that_takes_no_files_leaves_the_old_ones_in_the_state_directory() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nothing can be mounted here");
        return;
    }
    let mount = tempfile::tempdir().unwrap();
    let root = mount.path().to_owned();
    let state = tempfile::tempdir().unwrap();
    let tmpfs = Mounted::tmpfs(&root);
    let mut bench = Bench::at(mount, SingleCombined);
    bench.config.state_dir = state.path().to_owned();
    let old = bench.put_flat();
    // The file alone stays writable.
    let file = bench.certificate();
    let single = Mounted::run(&["--bind", file.to_str().unwrap()], &file);
    let remount = std::process::Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&root).status();
    assert!(remount.unwrap().success());
    let (new, previous) = bench.install("1");
    assert_eq!(bench.served(), Some(new));
    let mut kept = 0;
    walk(state.path(), &mut |path| {
        kept += 1;
        if !path.ends_with("installed") {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
    });
    assert!(kept > 2);
    bench.files().restore(previous.as_deref().unwrap()).unwrap();
    assert_eq!(bench.served(), Some(old.clone()));
    // A file that cannot be written is found before anything is asked for.
    let remount = std::process::Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&file).status();
    assert!(remount.unwrap().success());
    assert_eq!(bench.try_prepare("2").unwrap_err().code(), "read-only");
    assert_eq!(bench.served(), Some(old));
    drop(single);
    drop(tmpfs);
}

#[test]
fn what_a_container_sees_is_looked_at_from_inside() {
    let mut bench = Bench::new(Singles);
    bench.put_flat();
    // This process stands for the container: it sees the files by paths of its own.
    let held = bench.path("held");
    fs::hard_link(bench.certificate(), &held).unwrap();
    let files = vec![held.to_str().unwrap().to_owned(), bench.secret().to_str().unwrap().to_owned()];
    let consumer = Consumer {
        container: "web".into(),
        container_id: "x".into(),
        image: String::new(),
        program: String::new(),
        running: true,
        pid: i32::try_from(std::process::id()).unwrap(),
        reload: Ladder::default(),
        check: None,
        serves: false,
        endpoints: Vec::new(),
        inside: Inside { user: String::new(), files },
        host: None,
    };
    bench.installation.consumers = vec![consumer.clone()];
    bench.install("1");
    bench.files().seen_by(std::slice::from_ref(&consumer)).unwrap();
    // Somebody replaces the file on the host by rename: the container goes on with its own.
    let copy = fs::read(bench.certificate()).unwrap();
    fs::write(bench.path("new"), copy).unwrap();
    fs::rename(bench.path("new"), bench.certificate()).unwrap();
    let error = bench.files().seen_by(&[consumer]).unwrap_err();
    assert_eq!(error.code(), "bind-mounted-file");
    assert!(error.to_string().contains("restart the container"), "{error}");
}
