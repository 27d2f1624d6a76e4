//! Clients of Kafka whose end nobody waits for.

use std::ops::Deref;
use std::thread;

/// A client that is dropped on a thread of its own.
///
/// Dropping one joins its polling thread. librdkafka's timed waits end at a moment of the wall clock: one of 100 ms that has begun before
/// the clock is set back by three days lasts three days, unless an event ends it, and so would the drop.
pub(crate) struct Detached<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Detached<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Detached<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(client) => client,
            None => unreachable!("it is taken by the drop alone"),
        }
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        // Without a thread it is dropped here, with the closure.
        let _ = thread::Builder::new().name("kafka-end".to_owned()).spawn(move || drop(client));
    }
}
