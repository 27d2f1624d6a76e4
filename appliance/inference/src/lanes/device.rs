//! What a lane owns: something that turns encoded bytes into scores.

use std::sync::Arc;
use std::time::Duration;

use gpu_kernels::decode::Until;
use gpu_kernels::{DecodeError, ImageFormat, PreprocessError};

use crate::engine::EngineError;

/// A device as a lane sees it: the CPU pipeline, a GPU, or the simulated device of the tests.
pub trait LaneDevice: Send {
    /// Encoded bytes to scores.
    ///
    /// # Errors
    /// [`ClassifyError`]; the device must be usable for the next image after it.
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError>;

    /// Several images, one answer each in their order. A device that is quicker with several in one run of its engine
    /// computes them so; an image that fails fails alone, as one does that is not decoded in its time, where the device can tell.
    fn classify_all(&mut self, images: &[Encoded<'_>]) -> Vec<Result<Classified, ClassifyError>> {
        images.iter().map(|image| self.classify(image.bytes)).collect()
    }
}

/// An encoded image.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// When decoding it is given up.
    pub until: Until,
}

impl<'a> From<&'a [u8]> for Encoded<'a> {
    /// One that may take its time.
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, until: Until::NEVER }
    }
}

/// Builds the device of the lane with this number: on the lane's own thread at start-up and after a panic, on another
/// when it is built beside lanes that serve.
pub type DeviceFactory = Arc<dyn Fn(usize) -> Result<Box<dyn LaneDevice>, EngineError> + Send + Sync>;

/// Scores of one image and what was learned on the way.
#[derive(Clone, Debug)]
pub struct Classified {
    /// One score a label, in the bundle's order.
    pub scores: Vec<f32>,
    /// Type of the encoded image, as sniffed.
    pub format: ImageFormat,
    /// Width in pixels as stored in the file, before orientation.
    pub width: u32,
    /// Height in pixels as stored in the file, before orientation.
    pub height: u32,
    /// Time spent by stage.
    pub timings: StageTimings,
}

/// Time spent by stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageTimings {
    /// Encoded bytes to RGB.
    pub decode: Duration,
    /// RGB to the input tensor.
    pub preprocess: Duration,
    /// Input tensor to scores.
    pub infer: Duration,
}

impl StageTimings {
    /// All stages together.
    pub fn sum(&self) -> Duration {
        self.decode + self.preprocess + self.infer
    }
}

/// Why an image has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// The bytes are no usable image.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The pixels don't fit the preprocess.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The thread that had it did not come back.
    #[error("the lane was stuck at this image for more than {} s and was replaced", limit.as_secs_f32())]
    Stalled {
        /// How long a lane may be at one image.
        limit: Duration,
    },
}
