//! Statistics of capture.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::spool::Spool;

/// A snapshot. Counters run since capture was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaptureStats {
    /// Images in the spool.
    pub spooled: u64,
    /// Bytes of the spool, including sidecars.
    pub bytes: u64,
    /// Images sent to the storage.
    pub sent: u64,
    /// Selected images that were skipped: the writer was behind, the spool at its limit, the disk full, or the
    /// spooled files were damaged.
    pub skipped: u64,
    /// Images that were already in the spool or in the storage.
    pub deduplicated: u64,
    /// Images that the storage refused permanently.
    pub dead: u64,
    /// Images in the directory of the dead, including earlier runs.
    pub dead_kept: u64,
    /// Last error of the storage or the disk; none once an image has been sent after it.
    pub last_error: Option<String>,
}

/// The counters, and the bytes that wait for the writer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    waiting_bytes: AtomicU64,
    sent: AtomicU64,
    skipped: AtomicU64,
    deduplicated: AtomicU64,
    dead: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Counters {
    /// Reserves `bytes` in memory and in the spool, if they fit.
    pub(super) fn reserve(&self, bytes: u64, max_waiting: u64, spooled: u64, max_spooled: u64) -> bool {
        let fits = |waiting: u64| {
            let after = waiting.saturating_add(bytes);
            // One image may exceed the limit of the memory: it is accepted alone.
            let memory = after <= max_waiting || waiting == 0;
            (memory && spooled.saturating_add(after) <= max_spooled).then_some(after)
        };
        self.waiting_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    /// Releases what [`Self::reserve`] reserved.
    pub(super) fn release(&self, bytes: u64) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub(super) fn send(&self) {
        // In this order: whoever sees the count does not see an earlier error.
        self.last_error.lock().take();
        self.sent.fetch_add(1, Ordering::Release);
    }

    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Release);
    }

    pub(super) fn deduplicate(&self) {
        self.deduplicated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail(&self, error: String) {
        self.last_error.lock().replace(error);
    }

    pub(super) fn stats(&self, spool: &Spool) -> CaptureStats {
        CaptureStats {
            spooled: spool.images(),
            bytes: spool.bytes(),
            sent: self.sent.load(Ordering::Acquire),
            skipped: self.skipped.load(Ordering::Acquire),
            deduplicated: self.deduplicated.load(Ordering::Relaxed),
            dead: self.dead.load(Ordering::Relaxed),
            dead_kept: spool.dead_images(),
            last_error: self.last_error.lock().clone(),
        }
    }
}
