//! Files that were recognised → certificates with their keys and users. Pure.
//!
//! A key belongs to a certificate by its public key, never by its name; of
//! several such files the nearest counts. The leaf of a bundle is the
//! certificate whose key is there, else the one that signs no other in the
//! file. Files with nothing but certificates of authorities are trust stores.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use reseal_proto::facts::printable;
use reseal_proto::v1::Origin;

use super::files::{File, Inode, Mounted};
use super::formats::{Certificate, Format};
use super::found::{Discovered, Files, KeyFile, Lies, TrustFile, User};
use super::{Container, mounts, programs};

/// What the files of all mounts are.
#[derive(Clone, Debug, Default)]
pub struct Paired {
    /// By id.
    pub discovered: BTreeMap<String, Discovered>,
    /// Keys whose certificate was not found.
    pub keys: Vec<KeyFile>,
    /// Files with certificates of authorities only.
    pub trust: Vec<TrustFile>,
    /// Files of earlier certificates that a link beside them no longer leads to.
    pub superseded: usize,
}

/// A file under its best name.
struct Named<'a> {
    /// On the host.
    path: String,
    mount: &'a str,
    file: &'a File,
}

/// Puts files, keys and containers together.
pub fn pair(mounts: &[Arc<Mounted>], containers: &[Container]) -> Paired {
    let mut paired = Paired::default();
    let named = named(mounts, &mut paired.superseded);
    let mut keys: HashMap<[u8; 32], Vec<&Named<'_>>> = HashMap::new();
    for one in named.values() {
        for spki in one.file.content.keys.iter().filter_map(|key| key.spki_sha256) {
            keys.entry(spki).or_default().push(one);
        }
    }
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut groups: BTreeMap<(String, Vec<u8>, bool), Vec<Discovered>> = BTreeMap::new();
    for one in named.values() {
        let content = &one.file.content;
        if content.locked {
            let found = discovered(one, None, 0, None, store(content.format));
            groups.insert((found.id.clone(), Vec::new(), true), vec![found]);
            continue;
        }
        let has_key =
            |certificate: &Certificate| spki(certificate).is_some_and(|spki| keys.contains_key(&spki));
        let leaves = leaves(&content.certificates, &has_key);
        if leaves.is_empty() && content.count > 0 {
            paired.trust.push(TrustFile { path: one.path.clone(), count: content.count });
        }
        for (number, leaf) in leaves.into_iter().enumerate() {
            let key = spki(leaf).and_then(|spki| nearest(keys.get(&spki)?, one));
            used.extend(key.map(|key| key.path.as_str()));
            let inside = key.is_some_and(|key| std::ptr::eq(key.file, one.file));
            let lies = match (content.format, key) {
                (Format::Pkcs12 | Format::Jks, _) => store(content.format),
                (Format::Pem | Format::Der, None) => Lies::Certificate,
                (Format::Pem | Format::Der, Some(_)) if inside => Lies::Combined,
                (Format::Pem | Format::Der, Some(_)) => Lies::Pair,
            };
            let found = discovered(one, Some(leaf), number, key, lies);
            let apart = lies == Lies::Combined || matches!(content.format, Format::Pkcs12 | Format::Jks);
            let group = (directory(&one.path).to_owned(), leaf.facts.fingerprint.clone(), apart);
            groups.entry(group).or_default().push(found);
        }
    }
    for one in named.values() {
        if !one.file.content.keys.is_empty() && !used.contains(one.path.as_str()) {
            paired.keys.push(key_file(one));
        }
    }
    let mut all: Vec<Discovered> = groups.into_values().filter_map(merged).collect();
    let issuers: Vec<(&str, &Certificate)> = named
        .values()
        .flat_map(|one| one.file.content.certificates.iter().map(|other| (directory(&one.path), other)))
        .filter(|(_, other)| other.authority && !other.self_signed)
        .collect();
    for found in &mut all {
        found.missing_issuer = missing_issuer(found, &issuers);
    }
    let users = Users::of(containers);
    for mut found in all {
        if let Some(files) = &found.files {
            found.users = users.of_file(&files.certificate);
            found.label = label(&found.users, &files.certificate);
        }
        paired.discovered.insert(found.id.clone(), found);
    }
    paired
}

fn store(format: Format) -> Lies {
    if format == Format::Jks { Lies::Jks } else { Lies::Pkcs12 }
}

fn spki(certificate: &Certificate) -> Option<[u8; 32]> {
    certificate.facts.spki_sha256.as_slice().try_into().ok()
}

/// Each file once, by its path on the host; files that a newer one has replaced are counted.
fn named<'a>(mounts: &'a [Arc<Mounted>], superseded: &mut usize) -> BTreeMap<String, Named<'a>> {
    let mut all = BTreeMap::new();
    for mounted in mounts {
        let mut links: HashMap<Inode, Vec<&str>> = HashMap::new();
        for link in &mounted.links {
            links.entry(link.inode).or_default().push(&link.path);
        }
        // Series of files, `fullchain1.pem`, `fullchain2.pem`, of which a link says which one counts.
        let series = |path: &str| (directory(path).to_owned(), without_digits(file_name(path)).to_owned());
        let linked: BTreeSet<_> = mounted
            .files
            .iter()
            .filter(|file| elsewhere(&links, file).is_some())
            .map(|file| series(&file.path))
            .collect();
        for file in &mounted.files {
            let better = elsewhere(&links, file);
            // Of the agent's own generations counts what a program can reach by its link:
            // it may be released, or its labels be gone. The others are the agent's business.
            if better.is_none() && in_generations(&file.path) {
                continue;
            }
            if better.is_none() && linked.contains(&series(&file.path)) {
                *superseded += 1;
                continue;
            }
            let path = on_host(&mounted.source, better.unwrap_or(&file.path));
            let mount = mounted.source.as_str();
            all.entry(path.clone()).or_insert(Named { path, mount, file });
        }
    }
    all
}

/// The name by which programs know a file that lies in another directory than its links.
fn elsewhere<'a>(links: &HashMap<Inode, Vec<&'a str>>, file: &File) -> Option<&'a str> {
    let all = links.get(&file.inode)?;
    let names = all.iter().filter(|link| directory(link) != directory(&file.path) && !in_generations(link));
    names.min_by_key(|link| link.len()).copied()
}

fn in_generations(path: &str) -> bool {
    path.split('/').any(|part| part == ".reseal")
}

fn on_host(source: &str, path: &str) -> String {
    let source = source.trim_end_matches('/');
    if path.is_empty() { source.to_owned() } else { format!("{source}/{path}") }
}

fn leaves<'a>(
    certificates: &'a [Certificate],
    has_key: &dyn Fn(&Certificate) -> bool,
) -> Vec<&'a Certificate> {
    let with_key: Vec<&Certificate> = certificates.iter().filter(|one| has_key(one)).collect();
    if !with_key.is_empty() {
        return with_key;
    }
    certificates.iter().filter(|one| !one.authority && !one.signs_another).collect()
}

/// The file with the key whose path has most in common with `one`'s.
fn nearest<'a, 'b>(candidates: &[&'b Named<'a>], one: &Named<'a>) -> Option<&'b Named<'a>> {
    let common = |other: &&&Named<'_>| {
        let same = one.path.split('/').zip(other.path.split('/')).take_while(|(a, b)| a == b).count();
        (other.path == one.path, other.mount == one.mount, same, std::cmp::Reverse(other.path.len()))
    };
    candidates.iter().max_by_key(common).copied()
}

fn discovered(
    one: &Named<'_>,
    leaf: Option<&Certificate>,
    number: usize,
    key: Option<&Named<'_>>,
    lies: Lies,
) -> Discovered {
    let id = printable(&one.path);
    Discovered {
        id: if number == 0 { id } else { format!("{id}#{}", number + 1) },
        label: String::new(),
        origin: Origin::File,
        lies,
        files: Some(Files {
            mount: one.mount.to_owned(),
            certificate: one.path.clone(),
            format: one.file.content.format,
            count: one.file.content.count,
            access: one.file.access,
            key: match lies {
                Lies::Pkcs12 | Lies::Jks => Some(key_file(one)),
                Lies::Pair | Lies::Combined | Lies::Certificate | Lies::Nowhere => key.map(key_file),
            },
            also: Vec::new(),
        }),
        certificate: leaf.cloned(),
        missing_issuer: None,
        users: Vec::new(),
        endpoints: Vec::new(),
    }
}

fn key_file(one: &Named<'_>) -> KeyFile {
    let content = &one.file.content;
    let encrypted = match content.format {
        Format::Pkcs12 | Format::Jks => true,
        Format::Pem | Format::Der => content.keys.iter().all(|key| key.encrypted),
    };
    KeyFile {
        path: one.path.clone(),
        encrypted,
        open: one.file.access.mode & 0o004 != 0 && !one.file.enclosed,
        mode: one.file.access.mode,
    }
}

/// Of several files with the same certificate in one directory the fullest counts.
fn merged(mut group: Vec<Discovered>) -> Option<Discovered> {
    let fullest = |found: &Discovered| {
        let files = found.files.as_ref();
        (
            files.is_some_and(|files| files.key.is_some()),
            files.is_some_and(|files| files.format == Format::Pem),
            files.map_or(0, |files| files.count),
        )
    };
    group.sort_by(|a, b| fullest(b).cmp(&fullest(a)).then_with(|| a.id.cmp(&b.id)));
    let mut all = group.into_iter();
    let mut first = all.next()?;
    let others = all.filter_map(|other| other.files).map(|files| files.certificate);
    if let Some(files) = &mut first.files {
        files.also = others.filter(|path| *path != files.certificate).collect();
    }
    Some(first)
}

/// Only an issuer that is no root must be sent along (RFC 8446, section 4.4.2).
fn missing_issuer(found: &Discovered, issuers: &[(&str, &Certificate)]) -> Option<String> {
    let leaf = found.certificate.as_ref()?;
    let files = found.files.as_ref()?;
    if leaf.self_signed || leaf.issuer_beside || !found.lies.has_key() {
        return None;
    }
    let mut of_leaf = issuers.iter().filter(|(_, issuer)| leaf.issued_by(issuer)).peekable();
    let subject = of_leaf.peek()?.1.facts.subject.clone();
    let here = directory(&files.certificate);
    of_leaf.all(|(directory, _)| *directory != here).then_some(subject)
}

/// The file name of a path without its extension.
pub fn stem(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

fn label(users: &[User], path: &str) -> String {
    let stem = stem(path);
    match users.first() {
        Some(user) => printable(&format!("{}/{stem}", user.container)),
        None => printable(stem),
    }
}

/// The directory part of a path; empty for a bare name.
pub fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `fullchain12.pem` → `fullchain`.
fn without_digits(name: &str) -> &str {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// Which containers have which file.
pub struct Users<'a> {
    containers: &'a [Container],
}

impl<'a> Users<'a> {
    /// Of these containers.
    pub fn of(containers: &'a [Container]) -> Self {
        Self { containers }
    }

    /// Containers that see a file of the host, by name.
    pub fn of_file(&self, path: &str) -> Vec<User> {
        let mut users: Vec<User> = self
            .containers
            .iter()
            .filter_map(|container| {
                mounts::seen_at(&container.mounts, path).map(|path| user(container, &path))
            })
            .collect();
        users.sort_by(|a, b| a.container.cmp(&b.container));
        users
    }
}

/// A container as the user of the file that it sees at `path`.
pub fn user(container: &Container, path: &str) -> User {
    User {
        container: container.name.clone(),
        container_id: container.id.clone(),
        image: container.image.clone(),
        program: programs::described(container),
        reload: programs::known_for_file(container, path)
            .map(|known| known.ladder)
            .unwrap_or_default()
            .to_string(),
        running: container.running,
        path: path.to_owned(),
    }
}

#[cfg(test)]
#[path = "pairing_tests.rs"]
mod tests;
