//! A lane of a GPU at work: what it takes from the queues, when it closes a batch, whom it answers.
//!
//! Invariants:
//! - Each job is in exactly one place: with the device to be decoded, decoded and waiting, in a batch, or answered.
//! - Real-time jobs go into a batch before batch work, and batch work is taken only while no real-time job waits.
//! - When the device fails, every job that it had is handed back; none of them was answered.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, TryRecvError, never};

use super::batch_device::{BatchDevice, Computed, Decoded, DeviceError, DeviceEvent, Ticket};
use super::batching::{Decision, View};
use super::job::{Job, LaneError};
use super::queues::LaneQueues;
use super::{Classified, LaneObserver, SkipReason, StageTimings};

/// A batch takes milliseconds; one that takes this long will not end.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a lane that has nothing to do looks whether its device still works.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Why a lane stopped serving on its device.
pub(super) enum Ended {
    /// The queues are closed and everything is answered.
    Closed,
    /// Another device has come, and everything is answered.
    Replaced(Box<dyn BatchDevice>),
    /// The device is of no use; these jobs were with it.
    Failed(DeviceError, Vec<Job>),
}

/// What a lane has in hand on one device.
pub(super) struct Pipeline<'a> {
    device: &'a mut dyn BatchDevice,
    queues: &'a LaneQueues,
    observer: &'a dyn LaneObserver,
    lane: usize,
    next_ticket: Ticket,
    decoding: HashMap<Ticket, Job>,
    urgent: VecDeque<Ready>,
    patient: VecDeque<Ready>,
    batches: VecDeque<Batch>,
    /// When the batch before the first of those was answered.
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
            urgent: VecDeque::new(),
            patient: VecDeque::new(),
            batches: VecDeque::new(),
            answered: Instant::now(),
        }
    }

    /// Serves until the queues are closed, the device fails, or another comes.
    pub(super) fn serve(&mut self, better: &Receiver<Box<dyn BatchDevice>>) -> Ended {
        let mut better = better.clone();
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
                match better.try_recv() {
                    Ok(device) => replacement = Some(device),
                    Err(TryRecvError::Empty) => {}
                    // It was not built after all.
                    Err(TryRecvError::Disconnected) => better = never(),
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
            if self.in_hand() == 0 {
                if let Some(device) = replacement {
                    return Ended::Replaced(device);
                }
                if closed {
                    return Ended::Closed;
                }
            }
            let taking = taking && !closed && self.in_hand() < self.device.window();
            self.wait(taking, &better, until);
        }
    }

    /// Everything that the device has, to be computed elsewhere.
    pub(super) fn hand_back(&mut self) -> Vec<Job> {
        let batches = self.batches.drain(..).flat_map(|batch| batch.images);
        let ready = self.urgent.drain(..).chain(self.patient.drain(..));
        let mut jobs: Vec<Job> = batches.chain(ready).map(|ready| ready.job).collect();
        let mut decoding: Vec<(Ticket, Job)> = self.decoding.drain().collect();
        decoding.sort_by_key(|(ticket, _)| *ticket);
        jobs.extend(decoding.into_iter().map(|(_, job)| job));
        jobs
    }

    fn in_hand(&self) -> usize {
        let computing: usize = self.batches.iter().map(|batch| batch.images.len()).sum();
        self.decoding.len() + self.urgent.len() + self.patient.len() + computing
    }

    /// Takes what there is room for; true when the queues are closed and empty.
    fn take_jobs(&mut self) -> bool {
        while self.in_hand() < self.device.window() {
            match self.queues.try_next(self.has_room_for_patient()) {
                Ok(Some(job)) => self.decode(job),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// Batch work leaves room for a batch of real-time work, which would wait for all that is in hand.
    fn has_room_for_patient(&self) -> bool {
        self.in_hand() + self.device.batching().max_batch() < self.device.window()
    }

    fn decode(&mut self, mut job: Job) {
        job.place.take();
        let Some(job) = job.still_wanted(self.lane, self.observer) else { return };
        let Some(mut job) = job.has_room(&self.queues.memory) else { return };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        // The decoder holds the memory that it may take, whatever becomes of the job.
        let (image, until) = (job.take_to_decode(), job.deadline.into());
        // First of all, so that the job is found here whatever happens.
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

    fn decoded(&mut self, ticket: Ticket, outcome: Result<Decoded, super::ClassifyError>) {
        let Some(job) = self.decoding.remove(&ticket) else { return };
        match outcome {
            Ok(decoded) => {
                let ready = Ready { ticket, job, decoded, since: Instant::now() };
                match ready.job.deadline {
                    Some(_) => self.urgent.push_back(ready),
                    None => self.patient.push_back(ready),
                }
            }
            Err(error) => {
                let outcome = Err(job.failed(error));
                self.observer.computed(self.lane, Duration::ZERO, job.queued.elapsed(), &outcome);
                // The client may have gone meanwhile; then nobody wants the answer.
                let _ = job.reply.send(outcome.map(|classified| (classified, Duration::ZERO)));
            }
        }
    }

    /// Closes what the policy says; until when it is to be asked again.
    fn close_batches(&mut self) -> Result<Option<Instant>, DeviceError> {
        loop {
            let now = Instant::now();
            let oldest = [&self.urgent, &self.patient].into_iter().filter_map(|of| of.front());
            let oldest = oldest.map(|ready| ready.since).min().unwrap_or(now);
            let waiting = self.urgent.len() + self.patient.len();
            let view = View { now, waiting, oldest, on_the_way: self.batches.len() };
            match self.device.batching().decide(&view) {
                Decision::Wait(until) => return Ok(until),
                Decision::Close(images) => self.close(images)?,
            }
        }
    }

    fn close(&mut self, most: usize) -> Result<(), DeviceError> {
        let mut images = Vec::with_capacity(most);
        while images.len() < most {
            let Some(ready) = self.urgent.pop_front().or_else(|| self.patient.pop_front()) else { break };
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
        // Even if the device fails on it: the jobs are then found here.
        self.batches.push_back(Batch { images, begun: Instant::now() });
        self.device.begin(&tickets)
    }

    /// Answers the jobs of the batch that was begun first.
    fn answer(&mut self, outcomes: Vec<Result<Computed, crate::engine::EngineError>>) {
        let Some(batch) = self.batches.pop_front() else { return };
        let Batch { images, begun } = batch;
        self.observer.ran(images.len());
        // While the batch before was computed the device was not at this one.
        let alone = begun.max(std::mem::replace(&mut self.answered, Instant::now()));
        let busy = alone.elapsed() / u32::try_from(images.len()).unwrap_or(1).max(1);
        let mut outcomes = outcomes.into_iter();
        for Ready { job, decoded, since, .. } in images {
            let outcome = match outcomes.next() {
                Some(Ok(computed)) => Ok(classified(computed, &decoded)),
                Some(Err(error)) => Err(LaneError::Classify(error.into())),
                None => Err(LaneError::Panicked),
            };
            // The queue, and the wait for a batch; not what it took to decode it.
            let waited = begun.duration_since(job.queued).saturating_sub(decoded.time);
            let waited = waited.max(begun.saturating_duration_since(since));
            self.observer.computed(self.lane, busy, waited, &outcome);
            let _ = job.reply.send(outcome.map(|classified| (classified, waited)));
        }
    }

    /// Sleeps until there may be something to do.
    fn wait(&self, taking: bool, better: &Receiver<Box<dyn BatchDevice>>, until: Option<Instant>) {
        let mut select = Select::new();
        select.recv(self.device.wakes());
        if taking {
            self.queues.watch(&mut select, self.has_room_for_patient());
            select.recv(better);
        }
        let look = Instant::now() + POLL_INTERVAL;
        let _ = select.ready_deadline(until.map_or(look, |until| until.min(look)));
        // A wake is a hint that has done its work; jobs and devices are taken where they are looked for.
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

impl Job {
    /// The job, unless nobody waits for it any more, who is told so then.
    pub(super) fn still_wanted(self, lane: usize, observer: &dyn LaneObserver) -> Option<Self> {
        if self.reply.is_closed() {
            observer.skipped(lane, SkipReason::Cancelled);
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            observer.skipped(lane, SkipReason::Deadline);
            let _ = self.reply.send(Err(LaneError::DeadlinePassed));
            return None;
        }
        Some(self)
    }
}
