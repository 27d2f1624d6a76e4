//! Stall detection: what each thread works on and since when, and how many threads were abandoned.
//!
//! A thread can't be terminated from outside. One that is stuck is abandoned: its image is answered, another thread replaces
//! it, and it ends when it returns, if ever. Until then it keeps its resources, among them the reservation for decoding, so
//! the number of such threads is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When a thread is abandoned, and how many may be; shared by all lanes of a process.
#[derive(Debug)]
pub struct Stalls {
    limit: Duration,
    max_stuck: usize,
    stuck: AtomicUsize,
}

impl Stalls {
    /// A thread may work on one image for `limit`. Threads are replaced while at most `max_stuck` are stuck.
    pub fn new(limit: Duration, max_stuck: usize) -> Arc<Self> {
        Arc::new(Self { limit, max_stuck: max_stuck.max(1), stuck: AtomicUsize::new(0) })
    }

    /// How long a thread may work on one image.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Abandoned threads that have not ended.
    pub fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Acquire)
    }

    /// Whether too many threads are stuck for another one to be replaced.
    pub fn is_exhausted(&self) -> bool {
        self.stuck() > self.max_stuck
    }

    /// Interval between checks.
    pub(super) fn poll_interval(&self) -> Duration {
        (self.limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// Counts an abandoned thread until it ends.
#[derive(Debug)]
struct Stuck(Arc<Stalls>);

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.stuck.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a thread works on, shared with the watcher. After the thread was abandoned, only the thread holds it.
#[derive(Debug)]
pub(super) struct Task<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
enum State<T> {
    Idle,
    Busy { since: Instant, with: T },
    Abandoned { _stuck: Stuck },
}

impl<T> Task<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Idle) })
    }

    /// Called by the thread when it starts to work on something.
    pub(super) fn begin(&self, with: T) {
        *self.state.lock() = State::Busy { since: Instant::now(), with };
    }

    /// Called by the thread when it is done; returns what it worked on. `None` when the thread was abandoned and must end.
    pub(super) fn finish(&self) -> Option<T> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Idle) {
            State::Busy { with, .. } => Some(with),
            abandoned => {
                *state = abandoned;
                None
            }
        }
    }

    /// Abandons the thread if it has been busy for too long; returns what it works on.
    pub(super) fn abandon_if_stuck(&self, stalls: &Arc<Stalls>) -> Option<T> {
        let mut state = self.state.lock();
        match &*state {
            State::Busy { since, .. } if since.elapsed() > stalls.limit => {}
            _ => return None,
        }
        stalls.stuck.fetch_add(1, Ordering::AcqRel);
        let abandoned = State::Abandoned { _stuck: Stuck(Arc::clone(stalls)) };
        match std::mem::replace(&mut *state, abandoned) {
            State::Busy { with, .. } => Some(with),
            State::Idle | State::Abandoned { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_abandoned_once_and_counts_until_it_ends() {
        let stalls = Stalls::new(Duration::from_millis(5), 1);
        let task = Task::new();
        assert_eq!(task.abandon_if_stuck(&stalls), None);
        task.begin(7);
        assert_eq!(task.finish(), Some(7));
        task.begin(8);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!((task.abandon_if_stuck(&stalls), task.abandon_if_stuck(&stalls)), (Some(8), None));
        assert_eq!((task.finish(), stalls.stuck(), stalls.is_exhausted()), (None, 1, false));
        drop(task);
        assert_eq!(stalls.stuck(), 0);
    }
}
