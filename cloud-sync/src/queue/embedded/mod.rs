//! The queue in a file of this machine: `queue.redb` in a directory, results into the outbox.
//!
//! # How a job is published exactly once
//!
//! The job and the outbox are two files, so no write changes both. A settlement is three steps, each durable
//! before the next:
//!
//! 1. The job is marked with the last sequence of the outbox: from here on results of it may be behind that.
//! 2. The results are appended to the outbox.
//! 3. The job is removed, with its mark.
//!
//! A crash before 1 leaves a job like any other. After it the job comes again, with its mark: its settlement
//! then looks in the outbox behind the marked sequence for the ids of its results (the field `id` of an
//! event), and appends only those that are missing. So results must have the same ids whenever the same work
//! is done again. What the outbox has dropped since (its bound, its age, a full disk) is not found and published again:
//! for that a box has to be off, between two steps that take milliseconds, for longer than events are kept.
//!
//! The outbox bounds what it holds of results that are still to be sent. A settlement that finds no room for all of its
//! results fails before its first step; it is to be tried again when some were sent. One with more results than there can
//! ever be room for is published in parts, as the parts before are sent. After each part the ids of what was published are
//! noted beside the mark, for what was sent may be deleted before the settlement is through.
//!
//! The same holds for a settlement that failed, for the disk was full, and is tried again.
//!
//! # Map
//!
//! `file` the tables and their transactions, `order` those of the order in which jobs go out; `ledger` what is out;
//! `publish` the second step; `full` the bound.

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
/// Jobs of a submission go to the thread that writes them in parts of so many, or of so many bytes.
const PART_JOBS: usize = 256;
const PART_BYTES: usize = 1 << 20;
/// How long a settlement waits by itself for room in the outbox, and how often it looks.
const ROOM: Duration = Duration::from_secs(5);
const ROOM_PAUSE: Duration = Duration::from_millis(200);
/// Longest that a close waits for settlements under way.
const CLOSE: Duration = Duration::from_secs(10);

/// How an [`EmbeddedQueue`] is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedQueueConfig {
    /// The directory of its file; made if it is missing.
    pub dir: PathBuf,
    /// Most jobs that may be out for work at once, at least 1.
    pub inflight: usize,
    /// Most bytes of payloads in the queue, out for work or not, at least 1. The file may be about twice as
    /// large: pages are filled in part, and what is being changed stands there twice.
    pub max_bytes: u64,
}

/// A queue in a file. Batches take turns, and the jobs of each go out in the order of submission. One process at a time
/// may have it open. A submission is taken whole or not at all.
#[derive(Debug)]
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
    /// Tells deliveries of this handle from those of an earlier one.
    epoch: u64,
    room_wait: Duration,
}

#[derive(Debug)]
struct Shared {
    file: JobFile,
    outbox: Arc<Outbox>,
    ledger: Mutex<Ledger>,
    /// Something in the ledger has changed: a job more, one out less, closed.
    changed: Notify,
}

/// A job that is out and whose receiver may have gone: then it goes back.
struct Taken {
    shared: Arc<Shared>,
    job: Option<StoredJob>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.shared.give_back(job.sequence);
        }
    }
}

impl EmbeddedQueue {
    /// Opens the queue, makes it if it is not there. Results go into `outbox`.
    ///
    /// The whole file is read and checked, so this blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Permanent, with the file's name, when a setting is out of its bounds, when another process has the
    /// queue open, and when it is of another version; transient when the disk is full. A file that is damaged or
    /// no queue is set aside, and the queue is empty: [`Self::quarantined`].
    pub fn open(config: EmbeddedQueueConfig, outbox: Arc<Outbox>) -> SyncResult<Self> {
        let least = [("inflight", config.inflight as u64), ("max_bytes", config.max_bytes)];
        if let Some((name, value)) = least.into_iter().find(|(_, value)| *value == 0) {
            let text = format!("queue setting {name} is {value}, it must be at least 1");
            return Err(SyncError::permanent(Link::Disk, text));
        }
        let (file, jobs, turn) = JobFile::open(config.dir.join(FILE), config.max_bytes)?;
        let ledger = Mutex::new(Ledger::new(config.inflight, jobs, turn));
        let shared = Arc::new(Shared { file, outbox, ledger, changed: Notify::new() });
        Ok(Self { shared, epoch: fastrand::u64(..), room_wait: ROOM })
    }

    /// Where the damaged file is that had to be set aside when the queue was opened, if it had to be.
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
    /// Takes the next job out, if one may go.
    fn take(self: Arc<Self>) -> SyncResult<Option<Taken>> {
        loop {
            let places = match self.ledger.lock().next() {
                Next::Nowhere => return Ok(None),
                Next::Closed => return Err(closed()),
                Next::Look(places) => places,
            };
            // Not under the lock, for the disk may take its time. So another may have been faster: once more.
            match self.file.first(|sequence, flow| places.take(sequence, flow))? {
                None if self.ledger.lock().found_none(&places) => return Ok(None),
                Some(job) if self.ledger.lock().take(&places, job.sequence, job.flow, job.turn) => {
                    return Ok(Some(Taken { shared: self, job: Some(job) }));
                }
                _ => {}
            }
        }
    }

    fn give_back(&self, sequence: u64) {
        self.ledger.lock().give_back(sequence);
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
            // The settlement that was before has done it.
            return Ok(Settled::Done);
        }
        if !results.is_empty() {
            publish::check(&self.outbox, &results)?;
            let marked = self.file.marked(sequence)?;
            // All of the results have room before the first is appended, as far as they ever can at once.
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

/// Runs what blocks on the disk where it may. It runs to its end also when nobody waits for it any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> SyncResult<T> + Send + 'static) -> SyncResult<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(broken_off(error)))
}

fn broken_off(error: JoinError) -> SyncError {
    SyncError::transient(Link::Disk, "the queue's work was broken off").because(error)
}

#[async_trait]
impl JobQueue for EmbeddedQueue {
    /// All of the jobs are taken, or none. When they do not fit under the bound the error has a
    /// [`QueueFull`] as its source.
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
            // An error drops the sender without an end: what was written so far is undone.
            let part = draw(jobs)?;
            let last = part.is_empty();
            let draft = if last { Draft::End } else { Draft::Jobs(part) };
            // Nobody takes it when the writer has failed: its answer says why.
            if sender.send(draft).await.is_err() || last {
                break;
            }
        }
        writing.await.unwrap_or_else(|error| Err(broken_off(error)))
    }

    /// An error is also what the disk does not give: there is no link to wait for.
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

    /// A full outbox or disk is a transient error: the job stays out, settle it again later.
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
            self.shared.give_back(sequence);
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
            if start.elapsed() > CLOSE {
                warn!("a settlement is still under way after {CLOSE:?}: its job will come again");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.ledger.lock().forget_all();
        let shared = Arc::clone(&self.shared);
        // Nothing is lost if it fails: what counts is on the disk already.
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

/// Some of the jobs, none when there are no more.
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
