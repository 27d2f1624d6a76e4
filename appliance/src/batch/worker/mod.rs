//! The work on batches: take messages from the queue, classify their images, write the results, publish them.
//!
//! Invariants:
//! - A message leaves the queue only when its results are durable in the blob store and noted in the state store, and
//!   in the same step in which they are published ([`JobQueue::settle`]).
//! - Every step may be repeated, by anybody, after a crash at any point, and comes to the same bytes and counts.
//! - Of all deliveries of a chunk one owns it: the first that the state store saw complete it. Only the owner publishes.
//! - While one of the appliance's own stores is away, work waits and nothing fails.

mod alone;
mod budget;
mod chunk;
mod dead_letter;
mod files;
mod finish;
mod image;
mod join;
mod look;
mod results;
mod stats;
#[cfg(test)]
mod tests;
mod turn;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::blob::BlobStore;
use cloud_sync::capture::Capture;
use cloud_sync::queue::{Delivery, JobQueue};
use cloud_sync::state::StateStore;
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

pub use stats::{WorkerCounts, WorkerStats};

use self::alone::Attempt;
use super::load::Loader;
use super::retry::RetryPolicy;
use super::spool::Spool;
use crate::config::BatchConfig;
use crate::serving::{Classifier, Models};

/// How long to wait for the next message before looking whether to stop.
const RECEIVE_WAIT: Duration = Duration::from_millis(500);
/// A queue that has nothing to give may say so at once; then it is asked again after this time.
const IDLE_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for the state store when the work on a message is over.
const END_WAIT: Duration = Duration::from_secs(1);

/// What works batches off.
pub struct Worker {
    /// Where messages come from and results go.
    pub queue: Arc<dyn JobQueue>,
    /// How far each batch is.
    pub state: Arc<dyn StateStore>,
    /// Where results are written.
    pub blob: Arc<dyn BlobStore>,
    /// Loads the images.
    pub loader: Loader,
    /// The models.
    pub models: Arc<Models>,
    /// Classifies the images.
    pub classifier: Arc<Classifier>,
    /// How it works.
    pub settings: WorkerSettings,
    /// What batches may be.
    pub config: BatchConfig,
    /// What it has done.
    pub stats: Arc<WorkerStats>,
    /// How it waits for its stores.
    pub retry: Arc<RetryPolicy>,
    /// Keeps images for training, where that is configured.
    pub capture: Option<Arc<Capture>>,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Name of this box in events.
    pub node: String,
    /// Predictions an image where a message does not say.
    pub top_k: usize,
    /// How long work in hand may go on, from the signal to stop.
    pub grace: Duration,
    /// After this time a message is given back on which the work came to grief.
    pub fault_pause: Duration,
    /// Where results on their way are.
    pub spool: Spool,
    /// Whether files that came with a batch are removed when it is finished.
    pub remove_files: bool,
}

/// Why a message was left unfinished; it comes again.
#[derive(Debug, thiserror::Error)]
enum ChunkError {
    /// The lanes take no more work.
    #[error("the lanes are stopping")]
    Stopping,
    /// The work panicked.
    #[error("the work on it failed")]
    Fault,
    /// A result can't be written down.
    #[error("a result can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The state store has come back without the cancellation for which its work was broken off.
    #[error("its batch is not cancelled any more")]
    Revived,
    /// An id that was checked makes no key.
    #[error(transparent)]
    Key(#[from] cloud_sync::blob::InvalidKey),
}

impl Worker {
    /// Works until `shutdown`, then finishes what is in hand within the grace period, gives the rest back and leaves
    /// the queue.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let worker = Arc::new(self);
        let (abandon, abandoned) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut told = Instant::now();
        {
            let receiving = worker.receive_all(&mut tasks, &abandoned);
            tokio::pin!(receiving, shutdown);
            tokio::select! {
                () = &mut receiving => {}
                // A receive that is cut off could leave a message in nobody's hands, so it is waited for.
                () = &mut shutdown => {
                    told = Instant::now();
                    worker.stats.stop();
                    receiving.await;
                }
            }
        }
        let grace = worker.settings.grace.saturating_sub(told.elapsed());
        let all_done = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all_done).await.is_err() {
            tracing::info!(
                messages = tasks.len(),
                "the grace period is over; unfinished batch work is given back"
            );
            let _ = abandon.send(true);
            while tasks.join_next().await.is_some() {}
        }
        worker.queue.close().await;
    }

    /// Takes messages, each into a task of its own, until the flag is raised.
    async fn receive_all(self: &Arc<Self>, tasks: &mut JoinSet<()>, abandoned: &watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.config.inflight.max(1)));
        let mut backoff = self.retry.backoff();
        while !self.stats.is_stopping() {
            while tasks.try_join_next().is_some() {}
            let place = tokio::time::timeout(RECEIVE_WAIT, Arc::clone(&places).acquire_owned()).await;
            let Ok(Ok(place)) = place else { continue };
            let asked = Instant::now();
            match self.queue.receive(RECEIVE_WAIT).await {
                Ok(Some(delivery)) => {
                    backoff.succeed();
                    let (worker, mut abandoned) = (Arc::clone(self), abandoned.clone());
                    tasks.spawn(async move {
                        worker.work_on(delivery, place, &mut abandoned).await;
                    });
                }
                Ok(None) => {
                    backoff.succeed();
                    tokio::time::sleep(IDLE_PAUSE.saturating_sub(asked.elapsed())).await;
                }
                Err(error) => {
                    tracing::error!(error = error.in_full(), "batch work can't be received");
                    tokio::time::sleep(backoff.fail().max(IDLE_PAUSE).min(RECEIVE_WAIT * 4)).await;
                }
            }
        }
    }

    /// Works on one message and gives it back if it must be left unfinished.
    async fn work_on(
        &self,
        delivery: Delivery,
        place: OwnedSemaphorePermit,
        abandoned: &mut watch::Receiver<bool>,
    ) {
        let _in_hand = self.stats.in_hand();
        let attempt = Attempt::new(&delivery, place);
        let outcome = tokio::select! {
            outcome = AssertUnwindSafe(self.process(&attempt)).catch_unwind() => outcome.unwrap_or(Err(ChunkError::Fault)),
            _ = abandoned.wait_for(|abandoned| *abandoned) => Err(ChunkError::Stopping),
        };
        let Err(setback) = outcome else { return };
        if matches!(setback, ChunkError::Stopping | ChunkError::Revived) {
            self.end_work(&attempt, false).await;
        } else {
            tracing::error!(position = delivery.position, reason = %setback, "the work on a message failed");
            let end = abandoned.wait_for(|abandoned| *abandoned);
            let _ = tokio::time::timeout(self.settings.fault_pause, end).await;
        }
        tracing::info!(position = delivery.position, reason = %setback, "batch work is given back");
        self.queue.release(delivery).await;
    }
}
