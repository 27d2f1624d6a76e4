//! What monitoring reads: GET /health, its two short forms, and GET /metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use inference::lanes::Lanes;
use serde_json::json as object;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::Surface;
use super::api::{
    BatchHealth, BlobsHealth, CacheHealth, CaptureHealth, DeviceHealth, HealthReply, LinkHealthReply,
    OutboxHealth, QueueHealth, UplinkHealth,
};
use super::models;
use super::reply::{ApiError, json};
use crate::VERSION;
use crate::background::Background;
use crate::http::state::{Phase, ServerState};
use crate::predict::PredictService;
use crate::serving::LoadedModel;
use crate::telemetry::{Gauges, MemoryReadings};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The full state; 503 while not ready. Host names, paths and error texts are for the operator only.
pub(super) fn full(state: Arc<ServerState>, surface: Surface, headers: &HeaderMap) -> Response {
    let status = match (state.phase(), state.engine()) {
        (Phase::Ready, Some(engine)) if is_degraded(&state, &engine) => "degraded",
        (Phase::Ready, Some(_)) => "ready",
        (Phase::Draining, _) => "draining",
        _ => "starting",
    };
    let mut reply = HealthReply {
        status,
        version: VERSION,
        node: Some(state.config().node.name.clone()),
        uptime_s: state.uptime().as_secs(),
        device: None,
        models: Vec::new(),
        queue: None,
        cache: None,
        outbox: None,
        links: BTreeMap::new(),
        uplink: None,
        capture: None,
        batches: None,
        blobs: None,
        quarantined: Vec::new(),
    };
    if let Some(engine) = state.engine() {
        describe_engine(&mut reply, &state, &engine);
        reply.models = models::all(&state);
    }
    if let Some(predictions) = state.predictions() {
        describe_predictions(&mut reply, predictions);
    }
    if let Some(services) = state.services() {
        describe_background(&mut reply, &services.background);
    }
    if !models::is_operator(&state, surface, headers) {
        conceal(&mut reply);
    }
    finish(&state, "health", ready_status(&state), &reply)
}

/// Removes what is for the operator only.
fn conceal(reply: &mut HealthReply) {
    reply.node = None;
    reply.quarantined.clear();
    if let Some(device) = &mut reply.device {
        device.reason = None;
    }
    reply.models.iter_mut().for_each(models::conceal);
    if let Some(outbox) = &mut reply.outbox {
        outbox.error = None;
    }
    reply.links.values_mut().for_each(|link| link.last_error = None);
    if let Some(capture) = &mut reply.capture {
        capture.last_error = None;
    }
}

/// Liveness: what a supervisor restarts on.
pub(super) fn live(state: Arc<ServerState>) -> Response {
    finish(&state, "health_live", StatusCode::OK, &object!({"status": "live"}))
}

/// Readiness: what a load balancer polls.
pub(super) fn ready(state: Arc<ServerState>) -> Response {
    let status = ready_status(&state);
    let word = if status == StatusCode::OK { "ready" } else { "not_ready" };
    finish(&state, "health_ready", status, &object!({"status": word}))
}

fn finish<T: serde::Serialize>(
    state: &ServerState,
    route: &'static str,
    status: StatusCode,
    body: &T,
) -> Response {
    state.metrics().request(route, status.as_u16());
    json(status, body, None)
}

fn ready_status(state: &ServerState) -> StatusCode {
    let ready = state.phase() == Phase::Ready && state.engine().is_some_and(|engine| engine.lanes.works());
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Whether something is wrong although requests are answered. A link that is down is a normal state.
fn is_degraded(state: &ServerState, engine: &LoadedModel) -> bool {
    let outbox_fails =
        state.predictions().is_some_and(|predictions| predictions.outbox.stats().error.is_some());
    let damaged = state.services().is_some_and(|services| !services.background.quarantined.is_empty());
    engine.lanes.alive() < engine.lanes.count() || engine.lanes.stuck().1 || outbox_fails || damaged
}

fn describe_engine(reply: &mut HealthReply, state: &ServerState, engine: &LoadedModel) {
    let lanes = &engine.lanes;
    if let Some(device) = state.services().map(|services| &services.device) {
        reply.device = Some(DeviceHealth {
            kind: device.kind.to_string(),
            reason: Some(device.reason.clone()),
            lanes: lanes.count(),
            lanes_alive: lanes.alive(),
            cpu_fallback_workers: lanes.fallback_workers(),
        });
    }
    reply.queue = Some(QueueHealth { depth: lanes.depth(), capacity: lanes.capacity() });
}

fn describe_predictions(reply: &mut HealthReply, service: &PredictService) {
    let cache = service.cache.stats();
    reply.cache = Some(CacheHealth { entries: cache.entries, bytes: cache.bytes });
    let outbox = service.outbox.stats();
    reply.outbox = Some(OutboxHealth {
        healthy: outbox.error.is_none(),
        error: outbox.error.clone(),
        events: outbox.events,
        backlog: outbox.backlog,
        bytes: outbox.bytes,
        dropped: outbox.dropped_by_size + outbox.dropped_by_age,
        oldest_age_s: outbox.oldest.and_then(|t| t.elapsed().ok()).map(|age| age.as_secs()),
    });
}

fn describe_background(reply: &mut HealthReply, background: &Background) {
    let since = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
    for link in &background.links {
        let state = link.state();
        let status = match state.up {
            Some(true) => "up",
            Some(false) => "down",
            None => "unused",
        };
        let health = LinkHealthReply {
            status,
            since: state.since.map(since),
            failures: state.failures,
            last_error: state.last_error,
        };
        reply.links.insert(link.link().name().to_owned(), health);
    }
    reply.quarantined = background.quarantined.iter().map(|path| path.display().to_string()).collect();
    let readings = background.readings();
    reply.uplink = readings.uplink.map(|uplink| UplinkHealth {
        backlog: uplink.backlog,
        oldest_age_s: uplink.oldest_age_s,
        sent: uplink.sent,
        dead_lettered: uplink.dead_lettered,
        lost: uplink.lost,
    });
    reply.capture = readings.capture.map(|capture| CaptureHealth {
        waiting: capture.spooled,
        bytes: capture.bytes,
        sent: capture.sent,
        skipped: capture.skipped,
        dead: capture.dead,
        last_error: capture.last_error,
    });
    reply.blobs = readings.blobs.map(|room| BlobsHealth {
        bytes: room.bytes,
        max_bytes: room.max_bytes,
        free: room.free,
    });
    reply.batches = background.batch_reading().map(|batch| BatchHealth {
        queue: background.queue_kind(),
        waiting: batch.waiting,
        inflight: batch.inflight,
        paused: batch.paused,
        completed: batch.counts.classified,
        failed: batch.counts.failed,
        dead_letters: batch.counts.dead_letters,
        refused_results: batch.counts.refused_results,
        duplicates: batch.counts.duplicates,
        lost: batch.counts.lost,
        retries: batch.retries,
        quarantined_files: batch.counts.quarantined,
    });
}

/// GET /metrics: OpenMetrics text.
pub(super) async fn metrics(state: Arc<ServerState>) -> Response {
    // Before a version is held: this may take a second.
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

fn memory(state: &ServerState, lanes: &Lanes) -> MemoryReadings {
    let (bodies, decode) = (state.body_memory(), state.decode_memory());
    MemoryReadings {
        bodies: (bodies.used() as u64, bodies.limit() as u64),
        decode: (decode.used(), decode.limit()),
        waiting: decode.waiting() as u64,
        stuck: lanes.stuck().0 as u64,
    }
}
