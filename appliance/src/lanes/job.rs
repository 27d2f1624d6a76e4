//! One image on its way through a lane, and the answer it gets.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Classified, ClassifyError};

/// What a lane answers: the scores and how long the job waited, or why there are none.
pub type LaneReply = Result<(Classified, Duration), LaneError>;

/// Why a job has no scores.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The image or the engine failed.
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    /// The deadline passed while the job waited; nothing was computed.
    #[error("the deadline passed while the request waited for a lane")]
    DeadlinePassed,
    /// The device panicked on this job; it is being built anew.
    #[error("the lane failed on this image and is being restarted")]
    Panicked,
    /// Every lane has lost its device and none could be built anew yet.
    #[error("no lane has a working device at the moment")]
    NoDevice,
}

pub(super) struct Job {
    pub(super) image: Bytes,
    pub(super) deadline: Instant,
    pub(super) queued: Instant,
    pub(super) reply: oneshot::Sender<LaneReply>,
}
