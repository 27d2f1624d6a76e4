//! When a lane of a GPU closes a batch: decided from the clock and the queue alone, so that it can be simulated.
//!
//! A GPU takes little longer for many images than for one, so waiting for more can pay; but only while it is busy, since an
//! idle one gains nothing from a wait. A lane keeps two batches on its way: one is computed while the next is decoded and
//! uploaded. So:
//!
//! 1. A full batch is closed at once.
//! 2. What waits for an idle device is closed at once.
//! 3. While one batch is computed, the next is closed when its oldest image has waited for the longest delay.
//! 4. While two are on their way, nothing is closed: it would only wait elsewhere, and could not grow any more.
//!
//! The CPU's lanes have no use for it (docs/performance.md).

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

/// Batches on their way at once: one computed, one prepared.
const ON_THE_WAY: usize = 2;

/// The policy of one lane.
#[derive(Clone, Debug)]
pub struct Batching {
    sizes: Vec<usize>,
    max_delay: Duration,
}

/// What a lane sees.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Now.
    pub now: Instant,
    /// Images that wait.
    pub waiting: usize,
    /// When the oldest of them came; `now` where none waits.
    pub oldest: Instant,
    /// Batches that were closed and are not answered yet.
    pub on_the_way: usize,
}

/// What a lane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Closes a batch of the oldest so many images.
    Close(usize),
    /// Waits for an image, for a batch to be answered, or for this moment.
    Wait(Option<Instant>),
}

/// Why there is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchingError {
    /// No batch size, or one of 0.
    #[error("a batch has at least one image; the sizes are to be 1 or more, and at least one of them")]
    NoSize,
}

impl Batching {
    /// A policy for an engine that is built for batches of these sizes. The largest is the most that a batch holds.
    ///
    /// # Errors
    /// [`BatchingError::NoSize`].
    pub fn new(sizes: &[usize], max_delay: Duration) -> Result<Self, BatchingError> {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        sizes.dedup();
        match sizes.first() {
            None | Some(0) => Err(BatchingError::NoSize),
            Some(_) => Ok(Self { sizes, max_delay }),
        }
    }

    /// Powers of two up to `max_batch`, and `max_batch`: few shapes, so that each can have a CUDA graph and an optimised
    /// engine, and never more than half of a batch is padding.
    ///
    /// # Errors
    /// [`BatchingError::NoSize`] for 0.
    pub fn up_to(max_batch: usize, max_delay: Duration) -> Result<Self, BatchingError> {
        Self::powers(2, max_batch, max_delay)
    }

    /// The same with powers of four, for engines of which each size costs a session of its own.
    ///
    /// # Errors
    /// [`BatchingError::NoSize`] for 0.
    pub fn coarsely_up_to(max_batch: usize, max_delay: Duration) -> Result<Self, BatchingError> {
        Self::powers(4, max_batch, max_delay)
    }

    fn powers(base: usize, max_batch: usize, max_delay: Duration) -> Result<Self, BatchingError> {
        let powers = std::iter::successors(Some(1usize), |size| size.checked_mul(base));
        let mut sizes: Vec<usize> = powers.take_while(|&size| size < max_batch).collect();
        sizes.push(max_batch);
        Self::new(&sizes, max_delay)
    }

    /// The sizes of which the engine takes batches, the smallest first.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Most images of a batch.
    pub fn max_batch(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// The engine's size for so many images: the smallest that holds them, or the largest of all.
    pub fn engine_size(&self, images: usize) -> usize {
        self.sizes.iter().copied().find(|&size| size >= images).unwrap_or_else(|| self.max_batch())
    }

    /// What to do now.
    pub fn decide(&self, view: &View) -> Decision {
        let View { now, waiting, oldest, on_the_way } = *view;
        if waiting == 0 || on_the_way >= ON_THE_WAY {
            return Decision::Wait(None);
        }
        let until = oldest + self.max_delay;
        if waiting >= self.max_batch() || on_the_way == 0 || until <= now {
            return Decision::Close(waiting.min(self.max_batch()));
        }
        Decision::Wait(Some(until))
    }
}
