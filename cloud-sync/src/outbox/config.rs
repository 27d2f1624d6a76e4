//! Limits of an outbox, and their validation.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::OutboxError;
use super::{record, segment};

/// Minimum of `max_bytes`: four segments of a few events each.
pub const MIN_MAX_BYTES: u64 = 64 << 10;
/// Maximum of `bulk_share`: a quarter is the segment that is being written, which no commit frees.
pub const MAX_BULK_SHARE: u8 = 70;
const MIN_SEGMENT_BYTES: u64 = 4 << 10;
/// A larger group would make one fsync write so much that the latency of a single append suffers.
const MAX_GROUP_BYTES: u64 = 1 << 20;
/// A larger step would delay the appends behind the growth of a segment, a smaller one would make growth frequent.
const MAX_STEP_BYTES: u64 = 1 << 20;

/// What an append does when the outbox has reached `max_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Deletes the oldest events, sent or not, and counts them. Also when the disk itself is full.
    #[default]
    DropOldest,
    /// Fails with [`OutboxError::Bound`], or [`OutboxError::Full`] for the disk, until commits or retention by age
    /// have freed space.
    Refuse,
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Loss of power: it was synced to disk, together with all pending appends.
    #[default]
    Fsync,
    /// The end of the process, however abrupt, but not loss of power: the operating system has it.
    OsBuffered,
}

/// Settings of an outbox.
#[derive(Debug, Clone)]
pub struct OutboxConfig {
    /// Its directory; created if it does not exist. The uplink stores its `identity` there; nothing else may be
    /// stored there.
    pub dir: PathBuf,
    /// Maximum bytes of all segments together, at least [`MIN_MAX_BYTES`].
    pub max_bytes: u64,
    /// Events older than this are deleted. Whole segments are deleted, so an event may live a quarter longer. Only
    /// time for which the outbox was open counts, by a clock that does not step.
    pub max_age: Duration,
    /// How long committed events are retained for inspection.
    pub keep_committed: Duration,
    /// Size at which a segment is closed; clamped to a quarter of `max_bytes`.
    pub segment_bytes: u64,
    /// Policy at `max_bytes`.
    pub when_full: WhenFull,
    /// Maximum share of `max_bytes` for unsent bulk events ([`super::Outbox::append_bulk`]), in percent, 1 to
    /// [`MAX_BULK_SHARE`]. Not applied where there is no consumer and the oldest events are deleted.
    pub bulk_share: u8,
    /// Whether a consumer commits the events. If so, [`WhenFull::Refuse`] deletes no uncommitted event for its age,
    /// and uncommitted events that [`WhenFull::DropOldest`] deletes are a fault that [`super::Stats::error`] reports.
    pub has_consumer: bool,
    /// Whether the space that `max_bytes` leaves beside the segments is allocated in advance, so that no other
    /// program takes it.
    pub reserve: bool,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Maximum number of pending appends; the next one fails immediately with [`OutboxError::Busy`].
    pub max_pending: usize,
}

impl OutboxConfig {
    /// The defaults, in `dir`: 512 MiB in segments of 16 MiB, 30 days, committed events retained for a day.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            dir: dir.into(),
            max_bytes: 512 << 20,
            max_age: 30 * DAY,
            keep_committed: DAY,
            segment_bytes: 16 << 20,
            when_full: WhenFull::default(),
            bulk_share: 50,
            has_consumer: false,
            reserve: false,
            durability: Durability::default(),
            max_pending: 4096,
        }
    }

    /// Validates every limit and computes the sizes that depend on several of them.
    pub(super) fn settle(mut self) -> Result<Settled, OutboxError> {
        let wrong =
            |setting, value: String, bound: String| Err(OutboxError::Config { setting, value, bound });
        if self.max_bytes < MIN_MAX_BYTES {
            return wrong("max_bytes", self.max_bytes.to_string(), format!("at least {MIN_MAX_BYTES}"));
        }
        if self.segment_bytes < MIN_SEGMENT_BYTES {
            let bound = format!("at least {MIN_SEGMENT_BYTES}");
            return wrong("segment_bytes", self.segment_bytes.to_string(), bound);
        }
        if self.max_age.is_zero() {
            return wrong("max_age", "0 s".into(), "more than nothing".into());
        }
        if self.max_pending == 0 {
            return wrong("max_pending", "0".into(), "at least 1".into());
        }
        if !(1..=MAX_BULK_SHARE).contains(&self.bulk_share) {
            let bound = format!("1 to {MAX_BULK_SHARE} (percent)");
            return wrong("bulk_share", self.bulk_share.to_string(), bound);
        }
        self.segment_bytes = self.segment_bytes.min(self.max_bytes / 4);
        // A group stops growing at half a segment and a record is at most another half, so a group with the segment's
        // header always fits into one segment and never has to be split.
        let half = self.segment_bytes / 2;
        let largest_record = half - segment::HEADER_LEN;
        let max_payload = usize::try_from(largest_record - record::HEADER_LEN as u64)
            .unwrap_or(record::MAX_PAYLOAD)
            .min(record::MAX_PAYLOAD);
        let step_bytes = match self.durability {
            Durability::Fsync => (self.segment_bytes / 8).min(MAX_STEP_BYTES),
            // There is no fsync here that zeros ahead could make cheaper.
            Durability::OsBuffered => 0,
        };
        Ok(Settled { group_bytes: half.min(MAX_GROUP_BYTES), step_bytes, max_payload, config: self })
    }
}

/// A validated configuration.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) config: OutboxConfig,
    /// A group is closed once it has this many bytes.
    pub(super) group_bytes: u64,
    /// How many zeros are written ahead of the records at a time.
    pub(super) step_bytes: u64,
    /// Maximum bytes of one event.
    pub(super) max_payload: usize,
}
