//! POST /predict: refuse early, read the body under bounds, predict, reply.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use inference::lanes::Client;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::api::{
    FileOutcome, FileResult, LabelScore, ModelName, PredictManyReply, PredictReply, PredictResult,
};
use super::body::{self, BodyLimits};
use super::forms::{self, Payload};
use super::query::{self, PredictQuery};
use super::reply::{ApiError, json};
use crate::http::state::{Phase, ServerState};
use crate::predict::{PredictAnswer, PredictRequest, PredictService};
use crate::serving::{ClassificationError, LoadedModel};
use crate::telemetry::Stage;
use crate::values::{CameraName, RequestId};

/// What is known of a request before its body.
struct RequestContext {
    id: RequestId,
    query: PredictQuery,
    start: Instant,
    /// As X-Deadline-Ms says; without it the configured deadline counts from the end of the body, so that a camera on a slow
    /// line is not refused as late.
    deadline: Instant,
    client: Client,
}

pub(super) async fn handle<S, B>(
    state: Arc<ServerState>,
    client: Client,
    headers: HeaderMap,
    raw_query: String,
    stream: S,
) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    let start = Instant::now();
    let id = query::request_id(&headers);
    let outcome = answer(&state, client, &headers, &raw_query, Box::pin(stream), start, &id).await;
    let response = match outcome {
        Ok(response) => response,
        Err(error) => {
            log_refusal(&id, &error);
            error.into_response(Some(&id))
        }
    };
    state.metrics().request("predict", response.status().as_u16());
    state.metrics().stage(Stage::Total, start.elapsed());
    response
}

async fn answer<S, B>(
    state: &ServerState,
    client: Client,
    headers: &HeaderMap,
    raw_query: &str,
    stream: S,
    start: Instant,
    id: &RequestId,
) -> Result<Response, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>> + Send + Unpin + 'static,
    B: Buf + Send,
{
    let _in_hand = state.request_in_hand();
    let (service, query, named) = match admit(state, client, headers, raw_query, start) {
        Ok(admitted) => admitted,
        Err(error) => {
            body::discard(headers, stream);
            return Err(error);
        }
    };
    let config = state.config();
    let time =
        named.map_or(config.http.body_timeout, |d| d.duration_since(start).min(config.http.body_timeout));
    let bytes = config.http.max_body_bytes();
    let read =
        body::read(headers, stream, BodyLimits { bytes, section: "http", time }, state.body_memory()).await;
    let body = read.map_err(|error| match named {
        Some(deadline) if deadline <= Instant::now() => (&ClassificationError::DeadlineExceeded).into(),
        _ => ApiError::from(error),
    })?;
    state.metrics().stage(Stage::Read, start.elapsed());
    let deadline = named.unwrap_or_else(|| Instant::now() + config.predict.deadline);
    let context = RequestContext { id: id.clone(), query, start, deadline, client };
    match forms::parse(headers, body, config.http.max_files, state.body_memory()).await? {
        Payload::Image(image) => one(service, &context, image).await,
        Payload::Url(url) => {
            let time = deadline.saturating_duration_since(Instant::now());
            let mut share = state.body_memory().share();
            let image = state.fetcher().fetch(&url, time, &mut |bytes| share.grow_to(bytes).is_ok()).await?;
            one(service, &context, share.hold(image)).await
        }
        Payload::Files(mut files) if files.len() == 1 => {
            let image = files.pop().map(|(_, image)| image).unwrap_or_default();
            one(service, &context, image).await
        }
        Payload::Files(files) => many(service, &context, files).await,
    }
}

/// Everything that can be refused before the body is read.
fn admit<'a>(
    state: &'a ServerState,
    client: Client,
    headers: &HeaderMap,
    raw_query: &str,
    start: Instant,
) -> Result<(&'a PredictService, PredictQuery, Option<Instant>), ApiError> {
    let service = match (state.phase(), state.predictions()) {
        (Phase::Ready, Some(service)) => service,
        (Phase::Draining, _) => return Err(ApiError::unavailable("draining", "the appliance is stopping")),
        _ => {
            return Err(ApiError::unavailable(
                "not_ready",
                "the appliance is starting; GET /health/ready tells when",
            ));
        }
    };
    let config = &state.config().predict;
    let query = query::parse(raw_query, &service.models, config)?;
    let deadline = query::deadline(headers, start, config)?;
    if let Some(refusal) = service.overloaded(&query.endpoint, client) {
        return Err(refusal.into());
    }
    Ok((service, query, deadline))
}

async fn one(service: &PredictService, context: &RequestContext, image: Bytes) -> Result<Response, ApiError> {
    let answer = service.predict(request(context, context.id.clone(), image)).await?;
    let model = model(&answer.model);
    let result = result(context, answer);
    tracing::debug!(
        request_id = %context.id,
        camera = context.query.camera.as_deref(),
        species = result.species,
        confidence = result.confidence,
        cached = result.cached,
        total_ms = result.timings_ms.get("total"),
        "predicted"
    );
    let reply = PredictReply { request_id: context.id.to_string(), model, result };
    Ok(json(StatusCode::OK, &reply, Some(&context.id)))
}

/// Several files: as many at once as there are lanes, so that one form does not fill the queue by itself. If none is
/// answered and all for reasons of one status, that is the status of the whole.
async fn many(
    service: &PredictService,
    context: &RequestContext,
    files: Vec<(String, Bytes)>,
) -> Result<Response, ApiError> {
    let endpoint = &context.query.endpoint;
    let Some(current) = endpoint.current() else {
        return Err((&ClassificationError::NoModel(endpoint.name().into())).into());
    };
    let lanes = current.lanes.at_once();
    let predictions = stream::iter(files.into_iter().enumerate()).map(|(index, (file, image))| async move {
        let request = request(context, context.id.of_image(index + 1), image);
        (file, service.predict(request).await.map_err(ApiError::from))
    });
    let mut answers: Vec<_> = predictions.buffered(lanes).collect().await;
    let status =
        |(_, answer): &(String, Result<_, ApiError>)| answer.as_ref().err().map(|error| error.status);
    let first = answers.first().and_then(status);
    if first.is_some()
        && answers.iter().all(|answer| status(answer) == first)
        && let Some((_, Err(error))) = answers.pop()
    {
        return Err(error);
    }
    // During a trial files may be answered by different versions; the reply names that of the first one.
    let answered = answers.iter().find_map(|(_, answer)| answer.as_ref().ok());
    let model = model(answered.map_or(&current, |answer| &answer.model));
    let results = answers.into_iter().map(|(file, answer)| {
        let outcome = match answer {
            Ok(answer) => FileOutcome::Seen(result(context, answer)),
            Err(error) => {
                log_refusal(&context.id, &error);
                FileOutcome::Failed(error.body())
            }
        };
        FileResult { file, outcome }
    });
    let reply = PredictManyReply { request_id: context.id.to_string(), model, results: results.collect() };
    Ok(json(StatusCode::OK, &reply, Some(&context.id)))
}

fn request(context: &RequestContext, request_id: RequestId, image: Bytes) -> PredictRequest {
    PredictRequest {
        request_id,
        endpoint: Arc::clone(&context.query.endpoint),
        image,
        camera: context.query.camera.clone(),
        top_k: context.query.top_k,
        deadline: context.deadline,
        client: context.client,
    }
}

fn result(context: &RequestContext, answer: PredictAnswer) -> PredictResult {
    let mut timings_ms = BTreeMap::new();
    if let (Some(queue), Some(stages)) = (answer.queue, answer.stages) {
        timings_ms.insert("queue", millis(queue));
        timings_ms.insert("decode", millis(stages.decode));
        timings_ms.insert("preprocess", millis(stages.preprocess));
        timings_ms.insert("infer", millis(stages.infer));
    }
    timings_ms.insert("total", millis(context.start.elapsed()));
    let predictions: Vec<LabelScore> =
        answer.predictions.into_iter().map(|p| LabelScore { label: p.label, score: p.score }).collect();
    let (species, confidence) =
        predictions.first().map_or_else(Default::default, |p| (p.label.clone(), p.score));
    PredictResult {
        species,
        confidence,
        predictions,
        cached: answer.cached,
        camera: context.query.camera.clone().map(CameraName::into_string),
        timings_ms,
    }
}

fn model(loaded: &LoadedModel) -> ModelName {
    ModelName { name: loaded.model.name.clone(), version: loaded.model.version.clone() }
}

/// Milliseconds to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Under overload or with a full disk there are thousands of refusals per second: metrics count them, the log does not.
fn log_refusal(id: &RequestId, error: &ApiError) {
    let status = error.status.as_u16();
    if error.retry_after.is_some() {
        tracing::debug!(request_id = %id, status, code = error.code, "refused for now");
    } else if error.status.is_server_error() {
        tracing::warn!(request_id = %id, status, code = error.code, error = error.message, "failed");
    } else {
        tracing::info!(request_id = %id, status, code = error.code, error = error.message, "refused");
    }
}
