//! The end of a message: its results are published and it leaves the queue, in one step. Then the files of a finished
//! batch are removed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloud_sync::event::{BatchSummary, EVENT_VERSION, Event, EventBody};
use cloud_sync::queue::{ResultRecord, Settled};
use ulid::Ulid;

use super::chunk::ChunkState;
use super::isolation::Attempt;
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;
use crate::batch::result_store::delete_prefix;

impl Worker {
    /// The results of a chunk, and the summary of its batch if it was the last, as records of the results topic. The same
    /// message yields the same ids, whichever worker processes it.
    pub(super) fn records(
        &self,
        chunk: &mut ChunkState<'_>,
        summary: Option<BatchSummary>,
    ) -> Result<Vec<ResultRecord>, ChunkError> {
        let items = std::mem::take(&mut chunk.items);
        let chunk = &*chunk;
        let items = items.into_iter().map(|item| {
            let id = record_id(chunk, &item.index.to_le_bytes());
            self.record(chunk, id, EventBody::BatchItem(item))
        });
        let summary =
            summary.map(|summary| self.record(chunk, record_id(chunk, b"batch"), EventBody::Batch(summary)));
        items.chain(summary).collect()
    }

    fn record(&self, chunk: &ChunkState<'_>, id: Ulid, body: EventBody) -> Result<ResultRecord, ChunkError> {
        let message = &chunk.message;
        // The results of one camera keep their order, and else those of one batch.
        let key = message.camera.as_deref().unwrap_or(&message.spec.request_id).to_owned();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = UNIX_EPOCH + Duration::from_millis(millis(since));
        let event = Event { v: EVENT_VERSION, id, time, node: self.settings.node.clone(), body };
        Ok(ResultRecord { id: id.to_string(), key, payload: event.to_json()?.into() })
    }

    /// Acknowledges a message whose chunk another message has completed and publishes.
    pub(super) async fn ack_duplicate(&self, attempt: &Attempt<'_>) {
        tracing::debug!(position = attempt.delivery.position, "duplicate message: its chunk is done");
        WorkerStats::count(&self.stats.duplicates);
        self.settle(attempt, Vec::new()).await;
    }

    /// Publishes results and takes the message out of the queue. Its processing ends before: while it waits for earlier
    /// messages to be published, another is processed, and it does not count as started.
    pub(super) async fn settle(&self, attempt: &Attempt<'_>, mut records: Vec<ResultRecord>) {
        let delivery = attempt.delivery;
        self.end_work(attempt, true).await;
        attempt.free_slot();
        let mut backoff = self.retry.backoff();
        loop {
            let error = match self.queue.settle(delivery, records.clone()).await {
                Ok(Settled::Done) => return,
                Ok(Settled::Lost) => {
                    tracing::debug!(position = delivery.position, "message has moved to another worker");
                    WorkerStats::count(&self.stats.lost);
                    return;
                }
                Err(error) => error,
            };
            let refused = error.record().and_then(|id| records.iter().position(|record| record.id == id));
            match refused {
                Some(refused) => {
                    // It remains in the results object.
                    let id = &records[refused].id;
                    tracing::error!(id, error = error.in_full(), "the results topic refuses a result");
                    WorkerStats::count(&self.stats.refused_results);
                    records.remove(refused);
                }
                None => self.retry.pause(&mut backoff, "publishing results", &error).await,
            }
        }
    }

    /// Removes the files of a batch that is finished and settled, where the store is this box's own disk. Not before:
    /// a redelivered message may need them.
    pub(super) async fn remove_files(&self, message: &BatchMessage) {
        if !self.settings.remove_files || !message.names_files() {
            return;
        }
        let id = &message.spec.request_id;
        if let Err(error) = delete_prefix(self.blob.as_ref(), &object_keys::files_prefix(id)).await {
            // The garbage collector removes them with the results.
            tracing::warn!(
                batch = id,
                error = error.in_full(),
                "could not remove the files of a finished batch"
            );
        }
    }
}

/// An id made of the time of the submission and 80 bits that depend on the batch and `seed` alone.
fn record_id(chunk: &ChunkState<'_>, seed: &[u8]) -> Ulid {
    let time = chunk.message.submitted().or(chunk.delivery().time).unwrap_or(UNIX_EPOCH);
    let mut hasher = blake3::Hasher::new();
    hasher.update(chunk.spec().request_id.as_bytes()).update(&[0]).update(seed);
    let mut random = [0; 16];
    hasher.finalize_xof().fill(&mut random[6..]);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ulid::from_parts(millis(since), u128::from_be_bytes(random))
}

fn millis(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
