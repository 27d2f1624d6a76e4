//! Labels of metrics: stages, outcomes and others.

use prometheus_client::encoding::EncodeLabelSet;

/// A stage of a request, in the order of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Body read from the connection.
    Read,
    /// Waiting for a lane.
    Queue,
    /// Encoded bytes to RGB.
    Decode,
    /// RGB to tensor.
    Preprocess,
    /// Tensor to scores.
    Infer,
    /// The event made durable.
    Outbox,
    /// From the end of the head to the reply.
    Total,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Queue, Self::Decode, Self::Preprocess, Self::Infer, Self::Outbox, Self::Total];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Queue => "queue",
            Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Infer => "infer",
            Self::Outbox => "outbox",
            Self::Total => "total",
        }
    }
}

/// Result of a cache lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// From memory.
    Hit,
    /// Computed.
    Miss,
    /// Computed for a concurrent request with the same image.
    Shared,
}

impl CacheOutcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Shared => "shared",
        }
    }
}

/// Result of a batch submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchOutcome {
    /// Queued.
    Accepted,
    /// Already accepted before.
    Repeated,
    /// The request was invalid.
    Refused,
    /// A link, the queue or the disk did not accept it.
    Unavailable,
}

impl BatchOutcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why the server closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClosedFor {
    /// It was idle, and another connection needed its place.
    Room,
    /// Its address was at its limit.
    AddressLimit,
    /// Its head was sent, or its reply read, too slowly.
    Slowness,
}

impl ClosedFor {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::AddressLimit => "address_limit",
            Self::Slowness => "slowness",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub route: &'static str,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StageLabels {
    pub stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FailureLabels {
    pub lane: u32,
    pub kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LaneLabels {
    pub lane: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SpeciesLabels {
    pub species: String,
}

/// Labels of a model's current version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// The model, as in `?model=`.
    pub model: String,
    /// Name in its bundle.
    pub name: String,
    /// Model version.
    pub version: String,
    /// Hex SHA-256 of the model file.
    pub digest: String,
    /// Precision of the variant.
    pub precision: String,
    /// Device that runs it.
    pub device: String,
}
