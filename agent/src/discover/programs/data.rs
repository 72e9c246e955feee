//! Databases, message brokers, directories and file servers.

use super::table::{Claim, Crl, Program, Survives, Takes};
use super::{Command, Facts, File, Reload, Signal};

const HUP: Takes = Takes::Signal(Signal::Hup);

/// Since version 10; a pair that it cannot read leaves the old one in use, with a line in its log.
pub(super) static POSTGRESQL: Program = Program {
    name: "PostgreSQL",
    executables: &["postgres", "postmaster", "postgres:"],
    images: &["postgres", "postgresql"],
    server: Claim::tried(HUP),
    client: Claim::documented(Takes::Unused),
    bundle: Claim::documented(HUP),
    crl: Claim::tried(HUP),
    crl_depth: Crl::AllRequired,
    connections: Survives::Yes,
    sessions: Survives::Unknown,
    cut: "`pg_terminate_backend`",
    tried: "15.20",
    sources: &["PostgreSQL 15, section 19.9 (SSL server file usage)", "PostgreSQL 15, section 20.3.3"],
    advice: "",
    // pg_ctl refuses to run as root, which is what exec does in the usual image.
    ladder: |_| vec![Reload::Signal(Signal::Hup)],
    check: |_| None,
};

/// A file is read again when its path is set, also to what it is.
pub(super) static REDIS: Program = Program {
    name: "Redis",
    executables: &["redis-server", "valkey-server"],
    images: &["redis", "valkey"],
    server: Claim::tried(Takes::Exec),
    client: Claim::documented(Takes::Exec),
    bundle: Claim::documented(Takes::Exec),
    crl: Claim::documented(Takes::Unused),
    crl_depth: Crl::Ignored,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`CLIENT KILL`",
    tried: "7.0.15",
    sources: &["Redis, TLS support", "Redis, CONFIG SET", "redis 7.0 redis.conf, TLS/SSL"],
    advice: "",
    ladder: |facts| vec![Reload::Exec(Command(redis(facts)))],
    check: |_| None,
};

/// The client's exit status does not say whether the server obeyed; the handshake does.
fn redis(facts: &Facts<'_>) -> Vec<String> {
    let valkey = facts.words.first().is_some_and(|word| word.contains("valkey"));
    let mut words = vec![if valkey { "valkey-cli" } else { "redis-cli" }.to_owned()];
    if let Some(port) = facts.port {
        // A server that asks its clients for a certificate gets its own.
        let own = ["--tls", "--insecure", "--cert", facts.path, "--key", facts.key, "-p"];
        words.extend(own.map(str::to_owned));
        words.push(port.to_string());
    }
    let setting = match facts.file {
        File::Server => "tls-cert-file",
        File::Client => "tls-client-cert-file",
        File::Bundle => "tls-ca-cert-file",
    };
    words.extend(["CONFIG", "SET", setting, facts.path].map(str::to_owned));
    words
}

/// Since version 2.0.
pub(super) static MOSQUITTO: Program = Program {
    name: "Mosquitto",
    executables: &["mosquitto"],
    images: &["eclipse-mosquitto", "mosquitto"],
    server: Claim::tried(HUP),
    client: Claim::documented(Takes::Unknown),
    bundle: Claim::documented(HUP),
    crl: Claim::tried(HUP),
    crl_depth: Crl::LeafOnly,
    connections: Survives::Yes,
    sessions: Survives::Yes,
    cut: "restart it",
    tried: "2.0.11",
    sources: &["mosquitto(8), SIGHUP", "mosquitto.org, Using Let's Encrypt certificates with Mosquitto"],
    advice: "",
    ladder: |_| vec![Reload::Signal(Signal::Hup)],
    check: |_| None,
};

/// Since version 10.4. HUP flushes tables and logs, not this.
pub(super) static MARIADB: Program = Program {
    name: "MariaDB",
    executables: &["mariadbd"],
    images: &["mariadb"],
    server: Claim::tried(Takes::Exec),
    client: Claim::documented(Takes::Unknown),
    bundle: Claim::documented(Takes::Exec),
    crl: Claim::tried(Takes::Exec),
    crl_depth: Crl::AllRequired,
    connections: Survives::Yes,
    sessions: Survives::Unknown,
    cut: "`KILL CONNECTION`",
    tried: "10.11.19",
    sources: &["MariaDB, FLUSH SSL"],
    advice: "",
    ladder: |_| vec![Reload::Exec(Command::of(["mariadb", "-e", "FLUSH SSL"]))],
    check: |_| None,
};

/// Since version 8.0.16.
pub(super) static MYSQL: Program = Program {
    name: "MySQL",
    executables: &["mysqld"],
    images: &["mysql"],
    server: Claim::documented(Takes::Exec),
    client: Claim::documented(Takes::Unknown),
    bundle: Claim::documented(Takes::Exec),
    crl: Claim::documented(Takes::Exec),
    crl_depth: Crl::Unknown,
    connections: Survives::Unknown,
    sessions: Survives::Unknown,
    cut: "`KILL CONNECTION`",
    tried: "",
    sources: &["MySQL 8.0, ALTER INSTANCE RELOAD TLS"],
    advice: "",
    ladder: |_| vec![Reload::Exec(Command::of(["mysql", "-e", "ALTER INSTANCE RELOAD TLS"]))],
    check: |_| None,
};

/// HUP ends it.
pub(super) static OPENLDAP: Program = Program {
    name: "OpenLDAP",
    executables: &["slapd"],
    images: &["openldap"],
    server: Claim::tried(Takes::Restart),
    client: Claim::documented(Takes::Restart),
    bundle: Claim::documented(Takes::Restart),
    crl: Claim::documented(Takes::Restart),
    crl_depth: Crl::Setting("TLSCRLCheck"),
    connections: Survives::No,
    sessions: Survives::Unknown,
    cut: "",
    tried: "2.5.13",
    sources: &["slapd.conf(5), TLS OPTIONS and gentlehup"],
    advice: "allow reload=restart, or, where its configuration is in cn=config, declare an exec that sets olcTLSCertificateFile to what it is; HUP ends it",
    ladder: |_| Vec::new(),
    check: |_| None,
};

/// Its listener reads the certificate once; HUP reads other settings again.
pub(super) static VSFTPD: Program = Program {
    name: "vsftpd",
    executables: &["vsftpd"],
    images: &["vsftpd"],
    server: Claim::tried(Takes::Restart),
    client: Claim::documented(Takes::Unused),
    bundle: Claim::documented(Takes::Restart),
    crl: Claim::documented(Takes::Unused),
    crl_depth: Crl::Ignored,
    connections: Survives::No,
    sessions: Survives::No,
    cut: "",
    tried: "3.0.3",
    sources: &["vsftpd.conf(5)"],
    advice: "it reads its certificate when it starts: allow reload=restart",
    ladder: |_| Vec::new(),
    check: |_| None,
};
