//! Cancelling a batch.
//!
//! The state store is authoritative: a worker asks it before it starts a message, and repeatedly while it works. An
//! object beside the record of the batch says the same, for a state store that loses its data or forgets the batch. The
//! messages stay in the queue until their turn comes, and then leave it without work; the worker that takes the last one
//! assembles the results that there are.

use std::time::SystemTime;

use cloud_sync::blob::{BlobKey, BlobStore};
use cloud_sync::error::SyncResult;
use cloud_sync::state::BatchPhase;
use serde_json::json;

use super::batch_manifest::rfc3339_text;
use super::object_keys::cancelled_key;
use super::status::BatchView;
use super::{BatchError, BatchService};

/// Marks a batch as cancelled in the blob store, at its [`cancelled_key`], unless it is marked already.
pub(super) async fn mark_cancelled(blob: &dyn BlobStore, key: &BlobKey, id: &str) -> SyncResult<()> {
    if blob.head(key).await?.is_some() {
        return Ok(());
    }
    let mark = json!({ "request_id": id, "cancelled_at": rfc3339_text(SystemTime::now()) });
    blob.put(key, mark.to_string().into(), "application/json").await
}

/// Whether a batch is marked as cancelled in the blob store, at its [`cancelled_key`].
pub(super) async fn is_marked(blob: &dyn BlobStore, key: &BlobKey) -> SyncResult<bool> {
    Ok(blob.head(key).await?.is_some())
}

impl BatchService {
    /// Cancels a batch. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`BatchError::Finished`] when every image has its result, [`BatchError::Unknown`], or [`BatchError::Link`] when
    /// a store is out of reach; then the call can be repeated.
    pub async fn cancel(&self, id: &str) -> Result<BatchView, BatchError> {
        let link = BatchError::link(id);
        // Also recovers a batch that the state store has forgotten, and records its outcome there if it is finished.
        let view = self.status(id).await?;
        let finished = |phase| Err(BatchError::Finished { request_id: id.to_owned(), phase });
        if matches!(view.phase, BatchPhase::Completed | BatchPhase::Failed) {
            return finished(view.phase);
        }
        let spec = match self.state.batch(id).await.map_err(&link)? {
            Some(status) => status.spec,
            None => {
                self.record(id).await?.ok_or_else(|| BatchError::Unknown { request_id: id.to_owned() })?.spec
            }
        };
        let status = self.state.cancel_batch(&spec).await.map_err(&link)?;
        if status.phase != BatchPhase::Cancelled {
            return finished(status.phase);
        }
        mark_cancelled(self.blob.as_ref(), &cancelled_key(id)?, id).await.map_err(&link)?;
        if view.phase != BatchPhase::Cancelled {
            tracing::info!(batch = id, images = spec.total, "batch cancelled");
        }
        Ok(status.into())
    }

    /// Whether the blob store says that a batch is cancelled.
    pub(super) async fn is_marked_cancelled(&self, id: &str) -> Result<bool, BatchError> {
        is_marked(self.blob.as_ref(), &cancelled_key(id)?).await.map_err(BatchError::link(id))
    }
}
