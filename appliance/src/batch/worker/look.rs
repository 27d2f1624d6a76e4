//! What the stores say of a message before its images are worked on, and again before its results are written.

use cloud_sync::batch_status::{BatchPhase, BatchSpec, BatchStatus, ChunkStart};
use cloud_sync::event::BatchItem;
use cloud_sync::queue::Delivery;

use super::results::Kept;
use super::{ChunkError, Worker};
use crate::batch::batch_manifest::{self, BatchRecord};
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;

/// What the stores say before the work.
pub(super) struct Seen {
    pub(super) start: ChunkStart,
    /// Whether there may be results of the message although the state store does not say so.
    may_have_results: bool,
}

/// What becomes of a message.
pub(super) enum Look {
    /// It is to be worked on.
    Work(Seen),
    /// Another message has done its chunk: it only has to leave the queue.
    Duplicate,
    /// It can't be worked on, for this reason.
    Refused(String),
}

/// What lies under a batch's id in the blob store.
enum Objects {
    /// What another batch has left.
    Others,
    /// Its own, or nothing.
    Own {
        /// Whether there is an object of results.
        results: bool,
        /// Whether the batch was cancelled.
        cancelled: bool,
    },
}

/// Results of a message, and where they come from.
pub(super) struct Found {
    pub(super) items: Vec<BatchItem>,
    /// Whether they stand in the results of the whole batch already.
    pub(super) in_results: bool,
}

impl Worker {
    /// Whether the message is to be worked on: its id may be another batch's, its chunk another delivery's.
    pub(super) async fn look(&self, delivery: &Delivery, message: &BatchMessage) -> Result<Look, ChunkError> {
        let spec = &message.spec;
        let taken = || {
            let reason = format!("request_id: {:?} is another batch's already", spec.request_id);
            Ok(Look::Refused(reason))
        };
        // Only one message can have an id that is its place.
        let may_be_taken = !object_keys::is_synthetic(&spec.request_id);
        let others = |known: &Option<BatchStatus>| {
            may_be_taken && known.as_ref().is_some_and(|known| known.spec != *spec)
        };
        // Before anything is noted: a message that is refused leaves no trace in the state store.
        let mut known = self.known(spec).await;
        if others(&known) {
            return taken();
        }
        let is_new = known.is_none();
        let mut may_have_results = is_new && spec.chunks > 1;
        if is_new && may_be_taken {
            match self.objects(message).await? {
                Objects::Others => return taken(),
                Objects::Own { results, cancelled } => {
                    may_have_results |= results;
                    if cancelled {
                        // The state store has lost the batch, and with it that it is cancelled.
                        let cancel = || self.state.cancel_batch(spec);
                        self.retry.retry_forever("noting that a batch is cancelled", cancel).await;
                    }
                }
            }
        }
        let start = || self.state.start_chunk(spec, message.chunk);
        let start = self.retry.retry_forever("noting that a chunk is begun", start).await;
        if is_new && !start.created {
            known = self.known(spec).await;
            if others(&known) {
                return taken();
            }
        }
        match &start.done_by {
            Some(owner) if *owner != delivery.position => {
                // Either the same message again or another with the same id: the images tell.
                let kept = || self.kept_anywhere(message, start.cancelled);
                if may_be_taken && matches!(kept().await?, Some(Kept::Others)) {
                    return taken();
                }
                Ok(Look::Duplicate)
            }
            _ => Ok(Look::Work(Seen { start, may_have_results })),
        }
    }

    pub(super) async fn known(&self, spec: &BatchSpec) -> Option<BatchStatus> {
        let known = || self.state.batch(&spec.request_id);
        self.retry.retry_forever("asking for a batch", known).await
    }

    /// What lies under the id of a batch that the state store does not know: it forgets batches after a time, and
    /// their results stay.
    async fn objects(&self, message: &BatchMessage) -> Result<Objects, ChunkError> {
        let spec = &message.spec;
        let key = object_keys::results_key(&spec.request_id)?;
        let mark = object_keys::cancelled_key(&spec.request_id)?;
        let head = self.retry.retry_forever("looking for results", || self.blob.head(&key));
        let mark = self.retry.retry_forever("asking whether a batch is cancelled", || self.blob.head(&mark));
        let (record, head, mark) = tokio::join!(self.is_of_record(spec), head, mark);
        let (results, cancelled) = (head.is_some(), mark.is_some());
        let own = match (record?, results) {
            (Some(own), _) => own,
            (None, false) => true,
            (None, true) => match self.kept(&key, 0, message, cancelled).await {
                Kept::Theirs(_) => self.outcome_of_results(spec, cancelled).await?.is_some(),
                // What is damaged may be another batch's.
                Kept::Others | Kept::Damaged => false,
                Kept::Nothing => true,
            },
        };
        Ok(if own { Objects::Own { results, cancelled } } else { Objects::Others })
    }

    /// Whether the batch is the one that was recorded under its id when it was posted; None when none was.
    pub(super) async fn is_of_record(&self, spec: &BatchSpec) -> Result<Option<bool>, ChunkError> {
        let key = object_keys::batch_key(&spec.request_id)?;
        let get = || self.blob.get(&key, batch_manifest::MAX_BYTES);
        let json = self.retry.retry_forever("reading the record of a batch", get).await;
        Ok(json.map(|json| {
            serde_json::from_slice::<BatchRecord>(&json).is_ok_and(|record| record.spec == *spec)
        }))
    }

    /// Whether a batch is cancelled, as far as the state store can say now.
    pub(super) async fn is_cancelled(&self, spec: &BatchSpec) -> bool {
        let known = self.state.batch(&spec.request_id).await;
        matches!(known, Ok(Some(BatchStatus { phase: BatchPhase::Cancelled, .. })))
    }

    /// The results of an earlier delivery, where there may be any.
    pub(super) async fn found(
        &self,
        message: &BatchMessage,
        seen: &Seen,
        position: &str,
    ) -> Result<Option<Found>, ChunkError> {
        let own = seen.start.done_by.as_deref() == Some(position);
        // Where the state store knows the batch and no one has done the chunk, there is most likely nothing to find.
        // Those that a cancelled batch has are found by nobody else.
        let cancelled = seen.start.cancelled;
        if !(own || seen.start.finished || seen.may_have_results || cancelled) {
            return Ok(None);
        }
        let spec = &message.spec;
        let in_results = if spec.chunks == 1 {
            true
        } else {
            let part = object_keys::part_key(&spec.request_id, message.chunk)?;
            match self.kept(&part, message.first, message, cancelled).await {
                Kept::Theirs(items) => return Ok(Some(Found { items, in_results: false })),
                Kept::Others | Kept::Damaged | Kept::Nothing => true,
            }
        };
        match self.kept(&object_keys::results_key(&spec.request_id)?, 0, message, cancelled).await {
            Kept::Theirs(items) => Ok(Some(Found { items, in_results })),
            Kept::Others | Kept::Damaged | Kept::Nothing => Ok(None),
        }
    }

    /// What the part or the whole results have for the message; None when there is neither.
    async fn kept_anywhere(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<Option<Kept>, ChunkError> {
        let spec = &message.spec;
        let part = object_keys::part_key(&spec.request_id, message.chunk)?;
        if spec.chunks > 1
            && let kept @ (Kept::Theirs(_) | Kept::Others) =
                self.kept(&part, message.first, message, cancelled).await
        {
            return Ok(Some(kept));
        }
        match self.kept(&object_keys::results_key(&spec.request_id)?, 0, message, cancelled).await {
            Kept::Nothing => Ok(None),
            kept => Ok(Some(kept)),
        }
    }
}
