//! The audit chain, without I/O: each entry carries the hash of the one before.
//!
//! One chain per coordinator. The engine appends an entry in the same atomic
//! batch as the writes it tells of, so neither is there without the other.
//! Entries are never changed or removed; whoever edits one breaks every hash
//! after it.

use super::record::AuditEntry;

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;

/// Bytes of a hash.
const HASH: usize = 32;

/// What an entry will say; the chain adds name, sequence and hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// "operator/alice", "host/web-1", "coordinator".
    pub actor: String,
    /// "rotation.start", "host.enrol", …
    pub action: String,
    /// What it was done to.
    pub object: String,
    /// "done" or "refused"; of what another has to do "asked" before, and "unanswered".
    pub outcome: String,
    /// More, for people.
    pub detail: String,
    /// Seconds since the Unix epoch.
    pub at: i64,
}

impl Draft {
    /// Bytes of its texts.
    pub fn size(&self) -> usize {
        [&self.actor, &self.action, &self.object, &self.outcome, &self.detail]
            .iter()
            .map(|text| text.len())
            .sum()
    }
}

/// The chain does not hold at this entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    /// The entry was changed after it was written.
    #[error("audit entry {sequence} of {chain} was changed: its hash does not match")]
    Hash {
        /// The chain.
        chain: String,
        /// The entry.
        sequence: u64,
    },
    /// The entry does not follow the one before.
    #[error(
        "audit entry {sequence} of {chain} does not follow the one before it: an entry was changed, removed or inserted"
    )]
    Link {
        /// The chain.
        chain: String,
        /// The entry.
        sequence: u64,
    },
}

/// The head of a chain: enough to append to it or to verify what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    sequence: u64,
    hash: [u8; HASH],
}

impl Chain {
    /// The chain without entries.
    pub fn empty(name: &str) -> Chain {
        Chain { name: name.to_owned(), sequence: 0, hash: [0; HASH] }
    }

    /// The chain whose newest entry is `entry`, after checking the entry's own hash.
    pub fn at(entry: &AuditEntry) -> Result<Chain, Broken> {
        let hash = hash(&mut entry.clone());
        if entry.hash != hash {
            return Err(Broken::Hash { chain: entry.chain.clone(), sequence: entry.sequence });
        }
        Ok(Chain { name: entry.chain.clone(), sequence: entry.sequence, hash })
    }

    /// The number of the newest entry; 0 when there is none. The first one is 1.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes the next entry and moves on to it.
    pub fn append(&mut self, draft: Draft) -> AuditEntry {
        let mut entry = AuditEntry {
            chain: self.name.clone(),
            sequence: self.sequence + 1,
            previous: self.hash.to_vec(),
            hash: Vec::new(),
            at: draft.at,
            actor: draft.actor,
            action: draft.action,
            object: draft.object,
            outcome: draft.outcome,
            detail: draft.detail,
        };
        self.hash = hash(&mut entry);
        self.sequence = entry.sequence;
        entry.hash = self.hash.to_vec();
        entry
    }

    /// Checks that `entry` is the next one, untouched, and moves on to it.
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), Broken> {
        let next = Chain::at(entry)?;
        if entry.chain != self.name || entry.sequence != self.sequence + 1 || entry.previous != self.hash {
            return Err(Broken::Link { chain: self.name.clone(), sequence: entry.sequence });
        }
        *self = next;
        Ok(())
    }
}

/// SHA-256 over the encoding of the entry with an empty `hash`; leaves it empty.
fn hash(entry: &mut AuditEntry) -> [u8; HASH] {
    entry.hash.clear();
    let digest = digest(&SHA256, &entry.encode_to_vec());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize) -> Vec<AuditEntry> {
        let mut chain = Chain::empty("c1");
        let draft = |n| Draft { object: format!("rotation/{n}"), at: 7, ..Draft::default() };
        (0..count).map(|n| chain.append(draft(n))).collect()
    }

    fn verify(entries: &[AuditEntry]) -> Result<(), Broken> {
        let mut chain = Chain::empty("c1");
        entries.iter().try_for_each(|entry| chain.follow(entry))
    }

    #[test]
    fn holds_when_untouched() {
        assert_eq!(verify(&entries(20)), Ok(()));
        assert_eq!(entries(1)[0].previous, [0; HASH]);
    }

    #[test]
    fn breaks_when_changed_removed_or_moved() {
        let mut changed = entries(5);
        changed[2].detail.push('x');
        assert!(matches!(verify(&changed), Err(Broken::Hash { sequence: 3, .. })));

        let mut rehashed = changed;
        rehashed[2].hash = hash(&mut rehashed[2].clone()).to_vec();
        assert!(matches!(verify(&rehashed), Err(Broken::Link { sequence: 4, .. })));

        let mut removed = entries(5);
        removed.remove(1);
        assert!(matches!(verify(&removed), Err(Broken::Link { sequence: 3, .. })));

        let mut moved = entries(5);
        moved.swap(3, 4);
        assert!(verify(&moved).is_err());
    }

    #[test]
    fn goes_on_from_its_newest_entry() {
        let mut all = entries(3);
        let mut chain = Chain::at(&all[2]).expect("untouched");
        assert_eq!(chain.sequence(), 3);
        all.push(chain.append(Draft::default()));
        assert_eq!(verify(&all), Ok(()));
    }
}
