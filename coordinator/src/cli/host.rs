//! `reseal host`: the Docker hosts of the fleet.

use clap::Subcommand;
use reseal_proto::v1;

use super::Context;
use super::certs;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::Column;
use super::output::text::{Piece, Text};
use super::selection;
use super::view::{HostDetailView, HostView, InstallationView};
use super::when;

/// Docker hosts.
#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// Make a one-time join token for a host (admin)
    #[command(after_help = "Example:\n  reseal host invite web-1 --label env=prod --label region=eu\n\
        then, on web-1:\n  reseal-agent enrol TOKEN && reseal-agent run\n\
        The token is shown once, works once and carries the coordinators' addresses and the CA pin.")]
    Invite {
        /// Name of the host: 1 to 63 of a-z 0-9 - . _
        name: String,
        /// A label of the host; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = selection::label)]
        labels: Vec<(String, String)>,
        /// How long the token is good, at most 7d
        #[arg(long, default_value = "1h", value_name = "SPAN", value_parser = when::duration)]
        lifetime: u64,
    },
    /// List the hosts. Changes nothing
    List {
        /// Only hosts with this label; may be repeated, all must match
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = selection::label)]
        labels: Vec<(String, String)>,
    },
    /// One host: its installations, consumers, endpoints and findings. Changes nothing
    Show {
        /// Name of the host
        name: String,
    },
    /// Cut a host off, at once, on its open connection too (admin)
    Ban {
        /// Name of the host
        name: String,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Forget a host and its inventory (admin); refused while a running rotation needs it
    Remove {
        /// Name of the host
        name: String,
    },
}

const COLUMNS: [Column<HostView>; 8] = [
    ("HOST", |host| Piece::bold(&host.name)),
    ("STATE", |host| match (host.state.as_str(), host.connected) {
        ("enrolled", true) => Piece::good("connected"),
        ("enrolled", false) => Piece::warn("away"),
        ("banned", _) => Piece::bad("banned"),
        (state, _) => Piece::plain(state),
    }),
    ("SEEN", |host| {
        if host.connected {
            Piece::plain("now")
        } else {
            Piece::plain(when::relative(host.last_seen_seconds, when::now()))
        }
    }),
    ("MANAGED", |host| Piece::plain(host.installations.saturating_sub(host.discovered))),
    ("DISCOVERED", |host| Piece::plain(host.discovered)),
    ("FINDINGS", |host| if host.findings == 0 { Piece::plain(0) } else { Piece::warn(host.findings) }),
    ("AGENT", |host| Piece::plain(host.agent_version.as_deref().unwrap_or("-"))),
    ("LABELS", |host| Piece::dim(label_text(host))),
];

const INSTALLATION_COLUMNS: [Column<InstallationView>; 6] = [
    ("INSTALLATION", |row| Piece::bold(&row.label)),
    ("NAMES", |row| Piece::plain(row.names.join(" "))),
    ("EXPIRES", |row| certs::expiry(row.certificate.as_ref().map(|c| c.not_after_seconds))),
    ("CONSUMERS", |row| {
        let text = row.consumers.iter().map(|consumer| {
            let stopped = if consumer.running { "" } else { " (stopped)" };
            format!("{}{stopped} {}", consumer.container, consumer.reload)
        });
        Piece::plain(text.collect::<Vec<_>>().join(", "))
    }),
    ("ENDPOINTS", |row| {
        let text = row.endpoints.iter().map(|endpoint| endpoint.address.clone());
        Piece::plain(text.collect::<Vec<_>>().join(" "))
    }),
    ("FILE", |row| Piece::dim(&row.id)),
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: HostCommand) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    match command {
        HostCommand::Invite { name, labels, lifetime } => {
            let message = v1::InviteHostRequest {
                name: name.clone(),
                labels: selection::labels(&labels)?,
                lifetime_seconds: lifetime,
            };
            let reply = client.rpc.invite_host(request(message)).await?.into_inner();
            let view = serde_json::json!({
                "host": name, "token": reply.token, "expires_at": when::rfc3339(reply.expires_at),
            });
            context.out.one(&view, &["host", "token", "expires_at"], || {
                Text::new()
                    .line(format!("On {name}, before {}:", when::minute(reply.expires_at)))
                    .line("")
                    .line(format!("  reseal-agent enrol {}", reply.token))
                    .line("")
                    .pieces([Piece::dim("The token works once and is not shown again.")])
            })?;
        }
        HostCommand::List { labels } => {
            let message = v1::ListHostsRequest { labels: selection::labels(&labels)? };
            let reply = client.rpc.list_hosts(request(message)).await?.into_inner();
            let rows: Vec<HostView> = reply.hosts.into_iter().map(Into::into).collect();
            let csv = [
                "name",
                "state",
                "connected",
                "labels",
                "last_seen",
                "enrolled_at",
                "identity_expires_at",
                "agent_version",
                "clock_skew_seconds",
                "installations",
                "discovered",
                "findings",
                "ban_reason",
            ];
            context.out.list(
                &rows,
                &COLUMNS,
                &csv,
                "no hosts: `reseal host invite NAME` makes a join token",
            )?;
        }
        HostCommand::Show { name } => {
            let message = v1::HostRequest { name };
            let reply = client.rpc.show_host(request(message)).await?.into_inner();
            let view = HostDetailView::from(reply);
            match context.out.format {
                super::output::Format::Csv => context.out.list(
                    &view.installations,
                    &INSTALLATION_COLUMNS,
                    &[
                        "id",
                        "label",
                        "names",
                        "usage",
                        "key_type",
                        "issuer",
                        "layout",
                        "certificate.fingerprint",
                        "certificate.serial",
                        "certificate.issuer",
                        "certificate.not_after",
                    ],
                    "",
                )?,
                super::output::Format::Table | super::output::Format::Json => {
                    context.out.one(&view, &[], || text(&view))?;
                }
            }
        }
        HostCommand::Ban { name, reason } => {
            let message = v1::BanHostRequest { name: name.clone(), reason };
            client.rpc.ban_host(request(message)).await?;
            super::done(context, "host.banned", &name, "host", "is cut off")?;
        }
        HostCommand::Remove { name } => {
            client.rpc.remove_host(request(v1::HostRequest { name: name.clone() })).await?;
            super::done(context, "host.removed", &name, "host", "is forgotten")?;
        }
    }
    Ok(Exit::Done)
}

fn label_text(host: &HostView) -> String {
    host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn text(view: &HostDetailView) -> Text {
    let (host, now) = (&view.host, when::now());
    let seen = if host.connected {
        Piece::good("connected")
    } else {
        Piece::warn(format!("away, last seen {}", when::relative(host.last_seen_seconds, now)))
    };
    let skew = host.clock_skew_seconds;
    let mut text = Text::new()
        .fact_piece("Host", Piece::bold(&host.name))
        .fact("State", &host.state)
        .fact_piece("Session", seen)
        .fact("Labels", label_text(host))
        .fact("Identity ends", when::relative(host.identity_expires_seconds, now))
        .fact("Agent", host.agent_version.as_deref().unwrap_or_default())
        .fact_piece(
            "Clock",
            match skew.abs() {
                0..=5 => Piece::plain(""),
                _ => Piece::warn(format!("{skew} s off the coordinator's")),
            },
        )
        .fact_piece("Banned because", Piece::bad(host.ban_reason.as_deref().unwrap_or_default()));
    text = text.heading(format!("Installations ({})", view.installations.len()));
    text = if view.installations.is_empty() {
        text.line("none: label a container with reseal.enable=true and reseal.cert.<name>...")
    } else {
        text.table(&view.installations, &INSTALLATION_COLUMNS)
    };
    if !view.findings.is_empty() {
        text = text
            .heading(format!("Findings ({})", view.findings.len()))
            .table(&view.findings, &certs::FINDING_COLUMNS[1..]);
    }
    text
}
