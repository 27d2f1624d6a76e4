//! The share of the outbox that bulk events (the items of batches) may take.
//!
//! One batch has as many events as a camera in months. While they can't be sent they must neither fill the outbox
//! under `refuse` nor have other events deleted under `drop_oldest`. So the unsent bulk events together have at most
//! [`super::OutboxConfig::bulk_share`] of `max_bytes`. Who publishes them asks for room first, for all that belongs
//! together, and waits where there is none. A bulk append never has an event deleted that is still to be sent.
//!
//! On a disk that has less room than `max_bytes`, the share is one of the room there is.
//!
//! Each record says whether it is bulk (`record`), so what is in use is known after any crash. It is counted in runs
//! of neighbouring records: a run counts until its last record was committed or deleted.

use std::collections::VecDeque;
use std::sync::Arc;

use super::config::{OutboxConfig, WhenFull};
use super::ledger::Shared;

/// Most runs that are counted apart, about.
const RUNS: u64 = 256;

/// Bytes of records by the last sequence of their run, rising.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: VecDeque<(u64, u64)>,
    bytes: u64,
    /// A run takes further records until it has so many bytes.
    grain: u64,
}

impl Runs {
    pub(super) fn new(grain: u64) -> Self {
        Self { grain, ..Self::default() }
    }

    pub(super) fn add(&mut self, last: u64, bytes: u64) {
        self.bytes += bytes;
        match self.runs.back_mut() {
            Some(run) if run.1 < self.grain => *run = (last, run.1 + bytes),
            _ => self.runs.push_back((last, bytes)),
        }
    }

    fn forget(&mut self, upto: u64) {
        let done = self.runs.partition_point(|(last, _)| *last <= upto);
        self.bytes -= self.runs.drain(..done).map(|(_, bytes)| bytes).sum::<u64>();
    }
}

/// What bulk events take of the outbox.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// On disk and not done with.
    held: Runs,
    /// Admitted and not written yet.
    reserved: u64,
    /// Bytes that the outbox may take, as far as the disk has them.
    capacity: u64,
    /// Percent; none where they are not bounded.
    share: Option<u8>,
}

impl Bulk {
    pub(super) fn new(config: &OutboxConfig) -> Self {
        // Where nobody takes the events and the oldest go at the bound, that is how they are meant to end.
        let unbounded = !config.has_consumer && config.when_full == WhenFull::DropOldest;
        let share = (!unbounded).then_some(config.bulk_share);
        let grain = part(config.max_bytes, config.bulk_share) / RUNS;
        Self { held: Runs::new(grain), reserved: 0, capacity: config.max_bytes, share }
    }

    /// How finely bytes are counted; none where they are not.
    pub(super) fn grain(&self) -> Option<u64> {
        self.share.map(|_| self.held.grain)
    }

    pub(super) fn bound(&self) -> Option<u64> {
        self.share.map(|share| part(self.capacity, share))
    }

    /// Says how much room there is.
    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn used(&self) -> u64 {
        self.held.bytes + self.reserved
    }

    /// Counts records that are durable now.
    pub(super) fn add(&mut self, last: u64, bytes: u64) {
        if self.share.is_some() && bytes > 0 {
            self.held.add(last, bytes);
        }
    }

    /// Counts what was found on opening.
    pub(super) fn add_runs(&mut self, runs: Runs) {
        for (last, bytes) in runs.runs {
            self.add(last, bytes);
        }
    }

    /// What has a sequence up to `upto` was committed or deleted.
    pub(super) fn forget(&mut self, upto: u64) {
        self.held.forget(upto);
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }
}

fn part(bytes: u64, percent: u8) -> u64 {
    bytes / 100 * u64::from(percent)
}

/// Room in the outbox for bulk events that belong together. What is not used is given back when it is dropped.
#[derive(Debug)]
#[must_use = "the room is given back when this is dropped"]
pub struct BulkRoom {
    shared: Arc<Shared>,
    left: u64,
}

impl BulkRoom {
    pub(super) fn new(shared: Arc<Shared>, bytes: u64) -> Self {
        Self { shared, left: bytes }
    }

    /// Hands over what a record of `bytes` takes of it.
    pub(super) fn take(&mut self, bytes: u64) -> u64 {
        let taken = bytes.min(self.left);
        self.left -= taken;
        taken
    }

    /// Takes back what was not used.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.left += bytes;
    }
}

impl Drop for BulkRoom {
    fn drop(&mut self) {
        if self.left > 0 {
            self.shared.ledger.lock().bulk.release(self.left);
        }
    }
}
