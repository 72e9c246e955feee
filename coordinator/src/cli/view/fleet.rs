//! Hosts and what is on them.

use std::collections::BTreeMap;

use reseal_proto::findings::{known, rank};
use reseal_proto::v1;
use serde::Serialize;

use super::{AuthorityView, hex, management, origin, text, usage};
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
    /// Discovered only: what adopting it would declare, or why it cannot be adopted.
    pub(crate) inference: Option<InferenceView>,
}

/// What adopting would declare.
#[derive(Serialize)]
pub(crate) struct InferenceView {
    pub(crate) decisions: Vec<String>,
    pub(crate) obstacles: Vec<String>,
}

impl From<v1::Inference> for InferenceView {
    fn from(inference: v1::Inference) -> Self {
        Self { decisions: inference.decisions, obstacles: inference.obstacles }
    }
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
            inference: installation.inference.map(Into::into),
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
    /// The program that was recognised.
    pub(crate) program: Option<String>,
}

impl From<v1::Consumer> for ConsumerView {
    fn from(consumer: v1::Consumer) -> Self {
        Self {
            container: consumer.container,
            container_id: consumer.container_id,
            image: consumer.image,
            running: consumer.running,
            reload: consumer.reload,
            program: text(&consumer.program),
        }
    }
}

/// An address that serves TLS.
#[derive(Serialize)]
pub(crate) struct EndpointView {
    pub(crate) address: String,
    pub(crate) sni: String,
    pub(crate) starttls: Option<String>,
    /// The container from whose network it is dialled.
    pub(crate) within: Option<String>,
    /// Fingerprint of what was last seen there.
    pub(crate) served: Option<String>,
}

impl EndpointView {
    /// "10.0.0.1:443", for people; with what is spoken before TLS.
    pub(crate) fn shown(&self) -> String {
        match &self.starttls {
            Some(protocol) => format!("{} ({protocol})", self.address),
            None => self.address.clone(),
        }
    }
}

impl From<v1::Endpoint> for EndpointView {
    fn from(endpoint: v1::Endpoint) -> Self {
        Self {
            starttls: text(&endpoint.starttls),
            within: text(&endpoint.within),
            served: hex(&endpoint.served),
            address: endpoint.address,
            sni: endpoint.sni,
        }
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
    pub(crate) not_before_seconds: i64,
    #[serde(skip)]
    pub(crate) not_after_seconds: i64,
}

impl CertificateView {
    /// The common name of its issuer, or all of the name when it has none.
    pub(crate) fn issuer_name(&self) -> &str {
        let parts = self.issuer.split(", ");
        parts.clone().find_map(|part| part.strip_prefix("CN=")).unwrap_or(&self.issuer)
    }
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
            not_before_seconds: facts.not_before,
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

    /// Names of what is there, or that are wanted there.
    pub(crate) fn names(&self) -> &[String] {
        match &self.installation.certificate {
            Some(certificate) if !certificate.names.is_empty() => &certificate.names,
            Some(_) | None => &self.installation.names,
        }
    }

    /// The authority, or the common name of a foreign issuer.
    pub(crate) fn issuer(&self) -> &str {
        let stated = self.installation.certificate.as_ref().map(CertificateView::issuer_name);
        self.authority.as_deref().or(stated).unwrap_or("-")
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
    /// What to do about findings of this kind.
    pub(crate) remedy: Option<&'static str>,
}

impl FindingView {
    /// A finding on a host.
    pub(crate) fn new(host: &str, finding: v1::Finding) -> Self {
        Self {
            host: host.to_owned(),
            severity: finding.severity,
            remedy: known(&finding.id).map(|known| known.remedy),
            object: finding.object,
            message: finding.message,
            id: finding.id,
        }
    }
}

impl From<v1::HostFinding> for FindingView {
    fn from(row: v1::HostFinding) -> Self {
        Self::new(&row.host, row.finding.unwrap_or_default())
    }
}

/// One certificate with everything on record about it.
#[derive(Serialize)]
pub(crate) struct CertificateDetailView {
    pub(crate) certificate: Option<CertificateView>,
    pub(crate) authority: Option<AuthorityView>,
    pub(crate) root: Option<AuthorityView>,
    /// Places in all.
    pub(crate) total: u32,
    pub(crate) places: Vec<CertificateRowView>,
    pub(crate) findings: Vec<FindingView>,
}

impl From<v1::ShowCertificateReply> for CertificateDetailView {
    fn from(reply: v1::ShowCertificateReply) -> Self {
        let first = reply.places.first().and_then(|row| row.installation.as_ref());
        Self {
            certificate: first.and_then(|installation| installation.certificate.clone()).map(Into::into),
            authority: reply.authority.map(Into::into),
            root: reply.root.map(Into::into),
            total: reply.total,
            places: reply.places.into_iter().map(Into::into).collect(),
            findings: reply.findings.into_iter().map(Into::into).collect(),
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
        let mut findings = reply.findings;
        findings.sort_by(|a, b| {
            (rank(&a.severity), &a.id, &a.object).cmp(&(rank(&b.severity), &b.id, &b.object))
        });
        Self {
            installations: reply.installations.into_iter().map(Into::into).collect(),
            findings: findings.into_iter().map(|finding| FindingView::new(&host.name, finding)).collect(),
            host,
        }
    }
}
