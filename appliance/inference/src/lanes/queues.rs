//! The queues from which a lane takes jobs, in order: jobs to retry, real-time work, batch work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, select_biased};

use super::fair::{Claim, Contention};
use super::job::{Job, LaneError};
use crate::decode_memory::DecodeMemory;

/// The ends of the queues that all lanes of a model share.
#[derive(Clone)]
pub(super) struct LaneQueues {
    /// Jobs whose device failed, to be tried once more.
    pub(super) retry_rx: Receiver<Job>,
    /// Real-time work.
    pub(super) jobs: Receiver<Claim>,
    /// Whether several clients share the real-time queue.
    pub(super) contention: Contention,
    /// Batch work.
    pub(super) batch: Receiver<Job>,
    /// Where lanes return the jobs of a failed device. Bounded by the number of jobs in flight.
    pub(super) retry_tx: Sender<Job>,
    /// Set before the queues are closed.
    pub(super) closing: Arc<AtomicBool>,
    /// The budget for decoding, of which queued jobs hold reservations.
    pub(super) memory: Arc<DecodeMemory>,
    /// Closed when the lane is to end although there may be more work.
    pub(super) cancel: Receiver<()>,
}

/// The queues are closed and empty.
pub(super) struct Closed;

impl LaneQueues {
    /// The next job, if one is queued; batch work only with `include_batch`.
    pub(super) fn try_next(&self, include_batch: bool) -> Result<Option<Job>, Closed> {
        if let Ok(job) = self.retry_rx.try_recv() {
            return Ok(Some(job));
        }
        if let Some(job) = self.batch_holding_memory() {
            return Ok(Some(job));
        }
        match self.jobs.try_recv() {
            Ok(claim) => return Ok(claim.take()),
            Err(TryRecvError::Disconnected) if self.batch.is_empty() => return Err(Closed),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        Ok(if include_batch { self.batch.try_recv().ok() } else { None })
    }

    /// Waits for the next job. `None` when the queues are closed and empty, or the lane is to end.
    pub(super) fn next(&self) -> Option<Job> {
        if let Some(job) = self.batch_holding_memory() {
            return Some(job);
        }
        select_biased! {
            recv(self.cancel) -> _ => None,
            recv(self.retry_rx) -> job => job.ok(),
            recv(self.jobs) -> claim => match claim {
                Ok(claim) => claim.take(),
                // Both queues are closed together, so this ends.
                Err(_) => self.batch.recv().ok(),
            },
            recv(self.batch) -> job => match job {
                Ok(job) => Some(job),
                Err(_) => self.jobs.recv().ok().and_then(Claim::take),
            },
        }
    }

    /// A batch job that holds decode memory for which real-time work waits. It is computed first: under a steady load it would
    /// otherwise hold the memory forever.
    fn batch_holding_memory(&self) -> Option<Job> {
        if self.memory.is_wanted() { self.batch.try_recv().ok() } else { None }
    }

    /// Whether the lane is to end although there may be more work.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self.cancel.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Whether the queues are closed.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether the queues are closed and empty.
    pub(super) fn is_closed(&self) -> bool {
        let empty = self.retry_rx.is_empty() && self.jobs.is_empty() && self.batch.is_empty();
        empty && self.is_closing()
    }

    /// Registers the queues with a select; the batch queue only with `include_batch`.
    pub(super) fn watch<'a>(&'a self, select: &mut Select<'a>, include_batch: bool) {
        select.recv(&self.retry_rx);
        // A closed queue would wake the lane at once, every time.
        if !self.is_closing() {
            select.recv(&self.jobs);
        }
        if include_batch {
            select.recv(&self.batch);
        }
    }

    /// Queues the jobs of a failed device again, each once: a job that was retried before is answered. Returns how many are
    /// retried.
    pub(super) fn requeue(&self, jobs: Vec<Job>) -> usize {
        let mut retried = 0;
        for mut job in jobs {
            if std::mem::replace(&mut job.tried_again, true) {
                drop(job.reply.send(Err(LaneError::DeviceFailed)));
            } else if self.retry_tx.send(job).is_ok() {
                retried += 1;
            }
        }
        retried
    }

    /// Queues a job to be computed again.
    pub(super) fn retry(&self, job: Job) {
        // Every lane holds a receiver.
        let _ = self.retry_tx.send(job);
    }

    /// Answers all queued jobs, since no lane has a device. Err when the queues are closed.
    pub(super) fn refuse_waiting(&self) -> Result<(), Closed> {
        // Every lane holds a sender of this one, so it is never closed.
        let _ = refuse_all(&self.retry_rx, Some);
        let (jobs, batch) = (refuse_all(&self.jobs, Claim::take), refuse_all(&self.batch, Some));
        jobs.and(batch)
    }
}

fn refuse_all<T>(waiting: &Receiver<T>, take: impl Fn(T) -> Option<Job>) -> Result<(), Closed> {
    loop {
        match waiting.try_recv().map(&take) {
            Ok(Some(mut job)) => {
                job.permit.take();
                drop(job.reply.send(Err(LaneError::NoDevice)));
            }
            Ok(None) => {}
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => return Err(Closed),
        }
    }
}
