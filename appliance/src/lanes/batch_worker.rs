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
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::batch_device::{BatchDevice, BatchFactory, Builder, Built, DeviceError};
use super::pipeline::{Ended, Pipeline};
use super::queues::LaneQueues;
use super::worker::{LaneObserver, Worker};
use crate::engine::EngineError;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// A GPU that is lost may come back; each try takes seconds of the driver's time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon a thread that pauses sees that it is not needed any more.
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct BatchWorker {
    pub(super) lane: usize,
    pub(super) queues: LaneQueues,
    pub(super) factory: BatchFactory,
    pub(super) observer: Arc<dyn LaneObserver>,
    /// Lanes whose device works.
    pub(super) alive: Arc<AtomicUsize>,
    /// Lanes on the CPU that stand in.
    pub(super) standing_in: Arc<AtomicUsize>,
    /// Whether somebody's stand-ins were started; shared by the lanes.
    pub(super) stood_in: Arc<AtomicBool>,
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
        loop {
            let Some(Built { device, better }) = next.take().or_else(|| self.recover()) else { return };
            self.alive.fetch_add(1, Ordering::Relaxed);
            let more = self.serve(device, better);
            self.alive.fetch_sub(1, Ordering::Relaxed);
            if !more {
                return;
            }
            self.observer.restarted(self.lane);
        }
    }

    /// Serves until there is nothing more to do, then false, or until the device fails.
    fn serve(&self, mut device: Box<dyn BatchDevice>, better: Option<Builder>) -> bool {
        let mut better = better.map_or_else(never, |builder| self.build_better(builder));
        loop {
            let ended = {
                let mut pipeline =
                    Pipeline::new(self.lane, device.as_mut(), &self.queues, self.observer.as_ref());
                let served = catch_unwind(AssertUnwindSafe(|| pipeline.serve(&better)));
                served.unwrap_or_else(|_| Ended::Failed(DeviceError::Panicked, pipeline.hand_back()))
            };
            match ended {
                Ended::Closed => return false,
                Ended::Replaced(new) => {
                    device = new;
                    better = never();
                    tracing::info!(lane = self.lane, "the lane has its better engine");
                }
                Ended::Failed(error, jobs) => {
                    let in_hand = jobs.len();
                    // Dropping a device that has just failed may fail as well.
                    let _ = catch_unwind(AssertUnwindSafe(move || drop(device)));
                    let retried = self.queues.try_again(jobs);
                    tracing::error!(lane = self.lane, %error, in_hand, retried, "the lane's device failed");
                    self.observer.device_failed(self.lane, error.kind(), retried);
                    return true;
                }
            }
        }
    }

    /// Builds a better device on a thread of its own. If it can't be had, the first goes on.
    fn build_better(&self, builder: Builder) -> Receiver<Box<dyn BatchDevice>> {
        let (send, receive) = bounded(1);
        let lane = self.lane;
        let build = move || match catch_unwind(AssertUnwindSafe(builder)) {
            Ok(Ok(device)) => drop(send.send(device)),
            Ok(Err(error)) => {
                tracing::error!(lane, %error, "the better engine can't be built; the first serves on");
            }
            Err(_) => tracing::error!(lane, "building the better engine panicked; the first serves on"),
        };
        let thread = std::thread::Builder::new().name(format!("weir-engine-{lane}"));
        if let Err(error) = thread.spawn(build) {
            tracing::error!(lane, %error, "the better engine can't be built; the first serves on");
        }
        receive
    }

    /// A new device. None when the queues were closed meanwhile.
    fn recover(&self) -> Option<Built> {
        let end = Arc::new(AtomicBool::new(false));
        let (attempts, builder) = self.rebuild(Arc::clone(&end))?;
        let mut standing = None;
        let built = loop {
            if standing.is_none() && !self.others_work() {
                standing = self.stand_in();
            }
            match attempts.recv_timeout(LOOK) {
                Ok(Ok(built)) => break Some(built),
                Ok(Err(error)) => {
                    tracing::error!(lane = self.lane, %error, "lane can't be restarted; trying again");
                    // With nobody to compute them the jobs would wait for ever.
                    let nobody =
                        self.stand_ins.is_none() || standing.as_ref().is_some_and(StandingIn::has_ended);
                    if nobody && !self.others_work() && self.queues.refuse_waiting().is_err() {
                        break None;
                    }
                }
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
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

    fn others_work(&self) -> bool {
        self.alive.load(Ordering::Relaxed) + self.standing_in.load(Ordering::Relaxed) > 0
    }

    /// Builds on a thread of its own, with pauses that grow, until it works or `end` says so.
    #[allow(clippy::type_complexity, reason = "a channel and a thread")]
    fn rebuild(
        &self,
        end: Arc<AtomicBool>,
    ) -> Option<(Receiver<Result<Built, EngineError>>, JoinHandle<()>)> {
        let (send, receive) = bounded(1);
        let (factory, lane) = (Arc::clone(&self.factory), self.lane);
        let build = move || {
            let mut pause = FIRST_PAUSE;
            while !end.load(Ordering::Acquire) {
                let built = build(&factory, lane);
                let done = built.is_ok();
                if send.send(built).is_err() || done {
                    return;
                }
                let mut left = pause;
                while !left.is_zero() && !end.load(Ordering::Acquire) {
                    std::thread::sleep(left.min(LOOK));
                    left = left.saturating_sub(LOOK);
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
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
        let mine = StandInToken::take(&self.stood_in)?;
        let (until, ended) = bounded(0);
        let (ready, began) = bounded(workers.len());
        let mut threads = Vec::with_capacity(workers.len());
        for worker in workers {
            let worker = worker.on_other_queues(LaneQueues { until: ended.clone(), ..self.queues.clone() });
            let ready = ready.clone();
            let thread = std::thread::Builder::new().name(format!("weir-cpu-{}", worker.lane));
            match thread.spawn(move || worker.run(None, &ready)) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "a lane on the CPU can't be started"),
            }
        }
        drop(ready);
        let count = began.iter().take(threads.len()).filter(Result::is_ok).count();
        tracing::warn!(lane = self.lane, count, "the CPU stands in for the GPU");
        Some(StandingIn { until: Some(until), threads, _mine: mine })
    }
}

/// Lanes on the CPU; dropped, they finish what they are at and end.
struct StandingIn {
    until: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    _mine: StandInToken,
}

/// That lanes on the CPU stand in for all of a model's lanes, until it is dropped.
struct StandInToken(Arc<AtomicBool>);

impl StandInToken {
    fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        (!taken.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(taken)))
    }
}

impl Drop for StandInToken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl StandingIn {
    fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for StandingIn {
    fn drop(&mut self) {
        self.until.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn build(factory: &BatchFactory, lane: usize) -> Result<Built, EngineError> {
    catch_unwind(AssertUnwindSafe(|| factory(lane))).unwrap_or(Err(EngineError::BuildPanicked { lane }))
}
