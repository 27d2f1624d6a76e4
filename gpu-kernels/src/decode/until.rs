//! Time limits for decoding, and the reader that enforces them on the encoded bytes.

use std::io::{BufRead, Cursor, Error, ErrorKind, Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::DecodeError;

/// The time limit of a decode, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    end: Option<Instant>,
    work: Option<Work>,
}

/// A limit on CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    /// CPU time of this thread at which the limit is reached.
    end: Duration,
    /// The limit is not reached before this time; until then the thread's clock, which costs a system call, is not read.
    soonest: Instant,
}

impl Until {
    /// No time limit.
    pub const NEVER: Self = Self { end: None, work: None };

    /// Adds a limit of `time` of CPU time of this thread from now: on a busy or suspended machine the limit is not reached
    /// sooner.
    pub(super) fn or_work(self, time: Duration) -> Self {
        let soonest = Instant::now().checked_add(time);
        let work = soonest.map(|soonest| Work { end: worked().saturating_add(time), soonest });
        Self { work, ..self }
    }

    /// Checks the limit. Reads the clock: call it every few rows.
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

    /// Nanoseconds until the deadline; `None` without one.
    pub(super) fn nanoseconds_left(self) -> Option<u64> {
        self.end.map(|end| nanoseconds(end.saturating_duration_since(Instant::now())))
    }

    /// Nanoseconds of CPU time that are left; `None` without a limit.
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

/// Most bytes that a decoder gets at once, and between two checks of the clock. They decompress to at most 8 MB with Deflate,
/// and 20 MB with LZW.
const CHUNK_LEN: usize = 8 << 10;

/// Encoded bytes in memory, read in chunks while the time limit is not reached.
#[derive(Debug)]
pub(super) struct Source<'a> {
    bytes: Cursor<&'a [u8]>,
    until: Until,
    /// Bytes to read before the next check of the clock.
    left: usize,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8], until: Until) -> Self {
        Self { bytes: Cursor::new(bytes), until, left: 0 }
    }

    fn spend(&mut self, bytes: usize) -> std::io::Result<()> {
        if self.left == 0 || self.left < bytes {
            self.left = CHUNK_LEN;
            if self.until.is_over() {
                return Err(Error::new(ErrorKind::TimedOut, "decoding took too long"));
            }
        }
        self.left = self.left.saturating_sub(bytes);
        Ok(())
    }
}

impl Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        self.spend(to.len())?;
        self.bytes.read(to)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.spend(0)?;
        let bytes = self.bytes.fill_buf()?;
        Ok(&bytes[..bytes.len().min(CHUNK_LEN)])
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.bytes.consume(count);
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.bytes.seek(to)
    }
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
        // A deadline does not depend on CPU time.
        let late = Until::from(Instant::now()).or_work(Duration::from_secs(3600));
        assert!(late.is_over() && late.check().is_err());
        assert!(!Until::NEVER.is_over());
    }
}
