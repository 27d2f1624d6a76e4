//! What the blob store says of a batch itself: its record, from which it is recovered when the state store has lost or
//! forgotten it, and the mark of one that was cancelled.

use std::time::SystemTime;

use bytes::Bytes;
use cloud_sync::batch_status::BatchSpec;
use cloud_sync::blob::{BlobKey, BlobStore};
use cloud_sync::error::{Link, SyncError, SyncResult};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::object_keys::{batch_key, cancelled_key};
use super::{BatchError, BatchService};

/// Largest record that is read.
const MAX_BYTES: u64 = 64 << 10;

/// `batches/<id>/batch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRecord {
    /// What was submitted.
    #[serde(flatten)]
    pub spec: BatchSpec,
    /// The camera that took the pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub camera: Option<String>,
    /// Predictions per image, where the client chose a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// When it was accepted.
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
}

impl BatchRecord {
    /// As the object's content.
    ///
    /// # Errors
    /// When `created` is before 1970.
    pub fn to_json(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// Reads the record under `key`, a [`batch_key`]. `None` when there is none; the inner error is of one that is
    /// damaged.
    pub(super) async fn read(
        blob: &dyn BlobStore,
        key: &BlobKey,
    ) -> SyncResult<Option<Result<Self, serde_json::Error>>> {
        let json = blob.get(key, MAX_BYTES).await?;
        Ok(json.map(|json| serde_json::from_slice(&json)))
    }
}

/// Marks a batch as cancelled in the blob store, at its [`cancelled_key`], unless it is marked already.
pub(super) async fn mark_cancelled(blob: &dyn BlobStore, key: &BlobKey, id: &str) -> SyncResult<()> {
    if is_marked(blob, key).await? {
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
    /// The record of a batch that was posted; `None` when there is none.
    pub(super) async fn record(&self, id: &str) -> Result<Option<BatchRecord>, BatchError> {
        let record = BatchRecord::read(self.blob.as_ref(), &batch_key(id)?).await;
        let record = record.map_err(BatchError::link(id))?;
        record.transpose().map_err(|error| {
            let what = format!("the record of batch {id} can't be read");
            let source = SyncError::permanent(Link::Disk, what).because(error);
            BatchError::Link { request_id: id.to_owned(), source }
        })
    }

    /// Whether the blob store says that a batch is cancelled.
    pub(super) async fn is_marked_cancelled(&self, id: &str) -> Result<bool, BatchError> {
        is_marked(self.blob.as_ref(), &cancelled_key(id)?).await.map_err(BatchError::link(id))
    }
}

/// A time as it is written in records, events and replies: RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339_text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(|e| D::Error::custom(format!("created = {text:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_record_reads_back_and_lives_with_newer_fields() {
        let spec = BatchSpec { request_id: "b".into(), total: 3, chunks: 1, digest: "ab".into() };
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let record = BatchRecord { spec, camera: None, top_k: Some(3), created };
        let json = record.to_json().unwrap();
        assert_eq!(
            &json[..],
            br#"{"request_id":"b","total":3,"chunks":1,"digest":"ab","top_k":3,"created":"2023-11-14T22:13:20.123Z"}"#
        );
        assert_eq!(serde_json::from_slice::<BatchRecord>(&json).unwrap(), record);
        let newer = String::from_utf8(json.to_vec()).unwrap().replace("\"total\"", "\"later\":1,\"total\"");
        assert_eq!(serde_json::from_str::<BatchRecord>(&newer).unwrap(), record);
    }
}
