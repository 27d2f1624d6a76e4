//! The clocks of an outbox: the wall clock stamps events, observed time ages them.
//!
//! A wall clock may step by years in either direction (no battery, a late time server, a bad one), so nothing is
//! ever deleted because of it. The age of an event is the time for which a process has had the outbox open since it
//! was appended.

#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::record;

#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    #[cfg(test)]
    pub(super) manual: Option<Arc<Manual>>,
}

/// A clock that a test moves.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Manual {
    pub(super) wall_ms: AtomicU64,
    pub(super) running_ms: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            #[cfg(test)]
            manual: None,
        }
    }

    /// What the wall clock says, in milliseconds since 1970.
    pub(super) fn wall_ms(&self) -> u64 {
        #[cfg(test)]
        if let Some(manual) = &self.manual {
            return manual.wall_ms.load(Ordering::Acquire);
        }
        record::unix_ms(SystemTime::now())
    }

    /// How long this clock has run. Steps of the wall clock do not change it.
    pub(super) fn running(&self) -> Duration {
        #[cfg(test)]
        if let Some(manual) = &self.manual {
            return Duration::from_millis(manual.running_ms.load(Ordering::Acquire));
        }
        self.started.elapsed()
    }
}
