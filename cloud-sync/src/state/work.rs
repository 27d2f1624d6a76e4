//! Starts of the work on a message that did not end: what a store keeps to find out what ends the process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The starts of the work on one message that did not end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStarts {
    /// How many there were.
    pub starts: u32,
    /// The image that the last of them was made for, until it is counted in `ended_at`.
    pub image: Option<u64>,
    /// The step of the work for which the last of them was made, until it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Image -> starts for this image alone.
    pub ended_at: BTreeMap<u64, u32>,
}

impl WorkStarts {
    /// Counts one more start, for one image or for the message as a whole. The same step again is no other start: the
    /// caller repeats a call whose answer was lost.
    pub fn begin(&mut self, image: Option<u64>, step: u64) {
        if self.step == Some(step) {
            return;
        }
        self.count_last();
        self.starts = self.starts.saturating_add(1);
        (self.image, self.step) = (image, Some(step));
    }

    /// Takes the current start back, if it was made for this step: it ended in good order.
    pub fn give_back(&mut self, step: u64) {
        if self.step == Some(step) {
            self.starts = self.starts.saturating_sub(1);
            (self.image, self.step) = (None, None);
        }
    }

    /// What there is to say before the next start: the last one did not end, or it would have been taken back.
    #[must_use]
    pub fn so_far(mut self) -> Self {
        self.count_last();
        self
    }

    /// How many starts ended while the work was at an image.
    #[must_use]
    pub fn ended_at(&self, image: u64) -> u32 {
        self.ended_at.get(&image).copied().unwrap_or_default()
    }

    /// How many starts were made for no image in particular.
    #[must_use]
    pub fn ended_elsewhere(&self) -> u32 {
        let at_images: u32 = self.ended_at.values().fold(0, |sum, ended| sum.saturating_add(*ended));
        self.starts.saturating_sub(at_images)
    }

    fn count_last(&mut self) {
        if let Some(image) = self.image.take() {
            let ended = self.ended_at.entry(image).or_default();
            *ended = ended.saturating_add(1);
        }
    }
}
