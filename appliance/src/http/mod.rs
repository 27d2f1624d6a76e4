//! The HTTP contract: routes by resource, bodies under bounds, errors in one shape.

mod api;
mod batch;
mod body;
mod docs;
mod forms;
mod health;
mod metrics;
mod models;
mod predict;
mod query;
mod reply;
mod server;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

pub use docs::openapi_json;
pub use server::{BindError, Server};

use crate::app::App;
use reply::ApiError;

const ROUTES: [&str; 10] = [
    "/",
    "/predict",
    "/batch/predict",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/models",
    "/openapi.json",
    "/docs",
];
/// Routes that go on with an id.
const ROUTES_BY_ID: [&str; 3] = ["/batch/status/", "/batch/results/", "/models/"];

/// All routes.
pub fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(Arc::clone(&app));
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();

    let predict = warp::path!("predict")
        .and(warp::post())
        .and(state.clone())
        .and(warp::header::headers_cloned())
        .and(raw_query)
        .and(warp::body::stream())
        .then(predict::handle);
    let batch_predict = warp::path!("batch" / "predict")
        .and(warp::post())
        .and(state.clone())
        .and(warp::header::headers_cloned())
        .and(raw_query)
        .and(warp::body::stream())
        .then(batch::submit);
    let batch_status =
        warp::path!("batch" / "status" / String).and(get_head).and(state.clone()).then(batch::status);
    let batch_results =
        warp::path!("batch" / "results" / String).and(warp::get()).and(state.clone()).then(batch::results);
    let fallback = warp::any()
        .and(state)
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .map(unrouted);

    let about = about(Arc::clone(&app));
    let models = model_routes(app);
    predict
        .or(batch_predict)
        .unify()
        .or(batch_status)
        .unify()
        .or(batch_results)
        .unify()
        .or(about)
        .unify()
        .or(models)
        .unify()
        .or(pages())
        .unify()
        .or(fallback)
        .unify()
        .recover(unreadable)
        .unify()
}

/// How the process is. Boxed, like the groups below: the type of one long chain takes the compiler minutes.
fn about(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(app);
    let health = warp::path!("health").and(get_head).and(state.clone()).map(health::full);
    let live = warp::path!("health" / "live").and(get_head).and(state.clone()).map(health::live);
    let ready = warp::path!("health" / "ready").and(get_head).and(state.clone()).map(health::ready);
    let metrics = warp::path!("metrics").and(get_head).and(state).then(metrics::handle);
    health.or(live).unify().or(ready).unify().or(metrics).unify().boxed()
}

/// What is served, and commands to rollouts.
fn model_routes(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(app);
    let list = warp::path!("models").and(get_head).and(state.clone()).map(models::list);
    let show = warp::path!("models" / String).and(get_head).and(state.clone()).map(models::show);
    let order = warp::path!("models" / String / String)
        .and(warp::post())
        .and(state)
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
fn with(app: Arc<App>) -> impl Filter<Extract = (Arc<App>,), Error = Infallible> + Clone + Send + Sync {
    warp::any().map(move || Arc::clone(&app))
}

/// The routes of a worker: how it is, and nothing to ask of it.
pub fn worker_routes(
    app: Arc<App>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let (about, models, state) = (about(Arc::clone(&app)), model_routes(Arc::clone(&app)), with(app));
    let fallback = warp::any()
        .and(state)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .map(not_a_workers);
    about.or(models).unify().or(fallback).unify().recover(unreadable).unify()
}

fn not_a_workers<S, B>(app: Arc<App>, headers: HeaderMap, body: S) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    body::discard(&headers, Box::pin(body));
    let message =
        "this is a worker: it answers /health, /health/live, /health/ready, /metrics and /models only";
    app.metrics().request("other", StatusCode::NOT_FOUND.as_u16());
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message).into_response(None)
}

/// What no route took: 405 on a path that there is, else 404. A body is taken off the connection as with every refusal.
fn unrouted<S, B>(app: Arc<App>, path: FullPath, headers: HeaderMap, body: S) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    body::discard(&headers, Box::pin(body));
    let by_id = |route: &&str| {
        path.as_str().strip_prefix(*route).is_some_and(|id| !id.is_empty() && !id.contains('/'))
    };
    let is_order = models::is_order(path.as_str());
    let error = if ROUTES.contains(&path.as_str()) || ROUTES_BY_ID.iter().any(by_id) || is_order {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this route does not take that method; GET /docs lists what each takes",
        )
    } else {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route; GET /docs lists them")
    };
    app.metrics().request("other", error.status.as_u16());
    error.into_response(None)
}

/// What not even the fallback could take, in the shape of every other error.
async fn unreadable(rejection: Rejection) -> Result<Response, Infallible> {
    let message = format!("the request can't be read: {rejection:?}");
    Ok(ApiError::bad_request("bad_request", message).into_response(None))
}
