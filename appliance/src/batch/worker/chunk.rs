//! One message, from its bytes to its settlement.

use std::time::Duration;

use cloud_sync::error::SyncResult;
use cloud_sync::event::{BatchItem, ItemOutcome};
use cloud_sync::queue::{ResultRecord, Settled};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::alone::Attempt;
use super::image::{failed, item};
use super::look::{Found, Look};
use super::results::{self, LINES, Tally};
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::message::BatchMessage;
use crate::batch::object_keys;

/// Images of one message in hand at once, for every load that runs: those that wait for their next try or for a lane
/// must not keep the others from being loaded.
const IMAGES_A_LOAD: usize = 4;
/// How often the work on a message asks whether its batch is cancelled.
const CANCELLED_EVERY: Duration = Duration::from_secs(1);
/// How long images in work may go on when their batch is cancelled. One that takes longer has no result.
pub(super) const CANCELLED_GRACE: Duration = Duration::from_secs(5);

/// How the work on a message came out.
enum Done {
    /// It is settled.
    Settled,
    /// It can't be worked on, for this reason.
    Refused(String),
}

/// What there is to do for a message once its chunk is looked up.
enum Prepared {
    /// Its results are there.
    Found(Found),
    /// Its images, unless the batch is cancelled.
    Images {
        cancelled: bool,
        /// Whether they may be files that were posted.
        files: bool,
    },
}

/// What is left to do when a chunk is completed.
enum Completed {
    /// To publish.
    Publish {
        records: Vec<ResultRecord>,
        /// Whether the batch is finished with it.
        finished: bool,
    },
    /// Nothing: another message has done the chunk.
    Duplicate,
    Refused(String),
}

impl Worker {
    /// Works on one message until it is settled.
    pub(super) async fn process(&self, attempt: &Attempt<'_>) -> Result<(), ChunkError> {
        let delivery = attempt.delivery;
        self.ask_for_starts(attempt).await;
        let parse =
            async { Ok(BatchMessage::parse(&delivery.payload, &delivery.position, self.config.max_images)) };
        let reason = match self.in_turn(attempt, None, parse).await? {
            Ok(message) => {
                let mut outcome = None;
                if attempt.is_given_up() {
                    let reason =
                        "the work on the message broke off again and again for a fault of the program";
                    self.store_dead_letter(delivery, reason).await?;
                    outcome = Some(failed("internal", reason));
                }
                match self.work(attempt, &message, outcome).await? {
                    Done::Settled => return Ok(()),
                    Done::Refused(reason) => reason,
                }
            }
            Err(error) => error.to_string(),
        };
        self.store_dead_letter(delivery, &reason).await?;
        let message = BatchMessage::unreadable(&delivery.position);
        let outcome = failed("invalid_message", reason);
        self.work(attempt, &message, Some(outcome)).await.map(|_| ())
    }

    /// Works on a message; with an `outcome` that is the result of each of its images.
    async fn work(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
        outcome: Option<ItemOutcome>,
    ) -> Result<Done, ChunkError> {
        let prepared = match self.in_turn(attempt, None, self.prepare(attempt, message)).await? {
            Ok(prepared) => prepared,
            Err(look) => return self.over(attempt, look).await,
        };
        let (found, items) = match (prepared, &outcome) {
            (Prepared::Found(found), _) => (Some(found), Vec::new()),
            (Prepared::Images { cancelled: true, .. }, _) => (None, Vec::new()),
            (Prepared::Images { files, .. }, None) => (None, self.items(attempt, message, files).await?),
            (Prepared::Images { .. }, Some(outcome)) => {
                let items = (0..message.image_urls.len()).map(|i| item(message, i, outcome.clone()));
                (None, items.collect())
            }
        };
        let complete = self.complete(attempt, message, found, items, outcome.is_none());
        match self.in_turn(attempt, None, complete).await? {
            Completed::Publish { records, finished } => {
                self.settle(attempt, records).await;
                if finished {
                    self.remove_files(message).await;
                }
                Ok(Done::Settled)
            }
            Completed::Duplicate => self.over(attempt, Look::Duplicate).await,
            Completed::Refused(reason) => Ok(Done::Refused(reason)),
        }
    }

    async fn prepare(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
    ) -> Result<Result<Prepared, Look>, ChunkError> {
        let seen = match self.look(attempt.delivery, message).await? {
            Look::Work(seen) => seen,
            over => return Ok(Err(over)),
        };
        if let Some(found) = self.found(message, &seen, &attempt.delivery.position).await? {
            return Ok(Ok(Prepared::Found(found)));
        }
        let cancelled = seen.start.cancelled;
        // An id that somebody else's files lie under must not be enough to see what is on them.
        let files =
            !cancelled && message.names_files() && self.is_of_record(&message.spec).await? == Some(true);
        Ok(Ok(Prepared::Images { cancelled, files }))
    }

    /// Writes the results of a message, unless some are `found`, notes its chunk as done and finishes the batch if it
    /// was the last.
    async fn complete(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
        found: Option<Found>,
        items: Vec<BatchItem>,
        keep_failures: bool,
    ) -> Result<Completed, ChunkError> {
        let (delivery, spec) = (attempt.delivery, &message.spec);
        // Another worker may have had the same message meanwhile; then its results are the ones that count.
        let seen = match self.look(delivery, message).await? {
            Look::Work(seen) => seen,
            Look::Duplicate => return Ok(Completed::Duplicate),
            Look::Refused(reason) => return Ok(Completed::Refused(reason)),
        };
        let found = match found {
            Some(found) => found,
            None => match self.found(message, &seen, &delivery.position).await? {
                Some(found) => found,
                None if items.len() < message.image_urls.len() && !seen.start.cancelled => {
                    return Err(ChunkError::Revived);
                }
                None => {
                    let is_partial = items.len() < message.image_urls.len();
                    let written = self.write(message, items).await?;
                    // Another delivery may have written other results of a cancelled chunk meanwhile: what stands
                    // there now is what counts.
                    let found = match is_partial {
                        true => self.found(message, &seen, &delivery.position).await?,
                        false => None,
                    };
                    found.unwrap_or(written)
                }
            },
        };
        if keep_failures {
            self.keep_failures(delivery, message, &found.items).await?;
        }
        let tally = Tally::of(&found.items, 0)?;
        let complete = || {
            self.state.complete_chunk(spec, message.chunk, &delivery.position, tally.completed, tally.failed)
        };
        let done = self.retry.retry_forever("noting that a chunk is done", complete).await;
        if done.owner != delivery.position {
            return Ok(Completed::Duplicate);
        }
        let summary = self.finish(delivery, message, &seen, &done, &found).await?;
        let mut records = self.records(delivery, message, found.items)?;
        let finished = summary.is_some();
        records.extend(summary);
        Ok(Completed::Publish { records, finished })
    }

    /// Ends the work on a message that is not to be worked on.
    async fn over(&self, attempt: &Attempt<'_>, look: Look) -> Result<Done, ChunkError> {
        if let Look::Refused(reason) = look {
            return Ok(Done::Refused(reason));
        }
        tracing::debug!(position = attempt.delivery.position, "another message has done this chunk");
        WorkerStats::count(&self.stats.duplicates);
        self.settle(attempt, Vec::new()).await;
        Ok(Done::Settled)
    }

    /// Results of the images, in their order; many in hand at once. Fewer than there are images when the batch is
    /// cancelled meanwhile.
    async fn items(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
        files: bool,
    ) -> Result<Vec<BatchItem>, ChunkError> {
        if attempt.is_suspect() {
            return self.items_alone(attempt, message, files).await;
        }
        let window = self.config.concurrent_fetches.max(1) * IMAGES_A_LOAD;
        let mut running = FuturesUnordered::new();
        let mut items = Vec::with_capacity(message.image_urls.len());
        let mut offsets = 0..message.image_urls.len();
        let mut cancelled = std::pin::pin!(self.cancelled(message));
        loop {
            while running.len() < window
                && let Some(offset) = offsets.next()
            {
                running.push(self.beside(self.item_in_time(message, offset, files)));
            }
            tokio::select! {
                item = running.next() => match item {
                    Some(item) => items.push(item?),
                    None => break,
                },
                () = &mut cancelled => {
                    let rest = async {
                        while let Some(item) = running.next().await {
                            items.push(item?);
                        }
                        Ok::<_, ChunkError>(())
                    };
                    if let Ok(rest) = tokio::time::timeout(CANCELLED_GRACE, rest).await {
                        rest?;
                    }
                    break;
                }
            }
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    /// Ends when the message's batch is cancelled.
    pub(super) async fn cancelled(&self, message: &BatchMessage) {
        loop {
            tokio::time::sleep(CANCELLED_EVERY).await;
            if self.is_cancelled(&message.spec).await {
                return;
            }
        }
    }

    /// Writes results where others find them: the part of the chunk, or at once the whole results of a batch of one.
    async fn write(&self, message: &BatchMessage, items: Vec<BatchItem>) -> Result<Found, ChunkError> {
        let spec = &message.spec;
        let in_results = spec.chunks == 1;
        let key = if in_results {
            object_keys::results_key(&spec.request_id)?
        } else {
            object_keys::part_key(&spec.request_id, message.chunk)?
        };
        let lines = results::lines(&items)?;
        self.retry.retry_forever("writing results", || self.blob.put(&key, lines.clone(), LINES)).await;
        Ok(Found { items, in_results })
    }

    /// Publishes results and takes the message out of the queue. The work on it is over before: while it waits for
    /// others before it to be published, another is worked on, and it does not count as started.
    async fn settle(&self, attempt: &Attempt<'_>, mut records: Vec<ResultRecord>) {
        let delivery = attempt.delivery;
        self.end_work(attempt, true).await;
        attempt.leave();
        let mut backoff = self.retry.backoff();
        loop {
            let settled: SyncResult<Settled> = self.queue.settle(delivery, records.clone()).await;
            let error = match settled {
                Ok(Settled::Done) => return,
                Ok(Settled::Lost) => {
                    tracing::debug!(position = delivery.position, "the message has moved to another worker");
                    WorkerStats::count(&self.stats.lost);
                    return;
                }
                Err(error) => error,
            };
            let refused = error.record().and_then(|id| records.iter().position(|record| record.id == id));
            match refused {
                Some(refused) => {
                    // It still stands in the results object.
                    let id = &records[refused].id;
                    tracing::error!(id, error = error.in_full(), "the results topic refuses a result");
                    WorkerStats::count(&self.stats.refused_results);
                    records.remove(refused);
                }
                None => self.retry.pause(&mut backoff, "publishing results", &error).await,
            }
        }
    }
}
