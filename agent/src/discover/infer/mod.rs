//! What adopting a certificate would declare, and why. Pure.
//!
//! Everything is read off what lies there and what runs: names, layout, key,
//! usage, key type, who uses it, how each user reloads (by the table of known
//! programs and nothing else) and where it is served. Each decision is one line
//! with its reason. What cannot be told is an obstacle, with what to write
//! instead; nothing is guessed and nothing is taken from anybody's word.

pub mod found;

use std::collections::BTreeSet;

use reseal_proto::v1::{CertificateFacts, Inference, Usage};

use super::declared::adopted::{Adopted, User};
use super::declared::tables;
use super::{labels, mounts};

/// Lines of one inference that are told, each; the rest is a number.
const MOST_LINES: usize = 40;

/// A certificate that was found, as far as inference cares.
#[derive(Clone, Debug, Default)]
pub struct Found<'a> {
    /// Its file on the host; what an image or an endpoint has is no file.
    pub id: &'a str,
    /// Why nothing can be written there, in words; `None`: a file on a mount.
    pub elsewhere: Option<String>,
    /// The word for its layout; "certificate" when no key was found for it.
    pub layout: &'a str,
    /// Mount source that holds it.
    pub mount: &'a str,
    /// What it says; `None` for a key store that did not open.
    pub facts: Option<&'a CertificateFacts>,
    /// By its extended key usages; `Unspecified` when they name neither.
    pub usage: Usage,
    /// The file with its key.
    pub key: Option<Key<'a>>,
    /// Other files of the directory with the same certificate.
    pub also: &'a [String],
    /// Other certificates with the same key file.
    pub sharing: Vec<&'a str>,
    /// Containers that mount it.
    pub users: Vec<Using<'a>>,
}

/// The file with a certificate's key.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// On the host.
    pub path: &'a str,
    /// A passphrase protects it.
    pub encrypted: bool,
    /// Everybody may read it.
    pub open: bool,
    /// Permission bits.
    pub mode: u32,
}

/// A container that mounts it.
#[derive(Clone, Debug, Default)]
pub struct Using<'a> {
    /// Its name.
    pub container: &'a str,
    /// What it was made from.
    pub image: &'a str,
    /// The program that was recognised, or what PID 1 is.
    pub program: &'a str,
    /// How that reloads by the table of known programs; `None`: the table does not know it.
    pub reload: Option<&'a str>,
    /// Does it run?
    pub running: bool,
    /// The file inside it.
    pub path: &'a str,
    /// As the label `verify` has them: ports that serve it.
    pub ports: BTreeSet<String>,
}

/// What adopting would declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inferred {
    /// What would be kept; of use only without obstacles.
    pub declaration: Adopted,
    /// One line per decision, with its reason.
    pub decisions: Vec<String>,
    /// Why it cannot be adopted.
    pub obstacles: Vec<String>,
}

impl Inferred {
    /// As the inventory carries it.
    pub fn message(&self) -> Inference {
        let told = |lines: &[String]| {
            let mut told: Vec<String> =
                lines.iter().take(MOST_LINES).map(|line| line.chars().take(400).collect()).collect();
            if lines.len() > MOST_LINES {
                told.push(format!("and {} more", lines.len() - MOST_LINES));
            }
            told
        };
        Inference { decisions: told(&self.decisions), obstacles: told(&self.obstacles) }
    }

    /// A field of the declaration; empty when there is none.
    pub fn field(&self, key: &str) -> &str {
        self.declaration.fields.get(key).map_or("", String::as_str)
    }
}

/// Infers.
pub fn infer(found: &Found<'_>) -> Inferred {
    let mut work = Work { found, result: Inferred::default() };
    if let Some(why) = &found.elsewhere {
        work.obstacle(why.clone());
        return work.result;
    }
    match found.facts {
        Some(facts) => {
            work.names(facts);
            work.key_type(facts);
            work.usage();
            work.issuer(facts);
        }
        None => work.obstacle(
            "names: the key store is protected by a password that nobody has told: declare it by label, with password-file".to_owned(),
        ),
    }
    work.files();
    work.users();
    work.finish()
}

struct Work<'a, 'b> {
    found: &'b Found<'a>,
    result: Inferred,
}

impl Work<'_, '_> {
    fn decided(&mut self, key: &str, value: &str, why: &str) {
        self.result.decisions.push(format!("{key}: {value}, {why}"));
        self.result.declaration.fields.insert(key.to_owned(), value.to_owned());
    }

    fn told(&mut self, line: String) {
        self.result.decisions.push(line);
    }

    fn obstacle(&mut self, line: String) {
        self.result.obstacles.push(line);
    }

    /// RFC 9525, section 2: clients look at the SAN, and at nothing else.
    fn names(&mut self, facts: &CertificateFacts) {
        let (good, odd): (Vec<_>, Vec<_>) =
            facts.names.iter().cloned().partition(|name| labels::is_certificate_name(name));
        if !odd.is_empty() {
            self.told(format!(
                "names: {} left out, because only DNS names and IP addresses can be asked for",
                odd.join(", ")
            ));
        }
        if !good.is_empty() {
            return self.decided("names", &good.join(","), "because its SAN has them");
        }
        match common_name(&facts.subject).filter(|name| labels::is_certificate_name(name)) {
            Some(name) if facts.names.is_empty() => {
                self.decided(
                    "names",
                    &name,
                    "from its common name: it has no SAN, so clients refuse it today",
                );
            }
            Some(_) | None => self.obstacle(
                "names: the certificate has no name that can be asked for: declare them by label".to_owned(),
            ),
        }
    }

    fn key_type(&mut self, facts: &CertificateFacts) {
        let kind = facts.key_type.as_str();
        let bits = kind.strip_prefix("rsa-").and_then(|bits| bits.parse::<u32>().ok());
        match (kind, bits) {
            ("ecdsa-p256" | "ecdsa-p384" | "rsa-2048" | "rsa-3072" | "rsa-4096", _) => {
                self.decided("key-type", kind, "as it is");
            }
            (_, Some(bits)) if bits < 2048 => {
                self.decided("key-type", "rsa-2048", &format!("because {kind} is too weak"));
            }
            (_, Some(_)) => {
                self.decided("key-type", "rsa-4096", &format!("because {kind} is not issued"));
            }
            (_, None) => self.decided("key-type", "ecdsa-p256", &format!("because {kind} is not issued")),
        }
    }

    fn usage(&mut self) {
        let served = self.found.users.iter().any(|user| !user.ports.is_empty());
        match self.found.usage {
            Usage::Server => self.decided("usage", "server", "by its extended key usage"),
            Usage::Client => self.decided("usage", "client", "by its extended key usage"),
            // What is served nowhere may be presented all the same: it keeps both.
            Usage::Both => self.decided("usage", "both", "by its extended key usages"),
            Usage::Unspecified if served => {
                self.decided("usage", "server", "because it is served, and has no extended key usage");
            }
            Usage::Unspecified => {
                self.decided("usage", "server", "which is what most are for: it has no extended key usage");
            }
        }
    }

    fn issuer(&mut self, facts: &CertificateFacts) {
        let why = format!("in the place of {}: whoever checks it must trust the managed root", facts.issuer);
        self.decided("issuer", "builtin", &why);
    }

    fn files(&mut self) {
        let found = self.found;
        self.result.declaration.mounts = vec![found.mount.to_owned()];
        self.decided("path", found.id, "because it lies there");
        match found.layout {
            "pair" | "der" => self.decided("layout", found.layout, "because its key is in a file of its own"),
            "combined" => self.decided("layout", "combined", "because its key is in the same file"),
            "pkcs12" | "jks" => self.obstacle(format!(
                "layout: a key store ({}) needs its password: declare it by label, with password-file",
                found.layout
            )),
            _ => self.obstacle(
                "key: no private key for it was found beneath the mounts of its containers: where it is outside, mount it; where it is encrypted, declare the certificate by label".to_owned(),
            ),
        }
        if let Some(key) = found.key.filter(|_| matches!(found.layout, "pair" | "der" | "combined")) {
            if key.encrypted {
                self.obstacle(format!(
                    "key: {} is encrypted: the program has a passphrase that a new key would not have",
                    key.path
                ));
            }
            if found.layout != "combined" {
                self.decided("key", key.path, "because its public key is the certificate's");
            }
            let open =
                if key.open { "; everybody may read it: declare mode by label to change that" } else { "" };
            self.told(format!("owner and mode: kept as they are (mode {:04o}){open}", key.mode));
        }
        if !found.sharing.is_empty() {
            self.obstacle(format!(
                "key: {} has the same key file, and would no longer match it: give each its own",
                found.sharing.join(", ")
            ));
        }
        if !found.also.is_empty() {
            self.obstacle(format!(
                "path: {} holds the same certificate, and would no longer match the key: declare by label which files the programs read (path, leaf, chain)",
                found.also.join(", ")
            ));
        }
    }

    fn users(&mut self) {
        let found = self.found;
        if found.users.is_empty() {
            self.obstacle("consumers: no container mounts it, so there is nobody to reload".to_owned());
        }
        for user in &found.users {
            let state =
                if user.running { "" } else { " (does not run; it finds the new files when it starts)" };
            self.told(format!("consumer: {} at {}, because it mounts it{state}", user.container, user.path));
            match user.reload {
                Some(reload) => self.told(format!(
                    "reload: {reload} for {}, because its program is {}",
                    user.container, user.program
                )),
                None => {
                    let name = tables::name_of(found.id);
                    self.obstacle(format!(
                        "reload: the program of {} ({}) is not known: put labels on it, reseal.enable=true, reseal.cert.{name}.names=…, reseal.cert.{name}.path={} and reseal.cert.{name}.reload=signal:HUP, exec:COMMAND, restart or none",
                        user.container,
                        if user.program.is_empty() { "unknown" } else { user.program },
                        user.path
                    ));
                }
            }
            let ports: Vec<&str> = user.ports.iter().map(String::as_str).collect();
            let verify = if found.usage == Usage::Client { String::new() } else { ports.join(",") };
            if !verify.is_empty() {
                self.told(format!("verify: {verify} of {}, because it is served there", user.container));
            }
            self.result.declaration.users.push(User {
                container: user.container.to_owned(),
                image: user.image.to_owned(),
                verify,
            });
        }
        let served = self.result.declaration.users.iter().any(|user| !user.verify.is_empty());
        if !served && !found.users.is_empty() && found.usage != Usage::Client {
            self.told(
                "verify: nothing, because it was seen on no port yet: those that show it when it is adopted count; without one a renewal ends unserved"
                    .to_owned(),
            );
        }
    }

    /// One switch changes certificate and key: both lie beneath the same mount.
    fn key_in_reach(&mut self) {
        let place = self.result.declaration.place();
        let located = |path: &str| mounts::locate(&place.mounts, path).map_err(|error| error.to_string());
        for path in ["path", "key"] {
            let path = self.result.field(path).to_owned();
            if !path.is_empty()
                && let Err(why) = located(&path)
            {
                self.obstacle(format!(
                    "key: {path} is outside of the mount that holds the certificate ({why})"
                ));
            }
        }
    }

    fn finish(mut self) -> Inferred {
        let first = self.found.users.first().map_or("host", |user| user.container);
        self.result.declaration.label = format!("{first}/{}", tables::name_of(self.found.id));
        // What labels would not take is not taken from here, either.
        if self.result.obstacles.is_empty() {
            self.result.obstacles = self.result.declaration.mistakes();
            self.key_in_reach();
        }
        self.result
    }
}

/// The CN of a subject as RFC 4514 writes it.
fn common_name(subject: &str) -> Option<String> {
    let part = subject.split(',').map(str::trim).find_map(|part| part.strip_prefix("CN="))?;
    Some(part.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
