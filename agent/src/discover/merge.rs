//! What was found and what is served, next to what is declared: each certificate
//! once. Pure.
//!
//! What a label, the configuration or an adoption declares is not discovered as
//! well, under whatever name it was found. What is served belongs to the file of
//! its container that holds it; a file for the same names that holds another
//! certificate is not what the program serves, and where there is no such file
//! the endpoint is all that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use reseal_proto::v1::{CertificateFacts, Origin};

use super::endpoints::Served;
use super::found::{Discovered, Lies, SeenAt, User};
use super::search::Picture;
use super::{Host, findings, pairing};

/// Adds what was found and what is served to the host, with its findings. `now` is
/// the wall clock, seconds since the Unix epoch.
pub fn merge(host: &mut Host, picture: &Picture, served: &[Served], now: i64) {
    let declared = Declared::of(host);
    host.discovered = picture
        .paired
        .discovered
        .iter()
        .filter(|(_, found)| !declared.has(found))
        .map(|(id, found)| (id.clone(), found.clone()))
        .collect();
    let baked = picture.baked.discovered.iter().map(|(id, found)| (id.clone(), found.clone()));
    host.discovered.extend(baked);
    for one in served {
        attach(host, one);
    }
    host.findings.extend(picture.findings.iter().cloned());
    let keys: Vec<_> =
        picture.paired.keys.iter().filter(|key| !declared.paths.contains(&key.path)).cloned().collect();
    let judged = findings::judge(host, &keys, &picture.baked.keys, now);
    host.findings.extend(judged);
}

/// For each container, by id, a number that changes with the certificates in its files.
pub fn files_of_containers(host: &Host) -> BTreeMap<String, u64> {
    let mut all: BTreeMap<&str, BTreeSet<&[u8]>> = BTreeMap::new();
    for installation in host.installations.values() {
        for (consumer, facts) in installation.consumers.iter().zip(installation.certificate.iter().cycle()) {
            all.entry(&consumer.container_id).or_default().insert(&facts.fingerprint);
        }
    }
    for found in host.discovered.values().filter(|found| found.origin != Origin::Endpoint) {
        for (user, fingerprint) in found.users.iter().zip(found.fingerprint().into_iter().cycle()) {
            all.entry(&user.container_id).or_default().insert(fingerprint);
        }
    }
    let number = |fingerprints: &BTreeSet<&[u8]>| {
        let mut hasher = DefaultHasher::new();
        fingerprints.hash(&mut hasher);
        hasher.finish()
    };
    all.iter().map(|(id, fingerprints)| ((*id).to_owned(), number(fingerprints))).collect()
}

/// Certificates that lie in files: whatever else is served is looked at again.
pub fn in_files(host: &Host) -> BTreeSet<Vec<u8>> {
    let declared = host.installations.values().filter_map(|one| one.certificate.as_ref());
    let found = host.discovered.values().filter(|found| found.origin != Origin::Endpoint);
    declared
        .map(|facts| facts.fingerprint.clone())
        .chain(found.filter_map(Discovered::fingerprint).map(<[u8]>::to_vec))
        .collect()
}

/// Puts an endpoint where it belongs.
fn attach(host: &mut Host, served: &Served) {
    let Some(leaf) = served.chain.first() else { return };
    let fingerprint = &leaf.facts.fingerprint;
    let seen = SeenAt { endpoint: served.endpoint.clone(), served: fingerprint.clone() };
    let address = shown(served);
    let holds = |facts: &CertificateFacts| facts.fingerprint == *fingerprint;
    // What is declared says itself where it is served, and is looked at there.
    let declared = host.installations.values().any(|one| {
        let addresses = one.consumers.iter().flat_map(|consumer| &consumer.endpoints);
        one.certificate.as_ref().is_some_and(holds)
            || addresses.into_iter().any(|endpoint| endpoint.address == served.endpoint.address)
    });
    if declared {
        return;
    }
    let uses = |found: &Discovered| found.users.iter().any(|user| user.container_id == served.container_id);
    let here = |found: &&mut Discovered| found.fingerprint() == Some(fingerprint.as_slice());
    let own = host.discovered.values_mut().filter(|found| uses(found)).find(here);
    if let Some(found) = own {
        let file = found.certificate.as_ref();
        if file.is_some_and(|file| file.issuer_beside) && !leaf.issuer_beside && !leaf.self_signed {
            let what = format!(
                "{address} serves the certificate of {} without the intermediates that are in the file",
                found.id
            );
            host.findings.push(findings::kind("incomplete-chain", &address, &what));
        }
        found.endpoints.push(seen);
        return;
    }
    let names: BTreeSet<&String> = leaf.facts.names.iter().collect();
    let same_names = |found: &&mut Discovered| {
        found
            .certificate
            .as_ref()
            .is_some_and(|one| !names.is_empty() && one.facts.names.iter().collect::<BTreeSet<_>>() == names)
    };
    let meant = host.discovered.values_mut().filter(|found| uses(found)).find(same_names);
    if let Some(found) = meant {
        let what = format!(
            "container {} serves another certificate for {} than its file {}: the served one has the fingerprint {}",
            served.container,
            leaf.facts.names.join(", "),
            found.id,
            hex::encode(&fingerprint[..fingerprint.len().min(8)])
        );
        host.findings.push(findings::kind("served-differs-from-file", &address, &what));
        found.endpoints.push(seen);
        return;
    }
    // A file that this container does not see, or does not see any more.
    if let Some(found) = host.discovered.values_mut().find(here) {
        found.endpoints.push(seen);
        if !found.users.iter().any(|user| user.container_id == served.container_id) {
            found.users.push(user(served));
        }
        return;
    }
    let id = format!("endpoint:{address}/{}", served.endpoint.sni);
    let label = format!("{}/{}", served.container, served.endpoint.address);
    host.discovered.insert(
        id.clone(),
        Discovered {
            id,
            label,
            origin: Origin::Endpoint,
            lies: Lies::Nowhere,
            files: None,
            certificate: Some(leaf.clone()),
            missing_issuer: None,
            users: vec![user(served)],
            endpoints: vec![seen],
        },
    );
}

/// Loopback addresses within containers are told apart by the container.
fn shown(served: &Served) -> String {
    match &served.endpoint.within {
        Some(within) => format!("{}:{}", within.container, served.endpoint.address),
        None => served.endpoint.address.clone(),
    }
}

fn user(served: &Served) -> User {
    User { path: String::new(), ..served.user.clone() }
}

struct Declared {
    /// Files of declared installations and bundles, on the host.
    paths: BTreeSet<String>,
    /// Directory and fingerprint.
    certificates: BTreeSet<(String, Vec<u8>)>,
}

impl Declared {
    fn of(host: &Host) -> Self {
        let mut paths: BTreeSet<String> = host.trusts.iter().map(|trust| trust.place.id()).collect();
        let mut certificates = BTreeSet::new();
        for installation in host.installations.values() {
            paths.insert(installation.id.clone());
            paths.extend(installation.place.files().iter().map(|file| file.path()));
            if let Some(facts) = &installation.certificate {
                let directory = pairing::directory(&installation.id).to_owned();
                certificates.insert((directory, facts.fingerprint.clone()));
            }
        }
        Self { paths, certificates }
    }

    fn has(&self, found: &Discovered) -> bool {
        let Some(files) = &found.files else { return false };
        let same = found.fingerprint().is_some_and(|fingerprint| {
            let directory = pairing::directory(&files.certificate).to_owned();
            self.certificates.contains(&(directory, fingerprint.to_vec()))
        });
        let mut names = std::iter::once(&files.certificate).chain(&files.also);
        same || names.any(|path| self.paths.contains(path))
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
