//! Requests about a submitted batch: its status, its results, its cancellation.
//!
//! A status is one call to the state store, or, where that has lost or forgotten the batch or part of it, what the blob
//! store has of it.
//!
//! The state store is authoritative for a cancellation: a worker asks it before it starts a message, and repeatedly while
//! it works. A mark beside the record of the batch says the same, for a state store that loses its data or forgets the
//! batch. The messages stay in the queue until their turn comes, and then leave it without work; the worker that takes the
//! last one assembles the results that there are.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus};
use cloud_sync::blob::{BlobInfo, BlobKey};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::sync::OwnedSemaphorePermit;

use super::batch_manifest::{BatchRecord, mark_cancelled};
use super::object_keys::{cancelled_key, check_any_id, results_key};
use super::result_store::Tally;
use super::{BatchError, BatchService, MAX_DOWNLOADS, MAX_RECOVERIES};

/// A batch that has no outcome and has not changed for this long may be finished without the state store knowing it,
/// because its data was restored from an older copy.
const QUIET: Duration = Duration::from_secs(30);

/// Most bytes of parts that one status reads. Beyond it the counts are lower bounds.
const MAX_PARTS_BYTES: u64 = 64 << 20;

/// Longest wait for a recovery slot, and for the check whether a quiet batch has results.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(1);

/// A batch as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchView {
    /// Its id.
    pub request_id: String,
    /// Where it stands.
    pub phase: BatchPhase,
    /// Images.
    pub total: u64,
    /// Images classified so far.
    pub completed: u64,
    /// Images that have failed permanently so far.
    pub failed: u64,
    /// When it was accepted, if known.
    pub created: Option<SystemTime>,
    /// When it last changed, if known.
    pub updated: Option<SystemTime>,
    /// Where the results are, when it is finished.
    pub results_uri: Option<String>,
    /// The results as a JSON array, when it is finished and has few images.
    pub results: Option<String>,
}

impl From<BatchStatus> for BatchView {
    fn from(status: BatchStatus) -> Self {
        let counts = status.outcome.as_ref().map(|outcome| (outcome.completed, outcome.failed));
        let (completed, failed) = counts.unwrap_or((status.completed, status.failed));
        let (results_uri, results) = match status.outcome {
            Some(BatchOutcome { results_uri, results, .. }) => (Some(results_uri), results),
            None => (None, None),
        };
        Self {
            request_id: status.spec.request_id,
            phase: status.phase,
            total: status.spec.total,
            completed,
            failed,
            created: Some(status.created),
            updated: Some(status.updated),
            results_uri,
            results,
        }
    }
}

/// The results of a batch: one line of JSON per image, in the order of the images.
#[derive(Debug)]
pub struct ResultsFile {
    /// The file, at its beginning.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    _path: TempPath,
    _permit: OwnedSemaphorePermit,
}

impl BatchService {
    /// How far a batch is.
    ///
    /// # Errors
    /// [`BatchError::Unknown`], or [`BatchError::Link`] when a store is out of reach.
    pub async fn status(&self, id: &str) -> Result<BatchView, BatchError> {
        check_id(id)?;
        match self.state.batch(id).await.map_err(BatchError::link(id))? {
            Some(status) if status.outcome.is_none() && is_long_ago(status.updated) => {
                Ok(self.check_quiet(status).await)
            }
            Some(status) => Ok(status.into()),
            None => self.recover(id).await,
        }
    }

    /// The results of a finished batch, as a file.
    ///
    /// # Errors
    /// [`BatchError::NotFinished`], [`BatchError::Unknown`], [`BatchError::Busy`] at the limit of downloads, or
    /// [`BatchError::Link`].
    pub async fn results(&self, id: &str) -> Result<ResultsFile, BatchError> {
        check_id(id)?;
        let busy = || BatchError::Busy { what: "downloads of results", limit: MAX_DOWNLOADS };
        let permit = Arc::clone(&self.downloads).try_acquire_owned().map_err(|_| busy())?;
        let fetched = self.results.fetch(&results_key(id)?).await.map_err(BatchError::results(id))?;
        let Some((path, bytes)) = fetched else {
            // Either error says why there are none.
            self.status(id).await?;
            return Err(BatchError::NotFinished { request_id: id.to_owned() });
        };
        // The blob store may have replaced the file under this path by another.
        let file = File::open(&path).await.map_err(|e| self.spool.failed(e))?;
        Ok(ResultsFile { file, bytes, _path: path, _permit: permit })
    }

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

    /// The status of a batch that the state store does not know, from the blob store.
    async fn recover(&self, id: &str) -> Result<BatchView, BatchError> {
        let link = BatchError::link(id);
        // Bounded, as this reads whole objects.
        let permit = tokio::time::timeout(RECOVERY_TIMEOUT, self.recoveries.acquire()).await;
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

    /// The status of a batch that has not changed for [`QUIET`]: that of its results, if there are any. Where that can't
    /// be checked, the state store's status is the answer.
    async fn check_quiet(&self, status: BatchStatus) -> BatchView {
        match self.finished_by_results(&status).await {
            Ok(Some(view)) => view,
            Ok(None) => status.into(),
            Err(error) => {
                let batch = status.spec.request_id.as_str();
                tracing::debug!(batch, %error, "could not check whether a quiet batch has results");
                status.into()
            }
        }
    }

    async fn finished_by_results(&self, status: &BatchStatus) -> Result<Option<BatchView>, BatchError> {
        let (spec, created) = (status.spec.clone(), status.created);
        // A batch that was cancelled need not have results of all images.
        let cancelled = status.phase == BatchPhase::Cancelled;
        let id = spec.request_id.clone();
        let Ok(_permit) = self.recoveries.try_acquire() else { return Ok(None) };
        let key = results_key(&id)?;
        let Ok(head) = tokio::time::timeout(RECOVERY_TIMEOUT, self.blob.head(&key)).await else {
            return Ok(None);
        };
        // The worker records the outcome of results that were written just now.
        let Some(info) =
            head.map_err(BatchError::link(&id))?.filter(|info| info.modified.is_none_or(is_long_ago))
        else {
            return Ok(None);
        };
        let tally = self.tally(&id, &key).await?;
        match tally.filter(|tally| cancelled || tally.images() == spec.total) {
            Some(tally) => self.record_outcome(spec, Some(created), &tally, &info).await.map(Some),
            None => Ok(None),
        }
    }

    /// The status of a batch that has a results object, with what its record says, if there is one.
    async fn finished(
        &self,
        id: &str,
        known: Option<(BatchSpec, SystemTime)>,
        info: &BlobInfo,
    ) -> Result<BatchView, BatchError> {
        let tally = self.tally(id, &results_key(id)?).await?.unwrap_or_default();
        let found = tally.images();
        // A batch of another producer has no record.
        let created = known.as_ref().map(|(_, created)| *created);
        let spec = known.map_or_else(
            || BatchSpec { request_id: id.to_owned(), total: found, chunks: 1, digest: String::new() },
            |(spec, _)| spec,
        );
        self.record_outcome(spec, created, &tally, info).await
    }

    /// The status of a batch that has results. It is recorded in the state store, so that the next request need not
    /// count them again.
    async fn record_outcome(
        &self,
        spec: BatchSpec,
        created: Option<SystemTime>,
        tally: &Tally,
        info: &BlobInfo,
    ) -> Result<BatchView, BatchError> {
        let phase = match tally.completed {
            _ if self.is_marked_cancelled(&spec.request_id).await? => {
                if let Err(error) = self.state.cancel_batch(&spec).await {
                    tracing::debug!(
                        batch = spec.request_id,
                        error = error.in_full(),
                        "a recovered cancellation was not recorded"
                    );
                }
                BatchPhase::Cancelled
            }
            0 => BatchPhase::Failed,
            _ => BatchPhase::Completed,
        };
        let uri = self.blob.uri(&results_key(&spec.request_id)?);
        let (completed, failed) = (tally.completed, tally.failed);
        let outcome = BatchOutcome { phase, completed, failed, results_uri: uri.clone(), results: None };
        // If this fails, the next request counts again.
        let phase = match self.state.finish_batch(&spec, &outcome).await {
            Ok(phase) => phase,
            Err(error) => {
                tracing::debug!(
                    batch = spec.request_id,
                    error = error.in_full(),
                    "a recovered status was not recorded"
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

    /// The status of a batch that has no results yet, from its record and parts.
    async fn unfinished(&self, record: BatchRecord) -> Result<BatchView, BatchError> {
        let id = &record.spec.request_id;
        let (mut completed, mut failed) = (0, 0);
        let mut updated: Option<SystemTime> = Some(record.created);
        let (mut parts, mut bytes) = (0u64, 0u64);
        let mut listing = self.results.parts(id);
        while let Some(page) = listing.next_page().await.map_err(BatchError::link(id))? {
            for part in page {
                parts += 1;
                updated = updated.max(part.modified);
                bytes += part.bytes;
                if bytes > MAX_PARTS_BYTES {
                    continue;
                }
                // A part that is gone by now has become part of the results.
                if let Some(tally) = self.tally(id, &BlobKey::new(part.key)?).await? {
                    completed += tally.completed;
                    failed += tally.failed;
                }
            }
        }
        let phase = if parts == 0 { BatchPhase::Queued } else { BatchPhase::Processing };
        Ok(BatchView {
            phase,
            total: record.spec.total,
            completed,
            failed,
            created: Some(record.created),
            updated,
            results_uri: None,
            results: None,
            request_id: record.spec.request_id,
        })
    }

    /// Counts the results in an object; `None` when there is none.
    async fn tally(&self, id: &str, key: &BlobKey) -> Result<Option<Tally>, BatchError> {
        self.results.tally(key, 0).await.map_err(BatchError::results(id))
    }
}

/// An id that no batch can have is unknown.
fn check_id(id: &str) -> Result<(), BatchError> {
    check_any_id(id).map_err(|_| BatchError::Unknown { request_id: id.chars().take(128).collect() })
}

fn is_long_ago(time: SystemTime) -> bool {
    SystemTime::now().duration_since(time).unwrap_or_default() > QUIET
}
