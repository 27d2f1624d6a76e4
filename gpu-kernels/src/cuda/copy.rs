//! How fast a GPU copies its own memory: what everything else that moves bytes on it is held against.
#![allow(unsafe_code, reason = "memory is handed to a stream; the block says why it is sound")]

use std::time::Duration;

use super::{Device, DeviceMemory, GpuError};

/// Copies `bytes` from one block of the GPU's memory to another, `repeats` times: the time of each copy, by the GPU's own
/// events. A copy reads and writes, so that it moves twice as many bytes. Take more than the GPU's cache holds.
///
/// # Errors
/// [`GpuError::Refused`]: out of memory where there are not two such blocks.
pub fn copy_times(device: &Device, bytes: usize, repeats: usize) -> Result<Vec<Duration>, GpuError> {
    let (from, to) = (DeviceMemory::zeroed(device, bytes)?, DeviceMemory::zeroed(device, bytes)?);
    let stream = device.stream()?;
    // The blocks are being cleared, and no stream waits for that.
    device.synchronize()?;
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let (began, ended) = (device.event()?, device.event()?);
        stream.record(&began)?;
        // SAFETY: the stream alone uses the blocks, and they stay until it has run this.
        let copied = unsafe { from.copy(&to, bytes, &stream) };
        let ended = copied.and_then(|()| stream.record(&ended)).map(|()| ended);
        // Also after an error: what is on the stream must not outlive the blocks.
        stream.synchronize()?;
        times.push(ended?.since(&began)?);
    }
    Ok(times)
}
