//! Making a store from an export: all of it or nothing.
//!
//! Fills a directory beside the wanted one and moves it there only when the
//! whole stream has proved whole, so that a damaged or cut export leaves
//! nothing behind. The stream is not trusted: every length is bounded before
//! it is believed. The new store's epoch is far above the exported one,
//! because agents refuse orders of a lower epoch than they have seen, and the
//! old coordinator may have been started again after the export. Join tokens do
//! not come over: one that was used since would be unused again. The store is
//! marked as restored, and is not served before somebody has looked at it.

use super::export::{DELETE, END, Header, PUT};
use super::kv::{Kv, MAX_KEY, MAX_MEMBER, MAX_VALUE, MAX_WRITES, Member, Write};
use super::record::{self, Restored};
use super::{Sled, Store, StoreError, keys};

use aws_lc_rs::digest::{Context, SHA256};

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// How far above the exported epoch the new one begins, and one more for each so
/// many seconds since the export: the same export imported again, later, begins higher.
const EPOCH_JUMP: u64 = 1000;
const SECONDS_PER_EPOCH: i64 = 10;
/// Bytes of the header line at most.
const MAX_HEADER: u64 = 4096;
/// Members written at once.
const GROUP: usize = 16;

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Where it is from.
    pub header: Header,
    /// Number of records in the stream.
    pub records: u64,
}

impl Store {
    /// Makes an embedded store in `path` from an export. `path` must be absent
    /// or empty; nothing is there unless the whole export is good. `chain`
    /// names the audit chain of the coordinator that will open it. Open it
    /// afterwards as any other. `now`: seconds since the Unix epoch. Blocks for as long as reading takes.
    pub async fn import(
        path: &Path,
        chain: &str,
        export: impl Read + Send,
        now: i64,
    ) -> Result<Imported, StoreError> {
        let occupied = path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if occupied || path.is_file() {
            return Err(StoreError::NotEmpty { path: path.to_owned() });
        }
        let mut source = Source::new(export);
        let header = source.header()?;
        let beside = Beside::new(path)?;
        let since = now.saturating_sub(header.at).max(0) / SECONDS_PER_EPOCH;
        let jump = EPOCH_JUMP.saturating_add(since.unsigned_abs());
        let engine = Sled::create(&beside.0, chain, header.epoch.saturating_add(jump))?;
        let records = fill(&engine, &mut source).await?;
        mark(&engine, &header).await?;
        drop(engine);
        beside.move_to(path)?;
        Ok(Imported { header, records })
    }
}

/// The directory that is filled; gone when dropped before it was moved.
struct Beside(PathBuf);

impl Beside {
    fn new(path: &Path) -> Result<Beside, StoreError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".importing");
        let beside = path.with_file_name(name);
        match fs::remove_dir_all(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::engine("remove what an earlier import left", error))
            }
            _ => Ok(Beside(beside)),
        }
    }

    fn move_to(self, path: &Path) -> Result<(), StoreError> {
        let moved = fs::rename(&self.0, path).and_then(|()| {
            let whole = path.canonicalize()?;
            fs::File::open(whole.parent().unwrap_or(&whole))?.sync_all()
        });
        moved.map_err(|error| StoreError::engine("put the imported store in its place", error))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a move there is nothing to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn fill(engine: &dyn Kv, source: &mut Source<impl Read>) -> Result<u64, StoreError> {
    let mut group = Vec::new();
    let mut member = Member::default();
    let mut records = 0;
    loop {
        let write = source.write(records)?;
        let ended = write.is_none();
        if let Some(write) = write {
            records += 1;
            // The epoch is the new store's own; a token that was used since would work again.
            if [keys::EPOCH, keys::RESTORED].contains(&write.key()) || write.key().starts_with(keys::TOKENS) {
                continue;
            }
            let size = match &write {
                Write::Put(key, value) => key.len() + value.len(),
                Write::Delete(key) => key.len(),
            };
            let full = member.writes.len() == MAX_WRITES || member.size() + size > MAX_MEMBER;
            if full || member.writes.iter().any(|earlier| earlier.key() == write.key()) {
                group.push(std::mem::take(&mut member));
            }
            member.writes.push(write);
        } else {
            group.push(std::mem::take(&mut member));
        }
        if ended || group.len() == GROUP {
            for answer in engine.commit(std::mem::take(&mut group)).await? {
                answer?;
            }
        }
        if ended {
            return Ok(records);
        }
    }
}

/// Nobody has looked at it yet.
async fn mark(engine: &dyn Kv, header: &Header) -> Result<(), StoreError> {
    let restored = Restored { exported_at: header.at, epoch: header.epoch, confirmed_at: 0 };
    let write = Write::Put(keys::RESTORED.to_owned(), record::encode(&restored));
    let member = Member { writes: vec![write], ..Member::default() };
    for answer in engine.commit(vec![member]).await? {
        answer?;
    }
    Ok(())
}

/// The stream, read and summed.
struct Source<R> {
    input: BufReader<R>,
    sum: Context,
}

impl<R: Read> Source<R> {
    fn new(input: R) -> Source<R> {
        Source { input: BufReader::new(input), sum: Context::new(&SHA256) }
    }

    fn header(&mut self) -> Result<Header, StoreError> {
        let mut line = Vec::new();
        (&mut self.input).take(MAX_HEADER).read_until(b'\n', &mut line).map_err(cut)?;
        self.sum.update(&line);
        let header: Header = serde_json::from_slice(&line)
            .map_err(|_| refused("it does not begin as an export of a reseal store"))?;
        if !header.is_readable() {
            return Err(refused("it is in a format this program does not know: use the newer reseal"));
        }
        Ok(header)
    }

    /// The next write, or `None` at an end that proves the whole: `records` were read before.
    fn write(&mut self, records: u64) -> Result<Option<Write>, StoreError> {
        let [kind] = self.array()?;
        match kind {
            PUT => {
                let key = self.key()?;
                let _revision: [u8; 8] = self.array()?;
                let value = self.field(MAX_VALUE)?;
                Ok(Some(Write::Put(key, value)))
            }
            DELETE => Ok(Some(Write::Delete(self.key()?))),
            END => {
                let counted = u64::from_be_bytes(self.array()?);
                let expected = self.sum.clone().finish();
                let found: [u8; 32] = self.array()?;
                let more = self.input.fill_buf().map_err(cut)?;
                if counted != records || found != expected.as_ref() || !more.is_empty() {
                    return Err(refused("its checksum does not match: it was damaged or changed"));
                }
                Ok(None)
            }
            _ => Err(refused("it is damaged")),
        }
    }

    fn key(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.field(MAX_KEY)?).map_err(|_| refused("it is damaged"))
    }

    fn field(&mut self, longest: usize) -> Result<Vec<u8>, StoreError> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        if length > longest {
            return Err(refused("it is damaged"));
        }
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).map_err(cut)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(cut)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

fn refused(reason: &str) -> StoreError {
    StoreError::Import { reason: reason.to_owned() }
}

fn cut(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => refused("it ends too early: it was cut off"),
        _ => StoreError::Import { reason: format!("it cannot be read: {error}") },
    }
}
