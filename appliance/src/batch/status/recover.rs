//! The status of a batch that the state store does not know, put together from what lies in the blob store.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus};
use cloud_sync::blob::{BlobInfo, BlobKey};

use super::{BatchView, is_long_ago};
use crate::batch::batch_manifest::BatchRecord;
use crate::batch::lines::{Line, next_line};
use crate::batch::object_keys::{parts_prefix, results_key};
use crate::batch::{BatchError, BatchService, MAX_RECOVERIES};

/// Most bytes of parts that one status reads. Beyond it the counts say at least how many.
const MAX_PARTS_BYTES: u64 = 64 << 20;

/// Longest wait for the others that look into the blob store, and longest look at whether a quiet batch has results.
const WAIT: Duration = Duration::from_secs(1);

/// How the images in some results came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    completed: u64,
    failed: u64,
}

impl BatchService {
    /// Looks for a batch in the blob store.
    pub(super) async fn recover(&self, id: &str) -> Result<BatchView, BatchError> {
        let link = BatchError::link(id);
        // Only some at once: this reads whole objects.
        let permit = tokio::time::timeout(WAIT, self.recoveries.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(BatchError::Busy { what: "look-ups of forgotten batches", limit: MAX_RECOVERIES });
        };
        let record = self.record(id).await?;
        if let Some(info) = self.blob.head(&results_key(id)?).await.map_err(&link)? {
            let known = record.map(|record| (record.spec, record.created));
            return self.finished(id, known, &info).await;
        }
        match record {
            Some(record) => {
                let mut view = self.unfinished(record).await?;
                if self.is_marked_cancelled(id).await? {
                    view.phase = BatchPhase::Cancelled;
                }
                Ok(view)
            }
            None => Err(BatchError::Unknown { request_id: id.to_owned() }),
        }
    }

    /// The status of a batch that has been quiet for long: of its results, if there are any. What stands in the way of
    /// looking is no reason not to answer.
    pub(super) async fn finished_unnoticed(&self, status: BatchStatus) -> BatchView {
        match self.look_at_results(&status).await {
            Ok(Some(view)) => view,
            Ok(None) => status.into(),
            Err(error) => {
                let batch = status.spec.request_id.as_str();
                tracing::debug!(batch, %error, "whether a quiet batch has results could not be told");
                status.into()
            }
        }
    }

    async fn look_at_results(&self, status: &BatchStatus) -> Result<Option<BatchView>, BatchError> {
        let (spec, created) = (status.spec.clone(), status.created);
        // A batch that was cancelled need not have results of all images.
        let cancelled = status.phase == BatchPhase::Cancelled;
        let id = spec.request_id.clone();
        let Ok(_permit) = self.recoveries.try_acquire() else { return Ok(None) };
        let key = results_key(&id)?;
        let Ok(head) = tokio::time::timeout(WAIT, self.blob.head(&key)).await else { return Ok(None) };
        // What has only just been written is the worker's to note.
        let Some(info) =
            head.map_err(BatchError::link(&id))?.filter(|info| info.modified.is_none_or(is_long_ago))
        else {
            return Ok(None);
        };
        let counts = self.count_object(&id, &key).await?;
        match counts.filter(|counts| cancelled || counts.completed + counts.failed == spec.total) {
            Some(counts) => self.noted(spec, Some(created), counts, &info).await.map(Some),
            None => Ok(None),
        }
    }

    async fn finished(
        &self,
        id: &str,
        known: Option<(BatchSpec, SystemTime)>,
        info: &BlobInfo,
    ) -> Result<BatchView, BatchError> {
        let counts = self.count_object(id, &results_key(id)?).await?.unwrap_or_default();
        let found = counts.completed + counts.failed;
        // A batch of another producer has no record.
        let created = known.as_ref().map(|(_, created)| *created);
        let spec = known.map_or_else(
            || BatchSpec { request_id: id.to_owned(), total: found, chunks: 1, digest: String::new() },
            |(spec, _)| spec,
        );
        self.noted(spec, created, counts, info).await
    }

    /// The status of a batch of which there are results. The state store is told, so that the next who asks need not
    /// count again.
    async fn noted(
        &self,
        spec: BatchSpec,
        created: Option<SystemTime>,
        counts: Counts,
        info: &BlobInfo,
    ) -> Result<BatchView, BatchError> {
        let phase = match counts.completed {
            _ if self.is_marked_cancelled(&spec.request_id).await? => {
                if let Err(error) = self.state.cancel_batch(&spec).await {
                    tracing::debug!(
                        batch = spec.request_id,
                        error = error.in_full(),
                        "a recovered cancellation was not kept"
                    );
                }
                BatchPhase::Cancelled
            }
            0 => BatchPhase::Failed,
            _ => BatchPhase::Completed,
        };
        let uri = self.blob.uri(&results_key(&spec.request_id)?);
        let Counts { completed, failed } = counts;
        let outcome = BatchOutcome { phase, completed, failed, results_uri: uri.clone(), results: None };
        // If it does not work, they count again.
        let phase = match self.state.finish_batch(&spec, &outcome).await {
            Ok(phase) => phase,
            Err(error) => {
                tracing::debug!(
                    batch = spec.request_id,
                    error = error.in_full(),
                    "a recovered status was not kept"
                );
                phase
            }
        };
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

/// Counts the lines of results; blocking. A line that is damaged tells of an image that has no result.
fn count(path: &Path) -> io::Result<Counts> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let mut counts = Counts::default();
    let mut line = Vec::new();
    while next_line(&mut file, &mut line)? {
        match Line::parse(&line) {
            Some(line) if line.is_ok() => counts.completed += 1,
            _ => counts.failed += 1,
        }
    }
    Ok(counts)
}
