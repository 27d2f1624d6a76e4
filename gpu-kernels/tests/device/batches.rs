//! Batches in flight on the streams, and what measurements do with them: upload any layout, repeat the kernel, read the
//! tensor, copy within the GPU.

use gpu_kernels::cuda::{DevicePool, copy_times};
use gpu_kernels::preprocess::PixelLayout;
use gpu_kernels::preprocess::cuda::{DeviceImage, UploadError, Uploader};

use super::*;

/// Copies the slot's tensor to its scores, in place of an engine.
fn infer(gpu: &Gpu, slot: usize, bytes: usize) {
    gpu.driver.copy_on_stream(
        gpu.batches.stream().raw().expose_provenance(),
        gpu.batches.scores(slot),
        gpu.batches.tensor(slot),
        bytes,
    );
}

fn upload(gpu: &Gpu, image: &Image<'_>) -> DeviceImage {
    let staged = gpu.stager.stage(image, LONG).unwrap().unwrap();
    gpu.batches.upload(staged).unwrap().unwrap()
}

#[test]
fn two_batches_at_once_come_out_as_on_the_cpu() {
    let mut gpu = Gpu::open(0, Element::F32, 5, 2);
    gpu.driver.slow_down(0, 200);
    let sizes = [(64, 64), (65, 100), (333, 70), (1, 1), (200, 133), (48, 300), (97, 65)];
    let bytes = 3 * 48 * 48 * 4;
    let mut on_the_way: Vec<(usize, Vec<Vec<f32>>)> = Vec::new();
    for round in 0..12 {
        let slot = round % 2;
        if on_the_way.len() == 2 {
            collect(&mut gpu, on_the_way.remove(0), bytes);
        }
        let count = 1 + round % 5;
        let mut images = Vec::new();
        let mut wanted = Vec::new();
        for n in 0..count {
            let (width, height) = sizes[(round * 3 + n) % sizes.len()];
            let seed = u32::try_from(round * 10 + n).unwrap();
            let pixels = pixels(width, height, seed);
            let image = image(width, height, &pixels, Orientation::ALL[(round + n) % 8]);
            images.push(upload(&gpu, &image));
            wanted.push(expected(&image));
        }
        gpu.batches.preprocess(slot, images).unwrap();
        infer(&gpu, slot, count * bytes);
        gpu.batches.read_back(slot, count).unwrap();
        on_the_way.push((slot, wanted));
    }
    for batch in on_the_way {
        collect(&mut gpu, batch, bytes);
    }
    let driver = gpu.driver;
    assert_eq!(driver.launches(0), 12);
    driver.slow_down(0, 0);
    drop(gpu);
    assert_eq!((driver.blocks(0), driver.users(0), driver.violations()), (0, 0, 0));
}

fn collect(gpu: &mut Gpu, (slot, wanted): (usize, Vec<Vec<f32>>), bytes: usize) {
    let (scores, times) = gpu.batches.collect(slot).unwrap();
    assert_eq!(scores.len(), wanted.len() * bytes);
    for (n, (found, wanted)) in scores.chunks_exact(bytes).zip(&wanted).enumerate() {
        let found: Vec<f32> = found.as_chunks().0.iter().map(|&b| f32::from_ne_bytes(b)).collect();
        assert_alike(&found, wanted, &format!("image {n}"));
    }
    assert!(times.preprocess > Duration::ZERO && times.infer > Duration::ZERO, "{times:?}");
}

#[test]
fn half_precision_is_half_as_long() {
    let mut gpu = Gpu::open(1, Element::F16, 2, 1);
    let pixels = pixels(120, 90, 5);
    let image = image(120, 90, &pixels, Orientation::Rotate90);
    let uploaded = upload(&gpu, &image);
    gpu.batches.preprocess(0, vec![uploaded]).unwrap();
    infer(&gpu, 0, 3 * 48 * 48 * 2);
    gpu.batches.read_back(0, 1).unwrap();
    let scores = gpu.batches.collect(0).unwrap().0.to_vec();
    let found: Vec<f32> = scores.as_chunks().0.iter().map(|&b| half(u16::from_ne_bytes(b))).collect();
    assert_alike(&found, &expected(&image), "image");
}

/// IEEE 754 half precision of values that are neither infinite nor NaN.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => mantissa * 2f32.powi(-24),
        _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    }
}

#[test]
fn images_that_no_batch_takes_leave_nothing_behind() {
    let gpu = Gpu::open(2, Element::F32, 4, 2);
    gpu.driver.slow_down(2, 2_000);
    for seed in 0..10 {
        let pixels = pixels(100, 100, seed);
        drop(upload(&gpu, &image(100, 100, &pixels, Orientation::Upright)));
    }
    let driver = gpu.driver;
    driver.slow_down(2, 0);
    drop(gpu);
    assert_eq!((driver.blocks(2), driver.users(2), driver.violations()), (0, 0, 0));
}

#[test]
fn a_lane_that_ends_with_batches_on_their_way_waits_for_them() {
    let mut gpu = Gpu::open(3, Element::F32, 4, 2);
    gpu.driver.slow_down(3, 5_000);
    for slot in 0..2 {
        let pixels = pixels(300, 200, 1);
        let uploaded = upload(&gpu, &image(300, 200, &pixels, Orientation::Upright));
        gpu.batches.preprocess(slot, vec![uploaded]).unwrap();
        gpu.batches.read_back(slot, 1).unwrap();
    }
    let driver = gpu.driver;
    drop(gpu);
    driver.slow_down(3, 0);
    assert_eq!((driver.launches(3), driver.blocks(3), driver.users(3)), (2, 0, 0));
    assert_eq!(driver.violations(), 0);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_ne_bytes(b)).collect()
}

#[test]
fn a_tensor_is_filled_written_read_and_its_images_are_given_back_for_another() {
    let mut gpu = Gpu::open(10, Element::F32, 3, 1);
    let mut uploader = Uploader::new(&gpu.device, DevicePool::new(&gpu.device, 4 << 20)).unwrap();
    let (width, height) = (100, 70);
    let pixels = pixels(width, height, 4);
    let layout = PixelLayout::Rgb { plane: (0, 3 * width) };
    let wanted = expected(&image(width, height, &pixels, Orientation::Rotate180));
    let uploaded = uploader.upload(&pixels, layout, (width, height), Orientation::Rotate180).unwrap();
    let mut images = vec![uploaded];
    for round in 0..3 {
        gpu.batches.fill_tensor(0, 0xFF).unwrap();
        let empty = gpu.batches.read_tensor(0, 3).unwrap();
        assert!(empty.len() == 3 * wanted.len() * 4 && empty.iter().all(|&byte| byte == 0xFF));
        gpu.batches.preprocess(0, images).unwrap();
        if round == 1 {
            gpu.batches.fill_tensor(0, 0xFF).unwrap();
            gpu.batches.repeat(0).unwrap();
        }
        assert!(gpu.batches.kernel_time(0).unwrap() > Duration::ZERO);
        let tensor = gpu.batches.read_tensor(0, 3).unwrap();
        let (written, rest) = tensor.split_at(wanted.len() * 4);
        assert_alike(&floats(written), &wanted, "the image");
        assert!(rest.iter().all(|&byte| byte == 0xFF));
        images = gpu.batches.give_back(0).unwrap();
        assert_eq!(images.len(), 1);
        // There are no images to repeat.
        gpu.batches.repeat(0).unwrap();
    }
    assert_eq!(gpu.driver.launches(10), 4);
    let driver = gpu.driver;
    drop((images, uploader, gpu));
    assert_eq!((driver.blocks(10), driver.users(10), driver.violations()), (0, 0, 0));
}

#[test]
fn what_does_not_lie_in_its_bytes_is_not_uploaded() {
    let driver = simulated_driver();
    let device = Device::open(&driver.folders(), 13).unwrap();
    let mut uploader = Uploader::new(&device, DevicePool::new(&device, 1 << 20)).unwrap();
    let layout = PixelLayout::Rgb { plane: (0, 300) };
    let mut upload = |bytes: usize| uploader.upload(&vec![0; bytes], layout, (100, 70), Orientation::Upright);
    assert!(matches!(upload(20_999), Err(UploadError::Layout { bytes: 20_999, .. })));
    let kept: Vec<_> = (0..4).map(|_| upload(21_000).unwrap()).collect();
    assert!(matches!(upload(21_000), Err(UploadError::NoRoom { .. })));
    drop(kept);
    upload(21_000).unwrap();
}

#[test]
fn copies_within_the_gpu_are_timed_and_a_refusal_leaves_nothing_behind() {
    let driver = simulated_driver();
    let device = Device::open(&driver.folders(), 12).unwrap();
    let times = copy_times(&device, 1 << 20, 5).unwrap();
    assert!(times.len() == 5 && times.iter().all(|&time| time > Duration::ZERO), "{times:?}");
    driver.fail(12, "cuMemcpyDtoDAsync", 1, 1, false);
    assert!(copy_times(&device, 1 << 20, 5).is_err());
    assert!(copy_times(&device, 1 << 30, 1).unwrap_err().is_out_of_memory());
    drop(device);
    assert_eq!((driver.blocks(12), driver.users(12), driver.violations()), (0, 0, 0));
}
