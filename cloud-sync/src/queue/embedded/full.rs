//! The queue's own bound: what a submission that does not fit is told.

use std::error::Error;
use std::path::Path;

use crate::error::{Link, SyncError};

/// Why a submission was refused: the queue has no room for it. It is the source of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} bytes wait, {needed} more do not fit under the bound of {max_bytes}")]
pub struct QueueFull {
    /// Bytes of the jobs in the queue.
    pub waiting: u64,
    /// Bytes of the submission; where it would not fit into an empty queue, as far as it was read.
    pub needed: u64,
    /// The bound.
    pub max_bytes: u64,
}

impl QueueFull {
    /// Whether, and how, `error` is about a queue without room.
    #[must_use]
    pub fn of(error: &SyncError) -> Option<&Self> {
        error.source().and_then(<dyn Error>::downcast_ref)
    }
}

/// Transient, unless the submission would not fit into an empty queue either.
pub(super) fn error(path: &Path, bound: QueueFull) -> SyncError {
    let path = path.display();
    if bound.needed > bound.max_bytes {
        SyncError::permanent(Link::Disk, format!("the submission is too large for the queue in {path}"))
    } else {
        SyncError::transient(Link::Disk, format!("the queue in {path} is full"))
    }
    .because(bound)
}
