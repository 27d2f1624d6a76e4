//! JPEGs decoded: by nvJPEG's engines and kernels, by the CPU's cores, and by both together as in a lane.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use gpu_kernels::cuda::{Device, DevicePool, PinnedPool, library_folders};
use gpu_kernels::decode::Until;
use gpu_kernels::decode::nvjpeg::{
    Eligible, GpuDecodeError, GpuJpegDecoder, NvJpegBackend, NvJpegError, eligible,
};
use gpu_kernels::preprocess::cuda::Stager;
use gpu_kernels::{DecodeLimits, Decoder};
use inference::engine::Provider;
use inference::lanes::gpu::{Decoders, EventSender, Message};

use super::report::Sheet;
use super::setup::Setup;
use crate::bench::Target;
use crate::frames::{Frame, Size};

/// nvJPEG's engines and batches: a lane's, and one from which its kernels read the Huffman codes as well.
const WAYS: [(NvJpegBackend, usize); 3] =
    [(NvJpegBackend::Hardware, 16), (NvJpegBackend::Cuda, 16), (NvJpegBackend::Cuda, 64)];
/// Batches that are decoded before any is counted.
const WARM: usize = 2;
/// Size of a lane's memory pools.
const IMAGE_BYTES: usize = 1 << 30;
/// Longest for one image.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Images that wait for each that is decoded.
const WAITING: usize = 2;

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let device = setup.device()?;
    let ways: Vec<(NvJpegBackend, usize)> = available(setup, sheet, &device)?;
    let pixels = |size: Size| (size.pixels().0 * size.pixels().1) as f64 / 1e6;
    for &size in &setup.plan.sizes {
        let frames = setup.frames(size)?;
        let seconds = setup.plan.seconds.as_secs_f64();
        let note = |rate: f64| format!("{:.0} Mpx/s", rate * pixels(size));
        let mut lane = None;
        for (way, &(backend, batch)) in ways.iter().enumerate() {
            for threads in [1, 2] {
                let what = format!("{}: nvJPEG {backend:?}, batch {batch}, {threads} threads", size.name());
                if !sheet.has_time(&what, 2.0 * seconds + 1.0) {
                    continue;
                }
                sheet.attempt(&what, || {
                    let rate = nvjpeg(setup, &device, &frames, (backend, batch, threads))?;
                    sheet.note(&what, rate, "images/s", &note(rate));
                    if (way, threads) == (0, 2) {
                        // The backend that a lane uses.
                        lane = Some(rate);
                    }
                    Ok(())
                });
            }
        }
        let what = format!("{}: CPU, {} threads, scaled", size.name(), setup.cores());
        if !sheet.has_time(&what, 4.0 * seconds) {
            continue;
        }
        let cpu = cpu(setup, &frames)?;
        sheet.note(&what, cpu, "images/s", &note(cpu));
        let both = lane_rate(setup, &device, &frames)?;
        let what = format!("{}: CPU and nvJPEG at once", size.name());
        sheet.note(&what, both, "images/s", &note(both));
        let sum = cpu + lane.unwrap_or(0.0);
        let (what, share) = (format!("{}: of the sum of both alone", size.name()), 100.0 * both / sum);
        let alone = if lane.is_some() { "" } else { "the CPU alone: nvJPEG's rate is not known" };
        if size == Size::P1080 {
            setup.found().decode_1080p = Some(both);
            sheet.hold_speed(what, share, "%", Target::AtLeast(90.0), alone);
        } else {
            sheet.note(what, share, "%", alone);
        }
    }
    Ok(())
}

/// The nvJPEG backends of this GPU.
fn available(setup: &Setup, sheet: &Sheet, device: &Device) -> anyhow::Result<Vec<(NvJpegBackend, usize)>> {
    let mut ways = Vec::new();
    for (backend, batch) in WAYS {
        let batch = batch.min(setup.plan.decode_batch);
        let pool = DevicePool::new(device, 1);
        match GpuJpegDecoder::open(device, &library_folders(&setup.args.folders), backend, batch, pool) {
            Ok(decoder) => {
                if ways.is_empty() {
                    let engines = decoder.engines();
                    let text = match engines {
                        Some((engines, cores)) => format!("{engines}, cores of each: {cores}"),
                        None => "none".into(),
                    };
                    sheet.info("nvJPEG: JPEG engines of this GPU", text);
                }
                ways.push((backend, batch));
            }
            Err(GpuDecodeError::NvJpeg(NvJpegError::Library(error))) => {
                sheet.info("nvJPEG", format!("not here: {error}"));
                break;
            }
            Err(GpuDecodeError::NvJpeg(error)) if error.is_absent() => {
                sheet.info(format!("nvJPEG {backend:?}"), "this GPU has none");
            }
            // A lane also continues with the remaining backends.
            Err(error) => sheet.failed(format!("nvJPEG {backend:?}"), error.to_string()),
        }
    }
    Ok(ways)
}

/// Images per second of a number of threads, each with its own nvJPEG decoder.
fn nvjpeg(
    setup: &Setup,
    device: &Device,
    frames: &[Frame],
    (backend, batch, threads): (NvJpegBackend, usize, usize),
) -> anyhow::Result<f64> {
    let limits = DecodeLimits::default();
    let jpegs: Vec<(&[u8], Eligible)> = frames
        .iter()
        .map(|frame| {
            let eligible = eligible(&frame.bytes, backend, &limits).with_context(|| frame.name.clone())?;
            Ok((&frame.bytes[..], eligible))
        })
        .collect::<anyhow::Result<_>>()?;
    let room = usize::try_from(device.memory()?.0 / 2).unwrap_or(usize::MAX);
    let open = |_| {
        let pool = DevicePool::new(device, room / threads);
        GpuJpegDecoder::open(device, &library_folders(&setup.args.folders), backend, batch, pool)
    };
    let decoders: Vec<GpuJpegDecoder> = (0..threads).map(open).collect::<Result<_, _>>()?;
    let start = Barrier::new(threads);
    let one = |mut decoder: GpuJpegDecoder, thread: usize| {
        let mut next = jpegs.iter().cycle().skip(thread * jpegs.len() / threads);
        let mut decode = || {
            let batch: Vec<(&[u8], Eligible)> = next.by_ref().take(batch).copied().collect();
            let images = decoder.decode(&batch)?;
            let left = images.iter().filter(|image| image.is_none()).count();
            ensure!(left == 0, "nvJPEG left {left} of {} images to the CPU", images.len());
            Ok(images.len())
        };
        let warm = (0..WARM).try_for_each(|_| decode().map(|_| ()));
        // Also after a failure, since the other threads wait at the barrier.
        start.wait();
        warm?;
        rate_of(setup.plan.seconds, decode)
    };
    let one = &one;
    std::thread::scope(|scope| {
        let started = decoders.into_iter().enumerate();
        let threads: Vec<_> =
            started.map(|(thread, decoder)| scope.spawn(move || one(decoder, thread))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).sum()
    })
}

/// Images per second of the CPU's cores, at the scale that the model needs.
fn cpu(setup: &Setup, frames: &[Frame]) -> anyhow::Result<f64> {
    let threads = setup.cores();
    let start = Barrier::new(threads);
    let resize = setup.bundle()?.preprocess().resize;
    let one = |thread: usize| {
        let mut decoder = Decoder::new(DecodeLimits::default())?;
        let mut next = frames.iter().cycle().skip(thread * frames.len() / threads);
        let mut decode = || {
            let Some(frame) = next.next() else { return Ok(0) };
            decoder.decode(&frame.bytes, resize).with_context(|| frame.name.clone())?;
            Ok(1)
        };
        let warm = decode();
        start.wait();
        warm?;
        rate_of(setup.plan.seconds, decode)
    };
    let one = &one;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).sum()
    })
}

fn rate_of(duration: Duration, mut work: impl FnMut() -> anyhow::Result<usize>) -> anyhow::Result<f64> {
    let (began, mut images) = (Instant::now(), 0);
    while began.elapsed() < duration {
        images += work()?;
    }
    Ok(images as f64 / began.elapsed().as_secs_f64())
}

/// Images per second of a lane's decoders: CPU and nvJPEG at once, each image with whichever decoder will finish it first.
fn lane_rate(setup: &Setup, device: &Device, frames: &[Frame]) -> anyhow::Result<f64> {
    let images: Vec<Bytes> = frames.iter().map(|frame| Bytes::from(frame.bytes.clone())).collect();
    let settings = setup.settings(Provider::Host)?.decode;
    let (teller, messages, _wakes) = EventSender::new();
    let stager = Stager::new(PinnedPool::new(device, IMAGE_BYTES));
    let room = usize::try_from(device.memory()?.0 / 4).unwrap_or(usize::MAX);
    let pool = DevicePool::new(device, IMAGE_BYTES.min(room));
    let decoders = Decoders::start(device, &settings, &stager, &pool, &teller)?;
    let mut submit = (0..).zip(images.iter().cycle());
    let mut next = || {
        if let Some((ticket, image)) = submit.next() {
            decoders.decode(ticket, image.clone(), Until::NEVER, &teller);
        }
    };
    let in_flight = WAITING * decoders.at_once();
    (0..in_flight).for_each(|_| next());
    let take = || match messages.recv_timeout(TIMEOUT).context("waiting for a decoded image")? {
        Message::Staged(..) | Message::OnDevice(..) => Ok(()),
        Message::Refused(_, error) => bail!(error),
        Message::Failed(error) => bail!(error),
        Message::Finished(_) => Err(anyhow!("a batch that was not begun has ended")),
    };
    // The speed of each decoder has to be measured first.
    let warm = Instant::now();
    while warm.elapsed() < setup.plan.seconds / 2 {
        take()?;
        next();
    }
    let (began, mut done) = (Instant::now(), 0);
    while began.elapsed() < setup.plan.seconds {
        take()?;
        next();
        done += 1;
    }
    let rate = f64::from(done) / began.elapsed().as_secs_f64();
    // Images in progress are completed before the decoders end.
    (0..in_flight).try_for_each(|_| take())?;
    Ok(rate)
}
