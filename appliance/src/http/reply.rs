//! Errors as replies, in one place: every typed error gets its status, code and message here.

use std::time::Duration;

use inference::lanes::{ClassifyError, LaneError};
use serde::Serialize;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::api::ErrorBody;
use super::body::BodyError;
use super::inbound::TransferError;
use crate::batch::BatchError;
use crate::batch::parsing::{IntakeError, OptionError, OptionSource};
use crate::batch::spool::SpoolError;
use crate::fetch::FetchError;
use crate::memory::NoRoom;
use crate::predict::PredictError;
use crate::serving::ClassificationError;
use cloud_sync::error::is_disk_full;
use cloud_sync::outbox::OutboxError;
use gpu_kernels::DecodeError;

/// Header that carries the request's id, in both directions.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// Retry-After for a link or a full queue, which are not back after a second.
const LINK_PAUSE: Duration = Duration::from_secs(5);
/// Retry-After for room in the data directory.
const ROOM_PAUSE: Duration = Duration::from_secs(60);
/// Without paths, which are for the operator only.
const DISK_FULL: &str = "the appliance's disk has no room for this";
const NO_SPOOL: &str = "the appliance's disk does not take this at the moment";

/// An error as the client sees it.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// The batch's id, where the client needs it for a retry.
    pub(super) batch: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None, batch: None }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let base = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after: Some(Duration::from_secs(1)), ..base }
    }

    /// The local disk accepted no file: it is full, or the error is transient.
    fn disk(full: bool) -> Self {
        if full {
            let base = Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", DISK_FULL);
            return Self { retry_after: Some(ROOM_PAUSE), ..base };
        }
        Self::unavailable("spool_unavailable", NO_SPOOL)
    }

    pub(super) fn overloaded(message: String, retry_after: Duration) -> Self {
        let base = Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message);
        Self { retry_after: Some(retry_after), ..base }
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.message.clone(), code: self.code.to_owned(), request_id: self.batch.clone() }
    }

    pub(super) fn into_response(self, request_id: Option<&str>) -> Response {
        let mut response = json(self.status, &self.body(), request_id);
        if let Some(time) = self.retry_after {
            // The header is in whole seconds; 0 would mean "at once".
            let seconds = (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON reply.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T, request_id: Option<&str>) -> Response {
    // The bodies are plain structs, which always serialize; an empty body would still have the status.
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
            "image_too_large" | "image_too_costly" => StatusCode::PAYLOAD_TOO_LARGE,
            "too_many_pixels" | "too_many_scans" => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<&ClassificationError> for ApiError {
    fn from(error: &ClassificationError) -> Self {
        let (code, message) = (error.code(), error.to_string());
        match error {
            ClassificationError::Shared(error) => error.as_ref().into(),
            ClassificationError::Image(image) => image.into(),
            ClassificationError::TooCostly(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, message),
            ClassificationError::Overloaded { retry_after, .. } => Self::overloaded(message, *retry_after),
            ClassificationError::DeadlineExceeded => Self::new(StatusCode::GATEWAY_TIMEOUT, code, message),
            ClassificationError::NoModel(_) | ClassificationError::Stopping => {
                Self::unavailable(code, message)
            }
            ClassificationError::NoScores => Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message),
            ClassificationError::Lane(lane) => lane.into(),
        }
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Classify(error) => (&error).into(),
            PredictError::Outbox(error) => (&error).into(),
        }
    }
}

impl From<&LaneError> for ApiError {
    fn from(error: &LaneError) -> Self {
        let message = error.to_string();
        let code = error.code();
        match error {
            LaneError::DeadlinePassed => Self::new(StatusCode::GATEWAY_TIMEOUT, code, message),
            LaneError::NoDevice | LaneError::DeviceFailed | LaneError::Displaced => {
                Self::unavailable(code, message)
            }
            LaneError::Classify(ClassifyError::Decode(image)) => image.into(),
            LaneError::Panicked
            | LaneError::Classify(
                ClassifyError::Preprocess(_) | ClassifyError::Engine(_) | ClassifyError::Stalled { .. },
            ) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message),
        }
    }
}

impl From<&OutboxError> for ApiError {
    fn from(error: &OutboxError) -> Self {
        // The message may contain paths, which are for the operator only. The outbox itself logs once what is wrong; here it
        // would be logged for every request, to a disk that may be full.
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
        let status = match &error {
            FetchError::Disabled => StatusCode::FORBIDDEN,
            FetchError::BadUrl { .. } => StatusCode::BAD_REQUEST,
            FetchError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            FetchError::TimedOut { .. } | FetchError::TooSlow { .. } => StatusCode::GATEWAY_TIMEOUT,
            FetchError::Refused { .. }
            | FetchError::Failed { .. }
            | FetchError::Status { .. }
            | FetchError::Redirects { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            FetchError::NoRoom => return Self::overloaded(message, Duration::from_secs(1)),
            FetchError::Client(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.code(), message)
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        match error {
            BodyError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message),
            BodyError::TimedOut { .. } => Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message),
            BodyError::Broken { .. } => Self::bad_request("body_incomplete", message),
            BodyError::NoRoom(_) => Self::overloaded(message, Duration::from_secs(1)),
            BodyError::Transfer(TransferError::TooSlow(_)) => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message)
            }
            BodyError::Transfer(TransferError::Encoding(_)) => Self::bad_request("invalid_encoding", message),
            BodyError::Transfer(TransferError::AddressFull { .. }) => {
                Self::overloaded(message, Duration::from_secs(1))
            }
            BodyError::Transfer(TransferError::Broken(_)) => Self::bad_request("body_incomplete", message),
            BodyError::Disk(error) => {
                tracing::warn!(%error, "a body could not be spooled");
                Self::disk(is_disk_full(&error))
            }
        }
    }
}

impl From<NoRoom> for ApiError {
    fn from(error: NoRoom) -> Self {
        BodyError::from(error).into()
    }
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        let (message, batch) = (error.to_string(), error.request_id().map(str::to_owned));
        let base = match error {
            BatchError::Intake(intake) => intake.into(),
            BatchError::Spool(spool) => spool.into(),
            BatchError::Id(_) | BatchError::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown_batch", message)
            }
            BatchError::NotFinished { .. } => Self::new(StatusCode::NOT_FOUND, "batch_not_finished", message),
            BatchError::Finished { .. } => Self::new(StatusCode::CONFLICT, "batch_finished", message),
            BatchError::IdTaken { .. } => Self::new(StatusCode::CONFLICT, "request_id_taken", message),
            BatchError::Busy { .. } | BatchError::BeingSubmitted { .. } => {
                Self::overloaded(message, Duration::from_secs(1))
            }
            BatchError::TooMuch { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large", message)
            }
            BatchError::QueueFull { .. } => {
                let base = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
                Self { retry_after: Some(LINK_PAUSE), ..base }
            }
            BatchError::StoreFull { source, .. } => {
                tracing::warn!(batch, error = source.in_full(), "the data directory has no room for a batch");
                let base = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
                Self { retry_after: Some(ROOM_PAUSE), ..base }
            }
            BatchError::Link { source, .. } => {
                // Hosts and buckets are for the operator only: the client gets the link's name, the log the rest.
                tracing::warn!(batch, error = source.in_full(), "batch request failed: link unavailable");
                if source.is_disk_full() {
                    Self::disk(true)
                } else {
                    let base = Self::unavailable("link_unavailable", message);
                    Self { retry_after: Some(LINK_PAUSE), ..base }
                }
            }
            BatchError::Internal(reason) => {
                tracing::error!(batch, error = reason, "a batch request failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the batch could not be handled")
            }
        };
        Self { batch, ..base }
    }
}

impl From<IntakeError> for ApiError {
    fn from(error: IntakeError) -> Self {
        let message = error.to_string();
        let code = match error {
            IntakeError::Option(option) => return option.into(),
            IntakeError::Spool(spool) => return spool.into(),
            IntakeError::TooMany { .. } => {
                return Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_images", message);
            }
            IntakeError::FileTooLarge { .. } => {
                return Self::new(StatusCode::PAYLOAD_TOO_LARGE, "image_too_large", message);
            }
            IntakeError::UnsupportedType { .. } => {
                return Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", message);
            }
            IntakeError::EmptyBody => "empty_body",
            IntakeError::Json(_) => "invalid_json",
            IntakeError::Form(_) | IntakeError::LongField { .. } => "invalid_multipart",
            IntakeError::LongString { .. } | IntakeError::BadUrl { .. } => "invalid_url",
            IntakeError::NoImages { .. } => "no_images",
        };
        Self::bad_request(code, message)
    }
}

impl From<OptionError> for ApiError {
    fn from(error: OptionError) -> Self {
        let code = match error.found_in {
            OptionSource::Query => "invalid_query",
            OptionSource::Json => "invalid_json",
            OptionSource::Form => "invalid_multipart",
        };
        Self::bad_request(code, error.to_string())
    }
}

impl From<SpoolError> for ApiError {
    fn from(error: SpoolError) -> Self {
        tracing::warn!(%error, "a file could not be spooled");
        Self::disk(is_disk_full(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use cloud_sync::error::{Link, SyncError};

    use super::*;

    #[test]
    fn a_full_disk_is_507_wherever_it_was_met_and_other_faults_of_the_disk_are_503() {
        let of = |kind: ErrorKind| {
            let link =
                SyncError::transient(Link::Disk, "cannot write \"a\" in /data").because(Error::from(kind));
            let link = BatchError::Link { request_id: "b".into(), source: link };
            let body = BodyError::Disk(kind.into());
            [ApiError::from(body), ApiError::from(link)].map(|error| {
                assert!(!error.message.contains("/data") && error.retry_after.is_some());
                (error.status.as_u16(), error.code)
            })
        };
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge] {
            assert_eq!(of(kind), [(507, "disk_full"); 2], "{kind}");
        }
        assert_eq!(of(ErrorKind::Other), [(503, "spool_unavailable"), (503, "link_unavailable")]);
    }
}
