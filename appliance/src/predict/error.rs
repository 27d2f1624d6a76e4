//! Why an image has no answer; `http::reply` turns these into statuses in one place.

use std::sync::Arc;
use std::time::Duration;

use cloud_sync::outbox::OutboxError;
use gpu_kernels::DecodeError;
use inference::decode_memory::TooCostly;
use inference::lanes::{ClassifyError, LaneError};

/// Why an image has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The bytes are no usable image.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// Decoding it takes more memory than there may be for it.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
    /// The queue is full.
    #[error("all lanes are busy and {capacity} images wait already; try again after the time in Retry-After")]
    Overloaded {
        /// Bound of the queue.
        capacity: usize,
        /// When the queue of now will have been worked off.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the deadline passed before there was an answer")]
    DeadlineExceeded,
    /// A lane failed; the request may be sent again.
    #[error(transparent)]
    Lane(LaneError),
    /// The event could not be made durable, so the answer may not be given.
    #[error("the answer was computed but could not be recorded: {0}")]
    Outbox(#[from] OutboxError),
    /// The model gave no scores, so there is nothing to answer.
    #[error("the model gave no scores")]
    NoScores,
    /// The failure of another request with the same picture, which this one would have met too.
    #[error(transparent)]
    Shared(Arc<PredictError>),
    /// No version of the model is here yet.
    #[error("model {0} has no version here yet; GET /models tells how far its download is")]
    NoModel(String),
    /// The appliance is stopping.
    #[error("the appliance is stopping")]
    Stopping,
}

impl PredictError {
    /// Whether it is the model's fault, not the image's or the moment's.
    pub(super) fn is_of_the_model(&self) -> bool {
        match self {
            Self::Lane(error) => error.is_of_the_model(),
            Self::NoScores => true,
            Self::Shared(error) => error.is_of_the_model(),
            _ => false,
        }
    }

    /// Whether another version might answer where this one did not: all but what is wrong with the image, the outbox or the
    /// process.
    pub(super) fn may_be_of_the_model(&self) -> bool {
        match self {
            Self::Lane(_) | Self::Overloaded { .. } | Self::DeadlineExceeded | Self::NoScores => true,
            Self::Shared(error) => error.may_be_of_the_model(),
            Self::Image(_) | Self::TooCostly(_) | Self::Outbox(_) | Self::NoModel(_) | Self::Stopping => {
                false
            }
        }
    }

    /// Whether any other request with the same picture would fail in the same way, so that it need not try.
    pub(super) fn is_of_the_image(&self) -> bool {
        matches!(
            self,
            Self::Image(_) | Self::TooCostly(_) | Self::Lane(LaneError::Panicked | LaneError::Classify(_))
        )
    }
}

impl From<LaneError> for PredictError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::Classify(ClassifyError::Decode(image)) => Self::Image(image),
            LaneError::DeadlinePassed => Self::DeadlineExceeded,
            other => Self::Lane(other),
        }
    }
}
