//! Start and end of a model's lanes: the shared queues and counters, the threads, and the drain at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::cpu::{Crew, DeviceFactory, LaneDevice, Worker};
use super::fair::{Waiters, fair};
use super::job::Job;
use super::queues::LaneQueues;
use super::stall::Task;
use super::{BATCH_JOBS_PER_LANE, LaneError, LaneObserver, LaneSettings, Lanes, Queues};
use crate::engine::EngineError;

/// Queues and counters before there are threads.
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
        let batch_capacity = (count * settings.batch_size.max(1) * BATCH_JOBS_PER_LANE).max(1);
        let (send, jobs) = fair(capacity);
        let contention = send.contention();
        let (send_batch, batch) = bounded::<Job>(batch_capacity);
        let (retry_tx, retry_rx) = unbounded::<Job>();
        let (alive, fallback_workers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let closing = Arc::new(AtomicBool::new(false));
        let lanes = Lanes {
            queues: Mutex::new(Some(Queues { real_time: send, batch: send_batch })),
            depth: jobs.clone(),
            batch_depth: batch.clone(),
            batch_slots: Arc::new(Semaphore::new(batch_capacity)),
            capacity,
            retry_rx: retry_rx.clone(),
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
        let queues =
            LaneQueues { retry_rx, jobs, contention, batch, retry_tx, closing, memory, cancel: never() };
        Self { lanes, queues, observer, alive, fallback_workers, idle: Arc::new(AtomicUsize::new(0)) }
    }

    pub(super) fn worker(
        &self,
        lane: usize,
        model: u64,
        settings: &LaneSettings,
        factory: &DeviceFactory,
    ) -> Worker {
        Worker {
            lane,
            model,
            queues: self.queues.clone(),
            batch_size: settings.batch_size.max(1),
            realtime_batch_size: settings.realtime_batch_size.max(1),
            background: settings.background,
            deferred: Arc::default(),
            task: Task::new(),
            turns: Arc::clone(&settings.turns),
            factory: Arc::clone(factory),
            observer: Arc::clone(&self.observer),
            alive: Arc::clone(&self.alive),
            idle: Arc::clone(&self.idle),
        }
    }

    /// Starts one thread per worker and waits until all have reported their first build.
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
        Self::await_start(lanes, count, &started)
    }

    /// Starts the threads of lanes on the CPU, each on its prebuilt device if there is one, and waits until all have reported
    /// their first build.
    pub(super) fn start_crew(
        self,
        workers: Vec<(Worker, Option<Box<dyn LaneDevice>>)>,
    ) -> Result<Lanes, EngineError> {
        let (lanes, count) = (self.lanes, workers.len());
        let (ready, started) = bounded(count);
        let crew = Crew::start(workers, &lanes.stalls, "weir-lane", &ready)?;
        lanes.threads.lock().push(crew.watched()?);
        drop(ready);
        Self::await_start(lanes, count, &started)
    }

    fn await_start(
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

/// The threads to join, and the queue of jobs to answer at the end.
struct Shutdown {
    threads: Vec<JoinHandle<()>>,
    retry_rx: Receiver<Job>,
}

impl Lanes {
    /// Rejects new jobs, finishes queued ones, and joins the threads; blocks.
    pub fn stop(&self) {
        self.close().join();
    }

    fn close(&self) -> Shutdown {
        self.batch_slots.close();
        self.closing.store(true, Ordering::Release);
        self.queues.lock().take();
        Shutdown { threads: self.threads.lock().drain(..).collect(), retry_rx: self.retry_rx.clone() }
    }
}

impl Shutdown {
    fn join(self) {
        for thread in self.threads {
            // A worker contains its devices' panics; there is nothing to report for one that did not.
            let _ = thread.join();
        }
        // Jobs that the last device returned when no lane was left.
        for job in self.retry_rx.try_iter() {
            let _ = job.reply.send(Err(LaneError::DeviceFailed));
        }
    }
}

impl Drop for Lanes {
    /// The last owner of a model may be a request on an I/O thread: within a runtime the lanes are joined on a thread of their
    /// own.
    fn drop(&mut self) {
        let shutdown = self.close();
        if shutdown.threads.is_empty() || Handle::try_current().is_err() {
            return shutdown.join();
        }
        let join = move || shutdown.join();
        if let Err(error) = std::thread::Builder::new().name("weir-lanes-end".to_owned()).spawn(join) {
            // They end once their queues are closed; they are not joined.
            tracing::warn!(%error, "cannot start a thread to join the lanes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use crate::lanes::tests::classified;
    use crate::lanes::{Classified, ClassifyError, Unobserved};

    /// Reports that it has started, and waits until it is released.
    struct Slow(Sender<()>, Receiver<()>);

    impl LaneDevice for Slow {
        fn classify(&mut self, _: &[u8]) -> Result<Classified, ClassifyError> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(classified(1.0))
        }
    }

    #[tokio::test]
    async fn lanes_that_are_dropped_on_an_io_thread_do_not_hold_it_up() {
        let ((begun, has_begun), (go_on, may_go_on)) = (bounded(1), bounded(1));
        let factory =
            Arc::new(move |_| Ok(Box::new(Slow(begun.clone(), may_go_on.clone())) as Box<dyn LaneDevice>));
        let lanes = Lanes::start(&LaneSettings::new(1, 4), factory, Arc::new(Unobserved)).unwrap();
        let submit = || lanes.submit(Bytes::from_static(b"image"), Instant::now() + Duration::from_secs(600));
        let (in_hand, waiting) = (submit().unwrap(), submit().unwrap());
        has_begun.recv().unwrap();
        // The first image is finished only below: joined here, the lane would never end.
        drop(lanes);
        go_on.send(()).unwrap();
        in_hand.await.unwrap().unwrap();
        go_on.send(()).unwrap();
        waiting.await.unwrap().unwrap();
    }
}
