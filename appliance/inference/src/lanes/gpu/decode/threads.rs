//! The threads that decode for a GPU: on CPU cores, and through nvJPEG.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::nvjpeg::{
    Eligible, EntropyCheck, GpuDecodeError, GpuJpegDecoder, NvJpegBackend, NvJpegError,
};
use gpu_kernels::preprocess::cuda::Stager;
use gpu_kernels::{Image, ImageFormat};

use super::route::{Dispatch, Route, Work};
use super::{DecodeSettings, EventSender, Message};
use crate::engine::EngineError;
use crate::lanes::decoder::{Encoded, LaneDecoder};
use crate::lanes::gpu::{Decoded, DeviceError, Ticket};
use crate::lanes::stall::Task;

/// Interval at which a thread that waits for memory checks whether it must end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What the threads on the CPU share.
#[derive(Clone, Debug)]
pub(super) struct CpuThread {
    pub(super) resize: u32,
    pub(super) stager: Stager,
    pub(super) work: Receiver<Work>,
    pub(super) dispatch: Weak<Dispatch>,
    pub(super) ending: Arc<AtomicBool>,
    pub(super) events: EventSender,
}

/// The image that a thread decodes.
#[derive(Debug)]
pub(super) struct AtImage {
    pub(super) ticket: Ticket,
    pub(super) pixels: u64,
    pub(super) bytes: Bytes,
}

impl CpuThread {
    pub(super) fn run(self, mut decoder: LaneDecoder, task: &Task<AtImage>) {
        while let Ok(Work { ticket, bytes, pixels, until, .. }) = self.work.recv() {
            if self.ending.load(Ordering::Acquire) {
                return;
            }
            let began = Instant::now();
            task.begin(AtImage { ticket, pixels, bytes: bytes.clone() });
            let mut decoded_in_time = None;
            let decoded = decoder.with(Encoded { bytes: &bytes, until }, self.resize, |image| {
                // Waiting for memory on the GPU is not counted as being stuck.
                let in_time = task.finish().is_some();
                decoded_in_time = Some(in_time);
                if in_time { self.stage(ticket, image, began.elapsed()) } else { None }
            });
            if !decoded_in_time.unwrap_or_else(|| task.finish().is_some()) {
                // The thread was abandoned and replaced.
                return;
            }
            let message = decoded.unwrap_or_else(|error| Some(Message::Refused(ticket, error.into())));
            let took = began.elapsed();
            drop(bytes);
            match message {
                Some(message) => self.events.send(message),
                None => return,
            }
            if let Some(dispatch) = self.dispatch.upgrade() {
                dispatch.done(Route::Cpu, 1, pixels, Some(took));
            }
        }
    }

    /// Copies an image to pinned memory once there is room. `None` when the thread must end.
    fn stage(&self, ticket: Ticket, image: &Image<'_>, time: Duration) -> Option<Message> {
        let (format, width, height) = (image.format, image.original_width, image.original_height);
        loop {
            match self.stager.stage(image, POLL_INTERVAL) {
                Ok(Some(staged)) => {
                    return Some(Message::Staged(ticket, Decoded { format, width, height, time }, staged));
                }
                Ok(None) if self.ending.load(Ordering::Acquire) => return None,
                Ok(None) => {}
                Err(error) => return Some(Message::Failed(error.into())),
            }
        }
    }
}

/// Images per batch of nvJPEG: enough for every engine of a card to have two.
pub(super) const NVJPEG_BATCH: usize = 16;
/// Threads with an nvJPEG handle each, so that one batch is on the GPU while the next is parsed.
pub(super) const NVJPEG_THREADS: usize = 2;
/// Batches in a row of which nvJPEG may decode nothing before it is no longer used.
const MAX_CONSECUTIVE_FAILURES: usize = 16;

pub(super) struct GpuThread {
    pub(super) decoder: GpuJpegDecoder,
    /// nvJPEG's CUDA kernels, for what its hardware engines do not support.
    pub(super) kernels: Option<GpuJpegDecoder>,
    pub(super) check: Option<EntropyCheck>,
    pub(super) work: Receiver<Work>,
    pub(super) dispatch: Weak<Dispatch>,
    pub(super) ending: Arc<AtomicBool>,
    pub(super) events: EventSender,
    /// Batches in a row of which nvJPEG has decoded nothing.
    pub(super) consecutive_failures: usize,
    /// What the thread works on, shared with the watcher.
    pub(super) task: Arc<Task<Vec<Work>>>,
}

/// Whether a thread continues after a batch.
enum After {
    Continue,
    /// The thread was abandoned, and the CPU decodes its images.
    Abandoned,
}

impl GpuThread {
    pub(super) fn run(mut self) {
        let serve = || {
            while let Ok(first) = self.work.recv() {
                if self.ending.load(Ordering::Acquire) {
                    return Ok(());
                }
                let mut batch = vec![first];
                batch.extend(self.work.try_iter().take(NVJPEG_BATCH - 1));
                let (for_kernels, batch): (Vec<_>, Vec<_>) =
                    batch.into_iter().partition(|work| work.for_kernels);
                for (batch, for_kernels) in [(batch, false), (for_kernels, true)] {
                    if !batch.is_empty() && matches!(self.decode(batch, for_kernels)?, After::Abandoned) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let served = catch_unwind(AssertUnwindSafe(serve));
        if let Err(error) = served.unwrap_or(Err(DeviceError::Panicked)) {
            self.events.send(Message::Failed(error));
        }
    }

    fn decode(&mut self, batch: Vec<Work>, for_kernels: bool) -> Result<After, DeviceError> {
        if self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES {
            self.fall_back_to_cpu(batch);
            return Ok(After::Continue);
        }
        let (batch, unsound): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|work| is_sound(&mut self.check, work));
        self.fall_back_to_cpu(unsound);
        let began = Instant::now();
        let jpegs: Vec<(&[u8], Eligible)> =
            batch.iter().filter_map(|work| Some((&work.bytes[..], work.eligible?))).collect();
        let decoder = match &mut self.kernels {
            Some(kernels) if for_kernels => kernels,
            _ => &mut self.decoder,
        };
        self.task.begin(batch.clone());
        let images = decoder.decode(&jpegs);
        if self.task.finish().is_none() {
            // The CPU decodes the images meanwhile.
            return Ok(After::Abandoned);
        }
        let images = images?;
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
            self.events.send(Message::OnDevice(work.ticket, decoded, image));
        }
        if !for_kernels {
            self.count_failures(images_done, left.len());
        }
        if let Some(dispatch) = self.dispatch.upgrade() {
            dispatch.done(Route::Gpu, images_done, pixels, Some(took));
        }
        self.fall_back_to_cpu(left);
        Ok(After::Continue)
    }

    /// Counts batches of which nvJPEG decodes nothing.
    fn count_failures(&mut self, done: usize, left: usize) {
        self.consecutive_failures = match (done, left) {
            (0, 1..) => self.consecutive_failures + 1,
            (0, 0) => self.consecutive_failures,
            _ => 0,
        };
        if self.consecutive_failures == MAX_CONSECUTIVE_FAILURES {
            tracing::warn!("nvJPEG decodes none of its images; decoding all images on the CPU");
        }
    }

    /// Passes images to the CPU that nvJPEG does not support or has no memory for.
    fn fall_back_to_cpu(&self, work: Vec<Work>) {
        // When the lane ends the images are no longer needed.
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

/// nvJPEG handles for each of its threads.
pub(super) struct Opened {
    pub(super) backend: NvJpegBackend,
    pub(super) decoders: Vec<GpuJpegDecoder>,
    /// As many CUDA handles for what hardware engines do not support, or none.
    pub(super) kernels: Vec<GpuJpegDecoder>,
}

/// Opens nvJPEG's hardware engines with its CUDA kernels, or else the kernels alone; `None` where neither is available, with
/// the reason in the log.
pub(super) fn open_nvjpeg(
    device: &Device,
    settings: &DecodeSettings,
    pool: &DevicePool,
) -> Result<Option<Opened>, EngineError> {
    let open = |backend| {
        let one = |_| GpuJpegDecoder::open(device, &settings.folders, backend, NVJPEG_BATCH, pool.clone());
        (0..NVJPEG_THREADS).map(one).collect::<Result<Vec<_>, _>>()
    };
    for backend in [NvJpegBackend::Hardware, NvJpegBackend::Cuda] {
        match open(backend) {
            Ok(decoders) => {
                let engines = decoders.first().and_then(GpuJpegDecoder::engines);
                tracing::info!(?backend, ?engines, "decoding with nvJPEG and the CPU");
                let kernels = match backend {
                    NvJpegBackend::Hardware => open(NvJpegBackend::Cuda).unwrap_or_default(),
                    NvJpegBackend::Cuda => Vec::new(),
                };
                return Ok(Some(Opened { backend, decoders, kernels }));
            }
            Err(GpuDecodeError::Gpu(error)) => return Err(error.into()),
            Err(GpuDecodeError::NvJpeg(error @ NvJpegError::Library(_))) => {
                tracing::warn!(%error, "nvJPEG not usable; decoding all images on the CPU");
                return Ok(None);
            }
            Err(GpuDecodeError::NvJpeg(error)) => {
                tracing::info!(%error, ?backend, "nvJPEG backend not available");
            }
        }
    }
    tracing::warn!("nvJPEG not usable; decoding all images on the CPU");
    Ok(None)
}
