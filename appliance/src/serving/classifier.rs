//! The one classification path, for real-time requests, batches and shadow comparisons: choose the version, run the image
//! on its lanes, count the result, fall back from a candidate to the current version, compare with the shadow version.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cloud_sync::capture::{Capture, Captured};
use cloud_sync::event::{ImageRef, Score};
use gpu_kernels::DecodeLimits;
use inference::decode_memory::decode_cost;
use inference::lanes::{Client, LaneError, LaneReply, StageTimings, SubmitError};
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;

use super::endpoint::{Chosen, Shadow};
use super::{ClassificationError, Endpoint, LoadedModel};
use crate::telemetry::Metrics;

/// Share of a request's remaining time that a candidate may take. The rest is left to the current version, should the
/// candidate fail.
const TRIAL_SHARE: f64 = 0.5;

/// How an image is queued for a lane.
#[derive(Clone, Copy, Debug)]
pub enum Priority {
    /// Refused at once where the queue is full; clients take turns.
    RealTime {
        /// The client that waits for the answer.
        client: Client,
        /// When the answer is no longer wanted.
        deadline: Instant,
    },
    /// Computed while no real-time image is queued; waits for a place in the queue, without a deadline.
    Batch,
    /// As [`Priority::Batch`], but refused at once where there is no place.
    Shadow,
}

impl Priority {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::RealTime { deadline, .. } => Some(deadline),
            Self::Batch | Self::Shadow => None,
        }
    }

    /// The same with a candidate's share of the remaining time.
    fn for_candidate(self) -> Self {
        match self {
            Self::RealTime { client, deadline } => {
                let now = Instant::now();
                let share = deadline.saturating_duration_since(now).mul_f64(TRIAL_SHARE);
                Self::RealTime { client, deadline: now + share }
            }
            other => other,
        }
    }
}

/// One image to be classified.
#[derive(Clone, Copy, Debug)]
pub struct ImageRequest<'a> {
    /// The encoded image.
    pub image: &'a Bytes,
    /// The camera, or the request's id where it names none. A source keeps its version for as long as a trial lasts.
    pub source: &'a str,
    /// How many labels are wanted, at least 1.
    pub top_k: usize,
    /// How it is queued.
    pub priority: Priority,
    /// Whether a candidate may answer.
    pub allow_candidate: bool,
}

/// The result of a version for one image. The content cache holds these as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Image format, such as `jpeg`.
    pub format: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// One score per label.
    pub scores: Vec<f32>,
}

impl Outcome {
    /// The image as events and results of batches describe it.
    pub fn image_ref(&self, digest: &blake3::Hash, image: &Bytes) -> ImageRef {
        ImageRef {
            digest: digest.to_hex().to_string(),
            format: self.format.clone(),
            bytes: image.len() as u64,
            width: self.width,
            height: self.height,
        }
    }
}

/// An outcome, and what it took.
pub struct Computed {
    /// The outcome.
    pub outcome: Arc<Outcome>,
    /// Time in the queue and time per stage; `None` if it was not computed for this request.
    pub timing: Option<(Duration, StageTimings)>,
}

/// A classified image.
pub struct Classification {
    /// The version that answered.
    pub model: Arc<LoadedModel>,
    /// The outcome.
    pub outcome: Arc<Outcome>,
    /// Labels with their scores, best first; between 1 and `top_k`.
    pub predictions: Vec<Score>,
    /// As [`Computed::timing`].
    pub timing: Option<(Duration, StageTimings)>,
    shadow: Option<Shadow>,
}

impl Classification {
    /// Offers the image for training, if the rule of the capture selects it; never waits.
    pub fn offer_to(
        &self,
        capture: &Capture,
        image: &Bytes,
        digest: &blake3::Hash,
        camera: Option<String>,
        request_id: &str,
    ) {
        let Some(best) = self.predictions.first() else { return };
        let digest = digest.to_hex();
        if capture.wants(&digest, best.score) {
            capture.offer(Captured {
                bytes: image.clone(),
                digest: digest.to_string(),
                format: self.outcome.format.clone(),
                camera,
                species: best.label.clone(),
                confidence: best.score,
                model: self.model.model.event_ref(),
                request_id: request_id.to_owned(),
                time: SystemTime::now(),
            });
        }
    }
}

/// One image for one version, not yet computed.
pub struct Run<'a> {
    classifier: &'a Classifier,
    endpoint: &'a Endpoint,
    /// The version.
    pub model: &'a LoadedModel,
    image: &'a Bytes,
    priority: Priority,
    is_candidate: bool,
}

/// Answers in place of a version's lanes, where the outcome is known already.
pub trait OutcomeCache: Sync {
    /// The cached outcome for this version and image, or else that of [`Run::compute`].
    fn get_or_compute(
        &self,
        run: Run<'_>,
    ) -> impl Future<Output = Result<Computed, ClassificationError>> + Send;
}

/// No cache: every image is computed.
pub struct Uncached;

impl OutcomeCache for Uncached {
    async fn get_or_compute(&self, run: Run<'_>) -> Result<Computed, ClassificationError> {
        run.compute().await
    }
}

/// Classifies images.
#[derive(Clone, Debug)]
pub struct Classifier {
    limits: DecodeLimits,
    metrics: Arc<Metrics>,
}

impl Classifier {
    /// A classifier for images within `limits`.
    pub fn new(limits: DecodeLimits, metrics: Arc<Metrics>) -> Self {
        Self { limits, metrics }
    }

    /// Checks the header of an image against the limits, without any version.
    ///
    /// # Errors
    /// [`ClassificationError::Image`].
    pub fn check(&self, image: &[u8]) -> Result<(), ClassificationError> {
        gpu_kernels::inspect(image, &self.limits)?;
        Ok(())
    }

    /// Classifies an image with the version of the endpoint that its source is routed to. If a candidate fails, for
    /// whatever reason but the image, the current version answers.
    ///
    /// # Errors
    /// [`ClassificationError`] of the current version, or of the image.
    pub async fn classify(
        &self,
        endpoint: &Endpoint,
        request: &ImageRequest<'_>,
        cache: &impl OutcomeCache,
    ) -> Result<Classification, ClassificationError> {
        let mut routed = endpoint.choose(request.source);
        if routed.as_ref().is_some_and(|chosen| chosen.is_candidate) && !request.allow_candidate {
            routed = endpoint.current().map(Chosen::current);
        }
        let mut chosen = routed.ok_or_else(|| ClassificationError::NoModel(endpoint.name().into()))?;
        let mut uncounted: Option<Arc<LoadedModel>> = None;
        loop {
            let error = match self.attempt(endpoint, &chosen, request, cache).await {
                Ok(classification) => {
                    // A full queue and a passed deadline count against the candidate only where the current version
                    // had room and time.
                    if let Some(candidate) = uncounted {
                        self.count_failure(endpoint, &candidate, request.priority);
                    }
                    return Ok(classification);
                }
                Err(error) => error,
            };
            let Some(current) = endpoint.current() else { return Err(error) };
            let falls_back = chosen.is_candidate && error.may_be_of_the_model();
            // The lanes of a version that was just retired stop while the process goes on.
            let was_retired =
                matches!(error, ClassificationError::Stopping) && !Arc::ptr_eq(&current, &chosen.model);
            if !falls_back && !was_retired {
                return Err(error);
            }
            if falls_back && !error.is_of_the_model() {
                uncounted = Some(Arc::clone(&chosen.model));
            }
            chosen = Chosen::current(current);
        }
    }

    /// One version's answer.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        chosen: &Chosen,
        request: &ImageRequest<'_>,
        cache: &impl OutcomeCache,
    ) -> Result<Classification, ClassificationError> {
        let model = &chosen.model;
        let priority = if chosen.is_candidate { request.priority.for_candidate() } else { request.priority };
        let is_candidate = chosen.is_candidate;
        let run = Run { classifier: self, endpoint, model, image: request.image, priority, is_candidate };
        let Computed { outcome, timing } = cache.get_or_compute(run).await?;
        let predictions = model.model.best(&outcome.scores, request.top_k);
        if predictions.is_empty() {
            self.count_failure(endpoint, model, request.priority);
            return Err(ClassificationError::NoScores);
        }
        let shadow = chosen.shadow.clone();
        Ok(Classification { model: Arc::clone(model), outcome, predictions, timing, shadow })
    }

    /// Records an answer that has been given out. If it was computed, the shadow version computes the image too, as
    /// batch work that is left out where its queue has no place; never waits.
    pub fn answered(&self, endpoint: &Arc<Endpoint>, image: &Bytes, answer: &Classification) {
        let Some(best) = answer.predictions.first() else { return };
        endpoint.record(best);
        let (Some(shadow), Some(_)) = (&answer.shadow, answer.timing) else { return };
        let (classifier, endpoint, image) = (self.clone(), Arc::clone(endpoint), image.clone());
        let (shadow, label) = (shadow.clone(), best.label.clone());
        tokio::spawn(async move {
            let chosen = Chosen::current(shadow.model);
            let request = ImageRequest {
                image: &image,
                source: "",
                top_k: 1,
                priority: Priority::Shadow,
                allow_candidate: false,
            };
            match classifier.attempt(&endpoint, &chosen, &request, &Uncached).await {
                Ok(other) => {
                    let best = other.predictions.first();
                    shadow.comparison.record(best.is_some_and(|best| best.label == label));
                }
                // An image on which a candidate fails is one on which the versions disagree.
                Err(error) if shadow.is_candidate && error.is_of_the_model() => {
                    shadow.comparison.record(false);
                }
                Err(_) => {}
            }
        });
    }

    /// The refusal that a new real-time image of this client would get now, if any: lets a caller refuse before it reads
    /// a body.
    pub fn overloaded(&self, endpoint: &Endpoint, client: Client) -> Option<ClassificationError> {
        let model = endpoint.current()?;
        model.lanes.is_full_for(client).then(|| refusal(&model))
    }

    /// Counts what a version's lane replied: in the version's statistics, and for real-time images in the metrics. Batches
    /// retry their images, so that a failure of the current version there is not yet evidence against it.
    fn count(
        &self,
        endpoint: &Endpoint,
        model: &LoadedModel,
        priority: Priority,
        is_candidate: bool,
        reply: &LaneReply,
    ) {
        let is_real_time = matches!(priority, Priority::RealTime { .. });
        match reply {
            Ok((classified, _)) => {
                match priority {
                    // Comparisons use the time that requests leave: they say nothing about how long a request waits.
                    Priority::Shadow => model.stats.computed(classified.timings.sum()),
                    Priority::RealTime { .. } | Priority::Batch => model.computed(classified.timings),
                }
                if is_real_time {
                    let busy = classified.timings.sum();
                    self.metrics.model_computed(endpoint.name(), &model.model.version, busy);
                }
            }
            Err(_) if matches!(priority, Priority::Batch) && !is_candidate => {}
            Err(error) => {
                if model.stats.failed_by(error) && is_real_time {
                    self.metrics.model_failure(endpoint.name(), &model.model.version);
                }
            }
        }
    }

    /// Counts a failure that no lane has reported.
    fn count_failure(&self, endpoint: &Endpoint, model: &LoadedModel, priority: Priority) {
        model.stats.fail();
        if matches!(priority, Priority::RealTime { .. }) {
            self.metrics.model_failure(endpoint.name(), &model.model.version);
        }
    }
}

impl Run<'_> {
    /// When the outcome is no longer wanted.
    pub fn deadline(&self) -> Option<Instant> {
        self.priority.deadline()
    }

    /// Computes the image on the version's lanes.
    ///
    /// # Errors
    /// [`ClassificationError`].
    pub async fn compute(&self) -> Result<Computed, ClassificationError> {
        let Self { classifier, endpoint, model, image, priority, is_candidate } = self;
        let lanes = &model.lanes;
        // Takes microseconds, and keeps what is not an image from the lanes.
        let cost = decode_cost(&gpu_kernels::inspect(image, &classifier.limits)?);
        let bytes = Bytes::clone(image);
        let submitted = match *priority {
            Priority::RealTime { client, deadline } => lanes.admit(client, bytes, cost, deadline).await,
            Priority::Batch => lanes.submit_batch(bytes, cost).await,
            Priority::Shadow => {
                lanes.try_submit_batch(bytes, cost).ok_or(SubmitError::Full { capacity: lanes.capacity() })
            }
        };
        let reply = submitted.map_err(|error| match error {
            SubmitError::TooCostly(error) => error.into(),
            SubmitError::DeadlinePassed => ClassificationError::DeadlineExceeded,
            SubmitError::Full { .. } => refusal(model),
            SubmitError::Stopped => ClassificationError::Stopping,
        })?;
        let reply = match priority.deadline() {
            Some(deadline) => {
                timeout_at(deadline.into(), reply).await.map_err(|_| ClassificationError::DeadlineExceeded)?
            }
            None => reply.await,
        };
        let reply = reply.map_err(|_| ClassificationError::Stopping)?;
        classifier.count(endpoint, model, *priority, *is_candidate, &reply);
        let (classified, waited) = reply.map_err(|error| match error {
            LaneError::Displaced => refusal(model),
            error => error.into(),
        })?;
        let timing = Some((waited, classified.timings));
        let outcome = Outcome {
            format: classified.format.to_string(),
            width: classified.width,
            height: classified.height,
            scores: classified.scores,
        };
        Ok(Computed { outcome: Arc::new(outcome), timing })
    }
}

/// The refusal of a full queue, with the estimated time until it is empty.
fn refusal(model: &LoadedModel) -> ClassificationError {
    ClassificationError::Overloaded { capacity: model.lanes.capacity(), retry_after: model.queue_time() }
}
