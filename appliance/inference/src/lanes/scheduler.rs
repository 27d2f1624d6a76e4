//! Turns: the right to compute on a device, limited to what the device takes at the same time, whatever the number of models
//! loaded.
//!
//! Each model has its own lanes, so two models have twice the threads. A lane computes only while it holds a turn. Real-time
//! work goes before batch work, and models with the same kind of work alternate, so a model with a long queue does not starve
//! one with a short queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

use parking_lot::Mutex;

/// The turns of one device.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Vec<Waiter>,
    /// The model that was given the last turn.
    last: u64,
    /// The number of the next model to register.
    next: u64,
}

struct Waiter {
    model: u64,
    /// Whether real-time work is waiting, evaluated when a turn becomes free.
    realtime: Box<dyn Fn() -> bool + Send>,
    given: Arc<AtomicBool>,
    thread: Thread,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Waiter({})", self.model)
    }
}

/// A turn; released when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// `count` turns, at least 1.
    #[must_use]
    pub fn new(count: usize) -> Arc<Self> {
        let state = State { free: count.max(1), waiting: Vec::new(), last: 0, next: 1 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Registers a model and returns its number.
    pub(super) fn register(&self) -> u64 {
        let mut state = self.state.lock();
        state.next += 1;
        state.next - 1
    }

    /// Waits for a turn of `model`. `realtime` is evaluated whenever a turn becomes free.
    pub(super) fn take(self: &Arc<Self>, model: u64, realtime: impl Fn() -> bool + Send + 'static) -> Turn {
        let given = {
            let mut state = self.state.lock();
            if state.free > 0 {
                state.free -= 1;
                state.last = model;
                return Turn(Arc::clone(self));
            }
            let given = Arc::new(AtomicBool::new(false));
            let waiter = Waiter {
                model,
                realtime: Box::new(realtime),
                given: Arc::clone(&given),
                thread: std::thread::current(),
            };
            state.waiting.push(waiter);
            given
        };
        while !given.load(Ordering::Acquire) {
            std::thread::park();
        }
        Turn(Arc::clone(self))
    }
}

impl State {
    /// The next waiter: real-time work first, then the model after the last one's, then first come, first served.
    fn pick(&self) -> Option<usize> {
        let order = |(place, waiter): (usize, &Waiter)| {
            (!(waiter.realtime)(), waiter.model <= self.last, waiter.model, place)
        };
        self.waiting.iter().enumerate().map(order).min().map(|(.., place)| place)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let Some(place) = state.pick() else {
            state.free += 1;
            return;
        };
        let waiter = state.waiting.remove(place);
        state.last = waiter.model;
        drop(state);
        waiter.given.store(true, Ordering::Release);
        waiter.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::{Duration, Instant};

    /// Waits until `count` threads wait.
    fn until_waiting(turns: &Turns, count: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        while turns.state.lock().waiting.len() < count {
            assert!(Instant::now() < end, "they do not wait");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn urgent_work_goes_first_and_models_take_turns() {
        let turns = Turns::new(1);
        let (a, b) = (turns.register(), turns.register());
        let order = Mutex::new(Vec::new());
        let held = turns.take(a, || true);
        std::thread::scope(|scope| {
            let asks =
                [("a1", a, true), ("a2", a, true), ("b batch", b, false), ("b1", b, true), ("b2", b, true)];
            for (count, (name, model, realtime)) in asks.into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(model, move || realtime);
                    order.lock().push(name);
                });
                until_waiting(turns, count + 1);
            }
            drop(held);
        });
        assert_eq!(*order.lock(), ["b1", "a1", "b2", "a2", "b batch"]);
        assert_eq!(turns.state.lock().free, 1);
    }

    #[test]
    fn no_more_compute_at_once_than_there_are_turns_and_all_get_one() {
        let turns = Turns::new(3);
        let (now, most, done) =
            (std::sync::atomic::AtomicUsize::new(0), Mutex::new(0), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..12 {
                let (turns, now, most, done) = (&turns, &now, &most, &done);
                scope.spawn(move || {
                    for round in 0..200 {
                        let _turn = turns.take(thread % 4, move || round % 2 == 0);
                        let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
                        let mut most = most.lock();
                        *most = at_once.max(*most);
                        drop(most);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 2400);
        assert!((2..=3).contains(&most.into_inner()));
        assert_eq!(turns.state.lock().free, 3);
    }
}
