//! Why a group of records was not published.

use crate::error::SyncError;

/// Why a group of records was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// This one record is refused for good. Nothing of the group was published: publish it without.
    #[error("record {index} of the group is refused")]
    Refused {
        /// Its place in the group.
        index: usize,
        /// Why.
        #[source]
        error: SyncError,
    },
    /// The consumer group has moved on without the member that the position speaks for. Nothing was
    /// published.
    #[error("the consumer group has moved on")]
    Lost(#[source] SyncError),
    /// Another producer with the same transactional id has shut this one out, or the broker has ended a
    /// transaction that took too long. What is true after [`PublishError::Unknown`] is true here.
    #[error("another producer has the same transactional id")]
    Fenced(#[source] SyncError),
    /// Nothing was published, and the client has to begin anew, which shuts out another producer of the same
    /// transactional id: call [`TransactionalProducer::recover`] and read the position before the next try. (The client
    /// had failed, or the topic takes smaller batches than those that it was made for.)
    #[error("the client has to begin anew")]
    Anew,
    /// Nothing was published.
    #[error("the group was not published")]
    Failed(#[source] SyncError),
    /// The group was published or was not: the broker went away while it committed. To know which, call
    /// [`TransactionalProducer::recover`] until it works, then read the committed position.
    #[error("whether the group was published is not known")]
    Unknown(#[source] SyncError),
}
