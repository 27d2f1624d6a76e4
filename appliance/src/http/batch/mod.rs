//! The routes of batches: what is refused before anything is read, and what they share.

mod body;
mod cancel;
mod read;
mod submit;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use warp::http::StatusCode;

pub(super) use body::{BatchAccepted, BatchBody, BatchForm, BatchStatusReply};
pub(super) use cancel::handle as cancel;
pub(super) use read::{results, status};
pub(super) use submit::handle as submit;

use super::reply::ApiError;
use crate::batch::BatchService;
use crate::http::state::{Phase, ServerState};

/// The service, unless it is switched off or not there yet.
fn service(state: &ServerState) -> Result<&Arc<BatchService>, ApiError> {
    if !state.config().batch.enabled {
        let message = "this appliance takes no batches (batch.enabled = false)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "batch_disabled", message));
    }
    state.batches().ok_or_else(|| ApiError::unavailable("not_ready", "the appliance is starting"))
}

/// The service, if it takes new batches.
fn accepting(state: &ServerState) -> Result<&Arc<BatchService>, ApiError> {
    match state.phase() {
        Phase::Starting => Err(ApiError::unavailable("not_ready", "the appliance is starting")),
        Phase::Draining => Err(ApiError::unavailable("draining", "the appliance is stopping")),
        Phase::Ready => service(state),
    }
}

/// Where a batch's status is to be had. Ids need no escaping in a path.
fn status_url(id: &str) -> String {
    format!("/batch/status/{id}")
}

/// The client may have put secrets into what it sent, so the log gets no more of a refusal than its code.
fn log_refusal(request_id: &str, error: &ApiError) {
    let status = error.status.as_u16();
    let batch = error.batch.as_deref();
    if error.retry_after.is_some() {
        tracing::debug!(request_id, batch, status, code = error.code, "batch request refused for now");
    } else {
        tracing::info!(request_id, batch, status, code = error.code, "batch request refused");
    }
}
