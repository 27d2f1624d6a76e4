//! What a request says beside its body: query parameters and headers, refused by name when they are wrong.

use std::time::{Duration, Instant};

use ulid::Ulid;
use warp::http::{HeaderMap, StatusCode};

use super::reply::{ApiError, REQUEST_ID};
use crate::config::PredictConfig;
use crate::serving::{Models, Slot};
use std::sync::Arc;

const DEADLINE: &str = "x-deadline-ms";
const MAX_NAME_LEN: usize = 128;

/// The parameters of POST /predict.
#[derive(Debug)]
pub(super) struct PredictQuery {
    pub(super) top_k: usize,
    pub(super) camera: Option<String>,
    pub(super) slot: Arc<Slot>,
}

/// Parses `top_k`, `model` and `camera`; anything else is refused.
pub(super) fn parse(raw: &str, models: &Models, config: &PredictConfig) -> Result<PredictQuery, ApiError> {
    let (mut asked_k, mut asked_camera, mut slot) = (None, None, models.default());
    let mut seen = Vec::new();
    for (key, value) in url::form_urlencoded::parse(raw.as_bytes()) {
        if seen.contains(&key) {
            return Err(ApiError::bad_request("invalid_query", format!("{key} stands twice in the query")));
        }
        match key.as_ref() {
            "top_k" => asked_k = Some(value.clone()),
            "camera" => asked_camera = Some(camera(&value)?),
            "model" => slot = find(models, &value)?,
            other => {
                let message = format!("unknown query parameter {other:?}; known are top_k, model and camera");
                return Err(ApiError::bad_request("invalid_query", message));
            }
        }
        seen.push(key);
    }
    // A model that is not here yet is refused later, whatever is asked.
    let labels = slot.current().map_or(usize::MAX, |model| model.model.labels.len());
    let top_k = asked_k.map_or(Ok(config.top_k.min(labels)), |value| top_k(&value, labels))?;
    Ok(PredictQuery { top_k, camera: asked_camera, slot: Arc::clone(slot) })
}

/// The model of this name.
pub(super) fn find<'a>(models: &'a Models, name: &str) -> Result<&'a Arc<Slot>, ApiError> {
    models.get(name).ok_or_else(|| {
        let message = format!("there is no model {name:?} here; served are {}", models.names());
        ApiError::new(StatusCode::NOT_FOUND, "unknown_model", message)
    })
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
    if value.is_empty() || value.len() > MAX_NAME_LEN || value.chars().any(char::is_control) {
        let message = format!(
            "camera = {value:?} is not a name of 1 to {MAX_NAME_LEN} bytes without control characters"
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
            if !id.is_empty() && id.len() <= MAX_NAME_LEN && id.bytes().all(|b| b.is_ascii_graphic()) =>
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
