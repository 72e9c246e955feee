//! Inventories as agents report them: deltas against a digest, kept in chunks.
//!
//! An agent speaks for its own host only. What it reports is bounded in number
//! and size ([`bounds`]); the head chunk is written last and reveals the digest of
//! the whole.

mod bounds;

use std::collections::BTreeMap;

use prost::Message;
use reseal_proto::v1::{Finding, Installation, InventoryDelta};
use tonic::{Code, Status};

use self::bounds::{CHUNK, CHUNK_BYTES, Reported, Taken};
use super::convert::status;
use crate::domain::Now;
use crate::store::record::Inventory;
use crate::store::{Commit, Store, Versioned, keys};

/// Bytes of findings in the head chunk; what is beyond has chunks of its own, behind the
/// installations.
const HEAD_FINDINGS: usize = 8 * 1024;
/// Chunks written in one commit, beside the head.
const GROUP: usize = 12;
/// How often a report is merged again when another session of the host wrote meanwhile.
const TRIES: usize = 5;

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
        Ok(self.head(host).await?.map(|head| head.value.digest).unwrap_or_default())
    }

    /// Applies a delta; false when it does not fit what is on record and the whole is wanted.
    pub(crate) async fn apply(&self, host: &str, delta: &InventoryDelta) -> Result<bool, Status> {
        for _ in 1..TRIES {
            let head = match self.merge(host, delta).await {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(false),
                // Another session of the host wrote in between.
                Err(error) if error.code() == Code::Aborted => continue,
                Err(error) => return Err(error),
            };
            match self.store.commit(head).await {
                Ok(_) => return Ok(true),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(status(&error)),
            }
        }
        Err(Status::aborted(format!(
            "the inventory of host {host} keeps changing: does a second agent run under its name?"
        )))
    }

    /// Merges a delta and writes all but the head chunk; gives the commit that writes
    /// the head and reveals the whole. `None` when the delta does not fit; `Aborted`
    /// when somebody else wrote meanwhile.
    ///
    /// Two sessions of a host may report at once: everything is guarded by the head,
    /// and who writes more than one commit claims the head first.
    pub(crate) async fn merge(&self, host: &str, delta: &InventoryDelta) -> Result<Option<Commit>, Status> {
        let key = keys::inventory(host, 0);
        let (revision, head) = match self.head(host).await? {
            Some(Versioned { revision, value }) => (Some(revision), value),
            None => (None, Head::default()),
        };
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
        installations.extend(
            delta.upserted.iter().map(|installation| (installation.id.clone(), installation.clone())),
        );
        let reported = Reported {
            digest: delta.digest.clone(),
            installations,
            findings: delta.findings.clone(),
            trust_stores: delta.trust_stores.clone(),
        };
        let Taken { head: first, installations, findings, left_out } = bounds::take(reported);
        if left_out > 0 {
            tracing::warn!(host, left_out, "parts of an inventory were left out; findings say which");
        }
        let first = Inventory { reported_at: (self.now)(), ..first };
        let mut chunks = chunked(first, installations, findings);
        chunks[0].chunks = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let guard = |commit: Commit, revision| match revision {
            Some(revision) => commit.at(&key, revision),
            None => commit.absent(&key),
        };
        let Writes { before: early, with_head } = write(host, head.chunks as usize, &old, &chunks);
        let mut revision = revision;
        if !early.is_empty() {
            // Until the head is written the old one stands, without its digest: killed in between,
            // nothing is missing and the whole is wanted again.
            let old = self.store.get::<Inventory>(&key).await.map_err(|error| status(&error))?;
            let claim = Inventory {
                digest: Vec::new(),
                chunks: head.chunks.max(chunks[0].chunks),
                ..old.map(|old| old.value).unwrap_or_default()
            };
            revision = Some(self.write(guard(Commit::new(), revision).put(&key, &claim)).await?);
            for commit in early {
                self.write(guard(commit, revision)).await?;
            }
        }
        Ok(Some(guard(with_head, revision).put(&key, &chunks[0])))
    }

    async fn write(&self, commit: Commit) -> Result<u64, Status> {
        self.store.commit(commit).await.map_err(|error| status(&error))
    }

    async fn head(&self, host: &str) -> Result<Option<Versioned<Head>>, Status> {
        self.store.get::<Head>(&keys::inventory(host, 0)).await.map_err(|error| status(&error))
    }
}

/// The head with a few findings, the installations, then the other findings.
fn chunked(mut head: Inventory, installations: Vec<Installation>, findings: Vec<Finding>) -> Vec<Inventory> {
    let mut room = HEAD_FINDINGS;
    let mut findings = findings.into_iter().peekable();
    while let Some(finding) = findings.next_if(|finding| finding.encoded_len() <= room) {
        room -= finding.encoded_len();
        head.findings.push(finding);
    }
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
    let mut more: Vec<Inventory> = Vec::new();
    for finding in findings {
        let size = finding.encoded_len() + 8;
        if more.is_empty() || bytes + size > CHUNK_BYTES {
            more.push(Inventory::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(chunk) = more.last_mut() {
            chunk.findings.push(finding);
        }
    }
    chunks.extend(more);
    chunks
}

/// All chunks but the head, in commits that are small enough.
struct Writes {
    /// To be written before.
    before: Vec<Commit>,
    /// To be written together with the head.
    with_head: Commit,
}

/// `before` chunks are on record; `old` are those of them that were read.
fn write(host: &str, before: usize, old: &[Inventory], new: &[Inventory]) -> Writes {
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
    Writes { before: commits, with_head: commit }
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

    fn findings(number: usize) -> Vec<Finding> {
        (0..number).map(|_| Finding { message: "m".repeat(200), ..Finding::default() }).collect()
    }

    #[test]
    fn a_few_findings_take_no_chunk_of_their_own() {
        let chunks = chunked(Inventory::default(), installations(3, 10), findings(3));
        assert_eq!((chunks.len(), chunks[0].findings.len()), (1, 3));
        let chunks = chunked(Inventory::default(), installations(3, 10), findings(1_000));
        assert!(chunks[0].findings.len() > 10 && chunks[0].installations.len() == 3);
        assert!(chunks.len() > 2 && chunks[1..].iter().all(|chunk| chunk.installations.is_empty()));
    }

    #[test]
    fn chunks_are_small_enough_for_the_store_and_lose_nothing() {
        for (number, bytes) in [(0, 0), (1, 10), (50, 10), (51, 10), (2_000, 300), (40, 30_000)] {
            let chunks = chunked(Inventory::default(), installations(number, bytes), findings(number));
            assert_eq!(chunks.iter().map(|chunk| chunk.installations.len()).sum::<usize>(), number);
            assert_eq!(chunks.iter().flat_map(|chunk| &chunk.findings).count(), number);
            assert!(
                chunks
                    .iter()
                    .all(|chunk| chunk.encoded_len() < 60 * 1024 && chunk.installations.len() <= CHUNK)
            );
        }
    }

    #[test]
    fn commits_are_small_and_what_is_too_much_is_deleted() {
        let new = chunked(Inventory::default(), installations(120, 10), Vec::new());
        let Writes { before, with_head } = write("h", 40, &[], &new);
        assert!(!before.is_empty());
        assert_eq!(before.iter().chain([&with_head]).map(Commit::writes).sum::<usize>(), 39);
        assert!(before.iter().chain([&with_head]).all(|commit| commit.writes() <= GROUP));
    }

    fn whole(number: usize, bytes: usize, digest: u8) -> InventoryDelta {
        InventoryDelta {
            digest: vec![digest; 32],
            upserted: installations(number, bytes),
            ..InventoryDelta::default()
        }
    }

    #[tokio::test]
    async fn of_two_sessions_that_report_at_once_one_wins_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("store"), "c").unwrap();
        let inventories = Inventories::new(store.clone(), || 1);
        let (first, second) = (whole(1_500, 200, 1), whole(1_400, 220, 2));
        // Each needs several commits; both begin before either reveals.
        for _ in 0..20 {
            let (a, b) = tokio::join!(inventories.apply("h", &first), inventories.apply("h", &second));
            assert!(a.is_ok() || b.is_ok());
            let chunks = store.range::<Inventory>(&keys::inventory_of("h")).await.unwrap();
            let head = &chunks[0].1.value;
            let (number, bytes) = match head.digest.first() {
                Some(1) => (1_500, 200),
                Some(2) => (1_400, 220),
                // Claimed by one that lost: the whole is wanted.
                _ => continue,
            };
            let all: Vec<_> = chunks.iter().flat_map(|(_, chunk)| &chunk.value.installations).collect();
            assert_eq!((all.len(), chunks.len()), (number, head.chunks as usize));
            assert!(all.iter().all(|installation| installation.label.len() == bytes), "a mixture");
        }
    }
}
