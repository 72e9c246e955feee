//! Plans and rotations.

use std::collections::BTreeMap;

use reseal_proto::v1::{self, TargetState};
use serde::Serialize;

use super::{AuthorityView, hex, on_failure, origin, rotation_state, stage, target_state, text};
use crate::cli::when::rfc3339;

/// The blast radius.
#[derive(Serialize)]
pub(crate) struct PlanView {
    pub(crate) compromised: Option<AuthorityView>,
    pub(crate) to_issuer: Option<AuthorityView>,
    pub(crate) targets: u32,
    pub(crate) containers: u32,
    pub(crate) endpoints: u32,
    pub(crate) hosts_offline: usize,
    pub(crate) waves: Vec<u32>,
    pub(crate) warnings: Vec<String>,
    pub(crate) conflicts: Vec<String>,
    pub(crate) relying_parties: Vec<RelyingPartyView>,
    pub(crate) unmanaged: u32,
    pub(crate) unmanaged_certificates: Vec<UnmanagedView>,
    pub(crate) hosts: Vec<PlanHostView>,
}

/// A host of the blast radius.
#[derive(Serialize)]
pub(crate) struct PlanHostView {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) last_seen: Option<String>,
    pub(crate) wave: u32,
    pub(crate) targets: Vec<PlanTargetView>,
    #[serde(skip)]
    pub(crate) last_seen_seconds: i64,
}

/// An installation of the blast radius.
#[derive(Serialize)]
pub(crate) struct PlanTargetView {
    pub(crate) installation: String,
    pub(crate) label: String,
    pub(crate) names: Vec<String>,
    pub(crate) containers: Vec<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) not_after: Option<String>,
    pub(crate) key_type: String,
}

impl From<v1::PlanReply> for PlanView {
    fn from(plan: v1::PlanReply) -> Self {
        let hosts: Vec<PlanHostView> = plan.hosts.into_iter().map(Into::into).collect();
        Self {
            compromised: plan.compromised.map(Into::into),
            to_issuer: plan.to_issuer.map(Into::into),
            targets: plan.targets,
            containers: plan.containers,
            endpoints: plan.endpoints,
            hosts_offline: hosts.iter().filter(|host| !host.connected).count(),
            waves: plan.waves,
            warnings: plan.warnings,
            conflicts: plan.conflicts,
            relying_parties: plan.relying_parties.into_iter().map(Into::into).collect(),
            unmanaged: plan.unmanaged,
            unmanaged_certificates: plan.unmanaged_certificates.into_iter().map(Into::into).collect(),
            hosts,
        }
    }
}

impl From<v1::PlanHost> for PlanHostView {
    fn from(host: v1::PlanHost) -> Self {
        Self {
            last_seen: rfc3339(host.last_seen),
            last_seen_seconds: host.last_seen,
            name: host.name,
            connected: host.connected,
            wave: host.wave,
            targets: host.targets.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::PlanTarget> for PlanTargetView {
    fn from(target: v1::PlanTarget) -> Self {
        Self {
            fingerprint: hex(&target.fingerprint),
            not_after: rfc3339(target.not_after),
            installation: target.installation,
            label: target.label,
            names: target.names,
            containers: target.containers,
            endpoints: target.endpoints,
            key_type: target.key_type,
        }
    }
}

/// A certificate that was discovered: nobody looks after it, and nothing replaces it.
#[derive(Clone, Serialize)]
pub(crate) struct UnmanagedView {
    pub(crate) host: String,
    pub(crate) installation: String,
    pub(crate) label: String,
    pub(crate) origin: &'static str,
    pub(crate) names: Vec<String>,
    pub(crate) containers: Vec<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) not_after: Option<String>,
    pub(crate) next: String,
}

impl From<v1::UnmanagedCertificate> for UnmanagedView {
    fn from(found: v1::UnmanagedCertificate) -> Self {
        Self {
            origin: origin(found.origin()),
            fingerprint: hex(&found.fingerprint),
            not_after: rfc3339(found.not_after),
            host: found.host,
            installation: found.installation,
            label: found.label,
            names: found.names,
            containers: found.containers,
            endpoints: found.endpoints,
            next: found.next,
        }
    }
}

/// Whoever decides whether to accept a certificate.
#[derive(Clone, Serialize)]
pub(crate) struct RelyingPartyView {
    pub(crate) host: String,
    pub(crate) container: String,
    pub(crate) bundle: String,
    /// "untested", "accepts" or "refuses".
    pub(crate) verdict: String,
}

impl From<v1::RelyingParty> for RelyingPartyView {
    fn from(party: v1::RelyingParty) -> Self {
        Self { host: party.host, container: party.container, bundle: party.bundle, verdict: party.verdict }
    }
}

/// A rotation.
#[derive(Clone, Serialize)]
pub(crate) struct RotationView {
    pub(crate) id: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) operator: String,
    pub(crate) compromised: Option<AuthorityView>,
    pub(crate) to_issuer: Option<AuthorityView>,
    pub(crate) created_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) deadline_at: Option<String>,
    pub(crate) green_at: Option<String>,
    pub(crate) time_to_green_seconds: Option<u64>,
    pub(crate) eta_seconds: Option<u64>,
    pub(crate) hosts: u32,
    pub(crate) containers: u32,
    pub(crate) endpoints: u32,
    pub(crate) targets: u32,
    /// Targets by state; a state without targets is left out.
    pub(crate) targets_by_state: BTreeMap<&'static str, u32>,
    pub(crate) verified_by_handshake: u32,
    pub(crate) wave: u32,
    pub(crate) waves: Vec<WaveView>,
    pub(crate) failures: Vec<TargetView>,
    pub(crate) stragglers: Vec<TargetView>,
    pub(crate) unserved: Vec<TargetView>,
    pub(crate) excluded: Vec<TargetView>,
    pub(crate) excluded_hosts: Vec<ExcludedHostView>,
    pub(crate) note: Option<String>,
    pub(crate) replaced: bool,
    pub(crate) contained: bool,
    pub(crate) relying_parties: Vec<RelyingPartyView>,
    /// Certificates of the compromised issuer that nobody looks after: not replaced.
    pub(crate) unmanaged: u32,
    pub(crate) unmanaged_certificates: Vec<UnmanagedView>,
    pub(crate) max_failures: String,
    pub(crate) on_failure: &'static str,
    #[serde(skip)]
    pub(crate) created_seconds: i64,
    #[serde(skip)]
    pub(crate) phase: v1::RotationState,
}

/// A host that an operator took out.
#[derive(Clone, Serialize)]
pub(crate) struct ExcludedHostView {
    pub(crate) host: String,
    pub(crate) reason: String,
    pub(crate) operator: String,
    pub(crate) at: Option<String>,
}

impl From<v1::ExcludedHost> for ExcludedHostView {
    fn from(excluded: v1::ExcludedHost) -> Self {
        Self {
            at: rfc3339(excluded.at),
            host: excluded.host,
            reason: excluded.reason,
            operator: excluded.operator,
        }
    }
}

/// Progress of one wave.
#[derive(Clone, Serialize)]
pub(crate) struct WaveView {
    pub(crate) hosts: u32,
    pub(crate) targets: u32,
    pub(crate) done: u32,
    pub(crate) failed: u32,
}

/// A target that needs a look.
#[derive(Clone, Serialize)]
pub(crate) struct TargetView {
    pub(crate) host: String,
    pub(crate) installation: String,
    pub(crate) label: String,
    pub(crate) state: &'static str,
    pub(crate) stage: Option<&'static str>,
    pub(crate) code: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) next: Option<String>,
}

impl From<v1::TargetRow> for TargetView {
    fn from(row: v1::TargetRow) -> Self {
        Self {
            state: target_state(row.state()),
            stage: row.failure.as_ref().map(|failure| stage(failure.stage())),
            code: row.failure.as_ref().and_then(|failure| text(&failure.code)),
            reason: row.failure.as_ref().and_then(|failure| text(&failure.reason)),
            next: text(&row.next),
            host: row.host,
            installation: row.installation,
            label: row.label,
        }
    }
}

impl From<v1::Rotation> for RotationView {
    fn from(rotation: v1::Rotation) -> Self {
        let mut targets_by_state = BTreeMap::new();
        for (state, count) in &rotation.targets {
            let state = i32::try_from(*state)
                .ok()
                .and_then(|state| TargetState::try_from(state).ok())
                .unwrap_or_default();
            if *count > 0 {
                *targets_by_state.entry(target_state(state)).or_insert(0u32) += count;
            }
        }
        let targets = targets_by_state.values().sum();
        let verified = targets_by_state.get("verified").copied().unwrap_or_default();
        Self {
            state: rotation_state(rotation.state()),
            phase: rotation.state(),
            on_failure: on_failure(rotation.on_failure()),
            compromised: rotation.compromised.map(Into::into),
            to_issuer: rotation.to_issuer.map(Into::into),
            created_at: rfc3339(rotation.created_at),
            ended_at: rfc3339(rotation.ended_at),
            deadline_at: rfc3339(rotation.deadline_at),
            green_at: rfc3339(rotation.green_at),
            time_to_green_seconds: (rotation.green_at > 0)
                .then(|| rotation.green_at.saturating_sub(rotation.created_at).max(0).unsigned_abs()),
            eta_seconds: rotation.eta_seconds.try_into().ok(),
            targets,
            targets_by_state,
            verified_by_handshake: rotation.verified_by_handshake,
            wave: rotation.wave,
            waves: rotation.waves.into_iter().map(Into::into).collect(),
            failures: rotation.failures.into_iter().map(Into::into).collect(),
            stragglers: rotation.stragglers.into_iter().map(Into::into).collect(),
            unserved: rotation.unserved.into_iter().map(Into::into).collect(),
            excluded: rotation.excluded.into_iter().map(Into::into).collect(),
            excluded_hosts: rotation.excluded_hosts.into_iter().map(Into::into).collect(),
            note: text(&rotation.note),
            replaced: targets > 0 && verified == targets,
            contained: rotation.contained,
            relying_parties: rotation.relying_parties.into_iter().map(Into::into).collect(),
            unmanaged: rotation.unmanaged,
            unmanaged_certificates: rotation.unmanaged_certificates.into_iter().map(Into::into).collect(),
            created_seconds: rotation.created_at,
            id: rotation.id,
            reason: rotation.reason,
            operator: rotation.operator,
            hosts: rotation.hosts,
            containers: rotation.containers,
            endpoints: rotation.endpoints,
            max_failures: rotation.max_failures,
        }
    }
}

impl From<v1::WaveProgress> for WaveView {
    fn from(wave: v1::WaveProgress) -> Self {
        Self { hosts: wave.hosts, targets: wave.targets, done: wave.done, failed: wave.failed }
    }
}

impl RotationView {
    /// Number of targets in any of these states.
    pub(crate) fn count(&self, states: &[TargetState]) -> u32 {
        states.iter().filter_map(|state| self.targets_by_state.get(target_state(*state))).sum()
    }

    /// Proved under the new issuer.
    pub(crate) fn verified(&self) -> u32 {
        self.count(&[TargetState::Verified])
    }

    /// Ended badly: failed, rolled back or held.
    pub(crate) fn failed(&self) -> u32 {
        self.count(&[TargetState::Failed, TargetState::RolledBack, TargetState::Held])
    }

    /// Being worked on right now.
    pub(crate) fn in_flight(&self) -> u32 {
        self.count(&[
            TargetState::Ordered,
            TargetState::Requested,
            TargetState::Issued,
            TargetState::Installed,
            TargetState::Reloaded,
        ])
    }

    /// Without a session when it was ordered.
    pub(crate) fn straggling(&self) -> u32 {
        self.count(&[TargetState::Straggler])
    }

    /// Taken out by an operator.
    pub(crate) fn left_out(&self) -> u32 {
        self.count(&[TargetState::Excluded])
    }

    /// Installed, with nobody to prove it.
    pub(crate) fn not_served(&self) -> u32 {
        self.count(&[TargetState::Unserved])
    }
}
