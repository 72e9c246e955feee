//! Hosts and what is on them.

use std::collections::BTreeMap;

use reseal_proto::v1;
use serde::Serialize;

use super::{hex, management, origin, text, usage};
use crate::cli::when::rfc3339;

/// A host.
#[derive(Serialize)]
pub(crate) struct HostView {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) connected: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) last_seen: Option<String>,
    pub(crate) enrolled_at: Option<String>,
    pub(crate) identity_expires_at: Option<String>,
    pub(crate) agent_version: Option<String>,
    pub(crate) clock_skew_seconds: i64,
    pub(crate) installations: u32,
    /// Of these: nobody looks after them.
    pub(crate) discovered: u32,
    pub(crate) findings: u32,
    pub(crate) ban_reason: Option<String>,
    #[serde(skip)]
    pub(crate) last_seen_seconds: i64,
    #[serde(skip)]
    pub(crate) identity_expires_seconds: i64,
}

impl From<v1::Host> for HostView {
    fn from(host: v1::Host) -> Self {
        Self {
            last_seen: rfc3339(host.last_seen),
            enrolled_at: rfc3339(host.enrolled_at),
            identity_expires_at: rfc3339(host.identity_expires_at),
            agent_version: text(&host.agent_version),
            ban_reason: text(&host.ban_reason),
            last_seen_seconds: host.last_seen,
            identity_expires_seconds: host.identity_expires_at,
            name: host.name,
            state: host.state,
            connected: host.connected,
            labels: host.labels,
            clock_skew_seconds: host.clock_skew,
            installations: host.installations,
            discovered: host.discovered,
            findings: host.findings,
        }
    }
}

/// A place where a certificate and its key live.
#[derive(Serialize)]
pub(crate) struct InstallationView {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) names: Vec<String>,
    pub(crate) usage: &'static str,
    pub(crate) key_type: String,
    pub(crate) issuer: String,
    pub(crate) layout: String,
    /// "labels", "configuration", "adopted"; "discovered": nobody looks after it.
    pub(crate) management: &'static str,
    /// "file", "image", "endpoint".
    pub(crate) origin: &'static str,
    pub(crate) consumers: Vec<ConsumerView>,
    pub(crate) endpoints: Vec<EndpointView>,
    pub(crate) certificate: Option<CertificateView>,
}

impl From<v1::Installation> for InstallationView {
    fn from(installation: v1::Installation) -> Self {
        Self {
            usage: usage(installation.usage()),
            management: management(installation.management()),
            origin: origin(installation.origin()),
            id: installation.id,
            label: installation.label,
            names: installation.names,
            key_type: installation.key_type,
            issuer: installation.issuer,
            layout: installation.layout,
            consumers: installation.consumers.into_iter().map(Into::into).collect(),
            endpoints: installation.endpoints.into_iter().map(Into::into).collect(),
            certificate: installation.certificate.map(Into::into),
        }
    }
}

/// A container that uses an installation.
#[derive(Serialize)]
pub(crate) struct ConsumerView {
    pub(crate) container: String,
    pub(crate) container_id: String,
    pub(crate) image: String,
    pub(crate) running: bool,
    pub(crate) reload: String,
}

impl From<v1::Consumer> for ConsumerView {
    fn from(consumer: v1::Consumer) -> Self {
        Self {
            container: consumer.container,
            container_id: consumer.container_id,
            image: consumer.image,
            running: consumer.running,
            reload: consumer.reload,
        }
    }
}

/// An address that serves TLS.
#[derive(Serialize)]
pub(crate) struct EndpointView {
    pub(crate) address: String,
    pub(crate) sni: String,
}

impl From<v1::Endpoint> for EndpointView {
    fn from(endpoint: v1::Endpoint) -> Self {
        Self { address: endpoint.address, sni: endpoint.sni }
    }
}

/// One X.509 certificate.
#[derive(Serialize)]
pub(crate) struct CertificateView {
    pub(crate) fingerprint: String,
    pub(crate) serial: String,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) names: Vec<String>,
    pub(crate) key_type: String,
    pub(crate) not_before: Option<String>,
    pub(crate) not_after: Option<String>,
    pub(crate) spki_sha256: Option<String>,
    pub(crate) authority_key_id: Option<String>,
    pub(crate) issuer_spki_sha256: Option<String>,
    #[serde(skip)]
    pub(crate) not_after_seconds: i64,
}

impl From<v1::CertificateFacts> for CertificateView {
    fn from(facts: v1::CertificateFacts) -> Self {
        Self {
            fingerprint: ::hex::encode(&facts.fingerprint),
            serial: ::hex::encode(&facts.serial),
            subject: facts.subject,
            issuer: facts.issuer,
            names: facts.names,
            key_type: facts.key_type,
            not_before: rfc3339(facts.not_before),
            not_after: rfc3339(facts.not_after),
            spki_sha256: hex(&facts.spki_sha256),
            authority_key_id: hex(&facts.authority_key_id),
            issuer_spki_sha256: hex(&facts.issuer_spki_sha256),
            not_after_seconds: facts.not_after,
        }
    }
}

/// An installation of the fleet with what the coordinator thinks of it.
#[derive(Serialize)]
pub(crate) struct CertificateRowView {
    pub(crate) host: String,
    pub(crate) status: String,
    pub(crate) authority: Option<String>,
    pub(crate) installation: InstallationView,
}

impl From<v1::CertificateRow> for CertificateRowView {
    fn from(row: v1::CertificateRow) -> Self {
        Self {
            host: row.host,
            status: row.status,
            authority: text(&row.authority),
            installation: row.installation.unwrap_or_default().into(),
        }
    }
}

impl CertificateRowView {
    /// The fingerprint of what is on disk.
    pub(crate) fn fingerprint(&self) -> Option<&str> {
        self.installation.certificate.as_ref().map(|certificate| certificate.fingerprint.as_str())
    }

    /// End of what is on disk, seconds since the Unix epoch; 0 when there is nothing.
    pub(crate) fn not_after(&self) -> i64 {
        self.installation.certificate.as_ref().map_or(0, |certificate| certificate.not_after_seconds)
    }
}

/// Something wrong that was observed.
#[derive(Serialize)]
pub(crate) struct FindingView {
    pub(crate) host: String,
    pub(crate) id: String,
    pub(crate) severity: String,
    pub(crate) object: String,
    pub(crate) message: String,
}

impl FindingView {
    /// A finding on a host.
    pub(crate) fn new(host: &str, finding: v1::Finding) -> Self {
        Self {
            host: host.to_owned(),
            id: finding.id,
            severity: finding.severity,
            object: finding.object,
            message: finding.message,
        }
    }
}

/// A host with everything on it.
#[derive(Serialize)]
pub(crate) struct HostDetailView {
    pub(crate) host: HostView,
    pub(crate) installations: Vec<InstallationView>,
    pub(crate) findings: Vec<FindingView>,
}

impl From<v1::ShowHostReply> for HostDetailView {
    fn from(reply: v1::ShowHostReply) -> Self {
        let host = HostView::from(reply.host.unwrap_or_default());
        Self {
            installations: reply.installations.into_iter().map(Into::into).collect(),
            findings: reply
                .findings
                .into_iter()
                .map(|finding| FindingView::new(&host.name, finding))
                .collect(),
            host,
        }
    }
}
