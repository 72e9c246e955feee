//! `reseal store confirm-restore`: what came back from an export, looked at by a person.

use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

use super::Context;
use super::exit::{CliError, Exit};
use super::output::Column;
use super::output::text::{Piece, Text};
use super::when;
use crate::domain::{authority, host, rotation};
use crate::restore::{Corrections, Review};
use crate::store::Store;
use crate::store::record::{Host, Operator, Policy};

/// What has changed since the export.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  reseal store confirm-restore --config reseal.toml          shows what came back, changes nothing\n  \
    reseal store confirm-restore --config reseal.toml --ban web-3 --remove-operator mallory --remove-policy wide --taint a --yes"
)]
pub(crate) struct ConfirmRestoreArgs {
    /// The coordinator's configuration; the coordinator must be stopped
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A host that was banned or removed after the export; repeat for more
    #[arg(long, value_name = "HOST")]
    ban: Vec<String>,
    /// An operator that was removed after the export; repeat for more
    #[arg(long, value_name = "NAME")]
    remove_operator: Vec<String>,
    /// A policy that was removed after the export; repeat for more
    #[arg(long, value_name = "NAME")]
    remove_policy: Vec<String>,
    /// An authority that was tainted after the export; repeat for more
    #[arg(long, value_name = "NAME")]
    taint: Vec<String>,
    /// The lists are right with these corrections: let the store be served
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct ReviewView {
    exported_at: Option<String>,
    hosts: Vec<Row>,
    operators: Vec<Row>,
    policies: Vec<Row>,
    authorities: Vec<Row>,
    rotations: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    state: String,
    detail: String,
}

const COLUMNS: [Column<Row>; 3] = [
    ("NAME", |row| Piece::bold(&row.name)),
    ("STATE", |row| Piece::plain(&row.state)),
    ("DETAIL", |row| Piece::plain(&row.detail)),
];

/// Shows what came back; with `--yes` corrects and confirms it.
pub(super) async fn run(context: &Context, args: ConfirmRestoreArgs) -> Result<Exit, CliError> {
    let config = super::server::load(&args.config)?;
    let store = Store::open(&config.data_dir, &config.name).map_err(anyhow::Error::from)?;
    if args.yes {
        let corrections = Corrections {
            ban: args.ban,
            remove_operators: args.remove_operator,
            remove_policies: args.remove_policy,
            taint: args.taint,
        };
        let confirmed = crate::restore::confirm(&store, &corrections, crate::app::now()).await;
        confirmed.map_err(anyhow::Error::from)?;
        super::done(context, "store.confirmed", &config.name, "store", "may be served now")?;
        return Ok(Exit::Done);
    }
    let review = crate::restore::review(&store).await.map_err(anyhow::Error::from)?;
    let view = ReviewView::from(review);
    context.out.one(&view, &["exported_at"], || text(&view))?;
    Ok(Exit::Done)
}

fn text(view: &ReviewView) -> Text {
    let mut text = Text::new()
        .fact("Export made at", view.exported_at.clone().unwrap_or_default())
        .line("What was changed after that is as it was before. Join tokens are void.");
    for (title, rows) in [
        ("Hosts that may speak", &view.hosts),
        ("Operators that may act", &view.operators),
        ("Policies: which names a host may get", &view.policies),
        ("Authorities", &view.authorities),
        ("Rotations that had not ended; those that run will be paused", &view.rotations),
    ] {
        text = text.heading(format!("{title} ({})", rows.len())).table(rows, &COLUMNS);
    }
    text.line("").pieces([
        Piece::dim("Nothing was changed. Next: "),
        Piece::plain(
            "the same command with --yes, and --ban, --remove-operator, --remove-policy, --taint for what has to be so again",
        ),
    ])
}

impl From<Review> for ReviewView {
    fn from(review: Review) -> Self {
        let row = |name: String, state: &str| Row { name, state: state.to_owned(), detail: String::new() };
        Self {
            exported_at: when::rfc3339(review.exported_at),
            hosts: review
                .hosts
                .into_iter()
                .map(|(name, record)| Row {
                    detail: host_detail(&record),
                    ..row(name, host::word(record.state()))
                })
                .collect(),
            operators: review
                .operators
                .into_iter()
                .map(|(name, record)| Row { detail: operator_detail(&record), ..row(name, &record.role) })
                .collect(),
            policies: review
                .policies
                .into_iter()
                .map(|(name, policy)| Row { detail: policy_detail(&policy), ..row(name, "set") })
                .collect(),
            authorities: review
                .authorities
                .into_iter()
                .map(|(name, state)| row(name, authority::word(state)))
                .collect(),
            rotations: review
                .rotations
                .into_iter()
                .map(|(name, state)| row(name, rotation::word(state)))
                .collect(),
        }
    }
}

fn host_detail(record: &Host) -> String {
    when::rfc3339(record.enrolled_at).map(|at| format!("enrolled {at}")).unwrap_or_default()
}

/// Whose key it is can be told from its hash alone: a name may have been given anew.
fn operator_detail(record: &Operator) -> String {
    let added = when::rfc3339(record.added_at).unwrap_or_default();
    let until = when::rfc3339(record.expires_at).unwrap_or_default();
    format!("added {added}, until {until}, key {}", hex::encode(&record.spki_sha256))
}

fn policy_detail(policy: &Policy) -> String {
    let listed =
        |what: &str, list: &[String]| (!list.is_empty()).then(|| format!("{what} {}", list.join(",")));
    let hosts = listed("hosts", &policy.hosts).unwrap_or_else(|| "every host".to_owned());
    let labels = policy.host_labels.iter().map(|(key, value)| format!("label {key}={value}"));
    let rest = [listed("names", &policy.names), listed("addresses", &policy.addresses)];
    std::iter::once(hosts).chain(labels).chain(rest.into_iter().flatten()).collect::<Vec<_>>().join("; ")
}
