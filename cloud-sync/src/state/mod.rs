//! State between requests: the content cache, and how far each batch is. Embedded, or in Redis.
//!
//! What both implementations promise, and the contract suite checks on both: every call is one atomic
//! step, with any number of processes calling; repeating a call changes nothing (deliveries are
//! repeated); a batch is forgotten when its time to live has passed since its last change.

mod batch;
mod embedded;
mod redis;
mod work;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::redis::{RedisConfig, RedisStore};
pub use batch::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus, ChunkDone, ChunkStart, Created};
pub use embedded::{EmbeddedState, EmbeddedStore, StateConfig, StateStats};
pub use work::WorkStarts;

use crate::error::SyncResult;

/// A store of state that several processes may share.
#[async_trait]
pub trait StateStore: Send + Sync + fmt::Debug {
    /// The cached value under a digest.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>>;

    /// Keeps a value for `ttl`, in place of what was there. A `ttl` of zero removes it.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()>;

    /// Notes a batch as queued, unless one of this id is there.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created>;

    /// Notes that all messages of a batch are in the queue. Does nothing where the batch is not known.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn batch_submitted(&self, request_id: &str) -> SyncResult<()>;

    /// Notes that a worker begins with a chunk: the batch is processing, unless it is further already.
    /// Creates the batch (submitted) where it is not known.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart>;

    /// Notes that a chunk is done, by the delivery at `position`, with so many images classified and
    /// failed. Only the first call for a chunk counts. Creates the batch where it is not known.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn complete_chunk(
        &self,
        spec: &BatchSpec,
        chunk: u32,
        position: &str,
        completed: u64,
        failed: u64,
    ) -> SyncResult<ChunkDone>;

    /// Notes how a batch ended. Only the first call counts. Creates the batch where it is not known. Returns the phase
    /// that the batch has now: that of the first outcome, and [`BatchPhase::Cancelled`] for a batch that was cancelled
    /// before it.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase>;

    /// Cancels a batch, durably, unless it has an outcome. Creates it (submitted) where it is not known. Returns how
    /// the batch stands after the call.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus>;

    /// How far a batch is; `None` when it is not known (any more).
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>>;

    /// Forgets a batch that was created and could not be submitted.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn forget_batch(&self, request_id: &str) -> SyncResult<()>;

    /// What is known of earlier starts of the work on the message at `position` that did not end.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts>;

    /// Notes, durably, that the work on the message at `position` begins, where `image` is given with that image alone.
    /// `step` names this start among all of them, so that a call that is repeated counts once.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()>;

    /// Takes back the start of a `step` that ended in good order, if it is the current one; without a step the message is
    /// done, and all of its starts are forgotten.
    ///
    /// # Errors
    /// When the store is out of reach.
    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()>;
}
