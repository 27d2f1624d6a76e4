//! Lanes: threads that each own a device and serve two bounded queues. Batch work is taken only while no real-time job waits.
//! Only a lane touches a device. Shared code is in this folder, what is specific to a device in [`cpu`] and [`gpu`].
//!
//! Invariants:
//! - The queues are bounded: a real-time submit to a full queue fails at once ([`SubmitError::Full`]), a batch submit waits.
//! - A job whose client has disconnected, or whose deadline has passed, is dropped without being computed.
//! - A panic inside a device ends the device, not the thread: the job is answered with [`LaneError::Panicked`], the device is
//!   rebuilt, and the other lanes continue. Jobs that were computed together are then retried one by one.
//! - Waiting jobs are computed together when there are enough of them; no job waits for further jobs to arrive.
//! - Every accepted job is answered exactly once, also during shutdown.
//! - A GPU failure ends the device: its jobs in flight are retried once, by another lane, by the rebuilt device of the same
//!   lane, or by fallback lanes on the CPU where the configuration allows it.
//! - A lane that is stuck at an image is replaced: the image is answered with an error and the other lanes continue
//!   ([`Stalls`]).
//! - An image is queued together with a reservation of the memory that decoding it may take ([`DecodeMemory`]), held until it
//!   is decoded.
//! - The number of lanes that compute at the same time never exceeds the device's turns, however many models are loaded
//!   ([`Turns`]).

pub mod cpu;
mod decoder;
mod fair;
pub mod gpu;
mod job;
mod lifecycle;
mod queues;
mod scheduler;
mod settings;
mod stall;
#[cfg(test)]
mod stall_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

pub use cpu::{DeviceFactory, LaneDevice};
pub use decoder::Encoded;
pub use fair::Client;
pub use gpu::{Built, CpuFallback};
pub use job::{Classified, ClassifyError, LaneError, LaneReply, StageTimings};
pub use scheduler::Turns;
pub use settings::{LaneObserver, LaneSettings, SkipReason, Unobserved};
pub use stall::Stalls;

use crate::decode_memory::{DecodeMemory, Reservation, TooCostly};
use crate::engine::EngineError;
use cpu::Worker;
use fair::{Claim, FairSender, Waiters};
use gpu::{BatchFactory, BatchWorker};
use job::Job;
use lifecycle::Setup;

/// Batch jobs that may wait, per lane and per job that a lane takes at once: enough to keep every lane busy while the next
/// image is loaded, few enough to limit the images in memory.
const BATCH_JOBS_PER_LANE: usize = 2;

/// The lanes of one model on one device.
pub struct Lanes {
    queues: Mutex<Option<Queues>>,
    depth: Receiver<Claim>,
    batch_depth: Receiver<Job>,
    batch_slots: Arc<Semaphore>,
    capacity: usize,
    retry_rx: Receiver<Job>,
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

/// Why a job was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Decoding it would exceed the memory budget.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
    /// The deadline passed while the job waited for decode memory.
    #[error("the deadline passed while the image waited for decode memory")]
    DeadlinePassed,
    /// The queue is full.
    #[error("the queue of {capacity} is full")]
    Full {
        /// Capacity of the queue.
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
    /// The first device's [`EngineError`]; lanes that were started are stopped again.
    pub fn start(
        settings: &LaneSettings,
        factory: DeviceFactory,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        Self::start_on(settings, Vec::new(), factory, observer)
    }

    /// As [`Lanes::start`], on devices that are already built, in lane order; the remaining lanes build their own.
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

    /// Starts one lane per GPU, each on a device that computes in batches. While no GPU works, `fallback` lanes on the CPU
    /// compute where they are configured.
    ///
    /// # Errors
    /// As [`Lanes::start`].
    pub fn start_batches(
        settings: &LaneSettings,
        devices: Vec<Built>,
        factory: &BatchFactory,
        fallback: Option<CpuFallback>,
        observer: Arc<dyn LaneObserver>,
    ) -> Result<Self, EngineError> {
        let mut setup = Setup::new(settings, observer);
        setup.lanes.at_once *= settings.batch_size.max(1);
        let mut devices = devices.into_iter();
        let model = settings.turns.register();
        let fallback = fallback.map(Arc::new);
        let fallback_claimed = Arc::new(AtomicBool::new(false));
        let workers = (0..settings.count).map(|lane| {
            let fallback = fallback.as_ref().map(|fallback| {
                let cpu = LaneSettings { turns: Turns::new(fallback.lanes.count), ..fallback.lanes.clone() };
                let workers = (0..cpu.count)
                    .map(|lane| setup.worker(lane, model, &cpu, &fallback.factory))
                    .map(|worker| Worker { alive: Arc::clone(&setup.fallback_workers), ..worker });
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
                fallback,
            };
            let device = devices.next();
            move |ready: &Sender<Result<(), EngineError>>| worker.run(device, ready)
        });
        let workers = workers.collect();
        setup.spawn(settings.count, workers)
    }

    /// Queues an image of the appliance itself (a golden case, a benchmark), whose decode memory is not accounted. The answer
    /// arrives at the receiver; dropping the receiver cancels the job.
    ///
    /// # Errors
    /// [`SubmitError::Full`] when the queue is full, [`SubmitError::Stopped`] after [`Lanes::stop`].
    pub fn submit(
        &self,
        image: Bytes,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.queue(Client::default(), Job::new(image, Some(deadline), None))
    }

    /// Queues an image of `client` once `cost` bytes of decode memory are available. Dropping the future cancels the wait,
    /// dropping the receiver cancels the job.
    ///
    /// # Errors
    /// [`SubmitError`]; [`SubmitError::Full`] also where as many images of the same size class wait for memory as fit in the
    /// queue, and the client already has its share of them.
    pub async fn admit(
        &self,
        client: Client,
        image: Bytes,
        cost: u64,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.memory.check(cost)?;
        let reservation = match self.memory.try_reserve(cost) {
            Some(reservation) => reservation,
            None => {
                let is_full = self.memory.waiting_like(cost) >= self.capacity;
                let waiter = self.waiters.enter(client, is_full, self.capacity);
                let _waiter = waiter.ok_or(SubmitError::Full { capacity: self.capacity })?;
                let reservation = self.memory.reserve(cost, true);
                let reservation = tokio::time::timeout_at(deadline.into(), reservation).await;
                reservation.map_err(|_| SubmitError::DeadlinePassed)??
            }
        };
        self.queue_with(client, image, (cost, reservation), deadline)
    }

    /// The blocking form of [`Lanes::admit`]; waits for memory without a limit.
    ///
    /// # Errors
    /// As [`Lanes::admit`].
    pub fn admit_blocking(
        &self,
        image: Bytes,
        cost: u64,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let reservation = pollster::block_on(self.memory.reserve(cost, true))?;
        self.queue_with(Client::default(), image, (cost, reservation), deadline)
    }

    fn queue_with(
        &self,
        client: Client,
        image: Bytes,
        (cost, reservation): (u64, Reservation),
        deadline: Instant,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        let (job, answer) = Job::new(image, Some(deadline), None);
        self.queue(client, (job.with_reserved(cost, reservation), answer))
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

    /// Queues an image of a batch once there is room in the queue and `cost` bytes of decode memory are available. It is
    /// computed when no real-time job waits, and has no deadline. Dropping the receiver cancels the job, dropping the future
    /// withdraws it.
    ///
    /// # Errors
    /// [`SubmitError::TooCostly`], and [`SubmitError::Stopped`] after [`Lanes::stop`].
    pub async fn submit_batch(
        &self,
        image: Bytes,
        cost: u64,
    ) -> Result<oneshot::Receiver<LaneReply>, SubmitError> {
        self.memory.check(cost)?;
        let permit = Arc::clone(&self.batch_slots).acquire_owned().await;
        let permit = permit.map_err(|_| SubmitError::Stopped)?;
        let reservation = self.memory.reserve(cost, false).await?;
        let (job, answer) = Job::new(image, None, Some(permit));
        let job = job.with_reserved(cost, reservation);
        let queues = self.queues.lock();
        // The queue has as many slots as there are permits, so it cannot be full for a permit's holder.
        let sent = queues.as_ref().is_some_and(|queues| queues.batch.try_send(job).is_ok());
        if sent { Ok(answer) } else { Err(SubmitError::Stopped) }
    }

    /// As [`Lanes::submit_batch`] without waiting: `None` when there is no room.
    pub fn try_submit_batch(&self, image: Bytes, cost: u64) -> Option<oneshot::Receiver<LaneReply>> {
        let permit = Arc::clone(&self.batch_slots).try_acquire_owned().ok()?;
        let reservation = self.memory.try_reserve(cost)?;
        let (job, answer) = Job::new(image, None, Some(permit));
        self.queues.lock().as_ref()?.batch.try_send(job.with_reserved(cost, reservation)).ok()?;
        Some(answer)
    }

    /// Whether a real-time job of this client would be rejected now, so that a caller can reject before it reads a body.
    pub fn is_full_for(&self, client: Client) -> bool {
        self.queues.lock().as_ref().is_some_and(|queues| queues.real_time.is_full_for(client))
    }

    /// Number of queued real-time jobs.
    pub fn depth(&self) -> usize {
        self.depth.len()
    }

    /// Number of queued batch jobs.
    pub fn batch_depth(&self) -> usize {
        self.batch_depth.len()
    }

    /// Capacity of the real-time queue.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of lanes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Images that all lanes compute at the same time: one per lane on the CPU, one batch per lane on a GPU.
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// Lanes with a working device; fewer than [`Lanes::count`] while one is being rebuilt.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Running fallback lanes on the CPU.
    pub fn fallback_workers(&self) -> usize {
        self.fallback_workers.load(Ordering::Relaxed)
    }

    /// Number of abandoned threads that have not ended, and whether it exceeds the limit for replacement.
    pub fn stuck(&self) -> (usize, bool) {
        (self.stalls.stuck(), self.stalls.is_exhausted())
    }

    /// Whether anything computes.
    pub fn works(&self) -> bool {
        self.alive() + self.fallback_workers() > 0
    }
}
