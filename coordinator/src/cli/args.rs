//! Every command and its help.
//!
//! The flags of a noun live in its module; this is the map. Names and exit
//! codes are binding: scripts and documentation rely on them.

use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Effects};
use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::output::Format;
use super::{
    adopt, audit, authority, certs, exit, findings, host, operator, policy, rotation, server, trust,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default());

const LONG_ABOUT: &str = "\
Reseal knows every certificate on every Docker host of a fleet, renews each one
without downtime, and when a CA is compromised reissues, reloads and proves the
whole fleet clean.

An incident, from start to end:
  reseal plan   --compromised-issuer builtin/a
  reseal rotate --compromised-issuer builtin/a --reason \"key found on a laptop\"
  reseal rotation evidence ID";

/// Knows, renews and proves every certificate of a Docker fleet.
#[derive(Parser, Debug)]
#[command(
    name = "reseal",
    version,
    styles = STYLES,
    long_about = LONG_ABOUT,
    after_long_help = exit::TABLE,
    after_help = "Exit codes and an example: reseal --help",
    max_term_width = 100,
)]
pub(crate) struct Cli {
    /// How results are printed: table, json (stable field names) or csv
    #[arg(
        long,
        short = 'o',
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    pub(crate) output: Format,
    /// The operator's credentials file [default: ~/.config/reseal/operator.json]
    #[arg(long, global = true, env = super::credentials::ENVIRONMENT, value_name = "FILE", hide_env_values = true,
        help_heading = "Global options")]
    pub(crate) credentials: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make a new fleet: store, control-plane CA, managed root, authorities a and b, first admin
    Init(server::InitArgs),
    /// Run the coordinator
    Serve(server::ServeArgs),
    /// The fleet at a glance, and who you are in it. Changes nothing
    Status,
    /// People and programs that may use this command line
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Which hosts may hold which names, with which key and lifetime
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Docker hosts, each with one agent
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Every certificate of the fleet, where it is and who uses it. Changes nothing
    Certs(certs::CertsArgs),
    /// What is wrong on the hosts, as their agents saw it. Changes nothing
    Findings(findings::FindingsArgs),
    /// Have a host look after a certificate that it discovered; shows first what and why
    Adopt(adopt::AdoptArgs),
    /// The blast radius of a rotation. Changes nothing
    Plan(rotation::plan::PlanArgs),
    /// Move certificates to new ones, in waves, each gated on verified success
    Rotate(rotation::rotate::RotateArgs),
    /// Rotations that run or ran
    #[command(subcommand)]
    Rotation(rotation::RotationCommand),
    /// Evidence files, offline
    #[command(subcommand)]
    Evidence(rotation::evidence::EvidenceCommand),
    /// CA certificates and keys of the built-in CA
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Trust bundles that hosts load
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Who did what: the hash chain of privileged acts
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The coordinator's store: backup, and the way to another engine
    #[command(subcommand)]
    Store(server::StoreCommand),
    /// A completion script for your shell
    #[command(after_help = "Example:\n  reseal completions bash > /etc/bash_completion.d/reseal")]
    Completions {
        /// bash, zsh, fish, ...
        shell: Shell,
    },
}

impl Command {
    /// The name of the command's span.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Serve(_) => "serve",
            Self::Status => "status",
            Self::Operator(_) => "operator",
            Self::Policy(_) => "policy",
            Self::Host(_) => "host",
            Self::Certs(_) => "certs",
            Self::Findings(_) => "findings",
            Self::Adopt(_) => "adopt",
            Self::Plan(_) => "plan",
            Self::Rotate(_) => "rotate",
            Self::Rotation(_) => "rotation",
            Self::Evidence(_) => "evidence",
            Self::Authority(_) => "authority",
            Self::Trust(_) => "trust",
            Self::Audit(_) => "audit",
            Self::Store(_) => "store",
            Self::Completions { .. } => "completions",
        }
    }
}

#[cfg(test)]
mod tests;
