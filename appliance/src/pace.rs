//! The minimum rate at which a peer must send or read: bytes per window of waiting.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{FetchConfig, HttpConfig};

/// A minimum rate, and the time over which it is averaged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Bytes per second; 0 is no bound.
    pub(crate) bytes: u64,
    pub(crate) window: Duration,
}

/// Measures what a peer transfers while it is waited for. Time in which this side is not ready does not count.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    /// Bytes required per window.
    required: u64,
    moved: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
}

/// The peer is too slow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

impl Rate {
    /// The rate of clients.
    pub(crate) fn of(config: &HttpConfig) -> Self {
        Self { bytes: config.min_rate.as_u64(), window: config.rate_window }
    }

    /// The rate of servers that images are fetched from.
    pub(crate) fn of_fetches(config: &FetchConfig) -> Self {
        Self { bytes: config.min_rate.as_u64(), window: config.rate_window }
    }
}

impl Pace {
    pub(crate) fn new(rate: Rate) -> Self {
        // The window is at least a millisecond, and a rate that rounds to nothing still needs one byte.
        let required = (rate.bytes as f64 * rate.window.as_secs_f64()) as u64;
        let required = if rate.bytes == 0 { 0 } else { required.max(1) };
        Self { window: rate.window, required, moved: 0, waited: Duration::ZERO, waiting_since: None }
    }

    /// Starts waiting for the peer at `now`. Returns when the window ends if nothing more arrives; None without a bound.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Instant> {
        if self.required == 0 {
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        Some(since + self.window.saturating_sub(self.waited))
    }

    /// The wait is over: `bytes` were transferred.
    pub(crate) fn moved(&mut self, bytes: usize, now: Instant) -> Result<(), TooSlow> {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.moved = self.moved.saturating_add(bytes as u64);
        self.evaluate()
    }

    /// The wait continues: checks whether the window is over, and the peer was too slow in it.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), TooSlow> {
        if let Some(since) = self.waiting_since {
            self.waited += now.saturating_duration_since(since);
            self.waiting_since = Some(now);
        }
        self.evaluate()
    }

    fn evaluate(&mut self) -> Result<(), TooSlow> {
        if self.required == 0 || self.waited < self.window {
            return Ok(());
        }
        let moved = std::mem::take(&mut self.moved);
        self.waited = Duration::ZERO;
        if moved < self.required { Err(TooSlow) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { bytes: 1000, window: Duration::from_secs(10) };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_that_stalls_is_too_slow_after_a_window_and_one_that_keeps_the_rate_never() {
        let start = Instant::now();
        let mut stalled = Pace::new(RATE);
        assert_eq!(stalled.wait(start), Some(at(start, 10)));
        assert_eq!(stalled.check(at(start, 9)), Ok(()));
        assert_eq!(stalled.check(at(start, 10)), Err(TooSlow));
        let mut steady = Pace::new(RATE);
        for second in 0..100 {
            steady.wait(at(start, second));
            assert_eq!(steady.moved(1000, at(start, second + 1)), Ok(()), "{second}");
        }
        let mut trickling = Pace::new(RATE);
        let slow = (0..100).find(|second| {
            trickling.wait(at(start, *second));
            trickling.moved(999, at(start, second + 1)).is_err()
        });
        assert_eq!(slow, Some(9));
    }

    #[test]
    fn bytes_of_the_past_do_not_excuse_a_stall() {
        let start = Instant::now();
        let mut pace = Pace::new(RATE);
        assert_eq!(pace.moved(1 << 30, start), Ok(()));
        pace.wait(start);
        assert_eq!(pace.check(at(start, 10)), Ok(()));
        assert_eq!(pace.wait(at(start, 10)), Some(at(start, 20)));
        assert_eq!(pace.check(at(start, 20)), Err(TooSlow));
    }

    #[test]
    fn time_in_which_the_peer_was_not_waited_for_does_not_count() {
        let start = Instant::now();
        let mut pace = Pace::new(RATE);
        pace.wait(start);
        assert_eq!(pace.moved(1, at(start, 1)), Ok(()));
        // An hour passes in which the peer is not waited for.
        assert_eq!(pace.wait(at(start, 3600)), Some(at(start, 3609)));
        assert_eq!(pace.check(at(start, 3608)), Ok(()));
        assert_eq!(pace.check(at(start, 3609)), Err(TooSlow));
        let mut unbounded = Pace::new(Rate { bytes: 0, ..RATE });
        assert_eq!(unbounded.wait(start), None);
        assert_eq!(unbounded.check(at(start, 3600)), Ok(()));
    }
}
