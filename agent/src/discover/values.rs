//! The values that labels take: layouts, owners, modes, ports, names; commands and
//! reload methods are in [`super::methods`].
//!
//! Each reader says in its error what would have been right. Nothing here
//! touches the system. Called by [`super::labels`] and nobody else.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use reseal_proto::v1::Usage;

use super::methods::Command;

/// How certificate and key lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Two PEM files.
    Pair,
    /// Chain, then key, in one PEM file.
    Combined,
    /// Two DER files: the certificate alone, and its PKCS#8 key.
    Der,
    /// Chain and key in a PKCS#12 store (RFC 7292) with a password.
    Pkcs12,
    /// Chain and key in a Java key store with a password.
    Jks,
}

impl Layout {
    /// Every one there is.
    pub const ALL: [Self; 5] = [Self::Pair, Self::Combined, Self::Der, Self::Pkcs12, Self::Jks];

    /// As labels write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Combined => "combined",
            Self::Der => "der",
            Self::Pkcs12 => "pkcs12",
            Self::Jks => "jks",
        }
    }

    /// Is the key a file of its own?
    pub fn has_key_file(self) -> bool {
        match self {
            Self::Pair | Self::Der => true,
            Self::Combined | Self::Pkcs12 | Self::Jks => false,
        }
    }

    /// Is it one file that a password protects?
    pub fn is_key_store(self) -> bool {
        match self {
            Self::Pkcs12 | Self::Jks => true,
            Self::Pair | Self::Combined | Self::Der => false,
        }
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|layout| layout.name() == text);
        found.ok_or_else(|| "must be pair, combined, der, pkcs12 or jks".into())
    }
}

/// Numeric owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id; the user id's number when the label names none.
    pub gid: u32,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (decimal(uid), decimal(gid)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err("must be UID or UID:GID in decimal numbers".into()),
        }
    }
}

/// What is spoken on a connection before the TLS handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Starttls {
    /// Nothing: TLS from the first byte.
    #[default]
    None,
    /// STARTTLS of SMTP (RFC 3207).
    Smtp,
    /// STARTTLS of IMAP (RFC 9051, 6.2.1).
    Imap,
    /// STLS of POP3 (RFC 2595).
    Pop3,
    /// StartTLS of LDAP (RFC 4511, 4.14).
    Ldap,
    /// SSLRequest of the PostgreSQL protocol.
    Postgres,
    /// SSL request packet of the MySQL protocol.
    Mysql,
    /// AUTH TLS of FTP (RFC 4217).
    Ftp,
}

impl Starttls {
    /// As labels and messages write it; empty for none.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Smtp => "smtp",
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Ldap => "ldap",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Ftp => "ftp",
        }
    }

    /// What a port speaks when nothing else is said: only where no other use of
    /// it is registered with TLS from the first byte (IANA service names).
    pub fn of_port(port: u16) -> Self {
        match port {
            25 | 587 => Self::Smtp,
            143 => Self::Imap,
            110 => Self::Pop3,
            389 => Self::Ldap,
            5432 => Self::Postgres,
            3306 => Self::Mysql,
            21 => Self::Ftp,
            _ => Self::None,
        }
    }
}

impl FromStr for Starttls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tls" => Ok(Self::None),
            "smtp" => Ok(Self::Smtp),
            "imap" => Ok(Self::Imap),
            "pop3" => Ok(Self::Pop3),
            "ldap" => Ok(Self::Ldap),
            "postgres" => Ok(Self::Postgres),
            "mysql" => Ok(Self::Mysql),
            "ftp" => Ok(Self::Ftp),
            _ => Err("the protocol behind / must be smtp, imap, pop3, ldap, postgres, mysql, ftp, or tls for TLS from the first byte".into()),
        }
    }
}

/// A container port that serves TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// TCP.
    pub port: u16,
    /// The name asked for; an address means no SNI.
    pub sni: String,
    /// What comes before the handshake.
    pub starttls: Starttls,
}

/// `check=exec:COMMAND`.
pub(super) fn check(text: &str) -> Result<Command, String> {
    text.strip_prefix("exec:").ok_or_else(|| "must be exec:COMMAND".to_owned()).and_then(Command::from_str)
}

/// `usage=`.
pub(super) fn usage(text: &str) -> Result<Usage, String> {
    match text {
        "server" => Ok(Usage::Server),
        "client" => Ok(Usage::Client),
        "both" => Ok(Usage::Both),
        _ => Err("must be server, client or both".into()),
    }
}

/// A comma-separated list of DNS names and IP addresses, in order, each once.
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    let mut seen = BTreeSet::new();
    let mut names = Vec::new();
    for item in text.split(',').map(str::trim) {
        let name =
            if let Ok(address) = item.parse::<IpAddr>() { address.to_string() } else { dns_name(item)? };
        if seen.insert(name.clone()) {
            names.push(name);
        }
    }
    if names.len() > 100 {
        return Err("at most 100 names".into());
    }
    Ok(names)
}

/// RFC 1123 labels, optionally behind one "*.".
fn dns_name(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let host = name.strip_prefix("*.").unwrap_or(&name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let numeric_end = host.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    if name.len() <= 253 && host.split('.').all(label) && !numeric_end {
        Ok(name)
    } else {
        Err("each entry must be a DNS name or an IP address".into())
    }
}

/// An absolute path of plain components: nothing to normalise, nothing to escape with.
pub(super) fn file_path(text: &str) -> Result<String, String> {
    let good = text.len() <= 1024
        && text.strip_prefix('/').is_some_and(|rest| {
            !rest.is_empty()
                && rest.split('/').all(|part| {
                    !part.is_empty()
                        && part != "."
                        && part != ".."
                        && part.len() <= 200
                        && !part.chars().any(char::is_control)
                })
        });
    let reserved = text.split('/').any(|part| part == ".reseal");
    match (good, reserved) {
        (true, false) => Ok(text.to_owned()),
        (true, true) => Err("a directory .reseal belongs to the agent".into()),
        (false, _) => Err("must be an absolute file path without empty, '.' or '..' components".into()),
    }
}

/// Directory and file name of a path that [`file_path`] accepted.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The path with its extension replaced by ".key".
pub(super) fn default_key(path: &str) -> String {
    let (directory, file) = split(path);
    let stem = match file.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file,
    };
    format!("{directory}/{stem}.key")
}

/// An octal file mode without set-id bits.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let digits = (3..=4).contains(&text.len()) && text.chars().all(|c| ('0'..='7').contains(&c));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err("must be an octal mode such as 0640".into()),
    }
}

/// The mode of a file with a private key in it.
pub(super) fn key_mode(text: &str) -> Result<u32, String> {
    let mode = mode(text)?;
    if mode & 0o007 != 0 {
        return Err("a private key must not be open to everybody; use 0600 or 0640".into());
    }
    if mode & 0o400 == 0 {
        return Err("the owner must be able to read the key".into());
    }
    Ok(mode)
}

/// The name of an entry in a key store. Java folds case, so there is only one.
pub(super) fn alias(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 of a-z, 0-9, '-', '_' and '.'".into())
    }
}

/// `443,25/smtp,8443@api.example.test`, or `none`. Protocol and name are those of
/// [`Starttls::of_port`] and of the certificate where the entry says none.
pub(super) fn ports(text: &str) -> Result<Vec<(u16, Starttls, Option<String>)>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let mut ports = Vec::new();
    for item in text.split(',').map(str::trim) {
        let (port, name) = match item.split_once('@') {
            Some((port, name)) => (port, Some(name)),
            None => (item, None),
        };
        let (port, protocol) = match port.split_once('/') {
            Some((port, protocol)) => (port, Some(Starttls::from_str(protocol)?)),
            None => (port, None),
        };
        let port = decimal(port)
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0)
            .ok_or("each entry must be PORT[/PROTOCOL][@NAME], or the whole of it none")?;
        let name = match name {
            None => None,
            Some(name) if name.starts_with('*') => {
                return Err("the name behind @ must be concrete, without '*'".into());
            }
            Some(name) => match name.parse::<IpAddr>() {
                Ok(address) => Some(address.to_string()),
                Err(_) => Some(dns_name(name)?),
            },
        };
        let entry = (port, protocol.unwrap_or_else(|| Starttls::of_port(port)), name);
        if !ports.contains(&entry) {
            ports.push(entry);
        }
    }
    if ports.len() > 32 {
        return Err("at most 32 ports".into());
    }
    Ok(ports)
}

/// Plain decimal digits only: no sign, no blank.
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Levenshtein distance, for "the nearest that does is".
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
