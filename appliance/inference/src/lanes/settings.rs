//! Settings of a model's lanes, what they share with the lanes of other models, and the observer through which metrics are
//! collected.

use std::sync::Arc;
use std::time::Duration;

use super::{Classified, LaneError, Stalls, Turns};
use crate::decode_memory::DecodeMemory;

/// Number of lanes, and how they take work.
#[derive(Clone, Debug)]
pub struct LaneSettings {
    /// Number of lanes.
    pub count: usize,
    /// Capacity of the real-time queue.
    pub capacity: usize,
    /// Batch jobs that a lane computes together when that many wait; 1 disables it. A real-time job has to wait for all of
    /// them.
    pub batch_size: usize,
    /// Real-time jobs that a lane computes together when that many wait and no lane is idle; 1 disables it. They would have
    /// waited for each other anyway; only the first of them is delayed.
    pub realtime_batch_size: usize,
    /// Whether the lanes yield to everything else on the machine: for a process that only does batch work.
    pub background: bool,
    /// Turns at the device, shared with other lanes.
    pub turns: Arc<Turns>,
    /// Memory for decoding, shared with other lanes.
    pub memory: Arc<DecodeMemory>,
    /// Stall detection, shared with other lanes.
    pub stalls: Arc<Stalls>,
}

/// How long a lane may work on one image unless configured.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

impl LaneSettings {
    /// Largest number of images that a lane's device computes in one run.
    pub fn max_batch_size(&self) -> usize {
        self.batch_size.max(self.realtime_batch_size)
    }

    /// Settings for real-time lanes that have the device to themselves, without a bound on decode memory.
    pub fn new(count: usize, capacity: usize) -> Self {
        Self {
            count,
            capacity,
            batch_size: 1,
            realtime_batch_size: 1,
            background: false,
            turns: Turns::new(count),
            memory: DecodeMemory::unlimited(),
            stalls: Stalls::new(STALL_TIMEOUT, count),
        }
    }
}

/// Receives the events of lanes; implemented by metrics. All methods do nothing by default.
pub trait LaneObserver: Send + Sync {
    /// A job was answered by the device: `busy` is the lane's time per image, `waited` the time in the queue.
    fn computed(
        &self,
        _lane: usize,
        _busy: Duration,
        _waited: Duration,
        _outcome: &Result<Classified, LaneError>,
    ) {
    }
    /// A run of the engine computed this many images.
    fn ran(&self, _images: usize) {}
    /// A job was dropped without being computed.
    fn skipped(&self, _lane: usize, _reason: SkipReason) {}
    /// A lane's device panicked or failed and is being rebuilt.
    fn restarted(&self, _lane: usize) {}
    /// A lane was stuck at an image and is being replaced.
    fn stalled(&self, _lane: usize) {}
    /// A lane's GPU failed: the kind of the error, and how many of its jobs in flight are retried.
    fn device_failed(&self, _lane: usize, _kind: &'static str, _retried: usize) {}
}

/// An observer that ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl LaneObserver for Unobserved {}

/// Why a job was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// The client has disconnected.
    Cancelled,
    /// The deadline has passed.
    Deadline,
}
