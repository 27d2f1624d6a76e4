//! The claim on a chunk: whether the stores leave it to this delivery. Asked before the images are processed, and again
//! before the results are written.

use cloud_sync::batch_status::{BatchPhase, BatchSpec, BatchStatus};

use super::chunk::ChunkState;
use super::{ChunkError, Worker};
use crate::batch::batch_manifest::{BatchRecord, is_marked};
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;
use crate::batch::result_store::StoredResults;

/// What the stores said at a claim.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claimed {
    /// Whether this delivery has completed the chunk before.
    pub(super) completed: bool,
    /// Whether the batch has its outcome.
    pub(super) finished: bool,
    /// Whether the batch is cancelled.
    pub(super) cancelled: bool,
    /// Whether there may be results of the message although the state store does not know of them.
    pub(super) may_have_results: bool,
}

/// Who gets a chunk.
pub(super) enum Claim {
    /// This delivery.
    Granted,
    /// Another message, which has completed it: this one only has to leave the queue.
    Duplicate,
    /// Nobody: the message can't be processed, for this reason.
    Refused(String),
}

/// What the blob store has under a batch's id.
enum Objects {
    /// Objects of another batch.
    Foreign,
    /// The batch's own, or none.
    Own {
        /// Whether there is an object of results.
        results: bool,
        /// Whether the batch was cancelled.
        cancelled: bool,
    },
}

impl Worker {
    /// Claims the chunk of a message: its id may belong to another batch, its chunk to another delivery. Finds the
    /// results of an earlier delivery, where there may be any.
    pub(super) async fn claim(&self, chunk: &mut ChunkState<'_>) -> Result<Claim, ChunkError> {
        let message = &chunk.message;
        let spec = &message.spec;
        let taken = || {
            let reason = format!("request_id: {:?} belongs to another batch already", spec.request_id);
            Ok(Claim::Refused(reason))
        };
        // Only one message can have an id that is its position in the queue.
        let may_be_taken = !object_keys::is_synthetic(&spec.request_id);
        let is_others = |known: &Option<BatchStatus>| {
            may_be_taken && known.as_ref().is_some_and(|known| known.spec != *spec)
        };
        // Before anything is recorded: a message that is refused leaves no trace in the state store.
        let mut known = self.known(spec).await;
        if is_others(&known) {
            return taken();
        }
        let is_new = known.is_none();
        let mut may_have_results = is_new && spec.chunks > 1;
        if is_new && may_be_taken {
            match self.objects(message).await? {
                Objects::Foreign => return taken(),
                Objects::Own { results, cancelled } => {
                    may_have_results |= results;
                    if cancelled {
                        // The state store has lost the batch, and with it that it is cancelled.
                        let cancel = || self.state.cancel_batch(spec);
                        self.retry.retry_forever("recording that a batch is cancelled", cancel).await;
                    }
                }
            }
        }
        let start = || self.state.start_chunk(spec, message.chunk);
        let start = self.retry.retry_forever("recording that a chunk is started", start).await;
        if is_new && !start.created {
            known = self.known(spec).await;
            if is_others(&known) {
                return taken();
            }
        }
        let position = &chunk.delivery().position;
        if start.done_by.as_ref().is_some_and(|owner| owner != position) {
            // Either the same message again or another with the same id: their images differ.
            let is_foreign = may_be_taken && self.has_foreign_results(message, start.cancelled).await?;
            return if is_foreign { taken() } else { Ok(Claim::Duplicate) };
        }
        let (finished, cancelled) = (start.finished, start.cancelled);
        chunk.claimed = Claimed { completed: start.done_by.is_some(), finished, cancelled, may_have_results };
        if chunk.stored_in.is_none() {
            self.find_results(chunk).await?;
        }
        Ok(Claim::Granted)
    }

    /// Checks whether the message may name files that were posted, unless it has its results or needs none. An id that
    /// another client's files are stored under must not be enough to see what is on them.
    pub(super) async fn check_files(&self, chunk: &mut ChunkState<'_>) -> Result<(), ChunkError> {
        let to_compute = chunk.stored_in.is_none() && !chunk.claimed.cancelled;
        chunk.owns_files = to_compute
            && chunk.message.names_files()
            && self.matches_record(chunk.spec()).await? == Some(true);
        Ok(())
    }

    /// What the state store knows of a batch.
    pub(super) async fn known(&self, spec: &BatchSpec) -> Option<BatchStatus> {
        let known = || self.state.batch(&spec.request_id);
        self.retry.retry_forever("reading the status of a batch", known).await
    }

    /// What lies under the id of a batch that the state store does not know: it forgets batches after a time, and
    /// their results stay.
    async fn objects(&self, message: &BatchMessage) -> Result<Objects, ChunkError> {
        let spec = &message.spec;
        let key = object_keys::results_key(&spec.request_id)?;
        let mark = object_keys::cancelled_key(&spec.request_id)?;
        let head = self.retry.retry_forever("looking for results", || self.blob.head(&key));
        let marked = || is_marked(self.blob.as_ref(), &mark);
        let marked = self.retry.retry_forever("checking whether a batch is cancelled", marked);
        let (record, head, cancelled) = tokio::join!(self.matches_record(spec), head, marked);
        let results = head.is_some();
        let own = match (record?, results) {
            (Some(own), _) => own,
            (None, false) => true,
            (None, true) => match self.results_of_batch(message, cancelled).await? {
                StoredResults::Match(_) => self.outcome_of_results(spec, cancelled).await?.is_some(),
                // Damaged results may be another batch's.
                StoredResults::Foreign | StoredResults::Damaged => false,
                StoredResults::Missing => true,
            },
        };
        Ok(if own { Objects::Own { results, cancelled } } else { Objects::Foreign })
    }

    /// Whether the batch is the one that was recorded under its id when it was posted; None when none was.
    async fn matches_record(&self, spec: &BatchSpec) -> Result<Option<bool>, ChunkError> {
        let key = object_keys::batch_key(&spec.request_id)?;
        let read = || BatchRecord::read(self.blob.as_ref(), &key);
        let record = self.retry.retry_forever("reading the record of a batch", read).await;
        Ok(record.map(|record| record.is_ok_and(|record| record.spec == *spec)))
    }

    /// Whether a batch is cancelled, as far as the state store answers now.
    pub(super) async fn is_cancelled(&self, spec: &BatchSpec) -> bool {
        let known = self.state.batch(&spec.request_id).await;
        matches!(known, Ok(Some(BatchStatus { phase: BatchPhase::Cancelled, .. })))
    }
}
