use std::fs;

use super::*;
use crate::discover::mounts::Mount;

fn config(host_root: &std::path::Path) -> Config {
    let mut config = Config::load(None, Some(host_root)).unwrap();
    config.host_root = host_root.to_owned();
    config
}

fn container(id: &str, sources: &[&str]) -> Container {
    let mount = |source: &&str| Mount {
        source: (*source).into(),
        destination: format!("/in{source}"),
        kind: "bind".into(),
    };
    Container {
        name: id.into(),
        id: id.into(),
        mounts: sources.iter().map(mount).collect(),
        ..Container::default()
    }
}

fn certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(&key).unwrap().pem()
}

#[test]
fn an_outer_mount_is_searched_once_and_for_all_within_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("srv/tls")).unwrap();
    fs::write(dir.path().join("srv/tls/a.crt"), certificate()).unwrap();
    let mut search = Search::new(&config(dir.path()));
    let containers = [container("outer", &["/srv"]), container("inner", &["/srv/tls"])];
    let later = crate::app::now() + 60;
    let picture = search.run(&containers, None, later);
    assert_eq!((picture.mounts, picture.files, picture.opened), (1, 1, 1));
    let found = &picture.paired.discovered["/srv/tls/a.crt"];
    let seen: Vec<_> = found.users.iter().map(|user| user.path.as_str()).collect();
    assert_eq!(seen, ["/in/srv/tls/a.crt", "/in/srv/tls/a.crt"]);
    // Nothing changed: nothing is walked. The inner one did: the outer is.
    let nobody = BTreeSet::new();
    assert_eq!(search.run(&containers, Some(&nobody), later).files, 0);
    fs::write(dir.path().join("srv/tls/b.crt"), certificate()).unwrap();
    let picture = search.run(&containers, Some(&BTreeSet::from(["inner".to_owned()])), later);
    assert_eq!((picture.files, picture.opened, picture.paired.discovered.len()), (2, 1, 2));
    // Whose container is gone is not there any more.
    assert!(search.run(&[], Some(&nobody), later).paired.discovered.is_empty());
}

#[test]
fn what_is_too_much_is_left_out_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut search = Search::new(&config(dir.path()));
    let picture = search.run(
        &[container("agent", &["/", "/proc", "/sys/fs", "/var/run/docker.sock", "/gone"])],
        None,
        0,
    );
    assert_eq!(picture.mounts, 0);
    let told: Vec<_> =
        picture.findings.iter().map(|found| (found.object.as_str(), found.severity.as_str())).collect();
    assert_eq!(told, [("/", "info")]);
}

#[test]
fn what_is_to_be_skipped_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("srv/backup")).unwrap();
    fs::write(dir.path().join("srv/backup/a.crt"), certificate()).unwrap();
    let mut config = config(dir.path());
    config.discovery.skip = vec!["/srv/backup".into()];
    for source in ["/srv", "/srv/backup"] {
        let picture = Search::new(&config).run(&[container("a", &[source])], None, 0);
        assert!(picture.paired.discovered.is_empty());
    }
}

#[test]
fn requests_add_up() {
    let one = |id: &str| Request { changed: Some(BTreeSet::from([id.to_owned()])), ..Request::default() };
    assert_eq!(one("a").and(one("b")).changed, Some(["a".to_owned(), "b".to_owned()].into()));
    assert_eq!(one("a").and(Request::default()).changed, None);
}
