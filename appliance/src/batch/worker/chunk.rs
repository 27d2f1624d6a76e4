//! One message from its bytes to its settlement: claim -> compute -> persist -> complete -> finish -> settle.
//!
//! Each step is a module of this name; [`ChunkState`] is what they pass on. A chunk belongs to the delivery that
//! completed it first, and only that one publishes. Every step can be repeated, by any worker, and yields the same bytes.

use cloud_sync::batch_status::BatchSpec;
use cloud_sync::event::{BatchItem, ItemOutcome};
use cloud_sync::queue::Delivery;

use super::claim::{Claim, Claimed};
use super::isolation::Attempt;
use super::{ChunkError, Worker};
use crate::batch::message::BatchMessage;
use crate::batch::result_store::failed;

/// What is known about the chunk of one message.
pub(super) struct ChunkState<'a> {
    pub(super) attempt: &'a Attempt<'a>,
    pub(super) message: BatchMessage,
    /// The outcome of every image, where none is to be computed: the message is unreadable or is given up.
    pub(super) preset: Option<ItemOutcome>,
    /// What the stores said at the last claim.
    pub(super) claimed: Claimed,
    /// Whether the message may name files that were posted with its batch.
    pub(super) owns_files: bool,
    /// The results, in the order of the images; fewer than there are images when the batch was cancelled meanwhile.
    pub(super) items: Vec<BatchItem>,
    /// Where the results are stored, once they are.
    pub(super) stored_in: Option<StoredIn>,
}

/// The object that holds the results of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredIn {
    /// The part of the chunk.
    Part,
    /// The results of the whole batch.
    Results,
}

/// How the work on a message ended.
enum Ended {
    /// It is settled.
    Settled,
    /// It can't be processed, for this reason.
    Refused(String),
}

impl<'a> ChunkState<'a> {
    fn new(attempt: &'a Attempt<'a>, message: BatchMessage, preset: Option<ItemOutcome>) -> Self {
        Self {
            attempt,
            message,
            preset,
            claimed: Claimed::default(),
            owns_files: false,
            items: Vec::new(),
            stored_in: None,
        }
    }

    pub(super) fn delivery(&self) -> &'a Delivery {
        self.attempt.delivery
    }

    pub(super) fn spec(&self) -> &BatchSpec {
        &self.message.spec
    }

    /// Whether some images have no result.
    pub(super) fn is_partial(&self) -> bool {
        self.items.len() < self.message.image_urls.len()
    }
}

impl Worker {
    /// Processes one message until it is settled. One that is no batch work becomes a dead letter, and settles as a batch
    /// of one failed image.
    pub(super) async fn process(&self, attempt: &Attempt<'_>) -> Result<(), ChunkError> {
        let delivery = attempt.delivery;
        self.load_starts(attempt).await;
        let parse =
            async { Ok(BatchMessage::parse(&delivery.payload, &delivery.position, self.config.max_images)) };
        let reason = match self.in_turn(attempt, None, parse).await? {
            Ok(message) => {
                let mut preset = None;
                if attempt.is_given_up() {
                    let reason = "processing of the message failed repeatedly because of a program error";
                    self.store_dead_letter(delivery, reason).await?;
                    preset = Some(failed("internal", reason));
                }
                match self.work(ChunkState::new(attempt, message, preset)).await? {
                    Ended::Settled => return Ok(()),
                    Ended::Refused(reason) => reason,
                }
            }
            Err(error) => error.to_string(),
        };
        self.store_dead_letter(delivery, &reason).await?;
        let message = BatchMessage::unreadable(&delivery.position);
        let preset = Some(failed("invalid_message", reason));
        self.work(ChunkState::new(attempt, message, preset)).await.map(drop)
    }

    /// The steps of the work on one message, in their order.
    async fn work(&self, mut chunk: ChunkState<'_>) -> Result<Ended, ChunkError> {
        let attempt = chunk.attempt;
        let claim = async {
            let claim = self.claim(&mut chunk).await?;
            if matches!(claim, Claim::Granted) {
                self.check_files(&mut chunk).await?;
            }
            Ok(claim)
        };
        match self.in_turn(attempt, None, claim).await? {
            Claim::Granted => {}
            over => return self.end_unclaimed(attempt, over).await,
        }
        self.compute(&mut chunk).await?;
        let complete = async {
            // Another worker may have processed the same message meanwhile; then its results are the ones that count.
            match self.claim(&mut chunk).await? {
                Claim::Granted => {}
                over => return Ok(Err(over)),
            }
            self.persist(&mut chunk).await?;
            let Some(done) = self.complete(&chunk).await? else { return Ok(Err(Claim::Duplicate)) };
            let summary = self.finish(&chunk, &done).await?;
            let is_last = summary.is_some();
            Ok(Ok((self.records(&mut chunk, summary)?, is_last)))
        };
        match self.in_turn(attempt, None, complete).await? {
            Ok((records, is_last)) => {
                self.settle(attempt, records).await;
                if is_last {
                    self.remove_files(&chunk.message).await;
                }
                Ok(Ended::Settled)
            }
            Err(over) => self.end_unclaimed(attempt, over).await,
        }
    }

    /// Ends the work on a message whose chunk this delivery does not get.
    async fn end_unclaimed(&self, attempt: &Attempt<'_>, claim: Claim) -> Result<Ended, ChunkError> {
        if let Claim::Refused(reason) = claim {
            return Ok(Ended::Refused(reason));
        }
        self.ack_duplicate(attempt).await;
        Ok(Ended::Settled)
    }
}
