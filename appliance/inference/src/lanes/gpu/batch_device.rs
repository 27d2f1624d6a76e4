//! The device of a lane on a GPU: it decodes several images at the same time and computes them in batches while it decodes
//! more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use gpu_kernels::ImageFormat;
use gpu_kernels::cuda::GpuError;
use gpu_kernels::decode::Until;

use super::Batching;
use crate::engine::EngineError;
use crate::lanes::ClassifyError;

/// The lane's identifier of an image that the device holds.
pub type Ticket = u64;

/// A device that works on many images at the same time. No method blocks; completions are reported through
/// [`BatchDevice::poll`].
///
/// A lane submits images to decode, with at most [`BatchDevice::max_in_flight`] neither answered nor discarded, and starts
/// batches of decoded ones. Batches complete in the order in which they are started. After an error the lane makes no further
/// calls.
pub trait BatchDevice: Send {
    /// When batches are closed, and the batch sizes of the engine.
    fn batching(&self) -> &Batching;

    /// Largest number of images that are decoded, held and computed at the same time.
    fn max_in_flight(&self) -> usize;

    /// Signalled when there is something to [`BatchDevice::poll`].
    fn wakes(&self) -> &Receiver<()>;

    /// Starts to decode an image; decoding on the CPU is cancelled at `until`.
    fn decode(&mut self, ticket: Ticket, image: Bytes, until: Until);

    /// The next completed event, if there is one.
    fn poll(&mut self) -> Option<DeviceEvent>;

    /// Drops a decoded image.
    fn discard(&mut self, ticket: Ticket);

    /// Starts a batch of decoded images, at most the largest batch size.
    ///
    /// # Errors
    /// [`DeviceError`]; the lane still has to answer the images.
    fn begin(&mut self, images: &[Ticket]) -> Result<(), DeviceError>;
}

/// A completed operation of a device.
#[derive(Debug)]
pub enum DeviceEvent {
    /// An image was decoded, or can't be.
    Decoded(Ticket, Result<Decoded, ClassifyError>),
    /// The oldest running batch was computed: one result per image, in the order of the call.
    Computed(Vec<Result<Computed, EngineError>>),
    /// The device has failed and can't be used again.
    Failed(DeviceError),
}

/// Properties of a decoded image.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Type of the encoded image, by its content.
    pub format: ImageFormat,
    /// Width in pixels as stored in the file.
    pub width: u32,
    /// Height in pixels as stored in the file.
    pub height: u32,
    /// Time spent on decoding.
    pub time: Duration,
}

/// Result for one image of a batch.
#[derive(Clone, Debug)]
pub struct Computed {
    /// One score per label, in the bundle's order.
    pub scores: Vec<f32>,
    /// The image's share of the batch's preprocessing time.
    pub preprocess: Duration,
    /// The image's share of the batch's inference time.
    pub infer: Duration,
}

/// Why a device has failed. Its jobs in flight may be computed elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver refused, or the GPU is lost.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Another lane found that the GPU was lost.
    #[error("the GPU is lost")]
    LostElsewhere,
    /// The engine failed on the device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device panicked.
    #[error("the device's code panicked")]
    Panicked,
    /// A batch exceeded its timeout.
    #[error("a batch on the device exceeded its timeout")]
    Hangs,
    /// A thread of the device has ended.
    #[error("a thread of the device has ended")]
    Ended,
}

impl DeviceError {
    /// The value of a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Gpu(error) if error.is_out_of_memory() => "out_of_memory",
            Self::Gpu(error) if error.is_lost() => "lost",
            Self::Gpu(_) => "refused",
            Self::LostElsewhere => "lost",
            Self::Engine(_) => "engine",
            Self::Hangs => "hangs",
            Self::Panicked | Self::Ended => "panicked",
        }
    }
}

/// A built device, and how to upgrade it.
pub struct Built {
    /// The device that serves first.
    pub device: Box<dyn BatchDevice>,
    /// Builds a faster device on a thread of its own, which may take minutes, while the first one serves.
    pub upgrade: Option<Builder>,
}

/// Builds a device, once.
pub type Builder = Box<dyn FnOnce() -> Result<Box<dyn BatchDevice>, EngineError> + Send>;

/// Builds the device of the lane with this number.
pub type BatchFactory = Arc<dyn Fn(usize) -> Result<Built, EngineError> + Send + Sync>;
