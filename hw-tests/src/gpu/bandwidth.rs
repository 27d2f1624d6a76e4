//! How much of the memory's bandwidth the kernel uses, and the host's time to submit a batch to the streams.

use std::time::{Duration, Instant};

use anyhow::ensure;
use gpu_kernels::cuda::{Device, DevicePool, copy_times};
use gpu_kernels::preprocess::Element;
use gpu_kernels::preprocess::cuda::{BatchSettings, Batches, Uploader};
use gpu_kernels::{Orientation, PreprocessSpec, ResizeCrop};

use super::pictures::Kind;
use super::report::Sheet;
use super::setup::Setup;
use crate::bench::{Target, median};
use crate::frames::Size;

/// Total bytes of the inputs of one round: more than any GPU's cache.
const ROUND: f64 = 400e6;
/// Sets of inputs of a round.
const SETS: (usize, usize) = (2, 256);
/// The smallest block of the GPU's memory, as the pool gives it.
const MIN_BLOCK: usize = 256 << 10;

/// As the bundle in fp16 has it.
fn spec() -> PreprocessSpec {
    PreprocessSpec { resize: 256, crop: 224, mean: [127.0; 3], std: [128.0; 3] }
}

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let device = setup.device()?;
    let plan = &setup.plan;
    let times = copy_times(&device, plan.copy_bytes, plan.copies)?;
    let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    let copy = 2.0 * plan.copy_bytes as f64 / median(&seconds) / 1e9;
    let note = format!("{} MiB within the GPU, median of {}", plan.copy_bytes >> 20, plan.copies);
    sheet.note("copy: bytes read and written", copy, "GB/s", &note);
    for kind in [Kind::PLANAR_420, Kind::Rgb] {
        for &size in &plan.sizes {
            for &batch in &plan.batches {
                let what = format!("{}, {}, batch {batch}", kind.name(), size.name());
                if !sheet.has_time(&what, 1.0 + 3.0 * plan.seconds.as_secs_f64()) {
                    continue;
                }
                sheet.attempt(&what, || kernel(setup, sheet, &device, copy, (kind, size, batch)));
            }
        }
    }
    overhead(setup, sheet, &device)
}

/// Bytes that a frame's window and the filter's reach beyond it have.
fn window_bytes(kind: Kind, (width, height): (u32, u32)) -> f64 {
    let spec = spec();
    let placement = ResizeCrop::new(width, height, Orientation::Upright, &spec);
    let (_, _, across, down) = placement.source_box(width, height, spec.crop);
    let factor = f64::from(width.min(height)) / f64::from(spec.resize);
    let reach = |window: f64, side: u32| (window + 2.0 * factor.max(1.0)).min(f64::from(side));
    reach(across, width) * reach(down, height) * kind.bytes_a_pixel()
}

fn kernel(
    setup: &Setup,
    sheet: &Sheet,
    device: &Device,
    copy: f64,
    (kind, size, batch): (Kind, Size, usize),
) -> anyhow::Result<()> {
    let (width, height) = size.pixels();
    let pixels = (width as u32, height as u32);
    let (layout, image_bytes) = kind.layout(pixels);
    let block = image_bytes.max(MIN_BLOCK).next_power_of_two();
    let read = window_bytes(kind, pixels) * batch as f64;
    let mut sets = ((ROUND / read).ceil() as usize).clamp(SETS.0, SETS.1);
    let room = usize::try_from(device.memory()?.0 / 2).unwrap_or(usize::MAX);
    sets = sets.min(room / (block * batch));
    if setup.simulated {
        sets = sets.min(SETS.0);
    }
    ensure!(sets >= SETS.0, "two batches need {} MiB of the GPU's memory", (2 * block * batch) >> 20);
    let settings = BatchSettings {
        spec: spec(),
        element: Element::F16,
        max_batch: batch,
        score_bytes: 4,
        slots: sets,
        image_bytes: 1,
    };
    let mut batches = Batches::new(device, device.stream()?, settings)?;
    let mut uploader = Uploader::new(device, DevicePool::new(device, sets * batch * block))?;
    let bytes: Vec<u8> = (0..image_bytes).map(|at| ((at * 2_654_435_761) >> 13) as u8).collect();
    for set in 0..sets {
        let upload = |_| uploader.upload(&bytes, layout, pixels, Orientation::Upright);
        batches.preprocess(set, (0..batch).map(upload).collect::<Result<_, _>>()?)?;
    }
    batches.stream().synchronize()?;
    let (began, mut times) = (Instant::now(), Vec::new());
    let mut round = 0;
    while round < 2 || began.elapsed() < setup.plan.seconds / 3 {
        // Submitted without waiting, so that the host stays ahead of the GPU.
        (0..sets).try_for_each(|set| batches.repeat(set))?;
        let each = (0..sets).map(|set| batches.kernel_time(set));
        let each: Vec<Duration> = each.collect::<Result<_, _>>()?;
        if round > 0 {
            times.extend(each.iter().map(Duration::as_secs_f64));
        }
        round += 1;
    }
    let moved = read + (batch * spec().output_len() * Element::F16.bytes()) as f64;
    let (time, what) = (median(&times), format!("{}, {}, batch {batch}", kind.name(), size.name()));
    let rate = moved / time / 1e9;
    let note = format!(
        "{rate:.0} GB/s: {:.1} MB in {:.1} us, median of {} runs over {sets} sets of inputs",
        moved / 1e6,
        time * 1e6,
        times.len()
    );
    let (what, share) = (format!("{what}: share of the copy's bandwidth"), 100.0 * rate / copy);
    if size == Size::P1080 && batch == setup.plan.largest_batch() {
        sheet.hold_speed(what, share, "%", Target::AtLeast(70.0), &note);
    } else {
        sheet.note(what, share, "%", &note);
    }
    Ok(())
}

fn overhead(setup: &Setup, sheet: &Sheet, device: &Device) -> anyhow::Result<()> {
    let (count, images) = setup.plan.overhead;
    let slots = 2;
    let (width, height) = Size::Vga.pixels();
    let pixels = (width as u32, height as u32);
    let (layout, bytes) = Kind::PLANAR_420.layout(pixels);
    let settings = BatchSettings {
        spec: spec(),
        element: Element::F16,
        max_batch: images,
        score_bytes: 68,
        slots,
        image_bytes: 1,
    };
    let mut batches = Batches::new(device, device.stream()?, settings)?;
    let room = slots * images * bytes.next_power_of_two();
    let mut uploader = Uploader::new(device, DevicePool::new(device, room))?;
    let pixel_bytes = vec![128; bytes];
    let mut sets = Vec::new();
    for _ in 0..slots {
        let upload = |_| uploader.upload(&pixel_bytes, layout, pixels, Orientation::Upright);
        sets.push((0..images).map(upload).collect::<Result<Vec<_>, _>>()?);
    }
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        for (slot, set) in sets.iter_mut().enumerate() {
            let given = std::mem::take(set);
            let began = Instant::now();
            batches.preprocess(slot, given)?;
            batches.read_back(slot, images)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        for (slot, set) in sets.iter_mut().enumerate() {
            *set = batches.give_back(slot)?;
        }
    }
    let note =
        format!("preprocess and read_back of {images} images without waiting, median of {}", times.len());
    sheet.hold_speed("host time per batch", median(&times), "us", Target::Below(50.0), &note);
    Ok(())
}
