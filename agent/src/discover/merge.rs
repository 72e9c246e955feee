//! What was found, next to what is declared: each certificate once. Pure.
//!
//! What a label, the configuration or an adoption declares is not discovered as
//! well, under whatever name it was found.

use std::collections::BTreeSet;

use super::found::Discovered;
use super::search::Picture;
use super::{Host, findings, pairing};

/// Adds what was found to the host, with its findings. `now` is the wall clock,
/// seconds since the Unix epoch.
pub fn merge(host: &mut Host, picture: &Picture, now: i64) {
    let declared = Declared::of(host);
    host.discovered = picture
        .paired
        .discovered
        .iter()
        .filter(|(_, found)| !declared.has(found))
        .map(|(id, found)| (id.clone(), found.clone()))
        .collect();
    host.findings.extend(picture.findings.iter().cloned());
    let keys: Vec<_> =
        picture.paired.keys.iter().filter(|key| !declared.paths.contains(&key.path)).cloned().collect();
    let judged = findings::judge(host, &keys, now);
    host.findings.extend(judged);
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
            let place = &installation.place;
            paths.insert(installation.id.clone());
            if !place.key.is_empty() {
                paths.insert(place.path_of(&place.key));
            }
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
