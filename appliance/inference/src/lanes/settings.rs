//! How many lanes a model has, how they take work, and what they share with the lanes of other models.

use std::sync::Arc;
use std::time::Duration;

use super::{DeviceFactory, Stalls, Turns};
use crate::decode_memory::DecodeMemory;

/// Lanes on the CPU for the time that no GPU works.
#[derive(Clone)]
pub struct CpuFallback {
    /// How many, and how they work.
    pub lanes: LaneSettings,
    /// Builds their devices.
    pub factory: DeviceFactory,
}

/// How many lanes, and how they work.
#[derive(Clone, Debug)]
pub struct LaneSettings {
    /// Lanes.
    pub count: usize,
    /// Bound of the real-time queue.
    pub capacity: usize,
    /// Batch jobs that a lane takes at once when so many wait, 1 for none. A real-time job would wait for all of them.
    pub together: usize,
    /// Real-time jobs that a lane takes at once when so many wait and no lane is idle, 1 for none. They would have waited for each other
    /// anyway; only the first of them waits longer than it had to.
    pub urgent_together: usize,
    /// Whether the lanes give way to all else on the machine: for a process that does batch work alone.
    pub background: bool,
    /// Turns at the device that other lanes share.
    pub turns: Arc<Turns>,
    /// Memory for decoding that other lanes share.
    pub memory: Arc<DecodeMemory>,
    /// When threads are given up on; shared too.
    pub stalls: Arc<Stalls>,
}

/// How long a lane may be at one image where nothing is configured.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

impl LaneSettings {
    /// Most images that a lane's device computes in one run.
    pub fn images_a_run(&self) -> usize {
        self.together.max(self.urgent_together)
    }

    /// Lanes for real-time work that have the device to themselves, and memory without bound.
    pub fn new(count: usize, capacity: usize) -> Self {
        Self {
            count,
            capacity,
            together: 1,
            urgent_together: 1,
            background: false,
            turns: Turns::new(count),
            memory: DecodeMemory::unlimited(),
            stalls: Stalls::new(STALL_TIMEOUT, count),
        }
    }
}
