//! GET /metrics: OpenMetrics text.

use std::sync::Arc;

use inference::lanes::Lanes;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::reply::ApiError;
use crate::background::Background;
use crate::http::state::ServerState;
use crate::telemetry::{Gauges, MemoryReadings};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn memory(state: &ServerState, lanes: &Lanes) -> MemoryReadings {
    let (bodies, decode) = (state.body_memory(), state.decode_memory());
    MemoryReadings {
        bodies: (bodies.used() as u64, bodies.limit() as u64),
        decode: (decode.used(), decode.limit()),
        waiting: decode.waiting() as u64,
        stuck: lanes.stuck().0 as u64,
    }
}

pub(super) async fn handle(state: Arc<ServerState>) -> Response {
    // Before anything of a version is held: this may take a second.
    let gpus = state.gpus().readings().await;
    let background = state.services().map(|services| &services.background);
    let gauges = state.engine().map(|engine| Gauges {
        queue_depth: engine.lanes.depth(),
        queue_capacity: engine.lanes.capacity(),
        lanes_alive: engine.lanes.alive(),
        memory: memory(&state, &engine.lanes),
        cache: state.predictions().map(|predictions| predictions.cache.stats()),
        outbox: state.predictions().map(|predictions| predictions.outbox.stats()),
        cloud: background.map(Background::readings).unwrap_or_default(),
        gpus,
    });
    if let Some(reading) = background.and_then(Background::batch_reading) {
        state.batch_metrics().set(&reading);
    }
    state.metrics().request("metrics", StatusCode::OK.as_u16());
    match state.metrics().render(gauges.as_ref()) {
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
