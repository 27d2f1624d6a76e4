//! A GPU in use: its context, which whoever uses the GPU in this process shares, ONNX Runtime and nvJPEG included.
#![allow(unsafe_code, reason = "the driver is called through C functions; each block says why it is sound")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use cudarc::driver::{CudaContext, result, sys};
use parking_lot::Mutex;

use super::library::Library;
use super::stream::forget_others;
use super::{Driver, Event, Gpu, GpuError, MIN_CAPABILITY, Stream, refused};

/// The driver's library as the configuration finds it. Never unloaded.
static LOADED: OnceLock<Library> = OnceLock::new();

/// The GPUs that are or were in use.
static KNOWN: Mutex<BTreeMap<u32, Known>> = Mutex::new(BTreeMap::new());

/// A GPU in use. Cheap to clone. All who use it in this process share its context; memory holds on to it.
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
    /// Whether its context has to be destroyed before it can be used again.
    lost: Arc<AtomicBool>,
}

impl Device {
    /// Opens the GPU of this number. The driver's library is in one of `folders` or where the system's loader finds it; the
    /// first that is opened in a process stays. What was lost ([`Device::lost`]) is made anew once nobody uses it any more.
    ///
    /// # Errors
    /// [`GpuError`], which has a remedy.
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
            // Other libraries of this process hold on to a context that was lost before anybody here used it.
            drop(context);
            reset(number)?;
            context = refused("cuDevicePrimaryCtxRetain", CudaContext::new(number as usize))?;
        }
        // Streams are put in order by hand, with events. What the bindings would add to that is one event a use of memory.
        // SAFETY: no memory of this crate is used on two streams without an event between them.
        unsafe { context.disable_event_tracking() };
        let lost = Arc::new(AtomicBool::new(false));
        let inner = Arc::new(Inner { context, gpu, lost: Arc::clone(&lost) });
        known.insert(number, Known { inner: Arc::downgrade(&inner), lost });
        Ok(Self(inner))
    }

    /// Something has gone wrong on it that only a new context ends ([`GpuError::is_lost`]): whoever uses it has to let go, and
    /// the next who opens it gets a new one.
    pub fn lost(&self) {
        self.0.lost.store(true, Ordering::Release);
    }

    /// Whether somebody has said so.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// What the driver says of it.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// A stream of its own, which waits for no other.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn stream(&self) -> Result<Stream, GpuError> {
        refused("cuStreamCreate", self.0.context.new_stream()).map(Stream::new)
    }

    /// An event. Who waits for it sleeps; it keeps the time when it is passed.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn event(&self) -> Result<Event, GpuError> {
        let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC;
        refused("cuEventCreate", self.0.context.new_event(Some(flags))).map(Event::new)
    }

    /// Makes it the GPU of the calling thread, for libraries that ask for the thread's.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn bind(&self) -> Result<(), GpuError> {
        forget_others(&self.0.context);
        refused("cuCtxSetCurrent", self.0.context.bind_to_thread())
    }

    /// Waits for everything on it: whether it still works.
    ///
    /// # Errors
    /// [`GpuError::Refused`] with what has gone wrong on it before.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(&self.0.context);
        refused("cuCtxSynchronize", self.0.context.synchronize())
    }

    /// Free memory and memory in all, bytes.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn memory(&self) -> Result<(u64, u64), GpuError> {
        let (free, total) = refused("cuMemGetInfo", self.0.context.mem_get_info())?;
        Ok((free as u64, total as u64))
    }
}

/// Destroys the context of a GPU that nobody uses.
fn reset(number: u32) -> Result<(), GpuError> {
    let device = refused("cuDeviceGet", result::device::get(i32::try_from(number).unwrap_or(0)))?;
    // SAFETY: nobody in this crate has anything in the context: memory would hold on to it, and of streams and events that are
    // dropped later the driver says that they are gone.
    let code = unsafe { sys::cuDevicePrimaryCtxReset_v2(device) };
    refused("cuDevicePrimaryCtxReset", code.result())
}

/// Loads the driver for the bindings, which look for it by name: the loader gives them the one that is loaded already.
fn load(folders: &[PathBuf]) -> Result<(), GpuError> {
    if LOADED.get().is_none() {
        let library = Library::open(super::driver::NAME, folders)?;
        // Another thread may have been quicker; the loader then has the same library twice.
        let _ = LOADED.set(library);
    }
    // SAFETY: only loads and unloads the library, which is loaded already.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::Unbound);
    }
    refused("cuInit", result::init())
}
