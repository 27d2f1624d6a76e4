//! How the time for an end is shared out.

use std::time::Duration;

/// Longest time for leaving the queue: what is settled is still committed.
const MAX_CLOSE_TIME: Duration = Duration::from_secs(10);
/// Longest time that is kept for a step behind batch work: links, then lanes and outbox.
pub(crate) const MAX_IDLE_CLOSE: Duration = Duration::from_secs(1);

/// How `shutdown.grace` is shared out to the steps in which batch work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShutdownBudget {
    /// To finish what is in hand, from the signal on.
    pub(crate) work: Duration,
    /// Then to leave the queue.
    pub(crate) close: Duration,
}

impl ShutdownBudget {
    pub(crate) fn of(grace: Duration) -> Self {
        let close = (grace * 2 / 5).min(MAX_CLOSE_TIME);
        let rest = (grace / 10).min(MAX_IDLE_CLOSE * 2);
        Self { work: grace - close - rest, close }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_an_end_fit_the_grace_period_and_each_has_some_of_it() {
        for millis in [1, 100, 1000, 5000, 20_000, 60_000, 600_000] {
            let grace = Duration::from_millis(millis);
            let ShutdownBudget { work, close } = ShutdownBudget::of(grace);
            assert!(work + close < grace, "{work:?} and {close:?} of {grace:?}");
            assert!(work >= grace / 2 && close >= grace.min(MAX_CLOSE_TIME) / 3, "{work:?} and {close:?}");
        }
        let usual = ShutdownBudget::of(Duration::from_secs(20));
        assert_eq!(usual, ShutdownBudget { work: Duration::from_secs(10), close: Duration::from_secs(8) });
    }
}
