//! POST /batch/predict: refuse early, spool the body, read it, submit it, answer.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::super::body::{self, BodyLimits};
use super::super::query;
use super::super::reply::{ApiError, json};
use super::body::BatchAccepted;
use super::{accepting, log_refusal};
use crate::batch::parsing::{BatchOptions, OptionError, OptionSource};
use crate::batch::{Accepted, BatchError, BatchService};
use crate::http::state::ServerState;
use crate::telemetry::BatchOutcome;

pub(in crate::http) async fn handle<S, B>(
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
        Ok(taken) => accepted(taken, &id),
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

fn accepted(taken: Accepted, id: &str) -> Response {
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
    // On its own: a client that gives up now must not leave half of a batch behind.
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

/// Parses `request_id`, `camera` and `top_k`; anything else is refused.
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
