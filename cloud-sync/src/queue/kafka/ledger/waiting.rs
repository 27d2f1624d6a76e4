//! Jobs that wait: messages staged for delivery, and settled jobs held until their commit. `queue::fair` defines
//! turns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Job, Ledger};
use crate::queue::Receipt;
use crate::queue::fair::Flow;

/// Maximum staged messages: among these, batches alternate.
const MAX_STAGED: usize = 2048;
/// Maximum bytes of them, beside one message.
const MAX_STAGED_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Copy)]
struct Waiting {
    receipt: Receipt,
    flow: Option<Flow>,
    bytes: usize,
}

/// The staged messages.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// By turn, then by arrival.
    waiting: BTreeMap<(u64, u64), Waiting>,
    bytes: usize,
    /// The current turn.
    turn: u64,
    /// The last turn of each batch that is not over yet.
    last: HashMap<Flow, u64>,
    arrivals: u64,
}

impl Stage {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a message that has arrived.
    pub(super) fn push(&mut self, receipt: Receipt, flow: Option<Flow>, bytes: usize) {
        let mut turn = self.turn + 1;
        if let Some(flow) = flow {
            let last = self.last.entry(flow).or_default();
            turn = turn.max(*last + 1);
            *last = turn;
        }
        self.put(turn, Waiting { receipt, flow, bytes });
    }

    /// Adds a message that was in progress: it is delivered next.
    pub(super) fn push_front(&mut self, receipt: Receipt, flow: Option<Flow>, bytes: usize) {
        self.put(0, Waiting { receipt, flow, bytes });
    }

    fn put(&mut self, turn: u64, waiting: Waiting) {
        self.arrivals += 1;
        self.bytes += waiting.bytes;
        self.waiting.insert((turn, self.arrivals), waiting);
    }

    /// Removes the first message that `take` accepts.
    pub(super) fn pop(&mut self, take: impl Fn(Receipt, Option<Flow>) -> bool) -> Option<Receipt> {
        let mut waiting = self.waiting.iter();
        let (&place, _) = waiting.find(|(_, waiting)| take(waiting.receipt, waiting.flow))?;
        let taken = self.waiting.remove(&place)?;
        self.bytes -= taken.bytes;
        if place.0 > self.turn {
            self.turn = place.0;
            if self.last.len() > MAX_STAGED {
                let turn = self.turn;
                self.last.retain(|_, last| *last > turn);
            }
        }
        Some(taken.receipt)
    }

    /// Drops the messages that `keep` does not accept.
    pub(super) fn retain(&mut self, keep: impl Fn(Receipt) -> bool) {
        self.waiting.retain(|_, waiting| keep(waiting.receipt));
        self.bytes = self.waiting.values().map(|waiting| waiting.bytes).sum();
        // The turns of dropped messages are free again: otherwise their batch would stand behind all others when they
        // are redelivered. The rows are in the order of their turns, so the last of each batch remains.
        let turns = self.waiting.iter().filter_map(|((turn, _), waiting)| Some((waiting.flow?, *turn)));
        self.last = turns.collect();
    }

    /// Whether less than 1/`part` of the capacity is used.
    pub(super) fn has_room(&self, part: usize) -> bool {
        self.waiting.len() < MAX_STAGED / part && self.bytes < MAX_STAGED_BYTES / part
    }
}

/// Maximum jobs that are done and wait for their commit because an earlier one on their partition is not done. Above
/// it only those are delivered that the others wait for.
const MAX_HELD: usize = 64;
/// Maximum bytes of their results, beside those of one job.
const MAX_HELD_BYTES: usize = 16 << 20;

impl Ledger {
    /// The staged jobs at the head of each partition for which settled ones after them wait. Jobs are delivered by
    /// turn, not by offset, so there may be such ones; if they were held back too, nothing would ever be committed.
    /// Where nothing settled follows, as while the broker is unavailable, there is none: it would have to be held as
    /// well.
    pub(super) fn blocking_jobs(&self) -> BTreeSet<(i32, i64)> {
        let mut blocking_jobs = BTreeSet::new();
        for (&partition, epoch) in &self.ours {
            let Some(held) = self.held.get(&(partition, *epoch)) else { continue };
            let is_settled = |job: &Job| matches!(job, Job::Settled { .. } | Job::Committing { .. });
            let open = held.jobs.iter().skip_while(|(_, job)| is_settled(job));
            let last = held.jobs.iter().rfind(|(_, job)| is_settled(job)).map(|(&offset, _)| offset);
            // As many as can be in progress at once: that bounds what they add to the held ones.
            let head = open.take(self.inflight).filter(|(offset, _)| Some(**offset) < last);
            let staged = head.filter(|(_, job)| matches!(job, Job::Staged { .. }));
            blocking_jobs.extend(staged.map(|(&offset, _)| (partition, offset)));
        }
        blocking_jobs
    }

    /// Whether the maximum number of jobs, or of bytes, is done and not committed.
    pub(super) fn hold_limit_reached(&self) -> bool {
        let (mut held, mut bytes) = (0, 0);
        for job in self.jobs() {
            match job {
                Job::Settled { results, .. } => {
                    held += 1;
                    bytes += results.iter().map(|result| result.payload.len()).sum::<usize>();
                }
                Job::Committing { .. } => held += 1,
                Job::Staged { .. } | Job::Out { .. } => {}
            }
        }
        held >= MAX_HELD || bytes >= MAX_HELD_BYTES
    }
}
