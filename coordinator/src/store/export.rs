//! Moving a store: everything in it as one stream of bytes, and back.
//!
//! The stream: a line of JSON, then records, then their number and a SHA-256
//! over all before it. A record is a kind byte, a key and, for a put, revision
//! and value, each preceded by its length; a later record of a key replaces the
//! earlier one. Values are copied as they are, so wrapped keys stay wrapped.
//!
//! An export shows one instant: it copies while the store is in use, copies
//! again what changed meanwhile, and holds commits for the last few of those.
//! [`super::import`] reads it.

use super::kv::Entry;
use super::record::Fleet;
use super::{Hint, Store, StoreError, Watch, keys};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// What the header names itself.
const FORMAT: &str = "reseal-store-export";
/// The version of the format that is written and read.
const VERSION: u32 = 1;
/// Entries copied at once; with so few left to correct, commits are held.
const PAGE: usize = 256;
/// Rounds of corrections after which commits are held whatever is left.
const ROUNDS: u32 = 64;

/// The kind of the last record: number of records and checksum follow.
pub(super) const END: u8 = 0;
/// The kind of a record that sets a key.
pub(super) const PUT: u8 = 1;
/// The kind of a record that removes one.
pub(super) const DELETE: u8 = 2;

/// The first line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: String,
    version: u32,
    /// The fleet's name; empty before `reseal init` has given one.
    pub fleet: String,
    /// The epoch of the store that was exported.
    pub epoch: u64,
    /// When, in seconds since the Unix epoch.
    pub at: i64,
}

impl Header {
    /// False for what this program cannot read.
    pub(super) fn is_readable(&self) -> bool {
        self.format == FORMAT && self.version == VERSION
    }
}

/// An export under way: ask for chunk after chunk.
pub struct Export {
    store: Store,
    at: i64,
    stage: Stage,
    sum: Context,
    records: u64,
    watch: Watch,
    /// Keys written since the export began.
    dirty: BTreeSet<Arc<str>>,
}

enum Stage {
    Header,
    Copy { after: Option<String> },
    Correct { rounds: u32 },
    Done,
}

impl Store {
    /// Begins an export at `at`, in seconds since the Unix epoch.
    pub fn export(&self, at: i64) -> Export {
        Export {
            store: self.clone(),
            at,
            stage: Stage::Header,
            sum: Context::new(&SHA256),
            records: 0,
            watch: self.watch(),
            dirty: BTreeSet::new(),
        }
    }
}

impl Export {
    /// The next bytes, up to some MiB; `None` at the end. Commits wait during
    /// one of these calls only, never for the caller.
    ///
    /// # Errors
    /// When the store failed, or was written to faster than the caller took the
    /// chunks; what was taken so far is then worthless.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let mut chunk = Vec::new();
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.header(&mut chunk).await?;
                Stage::Copy { after: None }
            }
            Stage::Copy { after } => {
                let page = self.store.0.kv.page("", after.as_deref(), PAGE).await?;
                for (key, entry) in &page {
                    self.put(&mut chunk, key, Some(entry));
                }
                self.note_changes()?;
                match page.last() {
                    Some((key, _)) => Stage::Copy { after: Some(key.clone()) },
                    None => Stage::Correct { rounds: 0 },
                }
            }
            Stage::Correct { rounds } if rounds < ROUNDS && self.dirty.len() > PAGE => {
                self.correct(&mut chunk, PAGE).await?;
                self.note_changes()?;
                Stage::Correct { rounds: rounds + 1 }
            }
            Stage::Correct { .. } => {
                let paused = self.store.0.committer.pause().await?;
                self.note_changes()?;
                self.correct(&mut chunk, usize::MAX).await?;
                drop(paused);
                chunk.push(END);
                chunk.extend_from_slice(&self.records.to_be_bytes());
                self.sum.update(&chunk);
                chunk.extend_from_slice(self.sum.clone().finish().as_ref());
                return Ok(Some(chunk));
            }
            Stage::Done => return Ok(None),
        };
        self.sum.update(&chunk);
        Ok(Some(chunk))
    }

    async fn header(&self, chunk: &mut Vec<u8>) -> Result<(), StoreError> {
        let fleet = self.store.get::<Fleet>(keys::FLEET).await?;
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            fleet: fleet.map_or_else(String::new, |fleet| fleet.value.name),
            epoch: self.store.epoch(),
            at: self.at,
        };
        *chunk = serde_json::to_vec(&header).map_err(|error| StoreError::engine("export", error))?;
        chunk.push(b'\n');
        Ok(())
    }

    /// Copies up to `limit` changed keys as they are now.
    async fn correct(&mut self, chunk: &mut Vec<u8>, limit: usize) -> Result<(), StoreError> {
        for _ in 0..limit {
            let Some(key) = self.dirty.pop_first() else {
                break;
            };
            let entry = self.store.0.kv.get(&key).await?;
            self.put(chunk, &key, entry.as_ref());
        }
        Ok(())
    }

    fn note_changes(&mut self) -> Result<(), StoreError> {
        while let Some(hint) = self.watch.ready() {
            match hint {
                Hint::Key { key, .. } => self.dirty.insert(key),
                Hint::Resync => {
                    let reason = "it changed faster than it was copied: try again";
                    return Err(StoreError::engine("export", io::Error::other(reason)));
                }
            };
        }
        Ok(())
    }

    fn put(&mut self, chunk: &mut Vec<u8>, key: &str, entry: Option<&Entry>) {
        self.records += 1;
        chunk.push(if entry.is_some() { PUT } else { DELETE });
        field(chunk, key.as_bytes());
        if let Some(entry) = entry {
            chunk.extend_from_slice(&entry.revision.to_be_bytes());
            field(chunk, &entry.value);
        }
    }
}

fn field(chunk: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB");
    chunk.extend_from_slice(&length.to_be_bytes());
    chunk.extend_from_slice(bytes);
}
