//! What is known of each program: the shape of an entry, and all entries. Pure data.
//!
//! Each claim says whether it was tried with the version that is named or read
//! in the documents that are named. `docs/RELOAD.md` shows the table; a test
//! compares the two. [`super`] uses the columns for server certificates, client
//! certificates and bundles; the others are for whoever removes trust.

use super::{Command, Facts, Reload, Signal, data, mail, web};

/// How a changed file reaches a running program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It reads the file again when it gets this signal.
    Signal(Signal),
    /// A command makes it read the file again.
    Exec,
    /// It looks at the file by itself.
    Watched,
    /// It reads the file when it starts, and then never again.
    Restart,
    /// It has no such file.
    Unused,
    /// Nobody has looked.
    Unknown,
}

/// Where a claim comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Tried with the version of [`Program::tried`].
    Tried,
    /// Read in the program's documents, [`Program::sources`].
    Documented,
}

/// How a file is taken, and how we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// How.
    pub takes: Takes,
    /// How we know.
    pub seen: Seen,
}

/// Are revocation lists looked at, and how far up the chain? Tried where the claim on
/// lists was, with the list of the leaf's issuer alone and with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crl {
    /// Never.
    Ignored,
    /// Only for the leaf: the issuer's list is enough.
    LeafOnly,
    /// For every certificate of the chain: a missing list refuses everybody.
    AllRequired,
    /// A setting decides; its name.
    Setting(&'static str),
    /// Nobody has looked.
    Unknown,
}

/// Does something outlive a reload?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// It goes on.
    Yes,
    /// It is cut, or refused from then on.
    No,
    /// There is no such thing.
    Unused,
    /// Nobody has looked.
    Unknown,
}

/// One program.
#[derive(Debug)]
pub struct Program {
    /// As people call it.
    pub name: &'static str,
    /// Base names of its executable, or the first word of its title.
    pub executables: &'static [&'static str],
    /// Base names of images that run it and nothing else.
    pub images: &'static [&'static str],
    /// The certificate it serves.
    pub server: Claim,
    /// The certificate it presents to others.
    pub client: Claim,
    /// The CA certificates it accepts.
    pub bundle: Claim,
    /// Its revocation lists.
    pub crl: Claim,
    /// How far it looks into them.
    pub crl_depth: Crl,
    /// Do open connections go on after the reload? Tried, unless unknown.
    pub connections: Survives,
    /// Can a TLS session from before be resumed after it? Tried, unless unknown.
    pub sessions: Survives,
    /// How to end what survives.
    pub cut: &'static str,
    /// Version that was tried; empty: none.
    pub tried: &'static str,
    /// Document and section.
    pub sources: &'static [&'static str],
    /// What to do where there is nothing gentle, for the finding; empty: nothing to say.
    pub advice: &'static str,
    /// The gentle steps, from how it was started.
    pub(super) ladder: fn(&Facts<'_>) -> Vec<Reload>,
    /// What it says to its configuration.
    pub(super) check: fn(&Facts<'_>) -> Option<Command>,
}

/// Every program that is known.
pub const ALL: [&Program; 16] = [
    &web::NGINX,
    &web::APACHE,
    &web::HAPROXY,
    &web::CADDY,
    &web::TRAEFIK,
    &web::ENVOY,
    &web::STUNNEL,
    &mail::POSTFIX,
    &mail::DOVECOT,
    &data::POSTGRESQL,
    &data::REDIS,
    &data::MOSQUITTO,
    &data::MARIADB,
    &data::MYSQL,
    &data::OPENLDAP,
    &data::VSFTPD,
];

impl Claim {
    pub(super) const fn tried(takes: Takes) -> Self {
        Self { takes, seen: Seen::Tried }
    }

    pub(super) const fn documented(takes: Takes) -> Self {
        Self { takes, seen: Seen::Documented }
    }

    /// For the document: "HUP *", where the star means that it was tried.
    pub fn told(&self) -> String {
        let takes = match self.takes {
            Takes::Signal(signal) => signal.name(),
            Takes::Exec => "command",
            Takes::Watched => "by itself",
            Takes::Restart => "restart",
            Takes::Unused => "–",
            Takes::Unknown => "?",
        };
        let tried = self.seen == Seen::Tried;
        format!("{takes}{}", if tried { " \\*" } else { "" })
    }
}

impl Crl {
    /// For the document.
    pub fn told(&self) -> String {
        match self {
            Self::Ignored => "not looked at".into(),
            Self::LeafOnly => "leaf only".into(),
            Self::AllRequired => "whole chain, all needed".into(),
            Self::Setting(name) => format!("`{name}` says"),
            Self::Unknown => "?".into(),
        }
    }
}

impl Survives {
    /// For the document.
    pub fn told(self) -> &'static str {
        match self {
            Self::Yes => "go on",
            Self::No => "end",
            Self::Unused => "–",
            Self::Unknown => "?",
        }
    }
}
