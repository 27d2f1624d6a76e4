//! Which segments go, and when: by age, by size, or because the consumer has them.
//!
//! Events go by whole segments, always the oldest first, so what the consumer has committed goes before
//! what it has not. The segment that is being written is never deleted; when its events are too old a new
//! one is started first, because the name of the newest segment carries the numbering on.
//!
//! Age is observed time (`clock`), so no step of the wall clock deletes anything. Where a consumer is to send the
//! events, `refuse` never deletes one for its age that was not sent, and `drop_oldest` says what it has deleted.

use std::time::Duration;

use tracing::{error, warn};

use super::config::WhenFull;
use super::error::OutboxError;
use super::ledger::{Now, Reason, SegmentMeta};
use super::writer::Writer;

/// Both moments are in observed time.
pub(super) fn is_past(then_ms: u64, age: Duration, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(then_ms)) > age.as_millis()
}

impl Writer {
    /// Makes `bytes` fit under `max_bytes`, or says why they cannot. The zeros ahead of the writer do not
    /// count: the bytes go where they are, or they are cut off before the next segment is started.
    ///
    /// With `spare`, no event is deleted that is still to be sent.
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

    /// Deletes the oldest segments because the disk is full, until that has freed twice `bytes`; false
    /// when nothing was deleted. Those that the consumer has committed go under either policy. The newest
    /// segment stays, whatever happens. `spare` as above.
    pub(super) fn free_space(&mut self, bytes: u64, spare: bool) -> bool {
        let drops = self.settled.config.when_full == WhenFull::DropOldest && !self.freed_in_vain && !spare;
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

    /// Deletes what is too old to keep.
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
            error!(lost, ?reason, first, last, "acknowledged events were deleted before they were sent");
        }
        // Should the removal not be durable the file comes back: old events again, nothing lost.
        let _ = self.disk.sync_dir();
        Ok(())
    }
}
