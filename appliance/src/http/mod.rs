//! The HTTP contract: routes by resource, bodies under bounds, errors in one shape.

mod api;
mod batch;
mod body;
mod connections;
mod docs;
#[doc(hidden)]
pub mod forms;
mod front;
mod health;
mod inbound;
mod models;
mod predict;
mod query;
mod reply;
mod server;
mod sites;
mod socket;
mod state;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use inference::lanes::Client;
use warp::filters::BoxedFilter;
use warp::http::header::{ALLOW, HeaderValue};
use warp::http::{HeaderMap, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

pub(crate) use server::{BindError, Server};
pub(crate) use state::{Phase, Role, ServerState, Services};

use reply::ApiError;

/// The routes of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surface {
    /// All routes, for clients of `weir serve`.
    Public,
    /// Health and metrics of a worker.
    Worker,
    /// For the operator: health with all details, metrics, models.
    Admin,
}

impl Surface {
    /// The routes of `http.listen`.
    pub(super) fn of(role: Role) -> Self {
        match role {
            Role::Serve => Self::Public,
            Role::Worker => Self::Worker,
        }
    }
}

const READ: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const DELETE: &str = "DELETE, OPTIONS";
const POST_DELETE: &str = "POST, DELETE, OPTIONS";

/// The methods of a path, as the header Allow lists them; `None` where there is no such path.
fn allowed(surface: Surface, path: &str) -> Option<&'static str> {
    let has_id =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|id| !id.is_empty() && !id.contains('/'));
    match path {
        "/health" | "/health/live" | "/health/ready" | "/metrics" | "/models" => Some(READ),
        _ if has_id("/models/") => Some(READ),
        _ if models::is_order(path) => Some(POST),
        _ if surface != Surface::Public => None,
        "/" | "/openapi.json" | "/docs" => Some(READ),
        "/predict" => Some(POST),
        // A batch with the id "predict" can be cancelled too.
        "/batch/predict" => Some(POST_DELETE),
        _ if has_id("/batch/") => Some(DELETE),
        _ if has_id("/batch/status/") || has_id("/batch/results/") => Some(READ),
        _ => None,
    }
}

/// All routes.
pub(crate) fn routes(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let get_head = warp::get().or(warp::head()).unify();
    let shared = with(Arc::clone(&state));
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();

    // Without a connection (in tests) all requests belong to one client.
    let client = warp::ext::optional::<Client>().map(Option::unwrap_or_default);
    let predict = warp::path!("predict")
        .and(warp::post())
        .and(shared.clone())
        .and(client)
        .and(warp::header::headers_cloned())
        .and(raw_query)
        .and(warp::body::stream())
        .then(predict::handle);
    let batch_predict = warp::path!("batch" / "predict")
        .and(warp::post())
        .and(shared.clone())
        .and(warp::header::headers_cloned())
        .and(raw_query)
        .and(warp::body::stream())
        .then(batch::submit);
    let batch_status =
        warp::path!("batch" / "status" / String).and(get_head).and(shared.clone()).then(batch::status);
    let batch_results =
        warp::path!("batch" / "results" / String).and(get_head).and(shared.clone()).then(batch::results);
    let batch_cancel =
        warp::path!("batch" / String).and(warp::delete()).and(shared.clone()).then(batch::cancel);
    let about = about(Arc::clone(&state), Surface::Public);
    let models = model_routes(Arc::clone(&state), Surface::Public);
    predict
        .or(batch_predict)
        .unify()
        .or(batch_status)
        .unify()
        .or(batch_results)
        .unify()
        .or(batch_cancel)
        .unify()
        .or(about)
        .unify()
        .or(models)
        .unify()
        .or(pages())
        .unify()
        .or(fallback(state, Surface::Public))
        .unify()
        .recover(unreadable)
        .unify()
}

/// Health and metrics. Boxed, like the groups below: the type of one long chain takes the compiler minutes.
fn about(state: Arc<ServerState>, surface: Surface) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let shared = with(state);
    let health = warp::path!("health")
        .and(get_head)
        .and(shared.clone())
        .and(warp::header::headers_cloned())
        .map(move |state, headers| health::full(state, surface, &headers));
    let live = warp::path!("health" / "live").and(get_head).and(shared.clone()).map(health::live);
    let ready = warp::path!("health" / "ready").and(get_head).and(shared.clone()).map(health::ready);
    let metrics = warp::path!("metrics").and(get_head).and(shared).then(health::metrics);
    health.or(live).unify().or(ready).unify().or(metrics).unify().boxed()
}

/// The models and commands to their rollouts.
fn model_routes(state: Arc<ServerState>, surface: Surface) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let shared = with(state);
    let with_headers = shared.clone().and(warp::header::headers_cloned());
    let list = warp::path!("models")
        .and(get_head)
        .and(with_headers.clone())
        .map(move |state, headers| models::list(state, surface, &headers));
    let show = warp::path!("models" / String)
        .and(get_head)
        .and(with_headers)
        .map(move |name, state, headers| models::show(name, state, surface, &headers));
    let order = warp::path!("models" / String / String)
        .and(warp::post())
        .and(shared)
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(models::order);
    list.or(show).unify().or(order).unify().boxed()
}

/// The API's documentation.
fn pages() -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let openapi = warp::path!("openapi.json").and(get_head).map(docs::openapi);
    let page = warp::path!("docs").and(get_head).map(docs::page);
    let root = warp::path::end().and(get_head).map(docs::root);
    openapi.or(page).unify().or(root).unify().boxed()
}

/// The state that handlers share.
fn with(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Arc<ServerState>,), Error = Infallible> + Clone + Send + Sync {
    warp::any().map(move || Arc::clone(&state))
}

/// The routes of a worker: health, metrics and models.
pub(crate) fn worker_routes(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    operator_routes(state, Surface::Worker)
}

/// The routes of the listener for health and metrics.
pub(crate) fn admin_routes(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    operator_routes(state, Surface::Admin)
}

fn operator_routes(
    state: Arc<ServerState>,
    surface: Surface,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let (about, models) = (about(Arc::clone(&state), surface), model_routes(Arc::clone(&state), surface));
    about.or(models).unify().or(fallback(state, surface)).unify().recover(unreadable).unify()
}

fn fallback(state: Arc<ServerState>, surface: Surface) -> BoxedFilter<(Response,)> {
    warp::any()
        .and(with(state))
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .map(move |state, path, headers, body| unrouted(surface, state, path, headers, body))
        .boxed()
}

/// A request without a route: 405 for a known path, else 404. The body is discarded as with every refusal.
fn unrouted<S, B>(
    surface: Surface,
    state: Arc<ServerState>,
    path: FullPath,
    headers: HeaderMap,
    body: S,
) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    body::discard(&headers, Box::pin(body));
    let methods = allowed(surface, path.as_str());
    let (status, code, message) = match (methods, surface) {
        (Some(_), _) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this route does not take that method; the header Allow lists those that it takes",
        ),
        (None, Surface::Public) => {
            (StatusCode::NOT_FOUND, "not_found", "there is no such route; GET /docs lists them")
        }
        (None, Surface::Worker) => (
            StatusCode::NOT_FOUND,
            "not_found",
            "this is a worker: it answers /health, /health/live, /health/ready, /metrics and /models only",
        ),
        (None, Surface::Admin) => (
            StatusCode::NOT_FOUND,
            "not_found",
            "this listener answers /health, /health/live, /health/ready, /metrics and /models only",
        ),
    };
    state.metrics().request("other", status.as_u16());
    let mut response = ApiError::new(status, code, message).into_response(None);
    if let Some(methods) = methods {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    }
    response
}

/// A rejection that not even the fallback handles, in the shape of every other error.
async fn unreadable(rejection: Rejection) -> Result<Response, Infallible> {
    let message = format!("the request can't be read: {rejection:?}");
    Ok(ApiError::bad_request("bad_request", message).into_response(None))
}
