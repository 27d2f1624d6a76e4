//! How much is measured: all of it on a GPU, little on a simulated one, whose numbers mean nothing.

use std::time::Duration;

use crate::frames::Size;

/// Sizes, counts and times of the measurements.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Counted by each measurement.
    pub(super) seconds: Duration,
    /// Sizes of frame.
    pub(super) sizes: Vec<Size>,
    /// Different frames of each size, at most.
    pub(super) frames: usize,
    /// Whether the kernel gets few and small images.
    pub(super) few_images: bool,
    /// Bytes of the copy that measures the memory's bandwidth.
    pub(super) copy_bytes: usize,
    /// Copies.
    pub(super) copies: usize,
    /// Batches of the kernel.
    pub(super) batches: Vec<usize>,
    /// Batches by which the host's overhead is measured, and the images of each.
    pub(super) overhead: (usize, usize),
    /// Largest batch of nvJPEG.
    pub(super) decode_batch: usize,
    /// Largest batch of the engine.
    pub(super) max_batch: usize,
    /// Images in flight, enough to fill a lane.
    pub(super) in_flight: usize,
    /// Photos, at most.
    pub(super) photos: usize,
    /// Clients over HTTP.
    pub(super) clients: usize,
}

impl Plan {
    pub(super) fn new(seconds: Duration, simulated: bool, few_images: bool) -> Self {
        if simulated {
            return Self {
                seconds,
                sizes: vec![Size::Vga, Size::P1080],
                frames: 2,
                few_images: true,
                copy_bytes: 4 << 20,
                copies: 3,
                batches: vec![1, 2],
                overhead: (4, 2),
                decode_batch: 2,
                max_batch: 2,
                in_flight: 12,
                photos: 4,
                clients: 4,
            };
        }
        Self {
            seconds,
            sizes: Size::ALL.to_vec(),
            frames: 12,
            few_images,
            copy_bytes: 1 << 30,
            copies: 15,
            batches: vec![1, 8, 64],
            overhead: (400, 64),
            decode_batch: 64,
            max_batch: 64,
            in_flight: 384,
            photos: usize::MAX,
            clients: 256,
        }
    }

    /// The largest batch of the kernel.
    pub(super) fn largest_batch(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }
}
