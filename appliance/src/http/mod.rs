//! The HTTP contract: routes by resource, bodies under bounds, errors in one shape.

mod api;
mod body;
mod docs;
mod forms;
mod health;
mod metrics;
mod predict;
mod query;
mod reply;
mod server;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;

use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection};

pub use body::BodyBudget;
pub use docs::openapi_json;
pub use server::{BindError, Server};

use crate::app::App;
use reply::ApiError;

/// All routes.
pub fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let get_head = warp::get().or(warp::head()).unify();
    let state = warp::any().map(move || Arc::clone(&app));
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();

    let predict = warp::path!("predict")
        .and(warp::post())
        .and(state.clone())
        .and(warp::header::headers_cloned())
        .and(raw_query)
        .and(warp::body::stream())
        .then(predict::handle);
    let health = warp::path!("health").and(get_head).and(state.clone()).map(health::full);
    let live = warp::path!("health" / "live").and(get_head).and(state.clone()).map(health::live);
    let ready = warp::path!("health" / "ready").and(get_head).and(state.clone()).map(health::ready);
    let metrics = warp::path!("metrics").and(get_head).and(state).map(metrics::handle);
    let openapi = warp::path!("openapi.json").and(get_head).map(docs::openapi);
    let page = warp::path!("docs").and(get_head).map(docs::page);
    let root = warp::path::end().and(get_head).map(docs::root);

    predict
        .or(health)
        .unify()
        .or(live)
        .unify()
        .or(ready)
        .unify()
        .or(metrics)
        .unify()
        .or(openapi)
        .unify()
        .or(page)
        .unify()
        .or(root)
        .unify()
        .recover(unrouted)
        .unify()
}

/// What no route took: 404 or 405, in the shape of every other error.
async fn unrouted(rejection: Rejection) -> Result<Response, Infallible> {
    let error = if rejection.is_not_found() {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route; GET /docs lists them")
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this route does not take that method; GET /docs lists what each takes",
        )
    } else {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            format!("the request can't be read: {rejection:?}"),
        )
    };
    Ok(error.into_response(None))
}
