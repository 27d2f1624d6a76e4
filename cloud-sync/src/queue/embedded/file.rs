//! The jobs on disk: the tables of `queue.redb` and every transaction on them. All calls block.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::{Durability, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::order;
use crate::database::{Database, Stop};
use crate::error::{Link, SyncError, SyncResult};
use crate::event::unix_ms;
use crate::queue::fair::Flow;

/// Sequence -> time of submission (milliseconds since 1970), and the payload.
pub(super) const JOBS: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("jobs");
/// Sequence of a job whose results are being published -> last sequence of the outbox before any of them.
const MARKS: TableDefinition<'_, u64, u64> = TableDefinition::new("marks");
/// Sequence of a job whose results are being published -> ids of those published before its mark, as a JSON array.
const PUBLISHED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("published");
/// Other values by name.
const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");

const FORMAT: &str = "format";
const FORMAT_VERSION: u128 = 1;
/// Random and created once, so that a job of a deleted queue is never mistaken for one of this queue.
const IDENTITY: &str = "identity";
/// Sequence of the next job. None is reused, even when the queue becomes empty.
const NEXT: &str = "next";
/// Bytes of all payloads.
const BYTES: &str = "bytes";

/// What a submission sends to the writing thread.
#[derive(Debug)]
pub(super) enum Draft {
    /// More jobs.
    Jobs(Vec<DraftJob>),
    /// The end of the submission: commit. Without it the submission was aborted.
    End,
}

/// A job to be written.
#[derive(Debug)]
pub(super) struct DraftJob {
    pub(super) flow: Option<Flow>,
    pub(super) payload: Bytes,
}

/// A job read from the file.
#[derive(Debug)]
pub(super) struct StoredJob {
    pub(super) sequence: u64,
    pub(super) flow: Option<Flow>,
    pub(super) turn: u64,
    pub(super) submitted: SystemTime,
    pub(super) payload: Bytes,
}

/// Where in the outbox results of a job may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nowhere: the mark was set just now.
    Fresh,
    /// After this sequence: the mark is of an earlier attempt.
    Behind(u64),
    /// All results are published: the job was removed by an attempt whose end was not reported.
    Done,
}

/// The file with the jobs.
#[derive(Debug)]
pub(super) struct JobFile {
    database: Database,
    identity: Ulid,
    max_bytes: u64,
    quarantined: Option<PathBuf>,
}

impl JobFile {
    /// Opens the file and returns it with the number of its jobs and the turn before that of the first. A damaged one
    /// is quarantined first.
    pub(super) fn open(path: PathBuf, max_bytes: u64) -> SyncResult<(Self, u64, u64)> {
        let (database, quarantined) = Database::open_or_quarantine(path)?;
        let (identity, jobs, turn) = database.write(Durability::Immediate, |txn| {
            let mut meta = txn.open_table(META)?;
            txn.open_table(MARKS)?;
            txn.open_table(PUBLISHED)?;
            let format = meta.get(FORMAT)?.map_or(FORMAT_VERSION, |found| found.value());
            if format != FORMAT_VERSION {
                let path = database.path().display();
                let text = format!("{path} has format {format}, this program knows {FORMAT_VERSION}");
                return Err(SyncError::permanent(Link::Disk, text).into());
            }
            let identity = meta.get(IDENTITY)?.map_or_else(|| Ulid::generate().into(), |found| found.value());
            meta.insert(FORMAT, format)?;
            meta.insert(IDENTITY, identity)?;
            let turn = order::open(txn)?;
            Ok((Ulid::from(identity), txn.open_table(JOBS)?.len()?, turn))
        })?;
        Ok((Self { database, identity, max_bytes, quarantined }, jobs, turn))
    }

    /// The damaged file that this one has replaced.
    pub(super) fn quarantined(&self) -> Option<&Path> {
        self.quarantined.as_deref()
    }

    #[cfg(test)]
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    #[cfg(test)]
    pub(super) fn forget_order(&self) {
        self.database.write(Durability::Immediate, order::forget).unwrap();
    }

    /// The position of a job, as callers see it.
    pub(super) fn position(&self, sequence: u64) -> String {
        format!("queue-{}-{sequence}", self.identity)
    }

    /// Adds all of `drafts`, or nothing, and returns their number; `turn` is the current one.
    pub(super) fn submit(&self, mut drafts: mpsc::Receiver<Draft>, turn: u64) -> SyncResult<u64> {
        let now = unix_ms(SystemTime::now());
        self.database.write(Durability::Immediate, |txn| {
            let mut meta = txn.open_table(META)?;
            let mut jobs = txn.open_table(JOBS)?;
            let mut order = order::Writer::open(txn, turn)?;
            let first = meta.get(NEXT)?.map_or(1, |found| found.value() as u64);
            let before = meta.get(BYTES)?.map_or(0, |found| found.value() as u64);
            let (mut next, mut bytes) = (first, before);
            loop {
                match drafts.blocking_recv() {
                    Some(Draft::Jobs(drafts)) => {
                        for DraftJob { flow, payload } in drafts {
                            bytes += payload.len() as u64;
                            // A submission that does not fit is read to its end, unwritten, to find out whether it
                            // can ever fit.
                            if bytes <= self.max_bytes {
                                jobs.insert(next, (now, &payload[..]))?;
                                order.add(next, flow)?;
                                next += 1;
                            }
                        }
                        if bytes - before > self.max_bytes {
                            return Err(self.full(before, bytes).into());
                        }
                    }
                    Some(Draft::End) if bytes > self.max_bytes => {
                        return Err(self.full(before, bytes).into());
                    }
                    Some(Draft::End) => break,
                    None => {
                        let text = "the submission was aborted";
                        return Err(SyncError::transient(Link::Disk, text).into());
                    }
                }
            }
            meta.insert(NEXT, u128::from(next))?;
            meta.insert(BYTES, u128::from(bytes))?;
            Ok(next - first)
        })
    }

    fn full(&self, waiting: u64, bytes: u64) -> SyncError {
        let full = QueueFull { waiting, needed: bytes - waiting, max_bytes: self.max_bytes };
        full_error(self.database.path(), full)
    }

    /// The first job in the order of delivery that `take` accepts, by its sequence and batch.
    pub(super) fn first(&self, take: impl Fn(u64, Option<Flow>) -> bool) -> SyncResult<Option<StoredJob>> {
        self.database.read(|txn| {
            let Some((turn, sequence, flow)) = order::first(txn, take)? else { return Ok(None) };
            let Some(job) = txn.open_table(JOBS)?.get(sequence)? else { return Ok(None) };
            let (millis, payload) = job.value();
            Ok(Some(StoredJob {
                sequence,
                flow,
                turn,
                submitted: UNIX_EPOCH + Duration::from_millis(millis),
                payload: Bytes::copy_from_slice(payload),
            }))
        })
    }

    /// The mark of a job, if an earlier attempt has set it.
    pub(super) fn marked(&self, sequence: u64) -> SyncResult<Option<Mark>> {
        self.database.read(|txn| {
            if txn.open_table(JOBS)?.get(sequence)?.is_none() {
                return Ok(Some(Mark::Done));
            }
            Ok(txn.open_table(MARKS)?.get(sequence)?.map(|found| Mark::Behind(found.value())))
        })
    }

    /// Records that from now on results of a job may be in the outbox, after `last`.
    pub(super) fn mark(&self, sequence: u64, last: u64) -> SyncResult<Mark> {
        self.database.write(Durability::Immediate, |txn| {
            txn.open_table(MARKS)?.insert(sequence, last)?;
            Ok(Mark::Fresh)
        })
    }

    /// Records that these results of a job were published, and all others not before `last` of the outbox.
    pub(super) fn note_published(&self, sequence: u64, last: u64, ids: &HashSet<String>) -> SyncResult<()> {
        let ids = serde_json::to_vec(ids)
            .map_err(|error| SyncError::permanent(Link::Disk, "cannot record results").because(error))?;
        self.database.write(Durability::Immediate, |txn| {
            txn.open_table(MARKS)?.insert(sequence, last)?;
            txn.open_table(PUBLISHED)?.insert(sequence, &ids[..])?;
            Ok(())
        })
    }

    /// The recorded ids of published results of a job.
    pub(super) fn published(&self, sequence: u64) -> SyncResult<HashSet<String>> {
        self.database.read(|txn| {
            let Some(ids) = txn.open_table(PUBLISHED)?.get(sequence)? else { return Ok(HashSet::new()) };
            serde_json::from_slice(ids.value()).map_err(|error| {
                let text = format!("the results recorded for job {sequence} cannot be read");
                SyncError::permanent(Link::Disk, text).because(error).into()
            })
        })
    }

    /// Removes a job.
    pub(super) fn remove(&self, sequence: u64) -> SyncResult<()> {
        self.database.write(Durability::Immediate, |txn| remove(txn, sequence))
    }

    /// Closes the file.
    pub(super) fn close(&self) {
        self.database.close();
    }
}

fn remove(txn: &WriteTransaction, sequence: u64) -> Result<(), Stop> {
    let mut jobs = txn.open_table(JOBS)?;
    let removed = jobs.remove(sequence)?.map(|job| job.value().1.len());
    txn.open_table(MARKS)?.remove(sequence)?;
    txn.open_table(PUBLISHED)?.remove(sequence)?;
    order::remove(txn, sequence)?;
    if let Some(length) = removed {
        let mut meta = txn.open_table(META)?;
        let bytes = meta.get(BYTES)?.map_or(0, |found| found.value());
        meta.insert(BYTES, bytes.saturating_sub(length as u128))?;
    }
    Ok(())
}

/// Why a submission was refused: the queue is full. It is the source of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} bytes are queued, {needed} more exceed the limit of {max_bytes}")]
pub struct QueueFull {
    /// Bytes of the jobs in the queue.
    pub waiting: u64,
    /// Bytes of the submission; for one that does not fit into an empty queue, as far as it was read.
    pub needed: u64,
    /// The limit.
    pub max_bytes: u64,
}

impl QueueFull {
    /// The `QueueFull` that is the source of `error`, if any.
    #[must_use]
    pub fn of(error: &SyncError) -> Option<&Self> {
        error.source().and_then(<dyn Error>::downcast_ref)
    }
}

/// Transient, unless the submission does not fit into an empty queue either.
fn full_error(path: &Path, bound: QueueFull) -> SyncError {
    let path = path.display();
    if bound.needed > bound.max_bytes {
        SyncError::permanent(Link::Disk, format!("the submission is too large for the queue in {path}"))
    } else {
        SyncError::transient(Link::Disk, format!("the queue in {path} is full"))
    }
    .because(bound)
}
