//! nvJPEG, which decodes beside the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::Receiver;
use gpu_kernels::ImageFormat;
use gpu_kernels::cuda::{Device, DevicePool};
use gpu_kernels::decode::nvjpeg::{
    Eligible, EntropyCheck, GpuDecodeError, GpuJpegDecoder, NvJpegBackend, NvJpegError,
};

use super::super::route::Route;
use super::DecodeSettings;
use super::dispatch::{Dispatch, Work};
use super::message::{EventSender, Message};
use crate::engine::EngineError;
use crate::lanes::stall::Task;
use crate::lanes::{Decoded, DeviceError};

/// Images that nvJPEG is given at once: enough for every engine of a card to have two.
pub(super) const NVJPEG_BATCH: usize = 16;
/// Threads with an nvJPEG each, so that one batch is on the GPU while the next is parsed.
pub(super) const NVJPEG_THREADS: usize = 2;
/// Batches of which nvJPEG decodes nothing before it is left alone.
const MAX_CONSECUTIVE_FAILURES: usize = 16;

pub(super) struct GpuThread {
    pub(super) decoder: GpuJpegDecoder,
    /// nvJPEG's CUDA kernels, for what its hardware engines refuse.
    pub(super) kernels: Option<GpuJpegDecoder>,
    pub(super) check: Option<EntropyCheck>,
    pub(super) work: Receiver<Work>,
    pub(super) dispatch: Weak<Dispatch>,
    pub(super) ending: Arc<AtomicBool>,
    pub(super) teller: EventSender,
    /// Batches one after the other of which nvJPEG has decoded nothing.
    pub(super) consecutive_failures: usize,
    /// What it is at, for who watches it.
    pub(super) task: Arc<Task<Vec<Work>>>,
}

/// Whether a thread goes on after a batch.
enum After {
    GoOn,
    /// It was stuck, and the CPU has its images.
    GivenUp,
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
                    if !batch.is_empty() && matches!(self.decode(batch, for_kernels)?, After::GivenUp) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let served = catch_unwind(AssertUnwindSafe(serve));
        if let Err(error) = served.unwrap_or(Err(DeviceError::Panicked)) {
            self.teller.tell(Message::Failed(error));
        }
    }

    fn decode(&mut self, batch: Vec<Work>, for_kernels: bool) -> Result<After, DeviceError> {
        if self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES {
            self.leave_to_cpu(batch);
            return Ok(After::GoOn);
        }
        let (batch, unsound): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|work| is_sound(&mut self.check, work));
        self.leave_to_cpu(unsound);
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
            // The CPU has had the images meanwhile.
            return Ok(After::GivenUp);
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
            self.teller.tell(Message::OnDevice(work.ticket, decoded, image));
        }
        if !for_kernels {
            self.note(images_done, left.len());
        }
        if let Some(dispatch) = self.dispatch.upgrade() {
            dispatch.done(Route::Gpu, images_done, pixels, Some(took));
        }
        self.leave_to_cpu(left);
        Ok(After::GoOn)
    }

    /// nvJPEG that decodes nothing time and again is of no use here.
    fn note(&mut self, done: usize, left: usize) {
        self.consecutive_failures = match (done, left) {
            (0, 1..) => self.consecutive_failures + 1,
            (0, 0) => self.consecutive_failures,
            _ => 0,
        };
        if self.consecutive_failures == MAX_CONSECUTIVE_FAILURES {
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

/// nvJPEG for each of its threads.
pub(super) struct Opened {
    pub(super) backend: NvJpegBackend,
    pub(super) decoders: Vec<GpuJpegDecoder>,
    /// As many, or none, for what hardware engines refuse.
    pub(super) kernels: Vec<GpuJpegDecoder>,
}

/// nvJPEG's hardware engines with its CUDA kernels beside them, else the kernels alone; `None` where neither can be had, with the
/// reason in the log.
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
                tracing::info!(?backend, ?engines, "nvJPEG decodes beside the CPU");
                let kernels = match backend {
                    NvJpegBackend::Hardware => open(NvJpegBackend::Cuda).unwrap_or_default(),
                    NvJpegBackend::Cuda => Vec::new(),
                };
                return Ok(Some(Opened { backend, decoders, kernels }));
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
