use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::discover::Endpoint;
use crate::discover::assemble::assemble;
use crate::discover::assemble::tests::web;
use crate::discover::formats::{Certificate, certificate};
use crate::discover::found::Files;

fn certificate(name: &str) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let one = CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
    certificate::read_all(&[one.der().to_vec()]).remove(0)
}

fn user(container: &str) -> User {
    User {
        container: container.into(),
        container_id: format!("id-{container}"),
        image: "x".into(),
        program: "nginx".into(),
        reload: "signal HUP".into(),
        running: true,
        path: "/tls/a.crt".into(),
    }
}

fn found(path: &str, container: &str, certificate: &Certificate) -> Discovered {
    Discovered {
        id: path.into(),
        label: format!("{container}/a"),
        origin: Origin::File,
        lies: Lies::Pair,
        files: Some(Files {
            mount: "/srv".into(),
            certificate: path.into(),
            format: crate::discover::formats::Format::Pem,
            count: 1,
            access: crate::dir::Access { uid: 0, gid: 0, mode: 0o644 },
            key: None,
            also: Vec::new(),
        }),
        certificate: Some(certificate.clone()),
        missing_issuer: None,
        users: vec![user(container)],
        endpoints: Vec::new(),
    }
}

fn served(container: &str, address: &str, certificate: &Certificate) -> Served {
    Served {
        container: container.into(),
        container_id: format!("id-{container}"),
        user: user(container),
        endpoint: Endpoint { address: address.into(), ..Endpoint::default() },
        chain: vec![certificate.clone()],
    }
}

fn picture(all: Vec<Discovered>) -> Picture {
    let mut picture = Picture::default();
    picture.paired.discovered = all.into_iter().map(|one| (one.id.clone(), one)).collect();
    picture
}

fn merged(all: Vec<Discovered>, served: &[Served]) -> Host {
    let mut host = Host::default();
    merge(&mut host, &picture(all), served, 0);
    host
}

fn ids(host: &Host, id: &str) -> Vec<String> {
    host.findings.iter().filter(|one| one.id == id).map(|one| one.object.clone()).collect()
}

#[test]
fn what_is_declared_is_not_discovered() {
    let mut host = assemble(vec![web("web", "/srv/tls")]);
    let one = certificate("a.example.test");
    let installation = host.installations.values_mut().next().unwrap();
    installation.certificate = Some(one.facts.clone());
    let all = vec![
        found("/srv/tls/site.crt", "web", &certificate("b.test")),
        found("/srv/tls/copy.pem", "web", &one),
        found("/srv/other/copy.pem", "web", &one),
    ];
    merge(&mut host, &picture(all), &[served("web", "172.17.0.2:443", &certificate("c.test"))], 0);
    assert_eq!(host.discovered.keys().collect::<Vec<_>>(), ["/srv/other/copy.pem"]);
}

#[test]
fn an_endpoint_belongs_to_the_file_that_it_serves() {
    let (a, b) = (certificate("a.test"), certificate("b.test"));
    let all = vec![found("/srv/a.crt", "web", &a), found("/srv/b.crt", "other", &b)];
    let host = merged(all, &[served("web", "10.0.0.1:443", &a), served("web", "10.0.0.1:8443", &b)]);
    assert_eq!(host.discovered["/srv/a.crt"].endpoints[0].endpoint.address, "10.0.0.1:443");
    let other = &host.discovered["/srv/b.crt"];
    assert_eq!(other.endpoints[0].endpoint.address, "10.0.0.1:8443");
    assert_eq!(other.users.len(), 2, "who serves it uses it");
    assert_eq!(host.discovered.len(), 2);
}

#[test]
fn what_is_served_instead_of_the_file_is_told() {
    let (old, new) = (certificate("a.test"), certificate("a.test"));
    let host = merged(vec![found("/srv/a.crt", "web", &new)], &[served("web", "10.0.0.1:443", &old)]);
    assert_eq!(ids(&host, "served-differs-from-file"), ["10.0.0.1:443"]);
    assert_eq!(host.discovered["/srv/a.crt"].endpoints[0].served, old.facts.fingerprint);
    assert_eq!(host.discovered.len(), 1);
}

#[test]
fn an_endpoint_without_a_file_is_all_there_is() {
    let mut alone = served("web", "127.0.0.1:443", &certificate("a.test"));
    let endpoint = |served: &Served| merged(Vec::new(), std::slice::from_ref(served)).discovered;
    let id = "endpoint:127.0.0.1:443/";
    let found = &endpoint(&alone)[id];
    assert_eq!(
        (found.origin, found.lies, found.label.as_str()),
        (Origin::Endpoint, Lies::Nowhere, "web/127.0.0.1:443")
    );
    alone.endpoint.within = Some(crate::discover::Within { container: "web".into(), pid: 1 });
    assert!(endpoint(&alone).contains_key("endpoint:web:127.0.0.1:443/"));
}

#[test]
fn numbers_change_with_files() {
    let (a, b) = (certificate("a.test"), certificate("b.test"));
    let of = |one: &Certificate| files_of_containers(&merged(vec![found("/srv/a.crt", "web", one)], &[]));
    assert_eq!(of(&a), of(&a));
    assert_ne!(of(&a)["id-web"], of(&b)["id-web"]);
    assert!(in_files(&merged(vec![found("/srv/a.crt", "web", &a)], &[])).contains(&a.facts.fingerprint));
}
