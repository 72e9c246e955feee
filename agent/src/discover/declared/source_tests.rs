use super::*;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

struct Place {
    directory: tempfile::TempDir,
    source: Source,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.toml");
        std::fs::write(&file, "").unwrap();
        set_mode(&file, 0o644);
        let state_dir = directory.path().join("state");
        state::make_dir(&state_dir).unwrap();
        let config = Config::load(Some(&file), Some(&state_dir)).unwrap();
        Self { source: Source::new(&config), directory }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("agent.toml")
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

const WEB: &str = "[[certificate]]\ncontainer = 'web'\nnames = 'a.test'\npath = '/tls/a.crt'\n";

fn one(id: &str) -> Adopted {
    Adopted { fields: BTreeMap::from([("path".to_owned(), id.to_owned())]), ..Adopted::default() }
}

#[test]
fn a_change_counts_at_the_next_look() {
    let place = Place::new();
    assert!(place.source.read().containers.is_empty());
    place.write(&format!("adopt = true\n{WEB}"));
    let read = place.source.read();
    assert!(read.adopt && read.containers.contains_key("web"), "{:?}", read.findings);
    place.write("");
    assert!(place.source.read().containers.is_empty());
}

#[test]
fn a_half_written_file_takes_nothing_away() {
    let place = Place::new();
    place.write(WEB);
    place.source.read();
    for damage in ["[[certificate", "\u{0}", "[[certifikate]]\nname = 'x'"] {
        place.write(damage);
        let read = place.source.read();
        assert!(read.containers.contains_key("web"));
        assert!(read.findings[0].message.contains("goes on"), "{:?}", read.findings);
    }
    std::fs::remove_file(place.file()).unwrap();
    let read = place.source.read();
    assert!(read.containers.contains_key("web") && read.findings[0].id == "bad-configuration");
}

#[test]
fn what_others_could_have_written_declares_nothing() {
    let place = Place::new();
    place.write(&format!("adopt = true\n{WEB}"));
    set_mode(&place.file(), 0o664);
    let read = place.source.read();
    assert!(read.containers.is_empty() && !read.adopt);
    assert!(read.findings[0].message.contains("only root can write"), "{:?}", read.findings);
    set_mode(&place.file(), 0o600);
    set_mode(place.directory.path(), 0o777);
    assert!(place.source.read().containers.is_empty(), "the directory counts, too");
    set_mode(place.directory.path(), 0o755);
    assert!(place.source.read().containers.contains_key("web"));
    // Without declarations it is nobody's business.
    place.write("scan_interval_seconds = 60\n");
    set_mode(&place.file(), 0o666);
    assert_eq!(place.source.read().findings, []);
}

#[test]
fn a_giant_is_not_read() {
    let place = Place::new();
    place.write(WEB);
    place.source.read();
    place.write(&format!("# {}\n", "x".repeat(1024 * 1024)));
    let read = place.source.read();
    assert!(read.findings[0].message.contains("one MiB"), "{:?}", read.findings);
}

#[test]
fn what_was_adopted_is_remembered_and_forgotten() {
    let place = Place::new();
    place.source.keep(one("/b.crt")).unwrap();
    place.source.keep(one("/a.crt")).unwrap();
    place.source.keep(one("/a.crt")).unwrap();
    let again = Source(Arc::new(Parts {
        file: None,
        state_dir: place.directory.path().join("state"),
        host_root: "/".into(),
        held: Mutex::default(),
    }));
    let ids = |source: &Source| -> Vec<String> {
        source.read().adopted.iter().map(|one| one.id().to_owned()).collect()
    };
    assert_eq!(ids(&again), ["/a.crt", "/b.crt"]);
    assert!(again.release("/a.crt").unwrap());
    assert!(!again.release("/a.crt").unwrap());
    assert_eq!(ids(&again), ["/b.crt"]);
}

#[test]
fn adopted_certificates_are_bounded() {
    let place = Place::new();
    let many: Vec<Adopted> = (0..MOST_ADOPTED).map(|n| one(&format!("/{n}.crt"))).collect();
    place.source.held().adopted = Some(many);
    let refused = place.source.keep(one("/x.crt")).unwrap_err();
    assert!(matches!(refused, KeepError::TooMany));
    // One that is known already may be written again.
    place.source.keep(one("/7.crt")).unwrap();
}

#[test]
fn a_damaged_memory_is_a_finding_and_is_not_written_over() {
    let place = Place::new();
    let file = place.directory.path().join("state").join(FILE);
    std::fs::write(&file, "{").unwrap();
    let read = place.source.read();
    assert_eq!(read.findings[0].id, "bad-configuration");
    assert!(read.findings[0].message.contains("damaged"), "{:?}", read.findings);
    assert!(place.source.keep(one("/a.crt")).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{");
}
