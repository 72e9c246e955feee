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
    /// Installations on record.
    pub installations: u32,
    /// Findings on record.
    pub findings: u32,
    /// Revision of the newest inventory that was seen.
    pub inventory_revision: u64,
    /// When the earliest certificate is due for renewal; `i64::MAX`: never.
    pub next_due: i64,
    /// Issuers of its certificates, each once.
    pub issuers: Vec<SeenIssuer>,
    /// Unfinished batches.
    pub open: Vec<OpenBatch>,
    /// When its newest result arrived.
    pub last_finished: i64,
    /// Renewals wait until then after a failure.
    pub renewals_after: i64,
    /// Failed renewals in a row.
    pub failed_renewals: u32,
    /// Number of the newest finished renewal: an older one whose proof comes late changes no pause.
    pub newest_renewal: u64,
}

/// An issuer as the certificates of a host show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenIssuer {
    /// From the chain; empty when unknown.
    pub spki_sha256: Box<[u8]>,
    /// From the leaf.
    pub authority_key_id: Box<[u8]>,
    /// Certificates from it.
    pub certificates: u32,
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
            findings: 0,
            inventory_revision: 0,
            next_due: i64::MAX,
            issuers: Vec::new(),
            open: Vec::new(),
            last_finished: 0,
            renewals_after: 0,
            failed_renewals: 0,
            newest_renewal: 0,
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
        self.next_due = i64::MAX;
        self.issuers.clear();
        self.findings =
            chunks.first().map_or(0, |chunk| u32::try_from(chunk.findings.len()).unwrap_or(u32::MAX));
        for installation in chunks.iter().flat_map(|chunk| &chunk.installations) {
            self.installations += 1;
            let certificate = installation.certificate.as_ref();
            let life = certificate.map(|seen| (seen.not_before, seen.not_after));
            self.next_due = self.next_due.min(renewal::due_at(host, &installation.id, life));
            if let Some(seen) = certificate {
                self.count_issuer(seen);
            }
        }
        self.issuers.shrink_to_fit();
    }

    fn count_issuer(&mut self, facts: &CertificateOutline) {
        let seen = self.issuers.iter_mut().find(|seen| {
            seen.spki_sha256[..] == facts.issuer_spki_sha256[..]
                && seen.authority_key_id[..] == facts.authority_key_id[..]
        });
        match seen {
            Some(seen) => seen.certificates += 1,
            None => self.issuers.push(SeenIssuer {
                spki_sha256: facts.issuer_spki_sha256.clone().into(),
                authority_key_id: facts.authority_key_id.clone().into(),
                certificates: 1,
            }),
        }
    }

    /// Is there open work that is not this rotation's?
    pub fn has_other_work(&self, rotation: u64) -> bool {
        self.open.iter().any(|open| open.rotation != Some(rotation))
    }

    /// Certificates on this host that `key` issued.
    pub fn issued_by(&self, key: &IssuerKey) -> u32 {
        self.issuers
            .iter()
            .filter(|seen| key.is_of(&seen.spki_sha256, &seen.authority_key_id))
            .map(|seen| seen.certificates)
            .sum()
    }
}
