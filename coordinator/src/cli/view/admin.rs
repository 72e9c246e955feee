//! The fleet's administration: status, operators, policies, authorities, bundles, audit.

use std::collections::BTreeMap;

use reseal_proto::{facts, v1};
use serde::Serialize;

use super::{hex, text, usage};
use crate::cli::when::rfc3339;

/// The fleet at a glance.
#[derive(Serialize)]
pub(crate) struct StatusView {
    pub(crate) fleet: String,
    pub(crate) version: String,
    pub(crate) epoch: u64,
    pub(crate) hosts: u32,
    pub(crate) hosts_connected: u32,
    pub(crate) installations: u32,
    pub(crate) discovered: u32,
    pub(crate) rotations_running: u32,
    pub(crate) anchor: Option<String>,
    pub(crate) operator: String,
    pub(crate) role: String,
}

impl From<v1::StatusReply> for StatusView {
    fn from(reply: v1::StatusReply) -> Self {
        Self {
            anchor: hex(&reply.anchor),
            fleet: reply.fleet,
            version: reply.version,
            epoch: reply.epoch,
            hosts: reply.hosts,
            hosts_connected: reply.hosts_connected,
            installations: reply.installations,
            discovered: reply.discovered,
            rotations_running: reply.rotations_running,
            operator: reply.operator,
            role: reply.role,
        }
    }
}

/// An operator.
#[derive(Serialize)]
pub(crate) struct OperatorView {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) added_at: Option<String>,
    #[serde(skip)]
    pub(crate) added_seconds: i64,
    pub(crate) expires_at: Option<String>,
    #[serde(skip)]
    pub(crate) expires_seconds: i64,
}

impl From<v1::OperatorRow> for OperatorView {
    fn from(row: v1::OperatorRow) -> Self {
        Self {
            added_at: rfc3339(row.added_at),
            added_seconds: row.added_at,
            expires_at: rfc3339(row.expires_at),
            expires_seconds: row.expires_at,
            name: row.name,
            role: row.role,
        }
    }
}

/// A policy.
#[derive(Serialize)]
pub(crate) struct PolicyView {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) host_labels: BTreeMap<String, String>,
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) key_types: Vec<String>,
    pub(crate) usages: Vec<&'static str>,
    pub(crate) lifetime_seconds: u64,
    pub(crate) wildcards: bool,
}

impl From<v1::Policy> for PolicyView {
    fn from(policy: v1::Policy) -> Self {
        Self {
            usages: policy.usages().map(usage).collect(),
            name: policy.name,
            hosts: policy.hosts,
            host_labels: policy.host_labels,
            names: policy.names,
            addresses: policy.addresses,
            key_types: policy.key_types,
            lifetime_seconds: policy.lifetime_seconds,
            wildcards: policy.wildcards,
        }
    }
}

/// What a policy check said.
#[derive(Serialize)]
pub(crate) struct PolicyCheckView {
    pub(crate) admitted: bool,
    pub(crate) policy: Option<String>,
    pub(crate) lifetime_seconds: Option<u64>,
    pub(crate) explanation: Vec<String>,
}

impl From<v1::CheckPolicyReply> for PolicyCheckView {
    fn from(reply: v1::CheckPolicyReply) -> Self {
        Self {
            admitted: reply.admitted,
            policy: text(&reply.policy),
            lifetime_seconds: reply.admitted.then_some(reply.lifetime_seconds),
            explanation: reply.explanation,
        }
    }
}

/// A CA certificate and key slot.
#[derive(Clone, Serialize)]
pub(crate) struct AuthorityView {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) subject: String,
    pub(crate) fingerprint: Option<String>,
    pub(crate) subject_key_id: Option<String>,
    pub(crate) spki_sha256: Option<String>,
    pub(crate) not_after: Option<String>,
    pub(crate) installations: u32,
    /// Of these: nobody looks after them.
    pub(crate) unmanaged: u32,
    pub(crate) reason: Option<String>,
    #[serde(skip)]
    pub(crate) not_after_seconds: i64,
}

impl From<v1::AuthorityInfo> for AuthorityView {
    fn from(info: v1::AuthorityInfo) -> Self {
        Self {
            fingerprint: hex(&info.fingerprint),
            subject_key_id: hex(&info.subject_key_id),
            spki_sha256: hex(&info.spki_sha256),
            not_after: rfc3339(info.not_after),
            not_after_seconds: info.not_after,
            reason: text(&info.reason),
            name: info.name,
            state: info.state,
            subject: info.subject,
            installations: info.installations,
            unmanaged: info.unmanaged,
        }
    }
}

/// A named set of CA certificates.
#[derive(Serialize)]
pub(crate) struct BundleView {
    pub(crate) name: String,
    pub(crate) certificates: Vec<BundleCertificateView>,
}

/// One certificate of a bundle.
#[derive(Serialize)]
pub(crate) struct BundleCertificateView {
    pub(crate) fingerprint: String,
    pub(crate) subject: Option<String>,
    pub(crate) not_after: Option<String>,
    pub(crate) pem: String,
}

impl From<v1::TrustBundle> for BundleView {
    fn from(bundle: v1::TrustBundle) -> Self {
        let certificates = bundle.certificates.iter().map(|der| {
            let facts = facts::of_chain(der, []).ok();
            BundleCertificateView {
                fingerprint: ::hex::encode(facts::sha256(der)),
                subject: facts.as_ref().map(|facts| facts.subject.clone()),
                not_after: facts.and_then(|facts| rfc3339(facts.not_after)),
                pem: crate::cli::credentials::pem("CERTIFICATE", der),
            }
        });
        Self { certificates: certificates.collect(), name: bundle.name }
    }
}

/// One entry of the audit log.
#[derive(Serialize)]
pub(crate) struct AuditView {
    pub(crate) chain: String,
    pub(crate) sequence: u64,
    pub(crate) at: Option<String>,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) object: String,
    pub(crate) outcome: String,
    pub(crate) detail: String,
    pub(crate) previous: Option<String>,
    pub(crate) hash: Option<String>,
    #[serde(skip)]
    pub(crate) at_seconds: i64,
}

impl From<v1::AuditEntry> for AuditView {
    fn from(entry: v1::AuditEntry) -> Self {
        Self {
            at: rfc3339(entry.at),
            at_seconds: entry.at,
            previous: hex(&entry.previous),
            hash: hex(&entry.hash),
            chain: entry.chain,
            sequence: entry.sequence,
            actor: entry.actor,
            action: entry.action,
            object: entry.object,
            outcome: entry.outcome,
            detail: entry.detail,
        }
    }
}
