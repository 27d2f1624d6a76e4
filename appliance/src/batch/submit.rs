//! Submitting a batch, in an order in which an interrupted submission can be resumed: the id is reserved in the state
//! store, then files and record are stored, then the work is queued, and only then is the batch marked as submitted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloud_sync::batch_status::{BatchPhase, BatchSpec, BatchStatus, Created};
use cloud_sync::error::SyncError;
use cloud_sync::queue::QueueFull;
use tokio::task::JoinSet;
use ulid::Ulid;

use super::batch_manifest::BatchRecord;
use super::chunker::{Jobs, Source, chunks};
use super::object_keys::{batch_key, cancelled_key, file_key, files_prefix, results_key};
use super::parsing::{Form, Images, Intake};
use super::result_store::delete_prefix;
use super::status::BatchView;
use super::{BatchError, BatchService};

/// Concurrent uploads of files to the blob store, per submission.
const UPLOADS: usize = 8;
/// What a URL of the form `blob:<index>` takes at most, with its quotes.
const FILE_URL_BYTES: u64 = 32;

/// A batch that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub request_id: String,
    /// Where it stands; not always queued, if the batch was sent before.
    pub phase: BatchPhase,
    /// Images.
    pub total: u64,
    /// Whether it had been accepted before.
    pub repeated: bool,
}

impl Accepted {
    fn repeated(spec: &BatchSpec, phase: BatchPhase) -> Self {
        Self { request_id: spec.request_id.clone(), phase, total: spec.total, repeated: true }
    }
}

/// The id of a batch that this process is submitting, until dropped.
struct SubmitGuard<'a> {
    service: &'a BatchService,
    id: String,
}

impl Drop for SubmitGuard<'_> {
    fn drop(&mut self) {
        self.service.submitting.lock().remove(&self.id);
    }
}

impl BatchService {
    /// Accepts a batch: when this returns, its work is in the queue. Must be run to its end even if the client disconnects.
    ///
    /// # Errors
    /// [`BatchError`]; after [`BatchError::Link`] the same submission can be sent again and is resumed.
    pub async fn submit(&self, intake: Intake) -> Result<Accepted, BatchError> {
        let given = intake.options.request_id.clone();
        let guard = self.reserve(given.clone().unwrap_or_else(|| Ulid::generate().to_string()))?;
        let id = &guard.id;
        let recorded = match given {
            None => None,
            Some(_) => match self.known(id, &intake.digest).await? {
                Known::Accepted(accepted) => return Ok(accepted),
                Known::Recorded(record) => Some(record),
                Known::Nothing => None,
            },
        };
        let longest = match &intake.images {
            Images::Urls(list) => list.longest,
            Images::Files(_) => FILE_URL_BYTES,
        };
        // A recorded batch is cut as it was then: some of its messages may be in the queue.
        let (spec, created, was_recorded) = match recorded {
            Some(record) => (record.spec, record.created, true),
            None => {
                let chunks = chunks(intake.total, self.config.chunk, longest);
                let (request_id, digest) = (id.clone(), intake.digest.clone());
                (BatchSpec { request_id, total: intake.total, chunks, digest }, now(), false)
            }
        };
        let created_now = self.state.create_batch(&spec).await.map_err(BatchError::link(id))?;
        let mut phase = BatchPhase::Queued;
        let (spec, created, is_new) = match created_now {
            Created::New => {
                // The state store has lost the batch, and with it that it is cancelled.
                if was_recorded && self.is_marked_cancelled(id).await? {
                    phase = self.state.cancel_batch(&spec).await.map_err(BatchError::link(id))?.phase;
                }
                (spec, created, !was_recorded)
            }
            Created::Existing(status) => match classify(*status, &intake.digest)? {
                Existing::Accepted(accepted) => return Ok(accepted),
                Existing::Incomplete(status) => {
                    phase = status.phase;
                    (status.spec, status.created, false)
                }
            },
        };
        let (camera, top_k) = (intake.options.camera.clone(), intake.options.top_k);
        let record = BatchRecord { spec, camera, top_k, created };
        if let Err(error) = self.fill(&record, &intake.images).await {
            // After a link's failure the same request resumes from here; after any other there is nothing to resume.
            if is_new && !matches!(error, BatchError::Link { .. }) {
                self.undo(id).await;
            }
            return Err(error);
        }
        let spec = record.spec;
        self.state.batch_submitted(id).await.map_err(BatchError::link(id))?;
        tracing::info!(batch = id, images = spec.total, messages = spec.chunks, "batch accepted");
        Ok(Accepted { request_id: spec.request_id, phase, total: spec.total, repeated: false })
    }

    /// Reserves an id in this process: two concurrent requests with one id would overwrite each other's files.
    fn reserve(&self, id: String) -> Result<SubmitGuard<'_>, BatchError> {
        if self.submitting.lock().insert(id.clone()) {
            return Ok(SubmitGuard { service: self, id });
        }
        Err(BatchError::BeingSubmitted { request_id: id })
    }

    /// Whether a batch of this id was accepted before, even if the state store has forgotten it since.
    async fn known(&self, id: &str, digest: &str) -> Result<Known, BatchError> {
        let link = BatchError::link(id);
        let Some(record) = self.record(id).await? else {
            // A batch that came in as a message has no record; its results must not be overwritten.
            return match self.blob.head(&results_key(id)?).await.map_err(&link)? {
                Some(_) => Err(BatchError::IdTaken { request_id: id.to_owned() }),
                None => Ok(Known::Nothing),
            };
        };
        if record.spec.digest != digest {
            return Err(BatchError::IdTaken { request_id: id.to_owned() });
        }
        if let Some(status) = self.state.batch(id).await.map_err(&link)? {
            return match classify(status, digest)? {
                Existing::Accepted(accepted) => Ok(Known::Accepted(accepted)),
                Existing::Incomplete(_) => Ok(Known::Recorded(record)),
            };
        }
        if self.blob.head(&results_key(id)?).await.map_err(&link)?.is_none() {
            return Ok(Known::Recorded(record));
        }
        let BatchView { phase, .. } = self.status(id).await?;
        Ok(Known::Accepted(Accepted::repeated(&record.spec, phase)))
    }

    /// Stores files and record, then queues the work.
    async fn fill(&self, record: &BatchRecord, images: &Images) -> Result<(), BatchError> {
        let id = &record.spec.request_id;
        let link = BatchError::link(id);
        if let Images::Files(form) = images {
            self.store_files(id, form).await?;
        }
        let json = record.to_json().map_err(|e| BatchError::Internal(e.to_string()))?;
        self.blob.put(&batch_key(id)?, json, "application/json").await.map_err(&link)?;
        let source = match images {
            Images::Urls(list) => Source::Urls(list.drain().map_err(|e| self.spool.failed(e))?),
            Images::Files(_) => Source::Files,
        };
        let queued = self.queue.submit(&mut Jobs::new(record, source)).await;
        queued.map(drop).map_err(|e| not_queued(id, e))
    }

    /// Stores the files of a form, up to [`UPLOADS`] at once.
    async fn store_files(&self, id: &str, form: &Form) -> Result<(), BatchError> {
        let mut form = form.drain().await?;
        let mut uploads = JoinSet::new();
        let mut index = 0;
        let stored = |done: Result<Result<(), SyncError>, _>| match done {
            Ok(stored) => stored.map_err(BatchError::link(id)),
            Err(error) => Err(BatchError::Internal(format!("a file of batch {id} was not stored: {error}"))),
        };
        let filled: Result<(), BatchError> = async {
            while let Some(file) = form.next_file(&self.spool).await? {
                if uploads.len() == UPLOADS
                    && let Some(done) = uploads.join_next().await
                {
                    stored(done)?;
                }
                let (blob, key) = (Arc::clone(&self.blob), file_key(id, index)?);
                uploads.spawn(async move { blob.put_file(&key, &file, "application/octet-stream").await });
                index += 1;
            }
            while let Some(done) = uploads.join_next().await {
                stored(done)?;
            }
            Ok(())
        }
        .await;
        // An upload still in flight would finish after the rest has been cleaned up.
        while uploads.join_next().await.is_some() {}
        filled
    }

    /// Removes what a batch that was not accepted has left. What can't be removed now is overwritten when the batch is
    /// sent again, and is left over otherwise.
    async fn undo(&self, id: &str) {
        if let Err(error) = self.try_undo(id).await {
            tracing::warn!(batch = id, error = %error, "objects of a refused batch could not be removed");
        }
    }

    async fn try_undo(&self, id: &str) -> Result<(), BatchError> {
        let link = BatchError::link(id);
        // The record first: without it the batch is unknown once the state store has forgotten it.
        self.blob.delete(&batch_key(id)?).await.map_err(&link)?;
        self.blob.delete(&cancelled_key(id)?).await.map_err(&link)?;
        self.state.forget_batch(id).await.map_err(&link)?;
        delete_prefix(self.blob.as_ref(), &files_prefix(id)).await.map(drop).map_err(&link)
    }
}

/// What the blob store has of a batch before it is submitted.
enum Known {
    /// Nothing.
    Nothing,
    /// Its record; all of its work may or may not be in the queue.
    Recorded(BatchRecord),
    /// It was accepted.
    Accepted(Accepted),
}

/// What the state store's entry of a batch means for a new submission.
enum Existing {
    /// It is being worked on, or finished.
    Accepted(Accepted),
    /// Its submission was interrupted.
    Incomplete(BatchStatus),
}

/// Classifies the batch that has this id.
fn classify(status: BatchStatus, digest: &str) -> Result<Existing, BatchError> {
    if status.spec.digest != digest {
        return Err(BatchError::IdTaken { request_id: status.spec.request_id });
    }
    // A batch that was cancelled before its work was queued is only finished by that work.
    if status.submitted || status.outcome.is_some() {
        return Ok(Existing::Accepted(Accepted::repeated(&status.spec, status.phase)));
    }
    Ok(Existing::Incomplete(status))
}

/// The error of a queue that did not accept the work.
fn not_queued(id: &str, source: SyncError) -> BatchError {
    match QueueFull::of(&source).map(|full| full.max_bytes) {
        Some(_) if source.is_transient() => BatchError::QueueFull { request_id: id.to_owned(), source },
        Some(limit) => BatchError::TooMuch { limit },
        None => BatchError::Link { request_id: id.to_owned(), source },
    }
}

/// Now, in whole milliseconds, as times are written.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
