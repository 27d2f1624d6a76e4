//! Exponential backoff with an upper bound and jitter.

use std::time::Duration;

/// Waits that double from `initial` up to `max`, each drawn from its upper half.
///
/// The jitter is AWS's "equal jitter" (Marc Brooker, "Exponential Backoff And Jitter", 2015): a fleet that lost the
/// same broker at the same moment must not reconnect in lockstep.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// Records a failure and returns how long to wait.
    pub fn fail(&mut self) -> Duration {
        let bound = self.initial.saturating_mul(2_u32.saturating_pow(self.failures.min(31))).min(self.max);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// Records a success: the next failure waits for `initial` again.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        for bound in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let wait = backoff.fail().as_millis();
            assert!((bound / 2..=bound).contains(&wait), "{wait} of {bound}");
        }
        assert_eq!(backoff.failures(), 9);
        backoff.succeed();
        assert!(backoff.fail() <= Duration::from_millis(100));
        let mut long = Backoff::new(Duration::from_secs(1), Duration::MAX);
        for _ in 0..100 {
            long.fail();
        }
    }

    #[test]
    fn waits_differ() {
        let waits = |_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).fail();
        let mut all: Vec<_> = (0..20).map(waits).collect();
        all.dedup();
        assert!(all.len() > 1);
    }
}
