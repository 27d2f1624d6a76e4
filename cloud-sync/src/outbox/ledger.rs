//! Statistics of the outbox, in memory so that no query needs the disk.

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
    /// Events on disk that the consumer has not committed. In a damaged segment lost events may be counted as well.
    pub backlog: u64,
    /// Bytes of all segment files, including the zeros ahead of the writer in the newest.
    pub bytes: u64,
    /// Bytes of unsent bulk events, and of those that are about to be written. 0 where their share is not limited.
    pub bulk_bytes: u64,
    /// Number of segment files.
    pub segments: usize,
    /// When the oldest event on disk was appended.
    pub oldest: Option<SystemTime>,
    /// Sequence of the last acknowledged event, 0 before the first.
    pub last_sequence: u64,
    /// Sequence up to which the consumer has committed.
    pub committed: u64,
    /// Number of pending appends.
    pub pending: usize,
    /// Events acknowledged.
    pub appended: u64,
    /// Failed appends.
    pub failed: u64,
    /// Events deleted for `max_bytes` or a full disk before the consumer had committed them.
    pub dropped_by_size: u64,
    /// Events deleted for `max_age` before the consumer had committed them.
    pub dropped_by_age: u64,
    /// Events deleted after the consumer had committed them: nothing was lost.
    pub removed_committed: u64,
    /// Fsyncs of event data.
    pub syncs: u64,
    /// Duration of the last fsync.
    pub last_sync: Duration,
    /// Total duration of all fsyncs.
    pub total_sync: Duration,
    /// The writer's last error, none once a later append has succeeded; or that unsent events were deleted, until the
    /// consumer has caught up with the log as of then.
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
    /// Wall clock time of the append of the oldest event: for display only.
    pub(super) oldest_wall_ms: u64,
    /// When its events were appended, in observed time.
    pub(super) span: Span,
}

impl SegmentMeta {
    /// A segment with a header and no records.
    pub(super) fn new(first: u64, now: Now) -> Self {
        let bytes = segment::HEADER_LEN;
        let span = Span { oldest_ms: now.observed_ms, newest_ms: now.observed_ms };
        Self { first, last: first - 1, events: 0, bytes, oldest_wall_ms: now.wall_ms, span }
    }

    /// Number of its events after `cursor`.
    pub(super) fn events_after(&self, cursor: u64) -> u64 {
        // Sequences are dense within a segment; where damage has left a hole, the count is the limit.
        self.last.saturating_sub(cursor).min(self.events)
    }
}

/// The current time by both clocks.
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
    /// Accounting of the bulk events.
    pub(super) bulk: Bulk,
    /// First sequence of the segment that is being written.
    pub(super) active: Option<u64>,
    /// The last sequence when an uncommitted event was last deleted; 0 if none was.
    pub(super) lossy_upto: u64,
}

/// Shared by the handle, the writer and readers of the statistics.
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

    /// Sets the length of the newest segment's file.
    pub(super) fn resize_newest(&mut self, bytes: u64) {
        let Some(newest) = self.segments.back_mut() else { return };
        self.bytes = self.bytes - newest.bytes + bytes;
        newest.bytes = bytes;
    }

    /// Removes the oldest segment and returns how many of its events were never committed.
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

    /// Stops counting the bulk events that need not be sent any more.
    pub(super) fn forget_bulk(&mut self, committed: u64) {
        let deleted = self.segments.front().map_or(0, |oldest| oldest.first.saturating_sub(1));
        self.bulk.forget(committed.max(deleted));
    }

    /// Bytes of the segments that cannot be deleted without losing an unsent event, and of the one that is being
    /// written.
    pub(super) fn unsent_bytes(&self, committed: u64) -> u64 {
        let stays = |segment: &&SegmentMeta| segment.last > committed || Some(segment.first) == self.active;
        self.segments.iter().filter(stays).map(|segment| segment.bytes).sum()
    }

    /// Reports that events were lost, until the consumer has passed the log's end as of then.
    fn loss(&self, committed: u64) -> Option<String> {
        let Stats { dropped_by_size, dropped_by_age, .. } = self.counters;
        (committed < self.lossy_upto).then(|| {
            format!("unsent events were deleted: {dropped_by_size} for space, {dropped_by_age} for their age")
        })
    }

    pub(super) fn add_sync(&mut self, took: Duration) {
        self.counters.syncs += 1;
        self.counters.last_sync = took;
        self.counters.total_sync += took;
    }

    /// Records a failure of `appends` appends; true if the writer was healthy before it.
    pub(super) fn add_failure(&mut self, appends: u64, error: &OutboxError) -> bool {
        self.counters.failed += appends;
        self.counters.error.replace(error.in_full()).is_none()
    }
}
