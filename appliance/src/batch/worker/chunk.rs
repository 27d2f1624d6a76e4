//! One message, from its bytes to its settlement.

use cloud_sync::error::SyncResult;
use cloud_sync::event::{BatchItem, ItemOutcome};
use cloud_sync::queue::{Delivery, ResultRecord, Settled};
use cloud_sync::state::{BatchStatus, ChunkStart};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::image::{failed, item};
use super::results::{self, Kept, LINES, Tally};
use super::{Setback, Worker, WorkerStats};
use crate::batch::layout;
use crate::batch::message::BatchMessage;

/// Images of one message in hand at once, for every load that runs: those that wait for their next try or for a lane
/// must not keep the others from being loaded.
const IMAGES_A_LOAD: usize = 4;

/// How the work on a message came out.
enum Done {
    /// It is settled.
    Settled,
    /// It can't be worked on, for this reason.
    Refused(String),
}

/// What the state store says before the work.
pub(super) struct Seen {
    pub(super) start: ChunkStart,
    /// The batch, unless it was not known.
    pub(super) known: Option<BatchStatus>,
}

/// Results of a message, and where they come from.
pub(super) struct Found {
    pub(super) items: Vec<BatchItem>,
    /// Whether they stand in the results of the whole batch already.
    pub(super) in_results: bool,
}

impl Worker {
    /// Works on one message until it is settled.
    pub(super) async fn process(&self, delivery: &Delivery) -> Result<(), Setback> {
        let parsed = BatchMessage::parse(&delivery.payload, &delivery.position, self.config.max_images);
        let reason = match parsed {
            Ok(message) => match self.work(delivery, &message, None).await? {
                Done::Settled => return Ok(()),
                Done::Refused(reason) => reason,
            },
            Err(error) => error.to_string(),
        };
        self.keep_message(delivery, &reason).await?;
        let message = BatchMessage::unreadable(&delivery.position);
        let outcome = failed("invalid_message", reason);
        self.work(delivery, &message, Some(outcome)).await.map(|_| ())
    }

    /// Works on a message; with an `outcome` that is the result of each of its images.
    async fn work(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        outcome: Option<ItemOutcome>,
    ) -> Result<Done, Setback> {
        let spec = &message.spec;
        let seen = self.look(message).await;
        if let Some(done) = self.not_ours(delivery, message, &seen, outcome.is_none()).await? {
            return Ok(done);
        }
        if seen.start.created && spec.chunks > 1 {
            self.note_loss(message).await?;
        }
        let found = match self.found(message, &seen.start, &delivery.position).await? {
            Some(found) => found,
            None => {
                let items = match &outcome {
                    None => self.items(message).await?,
                    Some(outcome) => {
                        (0..message.image_urls.len()).map(|i| item(message, i, outcome.clone())).collect()
                    }
                };
                // Another worker may have had the same message meanwhile; then its results are the ones that count.
                let again = self.look(message).await;
                if let Some(done) = self.not_ours(delivery, message, &again, outcome.is_none()).await? {
                    return Ok(done);
                }
                match self.found(message, &again.start, &delivery.position).await? {
                    Some(found) => found,
                    None => self.write(message, items).await?,
                }
            }
        };
        if outcome.is_none() {
            self.keep_failures(delivery, message, &found.items).await?;
        }
        let tally = Tally::of(&found.items, 0)?;
        let complete = || {
            self.state.complete_chunk(spec, message.chunk, &delivery.position, tally.completed, tally.failed)
        };
        let done = self.patience.insist("noting that a chunk is done", complete).await;
        if done.owner != delivery.position {
            return self.leave_to_owner(delivery).await;
        }
        let summary = self.finish(delivery, message, &seen, &done, &found).await?;
        let mut records = self.records(delivery, message, found.items)?;
        records.extend(summary);
        self.settle(delivery, records).await;
        Ok(Done::Settled)
    }

    async fn look(&self, message: &BatchMessage) -> Seen {
        let start = || self.state.start_chunk(&message.spec, message.chunk);
        let start = self.patience.insist("noting that a chunk is begun", start).await;
        if start.created {
            return Seen { start, known: None };
        }
        let known = || self.state.batch(&message.spec.request_id);
        let known = self.patience.insist("asking for a batch", known).await;
        Seen { start, known }
    }

    /// What is left to do for a message whose images are another's: none of the batch's, or done by another delivery.
    async fn not_ours(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        seen: &Seen,
        readable: bool,
    ) -> Result<Option<Done>, Setback> {
        if readable && let Some(reason) = self.conflict(delivery, message, seen).await? {
            return Ok(Some(Done::Refused(reason)));
        }
        match &seen.start.done_by {
            Some(owner) if *owner != delivery.position => self.leave_to_owner(delivery).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Why the message is not part of the batch that has its id, if it is not.
    async fn conflict(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        seen: &Seen,
    ) -> Result<Option<String>, Setback> {
        let spec = &message.spec;
        let taken = || Some(format!("request_id: {:?} is another batch's already", spec.request_id));
        if seen.known.as_ref().is_some_and(|known| known.spec != *spec) {
            return Ok(taken());
        }
        match &seen.start.done_by {
            None => Ok(None),
            Some(owner) if *owner == delivery.position => Ok(None),
            // Either the same message again or another with the same id: the images tell.
            Some(_) => match self.kept_anywhere(message).await? {
                Some(Kept::Others) => Ok(taken()),
                _ => Ok(None),
            },
        }
    }

    async fn leave_to_owner(&self, delivery: &Delivery) -> Result<Done, Setback> {
        tracing::debug!(position = delivery.position, "another message has done this chunk");
        WorkerStats::count(&self.stats.duplicates);
        self.settle(delivery, Vec::new()).await;
        Ok(Done::Settled)
    }

    /// The results of an earlier delivery, where there may be any.
    async fn found(
        &self,
        message: &BatchMessage,
        start: &ChunkStart,
        position: &str,
    ) -> Result<Option<Found>, Setback> {
        let own = start.done_by.as_deref() == Some(position);
        // Where the state store knows the batch and no one has done the chunk, there is nothing to find. A batch of
        // one chunk that is not known is most likely new.
        if !(own || start.finished || start.created && message.spec.chunks > 1) {
            return Ok(None);
        }
        let spec = &message.spec;
        let in_results = if spec.chunks == 1 {
            true
        } else {
            let part = layout::part_key(&spec.request_id, message.chunk)?;
            match self.kept(&part, message.first, message).await {
                Kept::Theirs(items) => return Ok(Some(Found { items, in_results: false })),
                Kept::Others | Kept::Nothing => true,
            }
        };
        match self.kept(&layout::results_key(&spec.request_id)?, 0, message).await {
            Kept::Theirs(items) => Ok(Some(Found { items, in_results })),
            Kept::Others | Kept::Nothing => Ok(None),
        }
    }

    /// What the part or the whole results have for the message; None when there is neither.
    async fn kept_anywhere(&self, message: &BatchMessage) -> Result<Option<Kept>, Setback> {
        let spec = &message.spec;
        let part = layout::part_key(&spec.request_id, message.chunk)?;
        if spec.chunks > 1
            && let kept @ (Kept::Theirs(_) | Kept::Others) = self.kept(&part, message.first, message).await
        {
            return Ok(Some(kept));
        }
        match self.kept(&layout::results_key(&spec.request_id)?, 0, message).await {
            Kept::Nothing => Ok(None),
            kept => Ok(Some(kept)),
        }
    }

    /// Results of all images, in their order; many in hand at once.
    async fn items(&self, message: &BatchMessage) -> Result<Vec<BatchItem>, Setback> {
        let window = self.config.loads.max(1) * IMAGES_A_LOAD;
        let mut running = FuturesUnordered::new();
        let mut items = Vec::with_capacity(message.image_urls.len());
        let mut offsets = 0..message.image_urls.len();
        loop {
            while running.len() < window
                && let Some(offset) = offsets.next()
            {
                running.push(self.item(message, offset));
            }
            match running.next().await {
                Some(item) => items.push(item?),
                None => break,
            }
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    /// Writes results where others find them: the part of the chunk, or at once the whole results of a batch of one.
    async fn write(&self, message: &BatchMessage, items: Vec<BatchItem>) -> Result<Found, Setback> {
        let spec = &message.spec;
        let in_results = spec.chunks == 1;
        let key = if in_results {
            layout::results_key(&spec.request_id)?
        } else {
            layout::part_key(&spec.request_id, message.chunk)?
        };
        let lines = results::lines(&items)?;
        self.patience.insist("writing results", || self.blob.put(&key, lines.clone(), LINES)).await;
        Ok(Found { items, in_results })
    }

    /// Publishes results and takes the message out of the queue.
    async fn settle(&self, delivery: &Delivery, mut records: Vec<ResultRecord>) {
        let mut backoff = self.patience.backoff();
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
            let text = error.in_full();
            let refused =
                records.iter().position(|record| !error.is_transient() && text.contains(&record.id));
            match refused {
                Some(refused) => {
                    // It still stands in the results object.
                    let id = &records[refused].id;
                    tracing::error!(id, error = text, "the results topic refuses a result");
                    WorkerStats::count(&self.stats.refused_results);
                    records.remove(refused);
                }
                None => self.patience.pause(&mut backoff, "publishing results", &error).await,
            }
        }
    }
}
