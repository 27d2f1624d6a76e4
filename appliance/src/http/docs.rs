//! The contract for programs (/openapi.json, generated from the types) and for people (/docs, one page without any
//! outside resource, since an edge box may have no network).

use utoipa::OpenApi;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::Response;

use super::api::{
    ErrorBody, HealthReply, ModelDone, ModelHealth, ModelsReply, PredictBody, PredictManyReply, PredictReply,
};
use super::batch::{BatchAccepted, BatchBody, BatchForm, BatchStatusReply};

const PAGE: &str = include_str!("docs.html");

/// The contract; the functions below it are its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Weir",
        description = "Fish classification: post a photo, get a species. Errors are always {\"error\", \"code\"}.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        predict,
        batch_predict,
        batch_status,
        batch_results,
        batch_cancel,
        models,
        model,
        model_order,
        health,
        health_live,
        health_ready,
        metrics
    ),
    components(schemas(
        PredictBody,
        PredictReply,
        PredictManyReply,
        BatchBody,
        BatchForm,
        BatchAccepted,
        BatchStatusReply,
        ModelsReply,
        ModelHealth,
        ModelDone,
        ErrorBody,
        HealthReply
    )),
    tags(
        (name = "predict", description = "Images in, species out"),
        (name = "batch", description = "Many images in, species out later"),
        (name = "models", description = "Which versions serve, and commands to their rollouts"),
        (name = "operate", description = "For load balancers, supervisors and Prometheus")
    )
)]
struct Contract;

/// Classify an image.
///
/// The body is the image itself (JPEG, PNG, WebP, BMP, GIF or TIFF; recognized by its bytes, whatever Content-Type says), or
/// multipart/form-data with one or more fields called `file`, `files` or `image`, or JSON with `image_url` or `image` (base64). The reply to one
/// image is PredictReply, to a form of several files PredictManyReply. The event of an answer is durable before the reply is
/// sent.
#[utoipa::path(
    post,
    path = "/predict",
    tag = "predict",
    params(
        ("top_k" = Option<u32>, Query, description = "How many labels to answer with; 5 unless configured otherwise"),
        ("model" = Option<String>, Query, description = "Name of the model, as in GET /models, or the one in its bundle; the default model unless given"),
        ("camera" = Option<String>, Query, description = "Camera that took the image; part of the event"),
        ("X-Deadline-Ms" = Option<u32>, Header, description = "Deadline in milliseconds: 504 after it"),
        ("X-Request-Id" = Option<String>, Header, description = "Your id for the request; generated unless given")
    ),
    request_body(
        description = "An image in one of the forms",
        content(
            (Vec<u8> = "image/*"),
            (PredictBody = "application/json"),
            (FormBody = "multipart/form-data")
        )
    ),
    responses(
        (status = 200, description = "The predictions", body = PredictReply),
        (status = 400, description = "corrupt_image, empty_body, invalid_query, invalid_json, invalid_base64, invalid_multipart, missing_file, too_many_files, invalid_url, invalid_deadline, invalid_encoding, body_incomplete", body = ErrorBody),
        (status = 403, description = "fetch_disabled, origin_refused", body = ErrorBody),
        (status = 404, description = "unknown_model", body = ErrorBody),
        (status = 408, description = "body_timeout, body_too_slow", body = ErrorBody),
        (status = 413, description = "body_too_large, image_too_large, image_too_costly", body = ErrorBody),
        (status = 415, description = "unsupported_type, unsupported_image, unsupported_encoding", body = ErrorBody),
        (status = 421, description = "host_refused: on every route", body = ErrorBody),
        (status = 422, description = "too_many_pixels, too_many_scans, url_refused, fetch_failed", body = ErrorBody),
        (status = 429, description = "overloaded, too_many_connections; Retry-After says when to retry", body = ErrorBody),
        (status = 500, description = "lane_failed, lane_stalled, inference_failed", body = ErrorBody),
        (status = 503, description = "not_ready, model_not_ready, draining, outbox_full, outbox_unavailable, no_device, device_failed", body = ErrorBody),
        (status = 504, description = "deadline_exceeded, fetch_timeout", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn predict() {}

/// A form of files.
#[derive(utoipa::ToSchema)]
#[allow(dead_code)]
struct FormBody {
    /// The images; the field may be repeated.
    file: Vec<Vec<u8>>,
}

/// Submit a batch.
///
/// JSON with `image_urls`, or multipart/form-data with one or more fields called `file`. The work is
/// durable in the queue before the reply is sent. The same `request_id` with the same content is the same batch, however often
/// it is sent: a request whose reply was lost can be repeated.
#[utoipa::path(
    post,
    path = "/batch/predict",
    tag = "batch",
    params(
        ("request_id" = Option<String>, Query, description = "Your id for the batch; also in the body"),
        ("camera" = Option<String>, Query, description = "Camera that took the images; also in the body"),
        ("top_k" = Option<u32>, Query, description = "How many labels each result has; also in the body"),
        ("X-Request-Id" = Option<String>, Header, description = "Your id for this HTTP request, not for the batch")
    ),
    request_body(
        description = "URLs or files",
        content((BatchBody = "application/json"), (BatchForm = "multipart/form-data"))
    ),
    responses(
        (status = 202, description = "Accepted, now or before; Location is the URL of its status", body = BatchAccepted),
        (status = 400, description = "empty_body, invalid_json, invalid_multipart, invalid_query, invalid_url, no_images, invalid_encoding, body_incomplete", body = ErrorBody),
        (status = 403, description = "batch_disabled, origin_refused", body = ErrorBody),
        (status = 408, description = "body_timeout, body_too_slow", body = ErrorBody),
        (status = 409, description = "request_id_taken: by a batch with other content", body = ErrorBody),
        (status = 413, description = "body_too_large, too_many_images, image_too_large, batch_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_type, unsupported_encoding", body = ErrorBody),
        (status = 429, description = "overloaded, queue_full (the queue or the data directory); Retry-After says when to retry", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, draining, link_unavailable, spool_unavailable; send the same again after Retry-After, with the request_id of the error", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_predict() {}

/// The status of a batch.
#[utoipa::path(
    get,
    path = "/batch/status/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "Its status", body = BatchStatusReply),
        (status = 403, description = "batch_disabled", body = ErrorBody),
        (status = 404, description = "unknown_batch", body = ErrorBody),
        (status = 429, description = "overloaded: too many concurrent lookups of forgotten batches", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_status() {}

/// The results of a finished batch.
///
/// One line of JSON per image, in the order of the images: `request_id`, `index`, `image_url`, and `status` `ok` with the
/// predictions, or `failed` with `code` and `error`.
#[utoipa::path(
    get,
    path = "/batch/results/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "JSON lines", body = String, content_type = "application/x-ndjson"),
        (status = 403, description = "batch_disabled", body = ErrorBody),
        (status = 404, description = "unknown_batch, batch_not_finished", body = ErrorBody),
        (status = 429, description = "overloaded: too many concurrent downloads", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_results() {}

/// Cancel a batch.
///
/// Images that are not in work get no result; those in work may get one. Existing results are kept: once they are merged, the
/// status has a `results_url`, and the results have a line for each finished image. A cancelled batch does not start again,
/// even if it is submitted again. Repeating the request changes nothing.
#[utoipa::path(
    delete,
    path = "/batch/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "Cancelled, and its results are merged", body = BatchStatusReply),
        (status = 202, description = "Cancelled; its results are not merged yet", body = BatchStatusReply),
        (status = 403, description = "batch_disabled, origin_refused", body = ErrorBody),
        (status = 404, description = "unknown_batch", body = ErrorBody),
        (status = 409, description = "batch_finished: every image has its result", body = ErrorBody),
        (status = 429, description = "overloaded: too many concurrent lookups of forgotten batches", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_cancel() {}

/// All models: current versions and the state of their rollouts.
#[utoipa::path(get, path = "/models", tag = "models", responses(
    (status = 200, description = "The default model first", body = ModelsReply)
))]
#[allow(dead_code)]
fn models() {}

/// One model.
#[utoipa::path(
    get,
    path = "/models/{name}",
    tag = "models",
    params(("name" = String, Path, description = "Name of the model, as in ?model=")),
    responses(
        (status = 200, description = "The current version and the state of its rollout", body = ModelHealth),
        (status = 404, description = "unknown_model", body = ErrorBody),
        (status = 503, description = "not_ready", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn model() {}

/// A command to a model's rollout.
///
/// `promote` ends the trial and promotes the candidate. `rollback` returns to the previous version; the candidate or the current
/// version is rejected. `reload` polls the registry now and clears rejections. `pin` serves one version regardless of the alias;
/// without `version` the alias is followed again. The command has been accepted when the reply is sent; GET /models/{name} shows
/// the progress.
#[utoipa::path(
    post,
    path = "/models/{name}/{action}",
    tag = "models",
    params(
        ("name" = String, Path, description = "Name of the model, as in ?model="),
        ("action" = String, Path, description = "promote, rollback, reload or pin"),
        ("version" = Option<String>, Query, description = "With pin: a version of the followed model"),
        ("Authorization" = String, Header, description = "Bearer, a space, and the admin token")
    ),
    responses(
        (status = 200, description = "What it did", body = ModelDone),
        (status = 400, description = "invalid_query", body = ErrorBody),
        (status = 401, description = "unauthorized: the token is missing or wrong", body = ErrorBody),
        (status = 403, description = "admin_disabled: no admin token is configured", body = ErrorBody),
        (status = 404, description = "unknown_model; not_found: no such action", body = ErrorBody),
        (status = 409, description = "refused: the command does not apply, or it failed; the message has the reason", body = ErrorBody),
        (status = 503, description = "not_ready", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn model_order() {}

/// The state of the appliance: version, device, models, queue, outbox, links. Host names and error texts only on the admin
/// listener and with the admin token.
#[utoipa::path(get, path = "/health", tag = "operate", responses(
    (status = 200, description = "Ready", body = HealthReply),
    (status = 503, description = "Starting or draining", body = HealthReply)
))]
#[allow(dead_code)]
fn health() {}

/// Liveness of the process.
#[utoipa::path(get, path = "/health/live", tag = "operate", responses((status = 200, description = "Alive")))]
#[allow(dead_code)]
fn health_live() {}

/// Readiness for requests.
#[utoipa::path(get, path = "/health/ready", tag = "operate", responses(
    (status = 200, description = "Ready"),
    (status = 503, description = "Starting or draining")
))]
#[allow(dead_code)]
fn health_ready() {}

/// Metrics in OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "operate", responses((status = 200, description = "OpenMetrics text")))]
#[allow(dead_code)]
fn metrics() {}

/// The contract as JSON.
fn openapi_json() -> String {
    // The contract is built from our own types, which always serialize.
    Contract::openapi().to_pretty_json().unwrap_or_default()
}

pub(super) fn openapi() -> Response {
    text(openapi_json(), "application/json")
}

pub(super) fn page() -> Response {
    text(PAGE.to_owned(), "text/html; charset=utf-8")
}

/// The root leads people to the page.
pub(super) fn root() -> Response {
    let mut response = HttpResponse::new(String::new().into());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/docs"));
    response
}

fn text(body: String, content_type: &'static str) -> Response {
    let mut response = HttpResponse::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
