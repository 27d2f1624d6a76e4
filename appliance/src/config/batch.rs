//! `[batch]`: batch requests and the work on them.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::check::{Check, within};

/// Maximum images of one message. Their results are published in one transaction, and are in memory until then.
pub const MAX_MESSAGE_IMAGES: u64 = 10_000;

/// Batch requests and the work on them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Whether batches are accepted.
    pub enabled: bool,
    /// Where batch work waits.
    pub queue: QueueChoice,
    /// Maximum images in one batch.
    pub max_images: u64,
    /// Largest body of a batch request; it is read to disk, not into memory.
    pub max_body: ByteSize,
    /// Longest time for the body of a batch request to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Images per message, the unit of work of a worker.
    pub chunk: usize,
    /// Messages in work at once, per process.
    pub inflight: usize,
    /// Concurrent fetches of images, per process.
    pub concurrent_fetches: usize,
    /// Attempts to load an image before it fails.
    pub attempts: u32,
    /// Maximum time for one batch, from when a process starts to work on it; images that are not done by then fail.
    #[serde(with = "humantime_serde")]
    pub time_limit: Duration,
    /// Results are part of the status for batches of up to this many images.
    pub inline_results: u64,
    /// Capacity of the embedded queue in bytes; beyond it batches get 429.
    pub max_queued: ByteSize,
    /// How long the status of a batch is kept after its last change.
    #[serde(with = "humantime_serde")]
    pub status_ttl: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            queue: QueueChoice::default(),
            max_images: 200_000,
            max_body: ByteSize::mib(256),
            body_timeout: Duration::from_secs(600),
            chunk: 256,
            inflight: 4,
            concurrent_fetches: 16,
            attempts: 4,
            time_limit: Duration::from_secs(24 * 3600),
            inline_results: 100,
            max_queued: ByteSize::gib(1),
            status_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// Where batch work waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueChoice {
    /// Kafka where Kafka, Redis and S3 are all configured, else embedded.
    #[default]
    Auto,
    /// In this process's data directory; this process works on it.
    Embedded,
    /// In Kafka; `weir worker` processes work on it.
    Kafka,
}

impl BatchConfig {
    pub(super) fn validate(&self) -> Check {
        within("batch.max_images", self.max_images, 1, 10_000_000)?;
        within("batch.chunk", self.chunk as u64, 1, MAX_MESSAGE_IMAGES)?;
        within("batch.inflight", self.inflight, 1, 1000)?;
        within("batch.concurrent_fetches", self.concurrent_fetches, 1, 1000)?;
        within("batch.attempts", self.attempts, 1, 100)?;
        within("batch.max_body", self.max_body.as_u64(), 1, 1 << 40)?;
        within("batch.max_queued", self.max_queued.as_u64(), 1, 1 << 50)?;
        if self.body_timeout.is_zero() {
            return Err(("batch.body_timeout", "0s: no batch could ever be taken".into()));
        }
        if self.time_limit < Duration::from_secs(1) {
            return Err(("batch.time_limit", "less than 1s: no batch could ever be finished".into()));
        }
        if self.inline_results > 10_000 {
            return Err(("batch.inline_results", format!("{} is more than 10000", self.inline_results)));
        }
        if self.status_ttl < Duration::from_secs(1) {
            return Err(("batch.status_ttl", "less than 1s: no status would ever be found".into()));
        }
        Ok(())
    }
}
