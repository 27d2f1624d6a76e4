//! The loop of a lane on the CPU: take jobs, skip or compute them, contain failures.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use gpu_kernels::decode::Until;
use parking_lot::Mutex;

use super::{DeviceFactory, LaneDevice};
use crate::engine::EngineError;
use crate::lanes::decoder::Encoded;
use crate::lanes::fair::Claim;
use crate::lanes::job::{Job, LaneError};
use crate::lanes::queues::{Closed, LaneQueues};
use crate::lanes::scheduler::Turn;
use crate::lanes::stall::Task;
use crate::lanes::{LaneObserver, Turns};

/// On Linux the niceness is per thread; one step is about a tenth of the processor's time.
const LANE_NICENESS: i32 = 5;
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Lowers the thread's priority below that of the I/O threads: a busy lane must not delay short work (reading a body,
/// returning from an fsync). It still gets all the time that they leave.
///
/// `background` work also yields to all other processes, at once and not at the scheduler's next tick: no client waits for its
/// next image.
pub(in crate::lanes) fn yield_to_io(background: bool) {
    #[cfg(target_os = "linux")]
    if background {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
            thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
            Ok(()) => return,
            Err(error) => tracing::debug!(?error, "cannot set the idle scheduling policy"),
        }
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LANE_NICENESS) {
        tracing::debug!(%error, "cannot lower the lane's priority");
    }
}

pub(in crate::lanes) struct Worker {
    pub(in crate::lanes) lane: usize,
    /// The number of its model, as registered with the turns.
    pub(in crate::lanes) model: u64,
    pub(in crate::lanes) queues: LaneQueues,
    /// Whether the lane yields to everything else on the machine.
    pub(in crate::lanes) background: bool,
    /// Batch jobs that are computed together when that many wait; 1 disables it.
    pub(in crate::lanes) batch_size: usize,
    /// Real-time jobs that are computed together when that many wait and no lane is idle; 1 disables it.
    pub(in crate::lanes) realtime_batch_size: usize,
    /// Number of lanes that wait for a job.
    pub(in crate::lanes) idle: Arc<AtomicUsize>,
    /// Groups of jobs to compute next: each job of a group on which the device panicked, alone, since one of them is at fault;
    /// and batch jobs that yielded to a real-time job.
    pub(in crate::lanes) deferred: Arc<Mutex<VecDeque<Vec<Job>>>>,
    /// What the lane works on, shared with the watcher.
    pub(in crate::lanes) task: Arc<Task<InFlight>>,
    pub(in crate::lanes) turns: Arc<Turns>,
    pub(in crate::lanes) factory: DeviceFactory,
    pub(in crate::lanes) observer: Arc<dyn LaneObserver>,
    pub(in crate::lanes) alive: Arc<AtomicUsize>,
}

/// The jobs that a lane computes.
pub(in crate::lanes) struct InFlight {
    pub(in crate::lanes) jobs: Vec<Job>,
    pub(in crate::lanes) begun: Instant,
    pub(in crate::lanes) turn: Turn,
}

/// Why a lane stopped serving on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The queues are closed and empty.
    Closed,
    /// The device panicked.
    Panicked,
    /// The lane was stuck and has been replaced.
    Abandoned,
}

/// Whether a client waits for any of these in real time.
fn is_realtime(jobs: &[Job]) -> bool {
    jobs.iter().any(|job| job.deadline.is_some())
}

impl Worker {
    /// A copy of this worker for other queues.
    pub(in crate::lanes) fn on_other_queues(&self, queues: LaneQueues) -> Self {
        Self { queues, deferred: Arc::default(), task: Task::new(), ..self.successor() }
    }

    /// A copy of this worker that replaces a stuck one: it takes over the deferred jobs, but not the current task.
    pub(in crate::lanes) fn successor_of_stuck(&self) -> Self {
        Self { task: Task::new(), ..self.successor() }
    }

    /// A copy of this worker for its thread.
    pub(in crate::lanes) fn successor(&self) -> Self {
        Self {
            queues: self.queues.clone(),
            deferred: Arc::clone(&self.deferred),
            task: Arc::clone(&self.task),
            idle: Arc::clone(&self.idle),
            turns: Arc::clone(&self.turns),
            factory: Arc::clone(&self.factory),
            observer: Arc::clone(&self.observer),
            alive: Arc::clone(&self.alive),
            ..*self
        }
    }

    /// Serves until the queues are closed and empty. The outcome of the first build is sent to `ready`.
    pub(in crate::lanes) fn run(
        self,
        device: Option<Box<dyn LaneDevice>>,
        ready: &Sender<Result<(), EngineError>>,
    ) {
        yield_to_io(self.background);
        let device = match device.map_or_else(|| self.build(), Ok) {
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

    /// Serves in place of a stuck lane.
    pub(in crate::lanes) fn run_again(mut self) {
        yield_to_io(self.background);
        if let Some(device) = self.rebuild() {
            self.alive.fetch_add(1, Ordering::Relaxed);
            self.work(device);
        }
    }

    /// Accounts for a thread that was abandoned while it served.
    pub(in crate::lanes) fn mark_thread_lost(&self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }

    fn work(mut self, mut device: Box<dyn LaneDevice>) {
        loop {
            let ended = self.serve(device.as_mut());
            if ended != Ended::Abandoned {
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

    /// Serves jobs until the device fails or the queues are closed and empty.
    fn serve(&mut self, device: &mut dyn LaneDevice) -> Ended {
        while let Some(jobs) = self.next() {
            let jobs = self.drop_unwanted(jobs);
            if jobs.is_empty() {
                continue;
            }
            let (turns, realtime, queue) =
                (Arc::clone(&self.turns), is_realtime(&jobs), self.queues.jobs.clone());
            let turn = turns.take(self.model, move || realtime || !queue.is_empty());
            let jobs = self
                .yield_to_realtime(jobs)
                .into_iter()
                .filter_map(|job| job.with_reservation(&self.queues.memory));
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

    /// Computes and answers jobs; returns why serving must end, if it must.
    fn compute(&mut self, device: &mut dyn LaneDevice, mut jobs: Vec<Job>, turn: Turn) -> Option<Ended> {
        // The reservations go with the images; a thread that gets stuck keeps them.
        let images: Vec<Bytes> = jobs.iter_mut().map(Job::take_to_decode).collect();
        let untils: Vec<Until> = jobs.iter().map(|job| job.deadline.into()).collect();
        let started = Instant::now();
        self.task.begin(InFlight { jobs, begun: started, turn });
        let outcomes = catch_unwind(AssertUnwindSafe(|| {
            let images = images.iter().zip(&untils);
            let images: Vec<_> = images.map(|(bytes, &until)| Encoded { bytes, until }).collect();
            device.classify_all(&images)
        }));
        let Some(InFlight { jobs, turn: _turn, .. }) = self.task.finish() else {
            return Some(Ended::Abandoned);
        };
        drop(images);
        let panicked = outcomes.is_err();
        if panicked && jobs.len() > 1 {
            self.deferred.lock().extend(jobs.into_iter().map(|job| vec![job]));
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
            // The receiver may be gone.
            let _ = job.reply.send(outcome.map(|classified| (classified, waited)));
        }
        panicked.then_some(Ended::Panicked)
    }

    /// The next jobs: batch work only when no real-time job waits, and several only when there are enough, so that no lane is
    /// idle while another computes. `None` when the queues are closed and empty.
    fn next(&mut self) -> Option<Vec<Job>> {
        if let Some(jobs) = self.deferred.lock().pop_front() {
            return Some(jobs);
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        let first = self.queues.next();
        let others_idle = self.idle.fetch_sub(1, Ordering::Relaxed) > 1;
        let first = first?;
        let mut jobs = vec![first];
        match jobs[0].deadline {
            // A retried job may be the one on which a device failed.
            _ if jobs[0].tried_again => {}
            Some(_) if others_idle || self.queues.contention.is_shared() => {}
            Some(_) if self.queues.jobs.len() + 1 >= self.realtime_batch_size => {
                let more = self.queues.jobs.try_iter().take(self.realtime_batch_size - 1);
                jobs.extend(more.filter_map(Claim::take));
            }
            None if self.queues.jobs.is_empty() && self.queues.batch.len() + 1 >= self.batch_size => {
                jobs.extend(self.queues.batch.try_iter().take(self.batch_size - 1));
            }
            _ => {}
        }
        for job in &mut jobs {
            job.permit.take();
        }
        Some(jobs)
    }

    /// Drops jobs that are no longer wanted after the wait for a turn; a real-time job that arrived meanwhile goes before
    /// batch jobs.
    fn yield_to_realtime(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        // Batch jobs that hold memory for which a real-time job waits are computed first.
        if is_realtime(&jobs) || self.queues.memory.is_wanted() {
            return self.drop_unwanted(jobs);
        }
        match self.queues.jobs.try_recv().ok().and_then(Claim::take) {
            Some(realtime) => {
                self.deferred.lock().push_front(jobs);
                self.drop_unwanted(vec![realtime])
            }
            None => jobs,
        }
    }

    fn drop_unwanted(&self, jobs: Vec<Job>) -> Vec<Job> {
        let observer = self.observer.as_ref();
        jobs.into_iter().filter_map(|job| job.still_wanted(self.lane, observer)).collect()
    }

    fn build(&self) -> Result<Box<dyn LaneDevice>, EngineError> {
        let built = catch_unwind(AssertUnwindSafe(|| (self.factory)(self.lane)));
        built.unwrap_or(Err(EngineError::BuildPanicked { lane: self.lane }))
    }

    /// Rebuilds the device, with exponential backoff. `None` when the queues were closed meanwhile.
    fn rebuild(&mut self) -> Option<Box<dyn LaneDevice>> {
        let mut pause = BACKOFF_INITIAL;
        loop {
            match self.build() {
                Ok(device) => {
                    tracing::warn!(lane = self.lane, "device rebuilt");
                    return Some(device);
                }
                Err(error) => {
                    tracing::error!(lane = self.lane, %error, "cannot rebuild the device; retrying");
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(BACKOFF_MAX);
            if self.alive.load(Ordering::Relaxed) == 0 && self.refuse_waiting().is_err() {
                return None;
            }
        }
    }

    /// Answers all jobs, since no lane has a device. Err when the queues are closed.
    fn refuse_waiting(&mut self) -> Result<(), Closed> {
        for job in self.deferred.lock().drain(..).flatten() {
            drop(job.reply.send(Err(LaneError::NoDevice)));
        }
        self.queues.refuse_waiting()
    }
}
