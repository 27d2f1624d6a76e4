//! Times decoding and preprocessing of camera frames that it renders: `cargo bench -p gpu-kernels`.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run may stop")]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::time::{Duration, Instant};

use gpu_kernels::{CpuPreprocessor, DecodeLimits, Decoder, PreprocessSpec};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

/// Name, width, height and about how many bytes a camera makes of it.
const FRAMES: [(&str, usize, usize, usize); 3] =
    [("VGA", 640, 480, 100_000), ("1080p", 1920, 1080, 560_000), ("4K", 3840, 2160, 1_500_000)];

/// How long each stage is repeated.
const BUDGET: Duration = Duration::from_secs(2);

fn main() {
    let spec = PreprocessSpec { resize: 256, crop: 224, mean: [127.0; 3], std: [128.0; 3] };
    let mut out = vec![0.0; spec.output_len()];
    let mut decoder = Decoder::new(DecodeLimits::default()).unwrap();
    let mut preprocessor = CpuPreprocessor::new(spec.clone()).unwrap();
    println!("One thread; median of {} s a stage, in milliseconds; 4:2:0 JPEG.\n", BUDGET.as_secs());
    println!("| frame | bytes | decoded as | decode | preprocess |");
    println!("|---|---|---|---|---|");
    for (name, width, height, target) in FRAMES {
        let jpeg = encode(width, height, target);
        let decode = median(|| {
            decoder.decode(&jpeg, spec.resize).unwrap();
        });
        let image = decoder.decode(&jpeg, spec.resize).unwrap();
        let preprocess = median(|| preprocessor.run(&image, &mut out).unwrap());
        println!(
            "| {name} | {} | {} x {} | {decode:.2} | {preprocess:.2} |",
            jpeg.len(),
            image.width,
            image.height
        );
    }
}

fn median(mut stage: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < BUDGET {
        let start = Instant::now();
        stage();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The frame at the lowest quality that reaches `target` bytes.
fn encode(width: usize, height: usize, target: usize) -> Vec<u8> {
    let pixels = render(width, height);
    let image =
        turbojpeg::Image { pixels: &pixels[..], width, pitch: 3 * width, height, format: PixelFormat::RGB };
    let mut compressor = Compressor::new().unwrap();
    compressor.set_subsamp(Subsamp::Sub2x2).unwrap();
    let mut jpeg = Vec::new();
    for quality in 50..=96 {
        compressor.set_quality(quality).unwrap();
        jpeg = compressor.compress_to_vec(image).unwrap();
        if jpeg.len() >= target {
            break;
        }
    }
    jpeg
}

/// Murky water: soft colour over several octaves of value noise, and the grain of a sensor.
fn render(width: usize, height: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height as u32 {
        for x in 0..width as u32 {
            let (u, v) = (x as f32 / width as f32, y as f32 / width as f32);
            let (mut relief, mut weight, mut frequency) = (0.0, 0.5, 6.0);
            for octave in 0..8 {
                relief += weight * value_noise(u * frequency, v * frequency, octave);
                (weight, frequency) = (weight * 0.6, frequency * 2.0);
            }
            let grain = (hash(x, y, 99) % 15) as f32;
            for (channel, tint) in [0.5, 0.8, 0.7].into_iter().enumerate() {
                let hue = value_noise(u * 5.0, v * 5.0, 20 + channel as u32);
                pixels.push((relief * 160.0 * tint + hue * 40.0 + grain) as u8);
            }
        }
    }
    pixels
}

fn value_noise(x: f32, y: f32, seed: u32) -> f32 {
    let (column, row) = (x as u32, y as u32);
    let (right, down) = (x.fract(), y.fract());
    let at = |dx, dy| (hash(column + dx, row + dy, seed) & 0xFFFF) as f32 / 65535.0;
    let mix = |a: f32, b: f32, part: f32| a + (b - a) * part;
    mix(mix(at(0, 0), at(1, 0), right), mix(at(0, 1), at(1, 1), right), down)
}

fn hash(x: u32, y: u32, seed: u32) -> u32 {
    let mut hash = x.wrapping_mul(0x9E37_79B1) ^ y.wrapping_mul(0x85EB_CA77) ^ seed.wrapping_mul(0xC2B2_AE3D);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0x2C1B_3C6D);
    hash ^ hash >> 12
}
