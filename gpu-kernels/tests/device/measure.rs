//! What measurements do: upload any layout, run the kernel again, look at the tensor, copy within the GPU.

use gpu_kernels::cuda::{DevicePool, copy_times};
use gpu_kernels::preprocess::cuda::{UploadError, Uploader};
use gpu_kernels::preprocess::{Element, PixelLayout};

use super::*;

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
        // Nothing to run it on.
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
    let device = Device::open(&driver.folders(), 11).unwrap();
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
