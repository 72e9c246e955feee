//! Mail servers.

use super::table::{Claim, Crl, Program, Survives, Takes};
use super::{Command, Reload, Signal, options};

const HUP: Takes = Takes::Signal(Signal::Hup);

/// Its workers read the certificate when they start; HUP makes the master replace them.
pub(super) static POSTFIX: Program = Program {
    name: "Postfix",
    executables: &["master", "postfix"],
    images: &["postfix"],
    server: Claim::tried(HUP),
    client: Claim::documented(HUP),
    bundle: Claim::documented(HUP),
    crl: Claim::documented(Takes::Unused),
    crl_depth: Crl::Ignored,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`postfix abort` cuts all; a worker ends with its client",
    tried: "3.7.11",
    sources: &["postfix(1), reload", "master(8), SIGHUP", "TLS_README, Server-side certificate"],
    advice: "",
    ladder: |_| vec![Reload::Signal(Signal::Hup), Reload::Exec(Command::of(["postfix", "reload"]))],
    check: |_| Some(Command::of(["postfix", "check"])),
};

/// New login processes read the certificate anew; sessions go on in the old ones.
pub(super) static DOVECOT: Program = Program {
    name: "Dovecot",
    executables: &["dovecot"],
    images: &["dovecot"],
    server: Claim::tried(HUP),
    client: Claim::documented(HUP),
    bundle: Claim::documented(HUP),
    crl: Claim::tried(HUP),
    crl_depth: Crl::Setting("ssl_require_crl"),
    connections: Survives::Yes,
    sessions: Survives::Unused,
    cut: "`doveadm kick`",
    tried: "2.3.19",
    sources: &["Dovecot 2.3, doveadm-reload(1)", "Dovecot 2.3, SSL configuration, ssl_require_crl"],
    advice: "",
    ladder: |facts| {
        let mut again = vec!["doveadm".to_owned()];
        again.extend(options(facts.words, &["-c"]));
        again.push("reload".into());
        vec![Reload::Signal(Signal::Hup), Reload::Exec(Command(again))]
    },
    check: |facts| {
        let mut check = vec!["doveconf".to_owned(), "-n".into()];
        check.extend(options(facts.words, &["-c"]));
        Some(Command(check))
    },
};
