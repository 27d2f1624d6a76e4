//! The bodies of requests and replies; /openapi.json is generated from these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::rollout::Step;

/// Any error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// A message for people.
    #[schema(example = "the image is truncated")]
    pub(super) error: String,
    /// A code for programs.
    #[schema(example = "corrupt_image")]
    pub(super) code: String,
    /// The batch of the error: the request may be repeated with this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
}

/// A JSON request with one of both fields.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PredictBody {
    /// URL of the image; it is fetched from public addresses and from networks that the operator allows.
    #[schema(example = "https://example.com/fish.jpg")]
    pub(super) image_url: Option<String>,
    /// The image itself in base64, with or without a `data:` prefix.
    pub(super) image: Option<String>,
}

/// The reply to one image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictReply {
    /// Id of the request, also in the header X-Request-Id and in the event.
    pub(super) request_id: String,
    /// The model that answered.
    pub(super) model: ModelName,
    #[serde(flatten)]
    pub(super) result: PredictResult,
}

/// The predictions for one image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictResult {
    /// The best label.
    #[schema(example = "anemone_fish")]
    pub(super) species: String,
    /// Its score, 0 to 1.
    #[schema(example = 0.93)]
    pub(super) confidence: f32,
    /// The best labels, best first.
    pub(super) predictions: Vec<LabelScore>,
    /// Whether the answer was computed for an earlier request with the same bytes.
    pub(super) cached: bool,
    /// The request's camera.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) camera: Option<String>,
    /// Milliseconds by stage; a cached answer has only `total`.
    pub(super) timings_ms: BTreeMap<&'static str, f64>,
}

/// The reply to a multipart request with several files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictManyReply {
    /// Id of the request; events have it with the suffixes `-1`, `-2` and so on.
    pub(super) request_id: String,
    /// The model that answered.
    pub(super) model: ModelName,
    /// One entry per file, in the order of the request.
    pub(super) results: Vec<FileResult>,
}

/// One file of several: its predictions, or why there are none.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileResult {
    /// The file's name in the request.
    pub(super) file: String,
    #[serde(flatten)]
    pub(super) outcome: FileOutcome,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum FileOutcome {
    Seen(PredictResult),
    Failed(ErrorBody),
}

/// A label with its score.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LabelScore {
    /// The label.
    pub(super) label: String,
    /// 0 to 1; all labels of the model sum to 1.
    pub(super) score: f32,
}

/// A model by name and version.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ModelName {
    #[schema(example = "fish")]
    pub(super) name: String,
    #[schema(example = "1")]
    pub(super) version: String,
}

/// The state of the appliance. Host names, paths and error texts are for the operator only: on the admin listener, or with the
/// admin token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthReply {
    /// `starting`, `ready`, `degraded` (requests are answered, but a part has a problem) or `draining`.
    pub(super) status: &'static str,
    pub(super) version: &'static str,
    /// Name of this box; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    pub(super) uptime_s: u64,
    /// The device; absent while starting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<DeviceHealth>,
    /// The models.
    pub(super) models: Vec<ModelHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<QueueHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<CacheHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outbox: Option<OutboxHealth>,
    /// The configured links to the cloud by name. A link that is down is a normal state, and no reason to restart.
    pub(super) links: BTreeMap<String, LinkHealthReply>,
    /// Events for Kafka; absent without Kafka.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uplink: Option<UplinkHealth>,
    /// Captured images for the object storage; absent where none are captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capture: Option<CaptureHealth>,
    /// Batch work; absent where batches are disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batches: Option<BatchHealth>,
    /// Objects in the data directory, where there is no object storage and they have been counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) blobs: Option<BlobsHealth>,
    /// Damaged files that were quarantined at the start, each replaced by an empty one; for the operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) quarantined: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LinkHealthReply {
    /// `up`, `down`, or `unused` before the first call.
    pub(super) status: &'static str,
    /// Time of the last change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
    /// Calls that failed since the start.
    pub(super) failures: u64,
    /// The last error; kept when the link is up again. For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UplinkHealth {
    /// Events that wait.
    pub(super) backlog: u64,
    /// Seconds since the oldest of them happened.
    pub(super) oldest_age_s: f64,
    /// Events sent since the start.
    pub(super) sent: u64,
    /// Events that Kafka refused permanently; they are kept in the data directory.
    pub(super) dead_lettered: u64,
    /// Events that retention dropped before they were sent.
    pub(super) lost: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CaptureHealth {
    /// Images that wait.
    pub(super) waiting: u64,
    /// Their bytes on disk.
    pub(super) bytes: u64,
    /// Images sent since the start.
    pub(super) sent: u64,
    /// Images not kept because space was short.
    pub(super) skipped: u64,
    /// Images that the storage refused permanently; they are kept in the data directory while there is space.
    pub(super) dead: u64,
    /// Why images wait; absent if none do. For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BlobsHealth {
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// Their limit.
    pub(super) max_bytes: u64,
    /// Free bytes on that disk.
    pub(super) free: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchHealth {
    /// `embedded` or `kafka`.
    pub(super) queue: &'static str,
    /// Waiting messages, where the number is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<u64>,
    /// Messages in work in this process.
    pub(super) inflight: u64,
    /// Whether receiving is paused because enough messages are in work.
    pub(super) paused: bool,
    /// Images classified since the start.
    pub(super) completed: u64,
    /// Images failed since the start.
    pub(super) failed: u64,
    /// Invalid messages; they have a record under `dead-letter/`.
    pub(super) dead_letters: u64,
    /// Results that the results topic refused; they are in the results object.
    pub(super) refused_results: u64,
    /// Messages whose images were already done by another message.
    pub(super) duplicates: u64,
    /// Messages that had moved to another worker when they were done.
    pub(super) lost: u64,
    /// Calls to the stores that were repeated.
    pub(super) retries: u64,
    /// Damaged files of batches that were quarantined at the start.
    pub(super) quarantined_files: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeviceHealth {
    /// `cpu`, `cuda` or `tensorrt`.
    pub(super) kind: String,
    /// The reason for its selection; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) lanes: usize,
    /// Lanes whose device works at this moment.
    pub(super) lanes_alive: usize,
    /// Fallback lanes on the CPU while no GPU works.
    pub(super) cpu_fallback_workers: usize,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelsReply {
    /// The default model first; none while starting.
    pub(super) models: Vec<ModelHealth>,
}

/// The effect of a command to a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelDone {
    /// As in `?model=`.
    #[schema(example = "fish-classifier")]
    pub(super) model: String,
    /// A message for people.
    #[schema(example = "pinned to fish-classifier/3")]
    pub(super) done: String,
}

/// A model: its current version and the state of its rollout.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelHealth {
    /// As in `?model=`.
    pub(super) model: String,
    /// Name in the current bundle; empty while no version is loaded.
    pub(super) name: String,
    /// Version in the current bundle.
    pub(super) version: String,
    pub(super) precision: String,
    /// Hex SHA-256 of the model file.
    pub(super) digest: String,
    pub(super) labels: usize,
    /// The current version in the registry, such as `fish-classifier/3`; `bundle` for the configured folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serving: Option<String>,
    /// The version that a rollback returns to; the configured bundle if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<String>,
    /// The followed alias or version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) follow: Option<String>,
    /// The pinned version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pinned: Option<String>,
    /// The step of the rollout.
    pub(super) step: Step,
    /// The version that is being rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) candidate: Option<String>,
    /// The version that is on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trial: Option<TrialHealth>,
    /// Rejected versions, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rejected: Vec<RejectedHealth>,
    /// Time of the registry's last reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_polled_at: Option<String>,
    /// The last error since the last success. For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrialHealth {
    /// Percentage of cameras that it answers; 0 in the shadow.
    pub(super) percent: f64,
    /// Images that it has computed.
    pub(super) images: u64,
    /// Images on which it failed, where the image is not the cause.
    pub(super) failed: u64,
    /// Images that the current version has computed too.
    pub(super) compared: u64,
    /// Those of them with another best label.
    pub(super) disagreed: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RejectedHealth {
    pub(super) version: String,
    /// The reason; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) at: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueueHealth {
    pub(super) depth: usize,
    pub(super) capacity: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CacheHealth {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OutboxHealth {
    /// Whether the last append was made durable.
    pub(super) healthy: bool,
    /// The error, if it was not; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Events on disk.
    pub(super) events: u64,
    /// Events that have not left the box.
    pub(super) backlog: u64,
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// Events dropped at the limit since the start.
    pub(super) dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oldest_age_s: Option<u64>,
}
