//! The prediction service: cache, single flight, lanes, outbox. Everything between an image's bytes and an answer that
//! may be given out; HTTP is above it, devices are below.
//!
//! Invariants:
//! - An answer leaves [`PredictService::predict`] only after its event is durable in the outbox.
//! - The same bytes asked for by many at once are computed once.
//! - Nothing here waits beyond the request's deadline.

mod cache;
mod error;
mod flight;
mod model;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cloud_sync::capture::{Capture, Captured};
use cloud_sync::event::{Event, EventBody, ImageRef, Prediction, Score};
use cloud_sync::outbox::Outbox;
use gpu_kernels::DecodeLimits;
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;

pub use cache::ContentCache;
pub use error::PredictError;
pub use flight::Flights;
pub use model::ServingModel;

use crate::lanes::{Lanes, StageTimings, SubmitError};
use crate::telemetry::{CacheOutcome, Metrics, Stage};
use flight::Role;

/// What predicts: one model on its lanes, with the cache before and the outbox behind it.
pub struct PredictService {
    /// The model that serves.
    pub model: ServingModel,
    /// Its lanes.
    pub lanes: Arc<Lanes>,
    /// The content cache.
    pub cache: ContentCache,
    /// Where events are made durable.
    pub outbox: Arc<Outbox>,
    /// Keeps images for training, where that is configured.
    pub capture: Option<Arc<Capture>>,
    /// What can be seen from outside.
    pub metrics: Arc<Metrics>,
    /// How it serves.
    pub settings: PredictSettings,
    /// Pictures being computed now.
    pub flights: Flights,
    /// Mean time that a lane needs for one image, in microseconds; moves slowly.
    pub mean_busy_us: AtomicU64,
}

/// How the service serves.
#[derive(Clone, Debug)]
pub struct PredictSettings {
    /// Name of this box in events.
    pub node: String,
    /// How long an answer is cached; None switches the cache off.
    pub cache_ttl: Option<Duration>,
    /// Bounds on images.
    pub limits: DecodeLimits,
}

/// One image and what is asked about it.
#[derive(Clone, Debug)]
pub struct PredictRequest {
    /// The request's id, in the answer and in the event.
    pub request_id: String,
    /// The encoded image.
    pub image: Bytes,
    /// The camera that took it.
    pub camera: Option<String>,
    /// How many labels to answer with, at least 1.
    pub top_k: usize,
    /// When the answer is no longer wanted.
    pub deadline: Instant,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct PredictAnswer {
    /// Labels with their scores, best first; `top_k` of them.
    pub predictions: Vec<Score>,
    /// Whether it was computed for another request.
    pub cached: bool,
    /// Time waited for a lane; None if nothing was computed for this request.
    pub queue: Option<Duration>,
    /// Time by stage; None if nothing was computed for this request.
    pub stages: Option<StageTimings>,
}

/// What is kept of a computed image.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    format: String,
    width: u32,
    height: u32,
    scores: Vec<f32>,
}

struct Computed {
    outcome: Arc<Outcome>,
    timing: Option<(Duration, StageTimings)>,
}

impl PredictService {
    /// Answers one request; when this returns Ok the answer's event is durable.
    ///
    /// # Errors
    /// [`PredictError`]; then there is no event, unless the deadline passed while the event was on its way to the disk.
    pub async fn predict(&self, request: PredictRequest) -> Result<PredictAnswer, PredictError> {
        let digest = blake3::hash(&request.image);
        let key = self.model.cache_key(&digest);
        let computed = self.outcome(&key, &request).await?;
        let predictions = self.model.best(&computed.outcome.scores, request.top_k);
        let cached = computed.timing.is_none();
        self.record(&request, &digest, &computed.outcome, &predictions, cached).await?;
        if let Some(first) = predictions.first() {
            self.metrics.prediction(&first.label);
            self.capture(&request, &digest, &computed.outcome.format, first);
        }
        let (queue, stages) = computed.timing.unzip();
        Ok(PredictAnswer { predictions, cached, queue, stages })
    }

    /// Whether a new image would be refused now, and when to come back. Lets a caller refuse before it reads a body.
    pub fn overloaded(&self) -> Option<PredictError> {
        self.lanes.is_full().then(|| self.refusal())
    }

    async fn outcome(&self, key: &[u8; 32], request: &PredictRequest) -> Result<Computed, PredictError> {
        let Some(ttl) = self.settings.cache_ttl else {
            let (outcome, timing) = self.compute(request).await?;
            return Ok(Computed { outcome: Arc::new(outcome), timing: Some(timing) });
        };
        let deadline = tokio::time::Instant::from_std(request.deadline);
        loop {
            if let Some(hit) = self.cached(key) {
                return Ok(hit);
            }
            match self.flights.join(key) {
                Role::Leader(leader) => {
                    // Another flight may have landed between the look above and this one's beginning.
                    if let Some(hit) = self.cached(key) {
                        return Ok(hit);
                    }
                    if let Some(value) = self.cache.get_shared(key, ttl).await
                        && let Some(hit) = self.hit(&value)
                    {
                        leader.land(Ok(Arc::clone(&hit.outcome)));
                        return Ok(hit);
                    }
                    self.metrics.cache(CacheOutcome::Miss);
                    let (outcome, timing) = match self.compute(request).await {
                        Ok(computed) => computed,
                        Err(error) if error.is_of_the_image() => {
                            let error = Arc::new(error);
                            leader.land(Err(Arc::clone(&error)));
                            return Err(PredictError::Shared(error));
                        }
                        Err(error) => return Err(error),
                    };
                    if let Ok(bytes) = serde_json::to_vec(&outcome) {
                        self.cache.put(key, bytes.into(), ttl);
                    }
                    let outcome = Arc::new(outcome);
                    leader.land(Ok(Arc::clone(&outcome)));
                    return Ok(Computed { outcome, timing: Some(timing) });
                }
                Role::Follower(follower) => {
                    let landed = timeout_at(deadline, follower.landed()).await;
                    if let Some(landing) = landed.map_err(|_| PredictError::DeadlineExceeded)? {
                        self.metrics.cache(CacheOutcome::Shared);
                        let outcome = landing.map_err(PredictError::Shared)?;
                        return Ok(Computed { outcome, timing: None });
                    }
                    // The first one was refused, late or went away; one of those who waited goes first now.
                }
            }
        }
    }

    fn cached(&self, key: &[u8; 32]) -> Option<Computed> {
        self.hit(&self.cache.get_local(key)?)
    }

    fn hit(&self, value: &[u8]) -> Option<Computed> {
        let outcome: Outcome = serde_json::from_slice(value).ok()?;
        // What another process has shared is as good as its length.
        if outcome.scores.len() != self.model.labels.len() {
            return None;
        }
        self.metrics.cache(CacheOutcome::Hit);
        Some(Computed { outcome: Arc::new(outcome), timing: None })
    }

    async fn compute(
        &self,
        request: &PredictRequest,
    ) -> Result<(Outcome, (Duration, StageTimings)), PredictError> {
        // Costs microseconds here and spares the lanes what is no image.
        gpu_kernels::inspect(&request.image, &self.settings.limits)?;
        let answer = match self.lanes.submit(request.image.clone(), request.deadline) {
            Ok(answer) => answer,
            Err(SubmitError::Full { .. }) => return Err(self.refusal()),
            Err(SubmitError::Stopped) => return Err(PredictError::Stopping),
        };
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let reply = timeout_at(deadline, answer).await.map_err(|_| PredictError::DeadlineExceeded)?;
        let (classified, waited) = reply.map_err(|_| PredictError::Stopping)??;
        let StageTimings { decode, preprocess, infer } = classified.timings;
        self.learn(decode + preprocess + infer);
        let outcome = Outcome {
            format: classified.format.to_string(),
            width: classified.width,
            height: classified.height,
            scores: classified.scores,
        };
        Ok((outcome, (waited, classified.timings)))
    }

    async fn record(
        &self,
        request: &PredictRequest,
        digest: &blake3::Hash,
        outcome: &Outcome,
        predictions: &[Score],
        cached: bool,
    ) -> Result<(), PredictError> {
        let Some(first) = predictions.first() else { return Err(PredictError::NoScores) };
        let started = Instant::now();
        let event = Event::new(
            self.settings.node.clone(),
            EventBody::Prediction(Prediction {
                request_id: request.request_id.clone(),
                camera: request.camera.clone(),
                model: self.model.event_ref(),
                image: ImageRef {
                    digest: digest.to_hex().to_string(),
                    format: outcome.format.clone(),
                    bytes: request.image.len() as u64,
                    width: outcome.width,
                    height: outcome.height,
                },
                species: first.label.clone(),
                confidence: first.score,
                predictions: predictions.to_vec(),
                cached,
            }),
        );
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let appended = timeout_at(deadline, self.outbox.append_event(&event)).await;
        appended.map_err(|_| PredictError::DeadlineExceeded)??;
        self.metrics.stage(Stage::Outbox, started.elapsed());
        Ok(())
    }

    /// Offers the image to the next training set; never waits.
    fn capture(&self, request: &PredictRequest, digest: &blake3::Hash, format: &str, first: &Score) {
        let Some(capture) = &self.capture else { return };
        let digest = digest.to_hex();
        if capture.wants(&digest, first.score) {
            capture.offer(Captured {
                bytes: request.image.clone(),
                digest: digest.to_string(),
                format: format.to_owned(),
                camera: request.camera.clone(),
                species: first.label.clone(),
                confidence: first.score,
                model: self.model.event_ref(),
                request_id: request.request_id.clone(),
                time: SystemTime::now(),
            });
        }
    }

    fn learn(&self, busy: Duration) {
        let new = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        let old = self.mean_busy_us.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 16 + new / 16 };
        self.mean_busy_us.store(mean, Ordering::Relaxed);
    }

    /// The refusal, with the time in which the queue of now will have been worked off.
    fn refusal(&self) -> PredictError {
        let mean = Duration::from_micros(self.mean_busy_us.load(Ordering::Relaxed).max(1000));
        let rounds = self.lanes.capacity().div_ceil(self.lanes.count().max(1));
        let retry_after = mean * u32::try_from(rounds).unwrap_or(u32::MAX);
        PredictError::Overloaded { capacity: self.lanes.capacity(), retry_after }
    }
}
