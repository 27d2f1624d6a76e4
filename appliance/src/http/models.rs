//! `GET /models`, and an operator's commands to rollouts, which take the admin token.

use std::sync::Arc;
use std::time::SystemTime;

use cloud_sync::secret::Secret;
use warp::http::header::AUTHORIZATION;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::Surface;
use super::api::{ModelDone, ModelHealth, ModelsReply, RejectedHealth, TrialHealth};
use super::query;
use super::reply::{ApiError, json};
use crate::http::state::{ServerState, Services};
use crate::rollout::{Command, Rollouts, Step};
use crate::serving::TrialKind;

/// All models and the state of their rollouts.
pub(super) fn list(state: Arc<ServerState>, surface: Surface, headers: &HeaderMap) -> Response {
    let reply = ModelsReply { models: shown(&state, surface, headers) };
    state.metrics().request("models", StatusCode::OK.as_u16());
    json(StatusCode::OK, &reply, None)
}

/// One model.
pub(super) fn show(name: String, state: Arc<ServerState>, surface: Surface, headers: &HeaderMap) -> Response {
    let services = state.services();
    let found =
        services.map(|services| query::find(&services.models, &name).map(|slot| slot.name().to_owned()));
    let response = match found {
        None => ApiError::unavailable("not_ready", "the appliance is starting").into_response(None),
        Some(Err(error)) => error.into_response(None),
        Some(Ok(name)) => {
            let model = shown(&state, surface, headers).into_iter().find(|model| model.model == name);
            json(StatusCode::OK, &model, None)
        }
    };
    state.metrics().request("models", response.status().as_u16());
    response
}

/// Whether a path is that of a command.
pub(super) fn is_order(path: &str) -> bool {
    let parts = path.strip_prefix("/models/").and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(name, action)| !name.is_empty() && ACTIONS.contains(&action))
}

/// Submits a command to a model's rollout.
pub(super) async fn order(
    name: String,
    action: String,
    state: Arc<ServerState>,
    headers: HeaderMap,
    raw_query: String,
) -> Response {
    let response = match handle_command(&name, &action, &state, &headers, &raw_query).await {
        Ok(done) => {
            tracing::info!(model = done.model, action, done = done.done, "carried out a command");
            json(StatusCode::OK, &done, None)
        }
        Err(error) => {
            tracing::info!(model = name, action, error = error.message, "refused a command");
            error.into_response(None)
        }
    };
    state.metrics().request("models_order", response.status().as_u16());
    response
}

async fn handle_command(
    name: &str,
    action: &str,
    state: &ServerState,
    headers: &HeaderMap,
    raw_query: &str,
) -> Result<ModelDone, ApiError> {
    let Some(Services { models, rollouts, admin_token, .. }) = state.services() else {
        return Err(ApiError::unavailable("not_ready", "the appliance is starting"));
    };
    // Before anything is revealed.
    authorize(headers, admin_token)?;
    let command = command(action, raw_query)?;
    let slot = query::find(models, name)?;
    let Some(handle) = rollouts.handles().get(slot.name()) else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_model", "this model has no rollout"));
    };
    match handle.submit(command).await {
        Ok(done) => Ok(ModelDone { model: slot.name().to_owned(), done }),
        Err(refusal) => Err(ApiError::new(StatusCode::CONFLICT, "refused", refusal.to_string())),
    }
}

const ACTIONS: [&str; 4] = ["promote", "rollback", "reload", "pin"];

fn command(action: &str, raw_query: &str) -> Result<Command, ApiError> {
    let mut version = None;
    for (key, value) in url::form_urlencoded::parse(raw_query.as_bytes()) {
        if key != "version" || action != "pin" {
            let message = format!("unknown query parameter {key:?}; only pin takes one, version");
            return Err(ApiError::bad_request("invalid_query", message));
        }
        version = Some(value.into_owned()).filter(|version| !version.is_empty());
    }
    match action {
        "promote" => Ok(Command::Promote),
        "rollback" => Ok(Command::Rollback),
        "reload" => Ok(Command::Reload),
        "pin" => match &version {
            Some(text) if format!("m/{text}").parse::<cloud_sync::registry::ModelReference>().is_err() => {
                Err(ApiError::bad_request("invalid_query", format!("version = {text:?} is no version")))
            }
            _ => Ok(Command::Pin(version)),
        },
        other => {
            let message =
                format!("there is no action {other:?}; there are promote, rollback, reload and pin");
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message))
        }
    }
}

/// Whether the request may see what only the operator may.
pub(super) fn is_operator(state: &ServerState, surface: Surface, headers: &HeaderMap) -> bool {
    let has_token = |services: &Services| authorize(headers, &services.admin_token).is_ok();
    surface == Surface::Admin || state.services().is_some_and(has_token)
}

fn shown(state: &ServerState, surface: Surface, headers: &HeaderMap) -> Vec<ModelHealth> {
    let mut models = all(state);
    if !is_operator(state, surface, headers) {
        models.iter_mut().for_each(conceal);
    }
    models
}

/// Removes what only the operator may see: errors name paths, hosts and addresses.
pub(super) fn conceal(model: &mut ModelHealth) {
    model.error = None;
    model.rejected.iter_mut().for_each(|rejected| rejected.reason = None);
}

fn authorize(headers: &HeaderMap, token: &Secret) -> Result<(), ApiError> {
    if token.is_empty() {
        let message = "no admin token is configured, so nothing can be changed here; set admin.token or admin.token_file";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "admin_disabled", message));
    }
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    // Compares digests, so that the duration of the comparison says nothing about the token.
    if blake3::hash(given.as_bytes()) == blake3::hash(token.expose().as_bytes()) {
        return Ok(());
    }
    let message = "this needs the admin token: Authorization: Bearer <token>";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message))
}

/// All models as /models and /health show them.
pub(super) fn all(state: &ServerState) -> Vec<ModelHealth> {
    let Some(services) = state.services() else { return Vec::new() };
    services.models.iter().map(|slot| describe(&services.rollouts, slot)).collect()
}

fn describe(rollouts: &Rollouts, slot: &crate::serving::Endpoint) -> ModelHealth {
    let routes = slot.routes();
    let current = routes.current.as_ref();
    let identity = current.map(|current| &current.model);
    let handle = rollouts.handles().get(slot.name());
    let status = handle.map(|handle| handle.status.read()).unwrap_or_default();
    let entry = rollouts.entry(slot.name());
    let time = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
    ModelHealth {
        model: slot.name().to_owned(),
        name: identity.map(|model| model.name.clone()).unwrap_or_default(),
        version: identity.map(|model| model.version.clone()).unwrap_or_default(),
        precision: identity.map(|model| model.precision.to_string()).unwrap_or_default(),
        digest: identity.map(|model| model.digest.clone()).unwrap_or_default(),
        labels: identity.map_or(0, |model| model.labels.len()),
        serving: current.map(|current| current.describe()),
        previous: entry.previous.as_ref().map(ToString::to_string),
        follow: handle.and_then(|handle| handle.followed.follow.as_ref()).map(ToString::to_string),
        pinned: entry.pinned.clone(),
        step: status.step,
        candidate: status.candidate,
        trial: routes.trial.as_ref().filter(|_| status.step != Step::Idle).map(|trial| {
            let (compared, disagreed) = trial.comparison.read();
            let seen = trial.model.stats.read();
            TrialHealth {
                percent: match trial.kind {
                    TrialKind::Shadow => 0.0,
                    TrialKind::Canary { part } => part * 100.0,
                },
                images: seen.computed(),
                failed: seen.failed,
                compared,
                disagreed,
            }
        }),
        rejected: entry
            .rejected
            .iter()
            .map(|rejected| RejectedHealth {
                version: format!("{}/{}", rejected.name, rejected.version),
                reason: Some(rejected.reason.clone()),
                at: time(rejected.at),
            })
            .collect(),
        last_polled_at: status.last_polled_at.map(time),
        error: status.error,
    }
}
