//! Decoding a second image of the same size allocates no memory for pixels: the buffers of the first are reused.
#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

use gpu_kernels::{CpuPreprocessor, DecodeLimits, Decoder, PreprocessSpec};
use turbojpeg::{PixelFormat, Subsamp};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes for filter tables, of `fast_image_resize`, and boxed decoders. A pixel buffer of the images below
/// takes 390 KB or more, a window 150 KB.
const SMALL: u64 = 96 << 10;

// A single test: the counter is per process.
#[test]
fn a_second_image_takes_no_memory_for_pixels() {
    let (width, height) = (1280, 960);
    let pixels: Vec<u8> = (0..3 * width * height).map(|at| (at / 3 % width / 5) as u8).collect();
    let image =
        turbojpeg::Image { pixels: &pixels[..], width, pitch: 3 * width, height, format: PixelFormat::RGB };
    let jpeg = turbojpeg::compress(image, 90, Subsamp::Sub2x2).unwrap();
    let mut bmp = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_raw(width as u32, height as u32, pixels)
        .unwrap()
        .write_to(&mut bmp, image::ImageFormat::Bmp)
        .unwrap();
    let bmp = bmp.into_inner();

    let spec = PreprocessSpec { resize: 256, crop: 224, mean: [127.0; 3], std: [128.0; 3] };
    let mut out = vec![0.0; spec.output_len()];
    let mut decoder = Decoder::new(DecodeLimits::default()).unwrap();
    let mut preprocessor = CpuPreprocessor::new(spec).unwrap();
    let _profiler = dhat::Profiler::builder().testing().build();
    for (name, bytes) in [("jpeg", &jpeg[..]), ("bmp", &bmp)] {
        let mut taken = Vec::new();
        for _ in 0..4 {
            let before = dhat::HeapStats::get();
            let image = decoder.decode(bytes, 256).unwrap();
            preprocessor.run(&image, &mut out).unwrap();
            let after = dhat::HeapStats::get();
            assert_eq!(before.curr_bytes, after.curr_bytes.min(before.curr_bytes));
            taken.push(after.total_bytes - before.total_bytes);
        }
        assert!(taken[0] > SMALL, "{name}: the first image of its size takes {} bytes", taken[0]);
        for later in &taken[1..] {
            assert!(*later < SMALL, "{name}: {taken:?} bytes");
        }
    }
}
