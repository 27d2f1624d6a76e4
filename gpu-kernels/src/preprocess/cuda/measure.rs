//! For tests and measurements: reading tensors, repeating the kernel on the same images, and uploading any layout that the
//! kernel reads. A lane uses [`Batches::upload`], which does not wait.
#![allow(unsafe_code, reason = "memory is handed to streams; each block says why it is sound")]

use std::time::Duration;

use super::{Batches, DeviceImage};
use crate::cuda::{Device, DevicePool, GpuError, PinnedMemory, Stream};
use crate::image::Orientation;
use crate::preprocess::{PixelLayout, TensorDescriptor};

impl Batches {
    /// Submits filling a slot's tensor with one byte value to the stream. 0xFF makes every value NaN in both element types, so
    /// that values that the kernel does not write are detected.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn fill_tensor(&mut self, slot: usize, value: u8) -> Result<(), GpuError> {
        // SAFETY: the slot's tensor is only used on this stream, and dropped only after that has run.
        unsafe { self.slots[slot].tensor.fill(value, &self.compute) }
    }

    /// Waits for the stream, and returns the bytes of the tensor of a slot's first `images`.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of earlier work on the GPU.
    pub fn read_tensor(&mut self, slot: usize, images: usize) -> Result<Vec<u8>, GpuError> {
        let bytes = images.min(self.settings.max_batch)
            * self.settings.spec.output_len()
            * self.settings.element.bytes();
        let mut host = PinnedMemory::zeroed(&self.device, bytes)?;
        let tensor = &self.slots[slot].tensor;
        // SAFETY: the stream is waited for before the block is read or dropped.
        unsafe { host.read_back(tensor, bytes, &self.compute)? };
        self.compute.synchronize()?;
        Ok(host.as_slice()[..bytes].to_vec())
    }

    /// Submits the kernel again for the images that the slot got by [`Batches::preprocess`] and still has. Does nothing if
    /// there are none.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn repeat(&mut self, slot: usize) -> Result<(), GpuError> {
        let Self { slots, settings, kernel, compute, .. } = self;
        let slot = &mut slots[slot];
        let count = u32::try_from(slot.images.len()).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        let tensor = TensorDescriptor::new(slot.tensor.address(), settings.element, &settings.spec);
        compute.record(&slot.began)?;
        // SAFETY: descriptors, tensor and images belong to the slot until its batch has run, and the descriptors were uploaded
        // before.
        unsafe { kernel.launch(compute, &settings.spec, &slot.descriptors, count, &tensor)? };
        compute.record(&slot.preprocessed)
    }

    /// Waits for the last kernel of a slot, and returns its time on the GPU.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of earlier work on the GPU.
    pub fn kernel_time(&self, slot: usize) -> Result<Duration, GpuError> {
        let slot = &self.slots[slot];
        slot.preprocessed.synchronize()?;
        slot.preprocessed.since(&slot.began)
    }

    /// Waits for the streams, and returns the images of a slot for another batch. The slot is free then.
    ///
    /// # Errors
    /// [`GpuError::Refused`]; the images stay in the slot then.
    pub fn give_back(&mut self, slot: usize) -> Result<Vec<DeviceImage>, GpuError> {
        self.copy.synchronize()?;
        self.compute.synchronize()?;
        let mut images = std::mem::take(&mut self.slots[slot].images);
        images.iter_mut().for_each(DeviceImage::settled);
        Ok(images)
    }
}

/// Uploads images one at a time, and waits for each.
#[derive(Debug)]
pub struct Uploader {
    stream: Stream,
    staged: PinnedMemory,
    pool: DevicePool,
    device: Device,
}

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The driver refused a call.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The layout exceeds the bytes, or violates the kernel's alignment.
    #[error("an image of {width} x {height} does not fit in {bytes} bytes with its layout")]
    Layout {
        /// Width, pixels.
        width: u32,
        /// Height, pixels.
        height: u32,
        /// Number of bytes given.
        bytes: usize,
    },
    /// The pool has no room.
    #[error("there is no room on the GPU for an image of {bytes} bytes")]
    NoRoom {
        /// Number of bytes given.
        bytes: usize,
    },
}

impl Uploader {
    /// Uploads images to blocks of this pool.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn new(device: &Device, pool: DevicePool) -> Result<Self, GpuError> {
        let (stream, staged) = (device.stream()?, PinnedMemory::zeroed(device, 0)?);
        Ok(Self { stream, staged, pool, device: device.clone() })
    }

    /// Uploads an image; `layout` has offsets in `bytes` in place of addresses.
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
        // SAFETY: both blocks live until the stream has run the copy, which is waited for here.
        unsafe { self.staged.upload(&block, bytes.len(), &self.stream)? };
        self.stream.synchronize()?;
        let layout = layout.at(block.address());
        Ok(DeviceImage::decoded(block, layout, (width, height), orientation))
    }
}
