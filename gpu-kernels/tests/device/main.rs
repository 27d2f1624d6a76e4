//! Batches on a simulated GPU: the results are those of the CPU, whatever the order in which work is submitted to streams, and
//! no memory is used that must not be.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

mod batches;
mod failures;

use std::time::Duration;

use gpu_kernels::cuda::{Device, PinnedPool};
use gpu_kernels::preprocess::cuda::{BatchSettings, Batches, Stager};
use gpu_kernels::preprocess::{Element, PreprocessSpec};
use gpu_kernels::{CpuPreprocessor, Image, ImageFormat, Orientation};
use test_services::gpu::{SimulatedDriver, simulated_driver};

/// Longer than any wait that should end.
const LONG: Duration = Duration::from_secs(20);

fn spec() -> PreprocessSpec {
    PreprocessSpec { resize: 64, crop: 48, mean: [127.0, 120.0, 110.0], std: [128.0, 60.0, 255.0] }
}

/// Pixels that differ from image to image, with edges and noise.
fn pixels(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..3 * width * height)
        .map(|at| if (at / 40 + seed).is_multiple_of(3) { 255 } else { noise() as u8 })
        .collect()
}

fn image(width: u32, height: u32, pixels: &[u8], orientation: Orientation) -> Image<'_> {
    Image {
        format: ImageFormat::Jpeg,
        width,
        height,
        pixels,
        orientation,
        original_width: width,
        original_height: height,
    }
}

/// One GPU of the simulated driver, and a lane's objects on it.
struct Gpu {
    driver: &'static SimulatedDriver,
    device: Device,
    stager: Stager,
    batches: Batches,
}

impl Gpu {
    /// The scores of an image are its first `values` values of the tensor.
    fn open(number: u32, element: Element, max_batch: usize, slots: usize) -> Self {
        let driver = simulated_driver();
        let device = Device::open(&driver.folders(), number).unwrap();
        let settings = BatchSettings {
            spec: spec(),
            element,
            max_batch,
            score_bytes: 3 * 48 * 48 * element.bytes(),
            slots,
            image_bytes: 32 << 20,
        };
        let batches = Batches::new(&device, device.stream().unwrap(), settings).unwrap();
        let stager = Stager::new(PinnedPool::new(&device, 64 << 20));
        Self { driver, device, stager, batches }
    }
}

/// The result of the CPU.
fn expected(image: &Image<'_>) -> Vec<f32> {
    let mut cpu = CpuPreprocessor::new(spec()).unwrap();
    let mut out = vec![0.0; spec().output_len()];
    cpu.run(image, &mut out).unwrap();
    out
}

/// The CPU rounds to whole levels twice, the kernel does not round.
fn assert_alike(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let plane = spec().output_len() / 3;
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        let level = (f - e) * spec().std[at / plane];
        assert!(level.abs() <= 1.01, "{what}, value {at}: {f} for {e}");
    }
}
