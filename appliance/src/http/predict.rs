//! POST /predict: refuse early, read under bounds, ask the service, answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::api::{
    FileOutcome, FileResult, LabelScore, ModelName, PredictManyReply, PredictReply, PredictResult,
};
use super::body::{self, BodyLimits};
use super::forms::{self, Posted};
use super::query::{self, PredictQuery};
use super::reply::{ApiError, json};
use crate::app::{App, Phase};
use crate::predict::{PredictAnswer, PredictError, PredictRequest, PredictService};
use crate::telemetry::Stage;

/// What is known of a request before its body.
struct Asked {
    id: String,
    query: PredictQuery,
    start: Instant,
    deadline: Instant,
}

pub(super) async fn handle<S, B>(app: Arc<App>, headers: HeaderMap, raw_query: String, stream: S) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    let start = Instant::now();
    let id = query::request_id(&headers);
    let outcome = answer(&app, &headers, &raw_query, Box::pin(stream), start, &id).await;
    let response = match outcome {
        Ok(response) => response,
        Err(error) => {
            log_refusal(&id, &error);
            error.into_response(Some(&id))
        }
    };
    app.metrics().request("predict", response.status().as_u16());
    app.metrics().stage(Stage::Total, start.elapsed());
    response
}

async fn answer<S, B>(
    app: &App,
    headers: &HeaderMap,
    raw_query: &str,
    stream: S,
    start: Instant,
    id: &str,
) -> Result<Response, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>> + Send + Unpin + 'static,
    B: Buf + Send,
{
    let _in_hand = app.request_in_hand();
    let (service, asked) = match admit(app, headers, raw_query, start, id) {
        Ok(admitted) => admitted,
        Err(error) => {
            body::discard(headers, stream);
            return Err(error);
        }
    };
    let config = &app.config().http;
    let limits = BodyLimits {
        bytes: usize::try_from(config.max_body.as_u64()).unwrap_or(usize::MAX),
        time: config
            .body_timeout
            .min(asked.deadline.saturating_duration_since(start).max(Duration::from_millis(1))),
    };
    let (body, _share) = body::read(headers, stream, limits, app.body_budget()).await.map_err(|error| {
        match asked.deadline <= Instant::now() {
            true => PredictError::DeadlineExceeded.into(),
            false => ApiError::from(error),
        }
    })?;
    app.metrics().stage(Stage::Read, start.elapsed());
    let response = match forms::parse(headers, body, config.max_files).await? {
        Posted::Image(image) => one(service, &asked, image).await?,
        Posted::Url(url) => {
            let time = asked.deadline.saturating_duration_since(Instant::now());
            one(service, &asked, app.fetcher().fetch(&url, time).await?).await?
        }
        Posted::Files(mut files) if files.len() == 1 => {
            let image = files.pop().map(|(_, image)| image).unwrap_or_default();
            one(service, &asked, image).await?
        }
        Posted::Files(files) => many(service, &asked, files).await,
    };
    Ok(response)
}

/// Everything that can be refused before the body is read.
fn admit<'a>(
    app: &'a App,
    headers: &HeaderMap,
    raw_query: &str,
    start: Instant,
    id: &str,
) -> Result<(&'a PredictService, Asked), ApiError> {
    let service = match (app.phase(), app.service()) {
        (Phase::Ready, Some(service)) => service,
        (Phase::Draining, _) => return Err(ApiError::unavailable("draining", "the appliance is stopping")),
        _ => {
            return Err(ApiError::unavailable(
                "not_ready",
                "the appliance is starting; GET /health/ready tells when",
            ));
        }
    };
    let config = &app.config().predict;
    let query = query::parse(raw_query, &service.model, config)?;
    let deadline = query::deadline(headers, start, config)?;
    if let Some(refusal) = service.overloaded() {
        return Err(refusal.into());
    }
    Ok((service, Asked { id: id.to_owned(), query, start, deadline }))
}

async fn one(service: &PredictService, asked: &Asked, image: Bytes) -> Result<Response, ApiError> {
    let answer = service.predict(request(asked, asked.id.clone(), image)).await?;
    let result = result(asked, answer);
    tracing::debug!(
        request_id = asked.id,
        camera = asked.query.camera.as_deref(),
        species = result.species,
        confidence = result.confidence,
        cached = result.cached,
        total_ms = result.timings_ms.get("total"),
        "predicted"
    );
    let reply = PredictReply { request_id: asked.id.clone(), model: model(service), result };
    Ok(json(StatusCode::OK, &reply, Some(&asked.id)))
}

/// Several files: as many at once as there are lanes, so that one form does not fill the queue by itself.
async fn many(service: &PredictService, asked: &Asked, files: Vec<(String, Bytes)>) -> Response {
    let predictions = stream::iter(files.into_iter().enumerate()).map(|(index, (file, image))| async move {
        let request = request(asked, format!("{}-{}", asked.id, index + 1), image);
        let outcome = match service.predict(request).await {
            Ok(answer) => FileOutcome::Seen(result(asked, answer)),
            Err(error) => {
                let error = ApiError::from(error);
                log_refusal(&asked.id, &error);
                FileOutcome::Failed(error.body())
            }
        };
        FileResult { file, outcome }
    });
    let results = predictions.buffered(service.lanes.count().max(1)).collect().await;
    let reply = PredictManyReply { request_id: asked.id.clone(), model: model(service), results };
    json(StatusCode::OK, &reply, Some(&asked.id))
}

fn request(asked: &Asked, request_id: String, image: Bytes) -> PredictRequest {
    PredictRequest {
        request_id,
        image,
        camera: asked.query.camera.clone(),
        top_k: asked.query.top_k,
        deadline: asked.deadline,
    }
}

fn result(asked: &Asked, answer: PredictAnswer) -> PredictResult {
    let mut timings_ms = BTreeMap::new();
    if let (Some(queue), Some(stages)) = (answer.queue, answer.stages) {
        timings_ms.insert("queue", millis(queue));
        timings_ms.insert("decode", millis(stages.decode));
        timings_ms.insert("preprocess", millis(stages.preprocess));
        timings_ms.insert("infer", millis(stages.infer));
    }
    timings_ms.insert("total", millis(asked.start.elapsed()));
    let predictions: Vec<LabelScore> =
        answer.predictions.into_iter().map(|p| LabelScore { label: p.label, score: p.score }).collect();
    let (species, confidence) =
        predictions.first().map_or_else(Default::default, |p| (p.label.clone(), p.score));
    PredictResult {
        species,
        confidence,
        predictions,
        cached: answer.cached,
        camera: asked.query.camera.clone(),
        timings_ms,
    }
}

fn model(service: &PredictService) -> ModelName {
    ModelName { name: service.model.name.clone(), version: service.model.version.clone() }
}

/// Milliseconds to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn log_refusal(id: &str, error: &ApiError) {
    let status = error.status.as_u16();
    if error.status == StatusCode::TOO_MANY_REQUESTS {
        // Under overload these come by the thousand; the metrics count them.
        tracing::debug!(request_id = id, status, code = error.code, "refused");
    } else if error.status.is_server_error() {
        tracing::warn!(request_id = id, status, code = error.code, error = error.message, "failed");
    } else {
        tracing::info!(request_id = id, status, code = error.code, error = error.message, "refused");
    }
}
