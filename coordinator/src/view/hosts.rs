//! A host in the projection: a few numbers and its open work.

use crate::domain::renewal;
use crate::domain::selection::IssuerKey;
use crate::store::outline::{CertificateOutline, InventoryOutline};
use crate::store::record::{Host, HostState};

/// What is kept of a host.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Its record says so; `None` while only an inventory was seen.
    pub state: Option<HostState>,
    /// Installations on record, those included that were discovered.
    pub installations: u32,
    /// Of these: discovered, nobody looks after them.
    pub discovered: u32,
    /// Findings on record.
    pub findings: u32,
    /// Revision of the newest inventory that was seen.
    pub inventory_revision: u64,
    /// When the earliest managed certificate is due for renewal; `i64::MAX`: never.
    pub next_due: i64,
    /// Issuers of its certificates, each once.
    pub issuers: Vec<SeenIssuer>,
    /// Unfinished batches.
    pub open: Vec<OpenBatch>,
    /// When its newest result arrived.
    pub last_finished: i64,
    /// Renewals wait until then after a failure, as far as somebody has looked.
    pub renewals_after: i64,
}

/// An issuer as the certificates of a host show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenIssuer {
    /// From the chain; empty when unknown.
    pub spki_sha256: Box<[u8]>,
    /// From the leaf.
    pub authority_key_id: Box<[u8]>,
    /// Certificates from it that are managed.
    pub managed: u32,
    /// Certificates from it that were discovered.
    pub discovered: u32,
}

/// A batch that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBatch {
    /// Its name.
    pub batch: Box<str>,
    /// Its rotation's number; `None`: a planned renewal.
    pub rotation: Option<u64>,
    /// Its host's place in the rotation's order.
    pub place: u32,
}

/// A host of which nothing is known yet: nothing is due on it.
impl Default for HostView {
    fn default() -> Self {
        Self {
            state: None,
            installations: 0,
            discovered: 0,
            findings: 0,
            inventory_revision: 0,
            next_due: i64::MAX,
            issuers: Vec::new(),
            open: Vec::new(),
            last_finished: 0,
            renewals_after: 0,
        }
    }
}

impl HostView {
    /// Takes the host's record.
    pub(super) fn take_record(&mut self, record: Option<&Host>) {
        self.state = record.map(Host::state);
    }

    /// Takes every chunk of the host's inventory.
    pub(super) fn take_inventory(&mut self, host: &str, revision: u64, chunks: &[InventoryOutline]) {
        self.inventory_revision = revision;
        self.installations = 0;
        self.discovered = 0;
        self.next_due = i64::MAX;
        self.issuers.clear();
        let findings = chunks.iter().map(|chunk| chunk.findings.len()).sum::<usize>();
        self.findings = u32::try_from(findings).unwrap_or(u32::MAX);
        for installation in chunks.iter().flat_map(|chunk| &chunk.installations) {
            self.installations += 1;
            let managed = installation.management().is_managed();
            let certificate = installation.certificate.as_ref();
            if managed {
                let life = certificate.map(|seen| (seen.not_before, seen.not_after));
                self.next_due = self.next_due.min(renewal::due_at(host, &installation.id, life));
            } else {
                self.discovered += 1;
            }
            if let Some(seen) = certificate {
                self.count_issuer(seen, managed);
            }
        }
        self.issuers.shrink_to_fit();
    }

    fn count_issuer(&mut self, facts: &CertificateOutline, managed: bool) {
        let seen = self.issuers.iter_mut().find(|seen| {
            seen.spki_sha256[..] == facts.issuer_spki_sha256[..]
                && seen.authority_key_id[..] == facts.authority_key_id[..]
        });
        let (managed, discovered) = if managed { (1, 0) } else { (0, 1) };
        match seen {
            Some(seen) => {
                seen.managed += managed;
                seen.discovered += discovered;
            }
            None => self.issuers.push(SeenIssuer {
                spki_sha256: facts.issuer_spki_sha256.clone().into(),
                authority_key_id: facts.authority_key_id.clone().into(),
                managed,
                discovered,
            }),
        }
    }

    /// Is there open work that is not this rotation's?
    pub fn has_other_work(&self, rotation: u64) -> bool {
        self.open.iter().any(|open| open.rotation != Some(rotation))
    }

    /// Managed certificates on this host that `key` issued: those that can be replaced.
    pub fn issued_by(&self, key: &IssuerKey) -> u32 {
        self.seen_of(key).map(|seen| seen.managed).sum()
    }

    /// Certificates on this host that `key` issued and nobody looks after.
    pub fn unmanaged_of(&self, key: &IssuerKey) -> u32 {
        self.seen_of(key).map(|seen| seen.discovered).sum()
    }

    /// Does anything on this host show that key?
    pub fn shows(&self, key: &IssuerKey) -> bool {
        self.issued_by(key) + self.unmanaged_of(key) > 0
    }

    fn seen_of<'a>(&'a self, key: &'a IssuerKey) -> impl Iterator<Item = &'a SeenIssuer> {
        self.issuers.iter().filter(|seen| key.is_of(&seen.spki_sha256, &seen.authority_key_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::outline::{FindingOutline, InstallationOutline};
    use reseal_proto::v1::Management;

    #[test]
    fn what_was_discovered_is_counted_and_never_due() {
        let one = |id: &str, management: Management, not_after| InstallationOutline {
            id: id.into(),
            management: management.into(),
            certificate: Some(CertificateOutline {
                issuer_spki_sha256: vec![7; 32],
                not_after,
                ..CertificateOutline::default()
            }),
        };
        let discovered = InventoryOutline {
            installations: vec![
                one("/d", Management::Discovered, 10),
                InstallationOutline { certificate: None, ..one("/none", Management::Discovered, 0) },
            ],
            findings: vec![FindingOutline {}; 2],
        };
        let key = IssuerKey { spki_sha256: vec![7; 32], subject_key_id: Vec::new() };
        let mut host = HostView::default();
        host.take_inventory("h", 1, std::slice::from_ref(&discovered));
        assert_eq!((host.installations, host.discovered, host.next_due), (2, 2, i64::MAX));
        assert_eq!((host.issued_by(&key), host.unmanaged_of(&key), host.findings), (0, 1, 2));

        let declared = InventoryOutline {
            installations: vec![
                one("/l", Management::Labels, 1_000),
                one("/c", Management::Configuration, 2_000),
                one("/a", Management::Adopted, 3_000),
            ],
            findings: vec![FindingOutline {}],
        };
        host.take_inventory("h", 2, &[discovered, declared]);
        assert_eq!((host.installations, host.discovered, host.findings), (5, 2, 3));
        assert_eq!((host.issued_by(&key), host.unmanaged_of(&key)), (3, 1));
        assert!(host.next_due <= 1_000 && host.next_due > 10, "{}", host.next_due);
    }
}
