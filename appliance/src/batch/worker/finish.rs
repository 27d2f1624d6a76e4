//! The end of a batch: one object with all results, the outcome in the state store, and the summary that is published.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchSpec, ChunkDone};
use cloud_sync::blob::BlobKey;
use cloud_sync::event::BatchSummary;
use cloud_sync::queue::{Delivery, ResultRecord};

use super::look::{Found, Seen};
use super::results::{Kept, LINES, Tally, on_disk};
use super::{ChunkError, Worker, WorkerStats, join};
use crate::batch::cancel::cancelled_mark;
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;

/// So many of the next chunks are looked at before all parts are listed.
const MAX_CHECKS: u32 = 8;

impl Worker {
    /// Finishes the batch if the chunk that is done now was its last. Returns the summary where this delivery is the
    /// one to publish it.
    pub(super) async fn finish(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        seen: &Seen,
        done: &ChunkDone,
        found: &Found,
    ) -> Result<Option<ResultRecord>, ChunkError> {
        let (spec, cancelled) = (&message.spec, seen.start.cancelled);
        let outcome = if spec.chunks == 1 {
            let tally = Tally::of(&found.items, self.inline(spec))?;
            Some(self.outcome(&object_keys::results_key(&spec.request_id)?, tally))
        } else if seen.start.finished {
            self.known_outcome(spec, cancelled).await?
        } else if found.in_results {
            self.outcome_of_results(spec, cancelled).await?
        } else if done.to_finish {
            self.assemble(spec, cancelled).await?
        } else {
            self.recover_from_objects(message, cancelled).await?
        };
        let Some(outcome) = outcome else { return Ok(None) };
        let finish = || self.state.finish_batch(spec, &outcome);
        let phase = self.retry.retry_forever("noting that a batch is finished", finish).await;
        self.stats.budgets.forget(&spec.request_id);
        if phase == BatchPhase::Cancelled {
            self.mark_cancelled(spec).await?;
        }
        self.delete_parts(spec).await?;
        if !self.claim_summary(delivery, spec).await {
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
        let summary = BatchSummary {
            request_id: spec.request_id.clone(),
            status: status.to_owned(),
            total: spec.total,
            completed: outcome.completed,
            failed: outcome.failed,
            results_uri: outcome.results_uri,
        };
        self.summary(delivery, message, summary).map(Some)
    }

    /// The outcome of a batch that is complete though the state store has not counted all of its chunks: it may have
    /// lost its data, or have come back as it was a while ago. The objects don't: every part is written before anybody
    /// looks, so whoever looks last finds all of them.
    async fn recover_from_objects(
        &self,
        message: &BatchMessage,
        cancelled: bool,
    ) -> Result<Option<BatchOutcome>, ChunkError> {
        let spec = &message.spec;
        let key = object_keys::results_key(&spec.request_id)?;
        let results = self.retry.retry_forever("looking for results", || self.blob.head(&key));
        let (results, parts) = tokio::join!(results, self.all_parts_are_there(message));
        if results.is_none() && !parts? {
            return Ok(None);
        }
        // By now they may be counted, as the last two chunks of a batch are often done at once: then whoever completed
        // the last one puts the parts together.
        // What comes after the outcome may still be left to do for whoever has just taken over.
        let known = self.known(spec).await.filter(|known| known.chunks_done >= spec.chunks);
        if let Some(known) = known {
            return Ok(known.outcome);
        }
        tracing::warn!(
            request_id = spec.request_id,
            "finishing a batch of which the state store has lost something"
        );
        if results.is_none() {
            return self.assemble(spec, cancelled).await;
        }
        match self.kept(&key, 0, message, cancelled).await {
            Kept::Theirs(_) => self.outcome_of_results(spec, cancelled).await,
            Kept::Others | Kept::Damaged | Kept::Nothing => Ok(None),
        }
    }

    async fn all_parts_are_there(&self, message: &BatchMessage) -> Result<bool, ChunkError> {
        let spec = &message.spec;
        // Chunks are done about in their order, so until the end one of the next is missing. To look costs less than a
        // list of thousands.
        for next in 1..=MAX_CHECKS.min(spec.chunks - 1) {
            let part = object_keys::part_key(&spec.request_id, (message.chunk + next) % spec.chunks)?;
            if self.retry.retry_forever("looking for results", || self.blob.head(&part)).await.is_none() {
                return Ok(false);
            }
        }
        let parts = self.parts(spec).await;
        for chunk in 0..spec.chunks {
            if !parts.contains(object_keys::part_key(&spec.request_id, chunk)?.as_str()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn parts(&self, spec: &BatchSpec) -> BTreeSet<String> {
        let prefix = object_keys::parts_prefix(&spec.request_id);
        let (mut parts, mut next) = (BTreeSet::new(), None);
        loop {
            let list = || self.blob.list(&prefix, next.as_deref());
            let page = self.retry.retry_forever("listing results", list).await;
            parts.extend(page.objects.into_iter().map(|object| object.key));
            match page.next {
                Some(more) => next = Some(more),
                None => return parts,
            }
        }
    }

    /// Puts the parts together into the one object of results. None when they are not all there any more and nobody
    /// else has done it.
    async fn assemble(&self, spec: &BatchSpec, cancelled: bool) -> Result<Option<BatchOutcome>, ChunkError> {
        let whole = Arc::new(self.spool_file().await);
        for chunk in 0..spec.chunks {
            let Some(part) = self.spooled(&object_keys::part_key(&spec.request_id, chunk)?).await else {
                // Another worker has seen the end of the batch too and was faster.
                let outcome = self.outcome_of_results(spec, cancelled).await?;
                if outcome.is_none() {
                    tracing::error!(request_id = spec.request_id, chunk, "the results of a chunk are gone");
                }
                return Ok(outcome);
            };
            if self.append(&whole, &part, spec, chunk).await > 0 {
                self.keep_part(spec, chunk, &part).await?;
            }
        }
        let tally = self.tally(&whole, self.inline(spec)).await;
        let key = object_keys::results_key(&spec.request_id)?;
        let put = || self.blob.put_file(&key, &whole, LINES);
        self.retry.retry_forever("writing the results of a batch", put).await;
        Ok(Some(self.outcome(&key, tally)))
    }

    /// Appends a part to the whole. Returns how many lines had to be put in the place of what is damaged. A try that
    /// failed in the middle is taken back first.
    async fn append(&self, whole: &Path, part: &Path, spec: &BatchSpec, chunk: u32) -> u64 {
        let (whole, part) = (whole.to_path_buf(), part.to_path_buf());
        let length = || on_disk(whole.clone(), |whole| std::fs::metadata(whole).map(|m| m.len()));
        let length = if chunk == 0 { 0 } else { self.retry.retry_forever("joining results", length).await };
        let append = || {
            let (part, spec) = (part.clone(), spec.clone());
            on_disk(whole.clone(), move |whole| {
                let to = std::fs::OpenOptions::new().append(true).open(whole)?;
                to.set_len(length)?;
                join::append(&part, to, &spec, chunk)
            })
        };
        self.retry.retry_forever("joining results", append).await
    }

    /// Keeps a part that is damaged.
    async fn keep_part(&self, spec: &BatchSpec, chunk: u32, part: &Path) -> Result<(), ChunkError> {
        tracing::error!(request_id = spec.request_id, chunk, "results of a chunk are damaged");
        WorkerStats::count(&self.stats.damaged_results);
        let key = object_keys::damaged_part_key(&spec.request_id, chunk)?;
        let put = || self.blob.put_file(&key, part, "application/octet-stream");
        self.retry.retry_forever("keeping damaged results", put).await;
        Ok(())
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

    /// The outcome as the results object itself tells it; None when there is none or it is another batch's. The results
    /// of a batch that is `cancelled` need not be of all images.
    pub(super) async fn outcome_of_results(
        &self,
        spec: &BatchSpec,
        cancelled: bool,
    ) -> Result<Option<BatchOutcome>, ChunkError> {
        let key = object_keys::results_key(&spec.request_id)?;
        let Some(file) = self.spooled(&key).await else { return Ok(None) };
        let tally = self.tally(&file, self.inline(spec)).await;
        Ok((cancelled || tally.images() == spec.total).then(|| self.outcome(&key, tally)))
    }

    async fn tally(&self, file: &Path, inline: u64) -> Tally {
        let count = || on_disk(file.to_path_buf(), move |file| Tally::of_file(file, inline));
        self.retry.retry_forever("counting results", count).await
    }

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

    /// Notes beside the record of a batch that it was cancelled, where who cancelled it could not: the state store forgets
    /// it after a time.
    async fn mark_cancelled(&self, spec: &BatchSpec) -> Result<(), ChunkError> {
        let key = object_keys::cancelled_key(&spec.request_id)?;
        let head =
            self.retry.retry_forever("asking whether a batch is cancelled", || self.blob.head(&key)).await;
        if head.is_none() {
            let mark = cancelled_mark(&spec.request_id);
            let put = || self.blob.put(&key, mark.clone(), "application/json");
            self.retry.retry_forever("noting that a batch is cancelled", put).await;
        }
        Ok(())
    }

    /// Removes what the batch needed only on its way.
    async fn delete_parts(&self, spec: &BatchSpec) -> Result<(), ChunkError> {
        if spec.chunks == 1 {
            return Ok(());
        }
        for part in self.parts(spec).await {
            // What lies there under a name that is no key of ours is not ours.
            let Ok(key) = BlobKey::new(part) else { continue };
            self.retry.retry_forever("removing parts", || self.blob.delete(&key)).await;
        }
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
