//! The results of a chunk in the stores: found where an earlier delivery has written them, else written. First their object,
//! which other deliveries find, then the count in the state store, which decides whose chunk it is.

use cloud_sync::batch_status::ChunkDone;

use super::chunk::{ChunkState, StoredIn};
use super::claim::Claimed;
use super::{ChunkError, Worker};
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;
use crate::batch::result_store::{StoredResults, Tally, to_lines};

impl Worker {
    /// Writes the results of a chunk, unless those of an earlier delivery were found, and a dead letter of the images
    /// that failed.
    pub(super) async fn persist(&self, chunk: &mut ChunkState<'_>) -> Result<(), ChunkError> {
        if chunk.stored_in.is_none() {
            let is_partial = chunk.is_partial();
            if is_partial && !chunk.claimed.cancelled {
                return Err(ChunkError::Revived);
            }
            self.write(chunk).await?;
            if is_partial {
                // Another delivery may have written other results of a cancelled chunk meanwhile: the object as it is
                // now is what counts.
                self.find_results(chunk).await?;
            }
        }
        if chunk.preset.is_none() {
            self.store_failures(chunk).await?;
        }
        Ok(())
    }

    /// Writes the part of the chunk, or at once the results of a batch of one chunk.
    async fn write(&self, chunk: &mut ChunkState<'_>) -> Result<(), ChunkError> {
        let spec = chunk.spec();
        let (key, stored_in) = match spec.chunks {
            1 => (object_keys::results_key(&spec.request_id)?, StoredIn::Results),
            _ => (object_keys::part_key(&spec.request_id, chunk.message.chunk)?, StoredIn::Part),
        };
        let lines = to_lines(&chunk.items)?;
        let put = || self.results.put(&key, lines.clone());
        self.retry.retry_forever("writing results", put).await;
        chunk.stored_in = Some(stored_in);
        Ok(())
    }

    /// Records in the state store that the chunk is done. None when another delivery completed it first.
    pub(super) async fn complete(&self, chunk: &ChunkState<'_>) -> Result<Option<ChunkDone>, ChunkError> {
        let (number, position) = (chunk.message.chunk, &chunk.delivery().position);
        let Tally { completed, failed, .. } = Tally::of(&chunk.items, 0)?;
        let complete = || self.state.complete_chunk(chunk.spec(), number, position, completed, failed);
        let done = self.retry.retry_forever("recording that a chunk is done", complete).await;
        Ok((done.owner == *position).then_some(done))
    }

    /// Takes over the results of an earlier delivery of the message, where there may be any.
    pub(super) async fn find_results(&self, chunk: &mut ChunkState<'_>) -> Result<(), ChunkError> {
        let Claimed { completed, finished, cancelled, may_have_results } = chunk.claimed;
        // Where the state store knows the batch and no delivery has completed the chunk, there is most likely nothing to
        // find. The results of a cancelled batch are always looked for: no other step finds them.
        if !(completed || finished || may_have_results || cancelled) {
            return Ok(());
        }
        let mut found = None;
        if let StoredResults::Match(items) = self.results_of_part(&chunk.message, cancelled).await? {
            found = Some((items, StoredIn::Part));
        } else if let StoredResults::Match(items) = self.results_of_batch(&chunk.message, cancelled).await? {
            found = Some((items, StoredIn::Results));
        }
        if let Some((items, stored_in)) = found {
            (chunk.items, chunk.stored_in) = (items, Some(stored_in));
        }
        Ok(())
    }

    /// Whether the results that are stored for the message are of other images.
    pub(super) async fn has_foreign_results(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<bool, ChunkError> {
        let stored = match self.results_of_part(message, cancelled).await? {
            StoredResults::Damaged | StoredResults::Missing => {
                self.results_of_batch(message, cancelled).await?
            }
            stored => stored,
        };
        Ok(matches!(stored, StoredResults::Foreign))
    }

    /// What the part of its chunk has for a message. A batch of one chunk has no parts.
    async fn results_of_part(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<StoredResults, ChunkError> {
        if message.spec.chunks == 1 {
            return Ok(StoredResults::Missing);
        }
        let key = object_keys::part_key(&message.spec.request_id, message.chunk)?;
        let read = || self.results.stored(&key, message.first, message, cancelled);
        Ok(self.retry.retry_forever("reading results", read).await)
    }

    /// What the results of the whole batch have for a message.
    pub(super) async fn results_of_batch(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<StoredResults, ChunkError> {
        let key = object_keys::results_key(&message.spec.request_id)?;
        let read = || self.results.stored(&key, 0, message, cancelled);
        Ok(self.retry.retry_forever("reading results", read).await)
    }
}
