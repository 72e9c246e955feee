//! `reseal status`: the fleet at a glance, and who the operator is in it.

use reseal_proto::v1;

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::view::StatusView;

/// Prints the status.
pub(super) async fn run(context: &Context) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let reply = client.rpc.status(request(v1::StatusRequest {})).await?.into_inner();
    let view = StatusView::from(reply);
    let csv = [
        "fleet",
        "version",
        "epoch",
        "hosts",
        "hosts_connected",
        "installations",
        "rotations_running",
        "anchor",
        "operator",
        "role",
    ];
    context.out.one(&view, &csv, || text(&view))?;
    Ok(Exit::Done)
}

fn text(view: &StatusView) -> Text {
    let away = view.hosts.saturating_sub(view.hosts_connected);
    let hosts = format!("{} of {} connected", view.hosts_connected, view.hosts);
    Text::new()
        .fact_piece("Fleet", Piece::bold(&view.fleet))
        .fact_piece("Hosts", if away == 0 { Piece::good(hosts) } else { Piece::warn(hosts) })
        .fact("Installations", view.installations)
        .fact("Rotations running", view.rotations_running)
        .fact("You are", format!("{} ({})", view.operator, view.role))
        .fact("Coordinator", format!("reseal {}, epoch {}", view.version, view.epoch))
        .fact("Evidence anchor", view.anchor.as_deref().unwrap_or_default())
}
