//! An image on its way to the GPU: staged in pinned memory, then in device memory.

use std::time::Duration;

use crate::cuda::{Block, DeviceMemory, GpuError, PinnedMemory, PinnedPool, Stream};
use crate::image::{Image, Orientation};
use crate::preprocess::{PixelLayout, ROW_GROUP};

/// Creates [`StagedImage`]s. Each decoding thread has a clone.
#[derive(Clone, Debug)]
pub struct Stager {
    pool: PinnedPool,
}

/// An image in pinned memory, with the row alignment of the kernel.
#[derive(Debug)]
pub struct StagedImage {
    pub(super) block: Block<PinnedMemory>,
    pub(super) bytes: usize,
    pub(super) pitch: u32,
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
}

/// An image in device memory, or being uploaded to it by a stream.
#[derive(Debug)]
pub struct DeviceImage {
    pub(super) block: Option<Block<DeviceMemory>>,
    pub(super) layout: PixelLayout,
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
    /// The source of the upload, until it has completed.
    pub(super) staged: Option<StagedImage>,
    /// The stream with pending work on the image; `None` once that has completed.
    pub(super) stream: Option<Stream>,
}

impl Stager {
    /// Stages images in blocks of this pool.
    pub fn new(pool: PinnedPool) -> Self {
        Self { pool }
    }

    /// Copies an image, waiting for room for up to `timeout`; `None` if there was none.
    ///
    /// # Errors
    /// [`GpuError::Refused`] when the driver is out of memory.
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

    /// Bytes to upload.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl DeviceImage {
    /// An image that was decoded on the GPU to `block`.
    pub fn decoded(
        block: Block<DeviceMemory>,
        layout: PixelLayout,
        size: (u32, u32),
        orientation: Orientation,
    ) -> Self {
        Self { block: Some(block), layout, size, orientation, staged: None, stream: None }
    }

    /// An image that is being uploaded to `block` on `stream`.
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

    /// Marks the work on the image as completed.
    pub(super) fn settled(&mut self) {
        self.stream = None;
    }
}

impl Drop for DeviceImage {
    fn drop(&mut self) {
        // Pending writes would corrupt the memory of the pools' next users.
        if let Some(stream) = self.stream.take()
            && stream.synchronize().is_err()
        {
            // On a lost GPU nothing runs.
        }
    }
}
