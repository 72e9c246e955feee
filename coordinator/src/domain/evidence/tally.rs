//! The numbers of an evidence file, counted from what the agents signed.
//!
//! The server counts with [`summarise`] when it seals, the verifier counts
//! again: a file whose numbers are not its proofs' is refused.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use reseal_proto::v1::{self, EvidencePayload, Grade, TargetState};
use serde::{Deserialize, Serialize};

use super::{BatchRecord, Residual};
use crate::domain::target;

/// Every target in exactly one of the states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Hosts with a target.
    pub hosts: u64,
    /// Batches with a result.
    pub batches: u64,
    /// Targets in all.
    pub targets: u64,
    /// Proved under the new issuer.
    pub verified: u64,
    /// Installed, nobody there to prove it.
    pub unserved: u64,
    /// Failed, rolled back or held.
    pub failed: u64,
    /// Without a session when ordered.
    pub stragglers: u64,
    /// Without a result.
    pub pending: u64,
    /// Taken out by an operator: not replaced.
    pub excluded: u64,
    /// Endpoints at which a verified target's new certificate was served.
    pub endpoints: u64,
    /// Fresh handshakes that showed it.
    pub handshakes: u64,
    /// Verified targets by how strong their proof is.
    pub grades: Grades,
}

/// Verified targets by how strong their proof is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grades {
    /// The peer's own log or session list showed it.
    pub peer_observed: u64,
    /// A fresh handshake showed it.
    pub probe: u64,
    /// The consumer reloaded without an error.
    pub reload_observed: u64,
    /// Only the bytes on disk were compared.
    pub file_only: u64,
    /// Not said.
    pub unknown: u64,
}

/// What cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum TallyError {
    /// The payload is no protobuf message.
    #[error("the payload of batch {batch} of host {host} cannot be read")]
    Payload {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// The countersignature is no protobuf message.
    #[error("the countersignature of batch {batch} of host {host} cannot be read")]
    Countersignature {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// One host reports one batch twice.
    #[error("batch {batch} of host {host} is in the file twice")]
    Twice {
        /// The host.
        host: String,
        /// The batch.
        batch: String,
    },
    /// A target stands in two lists of residual risk, or twice in one.
    #[error("target {installation} of host {host} is listed twice as residual risk")]
    ListedTwice {
        /// The host.
        host: String,
        /// The installation.
        installation: String,
    },
    /// A target is listed as better than its proof.
    #[error("target {installation} of host {host} is listed as {listed}, which is better than its proof")]
    Listed {
        /// The host.
        host: String,
        /// The installation.
        installation: String,
        /// "unserved", "failed" ...
        listed: &'static str,
    },
    /// A target that is not proved is not named.
    #[error("target {installation} of host {host} is {state} but is not listed as residual risk")]
    Unlisted {
        /// The host.
        host: String,
        /// The installation.
        installation: String,
        /// "unserved" or "failed".
        state: &'static str,
    },
}

/// A batch with its messages read.
pub(super) struct Read<'a> {
    pub(super) record: &'a BatchRecord,
    pub(super) payload: EvidencePayload,
    pub(super) countersignature: v1::Countersignature,
}

/// Reads the messages of all batches.
pub(super) fn read(batches: &[BatchRecord]) -> Result<Vec<Read<'_>>, TallyError> {
    let mut seen = BTreeSet::new();
    batches
        .iter()
        .map(|record| {
            let (host, batch) = (record.host.clone(), record.batch.clone());
            if !seen.insert((&record.host, &record.batch)) {
                return Err(TallyError::Twice { host, batch });
            }
            let payload = EvidencePayload::decode(record.payload.0.as_slice())
                .map_err(|source| TallyError::Payload { host: host.clone(), batch: batch.clone(), source })?;
            let countersignature = v1::Countersignature::decode(record.countersignature.0.as_slice())
                .map_err(|source| TallyError::Countersignature { host, batch, source })?;
            Ok(Read { record, payload, countersignature })
        })
        .collect()
}

/// What the proofs add up to.
pub(super) struct Tally<'a> {
    pub(super) summary: Summary,
    /// The proof of each verified target, and the batch it came in.
    pub(super) verified: BTreeMap<Key<'a>, Proof<'a>>,
    /// Results that a later result of the same target replaced.
    pub(super) superseded: u64,
    /// Targets that the residual lists rate worse than their agent did.
    pub(super) doubted: u64,
}

/// Host and installation.
pub(super) type Key<'a> = (&'a str, &'a str);
/// A target's proof, in its batch.
pub(super) type Proof<'a> = (&'a Read<'a>, &'a v1::TargetProof);

/// Counts; refuses a residual list that makes a target look better than its proof.
///
/// A target that was tried again counts by its newest result. The lists may
/// rate a target worse than its agent did (a straggler that was verified once,
/// a claim the coordinator did not believe), never better.
pub fn summarise(batches: &[BatchRecord], residual: &Residual) -> Result<Summary, TallyError> {
    Ok(count(&read(batches)?, residual)?.summary)
}

pub(super) fn count<'a>(batches: &'a [Read<'a>], residual: &'a Residual) -> Result<Tally<'a>, TallyError> {
    let (newest, results) = newest(batches);
    let superseded = results - newest.len() as u64;
    let listed = listed(residual)?;
    let keys: BTreeSet<Key<'_>> = newest.keys().chain(listed.keys()).copied().collect();
    let hosts: BTreeSet<&str> = keys.iter().map(|(host, _)| *host).collect();
    let mut summary = Summary {
        hosts: hosts.len() as u64,
        batches: batches.len() as u64,
        targets: keys.len() as u64,
        ..Summary::default()
    };
    let (mut verified, mut doubted) = (BTreeMap::new(), 0);
    for key in keys {
        let proof = newest.get(&key).copied();
        let shown = proof.map(|(_, target)| Outcome::of(target.state()));
        let outcome = match (shown, listed.get(&key).copied()) {
            (None, None) => continue,
            (None, Some(listed)) => listed,
            (Some(Outcome::Verified), None) => Outcome::Verified,
            (Some(shown), None) => return Err(unlisted(key, shown)),
            (Some(shown), Some(listed)) if listed < shown => {
                return Err(listed_wrongly(key, listed));
            }
            (Some(shown), Some(listed)) => {
                doubted += u64::from(listed != shown && !listed.is_open());
                listed
            }
        };
        match outcome {
            Outcome::Verified => {
                if let Some((batch, target)) = proof {
                    summary.prove(target);
                    verified.insert(key, (batch, target));
                }
            }
            Outcome::Unserved => summary.unserved += 1,
            Outcome::Failed => summary.failed += 1,
            Outcome::Straggler => summary.stragglers += 1,
            Outcome::Pending => summary.pending += 1,
            Outcome::Excluded => summary.excluded += 1,
        }
    }
    Ok(Tally { summary, verified, superseded, doubted })
}

/// The newest result of each target, and how many results there are.
fn newest<'a>(batches: &'a [Read<'a>]) -> (BTreeMap<Key<'a>, Proof<'a>>, u64) {
    let mut newest: BTreeMap<Key<'a>, Proof<'a>> = BTreeMap::new();
    let mut results = 0;
    for batch in batches {
        for proof in &batch.payload.targets {
            results += 1;
            let key = (batch.record.host.as_str(), proof.installation.as_str());
            // By the order's number, which no clock has a say in: a result that was sent again
            // late is not newer work, and one under a clock that was put back is not older.
            let at = |read: &Read<'_>| {
                (target::batch_number(&read.record.batch), read.countersignature.received_at)
            };
            if newest.get(&key).is_none_or(|(before, _)| at(before) <= at(batch)) {
                newest.insert(key, (batch, proof));
            }
        }
    }
    (newest, results)
}

/// How a target counts, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Verified,
    Unserved,
    Failed,
    Straggler,
    Pending,
    Excluded,
}

impl Outcome {
    fn of(state: TargetState) -> Self {
        match state {
            TargetState::Verified => Self::Verified,
            TargetState::Unserved => Self::Unserved,
            // Whatever else a finished batch reports is no success.
            TargetState::Failed
            | TargetState::RolledBack
            | TargetState::Held
            | TargetState::Unspecified
            | TargetState::Pending
            | TargetState::Ordered
            | TargetState::Requested
            | TargetState::Issued
            | TargetState::Installed
            | TargetState::Reloaded
            | TargetState::Straggler
            | TargetState::Excluded => Self::Failed,
        }
    }

    /// Waiting for another try, or taken out: an older result says nothing against it.
    fn is_open(self) -> bool {
        match self {
            Self::Straggler | Self::Pending | Self::Excluded => true,
            Self::Verified | Self::Unserved | Self::Failed => false,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unserved => "unserved",
            Self::Failed => "failed",
            Self::Straggler => "a straggler",
            Self::Pending => "pending",
            Self::Excluded => "excluded",
        }
    }
}

/// The residual lists as one, each target once.
fn listed(residual: &Residual) -> Result<BTreeMap<Key<'_>, Outcome>, TallyError> {
    let lists = [
        (Outcome::Unserved, &residual.unserved),
        (Outcome::Failed, &residual.failed),
        (Outcome::Straggler, &residual.stragglers),
        (Outcome::Pending, &residual.pending),
        (Outcome::Excluded, &residual.excluded),
    ];
    let mut all = BTreeMap::new();
    for (outcome, row) in lists.iter().flat_map(|(outcome, rows)| rows.iter().map(move |row| (*outcome, row)))
    {
        let key = (row.host.as_str(), row.installation.as_str());
        if all.insert(key, outcome).is_some() {
            return Err(TallyError::ListedTwice {
                host: row.host.clone(),
                installation: row.installation.clone(),
            });
        }
    }
    Ok(all)
}

impl Summary {
    fn prove(&mut self, target: &v1::TargetProof) {
        self.verified += 1;
        self.endpoints += target.endpoints.len() as u64;
        self.handshakes += target.endpoints.iter().map(|e| u64::from(e.handshakes)).sum::<u64>();
        let grade = match target.grade() {
            // Nothing was probed: the word alone is no proof.
            Grade::Probe if target.endpoints.is_empty() => Grade::Unknown,
            grade => grade,
        };
        *self.grades.of(grade) += 1;
    }
}

impl Grades {
    fn of(&mut self, grade: Grade) -> &mut u64 {
        match grade {
            Grade::PeerObserved => &mut self.peer_observed,
            Grade::Probe => &mut self.probe,
            Grade::ReloadObserved => &mut self.reload_observed,
            Grade::FileOnly => &mut self.file_only,
            Grade::Unknown => &mut self.unknown,
        }
    }
}

fn unlisted(key: Key<'_>, outcome: Outcome) -> TallyError {
    TallyError::Unlisted { host: key.0.to_owned(), installation: key.1.to_owned(), state: outcome.word() }
}

fn listed_wrongly(key: Key<'_>, listed: Outcome) -> TallyError {
    TallyError::Listed { host: key.0.to_owned(), installation: key.1.to_owned(), listed: listed.word() }
}
