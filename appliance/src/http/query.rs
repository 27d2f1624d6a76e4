//! Query parameters and headers of a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warp::http::{HeaderMap, StatusCode};

use super::reply::{ApiError, REQUEST_ID};
use crate::config::PredictConfig;
use crate::serving::{Endpoint, Models};
use crate::values::{CameraName, RequestId, TopK};

const DEADLINE: &str = "x-deadline-ms";

/// The parameters of POST /predict.
#[derive(Debug)]
pub(super) struct PredictQuery {
    pub(super) top_k: usize,
    pub(super) camera: Option<CameraName>,
    pub(super) endpoint: Arc<Endpoint>,
}

/// Parses `top_k`, `model` and `camera`; any other parameter is refused.
pub(super) fn parse(raw: &str, models: &Models, config: &PredictConfig) -> Result<PredictQuery, ApiError> {
    let invalid = |message: String| ApiError::bad_request("invalid_query", message);
    let (mut given_k, mut camera, mut endpoint) = (None, None, models.default());
    let mut seen = Vec::new();
    for (key, value) in url::form_urlencoded::parse(raw.as_bytes()) {
        if seen.contains(&key) {
            return Err(invalid(format!("{key} stands twice in the query")));
        }
        match key.as_ref() {
            "top_k" => given_k = Some(value.clone()),
            "camera" => {
                let name = CameraName::parse(&value);
                camera = Some(name.map_err(|error| invalid(format!("camera = {error}")))?);
            }
            "model" => endpoint = find(models, &value)?,
            other => {
                let known = "known are top_k, model and camera";
                return Err(invalid(format!("unknown query parameter {other:?}; {known}")));
            }
        }
        seen.push(key);
    }
    // A model that is not loaded yet is refused later, whatever the number.
    let labels = endpoint.current().map_or(usize::MAX, |model| model.model.labels.len());
    let top_k = match given_k {
        Some(text) => TopK::parse(&text, labels).map_err(|error| invalid(format!("top_k = {error}")))?.get(),
        None => config.top_k.min(labels),
    };
    Ok(PredictQuery { top_k, camera, endpoint: Arc::clone(endpoint) })
}

/// The model of this name.
pub(super) fn find<'a>(models: &'a Models, name: &str) -> Result<&'a Arc<Endpoint>, ApiError> {
    models.get(name).ok_or_else(|| {
        let message = format!("there is no model {name:?} here; served are {}", models.names());
        ApiError::new(StatusCode::NOT_FOUND, "unknown_model", message)
    })
}

/// The request's id: the client's own if it sent a valid one, else a new ULID.
pub(super) fn request_id(headers: &HeaderMap) -> RequestId {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    given.and_then(RequestId::parse).unwrap_or_else(RequestId::generate)
}

/// The deadline of X-Deadline-Ms, if the header is there: counted from `start`, so that it includes the body.
pub(super) fn deadline(
    headers: &HeaderMap,
    start: Instant,
    config: &PredictConfig,
) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let max = config.max_deadline.as_millis();
    match value.to_str().ok().and_then(|v| v.trim().parse::<u64>().ok()) {
        Some(ms) if ms >= 1 && u128::from(ms) <= max => Ok(Some(start + Duration::from_millis(ms))),
        _ => {
            let message =
                format!("X-Deadline-Ms: {value:?} is not a whole number of milliseconds from 1 to {max}");
            Err(ApiError::bad_request("invalid_deadline", message))
        }
    }
}
