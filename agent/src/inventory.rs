//! What the coordinator is told about this host, and the difference since.
//!
//! The digest is SHA-256 over the encoded installations in order of their id,
//! each preceded by its length (u32, big-endian), then findings and trust stores likewise.
//! Bounded: 2,000 installations, 100 findings, one MiB; what is beyond is left
//! out and a finding says so. Pure.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message;
use reseal_proto::v1::{self, Finding, InventoryDelta, TrustStore};

use crate::discover::{Host, Installation, TrustTarget, finding};

/// Findings of one host that are reported.
pub const MAX_FINDINGS: usize = 100;
/// An encoded delta stays below one MiB; this much is left for its other fields.
const MAX_BYTES: usize = 1024 * 1024 - 128 * 1024;
const MOST_CONSUMERS: usize = 50;
const MOST_TRUST_STORES: usize = 200;
const MOST_ENDPOINTS: usize = 50;

/// The whole inventory at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// See the module.
    pub digest: Vec<u8>,
    /// By id.
    pub installations: BTreeMap<String, v1::Installation>,
    /// Sorted.
    pub findings: Vec<Finding>,
    /// By path.
    pub trust_stores: Vec<TrustStore>,
}

impl Report {
    /// Of what was found.
    pub fn of(host: &Host) -> Self {
        let mut installations = BTreeMap::new();
        let mut bytes = 0;
        let mut left_out = 0;
        for (id, installation) in &host.installations {
            let message = message(installation);
            bytes += message.encoded_len() + 8;
            if bytes > MAX_BYTES {
                left_out += 1;
            } else {
                installations.insert(id.clone(), message);
            }
        }
        let mut findings = host.findings.clone();
        let mut too_many = |what: String| {
            findings.insert(0, finding("too-many", "host", &what, "critical"));
        };
        if left_out > 0 {
            too_many(format!(
                "{left_out} installations are not reported: the inventory would exceed one MiB"
            ));
        }
        if host.findings.len() > MAX_FINDINGS {
            too_many(format!(
                "{} findings were made, the first {MAX_FINDINGS} are reported",
                host.findings.len()
            ));
        }
        findings.truncate(MAX_FINDINGS);
        findings.sort_by(|a, b| (&a.id, &a.object, &a.message).cmp(&(&b.id, &b.object, &b.message)));
        let trust_stores: Vec<TrustStore> =
            host.trusts.iter().take(MOST_TRUST_STORES).map(trust_store).collect();
        let digest = digest(&installations, &findings, &trust_stores);
        Self { digest, installations, findings, trust_stores }
    }

    /// What changed since `base`; everything when there is none.
    pub fn delta(&self, base: Option<&Self>) -> InventoryDelta {
        let Some(base) = base else {
            return InventoryDelta {
                base_digest: Vec::new(),
                digest: self.digest.clone(),
                upserted: self.installations.values().cloned().collect(),
                removed: Vec::new(),
                findings: self.findings.clone(),
                trust_stores: self.trust_stores.clone(),
            };
        };
        let upserted = self
            .installations
            .iter()
            .filter(|(id, installation)| base.installations.get(*id) != Some(installation))
            .map(|(_, installation)| installation.clone())
            .collect();
        let removed =
            base.installations.keys().filter(|id| !self.installations.contains_key(*id)).cloned().collect();
        InventoryDelta {
            base_digest: base.digest.clone(),
            digest: self.digest.clone(),
            upserted,
            removed,
            findings: self.findings.clone(),
            trust_stores: self.trust_stores.clone(),
        }
    }
}

fn digest(
    installations: &BTreeMap<String, v1::Installation>,
    findings: &[Finding],
    trust_stores: &[TrustStore],
) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    let mut add = |bytes: Vec<u8>| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        context.update(&length.to_be_bytes());
        context.update(&bytes);
    };
    for installation in installations.values() {
        add(installation.encode_to_vec());
    }
    for found in findings {
        add(found.encode_to_vec());
    }
    for store in trust_stores {
        add(store.encode_to_vec());
    }
    context.finish().as_ref().to_vec()
}

fn trust_store(target: &TrustTarget) -> TrustStore {
    let containers = target.consumers.iter().take(MOST_CONSUMERS).map(|consumer| consumer.container.clone());
    TrustStore { path: target.place.id(), bundle: target.bundle.clone(), containers: containers.collect() }
}

/// An installation as a message.
pub fn message(installation: &Installation) -> v1::Installation {
    let mut endpoints: Vec<v1::Endpoint> = installation
        .consumers
        .iter()
        .flat_map(|consumer| &consumer.endpoints)
        .map(|endpoint| v1::Endpoint { address: endpoint.address.clone(), sni: endpoint.sni.clone() })
        .collect();
    endpoints.sort_by(|a, b| (&a.address, &a.sni).cmp(&(&b.address, &b.sni)));
    endpoints.dedup();
    endpoints.truncate(MOST_ENDPOINTS);
    let consumers = installation.consumers.iter().take(MOST_CONSUMERS).map(|consumer| v1::Consumer {
        container: consumer.container.clone(),
        container_id: consumer.container_id.clone(),
        image: consumer.image.clone(),
        running: consumer.running,
        reload: consumer.reload.to_string(),
    });
    v1::Installation {
        id: installation.id.clone(),
        label: installation.label.clone(),
        names: installation.wanted.names.clone(),
        usage: installation.wanted.usage.into(),
        key_type: installation.wanted.key_type.name().to_owned(),
        issuer: installation.wanted.issuer.clone(),
        layout: installation.wanted.layout.name().to_owned(),
        consumers: consumers.collect(),
        endpoints,
        certificate: installation.certificate.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::assemble::{assemble, tests::web};
    use proptest::prelude::*;

    fn apply(base: &Report, delta: &InventoryDelta) -> Report {
        let mut installations = if delta.base_digest.is_empty() {
            BTreeMap::new()
        } else {
            assert_eq!(delta.base_digest, base.digest);
            base.installations.clone()
        };
        for id in &delta.removed {
            installations.remove(id);
        }
        for installation in &delta.upserted {
            installations.insert(installation.id.clone(), installation.clone());
        }
        Report {
            digest: digest(&installations, &delta.findings, &delta.trust_stores),
            installations,
            findings: delta.findings.clone(),
            trust_stores: delta.trust_stores.clone(),
        }
    }

    fn host(containers: &[u8]) -> Host {
        assemble(
            containers
                .iter()
                .map(|n| {
                    let mut container = web(&format!("c{n}"), &format!("/srv/{}", n % 16));
                    container.running = n % 3 != 0;
                    container
                })
                .collect(),
        )
    }

    proptest! {
        #[test]
        fn a_delta_leads_from_one_to_the_other(
            before in proptest::collection::btree_set(0u8..40, 0..12),
            after in proptest::collection::btree_set(0u8..40, 0..12),
        ) {
            let before = Report::of(&host(&before.into_iter().collect::<Vec<_>>()));
            let after = Report::of(&host(&after.into_iter().collect::<Vec<_>>()));
            prop_assert_eq!(&apply(&before, &after.delta(Some(&before))), &after);
            prop_assert_eq!(&apply(&before, &after.delta(None)), &after);
            prop_assert_eq!(before == after, before.digest == after.digest);
        }
    }

    #[test]
    fn too_much_is_cut_and_said() {
        let mut host = host(&[1]);
        let template = host.installations.values().next().unwrap().clone();
        for n in 0..5000 {
            let mut installation = template.clone();
            installation.id = format!("/srv/{n}/site.crt");
            host.installations.insert(installation.id.clone(), installation);
        }
        for n in 0..200 {
            host.findings.push(finding("x", &n.to_string(), "y", "info"));
        }
        let report = Report::of(&host);
        assert_eq!(report.findings.len(), MAX_FINDINGS);
        assert_eq!(report.findings.iter().filter(|f| f.id == "too-many").count(), 2);
        assert!(report.delta(None).encoded_len() < 1024 * 1024);
    }
}
