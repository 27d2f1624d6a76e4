//! `[outbox]`, `[blobs]` and `[capture]`: what is kept in the data directory.

use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::outbox::{Durability, MAX_BULK_SHARE, WhenFull};
use serde::{Deserialize, Serialize};

use super::check::{Check, within};

/// The log of events that leave the box.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// Maximum bytes on disk.
    pub max_bytes: ByteSize,
    /// How long events are kept.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Size of a segment file.
    pub segment: ByteSize,
    /// What happens at the limit.
    pub when_full: WhenFull,
    /// Maximum share of unsent events of batches in `max_bytes`, in percent.
    pub batch_share: u8,
    /// What an acknowledgement guarantees.
    pub durability: Durability,
    /// Whether `max_bytes` is allocated on disk in advance.
    pub reserve: bool,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize::mib(512),
            max_age: Duration::from_secs(30 * 24 * 3600),
            segment: ByteSize::mib(16),
            when_full: WhenFull::default(),
            batch_share: 50,
            durability: Durability::default(),
            reserve: true,
        }
    }
}

impl OutboxConfig {
    pub(super) fn validate(&self) -> Check {
        within("outbox.max_bytes", self.max_bytes.as_u64(), 64 << 10, 1 << 50)?;
        within("outbox.batch_share", self.batch_share, 1, MAX_BULK_SHARE)?;
        within("outbox.segment", self.segment.as_u64(), 16 << 10, 1 << 32)
    }
}

/// Objects in the data directory, where there is no object storage: files and results of batches, captured images.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlobsConfig {
    /// Maximum bytes on disk.
    pub max_bytes: ByteSize,
    /// Free space on the disk that is left to others, such as the outbox.
    pub min_free: ByteSize,
}

impl Default for BlobsConfig {
    fn default() -> Self {
        Self { max_bytes: ByteSize::gib(10), min_free: ByteSize::mib(512) }
    }
}

impl BlobsConfig {
    pub(super) fn validate(&self) -> Check {
        for (key, value) in [("blobs.max_bytes", self.max_bytes), ("blobs.min_free", self.min_free)] {
            if value.as_u64() > 1 << 50 {
                return Err((key, format!("{value} is more than 1 PiB")));
            }
        }
        if self.max_bytes < ByteSize::mib(1) {
            return Err(("blobs.max_bytes", format!("{} is less than 1 MiB", self.max_bytes)));
        }
        Ok(())
    }
}

/// Images that are kept for training.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// Which images.
    pub rule: CaptureRule,
    /// `rule = "below"`: images whose confidence is under it.
    pub confidence_below: f32,
    /// `rule = "sample"`: this share of the images, 0 to 1.
    pub sample: f64,
    /// Maximum bytes on disk for images that wait to be sent; beyond it new ones are not kept.
    pub max_bytes: ByteSize,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            rule: CaptureRule::default(),
            confidence_below: 0.6,
            sample: 0.01,
            max_bytes: ByteSize::gib(2),
        }
    }
}

/// Which images are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureRule {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Images with a low confidence.
    Below,
    /// A sample by digest: the same image is always in or always out.
    Sample,
}

impl CaptureConfig {
    pub(super) fn validate(&self) -> Check {
        within("capture.confidence_below", self.confidence_below, 0.0, 1.0)?;
        within("capture.sample", self.sample, 0.0, 1.0)
    }
}
