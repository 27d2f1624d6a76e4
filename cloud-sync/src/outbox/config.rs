//! How an outbox is bounded, and the check of those bounds.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::OutboxError;
use super::{record, segment};

/// Fewest bytes that `max_bytes` may be: four segments of a few events each.
pub const MIN_MAX_BYTES: u64 = 64 << 10;
/// Most that `bulk_share` may be: a quarter is the segment that is being written, which no commit frees.
pub const MAX_BULK_SHARE: u8 = 70;
const MIN_SEGMENT_BYTES: u64 = 4 << 10;
/// More would let one fsync write so much that a lone append feels it.
const MAX_GROUP_BYTES: u64 = 1 << 20;
/// More would let one growth of a segment hold up the appends behind it, less would make it frequent.
const MAX_STEP_BYTES: u64 = 1 << 20;

/// What an append does when the outbox has reached `max_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Deletes the oldest events, sent or not, and counts them. The same when the disk itself is full.
    #[default]
    DropOldest,
    /// Fails with [`OutboxError::Bound`], or [`OutboxError::Full`] for the disk, until the consumer has moved
    /// on or age has freed space.
    Refuse,
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Loss of power: it was forced to the disk, together with all that waited beside it.
    #[default]
    Fsync,
    /// The end of the process, however sudden, but not loss of power: the operating system has it.
    OsBuffered,
}

/// How an outbox is kept.
#[derive(Debug, Clone)]
pub struct OutboxConfig {
    /// Its directory; made if it is missing. The uplink keeps its `identity` there; nothing else may be.
    pub dir: PathBuf,
    /// Most bytes of all segments together, at least [`MIN_MAX_BYTES`].
    pub max_bytes: u64,
    /// Events older than this are deleted. They go by the segment, so one may live a quarter longer. Only time
    /// for which the outbox was open counts, by a clock that does not step.
    pub max_age: Duration,
    /// How long events that the consumer has committed are kept, for people to look at.
    pub keep_committed: Duration,
    /// Size at which a segment is closed; clamped to a quarter of `max_bytes`.
    pub segment_bytes: u64,
    /// What to do at `max_bytes`.
    pub when_full: WhenFull,
    /// Most that bulk events ([`super::Outbox::append_bulk`]) which are still to be sent may take of `max_bytes`, in percent,
    /// 1 to [`MAX_BULK_SHARE`]. Not applied where nobody takes the events and the oldest go.
    pub bulk_share: u8,
    /// Whether somebody is to commit the events. If so, [`WhenFull::Refuse`] deletes none for its age that was not
    /// committed, and what [`WhenFull::DropOldest`] deletes uncommitted is a fault that [`super::Stats::error`] shows.
    pub has_consumer: bool,
    /// Whether what `max_bytes` leaves beside the segments is taken from the disk in advance, so that nobody else gets it.
    pub reserve: bool,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Most appends that may wait for the disk; the next one fails at once with [`OutboxError::Busy`].
    pub max_pending: usize,
}

impl OutboxConfig {
    /// The defaults, in `dir`: 512 MiB in segments of 16 MiB, 30 days, committed events kept for a day.
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

    /// Checks every bound and settles the sizes that follow from one another.
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
        // A group stops growing at half a segment and a record is at most another half, so a group with
        // the segment's header always fits into one segment and never has to be split.
        let half = self.segment_bytes / 2;
        let largest_record = half - segment::HEADER_LEN;
        let max_payload = usize::try_from(largest_record - record::HEADER_LEN as u64)
            .unwrap_or(record::MAX_PAYLOAD)
            .min(record::MAX_PAYLOAD);
        let step_bytes = match self.durability {
            Durability::Fsync => (self.segment_bytes / 8).min(MAX_STEP_BYTES),
            // Nothing waits for an fsync here that zeros ahead could make cheaper.
            Durability::OsBuffered => 0,
        };
        Ok(Settled { group_bytes: half.min(MAX_GROUP_BYTES), step_bytes, max_payload, config: self })
    }
}

/// A configuration whose bounds have been checked.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) config: OutboxConfig,
    /// A group takes no further event once it has this many bytes.
    pub(super) group_bytes: u64,
    /// How many zeros are put ahead of the records at a time.
    pub(super) step_bytes: u64,
    /// Most bytes of one event.
    pub(super) max_payload: usize,
}
