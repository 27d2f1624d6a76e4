//! The metrics of batches, read per scrape.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::worker::WorkerCounts;
use crate::telemetry::{Known, raise, register_each};

/// A snapshot of batch work.
#[derive(Clone, Copy, Default)]
pub struct BatchReading {
    /// Messages waiting, if known.
    pub waiting: Option<u64>,
    /// Messages in flight.
    pub inflight: u64,
    /// Whether fetching has stopped at the limit of messages in flight.
    pub paused: bool,
    /// Partitions that this process works on.
    pub partitions: u64,
    /// Counters of this process.
    pub counts: WorkerCounts,
    /// Calls to the stores that had to be repeated.
    pub retries: u64,
}

/// The metrics.
#[derive(Debug, Default)]
pub struct BatchMetrics {
    waiting: Known,
    inflight: Gauge,
    paused: Gauge,
    partitions: Gauge,
    completed: Counter,
    failed: Counter,
    finished: Counter,
    cancelled: Counter,
    bad_messages: Counter,
    duplicates: Counter,
    lost: Counter,
    refused_results: Counter,
    retries: Counter,
    retried_images: Counter,
    crashing_images: Counter,
    damaged_results: Counter,
    quarantined: Counter,
}

impl BatchMetrics {
    /// Registers all of them.
    pub fn register(&self, r: &mut Registry) {
        r.register("batch_waiting", "Batch messages that wait for work", self.waiting.clone());
        let gauges = [
            ("batch_inflight", "Batch messages in flight", &self.inflight),
            ("batch_paused", "1 while the limit of batch messages in flight is reached", &self.paused),
            ("batch_partitions", "Partitions that this process works on", &self.partitions),
        ];
        register_each(r, gauges);
        register_each(r, self.counters());
    }

    fn counters(&self) -> [(&'static str, &'static str, &Counter); 13] {
        [
            ("batch_images_completed", "Batch images classified", &self.completed),
            ("batch_images_failed", "Batch images failed permanently", &self.failed),
            ("batch_finished", "Batches finished by this process", &self.finished),
            ("batch_cancelled", "Batches among them that were cancelled", &self.cancelled),
            (
                "batch_bad_messages",
                "Messages that were no batch work, such as no JSON or no URL",
                &self.bad_messages,
            ),
            (
                "batch_duplicate_messages",
                "Messages whose images another message had processed",
                &self.duplicates,
            ),
            (
                "batch_moved_messages",
                "Messages that had moved to another worker when they were done",
                &self.lost,
            ),
            (
                "batch_refused_results",
                "Results that the results topic refused; they are in the results object",
                &self.refused_results,
            ),
            ("batch_store_retries", "Calls to the stores that were repeated", &self.retries),
            ("batch_image_retries", "Retries of batch images", &self.retried_images),
            (
                "batch_crashing_images",
                "Batch images given up because the process ended at them",
                &self.crashing_images,
            ),
            (
                "batch_damaged_results",
                "Results of chunks that were damaged in the store",
                &self.damaged_results,
            ),
            (
                "batch_quarantined_files",
                "Damaged files of batches that were quarantined at the start",
                &self.quarantined,
            ),
        ]
    }

    /// Sets all of them from a snapshot.
    pub fn set(&self, batch: &BatchReading) {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.waiting.set(batch.waiting);
        self.inflight.set(int(batch.inflight));
        self.paused.set(i64::from(batch.paused));
        self.partitions.set(int(batch.partitions));
        raise(&self.completed, batch.counts.classified);
        raise(&self.failed, batch.counts.failed);
        raise(&self.finished, batch.counts.batches);
        raise(&self.cancelled, batch.counts.cancelled);
        raise(&self.bad_messages, batch.counts.dead_letters);
        raise(&self.duplicates, batch.counts.duplicates);
        raise(&self.lost, batch.counts.lost);
        raise(&self.refused_results, batch.counts.refused_results);
        raise(&self.retries, batch.retries);
        raise(&self.retried_images, batch.counts.retried_images);
        raise(&self.crashing_images, batch.counts.crashing_images);
        raise(&self.damaged_results, batch.counts.damaged_results);
        raise(&self.quarantined, batch.counts.quarantined);
    }
}
