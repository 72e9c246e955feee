//! Evidence: fetched from the coordinator, verified offline against one fingerprint.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use reseal_proto::telemetry::traced;
use reseal_proto::v1;
use serde::Serialize;

use super::plan::count;
use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::exit::{CliError, Exit};
use crate::cli::file::NewFile;
use crate::cli::output::text::{Piece, Text};
use crate::domain::evidence::{self, EvidenceError, Residual, Summary, TargetRecord, Verified};

/// A file larger than this is not read, bytes: evidence of a million targets is smaller.
const MAX_FILE: u64 = 4 * 1024 * 1024 * 1024;
/// Rows of residual risk shown to a person.
const SHOWN: usize = 20;

/// Evidence files.
#[derive(Subcommand, Debug)]
pub(crate) enum EvidenceCommand {
    /// Check an evidence file, offline, and say what it proves and what had to be trusted
    #[command(after_help = "Example:\n  reseal evidence verify r7.json --anchor 5f3c...\n\
        The anchor is the SHA-256 fingerprint of the fleet's control-plane CA; `reseal init` and\n\
        `reseal status` print it. Take it from somewhere else than the file's sender. Any changed\n\
        byte fails. The agents' 24-hour identities may have expired: they are judged at the time\n\
        the coordinator took their results.")]
    Verify {
        /// The evidence file; - is standard input
        file: PathBuf,
        /// SHA-256 fingerprint of the control-plane CA, hex
        #[arg(long, value_name = "FINGERPRINT", value_parser = anchor)]
        anchor: [u8; 32],
    },
}

#[derive(Serialize)]
struct VerifiedView<'a> {
    valid: bool,
    fleet: &'a str,
    rotation: &'a str,
    state: &'a str,
    reason: &'a str,
    operator: &'a str,
    compromised: Option<&'a str>,
    to_issuer: &'a str,
    anchor: String,
    as_of: String,
    first_result_at: Option<String>,
    last_result_at: Option<String>,
    replaced: bool,
    contained: bool,
    summary: &'a Summary,
    superseded: u64,
    residual: &'a Residual,
    trusted: &'a [String],
    warnings: &'a [String],
}

const CSV: [&str; 21] = [
    "valid",
    "fleet",
    "rotation",
    "state",
    "compromised",
    "to_issuer",
    "anchor",
    "as_of",
    "first_result_at",
    "last_result_at",
    "replaced",
    "contained",
    "summary.hosts",
    "summary.targets",
    "summary.verified",
    "summary.failed",
    "summary.stragglers",
    "summary.unserved",
    "summary.pending",
    "summary.excluded",
    "summary.endpoints",
];

/// Checks a file.
pub(crate) fn run(context: &Context, command: EvidenceCommand) -> Result<Exit, CliError> {
    let EvidenceCommand::Verify { file, anchor } = command;
    let bytes = read(&file)?;
    let verified = evidence::verify(&bytes, anchor).map_err(|error| refused(&file, error))?;
    print(context, &verified)?;
    Ok(Exit::Done)
}

/// Fetches a rotation's evidence, keeps it, and checks it against the operator's own anchor.
pub(super) async fn fetch(
    context: &Context,
    client: &mut Client,
    id: &str,
    file: Option<PathBuf>,
) -> Result<Exit, CliError> {
    let path = file.unwrap_or_else(|| PathBuf::from(format!("reseal-evidence-{id}.json")));
    let to_stdout = path == Path::new("-");
    let mut place = if to_stdout { None } else { Some(NewFile::reserve(&path, 0o644)?) };
    let message = traced(v1::RotationRequest { id: id.to_owned() });
    let mut stream = client.rpc.evidence(message).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        if let Some(place) = &mut place {
            place.write(&chunk.data)?;
        }
        bytes.extend(chunk.data);
    }
    // Kept even if it does not verify: then it has to be looked at.
    if let Some(place) = place {
        place.keep()?;
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes).and_then(|()| out.flush()).map_err(CliError::Output)?;
    }
    let verified = evidence::verify(&bytes, client.anchor()?).map_err(|error| refused(&path, error))?;
    if to_stdout {
        return Ok(Exit::Done);
    }
    context.out.one(&view(&verified), &CSV, || {
        Text::new()
            .pieces([Piece::bold(path.display()), Piece::plain(": written, and verified")])
            .line("")
            .then(text(&verified))
            .line("")
            .pieces([
                Piece::dim("Anywhere, offline: "),
                Piece::plain(format!(
                    "reseal evidence verify {} --anchor {}",
                    path.display(),
                    hex::encode(verified.anchor)
                )),
            ])
    })?;
    Ok(Exit::Done)
}

fn print(context: &Context, verified: &Verified) -> Result<(), CliError> {
    context.out.one(&view(verified), &CSV, || {
        Text::new()
            .pieces([
                Piece::good("The evidence is good"),
                Piece::plain(": every signature and every number holds."),
            ])
            .line("")
            .then(text(verified))
    })
}

fn refused(file: &Path, error: EvidenceError) -> CliError {
    CliError::Other(anyhow::Error::new(error).context(format!("{} proves nothing", file.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
    };
    read.map_err(|error| CliError::failed(format!("cannot read {}: {error}", path.display()), ""))?;
    Ok(bytes)
}

fn anchor(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    hex::decode(digits.trim())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| "a SHA-256 fingerprint has 64 hex digits".to_owned())
}

fn view(verified: &Verified) -> VerifiedView<'_> {
    let rotation = &verified.rotation;
    VerifiedView {
        valid: true,
        fleet: &verified.fleet,
        rotation: &rotation.id,
        state: &rotation.state,
        reason: &rotation.reason,
        operator: &rotation.operator,
        compromised: rotation.compromised.as_ref().map(|issuer| issuer.name.as_str()),
        to_issuer: &rotation.to_issuer.name,
        anchor: hex::encode(verified.anchor),
        as_of: rotation.as_of.to_string(),
        first_result_at: verified.received.map(|(first, _)| first.to_string()),
        last_result_at: verified.received.map(|(_, last)| last.to_string()),
        replaced: verified.replaced,
        contained: verified.contained,
        summary: &verified.summary,
        superseded: verified.superseded,
        residual: &verified.residual,
        trusted: &verified.trusted,
        warnings: &verified.warnings,
    }
}

fn text(verified: &Verified) -> Text {
    let (rotation, summary) = (&verified.rotation, &verified.summary);
    let proved = format!("{} of {}", summary.verified, summary.targets);
    let received = verified.received.map(|(first, last)| format!("{first} to {last}"));
    let mut text = Text::new()
        .fact_piece(
            "Rotation",
            Piece::bold(format!("{} of fleet {}, {}", rotation.id, verified.fleet, rotation.state)),
        )
        .fact("Reason", format!("{} ({})", rotation.reason, rotation.operator))
        .fact(
            "Compromised",
            rotation.compromised.as_ref().map(|i| format!("{}  {}", i.name, i.subject)).unwrap_or_default(),
        )
        .fact("Replaced by", format!("{}  {}", rotation.to_issuer.name, rotation.to_issuer.subject))
        .fact_piece("Proved", if verified.replaced { Piece::good(proved) } else { Piece::warn(proved) })
        .fact(
            "Seen at",
            format!(
                "{}, {}, {}",
                count(summary.hosts as usize, "host"),
                count(summary.endpoints as usize, "endpoint"),
                count(summary.handshakes as usize, "fresh handshake"),
            ),
        )
        .fact("Grades", grades(summary))
        .fact("Results taken", received.unwrap_or_else(|| "none".into()))
        .fact("Made", rotation.as_of)
        .fact(
            "Tried again",
            if verified.superseded == 0 {
                String::new()
            } else {
                count(verified.superseded as usize, "earlier result")
            },
        );
    let residual = &verified.residual;
    for (title, rows) in [
        ("Failed", &residual.failed),
        ("Stragglers", &residual.stragglers),
        ("Unserved", &residual.unserved),
        ("Without a result", &residual.pending),
        ("Excluded, not replaced", &residual.excluded),
        ("Not managed by Reseal, not replaced", &residual.unmanaged),
    ] {
        text = text.then(rows_text(title, rows));
    }
    for warning in &verified.warnings {
        text = text.line("").pieces([Piece::warn(warning)]);
    }
    text = text.heading("Trusted for this");
    verified.trusted.iter().fold(text, |text, line| text.line(format!("- {line}")))
}

fn rows_text(title: &str, rows: &[TargetRecord]) -> Text {
    if rows.is_empty() {
        return Text::new();
    }
    let text = Text::new().line("").pieces([Piece::bold(format!("{title} ({})", rows.len()))]).table(
        &rows[..rows.len().min(SHOWN)],
        &[
            ("HOST", |row| Piece::bold(&row.host)),
            ("INSTALLATION", |row| Piece::plain(&row.label)),
            ("WHY", |row| Piece::plain(row.reason.as_deref().unwrap_or("-"))),
        ],
    );
    if rows.len() > SHOWN { text.line(format!("and {} more", rows.len() - SHOWN)) } else { text }
}

fn grades(summary: &Summary) -> String {
    let grades = &summary.grades;
    let all = [
        (grades.peer_observed, "seen by the peer"),
        (grades.probe, "by handshake"),
        (grades.reload_observed, "by reload alone"),
        (grades.file_only, "by file alone"),
        (grades.unknown, "unknown"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    some.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_as_other_tools_print_them() {
        let hex = "ab".repeat(32);
        assert_eq!(anchor(&hex).unwrap(), [0xab; 32]);
        assert_eq!(anchor(&["AB"; 32].join(":")).unwrap(), [0xab; 32]);
        assert!(anchor("abab").is_err() && anchor(&"zz".repeat(32)).is_err());
    }
}
