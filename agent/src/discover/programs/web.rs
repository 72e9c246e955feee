//! Web servers and proxies.

use super::table::{Claim, Crl, Program, Survives, Takes};
use super::wrappers::base_name;
use super::{Command, Facts, Reload, Signal, options};

const HUP: Takes = Takes::Signal(Signal::Hup);
const USR1: Takes = Takes::Signal(Signal::Usr1);
const USR2: Takes = Takes::Signal(Signal::Usr2);

/// New configuration, new workers; old ones finish their connections.
pub(super) static NGINX: Program = Program {
    name: "nginx",
    executables: &["nginx", "openresty"],
    images: &["nginx", "openresty"],
    server: Claim::tried(HUP),
    client: Claim::documented(HUP),
    bundle: Claim::documented(HUP),
    crl: Claim::tried(HUP),
    crl_depth: Crl::AllRequired,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`worker_shutdown_timeout` bounds how long old workers keep their connections",
    tried: "1.22.1",
    sources: &["nginx, Controlling nginx", "nginx, ngx_http_ssl_module, ssl_crl"],
    advice: "",
    ladder: |facts| {
        let mut again = vec!["nginx".to_owned(), "-s".into(), "reload".into()];
        again.extend(options(&split_title(facts.words), &["-c", "-p"]));
        vec![Reload::Signal(Signal::Hup), Reload::Exec(Command(again))]
    },
    check: |facts| {
        let mut check = vec!["nginx".to_owned(), "-t".into()];
        check.extend(options(&split_title(facts.words), &["-c", "-p"]));
        Some(Command(check))
    },
};

/// Its master writes the command line it was started with into its title, as one word.
fn split_title(words: &[String]) -> Vec<String> {
    words.iter().flat_map(|word| word.split_whitespace()).map(str::to_owned).collect()
}

/// USR1 is the graceful one: HUP cuts every connection.
pub(super) static APACHE: Program = Program {
    name: "Apache httpd",
    executables: &["apache2", "httpd"],
    images: &["httpd", "apache2"],
    server: Claim::tried(USR1),
    client: Claim::documented(USR1),
    bundle: Claim::documented(USR1),
    crl: Claim::tried(USR1),
    crl_depth: Crl::Setting("SSLCARevocationCheck"),
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`GracefulShutdownTimeout` for a stop; HUP cuts all connections",
    tried: "2.4.71",
    sources: &["Apache 2.4, Stopping and Restarting", "Apache 2.4, mod_ssl, SSLCARevocationCheck"],
    advice: "",
    ladder: |facts| vec![Reload::Signal(Signal::Usr1), Reload::Exec(apache(facts, &["-k", "graceful"]))],
    check: |facts| Some(apache(facts, &["-t"])),
};

/// Debian's wrapper reads /etc/apache2/envvars, without which its configuration is none.
fn apache(facts: &Facts<'_>, what: &[&str]) -> Command {
    let program = facts.words.first().map_or("", |word| base_name(word));
    let debian = program.starts_with("apache2") || program == "apachectl";
    let mut words = vec![if debian { "apache2ctl" } else { "httpd" }.to_owned()];
    words.extend(what.iter().map(|word| (*word).to_owned()));
    words.extend(options(facts.words, &["-f", "-d"]));
    Command(words)
}

/// The master of `-W` or `-Ws` starts a new worker; without one nothing can be signalled.
pub(super) static HAPROXY: Program = Program {
    name: "HAProxy",
    executables: &["haproxy"],
    images: &["haproxy"],
    server: Claim::tried(USR2),
    client: Claim::documented(USR2),
    bundle: Claim::documented(USR2),
    crl: Claim::tried(USR2),
    crl_depth: Crl::AllRequired,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`hard-stop-after` bounds how long an old worker lives",
    tried: "2.6.12",
    sources: &["HAProxy management guide, section 4", "HAProxy configuration manual, crl-file"],
    advice: "start it as master and worker (-W or -Ws), or allow reload=restart",
    ladder: |facts| {
        let master = facts.words.iter().any(|word| matches!(word.as_str(), "-W" | "-Ws"));
        if master { vec![Reload::Signal(Signal::Usr2)] } else { Vec::new() }
    },
    check: |facts| {
        let mut check = vec!["haproxy".to_owned(), "-c".into(), "-q".into()];
        let plain = check.len();
        check.extend(options(facts.words, &["-f"]));
        (check.len() > plain).then_some(Command(check))
    },
};

/// Without `--force` a configuration that has not changed is not loaded again, and its
/// certificate files are not looked at.
pub(super) static CADDY: Program = Program {
    name: "Caddy",
    executables: &["caddy"],
    images: &["caddy"],
    server: Claim::tried(Takes::Exec),
    client: Claim::documented(Takes::Exec),
    bundle: Claim::documented(Takes::Exec),
    crl: Claim::documented(Takes::Unused),
    crl_depth: Crl::Ignored,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "`grace_period` bounds how long old connections live",
    tried: "2.6.2",
    sources: &["Caddy, Command line, caddy reload", "Caddy, Global options, grace_period"],
    advice: "",
    ladder: |facts| {
        let mut again = vec!["caddy".to_owned(), "reload".into(), "--force".into()];
        again.extend(caddy_options(facts.words));
        vec![Reload::Exec(Command(again))]
    },
    check: |facts| {
        let mut check = vec!["caddy".to_owned(), "validate".into()];
        check.extend(caddy_options(facts.words));
        Some(Command(check))
    },
};

fn caddy_options(words: &[String]) -> Vec<String> {
    let mut options = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let name = word.split('=').next().unwrap_or_default();
        if matches!(name, "--config" | "-config" | "-c" | "--adapter" | "-adapter" | "-a") {
            options.push(word.clone());
            if !word.contains('=') {
                options.extend(words.get(at + 1).cloned());
            }
        }
    }
    options
}

/// The file provider watches its own files, not the certificates that they name.
pub(super) static TRAEFIK: Program = Program {
    name: "Traefik",
    executables: &["traefik"],
    images: &["traefik"],
    server: Claim::documented(Takes::Restart),
    client: Claim::documented(Takes::Restart),
    bundle: Claim::documented(Takes::Restart),
    crl: Claim::documented(Takes::Unused),
    crl_depth: Crl::Ignored,
    connections: Survives::Unknown,
    sessions: Survives::Unknown,
    cut: "",
    tried: "",
    sources: &["traefik/traefik issues 3083 and 5495", "traefik/traefik pull request 4022"],
    advice: "it watches its dynamic configuration, not the certificates: declare reload=exec:touch FILE with the dynamic configuration file that names them, or allow reload=restart",
    ladder: |_| Vec::new(),
    check: |_| None,
};

/// Certificates of SDS from files are watched; those in a static listener are not.
pub(super) static ENVOY: Program = Program {
    name: "Envoy",
    executables: &["envoy"],
    images: &["envoy"],
    server: Claim::documented(Takes::Watched),
    client: Claim::documented(Takes::Watched),
    bundle: Claim::documented(Takes::Watched),
    crl: Claim::documented(Takes::Watched),
    crl_depth: Crl::Setting("only_verify_leaf_cert_crl"),
    connections: Survives::Unknown,
    sessions: Survives::Unknown,
    cut: "",
    tried: "",
    sources: &["Envoy, Secret discovery service, Certificate rotation"],
    advice: "",
    ladder: |_| Vec::new(),
    check: |_| None,
};

/// HUP reads the whole configuration again.
pub(super) static STUNNEL: Program = Program {
    name: "stunnel",
    executables: &["stunnel", "stunnel4", "stunnel5"],
    images: &["stunnel"],
    server: Claim::tried(HUP),
    client: Claim::documented(HUP),
    bundle: Claim::documented(HUP),
    crl: Claim::tried(HUP),
    crl_depth: Crl::LeafOnly,
    connections: Survives::Yes,
    sessions: Survives::No,
    cut: "restart it",
    tried: "5.68",
    sources: &["stunnel(8), SIGNALS and CRLfile"],
    advice: "",
    ladder: |_| vec![Reload::Signal(Signal::Hup)],
    check: |_| None,
};
