//! The thread of a GPU's lane: serves on its device, and when that fails gives back what it had, has a new one built, and lets
//! the CPU stand in meanwhile.

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
use super::crew::Crew;
use super::pipeline::{Ended, Pipeline};
use super::queues::LaneQueues;
use super::stall::Stalls;
use super::worker::{LaneObserver, Worker};
use crate::engine::EngineError;

const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
/// A GPU that is lost may come back; each try takes seconds of the driver's time.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An attempt to build takes seconds; after this one nobody is to wait for it.
const LONG_ATTEMPT: Duration = Duration::from_secs(30);
/// The same while the lanes end: what waits then waits within the grace of a shutdown.
const LONG_ATTEMPT_AT_THE_END: Duration = Duration::from_secs(5);
/// How soon a thread that pauses sees that it is not needed any more.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct BatchWorker {
    pub(super) lane: usize,
    pub(super) queues: LaneQueues,
    pub(super) factory: BatchFactory,
    pub(super) observer: Arc<dyn LaneObserver>,
    /// Lanes whose device works.
    pub(super) alive: Arc<AtomicUsize>,
    /// Lanes on the CPU that stand in.
    pub(super) fallback_workers: Arc<AtomicUsize>,
    /// Whether a better device is being built.
    pub(super) building: Arc<AtomicBool>,
    /// Whether somebody's stand-ins were started; shared by the lanes.
    pub(super) fallback_claimed: Arc<AtomicBool>,
    /// When threads are given up on.
    pub(super) stalls: Arc<Stalls>,
    /// Those that may stand in for this one.
    pub(super) stand_ins: Option<Vec<Worker>>,
}

impl BatchWorker {
    /// Runs until the queues are closed and empty. The outcome of the first build is sent to `ready`.
    pub(super) fn run(self, built: Option<Built>, ready: &Sender<Result<(), EngineError>>) {
        let built = match built {
            Some(built) => Ok(built),
            None => build(&self.factory, self.lane),
        };
        let mut next = match built {
            Ok(built) => Some(built),
            // What is wrong with the GPU may pass; what is wrong with the model does not.
            Err(error) if self.stand_ins.is_some() && error.is_of_the_device() => {
                tracing::error!(lane = self.lane, %error, "the GPU can't be used; the CPU stands in for it");
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
            let Some(Built { device, better }) = built else { return };
            self.alive.fetch_add(1, Ordering::Relaxed);
            failed = self.serve(device, better);
            if failed.is_none() {
                return;
            }
            self.observer.restarted(self.lane);
        }
    }

    /// Serves until there is nothing more to do, or until the device fails, which is returned then.
    fn serve(
        &self,
        mut device: Box<dyn BatchDevice>,
        better: Option<Builder>,
    ) -> Option<Box<dyn BatchDevice>> {
        let mut better = better.map_or_else(never, |builder| self.build_better(builder));
        loop {
            let ended = {
                let mut pipeline =
                    Pipeline::new(self.lane, device.as_mut(), &self.queues, self.observer.as_ref());
                let served = catch_unwind(AssertUnwindSafe(|| pipeline.serve(&better)));
                served.unwrap_or_else(|_| Ended::Failed(DeviceError::Panicked, pipeline.hand_back()))
            };
            match ended {
                Ended::Closed => {
                    self.alive.fetch_sub(1, Ordering::Relaxed);
                    return None;
                }
                Ended::Replaced(new) => {
                    device = new;
                    better = never();
                    tracing::info!(lane = self.lane, "the lane has its better engine");
                }
                Ended::Failed(error, jobs) => {
                    // Before anything that may take long: somebody waits for these, and others may be free.
                    self.alive.fetch_sub(1, Ordering::Relaxed);
                    let in_hand = jobs.len();
                    let retried = self.queues.requeue(jobs);
                    tracing::error!(lane = self.lane, %error, in_hand, retried, "the lane's device failed");
                    self.observer.device_failed(self.lane, error.kind(), retried);
                    return Some(device);
                }
            }
        }
    }

    /// Builds a better device on a thread of its own. If it can't be had, the first goes on.
    fn build_better(&self, builder: Builder) -> Receiver<Box<dyn BatchDevice>> {
        let (send, receive) = bounded(1);
        let lane = self.lane;
        // One at a time: it takes minutes, and a second one would write the same files.
        let Some(mine) = Token::take(&self.building) else { return receive };
        let build = move || {
            let _mine = mine;
            match catch_unwind(AssertUnwindSafe(builder)) {
                Ok(Ok(device)) => drop(send.send(device)),
                Ok(Err(error)) => {
                    tracing::error!(lane, %error, "the better engine can't be built; the first serves on");
                }
                Err(_) => tracing::error!(lane, "building the better engine panicked; the first serves on"),
            }
        };
        let thread = std::thread::Builder::new().name(format!("weir-engine-{lane}"));
        if let Err(error) = thread.spawn(build) {
            tracing::error!(lane, %error, "the better engine can't be built; the first serves on");
        }
        receive
    }

    /// A new device in the place of one that failed. None when the queues were closed meanwhile.
    fn recover(&self, failed: Option<Box<dyn BatchDevice>>) -> Option<Built> {
        let end = Arc::new(AtomicBool::new(false));
        let (attempts, builder) = self.rebuild(failed, Arc::clone(&end))?;
        let mut standing = None;
        let mut attempt_began = Instant::now();
        let built = loop {
            if standing.as_ref().is_some_and(StandingIn::has_ended) || self.alive.load(Ordering::Relaxed) > 0
            {
                // They could not be built, or a GPU works again.
                standing = None;
            }
            if standing.is_none() && !self.others_work() {
                standing = self.stand_in();
            }
            match attempts.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(built)) => break Some(built),
                Ok(Err(error)) => {
                    tracing::error!(lane = self.lane, %error, "lane can't be restarted; trying again");
                    attempt_began = Instant::now();
                    if self.is_in_vain(standing.as_ref()) && self.queues.refuse_waiting().is_err() {
                        break None;
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    // An attempt may hang in the driver.
                    let bound = if self.queues.is_closing() { LONG_ATTEMPT_AT_THE_END } else { LONG_ATTEMPT };
                    let long = attempt_began.elapsed() > bound;
                    if long && self.is_in_vain(standing.as_ref()) && self.queues.refuse_waiting().is_err() {
                        break None;
                    }
                    if self.queues.is_closed() && standing.as_ref().is_none_or(StandingIn::has_ended) {
                        break None;
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break None,
            }
        };
        end.store(true, Ordering::Release);
        if built.is_some() {
            tracing::warn!(lane = self.lane, "the lane has a device again");
        }
        drop(standing);
        // It ends after the attempt that it is at; a driver that hangs must not keep the lane.
        drop(builder);
        built
    }

    /// Whether jobs wait for nobody: they would for ever.
    fn is_in_vain(&self, standing: Option<&StandingIn>) -> bool {
        let nobody = self.stand_ins.is_none() || standing.is_some_and(StandingIn::has_ended);
        nobody && !self.others_work()
    }

    fn others_work(&self) -> bool {
        self.alive.load(Ordering::Relaxed) + self.fallback_workers.load(Ordering::Relaxed) > 0
    }

    /// Builds on a thread of its own, with pauses that grow, until it works or `end` says so; lets go of the failed device first.
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
                tracing::error!(lane, %error, "the lane ends: no thread can be started to build its device");
                None
            }
        }
    }

    /// Starts the lanes on the CPU, where they may stand in.
    fn stand_in(&self) -> Option<StandingIn> {
        let workers = self.stand_ins.as_ref()?;
        // One lane's stand-ins take the work of all.
        let mine = Token::take(&self.fallback_claimed)?;
        let (until, ended) = bounded(0);
        let (ready, began) = bounded(workers.len());
        let queues = || LaneQueues { until: ended.clone(), ..self.queues.clone() };
        let lanes = workers.iter().map(|worker| (worker.on_other_queues(queues()), None)).collect();
        let crew = Crew::start(lanes, &self.stalls, "weir-cpu", &ready).and_then(Crew::watched);
        drop(ready);
        let watch = match crew {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "lanes on the CPU can't be started");
                return None;
            }
        };
        let count = began.iter().take(workers.len()).filter(Result::is_ok).count();
        tracing::warn!(lane = self.lane, count, "the CPU stands in for the GPU");
        Some(StandingIn { until: Some(until), watch: Some(watch), _mine: mine })
    }
}

/// Lanes on the CPU; dropped, they finish what they are at and end.
struct StandingIn {
    until: Option<Sender<()>>,
    /// Ends when they have.
    watch: Option<JoinHandle<()>>,
    _mine: Token,
}

/// The right to something that only one does at a time, until it is dropped.
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

impl StandingIn {
    fn has_ended(&self) -> bool {
        self.watch.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for StandingIn {
    fn drop(&mut self) {
        self.until.take();
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

fn build(factory: &BatchFactory, lane: usize) -> Result<Built, EngineError> {
    catch_unwind(AssertUnwindSafe(|| factory(lane))).unwrap_or(Err(EngineError::BuildPanicked { lane }))
}
