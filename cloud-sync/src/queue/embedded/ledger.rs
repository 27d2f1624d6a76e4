//! Which jobs are in progress: in memory only, because after a crash none is.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::publish::Progress;
use crate::queue::QueueStats;
use crate::queue::fair::{Flow, may_go_out};

/// Which job to search for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// None: no waiting job may be delivered.
    Nowhere,
    /// None: the queue is closed.
    Closed,
    /// The first that this accepts.
    Search(Places),
}

/// The jobs in progress at one time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    inflight: usize,
    out: HashMap<u64, Option<Flow>>,
    /// Identifies the time.
    change: u64,
}

impl Places {
    /// Whether a job may be delivered.
    pub(super) fn take(&self, sequence: u64, flow: Option<Flow>) -> bool {
        let mine = || self.out.values().filter(|out| **out == flow).count();
        let mine = flow.map_or(0, |_| mine());
        !self.out.contains_key(&sequence) && may_go_out(mine, self.out.len(), self.inflight)
    }
}

/// A job in progress.
#[derive(Debug, Default)]
struct Out {
    flow: Option<Flow>,
    /// Locked while it is settled: a second settlement waits for the first.
    turn: Arc<Mutex<Progress>>,
    /// Settlements in progress.
    settling: u32,
    /// Released during a settlement, because the caller of `settle` may stop waiting for it.
    released: bool,
}

/// The jobs in progress.
#[derive(Debug)]
pub(super) struct Ledger {
    inflight: usize,
    /// Jobs in the file.
    jobs: u64,
    /// The latest turn of a delivered job.
    turn: u64,
    /// Counts changes, so that a result found before a change is not used after it.
    change: u64,
    /// The change since which it is known that no job may be delivered.
    none_since: Option<u64>,
    out: HashMap<u64, Out>,
    closed: bool,
}

impl Ledger {
    pub(super) fn new(inflight: usize, jobs: u64, turn: u64) -> Self {
        Self { inflight, jobs, turn, change: 0, none_since: None, out: HashMap::new(), closed: false }
    }

    /// The current turn.
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    pub(super) fn stats(&self) -> QueueStats {
        let inflight = self.out.len() as u64;
        QueueStats {
            waiting: Some(self.jobs.saturating_sub(inflight)),
            inflight,
            paused: self.out.len() >= self.inflight,
            partitions: 1,
        }
    }

    pub(super) fn add(&mut self, jobs: u64) {
        self.jobs += jobs;
        self.change += 1;
    }

    pub(super) fn next(&self) -> Next {
        if self.closed {
            return Next::Closed;
        }
        let none_waits = self.jobs <= self.out.len() as u64 || self.out.len() >= self.inflight;
        if none_waits || self.none_since == Some(self.change) {
            return Next::Nowhere;
        }
        let out = self.out.iter().map(|(sequence, out)| (*sequence, out.flow)).collect();
        Next::Search(Places { inflight: self.inflight, out, change: self.change })
    }

    /// Records that no job was found that `places` accepts. False when there may be one since.
    pub(super) fn found_none(&mut self, places: &Places) -> bool {
        let is_now = places.change == self.change;
        if is_now {
            self.none_since = Some(self.change);
        }
        is_now
    }

    /// Delivers a job that was found for `places`, unless something has changed since.
    pub(super) fn take(&mut self, places: &Places, sequence: u64, flow: Option<Flow>, turn: u64) -> bool {
        if self.closed || places.change != self.change {
            return false;
        }
        self.change += 1;
        self.turn = self.turn.max(turn);
        self.out.insert(sequence, Out { flow, ..Out::default() });
        true
    }

    pub(super) fn release(&mut self, sequence: u64) {
        let Some(out) = self.out.get_mut(&sequence) else { return };
        if out.settling > 0 {
            out.released = true;
        } else {
            self.out.remove(&sequence);
            self.change += 1;
        }
    }

    /// Starts to settle a job, if it is in progress: the caller locks its turn.
    pub(super) fn begin(&mut self, sequence: u64) -> Option<Arc<Mutex<Progress>>> {
        let out = self.out.get_mut(&sequence).filter(|_| !self.closed)?;
        out.settling += 1;
        Some(Arc::clone(&out.turn))
    }

    pub(super) fn is_out(&self, sequence: u64) -> bool {
        self.out.contains_key(&sequence)
    }

    /// Ends what [`Self::begin`] started; `done` when the job is removed from the file.
    pub(super) fn end(&mut self, sequence: u64, done: bool) {
        let Some(out) = self.out.get_mut(&sequence) else { return };
        out.settling = out.settling.saturating_sub(1);
        self.change += 1;
        if done {
            self.out.remove(&sequence);
            self.jobs = self.jobs.saturating_sub(1);
        } else if out.settling == 0 && out.released {
            self.out.remove(&sequence);
        }
    }

    /// From now on nothing is delivered and nothing is settled.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn is_settling(&self) -> bool {
        self.out.values().any(|out| out.settling > 0)
    }

    pub(super) fn forget_all(&mut self) {
        self.out.clear();
    }
}
