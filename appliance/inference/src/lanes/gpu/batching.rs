//! When a lane on a GPU closes a batch. A pure function of the clock and the queue, so that it can be simulated.
//!
//! A GPU takes little longer for many images than for one, so waiting for more images pays off, but only while the GPU is
//! busy: an idle one gains nothing. A lane keeps two batches in flight: one is computed while the next is decoded and
//! uploaded. The rules:
//!
//! 1. A full batch is closed at once.
//! 2. Images that wait for an idle device are closed into a batch at once.
//! 3. While one batch is computed, the next is closed when its oldest image has waited for `max_delay`.
//! 4. While two batches are in flight, none is closed: it would only wait elsewhere, and could not grow.
//!
//! Lanes on the CPU do not batch this way (docs/performance.md).

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

/// Batches in flight: one computed, one prepared.
const MAX_IN_FLIGHT: usize = 2;

/// The batching policy of a lane.
#[derive(Clone, Debug)]
pub struct Batching {
    sizes: Vec<usize>,
    max_delay: Duration,
}

/// The state that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Current time.
    pub now: Instant,
    /// Number of images that wait.
    pub waiting: usize,
    /// Arrival of the oldest of them; `now` if none waits.
    pub oldest: Instant,
    /// Batches that were closed and not answered.
    pub in_flight: usize,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Close a batch of this many images, the oldest first.
    Close(usize),
    /// Wait for an image, for a batch to be answered, or until this time.
    Wait(Option<Instant>),
}

/// Why a policy is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchingError {
    /// No batch size, or a batch size of 0.
    #[error("at least one batch size is required, and batch sizes must be 1 or more")]
    NoSize,
}

impl Batching {
    /// A policy for an engine with these batch sizes. The largest is the limit of a batch.
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
    /// engine, and at most half of a batch is padding.
    ///
    /// # Errors
    /// [`BatchingError::NoSize`] for 0.
    pub fn up_to(max_batch: usize, max_delay: Duration) -> Result<Self, BatchingError> {
        Self::powers(2, max_batch, max_delay)
    }

    /// As [`Batching::up_to`] with powers of four, for engines that need a session per size.
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

    /// The batch sizes of the engine, in ascending order.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Largest number of images in a batch.
    pub fn max_batch(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// The engine's batch size for this many images: the smallest that holds them, or the largest of all.
    pub fn engine_size(&self, images: usize) -> usize {
        self.sizes.iter().copied().find(|&size| size >= images).unwrap_or_else(|| self.max_batch())
    }

    /// The decision for this state.
    pub fn decide(&self, view: &View) -> Decision {
        let View { now, waiting, oldest, in_flight } = *view;
        if waiting == 0 || in_flight >= MAX_IN_FLIGHT {
            return Decision::Wait(None);
        }
        let until = oldest + self.max_delay;
        if waiting >= self.max_batch() || in_flight == 0 || until <= now {
            return Decision::Close(waiting.min(self.max_batch()));
        }
        Decision::Wait(Some(until))
    }
}
