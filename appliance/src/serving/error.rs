//! Why an image was not classified. `http::reply` maps these errors to statuses, a batch's worker to results.

use std::sync::Arc;
use std::time::Duration;

use gpu_kernels::DecodeError;
use inference::decode_memory::TooCostly;
use inference::lanes::{ClassifyError, LaneError};

/// Why an image was not classified.
#[derive(Debug, thiserror::Error)]
pub enum ClassificationError {
    /// The bytes are not a usable image.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// Decoding the image takes more memory than the limit.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
    /// The queue is full.
    #[error("all lanes are busy and {capacity} images are queued; retry after the time in Retry-After")]
    Overloaded {
        /// Capacity of the queue.
        capacity: usize,
        /// Estimated time until the queue is empty.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the deadline passed before there was an answer")]
    DeadlineExceeded,
    /// A lane failed; the request may be sent again.
    #[error(transparent)]
    Lane(LaneError),
    /// The model returned no scores.
    #[error("the model gave no scores")]
    NoScores,
    /// The error of a concurrent request with the same image, which this request would also have run into.
    #[error(transparent)]
    Shared(Arc<ClassificationError>),
    /// No version of the model is loaded yet.
    #[error("model {0} has no version here yet; GET /models shows the progress of its download")]
    NoModel(String),
    /// The appliance is stopping.
    #[error("the appliance is stopping")]
    Stopping,
}

impl ClassificationError {
    /// The error code of the API and of results of batches.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::TooCostly(_) => "image_too_costly",
            Self::Overloaded { .. } => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Lane(error) => error.code(),
            Self::NoScores => "inference_failed",
            Self::Shared(error) => error.code(),
            Self::NoModel(_) => "model_not_ready",
            Self::Stopping => "draining",
        }
    }

    /// Whether another try with the same image may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Lane(error) => error.may_pass(),
            Self::Shared(error) => error.may_pass(),
            Self::Overloaded { .. } | Self::DeadlineExceeded | Self::NoModel(_) | Self::Stopping => true,
            Self::Image(_) | Self::TooCostly(_) | Self::NoScores => false,
        }
    }

    /// Whether the model, its device or its lane is the cause, not the image or the load. Such an error has been counted
    /// in the version's statistics.
    pub(super) fn is_of_the_model(&self) -> bool {
        match self {
            Self::Lane(error) => error.is_of_the_model(),
            Self::NoScores => true,
            Self::Shared(error) => error.is_of_the_model(),
            _ => false,
        }
    }

    /// Whether another version could have answered: true for every error but those of the image or of the process.
    pub(super) fn may_be_of_the_model(&self) -> bool {
        match self {
            Self::Lane(_) | Self::Overloaded { .. } | Self::DeadlineExceeded | Self::NoScores => true,
            Self::Shared(error) => error.may_be_of_the_model(),
            Self::Image(_) | Self::TooCostly(_) | Self::NoModel(_) | Self::Stopping => false,
        }
    }

    /// Whether every other request with the same image would fail in the same way.
    pub fn is_of_the_image(&self) -> bool {
        matches!(
            self,
            Self::Image(_) | Self::TooCostly(_) | Self::Lane(LaneError::Panicked | LaneError::Classify(_))
        )
    }
}

impl From<LaneError> for ClassificationError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::Classify(ClassifyError::Decode(image)) => Self::Image(image),
            LaneError::DeadlinePassed => Self::DeadlineExceeded,
            other => Self::Lane(other),
        }
    }
}
