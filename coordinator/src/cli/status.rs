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
        "discovered",
        "rotations_running",
        "anchor",
        "operator",
        "role",
    ];
    context.out.one(&view, &csv, || text(&view))?;
    Ok(Exit::Done)
}

/// "12, and 40 more that were discovered and nobody looks after".
fn installations(view: &StatusView) -> String {
    match (view.installations.saturating_sub(view.discovered), view.discovered) {
        (managed, 0) => managed.to_string(),
        (managed, discovered) => {
            format!("{managed} managed; {discovered} discovered, not managed: `reseal certs --discovered`")
        }
    }
}

fn text(view: &StatusView) -> Text {
    let away = view.hosts.saturating_sub(view.hosts_connected);
    let hosts = format!("{} of {} connected", view.hosts_connected, view.hosts);
    Text::new()
        .fact_piece("Fleet", Piece::bold(&view.fleet))
        .fact_piece("Hosts", if away == 0 { Piece::good(hosts) } else { Piece::warn(hosts) })
        .fact("Installations", installations(view))
        .fact("Rotations running", view.rotations_running)
        .fact("You are", format!("{} ({})", view.operator, view.role))
        .fact("Coordinator", format!("reseal {}, epoch {}", view.version, view.epoch))
        .fact("Evidence anchor", view.anchor.as_deref().unwrap_or_default())
}
