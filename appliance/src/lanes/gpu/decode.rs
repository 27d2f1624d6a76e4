//! The threads that decode for a GPU's lane: cores of the CPU, and nvJPEG where there is one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
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

use super::route::{Line, Route, Router};
use crate::engine::EngineError;
use crate::lanes::{ClassifyError, Decoded, DeviceError, Ticket};

/// Images that nvJPEG is given at once: enough for every engine of a card to have two.
const NVJPEG_BATCH: usize = 16;
/// Threads with an nvJPEG each, so that one batch is on the GPU while the next is parsed.
const NVJPEG_THREADS: usize = 2;
/// Nanoseconds a pixel before anything is known: of a core, and of one of nvJPEG's threads.
const GUESSES: (f64, f64) = (2.0, 0.5);
/// Batches of which nvJPEG decodes nothing before it is left alone.
const MOST_IN_VAIN: usize = 16;
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

    pub(super) fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    pub(super) fn tell(&self, message: Message) {
        // A lane that has ended wants to know nothing more; one that was woken already needs no second time.
        let _ = self.messages.send(message);
        self.wake();
    }
}

#[derive(Debug)]
struct Work {
    ticket: Ticket,
    bytes: Bytes,
    pixels: u64,
    eligible: Option<Eligible>,
}

/// Where images go to be decoded; whoever has something to give or to do uses it.
#[derive(Debug)]
struct Dispatch {
    router: Mutex<Router<Work>>,
    cpu: Sender<Work>,
    gpu: Sender<Work>,
}

impl Dispatch {
    /// Takes an image in, and hands out what has a place now.
    fn push(&self, work: Work, cpu_only: bool) {
        let mut router = self.router.lock();
        let pixels = work.pixels;
        router.push(work, pixels, cpu_only);
        self.hand_out(&mut router);
    }

    /// A decoder has room again.
    fn done(&self, route: Route, images: usize, pixels: u64, took: Option<Duration>) {
        let mut router = self.router.lock();
        router.done(route, images, pixels, took);
        self.hand_out(&mut router);
    }

    fn hand_out(&self, router: &mut Router<Work>) {
        while let Some((route, work)) = router.next() {
            let line = match route {
                Route::Cpu => &self.cpu,
                Route::Gpu => &self.gpu,
            };
            // Threads that have ended were told to, or have told the lane.
            let _ = line.send(work);
        }
    }
}

/// The decoders. Dropped, they finish what they are at and end.
#[derive(Debug)]
pub struct Decoders {
    dispatch: Option<Arc<Dispatch>>,
    backend: Option<NvJpegBackend>,
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
        let (backend, nvjpegs) =
            nvjpeg.map_or((None, Vec::new()), |(backend, opened)| (Some(backend), opened));
        let (cpus, (cpu, cpu_work), (gpu, gpu_work)) = (settings.threads.max(1), unbounded(), unbounded());
        let lines = (Line::new(cpus, 1, GUESSES.0), Line::new(nvjpegs.len(), NVJPEG_BATCH, GUESSES.1));
        let dispatch = Arc::new(Dispatch { router: Mutex::new(Router::new(lines.0, lines.1)), cpu, gpu });
        let (limits, ending) = (settings.limits, Arc::new(AtomicBool::new(false)));
        let work = Arc::downgrade(&dispatch);
        // It has the sending ends from the start: on an error below they go with it, and the threads end.
        let mut decoders = Self { dispatch: Some(dispatch), backend, limits, ending, threads: Vec::new() };
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
            let eligible = self.backend.and_then(|backend| eligible(&bytes, backend, &self.limits).ok());
            let size = match &eligible {
                Some(eligible) => Ok((eligible.header.width, eligible.header.height)),
                None => inspect(&bytes, &self.limits).map(|header| (header.width, header.height)),
            };
            (eligible, size)
        };
        let Ok((eligible, size)) = catch_unwind(AssertUnwindSafe(look)) else {
            return teller.tell(Message::Refused(ticket, panicked()));
        };
        match (size, &self.dispatch) {
            (Ok((width, height)), Some(dispatch)) => {
                let (pixels, cpu_only) = (u64::from(width) * u64::from(height), eligible.is_none());
                dispatch.push(Work { ticket, bytes, pixels, eligible }, cpu_only);
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
    limits: DecodeLimits,
    resize: u32,
    stager: Stager,
    work: Receiver<Work>,
    dispatch: Weak<Dispatch>,
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
            let decode = || {
                let decoded = self.decoder.decode(&work.bytes, self.resize);
                let took = began.elapsed();
                match decoded {
                    Ok(image) => stage(&self.stager, &self.ending, work.ticket, &image, took),
                    Err(error) => Some(Message::Refused(work.ticket, error.into())),
                }
            };
            let message = match catch_unwind(AssertUnwindSafe(decode)) {
                Ok(message) => message,
                Err(_) => {
                    // What is left of the decoder is not to be trusted.
                    if let Ok(decoder) = Decoder::new(self.limits) {
                        self.decoder = decoder;
                    }
                    Some(Message::Refused(work.ticket, panicked()))
                }
            };
            let took = began.elapsed();
            match message {
                Some(message) => self.teller.tell(message),
                None => return,
            }
            if let Some(dispatch) = self.dispatch.upgrade() {
                dispatch.done(Route::Cpu, 1, work.pixels, Some(took));
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

/// A decoder panicked on an image: that image's fault, and it alone is to bear it.
fn panicked() -> ClassifyError {
    EngineError::Decoder("the decoder failed on this image".into()).into()
}

struct GpuThread {
    decoder: GpuJpegDecoder,
    check: Option<EntropyCheck>,
    work: Receiver<Work>,
    dispatch: Weak<Dispatch>,
    ending: Arc<AtomicBool>,
    teller: Teller,
    /// Batches one after the other of which nvJPEG has decoded nothing.
    in_vain: usize,
}

impl GpuThread {
    fn run(mut self) {
        let serve = || {
            while let Ok(first) = self.work.recv() {
                if self.ending.load(Ordering::Acquire) {
                    return Ok(());
                }
                let mut batch = vec![first];
                batch.extend(self.work.try_iter().take(NVJPEG_BATCH - 1));
                self.decode(batch)?;
            }
            Ok(())
        };
        let served = catch_unwind(AssertUnwindSafe(serve));
        if let Err(error) = served.unwrap_or(Err(DeviceError::Panicked)) {
            self.teller.tell(Message::Failed(error));
        }
    }

    fn decode(&mut self, batch: Vec<Work>) -> Result<(), DeviceError> {
        if self.in_vain >= MOST_IN_VAIN {
            self.leave_to_cpu(batch);
            return Ok(());
        }
        let (batch, unsound): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|work| is_sound(&mut self.check, work));
        self.leave_to_cpu(unsound);
        let began = Instant::now();
        let jpegs: Vec<(&[u8], Eligible)> =
            batch.iter().filter_map(|work| Some((&work.bytes[..], work.eligible?))).collect();
        let images = self.decoder.decode(&jpegs)?;
        let took = began.elapsed();
        let mut left = Vec::new();
        let (mut images_done, mut pixels) = (0, 0);
        for (work, image) in batch.into_iter().zip(images) {
            let (Some(image), Some(eligible)) = (image, work.eligible) else {
                left.push(work);
                continue;
            };
            images_done += 1;
            pixels += work.pixels;
            let (width, height) = (eligible.header.width, eligible.header.height);
            let decoded = Decoded { format: ImageFormat::Jpeg, width, height, time: took };
            self.teller.tell(Message::OnDevice(work.ticket, decoded, image));
        }
        self.note(images_done, left.len());
        if let Some(dispatch) = self.dispatch.upgrade() {
            dispatch.done(Route::Gpu, images_done, pixels, Some(took));
        }
        self.leave_to_cpu(left);
        Ok(())
    }

    /// nvJPEG that decodes nothing time and again is of no use here.
    fn note(&mut self, done: usize, left: usize) {
        self.in_vain = match (done, left) {
            (0, 1..) => self.in_vain + 1,
            (0, 0) => self.in_vain,
            _ => 0,
        };
        if self.in_vain == MOST_IN_VAIN {
            tracing::warn!("nvJPEG decodes nothing that it is given; the CPU decodes all images from now on");
        }
    }

    /// The CPU decodes what nvJPEG does not take, or has no room for.
    fn leave_to_cpu(&self, work: Vec<Work>) {
        // When the lane ends nobody waits for these any more.
        let Some(dispatch) = self.dispatch.upgrade() else { return };
        for work in work {
            dispatch.done(Route::Gpu, 1, work.pixels, None);
            dispatch.push(work, true);
        }
    }
}

fn is_sound(check: &mut Option<EntropyCheck>, work: &Work) -> bool {
    check.as_mut().is_none_or(|check| check.check(&work.bytes).is_ok())
}
