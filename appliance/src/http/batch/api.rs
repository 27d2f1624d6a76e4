//! The bodies of the batch routes; /openapi.json is generated from these types.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use cloud_sync::batch_status::BatchPhase;

use super::status_url;
use crate::batch::{Accepted, BatchView, rfc3339_text};

/// A batch of URLs.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it is read as a stream; this is its contract")]
pub(in crate::http) struct BatchBody {
    /// URLs of the images: http, https or s3, each up to 4096 bytes. A URL may be repeated.
    #[schema(example = json!(["https://example.com/fish.jpg", "s3://catch/2026/fish.jpg"]))]
    image_urls: Vec<String>,
    /// Your id for the batch, up to 128 letters, digits and `_.-`: the same id again is the same batch.
    #[schema(example = "dock-3-2026-05-01")]
    request_id: Option<String>,
    /// Camera that took the images.
    camera: Option<String>,
    /// How many labels each result has.
    top_k: Option<u32>,
}

/// A batch of files.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it is read as a stream; this is its contract")]
pub(in crate::http) struct BatchForm {
    /// The images; the field may be repeated, and may be called `files`.
    file: Vec<Vec<u8>>,
    /// Your id for the batch.
    request_id: Option<String>,
    /// Camera that took the images.
    camera: Option<String>,
    /// How many labels each result has.
    top_k: Option<u32>,
}

/// An accepted batch.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BatchAccepted {
    /// Its id.
    #[schema(example = "dock-3-2026-05-01")]
    pub(super) request_id: String,
    /// `queued`, or its status if it was submitted before.
    #[schema(example = "queued")]
    pub(super) status: &'static str,
    /// Images.
    #[schema(example = 2)]
    pub(super) total: u64,
    /// URL of its status.
    #[schema(example = "/batch/status/dock-3-2026-05-01")]
    pub(super) status_url: String,
}

/// The status of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BatchStatusReply {
    /// Its id.
    request_id: String,
    /// `queued`, `processing`, `completed`, `failed` (every image has a result, and none was classified), or `cancelled`: images
    /// without a result by then get none.
    #[schema(example = "completed")]
    status: &'static str,
    /// Images.
    total: u64,
    /// Images classified so far.
    completed: u64,
    /// Images that have failed permanently so far.
    failed: u64,
    /// When it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-05-01T04:30:00.000Z")]
    created_at: Option<String>,
    /// When it last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-05-01T04:30:12.345Z")]
    updated_at: Option<String>,
    /// URI of the results in the object store, once it is finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "s3://catch/results/dock-3-2026-05-01.jsonl")]
    results_uri: Option<String>,
    /// URL of the results here, once it is finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/batch/results/dock-3-2026-05-01")]
    results_url: Option<String>,
    /// The results themselves, in the order of the images, if they are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    results: Option<Box<RawValue>>,
}

/// A phase as replies name it.
pub(super) fn word(phase: BatchPhase) -> &'static str {
    match phase {
        BatchPhase::Queued => "queued",
        BatchPhase::Processing => "processing",
        BatchPhase::Completed => "completed",
        BatchPhase::Failed => "failed",
        BatchPhase::Cancelled => "cancelled",
    }
}

impl From<Accepted> for BatchAccepted {
    fn from(accepted: Accepted) -> Self {
        Self {
            status_url: status_url(&accepted.request_id),
            status: word(accepted.phase),
            total: accepted.total,
            request_id: accepted.request_id,
        }
    }
}

impl From<BatchView> for BatchStatusReply {
    fn from(view: BatchView) -> Self {
        let results_url = view.results_uri.is_some().then(|| format!("/batch/results/{}", view.request_id));
        Self {
            status: word(view.phase),
            total: view.total,
            completed: view.completed,
            failed: view.failed,
            created_at: view.created.map(rfc3339_text),
            updated_at: view.updated.map(rfc3339_text),
            results_uri: view.results_uri,
            results_url,
            // Invalid JSON is left out: the results object has all results.
            results: view.results.and_then(|results| RawValue::from_string(results).ok()),
            request_id: view.request_id,
        }
    }
}
