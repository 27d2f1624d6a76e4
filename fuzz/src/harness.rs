//! Shared code of the targets: the cost of a piece of work, temporary folders, and mutations of seeds from a seeded generator, the
//! same on every machine.

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// Counts the allocations of Rust code in the whole process. What libjpeg-turbo allocates is bounded by libFuzzer's limit on
/// the resident size instead.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Boundary values of length fields and sizes.
const EDGES: [u32; 12] =
    [0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF];

/// Longest mutated file.
const MAX_MUTATED_BYTES: usize = 64 << 10;

/// Memory and CPU time that a piece of work took.
pub(crate) struct Cost {
    /// Peak of the bytes allocated by the work.
    pub(crate) bytes: u64,
    /// CPU time of this thread, so that other work on the machine does not count.
    pub(crate) cpu: Duration,
}

/// Runs `work` and measures its cost. Nothing else may allocate at the same time.
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

/// An empty folder, in memory where the machine has such a file system: a target runs thousands of times per second.
pub(crate) fn temp_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}

/// One to four changes to one of `seeds`, which must not be empty.
#[must_use]
pub fn mutated(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..5) {
        change(&mut bytes, seeds, rng);
        bytes.truncate(MAX_MUTATED_BYTES);
    }
    bytes
}

/// A place in `bytes`, in half of all cases near the front, where headers are.
fn place(bytes: &[u8], rng: &mut Rng) -> usize {
    let reach = if rng.bool() { bytes.len().min(700) } else { bytes.len() };
    rng.usize(..reach.max(1))
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(rng.u8(..));
        return;
    }
    let at = place(bytes, rng);
    let end = at + rng.usize(..(bytes.len() - at).min(64) + 1);
    match rng.u8(..9) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 => overwrite(bytes, at, &field(rng)),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        5 => {
            let part = bytes[at..end].to_vec();
            let times = rng.usize(1..40);
            bytes.splice(at..at, part.repeat(times));
        }
        6 => {
            let length = rng.usize(1..64);
            bytes.splice(at..at, (0..length).map(|_| rng.u8(..)).collect::<Vec<_>>());
        }
        7 => {
            let part = bytes[at..end].to_vec();
            let to = place(bytes, rng);
            overwrite(bytes, to, &part);
        }
        _ => {
            let other = &seeds[rng.usize(..seeds.len())];
            let from = place(other, rng).min(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// A number of one, two or four bytes in either order.
fn field(rng: &mut Rng) -> Vec<u8> {
    let value = if rng.bool() { EDGES[rng.usize(..EDGES.len())] } else { rng.u32(..) >> rng.u32(..32) };
    let width = [1, 2, 4][rng.usize(..3)];
    if rng.bool() { value.to_le_bytes()[..width].to_vec() } else { value.to_be_bytes()[4 - width..].to_vec() }
}

fn overwrite(bytes: &mut [u8], at: usize, part: &[u8]) {
    for (to, from) in bytes[at..].iter_mut().zip(part) {
        *to = *from;
    }
}
