//! Zeros ahead of the writer: space that an append overwrites without changing the length of the file.
//!
//! A file system with a journal (ext4 with `data=ordered`, and its like) has to commit the journal before
//! the fsync of a file that has grown may return, and before that it writes what other files of the same
//! transaction have outstanding. Overwriting blocks that are written and forced already changes nothing
//! that the journal keeps, so such an fsync writes the group and nothing else. Space that is only reserved
//! (`fallocate`) would not do: that it has become data is for the journal again. So zeros are written.
//!
//! They come a step at a time: as a rule after an append was answered and while nothing waits; otherwise
//! behind the group that they no longer suffice for, in its fsync. They are bounded by the size of a
//! segment and by `max_bytes`. Nobody depends on them: where they do not fit, a group takes what it needs.

use tracing::warn;

use super::error::OutboxError;
use super::writer::{Active, Writer};

impl Writer {
    /// Puts zeros ahead when less than half a step is left of them. To be called when nothing waits.
    pub(super) fn stay_ahead(&mut self) {
        let wanting = |active: &mut Active| {
            active.length > 0 && active.file_bytes - active.length < active.step.div_ceil(2)
        };
        let Some(mut active) = self.active.take_if(wanting) else { return };
        let from = active.file_bytes;
        let file_bytes = self.put_zeros(&mut active, from);
        let forced = if file_bytes > from { self.timed_sync(&active.segment) } else { Ok(()) };
        if forced.is_ok() {
            self.shared.ledger.lock().resize_newest(file_bytes);
            active.file_bytes = file_bytes;
        }
        let path = self.disk.path(active.segment.first);
        self.active = Some(active);
        if let Err(e) = forced {
            // As after any failed fsync: what is on the disk is not known any more.
            self.abandon();
            let error = OutboxError::storage("sync", &path, file_bytes - from, e);
            if self.shared.ledger.lock().add_failure(0, &error) {
                warn!(error = error.in_full(), "the outbox cannot reserve space");
            }
        }
    }

    /// Writes zeros from `from`, the end of what was written to `active`, and returns where they end. They
    /// are not forced to the disk yet. What does not fit is not put there: no failure, there is less then.
    pub(super) fn put_zeros(&self, active: &mut Active, from: u64) -> u64 {
        let config = &self.settled.config;
        let others = {
            let ledger = self.shared.ledger.lock();
            let own = ledger.segments.back().filter(|newest| newest.first == active.segment.first);
            ledger.bytes - own.map_or(0, |newest| newest.bytes)
        };
        let bound = config.segment_bytes.min(config.max_bytes.saturating_sub(others));
        let bytes = active.step.min(bound.saturating_sub(from));
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
        if zeros.is_empty() {
            return from;
        }
        if self.disk.write(&active.segment, from, &zeros).is_ok() {
            return from + bytes;
        }
        // A few tries with less, then none: on a disk that is full each would be one more write.
        active.step = if active.step > self.settled.step_bytes / 8 { active.step / 2 } else { 0 };
        // Should the cut fail, more zeros stay than anybody counts on.
        let _ = self.disk.truncate(&active.segment, from);
        from
    }
}
