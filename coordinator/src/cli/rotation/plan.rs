//! `reseal plan`: the blast radius, without changing anything.

use clap::Args;
use reseal_proto::v1;

use crate::cli::Context;
use crate::cli::client::request;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::Column;
use crate::cli::output::text::{Piece, Text};
use crate::cli::selection::SelectionArgs;
use crate::cli::view::{AuthorityView, PlanHostView, PlanView, RelyingPartyView, UnmanagedView};
use crate::cli::when;

/// Hosts shown to a person; programs get all.
const SHOWN_HOSTS: usize = 40;
/// Certificates that nobody looks after, likewise.
const SHOWN_UNMANAGED: usize = 40;

/// What would be rotated.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  reseal plan --compromised-issuer builtin/a\n  \
    reseal plan --key-type rsa-2048 --host-label env=prod\n  \
    reseal plan --serial-file revoked.txt --output json")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten, next_help_heading = "How it would go")]
    shape: ShapeArgs,
}

/// How a rotation would go; shared with `rotate`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShapeArgs {
    /// The authority to issue from [default: the active one, or the prepared one when it is compromised]
    #[arg(long, value_name = "AUTHORITY")]
    pub(crate) to_issuer: Option<String>,
    /// Hosts per wave, cumulative: numbers or shares of hosts
    #[arg(long, default_value = "1,10%,100%", value_name = "LIST", value_parser = wave_list)]
    pub(crate) waves: String,
}

const COLUMNS: [Column<PlanHostView>; 6] = [
    ("WAVE", |host| Piece::plain(host.wave)),
    ("HOST", |host| Piece::bold(&host.name)),
    ("SESSION", |host| {
        if host.connected {
            Piece::good("connected")
        } else {
            Piece::warn(format!("away, seen {}", when::relative(host.last_seen_seconds, when::now())))
        }
    }),
    ("CERTS", |host| Piece::plain(host.targets.len())),
    ("CONTAINERS", |host| {
        let mut all: Vec<&str> =
            host.targets.iter().flat_map(|target| &target.containers).map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        Piece::plain(few(&all))
    }),
    ("ENDPOINTS", |host| {
        Piece::plain(host.targets.iter().map(|target| target.endpoints.len()).sum::<usize>())
    }),
];

/// How relying parties are shown, here and in the summary.
pub(super) const RELYING_PARTY_COLUMNS: [Column<RelyingPartyView>; 4] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("CONTAINER", |row| Piece::plain(&row.container)),
    ("BUNDLE", |row| Piece::plain(&row.bundle)),
    ("COMPROMISED ISSUER", |row| match row.verdict.as_str() {
        "refuses" => Piece::good("refused"),
        "accepts" => Piece::bad("still accepted"),
        verdict => Piece::warn(verdict),
    }),
];

/// How certificates that nobody looks after are shown, here and in the summary.
const UNMANAGED_COLUMNS: [Column<UnmanagedView>; 6] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("CERTIFICATE", |row| Piece::plain(&row.label)),
    ("WHERE", |row| Piece::dim(&row.installation)),
    ("CONTAINERS", |row| Piece::plain(few(&row.containers.iter().map(String::as_str).collect::<Vec<_>>()))),
    ("ENDPOINTS", |row| Piece::plain(few(&row.endpoints.iter().map(String::as_str).collect::<Vec<_>>()))),
    ("WHAT NEXT", |row| Piece::plain(&row.next)),
];

/// Certificates that no rotation replaces, below a heading; nothing when there are none.
pub(super) fn unmanaged(number: u32, rows: &[UnmanagedView]) -> Text {
    if number == 0 {
        return Text::new();
    }
    let shown = &rows[..rows.len().min(SHOWN_UNMANAGED)];
    let mut text = Text::new().line("").pieces([
        Piece::bold(format!("Not managed by Reseal ({number})")),
        Piece::plain(": no rotation replaces these"),
    ]);
    if !shown.is_empty() {
        text = text.table(shown, &UNMANAGED_COLUMNS);
    }
    let more = u64::from(number).saturating_sub(shown.len() as u64);
    if more > 0 {
        let all = "`reseal certs --discovered` with the same selection lists all";
        text = text.pieces([Piece::dim(format!("and {more} more: {all}"))]);
    }
    text
}

/// Asks for the plan and prints it.
pub(crate) async fn run(context: &Context, args: PlanArgs) -> Result<Exit, CliError> {
    let selection = args.selection.read_some()?;
    let mut client = context.connect().await?;
    let message = v1::PlanRequest {
        selection: Some(selection),
        to_issuer: args.shape.to_issuer.unwrap_or_default(),
        waves: args.shape.waves,
    };
    let view = PlanView::from(client.rpc.plan(request(message)).await?.into_inner());
    context.out.one(
        &view,
        &[
            "compromised.name",
            "to_issuer.name",
            "targets",
            "containers",
            "endpoints",
            "hosts_offline",
            "waves",
            "warnings",
            "conflicts",
            "unmanaged",
        ],
        || {
            let hint = "Nothing was changed. `reseal rotate` with the same selection and --reason does it.";
            text(&view).line("").pieces([Piece::dim(hint)])
        },
    )?;
    Ok(Exit::Done)
}

/// The plan for a person.
pub(super) fn text(view: &PlanView) -> Text {
    let mut text = Text::new();
    if let Some(compromised) = &view.compromised {
        text = text.fact_piece("Compromised", Piece::bad(authority(compromised)));
    }
    if let Some(to_issuer) = &view.to_issuer {
        text = text.fact_piece("Replaced by", Piece::good(authority(to_issuer)));
    }
    text = text.fact_piece("Blast radius", Piece::bold(radius(view)));
    if view.unmanaged > 0 {
        let words =
            format!("{} more, named below: not replaced", count(view.unmanaged as usize, "certificate"));
        text = text.fact_piece("Not managed", Piece::warn(words));
    }
    if view.hosts_offline > 0 {
        let away = format!("{}: they catch up when they are back", count(view.hosts_offline, "host"));
        text = text.fact_piece("Away", Piece::warn(away));
    }
    text = text.fact("Waves", waves(&view.waves));
    if !view.hosts.is_empty() {
        let shown = &view.hosts[..view.hosts.len().min(SHOWN_HOSTS)];
        text = text.line("").table(shown, &COLUMNS);
        if view.hosts.len() > SHOWN_HOSTS {
            let more = format!("and {} more hosts: --output json has all", view.hosts.len() - SHOWN_HOSTS);
            text = text.pieces([Piece::dim(more)]);
        }
    }
    text = text.then(unmanaged(view.unmanaged, &view.unmanaged_certificates));
    if !view.relying_parties.is_empty() {
        text = text
            .heading("Relying parties that decide whether the incident is contained")
            .table(&view.relying_parties, &RELYING_PARTY_COLUMNS);
    }
    for (title, lines, bad) in
        [("Warnings", &view.warnings, false), ("Would be refused", &view.conflicts, true)]
    {
        if !lines.is_empty() {
            text = text.heading(title);
            for line in lines {
                text = text.pieces([if bad { Piece::bad(line) } else { Piece::warn(line) }]);
            }
        }
    }
    text
}

/// "12 certificates on 3 hosts, 14 containers, 20 endpoints".
pub(super) fn radius(view: &PlanView) -> String {
    format!(
        "{} on {}, {}, {}",
        count(view.targets as usize, "certificate"),
        count(view.hosts.len(), "host"),
        count(view.containers as usize, "container"),
        count(view.endpoints as usize, "endpoint"),
    )
}

/// "1 host", "3 hosts".
pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A wave list that is sound, as text: an empty one (an unset variable, say) is a mistake.
pub(super) fn wave_list(text: &str) -> Result<String, String> {
    match text.parse::<crate::domain::waves::Waves>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn waves(cumulative: &[u32]) -> String {
    let mut before = 0;
    let each = cumulative.iter().map(|upto| {
        let hosts = upto.saturating_sub(before);
        before = *upto;
        count(hosts as usize, "host")
    });
    each.collect::<Vec<_>>().join(", then ")
}

fn authority(view: &AuthorityView) -> String {
    let print = crate::cli::view::short(view.fingerprint.as_deref());
    format!("{}  {}  {print}", view.name, view.subject)
}

fn few(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let mut text = names[..names.len().min(SHOWN)].join(" ");
    if names.len() > SHOWN {
        text.push_str(&format!(" +{}", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::text::Look;

    #[test]
    fn a_plan_reads_well() {
        let target = v1::PlanTarget {
            containers: vec!["web".into()],
            endpoints: vec!["10.0.0.1:443".into(), "10.0.0.1:8443".into()],
            ..Default::default()
        };
        let reply = v1::PlanReply {
            compromised: Some(v1::AuthorityInfo {
                name: "builtin/a".into(),
                subject: "CN=A".into(),
                fingerprint: vec![0xab; 32],
                ..Default::default()
            }),
            hosts: vec![v1::PlanHost {
                name: "web-1".into(),
                connected: true,
                wave: 1,
                targets: vec![target],
                ..Default::default()
            }],
            targets: 1,
            containers: 1,
            endpoints: 2,
            waves: vec![1, 3],
            warnings: vec!["host web-2 has\x1b[2J been silent".into()],
            ..Default::default()
        };
        let text = text(&PlanView::from(reply)).render(Look { colour: false, width: None });
        assert_eq!(
            text,
            "Compromised   builtin/a  CN=A  abababababababab\n\
             Blast radius  1 certificate on 1 host, 1 container, 2 endpoints\n\
             Waves         1 host, then 2 hosts\n\
             \n\
             WAVE  HOST   SESSION    CERTS  CONTAINERS  ENDPOINTS\n\
             1     web-1  connected  1      web         2\n\
             \n\
             Warnings\n\
             host web-2 has\u{fffd}[2J been silent\n"
        );
    }
}
