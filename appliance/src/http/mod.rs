//! The HTTP contract: routes by resource, bodies under bounds, errors in one shape.

mod api;
mod batch;
mod body;
mod connections;
mod docs;
mod forms;
mod front;
mod health;
mod inbound;
mod metrics;
mod models;
#[doc(hidden)]
pub mod posted;
mod predict;
mod query;
mod reply;
mod routes;
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

pub use docs::openapi_json;
pub use server::{BindError, Server};
pub use state::{Phase, Role, ServerState, Services};

use reply::ApiError;
use routes::{Surface, allowed};

/// All routes.
pub fn routes(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let get_head = warp::get().or(warp::head()).unify();
    let shared = with(Arc::clone(&state));
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();

    // Where there is no connection (in tests) all requests are of one client.
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

/// How the process is. Boxed, like the groups below: the type of one long chain takes the compiler minutes.
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
    let metrics = warp::path!("metrics").and(get_head).and(shared).then(metrics::handle);
    health.or(live).unify().or(ready).unify().or(metrics).unify().boxed()
}

/// What is served, and commands to rollouts.
fn model_routes(state: Arc<ServerState>, surface: Surface) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let shared = with(state);
    let asked = shared.clone().and(warp::header::headers_cloned());
    let list = warp::path!("models")
        .and(get_head)
        .and(asked.clone())
        .map(move |state, headers| models::list(state, surface, &headers));
    let show = warp::path!("models" / String)
        .and(get_head)
        .and(asked)
        .map(move |name, state, headers| models::show(name, state, surface, &headers));
    let order = warp::path!("models" / String / String)
        .and(warp::post())
        .and(shared)
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(models::order);
    list.or(show).unify().or(order).unify().boxed()
}

/// The contract.
fn pages() -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let openapi = warp::path!("openapi.json").and(get_head).map(docs::openapi);
    let page = warp::path!("docs").and(get_head).map(docs::page);
    let root = warp::path::end().and(get_head).map(docs::root);
    openapi.or(page).unify().or(root).unify().boxed()
}

/// What a route needs of the daemon.
fn with(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Arc<ServerState>,), Error = Infallible> + Clone + Send + Sync {
    warp::any().map(move || Arc::clone(&state))
}

/// The routes of a worker: how it is, and nothing to ask of it.
pub fn worker_routes(
    state: Arc<ServerState>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    operator_routes(state, Surface::Worker)
}

/// The routes of the listener for health and metrics.
pub fn admin_routes(
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

/// What no route took: 405 on a path that there is, else 404. A body is taken off the connection as with every refusal.
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

/// What not even the fallback could take, in the shape of every other error.
async fn unreadable(rejection: Rejection) -> Result<Response, Infallible> {
    let message = format!("the request can't be read: {rejection:?}");
    Ok(ApiError::bad_request("bad_request", message).into_response(None))
}
