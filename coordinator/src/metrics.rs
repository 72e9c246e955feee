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

use crate::store::record::Batch;
use crate::view::View;

/// All metrics of one coordinator. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Open agent sessions.
    pub sessions: Gauge,
    /// Enrolments that were refused.
    pub enrolments_refused: Counter,
    issuance_seconds: Histogram,
    certificates: Family<ResultLabel, Counter>,
    targets: Family<StateLabel, Counter>,
    hosts: Gauge,
    installations: Gauge,
    rotations: Gauge,
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
const ENDS: [&str; 5] = ["verified", "unserved", "failed", "rolled-back", "held"];

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
        registry.register("targets", "Targets that reached an end, by state", targets.clone());
        Self {
            sessions,
            enrolments_refused,
            issuance_seconds,
            certificates,
            targets,
            hosts,
            installations,
            rotations,
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

    /// Counts the ends of a batch.
    pub fn finished(&self, batch: &Batch) {
        for target in &batch.targets {
            let state = match target.state() {
                TargetState::Verified => "verified",
                TargetState::Unserved => "unserved",
                TargetState::Failed => "failed",
                TargetState::RolledBack => "rolled-back",
                TargetState::Held => "held",
                TargetState::Unspecified
                | TargetState::Pending
                | TargetState::Ordered
                | TargetState::Requested
                | TargetState::Issued
                | TargetState::Installed
                | TargetState::Reloaded
                | TargetState::Straggler
                | TargetState::Excluded => continue,
            };
            self.targets.get_or_create(&StateLabel { state }).inc();
        }
    }

    /// Everything, in the OpenMetrics text format.
    pub fn render(&self, view: &View) -> String {
        {
            let state = view.read();
            let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            self.hosts.set(number(state.hosts.values().filter(|host| host.state.is_some()).count()));
            self.installations.set(state.hosts.values().map(|host| i64::from(host.installations)).sum());
            let running = state.rotations.values().filter(|rotation| {
                rotation.revision != 0 && !crate::domain::rotation::is_end(rotation.state)
            });
            self.rotations.set(number(running.count()));
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
