//! One image of a batch: load it, classify it, say what became of it.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use cloud_sync::event::{BatchItem, ItemOutcome};
use inference::lanes::LaneError;
use tokio::time::Instant;

use super::{ChunkError, Worker, WorkerStats};
use crate::batch::image_url::in_result;
use crate::batch::message::{BatchMessage, is_file};
use crate::batch::pausing;
use crate::serving::{Classification, ClassificationError, ImageRequest, Priority, Uncached};

/// The camera of captured images of a batch that names none.
const NO_CAMERA: &str = "batch";

/// Retries of an image whose failure may pass.
const MAX_RETRIES: u32 = 4;

impl Worker {
    /// The result of an image within the time that its batch may take; after it the image has failed.
    pub(super) async fn item_in_time(
        &self,
        message: &BatchMessage,
        offset: usize,
        files: bool,
    ) -> Result<BatchItem, ChunkError> {
        let limit = self.config.time_limit;
        let deadline = self.stats.budgets.deadline(&message.spec.request_id, limit);
        // A future that is ready at once would win over a deadline that has passed.
        if deadline > Instant::now()
            && let Ok(item) = tokio::time::timeout_at(deadline, self.item(message, offset, files)).await
        {
            return item;
        }
        WorkerStats::count(&self.stats.failed);
        let limit = humantime::format_duration(limit);
        let error = format!("the batch was not finished within {limit} (batch.time_limit)");
        Ok(item(message, offset, failed("deadline_exceeded", error)))
    }

    /// The result of the image that stands at `offset` in the message; `files` is whether it may be a posted file.
    pub(super) async fn item(
        &self,
        message: &BatchMessage,
        offset: usize,
        files: bool,
    ) -> Result<BatchItem, ChunkError> {
        let url = message.image_urls.get(offset).map_or("", String::as_str);
        if is_file(url) && !files {
            self.stats.failed.fetch_add(1, Ordering::Relaxed);
            let error = format!("image_url: {url:?} is no file that was posted with this batch");
            return Ok(item(message, offset, failed("not_found", error)));
        }
        let outcome = match self.loader.load(&message.spec.request_id, url).await {
            Ok(loaded) => self.classify(message, loaded).await?,
            Err(failure) => failed(failure.code, failure.error),
        };
        let counter = match &outcome {
            ItemOutcome::Ok { .. } => &self.stats.classified,
            ItemOutcome::Failed { .. } => &self.stats.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
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
        let (mut tries, mut backoff) = (0, self.retry.backoff());
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
                    return Ok(answer_of(&answer, &image, &digest));
                }
                Err(ClassificationError::Stopping) => return Err(ChunkError::Stopping),
                // Not caused by the image, so it waits for as long as its batch may take.
                Err(
                    ClassificationError::NoModel(_)
                    | ClassificationError::DeadlineExceeded
                    | ClassificationError::Lane(LaneError::NoDevice),
                ) => {}
                // The device may have been the cause; after several tries the image is.
                Err(error) if error.may_pass() && tries < MAX_RETRIES => {
                    tries += 1;
                    WorkerStats::count(&self.stats.retried_images);
                    tracing::debug!(code = error.code(), tries, "retrying an image of a batch");
                }
                Err(error) => return Ok(failed(error.code(), error.to_string())),
            }
            // A candidate has failed on the image, or there was none.
            request.allow_candidate = false;
            pausing::sleep(backoff.fail()).await;
        }
    }
}

fn answer_of(answer: &Classification, image: &Bytes, digest: &blake3::Hash) -> ItemOutcome {
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

/// The result of the image that stands at `offset` in the message.
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

pub(super) fn failed(code: &str, error: impl Into<String>) -> ItemOutcome {
    ItemOutcome::Failed { code: code.to_owned(), error: error.into() }
}
