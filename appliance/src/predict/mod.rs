//! The prediction service: cache, single flight, classification, outbox. Everything between the bytes of an image and an
//! answer that may be sent; HTTP is above it, lanes are below.
//!
//! Invariants:
//! - [`PredictService::predict`] returns an answer only after its event is durable in the outbox.
//! - Concurrent requests with the same bytes are computed once.
//! - Nothing waits beyond the request's deadline.
//! - A request has one event at most: only what comes before the event is repeated with another version.

mod cache;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::capture::Capture;
use cloud_sync::event::{Event, EventBody, Prediction, Score};
use cloud_sync::outbox::{Outbox, OutboxError};
use inference::lanes::{Client, StageTimings};
use tokio::time::timeout_at;

pub use cache::{PredictionCache, SingleFlight};

use crate::serving::{
    Classification, ClassificationError, Classifier, Endpoint, ImageRequest, LoadedModel, Models, Priority,
};
use crate::telemetry::{Metrics, Stage};
use crate::values::{CameraName, RequestId};
use cache::RequestCache;

/// Answers requests for predictions.
pub struct PredictService {
    /// The models that are served.
    pub models: Arc<Models>,
    /// Computes what the cache does not have.
    pub classifier: Arc<Classifier>,
    /// The content cache.
    pub cache: PredictionCache,
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
}
