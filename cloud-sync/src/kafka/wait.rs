//! Timed waits of librdkafka that a step of the wall clock cannot lengthen.
#![allow(unsafe_code, reason = "a function of the C library is replaced; each block says why it is sound")]

use std::ffi::{c_int, c_void};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Return values of C11's functions (`threads.h` of glibc).
const SUCCESS: c_int = 0;
const ERROR: c_int = 2;
const TIMED_OUT: c_int = 4;

/// `CLOCK_MONOTONIC` of Linux.
const MONOTONIC: c_int = 1;

/// Maximum wait. librdkafka compares with its own monotonic deadline whenever a wait ends, and waits again, so an
/// early end costs nothing; if the clock is set back between the library's reading and the one here, this is the
/// maximum duration of the wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

unsafe extern "C" {
    /// Since glibc 2.30.
    fn pthread_cond_clockwait(
        condition: *mut c_void,
        mutex: *mut c_void,
        clock: c_int,
        until: *const Timespec,
    ) -> c_int;
}

/// Replaces the C library's function of this name for everything that is linked into the program: librdkafka, which
/// computes each deadline as the wall clock's time plus the remaining time. (The linker may export it to libraries
/// that are loaded later. None of those that Weir loads calls it, and it would serve them as well.)
///
/// The C library's own function waits until the wall clock shows `until`. If the clock is set back by three days, a
/// wait of 100 ms that started before would last three days: clients created then would neither begin transactions
/// nor end.
///
/// # Safety
/// As in the C standard (7.26.3.5): `condition` and `mutex` are initialized, the calling thread has locked `mutex`,
/// `until` is a valid time.
#[unsafe(no_mangle)]
unsafe extern "C" fn cnd_timedwait(
    condition: *mut c_void,
    mutex: *mut c_void,
    until: *const Timespec,
) -> c_int {
    #[cfg(test)]
    tests::CALLS.set(tests::CALLS.get() + 1);
    // SAFETY: the caller guarantees that `until` is valid.
    let left = left_until(unsafe { &*until });
    let until = monotonic(left);
    // SAFETY: glibc's `cnd_t` and `mtx_t` are its `pthread_cond_t` and `pthread_mutex_t`: its own `cnd_timedwait` casts them likewise. The
    // caller guarantees that both are initialized, and `until` lives through the call.
    match unsafe { pthread_cond_clockwait(condition, mutex, MONOTONIC, &raw const until) } {
        0 => SUCCESS,
        code if code == rustix::io::Errno::TIMEDOUT.raw_os_error() => TIMED_OUT,
        _ => ERROR,
    }
}

/// Time left until the wall clock shows `wall`, at most [`MAX_WAIT`].
fn left_until(wall: &Timespec) -> Duration {
    let until = Duration::new(wall.tv_sec.try_into().unwrap_or(0), wall.tv_nsec.try_into().unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    until.saturating_sub(now).min(MAX_WAIT)
}

/// The monotonic clock's time once `left` has passed.
fn monotonic(left: Duration) -> Timespec {
    let now = clock_gettime(ClockId::Monotonic);
    let nanoseconds = now.tv_nsec + i64::from(left.subsec_nanos());
    Timespec {
        tv_sec: now.tv_sec + left.as_secs().cast_signed() + nanoseconds / 1_000_000_000,
        tv_nsec: nanoseconds % 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;

    thread_local! {
        /// On this thread.
        pub(super) static CALLS: Cell<usize> = const { Cell::new(0) };
    }

    unsafe extern "C" {
        fn pthread_mutex_lock(mutex: *mut c_void) -> c_int;
    }

    fn timespec(wall: SystemTime) -> Timespec {
        let since = wall.duration_since(UNIX_EPOCH).unwrap();
        Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: i64::from(since.subsec_nanos()) }
    }

    fn wait_until(wall: SystemTime) -> (c_int, Duration) {
        let until = timespec(wall);
        // All zeros is glibc's static initializer.
        let (mut condition, mut mutex) = ([0u64; 8], [0u64; 8]);
        let begun = Instant::now();
        let (condition, mutex) = ((&raw mut condition).cast(), (&raw mut mutex).cast());
        // SAFETY: both are no smaller than glibc's types on any 64-bit target, are aligned as those, and live to the end, when nobody waits any
        // more.
        let code = unsafe {
            assert_eq!(pthread_mutex_lock(mutex), 0);
            cnd_timedwait(condition, mutex, &raw const until)
        };
        (code, begun.elapsed())
    }

    #[test]
    fn a_wait_that_the_clock_has_left_days_behind_is_bounded() {
        let later = SystemTime::now() + Duration::from_secs(3 * 24 * 3600);
        assert_eq!(left_until(&timespec(later)), MAX_WAIT);
    }

    #[test]
    fn a_wait_lasts_as_long_as_it_should() {
        let (code, took) = wait_until(SystemTime::now() + Duration::from_millis(60));
        assert_eq!(code, TIMED_OUT);
        assert!(took >= Duration::from_millis(59), "{took:?}");
        assert_eq!(wait_until(SystemTime::now() - Duration::from_secs(3600)).0, TIMED_OUT);
    }

    #[test]
    fn librdkafka_waits_by_it() {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1").create().unwrap();
        producer.poll(Duration::from_millis(50));
        assert!(CALLS.get() > 0, "the C library's own function is linked");
    }
}
