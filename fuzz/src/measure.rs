//! The memory and the processor time that a piece of work takes.

use std::time::Duration;

use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

/// Counts the allocations of Rust code in the whole process. What libjpeg-turbo allocates is bounded by libFuzzer's limit on
/// the resident size instead.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What a piece of work took.
pub(crate) struct Cost {
    /// Peak of what was allocated beyond what had been allocated before.
    pub(crate) bytes: u64,
    /// Of this thread, so that other work on the machine does not count.
    pub(crate) cpu: Duration,
}

/// Does `work` and says what it took. Nothing else may allocate meanwhile.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let start = cpu_time();
    let out = work();
    let cpu = cpu_time().saturating_sub(start);
    let bytes = ALLOCATED.peak_usage().saturating_sub(before) as u64;
    (out, Cost { bytes, cpu })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
