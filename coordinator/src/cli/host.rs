//! `reseal host`: the Docker hosts of the fleet.

use clap::Subcommand;
use reseal_proto::v1;

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, Format};
use super::view::{self, EndpointView, HostDetailView, HostView, InstallationView};
use super::{certs, findings, selection, when};

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
    /// One host on one page: who it is, what is managed and what was found, what is wrong. Changes nothing
    #[command(after_help = "With --output csv: its installations, one a line.")]
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

/// What Reseal looks after.
const MANAGED: [Column<InstallationView>; 6] = [
    ("INSTALLATION", |row| Piece::bold(&row.label)),
    ("NAMES", |row| Piece::plain(view::few(names(row), 2))),
    ("EXPIRES", |row| certs::expiry(row.certificate.as_ref().map(|c| c.not_after_seconds))),
    ("BY", |row| Piece::plain(row.management)),
    ("CONSUMERS", |row| Piece::plain(view::few(&consumers(row), 3))),
    ("WHERE", |row| Piece::dim(&row.id)),
];

/// What was found.
const DISCOVERED: [Column<InstallationView>; 6] = [
    ("CERTIFICATE", |row| Piece::bold(&row.label)),
    ("NAMES", |row| Piece::plain(view::few(names(row), 2))),
    ("EXPIRES", |row| certs::expiry(row.certificate.as_ref().map(|c| c.not_after_seconds))),
    ("ADOPT", |row| match &row.inference {
        Some(inference) if inference.obstacles.is_empty() => Piece::good("yes"),
        Some(inference) => Piece::plain(format!("no: {}", inference.obstacles[0])),
        None => Piece::plain("-"),
    }),
    ("CONSUMERS", |row| Piece::plain(view::few(&consumers(row), 3))),
    ("WHERE", |row| Piece::dim(&row.id)),
];

/// An endpoint, and what is known of it.
struct Served {
    address: String,
    sni: String,
    from: String,
    installation: String,
    /// What it serves, compared with the file.
    serves: Piece,
}

impl Served {
    fn new(endpoint: &EndpointView, of: &InstallationView) -> Self {
        let file = of.certificate.as_ref().map(|certificate| certificate.fingerprint.as_str());
        Self {
            address: endpoint.shown(),
            sni: if endpoint.sni.is_empty() { "-".into() } else { endpoint.sni.clone() },
            from: endpoint.within.clone().unwrap_or_else(|| "host".into()),
            installation: of.label.clone(),
            serves: match endpoint.served.as_deref() {
                None => Piece::dim("not looked at"),
                served if served == file => Piece::good("this certificate"),
                served => Piece::bad(format!("another: {}", view::short(served))),
            },
        }
    }
}

const ENDPOINTS: [Column<Served>; 5] = [
    ("ENDPOINT", |row| Piece::bold(&row.address)),
    ("NAME", |row| Piece::plain(&row.sni)),
    ("FROM", |row| Piece::plain(&row.from)),
    ("INSTALLATION", |row| Piece::plain(&row.installation)),
    ("SERVES", |row| row.serves.clone()),
];

fn names(row: &InstallationView) -> &[String] {
    match &row.certificate {
        Some(certificate) if !certificate.names.is_empty() => &certificate.names,
        Some(_) | None => &row.names,
    }
}

fn consumers(row: &InstallationView) -> Vec<String> {
    let consumers = row.consumers.iter().map(|consumer| {
        let stopped = if consumer.running { "" } else { " (stopped)" };
        match consumer.reload.as_str() {
            "" => format!("{}{stopped}", consumer.container),
            reload => format!("{}{stopped} {reload}", consumer.container),
        }
    });
    consumers.collect()
}

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
                Format::Csv => context.out.list(
                    &view.installations,
                    &MANAGED,
                    &[
                        "id",
                        "label",
                        "names",
                        "usage",
                        "key_type",
                        "issuer",
                        "layout",
                        "management",
                        "origin",
                        "certificate.fingerprint",
                        "certificate.serial",
                        "certificate.issuer",
                        "certificate.not_after",
                    ],
                    "",
                )?,
                Format::Table | Format::Json => context.out.one(&view, &[], || text(&view))?,
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
    let of = |management: &str, origin: &str| -> Vec<&InstallationView> {
        let is = |row: &&InstallationView| match management {
            "discovered" => row.management == "discovered" && row.origin == origin,
            _ => row.management != "discovered",
        };
        view.installations.iter().filter(is).collect()
    };
    let managed = of("", "");
    text = text.heading(format!("Managed ({})", managed.len()));
    text = if managed.is_empty() {
        text.line(
            "none: label a container with reseal.enable=true and reseal.cert.<name>..., or reseal adopt",
        )
    } else {
        text.table_of(&managed, &MANAGED)
    };
    for (title, origin) in [
        ("Discovered, managed by nobody", "file"),
        ("Built into images", "image"),
        ("Seen at endpoints only", "endpoint"),
    ] {
        let rows = of("discovered", origin);
        if !rows.is_empty() {
            text = text.heading(format!("{title} ({})", rows.len())).table_of(&rows, &DISCOVERED);
        }
    }
    let served = |of: &InstallationView| {
        of.endpoints.iter().map(|endpoint| Served::new(endpoint, of)).collect::<Vec<Served>>()
    };
    let endpoints: Vec<Served> = view.installations.iter().flat_map(served).collect();
    if !endpoints.is_empty() {
        text = text.heading(format!("Endpoints ({})", endpoints.len())).table(&endpoints, &ENDPOINTS);
    }
    if view.findings.is_empty() { text } else { text.then(findings::section(&view.findings, false)) }
}
