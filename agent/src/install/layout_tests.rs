//! What each layout promises beyond whole pairs: other people's links and files, times, passwords.

use super::*;

/// As certbot leaves it: both paths become links to files elsewhere in the mount.
pub(super) fn archive(bench: &Bench) {
    fs::create_dir(bench.path("archive")).unwrap();
    for file in ["site.crt", "site.key"] {
        if bench.path(file).exists() {
            fs::rename(bench.path(file), bench.path("archive").join(file)).unwrap();
            symlink(format!("archive/{file}"), bench.path(file)).unwrap();
        }
    }
}

#[test]
fn links_of_somebody_else_are_taken_over_and_given_back() {
    for shape in [Pair, Combined, Der, Jks] {
        let bench = Bench::new(shape);
        let old = bench.put_flat();
        archive(&bench);
        let content = |name: &str| fs::read(bench.path("archive").join(name)).ok();
        let before = (content("site.crt"), content("site.key"));
        let (new, previous) = bench.install("1");
        assert_eq!(bench.served(), Some(new.clone()), "{shape:?}");
        assert_eq!((content("site.crt"), content("site.key")), before, "the archive was written to");
        bench.files().restore(previous.as_deref().unwrap()).unwrap();
        assert_eq!(bench.served(), Some(old), "{shape:?}");
        assert_eq!(fs::read_link(bench.certificate()).unwrap(), Path::new("archive/site.crt"));
        if shape == Pair {
            assert_eq!(fs::read_link(bench.secret()).unwrap(), Path::new("archive/site.key"));
        }
        // The same again, to the end.
        bench.files().discard("1").unwrap();
        let (new, previous) = bench.install("2");
        bench.files().settle(previous.as_deref()).unwrap();
        assert_eq!(bench.served(), Some(new));
        assert_eq!((content("site.crt"), content("site.key")), before);
    }
}

#[test]
fn a_link_out_of_the_mount_is_refused() {
    for shape in [Pair, Combined, Jks] {
        let bench = Bench::new(shape);
        bench.put_flat();
        let outside = tempfile::tempdir().unwrap();
        let there = outside.path().join("archived");
        fs::rename(bench.certificate(), &there).unwrap();
        let content = fs::read(&there).unwrap();
        symlink(&there, bench.certificate()).unwrap();
        let error = bench.try_prepare("1").and_then(|()| {
            let (_, chain) = bench.issue();
            bench.files().stage("1", &chain).map(drop)
        });
        let error = error.unwrap_err();
        assert_eq!(error.code(), "path-escapes", "{shape:?}");
        let said = crate::chain_of(&error).to_string();
        assert!(said.contains("leads out of its mount") && said.contains("mount the directory"), "{said}");
        assert_eq!(fs::read(&there).unwrap(), content);
        assert_eq!(fs::read_link(bench.certificate()).unwrap(), there);
    }
}

#[test]
fn a_directory_behind_a_sideways_link_is_refused() {
    let mut bench = Bench::new(Apart);
    fs::create_dir_all(bench.path("deep/er")).unwrap();
    symlink("deep/er", bench.path("side")).unwrap();
    let key = bench.installation.place.key_at.as_mut().unwrap();
    key.directory = "side".into();
    assert_eq!(bench.try_prepare("1").unwrap_err().code(), "path-escapes");
    key_in(&mut bench, "deep/er");
    let (leaf, _) = bench.install("1");
    assert_eq!(bench.served(), Some(leaf));
    let link = fs::read_link(bench.path("deep/er/site.crt")).unwrap();
    assert_eq!(link, Path::new("../../certs/.reseal/site/current/key-site.crt"));
}

fn key_in(bench: &mut Bench, directory: &str) {
    bench.installation.place.key_at.as_mut().unwrap().directory = directory.into();
}

#[test]
fn the_time_of_a_file_always_moves_forward() {
    let modified = |bench: &Bench| {
        let of = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
        (of(bench.certificate()), of(bench.secret()))
    };
    for shape in SHAPES {
        let bench = Bench::new(shape);
        bench.put_flat();
        // By a clock that was ahead by years.
        let ahead = SystemTime::now() + Duration::from_secs(100_000_000);
        for path in [bench.certificate(), bench.secret()] {
            fs::File::options().write(true).open(path).unwrap().set_modified(ahead).unwrap();
        }
        let mut last = modified(&bench);
        let mut forward = |what: &str| {
            let now = modified(&bench);
            let step = Duration::from_secs(1);
            assert!(now.0 >= last.0 + step && now.1 >= last.1 + step, "{shape:?} {what}: {last:?} {now:?}");
            last = now;
        };
        let (_, previous) = bench.install("1");
        forward("the first");
        bench.install("2");
        forward("the second, in the same second");
        bench.files().restore("1").unwrap();
        forward("back again");
        bench.files().restore(previous.as_deref().unwrap()).unwrap();
        forward("to what was there before");
    }
}

#[test]
fn what_somebody_else_has_put_there_is_not_written_over() {
    for shape in SHAPES {
        let bench = Bench::new(shape);
        bench.put_flat();
        bench.install("1");
        bench.files().settle(None).unwrap();
        let marker = bench.certificate().with_file_name(".reseal").join("site/installed");
        assert!(fs::read_to_string(&marker).unwrap().contains("Remove this file"));
        // An administrator renews by hand: the paths become files again.
        for file in bench.installation.place.files() {
            if !bench.installation.place.in_place() {
                fs::remove_file(file.path()).unwrap();
            }
        }
        let theirs = bench.put_flat();
        let content = |bench: &Bench| (fs::read(bench.certificate()), fs::read(bench.secret()));
        let before = content(&bench);
        let found = read::changed(&bench.config, &bench.installation).unwrap();
        assert_eq!((found.id.as_str(), found.object), ("changed-by-others", bench.installation.place.id()));
        let error = bench.try_prepare("2").unwrap_err();
        assert_eq!(error.code(), "changed-by-others", "{shape:?}");
        let said = error.to_string();
        assert!(said.contains(marker.to_str().unwrap()), "{said}");
        let after = content(&bench);
        assert_eq!((before.0.unwrap(), before.1.unwrap()), (after.0.unwrap(), after.1.unwrap()));
        // Acknowledged: it is replaced like anything that was there before, and can come back.
        fs::remove_file(&marker).unwrap();
        let (new, previous) = bench.install("2");
        assert_eq!(bench.served(), Some(new), "{shape:?}");
        assert_eq!(read::changed(&bench.config, &bench.installation), None);
        bench.files().restore(previous.as_deref().unwrap()).unwrap();
        assert_eq!(bench.served(), Some(theirs), "{shape:?}");
    }
}

#[test]
fn a_generation_that_somebody_edits_is_noticed() {
    let bench = Bench::new(Pair);
    bench.install("1");
    let (_, chain) = bench.issue();
    let text = pem::certificates(chain.iter().map(AsRef::as_ref));
    fs::write(bench.path("site.crt"), text).unwrap();
    let error = bench.try_prepare("2").unwrap_err();
    assert_eq!(error.code(), "changed-by-others");
    assert!(error.to_string().contains("/site.crt is not what"), "{error}");
    // A file that is gone is no loss: the next one heals it.
    fs::remove_file(bench.path("site.crt")).unwrap();
    let (new, _) = bench.install("2");
    assert_eq!(bench.served(), Some(new));
}

#[test]
fn generations_of_an_earlier_agent_are_taken_as_they_are() {
    let bench = Bench::new(Pair);
    bench.install("1");
    fs::remove_file(bench.path(".reseal/site/installed")).unwrap();
    fs::remove_file(bench.path(".reseal/site/1/.reseal-manifest")).unwrap();
    let (_, previous) = bench.install("2");
    assert_eq!(previous.as_deref(), Some("1"));
    bench.files().restore("1").unwrap();
    bench.files().discard("2").unwrap();
    let (new, _) = bench.install("3");
    assert_eq!(bench.served(), Some(new));
}

#[test]
fn a_key_store_keeps_the_name_of_its_entry() {
    for shape in [Pkcs12, Jks] {
        let mut bench = Bench::new(shape);
        let alias = |bench: &Bench| {
            let password = Password::read(PASSWORD.as_bytes()).unwrap();
            let bytes = fs::read(bench.certificate()).unwrap();
            read::entries(&bytes, Some(&password)).unwrap().keys[0].alias.clone().unwrap()
        };
        bench.install("1");
        assert_eq!(alias(&bench), "site", "{shape:?}");
        fs::remove_dir_all(bench.path(".reseal")).unwrap();
        bench.put_flat();
        bench.install("2");
        assert_eq!(alias(&bench), "theirs", "{shape:?}");
        bench.installation.wanted.alias = Some("declared".into());
        bench.install("3");
        assert_eq!(alias(&bench), "declared", "{shape:?}");
    }
}

#[test]
fn a_password_that_cannot_be_read_stops_it_before_anything_is_asked() {
    for shape in [Pkcs12, Jks] {
        let bench = Bench::new(shape);
        let old = bench.put_flat();
        let file = bench.path("password");
        let refused = || {
            let error = bench.try_prepare("1").unwrap_err();
            assert_eq!(error.code(), "password-unreadable", "{shape:?}");
            assert_eq!(bench.files().progress("1").unwrap(), Progress::Absent);
            crate::chain_of(&error).to_string()
        };
        fs::rename(&file, bench.path("elsewhere")).unwrap();
        let said = refused();
        assert!(said.contains(file.to_str().unwrap()), "{said}");
        let found = read::chain(&bench.config, &bench.installation).unwrap_err();
        assert_eq!(found.code(), "password-unreadable");
        for content in [&b""[..], b"two\nlines\n", &[b'x'; 5000]] {
            fs::write(&file, content).unwrap();
            let said = refused();
            assert!(!said.contains("lines"), "{said}");
        }
        fs::remove_file(&file).unwrap();
        symlink("/etc/passwd", &file).unwrap();
        assert!(refused().contains("leads out of its mount"));
        fs::remove_file(&file).unwrap();
        fs::write(&file, "another one\n").unwrap();
        let found = read::chain(&bench.config, &bench.installation).unwrap_err();
        assert_eq!(found.code(), "password-unreadable");
        fs::rename(bench.path("elsewhere"), &file).unwrap();
        assert_eq!(bench.served(), Some(old));
    }
}
