//! Which segments are deleted, and when: by age, by size, or because the consumer has committed them.
//!
//! Whole segments are deleted, always the oldest first, so committed events go before uncommitted ones. The segment
//! that is being written is never deleted; when its events are too old a new one is started first, because the name
//! of the newest segment preserves the sequence.
//!
//! Age is observed time (`clock`), so no step of the wall clock deletes anything. Where there is a consumer, `refuse`
//! never deletes an unsent event for its age, and `drop_oldest` reports what it has deleted.

use std::time::Duration;

use tracing::{error, warn};

use super::config::WhenFull;
use super::error::OutboxError;
use super::ledger::{Now, Reason, SegmentMeta};
use super::writer::Writer;

/// Both times are observed time.
pub(super) fn is_past(then_ms: u64, age: Duration, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(then_ms)) > age.as_millis()
}

impl Writer {
    /// Makes `bytes` fit under `max_bytes`, or returns why they cannot. The zeros ahead of the writer do not count:
    /// the bytes overwrite them, or they are truncated before the next segment is started.
    ///
    /// With `spare`, no unsent event is deleted.
    pub(super) fn make_room(&mut self, bytes: u64, spare: bool) -> Result<(), OutboxError> {
        let max_bytes = self.settled.config.max_bytes;
        let ahead = self.active.as_ref().map_or(0, |active| active.file_bytes - active.length);
        while self.shared.ledger.lock().bytes - ahead + bytes > max_bytes {
            let oldest = self.oldest_closed();
            let may_go = oldest.is_some_and(|oldest| {
                (self.settled.config.when_full == WhenFull::DropOldest && !spare)
                    || self.is_committed(&oldest)
            });
            if !may_go {
                let dir = self.disk.dir().to_owned();
                return Err(OutboxError::Bound { dir, needed: bytes, max_bytes });
            }
            self.drop_oldest(Reason::Size)?;
        }
        Ok(())
    }

    /// Deletes the oldest segments because the disk is full, until twice `bytes` are free; false when nothing was
    /// deleted. Committed ones are deleted under either policy. The newest segment is always retained. `spare` as
    /// above.
    pub(super) fn free_space(&mut self, bytes: u64, spare: bool) -> bool {
        let drops =
            self.settled.config.when_full == WhenFull::DropOldest && !self.freed_without_effect && !spare;
        let mut freed = 0;
        while freed < 2 * bytes && self.shared.ledger.lock().segments.len() > 1 {
            let Some(oldest) = self.oldest_closed() else { break };
            if !(drops || self.is_committed(&oldest)) || self.drop_oldest(Reason::Size).is_err() {
                break;
            }
            freed += oldest.bytes;
        }
        freed > 0
    }

    /// Deletes expired events.
    pub(super) fn expire(&mut self, now: Now) {
        if let Err(error) = self.try_expire(now)
            && self.shared.ledger.lock().add_failure(0, &error)
        {
            warn!(error = error.in_full(), "the outbox cannot delete old events");
        }
    }

    fn try_expire(&mut self, now: Now) -> Result<(), OutboxError> {
        let now_ms = now.observed_ms;
        let max_age = self.settled.config.max_age;
        let keeps_unsent =
            self.settled.config.has_consumer && self.settled.config.when_full == WhenFull::Refuse;
        let newest = self.shared.ledger.lock().segments.back().cloned();
        if let Some(newest) = newest
            && is_past(newest.span.newest_ms, max_age, now_ms)
            && (!keeps_unsent || self.is_committed(&newest))
            && (newest.events > 0 || self.active.is_none())
        {
            self.close_segment()?;
            self.start_empty()?;
        }
        while let Some(oldest) = self.oldest_closed() {
            let committed = self.is_committed(&oldest);
            let is_past = |age| is_past(oldest.span.newest_ms, age, now_ms);
            let sent = committed && is_past(self.settled.config.keep_committed);
            let expired = is_past(max_age) && (committed || !keeps_unsent);
            if !sent && !expired {
                break;
            }
            self.drop_oldest(Reason::Age)?;
        }
        Ok(())
    }

    fn is_committed(&self, segment: &SegmentMeta) -> bool {
        segment.last <= self.shared.committed()
    }

    /// The oldest segment that is not being written.
    fn oldest_closed(&self) -> Option<SegmentMeta> {
        let oldest = self.shared.ledger.lock().segments.front().cloned()?;
        let written = self.active.as_ref().is_some_and(|active| active.segment.first == oldest.first);
        (!written).then_some(oldest)
    }

    fn drop_oldest(&mut self, reason: Reason) -> Result<(), OutboxError> {
        let Some(oldest) = self.oldest_closed() else { return Ok(()) };
        let path = self.disk.path(oldest.first);
        self.disk.remove(oldest.first).map_err(|e| OutboxError::io("remove", &path, e))?;
        let committed = self.shared.committed();
        let lost = {
            let mut ledger = self.shared.ledger.lock();
            let lost = ledger.remove_oldest(reason, committed);
            if lost > 0 && self.settled.config.has_consumer {
                ledger.lossy_upto = ledger.counters.last_sequence;
            }
            lost
        };
        if lost > 0 && self.settled.config.has_consumer {
            let (first, last) = (oldest.first, oldest.last);
            error!(lost, ?reason, first, last, "unsent events deleted");
        }
        // If the removal is not durable the file reappears: old events again, nothing lost.
        let _ = self.disk.sync_dir();
        Ok(())
    }
}
