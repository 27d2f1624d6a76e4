//! Streams and events: what runs in order on a GPU, and what waits for what.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};

use super::{GpuError, refused};

/// The bindings keep an error that something met when it was dropped, for whoever calls next, who may be another lane and would
/// then not have waited.
pub(super) fn forget_others(context: &CudaContext) {
    if let Err(error) = context.check_err() {
        // On a GPU that is lost the call itself fails too.
        let _ = error;
    }
}

/// Work in order. Cheap to clone; what is put on it runs when everything before it has.
#[derive(Clone, Debug)]
pub struct Stream(pub(crate) Arc<CudaStream>);

/// A moment in a stream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Event(Arc<CudaEvent>);

impl Stream {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self(stream)
    }

    /// The driver's handle, for libraries that put their own work on it.
    pub fn raw(&self) -> *mut c_void {
        self.0.cu_stream().cast()
    }

    /// What comes after this on the stream waits for the event.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn wait(&self, event: &Event) -> Result<(), GpuError> {
        refused("cuStreamWaitEvent", self.0.wait(&event.0))
    }

    /// The event is passed when everything before this on the stream has run.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn record(&self, event: &Event) -> Result<(), GpuError> {
        refused("cuEventRecord", event.0.record(&self.0))
    }

    /// Waits until everything on it has run.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also with what has gone wrong on the GPU before.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(self.0.context());
        refused("cuStreamSynchronize", self.0.synchronize())
    }
}

impl Event {
    pub(super) fn new(event: CudaEvent) -> Self {
        Self(Arc::new(event))
    }

    /// Sleeps until it is passed. An event that was never recorded is.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also with what has gone wrong on the GPU before.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        forget_others(self.0.context());
        refused("cuEventSynchronize", self.0.synchronize())
    }

    /// Time on the GPU from `earlier` to this; both must have been passed.
    ///
    /// # Errors
    /// [`GpuError::Refused`].
    pub fn since(&self, earlier: &Self) -> Result<Duration, GpuError> {
        let ms = refused("cuEventElapsedTime", earlier.0.elapsed_ms(&self.0))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}
