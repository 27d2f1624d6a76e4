//! GET /metrics: OpenMetrics text.

use std::sync::Arc;

use inference::lanes::Lanes;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::reply::ApiError;
use crate::app::{App, Cloud};
use crate::telemetry::{Gauges, MemoryReadings};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn memory(app: &App, lanes: &Lanes) -> MemoryReadings {
    let (bodies, decode) = (app.body_memory(), app.decode_memory());
    MemoryReadings {
        bodies: (bodies.used() as u64, bodies.limit() as u64),
        decode: (decode.used(), decode.limit()),
        waiting: decode.waiting() as u64,
        stuck: lanes.stuck().0 as u64,
    }
}

pub(super) async fn handle(app: Arc<App>) -> Response {
    // Before anything of a version is held: this may take a second.
    let gpus = app.gpus().readings().await;
    let gauges = app.engine().map(|engine| Gauges {
        queue_depth: engine.lanes.depth(),
        queue_capacity: engine.lanes.capacity(),
        lanes_alive: engine.lanes.alive(),
        memory: memory(&app, &engine.lanes),
        cache: app.service().map(|service| service.cache.stats()),
        outbox: app.service().map(|service| service.outbox.stats()),
        cloud: app.cloud().map(Cloud::readings).unwrap_or_default(),
        gpus,
    });
    if let Some(reading) = app.cloud().and_then(Cloud::batch_reading) {
        app.batch_metrics().set(&reading);
    }
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
