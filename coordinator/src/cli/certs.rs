//! `reseal certs` and `reseal findings`: what is out there, and what is wrong with it.

use clap::{Args, Subcommand};
use reseal_proto::telemetry::traced;
use reseal_proto::v1;

use super::Context;
use super::client::{Client, request};
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, Format};
use super::selection::{self, SelectionArgs};
use super::view::{self, CertificateRowView, FindingView};
use super::when;

/// The certificate list, or one certificate.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  reseal certs --expires-before 30d\n  \
    reseal certs --compromised-issuer builtin/a --output csv > exposed.csv\n  \
    reseal certs show 3f9a2c41d0")]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
    #[command(flatten)]
    selection: SelectionArgs,
}

#[derive(Subcommand, Debug)]
enum CertsCommand {
    /// List certificates, all or a selection. Changes nothing
    List {
        #[command(flatten)]
        selection: Box<SelectionArgs>,
    },
    /// One certificate, wherever it is installed. Changes nothing
    Show {
        /// SHA-256 fingerprint in hex, or its first 8 or more digits
        fingerprint: String,
    },
}

/// Whose findings.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reseal findings --host web-1 --output json")]
pub(crate) struct FindingsArgs {
    /// Only of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

const COLUMNS: [Column<CertificateRowView>; 7] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.installation.label)),
    ("NAMES", |row| Piece::plain(row.installation.names.join(" "))),
    ("STATUS", |row| match row.status.as_str() {
        "ok" => Piece::good("ok"),
        "expiring" => Piece::warn("expiring"),
        status => Piece::bad(status),
    }),
    ("EXPIRES", |row| expiry(Some(row.not_after()))),
    ("AUTHORITY", |row| Piece::plain(row.authority.as_deref().unwrap_or("-"))),
    ("FINGERPRINT", |row| Piece::dim(view::short(row.fingerprint()))),
];

const CSV: [&str; 16] = [
    "host",
    "status",
    "authority",
    "installation.id",
    "installation.label",
    "installation.names",
    "installation.usage",
    "installation.key_type",
    "installation.layout",
    "installation.certificate.fingerprint",
    "installation.certificate.serial",
    "installation.certificate.subject",
    "installation.certificate.issuer",
    "installation.certificate.not_before",
    "installation.certificate.not_after",
    "installation.certificate.spki_sha256",
];

/// Columns of findings; `reseal host show` leaves the first out.
pub(super) const FINDING_COLUMNS: [Column<FindingView>; 5] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("SEVERITY", |row| match row.severity.as_str() {
        "critical" => Piece::bad("critical"),
        "warning" => Piece::warn("warning"),
        severity => Piece::plain(severity),
    }),
    ("FINDING", |row| Piece::plain(&row.id)),
    ("OBJECT", |row| Piece::plain(&row.object)),
    ("MESSAGE", |row| Piece::plain(&row.message)),
];

/// Lists or shows.
pub(super) async fn run(context: &Context, args: CertsArgs) -> Result<Exit, CliError> {
    let list = match args.command {
        None => args.selection,
        Some(CertsCommand::List { selection }) => *selection,
        Some(CertsCommand::Show { fingerprint }) => return show(context, &fingerprint).await,
    };
    let mut selection = list.read()?;
    selection.all = selection::is_empty(&selection);
    let rows = fetch(&mut context.connect().await?, selection).await?;
    context.out.list(&rows, &COLUMNS, &CSV, "no certificates match")?;
    Ok(Exit::Done)
}

/// Prints findings.
pub(super) async fn findings(context: &Context, args: FindingsArgs) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let message = v1::ListFindingsRequest { host: args.host.unwrap_or_default() };
    let reply = client.rpc.list_findings(request(message)).await?.into_inner();
    let rows: Vec<FindingView> = reply
        .findings
        .into_iter()
        .map(|row| FindingView::new(&row.host, row.finding.unwrap_or_default()))
        .collect();
    let csv = ["host", "severity", "id", "object", "message"];
    context.out.list(&rows, &FINDING_COLUMNS, &csv, "no findings")?;
    Ok(Exit::Done)
}

/// When something ends, with a tone; `None` and 0 mean that there is nothing.
pub(super) fn expiry(not_after: Option<i64>) -> Piece {
    const MONTH: i64 = 30 * 86_400;
    let now = when::now();
    match not_after {
        None | Some(0) => Piece::bad("missing"),
        Some(end) if end <= now => Piece::bad(when::relative(end, now)),
        Some(end) if end - now < MONTH / 4 => Piece::warn(when::relative(end, now)),
        Some(end) => Piece::plain(when::relative(end, now)),
    }
}

async fn show(context: &Context, fingerprint: &str) -> Result<Exit, CliError> {
    let wanted = fingerprint_prefix(fingerprint)?;
    let all = v1::Selection { all: true, ..v1::Selection::default() };
    let mut rows = fetch(&mut context.connect().await?, all).await?;
    rows.retain(|row| row.fingerprint().is_some_and(|print| print.starts_with(&wanted)));
    let Some(first) = rows.first() else {
        return Err(CliError::failed(
            format!("no certificate with fingerprint {wanted} is on record"),
            "`reseal certs` lists what is",
        ));
    };
    if rows.iter().any(|row| row.fingerprint() != first.fingerprint()) {
        return Err(CliError::Usage(format!("{wanted} begins several fingerprints: give more digits")));
    }
    match context.out.format {
        Format::Table => context.out.text(text(&rows))?,
        Format::Json | Format::Csv => context.out.list(&rows, &COLUMNS, &CSV, "")?,
    }
    Ok(Exit::Done)
}

fn text(rows: &[CertificateRowView]) -> Text {
    let mut text = Text::new();
    if let Some(certificate) = rows.first().and_then(|row| row.installation.certificate.as_ref()) {
        let now = when::now();
        text = text
            .fact_piece("Fingerprint", Piece::bold(&certificate.fingerprint))
            .fact("Serial", &certificate.serial)
            .fact("Subject", &certificate.subject)
            .fact("Issuer", &certificate.issuer)
            .fact("Names", certificate.names.join(" "))
            .fact("Key", &certificate.key_type)
            .fact("Not before", certificate.not_before.as_deref().unwrap_or_default())
            .fact(
                "Not after",
                format!(
                    "{} ({})",
                    certificate.not_after.as_deref().unwrap_or_default(),
                    when::relative(certificate.not_after_seconds, now)
                ),
            )
            .fact("Key hash", certificate.spki_sha256.as_deref().unwrap_or_default());
    }
    text.heading("Installed at").table(
        rows,
        &[
            ("HOST", |row| Piece::bold(&row.host)),
            ("INSTALLATION", |row| Piece::plain(&row.installation.label)),
            ("FILE", |row| Piece::plain(&row.installation.id)),
            ("CONSUMERS", |row| {
                let names = row.installation.consumers.iter().map(|c| c.container.as_str());
                Piece::plain(names.collect::<Vec<_>>().join(" "))
            }),
            ("ENDPOINTS", |row| {
                let all = row.installation.endpoints.iter().map(|e| e.address.as_str());
                Piece::plain(all.collect::<Vec<_>>().join(" "))
            }),
            ("STATUS", COLUMNS[3].1),
        ],
    )
}

async fn fetch(client: &mut Client, selection: v1::Selection) -> Result<Vec<CertificateRowView>, CliError> {
    let message = v1::ListCertificatesRequest { selection: Some(selection) };
    let mut stream = client.rpc.list_certificates(traced(message)).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(row) = stream.message().await? {
        rows.push(row.into());
    }
    Ok(rows)
}

/// Hex digits of a fingerprint as any tool prints it.
fn fingerprint_prefix(text: &str) -> Result<String, CliError> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if (8..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(digits)
    } else {
        Err(CliError::Usage(format!("{text:?} is no SHA-256 fingerprint: 8 to 64 hex digits")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_as_other_tools_print_them() {
        assert_eq!(fingerprint_prefix("AB:CD:EF:01").unwrap(), "abcdef01");
        assert!(fingerprint_prefix("abc").is_err());
        assert!(fingerprint_prefix("nothexnothex").is_err());
    }
}
