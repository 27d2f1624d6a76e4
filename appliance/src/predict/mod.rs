//! The prediction service: cache, single flight, classification, outbox. Everything between the bytes of an image and an
//! answer that may be sent; HTTP is above it, lanes are below.
//!
//! Invariants:
//! - [`PredictService::predict`] returns an answer only after its event is durable in the outbox.
//! - Concurrent requests with the same bytes are computed once.
//! - Nothing waits beyond the request's deadline.
//! - A request has one event at most: only what comes before the event is repeated with another version.

mod cache;
mod flight;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::capture::Capture;
use cloud_sync::event::{Event, EventBody, Prediction, Score};
use cloud_sync::outbox::{Outbox, OutboxError};
use inference::lanes::{Client, StageTimings};
use tokio::time::timeout_at;

pub use cache::ContentCache;
pub use flight::SingleFlight;

use crate::serving::{
    Classification, ClassificationError, Classifier, Computed, Endpoint, ImageRequest, LoadedModel, Models,
    Outcome, OutcomeCache, Priority, Run,
};
use crate::telemetry::{CacheOutcome, Metrics, Stage};
use crate::values::{CameraName, RequestId};
use flight::Role;

/// Answers requests for predictions.
pub struct PredictService {
    /// The models that are served.
    pub models: Arc<Models>,
    /// Computes what the cache does not have.
    pub classifier: Arc<Classifier>,
    /// The content cache.
    pub cache: ContentCache,
    /// Where events are made durable.
    pub outbox: Arc<Outbox>,
    /// Keeps images for training, where that is configured.
    pub capture: Option<Arc<Capture>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Settings.
    pub settings: PredictSettings,
    /// Images that are being computed.
    pub flights: SingleFlight,
}

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct PredictSettings {
    /// Name of this box in events.
    pub node: String,
    /// How long an outcome is cached; `None` disables the cache.
    pub cache_ttl: Option<Duration>,
}

/// A request for one image.
#[derive(Clone, Debug)]
pub struct PredictRequest {
    /// The request's id, in the answer and in the event.
    pub request_id: RequestId,
    /// The model.
    pub endpoint: Arc<Endpoint>,
    /// The encoded image.
    pub image: Bytes,
    /// The camera that took it.
    pub camera: Option<CameraName>,
    /// How many labels to answer with, at least 1.
    pub top_k: usize,
    /// When the answer is no longer wanted.
    pub deadline: Instant,
    /// The client; clients take turns at the lanes.
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
    /// Time in the queue; `None` if nothing was computed for this request.
    pub queue: Option<Duration>,
    /// Time by stage; `None` if nothing was computed for this request.
    pub stages: Option<StageTimings>,
}

/// Why a request has no answer; `http::reply` maps these errors to statuses.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The image was not classified.
    #[error(transparent)]
    Classify(#[from] ClassificationError),
    /// The event could not be made durable, so the answer may not be sent.
    #[error("the answer was computed but could not be recorded: {0}")]
    Outbox(#[from] OutboxError),
}

impl PredictService {
    /// Answers one request. When this returns `Ok`, the answer's event is durable.
    ///
    /// # Errors
    /// [`PredictError`]; then there is no event, unless the deadline passed while the event was being written.
    pub async fn predict(&self, request: PredictRequest) -> Result<PredictAnswer, PredictError> {
        let digest = blake3::hash(&request.image);
        let PredictRequest { client, deadline, .. } = request;
        let image = ImageRequest {
            image: &request.image,
            source: request.camera.as_deref().unwrap_or(&request.request_id),
            top_k: request.top_k,
            priority: Priority::RealTime { client, deadline },
            allow_candidate: true,
        };
        let cache = RequestCache { service: self, digest: &digest };
        let answer = self.classifier.classify(&request.endpoint, &image, &cache).await?;
        let Some(best) = answer.predictions.first() else { return Err(ClassificationError::NoScores.into()) };
        self.record(&request, &digest, &answer, best).await?;
        self.metrics.prediction(&best.label);
        self.metrics.model_prediction(request.endpoint.name(), &answer.model.model.version);
        if let Some(capture) = &self.capture {
            let camera = request.camera.clone().map(CameraName::into_string);
            answer.offer_to(capture, &request.image, &digest, camera, &request.request_id);
        }
        self.classifier.answered(&request.endpoint, &request.image, &answer);
        let Classification { model, predictions, timing, .. } = answer;
        let (queue, stages) = timing.unzip();
        Ok(PredictAnswer { model, predictions, cached: timing.is_none(), queue, stages })
    }

    /// The refusal that a new image of this client would get now, if any: lets a caller refuse before it reads a body.
    pub fn overloaded(&self, endpoint: &Endpoint, client: Client) -> Option<PredictError> {
        self.classifier.overloaded(endpoint, client).map(PredictError::from)
    }

    /// Makes the answer's event durable.
    async fn record(
        &self,
        request: &PredictRequest,
        digest: &blake3::Hash,
        answer: &Classification,
        best: &Score,
    ) -> Result<(), PredictError> {
        let started = Instant::now();
        let event = Event::new(
            self.settings.node.clone(),
            EventBody::Prediction(Prediction {
                request_id: request.request_id.to_string(),
                camera: request.camera.clone().map(CameraName::into_string),
                model: answer.model.model.event_ref(),
                image: answer.outcome.image_ref(digest, &request.image),
                species: best.label.clone(),
                confidence: best.score,
                predictions: answer.predictions.clone(),
                cached: answer.timing.is_none(),
            }),
        );
        let appended = timeout_at(request.deadline.into(), self.outbox.append_event(&event)).await;
        appended.map_err(|_| ClassificationError::DeadlineExceeded)??;
        self.metrics.stage(Stage::Outbox, started.elapsed());
        Ok(())
    }

    fn cached(&self, model: &LoadedModel, key: &[u8; 32]) -> Option<Computed> {
        self.hit(model, &self.cache.get_local(key)?)
    }

    fn hit(&self, model: &LoadedModel, value: &[u8]) -> Option<Computed> {
        let outcome: Outcome = serde_json::from_slice(value).ok()?;
        // A value that another process has written is checked.
        if outcome.scores.len() != model.model.labels.len() {
            return None;
        }
        self.metrics.cache(CacheOutcome::Hit);
        Some(Computed { outcome: Arc::new(outcome), timing: None })
    }
}

/// Cache and single flight for one request's image. The key contains the version.
struct RequestCache<'a> {
    service: &'a PredictService,
    digest: &'a blake3::Hash,
}

impl OutcomeCache for RequestCache<'_> {
    async fn get_or_compute(&self, run: Run<'_>) -> Result<Computed, ClassificationError> {
        let service = self.service;
        let Some(ttl) = service.settings.cache_ttl else { return run.compute().await };
        let model = run.model;
        let key = &model.model.cache_key(self.digest);
        loop {
            if let Some(hit) = service.cached(model, key) {
                return Ok(hit);
            }
            match service.flights.join(key) {
                Role::Leader(leader) => {
                    // Another leader may have completed between the lookup above and the join.
                    if let Some(hit) = service.cached(model, key) {
                        return Ok(hit);
                    }
                    if let Some(value) = service.cache.get_shared(key, ttl).await
                        && let Some(hit) = service.hit(model, &value)
                    {
                        leader.complete(Ok(Arc::clone(&hit.outcome)));
                        return Ok(hit);
                    }
                    service.metrics.cache(CacheOutcome::Miss);
                    let computed = match run.compute().await {
                        Ok(computed) => computed,
                        Err(error) if error.is_of_the_image() => {
                            let error = Arc::new(error);
                            leader.complete(Err(Arc::clone(&error)));
                            return Err(ClassificationError::Shared(error));
                        }
                        Err(error) => return Err(error),
                    };
                    if let Ok(bytes) = serde_json::to_vec(&*computed.outcome) {
                        service.cache.put(key, bytes.into(), ttl);
                    }
                    leader.complete(Ok(Arc::clone(&computed.outcome)));
                    return Ok(computed);
                }
                Role::Follower(follower) => {
                    let result = follower.result();
                    let result = match run.deadline() {
                        Some(deadline) => timeout_at(deadline.into(), result)
                            .await
                            .map_err(|_| ClassificationError::DeadlineExceeded)?,
                        None => result.await,
                    };
                    if let Some(result) = result {
                        service.metrics.cache(CacheOutcome::Shared);
                        let outcome = result.map_err(ClassificationError::Shared)?;
                        return Ok(Computed { outcome, timing: None });
                    }
                    // The leader was refused, late or cancelled; one of its followers leads now.
                }
            }
        }
    }
}
