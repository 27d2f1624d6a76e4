//! Waiting for the appliance's own stores: a failed call is repeated until it works, and while it waits, the step of the
//! work that made it counts as paused.
//!
//! A paused step computes nothing, so whatever runs it lets other steps run ([`Pauses`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::backoff::Backoff;
use cloud_sync::error::SyncError;
use tokio::sync::watch;

/// Failed attempts after which an outage is logged as a warning, once.
const WARN_AFTER: u32 = 3;
/// A call that is refused, not merely unanswered, is logged as an error once per this many attempts.
const REFUSALS_PER_ERROR: u32 = 8;

/// How to wait for a store that is away. An outage fails no image: the work waits, and the bound on messages in flight
/// stops the queue meanwhile.
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
    /// Pauses between attempts that double from `first` to `longest`.
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

    /// Logs that `what` failed, and waits before the next attempt.
    pub async fn pause(&self, backoff: &mut Backoff, what: &str, error: &SyncError) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        let refused = !error.is_transient() && backoff.failures().is_multiple_of(REFUSALS_PER_ERROR);
        let wait = backoff.fail();
        let error = error.in_full();
        if refused {
            tracing::error!(what, error, "a store refuses a call of batch work; retrying");
        }
        // The links themselves log when they go down; this logs what waits for them, once per outage.
        if backoff.failures() == WARN_AFTER {
            tracing::warn!(what, error, "batch work waits for a store");
        } else {
            tracing::debug!(what, error, attempts = backoff.failures(), "retrying");
        }
        tokio::time::sleep(wait).await;
    }

    /// Repeats `call` until it works. A refusal is retried too: an operator can create a missing bucket or restore a
    /// permission, and until then no work is lost.
    pub async fn retry_forever<T, E, C, F>(&self, what: &str, mut call: C) -> T
    where
        C: FnMut() -> F + Send,
        F: Future<Output = Result<T, E>> + Send,
        E: Into<SyncError>,
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
                Err(error) => error.into(),
            };
            // Until the store is back the step only waits.
            paused.get_or_insert_with(Pause::begin);
            self.pause(&mut backoff, what, &error).await;
        }
    }
}

tokio::task_local! {
    static STEP: Pauses;
}

/// The pauses of one step, for the code that runs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Parts of the step that are paused.
    waiting: watch::Sender<usize>,
    /// Whether a part whose pause is over has to wait until the step is resumed.
    held: watch::Sender<bool>,
}

impl Pauses {
    /// Runs a step whose pauses are counted here.
    pub(super) async fn scope<T>(&self, step: impl Future<Output = T>) -> T {
        STEP.scope(self.clone(), step).await
    }

    /// Completes when a part of the step is paused.
    pub(super) async fn paused(&self) {
        let _ = self.0.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Completes when no part of the step is paused.
    pub(super) async fn over(&self) {
        let _ = self.0.waiting.subscribe().wait_for(|waiting| *waiting == 0).await;
    }

    /// Lets the step continue after its pauses.
    pub(super) fn resume(&self) {
        self.0.held.send_replace(false);
    }
}

/// A pause of the current step, until dropped. Outside of any step it has no effect.
#[derive(Debug)]
pub(super) struct Pause(Option<Pauses>);

impl Pause {
    /// Begins a pause.
    pub(super) fn begin() -> Self {
        let step = STEP.try_with(Clone::clone).ok();
        if let Some(Pauses(step)) = &step {
            step.held.send_replace(true);
            step.waiting.send_modify(|waiting| *waiting += 1);
        }
        Self(step)
    }

    /// Ends it, and waits until the step is resumed.
    pub(super) async fn end(self) {
        let step = self.0.clone();
        drop(self);
        if let Some(Pauses(step)) = step {
            let _ = step.held.subscribe().wait_for(|held| !held).await;
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(Pauses(step)) = &self.0 {
            step.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
        }
    }
}

/// Sleeps, with the current step paused.
pub(super) async fn sleep(time: Duration) {
    let pause = Pause::begin();
    tokio::time::sleep(time).await;
    pause.end().await;
}
