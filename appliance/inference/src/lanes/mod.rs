//! Lanes: threads that own a device each, behind two bounded queues: real-time work, and batch work, which a lane takes
//! only while no real-time job waits. Only a lane touches a device.
//!
//! Invariants:
//! - The queues are bounded; a submit beyond the bound is refused at once ([`SubmitError::Full`]), a batch submit waits.
//! - A job whose client has gone, or whose deadline has passed, is answered without being computed.
//! - A panic inside a device ends that device, not the thread: the job is answered with [`LaneError::Panicked`], the
//!   device is built anew, and the other lanes go on. Jobs that were computed together are then tried one by one.
//! - Jobs that wait are computed together when there are enough; none waits for others to come.
//! - Every job that was accepted is answered exactly once, also while the lanes stop.
//! - A GPU that fails ends its device: what it had in hand is tried once more, by another lane, by the same lane's new device,
//!   or by lanes on the CPU that stand in for it where the configuration lets them.
//! - A lane that is stuck at an image is replaced: the image is answered, the others go on ([`Stalls`]).
//! - An image enters a queue with the memory that decoding it may take ([`DecodeMemory`]), and holds it until it is decoded.
//! - However many models are loaded, no more lanes compute at once than the device has turns ([`Turns`]).

mod batch_device;
mod batch_worker;
pub mod batching;
pub mod cpu;
mod crew;
mod decoder;
mod device;
mod end;
mod fair;
pub mod gpu;
mod job;
mod pipeline;
mod queues;
mod scheduler;
mod settings;
mod setup;
mod stall;
#[cfg(test)]
mod stall_tests;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

pub use batch_device::{
    BatchDevice, BatchFactory, Builder, Built, Computed, Decoded, DeviceError, DeviceEvent, Ticket,
};
pub use batching::Batching;
pub use device::{Classified, ClassifyError, DeviceFactory, Encoded, LaneDevice, StageTimings};
pub use fair::Client;
pub use job::{LaneError, LaneReply};
pub use scheduler::Turns;
pub use settings::{CpuFallback, LaneSettings};
pub use stall::Stalls;
pub use worker::{LaneObserver, SkipReason, Unobserved};

use crate::decode_memory::{DecodeMemory, Room, TooCostly};
use crate::engine::EngineError;
use batch_worker::BatchWorker;
use fair::{Claim, FairSender, Waiters};
use job::Job;
use setup::Setup;

/// Batch jobs that may wait, for each lane and each job that it takes at once: enough that no lane idles while the next
/// image is on its way, few enough that the images in memory stay few.
const BATCH_JOBS_A_LANE: usize = 2;

/// The lanes of one model on one device.
pub struct Lanes {
    queues: Mutex<Option<Queues>>,
    depth: Receiver<Claim>,
    batch_depth: Receiver<Job>,
    batch_room: Arc<Semaphore>,
    capacity: usize,
    again: Receiver<Job>,
    closing: Arc<AtomicBool>,
    alive: Arc<AtomicUsize>,
    fallback_workers: Arc<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    count: usize,
    at_once: usize,
    memory: Arc<DecodeMemory>,
    waiters: Waiters,
    stalls: Arc<Stalls>,
}

struct Queues {
    real_time: FairSender,
    batch: Sender<Job>,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It can never be decoded here.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
    /// The deadline passed while it waited for memory.
    #[error("the deadline passed while the image waited for memory to be decoded in")]
    DeadlinePassed,
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
    /// Starts the lanes and waits until each has built its device.
    ///
    /// # Errors
    /// The first device's [`EngineError`]; the lanes that did start are stopped again.
    pub fn start(
        settings: &LaneSettings,
        factory: DeviceFactory,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        Self::start_on(settings, Vec::new(), factory, observer)
    }

    /// The same on devices that are there already, the first lane's first; lanes beyond them build their own.
    ///
    /// # Errors
    /// As [`Lanes::start`].
    pub fn start_on(
        settings: &LaneSettings,
        devices: Vec<Box<dyn LaneDevice>>,
        factory: DeviceFactory,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        let setup = Setup::new(settings, observer);
        let mut devices = devices.into_iter();
        let model = settings.turns.register();
        let workers =
            (0..settings.count).map(|lane| (setup.worker(lane, model, settings, &factory), devices.next()));
        let workers = workers.collect();
        setup.start_crew(workers)
    }

    /// Starts lanes on devices that compute in batches, one a device. While none of them has a device that works, lanes on
    /// the CPU stand in for them, as many as `stand_in` says, if it says so.
    ///
    /// # Errors
    /// As [`Lanes::start`].
    pub fn start_batches(
        settings: &LaneSettings,
        devices: Vec<Built>,
        factory: &BatchFactory,
        stand_in: Option<CpuFallback>,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        let mut setup = Setup::new(settings, observer);
        setup.lanes.at_once *= settings.together.max(1);
        let mut devices = devices.into_iter();
        let model = settings.turns.register();
        let stand_in = stand_in.map(Arc::new);
        let fallback_claimed = Arc::new(AtomicBool::new(false));
        let workers = (0..settings.count).map(|lane| {
            let stand_ins = stand_in.as_ref().map(|stand_in| {
                let cpu = LaneSettings { turns: Turns::new(stand_in.lanes.count), ..stand_in.lanes.clone() };
                let workers = (0..cpu.count)
                    .map(|lane| setup.worker(lane, model, &cpu, &stand_in.factory))
                    .map(|worker| worker::Worker { alive: Arc::clone(&setup.fallback_workers), ..worker });
                workers.collect()
            });
            let worker = BatchWorker {
                lane,
                queues: setup.queues.clone(),
                factory: Arc::clone(factory),
                observer: Arc::clone(&setup.observer),
                alive: Arc::clone(&setup.alive),
                fallback_workers: Arc::clone(&setup.fallback_workers),
                building: Arc::new(AtomicBool::new(false)),
                fallback_claimed: Arc::clone(&fallback_claimed),
                stalls: Arc::clone(&settings.stalls),
                stand_ins,
            };
            let device = devices.next();
            move |ready: &Sender<Result<(), EngineError>>| worker.run(device, ready)
        });
        let workers = workers.collect();
        setup.spawn(settings.count, workers)
    }

    /// Queues an encoded image of the operator's own (a golden case, a bench), whose memory is not counted; the answer comes
    /// through the receiver. Dropping the receiver cancels the job.
    ///
    /// # Errors
    /// [`SubmitError::Full`] at the bound, [`SubmitError::Stopped`] after [`Lanes::stop`].
    pub fn submit(
        &self,
        image: Bytes,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.queue(Client::default(), Job::new(image, Some(deadline), None))
    }

    /// Queues an encoded image of `client`, which takes up to `cost` bytes of memory to decode, as soon as there is so much.
    /// Dropping the future gives up, dropping the receiver cancels the job.
    ///
    /// # Errors
    /// [`SubmitError`]; [`SubmitError::Full`] also where as many images of its kind wait for memory as may wait for a lane,
    /// and the client has its share of them.
    pub async fn admit(
        &self,
        client: Client,
        image: Bytes,
        cost: u64,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.memory.check(cost)?;
        let room = match self.memory.try_reserve(cost) {
            Some(room) => room,
            None => {
                let is_full = self.memory.waiting_like(cost) >= self.capacity;
                let waiter = self.waiters.enter(client, is_full, self.capacity);
                let _waiter = waiter.ok_or(SubmitError::Full { capacity: self.capacity })?;
                let room = self.memory.reserve(cost, true);
                let room = tokio::time::timeout_at(deadline.into(), room).await;
                room.map_err(|_| SubmitError::DeadlinePassed)??
            }
        };
        self.queue_with(client, image, (cost, room), deadline)
    }

    /// The same on a thread that may block, for as long as it takes.
    ///
    /// # Errors
    /// As [`Lanes::admit`].
    pub fn admit_blocking(
        &self,
        image: Bytes,
        cost: u64,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let room = pollster::block_on(self.memory.reserve(cost, true))?;
        self.queue_with(Client::default(), image, (cost, room), deadline)
    }

    fn queue_with(
        &self,
        client: Client,
        image: Bytes,
        (cost, room): (u64, Room),
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let (job, answer) = Job::new(image, Some(deadline), None);
        self.queue(client, (job.with_room(cost, room), answer))
    }

    fn queue(
        &self,
        client: Client,
        (job, answer): (Job, oneshot::Receiver<LaneReply>),
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let queues = self.queues.lock();
        match queues.as_ref().ok_or(SubmitError::Stopped)?.real_time.try_send(client, job) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(SubmitError::Full { capacity: self.capacity }),
            Err(TrySendError::Disconnected(_)) => Err(SubmitError::Stopped),
        }
    }

    /// Queues an encoded image of a batch as soon as there is room, in the queue and in the memory for decoding, of which it
    /// takes up to `cost` bytes; it is computed when no real-time job waits, and it has no deadline. Dropping the receiver
    /// cancels the job, and dropping the future takes it back.
    ///
    /// # Errors
    /// [`SubmitError::TooCostly`], and [`SubmitError::Stopped`] after [`Lanes::stop`].
    pub async fn submit_batch(
        &self,
        image: Bytes,
        cost: u64,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.memory.check(cost)?;
        let place = Arc::clone(&self.batch_room).acquire_owned().await;
        let place = place.map_err(|_| SubmitError::Stopped)?;
        let room = self.memory.reserve(cost, false).await?;
        let (job, answer) = Job::new(image, None, Some(place));
        let job = job.with_room(cost, room);
        let queues = self.queues.lock();
        // There are as many places in the queue as permits, so it cannot be full for who holds one.
        let sent = queues.as_ref().is_some_and(|queues| queues.batch.try_send(job).is_ok());
        if sent { Ok(answer) } else { Err(SubmitError::Stopped) }
    }

    /// As [`Lanes::submit_batch`], without waiting for room: `None` when there is none.
    pub fn try_submit_batch(&self, image: Bytes, cost: u64) -> Option<oneshot::Receiver<LaneReply>> {
        let place = Arc::clone(&self.batch_room).try_acquire_owned().ok()?;
        let room = self.memory.try_reserve(cost)?;
        let (job, answer) = Job::new(image, None, Some(place));
        self.queues.lock().as_ref()?.batch.try_send(job.with_room(cost, room)).ok()?;
        Some(answer)
    }

    /// Whether a real-time job of this client would be refused now: lets a caller refuse before it reads a body.
    pub fn is_full_for(&self, client: Client) -> bool {
        self.queues.lock().as_ref().is_some_and(|queues| queues.real_time.is_full_for(client))
    }

    /// Real-time jobs that wait.
    pub fn depth(&self) -> usize {
        self.depth.len()
    }

    /// Batch jobs that wait.
    pub fn batch_depth(&self) -> usize {
        self.batch_depth.len()
    }

    /// Bound of the real-time queue.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Lanes that were started.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Images that all lanes together compute at once: one a lane on the CPU, a batch on a GPU.
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// Lanes whose device works at this moment; fewer than [`Lanes::count`] while one is being built anew.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Lanes on the CPU that stand in for those.
    pub fn fallback_workers(&self) -> usize {
        self.fallback_workers.load(Ordering::Relaxed)
    }

    /// Threads of all lanes that were given up on and have not ended, and whether they are more than are replaced.
    pub fn stuck(&self) -> (usize, bool) {
        (self.stalls.stuck(), self.stalls.is_exhausted())
    }

    /// Whether anything computes.
    pub fn works(&self) -> bool {
        self.alive() + self.fallback_workers() > 0
    }
}
