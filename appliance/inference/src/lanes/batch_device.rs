//! What a lane of a GPU owns: something that decodes several images at once and computes them in batches while it decodes more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use gpu_kernels::ImageFormat;
use gpu_kernels::cuda::GpuError;
use gpu_kernels::decode::Until;

use super::ClassifyError;
use super::batching::Batching;
use crate::engine::EngineError;

/// What a lane calls an image while the device has it.
pub type Ticket = u64;

/// A device that works on many images at once. It never makes its lane wait; what it has done it says through
/// [`BatchDevice::poll`].
///
/// A lane gives it images to decode, at most [`BatchDevice::window`] that are not answered or discarded, and begins batches of
/// decoded ones. Batches are computed in the order in which they are begun. After an error nothing more is asked of it.
pub trait BatchDevice: Send {
    /// When batches are closed, and of which sizes the engine takes them.
    fn batching(&self) -> &Batching;

    /// Most images that it decodes, keeps and computes at once.
    fn window(&self) -> usize;

    /// Says that there is something to [`BatchDevice::poll`].
    fn wakes(&self) -> &Receiver<()>;

    /// Begins to decode an image, which the CPU gives up at that time.
    fn decode(&mut self, ticket: Ticket, image: Bytes, until: Until);

    /// What has happened next, if anything has.
    fn poll(&mut self) -> Option<DeviceEvent>;

    /// A decoded image is not wanted any more.
    fn discard(&mut self, ticket: Ticket);

    /// Begins a batch of decoded images, no more than the largest.
    ///
    /// # Errors
    /// [`DeviceError`]; the images are still the lane's to answer.
    fn begin(&mut self, images: &[Ticket]) -> Result<(), DeviceError>;
}

/// Something that a device has done.
#[derive(Debug)]
pub enum DeviceEvent {
    /// An image is decoded, or never will be.
    Decoded(Ticket, Result<Decoded, ClassifyError>),
    /// The batch that was begun first of those under way: one outcome an image, in the order in which they were given.
    Computed(Vec<Result<Computed, EngineError>>),
    /// It is of no use any more.
    Failed(DeviceError),
}

/// What decoding an image has told.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Type of the encoded image, as sniffed.
    pub format: ImageFormat,
    /// Width in pixels as stored in the file.
    pub width: u32,
    /// Height in pixels as stored in the file.
    pub height: u32,
    /// Time spent on it.
    pub time: Duration,
}

/// What computing a batch has told of one of its images.
#[derive(Clone, Debug)]
pub struct Computed {
    /// One score a label, in the bundle's order.
    pub scores: Vec<f32>,
    /// Its share of the batch's preprocessing.
    pub preprocess: Duration,
    /// Its share of the batch's inference.
    pub infer: Duration,
}

/// Why a device is of no use any more. What it had in hand may be computed elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver refused, or the GPU is lost.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Another lane has found the GPU lost.
    #[error("the GPU is lost")]
    LostElsewhere,
    /// The engine failed on the device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It panicked.
    #[error("the device's code panicked")]
    Panicked,
    /// A batch does not end.
    #[error("a batch has been on the device for longer than any takes")]
    Hangs,
    /// One of its threads has ended.
    #[error("a thread of the device has ended")]
    Ended,
}

impl DeviceError {
    /// For a metric's label.
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

/// A device that was built, and what may replace it.
pub struct Built {
    /// What serves now.
    pub device: Box<dyn BatchDevice>,
    /// Builds a better one, which may take minutes; on a thread of its own while the first serves.
    pub better: Option<Builder>,
}

/// Builds a device once.
pub type Builder = Box<dyn FnOnce() -> Result<Box<dyn BatchDevice>, EngineError> + Send>;

/// Builds the device of the lane with this number.
pub type BatchFactory = Arc<dyn Fn(usize) -> Result<Built, EngineError> + Send + Sync>;
