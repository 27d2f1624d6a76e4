//! The share of the outbox for bulk events (the results of batches).
//!
//! One batch has as many events as a camera produces in months. While they cannot be sent they must neither fill the
//! outbox under `refuse` nor cause the deletion of other events under `drop_oldest`. So the unsent bulk events
//! together take at most [`super::OutboxConfig::bulk_share`] of `max_bytes`. A publisher first reserves space for all
//! events that belong together, and waits where there is none. A bulk append never deletes an unsent event.
//!
//! A reservation larger than the share is granted as the events before it are sent: every record has its space before
//! it goes to the writer. Waiting publishers form a queue, so that the many results of one job do not starve behind
//! the few of others.
//!
//! On a disk that has less space than `max_bytes`, the share is one of the available space.
//!
//! Each record is marked as bulk or not (`record`), so the space in use is known after any crash. It is counted in
//! runs of neighbouring records: a run counts until its last record is committed or deleted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::config::{OutboxConfig, WhenFull};
use super::error::OutboxError;
use super::ledger::{Ledger, Shared};
use super::writer::Pending;
use super::{Append, Outbox, record, segment};

/// Approximate maximum number of runs.
const MAX_RUNS: u64 = 256;

/// Bytes of records by the last sequence of their run, ascending.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: VecDeque<(u64, u64)>,
    bytes: u64,
    /// A run takes further records until it has this many bytes.
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

/// Accounting of the bulk events of the outbox.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// Bytes on disk that are neither committed nor deleted.
    held: Runs,
    /// Bytes that are reserved and not written yet.
    reserved: u64,
    /// Bytes wanted by the waiting publishers, by ticket number.
    line: BTreeMap<u64, u64>,
    tickets: u64,
    /// Bytes that the outbox may take, as far as the disk has them.
    capacity: u64,
    /// The share in percent; none where it is not limited.
    share: Option<u8>,
}

impl Bulk {
    pub(super) fn new(config: &OutboxConfig) -> Self {
        // Where there is no consumer and the oldest events are deleted at the limit, deletion is the intended end of
        // the bulk events, too.
        let unbounded = !config.has_consumer && config.when_full == WhenFull::DropOldest;
        let share = (!unbounded).then_some(config.bulk_share);
        let grain = part(config.max_bytes, config.bulk_share) / MAX_RUNS;
        Self { held: Runs::new(grain), capacity: config.max_bytes, share, ..Self::default() }
    }

    /// Granularity of the accounting in bytes; none where nothing is counted.
    pub(super) fn grain(&self) -> Option<u64> {
        self.share.map(|_| self.held.grain)
    }

    pub(super) fn bound(&self) -> Option<u64> {
        self.share.map(|share| part(self.capacity, share))
    }

    /// Sets the available space.
    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn used(&self) -> u64 {
        self.held.bytes + self.reserved
    }

    /// Counts records that have become durable.
    pub(super) fn add(&mut self, last: u64, bytes: u64) {
        if self.share.is_some() && bytes > 0 {
            self.held.add(last, bytes);
        }
    }

    /// Counts the records found on opening.
    pub(super) fn add_runs(&mut self, runs: Runs) {
        for (last, bytes) in runs.runs {
            self.add(last, bytes);
        }
    }

    /// Sequences up to `upto` were committed or deleted.
    pub(super) fn forget(&mut self, upto: u64) {
        self.held.forget(upto);
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    /// Bytes that count against the holder of this ticket, or of none yet: including what earlier tickets want.
    pub(super) fn taken_before(&self, ticket: Option<u64>) -> u64 {
        self.used() + self.line.range(..ticket.unwrap_or(u64::MAX)).map(|(_, needed)| needed).sum::<u64>()
    }

    /// Appends a ticket for this many bytes to the queue.
    fn wait(&mut self, needed: u64) -> u64 {
        self.tickets += 1;
        self.line.insert(self.tickets, needed);
        self.tickets
    }

    fn leave(&mut self, ticket: u64) {
        self.line.remove(&ticket);
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }
}

fn part(bytes: u64, percent: u8) -> u64 {
    bytes / 100 * u64::from(percent)
}

/// A reservation in the outbox for bulk events that belong together. The unused part is released when it is dropped.
#[derive(Debug)]
#[must_use = "the reservation is released when this is dropped"]
pub struct BulkRoom {
    shared: Arc<Shared>,
    left: u64,
}

impl BulkRoom {
    pub(super) fn new(shared: Arc<Shared>, bytes: u64) -> Self {
        Self { shared, left: bytes }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes the bytes of a record out of the reservation.
    pub(super) fn take(&mut self, bytes: u64) -> u64 {
        let taken = bytes.min(self.left);
        self.left -= taken;
        taken
    }

    /// Takes back what was not used.
    pub(super) fn refund(&mut self, bytes: u64) {
        self.left += bytes;
    }
}

/// A place in the queue for space. It is given up when this is dropped.
#[derive(Debug)]
pub struct BulkTicket {
    shared: Arc<Shared>,
    number: u64,
}

impl BulkTicket {
    /// `ledger` is that of `shared`.
    pub(super) fn draw(shared: &Arc<Shared>, ledger: &mut Ledger, needed: u64) -> Self {
        Self { shared: Arc::clone(shared), number: ledger.bulk.wait(needed) }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for BulkTicket {
    fn drop(&mut self) {
        self.shared.ledger.lock().bulk.leave(self.number);
    }
}

impl Drop for BulkRoom {
    fn drop(&mut self) {
        if self.left > 0 {
            self.shared.ledger.lock().bulk.release(self.left);
        }
    }
}

impl Outbox {
    /// Reserves space for bulk events with payloads of these lengths, which belong together: all of them can then be
    /// appended, even when others arrive meanwhile. A reservation that could never be granted at once gets all the
    /// space there is, and the rest as the events before it are sent. Where there is no space the caller gets a
    /// ticket, with which it precedes later callers.
    ///
    /// # Errors
    /// [`OutboxError::BulkBound`] while earlier unsent bulk events take up their share, and [`OutboxError::Bound`]
    /// while events of any kind take up the whole outbox.
    pub fn bulk_room(
        &self,
        payloads: impl IntoIterator<Item = usize>,
        ticket: &mut Option<BulkTicket>,
    ) -> Result<BulkRoom, OutboxError> {
        let needed = payloads.into_iter().map(record::size).sum();
        let room = self.find_room(needed, ticket);
        if room.is_ok() {
            *ticket = None;
        }
        room
    }

    fn find_room(&self, needed: u64, ticket: &mut Option<BulkTicket>) -> Result<BulkRoom, OutboxError> {
        let committed = self.shared.committed();
        let mut ledger = self.shared.ledger.lock();
        ledger.forget_bulk(committed);
        let Some(bound) = ledger.bulk.bound() else { return Ok(self.room(&mut ledger, 0)) };
        let least = needed.min(bound);
        let used = ledger.bulk.taken_before(ticket.as_ref().map(BulkTicket::number));
        let taken = ledger.unsent_bytes(committed) + ledger.bulk.reserved() + segment::HEADER_LEN;
        let dir = || self.dir.clone();
        let error = if used + least > bound {
            OutboxError::BulkBound { dir: dir(), needed, used, bound }
        } else if taken + least > self.max_bytes {
            OutboxError::Bound { dir: dir(), needed, max_bytes: self.max_bytes }
        } else {
            return Ok(self.room(&mut ledger, least));
        };
        if ticket.is_none() {
            *ticket = Some(BulkTicket::draw(&self.shared, &mut ledger, least));
        }
        Err(error)
    }

    /// Reserves space for the rest of bulk events of which some may have been appended already: the available space,
    /// before all waiting publishers, because the rest was admitted with the others.
    pub fn bulk_room_for_rest(&self, payloads: impl IntoIterator<Item = usize>) -> BulkRoom {
        let needed: u64 = payloads.into_iter().map(record::size).sum();
        let committed = self.shared.committed();
        let mut ledger = self.shared.ledger.lock();
        ledger.forget_bulk(committed);
        let left = ledger.bulk.bound().map_or(0, |bound| bound.saturating_sub(ledger.bulk.used()));
        self.room(&mut ledger, needed.min(left))
    }

    fn room(&self, ledger: &mut Ledger, bytes: u64) -> BulkRoom {
        ledger.bulk.reserve(bytes);
        BulkRoom::new(Arc::clone(&self.shared), bytes)
    }

    /// Like [`Self::append`], for a bulk event within its reservation. Half of the pending appends are left to other
    /// events.
    ///
    /// # Errors
    /// As [`Self::append`]. [`OutboxError::BulkBound`] where the event fits neither into the rest of its reservation
    /// nor into that of the share. [`OutboxError::Bound`] and [`OutboxError::Full`] also under
    /// [`WhenFull::DropOldest`] where there is a consumer: no unsent event is deleted for it.
    pub fn append_bulk(&self, payload: Vec<u8>, room: &mut BulkRoom) -> Append {
        if payload.len() > self.max_payload {
            return Append::refused(OutboxError::TooLarge { bytes: payload.len(), max: self.max_payload });
        }
        let max_pending = self.max_pending.div_ceil(2);
        if self.jobs.len() >= max_pending {
            return Append::refused(OutboxError::Busy { max_pending });
        }
        let reserved = match self.reserve_bulk(record::size(payload.len()), room) {
            Ok(reserved) => reserved,
            Err(error) => return Append::refused(error),
        };
        let (done, answer) = oneshot::channel();
        match self.hand_over(Pending { payload, bulk: true, reserved, done }) {
            Ok(()) => Append::waiting(answer),
            Err(error) => {
                room.refund(reserved);
                Append::refused(error)
            }
        }
    }

    /// Reserves a record of `size`: in `room`, and beyond it in the rest of the share.
    fn reserve_bulk(&self, size: u64, room: &mut BulkRoom) -> Result<u64, OutboxError> {
        let missing = size.saturating_sub(room.left());
        if missing > 0 {
            let committed = self.shared.committed();
            let mut ledger = self.shared.ledger.lock();
            ledger.forget_bulk(committed);
            let Some(bound) = ledger.bulk.bound() else { return Ok(room.take(size)) };
            let used = ledger.bulk.used();
            // A record larger than the share is admitted alone.
            if used > room.left() && used + missing > bound {
                return Err(OutboxError::BulkBound { dir: self.dir.clone(), needed: size, used, bound });
            }
            ledger.bulk.reserve(missing);
            room.refund(missing);
        }
        Ok(room.take(size))
    }
}
