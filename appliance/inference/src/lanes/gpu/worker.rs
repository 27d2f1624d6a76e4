//! The thread of a lane on a GPU: it serves on its device; when that fails it returns the jobs in flight, has the device
//! rebuilt, and starts fallback lanes on the CPU meanwhile.

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::batch_device::{BatchDevice, BatchFactory, Builder, Built, DeviceError};
use super::pipeline::{Ended, Pipeline};
use crate::engine::EngineError;
use crate::lanes::cpu::{Crew, DeviceFactory, Worker};
use crate::lanes::queues::LaneQueues;
use crate::lanes::{LaneObserver, LaneSettings, Stalls};

const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
/// A lost GPU may recover; each attempt takes seconds of the driver's time.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An attempt to build takes seconds; beyond this, waiting jobs are rejected.
const LONG_ATTEMPT: Duration = Duration::from_secs(30);
/// The limit while the lanes are closing: waiting jobs are then answered within the grace period of a shutdown.
const LONG_ATTEMPT_AT_THE_END: Duration = Duration::from_secs(5);
/// Interval at which a waiting thread checks whether it is still needed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of the lanes on the CPU that compute while no GPU works.
#[derive(Clone)]
pub struct CpuFallback {
    /// Settings of these lanes.
    pub lanes: LaneSettings,
    /// Builds their devices.
    pub factory: DeviceFactory,
}

pub(in crate::lanes) struct BatchWorker {
    pub(in crate::lanes) lane: usize,
    pub(in crate::lanes) queues: LaneQueues,
    pub(in crate::lanes) factory: BatchFactory,
    pub(in crate::lanes) observer: Arc<dyn LaneObserver>,
    /// Number of lanes with a working device.
    pub(in crate::lanes) alive: Arc<AtomicUsize>,
    /// Number of running fallback lanes.
    pub(in crate::lanes) fallback_workers: Arc<AtomicUsize>,
    /// Whether an upgrade is being built.
    pub(in crate::lanes) building: Arc<AtomicBool>,
    /// Whether a lane has started its fallback; shared by the lanes.
    pub(in crate::lanes) fallback_claimed: Arc<AtomicBool>,
    /// Stall detection for the fallback lanes.
    pub(in crate::lanes) stalls: Arc<Stalls>,
    /// The fallback of this lane.
    pub(in crate::lanes) fallback: Option<Vec<Worker>>,
}

impl BatchWorker {
    /// Runs until the queues are closed and empty. The outcome of the first build is sent to `ready`.
    pub(in crate::lanes) fn run(self, built: Option<Built>, ready: &Sender<Result<(), EngineError>>) {
        let built = match built {
            Some(built) => Ok(built),
            None => build(&self.factory, self.lane),
        };
        let mut next = match built {
            Ok(built) => Some(built),
            // A fault of the GPU may be temporary, one of the model is not.
            Err(error) if self.fallback.is_some() && error.is_of_the_device() => {
                tracing::error!(lane = self.lane, %error, "GPU not usable; falling back to the CPU");
                None
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let mut failed = None;
        loop {
            let built = next.take().or_else(|| self.recover(failed.take()));
            let Some(Built { device, upgrade }) = built else { return };
            self.alive.fetch_add(1, Ordering::Relaxed);
            failed = self.serve(device, upgrade);
            if failed.is_none() {
                return;
            }
            self.observer.restarted(self.lane);
        }
    }

    /// Serves until the queues are closed and empty, or until the device fails, which is then returned.
    fn serve(
        &self,
        mut device: Box<dyn BatchDevice>,
        upgrade: Option<Builder>,
    ) -> Option<Box<dyn BatchDevice>> {
        let mut upgrade = upgrade.map_or_else(never, |builder| self.build_upgrade(builder));
        loop {
            let ended = {
                let mut pipeline =
                    Pipeline::new(self.lane, device.as_mut(), &self.queues, self.observer.as_ref());
                let served = catch_unwind(AssertUnwindSafe(|| pipeline.serve(&upgrade)));
                served.unwrap_or_else(|_| Ended::Failed(DeviceError::Panicked, pipeline.hand_back()))
            };
            match ended {
                Ended::Closed => {
                    self.alive.fetch_sub(1, Ordering::Relaxed);
                    return None;
                }
                Ended::Replaced(new) => {
                    device = new;
                    upgrade = never();
                    tracing::info!(lane = self.lane, "switched to the upgraded engine");
                }
                Ended::Failed(error, jobs) => {
                    // Before anything that may take long: clients wait for these jobs, and other lanes may be idle.
                    self.alive.fetch_sub(1, Ordering::Relaxed);
                    let in_flight = jobs.len();
                    let retried = self.queues.requeue(jobs);
                    tracing::error!(lane = self.lane, %error, in_flight, retried, "device failed");
                    self.observer.device_failed(self.lane, error.kind(), retried);
                    return Some(device);
                }
            }
        }
    }

    /// Builds an upgraded device on a thread of its own. If that fails, the first one continues to serve.
    fn build_upgrade(&self, builder: Builder) -> Receiver<Box<dyn BatchDevice>> {
        let (send, receive) = bounded(1);
        let lane = self.lane;
        // One at a time: it takes minutes, and a second one would write the same files.
        let Some(mine) = Token::take(&self.building) else { return receive };
        let build = move || {
            let _mine = mine;
            match catch_unwind(AssertUnwindSafe(builder)) {
                Ok(Ok(device)) => drop(send.send(device)),
                Ok(Err(error)) => {
                    tracing::error!(lane, %error, "cannot build the upgraded engine; keeping the first");
                }
                Err(_) => tracing::error!(lane, "building the upgraded engine panicked; keeping the first"),
            }
        };
        let thread = std::thread::Builder::new().name(format!("weir-engine-{lane}"));
        if let Err(error) = thread.spawn(build) {
            tracing::error!(lane, %error, "cannot build the upgraded engine; keeping the first");
        }
        receive
    }

    /// Replaces a failed device. `None` when the queues were closed meanwhile.
    fn recover(&self, failed: Option<Box<dyn BatchDevice>>) -> Option<Built> {
        let end = Arc::new(AtomicBool::new(false));
        let (attempts, builder) = self.rebuild(failed, Arc::clone(&end))?;
        let mut running = None;
        let mut attempt_began = Instant::now();
        let built = loop {
            if running.as_ref().is_some_and(RunningFallback::has_ended)
                || self.alive.load(Ordering::Relaxed) > 0
            {
                // The fallback could not be built, or a GPU works again.
                running = None;
            }
            if running.is_none() && !self.others_work() {
                running = self.start_fallback();
            }
            match attempts.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(built)) => break Some(built),
                Ok(Err(error)) => {
                    tracing::error!(lane = self.lane, %error, "cannot rebuild the device; retrying");
                    attempt_began = Instant::now();
                    if self.nothing_computes(running.as_ref()) && self.queues.refuse_waiting().is_err() {
                        break None;
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    // An attempt may hang in the driver.
                    let bound = if self.queues.is_closing() { LONG_ATTEMPT_AT_THE_END } else { LONG_ATTEMPT };
                    let long = attempt_began.elapsed() > bound;
                    if long
                        && self.nothing_computes(running.as_ref())
                        && self.queues.refuse_waiting().is_err()
                    {
                        break None;
                    }
                    if self.queues.is_closed() && running.as_ref().is_none_or(RunningFallback::has_ended) {
                        break None;
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break None,
            }
        };
        end.store(true, Ordering::Release);
        if built.is_some() {
            tracing::warn!(lane = self.lane, "device rebuilt");
        }
        drop(running);
        // It ends after its current attempt; a driver that hangs must not block the lane.
        drop(builder);
        built
    }

    /// Whether no lane, not even a fallback one, will take the queued jobs.
    fn nothing_computes(&self, running: Option<&RunningFallback>) -> bool {
        let nobody = self.fallback.is_none() || running.is_some_and(RunningFallback::has_ended);
        nobody && !self.others_work()
    }

    fn others_work(&self) -> bool {
        self.alive.load(Ordering::Relaxed) + self.fallback_workers.load(Ordering::Relaxed) > 0
    }

    /// Builds on a thread of its own, with exponential backoff, until it succeeds or `end` is set; drops the failed device
    /// first.
    #[allow(clippy::type_complexity, reason = "a channel and a thread")]
    fn rebuild(
        &self,
        failed: Option<Box<dyn BatchDevice>>,
        end: Arc<AtomicBool>,
    ) -> Option<(Receiver<Result<Built, EngineError>>, JoinHandle<()>)> {
        let (send, receive) = bounded(1);
        let (factory, lane) = (Arc::clone(&self.factory), self.lane);
        let build = move || {
            // Dropping a device that has just failed may fail as well, and take long.
            let _ = catch_unwind(AssertUnwindSafe(move || drop(failed)));
            let mut pause = BACKOFF_INITIAL;
            while !end.load(Ordering::Acquire) {
                let built = build(&factory, lane);
                let done = built.is_ok();
                if send.send(built).is_err() || done {
                    return;
                }
                let mut left = pause;
                while !left.is_zero() && !end.load(Ordering::Acquire) {
                    std::thread::sleep(left.min(POLL_INTERVAL));
                    left = left.saturating_sub(POLL_INTERVAL);
                }
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        };
        let thread = std::thread::Builder::new().name(format!("weir-lane-{lane}-new"));
        match thread.spawn(build) {
            Ok(thread) => Some((receive, thread)),
            Err(error) => {
                tracing::error!(lane, %error, "cannot start a thread to build the device; the lane ends");
                None
            }
        }
    }

    /// Starts the fallback lanes on the CPU, where they are configured.
    fn start_fallback(&self) -> Option<RunningFallback> {
        let workers = self.fallback.as_ref()?;
        // The fallback of one lane takes the work of all.
        let mine = Token::take(&self.fallback_claimed)?;
        let (cancel_tx, cancel) = bounded(0);
        let (ready, began) = bounded(workers.len());
        let queues = || LaneQueues { cancel: cancel.clone(), ..self.queues.clone() };
        let lanes = workers.iter().map(|worker| (worker.on_other_queues(queues()), None)).collect();
        let crew = Crew::start(lanes, &self.stalls, "weir-cpu", &ready).and_then(Crew::watched);
        drop(ready);
        let watch = match crew {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "cannot start fallback lanes on the CPU");
                return None;
            }
        };
        let count = began.iter().take(workers.len()).filter(Result::is_ok).count();
        tracing::warn!(lane = self.lane, count, "fallback lanes on the CPU started");
        Some(RunningFallback { cancel_tx: Some(cancel_tx), watch: Some(watch), _mine: mine })
    }
}

/// Fallback lanes on the CPU; when dropped, they finish their current images and end.
struct RunningFallback {
    cancel_tx: Option<Sender<()>>,
    /// The watcher; it ends after the lanes.
    watch: Option<JoinHandle<()>>,
    _mine: Token,
}

/// Exclusive right to an operation, until it is dropped.
struct Token(Arc<AtomicBool>);

impl Token {
    fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        (!taken.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(taken)))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl RunningFallback {
    fn has_ended(&self) -> bool {
        self.watch.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for RunningFallback {
    fn drop(&mut self) {
        self.cancel_tx.take();
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

fn build(factory: &BatchFactory, lane: usize) -> Result<Built, EngineError> {
    catch_unwind(AssertUnwindSafe(|| factory(lane))).unwrap_or(Err(EngineError::BuildPanicked { lane }))
}
