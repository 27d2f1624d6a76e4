//! The queue in a file of this machine: `queue.redb` in a directory, results into the outbox.
//!
//! # How a job is published exactly once
//!
//! The job and the outbox are two files, so no write changes both. A settlement has three steps, each durable before
//! the next:
//!
//! 1. The job is marked with the last sequence of the outbox: from now on its results may be after that.
//! 2. The results are appended to the outbox.
//! 3. The job is removed, with its mark.
//!
//! A crash before 1 leaves a job like any other. After it the job is redelivered, with its mark: its settlement then
//! searches the outbox after the marked sequence for the ids of its results (the field `id` of an event), and appends
//! only the missing ones. So results must have the same ids whenever the same work is repeated. Results that the
//! outbox has deleted since (its limit, their age, a full disk) are not found and published again: for that a box has
//! to be off, between two steps that take milliseconds, for longer than events are retained.
//!
//! The outbox limits the unsent results that it holds. A settlement that finds no space for all of its results fails
//! before its first step; it is to be retried when some were sent. One with more results than can ever fit is
//! published in parts, as the parts before are sent. After each part the ids of the published results are recorded
//! beside the mark, because what was sent may be deleted before the settlement ends.
//!
//! The same holds for a settlement that failed because the disk was full, and is retried.
//!
//! # Map
//!
//! `file` the tables and their transactions, and the limit; `order` the tables of the order of delivery; `ledger` the
//! jobs in progress; `publish` the second step.

mod file;
mod ledger;
mod order;
mod publish;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, spawn_blocking};
use tracing::warn;

pub use file::QueueFull;

use super::fair::Flow;
use super::{Delivery, JobQueue, NewJob, QueueStats, Receipt, ResultRecord, Settled};
use crate::error::{Link, SyncError, SyncResult};
use crate::outbox::Outbox;
use file::{Draft, DraftJob, JobFile, StoredJob};
use ledger::{Ledger, Next};
use publish::Progress;

const FILE: &str = "queue.redb";
/// Maximum jobs and bytes of the parts in which a submission is passed to the writing thread.
const PART_JOBS: usize = 256;
const PART_BYTES: usize = 1 << 20;
/// How long a settlement waits for space in the outbox, and how often it polls.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
const ROOM_PAUSE: Duration = Duration::from_millis(200);
/// Maximum time that a close waits for settlements in progress.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of an [`EmbeddedQueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedQueueConfig {
    /// The directory of its file; created if it does not exist.
    pub dir: PathBuf,
    /// Maximum jobs in progress, at least 1.
    pub inflight: usize,
    /// Maximum bytes of payloads in the queue, in progress or not, at least 1. The file may be about twice as large:
    /// pages are partially filled, and changed pages exist twice.
    pub max_bytes: u64,
}

/// A queue in a file. Batches alternate, and the jobs of each are delivered in the order of submission. One process
/// at a time may have it open. A submission is accepted as a whole or not at all.
#[derive(Debug)]
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
    /// Distinguishes deliveries of this handle from those of an earlier one.
    epoch: u64,
    room_wait: Duration,
}

#[derive(Debug)]
struct Shared {
    file: JobFile,
    outbox: Arc<Outbox>,
    ledger: Mutex<Ledger>,
    /// The ledger has changed: a job was added or returned, or the queue was closed.
    changed: Notify,
}

/// A delivered job whose receiver may be gone: it is then returned.
struct Taken {
    shared: Arc<Shared>,
    job: Option<StoredJob>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.shared.release(job.sequence);
        }
    }
}

impl EmbeddedQueue {
    /// Opens the queue and creates it if it does not exist. Results go into `outbox`.
    ///
    /// The whole file is read and checked, so this blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Permanent, with the file's name, when a setting is out of range, when another process has the queue open, and
    /// when it is of another version; transient when the disk is full. A file that is damaged or not a queue is
    /// quarantined, and the queue is empty: [`Self::quarantined`].
    pub fn open(config: EmbeddedQueueConfig, outbox: Arc<Outbox>) -> SyncResult<Self> {
        let least = [("inflight", config.inflight as u64), ("max_bytes", config.max_bytes)];
        if let Some((name, value)) = least.into_iter().find(|(_, value)| *value == 0) {
            let text = format!("queue setting {name} is {value}, it must be at least 1");
            return Err(SyncError::permanent(Link::Disk, text));
        }
        let (file, jobs, turn) = JobFile::open(config.dir.join(FILE), config.max_bytes)?;
        let ledger = Mutex::new(Ledger::new(config.inflight, jobs, turn));
        let shared = Arc::new(Shared { file, outbox, ledger, changed: Notify::new() });
        Ok(Self { shared, epoch: fastrand::u64(..), room_wait: ROOM_TIMEOUT })
    }

    /// The damaged file that was quarantined when the queue was opened, if there was one.
    #[must_use]
    pub fn quarantined(&self) -> Option<&Path> {
        self.shared.file.quarantined()
    }

    fn delivery(&self, mut taken: Taken) -> Option<Delivery> {
        let job = taken.job.take()?;
        let offset = i64::try_from(job.sequence).unwrap_or(i64::MAX);
        Some(Delivery {
            position: self.shared.file.position(job.sequence),
            payload: job.payload,
            time: Some(job.submitted),
            receipt: Receipt { partition: 0, offset, epoch: self.epoch },
        })
    }

    /// The sequence of a delivery of this handle.
    fn sequence(&self, delivery: &Delivery) -> Option<u64> {
        u64::try_from(delivery.receipt.offset).ok().filter(|_| delivery.receipt.epoch == self.epoch)
    }
}

impl Shared {
    /// Delivers the next job, if one may be delivered.
    fn take(self: Arc<Self>) -> SyncResult<Option<Taken>> {
        loop {
            let places = match self.ledger.lock().next() {
                Next::Nowhere => return Ok(None),
                Next::Closed => return Err(closed()),
                Next::Search(places) => places,
            };
            // Not under the lock, because the disk may be slow. So another call may have been faster: retry.
            match self.file.first(|sequence, flow| places.take(sequence, flow))? {
                None if self.ledger.lock().found_none(&places) => return Ok(None),
                Some(job) if self.ledger.lock().take(&places, job.sequence, job.flow, job.turn) => {
                    return Ok(Some(Taken { shared: self, job: Some(job) }));
                }
                _ => {}
            }
        }
    }

    fn release(&self, sequence: u64) {
        self.ledger.lock().release(sequence);
        self.changed.notify_waiters();
    }

    fn settle(
        &self,
        sequence: u64,
        turn: &Mutex<Progress>,
        results: Vec<ResultRecord>,
    ) -> SyncResult<Settled> {
        let mut progress = turn.lock();
        if !self.ledger.lock().is_out(sequence) {
            // An earlier settlement has done it.
            return Ok(Settled::Done);
        }
        if !results.is_empty() {
            publish::check(&self.outbox, &results)?;
            let marked = self.file.marked(sequence)?;
            // All of the results get space before the first is appended, as far as they can ever fit at once.
            let room = publish::room(&self.outbox, marked, &results, &mut progress)?;
            let mark = match marked {
                Some(mark) => mark,
                None => self.file.mark(sequence, self.outbox.last_sequence())?,
            };
            let noted = || self.file.published(sequence);
            let published = publish::publish(&self.outbox, mark, results, room, &mut progress, noted);
            if let Some(ids) = progress.to_note() {
                self.file.note_published(sequence, self.outbox.last_sequence(), ids)?;
                progress.noted();
            }
            published?;
        }
        self.file.remove(sequence)?;
        Ok(Settled::Done)
    }
}

fn closed() -> SyncError {
    SyncError::permanent(Link::Disk, "the queue is closed")
}

/// Runs blocking disk I/O on a blocking thread. It completes even when the caller no longer waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> SyncResult<T> + Send + 'static) -> SyncResult<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(aborted(error)))
}

fn aborted(error: JoinError) -> SyncError {
    SyncError::transient(Link::Disk, "an operation on the queue was aborted").because(error)
}

#[async_trait]
impl JobQueue for EmbeddedQueue {
    /// Accepts all of the jobs, or none. When they exceed the limit the error has a [`QueueFull`] as its source.
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64> {
        if self.shared.ledger.lock().is_closed() {
            return Err(closed());
        }
        let (sender, drafts) = mpsc::channel(2);
        let shared = Arc::clone(&self.shared);
        let writing = spawn_blocking(move || {
            let turn = shared.ledger.lock().turn();
            let count = shared.file.submit(drafts, turn)?;
            shared.ledger.lock().add(count);
            shared.changed.notify_waiters();
            Ok(count)
        });
        loop {
            // An error drops the sender without the end marker: what was written so far is undone.
            let part = draw(jobs)?;
            let last = part.is_empty();
            let draft = if last { Draft::End } else { Draft::Jobs(part) };
            // A failed writer has dropped the receiver: its result says why.
            if sender.send(draft).await.is_err() || last {
                break;
            }
        }
        writing.await.unwrap_or_else(|error| Err(aborted(error)))
    }

    /// Disk errors are errors, too: there is no link to wait for.
    async fn receive(&self, wait: Duration) -> SyncResult<Option<Delivery>> {
        let deadline = Instant::now() + wait;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let is_any = self.shared.ledger.lock().next() != Next::Nowhere;
            if is_any {
                let shared = Arc::clone(&self.shared);
                if let Some(taken) = blocking(move || shared.take()).await? {
                    return Ok(self.delivery(taken));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || tokio::time::timeout(left, changed).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// A full outbox or disk is a transient error: the job stays in progress, settle it again later.
    async fn settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled> {
        let deadline = Instant::now() + self.room_wait;
        loop {
            let settled = self.try_settle(delivery, results.clone()).await;
            match &settled {
                Err(error) if publish::waits_for_room(error) && Instant::now() < deadline => {
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                _ => return settled,
            }
        }
    }

    async fn release(&self, delivery: Delivery) {
        if let Some(sequence) = self.sequence(&delivery) {
            self.shared.release(sequence);
        }
    }

    fn stats(&self) -> QueueStats {
        self.shared.ledger.lock().stats()
    }

    async fn close(&self) {
        self.shared.ledger.lock().close();
        self.shared.changed.notify_waiters();
        let start = Instant::now();
        while self.shared.ledger.lock().is_settling() {
            if start.elapsed() > CLOSE_TIMEOUT {
                warn!(
                    "a settlement is still in progress after {CLOSE_TIMEOUT:?}: its job will be redelivered"
                );
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.ledger.lock().forget_all();
        let shared = Arc::clone(&self.shared);
        // Nothing is lost if it fails: what counts is on disk already.
        let _ = spawn_blocking(move || shared.file.close()).await;
    }
}

impl EmbeddedQueue {
    async fn try_settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled> {
        let Some(sequence) = self.sequence(delivery) else { return Ok(Settled::Lost) };
        let turn = {
            let mut ledger = self.shared.ledger.lock();
            match ledger.begin(sequence) {
                Some(turn) => turn,
                None if ledger.is_closed() => return Ok(Settled::Lost),
                None => return Ok(Settled::Done),
            }
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let settled = shared.settle(sequence, &turn, results);
            shared.ledger.lock().end(sequence, settled.is_ok());
            shared.changed.notify_waiters();
            settled
        })
        .await
    }
}

/// A part of the jobs, none at the end.
fn draw(jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<Vec<DraftJob>> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    while part.len() < PART_JOBS && bytes < PART_BYTES {
        let Some(job) = jobs.next() else { break };
        let NewJob { key, payload } = job?;
        bytes += payload.len();
        part.push(DraftJob { flow: Flow::of_key(key.as_bytes()), payload });
    }
    Ok(part)
}

#[cfg(test)]
mod tests;
