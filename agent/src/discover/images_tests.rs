use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::discover::Layers;
use crate::discover::mounts::Mount;
use crate::pem;

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn own(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), pem::private_key(&key.serialize_der()).to_string())
}

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn layer(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn container(&self, name: &str, lower: &[&str], upper: &str) -> Container {
        let path = |name: &&str| self.layer(name).to_str().unwrap().to_owned();
        Container {
            name: name.into(),
            id: name.into(),
            image_id: "0123456789abcdef".into(),
            layers: Layers {
                driver: "overlay2".into(),
                lower: lower.iter().map(path).collect(),
                upper: path(&upper),
            },
            ..Container::default()
        }
    }
}

fn look(images: &mut Images, containers: &[Container]) -> Baked {
    let later = crate::app::now() + 60;
    images.look(containers, None, Limits::default(), &open_here, later)
}

#[test]
fn what_is_baked_in_is_found_and_each_layer_walked_once() {
    let host = Host::new();
    let (certificate, key) = own("a.test");
    put(&host.layer("base"), "srv/site.crt", &certificate);
    put(&host.layer("base"), "srv/site.key", &key);
    let (other, other_key) = own("b.test");
    put(&host.layer("upper"), "tmp/made.pem", &format!("{other}{other_key}"));
    let mut images = Images::default();
    let mut covered = host.container("covered", &["base"], "upper-2");
    covered.mounts = vec![Mount { source: "/x".into(), destination: "/srv".into(), kind: "bind".into() }];
    let containers = [host.container("web", &["base"], "upper"), covered];
    let baked = look(&mut images, &containers);
    let ids: Vec<_> = baked.discovered.keys().map(String::as_str).collect();
    assert_eq!(ids, ["container:web:/tmp/made.pem", "image:0123456789ab:/srv/site.crt"]);
    let found = &baked.discovered["image:0123456789ab:/srv/site.crt"];
    assert_eq!((found.origin, found.lies, found.users.len()), (Origin::Image, Lies::Pair, 1));
    assert_eq!(found.users[0].path, "/srv/site.crt");
    assert_eq!(baked.discovered["container:web:/tmp/made.pem"].origin, Origin::File);
    assert_eq!(baked.files, 3);
    // Only what can change is looked at again.
    assert_eq!(look(&mut images, &containers).files, 1);
}

#[test]
fn an_upper_layer_hides_and_takes_away() {
    let host = Host::new();
    for path in ["gone/a.pem", "replaced.pem", "emptied/b.pem", "device.pem", "stays.pem"] {
        let (certificate, key) = own("old.test");
        put(&host.layer("base"), path, &format!("{certificate}{key}"));
    }
    let (certificate, key) = own("new.test");
    put(&host.layer("top"), "replaced.pem", &format!("{certificate}{key}"));
    put(&host.layer("top"), ".wh.gone", "");
    put(&host.layer("top"), "emptied/.wh..wh..opq", "");
    let device = host.layer("top").join("device.pem");
    let kind = rustix::fs::FileType::CharacterDevice;
    let whiteout =
        rustix::fs::mknodat(rustix::fs::CWD, &device, kind, rustix::fs::Mode::from_raw_mode(0o600), 0);
    let baked = look(&mut Images::default(), &[host.container("web", &["top", "base"], "upper")]);
    let ids: Vec<_> = baked.discovered.keys().map(|id| in_container(id)).collect();
    match whiteout {
        Ok(()) => assert_eq!(ids, ["/replaced.pem", "/stays.pem"]),
        // Not everybody may make a device.
        Err(_) => assert_eq!(ids, ["/device.pem", "/replaced.pem", "/stays.pem"]),
    }
    let replaced = &baked.discovered["image:0123456789ab:/replaced.pem"];
    assert_eq!(replaced.certificate.as_ref().unwrap().facts.names, ["new.test"]);
}

#[test]
fn what_a_distribution_brings_along_is_not_found() {
    let host = Host::new();
    let base = host.layer("base");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let (certificate, key) = own("a.test");
    put(&base, "etc/ssl/certs/ca-certificates.crt", &authority.repeat(3));
    put(&base, "etc/ssl/certs/one.pem", &authority);
    put(&base, "srv/trusted-root.pem", &authority);
    put(&base, "usr/lib/python3/test/keycert.pem", &format!("{certificate}{key}"));
    put(&base, "usr/lib/jvm/lib/security/cacerts", "\u{0}");
    put(&base, "etc/ssh/ssh_host_rsa_key", &key);
    put(&base, "etc/ssl/private/site.key", &key);
    let baked = look(&mut Images::default(), &[host.container("web", &["base"], "upper")]);
    assert_eq!(baked.discovered.keys().collect::<Vec<_>>(), Vec::<&String>::new());
    let keys: Vec<_> = baked.keys.iter().map(|key| in_container(&key.path)).collect();
    assert_eq!(keys, ["/etc/ssl/private/site.key"]);
}

#[test]
fn what_cannot_be_seen_is_said() {
    let stopped = Container { name: "stopped".into(), id: "1".into(), ..Container::default() };
    let mut lost = Host::new().container("lost", &["base"], "upper");
    lost.layers.lower = vec!["/nonexistent/layer".into()];
    let baked = look(&mut Images::default(), &[stopped, lost]);
    assert_eq!(baked.unseen.keys().collect::<Vec<_>>(), ["lost", "stopped"]);
}
