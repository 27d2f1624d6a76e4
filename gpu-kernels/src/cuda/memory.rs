//! Device memory, pinned host memory (which the GPU reads and writes by DMA), and a measurement of the GPU's copy bandwidth.
#![allow(
    unsafe_code,
    reason = "memory is taken from and given back to the driver; each block says why it is sound"
)]

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use cudarc::driver::result;

use super::{Device, GpuError, Stream, refused};

/// Memory that a pool can manage.
pub(crate) trait Memory: Sized + Send {
    fn allocate(device: &Device, bytes: usize) -> Result<Self, GpuError>;
    fn bytes(&self) -> usize;
}

/// A block of device memory. Its address is a multiple of 256.
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
    device: Device,
}

/// A block of pinned host memory, which the GPU reads and writes by DMA.
pub struct PinnedMemory {
    address: NonNull<u8>,
    bytes: usize,
    device: Device,
}

// SAFETY: the block belongs to this value alone, on whichever thread that is; shared references only read it.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl Memory for DeviceMemory {
    fn allocate(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        device.bind()?;
        // SAFETY: the block is not read before something was written to it, and `drop` frees it.
        let address = refused("cuMemAlloc", unsafe { result::malloc_sync(bytes.max(1)) })?;
        Ok(Self { address, bytes, device: device.clone() })
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl DeviceMemory {
    /// Allocates `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`GpuError::Refused`], typically for lack of memory.
    pub fn zeroed(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        let memory = Self::allocate(device, bytes)?;
        // SAFETY: the block has this many bytes, and the call returns when they are written.
        refused("cuMemsetD8", unsafe { result::memset_d8_sync(memory.address, 0, bytes) })?;
        Ok(memory)
    }

    /// Its device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Submits a copy of the first `bytes` to another block of device memory to a stream.
    ///
    /// # Safety
    /// Until the stream has run it, neither block is dropped or used on another stream.
    pub(crate) unsafe fn copy(&self, to: &Self, bytes: usize, stream: &Stream) -> Result<(), GpuError> {
        let bytes = bytes.min(self.bytes).min(to.bytes);
        self.device.bind()?;
        // SAFETY: both blocks have this many bytes; the caller keeps them until the stream has run the copy.
        let copied =
            unsafe { result::memcpy_dtod_async(to.address, self.address, bytes, stream.0.cu_stream()) };
        refused("cuMemcpyDtoDAsync", copied)
    }

    /// Submits filling the block with one value to a stream.
    ///
    /// # Safety
    /// Until the stream has run it, the block is neither dropped nor used on another stream.
    pub(crate) unsafe fn fill(&self, value: u8, stream: &Stream) -> Result<(), GpuError> {
        self.device.bind()?;
        // SAFETY: as above.
        let filled =
            unsafe { result::memset_d8_async(self.address, value, self.bytes, stream.0.cu_stream()) };
        refused("cuMemsetD8Async", filled)
    }
}

impl Memory for PinnedMemory {
    fn allocate(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        device.bind()?;
        // SAFETY: `drop` frees the block.
        let address = refused("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?;
        let address = NonNull::new(address.cast::<u8>())
            .ok_or(GpuError::Refused { call: "cuMemHostAlloc", code: 2 })?;
        // SAFETY: the block has this many bytes. After this it is initialised for good.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Self { address, bytes, device: device.clone() })
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl PinnedMemory {
    /// Allocates `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn zeroed(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        Self::allocate(device, bytes)
    }

    /// The content. Not while a stream may write to it: see [`PinnedMemory::read_back`].
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the block is initialised and lives as long as this value.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }

    /// The content for writing. Not while a stream may read it: see [`PinnedMemory::upload`].
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }

    /// Submits a copy of the first `bytes` to device memory to a stream.
    ///
    /// # Safety
    /// Until the stream has run it, neither block is dropped, this one is not written to, and the other is used on this stream
    /// only.
    pub(crate) unsafe fn upload(
        &self,
        to: &DeviceMemory,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), GpuError> {
        let bytes = bytes.min(self.bytes).min(to.bytes);
        self.device.bind()?;
        // SAFETY: both blocks have this many bytes; the caller keeps them until the stream has run the copy.
        let copied =
            unsafe { result::memcpy_htod_async(to.address, &self.as_slice()[..bytes], stream.0.cu_stream()) };
        refused("cuMemcpyHtoDAsync", copied)
    }

    /// Submits a copy from device memory to the first `bytes` to a stream.
    ///
    /// # Safety
    /// Until the stream has run it, neither block is dropped and this one is neither read nor written.
    pub(crate) unsafe fn read_back(
        &mut self,
        from: &DeviceMemory,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), GpuError> {
        let bytes = bytes.min(self.bytes).min(from.bytes);
        self.device.bind()?;
        let to = &mut self.as_mut_slice()[..bytes];
        // SAFETY: as above.
        let copied = unsafe { result::memcpy_dtoh_async(to, from.address, stream.0.cu_stream()) };
        refused("cuMemcpyDtoHAsync", copied)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the block came from this allocator. On a lost GPU there is nothing to free.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // Host memory must be freed also when the GPU is lost.
        let _ = self.device.bind();
        // SAFETY: the block came from this allocator.
        let _ = unsafe { result::free_host(self.address.as_ptr().cast::<c_void>()) };
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "DeviceMemory({} bytes)", self.bytes)
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "PinnedMemory({} bytes)", self.bytes)
    }
}

/// Copies `bytes` between two blocks of device memory, `repeats` times, and returns the time of each copy by the GPU's events.
/// A copy reads and writes, so it moves twice as many bytes. Use more bytes than the GPU's cache holds.
///
/// # Errors
/// [`GpuError::Refused`], for lack of memory if there is no room for two such blocks.
pub fn copy_times(device: &Device, bytes: usize, repeats: usize) -> Result<Vec<Duration>, GpuError> {
    let (from, to) = (DeviceMemory::zeroed(device, bytes)?, DeviceMemory::zeroed(device, bytes)?);
    let stream = device.stream()?;
    // The blocks are being cleared, and streams do not wait for that.
    device.synchronize()?;
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let (began, ended) = (device.event()?, device.event()?);
        stream.record(&began)?;
        // SAFETY: only this stream uses the blocks, which live until it has run the copy.
        let copied = unsafe { from.copy(&to, bytes, &stream) };
        let ended = copied.and_then(|()| stream.record(&ended)).map(|()| ended);
        // Also after an error: submitted work must not outlive the blocks.
        stream.synchronize()?;
        times.push(ended?.since(&began)?);
    }
    Ok(times)
}
