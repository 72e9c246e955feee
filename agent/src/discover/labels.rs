//! Labels of one container → what it declares. Pure and strict.
//!
//! An unknown key is a problem that names the nearest known key, a value that
//! does not parse is a problem that names key and value; nothing is silently
//! ignored and nothing is guessed. A certificate with a bad value is not
//! managed at all; an unknown key beside it does not stop it. Values are
//! commands and paths of the host's own administrator: this is the only place
//! where either can come from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use reseal_proto::facts::printable;
use reseal_proto::v1::Usage;

use super::methods::{Command, Ladder};
use super::values::{self, Layout, Owner, Port};
use crate::key::KeyType;

const PREFIX: &str = "reseal.";
pub(super) const CERTIFICATE_KEYS: [&str; 16] = [
    "names",
    "path",
    "key",
    "leaf",
    "chain",
    "layout",
    "password-file",
    "alias",
    "usage",
    "key-type",
    "issuer",
    "owner",
    "mode",
    "reload",
    "check",
    "verify",
];
pub(super) const TRUST_KEYS: [&str; 4] = ["bundle", "path", "owner", "mode"];
/// More certificates or bundles on one container are a mistake.
const MAX_DECLARATIONS: usize = 64;

/// What a container declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// `reseal.enable=true` is there.
    pub enabled: bool,
    /// By name.
    pub certificates: Vec<Certificate>,
    /// By name.
    pub trusts: Vec<Trust>,
    /// What was wrong.
    pub problems: Vec<Problem>,
}

/// `reseal.cert.<name>.*`
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// The name part of the labels.
    pub name: String,
    /// DNS names (lower case) and IP addresses.
    pub names: Vec<String>,
    /// Inside the container.
    pub path: String,
    /// Inside the container; where `path` holds the key itself it is of no meaning.
    pub key: String,
    /// Inside the container: a further file with the leaf alone.
    pub leaf: Option<String>,
    /// Inside the container: a further file with the certificates between leaf and root.
    pub chain: Option<String>,
    /// How the two lie on disk.
    pub layout: Layout,
    /// Inside the container: a file with the key store's password.
    pub password_file: Option<String>,
    /// Of the entry in a key store.
    pub alias: Option<String>,
    /// Never `Unspecified`.
    pub usage: Usage,
    /// Kind of key.
    pub key_type: KeyType,
    /// "builtin".
    pub issuer: String,
    /// Keep what is there when absent.
    pub owner: Option<Owner>,
    /// Of the file that holds the key; keep what is there when absent.
    pub mode: Option<u32>,
    /// The known-program table decides when absent.
    pub reload: Option<Ladder>,
    /// Configuration check before the reload.
    pub check: Option<Command>,
    /// Container ports that serve this certificate.
    pub verify: Vec<Port>,
}

impl Certificate {
    /// Every file that is written, the certificate's first; inside the container.
    pub fn files(&self) -> Vec<String> {
        let mut files = vec![self.path.clone()];
        if self.layout.has_key_file() {
            files.push(self.key.clone());
        }
        files.extend(self.leaf.iter().chain(&self.chain).cloned());
        files
    }

    /// The name to ask for where the label says none.
    pub fn sni(&self) -> String {
        default_sni(&self.names)
    }
}

/// `reseal.trust.<name>.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The name part of the labels.
    pub name: String,
    /// "managed-root".
    pub bundle: String,
    /// Inside the container.
    pub path: String,
    /// Keep what is there when absent.
    pub owner: Option<Owner>,
    /// 0644 when absent.
    pub mode: Option<u32>,
}

/// A finding about a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// "unknown-label", "bad-label", "not-enabled".
    pub id: &'static str,
    /// For people.
    pub message: String,
}

/// Reads the labels of a container; others than `reseal.*` are skipped.
pub fn parse<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Declared {
    let mut reading = Reading::default();
    for (key, value) in labels {
        if let Some(rest) = key.strip_prefix(PREFIX) {
            reading.take(key, rest, value);
        }
    }
    reading.finish()
}

#[derive(Default)]
struct Reading<'a> {
    declared: Declared,
    any: bool,
    certificates: BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>,
    trusts: BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>,
}

impl<'a> Reading<'a> {
    fn problem(&mut self, id: &'static str, message: String) {
        self.declared.problems.push(Problem { id, message });
    }

    fn take(&mut self, key: &'a str, rest: &'a str, value: &'a str) {
        if rest == "enable" {
            match value {
                "true" => self.declared.enabled = true,
                "false" => {}
                other => self.problem("bad-label", format!("{key}={} must be true or false", shown(other))),
            }
            return;
        }
        self.any = true;
        let mut parts = rest.splitn(3, '.');
        let (kind, name, field) = (parts.next(), parts.next(), parts.next());
        let (Some(kind @ ("cert" | "trust")), Some(name), Some(field)) = (kind, name, field) else {
            return self.unknown(key, rest);
        };
        if !is_name(name) {
            let message =
                format!("label {}: the name {} must be 1 to 32 of a-z, 0-9 and '-'", shown(key), shown(name));
            return self.problem("bad-label", message);
        }
        let (known, table): (&[&str], _) = if kind == "cert" {
            (&CERTIFICATE_KEYS, &mut self.certificates)
        } else {
            (&TRUST_KEYS, &mut self.trusts)
        };
        // The name exists from its first label on, even a mistyped one: a
        // certificate that lacks `names` because of the typo says so too.
        let fields = table.entry(name).or_default();
        if known.contains(&field) {
            fields.insert(field, value);
        } else {
            self.unknown(key, rest);
        }
    }

    fn unknown(&mut self, key: &str, rest: &str) {
        let (kind, name, field) = {
            let mut parts = rest.splitn(3, '.');
            (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or("NAME"),
                parts.next().unwrap_or_default(),
            )
        };
        let name = if is_name(name) { name } else { "NAME" };
        let candidates = std::iter::once("enable".to_owned())
            .chain(CERTIFICATE_KEYS.iter().map(|k| format!("cert.{name}.{k}")))
            .chain(TRUST_KEYS.iter().map(|k| format!("trust.{name}.{k}")));
        let typed = if field.is_empty() { rest.to_owned() } else { format!("{kind}.{name}.{field}") };
        let typed: String = typed.chars().take(100).collect();
        let nearest =
            candidates.min_by_key(|candidate| values::distance(candidate, &typed)).unwrap_or_default();
        self.problem(
            "unknown-label",
            format!("label {} does not exist; the nearest that does is {PREFIX}{nearest}", shown(key)),
        );
    }

    fn finish(mut self) -> Declared {
        if self.any && !self.declared.enabled {
            self.problem(
                "not-enabled",
                "there are reseal.* labels but no reseal.enable=true: nothing is managed".into(),
            );
            return self.declared;
        }
        let certificates = std::mem::take(&mut self.certificates);
        let trusts = std::mem::take(&mut self.trusts);
        if certificates.len() + trusts.len() > MAX_DECLARATIONS {
            self.problem(
                "bad-label",
                format!("more than {MAX_DECLARATIONS} certificates and bundles on one container"),
            );
            return self.declared;
        }
        for (name, fields) in certificates {
            match certificate(name, &fields) {
                Ok(certificate) => self.declared.certificates.push(certificate),
                Err(mistakes) => self.bad(&format!("cert.{name}"), mistakes),
            }
        }
        for (name, fields) in trusts {
            match trust(name, &fields) {
                Ok(trust) => self.declared.trusts.push(trust),
                Err(mistakes) => self.bad(&format!("trust.{name}"), mistakes),
            }
        }
        self.declared
    }

    fn bad(&mut self, what: &str, mistakes: Vec<String>) {
        for mistake in mistakes {
            self.problem("bad-label", format!("{PREFIX}{what} is not managed: {mistake}"));
        }
    }
}

/// Collects the mistakes of one declaration, so that all are told at once.
struct Fields<'a> {
    fields: &'a BTreeMap<&'a str, &'a str>,
    mistakes: Vec<String>,
}

impl Fields<'_> {
    fn optional<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.fields.get(key)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistakes.push(format!("{key}={}: {why}", shown(value)));
                None
            }
        }
    }

    fn needed<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if !self.fields.contains_key(key) {
            self.mistakes.push(format!("{key} is missing"));
        }
        self.optional(key, read)
    }
}

/// Reads one certificate's fields, wherever they are from; the mistakes when there are any.
pub(super) fn certificate(name: &str, fields: &BTreeMap<&str, &str>) -> Result<Certificate, Vec<String>> {
    let mut fields = Fields { fields, mistakes: Vec::new() };
    let names = fields.needed("names", values::names);
    let path = fields.needed("path", values::file_path);
    let layout = fields.optional("layout", Layout::from_str).unwrap_or(Layout::Pair);
    let key = fields.optional("key", values::file_path);
    let usage = fields.optional("usage", values::usage).unwrap_or(Usage::Server);
    let key_type = fields
        .optional("key-type", |text| KeyType::from_str(text).map_err(|error| error.to_string()))
        .unwrap_or(KeyType::EcdsaP256);
    let issuer = fields
        .optional("issuer", |text| match text {
            "builtin" => Ok(text.to_owned()),
            _ => Err("the only issuer is builtin".to_owned()),
        })
        .unwrap_or_else(|| "builtin".to_owned());
    let owner = fields.optional("owner", Owner::from_str);
    let mode = fields.optional("mode", values::key_mode);
    let reload = fields.optional("reload", Ladder::from_str);
    let check = fields.optional("check", values::check);
    let ports = fields.optional("verify", values::ports);
    let leaf = fields.optional("leaf", values::file_path);
    let chain = fields.optional("chain", values::file_path);
    let password_file = fields.optional("password-file", values::file_path);
    let alias = fields.optional("alias", values::alias);
    let key = files(layout, path.as_deref(), key, [&leaf, &chain, &password_file], &mut fields.mistakes);
    if layout.is_key_store() && password_file.is_none() {
        fields.mistakes.push(format!("layout={} needs password-file", layout.name()));
    }
    if !layout.is_key_store() && (password_file.is_some() || alias.is_some()) {
        let mistake = "password-file, alias: only a key store has them; say layout=pkcs12 or layout=jks";
        fields.mistakes.push(mistake.into());
    }
    if usage == Usage::Client && ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
        fields.mistakes.push("verify: a client certificate is served on no port; remove the label".into());
    }
    match (names, path) {
        (Some(names), Some(path)) if fields.mistakes.is_empty() => {
            let sni = default_sni(&names);
            let verify = ports
                .unwrap_or_default()
                .into_iter()
                .map(|(port, starttls, name)| Port {
                    port,
                    sni: name.unwrap_or_else(|| sni.clone()),
                    starttls,
                })
                .collect();
            Ok(Certificate {
                name: name.to_owned(),
                names,
                path,
                key,
                leaf,
                chain,
                layout,
                password_file,
                alias,
                usage,
                key_type,
                issuer,
                owner,
                mode,
                reload,
                check,
                verify,
            })
        }
        _ => Err(fields.mistakes),
    }
}

/// The key's path, and what is wrong with the files taken together.
fn files(
    layout: Layout,
    path: Option<&str>,
    key: Option<String>,
    others: [&Option<String>; 3],
    mistakes: &mut Vec<String>,
) -> String {
    if !layout.has_key_file() {
        if key.is_some() {
            let mistake = format!("key: a {} file holds its key itself; remove the label", layout.name());
            mistakes.push(mistake);
        }
        if others[..2].iter().any(|other| other.is_some()) {
            mistakes.push("leaf, chain: only beside layout=pair or layout=der".into());
        }
    }
    let key = key.or_else(|| path.map(values::default_key)).unwrap_or_default();
    if layout.has_key_file() && path == Some(key.as_str()) {
        mistakes.push("key: is the same file as path; say layout=combined or name another".into());
    }
    let own = layout.has_key_file().then_some(key.as_str());
    let all = path.into_iter().chain(own).chain(others.into_iter().flatten().map(String::as_str));
    let all: Vec<&str> = all.collect();
    let first = if layout.has_key_file() { 2 } else { 1 };
    let twice = (first..all.len()).find(|at| all[..*at].contains(&all[*at]));
    if let Some(at) = twice {
        let path = shown(all[at]);
        mistakes
            .push(format!("leaf, chain, password-file: {path} is declared twice; each file holds one thing"));
    }
    key
}

/// Likewise for a bundle.
pub(super) fn trust(name: &str, fields: &BTreeMap<&str, &str>) -> Result<Trust, Vec<String>> {
    let mut fields = Fields { fields, mistakes: Vec::new() };
    let bundle = fields.needed("bundle", |text| match text {
        "managed-root" => Ok(text.to_owned()),
        _ => Err("the only bundle is managed-root".to_owned()),
    });
    let path = fields.needed("path", values::file_path);
    let owner = fields.optional("owner", Owner::from_str);
    let mode = fields.optional("mode", values::mode);
    match (bundle, path) {
        (Some(bundle), Some(path)) if fields.mistakes.is_empty() => {
            Ok(Trust { name: name.to_owned(), bundle, path, owner, mode })
        }
        _ => Err(fields.mistakes),
    }
}

/// The first DNS name, a concrete one for a wildcard; else the first address,
/// which is verified without SNI (RFC 6066, section 3).
fn default_sni(names: &[String]) -> String {
    let dns = names.iter().find(|name| name.parse::<IpAddr>().is_err());
    match dns.or(names.first()) {
        Some(name) => match name.strip_prefix("*.") {
            Some(parent) => format!("reseal-probe.{parent}"),
            None => name.clone(),
        },
        None => String::new(),
    }
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Can a certificate be asked for with this one name?
pub fn is_certificate_name(text: &str) -> bool {
    values::names(text).is_ok_and(|names| names == [text])
}

/// Quoted, printable and short: labels end up on terminals.
pub(super) fn shown(text: &str) -> String {
    let text: String = printable(text).chars().take(80).collect();
    format!("{text:?}")
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
