//! Prometheus metrics: registered once, counters from zero, labels are enums.
//!
//! Every metric is in `docs/METRICS.md`. Gauges over the fleet are set from the
//! projection when they are asked for; nothing is counted twice.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use reseal_proto::v1::{Chains, TargetState};

use crate::store::record::{Batch, Target};
use crate::view::View;

/// All metrics of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Open agent sessions.
    pub sessions: Gauge,
    /// Enrolments that were refused.
    pub enrolments_refused: Counter,
    /// Agent sessions that were refused, at their start or for what the agent sent.
    pub sessions_refused: Counter,
    issuance_seconds: Histogram,
    certificates: Family<ResultLabel, Counter>,
    targets: Family<StateLabel, Counter>,
    hosts: Gauge,
    installations: Gauge,
    rotations: Gauge,
    unserved: Gauge,
    next_due: Gauge,
    registry: Arc<Registry>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// What became of a CSR; the only values of the label `result`.
const RESULTS: [&str; 3] = ["issued", "refused", "failed"];
/// How a target ended; the only values of the label `state`.
const ENDS: [&str; 6] = ["verified", "failed", "rolled-back", "held", "no-result", "result-refused"];

/// How each target of a batch has ended, if it has. An unserved one waits for its
/// proof, an excluded one for another try: neither is an end here, so that each
/// target is counted once.
pub fn ends(batch: &Batch) -> Vec<Option<&'static str>> {
    let end = |target: &Target| match target.state() {
        TargetState::Verified => Some("verified"),
        TargetState::Failed => Some(match target.failure.as_ref().map(|failure| failure.code.as_str()) {
            Some("no-result") => "no-result",
            Some("result-refused") => "result-refused",
            Some(_) | None => "failed",
        }),
        TargetState::RolledBack => Some("rolled-back"),
        TargetState::Held => Some("held"),
        TargetState::Unspecified
        | TargetState::Pending
        | TargetState::Ordered
        | TargetState::Requested
        | TargetState::Issued
        | TargetState::Installed
        | TargetState::Reloaded
        | TargetState::Unserved
        | TargetState::Straggler
        | TargetState::Excluded => None,
    };
    batch.targets.iter().map(end).collect()
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("reseal");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let sessions = gauge("agent_sessions", "Open agent sessions");
        let hosts = gauge("hosts", "Hosts on record");
        let installations = gauge("installations", "Installations on record");
        let rotations = gauge("rotations_running", "Rotations that are not at an end");
        let next_due =
            gauge("next_renewal_timestamp_seconds", "When the next certificate is due for renewal");
        let enrolments_refused = Counter::default();
        registry.register("enrolments_refused", "Enrolments that were refused", enrolments_refused.clone());
        let sessions_refused = Counter::default();
        registry.register("sessions_refused", "Agent sessions that were refused", sessions_refused.clone());
        let issuance_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        registry.register_with_unit(
            "issuance",
            "Time from a message of CSRs to its chains",
            Unit::Seconds,
            issuance_seconds.clone(),
        );
        let certificates = Family::<ResultLabel, Counter>::default();
        for result in RESULTS {
            drop(certificates.get_or_create(&ResultLabel { result }));
        }
        registry.register("certificates", "CSRs answered, by result", certificates.clone());
        let targets = Family::<StateLabel, Counter>::default();
        for state in ENDS {
            drop(targets.get_or_create(&StateLabel { state }));
        }
        registry.register("targets", "Targets that ended, each once, by how", targets.clone());
        let unserved = Gauge::default();
        registry.register("targets_unserved", "Unserved targets of rotations that run", unserved.clone());
        Self {
            sessions,
            enrolments_refused,
            sessions_refused,
            issuance_seconds,
            certificates,
            targets,
            hosts,
            installations,
            rotations,
            unserved,
            next_due,
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// Counts one message of CSRs; `None`: nothing was issued.
    pub fn issued(&self, chains: Option<&Chains>, csrs: usize, took: Duration) {
        let count = |result, number: usize| {
            self.certificates.get_or_create(&ResultLabel { result }).inc_by(number as u64);
        };
        match chains {
            Some(chains) => {
                let refused = chains.issued.iter().filter(|issued| issued.refusal.is_some()).count();
                count("issued", chains.issued.len() - refused);
                count("refused", refused);
            }
            None => count("failed", csrs),
        }
        self.issuance_seconds.observe(took.as_secs_f64());
    }

    /// Counts the targets of a batch that ended since it was `before`, as [`ends`] gave it.
    pub fn finished(&self, before: &[Option<&'static str>], batch: &Batch) {
        for (was, is) in before.iter().zip(ends(batch)) {
            if let (None, Some(state)) = (was, is) {
                self.targets.get_or_create(&StateLabel { state }).inc();
            }
        }
    }

    /// Everything, in the OpenMetrics text format.
    pub fn render(&self, view: &View) -> String {
        {
            let state = view.read();
            let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            self.hosts.set(number(state.hosts.values().filter(|host| host.state.is_some()).count()));
            self.installations.set(state.hosts.values().map(|host| i64::from(host.installations)).sum());
            let running: Vec<_> = state.rotations.values().filter(|rotation| rotation.is_open()).collect();
            self.rotations.set(number(running.len()));
            let unserved = running.iter().flat_map(|rotation| rotation.batches.values());
            self.unserved.set(unserved.map(|batch| i64::from(batch.counts.of(TargetState::Unserved))).sum());
            let due = state.hosts.values().map(|host| host.next_due).filter(|due| *due != i64::MAX).min();
            self.next_due.set(due.unwrap_or(0));
        }
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            Err(error) => format!("# cannot encode: {error}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reseal_proto::v1::Failure;

    #[test]
    fn each_target_is_counted_once_by_how_it_ended() {
        let batch = |states: &[(TargetState, &str)]| Batch {
            targets: states
                .iter()
                .map(|(state, code)| Target {
                    state: (*state).into(),
                    failure: (!code.is_empty())
                        .then(|| Failure { code: (*code).into(), ..Failure::default() }),
                    ..Target::default()
                })
                .collect(),
            ..Batch::default()
        };
        use TargetState::*;
        let steps = [
            batch(&[(Pending, ""), (Pending, ""), (Pending, ""), (Pending, ""), (Pending, "")]),
            batch(&[(Verified, ""), (Unserved, ""), (Failed, "io"), (Failed, "no-result"), (Pending, "")]),
            // A result that comes again, later: one proof more, and the end of an end.
            batch(&[
                (Verified, ""),
                (Verified, ""),
                (RolledBack, "io"),
                (Failed, "no-result"),
                (Excluded, ""),
            ]),
            batch(&[
                (Verified, ""),
                (Verified, ""),
                (RolledBack, "io"),
                (Failed, "no-result"),
                (Failed, "result-refused"),
            ]),
        ];
        let metrics = Metrics::default();
        for pair in steps.windows(2) {
            metrics.finished(&ends(&pair[0]), &pair[1]);
        }
        let text = metrics.render(&View::default());
        for (state, number) in [
            ("verified", 2),
            ("failed", 1),
            ("no-result", 1),
            ("result-refused", 1),
            ("rolled-back", 0),
            ("held", 0),
        ] {
            let line = format!("reseal_targets_total{{state=\"{state}\"}} {number}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
