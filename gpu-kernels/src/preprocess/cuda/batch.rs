//! Batches in flight on a GPU: their memory, and the order of work on their streams.
#![allow(unsafe_code, reason = "memory is handed to streams; each block says why it is sound")]

use std::mem::size_of;
use std::time::Duration;

use super::kernel::Kernel;
use super::{DeviceImage, StagedImage};
use crate::cuda::{Device, DeviceMemory, DevicePool, Event, GpuError, PinnedMemory, Stream};
use crate::preprocess::{Element, ImageDescriptor, PixelLayout, PreprocessSpec, TensorDescriptor};

/// The parameters of a lane's batches.
#[derive(Clone, Debug)]
pub struct BatchSettings {
    /// The preprocessing.
    pub spec: PreprocessSpec,
    /// Element type of the tensor.
    pub element: Element,
    /// Largest number of images in a batch.
    pub max_batch: usize,
    /// Bytes per image of the scores.
    pub score_bytes: usize,
    /// Number of batches in flight.
    pub slots: usize,
    /// Limit of device memory for images, in bytes.
    pub image_bytes: usize,
}

/// Time of a batch on the GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTimes {
    /// The kernel, and its wait for uploads.
    pub preprocess: Duration,
    /// The engine, and the copy of the scores to the host.
    pub infer: Duration,
}

/// The batches of one lane on one GPU.
#[derive(Debug)]
pub struct Batches {
    // In drop order: slots have work on the streams.
    pub(super) slots: Vec<Slot>,
    pub(super) kernel: Kernel,
    pub(super) copy: Stream,
    pub(super) compute: Stream,
    pool: DevicePool,
    pub(super) device: Device,
    pub(super) settings: BatchSettings,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) descriptors: DeviceMemory,
    descriptors_host: PinnedMemory,
    pub(super) tensor: DeviceMemory,
    scores: DeviceMemory,
    scores_host: PinnedMemory,
    uploaded: Event,
    pub(super) began: Event,
    pub(super) preprocessed: Event,
    finished: Event,
    pub(super) images: Vec<DeviceImage>,
}

impl Batches {
    /// Loads the kernel and allocates memory for every slot. The engine's work is submitted to `compute`.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn new(device: &Device, compute: Stream, settings: BatchSettings) -> Result<Self, GpuError> {
        let slots: Result<_, _> = (0..settings.slots).map(|_| Slot::new(device, &settings)).collect();
        let batches = Self {
            slots: slots?,
            kernel: Kernel::load(device)?,
            copy: device.stream()?,
            compute,
            pool: DevicePool::new(device, settings.image_bytes),
            device: device.clone(),
            settings,
        };
        // Our streams do not wait for the one on which memory is cleared.
        device.synchronize()?;
        Ok(batches)
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream for the engine's work, between [`Batches::preprocess`] and [`Batches::read_back`].
    pub fn stream(&self) -> &Stream {
        &self.compute
    }

    /// Device memory for images that are decoded on the GPU.
    pub fn pool(&self) -> &DevicePool {
        &self.pool
    }

    /// Address of a slot's tensor, of `max_batch` images; zero until the kernel has written to it.
    pub fn tensor(&self, slot: usize) -> u64 {
        self.slots[slot].tensor.address()
    }

    /// Address of a slot's scores, of `max_batch` images.
    pub fn scores(&self, slot: usize) -> u64 {
        self.slots[slot].scores.address()
    }

    /// Completes when the slot's batch has been read back.
    pub fn finished(&self, slot: usize) -> Event {
        self.slots[slot].finished.clone()
    }

    /// Starts the upload of an image; returns it if there is no room before another batch is collected.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn upload(&self, image: StagedImage) -> Result<Result<DeviceImage, StagedImage>, GpuError> {
        let Some(block) = self.pool.take(image.bytes)? else { return Ok(Err(image)) };
        let layout = PixelLayout::Rgb { plane: (block.address(), image.pitch) };
        let bytes = image.bytes;
        // From here on the image waits for the stream before it releases either block.
        let image = DeviceImage::uploading(block, layout, image, self.copy.clone());
        if let (Some(to), Some(from)) = (&image.block, &image.staged) {
            // SAFETY: both blocks stay with the image, which ends only when the stream has run the copy, or with a batch that
            // has. Neither is shared.
            unsafe { from.block.upload(to, bytes, &self.copy)? };
        }
        Ok(Ok(image))
    }

    /// Starts a batch in a free slot: the engine's stream waits for the images and runs the kernel.
    ///
    /// # Errors
    /// [`GpuError`]; the images are dropped then.
    pub fn preprocess(&mut self, slot: usize, mut images: Vec<DeviceImage>) -> Result<(), GpuError> {
        let Self { slots, settings, kernel, copy, compute, .. } = self;
        let (spec, slot) = (&settings.spec, &mut slots[slot]);
        images.truncate(settings.max_batch);
        let room = slot.descriptors_host.as_mut_slice().chunks_exact_mut(size_of::<ImageDescriptor>());
        for ((place, image), to) in (0..).zip(&images).zip(room) {
            let descriptor = ImageDescriptor::new(image.layout, image.size, image.orientation, spec, place);
            to.copy_from_slice(bytemuck::bytes_of(&descriptor));
        }
        let bytes = images.len() * size_of::<ImageDescriptor>();
        // SAFETY: both blocks belong to the slot, which is reused or dropped only after its batch has run.
        unsafe { slot.descriptors_host.upload(&slot.descriptors, bytes, copy)? };
        copy.record(&slot.uploaded)?;
        compute.wait(&slot.uploaded)?;
        compute.record(&slot.began)?;
        let count = u32::try_from(images.len()).unwrap_or(0);
        slot.images = images;
        let tensor = TensorDescriptor::new(slot.tensor.address(), settings.element, spec);
        // SAFETY: descriptors, tensor and images belong to the slot until its batch has run.
        unsafe { kernel.launch(compute, spec, &slot.descriptors, count, &tensor)? };
        compute.record(&slot.preprocessed)
    }

    /// Submits the copy of the scores of this many images to the host.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn read_back(&mut self, slot: usize, images: usize) -> Result<(), GpuError> {
        let bytes = images * self.settings.score_bytes;
        let slot = &mut self.slots[slot];
        // SAFETY: both blocks belong to the slot, and only `collect` reads this one, after waiting.
        unsafe { slot.scores_host.read_back(&slot.scores, bytes, &self.compute)? };
        self.compute.record(&slot.finished)
    }

    /// Waits until a slot's batch has been read back, and returns its scores (`score_bytes` per image) and times. The slot is
    /// free then.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of the batch's work.
    pub fn collect(&mut self, slot: usize) -> Result<(&[u8], BatchTimes), GpuError> {
        let slot = &mut self.slots[slot];
        slot.finished.synchronize()?;
        let images = slot.images.len();
        slot.clear();
        let times = BatchTimes {
            preprocess: slot.preprocessed.since(&slot.began)?,
            infer: slot.finished.since(&slot.preprocessed)?,
        };
        Ok((&slot.scores_host.as_slice()[..images * self.settings.score_bytes], times))
    }
}

impl Slot {
    fn new(device: &Device, settings: &BatchSettings) -> Result<Self, GpuError> {
        let images = settings.max_batch;
        let values = 3 * settings.spec.crop as usize * settings.spec.crop as usize;
        let descriptors = images * size_of::<ImageDescriptor>();
        let scores = images * settings.score_bytes;
        Ok(Self {
            descriptors: DeviceMemory::zeroed(device, descriptors)?,
            descriptors_host: PinnedMemory::zeroed(device, descriptors)?,
            tensor: DeviceMemory::zeroed(device, images * values * settings.element.bytes())?,
            scores: DeviceMemory::zeroed(device, scores)?,
            scores_host: PinnedMemory::zeroed(device, scores)?,
            uploaded: device.event()?,
            began: device.event()?,
            preprocessed: device.event()?,
            finished: device.event()?,
            images: Vec::new(),
        })
    }

    /// Releases the images of a batch that has run.
    fn clear(&mut self) {
        for mut image in self.images.drain(..) {
            image.settled();
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // The streams must have completed before the memory is freed; on a lost GPU they run nothing.
        let _ = self.copy.synchronize();
        let _ = self.compute.synchronize();
    }
}
