//! `reseal policy`: which hosts may hold which names, with which key and lifetime.

pub(crate) mod file;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reseal_proto::v1;

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::Column;
use super::output::text::{Piece, Text};
use super::selection;
use super::view::{PolicyCheckView, PolicyView};
use super::when;

/// Policies.
#[derive(Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// List the policies; the first by name that admits a request decides. Changes nothing
    List,
    /// One policy, as the file that `set` reads. Changes nothing
    #[command(after_help = "Example:\n  reseal policy show web > web.toml && $EDITOR web.toml && \
        reseal policy set web --file web.toml")]
    Show {
        /// Name of the policy
        name: String,
    },
    /// Create or replace a policy, from a file or from flags (admin)
    #[command(after_help = "Examples:\n  reseal policy set web --file web.toml\n  \
        reseal policy set web --host 'web-*' --name '*.example.test' --key-type ecdsa-p256 --usage server --lifetime 30d\n\
        What is already installed stays until its next renewal.")]
    Set(Box<SetArgs>),
    /// Remove a policy (admin); nothing that is installed changes
    Remove {
        /// Name of the policy
        name: String,
    },
    /// Would this be issued, and if not, why not? Exit code 5 when refused. Changes nothing
    #[command(after_help = "Example:\n  reseal policy check --host web-1 --name www.example.test")]
    Check {
        /// The host that would hold the certificate
        #[arg(long, value_name = "NAME")]
        host: String,
        /// A DNS name or IP address of the certificate; may be repeated
        #[arg(long = "name", value_name = "NAME", required = true)]
        names: Vec<String>,
        /// The kind of key
        #[arg(long, default_value = "ecdsa-p256", value_name = "TYPE")]
        key_type: String,
        /// server, client or both
        #[arg(long, default_value = "server", value_parser = file::usage)]
        usage: v1::Usage,
    },
}

/// A policy from a file or from flags.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// Name of the policy
    policy: String,
    /// A TOML file with any of hosts, host_labels, names, addresses, key_types, usages, lifetime, wildcards
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "host_labels", "names", "addresses", "key_types", "usages", "lifetime", "wildcards"])]
    file: Option<PathBuf>,
    /// Host name pattern such as web-*; may be repeated; none: every host
    #[arg(long = "host", value_name = "PATTERN")]
    hosts: Vec<String>,
    /// Label a host must have; may be repeated, all must match
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = selection::label)]
    host_labels: Vec<(String, String)>,
    /// www.example.test, *.example.test (one label), **.example.test (any number), {host}
    #[arg(long = "name", value_name = "PATTERN")]
    names: Vec<String>,
    /// Network of IP addresses a certificate may carry
    #[arg(long = "address", value_name = "CIDR")]
    addresses: Vec<String>,
    /// ecdsa-p256, rsa-3072, ...; may be repeated [default: ecdsa-p256 and ecdsa-p384]
    #[arg(long = "key-type", value_name = "TYPE")]
    key_types: Vec<String>,
    /// server, client or both; may be repeated [default: server]
    #[arg(long = "usage", value_name = "USAGE", value_parser = file::usage)]
    usages: Vec<v1::Usage>,
    /// How long a certificate lives [default: 30d]
    #[arg(long, value_name = "SPAN", value_parser = when::duration)]
    lifetime: Option<u64>,
    /// May a certificate carry a wildcard name?
    #[arg(long)]
    wildcards: bool,
}

impl SetArgs {
    fn policy(self) -> Result<v1::Policy, CliError> {
        let name = self.policy;
        let (parsed, what) = match &self.file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    CliError::failed(format!("cannot read policy file {}: {error}", path.display()), "")
                })?;
                (file::parse(&name, &text), path.display().to_string())
            }
            None => {
                let mut policy = v1::Policy {
                    hosts: self.hosts,
                    host_labels: selection::labels(&self.host_labels)?,
                    names: self.names,
                    addresses: self.addresses,
                    key_types: self.key_types,
                    usages: self.usages.into_iter().map(Into::into).collect(),
                    lifetime_seconds: self.lifetime.unwrap_or_default(),
                    wildcards: self.wildcards,
                    name: name.clone(),
                };
                file::complete(&mut policy);
                let wrong = file::mistakes(&policy);
                (if wrong.is_empty() { Ok(policy) } else { Err(wrong) }, "these flags".into())
            }
        };
        parsed.map_err(|wrong| {
            let (count, list) = (wrong.len(), wrong.join("\n"));
            CliError::Usage(format!("policy {name:?} from {what} has {count} mistake(s):\n{list}"))
        })
    }
}

const COLUMNS: [Column<PolicyView>; 6] = [
    ("POLICY", |row| Piece::bold(&row.name)),
    ("HOSTS", |row| {
        let labels = row.host_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let all: Vec<String> = row.hosts.iter().cloned().chain(labels).collect();
        Piece::plain(if all.is_empty() { "every host".into() } else { all.join(" ") })
    }),
    ("NAMES", |row| {
        let all: Vec<&str> = row.names.iter().chain(&row.addresses).map(String::as_str).collect();
        Piece::plain(all.join(" "))
    }),
    ("KEYS", |row| Piece::plain(row.key_types.join(" "))),
    ("USAGES", |row| Piece::plain(row.usages.join(" "))),
    ("LIFETIME", |row| {
        Piece::plain(if row.lifetime_seconds == 0 { "-".into() } else { when::short(row.lifetime_seconds) })
    }),
];

const CSV: [&str; 9] = [
    "name",
    "hosts",
    "host_labels",
    "names",
    "addresses",
    "key_types",
    "usages",
    "lifetime_seconds",
    "wildcards",
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: PolicyCommand) -> Result<Exit, CliError> {
    // Mistakes in a file are found before a connection is needed.
    let policy = match command {
        PolicyCommand::Set(args) => args.policy()?,
        PolicyCommand::List => {
            let rows: Vec<PolicyView> = all(context).await?.into_iter().map(Into::into).collect();
            context.out.list(&rows, &COLUMNS, &CSV, "no policies: nothing can be issued")?;
            return Ok(Exit::Done);
        }
        PolicyCommand::Show { name } => return show(context, &name).await,
        PolicyCommand::Remove { name } => {
            let message = v1::RemovePolicyRequest { name: name.clone() };
            context.connect().await?.rpc.remove_policy(request(message)).await?;
            super::done(context, "policy.removed", &name, "policy", "is removed")?;
            return Ok(Exit::Done);
        }
        PolicyCommand::Check { host, names, key_type, usage } => {
            let message = v1::CheckPolicyRequest { host, names, key_type, usage: usage.into() };
            return check(context, message).await;
        }
    };
    let name = policy.name.clone();
    context.connect().await?.rpc.set_policy(request(policy)).await?;
    super::done(context, "policy.set", &name, "policy", "is in force")?;
    Ok(Exit::Done)
}

async fn all(context: &Context) -> Result<Vec<v1::Policy>, CliError> {
    let mut client = context.connect().await?;
    let reply = client.rpc.list_policies(request(v1::ListPoliciesRequest {})).await?;
    Ok(reply.into_inner().policies)
}

async fn show(context: &Context, name: &str) -> Result<Exit, CliError> {
    let policy = all(context).await?.into_iter().find(|policy| policy.name == name).ok_or_else(|| {
        CliError::failed(format!("there is no policy {name:?}"), "`reseal policy list` shows what is there")
    })?;
    let text = file::write(&policy);
    context.out.one(&PolicyView::from(policy), &CSV, || Text::new().verbatim(text))?;
    Ok(Exit::Done)
}

async fn check(context: &Context, message: v1::CheckPolicyRequest) -> Result<Exit, CliError> {
    let what = format!("{} on {}", message.names.join(", "), message.host);
    let mut client = context.connect().await?;
    let reply = client.rpc.check_policy(request(message)).await?.into_inner();
    let view = PolicyCheckView::from(reply);
    context.out.one(&view, &["admitted", "policy", "lifetime_seconds", "explanation"], || {
        let mut text = if view.admitted {
            Text::new().pieces([
                Piece::good("admitted"),
                Piece::plain(format!(
                    ": {what}, by policy {}, for {}",
                    view.policy.as_deref().unwrap_or("?"),
                    when::short(view.lifetime_seconds.unwrap_or_default())
                )),
            ])
        } else {
            Text::new().pieces([Piece::bad("refused"), Piece::plain(format!(": {what}"))])
        };
        for line in &view.explanation {
            text = text.line(format!("  {line}"));
        }
        text
    })?;
    Ok(if view.admitted { Exit::Done } else { Exit::Refused })
}
