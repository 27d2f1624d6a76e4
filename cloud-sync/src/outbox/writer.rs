//! The one thread that writes, and how a group of appends becomes durable.
//!
//! A group consists of the appends that are pending when the last group is done: one write call, one fsync, then
//! every append of the group is acknowledged. Under load the groups grow and the cost of an fsync is shared; a single
//! append waits for no other.
//!
//! The active segment has zeros ahead of its records, written and synced before (`space`), and appends overwrite
//! them. So an fsync has only the group to write; if the file grew with each group it would have to wait for the file
//! system's journal, and with it for what other processes write.
//!
//! After any failure:
//!
//! - An append is acknowledged with a sequence only when its bytes are where [`Durability`] says.
//! - A failed write is undone by truncating the segment, a failed fsync cannot be: the kernel may have dropped the
//!   pages and would report the next fsync as successful. So after either the segment is closed at its last durable
//!   length and never written again; the next group starts a new one.
//! - The sequences of a failed group are never assigned to other events. If its bytes reappear (truncation failed, or
//!   power was lost before it was durable) they are events of their own that were never acknowledged: a client that
//!   retried has its event twice, under two sequences. Delivery to consumers is at least once in any case.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::clock::{Ages, Clock};
use super::config::{Durability, Settled};
use super::disk::{Disk, SegmentFile};
use super::error::OutboxError;
use super::ledger::{Now, SegmentMeta, Shared};
use super::space::{Reserve, free_bytes};
use super::{record, recovery, segment};

/// Maximum observed time that a crash may lose.
const SAVE_AGES_EVERY: Duration = Duration::from_secs(300);

/// One pending append.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) payload: Vec<u8>,
    /// Whether it is a bulk event.
    pub(super) bulk: bool,
    /// Bytes that it takes of its reservation.
    pub(super) reserved: u64,
    /// Receives the sequence. The receiver may be gone: the event is retained anyway.
    pub(super) done: oneshot::Sender<Result<u64, OutboxError>>,
}

#[derive(Debug)]
pub(super) enum Job {
    Append(Pending),
    Close,
}

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: SegmentFile,
    /// Bytes known to be good; 0 until the header is written.
    pub(super) length: u64,
    /// Length of the file: from `length` on there are zeros, and they are durable.
    pub(super) file_bytes: u64,
    /// Number of zeros written ahead at a time; reduced each time that they did not fit.
    pub(super) step: u64,
}

/// State of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) disk: Disk,
    pub(super) settled: Settled,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    pub(super) ages: Ages,
    pub(super) reserve: Reserve,
    pub(super) active: Option<Active>,
    pub(super) next_sequence: u64,
    /// The disk was still full after events were deleted for it: another program would take the freed space again, so
    /// no unsent events are deleted before a write has succeeded.
    pub(super) freed_without_effect: bool,
    /// Held while anything is written.
    pub(super) lock: File,
}

/// Why a group could not be written, and whether a retry can help.
struct Failure {
    error: OutboxError,
    /// The segment is unchanged: the same bytes may be written to the same place.
    undone: bool,
}

impl Writer {
    /// Handles appends until a close request or until every handle is dropped.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) -> Result<(), OutboxError> {
        let config = &self.settled.config;
        let tick = (config.max_age / 8)
            .min((config.keep_committed / 8).max(Duration::from_secs(1)))
            .clamp(Duration::from_millis(20), Duration::from_secs(30));
        let save_every =
            (config.max_age.min(config.keep_committed) / 8).clamp(Duration::from_secs(1), SAVE_AGES_EVERY);
        let mut group = Vec::new();
        let mut buffer = Vec::new();
        let mut open = true;
        self.settle_reserve();
        while open {
            match jobs.recv_timeout(tick) {
                Ok(Job::Append(first)) => {
                    open = self.collect(first, jobs, &mut group);
                    self.serve(&mut group, &mut buffer);
                    if open && jobs.is_empty() {
                        self.extend_zeros();
                    }
                }
                Ok(Job::Close) | Err(RecvTimeoutError::Disconnected) => open = false,
                Err(RecvTimeoutError::Timeout) => self.reserve.retry(),
            }
            let now = self.now();
            self.expire(now);
            self.settle_reserve();
            if self.ages.unsaved(now.observed_ms) >= save_every {
                self.save_ages();
            }
        }
        self.save_ages();
        let closed = self.close_segment().and_then(|()| {
            recovery::mark_closed(self.disk.dir()).map_err(|e| OutboxError::io("close", self.disk.dir(), e))
        });
        drop(self.lock);
        closed
    }

    /// Collects pending appends with `first`, up to the size of a group; false when a close request was among them.
    fn collect(&self, first: Pending, jobs: &Receiver<Job>, group: &mut Vec<Pending>) -> bool {
        let mut bytes = record::size(first.payload.len());
        group.push(first);
        while bytes < self.settled.group_bytes {
            match jobs.try_recv() {
                Ok(Job::Append(next)) => {
                    bytes += record::size(next.payload.len());
                    group.push(next);
                }
                Ok(Job::Close) => return false,
                Err(_) => break,
            }
        }
        true
    }

    fn serve(&mut self, group: &mut Vec<Pending>, buffer: &mut Vec<u8>) {
        let mut written = self.write_group(group, buffer);
        if let Err(error) = &written
            && error.is_full()
            && group.iter().any(|pending| !pending.bulk)
        {
            // The bulk events may have blocked the others, which take less and for which old events may be deleted.
            let (bulk, others) = std::mem::take(group).into_iter().partition(|pending| pending.bulk);
            *group = others;
            if self.answer(bulk, &Err(error.clone())) > 0 {
                written = self.write_group(group, buffer);
            }
        }
        if let Err(error) = &written {
            let mut ledger = self.shared.ledger.lock();
            // Once per series of failures: otherwise a full disk would fill the log as well.
            if ledger.add_failure(group.len() as u64, error) {
                warn!(error = error.in_full(), "the outbox cannot store events");
            }
        }
        self.answer(std::mem::take(group), &written);
    }

    /// Answers appends and returns their number.
    fn answer(&self, group: Vec<Pending>, written: &Result<u64, OutboxError>) -> usize {
        let reserved = group.iter().map(|pending| pending.reserved).sum();
        self.shared.ledger.lock().bulk.release(reserved);
        let count = group.len();
        for (sequence, pending) in (0..).zip(group) {
            // The client may be gone.
            let _ = pending.done.send(written.clone().map(|first| first + sequence));
        }
        count
    }

    /// Writes a group and returns the sequence of its first event.
    fn write_group(&mut self, group: &[Pending], buffer: &mut Vec<u8>) -> Result<u64, OutboxError> {
        let next = self.next_sequence.checked_add(group.len() as u64);
        let Some(next) = next else {
            return Err(OutboxError::Exhausted { dir: self.disk.dir().to_owned() });
        };
        let now = self.now();
        let bytes = group.iter().map(|p| record::size(p.payload.len())).sum();
        let spare = self.settled.config.has_consumer && group.iter().any(|pending| pending.bulk);
        let own: u64 = group.iter().map(|pending| pending.reserved).sum();
        let others = self.shared.ledger.lock().bulk.reserved().saturating_sub(own);
        self.make_room(bytes + segment::HEADER_LEN + others, spare)?;
        self.rotate(bytes, now)?;
        let mut written = self.attempt(group, buffer, now);
        if let Err(Failure { error: OutboxError::Full { .. }, undone }) = written
            // Also for the next group when this one cannot be retried.
            && self.reserve.release(2 * bytes + self.settled.step_bytes)
            && undone
        {
            written = self.attempt(group, buffer, now);
        }
        if let Err(Failure { error: OutboxError::Full { .. }, undone: true }) = written
            && self.free_space(bytes, spare)
        {
            written = self.attempt(group, buffer, now);
            self.freed_without_effect = written.is_err();
        }
        let first = self.next_sequence;
        // Also after a failure, see above.
        self.next_sequence = next;
        written.map(|()| first).map_err(|failure| {
            self.abandon();
            failure.error
        })
    }

    /// Closes the active segment when the group does not fit into it, or when its first event is old: whole segments
    /// are deleted, so one that spans a long time would retain them too long.
    fn rotate(&mut self, bytes: u64, now: Now) -> Result<(), OutboxError> {
        let Some(active) = self.active.as_ref().filter(|active| active.length > 0) else { return Ok(()) };
        let full = active.length + bytes > self.settled.config.segment_bytes;
        let now = now.observed_ms;
        // A segment without events has no age: it preserves the sequence, and its successor would have its name.
        let oldest = {
            let ledger = self.shared.ledger.lock();
            ledger.segments.back().filter(|s| s.events > 0).map_or(now, |s| s.span.oldest_ms)
        };
        if full || super::retention::is_past(oldest, self.settled.config.max_age / 4, now) {
            self.close_segment()?;
        }
        Ok(())
    }

    fn attempt(&mut self, group: &[Pending], buffer: &mut Vec<u8>, now: Now) -> Result<(), Failure> {
        let active = self.take_or_create().map_err(|error| Failure { error, undone: true })?;
        buffer.clear();
        if active.length == 0 {
            buffer.extend_from_slice(&segment::header(active.segment.first));
        }
        // In this order no sequence after the last one is queried.
        for (pending, sequence) in group.iter().zip(self.next_sequence..) {
            record::encode(sequence, now.wall_ms, pending.bulk, &pending.payload, buffer);
        }
        self.put(active, buffer)?;
        let mut ledger = self.shared.ledger.lock();
        self.freed_without_effect = false;
        let had_failed = ledger.counters.error.is_some();
        ledger.add_events(group.len() as u64, now);
        let bulk = group.iter().filter(|pending| pending.bulk);
        let bulk = bulk.map(|pending| record::size(pending.payload.len())).sum();
        let last = ledger.counters.last_sequence;
        ledger.bulk.add(last, bulk);
        if had_failed {
            info!("the outbox stores events again");
        }
        Ok(())
    }

    /// Writes `bytes` at the end of `active`, makes them as durable as configured and keeps the segment active. Where
    /// the file has to grow for them it grows by a further step, in the same fsync. A new segment is in the ledger
    /// afterwards, without events.
    fn put(&mut self, mut active: Active, bytes: &[u8]) -> Result<(), Failure> {
        let is_new = active.length == 0;
        let path = self.disk.path(active.segment.first);
        if let Err(e) = self.disk.write(&active.segment, active.length, bytes) {
            let error = OutboxError::storage("write", &path, bytes.len() as u64, e);
            let undone = self.cut(&mut active).is_ok();
            self.active = undone.then_some(active);
            return Err(Failure { error, undone });
        }
        let end = active.length + bytes.len() as u64;
        let file_bytes =
            if end > active.file_bytes { self.write_zeros(&mut active, end) } else { active.file_bytes };
        let forced = self.force(&active.segment, is_new);
        if forced.is_ok() {
            let now = self.now();
            let mut ledger = self.shared.ledger.lock();
            if is_new {
                ledger.add_segment(SegmentMeta::new(active.segment.first, now));
            }
            ledger.resize_newest(file_bytes);
            active.length = end;
            active.file_bytes = file_bytes;
        }
        self.active = Some(active);
        forced.map_err(|e| {
            let error = OutboxError::storage("sync", &path, bytes.len() as u64, e);
            Failure { error, undone: false }
        })
    }

    fn force(&self, segment: &SegmentFile, is_new: bool) -> io::Result<()> {
        if self.settled.config.durability == Durability::Fsync {
            self.timed_sync(segment)?;
        }
        if is_new { self.disk.sync_dir() } else { Ok(()) }
    }

    pub(super) fn timed_sync(&self, segment: &SegmentFile) -> io::Result<()> {
        let start = Instant::now();
        self.disk.sync(segment)?;
        self.shared.ledger.lock().add_sync(start.elapsed());
        Ok(())
    }

    fn take_or_create(&mut self) -> Result<Active, OutboxError> {
        if let Some(active) = self.active.take() {
            return Ok(active);
        }
        let first = self.next_sequence;
        let segment = self
            .disk
            .create(first)
            .map_err(|e| OutboxError::storage("create", &self.disk.path(first), segment::HEADER_LEN, e))?;
        Ok(Active { segment, length: 0, file_bytes: 0, step: self.settled.step_bytes })
    }

    /// Starts a segment without events, so that the sequence outlives the segments before it.
    pub(super) fn start_empty(&mut self) -> Result<(), OutboxError> {
        let active = self.take_or_create()?;
        let header = segment::header(active.segment.first);
        self.put(active, &header).map_err(|failure| {
            self.next_sequence = self.next_sequence.saturating_add(1);
            self.abandon();
            failure.error
        })
    }

    /// Closes the active segment cleanly: without zeros after its records. What was only buffered is synced.
    pub(super) fn close_segment(&mut self) -> Result<(), OutboxError> {
        let Some(mut active) = self.active.take_if(|active| active.length > 0) else { return Ok(()) };
        let cut = active.file_bytes > active.length && self.cut(&mut active).is_ok();
        if self.settled.config.durability == Durability::OsBuffered {
            let path = self.disk.path(active.segment.first);
            self.timed_sync(&active.segment).map_err(|e| OutboxError::storage("sync", &path, 0, e))?;
        } else if cut {
            // Every event in it is durable already. Zeros that remain or reappear only take space until the outbox is
            // opened the next time: no reason to fail an append.
            let _ = self.timed_sync(&active.segment);
        }
        Ok(())
    }

    /// Abandons the active segment after a failure: it ends at its last durable length. Nothing depends on whether
    /// that succeeds, and there is no alternative when it does not.
    pub(super) fn abandon(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let _ =
            if active.length == 0 { self.disk.remove(active.segment.first) } else { self.cut(&mut active) };
    }

    /// Truncates `active` to what is known to be good.
    fn cut(&self, active: &mut Active) -> io::Result<()> {
        self.disk.truncate(&active.segment, active.length)?;
        active.file_bytes = active.length;
        if active.length > 0 {
            self.shared.ledger.lock().resize_newest(active.length);
        }
        Ok(())
    }

    /// Reserves in advance what the segments leave of `max_bytes`, and sets the available space.
    fn settle_reserve(&mut self) {
        let held = self.shared.ledger.lock().bytes;
        let target = self.settled.config.max_bytes.saturating_sub(held);
        self.reserve.settle(target, self.settled.config.segment_bytes / 8);
        let max_bytes = self.settled.config.max_bytes;
        let capacity = match self.reserve.is_whole() {
            true => max_bytes,
            false => max_bytes.min(held + self.reserve.bytes() + free_bytes(self.disk.dir())),
        };
        let mut ledger = self.shared.ledger.lock();
        ledger.bulk.set_capacity(capacity);
        ledger.active = self.active.as_ref().map(|active| active.segment.first);
    }

    fn now(&self) -> Now {
        let observed_ms = self.ages.now_ms(self.clock.running());
        Now { wall_ms: self.clock.wall_ms(), observed_ms }
    }

    /// Writes the ages of the segments. If that fails they count as younger after a crash.
    fn save_ages(&mut self) {
        let now = self.now();
        let segments = self.shared.ledger.lock().segments.clone();
        if let Err(error) = self.ages.save(self.disk.dir(), now.observed_ms, &segments) {
            warn!(%error, "cannot write the ages of the outbox's events");
        }
    }
}
