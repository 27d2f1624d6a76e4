//! Disk space prepared for the writer: a reserve, and zeros ahead of the writer.
//!
//! # The reserve
//!
//! Disk space allocated for the outbox alone, in the file `reserve`.
//!
//! The file takes what `max_bytes` leaves beside the segments, so other programs and stores (bodies of batches,
//! images, models) find the disk full before the outbox does. It shrinks as segments grow; where a write finds no
//! space the file shrinks first. Its blocks are allocated, never written.
//!
//! A file system without allocation has no reserve, a disk with too little space a smaller one. Both are logged, and
//! neither prevents the start.
//!
//! # Zeros ahead
//!
//! Space that an append overwrites without changing the length of the file.
//!
//! A file system with a journal (ext4 with `data=ordered`, and similar ones) has to commit the journal before the
//! fsync of a file that has grown may return, and before that it writes the dirty data of other files of the same
//! transaction. Overwriting blocks that are written and synced already changes nothing in the journal, so such an
//! fsync writes the group and nothing else. Space that is only reserved (`fallocate`) would not do: its conversion to
//! data is journalled again. So zeros are written.
//!
//! They are written one step at a time: normally after an append was acknowledged and while none is pending;
//! otherwise after the group for which they no longer suffice, in its fsync. They are limited by the size of a
//! segment and by `max_bytes`. Nothing depends on them: where they do not fit, a group takes the space that it needs.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use tracing::warn;

use super::error::OutboxError;
use super::writer::{Active, Writer};
use crate::durable;

const FILE: &str = "reserve";
/// Growing in steps finds out how much space there is.
const STEP: u64 = 16 << 20;
/// Bytes left to other programs, which have to start as well.
const MIN_FREE: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Reserve {
    /// None if there is no reserve or it cannot be allocated.
    file: Option<File>,
    bytes: u64,
    /// Growing failed: it is not retried before [`Self::retry`].
    short: bool,
    /// The failure was logged.
    logged: bool,
}

impl Reserve {
    /// Opens the file; without `wanted` an existing one is removed.
    pub(super) fn open(dir: &Path, wanted: bool) -> io::Result<Self> {
        let path = dir.join(FILE);
        if !wanted {
            durable::remove_if_exists(&path)?;
            return Ok(Self { file: None, bytes: 0, short: false, logged: false });
        }
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file: Some(file), bytes, short: false, logged: false })
    }

    /// Whether it has its full size.
    pub(super) fn is_whole(&self) -> bool {
        self.file.is_some() && !self.short
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Resizes the reserve to within `grain` of `target`: not every append should change the file.
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
                // A failed allocation may have extended the file.
                let _ = file.set_len(self.bytes);
                let reserved = self.bytes;
                if !std::mem::replace(&mut self.logged, true) {
                    warn!(%error, reserved, wanted = target, "the disk has less space than the outbox may take");
                }
                self.short = true;
                return;
            }
            self.bytes += step;
        }
        self.logged = false;
    }

    /// Releases `bytes` for the next write; false when nothing is left.
    pub(super) fn release(&mut self, bytes: u64) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.bytes > 0) else { return false };
        let left = self.bytes.saturating_sub(bytes);
        let released = file.set_len(left).is_ok();
        if released {
            self.bytes = left;
        }
        released
    }

    /// Allows growing again after a failure.
    pub(super) fn retry(&mut self) {
        self.short = false;
    }
}

/// Free bytes on the disk; `u64::MAX` where that is unknown.
pub(super) fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX / 2, |space| space.f_bavail.saturating_mul(space.f_frsize))
}

fn grow(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let space = fstatvfs(file)?;
    if space.f_bavail.saturating_mul(space.f_frsize) < bytes + MIN_FREE {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(fallocate(file, FallocateFlags::empty(), from, bytes)?)
}

impl Writer {
    /// Writes zeros ahead when less than half a step is left. To be called when no append is pending.
    pub(super) fn extend_zeros(&mut self) {
        let wanting = |active: &mut Active| {
            active.length > 0 && active.file_bytes - active.length < active.step.div_ceil(2)
        };
        let Some(mut active) = self.active.take_if(wanting) else { return };
        let from = active.file_bytes;
        let file_bytes = self.write_zeros(&mut active, from);
        let forced = if file_bytes > from { self.timed_sync(&active.segment) } else { Ok(()) };
        if forced.is_ok() {
            self.shared.ledger.lock().resize_newest(file_bytes);
            active.file_bytes = file_bytes;
        }
        let path = self.disk.path(active.segment.first);
        self.active = Some(active);
        if let Err(e) = forced {
            // As after any failed fsync, the contents of the disk are unknown.
            self.abandon();
            let error = OutboxError::storage("sync", &path, file_bytes - from, e);
            if self.shared.ledger.lock().add_failure(0, &error) {
                warn!(error = error.in_full(), "the outbox cannot reserve space");
            }
        }
    }

    /// Writes zeros from `from`, the end of what was written to `active`, and returns where they end. They are not
    /// synced yet. Fewer zeros than wanted are not an error.
    pub(super) fn write_zeros(&self, active: &mut Active, from: u64) -> u64 {
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
        // A few attempts with fewer zeros, then none: on a full disk each would be one more write.
        active.step = if active.step > self.settled.step_bytes / 8 { active.step / 2 } else { 0 };
        // If truncation fails, more zeros remain than are counted.
        let _ = self.disk.truncate(&active.segment, from);
        from
    }
}
