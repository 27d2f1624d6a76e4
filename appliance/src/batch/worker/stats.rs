//! Counters of a worker, for metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::compute::Budgets;

/// Counters of a worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    pub(super) classified: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) dead_letters: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) refused_results: AtomicU64,
    in_hand: AtomicU64,
    stopping: AtomicBool,
    rate: Mutex<Option<(Instant, u64)>>,
    pub(super) retried_images: AtomicU64,
    pub(super) crashing_images: AtomicU64,
    pub(super) damaged_results: AtomicU64,
    pub(super) cancelled: AtomicU64,
    quarantined: AtomicU64,
    /// Held shared by steps of the work on messages, and exclusively by one that runs alone.
    pub(super) turns: tokio::sync::RwLock<()>,
    /// The time limits of the batches in progress.
    pub(super) budgets: Budgets,
}

/// A snapshot of [`WorkerStats`]; all but `in_hand` and `images_per_second` count since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkerCounts {
    /// Images classified. One that is repeated after a crash counts again.
    pub classified: u64,
    /// Images failed permanently.
    pub failed: u64,
    /// Batches finished, the cancelled ones included.
    pub batches: u64,
    /// Batches that were cancelled.
    pub cancelled: u64,
    /// Messages that were no batch work.
    pub dead_letters: u64,
    /// Messages whose chunk another message had completed.
    pub duplicates: u64,
    /// Messages that had moved to another worker by the time they were done.
    pub lost: u64,
    /// Results that the results topic refused.
    pub refused_results: u64,
    /// Retries of images whose failure might be temporary.
    pub retried_images: u64,
    /// Images given up because the process ended while processing them.
    pub crashing_images: u64,
    /// Results of chunks that were damaged in the store.
    pub damaged_results: u64,
    /// Damaged files of batches that were quarantined at the start.
    pub quarantined: u64,
    /// Messages in progress.
    pub in_hand: u64,
    /// Images done per second, since the previous snapshot.
    pub images_per_second: f64,
}

impl WorkerStats {
    /// A snapshot; called once per metrics scrape.
    pub fn counts(&self) -> WorkerCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (classified, failed) = (load(&self.classified), load(&self.failed));
        let now = Instant::now();
        let before = self.rate.lock().replace((now, classified + failed));
        let images_per_second = before.map_or(0.0, |(then, images)| {
            let seconds = now.duration_since(then).as_secs_f64();
            if seconds > 0.0 { (classified + failed - images) as f64 / seconds } else { 0.0 }
        });
        WorkerCounts {
            classified,
            failed,
            batches: load(&self.batches),
            cancelled: load(&self.cancelled),
            dead_letters: load(&self.dead_letters),
            duplicates: load(&self.duplicates),
            lost: load(&self.lost),
            refused_results: load(&self.refused_results),
            retried_images: load(&self.retried_images),
            crashing_images: load(&self.crashing_images),
            damaged_results: load(&self.damaged_results),
            quarantined: load(&self.quarantined),
            in_hand: load(&self.in_hand),
            images_per_second,
        }
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts damaged files of batches that were quarantined at the start.
    pub fn note_quarantined(&self, files: u64) {
        self.quarantined.fetch_add(files, Ordering::Relaxed);
    }

    /// Counts a message in progress until the guard is dropped.
    pub(super) fn in_hand(&self) -> InHand<'_> {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(&self.in_hand)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

pub(super) struct InHand<'a>(&'a AtomicU64);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
