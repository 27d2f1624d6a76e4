//! The prediction service: cache, single flight, lanes, outbox. Everything between an image's bytes and an answer that
//! may be given out; HTTP is above it, devices are below.
//!
//! Invariants:
//! - An answer leaves [`PredictService::predict`] only after its event is durable in the outbox.
//! - The same bytes asked for by many at once are computed once.
//! - Nothing here waits beyond the request's deadline.
//! - What a version on trial fails on, the version that serves computes: no client hears of a trial.

mod cache;
mod error;
mod flight;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cloud_sync::capture::{Capture, Captured};
use cloud_sync::event::{Event, EventBody, ImageRef, Prediction, Score};
use cloud_sync::outbox::Outbox;
use gpu_kernels::DecodeLimits;
use inference::decode_memory::decode_cost;
use inference::lanes::{Client, LaneError, StageTimings, SubmitError};
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;

pub use cache::PredictionCache;
pub use error::PredictError;
pub use flight::SingleFlight;

use crate::serving::{Chosen, LoadedModel, Models, ServingModel, Slot};
use crate::telemetry::{CacheOutcome, Metrics, Stage};
use flight::Role;

/// Share of a request's time that a version on trial may take. The rest is for the version that serves, should it fail.
const TRIAL_SHARE: f64 = 0.5;

/// What predicts: models on their lanes, with the cache before and the outbox behind them.
pub struct PredictService {
    /// The models that serve.
    pub models: Arc<Models>,
    /// The content cache.
    pub cache: PredictionCache,
    /// Where events are made durable.
    pub outbox: Arc<Outbox>,
    /// Keeps images for training, where that is configured.
    pub capture: Option<Arc<Capture>>,
    /// What can be seen from outside.
    pub metrics: Arc<Metrics>,
    /// How it serves.
    pub settings: PredictSettings,
    /// Pictures being computed now.
    pub flights: SingleFlight,
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
    /// The model that is asked.
    pub slot: Arc<Slot>,
    /// The encoded image.
    pub image: Bytes,
    /// The camera that took it.
    pub camera: Option<String>,
    /// How many labels to answer with, at least 1.
    pub top_k: usize,
    /// When the answer is no longer wanted.
    pub deadline: Instant,
    /// Who asks: clients take turns at the lanes.
    pub client: Client,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct PredictAnswer {
    /// The version that answered.
    pub model: Arc<LoadedModel>,
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

/// What is recorded of an answer.
struct Seen<'a> {
    model: &'a ServingModel,
    digest: &'a blake3::Hash,
    outcome: &'a Outcome,
    cached: bool,
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
        let source = request.camera.as_deref().unwrap_or(&request.request_id);
        let chosen =
            request.slot.choose(source).ok_or_else(|| PredictError::NoModel(request.slot.name().into()))?;
        if chosen.on_trial {
            self.try_out(&chosen, &digest, request).await
        } else {
            self.answer(&chosen, &digest, &request).await
        }
    }

    /// The answer of the version on trial within its share of the time, or else that of the version that serves.
    async fn try_out(
        &self,
        chosen: &Chosen,
        digest: &blake3::Hash,
        request: PredictRequest,
    ) -> Result<PredictAnswer, PredictError> {
        let share = request.deadline.saturating_duration_since(Instant::now()).mul_f64(TRIAL_SHARE);
        let tried = PredictRequest { deadline: Instant::now() + share, ..request.clone() };
        // Only what comes before the event is tried again, so that no request has two events.
        let error = match self.outcome(&chosen.model, digest, &tried).await {
            Ok(computed) => return self.deliver(chosen, digest, &request, computed).await,
            Err(error) if error.may_be_of_the_model() => error,
            Err(error) => return Err(error),
        };
        let Some(model) = request.slot.current() else { return Err(error) };
        let serving = Chosen { model, on_trial: false, other: None };
        let answered = self.answer(&serving, digest, &request).await;
        // A full queue and a deadline that has passed count against the version on trial where the one that serves had room
        // and time; what its lanes reported has been counted already.
        if answered.is_ok() && !error.is_of_the_model() {
            chosen.model.tally.fail();
            self.metrics.model_failure(request.slot.name(), &chosen.model.model.version);
        }
        answered
    }

    /// The answer of one version, durable.
    async fn answer(
        &self,
        chosen: &Chosen,
        digest: &blake3::Hash,
        request: &PredictRequest,
    ) -> Result<PredictAnswer, PredictError> {
        let computed = self.outcome(&chosen.model, digest, request).await?;
        self.deliver(chosen, digest, request, computed).await
    }

    /// Makes what a version computed durable, and an answer of it.
    async fn deliver(
        &self,
        chosen: &Chosen,
        digest: &blake3::Hash,
        request: &PredictRequest,
        computed: Computed,
    ) -> Result<PredictAnswer, PredictError> {
        let model = &chosen.model.model;
        let predictions = model.best(&computed.outcome.scores, request.top_k);
        let cached = computed.timing.is_none();
        let seen = Seen { model, digest, outcome: &computed.outcome, cached };
        self.record(request, &seen, &predictions).await?;
        if let Some(first) = predictions.first() {
            self.metrics.prediction(&first.label);
            self.metrics.model_prediction(request.slot.name(), &model.version);
            request.slot.observed(first);
            self.capture(request, &seen, first);
            if !cached {
                chosen.compare(&request.image, &first.label);
            }
        }
        let (queue, stages) = computed.timing.unzip();
        Ok(PredictAnswer { model: Arc::clone(&chosen.model), predictions, cached, queue, stages })
    }

    /// Whether a new image of this client for `slot` would be refused now, and when to come back. Lets a caller refuse before it reads a
    /// body.
    pub fn overloaded(&self, slot: &Slot, client: Client) -> Option<PredictError> {
        let model = slot.current()?;
        model.lanes.is_full_for(client).then(|| refusal(&model))
    }

    async fn outcome(
        &self,
        model: &LoadedModel,
        digest: &blake3::Hash,
        request: &PredictRequest,
    ) -> Result<Computed, PredictError> {
        let key = &model.model.cache_key(digest);
        let Some(ttl) = self.settings.cache_ttl else {
            let (outcome, timing) = self.compute(model, request).await?;
            return Ok(Computed { outcome: Arc::new(outcome), timing: Some(timing) });
        };
        let deadline = tokio::time::Instant::from_std(request.deadline);
        loop {
            if let Some(hit) = self.cached(model, key) {
                return Ok(hit);
            }
            match self.flights.join(key) {
                Role::Leader(leader) => {
                    // Another flight may have landed between the look above and this one's beginning.
                    if let Some(hit) = self.cached(model, key) {
                        return Ok(hit);
                    }
                    if let Some(value) = self.cache.get_shared(key, ttl).await
                        && let Some(hit) = self.hit(model, &value)
                    {
                        leader.land(Ok(Arc::clone(&hit.outcome)));
                        return Ok(hit);
                    }
                    self.metrics.cache(CacheOutcome::Miss);
                    let (outcome, timing) = match self.compute(model, request).await {
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

    fn cached(&self, model: &LoadedModel, key: &[u8; 32]) -> Option<Computed> {
        self.hit(model, &self.cache.get_local(key)?)
    }

    fn hit(&self, model: &LoadedModel, value: &[u8]) -> Option<Computed> {
        let outcome: Outcome = serde_json::from_slice(value).ok()?;
        // What another process has shared is as good as its length.
        if outcome.scores.len() != model.model.labels.len() {
            return None;
        }
        self.metrics.cache(CacheOutcome::Hit);
        Some(Computed { outcome: Arc::new(outcome), timing: None })
    }

    async fn compute(
        &self,
        model: &LoadedModel,
        request: &PredictRequest,
    ) -> Result<(Outcome, (Duration, StageTimings)), PredictError> {
        // Costs microseconds here and spares the lanes what is no image.
        let header = gpu_kernels::inspect(&request.image, &self.settings.limits)?;
        let cost = decode_cost(&header);
        let answer =
            match model.lanes.admit(request.client, request.image.clone(), cost, request.deadline).await {
                Ok(answer) => answer,
                Err(SubmitError::TooCostly(error)) => return Err(error.into()),
                Err(SubmitError::DeadlinePassed) => return Err(PredictError::DeadlineExceeded),
                Err(SubmitError::Full { .. }) => return Err(refusal(model)),
                Err(SubmitError::Stopped) => return Err(PredictError::Stopping),
            };
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let reply = timeout_at(deadline, answer).await.map_err(|_| PredictError::DeadlineExceeded)?;
        let reply = reply.map_err(|_| PredictError::Stopping)?;
        let (slot, version) = (request.slot.name(), &model.model.version);
        if reply.as_ref().is_err_and(|error| model.tally.failed_by(error)) {
            self.metrics.model_failure(slot, version);
        }
        if matches!(reply, Err(LaneError::Displaced)) {
            return Err(refusal(model));
        }
        let (classified, waited) = reply?;
        model.learn(classified.timings);
        self.metrics.model_computed(slot, version, classified.timings.sum());
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
        seen: &Seen<'_>,
        predictions: &[Score],
    ) -> Result<(), PredictError> {
        let Some(first) = predictions.first() else { return Err(PredictError::NoScores) };
        let outcome = seen.outcome;
        let started = Instant::now();
        let event = Event::new(
            self.settings.node.clone(),
            EventBody::Prediction(Prediction {
                request_id: request.request_id.clone(),
                camera: request.camera.clone(),
                model: seen.model.event_ref(),
                image: ImageRef {
                    digest: seen.digest.to_hex().to_string(),
                    format: outcome.format.clone(),
                    bytes: request.image.len() as u64,
                    width: outcome.width,
                    height: outcome.height,
                },
                species: first.label.clone(),
                confidence: first.score,
                predictions: predictions.to_vec(),
                cached: seen.cached,
            }),
        );
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let appended = timeout_at(deadline, self.outbox.append_event(&event)).await;
        appended.map_err(|_| PredictError::DeadlineExceeded)??;
        self.metrics.stage(Stage::Outbox, started.elapsed());
        Ok(())
    }

    /// Offers the image to the next training set; never waits.
    fn capture(&self, request: &PredictRequest, seen: &Seen<'_>, first: &Score) {
        let Some(capture) = &self.capture else { return };
        let digest = seen.digest.to_hex();
        if capture.wants(&digest, first.score) {
            capture.offer(Captured {
                bytes: request.image.clone(),
                digest: digest.to_string(),
                format: seen.outcome.format.clone(),
                camera: request.camera.clone(),
                species: first.label.clone(),
                confidence: first.score,
                model: seen.model.event_ref(),
                request_id: request.request_id.clone(),
                time: SystemTime::now(),
            });
        }
    }
}

/// The refusal, with the time in which the queue of now will have been worked off.
fn refusal(model: &LoadedModel) -> PredictError {
    PredictError::Overloaded { capacity: model.lanes.capacity(), retry_after: model.queue_time() }
}
