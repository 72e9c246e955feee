//! What was found → what inference needs to know of it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use reseal_proto::v1::{Origin, Usage};

use super::{Found, Inferred, Key, Using, infer};
use crate::discover::formats::Format;
use crate::discover::found::{Discovered, Files, Lies};
use crate::discover::{Container, Endpoint, Host, Starttls, programs};

/// For everything that is discovered, by its id.
pub fn all(host: &Host, containers: &[Container]) -> BTreeMap<String, Inferred> {
    let by_name: BTreeMap<&str, &Container> =
        containers.iter().map(|container| (container.name.as_str(), container)).collect();
    let keys = keys(host);
    host.discovered
        .values()
        .map(|discovered| {
            let reloads = reloads(discovered, &by_name);
            (discovered.id.clone(), infer(&found(discovered, &keys, &reloads, containers)))
        })
        .collect()
}

/// Key file → certificates that need it, declared ones too.
fn keys(host: &Host) -> BTreeMap<String, Vec<&str>> {
    let mut keys: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for installation in host.installations.values().filter(|one| !one.place.key.is_empty()) {
        let key = installation.place.secret().path();
        keys.entry(key).or_default().push(&installation.id);
    }
    for discovered in host.discovered.values().filter(|one| one.origin == Origin::File) {
        if let Some(key) = discovered.files.as_ref().and_then(|files| files.key.as_ref()) {
            keys.entry(key.path.clone()).or_default().push(&discovered.id);
        }
    }
    keys
}

/// By container: how its program reloads, as the table has it.
fn reloads(discovered: &Discovered, containers: &BTreeMap<&str, &Container>) -> BTreeMap<String, String> {
    let known = discovered.users.iter().filter_map(|user| {
        let known = programs::known_for_file(containers.get(user.container.as_str())?, &user.path)?;
        // One that takes it only by a restart has no step here: its label has to allow that.
        let how =
            if known.watches { "none (it watches the file)".to_owned() } else { known.ladder.to_string() };
        (known.watches || !known.ladder.0.is_empty()).then(|| (user.container.clone(), how))
    });
    known.collect()
}

fn found<'a>(
    discovered: &'a Discovered,
    keys: &BTreeMap<String, Vec<&'a str>>,
    reloads: &'a BTreeMap<String, String>,
    containers: &[Container],
) -> Found<'a> {
    let files = discovered.files.as_ref();
    let key = files.and_then(|files| files.key.as_ref());
    let sharing = key.and_then(|key| keys.get(&key.path)).into_iter().flatten();
    Found {
        id: files.map_or(discovered.id.as_str(), |files| files.certificate.as_str()),
        elsewhere: elsewhere(discovered, files),
        layout: discovered.lies.name(),
        mount: files.map_or("", |files| files.mount.as_str()),
        facts: discovered.certificate.as_ref().map(|certificate| &certificate.facts),
        usage: discovered.certificate.as_ref().map_or(Usage::Unspecified, |certificate| certificate.usage),
        key: key.map(|key| Key { path: &key.path, encrypted: key.encrypted, open: key.open, mode: key.mode }),
        also: files.map_or(&[], |files| files.also.as_slice()),
        sharing: sharing.copied().filter(|id| *id != discovered.id).collect(),
        users: discovered
            .users
            .iter()
            .filter(|user| !user.path.is_empty())
            .map(|user| Using {
                container: &user.container,
                image: &user.image,
                program: &user.program,
                reload: reloads.get(&user.container).map(String::as_str),
                running: user.running,
                path: &user.path,
                ports: ports(discovered, &user.container, containers),
            })
            .collect(),
    }
}

/// Why nothing can be written where it is.
fn elsewhere(discovered: &Discovered, files: Option<&Files>) -> Option<String> {
    match discovered.origin {
        Origin::Image => Some(
            "path: it is baked into the image, where nothing can be renewed: mount the directory".to_owned(),
        ),
        Origin::Endpoint => Some(
            "path: it is only served, its file was found nowhere beneath a mount: mount the directory"
                .to_owned(),
        ),
        Origin::File => {
            let files = files?;
            if files.mount == files.certificate {
                return Some(format!(
                    "path: {} is mounted as a single file, which the container would keep: mount its directory, or declare it by label",
                    files.certificate
                ));
            }
            if files.format == Format::Der && discovered.lies == Lies::Pair {
                return Some(format!(
                    "layout: {} is in DER: declare it by label, with layout=der",
                    files.certificate
                ));
            }
            (discovered.id != files.certificate).then(|| {
                format!(
                    "path: {} holds several certificates, or its name has characters that cannot be written down: declare it by label",
                    discovered.id
                )
            })
        }
    }
}

/// Where a container serves this very certificate, as the label `verify` would say it.
fn ports(discovered: &Discovered, container: &str, containers: &[Container]) -> BTreeSet<String> {
    let Some(fingerprint) = discovered.fingerprint() else { return BTreeSet::new() };
    let container = containers.iter().find(|one| one.name == container);
    let Some(container) = container else { return BTreeSet::new() };
    let served = discovered.endpoints.iter().filter(|seen| seen.served == fingerprint);
    served.filter_map(|seen| label(&seen.endpoint, container)).collect()
}

fn label(endpoint: &Endpoint, container: &Container) -> Option<String> {
    Some(verify_label(port(endpoint, container)?, endpoint.starttls, &endpoint.sni))
}

/// An entry of the label `verify`; without a name where `sni` is empty or an address.
pub fn verify_label(port: u16, starttls: Starttls, sni: &str) -> String {
    let protocol = match starttls {
        usual if usual == Starttls::of_port(port) => String::new(),
        Starttls::None => "/tls".to_owned(),
        other => format!("/{}", other.name()),
    };
    let named = !sni.is_empty() && sni.parse::<IpAddr>().is_err();
    let name = if named { format!("@{sni}") } else { String::new() };
    format!("{port}{protocol}{name}")
}

/// The port inside the container that an address leads to.
fn port(endpoint: &Endpoint, container: &Container) -> Option<u16> {
    let address: SocketAddr = endpoint.address.parse().ok()?;
    match &endpoint.within {
        Some(within) => (within.container == container.name).then_some(address.port()),
        None if container.addresses.contains(&address.ip()) => Some(address.port()),
        None => {
            container.published.iter().find(|(_, dialled)| dialled.contains(&address)).map(|(port, _)| *port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::discover::assemble::{assemble, assemble_with, tests::web};
    use crate::discover::declared::Declarations;
    use crate::discover::found::SeenAt;
    use crate::discover::labels::Declared;
    use crate::discover::merge::merge;
    use crate::discover::search::Search;
    use reseal_proto::v1::Management;
    use std::path::Path;

    /// A directory with a certificate of this name and its key, as somebody made them by hand.
    fn by_hand(directory: &Path, stem: &str, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(directory.join(format!("{stem}.crt")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{stem}.key")), key.serialize_pem()).unwrap();
    }

    /// A running nginx that declares nothing.
    fn plain(name: &str, directory: &Path) -> Container {
        Container { declared: Declared::default(), ..web(name, directory.to_str().unwrap()) }
    }

    fn look(containers: &[Container]) -> Host {
        let config = Config::load(Some(Path::new("/dev/null")), None).unwrap();
        let picture = Search::new(&config).run(containers, None, 1_800_000_000);
        let mut host = assemble(containers.to_vec());
        merge(&mut host, &picture, &[], 1_800_000_000);
        host.inferred = all(&host, containers);
        host
    }

    #[test]
    fn what_lies_there_becomes_an_installation() {
        let directory = tempfile::tempdir().unwrap();
        by_hand(directory.path(), "site", "a.test");
        let containers = [plain("web", directory.path())];
        let mut host = look(&containers);
        let id = directory.path().join("site.crt").display().to_string();
        assert_eq!(host.inferred[&id].obstacles, Vec::<String>::new());
        assert_eq!(host.inferred[&id].declaration.users[0].verify, "");

        // Where it was seen served it is looked at; where another was seen it is not.
        let discovered = host.discovered.get_mut(&id).unwrap();
        let print = discovered.fingerprint().unwrap().to_vec();
        let seen = |address: &str, sni: &str, served: &[u8]| SeenAt {
            endpoint: Endpoint { address: address.into(), sni: sni.into(), ..Endpoint::default() },
            served: served.to_vec(),
        };
        discovered.endpoints = vec![
            seen("172.17.0.2:443", "a.test", &print),
            seen("127.0.0.1:8443", "127.0.0.1", &print),
            seen("172.17.0.2:9443", "a.test", b"another"),
            seen("10.9.9.9:1", "a.test", &print),
        ];
        let inferred = all(&host, &containers).remove(&id).unwrap();
        assert_eq!(inferred.declaration.users[0].verify, "443,443@a.test");

        let declarations = Declarations { adopted: vec![inferred.declaration], ..Declarations::default() };
        let adopted = assemble_with(containers.to_vec(), &declarations);
        let installation = &adopted.installations[&id];
        assert_eq!(installation.management, Management::Adopted);
        assert_eq!(installation.place.key, "site.key");
        assert_eq!(installation.consumers[0].reload.to_string(), "signal HUP, exec nginx -s reload");
        let addresses: Vec<_> =
            installation.consumers[0].endpoints.iter().map(|one| one.address.as_str()).collect();
        assert_eq!(addresses, ["127.0.0.1:8443", "172.17.0.2:443"]);
        assert_eq!(adopted.findings, []);
    }

    #[test]
    fn a_key_that_two_certificates_share_belongs_to_neither() {
        let directory = tempfile::tempdir().unwrap();
        by_hand(directory.path(), "site", "a.test");
        let key = std::fs::read_to_string(directory.path().join("site.key")).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap();
        let other =
            rcgen::CertificateParams::new(vec!["b.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(directory.path().join("other.crt"), other.pem()).unwrap();
        let host = look(&[plain("web", directory.path())]);
        assert_eq!(host.inferred.len(), 2);
        for inferred in host.inferred.values() {
            assert!(inferred.obstacles[0].contains("same key file"), "{:?}", inferred.obstacles);
        }
    }

    #[test]
    fn ports_are_written_as_the_label_has_them() {
        assert_eq!(verify_label(443, Starttls::None, "a.test"), "443@a.test");
        assert_eq!(verify_label(25, Starttls::Smtp, ""), "25");
        assert_eq!(verify_label(2525, Starttls::Smtp, "10.0.0.1"), "2525/smtp");
        assert_eq!(verify_label(25, Starttls::None, ""), "25/tls");
    }

    #[test]
    fn a_key_elsewhere_is_out_of_reach() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        by_hand(one.path(), "site", "a.test");
        std::fs::rename(one.path().join("site.key"), two.path().join("site.key")).unwrap();
        let mut container = plain("web", one.path());
        let mut keys = container.mounts[0].clone();
        keys.source = two.path().display().to_string();
        keys.destination = "/keys".into();
        container.mounts.push(keys);
        let host = look(&[container]);
        let inferred = host.inferred.values().next().unwrap();
        assert!(inferred.obstacles.iter().any(|line| line.starts_with("key")), "{:?}", inferred.obstacles);
    }

    #[test]
    fn what_only_a_stranger_uses_is_left_to_labels() {
        let directory = tempfile::tempdir().unwrap();
        by_hand(directory.path(), "site", "a.test");
        let mut stranger = plain("app", directory.path());
        stranger.process = vec!["/usr/bin/java".into()];
        let host = look(&[plain("web", directory.path()), stranger]);
        let inferred = host.inferred.values().next().unwrap();
        assert_eq!(inferred.obstacles.len(), 1);
        assert!(inferred.obstacles[0].contains("the program of app (java)"), "{:?}", inferred.obstacles);
    }
}
