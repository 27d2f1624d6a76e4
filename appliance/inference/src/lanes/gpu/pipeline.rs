//! The loop of a lane on a GPU: takes jobs from the queues, closes batches, answers jobs.
//!
//! Invariants:
//! - Each job is in exactly one place: being decoded, decoded and waiting, in a batch, or answered.
//! - Real-time jobs are batched before batch work, and batch work is taken only while no real-time job waits.
//! - When the device fails, all unanswered jobs that it had are returned.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, TryRecvError, never};

use super::batch_device::{BatchDevice, Computed, Decoded, DeviceError, DeviceEvent, Ticket};
use super::batching::{Decision, View};
use crate::engine::EngineError;
use crate::lanes::job::{Job, LaneError};
use crate::lanes::queues::LaneQueues;
use crate::lanes::{Classified, ClassifyError, LaneObserver, StageTimings};

/// A batch takes milliseconds; one that takes this long will not complete.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which an idle lane checks its device.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Why a lane stopped serving on its device.
pub(super) enum Ended {
    /// The queues are closed and all jobs are answered.
    Closed,
    /// An upgraded device is ready, and all jobs are answered.
    Replaced(Box<dyn BatchDevice>),
    /// The device failed; these jobs are not answered.
    Failed(DeviceError, Vec<Job>),
}

/// The jobs in flight on one device.
pub(super) struct Pipeline<'a> {
    device: &'a mut dyn BatchDevice,
    queues: &'a LaneQueues,
    observer: &'a dyn LaneObserver,
    lane: usize,
    next_ticket: Ticket,
    decoding: HashMap<Ticket, Job>,
    realtime: VecDeque<Ready>,
    batch: VecDeque<Ready>,
    batches: VecDeque<Batch>,
    /// When the batch before the oldest running one was answered.
    answered: Instant,
}

struct Ready {
    ticket: Ticket,
    job: Job,
    decoded: Decoded,
    since: Instant,
}

struct Batch {
    images: Vec<Ready>,
    begun: Instant,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(
        lane: usize,
        device: &'a mut dyn BatchDevice,
        queues: &'a LaneQueues,
        observer: &'a dyn LaneObserver,
    ) -> Self {
        Self {
            device,
            queues,
            observer,
            lane,
            next_ticket: 0,
            decoding: HashMap::new(),
            realtime: VecDeque::new(),
            batch: VecDeque::new(),
            batches: VecDeque::new(),
            answered: Instant::now(),
        }
    }

    /// Serves until the queues are closed, the device fails, or an upgrade is ready.
    pub(super) fn serve(&mut self, upgrade: &Receiver<Box<dyn BatchDevice>>) -> Ended {
        let mut upgrade = upgrade.clone();
        let mut replacement = None;
        let mut closed = false;
        loop {
            if let Err(error) = self.handle_events() {
                return Ended::Failed(error, self.hand_back());
            }
            if self.batches.front().is_some_and(|batch| batch.begun.elapsed() > BATCH_TIMEOUT) {
                return Ended::Failed(DeviceError::Hangs, self.hand_back());
            }
            if replacement.is_none() {
                match upgrade.try_recv() {
                    Ok(device) => replacement = Some(device),
                    Err(TryRecvError::Empty) => {}
                    // It could not be built.
                    Err(TryRecvError::Disconnected) => upgrade = never(),
                }
            }
            let taking = replacement.is_none() && !closed;
            if taking {
                closed = self.take_jobs();
            }
            let until = match self.close_batches() {
                Ok(until) => until,
                Err(error) => return Ended::Failed(error, self.hand_back()),
            };
            if self.in_flight() == 0 {
                if let Some(device) = replacement {
                    return Ended::Replaced(device);
                }
                if closed {
                    return Ended::Closed;
                }
            }
            let taking = taking && !closed && self.in_flight() < self.device.max_in_flight();
            self.wait(taking, &upgrade, until);
        }
    }

    /// All unanswered jobs, to be computed elsewhere.
    pub(super) fn hand_back(&mut self) -> Vec<Job> {
        let batches = self.batches.drain(..).flat_map(|batch| batch.images);
        let ready = self.realtime.drain(..).chain(self.batch.drain(..));
        let mut jobs: Vec<Job> = batches.chain(ready).map(|ready| ready.job).collect();
        let mut decoding: Vec<(Ticket, Job)> = self.decoding.drain().collect();
        decoding.sort_by_key(|(ticket, _)| *ticket);
        jobs.extend(decoding.into_iter().map(|(_, job)| job));
        jobs
    }

    fn in_flight(&self) -> usize {
        let computing: usize = self.batches.iter().map(|batch| batch.images.len()).sum();
        self.decoding.len() + self.realtime.len() + self.batch.len() + computing
    }

    /// Takes jobs up to the device's limit; true when the queues are closed and empty.
    fn take_jobs(&mut self) -> bool {
        while self.in_flight() < self.device.max_in_flight() {
            match self.queues.try_next(self.has_room_for_batch()) {
                Ok(Some(job)) => self.decode(job),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// Batch work leaves room for one batch of real-time work, which would otherwise wait for all jobs in flight.
    fn has_room_for_batch(&self) -> bool {
        self.in_flight() + self.device.batching().max_batch() < self.device.max_in_flight()
    }

    fn decode(&mut self, mut job: Job) {
        job.permit.take();
        let Some(job) = job.still_wanted(self.lane, self.observer) else { return };
        let Some(mut job) = job.with_reservation(&self.queues.memory) else { return };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        // The decoder holds the reservation, also after the job was answered.
        let (image, until) = (job.take_to_decode(), job.deadline.into());
        // Before the call, so that the job is not lost when the device fails or panics.
        self.decoding.insert(ticket, job);
        self.device.decode(ticket, image, until);
    }

    fn handle_events(&mut self) -> Result<(), DeviceError> {
        while let Some(event) = self.device.poll() {
            match event {
                DeviceEvent::Decoded(ticket, outcome) => self.decoded(ticket, outcome),
                DeviceEvent::Computed(outcomes) => self.answer(outcomes),
                DeviceEvent::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn decoded(&mut self, ticket: Ticket, outcome: Result<Decoded, ClassifyError>) {
        let Some(job) = self.decoding.remove(&ticket) else { return };
        match outcome {
            Ok(decoded) => {
                let ready = Ready { ticket, job, decoded, since: Instant::now() };
                match ready.job.deadline {
                    Some(_) => self.realtime.push_back(ready),
                    None => self.batch.push_back(ready),
                }
            }
            Err(error) => {
                let outcome = Err(job.failed(error));
                self.observer.computed(self.lane, Duration::ZERO, job.queued.elapsed(), &outcome);
                // The receiver may be gone.
                let _ = job.reply.send(outcome.map(|classified| (classified, Duration::ZERO)));
            }
        }
    }

    /// Closes batches according to the policy; returns when to decide again.
    fn close_batches(&mut self) -> Result<Option<Instant>, DeviceError> {
        loop {
            let now = Instant::now();
            let oldest = [&self.realtime, &self.batch].into_iter().filter_map(|of| of.front());
            let oldest = oldest.map(|ready| ready.since).min().unwrap_or(now);
            let waiting = self.realtime.len() + self.batch.len();
            let view = View { now, waiting, oldest, in_flight: self.batches.len() };
            match self.device.batching().decide(&view) {
                Decision::Wait(until) => return Ok(until),
                Decision::Close(images) => self.close(images)?,
            }
        }
    }

    fn close(&mut self, most: usize) -> Result<(), DeviceError> {
        let mut images = Vec::with_capacity(most);
        while images.len() < most {
            let Some(ready) = self.realtime.pop_front().or_else(|| self.batch.pop_front()) else { break };
            let Ready { ticket, job, decoded, since } = ready;
            match job.still_wanted(self.lane, self.observer) {
                Some(job) => images.push(Ready { ticket, job, decoded, since }),
                None => self.device.discard(ticket),
            }
        }
        if images.is_empty() {
            return Ok(());
        }
        let tickets: Vec<Ticket> = images.iter().map(|image| image.ticket).collect();
        // Before the call, so that the jobs are not lost when the device fails or panics.
        self.batches.push_back(Batch { images, begun: Instant::now() });
        self.device.begin(&tickets)
    }

    /// Answers the jobs of the oldest running batch.
    fn answer(&mut self, outcomes: Vec<Result<Computed, EngineError>>) {
        let Some(batch) = self.batches.pop_front() else { return };
        let Batch { images, begun } = batch;
        self.observer.ran(images.len());
        // Until the batch before was answered, the device did not compute this one.
        let alone = begun.max(std::mem::replace(&mut self.answered, Instant::now()));
        let busy = alone.elapsed() / u32::try_from(images.len()).unwrap_or(1).max(1);
        let mut outcomes = outcomes.into_iter();
        for Ready { job, decoded, since, .. } in images {
            let outcome = match outcomes.next() {
                Some(Ok(computed)) => Ok(classified(computed, &decoded)),
                Some(Err(error)) => Err(LaneError::Classify(error.into())),
                None => Err(LaneError::Panicked),
            };
            // Time in the queue and until the batch was closed, without the time of decoding.
            let waited = begun.duration_since(job.queued).saturating_sub(decoded.time);
            let waited = waited.max(begun.saturating_duration_since(since));
            self.observer.computed(self.lane, busy, waited, &outcome);
            let _ = job.reply.send(outcome.map(|classified| (classified, waited)));
        }
    }

    /// Waits until there may be something to do.
    fn wait(&self, taking: bool, upgrade: &Receiver<Box<dyn BatchDevice>>, until: Option<Instant>) {
        let mut select = Select::new();
        select.recv(self.device.wakes());
        if taking {
            self.queues.watch(&mut select, self.has_room_for_batch());
            select.recv(upgrade);
        }
        let next_check = Instant::now() + POLL_INTERVAL;
        let _ = select.ready_deadline(until.map_or(next_check, |until| until.min(next_check)));
        // A wake-up is only a hint; jobs and devices are polled in the loop.
        while self.device.wakes().try_recv().is_ok() {}
    }
}

fn classified(computed: Computed, decoded: &Decoded) -> Classified {
    Classified {
        scores: computed.scores,
        format: decoded.format,
        width: decoded.width,
        height: decoded.height,
        timings: StageTimings {
            decode: decoded.time,
            preprocess: computed.preprocess,
            infer: computed.infer,
        },
    }
}
