//! GET /health and its two short forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json as object;
use warp::http::StatusCode;
use warp::reply::Response;

use super::api::{CacheHealth, DeviceHealth, HealthReply, ModelHealth, OutboxHealth, QueueHealth};
use super::reply::json;
use crate::VERSION;
use crate::app::{App, Phase};
use crate::predict::PredictService;

/// The whole state; 503 while not ready.
pub(super) fn full(app: Arc<App>) -> Response {
    let status = match (app.phase(), app.service()) {
        (Phase::Ready, Some(service)) if is_degraded(service) => "degraded",
        (Phase::Ready, Some(_)) => "ready",
        (Phase::Draining, _) => "draining",
        _ => "starting",
    };
    let mut reply = HealthReply {
        status,
        version: VERSION,
        node: app.config().node.name.clone(),
        uptime_s: app.uptime().as_secs(),
        device: None,
        models: Vec::new(),
        queue: None,
        cache: None,
        outbox: None,
        links: BTreeMap::new(),
    };
    if let Some(service) = app.service() {
        describe(&mut reply, &app, service);
    }
    finish(&app, "health", ready_status(&app), &reply)
}

/// Whether the process runs at all: what a supervisor restarts on.
pub(super) fn live(app: Arc<App>) -> Response {
    finish(&app, "health_live", StatusCode::OK, &object!({"status": "live"}))
}

/// Whether requests are taken: what a load balancer asks.
pub(super) fn ready(app: Arc<App>) -> Response {
    let status = ready_status(&app);
    let word = if status == StatusCode::OK { "ready" } else { "not_ready" };
    finish(&app, "health_ready", status, &object!({"status": word}))
}

fn finish<T: serde::Serialize>(app: &App, route: &'static str, status: StatusCode, body: &T) -> Response {
    app.metrics().request(route, status.as_u16());
    json(status, body, None)
}

fn ready_status(app: &App) -> StatusCode {
    let ready = app.phase() == Phase::Ready && app.service().is_some_and(|s| s.lanes.alive() > 0);
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// It answers, but something is wrong.
fn is_degraded(service: &PredictService) -> bool {
    service.lanes.alive() < service.lanes.count() || service.outbox.stats().error.is_some()
}

fn describe(reply: &mut HealthReply, app: &App, service: &PredictService) {
    let (lanes, model) = (&service.lanes, &service.model);
    if let Some(device) = app.device() {
        reply.device = Some(DeviceHealth {
            kind: device.kind.to_string(),
            reason: device.reason.clone(),
            lanes: lanes.count(),
            lanes_alive: lanes.alive(),
        });
    }
    reply.models.push(ModelHealth {
        name: model.name.clone(),
        version: model.version.clone(),
        precision: model.precision.to_string(),
        digest: model.digest.clone(),
        labels: model.labels.len(),
    });
    reply.queue = Some(QueueHealth { depth: lanes.depth(), capacity: lanes.capacity() });
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
