//! A lane's thread: take a job, skip it or compute it, contain what goes wrong.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use gpu_kernels::decode::Until;
use parking_lot::Mutex;

use super::fair::Claim;
use super::job::{Job, LaneError};
use super::queues::{Closed, LaneQueues};
use super::scheduler::Turn;
use super::stall::Task;
use super::{Classified, DeviceFactory, Encoded, LaneDevice, Turns};
use crate::engine::EngineError;

/// On Linux a thread has its own niceness; one step is about a tenth of the processor's time.
const LANE_NICENESS: i32 = 5;
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Hears what lanes do; metrics implement it.
pub trait LaneObserver: Send + Sync {
    /// A job was computed, in this time of the lane's.
    fn computed(
        &self,
        _lane: usize,
        _busy: Duration,
        _waited: Duration,
        _outcome: &Result<Classified, LaneError>,
    ) {
    }
    /// This many images were computed together.
    fn ran(&self, _images: usize) {}
    /// A job was answered without being computed.
    fn skipped(&self, _lane: usize, _reason: SkipReason) {}
    /// A lane's device panicked or failed and is being built anew.
    fn restarted(&self, _lane: usize) {}
    /// A lane was stuck at an image and is being replaced.
    fn stalled(&self, _lane: usize) {}
    /// A lane's GPU failed, in this way; this many images that it had in hand are computed again elsewhere.
    fn device_failed(&self, _lane: usize, _kind: &'static str, _retried: usize) {}
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl LaneObserver for Unobserved {}

/// Why a job was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// Its client has gone.
    Cancelled,
    /// Its deadline has passed.
    Deadline,
}

/// A busy lane must not keep short work waiting (reading a body, an fsync that has come back): its thread gets a lower
/// priority than the threads that do I/O. It still gets all the time that they leave.
///
/// `background` work also gives way to all other processes, at once and not at the next tick of the scheduler: nobody
/// waits for its next image, and somebody may wait for another's answer.
pub(super) fn yield_to_io(background: bool) {
    #[cfg(target_os = "linux")]
    if background {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
            thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
            Ok(()) => return,
            Err(error) => tracing::debug!(?error, "the lane is no background work to the scheduler"),
        }
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LANE_NICENESS) {
        tracing::debug!(%error, "the lane keeps the common priority");
    }
}

pub(super) struct Worker {
    pub(super) lane: usize,
    /// The number of its model among those that share the device.
    pub(super) model: u64,
    pub(super) queues: LaneQueues,
    /// Whether the lane gives way to all else on the machine.
    pub(super) background: bool,
    /// Batch jobs that are computed together when so many wait; 1 for none.
    pub(super) together: usize,
    /// Real-time jobs that are computed together when so many wait and no lane is idle; 1 for none.
    pub(super) urgent_together: usize,
    /// Lanes that wait for a job.
    pub(super) idle: Arc<AtomicUsize>,
    /// What goes next, each by itself: jobs that were computed together when the device panicked, since one of them is at
    /// fault; and batch jobs that gave way to a real-time job.
    pub(super) first: Arc<Mutex<VecDeque<Vec<Job>>>>,
    /// What it is at, for who watches it.
    pub(super) task: Arc<Task<InHand>>,
    pub(super) turns: Arc<Turns>,
    pub(super) factory: DeviceFactory,
    pub(super) observer: Arc<dyn LaneObserver>,
    pub(super) alive: Arc<AtomicUsize>,
}

/// What a lane is computing.
pub(super) struct InHand {
    pub(super) jobs: Vec<Job>,
    pub(super) begun: Instant,
    pub(super) turn: Turn,
}

/// How a lane stopped serving on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The queues are closed and empty.
    Closed,
    /// The device panicked.
    Panicked,
    /// The lane was stuck, and another has its place.
    GivenUp,
}

/// Whether somebody waits for these in real time.
fn is_urgent(jobs: &[Job]) -> bool {
    jobs.iter().any(|job| job.deadline.is_some())
}

impl Worker {
    /// One like this that takes its jobs from these queues.
    pub(super) fn on_other_queues(&self, queues: LaneQueues) -> Self {
        Self { queues, first: Arc::default(), task: Task::new(), ..self.successor() }
    }

    /// One like this after its thread got stuck: what was deferred is its, what the thread is at is not.
    pub(super) fn successor_of_a_stuck_one(&self) -> Self {
        Self { task: Task::new(), ..self.successor() }
    }

    /// The same again, for a thread.
    pub(super) fn successor(&self) -> Self {
        Self {
            queues: self.queues.clone(),
            first: Arc::clone(&self.first),
            task: Arc::clone(&self.task),
            idle: Arc::clone(&self.idle),
            turns: Arc::clone(&self.turns),
            factory: Arc::clone(&self.factory),
            observer: Arc::clone(&self.observer),
            alive: Arc::clone(&self.alive),
            ..*self
        }
    }

    /// Runs until the queue is closed and empty. The outcome of the first build is sent to `ready`.
    pub(super) fn run(self, device: Option<Box<dyn LaneDevice>>, ready: &Sender<Result<(), EngineError>>) {
        yield_to_io(self.background);
        let built = match device {
            Some(device) => Ok(Ok(device)),
            None => catch_unwind(AssertUnwindSafe(|| (self.factory)(self.lane))),
        };
        let device = match built.unwrap_or(Err(EngineError::BuildPanicked { lane: self.lane })) {
            Ok(device) => device,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        self.alive.fetch_add(1, Ordering::Relaxed);
        let _ = ready.send(Ok(()));
        self.work(device);
    }

    /// Runs in the place of a lane that got stuck.
    pub(super) fn run_again(mut self) {
        yield_to_io(self.background);
        if let Some(device) = self.rebuild() {
            self.alive.fetch_add(1, Ordering::Relaxed);
            self.work(device);
        }
    }

    /// Its thread was given up on while it served.
    pub(super) fn has_lost_its_thread(&self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }

    fn work(mut self, mut device: Box<dyn LaneDevice>) {
        loop {
            let ended = self.serve(device.as_mut());
            if ended != Ended::GivenUp {
                self.alive.fetch_sub(1, Ordering::Relaxed);
            }
            if ended == Ended::Panicked {
                self.observer.restarted(self.lane);
            }
            // Dropping a device that has just panicked may panic again.
            let _ = catch_unwind(AssertUnwindSafe(move || drop(device)));
            if ended != Ended::Panicked {
                return;
            }
            match self.rebuild() {
                Some(new) => device = new,
                None => return,
            }
            self.alive.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Serves jobs until the device is of no use, or nothing comes any more.
    fn serve(&mut self, device: &mut dyn LaneDevice) -> Ended {
        while let Some(jobs) = self.next() {
            let jobs = self.wanted(jobs);
            if jobs.is_empty() {
                continue;
            }
            let (turns, urgent, queue) =
                (Arc::clone(&self.turns), is_urgent(&jobs), self.queues.jobs.clone());
            let turn = turns.take(self.model, move || urgent || !queue.is_empty());
            let jobs =
                self.yield_to_realtime(jobs).into_iter().filter_map(|job| job.has_room(&self.queues.memory));
            let jobs: Vec<Job> = jobs.collect();
            if jobs.is_empty() {
                continue;
            }
            match self.compute(device, jobs, turn) {
                None => {}
                Some(ended) => return ended,
            }
        }
        Ended::Closed
    }

    /// Computes and answers; says so when the device is of no use after it.
    fn compute(&mut self, device: &mut dyn LaneDevice, mut jobs: Vec<Job>, turn: Turn) -> Option<Ended> {
        // With them goes the memory for decoding, which a thread that gets stuck keeps.
        let images: Vec<Bytes> = jobs.iter_mut().map(Job::take_to_decode).collect();
        let untils: Vec<Until> = jobs.iter().map(|job| job.deadline.into()).collect();
        let started = Instant::now();
        self.task.begin(InHand { jobs, begun: started, turn });
        let outcomes = catch_unwind(AssertUnwindSafe(|| {
            let images = images.iter().zip(&untils);
            let images: Vec<_> = images.map(|(bytes, &until)| Encoded { bytes, until }).collect();
            device.classify_all(&images)
        }));
        let Some(InHand { jobs, turn: _turn, .. }) = self.task.finish() else { return Some(Ended::GivenUp) };
        drop(images);
        let panicked = outcomes.is_err();
        if panicked && jobs.len() > 1 {
            self.first.lock().extend(jobs.into_iter().map(|job| vec![job]));
            return Some(Ended::Panicked);
        }
        let busy = started.elapsed() / u32::try_from(jobs.len()).unwrap_or(1);
        let outcomes = outcomes.unwrap_or_default();
        match outcomes.iter().filter(|outcome| outcome.is_ok()).count() {
            0 => {}
            images => self.observer.ran(images),
        }
        let mut outcomes = outcomes.into_iter();
        for job in jobs {
            let outcome = outcomes
                .next()
                .map_or(Err(LaneError::Panicked), |done| done.map_err(|error| job.failed(error)));
            let waited = started.duration_since(job.queued);
            self.observer.computed(self.lane, busy, waited, &outcome);
            // The client may have gone meanwhile; then nobody wants the answer.
            let _ = job.reply.send(outcome.map(|classified| (classified, waited)));
        }
        panicked.then_some(Ended::Panicked)
    }

    /// The next jobs, of batches only when no real-time job waits, and several only when there are enough, so that no
    /// lane idles while another computes what it could. None when both queues are closed and empty.
    fn next(&mut self) -> Option<Vec<Job>> {
        if let Some(jobs) = self.first.lock().pop_front() {
            return Some(jobs);
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        let first = self.queues.next();
        let others_idle = self.idle.fetch_sub(1, Ordering::Relaxed) > 1;
        let first = first?;
        let mut jobs = vec![first];
        match jobs[0].deadline {
            // It may be what a device failed on.
            _ if jobs[0].tried_again => {}
            Some(_) if others_idle || self.queues.line.is_shared() => {}
            Some(_) if self.queues.jobs.len() + 1 >= self.urgent_together => {
                let more = self.queues.jobs.try_iter().take(self.urgent_together - 1);
                jobs.extend(more.filter_map(Claim::take));
            }
            None if self.queues.jobs.is_empty() && self.queues.batch.len() + 1 >= self.together => {
                jobs.extend(self.queues.batch.try_iter().take(self.together - 1));
            }
            _ => {}
        }
        for job in &mut jobs {
            job.place.take();
        }
        Some(jobs)
    }

    /// What is still wanted of these, after a wait for the turn; a real-time job that has come meanwhile goes before batch jobs.
    fn yield_to_realtime(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        // Batch jobs that hold memory for which a real-time job waits are in its way.
        if is_urgent(&jobs) || self.queues.memory.is_wanted() {
            return self.wanted(jobs);
        }
        match self.queues.jobs.try_recv().ok().and_then(Claim::take) {
            Some(urgent) => {
                self.first.lock().push_front(jobs);
                self.wanted(vec![urgent])
            }
            None => jobs,
        }
    }

    fn wanted(&self, jobs: Vec<Job>) -> Vec<Job> {
        let observer = self.observer.as_ref();
        jobs.into_iter().filter_map(|job| job.still_wanted(self.lane, observer)).collect()
    }

    /// Builds the device again, with pauses that grow while it fails. None when the queue was closed meanwhile.
    fn rebuild(&mut self) -> Option<Box<dyn LaneDevice>> {
        let mut pause = BACKOFF_INITIAL;
        loop {
            match catch_unwind(AssertUnwindSafe(|| (self.factory)(self.lane))) {
                Ok(Ok(device)) => {
                    tracing::warn!(lane = self.lane, "lane restarted");
                    return Some(device);
                }
                Ok(Err(error)) => {
                    tracing::error!(lane = self.lane, %error, "lane can't be restarted; trying again");
                }
                Err(_) => {
                    tracing::error!(lane = self.lane, "building the lane's device panicked; trying again");
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(BACKOFF_MAX);
            if self.alive.load(Ordering::Relaxed) == 0 && self.refuse_waiting().is_err() {
                return None;
            }
        }
    }

    /// With no device on any lane the jobs would wait for ever, so they are answered. Err when the queue is closed.
    fn refuse_waiting(&mut self) -> Result<(), Closed> {
        for job in self.first.lock().drain(..).flatten() {
            drop(job.reply.send(Err(LaneError::NoDevice)));
        }
        self.queues.refuse_waiting()
    }
}
