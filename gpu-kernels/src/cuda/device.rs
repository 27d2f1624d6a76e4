//! A GPU in use: its context, which is shared by all its users in this process, ONNX Runtime and nvJPEG included; its streams
//! and events.
#![allow(unsafe_code, reason = "the driver is called through C functions; each block says why it is sound")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use parking_lot::Mutex;

use super::library::Library;
use super::{Driver, Gpu, GpuError, MIN_CAPABILITY, refused};

/// The driver's library, as configured. Never unloaded.
static LOADED: OnceLock<Library> = OnceLock::new();

/// The GPUs that are or were in use.
static KNOWN: Mutex<BTreeMap<u32, Known>> = Mutex::new(BTreeMap::new());

/// A GPU in use. Cheap to clone. All its users in this process share its context, which memory keeps alive.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<CudaContext>,
    gpu: Gpu,
    lost: Arc<AtomicBool>,
}

struct Known {
    inner: Weak<Inner>,
    /// Whether its context must be destroyed before the GPU can be used again.
    lost: Arc<AtomicBool>,
}

impl Device {
    /// Opens the GPU of this number. The driver's library is in one of `folders` or where the system's loader finds it; a
    /// process keeps the first one that it opened. A lost GPU ([`Device::lost`]) gets a new context once all its users have
    /// released it.
    ///
    /// # Errors
    /// [`GpuError`], with a remedy.
    pub fn open(folders: &[PathBuf], number: u32) -> Result<Self, GpuError> {
        let driver = Driver::probe(folders)?;
        let count = driver.gpus.len();
        let gpu = driver.gpus.into_iter().find(|gpu| gpu.number == number);
        let gpu = gpu.ok_or(GpuError::NoSuchGpu { number, count })?;
        if gpu.capability < MIN_CAPABILITY {
            return Err(GpuError::OldGpu { gpu: gpu.to_string() });
        }
        load(folders)?;
        let mut known = KNOWN.lock();
        if let Some(known) = known.get(&number) {
            let lost = known.lost.load(Ordering::Acquire);
            match known.inner.upgrade() {
                Some(_) if lost => return Err(GpuError::Recovering { number }),
                Some(inner) => return Ok(Self(inner)),
                None if lost => reset(number)?,
                None => {}
            }
        }
        let mut context = refused("cuDevicePrimaryCtxRetain", CudaContext::new(number as usize))?;
        if context.synchronize().is_err() {
            // Other libraries of this process keep a context that was lost before this crate used it.
            drop(context);
            reset(number)?;
            context = refused("cuDevicePrimaryCtxRetain", CudaContext::new(number as usize))?;
        }
        // Streams are synchronised explicitly, with events; the bindings would add one event per use of memory.
        // SAFETY: no memory of this crate is used on two streams without an event between them.
        unsafe { context.disable_event_tracking() };
        let lost = Arc::new(AtomicBool::new(false));
        let inner = Arc::new(Inner { context, gpu, lost: Arc::clone(&lost) });
        known.insert(number, Known { inner: Arc::downgrade(&inner), lost });
        Ok(Self(inner))
    }

    /// Marks the GPU as lost ([`GpuError::is_lost`]): its users must release it, and the next to open it gets a new context.
    pub fn lost(&self) {
        self.0.lost.store(true, Ordering::Release);
    }

    /// Whether the GPU was marked as lost.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// The driver's description of the GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Creates a stream that does not wait for others.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn stream(&self) -> Result<Stream, GpuError> {
        refused("cuStreamCreate", self.0.context.new_stream()).map(Stream::new)
    }

    /// Creates an event. A thread that waits for it sleeps; it records the time.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn event(&self) -> Result<Event, GpuError> {
        let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC;
        refused("cuEventCreate", self.0.context.new_event(Some(flags))).map(Event::new)
    }

    /// Makes this the calling thread's current GPU, for libraries that use that.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn bind(&self) -> Result<(), GpuError> {
        forget_others(&self.0.context);
        refused("cuCtxSetCurrent", self.0.context.bind_to_thread())
    }

    /// Waits for all work on the GPU, which also shows whether it still works.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of earlier work.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(&self.0.context);
        refused("cuCtxSynchronize", self.0.context.synchronize())
    }

    /// Free and total memory in bytes.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn memory(&self) -> Result<(u64, u64), GpuError> {
        let (free, total) = refused("cuMemGetInfo", self.0.context.mem_get_info())?;
        Ok((free as u64, total as u64))
    }
}

/// Destroys the context of a GPU without users.
fn reset(number: u32) -> Result<(), GpuError> {
    let device = refused("cuDeviceGet", result::device::get(i32::try_from(number).unwrap_or(0)))?;
    // SAFETY: nothing of this crate is in the context: memory would keep it alive, and for streams and events that are dropped
    // later the driver reports that they no longer exist.
    let code = unsafe { sys::cuDevicePrimaryCtxReset_v2(device) };
    refused("cuDevicePrimaryCtxReset", code.result())
}

/// Loads the driver for the bindings, which search for it by name: the loader returns the library that is already loaded.
fn load(folders: &[PathBuf]) -> Result<(), GpuError> {
    if LOADED.get().is_none() {
        let library = Library::open(super::driver::NAME, folders)?;
        // Another thread may have loaded it meanwhile; the loader then counts two references.
        let _ = LOADED.set(library);
    }
    // SAFETY: only loads and unloads the library, which is already loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::Unbound);
    }
    refused("cuInit", result::init())
}

/// Discards the bindings' stored error of a failed drop: they would report it to the next caller, which may be another lane
/// that would then not have waited.
fn forget_others(context: &CudaContext) {
    if let Err(error) = context.check_err() {
        // On a lost GPU the call itself fails as well.
        let _ = error;
    }
}

/// A stream: work that runs in order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stream(pub(crate) Arc<CudaStream>);

/// A point in a stream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Event(Arc<CudaEvent>);

impl Stream {
    fn new(stream: Arc<CudaStream>) -> Self {
        Self(stream)
    }

    /// The driver's handle, for libraries that submit work to the stream.
    pub fn raw(&self) -> *mut c_void {
        self.0.cu_stream().cast()
    }

    /// Work submitted to the stream after this waits for the event.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn wait(&self, event: &Event) -> Result<(), GpuError> {
        refused("cuStreamWaitEvent", self.0.wait(&event.0))
    }

    /// Records the event: it completes when all work submitted before has run.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn record(&self, event: &Event) -> Result<(), GpuError> {
        refused("cuEventRecord", event.0.record(&self.0))
    }

    /// Waits until all submitted work has run.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of earlier work on the GPU.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(self.0.context());
        refused("cuStreamSynchronize", self.0.synchronize())
    }
}

impl Event {
    fn new(event: CudaEvent) -> Self {
        Self(Arc::new(event))
    }

    /// Waits until the event has completed; returns at once if it was never recorded.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also for an error of earlier work on the GPU.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(self.0.context());
        refused("cuEventSynchronize", self.0.synchronize())
    }

    /// Time on the GPU from `earlier` to this event; both must have completed.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn since(&self, earlier: &Self) -> Result<Duration, GpuError> {
        let ms = refused("cuEventElapsedTime", earlier.0.elapsed_ms(&self.0))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}
