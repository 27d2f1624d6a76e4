//! What lanes share before there are threads: queues and counts; and the start of the threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::crew::Crew;
use super::fair::{Waiters, fair};
use super::job::Job;
use super::queues::LaneQueues;
use super::stall::Task;
use super::worker::{self, LaneObserver};
use super::{BATCH_JOBS_A_LANE, DeviceFactory, LaneDevice, LaneSettings, Lanes, Queues};
use crate::engine::EngineError;

/// Queues and counts before there are threads.
pub(super) struct Setup {
    pub(super) lanes: Lanes,
    pub(super) queues: LaneQueues,
    pub(super) observer: Arc<dyn LaneObserver>,
    pub(super) alive: Arc<AtomicUsize>,
    pub(super) fallback_workers: Arc<AtomicUsize>,
    pub(super) idle: Arc<AtomicUsize>,
}

impl Setup {
    pub(super) fn new(settings: &LaneSettings, observer: Arc<dyn LaneObserver>) -> Self {
        let (count, capacity) = (settings.count, settings.capacity.max(1));
        let batch_capacity = (count * settings.together.max(1) * BATCH_JOBS_A_LANE).max(1);
        let (send, jobs) = fair(capacity);
        let line = send.line();
        let (send_batch, batch) = bounded::<Job>(batch_capacity);
        let (give_back, again) = unbounded::<Job>();
        let (alive, fallback_workers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let closing = Arc::new(AtomicBool::new(false));
        let lanes = Lanes {
            queues: Mutex::new(Some(Queues { real_time: send, batch: send_batch })),
            depth: jobs.clone(),
            batch_depth: batch.clone(),
            batch_room: Arc::new(Semaphore::new(batch_capacity)),
            capacity,
            again: again.clone(),
            closing: Arc::clone(&closing),
            alive: Arc::clone(&alive),
            fallback_workers: Arc::clone(&fallback_workers),
            threads: Mutex::new(Vec::with_capacity(count)),
            count,
            at_once: count.max(1),
            memory: Arc::clone(&settings.memory),
            waiters: Waiters::default(),
            stalls: Arc::clone(&settings.stalls),
        };
        let memory = Arc::clone(&settings.memory);
        let queues = LaneQueues { again, jobs, line, batch, give_back, closing, memory, until: never() };
        Self { lanes, queues, observer, alive, fallback_workers, idle: Arc::new(AtomicUsize::new(0)) }
    }

    pub(super) fn worker(
        &self,
        lane: usize,
        model: u64,
        settings: &LaneSettings,
        factory: &DeviceFactory,
    ) -> worker::Worker {
        worker::Worker {
            lane,
            model,
            queues: self.queues.clone(),
            together: settings.together.max(1),
            urgent_together: settings.urgent_together.max(1),
            background: settings.background,
            first: Arc::default(),
            task: Task::new(),
            turns: Arc::clone(&settings.turns),
            factory: Arc::clone(factory),
            observer: Arc::clone(&self.observer),
            alive: Arc::clone(&self.alive),
            idle: Arc::clone(&self.idle),
        }
    }

    /// Starts a thread for each and waits until all have said how they began.
    pub(super) fn spawn<W>(self, count: usize, workers: Vec<W>) -> Result<Lanes, EngineError>
    where
        W: FnOnce(&Sender<Result<(), EngineError>>) + Send + 'static,
    {
        let lanes = self.lanes;
        let (ready, started) = bounded(count);
        for (lane, worker) in workers.into_iter().enumerate() {
            let ready = ready.clone();
            let thread = std::thread::Builder::new().name(format!("weir-lane-{lane}"));
            let thread = thread.spawn(move || worker(&ready)).map_err(EngineError::Thread)?;
            lanes.threads.lock().push(thread);
        }
        drop(ready);
        Self::begun(lanes, count, &started)
    }

    /// Starts the threads of lanes on the CPU, each on the device that is there for it if one is, and waits until all have said
    /// how they began.
    pub(super) fn start_crew(
        self,
        workers: Vec<(worker::Worker, Option<Box<dyn LaneDevice>>)>,
    ) -> Result<Lanes, EngineError> {
        let (lanes, count) = (self.lanes, workers.len());
        let (ready, started) = bounded(count);
        let crew = Crew::start(workers, &lanes.stalls, "weir-lane", &ready)?;
        lanes.threads.lock().push(crew.watched()?);
        drop(ready);
        Self::begun(lanes, count, &started)
    }

    fn begun(
        lanes: Lanes,
        count: usize,
        started: &Receiver<Result<(), EngineError>>,
    ) -> Result<Lanes, EngineError> {
        for outcome in started.iter().take(count) {
            if let Err(error) = outcome {
                lanes.stop();
                return Err(error);
            }
        }
        Ok(lanes)
    }
}
