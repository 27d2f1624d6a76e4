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

use crate::app::App;
use reply::ApiError;
use routes::{Surface, allowed};

/// All routes.
pub fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(Arc::clone(&app));
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();

    // Where there is no connection (in tests) all requests are of one client.
    let client = warp::ext::optional::<Client>().map(Option::unwrap_or_default);
    let predict = warp::path!("predict")
        .and(warp::post())
        .and(state.clone())
        .and(client)
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
        warp::path!("batch" / "results" / String).and(get_head).and(state.clone()).then(batch::results);
    let batch_cancel =
        warp::path!("batch" / String).and(warp::delete()).and(state.clone()).then(batch::cancel);
    let about = about(Arc::clone(&app), Surface::Public);
    let models = model_routes(Arc::clone(&app), Surface::Public);
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
        .or(fallback(app, Surface::Public))
        .unify()
        .recover(unreadable)
        .unify()
}

/// How the process is. Boxed, like the groups below: the type of one long chain takes the compiler minutes.
fn about(app: Arc<App>, surface: Surface) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(app);
    let health = warp::path!("health")
        .and(get_head)
        .and(state.clone())
        .and(warp::header::headers_cloned())
        .map(move |app, headers| health::full(app, surface, &headers));
    let live = warp::path!("health" / "live").and(get_head).and(state.clone()).map(health::live);
    let ready = warp::path!("health" / "ready").and(get_head).and(state.clone()).map(health::ready);
    let metrics = warp::path!("metrics").and(get_head).and(state).then(metrics::handle);
    health.or(live).unify().or(ready).unify().or(metrics).unify().boxed()
}

/// What is served, and commands to rollouts.
fn model_routes(app: Arc<App>, surface: Surface) -> BoxedFilter<(Response,)> {
    let get_head = warp::get().or(warp::head()).unify();
    let state = with(app);
    let asked = state.clone().and(warp::header::headers_cloned());
    let list = warp::path!("models")
        .and(get_head)
        .and(asked.clone())
        .map(move |app, headers| models::list(app, surface, &headers));
    let show = warp::path!("models" / String)
        .and(get_head)
        .and(asked)
        .map(move |name, app, headers| models::show(name, app, surface, &headers));
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
    operator_routes(app, Surface::Worker)
}

/// The routes of the listener for health and metrics.
pub fn admin_routes(
    app: Arc<App>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    operator_routes(app, Surface::Admin)
}

fn operator_routes(
    app: Arc<App>,
    surface: Surface,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let (about, models) = (about(Arc::clone(&app), surface), model_routes(Arc::clone(&app), surface));
    about.or(models).unify().or(fallback(app, surface)).unify().recover(unreadable).unify()
}

fn fallback(app: Arc<App>, surface: Surface) -> BoxedFilter<(Response,)> {
    warp::any()
        .and(with(app))
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .map(move |app, path, headers, body| unrouted(surface, app, path, headers, body))
        .boxed()
}

/// What no route took: 405 on a path that there is, else 404. A body is taken off the connection as with every refusal.
fn unrouted<S, B>(surface: Surface, app: Arc<App>, path: FullPath, headers: HeaderMap, body: S) -> Response
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
    app.metrics().request("other", status.as_u16());
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
