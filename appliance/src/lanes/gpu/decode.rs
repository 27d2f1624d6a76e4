//! The threads that decode for a GPU's lane: cores of the CPU, and nvJPEG where there is one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::nvjpeg::{
    Eligible, EntropyCheck, GpuDecodeError, GpuJpegDecoder, NvJpegBackend, NvJpegError, eligible,
};
use gpu_kernels::preprocess::cuda::{DeviceImage, StagedImage, Stager};
use gpu_kernels::{DecodeLimits, Decoder, Image, ImageFormat, inspect};
use parking_lot::Mutex;

use super::route::{Line, Route, choose};
use crate::engine::EngineError;
use crate::lanes::{ClassifyError, Decoded, DeviceError, Ticket};

/// Images that nvJPEG is given at once: enough for every engine of a card to have two.
const NVJPEG_BATCH: usize = 16;
/// Threads with an nvJPEG each, so that one batch is on the GPU while the next is parsed.
const NVJPEG_THREADS: usize = 2;
/// Nanoseconds a pixel before anything is known: of a core, and of one of nvJPEG's threads.
const GUESSES: (f64, f64) = (2.0, 0.5);
/// How soon a thread that waits for room sees that it is to end.
const LOOK: Duration = Duration::from_millis(200);

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

/// What happens beside the lane's thread.
#[derive(Debug)]
pub enum Message {
    /// An image was decoded by the CPU.
    Staged(Ticket, Decoded, StagedImage),
    /// An image was decoded by the GPU.
    OnDevice(Ticket, Decoded, DeviceImage),
    /// An image can't be decoded.
    Refused(Ticket, ClassifyError),
    /// The batch of a slot was read back.
    Finished(usize),
    /// The GPU is of no use any more.
    Failed(DeviceError),
}

/// Sends messages and wakes the lane.
#[derive(Clone, Debug)]
pub struct Teller {
    messages: Sender<Message>,
    wake: Sender<()>,
}

impl Teller {
    /// One for who reads the messages, which come without bound, and the wakes, of which one at most waits.
    pub fn new() -> (Self, Receiver<Message>, Receiver<()>) {
        let (wake, wakes) = bounded(1);
        let (send, messages) = unbounded();
        (Self { messages: send, wake }, messages, wakes)
    }

    pub(super) fn tell(&self, message: Message) {
        // A lane that has ended wants to know nothing more; one that was woken already needs no second time.
        let _ = self.messages.send(message);
        let _ = self.wake.try_send(());
    }
}

#[derive(Debug)]
struct Work {
    ticket: Ticket,
    bytes: Bytes,
    pixels: u64,
    eligible: Option<Eligible>,
}

#[derive(Debug)]
struct Lines {
    cpu: Line,
    gpu: Line,
}

/// The decoders. Dropped, they finish what they are at and end.
#[derive(Debug)]
pub struct Decoders {
    cpu: Option<Sender<Work>>,
    gpu: Option<Sender<Work>>,
    backend: Option<NvJpegBackend>,
    limits: DecodeLimits,
    lines: Arc<Mutex<Lines>>,
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
        let nvjpegs = if settings.nvjpeg { open_nvjpeg(device, settings, pool)? } else { None };
        let (to_cpu, cpu_work) = unbounded();
        let units = NVJPEG_THREADS;
        let lines = Lines { cpu: Line::new(settings.threads, GUESSES.0), gpu: Line::new(units, GUESSES.1) };
        let mut decoders = Self {
            cpu: Some(to_cpu.clone()),
            gpu: None,
            backend: nvjpegs.as_ref().map(|(backend, _)| *backend),
            limits: settings.limits,
            lines: Arc::new(Mutex::new(lines)),
            ending: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for number in 0..settings.threads.max(1) {
            let decoder =
                Decoder::new(settings.limits).map_err(|error| EngineError::Decoder(error.to_string()))?;
            let thread = CpuThread {
                decoder,
                resize: settings.resize,
                stager: stager.clone(),
                work: cpu_work.clone(),
                lines: Arc::clone(&decoders.lines),
                ending: Arc::clone(&decoders.ending),
                teller: teller.clone(),
            };
            decoders.spawn(format!("weir-decode-{number}"), move || thread.run())?;
        }
        if let Some((_, opened)) = nvjpegs {
            let (to_gpu, gpu_work) = bounded(NVJPEG_BATCH * 64);
            decoders.gpu = Some(to_gpu);
            for (number, decoder) in opened.into_iter().enumerate() {
                let thread = GpuThread {
                    decoder,
                    check: settings.check_jpeg.then(EntropyCheck::default),
                    work: gpu_work.clone(),
                    to_cpu: to_cpu.clone(),
                    lines: Arc::clone(&decoders.lines),
                    teller: teller.clone(),
                };
                decoders.spawn(format!("weir-nvjpeg-{number}"), move || thread.run())?;
            }
        }
        Ok(decoders)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(EngineError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Images that are decoded at the same time.
    pub fn at_once(&self) -> usize {
        let nvjpeg = if self.gpu.is_some() { NVJPEG_BATCH * NVJPEG_THREADS } else { 0 };
        self.threads.len() + nvjpeg
    }

    /// Which engine of nvJPEG decodes; none where the CPU decodes all.
    pub fn backend(&self) -> Option<NvJpegBackend> {
        self.backend
    }

    /// Has an image decoded by whoever will have it first. `teller` hears of it when it can't be.
    pub fn decode(&self, ticket: Ticket, bytes: Bytes, teller: &Teller) {
        let eligible = self.backend.and_then(|backend| eligible(&bytes, backend, &self.limits).ok());
        let pixels = match &eligible {
            Some(eligible) => Ok((eligible.header.width, eligible.header.height)),
            None => inspect(&bytes, &self.limits).map(|header| (header.width, header.height)),
        };
        let pixels = match pixels {
            Ok((width, height)) => u64::from(width) * u64::from(height),
            Err(error) => return teller.tell(Message::Refused(ticket, error.into())),
        };
        let mut lines = self.lines.lock();
        let route = if eligible.is_some() { choose(&lines.cpu, &lines.gpu, pixels) } else { Route::Cpu };
        let mut work = Work { ticket, bytes, pixels, eligible };
        if route == Route::Gpu
            && let Some(gpu) = &self.gpu
        {
            lines.gpu.put(pixels);
            match gpu.try_send(work) {
                Ok(()) => return,
                Err(full) => {
                    lines.gpu.done(pixels, None);
                    work = full.into_inner();
                }
            }
        }
        lines.cpu.put(pixels);
        drop(lines);
        if self.cpu.as_ref().is_none_or(|cpu| cpu.send(work).is_err()) {
            teller.tell(Message::Failed(DeviceError::Ended));
        }
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        self.gpu.take();
        self.cpu.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// nvJPEG's hardware engines, else its CUDA kernels; `None` where neither can be had, with the reason in the log.
#[allow(clippy::type_complexity, reason = "a backend and its decoders")]
fn open_nvjpeg(
    device: &Device,
    settings: &DecodeSettings,
    pool: &DevicePool,
) -> Result<Option<(NvJpegBackend, Vec<GpuJpegDecoder>)>, EngineError> {
    let open = |backend| {
        let one = |_| GpuJpegDecoder::open(device, &settings.folders, backend, NVJPEG_BATCH, pool.clone());
        (0..NVJPEG_THREADS).map(one).collect::<Result<Vec<_>, _>>()
    };
    for backend in [NvJpegBackend::Hardware, NvJpegBackend::Cuda] {
        match open(backend) {
            Ok(opened) => {
                let engines = opened.first().and_then(GpuJpegDecoder::engines);
                tracing::info!(?backend, ?engines, "nvJPEG decodes beside the CPU");
                return Ok(Some((backend, opened)));
            }
            Err(GpuDecodeError::Gpu(error)) => return Err(error.into()),
            Err(GpuDecodeError::NvJpeg(error @ NvJpegError::Library(_))) => {
                tracing::warn!(%error, "nvJPEG can't be used; the CPU decodes all images");
                return Ok(None);
            }
            Err(GpuDecodeError::NvJpeg(error)) => {
                tracing::info!(%error, ?backend, "nvJPEG has no such engine here");
            }
        }
    }
    tracing::warn!("nvJPEG can't be used; the CPU decodes all images");
    Ok(None)
}

struct CpuThread {
    decoder: Decoder,
    resize: u32,
    stager: Stager,
    work: Receiver<Work>,
    lines: Arc<Mutex<Lines>>,
    ending: Arc<AtomicBool>,
    teller: Teller,
}

impl CpuThread {
    fn run(mut self) {
        while let Ok(work) = self.work.recv() {
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let began = Instant::now();
            let decoded = self.decoder.decode(&work.bytes, self.resize);
            let took = began.elapsed();
            let message = match decoded {
                Ok(image) => stage(&self.stager, &self.ending, work.ticket, &image, took),
                Err(error) => Some(Message::Refused(work.ticket, error.into())),
            };
            self.lines.lock().cpu.done(work.pixels, Some(took));
            match message {
                Some(message) => self.teller.tell(message),
                None => return,
            }
        }
    }
}

/// Copies an image to where the GPU reads it, as soon as there is room. None when the thread is to end.
fn stage(
    stager: &Stager,
    ending: &AtomicBool,
    ticket: Ticket,
    image: &Image<'_>,
    time: Duration,
) -> Option<Message> {
    let (format, width, height) = (image.format, image.original_width, image.original_height);
    loop {
        match stager.stage(image, LOOK) {
            Ok(Some(staged)) => {
                return Some(Message::Staged(ticket, Decoded { format, width, height, time }, staged));
            }
            Ok(None) if ending.load(Ordering::Acquire) => return None,
            Ok(None) => {}
            Err(error) => return Some(Message::Failed(error.into())),
        }
    }
}

struct GpuThread {
    decoder: GpuJpegDecoder,
    check: Option<EntropyCheck>,
    work: Receiver<Work>,
    to_cpu: Sender<Work>,
    lines: Arc<Mutex<Lines>>,
    teller: Teller,
}

impl GpuThread {
    fn run(mut self) {
        while let Ok(first) = self.work.recv() {
            let mut batch = vec![first];
            batch.extend(self.work.try_iter().take(NVJPEG_BATCH - 1));
            let (batch, unsound): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|work| is_sound(&mut self.check, work));
            self.leave_to_cpu(unsound);
            let began = Instant::now();
            let jpegs: Vec<(&[u8], Eligible)> =
                batch.iter().filter_map(|work| Some((&work.bytes[..], work.eligible?))).collect();
            let images = match self.decoder.decode(&jpegs) {
                Ok(images) => images,
                Err(error) => {
                    self.teller.tell(Message::Failed(failed(error)));
                    return;
                }
            };
            let took = began.elapsed();
            let mut left = Vec::new();
            let mut pixels = 0;
            for (work, image) in batch.into_iter().zip(images) {
                let (Some(image), Some(eligible)) = (image, work.eligible) else {
                    left.push(work);
                    continue;
                };
                pixels += work.pixels;
                let (width, height) = (eligible.header.width, eligible.header.height);
                let decoded = Decoded { format: ImageFormat::Jpeg, width, height, time: took };
                self.teller.tell(Message::OnDevice(work.ticket, decoded, image));
            }
            self.lines.lock().gpu.done(pixels, Some(took));
            self.leave_to_cpu(left);
        }
    }

    /// The CPU decodes what nvJPEG does not take, or has no room for.
    fn leave_to_cpu(&self, work: Vec<Work>) {
        for work in work {
            let mut lines = self.lines.lock();
            lines.gpu.done(work.pixels, None);
            lines.cpu.put(work.pixels);
            drop(lines);
            // When the lane ends nobody waits for these any more.
            let _ = self.to_cpu.send(work);
        }
    }
}

fn is_sound(check: &mut Option<EntropyCheck>, work: &Work) -> bool {
    check.as_mut().is_none_or(|check| check.check(&work.bytes).is_ok())
}

fn failed(error: GpuDecodeError) -> DeviceError {
    match error {
        GpuDecodeError::Gpu(error) => error.into(),
        GpuDecodeError::NvJpeg(error) => error.into(),
    }
}
