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
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::Until;
use gpu_kernels::decode::nvjpeg::{EntropyCheck, NvJpegBackend, eligible};
use gpu_kernels::preprocess::cuda::Stager;
use gpu_kernels::{DecodeLimits, inspect};
use parking_lot::Mutex;

pub use message::{EventSender, Message};

use super::route::{Line, Route, Router};
use crate::engine::EngineError;
use crate::lanes::decoder::{self, LaneDecoder};
use crate::lanes::stall::{Stalls, Task};
use crate::lanes::{ClassifyError, DeviceError, Ticket};
use cpu::{AtImage, CpuThread};
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
    /// When a thread that is stuck at an image is given up on.
    pub stalls: Arc<Stalls>,
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
    stalls: Arc<Stalls>,
    looked: Instant,
    /// How a thread on the CPU is made.
    cpu: CpuThread,
    cpus: Vec<Seat<AtImage>>,
    /// Those on the CPU that are to be replaced as soon as fewer are stuck.
    vacant: Vec<usize>,
    nvjpegs: Vec<Seat<Vec<Work>>>,
    /// What waits for nvJPEG.
    gpu_work: Receiver<Work>,
}

/// A thread and what it is at.
#[derive(Debug)]
struct Seat<T> {
    task: Arc<Task<T>>,
    /// None after it was given up on, when it can't be joined.
    thread: Option<JoinHandle<()>>,
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
        teller: &EventSender,
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
        if settings.stalls.is_exhausted() {
            let stuck = settings.stalls.stuck();
            return Err(EngineError::Decoder(format!(
                "{stuck} threads are stuck at images; no more are started"
            )));
        }
        let cpu = CpuThread {
            resize: settings.resize,
            stager: stager.clone(),
            work: cpu_work,
            dispatch: Weak::clone(&work),
            ending: Arc::clone(&ending),
            teller: teller.clone(),
        };
        // It has the sending ends from the start: on an error below they go with it, and the threads end.
        let mut decoders = Self {
            dispatch: Some(dispatch),
            backend,
            has_kernels,
            limits,
            ending,
            stalls: Arc::clone(&settings.stalls),
            looked: Instant::now(),
            cpu,
            cpus: Vec::new(),
            vacant: Vec::new(),
            nvjpegs: Vec::new(),
            gpu_work: gpu_work.clone(),
        };
        for number in 0..cpus {
            let seat = decoders.start_cpu(number)?;
            decoders.cpus.push(seat);
        }
        for (number, decoder) in nvjpegs.into_iter().enumerate() {
            let task = Task::new();
            let thread = GpuThread {
                decoder,
                kernels: kernels.next(),
                check: settings.check_jpeg.then(EntropyCheck::default),
                work: gpu_work.clone(),
                dispatch: Weak::clone(&work),
                ending: Arc::clone(&decoders.ending),
                teller: teller.clone(),
                consecutive_failures: 0,
                task: Arc::clone(&task),
            };
            let thread = spawn(format!("weir-nvjpeg-{number}"), move || thread.run())?;
            decoders.nvjpegs.push(Seat { task, thread: Some(thread) });
        }
        Ok(decoders)
    }

    fn start_cpu(&self, number: usize) -> Result<Seat<AtImage>, EngineError> {
        let decoder =
            LaneDecoder::new(self.limits).map_err(|error| EngineError::Decoder(error.to_string()))?;
        let (thread, task) = (self.cpu.clone(), Task::new());
        let at = Arc::clone(&task);
        let thread = spawn(format!("weir-decode-{number}"), move || thread.run(decoder, &at))?;
        Ok(Seat { task, thread: Some(thread) })
    }

    /// Replaces threads on the CPU that are stuck at an image, whose error that is. That all of them are
    /// is the device's failure. Images at which nvJPEG is stuck are decoded on the CPU. To be called now and then.
    pub fn replace_stuck(&mut self) {
        if self.looked.elapsed() < self.stalls.look() {
            return;
        }
        self.looked = Instant::now();
        for number in 0..self.cpus.len() {
            let seat = &mut self.cpus[number];
            let Some(AtImage { ticket, pixels, bytes }) = seat.task.give_up(&self.stalls) else { continue };
            // What it is at is its own from now on; it can't be joined.
            *seat = Seat { task: Task::new(), thread: None };
            self.vacant.push(number);
            let image = blake3::hash(&bytes).to_hex();
            tracing::error!(%image, bytes = bytes.len(), stuck = self.stalls.stuck(), "a decoder is stuck at this image");
            let limit = self.stalls.limit();
            self.cpu.teller.tell(Message::Refused(ticket, ClassifyError::Stalled { limit }));
            if let Some(dispatch) = &self.dispatch {
                dispatch.done(Route::Cpu, 1, pixels, None);
            }
        }
        while !self.stalls.is_exhausted()
            && let Some(number) = self.vacant.pop()
        {
            match self.start_cpu(number) {
                Ok(seat) => self.cpus[number] = seat,
                Err(error) => {
                    tracing::error!(%error, "a decoder can't be replaced");
                    self.vacant.push(number);
                    break;
                }
            }
        }
        if self.vacant.len() == self.cpus.len() {
            self.cpu.teller.tell(Message::Failed(DeviceError::Hangs));
        }
        self.do_without_stuck_nvjpeg();
    }

    /// The CPU decodes what a thread of nvJPEG is stuck at, and all from now on when none of them is left.
    fn do_without_stuck_nvjpeg(&mut self) {
        let Some(dispatch) = &self.dispatch else { return };
        let leave_to_cpu = |work: Work| {
            dispatch.done(Route::Gpu, 1, work.pixels, None);
            dispatch.push(work, true);
        };
        for seat in &mut self.nvjpegs {
            let Some(images) = seat.task.give_up(&self.stalls) else { continue };
            *seat = Seat { task: Task::new(), thread: None };
            let (images_left, stuck) = (images.len(), self.stalls.stuck());
            tracing::error!(images_left, stuck, "nvJPEG is stuck at these images; the CPU decodes them");
            images.into_iter().for_each(leave_to_cpu);
        }
        if !self.nvjpegs.is_empty() && self.nvjpegs.iter().all(|seat| seat.thread.is_none()) {
            self.backend = None;
            // Some may still be on their way there.
            self.gpu_work.try_iter().for_each(leave_to_cpu);
        }
    }

    /// Which engine of nvJPEG decodes; none where the CPU decodes all.
    pub fn backend(&self) -> Option<NvJpegBackend> {
        self.backend
    }

    /// Images that are decoded at the same time.
    pub fn at_once(&self) -> usize {
        let nvjpeg = if self.backend.is_some() { NVJPEG_BATCH * NVJPEG_THREADS } else { 0 };
        self.cpus.len() + nvjpeg
    }

    /// Has an image decoded by whoever will have it first; the CPU gives up at the time that `until` says. `teller` hears of it when it can't be.
    pub fn decode(&self, ticket: Ticket, bytes: Bytes, until: Until, teller: &EventSender) {
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
            return teller.tell(Message::Refused(ticket, decoder::failed(&bytes).into()));
        };
        match (size, &self.dispatch) {
            (Ok((width, height)), Some(dispatch)) => {
                let (pixels, cpu_only) = (u64::from(width) * u64::from(height), eligible.is_none());
                dispatch.push(Work { ticket, bytes, pixels, until, eligible, for_kernels }, cpu_only);
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
        let cpus = self.cpus.drain(..).filter_map(|seat| seat.thread);
        for thread in cpus.chain(self.nvjpegs.drain(..).filter_map(|seat| seat.thread)) {
            let _ = thread.join();
        }
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new().name(name).spawn(run).map_err(EngineError::Thread)
}
