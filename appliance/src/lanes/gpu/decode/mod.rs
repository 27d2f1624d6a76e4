//! The decoders of a GPU's lane: threads on cores of the CPU, and on nvJPEG where there is one.

mod cpu;
mod dispatch;
mod message;
mod nvjpeg;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::unbounded;
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::nvjpeg::{EntropyCheck, NvJpegBackend, eligible};
use gpu_kernels::preprocess::cuda::Stager;
use gpu_kernels::{DecodeLimits, Decoder, inspect};
use parking_lot::Mutex;

pub use message::{Message, Teller};

use super::route::{Line, Router};
use crate::engine::EngineError;
use crate::lanes::{ClassifyError, DeviceError, Ticket};
use cpu::CpuThread;
use dispatch::{Dispatch, Work};
use nvjpeg::{GpuThread, NVJPEG_BATCH, NVJPEG_THREADS, Opened, open_nvjpeg};

/// Nanoseconds a pixel before anything is known: of a core, and of one of nvJPEG's threads.
const GUESSES: (f64, f64) = (2.0, 0.5);

/// How images are decoded for a GPU.
#[derive(Clone, Debug)]
pub struct DecodeSettings {
    /// Threads on the CPU.
    pub threads: usize,
    /// Whether nvJPEG decodes too, where it can.
    pub nvjpeg: bool,
    /// Whether each Huffman code is followed on the CPU before nvJPEG gets a JPEG.
    pub check_jpeg: bool,
    /// Where nvJPEG's library may be.
    pub folders: Vec<PathBuf>,
    /// Bounds on images.
    pub limits: DecodeLimits,
    /// The shorter side that the model needs.
    pub resize: u32,
}

/// The decoders. Dropped, they finish what they are at and end.
#[derive(Debug)]
pub struct Decoders {
    dispatch: Option<Arc<Dispatch>>,
    backend: Option<NvJpegBackend>,
    /// Whether nvJPEG's CUDA kernels decode what its hardware engines refuse.
    has_kernels: bool,
    limits: DecodeLimits,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Decoders {
    /// Starts the threads. Without nvJPEG the CPU decodes all. The CPU's images are staged by `stager`, nvJPEG's go to `pool`.
    ///
    /// # Errors
    /// [`EngineError`]: the driver refuses, or there are no threads.
    pub fn start(
        device: &Device,
        settings: &DecodeSettings,
        stager: &Stager,
        pool: &DevicePool,
        teller: &Teller,
    ) -> Result<Self, EngineError> {
        let nvjpeg = if settings.nvjpeg { open_nvjpeg(device, settings, pool)? } else { None };
        let (backend, nvjpegs, kernels) = match nvjpeg {
            Some(Opened { backend, decoders, kernels }) => (Some(backend), decoders, kernels),
            None => (None, Vec::new(), Vec::new()),
        };
        let has_kernels = !kernels.is_empty();
        let mut kernels = kernels.into_iter();
        let (cpus, (cpu, cpu_work), (gpu, gpu_work)) = (settings.threads.max(1), unbounded(), unbounded());
        let lines = (Line::new(cpus, 1, GUESSES.0), Line::new(nvjpegs.len(), NVJPEG_BATCH, GUESSES.1));
        let dispatch = Arc::new(Dispatch { router: Mutex::new(Router::new(lines.0, lines.1)), cpu, gpu });
        let (limits, ending) = (settings.limits, Arc::new(AtomicBool::new(false)));
        let work = Arc::downgrade(&dispatch);
        // It has the sending ends from the start: on an error below they go with it, and the threads end.
        let threads = Vec::new();
        let mut decoders = Self { dispatch: Some(dispatch), backend, has_kernels, limits, ending, threads };
        for number in 0..cpus {
            let decoder =
                Decoder::new(settings.limits).map_err(|error| EngineError::Decoder(error.to_string()))?;
            let thread = CpuThread {
                decoder,
                limits: settings.limits,
                resize: settings.resize,
                stager: stager.clone(),
                work: cpu_work.clone(),
                dispatch: Weak::clone(&work),
                ending: Arc::clone(&decoders.ending),
                teller: teller.clone(),
            };
            decoders.spawn(format!("weir-decode-{number}"), move || thread.run())?;
        }
        for (number, decoder) in nvjpegs.into_iter().enumerate() {
            let thread = GpuThread {
                decoder,
                kernels: kernels.next(),
                check: settings.check_jpeg.then(EntropyCheck::default),
                work: gpu_work.clone(),
                dispatch: Weak::clone(&work),
                ending: Arc::clone(&decoders.ending),
                teller: teller.clone(),
                in_vain: 0,
            };
            decoders.spawn(format!("weir-nvjpeg-{number}"), move || thread.run())?;
        }
        Ok(decoders)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(EngineError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Which engine of nvJPEG decodes; none where the CPU decodes all.
    pub fn backend(&self) -> Option<NvJpegBackend> {
        self.backend
    }

    /// Images that are decoded at the same time.
    pub fn at_once(&self) -> usize {
        let nvjpeg = if self.backend.is_some() { NVJPEG_BATCH * NVJPEG_THREADS } else { 0 };
        self.threads.len() + nvjpeg
    }

    /// Has an image decoded by whoever will have it first. `teller` hears of it when it can't be.
    pub fn decode(&self, ticket: Ticket, bytes: Bytes, teller: &Teller) {
        let look = || {
            let by = |backend| eligible(&bytes, backend, &self.limits).ok();
            let first = self.backend.and_then(by);
            let for_kernels = first.is_none() && self.has_kernels;
            let eligible = if for_kernels { by(NvJpegBackend::Cuda) } else { first };
            let size = match &eligible {
                Some(eligible) => Ok((eligible.header.width, eligible.header.height)),
                None => inspect(&bytes, &self.limits).map(|header| (header.width, header.height)),
            };
            (eligible, for_kernels, size)
        };
        let Ok((eligible, for_kernels, size)) = catch_unwind(AssertUnwindSafe(look)) else {
            return teller.tell(Message::Refused(ticket, panicked()));
        };
        match (size, &self.dispatch) {
            (Ok((width, height)), Some(dispatch)) => {
                let (pixels, cpu_only) = (u64::from(width) * u64::from(height), eligible.is_none());
                dispatch.push(Work { ticket, bytes, pixels, eligible, for_kernels }, cpu_only);
            }
            (Ok(_), None) => teller.tell(Message::Failed(DeviceError::Ended)),
            (Err(error), _) => teller.tell(Message::Refused(ticket, error.into())),
        }
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // With it go the sending ends that the threads listen to.
        self.dispatch.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A decoder panicked on an image: that image's fault, and it alone is to bear it.
fn panicked() -> ClassifyError {
    EngineError::Decoder("the decoder failed on this image".into()).into()
}
