//! Starts of the work on a message that did not end: what a store keeps to find out what ends the process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The starts of the work on one message, the current one included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStarts {
    /// Starts that were not given back.
    pub starts: u32,
    /// The image that the work is at, where the images are worked on one at a time.
    pub image: Option<u64>,
    /// Image -> starts that ended while the work was at it.
    pub ended_at: BTreeMap<u64, u32>,
}

impl WorkStarts {
    /// Counts one more start. What the one before was at, it did not get past.
    pub fn begin(&mut self) {
        self.starts = self.starts.saturating_add(1);
        if let Some(image) = self.image.take() {
            let ended = self.ended_at.entry(image).or_default();
            *ended = ended.saturating_add(1);
        }
    }

    /// Takes the current start back: it was given up in good order.
    pub fn give_back(&mut self) {
        self.starts = self.starts.saturating_sub(1);
        self.image = None;
    }

    /// How many starts ended while the work was at an image.
    #[must_use]
    pub fn ended_at(&self, image: u64) -> u32 {
        self.ended_at.get(&image).copied().unwrap_or_default()
    }

    /// How many earlier starts ended while the work was at no image that was noted.
    #[must_use]
    pub fn ended_elsewhere(&self) -> u32 {
        let at_images: u32 = self.ended_at.values().fold(0, |sum, ended| sum.saturating_add(*ended));
        self.starts.saturating_sub(1).saturating_sub(at_images)
    }
}
