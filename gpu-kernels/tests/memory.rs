//! The peak memory of a decode: within the bound from the header, and never more than 60 MiB plus the encoded bytes plus 12
//! bytes per declared pixel. Measured as allocations of Rust code, and as the resident size of a process that does nothing
//! else, which includes libjpeg-turbo's allocations.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lints exempt test functions, but not what they call"
)]

#[path = "bombs/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod bombs;
#[path = "pixels/write.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod write;

use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use gpu_kernels::{DecodeLimits, Decoder, inspect};
use image::{DynamicImage, ImageBuffer, ImageFormat};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Names the file that the child process decodes.
const FILE: &str = "WEIR_TEST_DECODE_FILE";

const WIDTH: u32 = 2400;
const HEIGHT: u32 = 1700;

fn level(x: u32, y: u32) -> u8 {
    ((x * 7 + y * 13) % 251) as u8
}

fn jpeg(format: PixelFormat, progressive: bool, subsampling: Subsamp) -> Vec<u8> {
    let pixels: Vec<u8> = (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).map(move |x| level(x, y)))
        .flat_map(|level| std::iter::repeat_n(level, format.size()))
        .collect();
    let mut compressor = Compressor::new().unwrap();
    compressor.set_subsamp(subsampling).unwrap();
    compressor.set_progressive(progressive).unwrap();
    compressor.set_quality(60).unwrap();
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let pitch = width * format.size();
    compressor
        .compress_to_vec(turbojpeg::Image { pixels: &pixels[..], width, pitch, height, format })
        .unwrap()
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Files of every kind that take much memory for their size, and files crafted for that. The worst of each format are in
/// docs/performance.md's table.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let rgba = ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| {
        let level = level(x, y);
        image::Rgba([level, level / 2, 9, level | 1])
    });
    let small: DynamicImage = DynamicImage::ImageRgba8(rgba.clone());
    let wide = DynamicImage::ImageRgba16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| {
        rgba.get_pixel(x, y).0.map(|level| u16::from(level) * 257).into()
    }));
    let legal = vec![
        ("baseline JPEG", jpeg(PixelFormat::RGB, false, Subsamp::Sub2x2)),
        ("progressive JPEG", jpeg(PixelFormat::RGB, true, Subsamp::None)),
        ("progressive CMYK JPEG", jpeg(PixelFormat::CMYK, true, Subsamp::None)),
        ("PNG", encode(&small, ImageFormat::Png)),
        ("16-bit PNG", encode(&wide, ImageFormat::Png)),
        ("WebP", encode(&small, ImageFormat::WebP)),
        ("BMP", encode(&small, ImageFormat::Bmp)),
        ("16-bit TIFF", encode(&wide, ImageFormat::Tiff)),
        ("GIF", encode(&DynamicImage::ImageRgb8(small.to_rgb8()), ImageFormat::Gif)),
    ];
    let bombs = bombs::all().into_iter().map(|bomb| (bomb.name, bomb.bytes));
    legal.into_iter().chain(bombs).collect()
}

fn limits() -> DecodeLimits {
    DecodeLimits { max_bytes: 128 << 20, ..DecodeLimits::default() }
}

/// Decodes at full size and scaled, whether or not it is rejected.
fn decode(bytes: &[u8]) {
    let mut decoder = Decoder::new(limits()).unwrap();
    for side in [u32::MAX, 256] {
        let _ = decoder.decode(bytes, side);
        decoder.trim();
    }
}

#[test]
fn no_decode_takes_more_memory_than_its_header_allows() {
    if let Some(file) = std::env::var_os(FILE) {
        let bytes = std::fs::read(file).unwrap();
        decode(&bytes);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let idle = peak_of_a_process(&folder.path().join("none"), b"no image");
    println!(
        "| input | file, KiB | pixels | limit, MiB | from its header, MiB | allocated, MiB | resident, MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, bytes) in files() {
        let header = inspect(&bytes, &limits());
        let pixels = header.as_ref().map_or(0, |header| u64::from(header.width) * u64::from(header.height));
        let formula = (60 << 20) + 12 * pixels;
        let told = header.as_ref().map_or(60 << 20, |header| header.decode_memory);
        assert!(told <= formula, "{name}");

        let profiler = dhat::Profiler::builder().testing().build();
        decode(&bytes);
        let allocated = dhat::HeapStats::get().max_bytes as u64;
        drop(profiler);
        assert!(allocated <= told, "{name}: allocated {allocated}, told {told}");

        let resident = peak_of_a_process(&folder.path().join("image"), &bytes).saturating_sub(idle);
        // The process holds the file as well.
        let most = told + bytes.len() as u64 + (4 << 20);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "| {name} | {:.0} | {pixels} | {:.0} | {:.1} | {:.1} | {:.1} |",
            bytes.len() as f64 / 1024.0,
            mib(formula),
            mib(told),
            mib(allocated),
            mib(resident)
        );
        assert!(resident <= most, "{name}: {resident} bytes resident, {most} allowed");
    }
}

/// Peak resident bytes of a child process that decodes one file.
fn peak_of_a_process(path: &Path, bytes: &[u8]) -> u64 {
    std::fs::write(path, bytes).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_decode_takes_more_memory_than_its_header_allows", "--nocapture"])
        .env(FILE, path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once("VmHWM:")).expect("the child tells its peak").1;
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
