//! Preprocessing on an NVIDIA GPU: images are uploaded one by one as they are decoded, then one launch of the kernel per batch
//! writes the tensor that the engine reads.
//!
//! 1. A [`StagedImage`] is in pinned memory; the decoding thread creates it.
//! 2. [`Batches::upload`] submits its copy to the GPU on a separate stream: a [`DeviceImage`]. A decoder on the GPU
//!    creates one directly.
//! 3. [`Batches::preprocess`] makes the engine's stream wait for the images and launches the kernel.
//! 4. The engine's work follows on the same stream ([`Batches::stream`]), then [`Batches::read_back`].
//! 5. When [`Batches::finished`] of the slot has completed, [`Batches::collect`] returns the scores and releases the images.
//!
//! There is one slot per batch in flight. Only `collect` and cleanup wait for the GPU; tests and measurements also have an
//! [`Uploader`] and further methods of [`Batches`], which do.

mod batch;
mod image;
mod kernel;
mod measure;

pub use batch::{BatchSettings, BatchTimes, Batches};
pub use image::{DeviceImage, StagedImage, Stager};
pub use measure::{UploadError, Uploader};
