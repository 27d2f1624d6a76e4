//! One image on its way through a lane, and the answer it gets.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu_kernels::DecodeError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Classified, ClassifyError};
use crate::decode_memory::{DecodeMemory, Room};

/// What a lane answers: the scores and how long the job waited, or why there are none.
pub type LaneReply = Result<(Classified, Duration), LaneError>;

/// Why a job has no scores.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The image or the engine failed.
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    /// The deadline passed while the job waited or was decoded; nothing was computed.
    #[error("the deadline passed before the image was decoded")]
    DeadlinePassed,
    /// The queue was full, and another client with fewer jobs took this one's place.
    #[error("the queue is full and another client's image took the place of this one")]
    Displaced,
    /// The device panicked on this job; it is being built anew.
    #[error("the lane failed on this image and is being restarted")]
    Panicked,
    /// The device failed on this job's batch, twice, or nothing else could compute it.
    #[error("the device failed while it computed this image, and so did the one that tried again")]
    DeviceFailed,
    /// Every lane has lost its device and none could be built anew yet.
    #[error("no lane has a working device at the moment")]
    NoDevice,
}

impl LaneError {
    /// Whether it is the model's fault, or its device's, and not the image's or the moment's.
    pub fn is_of_the_model(&self) -> bool {
        match self {
            Self::DeadlinePassed | Self::Displaced => false,
            Self::NoDevice | Self::Panicked | Self::DeviceFailed => true,
            Self::Classify(error) => !matches!(error, ClassifyError::Decode(_)),
        }
    }

    /// Whether this machine failed, so that another version would have met the same: its device is away, failed or stuck, or it
    /// ran out of something.
    pub fn is_of_the_machine(&self) -> bool {
        match self {
            Self::NoDevice | Self::DeviceFailed | Self::Classify(ClassifyError::Stalled { .. }) => true,
            Self::Classify(ClassifyError::Engine(error)) => error.is_of_the_machine(),
            _ => false,
        }
    }

    /// Whether the same image may come out otherwise when it is tried again.
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

    /// The reason for programs.
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
    /// None for batch work, which waits as long as it must.
    pub(super) deadline: Option<Instant>,
    pub(super) queued: Instant,
    pub(super) reply: oneshot::Sender<LaneReply>,
    /// Its place among the batch jobs that wait; given back when a lane takes the job.
    pub(super) place: Option<OwnedSemaphorePermit>,
    /// Bytes of memory that decoding it may take; 0 for what is not counted.
    pub(super) cost: u64,
    /// That memory, until a decoder has the image.
    pub(super) room: Option<Room>,
    /// Whether a device failed while it had this job.
    pub(super) tried_again: bool,
}

/// An image with the memory that decoding it may take.
struct Housed {
    image: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Housed {
    fn as_ref(&self) -> &[u8] {
        &self.image
    }
}

impl Job {
    /// A job that comes now, and where its answer will be.
    pub(super) fn new(
        image: Bytes,
        deadline: Option<Instant>,
        place: Option<OwnedSemaphorePermit>,
    ) -> (Self, oneshot::Receiver<LaneReply>) {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let job = Self { image, deadline, queued, reply, place, cost: 0, room: None, tried_again: false };
        (job, answer)
    }

    /// The job with the memory that decoding it may take.
    pub(super) fn with_room(self, cost: u64, room: Room) -> Self {
        Self { cost, room: Some(room), ..self }
    }

    /// Why the job failed: an image that was not decoded by its deadline is late, one that took longer than any may is costly.
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

    /// The image for who decodes it: as long as a clone of it is left, the memory for decoding is held.
    pub(super) fn take_to_decode(&mut self) -> Bytes {
        match self.room.take() {
            Some(room) => Bytes::from_owner(Housed { image: self.image.clone(), _room: room }),
            None => self.image.clone(),
        }
    }

    /// The job, unless its memory went with a device that failed and there is none now, who is told so then.
    pub(super) fn has_room(mut self, memory: &DecodeMemory) -> Option<Self> {
        if self.room.is_none() && self.cost > 0 {
            self.room = memory.try_reserve(self.cost);
            if self.room.is_none() {
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
