//! The work on batches: receive messages from the queue, classify their images, write the results, publish them.
//! [`chunk`] has the steps for one message.
//!
//! Invariants:
//! - A message leaves the queue only when its results are durable in the blob store and recorded in the state store, and
//!   in the same step in which they are published ([`JobQueue::settle`]).
//! - Every step may be repeated, by any worker, after a crash at any point, and yields the same bytes and counts.
//! - Of all deliveries of a chunk one owns it: the first that the state store saw complete it. Only the owner publishes.
//! - While one of the appliance's own stores is away, work waits and nothing fails.

mod chunk;
mod claim;
mod compute;
mod dead_letter;
mod finish;
mod isolation;
mod persist;
mod settle;
mod stats;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::batch_status::BatchStatusStore;
use cloud_sync::blob::BlobStore;
use cloud_sync::capture::Capture;
use cloud_sync::queue::{Delivery, JobQueue};
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

pub use stats::{WorkerCounts, WorkerStats};

use self::isolation::Attempt;
use super::load::Loader;
use super::result_store::ResultStore;
use super::retry::RetryPolicy;
use crate::config::BatchConfig;
use crate::serving::{Classifier, Models};

/// How long to wait for the next message before checking whether to stop.
const RECEIVE_WAIT: Duration = Duration::from_millis(500);
/// Interval of receives from a queue that answers at once that it is empty.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);

/// Processes batch work.
pub struct Worker {
    /// Where messages come from and results are published.
    pub queue: Arc<dyn JobQueue>,
    /// The progress of each batch.
    pub state: Arc<dyn BatchStatusStore>,
    /// Records, marks and dead letters of batches.
    pub blob: Arc<dyn BlobStore>,
    /// Results of batches, in the same blob store.
    pub results: ResultStore,
    /// Loads the images.
    pub loader: Loader,
    /// The models.
    pub models: Arc<Models>,
    /// Classifies the images.
    pub classifier: Arc<Classifier>,
    /// Settings of this process.
    pub settings: WorkerSettings,
    /// Settings of batches.
    pub config: BatchConfig,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// How it waits for its stores.
    pub retry: Arc<RetryPolicy>,
    /// Keeps images for training, where that is configured.
    pub capture: Option<Arc<Capture>>,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Name of this box in events.
    pub node: String,
    /// Predictions per image where a message names no number.
    pub top_k: usize,
    /// How long work in progress may go on, from the signal to stop.
    pub grace: Duration,
    /// Pause before a message whose processing failed is released.
    pub fault_pause: Duration,
    /// Whether files that came with a batch are removed when it is finished.
    pub remove_files: bool,
}

/// Why a message was left unfinished; it is delivered again.
#[derive(Debug, thiserror::Error)]
enum ChunkError {
    /// The lanes take no more work.
    #[error("the lanes are stopping")]
    Stopping,
    /// Its processing panicked.
    #[error("its processing panicked")]
    Panicked,
    /// A result can't be serialized.
    #[error("a result can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The work was stopped for a cancellation that the state store has lost since.
    #[error("its batch is not cancelled any more")]
    Revived,
    /// A checked id is not a valid key.
    #[error(transparent)]
    Key(#[from] cloud_sync::blob::InvalidKey),
}

impl Worker {
    /// Works until `shutdown`, then finishes the messages in progress within the grace period, releases the rest and
    /// leaves the queue.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let worker = Arc::new(self);
        let (abandon, abandoned) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut stopped = Instant::now();
        {
            let receiving = worker.receive_all(&mut tasks, &abandoned);
            tokio::pin!(receiving, shutdown);
            tokio::select! {
                () = &mut receiving => {}
                // A receive that is cancelled could lose a message, so it is waited for.
                () = &mut shutdown => {
                    stopped = Instant::now();
                    worker.stats.stop();
                    receiving.await;
                }
            }
        }
        let grace = worker.settings.grace.saturating_sub(stopped.elapsed());
        let all_done = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all_done).await.is_err() {
            tracing::info!(messages = tasks.len(), "grace period is over: releasing unfinished batch work");
            let _ = abandon.send(true);
            while tasks.join_next().await.is_some() {}
        }
        worker.queue.close().await;
    }

    /// Receives messages, each processed in a task of its own, until the worker is stopped.
    async fn receive_all(self: &Arc<Self>, tasks: &mut JoinSet<()>, abandoned: &watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(self.config.inflight.max(1)));
        let mut backoff = self.retry.backoff();
        while !self.stats.is_stopping() {
            while tasks.try_join_next().is_some() {}
            let slot = tokio::time::timeout(RECEIVE_WAIT, Arc::clone(&slots).acquire_owned()).await;
            let Ok(Ok(slot)) = slot else { continue };
            let started = Instant::now();
            match self.queue.receive(RECEIVE_WAIT).await {
                Ok(Some(delivery)) => {
                    backoff.succeed();
                    let (worker, mut abandoned) = (Arc::clone(self), abandoned.clone());
                    tasks.spawn(async move {
                        worker.work_on(delivery, slot, &mut abandoned).await;
                    });
                }
                Ok(None) => {
                    backoff.succeed();
                    tokio::time::sleep(IDLE_INTERVAL.saturating_sub(started.elapsed())).await;
                }
                Err(error) => {
                    tracing::error!(error = error.in_full(), "could not receive batch work");
                    tokio::time::sleep(backoff.fail().max(IDLE_INTERVAL).min(RECEIVE_WAIT * 4)).await;
                }
            }
        }
    }

    /// Processes one message, and releases it if it is left unfinished.
    async fn work_on(
        &self,
        delivery: Delivery,
        slot: OwnedSemaphorePermit,
        abandoned: &mut watch::Receiver<bool>,
    ) {
        let _in_hand = self.stats.in_hand();
        let attempt = Attempt::new(&delivery, slot);
        let outcome = tokio::select! {
            outcome = AssertUnwindSafe(self.process(&attempt)).catch_unwind() => outcome.unwrap_or(Err(ChunkError::Panicked)),
            _ = abandoned.wait_for(|abandoned| *abandoned) => Err(ChunkError::Stopping),
        };
        let Err(error) = outcome else { return };
        if matches!(error, ChunkError::Stopping | ChunkError::Revived) {
            self.end_work(&attempt, false).await;
        } else {
            tracing::error!(position = delivery.position, %error, "processing of a batch message failed");
            let end = abandoned.wait_for(|abandoned| *abandoned);
            let _ = tokio::time::timeout(self.settings.fault_pause, end).await;
        }
        tracing::info!(position = delivery.position, reason = %error, "releasing a batch message");
        self.queue.release(delivery).await;
    }
}
