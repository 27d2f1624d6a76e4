//! Pools of memory blocks, up to a limit: allocating memory from the driver stalls a GPU.
//!
//! Invariants:
//! - Blocks in use and free blocks together stay within the limit, except for a single block that is larger.
//! - A returned block is kept for the next request of its size; sizes are powers of two.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::memory::Memory;
use super::{Device, DeviceMemory, GpuError, PinnedMemory};

/// The smallest block: smaller ones would save nothing.
const MIN_BLOCK: usize = 256 << 10;

/// Blocks of device memory.
pub type DevicePool = Pool<DeviceMemory>;
/// Blocks of pinned host memory.
pub type PinnedPool = Pool<PinnedMemory>;

/// A pool of memory blocks for one GPU. Cheap to clone.
pub struct Pool<M>(Arc<Inner<M>>);

struct Inner<M> {
    device: Device,
    limit: usize,
    state: Mutex<State<M>>,
    returned: Condvar,
}

struct State<M> {
    free: BTreeMap<usize, Vec<M>>,
    in_use: usize,
    kept: usize,
}

/// A block of a pool, returned to it when dropped. The owner must wait for streams that use it first.
pub struct Block<M: MemoryKind> {
    memory: Option<M>,
    pool: Arc<Inner<M>>,
}

/// Device or pinned memory.
#[allow(private_bounds, reason = "sealed")]
pub trait MemoryKind: Memory {}
impl MemoryKind for DeviceMemory {}
impl MemoryKind for PinnedMemory {}

impl<M> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: MemoryKind> Pool<M> {
    /// A pool of at most `limit` bytes.
    pub fn new(device: &Device, limit: usize) -> Self {
        let state = State { free: BTreeMap::new(), in_use: 0, kept: 0 };
        Self(Arc::new(Inner {
            device: device.clone(),
            limit,
            state: Mutex::new(state),
            returned: Condvar::new(),
        }))
    }

    /// A block of at least `bytes` bytes; `None` while the limit is reached.
    ///
    /// # Errors
    /// [`GpuError::Refused`] when the driver is out of memory.
    pub fn take(&self, bytes: usize) -> Result<Option<Block<M>>, GpuError> {
        self.0.take(bytes).map(|memory| memory.map(|memory| self.block(memory)))
    }

    /// As [`Pool::take`], waiting until there is room; `None` if there was none within `time`.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub fn take_within(&self, bytes: usize, time: Duration) -> Result<Option<Block<M>>, GpuError> {
        let until = std::time::Instant::now() + time;
        loop {
            if let Some(block) = self.take(bytes)? {
                return Ok(Some(block));
            }
            let mut state = self.0.state.lock();
            if self.0.has_room(&state, size(bytes)) {
                continue;
            }
            if self.0.returned.wait_until(&mut state, until).timed_out() {
                return Ok(None);
            }
        }
    }

    /// Bytes in use, and bytes in free blocks.
    pub fn held(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        (state.in_use, state.kept)
    }

    fn block(&self, memory: M) -> Block<M> {
        Block { memory: Some(memory), pool: Arc::clone(&self.0) }
    }
}

fn size(bytes: usize) -> usize {
    bytes.max(MIN_BLOCK).checked_next_power_of_two().unwrap_or(bytes)
}

impl<M: MemoryKind> Inner<M> {
    fn has_room(&self, state: &State<M>, size: usize) -> bool {
        state.in_use == 0 || state.in_use + size <= self.limit
    }

    fn take(&self, bytes: usize) -> Result<Option<M>, GpuError> {
        let size = size(bytes);
        let mut state = self.state.lock();
        if !self.has_room(&state, size) {
            return Ok(None);
        }
        state.in_use += size;
        if let Some(memory) = state.free.get_mut(&size).and_then(Vec::pop) {
            state.kept -= size;
            return Ok(Some(memory));
        }
        // Free blocks of other sizes are released.
        let mut spare = Vec::new();
        while state.in_use + state.kept > self.limit
            && let Some((&other, _)) = state.free.iter().find(|(_, blocks)| !blocks.is_empty())
        {
            spare.extend(state.free.get_mut(&other).and_then(Vec::pop));
            state.kept -= other;
        }
        drop(state);
        drop(spare);
        let mut memory = M::allocate(&self.device, size);
        if memory.as_ref().is_err_and(GpuError::is_out_of_memory) {
            // Free blocks of other sizes may occupy what is missing.
            let kept = {
                let mut state = self.state.lock();
                state.kept = 0;
                std::mem::take(&mut state.free)
            };
            drop(kept);
            memory = M::allocate(&self.device, size);
        }
        let Err(error) = memory else { return memory.map(Some) };
        let mut state = self.state.lock();
        state.in_use -= size;
        let others = state.in_use > 0;
        drop(state);
        self.returned.notify_all();
        // There will be room when blocks in use are returned.
        if others && error.is_out_of_memory() { Ok(None) } else { Err(error) }
    }
}

impl<M: MemoryKind> Deref for Block<M> {
    type Target = M;

    fn deref(&self) -> &M {
        match &self.memory {
            Some(memory) => memory,
            None => unreachable!("only a dropped block has no memory"),
        }
    }
}

impl<M: MemoryKind> DerefMut for Block<M> {
    fn deref_mut(&mut self) -> &mut M {
        match &mut self.memory {
            Some(memory) => memory,
            None => unreachable!("only a dropped block has no memory"),
        }
    }
}

impl<M: MemoryKind> Drop for Block<M> {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let size = memory.bytes();
        let mut state = self.pool.state.lock();
        state.in_use -= size;
        let mut spare = None;
        if state.in_use + state.kept + size <= self.pool.limit {
            state.kept += size;
            state.free.entry(size).or_default().push(memory);
        } else {
            spare = Some(memory);
        }
        drop(state);
        self.pool.returned.notify_all();
        drop(spare);
    }
}

impl<M: MemoryKind> std::fmt::Debug for Block<M> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Block({} bytes)", self.memory.as_ref().map_or(0, Memory::bytes))
    }
}

impl<M> std::fmt::Debug for Pool<M> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Pool({} bytes)", self.0.limit)
    }
}
