//! `reseal certs`: what is out there: listed, filtered, sorted; one certificate with all its places.

use clap::{Args, Subcommand, ValueEnum};
use reseal_proto::telemetry::traced;
use reseal_proto::v1::{self, CertificateSort, Management, Origin};

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::findings;
use super::output::text::{Piece, Text};
use super::output::{Column, Format};
use super::selection::{self, SelectionArgs};
use super::view::{self, CertificateDetailView, CertificateRowView};
use super::when;

/// The certificate list, or one certificate.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  reseal certs --expires-before 30d --sort expires\n  \
    reseal certs --discovered --status expired --status expiring\n  \
    reseal certs --issuer \"Example Corp\" --container 'web-*' --host-label env=prod\n  \
    reseal certs --compromised-issuer builtin/a --output csv > exposed.csv\n  \
    reseal certs show 3f9a2c41d0\n\
    Filters are joined by AND, repeated values of one by OR. Without any, everything is listed.")]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand, Debug)]
enum CertsCommand {
    /// List certificates, all or some. Changes nothing
    List {
        #[command(flatten)]
        list: Box<ListArgs>,
    },
    /// One certificate: every place it lies, who uses it, its issuer, what is wrong. Changes nothing
    Show {
        /// SHA-256 fingerprint in hex, or its first 8 or more digits
        fingerprint: String,
    },
}

/// Which certificates, in what order.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Filters of lists only: a rotation does not know them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters of the list")]
pub(crate) struct FilterArgs {
    /// From this authority (a, builtin/a), or with this text in the issuer's name; may be repeated
    #[arg(long = "issuer", value_name = "ISSUER")]
    issuers: Vec<String>,
    /// In this state; may be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = crate::domain::listing::STATUSES)]
    statuses: Vec<String>,
    /// Only what labels, a configuration or an adoption declare: what Reseal renews
    #[arg(long, conflicts_with = "discovered")]
    managed: bool,
    /// Only what nobody declares
    #[arg(long)]
    discovered: bool,
    /// Found here; may be repeated
    #[arg(long = "origin", value_enum, value_name = "WHERE")]
    origins: Vec<Place>,
    /// Used by this container; * is any run of characters; may be repeated
    #[arg(long = "container", value_name = "NAME")]
    containers: Vec<String>,
    /// With this SHA-256 fingerprint, or these first 8 or more digits of it; may be repeated
    #[arg(long = "fingerprint", value_name = "HEX")]
    fingerprints: Vec<String>,
    /// In this order
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN", help_heading = "Order")]
    sort: Sort,
    /// The other way round
    #[arg(long, short = 'r', help_heading = "Order")]
    reverse: bool,
}

/// Where a certificate was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Place {
    /// In a file on a mount, or of the host
    File,
    /// In an image layer
    Image,
    /// Only at an endpoint: its file was not found
    Endpoint,
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Host, then file
    #[default]
    Host,
    /// First name
    Name,
    /// End of validity, the earliest first
    Expires,
    /// Authority, or the issuer's name
    Issuer,
    /// The worst first: tainted, expired, missing, expiring, ok
    Status,
}

impl ListArgs {
    fn request(&self) -> Result<v1::ListCertificatesRequest, CliError> {
        let mut selection = self.selection.read()?;
        selection.all = selection::is_empty(&selection);
        let FilterArgs { issuers, statuses, managed, discovered, origins, containers, .. } = &self.filter;
        let managements: &[Management] = match (managed, discovered) {
            (true, _) => &[Management::Labels, Management::Configuration, Management::Adopted],
            (false, true) => &[Management::Discovered],
            (false, false) => &[],
        };
        let origin = |place: &Place| match place {
            Place::File => Origin::File,
            Place::Image => Origin::Image,
            Place::Endpoint => Origin::Endpoint,
        };
        let sort = match self.filter.sort {
            Sort::Host => CertificateSort::Host,
            Sort::Name => CertificateSort::Name,
            Sort::Expires => CertificateSort::Expires,
            Sort::Issuer => CertificateSort::Issuer,
            Sort::Status => CertificateSort::Status,
        };
        Ok(v1::ListCertificatesRequest {
            selection: Some(selection),
            filter: Some(v1::CertificateFilter {
                statuses: statuses.clone(),
                issuers: issuers.clone(),
                managements: managements.iter().map(|one| (*one).into()).collect(),
                origins: origins.iter().map(|place| origin(place).into()).collect(),
                containers: containers.clone(),
                fingerprints: self.filter.fingerprints.clone(),
            }),
            sort: sort.into(),
            reverse: self.filter.reverse,
        })
    }
}

/// Below this width the last columns are left out.
const WIDE: u16 = 110;

const COLUMNS: [Column<CertificateRowView>; 8] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.installation.label)),
    ("STATUS", |row| status(&row.status)),
    ("EXPIRES", |row| expiry(Some(row.not_after()))),
    ("MANAGED", |row| managed(row)),
    ("NAMES", |row| Piece::plain(view::few(row.names(), 2))),
    ("ISSUER", |row| Piece::plain(row.issuer())),
    ("FINGERPRINT", |row| Piece::dim(view::short(row.fingerprint()))),
];
/// Those that are left out on a narrow terminal.
const EXTRA: usize = 2;

const CSV: [&str; 18] = [
    "host",
    "status",
    "authority",
    "installation.id",
    "installation.label",
    "installation.names",
    "installation.usage",
    "installation.key_type",
    "installation.layout",
    "installation.management",
    "installation.origin",
    "installation.certificate.fingerprint",
    "installation.certificate.serial",
    "installation.certificate.subject",
    "installation.certificate.issuer",
    "installation.certificate.not_before",
    "installation.certificate.not_after",
    "installation.certificate.spki_sha256",
];

fn status(word: &str) -> Piece {
    match word {
        "ok" => Piece::good("ok"),
        "expiring" => Piece::warn("expiring"),
        word => Piece::bad(word),
    }
}

/// By whom; for what is discovered where it was found.
fn managed(row: &CertificateRowView) -> Piece {
    match row.installation.management {
        "discovered" => Piece::warn(format!("no ({})", row.installation.origin)),
        by => Piece::plain(by),
    }
}

/// Lists or shows.
pub(super) async fn run(context: &Context, args: CertsArgs) -> Result<Exit, CliError> {
    let list = match args.command {
        None => args.list,
        Some(CertsCommand::List { list }) => *list,
        Some(CertsCommand::Show { fingerprint }) => return show(context, &fingerprint).await,
    };
    let message = list.request()?;
    let mut client = context.connect().await?;
    let mut stream = client.rpc.list_certificates(traced(message)).await?.into_inner();
    let mut rows = context.out.rows(&CSV)?;
    while let Some(row) = stream.message().await? {
        rows.push(CertificateRowView::from(row))?;
    }
    let columns = match context.out.look.width {
        Some(width) if width < WIDE => &COLUMNS[..COLUMNS.len() - EXTRA],
        Some(_) | None => &COLUMNS[..],
    };
    rows.end(columns, "no certificates match")?;
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
    let digits = fingerprint_prefix(fingerprint)?;
    let mut client = context.connect().await?;
    let message = v1::ShowCertificateRequest { fingerprint: digits };
    let view = CertificateDetailView::from(client.rpc.show_certificate(request(message)).await?.into_inner());
    match context.out.format {
        Format::Csv => context.out.list(&view.places, &COLUMNS, &CSV, "")?,
        Format::Table | Format::Json => context.out.one(&view, &[], || text(&view))?,
    }
    Ok(Exit::Done)
}

const PLACES: [Column<CertificateRowView>; 7] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.installation.label)),
    ("WHERE", |row| Piece::dim(&row.installation.id)),
    ("MANAGED", |row| managed(row)),
    ("STATUS", |row| status(&row.status)),
    ("CONSUMERS", |row| {
        let names: Vec<&str> = row.installation.consumers.iter().map(|one| one.container.as_str()).collect();
        Piece::plain(view::few(&names, 3))
    }),
    ("ENDPOINTS", |row| {
        let all: Vec<String> = row.installation.endpoints.iter().map(view::EndpointView::shown).collect();
        Piece::plain(view::few(&all, 3))
    }),
];

fn text(view: &CertificateDetailView) -> Text {
    let mut text = Text::new();
    if let Some(certificate) = &view.certificate {
        let now = when::now();
        let at = |rfc3339: Option<&str>, seconds: i64| {
            format!("{} ({})", rfc3339.unwrap_or_default(), when::relative(seconds, now))
        };
        text = text
            .fact_piece("Fingerprint", Piece::bold(&certificate.fingerprint))
            .fact("Serial", &certificate.serial)
            .fact("Subject", &certificate.subject)
            .fact("Names", certificate.names.join(" "))
            .fact("Key", &certificate.key_type)
            .fact("Key hash", certificate.spki_sha256.as_deref().unwrap_or_default())
            .fact("Not before", at(certificate.not_before.as_deref(), certificate.not_before_seconds))
            .fact("Not after", at(certificate.not_after.as_deref(), certificate.not_after_seconds))
            .fact("Issuer", &certificate.issuer);
    }
    if let Some(issuer) = &view.authority {
        let state = match issuer.state.as_str() {
            "tainted" | "revoked" => Piece::bad(format!("{}, {}", issuer.name, issuer.state)),
            state => Piece::plain(format!("{}, {state}", issuer.name)),
        };
        text = text.fact_piece("Authority", state);
        for (name, link) in [("Signed by", Some(issuer)), ("Root", view.root.as_ref())] {
            let Some(link) = link else { continue };
            let print = view::short(link.fingerprint.as_deref());
            text = text.fact(name, format!("{}  {print}", link.subject));
        }
    }
    text = text.heading(format!("Lies at ({})", view.total)).table(&view.places, &PLACES);
    let more = view.total as usize - view.places.len().min(view.total as usize);
    if more > 0 {
        let all = "`reseal certs --fingerprint` lists all";
        text = text.pieces([Piece::dim(format!("and {more} more: {all}"))]);
    }
    if view.findings.is_empty() { text } else { text.then(findings::section(&view.findings, true)) }
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

    #[test]
    fn flags_become_a_filter() {
        let args = ListArgs {
            filter: FilterArgs { managed: true, sort: Sort::Expires, ..FilterArgs::default() },
            ..ListArgs::default()
        };
        let message = args.request().unwrap();
        assert!(message.selection.is_some_and(|selection| selection.all), "nothing selected: everything");
        let filter = message.filter.unwrap();
        assert!(filter.managements().all(Management::is_managed) && filter.managements.len() == 3);
        assert_eq!(message.sort, i32::from(CertificateSort::Expires));
    }
}
