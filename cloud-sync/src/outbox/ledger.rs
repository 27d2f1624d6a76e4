//! What the outbox holds and how it fared, kept in memory so that nobody has to ask the disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::clock::Span;
use super::error::OutboxError;
use super::quota::Bulk;
use super::segment;

/// A snapshot of the outbox. Counters run since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events on disk.
    pub events: u64,
    /// Events on disk that the consumer has not committed. In a segment with damage those that are lost
    /// may count as well.
    pub backlog: u64,
    /// Bytes of all segment files, with the zeros that stand ahead of the writer in the newest.
    pub bytes: u64,
    /// Bytes of bulk events that are still to be sent, and of those that are about to be written. 0 where their share is
    /// not bounded.
    pub bulk_bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// When the oldest event on disk was appended.
    pub oldest: Option<SystemTime>,
    /// Sequence of the last acknowledged event, 0 before the first.
    pub last_sequence: u64,
    /// Up to where the consumer has committed.
    pub committed: u64,
    /// Appends that wait for the writer now.
    pub pending: usize,
    /// Events acknowledged.
    pub appended: u64,
    /// Appends that the writer failed, for whatever reason.
    pub failed: u64,
    /// Events deleted for `max_bytes` or a full disk before the consumer had committed them.
    pub dropped_by_size: u64,
    /// Events deleted for `max_age` before the consumer had committed them.
    pub dropped_by_age: u64,
    /// Events deleted after the consumer had committed them: nothing was lost.
    pub removed_committed: u64,
    /// Forced writes of event data to the disk.
    pub syncs: u64,
    /// How long the last one took.
    pub last_sync: Duration,
    /// How long all of them took.
    pub total_sync: Duration,
    /// What the writer last failed at, none once an append has succeeded after it; or that events were deleted
    /// which had not been sent, until the consumer has caught up with what was there then.
    pub error: Option<String>,
}

/// One segment on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentMeta {
    pub(super) first: u64,
    /// Sequence of the last event, `first - 1` when there is none.
    pub(super) last: u64,
    pub(super) events: u64,
    /// Length of the file.
    pub(super) bytes: u64,
    /// When the oldest event was appended, by the wall clock: to be shown, never to decide by.
    pub(super) oldest_wall_ms: u64,
    /// When its events came, in observed time.
    pub(super) span: Span,
}

impl SegmentMeta {
    /// A segment that has its header and nothing else.
    pub(super) fn new(first: u64, now: Now) -> Self {
        let bytes = segment::HEADER_LEN;
        let span = Span { oldest_ms: now.observed_ms, newest_ms: now.observed_ms };
        Self { first, last: first - 1, events: 0, bytes, oldest_wall_ms: now.wall_ms, span }
    }

    /// How many of its events come after `cursor`.
    pub(super) fn events_after(&self, cursor: u64) -> u64 {
        // Sequences are dense within a segment; where damage has made a hole, the count is the limit.
        self.last.saturating_sub(cursor).min(self.events)
    }
}

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall_ms: u64,
    pub(super) observed_ms: u64,
}

/// Why a segment is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Size,
    Age,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Oldest first.
    pub(super) segments: VecDeque<SegmentMeta>,
    pub(super) bytes: u64,
    pub(super) counters: Stats,
    /// What bulk events take.
    pub(super) bulk: Bulk,
    /// The segment that is being written, by its first sequence.
    pub(super) active: Option<u64>,
    /// The last event there was when one was deleted that the consumer had not committed; 0 when none was.
    pub(super) lossy_upto: u64,
}

/// Shared by the handle, the writer and whoever asks for numbers.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) ledger: Mutex<Ledger>,
    pub(super) committed: AtomicU64,
}

impl Shared {
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(super) fn last_sequence(&self) -> u64 {
        self.ledger.lock().counters.last_sequence
    }

    pub(super) fn stats(&self, pending: usize) -> Stats {
        let committed = self.committed();
        let mut ledger = self.ledger.lock();
        ledger.forget_bulk(committed);
        let oldest = ledger.segments.iter().find(|s| s.events > 0);
        Stats {
            events: ledger.segments.iter().map(|s| s.events).sum(),
            backlog: ledger.segments.iter().map(|s| s.events_after(committed)).sum(),
            bytes: ledger.bytes,
            bulk_bytes: ledger.bulk.used(),
            segments: ledger.segments.len(),
            oldest: oldest.map(|s| UNIX_EPOCH + Duration::from_millis(s.oldest_wall_ms)),
            committed,
            pending,
            error: ledger.counters.error.clone().or_else(|| ledger.loss(committed)),
            ..ledger.counters.clone()
        }
    }
}

impl Ledger {
    pub(super) fn add_segment(&mut self, meta: SegmentMeta) {
        self.bytes += meta.bytes;
        self.segments.push_back(meta);
    }

    /// Counts events that have become durable at the end of the newest segment.
    pub(super) fn add_events(&mut self, count: u64, now: Now) {
        let Some(newest) = self.segments.back_mut() else { return };
        if newest.events == 0 {
            newest.oldest_wall_ms = now.wall_ms;
            newest.span.oldest_ms = now.observed_ms;
        }
        newest.last += count;
        newest.events += count;
        newest.span.newest_ms = now.observed_ms;
        self.counters.last_sequence = newest.last;
        self.counters.appended += count;
        self.counters.error = None;
    }

    /// Notes the length that the file of the newest segment has now.
    pub(super) fn resize_newest(&mut self, bytes: u64) {
        let Some(newest) = self.segments.back_mut() else { return };
        self.bytes = self.bytes - newest.bytes + bytes;
        newest.bytes = bytes;
    }

    /// Takes the oldest segment off the books and returns how many of its events were never committed.
    pub(super) fn remove_oldest(&mut self, reason: Reason, committed: u64) -> u64 {
        let Some(gone) = self.segments.pop_front() else { return 0 };
        self.bytes -= gone.bytes;
        let lost = gone.events_after(committed);
        match reason {
            Reason::Size => self.counters.dropped_by_size += lost,
            Reason::Age => self.counters.dropped_by_age += lost,
        }
        self.counters.removed_committed += gone.events - lost;
        lost
    }

    /// Leaves out of account the bulk events that need not be sent any more.
    pub(super) fn forget_bulk(&mut self, committed: u64) {
        let deleted = self.segments.front().map_or(0, |oldest| oldest.first.saturating_sub(1));
        self.bulk.forget(committed.max(deleted));
    }

    /// Bytes of those segments that can't be deleted without the loss of an event that is still to be sent, and of the
    /// one that is being written.
    pub(super) fn unsent_bytes(&self, committed: u64) -> u64 {
        let stays = |segment: &&SegmentMeta| segment.last > committed || Some(segment.first) == self.active;
        self.segments.iter().filter(stays).map(|segment| segment.bytes).sum()
    }

    /// That events were lost, for as long as the consumer is behind what was there then.
    fn loss(&self, committed: u64) -> Option<String> {
        let Stats { dropped_by_size, dropped_by_age, .. } = self.counters;
        (committed < self.lossy_upto).then(|| {
            format!(
                "events were deleted that had not been sent: {dropped_by_size} for space, {dropped_by_age} for their age"
            )
        })
    }

    pub(super) fn add_sync(&mut self, took: Duration) {
        self.counters.syncs += 1;
        self.counters.last_sync = took;
        self.counters.total_sync += took;
    }

    /// Notes a failure of `appends` appends; true when the writer was well before it.
    pub(super) fn add_failure(&mut self, appends: u64, error: &OutboxError) -> bool {
        self.counters.failed += appends;
        self.counters.error.replace(error.in_full()).is_none()
    }
}
