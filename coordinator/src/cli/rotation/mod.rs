//! `reseal plan`, `rotate`, `rotation` and `evidence`: the incident, from blast radius to proof.
//!
//! - `plan`: what a rotation would touch.
//! - `rotate`: confirms, starts, then watches.
//! - `watch`: follows a rotation across restarts of the coordinator.
//! - `progress`: what a watcher sees: bars, lines, or JSON.
//! - `summary`: how it ended, for a person, a program and the exit code.
//! - `evidence`: fetches and verifies the signed proof.

pub(super) mod evidence;
pub(super) mod plan;
mod progress;
pub(super) mod rotate;
mod summary;
mod watch;

use std::path::PathBuf;

use clap::Subcommand;
use reseal_proto::v1::{self, RotationAction};

use super::Context;
use super::client::request;
use super::exit::{CliError, Exit};
use super::output::Column;
use super::output::text::{Piece, Tone};
use super::view::RotationView;
use super::when;

/// Rotations that run or ran.
#[derive(Subcommand, Debug)]
pub(crate) enum RotationCommand {
    /// List rotations, newest first. Changes nothing
    List,
    /// One rotation: where it stands, what failed and what to do next. Changes nothing
    Show {
        /// Id of the rotation
        id: String,
    },
    /// Follow a rotation until it ends, halts, or only waits for stragglers. Changes nothing
    #[command(after_help = "Ctrl-C stops the watching, never the rotation.\n\
        With --output json: one snapshot a line, then a summary.")]
    Watch {
        /// Id of the rotation
        id: String,
    },
    /// Order nothing new until resumed; what is under way on a host ends (operator)
    Pause {
        /// Id of the rotation
        id: String,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Go on after a pause or a halt; failures so far are accepted (operator)
    Resume {
        /// Id of the rotation
        id: String,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a rotation for ever; what is replaced stays replaced (operator)
    Abort {
        /// Id of the rotation
        id: String,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Try the failed targets again, and go on (operator)
    Retry {
        /// Id of the rotation
        id: String,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Take the excluded hosts in again, too
        #[arg(long)]
        excluded: bool,
    },
    /// Take a host out; the rotation goes on, and names it as not replaced (operator)
    Exclude {
        /// Id of the rotation
        id: String,
        /// Name of the host
        host: String,
        /// Why: goes into the audit log, the summary and the evidence
        #[arg(long)]
        reason: String,
    },
    /// Change the pace of what is not ordered yet (operator)
    #[command(after_help = "Examples:\n  reseal rotation pace r7 --waves 1,5%,25%,100%\n  \
        reseal rotation pace r7 --waves 100% --max-failures 10 --reason \"minutes matter now\"")]
    Pace {
        /// Id of the rotation
        id: String,
        /// Hosts per wave, cumulative, of all hosts of the rotation; what is ordered stays
        #[arg(long, value_name = "LIST", value_parser = plan::wave_list, required_unless_present = "max_failures")]
        waves: Option<String>,
        /// Failed targets that halt it: a share of the attempted ones, or a number
        #[arg(long, value_name = "LIMIT")]
        max_failures: Option<String>,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Fetch the signed evidence of a rotation and verify it. Changes nothing
    #[command(after_help = "Example:\n  reseal rotation evidence r7 --file r7.json\n  \
        reseal evidence verify r7.json --anchor FINGERPRINT        (anywhere, offline)")]
    Evidence {
        /// Id of the rotation
        id: String,
        /// Where it goes [default: reseal-evidence-ID.json]; - is standard output
        #[arg(long, alias = "out", value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

const COLUMNS: [Column<RotationView>; 8] = [
    ("ROTATION", |row| Piece::bold(&row.id)),
    ("STATE", |row| Piece::new(tone(row.phase), row.state)),
    ("STARTED", |row| Piece::plain(when::relative(row.created_seconds, when::now()))),
    ("HOSTS", |row| Piece::plain(row.hosts)),
    ("VERIFIED", |row| Piece::plain(format!("{}/{}", row.verified(), row.targets))),
    ("FAILED", |row| Piece::bad_unless_zero(row.failed())),
    ("STRAGGLERS", |row| Piece::plain(row.straggling())),
    ("REASON", |row| Piece::plain(&row.reason)),
];

/// JSON fields that become CSV columns.
const CSV: [&str; 20] = [
    "id",
    "state",
    "reason",
    "operator",
    "compromised.name",
    "to_issuer.name",
    "created_at",
    "ended_at",
    "deadline_at",
    "time_to_green_seconds",
    "hosts",
    "containers",
    "endpoints",
    "targets",
    "targets_by_state",
    "replaced",
    "contained",
    "unmanaged",
    "max_failures",
    "note",
];

/// Runs one of the commands.
pub(super) async fn run(context: &Context, command: RotationCommand) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let mut excluded = false;
    let (id, action, reason) = match command {
        RotationCommand::List => {
            let reply = client.rpc.list_rotations(request(v1::ListRotationsRequest {})).await?;
            let rows: Vec<RotationView> = reply.into_inner().rotations.into_iter().map(Into::into).collect();
            context.out.list(&rows, &COLUMNS, &CSV, "no rotations yet")?;
            return Ok(Exit::Done);
        }
        RotationCommand::Show { id } => {
            let reply = client.rpc.show_rotation(request(v1::RotationRequest { id })).await?;
            let view = RotationView::from(reply.into_inner());
            context.out.one(&view, &CSV, || summary::text(&view))?;
            return Ok(Exit::Done);
        }
        RotationCommand::Watch { id } => return watch::run(context, &mut client, &id).await,
        RotationCommand::Evidence { id, file } => {
            return evidence::fetch(context, &mut client, &id, file).await;
        }
        RotationCommand::Pause { id, reason } => (id, RotationAction::Pause, reason),
        RotationCommand::Resume { id, reason } => (id, RotationAction::Resume, reason),
        RotationCommand::Abort { id, reason } => (id, RotationAction::Abort, reason),
        RotationCommand::Retry { id, reason, excluded: too } => {
            excluded = too;
            (id, RotationAction::Retry, reason)
        }
        RotationCommand::Exclude { id, host, reason } => {
            let message = v1::ExcludeHostRequest { rotation: id, host, reason };
            let reply = client.rpc.exclude_host(request(message)).await?;
            return stands(context, reply.into_inner());
        }
        RotationCommand::Pace { id, waves, max_failures, reason } => {
            let message = v1::PaceRotationRequest {
                id,
                waves: waves.unwrap_or_default(),
                max_failures: max_failures.unwrap_or_default(),
                reason,
            };
            let reply = client.rpc.pace_rotation(request(message)).await?;
            return stands(context, reply.into_inner());
        }
    };
    let message = v1::ControlRotationRequest { id, action: action.into(), reason, excluded };
    let reply = client.rpc.control_rotation(request(message)).await?;
    stands(context, reply.into_inner())
}

/// How a rotation stands after it was steered.
fn stands(context: &Context, rotation: v1::Rotation) -> Result<Exit, CliError> {
    let view = RotationView::from(rotation);
    context.out.one(&view, &CSV, || summary::one_line(&view))?;
    Ok(Exit::Done)
}

/// How a state looks.
fn tone(state: v1::RotationState) -> Tone {
    use v1::RotationState as State;
    match state {
        State::Completed => Tone::Good,
        State::Halted | State::Aborted | State::Expired => Tone::Bad,
        State::Paused | State::Trailing | State::AwaitingApproval => Tone::Warn,
        State::Running => Tone::Bold,
        State::Unspecified | State::Draft => Tone::Plain,
    }
}
