//! Pixels of the host brought to the GPU in any layout that the kernel reads, one image at a time: for tests and measurements.
//! A lane's way is [`Batches::upload`](super::Batches::upload), which waits for nothing.
#![allow(unsafe_code, reason = "memory is handed to a stream; the block says why it is sound")]

use super::DeviceImage;
use crate::cuda::{Device, DevicePool, GpuError, PinnedMemory, Stream};
use crate::image::Orientation;
use crate::preprocess::PixelLayout;

/// Brings images to the GPU and waits until they are there.
#[derive(Debug)]
pub struct Uploader {
    stream: Stream,
    staged: PinnedMemory,
    pool: DevicePool,
    device: Device,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The driver.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// What the layout says is not within the bytes, or not as the kernel wants it.
    #[error("an image of {width} x {height} does not lie in {bytes} bytes as its layout says")]
    Layout {
        /// Width, pixels.
        width: u32,
        /// Height, pixels.
        height: u32,
        /// Bytes that were given.
        bytes: usize,
    },
    /// The pool has no room.
    #[error("there is no room on the GPU for an image of {bytes} bytes")]
    NoRoom {
        /// Bytes that were given.
        bytes: usize,
    },
}

impl Uploader {
    /// Images go to blocks of this pool.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn new(device: &Device, pool: DevicePool) -> Result<Self, GpuError> {
        let (stream, staged) = (device.stream()?, PinnedMemory::zeroed(device, 0)?);
        Ok(Self { stream, staged, pool, device: device.clone() })
    }

    /// Copies an image, whose `layout` has offsets in `bytes` in the place of addresses.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn upload(
        &mut self,
        bytes: &[u8],
        layout: PixelLayout,
        (width, height): (u32, u32),
        orientation: Orientation,
    ) -> Result<DeviceImage, UploadError> {
        if !layout.fits((width, height), bytes.len()) {
            return Err(UploadError::Layout { width, height, bytes: bytes.len() });
        }
        if self.staged.as_slice().len() < bytes.len() {
            self.staged = PinnedMemory::zeroed(&self.device, bytes.len())?;
        }
        let block = self.pool.take(bytes.len())?.ok_or(UploadError::NoRoom { bytes: bytes.len() })?;
        self.staged.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: both blocks stay until the stream has run this, which is waited for here.
        unsafe { self.staged.upload(&block, bytes.len(), &self.stream)? };
        self.stream.synchronize()?;
        let layout = layout.at(block.address());
        Ok(DeviceImage::decoded(block, layout, (width, height), orientation))
    }
}
