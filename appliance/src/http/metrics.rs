//! GET /metrics: OpenMetrics text.

use std::sync::Arc;

use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::reply::ApiError;
use crate::app::App;
use crate::telemetry::Gauges;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn handle(app: Arc<App>) -> Response {
    let gauges = app.service().map(|service| Gauges {
        queue_depth: service.lanes.depth(),
        queue_capacity: service.lanes.capacity(),
        lanes_alive: service.lanes.alive(),
        cache: service.cache.stats(),
        outbox: service.outbox.stats(),
    });
    app.metrics().request("metrics", StatusCode::OK.as_u16());
    match app.metrics().render(gauges.as_ref()) {
        Ok(text) => {
            let mut response = HttpResponse::new(text.into());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
            response
        }
        Err(_) => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics can't be written")
                .into_response(None)
        }
    }
}
