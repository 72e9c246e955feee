//! How a rotation stands or ended: for a person, for a program, and as an exit code.
//!
//! *Replaced* is not *contained*: the summary never says that an incident is
//! over while a relying party still accepts the compromised issuer or was not
//! tested, nor while a certificate of it is in use that nobody looks after.

use reseal_proto::v1::RotationState;
use serde::Serialize;

use super::plan::{RELYING_PARTY_COLUMNS, count, unmanaged};
use super::{CSV, tone};
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::text::{Piece, Text, Tone};
use crate::cli::output::{Column, Format, Output};
use crate::cli::view::{RotationView, TargetView};
use crate::cli::when;

#[derive(Serialize)]
struct Summary<'a> {
    r#type: &'static str,
    exit_code: u8,
    verified_targets: u32,
    failed_targets: u32,
    straggler_targets: u32,
    unserved_targets: u32,
    excluded_targets: u32,
    /// Every target that is not proved, in one line each: where, what, why, and what to do next.
    open: Vec<String>,
    /// Relying parties that still accept the compromised issuer; "untested"
    /// when none was tested; null without a compromised issuer.
    compromised_issuer_still_accepted: serde_json::Value,
    #[serde(flatten)]
    rotation: &'a RotationView,
}

const TARGET_COLUMNS: [Column<TargetView>; 6] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.label)),
    ("STATE", |row| Piece::bad(row.state)),
    ("STEP", |row| Piece::plain(row.stage.unwrap_or("-"))),
    ("WHY", |row| {
        Piece::plain(row.reason.as_deref().or(row.code.as_deref()).unwrap_or("no reason was given"))
    }),
    ("WHAT NEXT", |row| Piece::plain(row.next.as_deref().unwrap_or("-"))),
];

const WAITING_COLUMNS: [Column<TargetView>; 4] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.label)),
    ("FILE", |row| Piece::dim(&row.installation)),
    ("WHAT NEXT", |row| Piece::plain(row.next.as_deref().unwrap_or("-"))),
];

const EXCLUDED_COLUMNS: [Column<TargetView>; 4] = [
    ("HOST", |row| Piece::bold(&row.host)),
    ("INSTALLATION", |row| Piece::plain(&row.label)),
    ("WHY", |row| Piece::plain(row.reason.as_deref().unwrap_or("-"))),
    ("WHAT NEXT", |row| Piece::plain(row.next.as_deref().unwrap_or("-"))),
];

/// The exit code of a rotation that is no longer watched.
pub(super) fn exit(view: &RotationView) -> Exit {
    match view.phase {
        RotationState::Halted => Exit::Halted,
        RotationState::AwaitingApproval => Exit::Refused,
        RotationState::Completed | RotationState::Trailing | RotationState::Expired => {
            let pending = view.targets - view.verified() - view.failed();
            if view.failed() > 0 {
                Exit::Error
            } else if pending > 0 || view.phase != RotationState::Completed {
                Exit::Stragglers
            } else if view.compromised.is_some() && !is_contained(view) {
                Exit::NotContained
            } else {
                Exit::Done
            }
        }
        RotationState::Unspecified
        | RotationState::Draft
        | RotationState::Running
        | RotationState::Paused
        | RotationState::Aborted => Exit::Error,
    }
}

/// Prints the final summary.
pub(super) fn print(out: Output, view: &RotationView) -> Result<(), CliError> {
    match out.format {
        Format::Json => out.json_line(&summary(view)),
        Format::Csv => out.one(&summary(view), &CSV, Text::new),
        Format::Table => out.text(text(view)),
    }
}

fn summary(view: &RotationView) -> Summary<'_> {
    Summary {
        r#type: "summary",
        exit_code: exit(view) as u8,
        verified_targets: view.verified(),
        failed_targets: view.failed(),
        straggler_targets: view.straggling(),
        unserved_targets: view.not_served(),
        excluded_targets: view.left_out(),
        open: rows(view).map(in_one_line).collect(),
        compromised_issuer_still_accepted: still_accepted(view),
        rotation: view,
    }
}

fn still_accepted(view: &RotationView) -> serde_json::Value {
    let (accepting, untested) = verdicts(view);
    match view.compromised {
        None => serde_json::Value::Null,
        Some(_) if view.contained => 0.into(),
        Some(_) if accepting == 0 && (untested > 0 || view.relying_parties.is_empty()) => "untested".into(),
        Some(_) => accepting.into(),
    }
}

/// Relying parties that accept, and that were not tested.
fn verdicts(view: &RotationView) -> (usize, usize) {
    let of = |verdict: &str| view.relying_parties.iter().filter(|party| party.verdict == verdict).count();
    let (accepting, refusing) = (of("accepts"), of("refuses"));
    (accepting, view.relying_parties.len() - accepting - refusing)
}

/// "rotation r7 is paused: 38 of 120 verified, 1 failed, 2 excluded".
pub(super) fn one_line(view: &RotationView) -> Text {
    let mut numbers = format!("{} of {} verified", view.verified(), view.targets);
    for (number, word) in [
        (view.failed(), "failed"),
        (view.straggling(), "stragglers"),
        (view.not_served(), "unserved"),
        (view.left_out(), "excluded"),
        (view.unmanaged, "not managed"),
    ] {
        if number > 0 {
            numbers.push_str(&format!(", {number} {word}"));
        }
    }
    Text::new().pieces([
        Piece::plain(format!("rotation {} is ", view.id)),
        Piece::new(tone(view.phase), view.state),
        Piece::plain(format!(": {numbers}")),
    ])
}

/// Every row that wants a look.
fn rows(view: &RotationView) -> impl Iterator<Item = &TargetView> {
    view.failures.iter().chain(&view.stragglers).chain(&view.unserved).chain(&view.excluded)
}

/// "web-1 nginx/www failed at install (no-space): no room for … Next: free space on web-1 …".
fn in_one_line(row: &TargetView) -> String {
    let mut line = format!("{} {} {}", row.host, row.label, row.state);
    if let Some(stage) = row.stage {
        line.push_str(&format!(" at {stage}"));
    }
    if let Some(code) = &row.code {
        line.push_str(&format!(" ({code})"));
    }
    if let Some(reason) = &row.reason {
        line.push_str(&format!(": {reason}"));
    }
    match &row.next {
        Some(next) => format!("{line}. Next: {next}"),
        None => line,
    }
}

/// All that a person needs to know, and what to do next.
pub(super) fn text(view: &RotationView) -> Text {
    let mut text = Text::new().pieces([
        Piece::bold(format!("Rotation {} ", view.id)),
        Piece::new(tone(view.phase), view.state),
        Piece::plain(headline(view)),
    ]);
    text = text.line("").fact("Reason", format!("{} ({})", view.reason, view.operator));
    if let Some(compromised) = &view.compromised {
        text = text.fact("Compromised", format!("{}  {}", compromised.name, compromised.subject));
    }
    if let Some(to_issuer) = &view.to_issuer {
        text = text.fact("Replaced by", format!("{}  {}", to_issuer.name, to_issuer.subject));
    }
    let certificates = format!("{} of {} verified", view.verified(), view.targets);
    let good = if view.replaced { Tone::Good } else { Tone::Warn };
    text = text
        .fact("Hosts", view.hosts)
        .fact_piece("Certificates", Piece::new(good, certificates))
        .fact_piece("Not managed", not_managed(view))
        .fact_piece("Still on record", still_on_record(view))
        .fact("Proved by", proof(view))
        .fact("Containers", view.containers)
        .fact("Endpoints", view.endpoints)
        .fact("Time to green", green(view))
        .fact(
            "Deadline",
            if is_open(view) { view.deadline_at.clone().unwrap_or_default() } else { String::new() },
        )
        .fact_piece("Note", Piece::warn(view.note.as_deref().unwrap_or_default()));
    let lists = [
        ("Failed", view.failed(), &view.failures, &TARGET_COLUMNS[..]),
        (
            "Stragglers, residual risk until their hosts are back",
            view.straggling(),
            &view.stragglers,
            &WAITING_COLUMNS[..],
        ),
        (
            "Unserved, residual risk until their consumers start",
            view.not_served(),
            &view.unserved,
            &WAITING_COLUMNS[..],
        ),
        ("Excluded, not replaced", view.left_out(), &view.excluded, &EXCLUDED_COLUMNS[..]),
    ];
    for (title, number, rows, columns) in lists {
        if number == 0 && rows.is_empty() {
            continue;
        }
        text = text.heading(format!("{title} ({number})")).table(rows, columns);
        if (rows.len() as u64) < u64::from(number) {
            let more = format!("and {} more", u64::from(number) - rows.len() as u64);
            text = text.pieces([Piece::dim(more)]);
        }
    }
    let without_rows: Vec<&str> = view
        .excluded_hosts
        .iter()
        .filter(|excluded| !view.excluded.iter().any(|row| row.host == excluded.host))
        .map(|excluded| excluded.host.as_str())
        .collect();
    if !without_rows.is_empty() {
        let hosts = format!("Excluded hosts without a row above: {}", without_rows.join(", "));
        text = text.line("").pieces([Piece::warn(hosts)]);
    }
    text.then(unmanaged(view.unmanaged, &view.unmanaged_certificates))
        .then(containment(view))
        .line("")
        .then(next(view))
}

/// From the order to the last target that was no straggler; times are whole seconds.
fn green(view: &RotationView) -> String {
    match view.time_to_green_seconds {
        None => String::new(),
        Some(0) => "under 1 s".into(),
        Some(seconds) => when::exact(seconds),
    }
}

/// By what the verified ones are proved; nothing while there are none.
fn proof(view: &RotationView) -> String {
    let strong = view.verified_by_handshake.min(view.verified());
    match (strong, view.verified() - strong) {
        (0, 0) => String::new(),
        (_, 0) => "fresh handshakes".into(),
        (0, _) => "reload or file alone, no handshake".into(),
        (strong, weak) => format!("fresh handshakes ({strong}), reload or file alone ({weak})"),
    }
}

fn is_open(view: &RotationView) -> bool {
    view.ended_at.is_none()
}

/// Every relying party refuses the compromised issuer, and none of its certificates is left
/// that nobody looks after.
fn is_contained(view: &RotationView) -> bool {
    view.contained && view.unmanaged == 0
}

/// "3 certificates of builtin/a: not replaced"; empty when there are none.
fn not_managed(view: &RotationView) -> Piece {
    match (&view.compromised, view.unmanaged) {
        (Some(issuer), 1..) => {
            let number = count(view.unmanaged as usize, "certificate");
            Piece::warn(format!("{number} of {}: not replaced", issuer.name))
        }
        (Some(_), 0) | (None, _) => Piece::plain(""),
    }
}

/// What is managed and still of the compromised issuer when a rotation has ended: stragglers
/// that were given up, what the selection did not mean, what turned up since.
fn still_on_record(view: &RotationView) -> Piece {
    let of = view.compromised.as_ref().filter(|_| !is_open(view));
    match of.map(|issuer| (issuer, issuer.installations.saturating_sub(issuer.unmanaged))) {
        Some((issuer, number @ 1..)) => {
            let number = count(number as usize, "managed certificate");
            Piece::warn(format!("{number} of {}: `reseal plan` shows where", issuer.name))
        }
        Some((_, 0)) | None => Piece::plain(""),
    }
}

/// The honest word behind the state.
fn headline(view: &RotationView) -> String {
    match (&view.compromised, view.replaced, is_contained(view)) {
        (Some(_), true, true) => ": replaced and contained".into(),
        (Some(_), true, false) if view.unmanaged > 0 => {
            ": every managed certificate is replaced, NOT contained".into()
        }
        (Some(_), true, false) => ": replaced everywhere, NOT contained".into(),
        (Some(_), false, _) => ": not yet replaced everywhere".into(),
        (None, true, _) => ": every certificate is replaced and verified".into(),
        (None, false, _) => String::new(),
    }
}

fn containment(view: &RotationView) -> Text {
    let Some(compromised) = &view.compromised else {
        return Text::new();
    };
    let mut text = Text::new().line("");
    if is_contained(view) {
        return text.pieces([
            Piece::good("Contained"),
            Piece::plain(format!(": every relying party refuses {}, proved.", compromised.name)),
        ]);
    }
    let (accepting, untested) = verdicts(view);
    let in_use = match view.unmanaged {
        0 => String::new(),
        1 => "1 certificate of it is not managed and not replaced; ".to_owned(),
        number => format!("{number} certificates of it are not managed and not replaced; "),
    };
    let why = match (accepting, untested) {
        (0, 0) if view.contained => "every relying party refuses it".to_owned(),
        (0, 0) => "no relying party was proved to refuse it".to_owned(),
        (0, untested) => format!("{} not tested", verb(untested)),
        (accepting, 0) => format!("{} proved to still accept it", verb(accepting)),
        (accepting, untested) => {
            format!("{} proved to still accept it, {} not tested", verb(accepting), verb(untested))
        }
    };
    text = text.pieces([
        Piece::warn("Not contained"),
        Piece::plain(format!(
            ": whoever holds the key of {} can still be believed: {in_use}{why}.",
            compromised.name
        )),
    ]);
    let open: Vec<_> =
        view.relying_parties.iter().filter(|party| party.verdict != "refuses").cloned().collect();
    if open.is_empty() { text } else { text.table(&open, &RELYING_PARTY_COLUMNS) }
}

fn verb(number: usize) -> String {
    let is = if number == 1 { "was" } else { "were" };
    format!("{} {is}", count(number, "relying party").replace("partys", "parties"))
}

fn next(view: &RotationView) -> Text {
    let id = &view.id;
    let mut lines = Vec::new();
    if view.phase == RotationState::Halted || (view.failed() > 0 && is_open(view)) {
        lines.push(format!(
            "reseal rotation retry {id}      tries the failed ones again, after you fixed why"
        ));
        lines.push(format!("reseal rotation resume {id}     goes on without them"));
        lines.push(format!("reseal rotation abort {id}      ends it"));
    } else if view.phase == RotationState::Paused {
        lines.push(format!("reseal rotation resume {id}     goes on"));
    } else if matches!(view.phase, RotationState::Running | RotationState::Trailing) {
        lines.push(format!("reseal rotation watch {id}      follows it"));
    }
    lines.push(format!("reseal rotation evidence {id}   fetches the signed evidence"));
    lines.iter().enumerate().fold(Text::new(), |text, (index, line)| {
        let lead = if index == 0 { "Next: " } else { "      " };
        text.pieces([Piece::dim(lead), Piece::plain(line)])
    })
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
