//! The end of a batch: one object with all results, the outcome in the state store, and the summary that is published.

use std::collections::BTreeSet;

use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, ChunkDone};
use cloud_sync::blob::BlobKey;
use cloud_sync::error::SyncResult;
use cloud_sync::event::BatchSummary;
use cloud_sync::queue::Delivery;

use super::chunk::{ChunkState, StoredIn};
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::batch_manifest::mark_cancelled;
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;
use crate::batch::result_store::{StoredResults, Tally};

/// Following chunks that are checked before all parts are listed.
const MAX_CHECKS: u32 = 8;

impl Worker {
    /// Finishes the batch if the chunk that is done now was its last. Returns the summary where this delivery is the
    /// one to publish it.
    pub(super) async fn finish(
        &self,
        chunk: &ChunkState<'_>,
        done: &ChunkDone,
    ) -> Result<Option<BatchSummary>, ChunkError> {
        let (spec, cancelled) = (chunk.spec(), chunk.claimed.cancelled);
        let outcome = if spec.chunks == 1 {
            let tally = Tally::of(&chunk.items, self.inline(spec))?;
            Some(self.outcome(&object_keys::results_key(&spec.request_id)?, tally))
        } else if chunk.claimed.finished {
            self.known_outcome(spec, cancelled).await?
        } else if chunk.stored_in == Some(StoredIn::Results) {
            self.outcome_of_results(spec, cancelled).await?
        } else if done.to_finish {
            self.assemble(spec, cancelled).await?
        } else {
            self.recover_from_objects(&chunk.message, cancelled).await?
        };
        let Some(outcome) = outcome else { return Ok(None) };
        let finish = || self.state.finish_batch(spec, &outcome);
        let phase = self.retry.retry_forever("recording that a batch is finished", finish).await;
        self.stats.budgets.forget(&spec.request_id);
        if phase == BatchPhase::Cancelled {
            self.mark_cancelled(spec).await?;
        }
        if spec.chunks > 1 {
            let delete = || self.results.delete_parts(&spec.request_id);
            self.retry.retry_forever("removing parts", delete).await;
        }
        if !self.claim_summary(chunk.delivery(), spec).await {
            return Ok(None);
        }
        WorkerStats::count(&self.stats.batches);
        let status = match phase {
            BatchPhase::Cancelled => {
                WorkerStats::count(&self.stats.cancelled);
                "cancelled"
            }
            BatchPhase::Failed => "failed",
            _ => "completed",
        };
        Ok(Some(BatchSummary {
            request_id: spec.request_id.clone(),
            status: status.to_owned(),
            total: spec.total,
            completed: outcome.completed,
            failed: outcome.failed,
            results_uri: outcome.results_uri,
        }))
    }

    /// The outcome of a batch that is complete though the state store has not counted all of its chunks: it may have
    /// lost its data, or have been restored from an older copy. The objects are the truth: every part is written before
    /// any worker checks for the others, so whichever checks last finds all of them.
    async fn recover_from_objects(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<Option<BatchOutcome>, ChunkError> {
        let spec = &message.spec;
        let key = object_keys::results_key(&spec.request_id)?;
        let results = self.retry.retry_forever("looking for results", || self.blob.head(&key));
        let (results, parts) = tokio::join!(results, self.has_all_parts(message));
        if results.is_none() && !parts? {
            return Ok(None);
        }
        // By now they may be counted, as the last two chunks of a batch are often completed at once: then the worker that
        // completed the last one assembles the parts. The steps after the outcome may still be left to do for a worker
        // that has just taken over.
        let known = self.known(spec).await.filter(|known| known.chunks_done >= spec.chunks);
        if let Some(known) = known {
            return Ok(known.outcome);
        }
        tracing::warn!(
            request_id = spec.request_id,
            "the state store has lost part of a batch: finishing it from its objects"
        );
        if results.is_none() {
            return self.assemble(spec, cancelled).await;
        }
        match self.results_of_batch(message, cancelled).await? {
            StoredResults::Match(_) => self.outcome_of_results(spec, cancelled).await,
            StoredResults::Foreign | StoredResults::Damaged | StoredResults::Missing => Ok(None),
        }
    }

    async fn has_all_parts(&self, message: &BatchMessage) -> Result<bool, ChunkError> {
        let spec = &message.spec;
        // Chunks are completed about in their order, so until the end one of the next is missing. Checking those costs
        // less than a listing of thousands.
        for next in 1..=MAX_CHECKS.min(spec.chunks - 1) {
            let part = object_keys::part_key(&spec.request_id, (message.chunk + next) % spec.chunks)?;
            if self.retry.retry_forever("looking for results", || self.blob.head(&part)).await.is_none() {
                return Ok(false);
            }
        }
        let parts = self.retry.retry_forever("listing results", || self.part_keys(spec)).await;
        for chunk in 0..spec.chunks {
            if !parts.contains(object_keys::part_key(&spec.request_id, chunk)?.as_str()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn part_keys(&self, spec: &BatchSpec) -> SyncResult<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let mut listing = self.results.parts(&spec.request_id);
        while let Some(page) = listing.next_page().await? {
            keys.extend(page.into_iter().map(|object| object.key));
        }
        Ok(keys)
    }

    /// Joins the parts to the one object of results. None when they are not all there any more and no other worker has
    /// joined them.
    async fn assemble(&self, spec: &BatchSpec, cancelled: bool) -> Result<Option<BatchOutcome>, ChunkError> {
        let whole = self.retry.retry_forever("creating a file for results", || self.results.new_file()).await;
        let mut length = 0;
        for chunk in 0..spec.chunks {
            let key = object_keys::part_key(&spec.request_id, chunk)?;
            let fetched = self.retry.retry_forever("reading results", || self.results.fetch(&key)).await;
            let Some((part, _)) = fetched else {
                // Another worker has seen the end of the batch too and was faster.
                let outcome = self.outcome_of_results(spec, cancelled).await?;
                if outcome.is_none() {
                    tracing::error!(request_id = spec.request_id, chunk, "the results of a chunk are gone");
                }
                return Ok(outcome);
            };
            let append = || self.results.append(&whole, length, &part, spec, chunk);
            let appended = self.retry.retry_forever("joining results", append).await;
            length = appended.length;
            if appended.replaced > 0 {
                tracing::error!(request_id = spec.request_id, chunk, "results of a chunk are damaged");
                WorkerStats::count(&self.stats.damaged_results);
                let key = object_keys::damaged_part_key(&spec.request_id, chunk)?;
                let put = || self.blob.put_file(&key, &part, "application/octet-stream");
                self.retry.retry_forever("storing damaged results", put).await;
            }
        }
        let count = || self.results.count(&whole, self.inline(spec));
        let tally = self.retry.retry_forever("counting results", count).await;
        let key = object_keys::results_key(&spec.request_id)?;
        let put = || self.results.put_file(&key, &whole);
        self.retry.retry_forever("writing the results of a batch", put).await;
        Ok(Some(self.outcome(&key, tally)))
    }

    async fn known_outcome(
        &self,
        spec: &BatchSpec,
        cancelled: bool,
    ) -> Result<Option<BatchOutcome>, ChunkError> {
        match self.known(spec).await.and_then(|status| status.outcome) {
            Some(outcome) => Ok(Some(outcome)),
            None => self.outcome_of_results(spec, cancelled).await,
        }
    }

    /// The outcome that the results object itself shows; None when there is none or it is another batch's. The results
    /// of a batch that is `cancelled` need not be of all images.
    pub(super) async fn outcome_of_results(
        &self,
        spec: &BatchSpec,
        cancelled: bool,
    ) -> Result<Option<BatchOutcome>, ChunkError> {
        let key = object_keys::results_key(&spec.request_id)?;
        let tally = || self.results.tally(&key, self.inline(spec));
        let tally = self.retry.retry_forever("counting results", tally).await;
        let tally = tally.filter(|tally| cancelled || tally.images() == spec.total);
        Ok(tally.map(|tally| self.outcome(&key, tally)))
    }

    /// Up to how many results of a batch its outcome holds inline: all or none.
    fn inline(&self, spec: &BatchSpec) -> u64 {
        if spec.total <= self.config.inline_results { spec.total } else { 0 }
    }

    fn outcome(&self, key: &BlobKey, tally: Tally) -> BatchOutcome {
        BatchOutcome {
            phase: if tally.completed == 0 { BatchPhase::Failed } else { BatchPhase::Completed },
            completed: tally.completed,
            failed: tally.failed,
            results_uri: self.blob.uri(key),
            results: tally.inline,
        }
    }

    /// Marks a batch as cancelled in the blob store, where the API could not: the state store forgets it after a time.
    async fn mark_cancelled(&self, spec: &BatchSpec) -> Result<(), ChunkError> {
        let key = object_keys::cancelled_key(&spec.request_id)?;
        let mark = || mark_cancelled(self.blob.as_ref(), &key, &spec.request_id);
        self.retry.retry_forever("marking a batch as cancelled", mark).await;
        Ok(())
    }

    /// Whether this delivery publishes the summary. Several may see the end of a batch, and each again after a crash;
    /// the first to claim it has it, whatever happens. The claim is kept as the one chunk of a batch whose id no
    /// client can choose.
    async fn claim_summary(&self, delivery: &Delivery, spec: &BatchSpec) -> bool {
        if spec.chunks == 1 {
            return true;
        }
        let claim = BatchSpec {
            request_id: format!("{}~summary", spec.request_id),
            total: 0,
            chunks: 1,
            digest: String::new(),
        };
        let complete = || self.state.complete_chunk(&claim, 0, &delivery.position, 0, 0);
        self.retry.retry_forever("claiming the summary of a batch", complete).await.owner == delivery.position
    }
}
