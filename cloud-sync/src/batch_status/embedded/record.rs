//! A batch as it is stored in the file: one JSON object.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::batch_status::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus, ChunkDone, ChunkStart};
use crate::error::{Link, SyncError, SyncResult};

/// A batch. Which delivery completed a chunk is stored in a table of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) spec: BatchSpec,
    pub(super) phase: BatchPhase,
    submitted: bool,
    completed: u64,
    failed: u64,
    chunks_done: u32,
    /// Milliseconds since 1970.
    created: u64,
    pub(super) updated: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<BatchOutcome>,
}

impl Record {
    /// A new batch; `submitted` where it is known from a message, because that is in the queue then.
    pub(super) fn new(spec: &BatchSpec, submitted: bool, now: u64) -> Self {
        Self {
            spec: spec.clone(),
            phase: BatchPhase::Queued,
            submitted,
            completed: 0,
            failed: 0,
            chunks_done: 0,
            created: now,
            updated: now,
            outcome: None,
        }
    }

    pub(super) fn is_expired(&self, ttl: Duration, now: u64) -> bool {
        // Both are rounded down to milliseconds: an equal age may be a fraction short of it.
        u128::from(now.saturating_sub(self.updated)) > ttl.as_millis()
    }

    pub(super) fn is_final(&self) -> bool {
        self.outcome.is_some()
    }

    /// Approximate bytes in memory.
    pub(super) fn weight(&self) -> usize {
        let outcome = self
            .outcome
            .as_ref()
            .map_or(0, |outcome| outcome.results_uri.len() + outcome.results.as_ref().map_or(0, String::len));
        size_of::<Self>() + 2 * self.spec.request_id.len() + self.spec.digest.len() + outcome + 128
    }

    pub(super) fn submit(&mut self) {
        self.submitted = true;
    }

    pub(super) fn start(&mut self) {
        if self.phase == BatchPhase::Queued {
            self.phase = BatchPhase::Processing;
        }
    }

    /// Sets the first outcome only. A cancelled batch stays cancelled.
    pub(super) fn finish(&mut self, outcome: &BatchOutcome) {
        if self.outcome.is_none() {
            if self.phase != BatchPhase::Cancelled {
                self.phase = outcome.phase;
            }
            self.completed = outcome.completed;
            self.failed = outcome.failed;
            self.outcome = Some(BatchOutcome { phase: self.phase, ..outcome.clone() });
        }
    }

    /// Does nothing for a finished batch.
    pub(super) fn cancel(&mut self, now: u64) {
        if self.outcome.is_none() && self.phase != BatchPhase::Cancelled {
            self.phase = BatchPhase::Cancelled;
            self.updated = self.updated.max(now);
        }
    }

    /// Refuses a chunk number out of range: counted, it would stand for a missing chunk.
    pub(super) fn check_chunk(&self, chunk: u32) -> SyncResult<()> {
        let BatchSpec { request_id, chunks, .. } = &self.spec;
        if chunk < *chunks {
            return Ok(());
        }
        let text = format!("batch {request_id:?} has {chunks} chunks: there is no chunk {chunk}");
        Err(SyncError::permanent(Link::Disk, text))
    }

    /// Counts a completed chunk.
    pub(super) fn add_chunk(&mut self, completed: u64, failed: u64) {
        self.start();
        self.chunks_done = self.chunks_done.saturating_add(1);
        // Once finished, the counts are those of the outcome, taken from the results themselves.
        if self.outcome.is_none() {
            self.completed = self.completed.saturating_add(completed);
            self.failed = self.failed.saturating_add(failed);
        }
    }

    pub(super) fn started(&self, created: bool, done_by: Option<String>) -> ChunkStart {
        ChunkStart {
            created,
            done_by,
            finished: self.outcome.is_some(),
            cancelled: self.phase == BatchPhase::Cancelled,
        }
    }

    pub(super) fn done(&self, owner: String) -> ChunkDone {
        let all = self.chunks_done >= self.spec.chunks;
        ChunkDone { owner, chunks_done: self.chunks_done, to_finish: all && self.outcome.is_none() }
    }

    pub(super) fn status(&self) -> BatchStatus {
        BatchStatus {
            spec: self.spec.clone(),
            phase: self.phase,
            submitted: self.submitted,
            completed: self.completed,
            failed: self.failed,
            chunks_done: self.chunks_done,
            created: time(self.created),
            updated: time(self.updated),
            outcome: self.outcome.clone(),
        }
    }
}

fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis)
}
