//! A batch that is not wanted any more.
//!
//! The state store has the say: a worker asks it before it begins with a message, and again and again while it works.
//! An object beside the record of the batch says the same, for a state store that loses its data or forgets the batch.
//! The messages stay in the queue until their turn comes, and leave it then without work; whoever takes the last one
//! puts together the results that there are.

use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::batch_status::BatchPhase;
use serde_json::json;

use super::batch_manifest::{self, BatchRecord, rfc3339_text};
use super::object_keys::cancelled_key;
use super::status::BatchView;
use super::submit::unreadable_record;
use super::{BatchError, BatchService, object_keys};

/// What the object says that marks a batch as cancelled.
pub(super) fn cancelled_mark(id: &str) -> Bytes {
    json!({ "request_id": id, "cancelled_at": rfc3339_text(SystemTime::now()) }).to_string().into()
}

impl BatchService {
    /// Cancels a batch. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`BatchError::Finished`] when every image has its result, [`BatchError::Unknown`], or [`BatchError::Link`] when
    /// a store is out of reach; then the same can be asked for again.
    pub async fn cancel(&self, id: &str) -> Result<BatchView, BatchError> {
        let link = BatchError::link(id);
        // Also finds what the state store has forgotten, and notes it there where it is finished.
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
        let key = cancelled_key(id)?;
        if self.blob.head(&key).await.map_err(&link)?.is_none() {
            self.blob.put(&key, cancelled_mark(id), "application/json").await.map_err(&link)?;
        }
        if view.phase != BatchPhase::Cancelled {
            tracing::info!(batch = id, images = spec.total, "batch cancelled");
        }
        Ok(status.into())
    }

    /// Whether the blob store says that a batch is cancelled.
    pub(super) async fn is_marked_cancelled(&self, id: &str) -> Result<bool, BatchError> {
        let mark = self.blob.head(&cancelled_key(id)?).await;
        Ok(mark.map_err(BatchError::link(id))?.is_some())
    }

    /// The record of a batch that was posted.
    pub(super) async fn record(&self, id: &str) -> Result<Option<BatchRecord>, BatchError> {
        let json = self.blob.get(&object_keys::batch_key(id)?, batch_manifest::MAX_BYTES).await;
        let json = json.map_err(BatchError::link(id))?;
        json.map(|json| serde_json::from_slice(&json).map_err(|e| unreadable_record(id, e))).transpose()
    }
}
