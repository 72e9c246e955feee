//! `reseal findings`: what is wrong, worst first, and what to do about each kind.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use reseal_proto::findings::{known, rank};
use reseal_proto::telemetry::traced;
use reseal_proto::v1::{self, FindingSort};
use serde::Serialize;

use super::Context;
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, Format};
use super::selection::{label, labels};
use super::view::FindingView;

/// Which findings, in what order.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  reseal findings --severity critical\n  \
    reseal findings --host 'web-*' --id expired --id expiring\n  \
    reseal findings --object /srv/tls --output json\n  \
    reseal findings --count\n\
    Filters are joined by AND, repeated values of one by OR. The exit code is 0, whatever is found.")]
pub(crate) struct FindingsArgs {
    /// Only of this host; * is any run of characters; may be repeated
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Only of hosts with this label; may be repeated, all must match
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = label)]
    host_labels: Vec<(String, String)>,
    /// Only this kind: expired, weak-key, ...; * is any run of characters; may be repeated
    #[arg(long = "id", value_name = "FINDING")]
    ids: Vec<String>,
    /// Only this bad; may be repeated
    #[arg(long = "severity", value_name = "SEVERITY", value_parser = crate::domain::listing::SEVERITIES)]
    severities: Vec<String>,
    /// Only about an object with this text in it: a path, a container, an endpoint; may be repeated
    #[arg(long = "object", value_name = "TEXT")]
    objects: Vec<String>,
    /// In this order
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN")]
    sort: Sort,
    /// The other way round
    #[arg(long, short = 'r')]
    reverse: bool,
    /// Only how many there are of each kind
    #[arg(long)]
    count: bool,
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// The worst first, then by kind
    #[default]
    Severity,
    /// Host, then the worst first
    Host,
    /// Kind
    Finding,
    /// Object
    Object,
}

/// How many there are of a kind.
#[derive(Serialize)]
struct Kind {
    id: String,
    severity: String,
    number: usize,
    hosts: usize,
    remedy: Option<&'static str>,
}

/// Columns of findings.
const COLUMNS: [Column<FindingView>; 5] = [
    ("SEVERITY", |row| severity(&row.severity)),
    ("FINDING", |row| Piece::plain(&row.id)),
    ("HOST", |row| Piece::bold(&row.host)),
    ("OBJECT", |row| Piece::plain(&row.object)),
    ("MESSAGE", |row| Piece::plain(&row.message)),
];
/// Without the host, where it is known.
const OF_A_HOST: [Column<FindingView>; 4] = [COLUMNS[0], COLUMNS[1], COLUMNS[3], COLUMNS[4]];

const KINDS: [Column<Kind>; 5] = [
    ("SEVERITY", |row| severity(&row.severity)),
    ("FINDING", |row| Piece::bold(&row.id)),
    ("NUMBER", |row| Piece::plain(row.number)),
    ("HOSTS", |row| Piece::plain(row.hosts)),
    ("WHAT TO DO", |row| Piece::plain(row.remedy.unwrap_or("-"))),
];

const CSV: [&str; 6] = ["severity", "id", "host", "object", "message", "remedy"];

fn severity(word: &str) -> Piece {
    match word {
        "critical" => Piece::bad(word),
        "warning" => Piece::warn(word),
        word => Piece::plain(word),
    }
}

/// Lists what was found.
pub(super) async fn run(context: &Context, args: FindingsArgs) -> Result<Exit, CliError> {
    let sort = match args.sort {
        Sort::Severity => FindingSort::Severity,
        Sort::Host => FindingSort::Host,
        Sort::Finding => FindingSort::Finding,
        Sort::Object => FindingSort::Object,
    };
    let message = v1::ListFindingsRequest {
        hosts: args.hosts,
        host_labels: labels(&args.host_labels)?,
        ids: args.ids,
        severities: args.severities,
        objects: args.objects,
        sort: sort.into(),
        reverse: args.reverse,
    };
    let mut client = context.connect().await?;
    let mut stream = client.rpc.list_findings(traced(message)).await?.into_inner();
    let mut kinds = Kinds::default();
    let empty = "no findings";
    if args.count {
        while let Some(row) = stream.message().await? {
            kinds.add(&FindingView::from(row));
        }
        let csv = ["severity", "id", "number", "hosts", "remedy"];
        context.out.list(&kinds.sorted(), &KINDS, &csv, empty)?;
        return Ok(Exit::Done);
    }
    let mut rows = context.out.rows(&CSV)?;
    while let Some(row) = stream.message().await? {
        let row = FindingView::from(row);
        kinds.add(&row);
        rows.push(row)?;
    }
    rows.end(&COLUMNS, empty)?;
    if context.out.format == Format::Table && !kinds.0.is_empty() {
        context.out.text(Text::new().then(kinds.text()))?;
    }
    Ok(Exit::Done)
}

/// Kinds by name, while rows go by.
#[derive(Default)]
struct Kinds(BTreeMap<String, (Kind, std::collections::BTreeSet<String>)>);

impl Kinds {
    fn add(&mut self, row: &FindingView) {
        let (kind, hosts) = self.0.entry(row.id.clone()).or_insert_with(|| {
            let kind = Kind {
                id: row.id.clone(),
                severity: row.severity.clone(),
                number: 0,
                hosts: 0,
                remedy: known(&row.id).map(|known| known.remedy),
            };
            (kind, Default::default())
        });
        kind.number += 1;
        if rank(&row.severity) < rank(&kind.severity) {
            kind.severity.clone_from(&row.severity);
        }
        hosts.insert(row.host.clone());
    }

    /// The worst first, then the most frequent.
    fn sorted(self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> =
            self.0.into_values().map(|(kind, hosts)| Kind { hosts: hosts.len(), ..kind }).collect();
        kinds.sort_by(|a, b| {
            let by = |kind: &Kind| (rank(&kind.severity), std::cmp::Reverse(kind.number));
            by(a).cmp(&by(b)).then_with(|| a.id.cmp(&b.id))
        });
        kinds
    }

    fn text(self) -> Text {
        let kinds = self.sorted();
        let number: usize = kinds.iter().map(|kind| kind.number).sum();
        Text::new().line("").pieces([Piece::bold(format!("By kind ({number} in all)"))]).table(&kinds, &KINDS)
    }
}

/// Findings below a heading, worst first, each kind with what to do; `hosts`: of several hosts.
pub(super) fn section(rows: &[FindingView], hosts: bool) -> Text {
    let mut kinds = Kinds::default();
    rows.iter().for_each(|row| kinds.add(row));
    let columns = if hosts { &COLUMNS[..] } else { &OF_A_HOST[..] };
    let text = Text::new().line("").pieces([Piece::bold(format!("Findings ({})", rows.len()))]);
    let columns_of_kinds = [KINDS[1], KINDS[2], KINDS[4]];
    text.table(rows, columns).line("").table(&kinds.sorted(), &columns_of_kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::text::Look;

    fn finding(host: &str, id: &str, severity: &str) -> FindingView {
        FindingView::new(
            host,
            v1::Finding {
                id: id.into(),
                object: "/srv/a.crt".into(),
                message: "as it is".into(),
                severity: severity.into(),
            },
        )
    }

    #[test]
    fn kinds_are_counted_worst_first_with_what_to_do() {
        let rows = [
            finding("h1", "unmanaged", "info"),
            finding("h2", "unmanaged", "info"),
            finding("h1", "expired", "critical"),
            finding("h1", "made-up", "warning"),
        ];
        let mut kinds = Kinds::default();
        rows.iter().for_each(|row| kinds.add(row));
        let kinds = kinds.sorted();
        let shown: Vec<_> = kinds.iter().map(|kind| (kind.id.as_str(), kind.number, kind.hosts)).collect();
        assert_eq!(shown, [("expired", 1, 1), ("made-up", 1, 1), ("unmanaged", 2, 2)]);
        assert!(kinds[0].remedy.is_some() && kinds[1].remedy.is_none());
        let text = section(&rows, false).render(Look { colour: false, width: None });
        assert!(text.starts_with("\nFindings (4)\nSEVERITY  FINDING"), "{text}");
        assert!(text.contains("\nexpired    1       renew it now"), "{text}");
    }
}
