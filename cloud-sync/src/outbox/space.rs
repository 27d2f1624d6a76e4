//! Disk space prepared for the writer: a reserve that only the outbox gets, and zeros ahead of the writer.
//!
//! # The reserve
//!
//! Space on the disk that only the outbox gets, kept in the file `reserve`.
//!
//! The file takes what `max_bytes` leaves beside the segments, so whoever else writes to the disk (bodies of batches,
//! images, models, other programs) finds it full before the outbox does. It shrinks as segments grow; where a write
//! finds no space the file gives way first. Its blocks are allocated, never written.
//!
//! A file system that cannot allocate has no reserve, a disk with too little room a smaller one. Both are logged, and
//! neither is a reason not to start.
//!
//! # Zeros ahead
//!
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

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use tracing::warn;

use super::error::OutboxError;
use super::writer::{Active, Writer};

const FILE: &str = "reserve";
/// Growth in steps finds out how much there is room for.
const STEP: u64 = 16 << 20;
/// What is left to the others, which have to start as well.
const LEFT_FREE: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Reserve {
    /// None where there is no reserve, or none can be had.
    file: Option<File>,
    bytes: u64,
    /// A growth failed: none is tried before [`Self::retry`].
    short: bool,
    /// And it was logged.
    said: bool,
}

impl Reserve {
    /// Opens the file; without `wanted` one that is there is removed.
    pub(super) fn open(dir: &Path, wanted: bool) -> io::Result<Self> {
        let path = dir.join(FILE);
        if !wanted {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => return Ok(Self { file: None, bytes: 0, short: false, said: false }),
            }
        }
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file: Some(file), bytes, short: false, said: false })
    }

    /// Whether it has all that it was to have.
    pub(super) fn is_whole(&self) -> bool {
        self.file.is_some() && !self.short
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Brings the reserve to within `grain` of `target`: not each append is to change the file.
    pub(super) fn settle(&mut self, target: u64, grain: u64) {
        let Some(file) = &self.file else { return };
        if target < self.bytes {
            if self.bytes - target >= grain && file.set_len(target).is_ok() {
                self.bytes = target;
            }
            return;
        }
        if self.short || target - self.bytes < grain.max(1) {
            return;
        }
        while self.bytes < target {
            let step = STEP.min(target - self.bytes);
            let grown = grow(file, self.bytes, step);
            if let Err(error) = grown {
                // A failed allocation may have made the file longer.
                let _ = file.set_len(self.bytes);
                let reserved = self.bytes;
                if !std::mem::replace(&mut self.said, true) {
                    warn!(%error, reserved, wanted = target, "the disk has less room than the outbox may take");
                }
                self.short = true;
                return;
            }
            self.bytes += step;
        }
        self.said = false;
    }

    /// Gives `bytes` up to the next write; false when there is nothing to give.
    pub(super) fn release(&mut self, bytes: u64) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.bytes > 0) else { return false };
        let left = self.bytes.saturating_sub(bytes);
        let released = file.set_len(left).is_ok();
        if released {
            self.bytes = left;
        }
        released
    }

    /// A growth that failed is tried again from now on.
    pub(super) fn retry(&mut self) {
        self.short = false;
    }
}

/// What is free on the disk; where that can't be told, as much as anybody may want.
pub(super) fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX / 2, |space| space.f_bavail.saturating_mul(space.f_frsize))
}

fn grow(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let space = fstatvfs(file)?;
    if space.f_bavail.saturating_mul(space.f_frsize) < bytes + LEFT_FREE {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(fallocate(file, FallocateFlags::empty(), from, bytes)?)
}

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
