//! The status of batches and of the work on them: embedded, or in Redis ([`crate::redis::RedisStore`]).
//!
//! Both implementations guarantee, and the contract suite checks on both: every call is one atomic step, with any
//! number of processes calling; repeating a call changes nothing (deliveries are repeated); a batch is removed when its
//! time to live has passed since its last change.

mod embedded;

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use embedded::EmbeddedBatchStatus;

use crate::error::SyncResult;

/// A store for the status of batches that several processes may share.
#[async_trait]
pub trait BatchStatusStore: Send + Sync + fmt::Debug {
    /// Records a batch as queued unless one with this id exists.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created>;

    /// Records that all messages of a batch are in the queue. Does nothing for an unknown batch.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn batch_submitted(&self, request_id: &str) -> SyncResult<()>;

    /// Records that a worker starts a chunk: a queued batch becomes processing.
    /// Creates an unknown batch (submitted).
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart>;

    /// Records that the delivery at `position` has completed a chunk, with the numbers of images classified and
    /// failed. Only the first call for a chunk counts. Creates an unknown batch.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn complete_chunk(
        &self,
        spec: &BatchSpec,
        chunk: u32,
        position: &str,
        completed: u64,
        failed: u64,
    ) -> SyncResult<ChunkDone>;

    /// Records the outcome of a batch. Only the first call counts. Creates an unknown batch. Returns the phase of the
    /// batch after the call: that of the first outcome, or [`BatchPhase::Cancelled`] if the batch was cancelled
    /// before it.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase>;

    /// Cancels a batch, durably, unless it has an outcome. Creates an unknown batch (submitted). Returns the status
    /// after the call.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus>;

    /// Returns the status of a batch, `None` if it is unknown or expired.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>>;

    /// Removes a batch that was created and could not be submitted.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn forget_batch(&self, request_id: &str) -> SyncResult<()>;

    /// Returns the starts of the work on the message at `position` that did not end.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts>;

    /// Records, durably, that the work on the message at `position` starts, on `image` alone where one is given.
    /// `step` identifies this start, so that a repeated call counts once.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()>;

    /// Reverts the start of a `step` that ended normally, if it is the current one; without a step the message is
    /// done, and all of its starts are removed.
    ///
    /// # Errors
    /// When the store cannot be reached.
    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()>;
}

/// A batch as it was submitted. Its fields never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSpec {
    /// The id that the client is given.
    pub request_id: String,
    /// Number of images.
    pub total: u64,
    /// Number of messages that the batch was split into, at least 1.
    pub chunks: u32,
    /// Digest of the request, in hex; empty when it is not known (a message from another producer).
    /// Two submissions with the same id and different digests are different batches.
    pub digest: String,
}

/// Phase of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPhase {
    /// Accepted; no worker has started it.
    Queued,
    /// A worker has started it.
    Processing,
    /// Every image has its result, and at least one was classified.
    Completed,
    /// Every image has its result, and all of them are failures.
    Failed,
    /// Cancelled before every image had its result. Until there is an outcome, workers may still process images that
    /// they had started.
    Cancelled,
}

impl BatchPhase {
    /// Whether the phase never changes again.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Status of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatus {
    /// The submitted batch.
    pub spec: BatchSpec,
    /// Its phase.
    pub phase: BatchPhase,
    /// Whether all its messages are in the queue: until then the client has no response and may submit
    /// it again.
    pub submitted: bool,
    /// Number of images classified.
    pub completed: u64,
    /// Number of images that have failed permanently.
    pub failed: u64,
    /// Number of completed chunks.
    pub chunks_done: u32,
    /// When it was created.
    pub created: SystemTime,
    /// When it last changed.
    pub updated: SystemTime,
    /// The outcome recorded by [`BatchStatusStore::finish_batch`].
    pub outcome: Option<BatchOutcome>,
}

/// Outcome of a finished batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOutcome {
    /// The final phase.
    pub phase: BatchPhase,
    /// Number of images classified, counted from the results themselves.
    pub completed: u64,
    /// Number of images failed, counted from the results themselves.
    pub failed: u64,
    /// URI of the results.
    pub results_uri: String,
    /// The results as one JSON array, if they are small enough to be stored inline.
    pub results: Option<String>,
}

/// Result of [`BatchStatusStore::create_batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The batch was created.
    New,
    /// A batch with this id exists; the caller compares the digests.
    Existing(Box<BatchStatus>),
}

/// Result of [`BatchStatusStore::start_chunk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkStart {
    /// Whether the batch was unknown (another producer's message, or the store lost its data) and was
    /// created by this call.
    pub created: bool,
    /// Position of the delivery that has already completed this chunk, if any.
    pub done_by: Option<String>,
    /// Whether the batch has an outcome.
    pub finished: bool,
    /// Whether the batch is cancelled: no further image of it may be started.
    pub cancelled: bool,
}

/// Result of [`BatchStatusStore::complete_chunk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDone {
    /// Position of the delivery that completed the chunk first: the caller's own, or another's.
    pub owner: String,
    /// Number of completed chunks of this batch after the call.
    pub chunks_done: u32,
    /// Whether all chunks are completed and the batch has no outcome yet: the caller then finishes the batch.
    pub to_finish: bool,
}

/// Starts of the work on one message that did not end: they show which image or message ends the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStarts {
    /// Number of starts.
    pub starts: u32,
    /// Image of the last start, until it is counted in `ended_at`.
    pub image: Option<u64>,
    /// Step of the last start, until it is reverted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Number of starts for one image alone, by image.
    pub ended_at: BTreeMap<u64, u32>,
}

impl WorkStarts {
    /// Counts another start, for one image or for the whole message. A repeated step is not counted again: the
    /// caller repeats a call whose response was lost.
    pub fn begin(&mut self, image: Option<u64>, step: u64) {
        if self.step == Some(step) {
            return;
        }
        self.count_last();
        self.starts = self.starts.saturating_add(1);
        (self.image, self.step) = (image, Some(step));
    }

    /// Reverts the current start if it was made for this step: it ended normally.
    pub fn revert(&mut self, step: u64) {
        if self.step == Some(step) {
            self.starts = self.starts.saturating_sub(1);
            (self.image, self.step) = (None, None);
        }
    }

    /// The counts before the next start: the last one did not end, or it would have been reverted.
    #[must_use]
    pub fn so_far(mut self) -> Self {
        self.count_last();
        self
    }

    /// Number of starts that ended while the work was at an image.
    #[must_use]
    pub fn ended_at(&self, image: u64) -> u32 {
        self.ended_at.get(&image).copied().unwrap_or_default()
    }

    /// Number of starts that were made for no single image.
    #[must_use]
    pub fn ended_elsewhere(&self) -> u32 {
        let at_images: u32 = self.ended_at.values().fold(0, |sum, ended| sum.saturating_add(*ended));
        self.starts.saturating_sub(at_images)
    }

    fn count_last(&mut self) {
        if let Some(image) = self.image.take() {
            let ended = self.ended_at.entry(image).or_default();
            *ended = ended.saturating_add(1);
        }
    }
}
