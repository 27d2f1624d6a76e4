//! Errors as replies, in one place: every typed error of the house becomes its status, code and sentence here.

use std::time::Duration;

use serde::Serialize;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::api::ErrorBody;
use super::body::BodyError;
use crate::fetch::FetchError;
use crate::lanes::{ClassifyError, LaneError};
use crate::predict::PredictError;
use cloud_sync::outbox::OutboxError;
use gpu_kernels::DecodeError;

/// Header that carries the request's id, in both directions.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// An error as the client sees it.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let base = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after: Some(Duration::from_secs(1)), ..base }
    }

    fn overloaded(message: String, retry_after: Duration) -> Self {
        let base = Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message);
        Self { retry_after: Some(retry_after), ..base }
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.message.clone(), code: self.code.to_owned() }
    }

    pub(super) fn into_response(self, request_id: Option<&str>) -> Response {
        let mut response = json(self.status, &self.body(), request_id);
        if let Some(time) = self.retry_after {
            // The header counts whole seconds; 0 would mean "at once".
            let seconds = (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON reply.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T, request_id: Option<&str>) -> Response {
    // Our bodies are plain structs, which always serialize; an empty body would still carry the status.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = HttpResponse::new(bytes.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

impl From<&DecodeError> for ApiError {
    fn from(error: &DecodeError) -> Self {
        let status = match error.code() {
            "unsupported_type" | "unsupported_image" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "image_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            "too_many_pixels" | "too_many_scans" => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<&PredictError> for ApiError {
    fn from(error: &PredictError) -> Self {
        let message = error.to_string();
        match error {
            PredictError::Shared(error) => error.as_ref().into(),
            PredictError::Image(image) => image.into(),
            PredictError::Overloaded { retry_after, .. } => Self::overloaded(message, *retry_after),
            PredictError::DeadlineExceeded => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
            }
            PredictError::Stopping => Self::unavailable("draining", message),
            PredictError::NoScores => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "inference_failed", message)
            }
            PredictError::Lane(lane) => lane.into(),
            PredictError::Outbox(outbox) => outbox.into(),
        }
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        Self::from(&error)
    }
}

impl From<&LaneError> for ApiError {
    fn from(error: &LaneError) -> Self {
        let message = error.to_string();
        match error {
            LaneError::DeadlinePassed => Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message),
            LaneError::NoDevice => Self::unavailable("no_device", message),
            LaneError::Panicked => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "lane_failed", message),
            LaneError::Classify(ClassifyError::Decode(image)) => image.into(),
            LaneError::Classify(ClassifyError::Preprocess(_) | ClassifyError::Engine(_)) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "inference_failed", message)
            }
        }
    }
}

impl From<&OutboxError> for ApiError {
    fn from(error: &OutboxError) -> Self {
        // The message may name paths of this box, which are the operator's business. The outbox itself says once in the
        // log what is wrong; at this level it would be said for every request, to a disk that may be full.
        tracing::debug!(%error, "a prediction could not be recorded");
        match error {
            OutboxError::Busy { .. } => Self::overloaded(
                "too many answers wait to be recorded; try again".into(),
                Duration::from_secs(1),
            ),
            OutboxError::Closed => Self::unavailable("draining", "the appliance is stopping"),
            error if error.is_full() => {
                Self::unavailable("outbox_full", "the outbox is full, so no prediction can be acknowledged")
            }
            _ => Self::unavailable(
                "outbox_unavailable",
                "the outbox can't be written, so no prediction can be acknowledged",
            ),
        }
    }
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        let message = error.to_string();
        let (status, code) = match error {
            FetchError::Disabled => (StatusCode::FORBIDDEN, "fetch_disabled"),
            FetchError::BadUrl { .. } => (StatusCode::BAD_REQUEST, "invalid_url"),
            FetchError::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "url_refused"),
            FetchError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "image_too_large"),
            FetchError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "fetch_timeout"),
            FetchError::Failed { .. } | FetchError::Status { .. } | FetchError::Redirects { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "fetch_failed")
            }
            FetchError::NoRoom => return Self::overloaded(message, Duration::from_secs(1)),
            FetchError::Client(_) => (StatusCode::INTERNAL_SERVER_ERROR, "fetch_unavailable"),
        };
        Self::new(status, code, message)
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        match error {
            BodyError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message),
            BodyError::TimedOut { .. } => Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message),
            BodyError::Broken { .. } => Self::bad_request("body_incomplete", message),
            BodyError::NoRoom => Self::overloaded(message, Duration::from_secs(1)),
        }
    }
}
