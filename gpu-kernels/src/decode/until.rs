//! When a decoder is to give up on an image.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::DecodeError;

/// The time at which decoding is given up, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    end: Option<Instant>,
    work: Option<Work>,
}

/// The work that decoding may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    /// The CPU time of this thread at its end.
    end: Duration,
    /// It takes at least until then: before, the clock of the thread, which costs a system call, need not be read.
    soonest: Instant,
}

impl Until {
    /// Decoding takes as long as it takes.
    pub const NEVER: Self = Self { end: None, work: None };

    /// This, and the end of `time` from now that this thread has worked: on a machine that is busy or stands still, images
    /// take no more work.
    pub(super) fn or_work(self, time: Duration) -> Self {
        let soonest = Instant::now().checked_add(time);
        let work = soonest.map(|soonest| Work { end: worked().saturating_add(time), soonest });
        Self { work, ..self }
    }

    /// Whether there is time left. Reads the clock: to be asked once every few rows.
    ///
    /// # Errors
    /// [`DecodeError::OutOfTime`].
    pub(super) fn check(self) -> Result<(), DecodeError> {
        if self.is_over() { Err(DecodeError::OutOfTime) } else { Ok(()) }
    }

    pub(super) fn is_over(self) -> bool {
        if self.end.is_none() && self.work.is_none() {
            return false;
        }
        let now = Instant::now();
        self.end.is_some_and(|end| end <= now)
            || self.work.is_some_and(|work| work.soonest <= now && work.end <= worked())
    }

    /// Nanoseconds that are left; `None` where there is no end.
    pub(super) fn nanoseconds_left(self) -> Option<u64> {
        self.end.map(|end| nanoseconds(end.saturating_duration_since(Instant::now())))
    }

    /// Nanoseconds that this thread may work; `None` where there is no end.
    pub(super) fn nanoseconds_of_work_left(self) -> Option<u64> {
        self.work.map(|work| nanoseconds(work.end.saturating_sub(worked())))
    }
}

impl From<Instant> for Until {
    fn from(end: Instant) -> Self {
        Some(end).into()
    }
}

impl From<Option<Instant>> for Until {
    fn from(end: Option<Instant>) -> Self {
        Self { end, work: None }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time of this thread.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_thread_does_not_run_is_no_work() {
        let until = Until::NEVER.or_work(Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!until.is_over() && until.nanoseconds_of_work_left().is_some_and(|left| left > 0));
        let begin = Instant::now();
        while !until.is_over() {
            assert!(begin.elapsed() < Duration::from_secs(300), "work has no end");
        }
        assert_eq!((until.nanoseconds_of_work_left(), until.nanoseconds_left()), (Some(0), None));
        // A deadline is one whatever the thread does.
        let late = Until::from(Instant::now()).or_work(Duration::from_secs(3600));
        assert!(late.is_over() && late.check().is_err());
        assert!(!Until::NEVER.is_over());
    }
}
