//! How the uplink stands, for `/health` and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::outbox::Outbox;

/// A snapshot. Counters run since the uplink was started, `lost` since the outbox was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UplinkStatus {
    /// Events that are durable here and not yet in the topic. Appends that failed leave gaps in the
    /// numbering, and those count as well.
    pub backlog: u64,
    /// How long the oldest of them has waited, as the wall clock has it; none when nothing waits.
    pub oldest: Option<Duration>,
    /// Bytes of the outbox on disk, of events that were sent as well.
    pub bytes: u64,
    /// Up to which sequence everything is sent or given up.
    pub sent_sequence: u64,
    /// Events published.
    pub sent: u64,
    /// Events that can never be published and went to the dead letters.
    pub dead_lettered: u64,
    /// Dead letters deleted because there were too many.
    pub dead_letters_dropped: u64,
    /// Times that a dead letter could not be written; its event waits.
    pub dead_letter_failures: u64,
    /// Times that another producer with the same identity shut this one out.
    pub fenced: u64,
    /// Times that this outbox was found to be a copy, or to have come back as it was earlier, and took a new
    /// identity.
    pub renewed: u64,
    /// Events that were deleted by the outbox's bounds before they were sent, or could not be read.
    pub lost: u64,
    /// Whether the last try worked; none before the first.
    pub up: Option<bool>,
    /// Since when that is so.
    pub since: Option<SystemTime>,
    /// What was wrong last, kept when it works again.
    pub last_error: Option<String>,
}

/// What the thread writes and everybody reads.
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
    /// A try worked.
    pub(super) fn worked(&self) {
        self.turn(true, None);
    }

    /// A try failed; true when the one before had not.
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

    /// When the oldest event was appended that is not sent.
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
