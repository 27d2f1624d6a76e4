//! An image on its way to the GPU: staged in the host's memory, then in the GPU's.

use std::time::Duration;

use crate::cuda::{Block, DeviceMemory, GpuError, PinnedMemory, PinnedPool, Stream};
use crate::image::{Image, Orientation};
use crate::preprocess::{PixelLayout, ROW_GROUP};

/// Makes [`StagedImage`]s. Each thread that decodes has a clone.
#[derive(Clone, Debug)]
pub struct Stager {
    pool: PinnedPool,
}

/// An image in memory that the GPU reads by itself, its rows as the kernel wants them.
#[derive(Debug)]
pub struct StagedImage {
    pub(super) block: Block<PinnedMemory>,
    pub(super) bytes: usize,
    pub(super) pitch: u32,
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
}

/// An image in the GPU's memory, or on its way there on a stream.
#[derive(Debug)]
pub struct DeviceImage {
    pub(super) block: Option<Block<DeviceMemory>>,
    pub(super) layout: PixelLayout,
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
    /// What is uploaded, until it is.
    pub(super) staged: Option<StagedImage>,
    /// Where the work on it was put; none once that is known to have run.
    pub(super) stream: Option<Stream>,
}

impl Stager {
    /// Stages in blocks of this pool.
    pub fn new(pool: PinnedPool) -> Self {
        Self { pool }
    }

    /// Copies an image; waits until there is room for it, and not for longer than `timeout`: `None` then.
    ///
    /// # Errors
    /// [`GpuError::Refused`] when the driver gives no memory.
    pub fn stage(&self, image: &Image<'_>, timeout: Duration) -> Result<Option<StagedImage>, GpuError> {
        let row = 3 * image.width as usize;
        let pitch = 3 * image.width.next_multiple_of(ROW_GROUP);
        let bytes = pitch as usize * image.height as usize;
        let Some(mut block) = self.pool.take_within(bytes, timeout)? else { return Ok(None) };
        let rows = block.as_mut_slice().chunks_exact_mut(pitch as usize);
        for (from, to) in image.pixels.chunks_exact(row).zip(rows) {
            to[..row].copy_from_slice(from);
        }
        Ok(Some(StagedImage {
            block,
            bytes,
            pitch,
            size: (image.width, image.height),
            orientation: image.orientation,
        }))
    }
}

impl StagedImage {
    /// Width and height of its pixels, as stored.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Bytes that go to the GPU.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl DeviceImage {
    /// An image that a decoder on the GPU has written to `block`.
    pub fn decoded(
        block: Block<DeviceMemory>,
        layout: PixelLayout,
        size: (u32, u32),
        orientation: Orientation,
    ) -> Self {
        Self { block: Some(block), layout, size, orientation, staged: None, stream: None }
    }

    /// An image that is uploaded to `block` on `stream`.
    pub(super) fn uploading(
        block: Block<DeviceMemory>,
        layout: PixelLayout,
        staged: StagedImage,
        stream: Stream,
    ) -> Self {
        Self {
            block: Some(block),
            layout,
            size: staged.size,
            orientation: staged.orientation,
            staged: Some(staged),
            stream: Some(stream),
        }
    }

    /// Nothing is on its way to its memory any more.
    pub(super) fn settled(&mut self) {
        self.stream = None;
    }
}

impl Drop for DeviceImage {
    fn drop(&mut self) {
        // Its memory goes back to pools, whose next user would meet what is still being written.
        if let Some(stream) = self.stream.take()
            && stream.synchronize().is_err()
        {
            // On a GPU that is lost nothing runs any more.
        }
    }
}
