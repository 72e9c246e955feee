use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;
use crate::dir::Access;
use crate::discover::formats;
use crate::discover::mounts::Mount;
use crate::pem;

struct Tree {
    mounted: Mounted,
}

impl Tree {
    fn new(source: &str) -> Self {
        Self { mounted: Mounted { source: source.into(), ..Mounted::default() } }
    }

    fn file(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        let inode = (1, self.mounted.files.len() as u64);
        let content = Arc::new(formats::read(bytes.as_ref()).unwrap());
        let access = Access { uid: 0, gid: 0, mode: 0o644 };
        self.mounted.files.push(File { path: path.into(), inode, access, enclosed: false, content });
        self
    }

    fn link(mut self, path: &str, to: &str) -> Self {
        let inode = self.mounted.files.iter().find(|file| file.path == to).unwrap().inode;
        self.mounted.links.push(crate::discover::files::Link { path: path.into(), inode });
        self
    }
}

fn pairs(trees: Vec<Tree>, containers: &[Container]) -> Paired {
    let mounts: Vec<_> = trees.into_iter().map(|tree| Arc::new(tree.mounted)).collect();
    pair(&mounts, containers)
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn under(name: &str, issuer: &CertifiedIssuer<'static, KeyPair>) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

/// PEM of a certificate and of its key.
fn leaf(name: &str, issuer: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.into()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), pem::private_key(&key.serialize_der()).to_string())
}

fn container(name: &str, mounts: &[(&str, &str)]) -> Container {
    let mount = |(source, destination): &(&str, &str)| Mount {
        source: (*source).into(),
        destination: (*destination).into(),
        kind: "bind".into(),
    };
    Container { name: name.into(), mounts: mounts.iter().map(mount).collect(), ..Container::default() }
}

#[test]
fn a_key_is_found_by_its_public_key_the_nearest_first() {
    let root = authority("root");
    let (certificate, key) = leaf("a.test", &root);
    let (_, stranger) = leaf("b.test", &root);
    let tree = Tree::new("/srv")
        .file("app/tls/a.crt", &certificate)
        .file("app/tls/a.key", &stranger)
        .file("app/private/secret.txt", &key)
        .file("old/a.key", &key);
    let paired = pairs(vec![tree], &[container("web", &[("/srv/app", "/app")])]);
    let found = &paired.discovered["/srv/app/tls/a.crt"];
    assert_eq!(found.lies, Lies::Pair);
    assert_eq!(found.files.as_ref().unwrap().key.as_ref().unwrap().path, "/srv/app/private/secret.txt");
    assert_eq!((found.label.as_str(), found.users[0].path.as_str()), ("web/a", "/app/tls/a.crt"));
    let unused: Vec<_> = paired.keys.iter().map(|key| key.path.as_str()).collect();
    assert_eq!(unused, ["/srv/app/tls/a.key", "/srv/old/a.key"]);
}

#[test]
fn two_single_files_are_a_pair() {
    let root = authority("root");
    let (certificate, key) = leaf("a.test", &root);
    let trees =
        vec![Tree::new("/srv/a.crt").file("", &certificate), Tree::new("/secrets/a.key").file("", &key)];
    let mounts = [("/srv/a.crt", "/tls/a.crt"), ("/secrets/a.key", "/tls/a.key")];
    let paired = pairs(trees, &[container("web", &mounts)]);
    let found = &paired.discovered["/srv/a.crt"];
    assert_eq!((found.lies, found.users[0].path.as_str()), (Lies::Pair, "/tls/a.crt"));
}

#[test]
fn the_leaf_of_a_bundle_in_any_order() {
    let root = authority("root");
    let intermediate = under("intermediate", &root);
    let (certificate, key) = leaf("a.test", &intermediate);
    let bundle = format!("{}{certificate}{key}", intermediate.pem());
    let paired = pairs(vec![Tree::new("/srv").file("a.pem", bundle)], &[]);
    let found = &paired.discovered["/srv/a.pem"];
    assert_eq!(found.lies, Lies::Combined);
    assert_eq!(found.certificate.as_ref().unwrap().facts.names, ["a.test"]);
    assert_eq!(found.missing_issuer, None);
    // Without a key, the one that signs no other.
    let paired =
        pairs(vec![Tree::new("/srv").file("a.pem", format!("{}{certificate}", intermediate.pem()))], &[]);
    assert_eq!(paired.discovered["/srv/a.pem"].lies, Lies::Certificate);
    // Authorities alone are a trust store, unless their key is there.
    let paired =
        pairs(vec![Tree::new("/srv").file("ca.pem", format!("{}{}", root.pem(), intermediate.pem()))], &[]);
    assert!(paired.discovered.is_empty());
    assert_eq!(paired.trust, [TrustFile { path: "/srv/ca.pem".into(), count: 2 }]);
}

#[test]
fn certbot_is_known_by_its_links() {
    let root = authority("root");
    let intermediate = under("intermediate", &root);
    let (old, old_key) = leaf("a.test", &intermediate);
    let (new, new_key) = leaf("a.test", &intermediate);
    let chain = intermediate.pem();
    let mut tree = Tree::new("/etc/letsencrypt");
    for (number, certificate, key) in [(1, &old, &old_key), (2, &new, &new_key)] {
        tree = tree
            .file(&format!("archive/a/cert{number}.pem"), certificate)
            .file(&format!("archive/a/chain{number}.pem"), &chain)
            .file(&format!("archive/a/fullchain{number}.pem"), format!("{certificate}{chain}"))
            .file(&format!("archive/a/privkey{number}.pem"), key);
    }
    for name in ["cert", "chain", "fullchain", "privkey"] {
        tree = tree.link(&format!("live/a/{name}.pem"), &format!("archive/a/{name}2.pem"));
    }
    let paired = pairs(vec![tree], &[container("web", &[("/etc/letsencrypt", "/etc/letsencrypt")])]);
    let ids: Vec<_> = paired.discovered.keys().collect();
    assert_eq!(ids, ["/etc/letsencrypt/live/a/fullchain.pem"]);
    let found = &paired.discovered["/etc/letsencrypt/live/a/fullchain.pem"];
    let files = found.files.as_ref().unwrap();
    assert_eq!(files.key.as_ref().unwrap().path, "/etc/letsencrypt/live/a/privkey.pem");
    assert_eq!(files.also, ["/etc/letsencrypt/live/a/cert.pem"]);
    assert_eq!((paired.superseded, paired.keys.len()), (4, 0));
}

#[test]
fn what_the_agent_left_is_known_by_its_links_only() {
    let root = authority("root");
    let ((now, key), (before, old)) = (leaf("a.test", &root), leaf("a.test", &root));
    let tree = Tree::new("/srv/tls")
        .file(".reseal/site/2/site.crt", now)
        .file(".reseal/site/2/site.key", key)
        .file(".reseal/site/1/site.crt", before)
        .file(".reseal/site/1/site.key", old)
        .link("site.crt", ".reseal/site/2/site.crt")
        .link("site.key", ".reseal/site/2/site.key");
    let paired = pairs(vec![tree], &[container("web", &[("/srv/tls", "/tls")])]);
    assert_eq!(paired.discovered.keys().collect::<Vec<_>>(), ["/srv/tls/site.crt"]);
    let key = paired.discovered["/srv/tls/site.crt"].files.as_ref().unwrap().key.as_ref().unwrap();
    assert_eq!(key.path, "/srv/tls/site.key");
    assert_eq!((paired.keys.len(), paired.superseded), (0, 0));
}

#[test]
fn an_intermediate_that_lies_elsewhere_is_missed() {
    let root = authority("root");
    let intermediate = under("intermediate", &root);
    let (certificate, key) = leaf("a.test", &intermediate);
    let tree = |chain: &str| {
        Tree::new("/srv")
            .file("tls/a.crt", &certificate)
            .file("tls/a.key", &key)
            .file(chain, intermediate.pem())
    };
    let missing = |chain| pairs(vec![tree(chain)], &[]).discovered["/srv/tls/a.crt"].missing_issuer.clone();
    assert_eq!(missing("ca/chain.pem").unwrap(), "CN=intermediate");
    assert_eq!(missing("tls/chain.pem"), None, "beside it: the program is told of it by itself");
    // A root needs not be sent.
    let (certificate, key) = leaf("b.test", &root);
    let tree =
        Tree::new("/srv").file("b.crt", &certificate).file("b.key", &key).file("ca/root.pem", root.pem());
    assert_eq!(pairs(vec![tree], &[]).discovered["/srv/b.crt"].missing_issuer, None);
}

#[test]
fn a_mount_that_covers_another_hides_its_files() {
    let root = authority("root");
    let (certificate, _) = leaf("a.test", &root);
    let tree = Tree::new("/srv").file("tls/a.crt", &certificate);
    let covered = container("covered", &[("/srv", "/app"), ("/other", "/app/tls")]);
    let seen = container("seen", &[("/srv/tls", "/tls")]);
    let paired = pairs(vec![tree], &[seen, covered]);
    let users: Vec<_> =
        paired.discovered["/srv/tls/a.crt"].users.iter().map(|user| user.container.as_str()).collect();
    assert_eq!(users, ["seen"]);
}
