//! How far a batch is: what every implementation of the state store keeps of it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// A batch as it was submitted. What it says never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSpec {
    /// The id that the client sees.
    pub request_id: String,
    /// Images.
    pub total: u64,
    /// Messages that the batch was cut into, at least 1.
    pub chunks: u32,
    /// Digest of what was asked, in hex; empty when it is not known (a message from another producer).
    /// Two submissions with the same id and different digests are different batches.
    pub digest: String,
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPhase {
    /// Accepted; no worker has begun.
    Queued,
    /// Some worker has begun.
    Processing,
    /// Every image has its result, and at least one was classified.
    Completed,
    /// Every image has its result, and all of them are failures.
    Failed,
    /// Cancelled before every image had its result. Until there is an outcome, workers may still be at images that
    /// they had begun.
    Cancelled,
}

impl BatchPhase {
    /// Whether it never becomes another phase.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A batch as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatus {
    /// What was submitted.
    pub spec: BatchSpec,
    /// Where it stands.
    pub phase: BatchPhase,
    /// Whether all its messages are in the queue: until then the client has no answer and may submit
    /// again.
    pub submitted: bool,
    /// Images classified.
    pub completed: u64,
    /// Images that have failed for good.
    pub failed: u64,
    /// Chunks that are done.
    pub chunks_done: u32,
    /// When it was created.
    pub created: SystemTime,
    /// When it last changed.
    pub updated: SystemTime,
    /// What [`super::StateStore::finish_batch`] was given.
    pub outcome: Option<BatchOutcome>,
}

/// What a finished batch has to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOutcome {
    /// How it ended; final.
    pub phase: BatchPhase,
    /// Images classified, counted from the results themselves.
    pub completed: u64,
    /// Images failed, counted from the results themselves.
    pub failed: u64,
    /// Where the results are.
    pub results_uri: String,
    /// The results themselves, as one JSON array, when they are few.
    pub results: Option<String>,
}

/// What [`super::StateStore::create_batch`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// A batch of this id is there; the caller compares the digests.
    Existing(Box<BatchStatus>),
}

/// What [`super::StateStore::start_chunk`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkStart {
    /// Whether the batch was not known (another producer's message, or the store lost its data) and was
    /// created by this call.
    pub created: bool,
    /// The position of the delivery that completed this chunk before, if one has.
    pub done_by: Option<String>,
    /// Whether the whole batch has its outcome.
    pub finished: bool,
    /// Whether the batch is cancelled: no image of it is to be begun any more.
    pub cancelled: bool,
}

/// What [`super::StateStore::complete_chunk`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDone {
    /// The position of the delivery that completed the chunk first: the caller's own, or another's.
    pub owner: String,
    /// Chunks of this batch that are done now.
    pub chunks_done: u32,
    /// Whether that is all of them and the batch has no outcome yet: whoever sees it finishes the batch.
    pub to_finish: bool,
}
