//! The decoders of a lane on a GPU: threads on the CPU, and on nvJPEG where it is available.

mod route;
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::Until;
use gpu_kernels::decode::nvjpeg::{EntropyCheck, NvJpegBackend, eligible};
use gpu_kernels::preprocess::cuda::{DeviceImage, StagedImage, Stager};
use gpu_kernels::{DecodeLimits, inspect};
use parking_lot::Mutex;

use super::{Decoded, DeviceError, Ticket};
use crate::engine::EngineError;
use crate::lanes::ClassifyError;
use crate::lanes::decoder::{self, LaneDecoder};
use crate::lanes::stall::{Stalls, Task};
use route::{DecoderQueue, Dispatch, Route, Router, Work};
use threads::{AtImage, CpuThread, GpuThread, NVJPEG_BATCH, NVJPEG_THREADS, Opened, open_nvjpeg};

/// Initial estimates in nanoseconds per pixel: for a CPU core, and for an nvJPEG thread.
const GUESSES: (f64, f64) = (2.0, 0.5);

/// How images are decoded for a GPU.
#[derive(Clone, Debug)]
pub struct DecodeSettings {
    /// Number of threads on the CPU.
    pub threads: usize,
    /// Whether nvJPEG is used where it is available.
    pub nvjpeg: bool,
    /// Whether the Huffman codes of a JPEG are verified on the CPU before nvJPEG decodes it.
    pub check_jpeg: bool,
    /// Folders in which nvJPEG's library is searched for.
    pub folders: Vec<PathBuf>,
    /// Limits on images.
    pub limits: DecodeLimits,
    /// The shorter side that the model needs, in pixels.
    pub resize: u32,
    /// When a thread that is stuck at an image is abandoned.
    pub stalls: Arc<Stalls>,
}

/// A completion from a thread other than the lane's.
#[derive(Debug)]
pub enum Message {
    /// An image was decoded on the CPU.
    Staged(Ticket, Decoded, StagedImage),
    /// An image was decoded on the GPU.
    OnDevice(Ticket, Decoded, DeviceImage),
    /// An image can't be decoded.
    Refused(Ticket, ClassifyError),
    /// The batch of a slot was read back.
    Finished(usize),
    /// The device has failed.
    Failed(DeviceError),
}

/// Sends messages and wakes the lane.
#[derive(Clone, Debug)]
pub struct EventSender {
    messages: Sender<Message>,
    wake: Sender<()>,
}

impl EventSender {
    /// A sender, the unbounded queue of its messages, and the wake-up channel, which holds at most one wake-up.
    pub fn new() -> (Self, Receiver<Message>, Receiver<()>) {
        let (wake, wakes) = bounded(1);
        let (send, messages) = unbounded();
        (Self { messages: send, wake }, messages, wakes)
    }

    pub(in crate::lanes::gpu) fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    pub(in crate::lanes::gpu) fn send(&self, message: Message) {
        // The lane may have ended, or may have been woken already.
        let _ = self.messages.send(message);
        self.wake();
    }
}

/// The decoding threads. When dropped, they finish their current images and end.
#[derive(Debug)]
pub struct Decoders {
    dispatch: Option<Arc<Dispatch>>,
    backend: Option<NvJpegBackend>,
    /// Whether nvJPEG's CUDA kernels decode what its hardware engines do not support.
    has_kernels: bool,
    limits: DecodeLimits,
    ending: Arc<AtomicBool>,
    stalls: Arc<Stalls>,
    last_check: Instant,
    /// Template for the threads on the CPU.
    cpu: CpuThread,
    cpus: Vec<ThreadSlot<AtImage>>,
    /// Threads on the CPU that are replaced as soon as fewer are stuck.
    vacant: Vec<usize>,
    nvjpegs: Vec<ThreadSlot<Vec<Work>>>,
    /// Images queued for nvJPEG.
    gpu_work: Receiver<Work>,
}

/// A thread and what it works on.
#[derive(Debug)]
struct ThreadSlot<T> {
    task: Arc<Task<T>>,
    /// `None` after it was abandoned, when it can't be joined.
    thread: Option<JoinHandle<()>>,
}

impl Decoders {
    /// Starts the threads. Without nvJPEG the CPU decodes everything. Images from the CPU are staged by `stager`, those from
    /// nvJPEG are stored in `pool`.
    ///
    /// # Errors
    /// [`EngineError`] if the driver refuses a call, or a thread can't be started.
    pub fn start(
        device: &Device,
        settings: &DecodeSettings,
        stager: &Stager,
        pool: &DevicePool,
        events: &EventSender,
    ) -> Result<Self, EngineError> {
        let nvjpeg = if settings.nvjpeg { open_nvjpeg(device, settings, pool)? } else { None };
        let (backend, nvjpegs, kernels) = match nvjpeg {
            Some(Opened { backend, decoders, kernels }) => (Some(backend), decoders, kernels),
            None => (None, Vec::new(), Vec::new()),
        };
        let has_kernels = !kernels.is_empty();
        let mut kernels = kernels.into_iter();
        let (cpus, (cpu, cpu_work), (gpu, gpu_work)) = (settings.threads.max(1), unbounded(), unbounded());
        let lines = (
            DecoderQueue::new(cpus, 1, GUESSES.0),
            DecoderQueue::new(nvjpegs.len(), NVJPEG_BATCH, GUESSES.1),
        );
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
            events: events.clone(),
        };
        // Holds the senders from the start: on an error below they are dropped and the threads end.
        let mut decoders = Self {
            dispatch: Some(dispatch),
            backend,
            has_kernels,
            limits,
            ending,
            stalls: Arc::clone(&settings.stalls),
            last_check: Instant::now(),
            cpu,
            cpus: Vec::new(),
            vacant: Vec::new(),
            nvjpegs: Vec::new(),
            gpu_work: gpu_work.clone(),
        };
        for number in 0..cpus {
            let slot = decoders.start_cpu(number)?;
            decoders.cpus.push(slot);
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
                events: events.clone(),
                consecutive_failures: 0,
                task: Arc::clone(&task),
            };
            let thread = spawn(format!("weir-nvjpeg-{number}"), move || thread.run())?;
            decoders.nvjpegs.push(ThreadSlot { task, thread: Some(thread) });
        }
        Ok(decoders)
    }

    fn start_cpu(&self, number: usize) -> Result<ThreadSlot<AtImage>, EngineError> {
        let decoder =
            LaneDecoder::new(self.limits).map_err(|error| EngineError::Decoder(error.to_string()))?;
        let (thread, task) = (self.cpu.clone(), Task::new());
        let at = Arc::clone(&task);
        let thread = spawn(format!("weir-decode-{number}"), move || thread.run(decoder, &at))?;
        Ok(ThreadSlot { task, thread: Some(thread) })
    }

    /// Replaces stuck threads on the CPU, whose images fail. The device fails when all of them are stuck. Images at which
    /// nvJPEG is stuck are decoded on the CPU. Must be called regularly.
    pub fn replace_stuck(&mut self) {
        if self.last_check.elapsed() < self.stalls.poll_interval() {
            return;
        }
        self.last_check = Instant::now();
        for number in 0..self.cpus.len() {
            let slot = &mut self.cpus[number];
            let Some(AtImage { ticket, pixels, bytes }) = slot.task.abandon_if_stuck(&self.stalls) else {
                continue;
            };
            // The abandoned thread owns what it works on; it can't be joined.
            *slot = ThreadSlot { task: Task::new(), thread: None };
            self.vacant.push(number);
            let image = blake3::hash(&bytes).to_hex();
            tracing::error!(%image, bytes = bytes.len(), stuck = self.stalls.stuck(), "decoder stuck at an image");
            let limit = self.stalls.limit();
            self.cpu.events.send(Message::Refused(ticket, ClassifyError::Stalled { limit }));
            if let Some(dispatch) = &self.dispatch {
                dispatch.done(Route::Cpu, 1, pixels, None);
            }
        }
        while !self.stalls.is_exhausted()
            && let Some(number) = self.vacant.pop()
        {
            match self.start_cpu(number) {
                Ok(slot) => self.cpus[number] = slot,
                Err(error) => {
                    tracing::error!(%error, "cannot replace the decoder");
                    self.vacant.push(number);
                    break;
                }
            }
        }
        if self.vacant.len() == self.cpus.len() {
            self.cpu.events.send(Message::Failed(DeviceError::Hangs));
        }
        self.replace_stuck_nvjpeg();
    }

    /// Passes the images of stuck nvJPEG threads to the CPU, and all further ones when no such thread is left.
    fn replace_stuck_nvjpeg(&mut self) {
        let Some(dispatch) = &self.dispatch else { return };
        let fall_back_to_cpu = |work: Work| {
            dispatch.done(Route::Gpu, 1, work.pixels, None);
            dispatch.push(work, true);
        };
        for slot in &mut self.nvjpegs {
            let Some(images) = slot.task.abandon_if_stuck(&self.stalls) else { continue };
            *slot = ThreadSlot { task: Task::new(), thread: None };
            let (images_left, stuck) = (images.len(), self.stalls.stuck());
            tracing::error!(images_left, stuck, "nvJPEG is stuck; decoding its images on the CPU");
            images.into_iter().for_each(fall_back_to_cpu);
        }
        if !self.nvjpegs.is_empty() && self.nvjpegs.iter().all(|slot| slot.thread.is_none()) {
            self.backend = None;
            // Some may still be queued for it.
            self.gpu_work.try_iter().for_each(fall_back_to_cpu);
        }
    }

    /// The nvJPEG backend in use; `None` where the CPU decodes everything.
    pub fn backend(&self) -> Option<NvJpegBackend> {
        self.backend
    }

    /// Number of images that are decoded at the same time.
    pub fn at_once(&self) -> usize {
        let nvjpeg = if self.backend.is_some() { NVJPEG_BATCH * NVJPEG_THREADS } else { 0 };
        self.cpus.len() + nvjpeg
    }

    /// Queues an image for the decoder that is expected to finish it first; the CPU cancels at `until`. Errors are reported to
    /// `events`.
    pub fn decode(&self, ticket: Ticket, bytes: Bytes, until: Until, events: &EventSender) {
        let inspect_headers = || {
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
        let Ok((eligible, for_kernels, size)) = catch_unwind(AssertUnwindSafe(inspect_headers)) else {
            return events.send(Message::Refused(ticket, decoder::failed(&bytes).into()));
        };
        match (size, &self.dispatch) {
            (Ok((width, height)), Some(dispatch)) => {
                let (pixels, cpu_only) = (u64::from(width) * u64::from(height), eligible.is_none());
                dispatch.push(Work { ticket, bytes, pixels, until, eligible, for_kernels }, cpu_only);
            }
            (Ok(_), None) => events.send(Message::Failed(DeviceError::Ended)),
            (Err(error), _) => events.send(Message::Refused(ticket, error.into())),
        }
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // This drops the senders of the threads' queues.
        self.dispatch.take();
        let cpus = self.cpus.drain(..).filter_map(|slot| slot.thread);
        for thread in cpus.chain(self.nvjpegs.drain(..).filter_map(|slot| slot.thread)) {
            let _ = thread.join();
        }
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new().name(name).spawn(run).map_err(EngineError::Thread)
}
