//! Computing the results of a chunk: each image is loaded and classified, within the time limit of its batch.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::event::{BatchItem, ItemOutcome};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use inference::lanes::LaneError;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::chunk::ChunkState;
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::image_url::in_result;
use crate::batch::message::{BatchMessage, is_file};
use crate::batch::result_store::failed;
use crate::batch::retry;
use crate::serving::{Classification, ClassificationError, ImageRequest, Priority, Uncached};

/// Images of one message in flight, per concurrent load: those that wait for their next attempt or for a lane must not
/// keep the others from being loaded.
const IMAGES_PER_LOAD: usize = 4;
/// How often the work on a message checks whether its batch is cancelled.
const CANCELLED_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long images in flight may go on when their batch is cancelled. One that takes longer has no result.
pub(super) const CANCELLED_GRACE: Duration = Duration::from_secs(5);

/// The camera of captured images of a batch that names none.
const NO_CAMERA: &str = "batch";

/// Retries of an image whose failure may be temporary.
const MAX_RETRIES: u32 = 4;

/// Batches whose start is remembered at once.
const MAX_BATCHES: usize = 10_000;

/// When this process began to work on each batch. It is not stored: the clocks of two processes, or of one before and
/// after it was set, do not show how long the work has taken.
#[derive(Debug, Default)]
pub(super) struct Budgets(Mutex<HashMap<String, Instant>>);

impl Budgets {
    /// The deadline of the work on a batch, which starts now unless it has started before.
    fn deadline(&self, request_id: &str, limit: Duration) -> Instant {
        let mut started = self.0.lock();
        if let Some(started) = started.get(request_id) {
            return *started + limit;
        }
        if started.len() >= MAX_BATCHES {
            let oldest = started.iter().min_by_key(|(_, started)| **started).map(|(id, _)| id.clone());
            oldest.and_then(|id| started.remove(&id));
        }
        let now = Instant::now();
        started.insert(request_id.to_owned(), now);
        now + limit
    }

    /// Forgets a batch that is finished.
    pub(super) fn forget(&self, request_id: &str) {
        self.0.lock().remove(request_id);
    }
}

impl Worker {
    /// Computes the results of a chunk, unless they are stored or its batch is cancelled. Fewer than there are images
    /// when the batch is cancelled meanwhile.
    pub(super) async fn compute(&self, chunk: &mut ChunkState<'_>) -> Result<(), ChunkError> {
        if chunk.stored_in.is_some() || chunk.claimed.cancelled {
            return Ok(());
        }
        chunk.items = match &chunk.preset {
            Some(outcome) => {
                let offsets = 0..chunk.message.image_urls.len();
                offsets.map(|offset| item(&chunk.message, offset, outcome.clone())).collect()
            }
            None if chunk.attempt.is_suspect() => self.items_isolated(chunk).await?,
            None => self.items(chunk).await?,
        };
        Ok(())
    }

    /// The results of the images, many in flight at once.
    async fn items(&self, chunk: &ChunkState<'_>) -> Result<Vec<BatchItem>, ChunkError> {
        let window = self.config.concurrent_fetches.max(1) * IMAGES_PER_LOAD;
        let mut running = FuturesUnordered::new();
        let mut items = Vec::with_capacity(chunk.message.image_urls.len());
        let mut offsets = 0..chunk.message.image_urls.len();
        let mut cancelled = pin!(self.cancelled(chunk));
        loop {
            while running.len() < window
                && let Some(offset) = offsets.next()
            {
                running.push(self.in_shared_turn(self.item_in_time(chunk, offset)));
            }
            tokio::select! {
                item = running.next() => match item {
                    Some(item) => items.push(item?),
                    None => break,
                },
                () = &mut cancelled => {
                    let rest = async {
                        while let Some(item) = running.next().await {
                            items.push(item?);
                        }
                        Ok::<_, ChunkError>(())
                    };
                    if let Ok(rest) = tokio::time::timeout(CANCELLED_GRACE, rest).await {
                        rest?;
                    }
                    break;
                }
            }
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    /// Completes when the batch of the chunk is cancelled.
    pub(super) async fn cancelled(&self, chunk: &ChunkState<'_>) {
        loop {
            tokio::time::sleep(CANCELLED_POLL_INTERVAL).await;
            if self.is_cancelled(chunk.spec()).await {
                return;
            }
        }
    }

    /// The result of an image within the time limit of its batch; past it the image fails.
    pub(super) async fn item_in_time(
        &self,
        chunk: &ChunkState<'_>,
        offset: usize,
    ) -> Result<BatchItem, ChunkError> {
        let limit = self.config.time_limit;
        let deadline = self.stats.budgets.deadline(&chunk.spec().request_id, limit);
        // A future that is ready at once would win over a deadline that has passed.
        if deadline > Instant::now()
            && let Ok(item) = tokio::time::timeout_at(deadline, self.item(chunk, offset)).await
        {
            return item;
        }
        WorkerStats::count(&self.stats.failed);
        let limit = humantime::format_duration(limit);
        let error = format!("the batch was not finished within {limit} (batch.time_limit)");
        Ok(item(&chunk.message, offset, failed("deadline_exceeded", error)))
    }

    /// The result of the image at `offset` in the message.
    async fn item(&self, chunk: &ChunkState<'_>, offset: usize) -> Result<BatchItem, ChunkError> {
        let message = &chunk.message;
        let url = message.image_urls.get(offset).map_or("", String::as_str);
        if is_file(url) && !chunk.owns_files {
            WorkerStats::count(&self.stats.failed);
            let error = format!("image_url: {url:?} is not a file that was posted with this batch");
            return Ok(item(message, offset, failed("not_found", error)));
        }
        let outcome = match self.loader.load(&message.spec.request_id, url).await {
            Ok(loaded) => self.classify(message, loaded).await?,
            Err(failure) => failed(failure.code, failure.error),
        };
        WorkerStats::count(match &outcome {
            ItemOutcome::Ok { .. } => &self.stats.classified,
            ItemOutcome::Failed { .. } => &self.stats.failed,
        });
        Ok(item(message, offset, outcome))
    }

    async fn classify(&self, message: &BatchMessage, image: Bytes) -> Result<ItemOutcome, ChunkError> {
        let endpoint = self.models.default();
        let mut request = ImageRequest {
            image: &image,
            source: message.camera.as_deref().unwrap_or(&message.spec.request_id),
            top_k: message.top_k.unwrap_or(self.settings.top_k),
            priority: Priority::Batch,
            allow_candidate: true,
        };
        // Input that is no image must not wait for a version.
        if let Err(error) = self.classifier.check(&image) {
            return Ok(failed(error.code(), error.to_string()));
        }
        let (mut retries, mut backoff) = (0, self.retry.backoff());
        loop {
            match self.classifier.classify(endpoint, &request, &Uncached).await {
                Ok(answer) => {
                    let digest = blake3::hash(&image);
                    self.classifier.answered(endpoint, &image, &answer);
                    // An image that comes again is captured once.
                    if let Some(capture) = &self.capture {
                        let camera = message.camera.clone().unwrap_or_else(|| NO_CAMERA.to_owned());
                        answer.offer_to(capture, &image, &digest, Some(camera), &message.spec.request_id);
                    }
                    return Ok(outcome_of(&answer, &image, &digest));
                }
                Err(ClassificationError::Stopping) => return Err(ChunkError::Stopping),
                // Not caused by the image, so it waits for as long as its batch may take.
                Err(
                    ClassificationError::NoModel(_)
                    | ClassificationError::DeadlineExceeded
                    | ClassificationError::Lane(LaneError::NoDevice),
                ) => {}
                // The device may have been the cause; after several tries the image is.
                Err(error) if error.may_pass() && retries < MAX_RETRIES => {
                    retries += 1;
                    WorkerStats::count(&self.stats.retried_images);
                    tracing::debug!(code = error.code(), retries, "retrying an image of a batch");
                }
                Err(error) => return Ok(failed(error.code(), error.to_string())),
            }
            // A candidate has failed on the image, or there was none.
            request.allow_candidate = false;
            retry::sleep(backoff.fail()).await;
        }
    }
}

fn outcome_of(answer: &Classification, image: &Bytes, digest: &blake3::Hash) -> ItemOutcome {
    let Some(best) = answer.predictions.first() else {
        let error = ClassificationError::NoScores;
        return failed(error.code(), error.to_string());
    };
    ItemOutcome::Ok {
        species: best.label.clone(),
        confidence: best.score,
        predictions: answer.predictions.clone(),
        model: answer.model.model.event_ref(),
        image: answer.outcome.image_ref(digest, image),
    }
}

/// The result of the image at `offset` in the message.
pub(super) fn item(message: &BatchMessage, offset: usize, outcome: ItemOutcome) -> BatchItem {
    let url = message.image_urls.get(offset).map_or("", String::as_str);
    BatchItem {
        request_id: message.spec.request_id.clone(),
        index: message.first + offset as u64,
        image_url: in_result(&outcome, url).into_owned(),
        camera: message.camera.clone(),
        outcome,
    }
}
