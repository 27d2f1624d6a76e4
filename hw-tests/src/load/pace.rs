//! The clock of an open loop: releases requests at their intended times, independently of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// When requests are due.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    /// None is due at or after this.
    pub(super) end: Instant,
    /// Requests per second.
    pub(super) rate: f64,
    /// At most this many.
    pub(super) most: u64,
}

impl Schedule {
    /// When request `number` is due.
    pub(super) fn due(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Whether request `number` must no longer be sent. One that was due just before the end may be sent just
    /// after it.
    pub(super) fn is_over(&self, number: u64) -> bool {
        const GRACE: Duration = Duration::from_millis(20);
        number >= self.most || self.due(number) >= self.end || Instant::now() >= self.end + GRACE
    }

    /// Adds a permit to `released` whenever a request is due, and at the end one for each client, so that
    /// all of them see the end. The thread returns how many were due. It is a separate thread because the
    /// runtime's timer has a resolution of a millisecond, which is too coarse for responses that take less.
    pub(super) fn release(
        self,
        released: Arc<Semaphore>,
        clients: usize,
        stop: Arc<AtomicBool>,
    ) -> JoinHandle<u64> {
        thread::spawn(move || {
            let mut number = 0;
            while number < self.most && self.due(number) < self.end && !stop.load(Ordering::Relaxed) {
                thread::sleep(self.due(number).saturating_duration_since(Instant::now()));
                released.add_permits(1);
                number += 1;
            }
            released.add_permits(clients);
            number
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: f64, most: u64, ms: u64) -> Schedule {
        let start = Instant::now();
        Schedule { start, end: start + Duration::from_millis(ms), rate, most }
    }

    #[test]
    fn requests_are_due_evenly() {
        let schedule = schedule(250.0, 9, 1);
        assert_eq!(schedule.due(0), schedule.start);
        assert_eq!(schedule.due(500), schedule.start + Duration::from_secs(2));
    }

    #[test]
    fn permits_come_no_earlier_than_due_and_one_more_per_client_at_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let released = Arc::new(Semaphore::new(0));
        let schedule = schedule(1000.0, 30, 5000);
        let pacer = schedule.clone().release(released.clone(), 2, Arc::default());
        runtime.block_on(async {
            for number in 0..30 {
                released.acquire().await.unwrap().forget();
                assert!(Instant::now() >= schedule.due(number) && !schedule.is_over(number));
            }
        });
        assert_eq!(pacer.join().unwrap(), 30);
        assert_eq!(released.available_permits(), 2);
        assert!(schedule.is_over(30));
    }

    #[test]
    fn time_ends_it() {
        let released = Arc::new(Semaphore::new(0));
        let schedule = schedule(100.0, u64::MAX, 100);
        let pacer = schedule.clone().release(released.clone(), 1, Arc::default());
        assert_eq!(pacer.join().unwrap(), 10);
        assert_eq!(released.available_permits(), 11);
        assert!(schedule.is_over(10));
        // Asked before the end, however late it is by now.
        let longer = Schedule { end: Instant::now() + Duration::from_secs(60), ..schedule.clone() };
        assert!(!longer.is_over(9));
        thread::sleep(Duration::from_millis(40));
        assert!(schedule.is_over(0), "what waited too long is not sent after the end");
    }

    #[test]
    fn it_can_be_stopped() {
        let stop = Arc::new(AtomicBool::new(true));
        let pacer = schedule(1.0, 99, 60_000).release(Arc::new(Semaphore::new(0)), 1, stop);
        assert_eq!(pacer.join().unwrap(), 0);
    }
}
