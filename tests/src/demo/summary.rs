//! How far the incident is, for a person and for a program.
//!
//! *Replaced* is not *contained*: as long as a relying party still lets the
//! intruder in, or was not tried, the summary says so.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::outside::{Seen, Verdict};
use super::screen::{Screen, Tone};
use crate::probe::{self, Tally};

/// Everything that was seen.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) hosts: usize,
    pub(super) certificates: usize,
    pub(super) containers: usize,
    /// As `reseal rotation list` has it.
    pub(super) rotation: Value,
    /// Exit code of `reseal rotate`.
    pub(super) rotate_exit: i32,
    /// When `reseal rotate` was started.
    pub(super) ordered_at: Instant,
    pub(super) served: Vec<Seen>,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) tally: Tally,
    /// Fingerprint of A's certificate.
    pub(super) compromised: String,
    pub(super) evidence: PathBuf,
    pub(super) anchor: String,
}

impl Summary {
    /// The rotation's id.
    pub(super) fn id(&self) -> String {
        self.rotation["id"].as_str().unwrap_or_default().to_owned()
    }

    /// Everything is replaced and verified, and no connection failed.
    pub(super) fn good(&self) -> bool {
        let (attempted, failed) = probe::totals(&self.tally);
        self.replaced() && attempted > 0 && failed == 0 && self.still_served() == 0
    }

    fn replaced(&self) -> bool {
        let good = self.served.iter().all(|seen| seen.good && seen.authority == "b");
        good && self.verified() == self.certificates && matches!(self.rotate_exit, 0 | 6)
    }

    fn verified(&self) -> usize {
        let verified = self.rotation["targets_by_state"]["verified"].as_u64();
        verified.and_then(|number| number.try_into().ok()).unwrap_or(0)
    }

    fn still_served(&self) -> usize {
        self.served.iter().filter(|seen| seen.authority == "a").count()
    }

    fn still_accepting(&self) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.accepts).count()
    }

    /// As JSON, for programs.
    pub(super) fn json(&self) -> Value {
        let (attempted, failed) = probe::totals(&self.tally);
        let accepted =
            if self.verdicts.is_empty() { json!("untested") } else { json!(self.still_accepting()) };
        json!({
            "hosts": self.hosts,
            "containers": self.containers,
            "certificates": self.certificates,
            "endpoints": self.served.len(),
            "rotation": self.id(),
            "verified": self.verified(),
            "connections_attempted": attempted,
            "connections_failed": failed,
            "time_to_green_seconds": self.time_to_green(),
            "compromised_issuer_last_met_seconds": self.last_met(),
            "compromised_issuer_still_served": self.still_served(),
            "compromised_issuer_still_accepted": accepted,
            "relying_parties": self.verdicts.iter().map(|verdict| json!({
                "name": verdict.name,
                "http_status": verdict.status,
                "accepts_compromised_issuer": verdict.accepts,
                "accepts_new_issuer": verdict.control,
            })).collect::<Vec<_>>(),
            "replaced": self.replaced(),
            "contained": self.contained(),
            "rotate_exit_code": self.rotate_exit,
            "evidence": self.evidence,
            "evidence_anchor": self.anchor,
        })
    }

    /// Seconds from the order to the last verified target, as the coordinator measured them.
    fn time_to_green(&self) -> Option<u64> {
        self.rotation["time_to_green_seconds"].as_u64()
    }

    /// Seconds from the order to the last connection that met a certificate of A.
    fn last_met(&self) -> Option<f64> {
        let of_a = |seen: &probe::Seen| seen.issuers.get(&self.compromised).map(|met| met.last);
        let last = self.tally.values().filter_map(of_a).max()?;
        let seconds = last.saturating_duration_since(self.ordered_at).as_secs_f64();
        Some((seconds * 10.0).round() / 10.0)
    }

    /// Every relying party refuses the compromised issuer, proved from outside too.
    fn contained(&self) -> bool {
        let proved = |verdict: &Verdict| !verdict.accepts && verdict.control;
        self.rotation["contained"] == true && !self.verdicts.is_empty() && self.verdicts.iter().all(proved)
    }

    /// As text, for people.
    pub(super) fn print(&self, screen: &Screen) {
        let (attempted, failed) = probe::totals(&self.tally);
        screen.heading("Summary, as seen from outside");
        screen.print("");
        let clean = self.served.iter().filter(|seen| seen.authority == "b").count();
        screen.fact(
            "Hosts",
            Tone::Plain,
            &self.hosts.to_string(),
            &format!("with {} service containers", self.containers),
        );
        screen.fact(
            "Certificates",
            tone(self.verified() == self.certificates),
            &format!("{} of {}", self.verified(), self.certificates),
            "replaced with new keys and verified",
        );
        screen.fact(
            "Endpoints",
            tone(clean == self.served.len() && self.replaced()),
            &format!("{clean} of {}", self.served.len()),
            "serve a chain through B, checked with openssl",
        );
        let green = self.time_to_green().map_or("not reached".to_owned(), |s| format!("{s} s"));
        let met = self.last_met().map_or(String::new(), |seconds| {
            format!("the last client to meet a certificate of A met it {seconds} s after the order")
        });
        screen.fact("Time to green", Tone::Plain, &green, &met);
        screen.fact(
            "Connections",
            tone(failed == 0 && attempted > 0),
            &format!("{failed} failed"),
            &format!("of {attempted} opened by clients during the rotation"),
        );
        self.print_failures(screen);
        screen.print("");
        let word = if self.replaced() { "yes" } else { "no" };
        screen.fact("Replaced", tone(self.replaced()), word, "");
        for seen in self.served.iter().filter(|seen| !seen.good || seen.authority != "b") {
            screen.detail(&format!(
                "{} serves a chain through {}, in good order: {}",
                seen.name, seen.authority, seen.good
            ));
        }
        let contained = if self.contained() { (Tone::Good, "yes") } else { (Tone::Warn, "no") };
        screen.fact("Contained", contained.0, contained.1, "");
        self.print_containment(screen);
        screen.print("");
        screen.fact("Evidence", Tone::Plain, &self.evidence.display().to_string(), "");
        screen.detail(&format!("verified offline against anchor {}", self.anchor));
        screen.print("");
    }

    fn print_failures(&self, screen: &Screen) {
        for (service, seen) in &self.tally {
            if let Some((_, reason)) = seen.reasons.first() {
                screen.detail(&format!("{service}: {} failed, the first: {reason}", seen.failed));
            }
        }
    }

    fn print_containment(&self, screen: &Screen) {
        for verdict in &self.verdicts {
            let said = match (verdict.accepts, verdict.control) {
                (true, _) => "still accepts",
                (false, true) => "refuses",
                (false, false) => "refuses every client certificate, so nothing is proved about",
            };
            screen.detail(&format!(
                "{} {said} a client certificate stolen under A (HTTP {})",
                verdict.name, verdict.status
            ));
        }
        if self.verdicts.is_empty() {
            screen.detail("no relying party was tried with a certificate of A");
        }
        if self.contained() {
            return;
        }
        screen.detail("Relying parties trust the root above A and B. Until each of them distrusts A,");
        screen.detail("whoever holds A's key can still be believed: replaced is not contained.");
    }
}

fn tone(good: bool) -> Tone {
    if good { Tone::Good } else { Tone::Bad }
}
