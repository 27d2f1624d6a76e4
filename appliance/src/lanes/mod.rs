//! Lanes: threads that own a device each, behind one bounded queue. Only a lane touches a device.
//!
//! Invariants:
//! - The queue is bounded; a submit beyond its bound is refused at once ([`SubmitError::Full`]).
//! - A job whose client has gone, or whose deadline has passed, is answered without being computed.
//! - A panic inside a device ends that device, not the thread: the job is answered with [`LaneError::Panicked`], the
//!   device is built anew, and the other lanes go on.
//! - Every job that was accepted is answered exactly once, also while the lanes stop.

pub mod cpu;
mod device;
mod job;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use device::{Classified, ClassifyError, DeviceFactory, LaneDevice, StageTimings};
pub use job::{LaneError, LaneReply};
pub use worker::{LaneObserver, SkipReason};

use crate::engine::EngineError;
use job::Job;

/// The lanes of one model on one device.
pub struct Lanes {
    queue: Mutex<Option<Sender<Job>>>,
    depth: Receiver<Job>,
    capacity: usize,
    alive: Arc<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    count: usize,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is at its bound.
    #[error("the queue of {capacity} is full")]
    Full {
        /// The bound.
        capacity: usize,
    },
    /// The lanes are stopping.
    #[error("the lanes are stopping")]
    Stopped,
}

impl Lanes {
    /// Starts `count` lanes and waits until each has built its device.
    ///
    /// # Errors
    /// The first device's [`EngineError`]; the lanes that did start are stopped again.
    pub fn start(
        count: usize,
        capacity: usize,
        factory: DeviceFactory,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        let (send, receive) = bounded::<Job>(capacity.max(1));
        let alive = Arc::new(AtomicUsize::new(0));
        let (ready, started) = bounded(count);
        let mut threads = Vec::with_capacity(count);
        for lane in 0..count {
            let worker = worker::Worker {
                lane,
                jobs: receive.clone(),
                factory: Arc::clone(&factory),
                observer: Arc::clone(&observer),
                alive: Arc::clone(&alive),
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new().name(format!("weir-lane-{lane}"));
            threads.push(thread.spawn(move || worker.run(&ready)).map_err(EngineError::Thread)?);
        }
        drop(ready);
        let lanes = Self {
            queue: Mutex::new(Some(send)),
            depth: receive,
            capacity: capacity.max(1),
            alive,
            threads: Mutex::new(threads),
            count,
        };
        for outcome in started.iter().take(count) {
            if let Err(error) = outcome {
                lanes.stop();
                return Err(error);
            }
        }
        Ok(lanes)
    }

    /// Queues an encoded image; the answer comes through the receiver. Dropping the receiver cancels the job.
    ///
    /// # Errors
    /// [`SubmitError::Full`] at the bound, [`SubmitError::Stopped`] after [`Lanes::stop`].
    pub fn submit(
        &self,
        image: Bytes,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { image, deadline, queued: Instant::now(), reply };
        match self.queue.lock().as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => Ok(answer),
            Some(Err(TrySendError::Full(_))) => Err(SubmitError::Full { capacity: self.capacity }),
            Some(Err(TrySendError::Disconnected(_))) | None => Err(SubmitError::Stopped),
        }
    }

    /// Whether a submit would be refused now: lets a caller refuse before it reads a body.
    pub fn is_full(&self) -> bool {
        self.depth.len() >= self.capacity
    }

    /// Jobs that wait.
    pub fn depth(&self) -> usize {
        self.depth.len()
    }

    /// Bound of the queue.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Lanes that were started.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Lanes whose device works at this moment; fewer than [`Lanes::count`] while one is being built anew.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Stops taking jobs, finishes those that wait, and joins the threads.
    pub fn stop(&self) {
        self.queue.lock().take();
        for thread in self.threads.lock().drain(..) {
            // A worker contains its devices' panics; nothing is left to say about one that did not.
            let _ = thread.join();
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop();
    }
}
