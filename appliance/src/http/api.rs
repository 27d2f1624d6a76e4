//! The bodies of the contract. /openapi.json is generated from these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::rollout::Step;

/// Any error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// A sentence for a person.
    #[schema(example = "the image is truncated")]
    pub(super) error: String,
    /// For a program.
    #[schema(example = "corrupt_image")]
    pub(super) code: String,
    /// The batch that it is about: the same request may be sent again under this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
}

/// A JSON request: one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PredictBody {
    /// Where the image is; it is fetched from public addresses and from the networks that the operator allows.
    #[schema(example = "https://example.com/fish.jpg")]
    pub(super) image_url: Option<String>,
    /// The image itself in base64, with or without a `data:` prefix.
    pub(super) image: Option<String>,
}

/// The answer to one image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictReply {
    /// Id of the request, also in the header X-Request-Id and in the event.
    pub(super) request_id: String,
    /// The model that answered.
    pub(super) model: ModelName,
    #[serde(flatten)]
    pub(super) result: PredictResult,
}

/// What was seen in one image.
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
    /// The camera that the request named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) camera: Option<String>,
    /// Milliseconds by stage; a cached answer has only `total`.
    pub(super) timings_ms: BTreeMap<&'static str, f64>,
}

/// The answer to a multipart request with several files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictManyReply {
    /// Id of the request; the events have it too, with `-1`, `-2` and so on behind it.
    pub(super) request_id: String,
    /// The model that answered.
    pub(super) model: ModelName,
    /// One entry a file, in the order of the request.
    pub(super) results: Vec<FileResult>,
}

/// One file of several: what was seen, or why there is no answer.
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

/// How the appliance is. What names hosts and paths, or is the text of an error, is told only to the operator: on the admin
/// listener, or with the admin token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthReply {
    /// `starting`, `ready`, `degraded` (it answers, but something is wrong: see the parts) or `draining`.
    pub(super) status: &'static str,
    pub(super) version: &'static str,
    /// Name of this box; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    pub(super) uptime_s: u64,
    /// What computes; absent while starting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<DeviceHealth>,
    /// What is served.
    pub(super) models: Vec<ModelHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<QueueHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<CacheHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outbox: Option<OutboxHealth>,
    /// The configured links to the cloud by name. That one is down is a normal state, and no reason to restart.
    pub(super) links: BTreeMap<String, LinkHealthReply>,
    /// Events on their way to Kafka; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uplink: Option<UplinkHealth>,
    /// Images on their way to the object storage; absent where none are captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capture: Option<CaptureHealth>,
    /// Batch work; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batches: Option<BatchHealth>,
    /// What lies in the data directory for want of an object storage, once it has been counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) blobs: Option<BlobsHealth>,
    /// Damaged files that were set aside when this process started, each replaced by an empty one; for the operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) quarantined: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LinkHealthReply {
    /// `up`, `down`, or `unused` while nothing was tried yet.
    pub(super) status: &'static str,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
    /// Calls that failed since the start.
    pub(super) failures: u64,
    /// The newest failure; it stays when the link is back. For the operator.
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
    /// Events that Kafka refused for good; they lie in the data directory.
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
    /// Images not kept for want of room.
    pub(super) skipped: u64,
    /// Images that the storage refused for good; they lie in the data directory as far as there is room.
    pub(super) dead: u64,
    /// Why images wait; not there when they don't. For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BlobsHealth {
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// The bound on them.
    pub(super) max_bytes: u64,
    /// Bytes that are free on that disk.
    pub(super) free: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchHealth {
    /// `embedded` or `kafka`.
    pub(super) queue: &'static str,
    /// Messages that wait for work, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<u64>,
    /// Messages out for work by this process.
    pub(super) inflight: u64,
    /// Whether it takes no more because enough are out.
    pub(super) paused: bool,
    /// Images classified since the start.
    pub(super) completed: u64,
    /// Images failed since the start.
    pub(super) failed: u64,
    /// Messages that were no batch work; they have a record under `dead-letter/`.
    pub(super) dead_letters: u64,
    /// Results that the results topic refused; they are in the results object.
    pub(super) refused_results: u64,
    /// Messages whose images another message had done.
    pub(super) duplicates: u64,
    /// Messages that had moved to another worker when they were done.
    pub(super) lost: u64,
    /// Calls to the stores that were repeated.
    pub(super) retries: u64,
    /// Files of batches that were damaged and set aside at the start.
    pub(super) quarantined_files: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeviceHealth {
    /// `cpu`, `cuda` or `tensorrt`.
    pub(super) kind: String,
    /// Why this one; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) lanes: usize,
    /// Lanes whose device works at this moment.
    pub(super) lanes_alive: usize,
    /// Lanes on the CPU that stand in while no GPU works.
    pub(super) cpu_fallback_workers: usize,
}

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelsReply {
    /// The default model first; none while starting.
    pub(super) models: Vec<ModelHealth>,
}

/// What a command to a model's rollout has done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelDone {
    /// As in `?model=`.
    #[schema(example = "fish-classifier")]
    pub(super) model: String,
    /// A sentence for a person.
    #[schema(example = "pinned to fish-classifier/3")]
    pub(super) done: String,
}

/// A model: the version that answers, and how the next one stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelHealth {
    /// As in `?model=`.
    pub(super) model: String,
    /// Name in the bundle that serves; empty while no version is here.
    pub(super) name: String,
    /// Version in the bundle that serves.
    pub(super) version: String,
    pub(super) precision: String,
    /// Hex SHA-256 of the model file.
    pub(super) digest: String,
    pub(super) labels: usize,
    /// The version that serves, as the registry calls it: `fish-classifier/3`; `bundle` for the configured folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serving: Option<String>,
    /// The version that a rollback goes back to; the configured bundle if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<String>,
    /// What is followed in the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) follow: Option<String>,
    /// The version that an operator has pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pinned: Option<String>,
    /// Where the rollout is.
    pub(super) step: Step,
    /// The version that is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) candidate: Option<String>,
    /// The version that is on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trial: Option<TrialHealth>,
    /// Versions that are not tried again, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rejected: Vec<RejectedHealth>,
    /// When the registry answered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_polled_at: Option<String>,
    /// What went wrong last, if nothing went right since. For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrialHealth {
    /// Percentage of cameras that it answers; 0 in the shadow.
    pub(super) percent: f64,
    /// Images that it has computed.
    pub(super) images: u64,
    /// Images that it failed on for no fault of theirs.
    pub(super) failed: u64,
    /// Images that the version that serves has computed too.
    pub(super) compared: u64,
    /// Those of them with another best label.
    pub(super) disagreed: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RejectedHealth {
    pub(super) version: String,
    /// Why; for the operator.
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
    /// Why not; for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Events on disk.
    pub(super) events: u64,
    /// Events that have not left the box.
    pub(super) backlog: u64,
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// Events dropped at the bound since the start.
    pub(super) dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oldest_age_s: Option<u64>,
}
