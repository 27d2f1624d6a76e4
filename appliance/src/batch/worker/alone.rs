//! The turns in which messages are worked on, and what becomes of a message during whose work the process has ended
//! again and again.
//!
//! Every start of the work on a message is noted before it begins, in the state store, where a crash does not reach
//! it. A message that waits for its turn is not started.
//!
//! After [`MOST_STARTS`] starts that did not end the message is suspect: from then on each step of the work on it runs
//! alone, one image at a time, so that an end of the process is that step's and no other's. A step that ends well is
//! taken back at once. An image at which the process ended [`MOST_ENDS`] times has failed; the rest of the batch is
//! completed. Once or twice is not enough: the process may have ended for another reason, such as a loss of power. For
//! the same reason images at which a start ended come last: whatever ends the process from outside meets other images
//! in the meantime, while the image that does it itself is met again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cloud_sync::event::BatchItem;
use cloud_sync::queue::Delivery;
use cloud_sync::state::WorkStarts;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::image::{failed, item};
use super::{Setback, Worker, WorkerStats};
use crate::batch::message::BatchMessage;

/// Starts of a message side by side with others.
const MOST_STARTS: u32 = 3;
/// Ends of the process at an image that is worked on alone.
const MOST_ENDS: u32 = 3;
/// Ends of the process at a message that is worked on alone and at none of its images: then it is the message itself,
/// and all of its images have failed.
const MOST_ELSEWHERE: u32 = 3;

/// The work on one message, once.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) delivery: &'a Delivery,
    /// Earlier starts that did not end, once they are known.
    earlier: OnceLock<WorkStarts>,
    /// Whether a start is noted that has not ended.
    started: AtomicBool,
    /// Its place among the messages that are worked on, until the work is over.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(delivery: &'a Delivery, place: OwnedSemaphorePermit) -> Self {
        let place = Mutex::new(Some(place));
        Self { delivery, earlier: OnceLock::new(), started: AtomicBool::new(false), place }
    }

    fn earlier(&self) -> &WorkStarts {
        self.earlier.get_or_init(WorkStarts::default)
    }

    /// Whether its steps are to run alone.
    pub(super) fn is_suspect(&self) -> bool {
        self.earlier().starts >= MOST_STARTS
    }

    /// Whether its images are not to be worked on any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.earlier().ended_elsewhere() >= MOST_STARTS + MOST_ELSEWHERE
    }

    /// Lets another message be worked on in its place.
    pub(super) fn leave(&self) {
        self.place.lock().take();
    }

    pub(super) fn is_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }
}

impl Worker {
    /// Runs a step of the work on a message when its turn comes, beside the steps of other messages, or alone. Nothing
    /// that waits for the work on another message may be in a step.
    pub(super) async fn in_turn<T>(
        &self,
        attempt: &Attempt<'_>,
        image: Option<u64>,
        step: impl Future<Output = Result<T, Setback>> + Send,
    ) -> Result<T, Setback> {
        if !attempt.is_suspect() {
            let _turn = self.stats.turns.read().await;
            if !attempt.is_started() {
                self.begin_work(attempt, None).await;
            }
            return step.await;
        }
        let _turn = self.stats.turns.write().await;
        self.begin_work(attempt, image).await;
        let result = step.await;
        if matches!(result, Ok(_) | Err(Setback::Stopping)) {
            self.end_work(attempt, false).await;
        }
        result
    }

    /// Asks for the earlier starts of a message.
    pub(super) async fn ask_for_starts(&self, attempt: &Attempt<'_>) {
        let starts = || self.state.work_starts(&attempt.delivery.position);
        let starts = self.patience.insist("asking for earlier starts of the work", starts).await;
        let _ = attempt.earlier.set(starts);
    }

    async fn begin_work(&self, attempt: &Attempt<'_>, image: Option<u64>) {
        let begin = || self.state.begin_work(&attempt.delivery.position, image);
        self.patience.insist("noting that work begins", begin).await;
        attempt.started.store(true, Ordering::Relaxed);
    }

    /// Notes that the current start of the work on a message is no matter any more, or that none is once the message is
    /// done. A store that is away is not waited for: at worst there is one start too many.
    pub(super) async fn end_work(&self, attempt: &Attempt<'_>, done: bool) {
        attempt.started.store(false, Ordering::Relaxed);
        let position = &attempt.delivery.position;
        let ended = tokio::time::timeout(super::END_WAIT, self.state.end_work(position, done)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!(position, "the end of the work was not noted");
        }
    }

    /// Results of the images, one after the other. Fewer than there are images when the batch is cancelled meanwhile.
    pub(super) async fn items_alone(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
        files: bool,
    ) -> Result<Vec<BatchItem>, Setback> {
        let earlier = attempt.earlier();
        tracing::warn!(
            position = attempt.delivery.position,
            starts = earlier.starts,
            "the work on a message did not end several times: its images are worked on one at a time"
        );
        let index_of = |offset: usize| message.first + offset as u64;
        let mut offsets: Vec<usize> = (0..message.image_urls.len()).collect();
        offsets.sort_by_key(|offset| earlier.ended_at(index_of(*offset)));
        let mut items = Vec::with_capacity(offsets.len());
        for offset in offsets {
            let index = index_of(offset);
            if earlier.ended_at(index) >= MOST_ENDS {
                let request_id = &message.spec.request_id;
                tracing::error!(request_id, index, "an image is given up at which the process ended");
                WorkerStats::count(&self.stats.failed);
                WorkerStats::count(&self.stats.crashing_images);
                let error =
                    format!("the worker process ended {MOST_ENDS} times while it processed this image");
                items.push(item(message, offset, failed("worker_crashed", error)));
                continue;
            }
            if self.is_cancelled(&message.spec).await {
                break;
            }
            let step = self.item_in_time(message, offset, files);
            items.push(self.in_turn(attempt, Some(index), step).await?);
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }
}
