//! The wait for an acknowledgement, with or without an async runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::sync::oneshot;

use super::error::OutboxError;

/// An append on its way to the disk. It gives the event's sequence once the event is as durable as the
/// outbox is configured to make it.
///
/// The event is already with the writer: dropping this only means that nobody learns what became of it.
/// It needs no runtime; [`Append::wait`] is for callers that are not async.
#[derive(Debug)]
#[must_use = "the event is not durable until this has given its sequence"]
pub struct Append(State);

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Result<u64, OutboxError>>),
    Refused(OutboxError),
}

impl Append {
    pub(super) fn waiting(done: oneshot::Receiver<Result<u64, OutboxError>>) -> Self {
        Self(State::Waiting(done))
    }

    pub(super) fn refused(error: OutboxError) -> Self {
        Self(State::Refused(error))
    }

    /// Blocks the calling thread until the event is durable, and returns its sequence. Not for async
    /// code, where it would hold up the other tasks of its thread.
    ///
    /// # Errors
    /// What [`super::Outbox::append`] gives.
    pub fn wait(self) -> Result<u64, OutboxError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut this = pin!(self);
        loop {
            if let Poll::Ready(result) = this.as_mut().poll(&mut context) {
                return result;
            }
            thread::park();
        }
    }
}

impl Future for Append {
    type Output = Result<u64, OutboxError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // The writer drops what it will not write any more: that is how a close answers.
            State::Waiting(done) => {
                Pin::new(done).poll(context).map(|answer| answer.unwrap_or(Err(OutboxError::Closed)))
            }
            State::Refused(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
