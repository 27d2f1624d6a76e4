//! The versioned records that leave the box, as JSON.
//!
//! A reader must accept what a newer appliance writes: unknown fields are ignored, and an event of an unknown kind is
//! preserved as [`EventBody::Unknown`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ulid::Ulid;

/// Milliseconds since 1970, 0 before 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The version of the envelope that this code writes.
pub const EVENT_VERSION: u32 = 1;

/// One thing that happened on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Version of the envelope, [`EVENT_VERSION`] for events created here.
    pub v: u32,
    /// A ULID: unique, and ordered by time. Consumers use it to drop duplicates.
    pub id: Ulid,
    /// When it happened; RFC 3339 in UTC with milliseconds on the wire.
    #[serde(with = "rfc3339_millis")]
    pub time: SystemTime,
    /// The node (edge box or pod) it happened on.
    pub node: String,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

impl Event {
    /// A new event of `node`, with the current time and a new id.
    #[must_use]
    pub fn new(node: impl Into<String>, body: EventBody) -> Self {
        // Whole milliseconds, so that an event read back equals the one that was written.
        let time = UNIX_EPOCH + Duration::from_millis(unix_ms(SystemTime::now()));
        Self { v: EVENT_VERSION, id: Ulid::from_datetime(time), time, node: node.into(), body }
    }

    /// Serializes the event as one line of JSON, without the line end.
    ///
    /// # Errors
    /// When an [`EventBody::Unknown`] holds what JSON cannot represent.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Parses an event.
    ///
    /// # Errors
    /// When it is not JSON, or a known kind lacks a required field.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

/// What happened; on the wire the field `kind` says which, beside the fields of the kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", try_from = "Map<String, Value>")]
pub enum EventBody {
    /// A photo was classified and the response acknowledged.
    Prediction(Prediction),
    /// An image of a batch has its result.
    BatchItem(BatchItem),
    /// A batch is finished.
    Batch(BatchSummary),
    /// A version of a model was promoted, rejected or rolled back.
    Model(ModelChange),
    /// The outbox was found to be a copy, or restored to an earlier state.
    Outbox(OutboxChange),
    /// A kind that a newer appliance wrote: its fields as received, including `kind`.
    #[serde(untagged)]
    Unknown(Map<String, Value>),
}

impl EventBody {
    /// The name of the kind on the wire; empty when an unknown event has none.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::Prediction(_) => "prediction",
            Self::BatchItem(_) => "batch_item",
            Self::Batch(_) => "batch",
            Self::Model(_) => "model",
            Self::Outbox(_) => "outbox",
            Self::Unknown(fields) => fields.get("kind").and_then(Value::as_str).unwrap_or_default(),
        }
    }
}

/// Hand-written because serde's own fallback would also hide a known kind with a broken field.
impl TryFrom<Map<String, Value>> for EventBody {
    type Error = serde_json::Error;

    fn try_from(fields: Map<String, Value>) -> Result<Self, Self::Error> {
        match fields.get("kind").and_then(Value::as_str) {
            Some("prediction") => serde_json::from_value(Value::Object(fields)).map(Self::Prediction),
            Some("batch_item") => serde_json::from_value(Value::Object(fields)).map(Self::BatchItem),
            Some("batch") => serde_json::from_value(Value::Object(fields)).map(Self::Batch),
            Some("model") => serde_json::from_value(Value::Object(fields)).map(Self::Model),
            Some("outbox") => serde_json::from_value(Value::Object(fields)).map(Self::Outbox),
            _ => Ok(Self::Unknown(fields)),
        }
    }
}

/// The prediction for one photo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The id of the request that was answered.
    pub request_id: String,
    /// The camera named by the client, if any.
    pub camera: Option<String>,
    /// The model that answered.
    pub model: ModelRef,
    /// The photo: what is needed to recognise it, never its pixels.
    pub image: ImageRef,
    /// The label of the best score.
    pub species: String,
    /// The best score, 0 to 1.
    pub confidence: f32,
    /// The best labels, best first.
    pub predictions: Vec<Score>,
    /// Whether it came from the content cache.
    pub cached: bool,
}

/// The result of one image of a batch: its prediction, or why there is none.
///
/// It is the same, line by line, in the batch's results object and, as an event, in the results topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchItem {
    /// The batch.
    pub request_id: String,
    /// The image's index in the batch, from 0.
    pub index: u64,
    /// The image's source, as named in the batch.
    pub image_url: String,
    /// The camera named in the batch, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub camera: Option<String>,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: ItemOutcome,
}

/// Outcome of an image of a batch; on the wire distinguished by the field `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ItemOutcome {
    /// It was classified.
    Ok {
        /// The label of the best score.
        species: String,
        /// The best score, 0 to 1.
        confidence: f32,
        /// The best labels, best first.
        predictions: Vec<Score>,
        /// The model that answered.
        model: ModelRef,
        /// The photo.
        image: ImageRef,
    },
    /// It was not classified, and will not be.
    Failed {
        /// The reason, for programs: `snake_case`.
        code: String,
        /// The reason, for people.
        error: String,
    },
}

/// The outcome of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSummary {
    /// The batch.
    pub request_id: String,
    /// `completed`, `failed` when no image was classified, or `cancelled`: then some images may have no result.
    pub status: String,
    /// Number of images.
    pub total: u64,
    /// Number of images classified.
    pub completed: u64,
    /// Number of images failed.
    pub failed: u64,
    /// URI of the results.
    pub results_uri: String,
}

/// A change of a model's version on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChange {
    /// The model, as in `?model=`.
    pub model: String,
    /// `serving`, `rejected` or `rolled_back`.
    pub state: String,
    /// The version concerned: `fish-classifier/3`, or `bundle` for the configured one.
    pub version: String,
    /// The previous version, for `serving`; the one that continues to serve, for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A change of an outbox's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxChange {
    /// `copied` for a copy of a data directory, `restored` for one that was restored to an earlier state.
    pub cause: String,
    /// The previous identity.
    pub from: String,
    /// The new identity.
    pub to: String,
    /// Events of this outbox up to this sequence had been sent.
    pub sent: u64,
}

/// Which model answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Name of the bundle.
    pub name: String,
    /// Version of the bundle.
    pub version: String,
    /// Digest of the variant of the bundle that ran, in hex.
    pub digest: String,
}

/// Which photo was classified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// BLAKE3 of the encoded bytes, in hex.
    pub digest: String,
    /// Encoding, detected from the bytes: `jpeg`, `png`, ...
    pub format: String,
    /// Length of the encoded bytes.
    pub bytes: u64,
    /// Width in pixels, from the header.
    pub width: u32,
    /// Height in pixels, from the header.
    pub height: u32,
}

/// One label with its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The label.
    pub label: String,
    /// Its softmax score, 0 to 1.
    pub score: f32,
}

mod rfc3339_millis {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|e| D::Error::custom(format!("time {text:?}: {e}")))
    }
}

#[cfg(test)]
mod tests;
