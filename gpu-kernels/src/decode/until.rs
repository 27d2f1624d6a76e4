//! When a decoder is to give up on an image.

use std::time::{Duration, Instant};

use super::DecodeError;

/// The time at which decoding is given up, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until(Option<Instant>);

impl Until {
    /// Decoding takes as long as it takes.
    pub const NEVER: Self = Self(None);

    /// The earlier of this and `time` from now.
    pub(super) fn or_after(self, time: Duration) -> Self {
        let end = Instant::now().checked_add(time);
        Self(match (self.0, end) {
            (Some(own), Some(end)) => Some(own.min(end)),
            (own, end) => own.or(end),
        })
    }

    /// Whether there is time left. Reads the clock: to be asked once every few rows.
    ///
    /// # Errors
    /// [`DecodeError::OutOfTime`].
    pub(super) fn check(self) -> Result<(), DecodeError> {
        if self.is_over() { Err(DecodeError::OutOfTime) } else { Ok(()) }
    }

    pub(super) fn is_over(self) -> bool {
        self.0.is_some_and(|end| end <= Instant::now())
    }

    /// Nanoseconds that are left; `None` where there is no end.
    pub(super) fn nanoseconds_left(self) -> Option<u64> {
        let left = self.0?.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Instant> for Until {
    fn from(end: Instant) -> Self {
        Self(Some(end))
    }
}

impl From<Option<Instant>> for Until {
    fn from(end: Option<Instant>) -> Self {
        Self(end)
    }
}
