//! Status of the uplink, for `/health` and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::outbox::Outbox;

/// A snapshot. Counters run since the uplink was started, `lost` since the outbox was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UplinkStatus {
    /// Events that are durable here and not yet in the topic. Failed appends leave gaps in the sequence, which count
    /// as well.
    pub backlog: u64,
    /// How long the oldest of them has waited, by the wall clock; none when there is none.
    pub oldest: Option<Duration>,
    /// Bytes of the outbox on disk, including sent events.
    pub bytes: u64,
    /// Sequence up to which everything is sent or dead-lettered.
    pub sent_sequence: u64,
    /// Number of events published.
    pub sent: u64,
    /// Number of unpublishable events that were written to the dead letters.
    pub dead_lettered: u64,
    /// Number of dead letters deleted because of their limit.
    pub dead_letters_dropped: u64,
    /// Number of failures to write a dead letter; its event waits.
    pub dead_letter_failures: u64,
    /// Number of times that another producer with the same identity fenced this one.
    pub fenced: u64,
    /// Number of times that this outbox was found to be a copy, or restored to an earlier state, and took a new
    /// identity.
    pub renewed: u64,
    /// Number of events that were deleted by the outbox's limits before they were sent, or could not be read.
    pub lost: u64,
    /// Whether the last attempt succeeded; none before the first.
    pub up: Option<bool>,
    /// Time of the last change of `up`.
    pub since: Option<SystemTime>,
    /// The last error, retained after a success.
    pub last_error: Option<String>,
}

/// Counters written by the thread.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) sent_sequence: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) dead_letters_dropped: AtomicU64,
    pub(super) dead_letter_failures: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) renewed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    up: Option<bool>,
    since: Option<SystemTime>,
    last_error: Option<String>,
    oldest: Option<SystemTime>,
}

impl Numbers {
    /// An attempt succeeded.
    pub(super) fn worked(&self) {
        self.turn(true, None);
    }

    /// An attempt failed; true if the previous one had not.
    pub(super) fn failed(&self, error: String) -> bool {
        self.turn(false, Some(error))
    }

    fn turn(&self, up: bool, error: Option<String>) -> bool {
        let mut state = self.state.lock();
        if error.is_some() {
            state.last_error = error;
        }
        let changed = state.up != Some(up);
        if changed {
            state.up = Some(up);
            state.since = Some(SystemTime::now());
        }
        changed
    }

    /// Sets when the oldest unsent event was appended.
    pub(super) fn set_oldest(&self, oldest: Option<SystemTime>) {
        self.state.lock().oldest = oldest;
    }

    /// Whether that is known.
    pub(super) fn knows_oldest(&self) -> bool {
        self.state.lock().oldest.is_some()
    }

    pub(super) fn status(&self, outbox: &Outbox) -> UplinkStatus {
        let stats = outbox.stats();
        let sent_sequence = self.sent_sequence.load(Ordering::Acquire).max(stats.committed);
        // What retention has deleted is lost, it does not wait.
        let backlog = stats.last_sequence.saturating_sub(sent_sequence).min(stats.events);
        let state = self.state.lock();
        let oldest = state.oldest.filter(|_| backlog > 0);
        UplinkStatus {
            backlog,
            oldest: oldest.map(|oldest| SystemTime::now().duration_since(oldest).unwrap_or_default()),
            bytes: stats.bytes,
            sent_sequence,
            sent: self.sent.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
            dead_letters_dropped: self.dead_letters_dropped.load(Ordering::Relaxed),
            dead_letter_failures: self.dead_letter_failures.load(Ordering::Relaxed),
            fenced: self.fenced.load(Ordering::Relaxed),
            renewed: self.renewed.load(Ordering::Relaxed),
            lost: stats.dropped_by_size + stats.dropped_by_age,
            up: state.up,
            since: state.since,
            last_error: state.last_error.clone(),
        }
    }
}
