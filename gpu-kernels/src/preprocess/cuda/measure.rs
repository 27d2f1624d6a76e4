//! What tests and measurements do with batches beside what a lane does: they look at the tensor, and run the kernel again on
//! the same images.
#![allow(unsafe_code, reason = "memory is handed to streams; each block says why it is sound")]

use std::time::Duration;

use super::{Batches, DeviceImage};
use crate::cuda::{GpuError, PinnedMemory};
use crate::preprocess::TensorDescriptor;

impl Batches {
    /// Puts the writing of one value to every byte of a slot's tensor on the stream. 0xFF makes every value of either element
    /// type not a number, so that one which the kernel does not write is seen.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn fill_tensor(&mut self, slot: usize, value: u8) -> Result<(), GpuError> {
        // SAFETY: the slot's tensor is used on this stream alone, and dropped only after that has run.
        unsafe { self.slots[slot].tensor.fill(value, &self.compute) }
    }

    /// The tensor of a slot's first `images`, as its elements lie there, when all on the stream has run.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also with what has gone wrong on the GPU before.
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

    /// Puts the kernel on the stream once more, for the images that the slot was given by [`Batches::preprocess`] and has not
    /// given back. Does nothing where there are none.
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
        // before what is on the stream already.
        unsafe { kernel.launch(compute, &settings.spec, &slot.descriptors, count, &tensor)? };
        compute.record(&slot.preprocessed)
    }

    /// How long the last kernel of a slot took on the GPU; waits for it.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also with what has gone wrong on the GPU before.
    pub fn kernel_time(&self, slot: usize) -> Result<Duration, GpuError> {
        let slot = &self.slots[slot];
        slot.preprocessed.synchronize()?;
        slot.preprocessed.since(&slot.began)
    }

    /// Gives the images of a slot back, for another batch, when all on the stream has run. The slot is free then.
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
