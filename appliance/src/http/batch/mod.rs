//! The routes of batches: submit, status, results, cancel.

mod api;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, stream};
use tokio::io::AsyncReadExt;
use warp::Reply;
use warp::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

pub(super) use api::{BatchAccepted, BatchBody, BatchForm, BatchStatusReply};

use super::body::{self, BodyLimits};
use super::query;
use super::reply::{ApiError, json};
use crate::batch::parsing::{BatchOptions, OptionError, OptionSource};
use crate::batch::{Accepted, BatchError, BatchService, BatchView, ResultsFile};
use crate::http::state::{Phase, ServerState};
use crate::telemetry::BatchOutcome;

const NDJSON: &str = "application/x-ndjson";
/// Bytes of a results file that are read at once.
const BLOCK_BYTES: usize = 64 << 10;

/// POST /batch/predict: refuse early, spool the body, parse it, submit it, reply.
pub(super) async fn submit<S, B>(
    state: Arc<ServerState>,
    headers: HeaderMap,
    raw_query: String,
    stream: S,
) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    let id = query::request_id(&headers);
    let outcome = answer(&state, &headers, &raw_query, Box::pin(stream)).await;
    state.metrics().batch(outcome_of(&outcome), outcome.as_ref().map_or(0, |taken| taken.total));
    let response = match outcome {
        Ok(taken) => accepted_reply(taken, &id),
        Err(error) => {
            log_refusal(&id, &error);
            error.into_response(Some(&id))
        }
    };
    state.metrics().request("batch_predict", response.status().as_u16());
    response
}

fn outcome_of(outcome: &Result<Accepted, ApiError>) -> BatchOutcome {
    match outcome {
        Ok(taken) if taken.repeated => BatchOutcome::Repeated,
        Ok(_) => BatchOutcome::Accepted,
        Err(error) if error.retry_after.is_some() || error.status.is_server_error() => {
            BatchOutcome::Unavailable
        }
        Err(_) => BatchOutcome::Refused,
    }
}

fn accepted_reply(taken: Accepted, id: &str) -> Response {
    let body = BatchAccepted::from(taken);
    let mut response = json(StatusCode::ACCEPTED, &body, Some(id));
    if let Ok(value) = HeaderValue::from_str(&body.status_url) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}

async fn answer<S, B>(
    state: &Arc<ServerState>,
    headers: &HeaderMap,
    raw_query: &str,
    stream: S,
) -> Result<Accepted, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>> + Send + Unpin + 'static,
    B: Buf + Send,
{
    let _in_hand = state.request_in_hand();
    let admitted = accepting(state).and_then(|service| {
        let query = parse_query(raw_query, service)?;
        Ok((Arc::clone(service), query, service.admit()?))
    });
    let (service, query, permit) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            body::discard(headers, stream);
            return Err(error);
        }
    };
    let (file, path) = match service.spool().file().await {
        Ok(spooled) => spooled,
        Err(error) => {
            body::discard(headers, stream);
            return Err(error.into());
        }
    };
    let limits = BodyLimits {
        bytes: usize::try_from(service.config.max_body.as_u64()).unwrap_or(usize::MAX),
        section: "batch",
        time: state.config().batch.body_timeout,
    };
    body::read_to_file(headers, stream, limits, file).await?;
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let state = Arc::clone(state);
    // In a task of its own: a client that disconnects now must not leave half of a batch behind.
    let submission = tokio::spawn(async move {
        let _in_hand = state.request_in_hand();
        let intake = service.read(path, &content_type, query).await?;
        let taken = service.submit(intake).await;
        drop(permit);
        taken
    });
    let taken = submission.await.map_err(|e| BatchError::Internal(e.to_string()))?;
    Ok(taken?)
}

/// Parses `request_id`, `camera` and `top_k`; any other parameter is refused.
fn parse_query(raw: &str, service: &BatchService) -> Result<BatchOptions, OptionError> {
    let mut options = BatchOptions::default();
    for (key, value) in url::form_urlencoded::parse(raw.as_bytes()) {
        if !options.set(OptionSource::Query, &key, &value, service.labels())? {
            let reason = format!("unknown query parameter {key:?}; known are request_id, camera and top_k");
            return Err(OptionError::new(OptionSource::Query, reason));
        }
    }
    Ok(options)
}

/// GET /batch/status/:id.
pub(super) async fn status(id: String, state: Arc<ServerState>) -> Response {
    let view = async { Ok(service(&state)?.status(&id).await?) };
    let response = match view.await {
        Ok(view) => status_reply(StatusCode::OK, view),
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_status", response.status().as_u16());
    response
}

/// GET /batch/results/:id: the results of a finished batch, as they are in the object store.
pub(super) async fn results(id: String, state: Arc<ServerState>) -> Response {
    let view = async { Ok(service(&state)?.results(&id).await?) };
    let response = match view.await {
        Ok(results) => {
            let length = HeaderValue::from(results.bytes);
            let mut response = warp::reply::stream(blocks(results)).into_response();
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
            response.headers_mut().insert(CONTENT_LENGTH, length);
            response
        }
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_results", response.status().as_u16());
    response
}

/// A batch's status, which no cache may keep.
fn status_reply(status: StatusCode, view: BatchView) -> Response {
    let mut response = json(status, &BatchStatusReply::from(view), None);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refused(error: &ApiError) -> Response {
    log_refusal("", error);
    error.clone().into_response(None)
}

fn blocks(results: ResultsFile) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(results, |mut results| async move {
        let mut block = BytesMut::with_capacity(BLOCK_BYTES);
        let count = results.file.read_buf(&mut block).await?;
        Ok((count > 0).then(|| (block.freeze(), results)))
    })
}

/// DELETE /batch/:id: 202 until its results are merged, then 200.
pub(super) async fn cancel(id: String, state: Arc<ServerState>) -> Response {
    let view = async { Ok(service(&state)?.cancel(&id).await?) };
    let response = match view.await {
        Ok(view) => {
            let is_finished = view.results_uri.is_some();
            let status = if is_finished { StatusCode::OK } else { StatusCode::ACCEPTED };
            status_reply(status, view)
        }
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_cancel", response.status().as_u16());
    response
}

/// The service, unless batches are disabled or the daemon is starting.
fn service(state: &ServerState) -> Result<&Arc<BatchService>, ApiError> {
    if !state.config().batch.enabled {
        let message = "this appliance takes no batches (batch.enabled = false)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "batch_disabled", message));
    }
    state.batches().ok_or_else(|| ApiError::unavailable("not_ready", "the appliance is starting"))
}

/// The service, if it accepts new batches.
fn accepting(state: &ServerState) -> Result<&Arc<BatchService>, ApiError> {
    match state.phase() {
        Phase::Starting => Err(ApiError::unavailable("not_ready", "the appliance is starting")),
        Phase::Draining => Err(ApiError::unavailable("draining", "the appliance is stopping")),
        Phase::Ready => service(state),
    }
}

/// The path of a batch's status. Ids need no escaping in a path.
fn status_url(id: &str) -> String {
    format!("/batch/status/{id}")
}

/// The request may contain secrets, so that only the code of a refusal is logged.
fn log_refusal(request_id: &str, error: &ApiError) {
    let status = error.status.as_u16();
    let batch = error.batch.as_deref();
    if error.retry_after.is_some() {
        tracing::debug!(request_id, batch, status, code = error.code, "batch request refused for now");
    } else {
        tracing::info!(request_id, batch, status, code = error.code, "batch request refused");
    }
}
