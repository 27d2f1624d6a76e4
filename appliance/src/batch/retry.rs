//! Waiting for the appliance's own stores: what they cannot do now is tried again for as long as it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::backoff::Backoff;
use cloud_sync::error::{SyncError, SyncResult};

use super::pausing::Pause;

/// How to wait for a store that is away. An outage fails no image: the work waits, and the bound on what is out for
/// work stops the queue meanwhile.
#[derive(Debug)]
pub struct RetryPolicy {
    first: Duration,
    longest: Duration,
    retries: AtomicU64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(15))
    }
}

impl RetryPolicy {
    /// Pauses between tries that double from `first` to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, retries: AtomicU64::new(0) }
    }

    /// Calls that had to be repeated since the start.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Starts a sequence of pauses at the initial backoff.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.first, self.longest)
    }

    /// Notes that `what` failed, and waits before the next try.
    pub async fn pause(&self, backoff: &mut Backoff, what: &str, error: &SyncError) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        let refused = !error.is_transient() && backoff.failures().is_multiple_of(8);
        let wait = backoff.fail();
        let error = error.in_full();
        if refused {
            tracing::error!(what, error, "batch work waits for what a store refuses");
        }
        // The links say themselves when they go down; this says what waits for them, once an outage.
        if backoff.failures() == 3 {
            tracing::warn!(what, error, "batch work waits for a store");
        } else {
            tracing::debug!(what, error, tries = backoff.failures(), "trying again");
        }
        tokio::time::sleep(wait).await;
    }

    /// Repeats `call` until it works. Also what a store refuses is tried again: a bucket that is missing or a
    /// permission that was taken away is the operator's to mend, and no reason to lose work.
    pub async fn retry_forever<T, C, F>(&self, what: &str, mut call: C) -> T
    where
        C: FnMut() -> F + Send,
        F: Future<Output = SyncResult<T>> + Send,
    {
        let (mut backoff, mut paused) = (self.backoff(), None);
        loop {
            let error = match call().await {
                Ok(value) => {
                    if let Some(paused) = paused {
                        Pause::end(paused).await;
                    }
                    return value;
                }
                Err(error) => error,
            };
            // Until the store is back it is nothing but waiting.
            paused.get_or_insert_with(Pause::begin);
            self.pause(&mut backoff, what, &error).await;
        }
    }
}
