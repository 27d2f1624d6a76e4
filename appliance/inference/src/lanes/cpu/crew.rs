//! The threads of lanes on the CPU, and the thread that watches them: a lane that is stuck at an image is replaced.
//!
//! The stuck thread keeps its device and its image's reservation until it ends. Deferred jobs and the turn at the device pass
//! to its successor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::LaneDevice;
use super::worker::{InFlight, Worker};
use crate::engine::EngineError;
use crate::lanes::queues::LaneQueues;
use crate::lanes::{ClassifyError, LaneError, Stalls};

/// A lane and its thread, if it has one.
struct Member {
    worker: Worker,
    thread: Option<JoinHandle<()>>,
}

/// The threads of some lanes.
pub(in crate::lanes) struct Crew {
    members: Vec<Member>,
    stalls: Arc<Stalls>,
    /// Signals that a thread has ended.
    ended: (Sender<()>, Receiver<()>),
    prefix: &'static str,
}

/// Sends a signal when it is dropped.
struct Ended(Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Crew {
    /// Starts one thread per worker, on its prebuilt device if there is one. Each reports the outcome of its first build
    /// through `ready`; a thread that can't be started reports nothing.
    pub(in crate::lanes) fn start(
        workers: Vec<(Worker, Option<Box<dyn LaneDevice>>)>,
        stalls: &Arc<Stalls>,
        prefix: &'static str,
        ready: &Sender<Result<(), EngineError>>,
    ) -> Result<Self, EngineError> {
        let mut crew = Self { members: Vec::new(), stalls: Arc::clone(stalls), ended: unbounded(), prefix };
        for (worker, device) in workers {
            let (running, ready) = (worker.successor(), ready.clone());
            let thread = crew.spawn(&worker, move || running.run(device, &ready))?;
            crew.members.push(Member { worker, thread: Some(thread) });
        }
        Ok(crew)
    }

    fn spawn(
        &self,
        worker: &Worker,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, EngineError> {
        let ended = Ended(self.ended.0.clone());
        let thread = std::thread::Builder::new().name(format!("{}-{}", self.prefix, worker.lane));
        let run = move || {
            let _ended = ended;
            run();
        };
        thread.spawn(run).map_err(EngineError::Thread)
    }

    /// Watches the threads, on a thread of its own, until all but the stuck ones have ended.
    pub(in crate::lanes) fn watched(self) -> Result<JoinHandle<()>, EngineError> {
        let thread = std::thread::Builder::new().name(format!("{}-watch", self.prefix));
        thread.spawn(move || self.watch()).map_err(EngineError::Thread)
    }

    fn watch(mut self) {
        let mut vacant = VecDeque::new();
        loop {
            for place in 0..self.members.len() {
                if let Some(in_flight) = self.abandon_if_stuck(place) {
                    self.answer(place, in_flight);
                    vacant.push_back(place);
                }
            }
            while !self.stalls.is_exhausted()
                && let Some(place) = vacant.pop_front()
            {
                self.replace(place);
            }
            if self.members.iter().all(|member| member.thread.as_ref().is_none_or(JoinHandle::is_finished)) {
                let queues = self.members.first().map(|member| &member.worker.queues);
                // No lane is left to take queued jobs.
                let over = |queues: &LaneQueues| queues.is_cancelled() || queues.refuse_waiting().is_err();
                if vacant.is_empty() || queues.is_none_or(over) {
                    break;
                }
            }
            let _ = self.ended.1.recv_timeout(self.stalls.poll_interval());
        }
        for thread in self.members.into_iter().filter_map(|member| member.thread) {
            // A worker contains its devices' panics; there is nothing to report for one that did not.
            let _ = thread.join();
        }
    }

    /// Abandons a lane's thread if it is stuck.
    fn abandon_if_stuck(&mut self, place: usize) -> Option<InFlight> {
        let member = self.members.get_mut(place)?;
        let in_flight = member.worker.task.abandon_if_stuck(&self.stalls)?;
        member.worker.mark_thread_lost();
        member.worker = member.worker.successor_of_stuck();
        // A stuck thread can't be joined.
        member.thread = None;
        Some(in_flight)
    }

    /// Answers the jobs of a stuck thread. If there are several, one of them is at fault, so each is retried alone, once.
    fn answer(&self, place: usize, in_flight: InFlight) {
        let Some(Member { worker, .. }) = self.members.get(place) else { return };
        let InFlight { jobs, begun, turn } = in_flight;
        drop(turn);
        let (several, busy, limit) = (jobs.len() > 1, begun.elapsed(), self.stalls.limit());
        for mut job in jobs {
            if several && !std::mem::replace(&mut job.tried_again, true) {
                worker.queues.retry(job);
                continue;
            }
            tracing::error!(
                lane = worker.lane,
                image = %blake3::hash(&job.image).to_hex(),
                bytes = job.image.len(),
                stuck = self.stalls.stuck(),
                "lane stuck at an image for longer than engine.stall_timeout; replacing the lane"
            );
            let outcome = Err(LaneError::Classify(ClassifyError::Stalled { limit }));
            worker.observer.computed(worker.lane, busy, begun.duration_since(job.queued), &outcome);
            let _ = job.reply.send(outcome.map(|classified| (classified, busy)));
        }
        worker.observer.stalled(worker.lane);
    }

    fn replace(&mut self, place: usize) {
        let Some(member) = self.members.get(place) else { return };
        if member.worker.queues.is_closed() {
            return;
        }
        let running = member.worker.successor();
        let lane = running.lane;
        match self.spawn(&member.worker, move || running.run_again()) {
            Ok(thread) => {
                if let Some(member) = self.members.get_mut(place) {
                    member.thread = Some(thread);
                }
            }
            Err(error) => tracing::error!(lane, %error, "cannot replace the lane"),
        }
    }
}
