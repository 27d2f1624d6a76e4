//! Space on the disk that only the outbox gets, kept in the file `reserve`.
//!
//! The file takes what `max_bytes` leaves beside the segments, so whoever else writes to the disk (bodies of batches,
//! images, models, other programs) finds it full before the outbox does. It shrinks as segments grow; where a write
//! finds no space the file gives way first. Its blocks are allocated, never written.
//!
//! A file system that cannot allocate has no reserve, a disk with too little room a smaller one. Both are logged, and
//! neither is a reason not to start.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use tracing::warn;

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
