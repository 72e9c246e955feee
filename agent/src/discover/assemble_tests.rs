use super::*;
use crate::discover::Starttls;
use crate::discover::labels;
use crate::discover::mounts::Mount;

/// A running nginx that declares /tls/site.crt out of `source`.
pub(crate) fn web(name: &str, source: &str) -> Container {
    labelled(name, source, &[])
}

pub(crate) fn labelled(name: &str, source: &str, extra: &[(&str, &str)]) -> Container {
    let mut all = vec![
        ("reseal.enable", "true"),
        ("reseal.cert.site.names", "a.example.test"),
        ("reseal.cert.site.path", "/tls/site.crt"),
        ("reseal.cert.site.verify", "443"),
    ];
    all.retain(|(key, _)| !extra.iter().any(|(other, _)| other == key));
    all.extend(extra.iter().copied());
    Container {
        name: name.into(),
        id: format!("id-{name}"),
        image: "services".into(),
        running: true,
        pid: 1,
        process: vec!["nginx: master process nginx".into()],
        user: String::new(),
        behind: Vec::new(),
        command: vec!["nginx".into()],
        mounts: vec![Mount { source: source.into(), destination: "/tls".into(), kind: "bind".into() }],
        addresses: vec!["172.17.0.2".parse().unwrap()],
        published: BTreeMap::from([(443, vec!["127.0.0.1:8443".parse().unwrap()])]),
        declared: labels::parse(all),
        labelled: true,
        ..Container::default()
    }
}

#[test]
fn a_container_becomes_an_installation() {
    let host = assemble(vec![web("web", "/srv/tls")]);
    assert_eq!(host.findings, []);
    let installation = &host.installations["/srv/tls/site.crt"];
    assert_eq!(installation.label, "web/site");
    assert_eq!(installation.place.key, "site.key");
    let consumer = &installation.consumers[0];
    assert_eq!(consumer.reload.to_string(), "signal HUP, exec nginx -s reload");
    let addresses: Vec<_> = consumer.endpoints.iter().map(|e| e.address.as_str()).collect();
    assert_eq!(addresses, ["127.0.0.1:8443", "172.17.0.2:443"]);
    assert_eq!(consumer.endpoints[0].sni, "a.example.test");
    assert!(consumer.endpoints.iter().all(|endpoint| endpoint.within.is_none()));
    let servers = consumer.endpoints.iter().map(|endpoint| endpoint.server.as_ref().unwrap());
    let published: Vec<_> = servers.map(|server| (server.port, server.published)).collect();
    assert_eq!(published, [(443, true), (443, false)]);
}

#[test]
fn without_an_address_a_port_is_dialled_from_within() {
    let mut container = labelled("web", "/srv/tls", &[("reseal.cert.site.verify", "5432")]);
    container.addresses.clear();
    let host = assemble(vec![container.clone()]);
    assert_eq!(host.findings, []);
    let endpoints = &host.installations["/srv/tls/site.crt"].consumers[0].endpoints;
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].address, "127.0.0.1:5432");
    assert_eq!(endpoints[0].starttls, Starttls::Postgres);
    assert_eq!(endpoints[0].within, Some(Within { container: "web".into(), pid: 1 }));
    // Its processes are not seen: there is no way to it.
    container.pid = 0;
    let host = assemble(vec![container]);
    assert_eq!(host.findings[0].id, "endpoint-unreachable");
    assert!(host.installations["/srv/tls/site.crt"].consumers[0].endpoints.is_empty());
}

#[test]
fn the_same_file_is_one_installation() {
    let host = assemble(vec![web("b", "/srv/tls"), web("a", "/srv/tls")]);
    assert_eq!(host.installations.len(), 1);
    let installation = &host.installations["/srv/tls/site.crt"];
    assert_eq!(installation.label, "a/site");
    assert_eq!(installation.consumers.len(), 2);
}

#[test]
fn consumers_that_disagree_are_not_managed() {
    let other = labelled("b", "/srv/tls", &[("reseal.cert.site.names", "b.example.test")]);
    let host = assemble(vec![web("a", "/srv/tls"), other]);
    assert!(host.installations.is_empty());
    assert_eq!(host.findings[0].id, "label-conflict");
    assert_eq!(host.findings[0].object, "/srv/tls/site.crt");
}

#[test]
fn two_installations_do_not_share_a_key_file() {
    let two = labelled(
        "web",
        "/srv/tls",
        &[
            ("reseal.cert.zwei.names", "b.example.test"),
            ("reseal.cert.zwei.path", "/tls/zwei.crt"),
            ("reseal.cert.zwei.key", "/tls/site.key"),
        ],
    );
    let host = assemble(vec![two]);
    assert_eq!(host.installations.len(), 1);
    assert_eq!(host.findings[0].id, "label-conflict");
}

#[test]
fn a_single_file_mount_is_a_finding() {
    let mut container = web("web", "/srv/site.crt");
    container.mounts[0].destination = "/tls/site.crt".into();
    let mut beside = container.clone();
    let key = Mount { source: "/srv/keys".into(), destination: "/tls".into(), kind: "bind".into() };
    beside.mounts.push(key);
    // The key is on no mount.
    let host = assemble(vec![container]);
    assert!(host.installations.is_empty());
    let host = assemble(vec![beside]);
    let place = &host.installations["/srv/site.crt"].place;
    assert!(place.in_place() && place.single && place.mount == "/srv");
    assert_eq!(place.secret().path(), "/srv/keys/site.key");
    assert_eq!(
        (host.findings[0].id.as_str(), host.findings[0].severity.as_str()),
        ("bind-mounted-file", "warning")
    );
}

#[test]
fn two_directories_of_one_mount_are_one_installation_and_two_mounts_are_none() {
    let extra = [
        ("reseal.cert.site.path", "/etc/ssl/certs/site.pem"),
        ("reseal.cert.site.key", "/etc/ssl/private/site.pem"),
        ("reseal.cert.site.chain", "/etc/ssl/certs/chain.pem"),
    ];
    let mut one = labelled("web", "/srv/ssl", &extra);
    one.mounts[0].destination = "/etc/ssl".into();
    let mut two = labelled("web", "/srv/ssl/certs", &extra);
    two.mounts[0].destination = "/etc/ssl/certs".into();
    let private = Mount {
        source: "/srv/ssl/private".into(),
        destination: "/etc/ssl/private".into(),
        kind: "bind".into(),
    };
    two.mounts.push(private);
    let host = assemble(vec![one]);
    let installation = &host.installations["/srv/ssl/certs/site.pem"];
    let files: Vec<String> = installation.place.files().iter().map(|file| file.path()).collect();
    let expected = ["/srv/ssl/certs/site.pem", "/srv/ssl/private/site.pem", "/srv/ssl/certs/chain.pem"];
    assert_eq!(files, expected);
    assert_eq!(installation.consumers[0].inside.files[1], "/etc/ssl/private/site.pem");
    let host = assemble(vec![two]);
    assert!(host.installations.is_empty());
    assert_eq!(host.findings[0].id, "split-pair");
    assert!(host.findings[0].message.contains("/etc/ssl/private/site.pem"));
}

#[test]
fn what_does_not_run_has_no_endpoint_but_serves() {
    let mut container = web("web", "/srv/tls");
    container.running = false;
    let host = assemble(vec![container]);
    let consumer = &host.installations["/srv/tls/site.crt"].consumers[0];
    assert!(consumer.serves && consumer.endpoints.is_empty());
}

#[test]
fn an_unknown_program_without_a_method_is_a_finding() {
    let mut container = web("web", "/srv/tls");
    container.process = vec!["/usr/bin/mydaemon".into()];
    let host = assemble(vec![container]);
    assert_eq!(host.findings[0].id, "reload-missing");
    assert!(host.findings[0].message.contains("mydaemon"));
    let told = labelled("web", "/srv/tls", &[("reseal.cert.site.reload", "signal:USR1")]);
    let host = assemble(vec![Container { process: vec!["/usr/bin/mydaemon".into()], ..told }]);
    assert_eq!(host.findings, []);
}

#[test]
fn a_bundle_is_written_for_each_file() {
    let extra = [("reseal.trust.ca.bundle", "managed-root"), ("reseal.trust.ca.path", "/tls/ca.pem")];
    let host = assemble(vec![labelled("a", "/srv/tls", &extra), labelled("b", "/srv/tls", &extra)]);
    assert_eq!(host.trusts.len(), 1);
    assert_eq!(host.trusts[0].consumers.len(), 2);
    assert!(host.trusts.iter().any(|trust| trust.bundle == "managed-root"));
}
