//! The batches on disk: the tables of `batches.redb` and every transaction on them. All calls block.
//!
//! # Durability
//!
//! Every change is synced to disk before its call returns, except one: that a worker has started a chunk. A worker that
//! sees its chunk completed removes the job from the queue, and the queue
//! is another file; so a completed chunk and an outcome must be on disk by then, or they would never be
//! repeated. A batch and its submission must be on disk before its client gets the response. That
//! work has started is recorded again by the delivery that repeats the work when it is lost, and is synced
//! along with the next change that is.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use redb::{Durability, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::record::Record;
use crate::batch_status::WorkStarts;
use crate::database::{Database, Stop};
use crate::error::{Link, SyncError, SyncResult};
use crate::event::unix_ms;

/// Id -> the batch, as JSON.
const BATCHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("batches");
/// Batch id and number of a completed chunk -> position of the delivery that completed it first.
const CHUNKS: TableDefinition<'_, (&str, u32), &str> = TableDefinition::new("chunks");
/// Whether it is finished, time of its last change, id: the batches in the order in which they are removed.
const BY_AGE: TableDefinition<'_, (bool, u64, &str), ()> = TableDefinition::new("by_age");
/// Position of a message -> starts of the work on it, as JSON.
const WORK: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("work");
/// Other values by name.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// Name of the total bytes of all batches and chunks.
const BYTES: &str = "bytes";

/// Maximum number of expired batches that one change removes: it must not take long.
const MAX_SWEPT: usize = 16;

/// Maximum number of messages whose starts are stored. Those of a message are removed when it is done; only a crash
/// right after it leaves some behind.
const MAX_WORK: u64 = 4096;

/// Limits of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Time to live since the last change.
    pub(super) ttl: Duration,
    /// Bytes of batches and chunks. Above it the least recently changed finished ones are removed
    /// early, and where none is finished new ones are refused.
    pub(super) max_bytes: u64,
}

/// The file with the batches.
#[derive(Debug)]
pub(super) struct Batches {
    database: Database,
    bounds: Bounds,
    quarantined: Option<PathBuf>,
}

/// A change of one batch in progress.
pub(super) struct Change<'a> {
    txn: &'a WriteTransaction,
    bounds: Bounds,
    id: &'a str,
    pub(super) now: u64,
}

/// Result of a change.
#[derive(Debug)]
pub(super) struct Changed<T> {
    pub(super) value: T,
    /// The batch after the change, if it exists.
    pub(super) record: Option<Record>,
    /// Other batches that the change removed.
    pub(super) removed: Vec<String>,
}

impl Batches {
    pub(super) fn open(path: PathBuf, bounds: Bounds) -> SyncResult<Self> {
        let (database, quarantined) = Database::open_or_quarantine(path)?;
        database.write(Durability::Immediate, |txn| {
            let mut meta = txn.open_table(META)?;
            txn.open_table(BATCHES)?;
            txn.open_table(CHUNKS)?;
            txn.open_table(WORK)?;
            txn.open_table(BY_AGE)?;
            let format = meta.get(FORMAT)?.map_or(FORMAT_VERSION, |found| found.value());
            if format != FORMAT_VERSION {
                let path = database.path().display();
                let text = format!("{path} has format {format}, this program knows {FORMAT_VERSION}");
                return Err(SyncError::permanent(Link::Disk, text).into());
            }
            meta.insert(FORMAT, format)?;
            Ok(())
        })?;
        Ok(Self { database, bounds, quarantined })
    }

    /// The damaged file that this one has replaced.
    pub(super) fn quarantined(&self) -> Option<&Path> {
        self.quarantined.as_deref()
    }

    pub(super) fn ttl(&self) -> Duration {
        self.bounds.ttl
    }

    /// Returns a batch and the delivery that completed `chunk`, if one is given.
    pub(super) fn find(&self, id: &str, chunk: Option<u32>) -> SyncResult<Option<(Record, Option<String>)>> {
        self.database.read(|txn| {
            let batches = txn.open_table(BATCHES)?;
            let Some(found) = batches.get(id)? else { return Ok(None) };
            let record = parse(id, found.value())?;
            if record.is_expired(self.bounds.ttl, unix_ms(SystemTime::now())) {
                return Ok(None);
            }
            let Some(chunk) = chunk else { return Ok(Some((record, None))) };
            let owner = txn.open_table(CHUNKS)?.get((id, chunk))?.map(|owner| owner.value().to_owned());
            Ok(Some((record, owner)))
        })
    }

    /// Changes one batch atomically. `work` receives the batch, unless it is unknown or expired,
    /// and returns the new one.
    pub(super) fn change<T>(
        &self,
        id: &str,
        durability: Durability,
        work: impl FnOnce(&Change<'_>, Option<Record>) -> Result<(T, Option<Record>), Stop>,
    ) -> SyncResult<Changed<T>> {
        self.database.write(durability, |txn| {
            let now = unix_ms(SystemTime::now());
            let change = Change { txn, bounds: self.bounds, id, now };
            let mut found = read(txn, id)?;
            if let Some(record) = found.take_if(|record| record.is_expired(self.bounds.ttl, now)) {
                remove_batch(txn, record.is_final(), record.updated, id)?;
            }
            let (value, record) = work(&change, found.clone())?;
            let record = change.store(found, record)?;
            Ok(Changed { value, record, removed: sweep(txn, self.bounds, now, id)? })
        })
    }

    /// Returns the recorded starts of the work on a message.
    pub(super) fn starts(&self, position: &str) -> SyncResult<WorkStarts> {
        self.database.read(|txn| {
            let known = txn.open_table(WORK)?.get(position)?;
            // An unreadable record is of another version: counting starts over.
            Ok(known.and_then(|json| serde_json::from_slice(json.value()).ok()).unwrap_or_default())
        })
    }

    /// Changes the recorded starts of the work on a message; `None` from `change` removes the record.
    pub(super) fn work(
        &self,
        position: &str,
        change: impl FnOnce(WorkStarts) -> Option<WorkStarts>,
    ) -> SyncResult<()> {
        self.database.write(Durability::Immediate, |txn| {
            let mut table = txn.open_table(WORK)?;
            // An unreadable record is of another version: counting starts over.
            let known = table.get(position)?.and_then(|json| serde_json::from_slice(json.value()).ok());
            let Some(starts) = change(known.unwrap_or_default()) else {
                table.remove(position)?;
                return Ok(());
            };
            let json = serde_json::to_vec(&starts).map_err(|e| unreadable(position, e))?;
            table.insert(position, &json[..])?;
            if table.len()? > MAX_WORK {
                table.retain(|key, _| key == position)?;
            }
            Ok(())
        })
    }
}

impl Change<'_> {
    /// Refuses a new batch when the file is full.
    pub(super) fn check_room(&self) -> Result<(), Stop> {
        let (bytes, max_bytes) = (bytes(self.txn)?, self.bounds.max_bytes);
        if bytes < max_bytes {
            return Ok(());
        }
        let text = format!("no space for batch {:?}: unfinished batches take {bytes} bytes", self.id);
        Err(SyncError::transient(Link::Disk, format!("{text}, the limit is {max_bytes}")).into())
    }

    pub(super) fn owner(&self, chunk: u32) -> Result<Option<String>, Stop> {
        let chunks = self.txn.open_table(CHUNKS)?;
        Ok(chunks.get((self.id, chunk))?.map(|owner| owner.value().to_owned()))
    }

    pub(super) fn set_owner(&self, chunk: u32, position: &str) -> Result<(), Stop> {
        self.txn.open_table(CHUNKS)?.insert((self.id, chunk), position)?;
        add_bytes(self.txn, chunk_bytes(self.id, position), 0)
    }

    fn store(&self, found: Option<Record>, record: Option<Record>) -> Result<Option<Record>, Stop> {
        if found == record {
            return Ok(record);
        }
        let Some(mut record) = record else {
            let Some(old) = found else { return Ok(None) };
            remove_batch(self.txn, old.is_final(), old.updated, self.id)?;
            return Ok(None);
        };
        let mut by_age = self.txn.open_table(BY_AGE)?;
        if let Some(old) = found {
            by_age.remove((old.is_final(), old.updated, self.id))?;
        }
        // A clock that was set back must not make a batch older than it is.
        record.updated = record.updated.max(self.now);
        by_age.insert((record.is_final(), record.updated, self.id), ())?;
        let json = serde_json::to_vec(&record).map_err(|e| unreadable(self.id, e))?;
        let mut batches = self.txn.open_table(BATCHES)?;
        let before = batches.insert(self.id, &json[..])?.map_or(0, |old| batch_bytes(self.id, old.value()));
        add_bytes(self.txn, batch_bytes(self.id, &json), before)?;
        Ok(Some(record))
    }
}

/// Removes some of the expired batches, and finished ones while the file exceeds its limit; never
/// `current`, which has just been changed.
fn sweep(txn: &WriteTransaction, bounds: Bounds, now: u64, current: &str) -> Result<Vec<String>, Stop> {
    let ttl = u64::try_from(bounds.ttl.as_millis()).unwrap_or(u64::MAX);
    let past = now.checked_sub(ttl);
    let mut excess = bytes(txn)?.saturating_sub(bounds.max_bytes);
    let mut rows = Vec::new();
    {
        let by_age = txn.open_table(BY_AGE)?;
        let batches = txn.open_table(BATCHES)?;
        for is_final in [true, false] {
            for row in by_age.range((is_final, 0, "")..(is_final, u64::MAX, ""))? {
                let (key, _) = row?;
                let (_, updated, id) = key.value();
                let is_over = past.is_some_and(|past| updated < past);
                if rows.len() == MAX_SWEPT || !is_over && (!is_final || excess == 0) {
                    break;
                }
                if id != current {
                    let size = batches.get(id)?.map_or(0, |json| batch_bytes(id, json.value()));
                    excess = excess.saturating_sub(size);
                    rows.push((is_final, updated, id.to_owned()));
                }
            }
        }
    }
    for (is_final, updated, id) in &rows {
        remove_batch(txn, *is_final, *updated, id)?;
    }
    Ok(rows.into_iter().map(|(.., id)| id).collect())
}

fn remove_batch(txn: &WriteTransaction, is_final: bool, updated: u64, id: &str) -> Result<(), Stop> {
    txn.open_table(BY_AGE)?.remove((is_final, updated, id))?;
    let mut freed = txn.open_table(BATCHES)?.remove(id)?.map_or(0, |json| batch_bytes(id, json.value()));
    txn.open_table(CHUNKS)?.retain_in((id, 0)..=(id, u32::MAX), |(id, _), owner| {
        freed += chunk_bytes(id, owner);
        false
    })?;
    add_bytes(txn, 0, freed)
}

fn read(txn: &WriteTransaction, id: &str) -> Result<Option<Record>, Stop> {
    txn.open_table(BATCHES)?.get(id)?.map(|json| parse(id, json.value())).transpose()
}

fn parse(id: &str, json: &[u8]) -> Result<Record, Stop> {
    serde_json::from_slice(json).map_err(|e| unreadable(id, e))
}

fn unreadable(id: &str, error: serde_json::Error) -> Stop {
    let text = format!("the record of batch {id:?} was written by another version of this program");
    SyncError::permanent(Link::Disk, text).because(error).into()
}

fn batch_bytes(id: &str, json: &[u8]) -> u64 {
    // The id is in two tables.
    (2 * id.len() + json.len() + 16) as u64
}

fn chunk_bytes(id: &str, owner: &str) -> u64 {
    (id.len() + owner.len() + 8) as u64
}

fn bytes(txn: &WriteTransaction) -> Result<u64, Stop> {
    Ok(txn.open_table(META)?.get(BYTES)?.map_or(0, |found| found.value()))
}

fn add_bytes(txn: &WriteTransaction, more: u64, less: u64) -> Result<(), Stop> {
    let now = (bytes(txn)? + more).saturating_sub(less);
    txn.open_table(META)?.insert(BYTES, now)?;
    Ok(())
}

#[cfg(test)]
impl Batches {
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Rows of every table, and the counted bytes.
    pub(super) fn size(&self) -> (u64, u64, u64, u64) {
        let size = self.database.read(|txn| {
            let bytes = txn.open_table(META)?.get(BYTES)?.map_or(0, |found| found.value());
            let batches = txn.open_table(BATCHES)?.len()?;
            Ok((batches, txn.open_table(CHUNKS)?.len()?, txn.open_table(BY_AGE)?.len()?, bytes))
        });
        size.unwrap()
    }
}
