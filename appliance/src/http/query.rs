//! What a request says beside its body: query parameters and headers, refused by name when they are wrong.

use std::time::{Duration, Instant};

use ulid::Ulid;
use warp::http::{HeaderMap, StatusCode};

use super::reply::{ApiError, REQUEST_ID};
use crate::config::PredictConfig;
use crate::predict::ServingModel;

const DEADLINE: &str = "x-deadline-ms";
const LONGEST_NAME: usize = 128;

/// The parameters of POST /predict.
#[derive(Debug)]
pub(super) struct PredictQuery {
    pub(super) top_k: usize,
    pub(super) camera: Option<String>,
}

/// Parses `top_k`, `model` and `camera`; anything else is refused.
pub(super) fn parse(
    raw: &str,
    model: &ServingModel,
    config: &PredictConfig,
) -> Result<PredictQuery, ApiError> {
    let mut query = PredictQuery { top_k: config.top_k.min(model.labels.len()), camera: None };
    let mut seen = Vec::new();
    for (key, value) in url::form_urlencoded::parse(raw.as_bytes()) {
        if seen.contains(&key) {
            return Err(ApiError::bad_request("invalid_query", format!("{key} stands twice in the query")));
        }
        match key.as_ref() {
            "top_k" => query.top_k = top_k(&value, model.labels.len())?,
            "camera" => query.camera = Some(camera(&value)?),
            "model" if value == model.name => {}
            "model" => {
                let message = format!("there is no model {value:?} here; \"{}\" is served", model.name);
                return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_model", message));
            }
            other => {
                let message = format!("unknown query parameter {other:?}; known are top_k, model and camera");
                return Err(ApiError::bad_request("invalid_query", message));
            }
        }
        seen.push(key);
    }
    Ok(query)
}

fn top_k(value: &str, labels: usize) -> Result<usize, ApiError> {
    match value.parse::<usize>() {
        Ok(k) if (1..=labels).contains(&k) => Ok(k),
        _ => {
            let message = format!("top_k = {value:?} is not a whole number from 1 to {labels}");
            Err(ApiError::bad_request("invalid_query", message))
        }
    }
}

fn camera(value: &str) -> Result<String, ApiError> {
    if value.is_empty() || value.len() > LONGEST_NAME || value.chars().any(char::is_control) {
        let message = format!(
            "camera = {value:?} is not a name of 1 to {LONGEST_NAME} bytes without control characters"
        );
        return Err(ApiError::bad_request("invalid_query", message));
    }
    Ok(value.to_owned())
}

/// The request's id: the client's own if it sent a usable one, else a new ULID.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    match given {
        Some(id)
            if !id.is_empty() && id.len() <= LONGEST_NAME && id.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            id.into()
        }
        _ => Ulid::generate().to_string(),
    }
}

/// When the answer is no longer wanted, if X-Deadline-Ms says so: counted from `start`, the body included.
pub(super) fn deadline(
    headers: &HeaderMap,
    start: Instant,
    config: &PredictConfig,
) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let most = config.max_deadline.as_millis();
    match value.to_str().ok().and_then(|v| v.trim().parse::<u64>().ok()) {
        Some(ms) if ms >= 1 && u128::from(ms) <= most => Ok(Some(start + Duration::from_millis(ms))),
        _ => {
            let message =
                format!("X-Deadline-Ms: {value:?} is not a whole number of milliseconds from 1 to {most}");
            Err(ApiError::bad_request("invalid_deadline", message))
        }
    }
}
