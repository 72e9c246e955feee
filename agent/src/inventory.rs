//! What the coordinator is told about this host, and the difference since.
//!
//! The digest is SHA-256 over the encoded installations in order of their id,
//! each preceded by its length (u32, big-endian), then findings and trust stores likewise.
//! Bounded in number and size, below what a coordinator takes: one odd
//! installation must not keep the rest of the host from being looked after.
//! What is beyond is left out, and a finding says which and why. Pure.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message;
use reseal_proto::v1::{self, Finding, InventoryDelta, TrustStore};

use crate::discover::assemble::MAX_INSTALLATIONS;
use crate::discover::found::Discovered;
use crate::discover::infer::Inferred;
use crate::discover::{Endpoint, Host, Installation, TrustTarget, finding, sort_findings};

/// Findings of one host that are reported.
pub const MAX_FINDINGS: usize = 900;
/// Encoded installations stay below one MiB; this much is left for the other fields.
const MAX_BYTES: usize = 1024 * 1024 - 128 * 1024;
/// Bytes of one installation, of its id, its label, and an identifier of its certificate.
const MOST_INSTALLATION_BYTES: usize = 40 * 1024;
/// Where more is to be told than this, the reasons of inferences are left out; bytes.
const MOST_INFERRED_AT: usize = MAX_BYTES / 2;
const MOST_ID: usize = 600;
const MOST_LABEL: usize = 300;
const MOST_KEY_ID: usize = 64;
const MOST_CONSUMERS: usize = 50;
const MOST_ENDPOINTS: usize = 50;
const MOST_TRUST_STORES: usize = 200;
const MOST_NAMES: usize = 100;
/// Bytes of all trust stores, and of all findings.
const MOST_TRUST_BYTES: usize = 20 * 1024;
const MOST_FINDING_BYTES: usize = 200 * 1024;

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
        let mut findings = host.findings.clone();
        let installations = installations(host, &mut findings);
        let trust_stores = trust_stores(host, &mut findings);
        let findings = bounded(findings);
        let digest = digest(&installations, &findings, &trust_stores);
        Self { digest, installations, findings, trust_stores }
    }

    /// What changed since `base`; everything when there is none, or when that is less to say.
    pub fn delta(&self, base: Option<&Self>) -> InventoryDelta {
        let whole = || InventoryDelta {
            base_digest: Vec::new(),
            digest: self.digest.clone(),
            upserted: self.installations.values().cloned().collect(),
            removed: Vec::new(),
            findings: self.findings.clone(),
            trust_stores: self.trust_stores.clone(),
        };
        let Some(base) = base else { return whole() };
        let upserted = self
            .installations
            .iter()
            .filter(|(id, installation)| base.installations.get(*id) != Some(installation))
            .map(|(_, installation)| installation.clone())
            .collect();
        let removed =
            base.installations.keys().filter(|id| !self.installations.contains_key(*id)).cloned().collect();
        let delta = InventoryDelta { base_digest: base.digest.clone(), upserted, removed, ..whole() };
        let whole = whole();
        if whole.encoded_len() < delta.encoded_len() { whole } else { delta }
    }
}

/// What goes into a message, and findings for what does not. What is managed goes first.
fn installations(host: &Host, findings: &mut Vec<Finding>) -> BTreeMap<String, v1::Installation> {
    let mut installations = BTreeMap::new();
    let mut bytes = 0;
    let managed = host.installations.values().map(message);
    let discovered =
        host.discovered.values().map(|found| discovered_message(found, host.inferred.get(&found.id)));
    let (mut unmanaged, mut unseen) = (0, 0);
    for message in managed.chain(discovered) {
        if let Some(why) = unreportable(&message) {
            let severity = if message.is_managed() { "critical" } else { "warning" };
            findings.push(finding("not-reported", &shortened(&message.id), &why, severity));
            continue;
        }
        let mut message = message;
        if bytes > MOST_INFERRED_AT {
            // Reasons are for people, who can be told them when they ask for this one.
            message.inference = None;
        }
        let size = message.encoded_len() + 8;
        if bytes + size > MAX_BYTES || installations.len() == MAX_INSTALLATIONS {
            *(if message.is_managed() { &mut unmanaged } else { &mut unseen }) += 1;
        } else {
            bytes += size;
            installations.insert(message.id.clone(), message);
        }
    }
    let bound = format!("a host may have {MAX_INSTALLATIONS}, described in one MiB");
    if unmanaged > 0 {
        let what = format!("{unmanaged} installations are not reported and not managed: {bound}");
        findings.push(finding("too-many", "host", &what, "critical"));
    }
    if unseen > 0 {
        let what = format!("{unseen} certificates that were found are not reported: {bound}");
        findings.push(finding("too-many", "discovered", &what, "warning"));
    }
    installations
}

/// Why a coordinator would not take this installation.
fn unreportable(installation: &v1::Installation) -> Option<String> {
    let what = |what: &str, is: usize, most: usize| {
        Some(format!(
            "{what} has {is} bytes, {most} are the most: this installation is neither reported nor managed until it is shorter"
        ))
    };
    if installation.id.len() > MOST_ID {
        return what("the path of the certificate on the host", installation.id.len(), MOST_ID);
    }
    if installation.label.len() > MOST_LABEL {
        return what("the name of container and certificate", installation.label.len(), MOST_LABEL);
    }
    if let Some(facts) = &installation.certificate {
        let ids = [&facts.authority_key_id, &facts.issuer_spki_sha256, &facts.fingerprint];
        if let Some(long) = ids.into_iter().find(|id| id.len() > MOST_KEY_ID) {
            return what("a key identifier in the certificate on disk", long.len(), MOST_KEY_ID);
        }
    }
    let bytes = installation.encoded_len();
    if bytes > MOST_INSTALLATION_BYTES {
        return what("its description (names, consumers, endpoints)", bytes, MOST_INSTALLATION_BYTES);
    }
    None
}

/// Both ends of a long path: people look for either.
fn shortened(id: &str) -> String {
    let length = id.chars().count();
    if length <= 280 {
        return id.to_owned();
    }
    let start: String = id.chars().take(140).collect();
    let end: String = id.chars().skip(length - 130).collect();
    format!("{start} ... {end}")
}

fn trust_stores(host: &Host, findings: &mut Vec<Finding>) -> Vec<TrustStore> {
    let mut stores: Vec<TrustStore> = Vec::new();
    let (mut bytes, mut left_out) = (0, 0);
    for store in host.trusts.iter().map(trust_store) {
        let more = size(&store);
        if stores.len() == MOST_TRUST_STORES || bytes + more > MOST_TRUST_BYTES {
            left_out += 1;
        } else {
            bytes += more;
            stores.push(store);
        }
    }
    if left_out > 0 {
        let what = format!(
            "{left_out} trust bundles are written but not reported: a host may have {MOST_TRUST_STORES}, described in {MOST_TRUST_BYTES} bytes"
        );
        findings.push(finding("too-many", "trust bundles", &what, "critical"));
    }
    stores
}

/// The worst first where they cannot all go; sorted.
fn bounded(mut findings: Vec<Finding>) -> Vec<Finding> {
    let total = findings.len();
    findings.sort_by_key(|found| match found.severity.as_str() {
        "critical" => 0,
        "warning" => 1,
        _ => 2,
    });
    // With room for the finding that says so.
    let mut bytes = 400;
    let fits = |found: &&Finding| {
        bytes += size(*found);
        bytes <= MOST_FINDING_BYTES
    };
    let fitting = findings.iter().take_while(fits).count();
    if fitting < total || total > MAX_FINDINGS {
        let kept = fitting.min(MAX_FINDINGS - 1);
        let worst_left_out = findings.get(kept).map(|found| found.severity.clone());
        findings.truncate(kept);
        let what = format!("{total} findings were made, the worst {kept} are reported");
        // As bad as what is left out may be.
        let severity = worst_left_out.unwrap_or_else(|| "critical".to_owned());
        findings.push(finding("too-many", "findings", &what, &severity));
    }
    sort_findings(&mut findings);
    findings
}

/// As a field of another message.
fn size(message: &impl Message) -> usize {
    message.encoded_len() + 4
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
        .map(|endpoint| endpoint_message(endpoint, Vec::new()))
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
        program: consumer.program.clone(),
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
        management: installation.management.into(),
        origin: v1::Origin::File.into(),
        inference: None,
    }
}

fn endpoint_message(endpoint: &Endpoint, served: Vec<u8>) -> v1::Endpoint {
    v1::Endpoint {
        address: endpoint.address.clone(),
        sni: endpoint.sni.clone(),
        starttls: endpoint.starttls.name().to_owned(),
        within: endpoint.within.as_ref().map(|within| within.container.clone()).unwrap_or_default(),
        served,
    }
}

/// What nobody declared, as a message.
pub fn discovered_message(found: &Discovered, inferred: Option<&Inferred>) -> v1::Installation {
    let message = as_found(found);
    let Some(inferred) = inferred else { return message };
    let declared = inferred.declaration.certificate();
    let inference = Some(inferred.message());
    match declared {
        // What adopting would ask for, which is what policy has to admit.
        Ok(wanted) if inferred.obstacles.is_empty() => v1::Installation {
            names: wanted.names,
            usage: wanted.usage.into(),
            key_type: wanted.key_type.name().to_owned(),
            issuer: wanted.issuer,
            inference,
            ..message
        },
        Ok(_) | Err(_) => v1::Installation { inference, ..message },
    }
}

fn as_found(found: &Discovered) -> v1::Installation {
    let facts = found.certificate.as_ref().map(|certificate| certificate.facts.clone());
    let consumers = found.users.iter().take(MOST_CONSUMERS).map(|user| v1::Consumer {
        container: user.container.clone(),
        container_id: user.container_id.clone(),
        image: user.image.clone(),
        running: user.running,
        reload: user.reload.clone(),
        program: user.program.clone(),
    });
    let endpoints = found.endpoints.iter().take(MOST_ENDPOINTS);
    let names = facts.as_ref().map(|facts| facts.names.as_slice()).unwrap_or_default();
    v1::Installation {
        id: found.id.clone(),
        label: found.label.clone(),
        names: names.iter().take(MOST_NAMES).cloned().collect(),
        usage: found.certificate.as_ref().map_or(v1::Usage::Unspecified, |one| one.usage).into(),
        key_type: facts.as_ref().map(|facts| facts.key_type.clone()).unwrap_or_default(),
        issuer: String::new(),
        layout: found.lies.name().to_owned(),
        consumers: consumers.collect(),
        endpoints: endpoints.map(|seen| endpoint_message(&seen.endpoint, seen.served.clone())).collect(),
        certificate: facts,
        management: v1::Management::Discovered.into(),
        origin: found.origin.into(),
        inference: None,
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

    /// What a coordinator takes of one host.
    fn taken(report: &Report) {
        let findings: usize = report.findings.iter().map(size).sum();
        let trust_stores: usize = report.trust_stores.iter().map(size).sum();
        assert!(findings < 256 * 1024 && trust_stores < 24 * 1024, "{findings} {trust_stores}");
        assert!(report.findings.len() < 1000 && report.trust_stores.len() <= 200);
        assert!(report.installations.len() <= 2000);
        for installation in report.installations.values() {
            assert!(installation.encoded_len() <= 40 * 1024);
            assert!(installation.id.len() <= 600 && installation.label.len() <= 300);
        }
        assert!(report.delta(None).encoded_len() < 1024 * 1024 + 256 * 1024);
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
        let trust = TrustTarget {
            bundle: "managed-root".into(),
            place: template.place.clone(),
            owner: None,
            mode: None,
            consumers: template.consumers.clone(),
        };
        host.trusts = vec![trust; 500];
        for n in 0..200 {
            host.findings.push(finding("x", &n.to_string(), &"\u{1F512}".repeat(500), "info"));
        }
        host.findings.push(finding("bad", "one", "y", "critical"));
        let report = Report::of(&host);
        taken(&report);
        assert_eq!(report.findings.iter().filter(|f| f.id == "too-many").count(), 3);
        assert!(report.findings.iter().any(|f| f.id == "bad"), "the worst are not the ones that are cut");
        // All of it goes: that is said by telling what stays, not by 2,000 names.
        let after = Report::of(&self::host(&[1]));
        assert!(after.delta(Some(&report)).base_digest.is_empty());
    }

    #[test]
    fn an_odd_installation_keeps_nobody_else_from_being_reported() {
        type Odd = (&'static str, fn(&mut Installation));
        let odd: [Odd; 4] = [
            ("path", |i| i.id = format!("/srv/{}\x07/site.crt", "x".repeat(700))),
            ("name of container", |i| i.label = "l".repeat(301)),
            ("description", |i| i.wanted.names = vec!["n".repeat(250); 200]),
            ("key identifier", |i| {
                let facts = v1::CertificateFacts { authority_key_id: vec![1; 65], ..Default::default() };
                i.certificate = Some(facts);
            }),
        ];
        for (what, make_odd) in odd {
            let mut host = host(&[1, 2]);
            let mut installation = host.installations.values().next().unwrap().clone();
            installation.id = "/odd/site.crt".into();
            make_odd(&mut installation);
            host.installations.insert(installation.id.clone(), installation.clone());
            let report = Report::of(&host);
            taken(&report);
            assert_eq!(report.installations.len(), 2, "{what}");
            let found = report.findings.iter().find(|found| found.id == "not-reported").expect(what);
            assert!(found.message.contains(what), "{found:?}");
            assert!(found.object.starts_with(&installation.id[..5]) && found.object.ends_with("site.crt"));
            assert!(!found.object.contains('\x07') && found.object.chars().count() <= 300);
        }
    }
}
