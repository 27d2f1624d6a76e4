//! Why a batch was not accepted, or has no answer; `http::reply` maps these to HTTP statuses.

use cloud_sync::batch_status::BatchPhase;
use cloud_sync::blob::{InvalidKey, StoreFull};
use cloud_sync::error::SyncError;

use super::object_keys::InvalidId;
use super::parsing::IntakeError;
use super::result_store::ResultsError;
use super::spool::SpoolError;

/// Why a batch was not accepted, or has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The request is wrong.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// A different batch has the id.
    #[error("request_id {request_id} belongs to a batch with other images, camera or top_k; choose another")]
    IdTaken {
        /// The id.
        request_id: String,
    },
    /// The same batch is being submitted by another request.
    #[error("batch {request_id} is being submitted by another request; ask for its status, or try again")]
    BeingSubmitted {
        /// The id.
        request_id: String,
    },
    /// The limit of concurrent operations of this kind is reached.
    #[error("{limit} {what} are under way already; try again")]
    Busy {
        /// The operations.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The queue has no room for the batch now. Nothing was accepted.
    #[error("the queue of batch work is full (batch.max_queued); try again when some of it is done")]
    QueueFull {
        /// The batch.
        request_id: String,
        /// The error of the queue.
        source: SyncError,
    },
    /// The batch does not fit even into an empty queue. Nothing was accepted.
    #[error(
        "the batch is larger than the queue of batch work, which holds {limit} bytes (batch.max_queued); send it in several"
    )]
    TooMuch {
        /// The queue's bound.
        limit: u64,
    },
    /// There is no room for more files and results in the data directory. Nothing was accepted.
    #[error(
        "there is no room for more batches in the data directory (blobs.max_bytes, blobs.min_free); try again when some \
         are done and their results have been removed"
    )]
    StoreFull {
        /// The batch.
        request_id: String,
        /// The error of the store.
        source: SyncError,
    },
    /// A store or the queue does not work. The same request, sent again, resumes the submission.
    #[error("the link to {} does not work at the moment; send the same again later", source.link())]
    Link {
        /// The batch.
        request_id: String,
        /// What failed.
        source: SyncError,
    },
    /// Neither the state store nor the blob store knows it.
    #[error("there is no batch {request_id:?} here, or it has been forgotten")]
    Unknown {
        /// The id.
        request_id: String,
    },
    /// It has no results yet.
    #[error(
        "batch {request_id} is not finished; its results are there when its status is completed or failed, or cancelled \
         with a results_url"
    )]
    NotFinished {
        /// The id.
        request_id: String,
    },
    /// It is finished and can't be cancelled.
    #[error("batch {request_id} is finished: every image has its result")]
    Finished {
        /// The id.
        request_id: String,
        /// How it ended.
        phase: BatchPhase,
    },
    /// This machine's disk has no room for the body or the results.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// No batch can have this id.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A program error.
    #[error("{0}")]
    Internal(String),
}

impl BatchError {
    /// A link failed while working for a batch.
    pub(super) fn link(request_id: &str) -> impl Fn(SyncError) -> Self {
        let request_id = request_id.to_owned();
        move |source| {
            let request_id = request_id.clone();
            match StoreFull::of(&source) {
                Some(_) => Self::StoreFull { request_id, source },
                None => Self::Link { request_id, source },
            }
        }
    }

    /// Result objects could not be read for a batch.
    pub(super) fn results(request_id: &str) -> impl Fn(ResultsError) -> Self {
        let link = Self::link(request_id);
        move |error| match error {
            ResultsError::Blob(error) => link(error),
            ResultsError::Spool(error) => error.into(),
            error @ ResultsError::File { .. } => Self::Internal(error.to_string()),
        }
    }

    /// The batch, where the client may need the id to try again.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::IdTaken { request_id }
            | Self::BeingSubmitted { request_id }
            | Self::QueueFull { request_id, .. }
            | Self::StoreFull { request_id, .. }
            | Self::Link { request_id, .. } => Some(request_id),
            _ => None,
        }
    }
}

/// Ids are checked before keys are made of them.
impl From<InvalidKey> for BatchError {
    fn from(error: InvalidKey) -> Self {
        Self::Internal(error.to_string())
    }
}
