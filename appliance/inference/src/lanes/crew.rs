//! The threads of lanes on the CPU, and the one that watches them: a lane that is stuck at an image is replaced.
//!
//! The stuck thread keeps its device and its image's room for decoding until it ends. What it had deferred, and its turn at
//! the device, go to its successor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::job::LaneError;
use super::queues::LaneQueues;
use super::stall::Stalls;
use super::worker::{InHand, Worker};
use super::{ClassifyError, LaneDevice};
use crate::engine::EngineError;

/// A lane: what it does, its thread while it has one.
struct Member {
    worker: Worker,
    thread: Option<JoinHandle<()>>,
}

/// The threads of some lanes.
pub(super) struct Crew {
    members: Vec<Member>,
    stalls: Arc<Stalls>,
    /// Says that a thread has ended.
    ended: (Sender<()>, Receiver<()>),
    prefix: &'static str,
}

/// Says so when it is dropped.
struct Ended(Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Crew {
    /// Starts a thread for each worker, on the device that is there for it if one is. Each says through `ready` how its device
    /// was built; what can't be started says nothing.
    pub(super) fn start(
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

    /// Watches over the threads, on one of its own, until all have ended but those that are stuck.
    pub(super) fn watched(self) -> Result<JoinHandle<()>, EngineError> {
        let thread = std::thread::Builder::new().name(format!("{}-watch", self.prefix));
        thread.spawn(move || self.watch()).map_err(EngineError::Thread)
    }

    fn watch(mut self) {
        let mut vacant = VecDeque::new();
        loop {
            for place in 0..self.members.len() {
                if let Some(in_hand) = self.give_up(place) {
                    self.answer(place, in_hand);
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
                // Nobody is left: what waits would wait for ever.
                let over = |queues: &LaneQueues| queues.is_to_end() || queues.refuse_waiting().is_err();
                if vacant.is_empty() || queues.is_none_or(over) {
                    break;
                }
            }
            let _ = self.ended.1.recv_timeout(self.stalls.look());
        }
        for thread in self.members.into_iter().filter_map(|member| member.thread) {
            // A worker contains its devices' panics; nothing is left to say about one that did not.
            let _ = thread.join();
        }
    }

    /// Lets go of a lane's thread if it is stuck.
    fn give_up(&mut self, place: usize) -> Option<InHand> {
        let member = self.members.get_mut(place)?;
        let in_hand = member.worker.task.give_up(&self.stalls)?;
        member.worker.has_lost_its_thread();
        member.worker = member.worker.successor_of_a_stuck_one();
        // It can't be joined.
        member.thread = None;
        Some(in_hand)
    }

    /// Answers what a stuck thread has. Of several images one is at fault, so each is tried once more, alone.
    fn answer(&self, place: usize, in_hand: InHand) {
        let Some(Member { worker, .. }) = self.members.get(place) else { return };
        let InHand { jobs, begun, turn } = in_hand;
        drop(turn);
        let (several, busy, limit) = (jobs.len() > 1, begun.elapsed(), self.stalls.limit());
        for mut job in jobs {
            if several && !std::mem::replace(&mut job.tried_again, true) {
                worker.queues.give_back_one(job);
                continue;
            }
            tracing::error!(
                lane = worker.lane,
                image = %blake3::hash(&job.image).to_hex(),
                bytes = job.image.len(),
                stuck = self.stalls.stuck(),
                "the lane was stuck at this image for longer than engine.stall_timeout; it is replaced"
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
            Err(error) => tracing::error!(lane, %error, "the lane can't be replaced"),
        }
    }
}
