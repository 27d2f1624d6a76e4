//! What becomes of a message during whose work the process has ended again and again.
//!
//! Every start of the work on a message is noted before it begins, in the state store, where a crash does not reach
//! it. A message that waits for its turn is not started.
//!
//! After [`MAX_STARTS`] starts that did not end the message is suspect: from then on each step of the work on it runs
//! alone, one image at a time, so that an end of the process is that step's and no other's. A step that ends well is
//! taken back at once. An image at which the process ended [`MAX_DEATHS`] times has failed; the rest of the batch is
//! completed. Once or twice is not enough: the process may have ended for another reason, such as a loss of power. For
//! the same reason images at which a start ended come last: whatever ends the process from outside meets other images
//! in the meantime, while the image that does it itself is met again. Where there are no others, it takes more ends.
//! Ends at no image say little of a message: whatever ends the process from outside hits some message, too.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use cloud_sync::batch_status::WorkStarts;
use cloud_sync::event::BatchItem;
use cloud_sync::queue::Delivery;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::chunk::CANCELLED_GRACE;
use super::image::{failed, item};
use super::{ChunkError, Worker, WorkerStats};
use crate::batch::message::BatchMessage;

/// Starts of a message side by side with others.
const MAX_STARTS: u32 = 3;
/// Ends of the process at an image that is worked on alone.
const MAX_DEATHS: u32 = 3;
/// The same for the only image of a message: whatever ends the process from outside meets no other.
const MAX_DEATHS_PER_IMAGE: u32 = 6;
/// Ends of the process at a message and at none of its images: so many are no accident, and all of its images have
/// failed.
const MAX_FOREIGN_STARTS: u32 = 100;
/// How long others wait for an image that is worked on alone, at first. One that takes longer comes again after the
/// other images, and has twice as long, up to [`MAX_ISOLATION_TIME`].
const ALONE: Duration = Duration::from_secs(60);
const MAX_ISOLATION_TIME: Duration = Duration::from_secs(16 * 60);

/// The work on one message, once.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) delivery: &'a Delivery,
    /// Earlier starts that did not end, once they are known.
    earlier: OnceLock<WorkStarts>,
    /// The step of the start that is noted and has not ended.
    step: Mutex<Option<u64>>,
    /// Its place among the messages that are worked on, until the work is over.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(delivery: &'a Delivery, place: OwnedSemaphorePermit) -> Self {
        let place = Mutex::new(Some(place));
        Self { delivery, earlier: OnceLock::new(), step: Mutex::default(), place }
    }

    fn earlier(&self) -> &WorkStarts {
        self.earlier.get_or_init(WorkStarts::default)
    }

    /// Whether its steps are to run alone.
    pub(super) fn is_suspect(&self) -> bool {
        self.earlier().starts >= MAX_STARTS
    }

    /// Whether its images are not to be worked on any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.earlier().ended_elsewhere() >= MAX_FOREIGN_STARTS
    }

    /// Lets another message be worked on in its place.
    pub(super) fn leave(&self) {
        self.place.lock().take();
    }

    pub(super) fn is_started(&self) -> bool {
        self.step.lock().is_some()
    }

    /// Begins a step, of which the state store is told next.
    pub(super) fn begin(&self, step: u64) {
        *self.step.lock() = Some(step);
    }

    /// Ends the step that was begun last, if it has not ended.
    pub(super) fn end(&self) -> Option<u64> {
        self.step.lock().take()
    }
}

/// What became of an image that was worked on alone.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Alone {
    Done(BatchItem),
    /// Others are not to wait for it any longer.
    Late,
    /// Its batch was cancelled.
    Cancelled,
}

impl Worker {
    /// Asks for the earlier starts of a message.
    pub(super) async fn ask_for_starts(&self, attempt: &Attempt<'_>) {
        let starts = || self.state.work_starts(&attempt.delivery.position);
        let starts = self.retry.retry_forever("asking for earlier starts of the work", starts).await;
        let _ = attempt.earlier.set(starts);
    }

    /// Results of the images, one after the other. Fewer than there are images when the batch is cancelled meanwhile.
    pub(super) async fn items_alone(
        &self,
        attempt: &Attempt<'_>,
        message: &BatchMessage,
        files: bool,
    ) -> Result<Vec<BatchItem>, ChunkError> {
        let earlier = attempt.earlier();
        tracing::warn!(
            position = attempt.delivery.position,
            starts = earlier.starts,
            "the work on a message did not end several times: its images are worked on one at a time"
        );
        let index_of = |offset: usize| message.first + offset as u64;
        let mut offsets: Vec<usize> = (0..message.image_urls.len()).collect();
        offsets.sort_by_key(|offset| earlier.ended_at(index_of(*offset)));
        let most_ends = if offsets.len() == 1 { MAX_DEATHS_PER_IMAGE } else { MAX_DEATHS };
        let mut items = Vec::with_capacity(offsets.len());
        let mut left: VecDeque<_> = offsets.into_iter().map(|offset| (offset, ALONE)).collect();
        while let Some((offset, limit)) = left.pop_front() {
            let index = index_of(offset);
            if earlier.ended_at(index) >= most_ends {
                let request_id = &message.spec.request_id;
                tracing::error!(request_id, index, "an image is given up at which the process ended");
                WorkerStats::count(&self.stats.failed);
                WorkerStats::count(&self.stats.crashing_images);
                let error =
                    format!("the worker process ended {most_ends} times while it processed this image");
                items.push(item(message, offset, failed("worker_crashed", error)));
                continue;
            }
            if self.is_cancelled(&message.spec).await {
                break;
            }
            let step = self.item_alone(message, offset, files, limit);
            match self.in_turn(attempt, Some(index), step).await? {
                Alone::Done(item) => items.push(item),
                Alone::Late => left.push_back((offset, (2 * limit).min(MAX_ISOLATION_TIME))),
                Alone::Cancelled => break,
            }
        }
        items.sort_by_key(|item| item.index);
        Ok(items)
    }

    async fn item_alone(
        &self,
        message: &BatchMessage,
        offset: usize,
        files: bool,
        limit: Duration,
    ) -> Result<Alone, ChunkError> {
        let mut item = pin!(timeout(limit, self.item_in_time(message, offset, files)));
        let item = tokio::select! {
            item = &mut item => item,
            () = self.cancelled(message) => match timeout(CANCELLED_GRACE, &mut item).await {
                Ok(item) => item,
                Err(_) => return Ok(Alone::Cancelled),
            },
        };
        item.map_or(Ok(Alone::Late), |item| item.map(Alone::Done))
    }
}
