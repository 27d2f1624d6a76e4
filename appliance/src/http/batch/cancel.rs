//! DELETE /batch/:id.

use std::sync::Arc;

use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, HeaderValue};
use warp::reply::Response;

use super::super::reply::json;
use super::body::BatchStatusReply;
use super::read::refused;
use super::service;
use crate::http::state::ServerState;

/// Cancels a batch: 202 while its results are not put together yet, then 200.
pub(in crate::http) async fn handle(id: String, state: Arc<ServerState>) -> Response {
    let asked = async { Ok(service(&state)?.cancel(&id).await?) };
    let response = match asked.await {
        Ok(view) => {
            let over = view.results_uri.is_some();
            let status = if over { StatusCode::OK } else { StatusCode::ACCEPTED };
            let mut response = json(status, &BatchStatusReply::from(view), None);
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => refused(&error),
    };
    state.metrics().request("batch_cancel", response.status().as_u16());
    response
}
