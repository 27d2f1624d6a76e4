//! One message, from its bytes to its settlement.

use cloud_sync::error::SyncResult;
use cloud_sync::event::{BatchItem, ItemOutcome};
use cloud_sync::queue::{Delivery, ResultRecord, Settled};
use cloud_sync::state::{BatchSpec, BatchStatus, ChunkStart, WorkStarts};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::image::{failed, item};
use super::results::{self, Kept, LINES, Tally};
use super::{Setback, Worker, WorkerStats, alone};
use crate::batch::layout;
use crate::batch::message::BatchMessage;
use crate::batch::record::{self, BatchRecord};

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

/// What the stores say before the work.
pub(super) struct Seen {
    pub(super) start: ChunkStart,
    /// Whether there may be results of the message although the state store does not say so.
    may_have_results: bool,
}

/// What becomes of a message before the work.
enum Look {
    /// It is to be worked on.
    Work(Seen),
    /// Nothing is left to do.
    Over(Done),
}

/// What lies under a batch's id in the blob store.
enum Objects {
    /// What another batch has left.
    Others,
    /// Its own, or nothing.
    Own {
        /// Whether there is an object of results.
        results: bool,
    },
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
        let begin = || self.state.begin_work(&delivery.position);
        let starts = self.patience.insist("noting that work begins", begin).await;
        let parsed = BatchMessage::parse(&delivery.payload, &delivery.position, self.config.max_images);
        let given_up = alone::is_given_up(&starts);
        let reason = match parsed {
            Ok(message) => {
                let mut outcome = None;
                if given_up {
                    let reason =
                        "the work on the message broke off again and again for a fault of the program";
                    self.keep_message(delivery, reason).await?;
                    outcome = Some(failed("internal", reason));
                }
                match self.work(delivery, &message, &starts, outcome).await? {
                    Done::Settled => return Ok(()),
                    Done::Refused(reason) => reason,
                }
            }
            Err(error) => error.to_string(),
        };
        self.keep_message(delivery, &reason).await?;
        let message = BatchMessage::unreadable(&delivery.position);
        let outcome = failed("invalid_message", reason);
        self.work(delivery, &message, &starts, Some(outcome)).await.map(|_| ())
    }

    /// Works on a message; with an `outcome` that is the result of each of its images.
    async fn work(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        starts: &WorkStarts,
        outcome: Option<ItemOutcome>,
    ) -> Result<Done, Setback> {
        let spec = &message.spec;
        let seen = match self.look(delivery, message).await? {
            Look::Work(seen) => seen,
            Look::Over(done) => return Ok(done),
        };
        let found = match self.found(message, &seen, &delivery.position).await? {
            Some(found) => found,
            None => {
                let items = match &outcome {
                    None => self.items(delivery, message, starts).await?,
                    Some(outcome) => {
                        (0..message.image_urls.len()).map(|i| item(message, i, outcome.clone())).collect()
                    }
                };
                // Another worker may have had the same message meanwhile; then its results are the ones that count.
                let again = match self.look(delivery, message).await? {
                    Look::Work(again) => again,
                    Look::Over(done) => return Ok(done),
                };
                match self.found(message, &again, &delivery.position).await? {
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
        let finished = summary.is_some();
        records.extend(summary);
        self.settle(delivery, records).await;
        if finished {
            self.remove_files(message).await;
        }
        Ok(Done::Settled)
    }

    /// Whether the message is to be worked on: its id may be another batch's, its chunk another delivery's.
    async fn look(&self, delivery: &Delivery, message: &BatchMessage) -> Result<Look, Setback> {
        let spec = &message.spec;
        let taken = || {
            let reason = format!("request_id: {:?} is another batch's already", spec.request_id);
            Ok(Look::Over(Done::Refused(reason)))
        };
        // Only one message can have an id that is its place.
        let may_be_taken = !layout::is_place(&spec.request_id);
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
                Objects::Own { results } => may_have_results |= results,
            }
        }
        let start = || self.state.start_chunk(spec, message.chunk);
        let start = self.patience.insist("noting that a chunk is begun", start).await;
        if is_new && !start.created {
            known = self.known(spec).await;
            if others(&known) {
                return taken();
            }
        }
        match &start.done_by {
            Some(owner) if *owner != delivery.position => {
                // Either the same message again or another with the same id: the images tell.
                if may_be_taken && matches!(self.kept_anywhere(message).await?, Some(Kept::Others)) {
                    return taken();
                }
                self.leave_to_owner(delivery).await.map(Look::Over)
            }
            _ => Ok(Look::Work(Seen { start, may_have_results })),
        }
    }

    pub(super) async fn known(&self, spec: &BatchSpec) -> Option<BatchStatus> {
        let known = || self.state.batch(&spec.request_id);
        self.patience.insist("asking for a batch", known).await
    }

    /// What lies under the id of a batch that the state store does not know: it forgets batches after a time, and
    /// their results stay.
    async fn objects(&self, message: &BatchMessage) -> Result<Objects, Setback> {
        let spec = &message.spec;
        let key = layout::results_key(&spec.request_id)?;
        let head = self.patience.insist("looking for results", || self.blob.head(&key));
        let (record, head) = tokio::join!(self.is_of_record(spec), head);
        let results = head.is_some();
        let own = match (record?, results) {
            (Some(own), _) => own,
            (None, false) => true,
            (None, true) => match self.kept(&key, 0, message).await {
                Kept::Theirs(_) => self.outcome_of_results(spec).await?.is_some(),
                // What is damaged may be another batch's.
                Kept::Others | Kept::Damaged => false,
                Kept::Nothing => true,
            },
        };
        Ok(if own { Objects::Own { results } } else { Objects::Others })
    }

    /// Whether the batch is the one that was recorded under its id when it was posted; None when none was.
    async fn is_of_record(&self, spec: &BatchSpec) -> Result<Option<bool>, Setback> {
        let key = layout::batch_key(&spec.request_id)?;
        let get = || self.blob.get(&key, record::MAX_BYTES);
        let json = self.patience.insist("reading the record of a batch", get).await;
        Ok(json.map(|json| {
            serde_json::from_slice::<BatchRecord>(&json).is_ok_and(|record| record.spec == *spec)
        }))
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
        seen: &Seen,
        position: &str,
    ) -> Result<Option<Found>, Setback> {
        let own = seen.start.done_by.as_deref() == Some(position);
        // Where the state store knows the batch and no one has done the chunk, there is most likely nothing to find.
        if !(own || seen.start.finished || seen.may_have_results) {
            return Ok(None);
        }
        let spec = &message.spec;
        let in_results = if spec.chunks == 1 {
            true
        } else {
            let part = layout::part_key(&spec.request_id, message.chunk)?;
            match self.kept(&part, message.first, message).await {
                Kept::Theirs(items) => return Ok(Some(Found { items, in_results: false })),
                Kept::Others | Kept::Damaged | Kept::Nothing => true,
            }
        };
        match self.kept(&layout::results_key(&spec.request_id)?, 0, message).await {
            Kept::Theirs(items) => Ok(Some(Found { items, in_results })),
            Kept::Others | Kept::Damaged | Kept::Nothing => Ok(None),
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
    async fn items(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        starts: &WorkStarts,
    ) -> Result<Vec<BatchItem>, Setback> {
        // An id that somebody else's files lie under must not be enough to see what is on them.
        let files = message.names_files() && self.is_of_record(&message.spec).await? == Some(true);
        if alone::is_suspect(starts) {
            return self.items_alone(delivery, message, starts, files).await;
        }
        let window = self.config.loads.max(1) * IMAGES_A_LOAD;
        let mut running = FuturesUnordered::new();
        let mut items = Vec::with_capacity(message.image_urls.len());
        let mut offsets = 0..message.image_urls.len();
        loop {
            while running.len() < window
                && let Some(offset) = offsets.next()
            {
                running.push(self.item_in_time(message, offset, files));
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
            let refused = error.record().and_then(|id| records.iter().position(|record| record.id == id));
            match refused {
                Some(refused) => {
                    // It still stands in the results object.
                    let id = &records[refused].id;
                    tracing::error!(id, error = error.in_full(), "the results topic refuses a result");
                    WorkerStats::count(&self.stats.refused_results);
                    records.remove(refused);
                }
                None => self.patience.pause(&mut backoff, "publishing results", &error).await,
            }
        }
    }
}
