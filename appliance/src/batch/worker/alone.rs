//! Images one at a time: what becomes of a message during whose work the process has ended again and again.
//!
//! Every start of the work on a message is noted before it begins, in the state store, where a crash does not reach
//! it. After [`MOST_STARTS`] starts that did not end, the images are worked on one at a time, and which one is noted
//! too. An image at which the process ended [`MOST_ENDS`] times has failed; the rest of the batch is completed. Once
//! or twice is not enough: the process may have ended for another reason, such as a loss of power, while it was at that image.

use cloud_sync::event::BatchItem;
use cloud_sync::queue::Delivery;
use cloud_sync::state::WorkStarts;

use super::image::{failed, item};
use super::{Setback, Worker, WorkerStats};
use crate::batch::message::BatchMessage;

/// Starts of a message with its images side by side.
const MOST_STARTS: u32 = 3;
/// Ends of the process at an image that is worked on alone.
const MOST_ENDS: u32 = 4;
/// Starts that ended at no image: then it is the message itself, and all of its images have failed. Many, since a message
/// that only waits for its turn is started too, and a box may lose its power often.
const MOST_ELSEWHERE: u32 = 100;

/// Whether the images of a message are to be worked on one at a time.
pub(super) fn is_suspect(starts: &WorkStarts) -> bool {
    starts.starts > MOST_STARTS
}

/// Whether a message is not to be worked on any more.
pub(super) fn is_given_up(starts: &WorkStarts) -> bool {
    starts.ended_elsewhere() >= MOST_ELSEWHERE
}

impl Worker {
    /// Results of all images, one after the other.
    pub(super) async fn items_alone(
        &self,
        delivery: &Delivery,
        message: &BatchMessage,
        starts: &WorkStarts,
        files: bool,
    ) -> Result<Vec<BatchItem>, Setback> {
        tracing::warn!(
            position = delivery.position,
            starts = starts.starts,
            "the work on a message did not end several times: its images are worked on one at a time"
        );
        let mut items = Vec::with_capacity(message.image_urls.len());
        for offset in 0..message.image_urls.len() {
            let index = message.first + offset as u64;
            if starts.ended_at(index) >= MOST_ENDS {
                let request_id = &message.spec.request_id;
                tracing::error!(request_id, index, "an image is given up at which the process ended");
                WorkerStats::count(&self.stats.failed);
                WorkerStats::count(&self.stats.crashing_images);
                let error =
                    format!("the worker process ended {MOST_ENDS} times while it processed this image");
                items.push(item(message, offset, failed("worker_crashed", error)));
                continue;
            }
            // Two messages with one image each in hand could not tell which of the two it was.
            let _turn = self.stats.alone.lock().await;
            self.note_image(delivery, Some(index)).await;
            items.push(self.item_in_time(message, offset, files).await?);
            self.note_image(delivery, None).await;
        }
        Ok(items)
    }

    async fn note_image(&self, delivery: &Delivery, image: Option<u64>) {
        let note = || self.state.work_at(&delivery.position, image);
        self.patience.insist("noting which image is worked on", note).await;
    }
}
