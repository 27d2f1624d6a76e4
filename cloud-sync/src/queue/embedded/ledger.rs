//! Which jobs are out for work: in memory only, for after a crash none is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::queue::QueueStats;

/// Where the next job is to be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nowhere: none waits, or as many as allowed are out.
    Nowhere,
    /// Nowhere, for good.
    Closed,
    /// It is the first at this sequence or behind it.
    From(u64),
}

/// A job that is out.
#[derive(Debug, Default)]
struct Out {
    /// Held by whoever settles it: a second settlement waits for the first.
    turn: Arc<Mutex<()>>,
    /// Settlements under way.
    settling: u32,
    /// Given back while one was under way, for the caller of `settle` may give up waiting for it.
    given_back: bool,
}

/// What is out, and what has come back.
#[derive(Debug)]
pub(super) struct Ledger {
    inflight: usize,
    /// Jobs in the file.
    jobs: u64,
    /// From here on nothing has been out yet.
    next: u64,
    /// Before `next`, and not out any more.
    released: BTreeSet<u64>,
    out: HashMap<u64, Out>,
    closed: bool,
}

impl Ledger {
    pub(super) fn new(inflight: usize, jobs: u64) -> Self {
        Self { inflight, jobs, next: 0, released: BTreeSet::new(), out: HashMap::new(), closed: false }
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
    }

    pub(super) fn next(&self) -> Next {
        match self.released.first() {
            _ if self.closed => Next::Closed,
            _ if self.out.len() >= self.inflight => Next::Nowhere,
            Some(&sequence) => Next::From(sequence),
            None if self.jobs > self.out.len() as u64 => Next::From(self.next),
            None => Next::Nowhere,
        }
    }

    /// Takes a job that was found where [`Self::next`] said, unless another has been faster.
    pub(super) fn take(&mut self, sequence: u64) -> bool {
        if self.closed || self.out.len() >= self.inflight {
            return false;
        }
        if sequence >= self.next {
            self.next = sequence + 1;
        } else if !self.released.remove(&sequence) {
            return false;
        }
        self.out.insert(sequence, Out::default());
        true
    }

    pub(super) fn give_back(&mut self, sequence: u64) {
        let Some(out) = self.out.get_mut(&sequence) else { return };
        if out.settling > 0 {
            out.given_back = true;
        } else {
            self.out.remove(&sequence);
            self.released.insert(sequence);
        }
    }

    /// Begins to settle a job, if it is out: the caller waits for its turn.
    pub(super) fn begin(&mut self, sequence: u64) -> Option<Arc<Mutex<()>>> {
        let out = self.out.get_mut(&sequence).filter(|_| !self.closed)?;
        out.settling += 1;
        Some(Arc::clone(&out.turn))
    }

    pub(super) fn is_out(&self, sequence: u64) -> bool {
        self.out.contains_key(&sequence)
    }

    /// Ends what [`Self::begin`] began; `done` when the job is out of the file.
    pub(super) fn end(&mut self, sequence: u64, done: bool) {
        let Some(out) = self.out.get_mut(&sequence) else { return };
        out.settling = out.settling.saturating_sub(1);
        if done {
            self.out.remove(&sequence);
            self.jobs = self.jobs.saturating_sub(1);
        } else if out.settling == 0 && out.given_back {
            self.out.remove(&sequence);
            self.released.insert(sequence);
        }
    }

    /// From now on nothing goes out and nothing is settled.
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
