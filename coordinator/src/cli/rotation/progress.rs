//! What a watcher sees while a rotation runs: bars on a terminal, timestamped
//! lines elsewhere, newline-delimited JSON for programs.
//!
//! Bars and lines go to standard error, so that standard output holds the
//! result alone; JSON snapshots are results.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use reseal_proto::facts::printable;
use reseal_proto::v1::RotationState;
use serde::Serialize;

use super::plan::count;
use crate::cli::exit::CliError;
use crate::cli::output::text::{Look, Piece, Text};
use crate::cli::output::{Format, Output, aside};
use crate::cli::view::{RotationView, TargetView};
use crate::cli::when;

/// Plain lines about mere numbers come no faster than this.
const LINE_PAUSE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(120);

/// One watcher's display.
pub(super) struct Progress {
    kind: Kind,
    /// Failures and stragglers already told, by host, installation and state.
    told: BTreeSet<(String, String, &'static str)>,
    away: bool,
}

enum Kind {
    Bars(Bars),
    Lines { last: Option<(Instant, String)>, heading: String },
    Json(Output),
}

struct Bars {
    multi: MultiProgress,
    waves: Vec<ProgressBar>,
    total: ProgressBar,
}

#[derive(Serialize)]
struct Snapshot<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    rotation: &'a RotationView,
}

impl Progress {
    /// As the output format and standard error allow.
    pub(super) fn new(out: Output) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let kind = match out.format {
            Format::Json => Kind::Json(out),
            Format::Table | Format::Csv if std::io::stderr().is_terminal() && !dumb => {
                Kind::Bars(Bars::new())
            }
            Format::Table | Format::Csv => Kind::Lines { last: None, heading: String::new() },
        };
        Self { kind, told: BTreeSet::new(), away: false }
    }

    /// Shows a snapshot.
    pub(super) fn show(&mut self, view: &RotationView) -> Result<(), CliError> {
        if self.away {
            self.away = false;
            self.say(Piece::good("the coordinator is back"));
        }
        self.tell_new(view);
        match &mut self.kind {
            Kind::Json(out) => out.json_line(&Snapshot { r#type: "snapshot", rotation: view })?,
            Kind::Bars(bars) => bars.show(view),
            Kind::Lines { last, heading } => {
                let head = format!("{} wave {}", view.state, view.wave);
                let wave = match view.waves.len() {
                    0 => String::new(),
                    waves => format!(", wave {} of {waves}", view.wave),
                };
                let line = format!("{}{wave}: {}", view.state, totals(view));
                let due = match last {
                    Some((at, text)) => {
                        *text != line && (*heading != head || at.elapsed() >= LINE_PAUSE || !is_moving(view))
                    }
                    None => true,
                };
                if due {
                    aside(Text::new().line(format!("{} {line}", stamp())));
                    *last = Some((Instant::now(), line));
                    *heading = head;
                }
            }
        }
        Ok(())
    }

    /// Says, once, that the coordinator does not answer.
    pub(super) fn away(&mut self, why: &str) {
        if !self.away {
            self.away = true;
            self.say(Piece::warn(format!(
                "the coordinator is away ({why}); the rotation goes on when it is back, reconnecting"
            )));
        }
    }

    /// Takes the bars off the terminal.
    pub(super) fn finish(&mut self) {
        if let Kind::Bars(bars) = &self.kind {
            bars.total.disable_steady_tick();
            for bar in bars.waves.iter().chain([&bars.total]) {
                bar.finish();
            }
        }
    }

    fn tell_new(&mut self, view: &RotationView) {
        let rows = view.failures.iter().chain(&view.stragglers).chain(&view.unserved).chain(&view.excluded);
        for row in rows {
            let key = (row.host.clone(), row.installation.clone(), row.state);
            if self.told.insert(key) {
                self.say(told(row));
            }
        }
    }

    fn say(&self, piece: Piece) {
        match &self.kind {
            Kind::Bars(bars) => {
                let look = Look::of(&std::io::stderr());
                let line = Text::new().pieces([Piece::plain("  "), piece]).render(look);
                // A terminal that is gone is noticed by the next write to it.
                let _ = bars.multi.println(line.trim_end());
            }
            Kind::Lines { .. } | Kind::Json(_) => {
                aside(Text::new().pieces([Piece::plain(format!("{} ", stamp())), piece]));
            }
        }
    }
}

impl Bars {
    fn new() -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let total = multi.add(ProgressBar::new(1).with_style(total_style()));
        total.enable_steady_tick(TICK);
        Self { multi, waves: Vec::new(), total }
    }

    fn show(&mut self, view: &RotationView) {
        while self.waves.len() < view.waves.len() {
            let bar = ProgressBar::new(1)
                .with_style(wave_style())
                .with_prefix(format!("wave {}", self.waves.len() + 1));
            self.waves.push(self.multi.insert_before(&self.total, bar));
        }
        for (index, (bar, wave)) in self.waves.iter().zip(&view.waves).enumerate() {
            bar.set_length(wave.targets.max(1).into());
            bar.set_position(wave.done.min(wave.targets).into());
            let hosts = count(wave.hosts as usize, "host");
            bar.set_message(if index as u32 >= view.wave {
                format!("{hosts}, waiting")
            } else if wave.failed > 0 {
                format!("{hosts}, {} failed", wave.failed)
            } else if wave.done >= wave.targets {
                format!("{hosts}, done")
            } else {
                hosts
            });
        }
        self.total.set_length(view.targets.max(1).into());
        self.total.set_position(view.verified().into());
        self.total.set_prefix(view.state);
        let note = view.note.as_deref().map(|note| format!(" · {note}")).unwrap_or_default();
        self.total.set_message(printable(&format!("{}{note}", totals(view))));
    }
}

fn wave_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "  {prefix:<9} {bar:32.green/black.bright} {pos:>6}/{len:<6} {wide_msg:.dim}",
    )
    .expect("a constant template")
    .progress_chars(bar_characters())
}

/// Without colour, the done and the open part of a bar need different characters.
fn bar_characters() -> &'static str {
    if Look::of(&std::io::stderr()).colour { "━╸━" } else { "=>-" }
}

fn total_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {prefix:<9.bold} {bar:32.cyan/black.bright} {wide_msg}")
        .expect("a constant template")
        .progress_chars(bar_characters())
}

/// "38 of 120 verified, 4 working, 0 failed, 1 straggler, 40 s left".
fn totals(view: &RotationView) -> String {
    let mut text = format!("{} of {} verified", view.verified(), view.targets);
    let parts = [
        (view.in_flight(), "working"),
        (view.failed(), "failed"),
        (view.not_served(), "unserved"),
        (view.left_out(), "excluded"),
    ];
    for (number, word) in parts {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    if view.straggling() > 0 {
        text.push_str(&format!(", {}", count(view.straggling() as usize, "straggler")));
    }
    if let (Some(eta), true) = (view.eta_seconds, is_moving(view)) {
        text.push_str(&format!(", about {} left", when::span(eta)));
    }
    text
}

fn is_moving(view: &RotationView) -> bool {
    matches!(view.phase, RotationState::Running)
}

fn told(row: &TargetView) -> Piece {
    let what = format!("{} {}", row.host, row.label);
    match row.state {
        "straggler" => {
            Piece::warn(format!("straggler {what}: its host is away, it catches up when it is back"))
        }
        "unserved" => Piece::warn(format!("unserved  {what}: no running container serves it")),
        state => {
            let why = row.reason.as_deref().unwrap_or("no reason was given");
            let next = row.next.as_deref().map(|next| format!(". Next: {next}")).unwrap_or_default();
            Piece::bad(format!("{state:9} {what}: {why}{next}"))
        }
    }
}

fn stamp() -> String {
    when::rfc3339(when::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reseal_proto::v1::{self, TargetState};

    #[test]
    fn totals_name_what_is_not_zero() {
        let view = RotationView::from(v1::Rotation {
            state: RotationState::Running.into(),
            eta_seconds: 40,
            targets: [
                (TargetState::Verified as u32, 38),
                (TargetState::Pending as u32, 77),
                (TargetState::Issued as u32, 4),
                (TargetState::Straggler as u32, 1),
            ]
            .into(),
            ..Default::default()
        });
        assert_eq!(totals(&view), "38 of 120 verified, 4 working, 1 straggler, about 40 s left");
    }

    #[test]
    fn the_templates_are_good() {
        let _ = (wave_style(), total_style());
    }

    #[test]
    fn a_snapshot_is_one_flat_object() {
        let view =
            RotationView::from(v1::Rotation { id: "r1".into(), eta_seconds: -1, ..Default::default() });
        let json = serde_json::to_value(Snapshot { r#type: "snapshot", rotation: &view }).unwrap();
        assert_eq!((json["type"].as_str(), json["id"].as_str()), (Some("snapshot"), Some("r1")));
        assert!(json["eta_seconds"].is_null() && json["created_at"].is_null());
    }
}
