//! Preprocessing on an NVIDIA GPU: images go up one by one as they are decoded, then one launch of the [`kernel`](super::kernel)
//! for the batch writes the tensor that the engine reads.
//!
//! 1. A [`StagedImage`] is in memory that the GPU reads by itself; whoever decodes makes it.
//! 2. [`Batches::upload`] puts its copy to the GPU on a stream of its own: a [`DeviceImage`]. A decoder on the GPU makes one
//!    directly.
//! 3. [`Batches::preprocess`] has the engine's stream wait for the images and launches the kernel.
//! 4. The engine's work follows on the same stream ([`Batches::stream`]), then [`Batches::read_back`].
//! 5. When [`Batches::finished`] of the slot is passed, [`Batches::collect`] gives the scores and takes the images' memory back.
//!
//! There are as many slots as batches may be on their way at once. Nothing here waits for the GPU but `collect` and what
//! cleans up; tests and measurements have an [`Uploader`] and more methods of [`Batches`], which do.

mod batch;
mod image;
mod launch;
mod measure;
mod upload;

pub use batch::{BatchSettings, BatchTimes, Batches};
pub use image::{DeviceImage, StagedImage, Stager};
pub use upload::{UploadError, Uploader};
