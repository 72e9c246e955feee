//! Inventories as agents report them: deltas against a digest, kept in chunks.
//!
//! An agent speaks for its own host only. What it reports is bounded in number
//! and size; the head chunk is written last and reveals the digest of the whole.

use std::collections::BTreeMap;

use prost::Message;
use reseal_proto::v1::{Installation, InventoryDelta};
use tonic::Status;

use super::convert::status;
use crate::domain::Now;
use crate::store::record::Inventory;
use crate::store::{Commit, Store, keys};

/// Installations of one host at most.
const MAX_INSTALLATIONS: usize = 2_000;
/// Findings of one host at most.
const MAX_FINDINGS: usize = 100;
/// Trust stores of one host at most.
const MAX_TRUST_STORES: usize = 200;
/// An installation's record at most, bytes.
const MAX_INSTALLATION_BYTES: usize = 40 * 1024;
/// Bytes of an installation's id and label, and of a key identifier, at most.
const MAX_ID: usize = 600;
const MAX_LABEL: usize = 300;
const MAX_KEY_ID: usize = 64;
/// Installations in one chunk, and bytes.
const CHUNK: usize = 50;
const CHUNK_BYTES: usize = 48 * 1024;
/// Chunks written in one commit.
const GROUP: usize = 12;

/// The inventories on record. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inventories {
    store: Store,
    now: Now,
}

/// The head chunk, read for its digest and number of chunks only.
#[derive(Clone, PartialEq, Message)]
struct Head {
    /// See [`Inventory::digest`].
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    /// See [`Inventory::chunks`].
    #[prost(uint32, tag = "4")]
    chunks: u32,
}

impl Inventories {
    /// Over this store.
    pub(crate) fn new(store: Store, now: Now) -> Self {
        Self { store, now }
    }

    /// Digest of the inventory on record; empty when there is none.
    pub(crate) async fn digest(&self, host: &str) -> Result<Vec<u8>, Status> {
        Ok(self.head(host).await?.unwrap_or_default().digest)
    }

    /// Applies a delta; false when it does not fit what is on record and the whole is wanted.
    pub(crate) async fn apply(&self, host: &str, delta: &InventoryDelta) -> Result<bool, Status> {
        let Some(commits) = self.merge(host, delta).await? else {
            return Ok(false);
        };
        for commit in commits {
            self.store.commit(commit).await.map_err(|error| status(&error))?;
        }
        Ok(true)
    }

    /// The commits that bring the record to the delta, in order; `None` when it does not fit.
    pub(crate) async fn merge(
        &self,
        host: &str,
        delta: &InventoryDelta,
    ) -> Result<Option<Vec<Commit>>, Status> {
        let head = self.head(host).await?.unwrap_or_default();
        let mut installations: BTreeMap<String, Installation> = BTreeMap::new();
        let mut old = Vec::new();
        if !delta.base_digest.is_empty() {
            if head.digest != delta.base_digest {
                return Ok(None);
            }
            let chunks = self.store.range::<Inventory>(&keys::inventory_of(host)).await;
            old.extend(chunks.map_err(|error| status(&error))?.into_iter().map(|(_, chunk)| chunk.value));
            let all = old.iter().flat_map(|chunk| chunk.installations.iter().cloned());
            installations.extend(all.map(|installation| (installation.id.clone(), installation)));
        }
        for removed in &delta.removed {
            installations.remove(removed);
        }
        for installation in delta.upserted.iter().cloned() {
            if let Some(field) = too_long(&installation) {
                let id: String = installation.id.chars().take(120).collect();
                return Err(Status::invalid_argument(format!(
                    "installation {id} of host {host} has a {field} that is too long"
                )));
            }
            if installation.encoded_len() > MAX_INSTALLATION_BYTES {
                let id: String = installation.id.chars().take(120).collect();
                return Err(Status::invalid_argument(format!(
                    "installation {id} of host {host} is described in more than {MAX_INSTALLATION_BYTES} bytes"
                )));
            }
            installations.insert(installation.id.clone(), installation);
        }
        let counts = [
            (installations.len(), MAX_INSTALLATIONS, "installations"),
            (delta.findings.len(), MAX_FINDINGS, "findings"),
            (delta.trust_stores.len(), MAX_TRUST_STORES, "trust stores"),
            (delta.digest.len(), 64, "bytes of digest"),
        ];
        if let Some((number, limit, what)) = counts.into_iter().find(|(number, limit, _)| number > limit) {
            return Err(Status::invalid_argument(format!(
                "host {host} reports {number} {what}; {limit} are accepted"
            )));
        }
        let mut first = Inventory {
            digest: delta.digest.clone(),
            findings: delta.findings.clone(),
            trust_stores: delta.trust_stores.clone(),
            reported_at: (self.now)(),
            ..Inventory::default()
        };
        while first.encoded_len() > CHUNK_BYTES && first.findings.pop().is_some() {}
        if first.encoded_len() > CHUNK_BYTES {
            return Err(Status::invalid_argument(format!(
                "the trust stores of host {host} are described too long"
            )));
        }
        let mut chunks = chunked(first, installations.into_values());
        chunks[0].chunks = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        Ok(Some(write(host, head.chunks as usize, &old, &chunks)))
    }

    async fn head(&self, host: &str) -> Result<Option<Head>, Status> {
        let head = self.store.get::<Head>(&keys::inventory(host, 0)).await.map_err(|error| status(&error))?;
        Ok(head.map(|head| head.value))
    }
}

/// A field that other records copy, and that is longer than they have room for.
fn too_long(installation: &Installation) -> Option<&'static str> {
    let facts = installation.certificate.as_ref();
    let key = |bytes: Option<&Vec<u8>>| bytes.is_some_and(|bytes| bytes.len() > MAX_KEY_ID);
    if installation.id.len() > MAX_ID || installation.id.is_empty() {
        Some("path")
    } else if installation.label.len() > MAX_LABEL {
        Some("label")
    } else if key(facts.map(|facts| &facts.authority_key_id))
        || key(facts.map(|facts| &facts.issuer_spki_sha256))
        || key(facts.map(|facts| &facts.fingerprint))
    {
        Some("certificate's key identifier or fingerprint")
    } else {
        None
    }
}

fn chunked(head: Inventory, installations: impl Iterator<Item = Installation>) -> Vec<Inventory> {
    let mut bytes = head.encoded_len();
    let mut chunks = vec![head];
    for installation in installations {
        let size = installation.encoded_len();
        let last = chunks.last().map_or(0, |chunk| chunk.installations.len());
        if last >= CHUNK || bytes + size > CHUNK_BYTES {
            chunks.push(Inventory::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(chunk) = chunks.last_mut() {
            chunk.installations.push(installation);
        }
    }
    chunks
}

/// Later chunks first, the head last. `before` chunks are on record; `old` are
/// those of them that were read.
fn write(host: &str, before: usize, old: &[Inventory], new: &[Inventory]) -> Vec<Commit> {
    let mut commits = Vec::new();
    let key = |number: usize| keys::inventory(host, u32::try_from(number).unwrap_or(u32::MAX));
    let mut commit = Commit::new();
    for number in 1..new.len().max(before) {
        if old.get(number).is_some() && old.get(number) == new.get(number) {
            continue;
        }
        if commit.writes() >= GROUP {
            commits.push(std::mem::take(&mut commit));
        }
        commit = match new.get(number) {
            Some(chunk) => commit.put(key(number), chunk),
            None => commit.delete(key(number)),
        };
    }
    commits.push(commit.put(key(0), &new[0]));
    commits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installations(number: usize, bytes: usize) -> Vec<Installation> {
        let one = |at| Installation {
            id: format!("/{at:05}"),
            label: "x".repeat(bytes),
            ..Installation::default()
        };
        (0..number).map(one).collect()
    }

    #[test]
    fn chunks_are_small_enough_for_the_store_and_lose_nothing() {
        for (number, bytes) in [(0, 0), (1, 10), (50, 10), (51, 10), (2_000, 300), (40, 30_000)] {
            let chunks = chunked(Inventory::default(), installations(number, bytes).into_iter());
            assert_eq!(chunks.iter().map(|chunk| chunk.installations.len()).sum::<usize>(), number);
            assert!(
                chunks
                    .iter()
                    .all(|chunk| chunk.encoded_len() < 60 * 1024 && chunk.installations.len() <= CHUNK)
            );
        }
    }

    #[test]
    fn the_head_is_written_last_and_what_is_too_much_is_deleted() {
        let new = chunked(Inventory::default(), installations(120, 10).into_iter());
        let commits = write("h", 40, &[], &new);
        assert!(commits.len() > 1);
        assert_eq!(commits.iter().map(Commit::writes).sum::<usize>(), 40);
        assert!(commits.iter().all(|commit| commit.writes() <= GROUP + 1));
    }
}
