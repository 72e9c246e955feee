//! `reseal adopt`: shows what a host inferred, wants it confirmed, has it done.
//!
//! What is shown is what the host last reported; what is done the host infers
//! once more by itself. Asking twice is harmless.

use clap::Args;
use reseal_proto::v1;

use super::Context;
use super::client::{Client, request};
use super::exit::{CliError, Exit};
use super::output::text::{Piece, Text};
use super::output::{Column, aside, can_ask};
use super::view::{AdoptView, DecisionView};
use super::when;

/// What to adopt, or to release.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    reseal adopt web-1 /srv/web/tls/site.crt --dry-run\n  \
    reseal adopt web-1 3f9a2c41d0\n  \
    reseal adopt --release web-1 /srv/web/tls/site.crt\n\
    The host has to allow it: `adopt = true` in its /etc/reseal/agent.toml. Once adopted, the\n\
    certificate is renewed on its threshold, and `reseal rotate --host HOST` replaces it at once.\n\
    --dry-run ends with 0 where it could be adopted, 5 where policy says no, 1 where something else does.")]
pub(crate) struct AdoptArgs {
    /// Name of the host
    host: String,
    /// The installation's id (`reseal host show`), or its certificate's SHA-256 fingerprint, 8 digits or more
    #[arg(value_name = "ID|FINGERPRINT")]
    installation: String,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
    /// Show what would be done, and why. Changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Look after it no more; the certificate stays as it is on disk (operator)
    #[arg(long)]
    release: bool,
}

const COLUMNS: [Column<DecisionView>; 2] =
    [("WHAT", |row| Piece::bold(&row.what)), ("DECISION", |row| Piece::plain(&row.decision))];

/// Shows, confirms, asks the host.
pub(super) async fn run(context: &Context, args: AdoptArgs) -> Result<Exit, CliError> {
    if !args.dry_run && !args.yes && !can_ask() {
        return Err(CliError::Usage(
            "it has to be confirmed, and there is no terminal to ask on: look with --dry-run, then add --yes"
                .into(),
        ));
    }
    let mut client = context.connect().await?;
    let shown = call(&mut client, &args, true).await?;
    if args.dry_run {
        context.out.one(&shown, &CSV, || {
            text(&shown, args.release).line("").pieces([Piece::dim("Nothing was changed.")])
        })?;
        return Ok(possible(&shown, args.release));
    }
    if !args.yes {
        aside(text(&shown, args.release));
        // What cannot be done the coordinator says better than a question would.
        if possible(&shown, args.release) == Exit::Done {
            confirm(&shown, args.release).await?;
        }
    }
    let done = call(&mut client, &args, false).await?;
    context.out.one(&done, &CSV, || after(&done))?;
    Ok(Exit::Done)
}

const CSV: [&str; 6] =
    ["host", "installation.id", "installation.names", "outcome", "obstacles", "renewal_at"];

async fn call(client: &mut Client, args: &AdoptArgs, dry_run: bool) -> Result<AdoptView, CliError> {
    let message = v1::AdoptRequest {
        host: args.host.clone(),
        installation: args.installation.clone(),
        dry_run,
        release: args.release,
    };
    let reply = client.rpc.adopt(request(message)).await?.into_inner();
    Ok(AdoptView::new(&args.host, reply))
}

/// Could it be done, as far as can be told from here?
fn possible(view: &AdoptView, release: bool) -> Exit {
    match (view.management, release) {
        ("adopted", _) => return Exit::Done,
        ("discovered", false) => {}
        (_, _) => return Exit::Error,
    }
    let refused = view.policy.as_ref().is_some_and(|policy| !policy.admitted);
    match (refused, view.obstacles.is_empty()) {
        (true, _) => Exit::Refused,
        (false, false) => Exit::Error,
        (false, true) => Exit::Done,
    }
}

fn text(view: &AdoptView, release: bool) -> Text {
    let installation = &view.installation;
    let certificate = installation.certificate.as_ref();
    let expires = certificate.map(|one| when::relative(one.not_after_seconds, when::now()));
    let mut text = Text::new()
        .fact_piece("Host", Piece::bold(&view.host))
        .fact_piece("Session", if view.connected { Piece::good("connected") } else { Piece::bad("away") })
        .fact_piece("Installation", Piece::bold(&installation.id))
        .fact("Managed by", view.management)
        .fact("Issued by", certificate.map(|one| one.issuer.as_str()).unwrap_or_default())
        .fact("Expires", expires.unwrap_or_default());
    match (view.management, release) {
        ("labels" | "configuration", _) => {
            return text.line("").line("It is managed already, by what the host itself declares.");
        }
        ("adopted", false) => return text.line("").line("It is adopted already."),
        ("discovered", true) => return text.line("").line("Nobody manages it: there is nothing to release."),
        (_, _) => {}
    }
    if release {
        return text.line("").line("Nobody will renew it; what is on disk stays as it is.");
    }
    if let Some(policy) = &view.policy {
        let name = policy.policy.as_deref().unwrap_or_default();
        text = text.fact_piece(
            "Policy",
            if policy.admitted {
                Piece::good(format!("{name} admits it"))
            } else {
                Piece::bad("refuses it: it could not be renewed")
            },
        );
    }
    if !view.decisions.is_empty() {
        text = text.line("").table(&view.decisions, &COLUMNS);
    }
    if let Some(policy) = view.policy.as_ref().filter(|policy| !policy.admitted) {
        text = text.heading("What the policies say");
        for line in &policy.explanation {
            text = text.pieces([Piece::bad(line)]);
        }
    }
    if !view.obstacles.is_empty() {
        text = text.heading("It cannot be adopted");
        for line in &view.obstacles {
            text = text.pieces([Piece::bad(line)]);
        }
    }
    text
}

fn after(view: &AdoptView) -> Text {
    let (host, id) = (&view.host, &view.installation.id);
    if view.outcome == Some("released") {
        return Text::new()
            .pieces([Piece::good(format!("host {host} looks after {id} no more"))])
            .line("What is on disk stays as it is; nobody renews it.");
    }
    let now = when::now();
    let renewal = if view.renewal_seconds <= now {
        "It is renewed at once.".to_owned()
    } else {
        format!("It is renewed {}.", when::relative(view.renewal_seconds, now))
    };
    let mut text =
        Text::new().pieces([Piece::good(format!("host {host} looks after {id} from now on"))]).line(renewal);
    if let Some(name) = view.installation.names.first() {
        text = text.line("To replace it now:").line(format!(
            "  reseal rotate --host {host} --name '{name}' --reason \"first certificate of ours\""
        ));
    }
    text.line("To undo this:").line(format!("  reseal adopt --release {host} {id}"))
}

async fn confirm(view: &AdoptView, release: bool) -> Result<(), CliError> {
    let question = if release {
        format!("Type yes to leave it alone from now on ({}): ", view.installation.id)
    } else {
        format!("Type yes to have host {} look after it: ", view.host)
    };
    aside(Text::new().line("").pieces([Piece::bold(question)]));
    let typed = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    })
    .await
    .map_err(|error| CliError::Other(error.into()))?
    .map_err(|error| CliError::failed(format!("cannot read the answer: {error}"), ""))?;
    if typed.trim() == "yes" { Ok(()) } else { Err(CliError::failed("not confirmed: nothing was done", "")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::text::Look;
    use reseal_proto::v1::{CheckPolicyReply, Inference, Installation, Management};

    fn reply() -> v1::AdoptReply {
        v1::AdoptReply {
            connected: true,
            installation: Some(Installation {
                id: "/srv/tls/site.crt".into(),
                names: vec!["a.test".into()],
                management: Management::Discovered.into(),
                inference: Some(Inference {
                    decisions: vec![
                        "names: a.test, because its SAN has them".into(),
                        "reload: signal HUP for web, because its program is nginx\x1b[2J".into(),
                    ],
                    obstacles: Vec::new(),
                }),
                ..Installation::default()
            }),
            policy: Some(CheckPolicyReply { admitted: true, policy: "web".into(), ..Default::default() }),
            ..v1::AdoptReply::default()
        }
    }

    fn rendered(view: &AdoptView) -> String {
        text(view, false).render(Look { colour: false, width: None })
    }

    #[test]
    fn decisions_are_shown_with_their_reasons() {
        let view = AdoptView::new("web-1", reply());
        assert_eq!(possible(&view, false), Exit::Done);
        assert_eq!(possible(&view, true), Exit::Error, "nobody manages it");
        let text = rendered(&view);
        for line in [
            "Policy        web admits it",
            "WHAT    DECISION",
            "names   a.test, because its SAN has them",
            "reload  signal HUP for web, because its program is nginx\u{fffd}[2J",
        ] {
            assert!(text.contains(line), "{line}:\n{text}");
        }
    }

    #[test]
    fn what_stands_in_the_way_decides_the_exit() {
        let mut refused = reply();
        refused.policy = Some(CheckPolicyReply { explanation: vec!["web: no".into()], ..Default::default() });
        let view = AdoptView::new("web-1", refused);
        assert_eq!(possible(&view, false), Exit::Refused);
        assert!(rendered(&view).contains("web: no"));
        let mut blocked = reply();
        let inference = Inference { obstacles: vec!["key: none".into()], ..Inference::default() };
        blocked.installation.as_mut().unwrap().inference = Some(inference);
        let view = AdoptView::new("web-1", blocked);
        assert_eq!(possible(&view, false), Exit::Error);
        assert!(rendered(&view).contains("key: none"));
    }

    #[test]
    fn afterwards_it_says_what_to_type_next() {
        let mut done = reply();
        done.outcome = v1::AdoptOutcome::Adopted.into();
        let text = after(&AdoptView::new("web-1", done)).render(Look { colour: false, width: None });
        assert!(text.contains("reseal rotate --host web-1 --name 'a.test'"), "{text}");
        assert!(text.contains("reseal adopt --release web-1 /srv/tls/site.crt"), "{text}");
    }
}
