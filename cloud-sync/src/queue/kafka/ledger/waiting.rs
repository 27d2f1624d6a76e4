//! Jobs that wait: messages staged before they go out, and settled jobs held until their commit. `queue::fair` says what
//! a turn is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Job, Ledger};
use crate::queue::Receipt;
use crate::queue::fair::Flow;

/// Messages that may wait here: among these batches take turns.
const MAX_STAGED: usize = 2048;
/// Their bytes, and one message more.
const MAX_STAGED_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Copy)]
struct Waiting {
    receipt: Receipt,
    flow: Option<Flow>,
    bytes: usize,
}

/// The messages that wait.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// By turn, then as they came.
    waiting: BTreeMap<(u64, u64), Waiting>,
    bytes: usize,
    /// The turn that is being served.
    turn: u64,
    /// The last turn of each batch that is not served yet.
    last: HashMap<Flow, u64>,
    arrivals: u64,
}

impl Stage {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a message that has come.
    pub(super) fn push(&mut self, receipt: Receipt, flow: Option<Flow>, bytes: usize) {
        let mut turn = self.turn + 1;
        if let Some(flow) = flow {
            let last = self.last.entry(flow).or_default();
            turn = turn.max(*last + 1);
            *last = turn;
        }
        self.put(turn, Waiting { receipt, flow, bytes });
    }

    /// Adds a message that was out: it is the next to go out again.
    pub(super) fn push_front(&mut self, receipt: Receipt, flow: Option<Flow>, bytes: usize) {
        self.put(0, Waiting { receipt, flow, bytes });
    }

    fn put(&mut self, turn: u64, waiting: Waiting) {
        self.arrivals += 1;
        self.bytes += waiting.bytes;
        self.waiting.insert((turn, self.arrivals), waiting);
    }

    /// Takes out the first message that `take` takes.
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

    /// Drops the messages that `keep` does not keep.
    pub(super) fn retain(&mut self, keep: impl Fn(Receipt) -> bool) {
        self.waiting.retain(|_, waiting| keep(waiting.receipt));
        self.bytes = self.waiting.values().map(|waiting| waiting.bytes).sum();
        // The turns of those that are gone are free again: else their batch would stand behind all others when they come
        // once more. The rows are in the order of their turns, so the last of each batch stays.
        let turns = self.waiting.iter().filter_map(|((turn, _), waiting)| Some((waiting.flow?, *turn)));
        self.last = turns.collect();
    }

    /// Whether there is room for a `part`-th of what may wait.
    pub(super) fn has_room(&self, part: usize) -> bool {
        self.waiting.len() < MAX_STAGED / part && self.bytes < MAX_STAGED_BYTES / part
    }
}

/// Jobs that may be done and wait for their commit, because one before them on their partition is not done: while it is
/// worked on, so many others can be. Then only those go out that the others wait for.
const MAX_HELD: usize = 64;
/// Bytes of their results, and those of one job more.
const MAX_HELD_BYTES: usize = 16 << 20;

impl Ledger {
    /// The jobs at the head of each partition that wait to go out and that settled ones behind them wait for. Jobs go
    /// out by turn, not by offset, so there may be such ones; were they held back too, nothing would ever be committed.
    /// Where nothing settled is behind, as while the broker is away, none is: that would have to be held as well.
    pub(super) fn pressing(&self) -> BTreeSet<(i32, i64)> {
        let mut pressing = BTreeSet::new();
        for (&partition, epoch) in &self.ours {
            let Some(held) = self.held.get(&(partition, *epoch)) else { continue };
            let is_settled = |job: &Job| matches!(job, Job::Settled { .. } | Job::Committing { .. });
            let open = held.jobs.iter().skip_while(|(_, job)| is_settled(job));
            let last = held.jobs.iter().rfind(|(_, job)| is_settled(job)).map(|(&offset, _)| offset);
            // As many as can be worked on at once: what they add to those held is bounded by that.
            let head = open.take(self.inflight).filter(|(offset, _)| Some(**offset) < last);
            let staged = head.filter(|(_, job)| matches!(job, Job::Staged { .. }));
            pressing.extend(staged.map(|(&offset, _)| (partition, offset)));
        }
        pressing
    }

    /// Whether as many jobs as allowed, or as many bytes, are done and not committed.
    pub(super) fn holds_most(&self) -> bool {
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
