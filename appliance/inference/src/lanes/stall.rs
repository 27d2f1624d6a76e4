//! Threads that are stuck at an image: what each is at and since when, and how many were given up on.
//!
//! A thread can't be ended from outside. One that is stuck is given up on: its image is answered, another thread takes its
//! place, and it ends when it comes back, if it ever does. Until then it keeps what it has, its image's room for decoding
//! included, and so the number of such threads is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When a thread is given up on, and how many may be; shared by all lanes of a process.
#[derive(Debug)]
pub struct Stalls {
    limit: Duration,
    most: usize,
    now: AtomicUsize,
}

impl Stalls {
    /// A thread may be at one image for as long as `limit`. Threads are replaced while no more than `most` are stuck.
    pub fn new(limit: Duration, most: usize) -> Arc<Self> {
        Arc::new(Self { limit, most: most.max(1), now: AtomicUsize::new(0) })
    }

    /// How long a thread may be at one image.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Threads that were given up on and have not ended.
    pub fn stuck(&self) -> usize {
        self.now.load(Ordering::Acquire)
    }

    /// Whether more are stuck than are replaced.
    pub fn is_exhausted(&self) -> bool {
        self.stuck() > self.most
    }

    /// How often to look.
    pub(super) fn look(&self) -> Duration {
        (self.limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// Counts a thread that was given up on until it ends.
#[derive(Debug)]
struct Stuck(Arc<Stalls>);

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What one thread is at. It holds one end, who watches it the other; after a thread was given up on it alone holds it.
#[derive(Debug)]
pub(super) struct Task<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
enum State<T> {
    Idle,
    Busy { since: Instant, with: T },
    GivenUp { _stuck: Stuck },
}

impl<T> Task<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Idle) })
    }

    /// The thread begins with something.
    pub(super) fn begin(&self, with: T) {
        *self.state.lock() = State::Busy { since: Instant::now(), with };
    }

    /// The thread is done with it, and has it back; None when it was given up on meanwhile, and is to end.
    pub(super) fn finish(&self) -> Option<T> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Idle) {
            State::Busy { with, .. } => Some(with),
            given_up => {
                *state = given_up;
                None
            }
        }
    }

    /// Gives up on the thread if it has been at something for too long; what that is.
    pub(super) fn give_up(&self, stalls: &Arc<Stalls>) -> Option<T> {
        let mut state = self.state.lock();
        match &*state {
            State::Busy { since, .. } if since.elapsed() > stalls.limit => {}
            _ => return None,
        }
        stalls.now.fetch_add(1, Ordering::AcqRel);
        let given_up = State::GivenUp { _stuck: Stuck(Arc::clone(stalls)) };
        match std::mem::replace(&mut *state, given_up) {
            State::Busy { with, .. } => Some(with),
            State::Idle | State::GivenUp { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_given_up_on_once_and_counts_until_it_ends() {
        let stalls = Stalls::new(Duration::from_millis(5), 1);
        let task = Task::new();
        assert_eq!(task.give_up(&stalls), None);
        task.begin(7);
        assert_eq!(task.finish(), Some(7));
        task.begin(8);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!((task.give_up(&stalls), task.give_up(&stalls)), (Some(8), None));
        assert_eq!((task.finish(), stalls.stuck(), stalls.is_exhausted()), (None, 1, false));
        drop(task);
        assert_eq!(stalls.stuck(), 0);
    }
}
