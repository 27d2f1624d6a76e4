//! A job on its way through a lane, the answer it gets, and why there may be none.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu_kernels::{DecodeError, ImageFormat, PreprocessError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::settings::{LaneObserver, SkipReason};
use crate::decode_memory::{DecodeMemory, Reservation};
use crate::engine::EngineError;

/// The scores of an image, with its properties and the time per stage.
#[derive(Clone, Debug)]
pub struct Classified {
    /// One score per label, in the bundle's order.
    pub scores: Vec<f32>,
    /// Type of the encoded image, by its content.
    pub format: ImageFormat,
    /// Width in pixels as stored in the file, before orientation.
    pub width: u32,
    /// Height in pixels as stored in the file, before orientation.
    pub height: u32,
    /// Time per stage.
    pub timings: StageTimings,
}

/// Time per stage.
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
    /// Sum of all stages.
    pub fn sum(&self) -> Duration {
        self.decode + self.preprocess + self.infer
    }
}

/// Why an image has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// The bytes are not a valid image.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The pixels don't fit the preprocessing.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The thread that computed it was stuck and was replaced.
    #[error("the lane was stuck at this image for more than {} s and was replaced", limit.as_secs_f32())]
    Stalled {
        /// How long a lane may work on one image.
        limit: Duration,
    },
}

/// A lane's answer: the scores and the time in the queue, or an error.
pub type LaneReply = Result<(Classified, Duration), LaneError>;

/// Why a job has no scores.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The image could not be decoded or computed.
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    /// The deadline passed while the job waited or was decoded; nothing was computed.
    #[error("the deadline passed before the image was decoded")]
    DeadlinePassed,
    /// The queue was full, and the job was displaced by one of a client with fewer queued jobs.
    #[error("the queue is full, and this image was displaced by another client's")]
    Displaced,
    /// The device panicked on this job and is being rebuilt.
    #[error("the lane failed on this image and is being restarted")]
    Panicked,
    /// The device failed on this job's batch twice, or no other device could retry it.
    #[error("the device failed while it computed this image, and so did the retry")]
    DeviceFailed,
    /// No lane has a working device.
    #[error("no lane has a working device at the moment")]
    NoDevice,
}

impl LaneError {
    /// Whether the model or its device is at fault, and not the image or the load.
    pub fn is_of_the_model(&self) -> bool {
        match self {
            Self::DeadlinePassed | Self::Displaced => false,
            Self::NoDevice | Self::Panicked | Self::DeviceFailed => true,
            Self::Classify(error) => !matches!(error, ClassifyError::Decode(_)),
        }
    }

    /// Whether this machine is at fault, so that another version of the model would have failed as well: its device is
    /// missing, has failed or is stuck, or a resource is exhausted.
    pub fn is_of_the_machine(&self) -> bool {
        match self {
            Self::NoDevice | Self::DeviceFailed | Self::Classify(ClassifyError::Stalled { .. }) => true,
            Self::Classify(ClassifyError::Engine(error)) => error.is_of_the_machine(),
            _ => false,
        }
    }

    /// Whether a retry of the same image may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::DeadlinePassed | Self::Displaced | Self::NoDevice | Self::Panicked | Self::DeviceFailed => {
                true
            }
            Self::Classify(ClassifyError::Engine(error)) => error.may_pass(),
            Self::Classify(ClassifyError::Stalled { .. }) => true,
            Self::Classify(ClassifyError::Decode(_) | ClassifyError::Preprocess(_)) => false,
        }
    }

    /// The error code for API clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DeadlinePassed => "deadline_exceeded",
            Self::Displaced => "overloaded",
            Self::NoDevice => "no_device",
            Self::Panicked => "lane_failed",
            Self::DeviceFailed => "device_failed",
            Self::Classify(ClassifyError::Decode(image)) => image.code(),
            Self::Classify(ClassifyError::Stalled { .. }) => "lane_stalled",
            Self::Classify(ClassifyError::Engine(error)) if error.fault_of_scores().is_some() => {
                "invalid_scores"
            }
            Self::Classify(ClassifyError::Preprocess(_) | ClassifyError::Engine(_)) => "inference_failed",
        }
    }
}

pub(super) struct Job {
    pub(super) image: Bytes,
    /// `None` for batch work.
    pub(super) deadline: Option<Instant>,
    pub(super) queued: Instant,
    pub(super) reply: oneshot::Sender<LaneReply>,
    /// The permit for a slot in the batch queue; released when a lane takes the job.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Decode memory that the image may take, in bytes; 0 if it is not accounted.
    pub(super) cost: u64,
    /// The reserved memory, until a decoder has the image.
    pub(super) reservation: Option<Reservation>,
    /// Whether a device has failed while it had this job.
    pub(super) tried_again: bool,
}

/// The bytes of an image with its reservation of decode memory.
struct Reserved {
    image: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.image
    }
}

impl Job {
    /// A job that is queued now, and the receiver of its answer.
    pub(super) fn new(
        image: Bytes,
        deadline: Option<Instant>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> (Self, oneshot::Receiver<LaneReply>) {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let job =
            Self { image, deadline, queued, reply, permit, cost: 0, reservation: None, tried_again: false };
        (job, answer)
    }

    /// The job with its reservation of decode memory.
    pub(super) fn with_reserved(self, cost: u64, reservation: Reservation) -> Self {
        Self { cost, reservation: Some(reservation), ..self }
    }

    /// The job's error: an image that is not decoded by its deadline missed the deadline, one that exceeds the limit on
    /// decoding time is too costly.
    pub(super) fn failed(&self, error: ClassifyError) -> LaneError {
        match error {
            ClassifyError::Decode(DecodeError::OutOfTime)
                if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) =>
            {
                LaneError::DeadlinePassed
            }
            error => error.into(),
        }
    }

    /// The image for a decoder. The reservation is held until the last clone of the bytes is dropped.
    pub(super) fn take_to_decode(&mut self) -> Bytes {
        match self.reservation.take() {
            Some(reservation) => {
                Bytes::from_owner(Reserved { image: self.image.clone(), _reservation: reservation })
            }
            None => self.image.clone(),
        }
    }

    /// The job, unless its client has disconnected or its deadline has passed, which is then answered and observed.
    pub(super) fn still_wanted(self, lane: usize, observer: &dyn LaneObserver) -> Option<Self> {
        if self.reply.is_closed() {
            observer.skipped(lane, SkipReason::Cancelled);
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            observer.skipped(lane, SkipReason::Deadline);
            let _ = self.reply.send(Err(LaneError::DeadlinePassed));
            return None;
        }
        Some(self)
    }

    /// The job with its reservation, which is renewed if it went with a failed device. The job is answered with an error when
    /// there is no memory.
    pub(super) fn with_reservation(mut self, memory: &DecodeMemory) -> Option<Self> {
        if self.reservation.is_none() && self.cost > 0 {
            self.reservation = memory.try_reserve(self.cost);
            if self.reservation.is_none() {
                let _ = self.reply.send(Err(LaneError::DeviceFailed));
                return None;
            }
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_decoded_in_time_is_late_or_costly() {
        let late = Job::new(Bytes::new(), Some(Instant::now()), None).0;
        let early = Job::new(Bytes::new(), Some(Instant::now() + Duration::from_secs(3600)), None).0;
        let patient = Job::new(Bytes::new(), None, None).0;
        for (job, code) in
            [(late, "deadline_exceeded"), (early, "image_too_costly"), (patient, "image_too_costly")]
        {
            let error = job.failed(DecodeError::OutOfTime.into());
            assert_eq!((error.code(), error.is_of_the_model()), (code, false));
            assert_eq!(job.failed(DecodeError::EmptyImage.into()).code(), "empty_image");
        }
    }
}
