//! `reseal rotate`: shows the plan, wants it confirmed, starts it, watches it.
//!
//! The call carries an idempotency key, so an answer that got lost is asked
//! for again without a second rotation.

use std::time::Duration;

use clap::{Args, ValueEnum};
use reseal_proto::v1;
use tonic::Code;

use super::plan::{self, ShapeArgs};
use super::watch;
use crate::cli::Context;
use crate::cli::client::{Client, request};
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::text::{Piece, Text};
use crate::cli::output::{Format, aside, can_ask};
use crate::cli::selection::SelectionArgs;
use crate::cli::view::PlanView;
use crate::cli::when;

/// How often an unanswered start is asked again.
const START_ATTEMPTS: u32 = 10;
const START_PAUSE: Duration = Duration::from_secs(1);

/// What to rotate, and how.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    reseal rotate --compromised-issuer builtin/a --reason \"key found on a laptop\"\n  \
    reseal rotate --key-type rsa-2048 --reason \"leaving RSA\" --waves 1,25%,100% --yes --detach\n\
    Each wave begins when the one before is verified. When --max-failures of them fail, it halts\n\
    and waits for `reseal rotation resume | retry | abort`.")]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten, next_help_heading = "How it goes")]
    shape: ShapeArgs,
    /// Why, for the audit log and the evidence
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Halt when this many targets fail, at least one: a share of the attempted, or a number
    #[arg(long, default_value = "2%", value_name = "SHARE")]
    max_failures: String,
    /// What happens to a target whose new certificate does not verify
    #[arg(long, value_enum, default_value_t = OnFailure::Rollback)]
    on_failure: OnFailure,
    /// When stragglers are given up
    #[arg(long, default_value = "24h", value_name = "SPAN", value_parser = when::duration)]
    deadline: u64,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
    /// Start it and return at once; `reseal rotation watch` follows it
    #[arg(long)]
    detach: bool,
}

/// What happens to a target whose new certificate does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    /// The previous certificate and key come back
    Rollback,
    /// The new pair stays, for a person to look at
    Hold,
}

impl From<OnFailure> for v1::OnFailure {
    fn from(choice: OnFailure) -> Self {
        match choice {
            OnFailure::Rollback => Self::Rollback,
            OnFailure::Hold => Self::Hold,
        }
    }
}

/// Plans, confirms, starts and watches.
pub(crate) async fn run(context: &Context, args: RotateArgs) -> Result<Exit, CliError> {
    let selection = args.selection.read_some()?;
    if args.reason.trim().is_empty() {
        return Err(CliError::Usage("--reason is empty: say why, the evidence will carry it".into()));
    }
    if !args.yes && !can_ask() {
        return Err(CliError::Usage(
            "a rotation has to be confirmed, and there is no terminal to ask on: look at `reseal plan`, then add --yes"
                .into(),
        ));
    }
    let mut client = context.connect().await?;
    let message = v1::PlanRequest {
        selection: Some(selection.clone()),
        to_issuer: args.shape.to_issuer.clone().unwrap_or_default(),
        waves: args.shape.waves.clone(),
    };
    let plan = PlanView::from(client.rpc.plan(request(message)).await?.into_inner());
    refuse_the_impossible(&plan)?;
    if args.yes {
        aside(brief(&plan));
    } else {
        aside(plan::text(&plan));
        confirm(&plan).await?;
    }
    let rotate = v1::RotateRequest {
        selection: Some(selection),
        to_issuer: args.shape.to_issuer.unwrap_or_default(),
        reason: args.reason,
        waves: args.shape.waves,
        max_failures: args.max_failures,
        on_failure: v1::OnFailure::from(args.on_failure).into(),
        deadline_seconds: args.deadline,
        idempotency_key: random_key()?,
    };
    let id = start(&mut client, rotate).await?;
    if args.detach {
        let view = serde_json::json!({"id": id});
        context.out.one(&view, &["id"], || {
            Text::new().line(format!("rotation {id} is started: `reseal rotation watch {id}` follows it"))
        })?;
        return Ok(Exit::Done);
    }
    if context.out.format == Format::Table {
        aside(Text::new().pieces([
            Piece::bold(format!("rotation {id}")),
            Piece::dim("  Ctrl-C stops the watching, not the rotation"),
        ]));
    }
    watch::run(context, &mut client, &id).await
}

fn refuse_the_impossible(plan: &PlanView) -> Result<(), CliError> {
    if !plan.conflicts.is_empty() {
        return Err(CliError::failed(
            format!("this rotation cannot start: {}", plan.conflicts.join("; ")),
            "`reseal plan` with the same selection shows more",
        ));
    }
    if plan.targets == 0 && plan.unmanaged > 0 {
        return Err(CliError::failed(
            format!(
                "nobody looks after the {} that the selection matches: there is nothing to rotate",
                plan::count(plan.unmanaged as usize, "certificate")
            ),
            "`reseal plan` with the same selection names them and says what to do about each; \
             `reseal authority taint` stops an issuer",
        ));
    }
    if plan.targets == 0 {
        return Err(CliError::failed(
            "the selection matches no certificate",
            "`reseal certs` with the same selection shows what is on record",
        ));
    }
    Ok(())
}

fn brief(plan: &PlanView) -> Text {
    let mut text = Text::new().pieces([Piece::bold(plan::radius(plan))]);
    if plan.unmanaged > 0 {
        let number = plan::count(plan.unmanaged as usize, "certificate");
        text = text.pieces([Piece::warn(format!(
            "warning: {number} more that the selection matches: not managed by Reseal, not replaced; `reseal plan` names them"
        ))]);
    }
    for warning in &plan.warnings {
        text = text.pieces([Piece::warn(format!("warning: {warning}"))]);
    }
    text
}

/// What has to be typed: the compromised issuer's name, else the number of certificates.
fn password(plan: &PlanView) -> String {
    plan.compromised.as_ref().map_or_else(|| plan.targets.to_string(), |issuer| issuer.name.clone())
}

fn is_confirmed(plan: &PlanView, typed: &str) -> bool {
    let wanted = password(plan);
    let typed = typed.trim();
    typed == wanted || (plan.compromised.is_some() && Some(typed) == wanted.rsplit('/').next())
}

async fn confirm(plan: &PlanView) -> Result<(), CliError> {
    let wanted = password(plan);
    let question = match &plan.compromised {
        Some(_) => {
            format!("Type the name of the compromised issuer ({wanted}) to replace all of this: ")
        }
        None => format!("Type the number of certificates ({wanted}) to replace them: "),
    };
    aside(Text::new().line("").pieces([Piece::bold(question)]));
    let typed = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    })
    .await
    .map_err(|error| CliError::Other(error.into()))?
    .map_err(|error| CliError::failed(format!("cannot read the answer: {error}"), ""))?;
    if is_confirmed(plan, &typed) {
        Ok(())
    } else {
        Err(CliError::failed("not confirmed: nothing was started", ""))
    }
}

fn random_key() -> Result<Vec<u8>, CliError> {
    let mut key = vec![0; 16];
    aws_lc_rs::rand::fill(&mut key)
        .map_err(|_| CliError::failed("the system gives no random numbers", ""))?;
    Ok(key)
}

/// Starts it; asks again with the same key when no answer came.
async fn start(client: &mut Client, rotate: v1::RotateRequest) -> Result<String, CliError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match client.rpc.rotate(request(rotate.clone())).await {
            Ok(reply) => return Ok(reply.into_inner().id),
            Err(status) if attempt < START_ATTEMPTS && may_have_been_lost(status.code()) => {
                aside(Text::new().pieces([Piece::warn(format!(
                    "no answer ({}): asking again, it starts only once",
                    status.message()
                ))]));
                tokio::time::sleep(START_PAUSE).await;
                // The next attempt says it when there is still nobody.
                let _ = client.reconnect().await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Could the request have been carried out, or be worth another try?
pub(super) fn may_have_been_lost(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Aborted => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::{Fake, Script};

    fn plan(compromised: Option<&str>, targets: u32) -> PlanView {
        PlanView::from(v1::PlanReply {
            compromised: compromised
                .map(|name| v1::AuthorityInfo { name: name.into(), ..Default::default() }),
            targets,
            ..Default::default()
        })
    }

    #[tokio::test]
    async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
        let fake = Fake::start(Script {
            rotates: [
                Err(tonic::Status::unavailable("going away")),
                Ok("r7".to_owned()),
                Err(tonic::Status::permission_denied("viewer")),
                Ok("r8".to_owned()),
            ]
            .into(),
            ..Default::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let mut client = Client::connect(Some(&fake.credentials(folder.path()))).await.unwrap();
        let rotate = v1::RotateRequest { idempotency_key: random_key().unwrap(), ..Default::default() };
        assert_eq!(start(&mut client, rotate.clone()).await.unwrap(), "r7");
        let refused = start(&mut client, rotate.clone()).await.unwrap_err();
        assert_eq!(refused.exit(), Exit::Refused, "a clear no is not asked again");
        let keys = &fake.script.lock().unwrap().keys;
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| key.len() == 16 && *key == rotate.idempotency_key));
    }

    #[test]
    fn only_the_right_word_confirms() {
        let incident = plan(Some("builtin/a"), 12);
        assert!(is_confirmed(&incident, "builtin/a\n"));
        assert!(is_confirmed(&incident, "a"));
        for wrong in ["", "y", "yes", "12", "b", "builtin/"] {
            assert!(!is_confirmed(&incident, wrong), "{wrong:?}");
        }
        let planned = plan(None, 12);
        assert!(is_confirmed(&planned, "12"));
        assert!(!is_confirmed(&planned, "") && !is_confirmed(&planned, "1"));
    }

    #[test]
    fn the_impossible_is_refused_before_it_starts() {
        assert!(refuse_the_impossible(&plan(None, 0)).is_err());
        assert!(refuse_the_impossible(&plan(None, 1)).is_ok());
        let unmanaged = PlanView { unmanaged: 3, ..plan(Some("builtin/a"), 0) };
        let error = refuse_the_impossible(&unmanaged).unwrap_err().to_string();
        assert!(error.contains("nobody looks after the 3 certificates"), "{error}");
        let mut conflict = plan(None, 1);
        conflict.conflicts.push("r1 runs over web-1".into());
        let error = refuse_the_impossible(&conflict).unwrap_err();
        assert!(error.to_string().contains("r1 runs over web-1"));
    }
}
