//! One image of a batch: load it, classify it, say what became of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::capture::Captured;
use cloud_sync::event::{BatchItem, ImageRef, ItemOutcome};
use inference::decode_memory::decode_cost;
use inference::lanes::{Classified, LaneError, SubmitError};
use tokio::time::Instant;

use super::{ChunkError, Worker, WorkerStats};
use crate::batch::image_url::in_result;
use crate::batch::message::{BatchMessage, is_file};
use crate::batch::pausing;
use crate::serving::{Chosen, ServingModel};

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
        let top_k = message.top_k.unwrap_or(self.settings.top_k);
        // Costs microseconds here and spares the lanes what is no image.
        let cost = match gpu_kernels::inspect(&image, &self.settings.limits) {
            Ok(header) => decode_cost(&header),
            Err(error) => return Ok(failed(error.code(), error.to_string())),
        };
        let source = message.camera.as_deref().unwrap_or(&message.spec.request_id);
        let (mut tries, mut backoff) = (0, self.retry.backoff());
        let mut may_try = true;
        loop {
            let slot = self.models.default();
            let serving = |model| Chosen { model, on_trial: false, other: None };
            let chosen = if may_try { slot.choose(source) } else { slot.current().map(serving) };
            let Some(chosen) = chosen else {
                pausing::sleep(backoff.fail()).await;
                continue;
            };
            let model = &chosen.model;
            let answer = match model.lanes.submit_batch(image.clone(), cost).await {
                Ok(answer) => answer,
                Err(SubmitError::TooCostly(error)) => {
                    return Ok(failed("image_too_costly", error.to_string()));
                }
                // Either the process ends, or this version's lanes do, and another serves by now.
                Err(_) => match slot.current() {
                    Some(current) if !Arc::ptr_eq(&current, model) => continue,
                    _ => return Err(ChunkError::Stopping),
                },
            };
            match answer.await.map_err(|_| ChunkError::Stopping)? {
                Ok((classified, _)) => {
                    model.learn(classified.timings);
                    let outcome = answer_of(&model.model, &image, &classified, top_k);
                    if let ItemOutcome::Ok { predictions, .. } = &outcome
                        && let Some(best) = predictions.first()
                    {
                        slot.observed(best);
                        chosen.compare(&image, &best.label);
                    }
                    self.capture(message, &image, &outcome);
                    return Ok(outcome);
                }
                // What a version on trial fails on, the one that serves computes.
                Err(error) if chosen.on_trial && error.is_of_the_model() => {
                    model.tally.failed_by(&error);
                    may_try = false;
                }
                // Not the image's fault: it waits for as long as its batch may.
                Err(LaneError::NoDevice | LaneError::DeadlinePassed) => {
                    pausing::sleep(backoff.fail()).await;
                }
                // It may have been the device's fault; again and again it is the image's.
                Err(error) if error.may_pass() && tries < MAX_RETRIES => {
                    tries += 1;
                    WorkerStats::count(&self.stats.retried_images);
                    tracing::debug!(code = error.code(), tries, "an image of a batch is tried again");
                    pausing::sleep(backoff.fail()).await;
                }
                Err(error) => return Ok(failed(error.code(), error.to_string())),
            }
        }
    }

    /// Offers the image to the next training set; never waits. An image that comes again is captured once.
    fn capture(&self, message: &BatchMessage, image: &Bytes, outcome: &ItemOutcome) {
        let Some(capture) = &self.capture else { return };
        let ItemOutcome::Ok { species, confidence, model, image: about, .. } = outcome else { return };
        if capture.wants(&about.digest, *confidence) {
            capture.offer(Captured {
                bytes: image.clone(),
                digest: about.digest.clone(),
                format: about.format.clone(),
                camera: Some(message.camera.clone().unwrap_or_else(|| NO_CAMERA.to_owned())),
                species: species.clone(),
                confidence: *confidence,
                model: model.clone(),
                request_id: message.spec.request_id.clone(),
                time: SystemTime::now(),
            });
        }
    }
}

fn answer_of(model: &ServingModel, image: &Bytes, classified: &Classified, top_k: usize) -> ItemOutcome {
    let predictions = model.best(&classified.scores, top_k);
    let Some(best) = predictions.first() else {
        return failed("inference_failed", "the model gave no scores");
    };
    ItemOutcome::Ok {
        species: best.label.clone(),
        confidence: best.score,
        predictions: predictions.clone(),
        model: model.event_ref(),
        image: ImageRef {
            digest: blake3::hash(image).to_hex().to_string(),
            format: classified.format.to_string(),
            bytes: image.len() as u64,
            width: classified.width,
            height: classified.height,
        },
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
