//! Answers to those who wait for a settlement.

use tokio::sync::oneshot;

use crate::error::{Link, SyncError, SyncResult};
use crate::queue::Settled;

/// Where the answer to a settlement goes. Nobody may be there any more.
pub(super) type Waiter = oneshot::Sender<SyncResult<Settled>>;

pub(super) fn answer(waiters: Vec<Waiter>, with: impl Fn() -> SyncResult<Settled>) {
    for waiter in waiters {
        // Nobody waits any more: then nobody needs to know.
        let _ = waiter.send(with());
    }
}

pub(super) fn left_behind() -> SyncError {
    let what = "the queue was closed before the broker said whether the results are published";
    SyncError::transient(Link::Kafka, what)
}

/// The first hears the error itself, others what it says.
pub(super) fn answer_error(waiters: Vec<Waiter>, mut error: Option<SyncError>) {
    let Some((link, text)) = error.as_ref().map(|error| (error.link(), error.in_full())) else { return };
    for waiter in waiters {
        let again = || SyncError::permanent(link, text.clone());
        let _ = waiter.send(Err(error.take().unwrap_or_else(again)));
    }
}
