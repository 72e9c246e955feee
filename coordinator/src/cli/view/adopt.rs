//! What adopting a certificate means, and what became of it.

use reseal_proto::v1::{self, AdoptOutcome, Management};
use serde::Serialize;

use super::InstallationView;
use crate::cli::when::rfc3339;

/// A certificate of a host, before it is adopted or after.
#[derive(Serialize)]
pub(crate) struct AdoptView {
    pub(crate) host: String,
    pub(crate) connected: bool,
    pub(crate) management: &'static str,
    pub(crate) installation: InstallationView,
    pub(crate) decisions: Vec<DecisionView>,
    pub(crate) obstacles: Vec<String>,
    pub(crate) policy: Option<PolicyJudgementView>,
    /// "adopted", "released"; null when nothing was done.
    pub(crate) outcome: Option<&'static str>,
    pub(crate) renewal_at: Option<String>,
    #[serde(skip)]
    pub(crate) renewal_seconds: i64,
}

/// One decision of the inference.
#[derive(Serialize)]
pub(crate) struct DecisionView {
    /// "names", "reload" ...
    pub(crate) what: String,
    /// The decision, with its reason.
    pub(crate) decision: String,
}

/// Would what it needs be issued?
#[derive(Serialize)]
pub(crate) struct PolicyJudgementView {
    pub(crate) admitted: bool,
    pub(crate) policy: Option<String>,
    pub(crate) explanation: Vec<String>,
}

impl AdoptView {
    /// Of a coordinator's answer.
    pub(crate) fn new(host: &str, reply: v1::AdoptReply) -> Self {
        let installation = reply.installation.clone().unwrap_or_default();
        let inference = installation.inference.clone().unwrap_or_default();
        Self {
            host: host.to_owned(),
            connected: reply.connected,
            management: management(installation.management()),
            decisions: inference.decisions.iter().map(|line| DecisionView::of(line)).collect(),
            obstacles: inference.obstacles,
            outcome: match reply.outcome() {
                AdoptOutcome::Adopted => Some("adopted"),
                AdoptOutcome::Released => Some("released"),
                AdoptOutcome::Unspecified
                | AdoptOutcome::NotAllowed
                | AdoptOutcome::Unknown
                | AdoptOutcome::Declared
                | AdoptOutcome::Obstacles
                | AdoptOutcome::Failed => None,
            },
            policy: reply.policy.map(|policy| PolicyJudgementView {
                admitted: policy.admitted,
                policy: super::text(&policy.policy),
                explanation: policy.explanation,
            }),
            renewal_at: rfc3339(reply.renewal_at),
            renewal_seconds: reply.renewal_at,
            installation: installation.into(),
        }
    }
}

impl DecisionView {
    fn of(line: &str) -> Self {
        let (what, decision) = line.split_once(": ").unwrap_or(("", line));
        Self { what: what.to_owned(), decision: decision.to_owned() }
    }
}

/// The stable word of who looks after an installation.
fn management(management: Management) -> &'static str {
    match management {
        Management::Labels => "labels",
        Management::Configuration => "configuration",
        Management::Adopted => "adopted",
        Management::Discovered => "discovered",
    }
}
