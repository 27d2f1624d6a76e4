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
/// The body is the image itself (JPEG, PNG, WebP, BMP, GIF or TIFF; known by its bytes, whatever Content-Type says), or
/// multipart/form-data with one or more fields called `file`, `files` or `image`, or JSON with `image_url` or `image` (base64). One image is
/// answered with PredictReply, a form of several files with PredictManyReply. When the answer comes, its event is
/// durable.
#[utoipa::path(
    post,
    path = "/predict",
    tag = "predict",
    params(
        ("top_k" = Option<u32>, Query, description = "How many labels to answer with; 5 unless configured otherwise"),
        ("model" = Option<String>, Query, description = "Name of the model, as in GET /models, or the one in its bundle; the default model unless given"),
        ("camera" = Option<String>, Query, description = "Camera that took the picture; goes into the event"),
        ("X-Deadline-Ms" = Option<u32>, Header, description = "After this time the answer is no longer wanted: 504"),
        ("X-Request-Id" = Option<String>, Header, description = "Your id for the request; else one is made")
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
        (status = 200, description = "What was seen", body = PredictReply),
        (status = 400, description = "corrupt_image, empty_body, invalid_query, invalid_json, invalid_base64, invalid_multipart, missing_file, too_many_files, invalid_url, invalid_deadline, invalid_encoding, body_incomplete", body = ErrorBody),
        (status = 403, description = "fetch_disabled, origin_refused", body = ErrorBody),
        (status = 404, description = "unknown_model", body = ErrorBody),
        (status = 408, description = "body_timeout, body_too_slow", body = ErrorBody),
        (status = 413, description = "body_too_large, image_too_large, image_too_costly", body = ErrorBody),
        (status = 415, description = "unsupported_type, unsupported_image, unsupported_encoding", body = ErrorBody),
        (status = 421, description = "host_refused: on every route", body = ErrorBody),
        (status = 422, description = "too_many_pixels, too_many_scans, url_refused, fetch_failed", body = ErrorBody),
        (status = 429, description = "overloaded, too_many_connections; Retry-After says when to come back", body = ErrorBody),
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
/// JSON with `image_urls`, or multipart/form-data with one or more fields called `file`. When the answer comes, the work
/// is in the queue durably. The same `request_id` with the same content is the same batch, however often it is sent: an
/// answer that did not arrive is had by sending the same again.
#[utoipa::path(
    post,
    path = "/batch/predict",
    tag = "batch",
    params(
        ("request_id" = Option<String>, Query, description = "Your id for the batch; also in the body"),
        ("camera" = Option<String>, Query, description = "Camera that took the pictures; also in the body"),
        ("top_k" = Option<u32>, Query, description = "How many labels each result has; also in the body"),
        ("X-Request-Id" = Option<String>, Header, description = "Your id for this HTTP request, not for the batch")
    ),
    request_body(
        description = "URLs or files",
        content((BatchBody = "application/json"), (BatchForm = "multipart/form-data"))
    ),
    responses(
        (status = 202, description = "Taken, now or before; Location says where its status is", body = BatchAccepted),
        (status = 400, description = "empty_body, invalid_json, invalid_multipart, invalid_query, invalid_url, no_images, invalid_encoding, body_incomplete", body = ErrorBody),
        (status = 403, description = "batch_disabled, origin_refused", body = ErrorBody),
        (status = 408, description = "body_timeout, body_too_slow", body = ErrorBody),
        (status = 409, description = "request_id_taken: by a batch with other content", body = ErrorBody),
        (status = 413, description = "body_too_large, too_many_images, image_too_large, batch_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_type, unsupported_encoding", body = ErrorBody),
        (status = 429, description = "overloaded, queue_full (the queue or the data directory); Retry-After says when to come back", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, draining, link_unavailable, spool_unavailable; send the same again after Retry-After, with the request_id of the error", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_predict() {}

/// How far a batch is.
#[utoipa::path(
    get,
    path = "/batch/status/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "Where it stands", body = BatchStatusReply),
        (status = 403, description = "batch_disabled", body = ErrorBody),
        (status = 404, description = "unknown_batch", body = ErrorBody),
        (status = 429, description = "overloaded: too many look-ups of forgotten batches at once", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_status() {}

/// The results of a finished batch.
///
/// One line of JSON an image, in the order of the images: `request_id`, `index`, `image_url`, and `status` `ok` with
/// what was seen, or `failed` with `code` and `error`.
#[utoipa::path(
    get,
    path = "/batch/results/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "JSON lines", body = String, content_type = "application/x-ndjson"),
        (status = 403, description = "batch_disabled", body = ErrorBody),
        (status = 404, description = "unknown_batch, batch_not_finished", body = ErrorBody),
        (status = 429, description = "overloaded: too many downloads at once", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody),
        (status = 507, description = "disk_full", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_results() {}

/// Cancel a batch.
///
/// Images that are not being worked on get no result; those that are may get one. What is done stays: when the last of it
/// has been put together, the status has a `results_url`, and the results have a line for each image that was done.
/// A cancelled batch does not begin anew, also when it is submitted again. Repeating it changes nothing.
#[utoipa::path(
    delete,
    path = "/batch/{id}",
    tag = "batch",
    params(("id" = String, Path, description = "Id of the batch")),
    responses(
        (status = 200, description = "Cancelled, and its results are put together", body = BatchStatusReply),
        (status = 202, description = "Cancelled; its results are not put together yet", body = BatchStatusReply),
        (status = 403, description = "batch_disabled, origin_refused", body = ErrorBody),
        (status = 404, description = "unknown_batch", body = ErrorBody),
        (status = 409, description = "batch_finished: every image has its result", body = ErrorBody),
        (status = 429, description = "overloaded: too many look-ups of forgotten batches at once", body = ErrorBody),
        (status = 500, description = "internal", body = ErrorBody),
        (status = 503, description = "not_ready, link_unavailable, spool_unavailable", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn batch_cancel() {}

/// All models: which versions serve, and how their rollouts stand.
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
        (status = 200, description = "Which version serves, and how its rollout stands", body = ModelHealth),
        (status = 404, description = "unknown_model", body = ErrorBody),
        (status = 503, description = "not_ready", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn model() {}

/// Have a model's rollout do something.
///
/// `promote` ends the trial that a version is on. `rollback` goes back to the version before; the one that serves, or is
/// on trial, is rejected. `reload` asks the registry now, and a version that was rejected is tried again. `pin` serves one
/// version whatever the alias says; without `version` the alias is followed again. When the answer comes, the command is
/// taken; GET /models/{name} tells how the rollout goes.
#[utoipa::path(
    post,
    path = "/models/{name}/{action}",
    tag = "models",
    params(
        ("name" = String, Path, description = "Name of the model, as in ?model="),
        ("action" = String, Path, description = "promote, rollback, reload or pin"),
        ("version" = Option<String>, Query, description = "With pin: a version of the registered model that is followed"),
        ("Authorization" = String, Header, description = "Bearer, a space, and the admin token")
    ),
    responses(
        (status = 200, description = "What it did", body = ModelDone),
        (status = 400, description = "invalid_query", body = ErrorBody),
        (status = 401, description = "unauthorized: the token is missing or another", body = ErrorBody),
        (status = 403, description = "admin_disabled: no admin token is configured", body = ErrorBody),
        (status = 404, description = "unknown_model; not_found: no such action", body = ErrorBody),
        (status = 409, description = "refused: there is nothing that the command could do, or it did not work; the message says why", body = ErrorBody),
        (status = 503, description = "not_ready", body = ErrorBody)
    )
)]
#[allow(dead_code)]
fn model_order() {}

/// How the appliance is: version, device, models, queue, outbox, links. With names of hosts and texts of errors only on the
/// admin listener and with the admin token.
#[utoipa::path(get, path = "/health", tag = "operate", responses(
    (status = 200, description = "It answers", body = HealthReply),
    (status = 503, description = "Starting or draining", body = HealthReply)
))]
#[allow(dead_code)]
fn health() {}

/// Whether the process runs.
#[utoipa::path(get, path = "/health/live", tag = "operate", responses((status = 200, description = "It runs")))]
#[allow(dead_code)]
fn health_live() {}

/// Whether requests are taken.
#[utoipa::path(get, path = "/health/ready", tag = "operate", responses(
    (status = 200, description = "They are"),
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
