//! What a lane takes jobs from: those that another device gave back, then real-time work, then batch work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, select_biased};

use super::fair::{Claim, Line};
use super::job::{Job, LaneError};
use crate::decode_memory::DecodeMemory;

/// The receiving ends that all lanes of a model share.
#[derive(Clone)]
pub(super) struct LaneQueues {
    /// Jobs whose device failed; tried once more.
    pub(super) again: Receiver<Job>,
    /// Real-time work.
    pub(super) jobs: Receiver<Claim>,
    /// Whether several clients share it.
    pub(super) line: Line,
    /// Batch work.
    pub(super) batch: Receiver<Job>,
    /// Where jobs go whose device failed. Bounded by what lanes have in hand.
    pub(super) give_back: Sender<Job>,
    /// Set before the queues are closed.
    pub(super) closing: Arc<AtomicBool>,
    /// The memory for decoding, of which jobs that wait hold a part.
    pub(super) memory: Arc<DecodeMemory>,
    /// Closed when the lane is to end though there may be more work.
    pub(super) until: Receiver<()>,
}

/// Nothing comes any more.
pub(super) struct Closed;

impl LaneQueues {
    /// The next job, if there is one now; batch work only if it is `patient_too`.
    pub(super) fn try_next(&self, patient_too: bool) -> Result<Option<Job>, Closed> {
        if let Ok(job) = self.again.try_recv() {
            return Ok(Some(job));
        }
        if let Some(job) = self.in_the_way() {
            return Ok(Some(job));
        }
        match self.jobs.try_recv() {
            Ok(claim) => return Ok(claim.take()),
            Err(TryRecvError::Disconnected) if self.batch.is_empty() => return Err(Closed),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        Ok(if patient_too { self.batch.try_recv().ok() } else { None })
    }

    /// The next job, after a wait for it. None when nothing comes any more, or the lane is to end.
    pub(super) fn next(&self) -> Option<Job> {
        if let Some(job) = self.in_the_way() {
            return Some(job);
        }
        select_biased! {
            recv(self.until) -> _ => None,
            recv(self.again) -> job => job.ok(),
            recv(self.jobs) -> claim => match claim {
                Ok(claim) => claim.take(),
                // Both queues are closed at the same moment, so this ends.
                Err(_) => self.batch.recv().ok(),
            },
            recv(self.batch) -> job => match job {
                Ok(job) => Some(job),
                Err(_) => self.jobs.recv().ok().and_then(Claim::take),
            },
        }
    }

    /// Batch work that holds memory for which real-time work waits: it goes first, or under a steady load it would keep the
    /// memory for ever.
    fn in_the_way(&self) -> Option<Job> {
        if self.memory.is_wanted() { self.batch.try_recv().ok() } else { None }
    }

    /// Whether the lane is to end though there may be more work.
    pub(super) fn is_to_end(&self) -> bool {
        matches!(self.until.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Whether nothing comes any more.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether nothing comes any more and nothing waits.
    pub(super) fn is_closed(&self) -> bool {
        let empty = self.again.is_empty() && self.jobs.is_empty() && self.batch.is_empty();
        empty && self.is_closing()
    }

    /// Has a select wake up for a job; for batch work only if it is `patient_too`.
    pub(super) fn watch<'a>(&'a self, select: &mut Select<'a>, patient_too: bool) {
        select.recv(&self.again);
        // Once it is closed it would wake the lane at once, always.
        if !self.is_closing() {
            select.recv(&self.jobs);
        }
        if patient_too {
            select.recv(&self.batch);
        }
    }

    /// Gives back jobs whose device failed, each once: who was given back before is answered. How many are tried again.
    pub(super) fn requeue(&self, jobs: Vec<Job>) -> usize {
        let mut again = 0;
        for mut job in jobs {
            if std::mem::replace(&mut job.tried_again, true) {
                drop(job.reply.send(Err(LaneError::DeviceFailed)));
            } else if self.give_back.send(job).is_ok() {
                again += 1;
            }
        }
        again
    }

    /// Has a job computed once more.
    pub(super) fn give_back_one(&self, job: Job) {
        // Each lane holds the other end.
        let _ = self.give_back.send(job);
    }

    /// Answers all that wait, since no lane has a device. Err when the queues are closed.
    pub(super) fn refuse_waiting(&self) -> Result<(), Closed> {
        // Of these every lane holds the other end, so they are never closed.
        let _ = refuse_all(&self.again, Some);
        let (jobs, batch) = (refuse_all(&self.jobs, Claim::take), refuse_all(&self.batch, Some));
        jobs.and(batch)
    }
}

fn refuse_all<T>(waiting: &Receiver<T>, take: impl Fn(T) -> Option<Job>) -> Result<(), Closed> {
    loop {
        match waiting.try_recv().map(&take) {
            Ok(Some(mut job)) => {
                job.place.take();
                drop(job.reply.send(Err(LaneError::NoDevice)));
            }
            Ok(None) => {}
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => return Err(Closed),
        }
    }
}
