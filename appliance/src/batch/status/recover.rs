//! The status of a batch that the state store does not know, put together from what lies in the blob store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::SystemTime;

use cloud_sync::blob::{BlobInfo, BlobKey};
use cloud_sync::state::{BatchOutcome, BatchPhase, BatchSpec};
use serde::Deserialize;

use super::BatchView;
use crate::batch::layout::{batch_key, parts_prefix, results_key};
use crate::batch::record::{self, BatchRecord};
use crate::batch::submit::unreadable_record;
use crate::batch::{BatchError, BatchService};

/// Longest line of results that is read; a line has at most a URL and the model's labels.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Most bytes of parts that one status reads. Beyond it the counts say at least how many.
const MAX_PARTS_BYTES: u64 = 64 << 20;

/// How the images in some results came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    completed: u64,
    failed: u64,
}

/// The part of a result that is counted.
#[derive(Deserialize)]
struct Line {
    status: String,
}

impl BatchService {
    /// Looks for a batch in the blob store.
    pub(super) async fn recover(&self, id: &str) -> Result<BatchView, BatchError> {
        let link = BatchError::link(id);
        // Only some at once: this reads whole objects. The permit is only missing when the process ends.
        let _permit = self.recoveries.acquire().await.map_err(|e| BatchError::Internal(e.to_string()))?;
        let record = self.blob.get(&batch_key(id)?, record::MAX_BYTES).await.map_err(&link)?;
        let record = record.map(|json| serde_json::from_slice::<BatchRecord>(&json)).transpose();
        let record = record.map_err(|e| unreadable_record(id, e))?;
        if let Some(info) = self.blob.head(&results_key(id)?).await.map_err(&link)? {
            return self.finished(id, record, &info).await;
        }
        match record {
            Some(record) => self.unfinished(record).await,
            None => Err(BatchError::Unknown { request_id: id.to_owned() }),
        }
    }

    async fn finished(
        &self,
        id: &str,
        record: Option<BatchRecord>,
        info: &BlobInfo,
    ) -> Result<BatchView, BatchError> {
        let key = results_key(id)?;
        let counts = self.count_object(id, &key).await?.unwrap_or_default();
        let found = counts.completed + counts.failed;
        // A batch of another producer has no record.
        let created = record.as_ref().map(|record| record.created);
        let spec = record.map_or_else(
            || BatchSpec { request_id: id.to_owned(), total: found, chunks: 1, digest: String::new() },
            |record| record.spec,
        );
        let phase = if counts.completed == 0 { BatchPhase::Failed } else { BatchPhase::Completed };
        let uri = self.blob.uri(&key);
        let Counts { completed, failed } = counts;
        let outcome = BatchOutcome { phase, completed, failed, results_uri: uri.clone(), results: None };
        // So that the next who asks need not count again. If it does not work, they count again.
        if let Err(error) = self.state.finish_batch(&spec, &outcome).await {
            tracing::debug!(batch = id, error = error.in_full(), "a recovered status was not kept");
        }
        Ok(BatchView {
            request_id: spec.request_id,
            phase,
            total: spec.total,
            completed,
            failed,
            created,
            updated: info.modified,
            results_uri: Some(uri),
            results: None,
        })
    }

    async fn unfinished(&self, record: BatchRecord) -> Result<BatchView, BatchError> {
        let id = &record.spec.request_id;
        let mut counts = Counts::default();
        let mut updated: Option<SystemTime> = Some(record.created);
        let (mut next, mut parts, mut bytes) = (None, 0u64, 0u64);
        loop {
            let listed = self.blob.list(&parts_prefix(id), next.as_deref()).await;
            let page = listed.map_err(BatchError::link(id))?;
            for part in page.objects {
                parts += 1;
                updated = updated.max(part.modified);
                bytes += part.bytes;
                if bytes > MAX_PARTS_BYTES {
                    continue;
                }
                // A part that is gone by now has become part of the results.
                if let Some(more) = self.count_object(id, &BlobKey::new(part.key)?).await? {
                    counts.completed += more.completed;
                    counts.failed += more.failed;
                }
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        let phase = if parts == 0 { BatchPhase::Queued } else { BatchPhase::Processing };
        Ok(BatchView {
            phase,
            total: record.spec.total,
            completed: counts.completed,
            failed: counts.failed,
            created: Some(record.created),
            updated,
            results_uri: None,
            results: None,
            request_id: record.spec.request_id,
        })
    }

    async fn count_object(&self, id: &str, key: &BlobKey) -> Result<Option<Counts>, BatchError> {
        let (_, copy) = self.spool.file().await?;
        if self.blob.get_file(key, &copy).await.map_err(BatchError::link(id))?.is_none() {
            return Ok(None);
        }
        let counted = tokio::task::spawn_blocking(move || count(&copy)).await;
        let counted = counted.map_err(|e| BatchError::Internal(e.to_string()))?;
        counted.map(Some).map_err(|e| BatchError::Internal(format!("{key} can't be counted: {e}")))
    }
}

/// Counts the lines of results; blocking.
fn count(path: &Path) -> io::Result<Counts> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let mut counts = Counts::default();
    let mut line = Vec::new();
    while file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        match serde_json::from_slice::<Line>(&line)?.status.as_str() {
            "ok" => counts.completed += 1,
            _ => counts.failed += 1,
        }
        line.clear();
    }
    Ok(counts)
}
