//! `reseal audit`: who did what.

use clap::Subcommand;
use reseal_proto::telemetry::traced;
use reseal_proto::v1;

use super::Context;
use super::exit::{CliError, Exit};
use super::output::Column;
use super::output::text::Piece;
use super::view::AuditView;
use super::when;

/// The audit log.
#[derive(Subcommand, Debug)]
pub(crate) enum AuditCommand {
    /// List entries of the hash chain, oldest first. Changes nothing
    #[command(after_help = "Example:\n  reseal audit list --after 1200 --output json")]
    List {
        /// Only entries after this number
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// At most this many; 0: as many as there are
        #[arg(long, default_value_t = 0, value_name = "COUNT")]
        limit: u32,
    },
}

const COLUMNS: [Column<AuditView>; 6] = [
    ("NO", |row| Piece::dim(row.sequence)),
    ("AT (UTC)", |row| Piece::plain(when::second(row.at_seconds))),
    ("ACTOR", |row| Piece::bold(&row.actor)),
    ("ACTION", |row| Piece::plain(&row.action)),
    ("OBJECT", |row| Piece::plain(&row.object)),
    ("DETAIL", |row| match row.outcome.as_str() {
        "done" => Piece::plain(&row.detail),
        outcome => Piece::bad(format!("{outcome}: {}", row.detail)),
    }),
];

/// Runs the command.
pub(super) async fn run(context: &Context, command: AuditCommand) -> Result<Exit, CliError> {
    let AuditCommand::List { after, limit } = command;
    let mut client = context.connect().await?;
    let message = v1::ListAuditRequest { after, limit };
    let mut stream = client.rpc.list_audit(traced(message)).await?.into_inner();
    let mut rows: Vec<AuditView> = Vec::new();
    while let Some(entry) = stream.message().await? {
        rows.push(entry.into());
    }
    let csv =
        ["chain", "sequence", "at", "actor", "action", "object", "outcome", "detail", "previous", "hash"];
    context.out.list(&rows, &COLUMNS, &csv, "no entries")?;
    Ok(Exit::Done)
}
