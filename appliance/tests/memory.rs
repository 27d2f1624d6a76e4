//! A process with a limit of 1 GiB, and clients that post the largest valid images of every type: it survives,
//! stays within the limit, and keeps answering small images. `WEIR_MEMORY_SECONDS` is the duration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use support::Daemon;
use support::cloud::metric;

const GIB: u64 = 1 << 30;
const CLIENTS: usize = 16;
/// 49.98 megapixels; the default limit is 50.
const SIDE: u32 = 7070;
/// 30.25 megapixels: the largest images with 16 bits per channel do not fit.
const LESS: u32 = 5500;
/// The default decode memory of a process with a limit of 1 GiB.
const DECODE_MEMORY: u64 = GIB / 2;

/// A picture of one colour, encoded.
fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn jpeg(progressive: bool) -> Vec<u8> {
    let side = SIDE as usize;
    let pixels = vec![128u8; side * side * 3];
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_progressive(progressive).unwrap();
    let picture = turbojpeg::Image {
        pixels: &pixels[..],
        width: side,
        pitch: side * 3,
        height: side,
        format: turbojpeg::PixelFormat::RGB,
    };
    compressor.compress_to_vec(picture).unwrap()
}

/// Runs of one value: a BMP of 8 bits per pixel in RLE8.
fn bmp() -> Vec<u8> {
    let mut row = Vec::new();
    let mut left = SIDE;
    while left > 0 {
        let run = left.min(255);
        row.extend([run as u8, 1]);
        left -= run;
    }
    row.extend([0, 0]);
    let mut data = row.repeat(SIDE as usize);
    data.extend([0, 1]);
    let offset = 54 + 8;
    let mut file = b"BM".to_vec();
    file.extend((offset + data.len() as u32).to_le_bytes());
    file.extend([0; 4]);
    for value in [offset, 40, SIDE, SIDE] {
        file.extend(value.to_le_bytes());
    }
    file.extend([1, 0, 8, 0]);
    for value in [1, data.len() as u32, 2835, 2835, 2, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 200, 100, 50, 0]);
    file.extend(data);
    file
}

/// A TIFF of one strip in PackBits, of 3 x 8 or 3 x 16 bits per pixel.
fn tiff(side: u32, bits: u16) -> Vec<u8> {
    let mut row = Vec::new();
    let mut left = side as usize * 3 * usize::from(bits / 8);
    while left > 0 {
        let run = left.min(128);
        row.extend([(257 - run) as u8, 90]);
        left -= run;
    }
    let data = row.repeat(side as usize);
    let entries: [(u16, u16, u32, u32); 8] = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 3, 8),
        (259, 3, 1, 32773),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (277, 3, 1, 3),
        (279, 4, 1, data.len() as u32),
    ];
    let mut file = b"II*\0".to_vec();
    file.extend((14 + data.len() as u32).to_le_bytes());
    (0..3).for_each(|_| file.extend(bits.to_le_bytes()));
    file.extend(&data);
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file
}

fn giants() -> Vec<(&'static str, Vec<u8>)> {
    let deep = |side| encoded(&DynamicImage::new_rgb16(side, side), ImageFormat::Png);
    let mut all = vec![("png 16", deep(SIDE)), ("smaller png 16", deep(LESS))];
    let plain = DynamicImage::new_rgb8(SIDE, SIDE);
    all.push(("png 8", encoded(&plain, ImageFormat::Png)));
    all.push(("webp", encoded(&plain, ImageFormat::WebP)));
    all.push(("gif", encoded(&plain, ImageFormat::Gif)));
    drop(plain);
    all.extend([("jpeg", jpeg(false)), ("progressive jpeg", jpeg(true))]);
    all.extend([("bmp", bmp()), ("tiff 8", tiff(SIDE, 8)), ("tiff 16", tiff(SIDE, 16))]);
    all.push(("smaller tiff 16", tiff(LESS, 16)));
    all
}

#[test]
fn a_gigabyte_is_enough_for_all_valid_images() {
    let time = std::env::var("WEIR_MEMORY_SECONDS").map_or(8, |seconds| seconds.parse().unwrap());
    let memory = format!("{DECODE_MEMORY} B");
    let daemon = Daemon::start(&[
        ("WEIR__IMAGE__DECODE_MEMORY", &memory),
        ("WEIR__CACHE__ENABLED", "false"),
        ("WEIR__ENGINE__LANES", "2"),
        ("WEIR__ENGINE__DEVICE", "cpu"),
        ("WEIR__PREDICT__DEADLINE", "1m"),
    ]);
    let (sample, _) = support::sample();
    let giants = giants();
    let end = Instant::now() + Duration::from_secs(time);
    let (small, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let seen: Mutex<BTreeMap<(&str, u16, String), usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while Instant::now() < end {
                    let (kind, file) = &giants[next.fetch_add(1, Ordering::Relaxed) % giants.len()];
                    let reply = daemon.post("/predict", &[("x-deadline-ms", "20000")], file);
                    let code = if reply.status == 200 { String::new() } else { reply.code() };
                    *seen.lock().unwrap().entry((kind, reply.status, code)).or_default() += 1;
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < end || small.load(Ordering::Relaxed) == 0 {
                let reply = daemon.post("/predict", &[], &sample);
                assert_eq!(reply.status, 200, "a small image: {}", reply.text());
                small.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    let seen = seen.into_inner().unwrap();
    let (peak, small) = (daemon.memory("VmHWM"), small.into_inner());
    println!("{small} small images in {time} s beside {seen:?}; resident at most {} MiB", peak >> 20);
    assert!(peak < GIB, "{peak} bytes");
    for (kind, status, code) in seen.keys() {
        let expected = matches!(
            (*status, code.as_str()),
            (200, _)
                | (413, "image_too_costly")
                | (415, _)
                | (429, "overloaded")
                | (504, "deadline_exceeded")
        );
        assert!(expected, "{kind}: {status} {code}");
    }
    // Afterwards large images are accepted again, however busy the machine was.
    for (kind, file) in giants.iter().filter(|(kind, _)| kind.starts_with("smaller")) {
        let reply = daemon.post("/predict", &[("x-deadline-ms", "60000")], file);
        assert_eq!(reply.status, 200, "{kind}: {}", reply.text());
    }
    // Their memory is released: expired jobs are dropped by the lanes first.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let used =
            ["weir_body_memory_used_bytes", "weir_decode_memory_used_bytes", "weir_decode_memory_waiting"]
                .map(|name| metric(&daemon, name));
        if used.iter().all(|used| *used == 0.0) {
            assert_eq!(metric(&daemon, "weir_decode_memory_limit_bytes"), DECODE_MEMORY as f64);
            break;
        }
        assert!(Instant::now() < end, "{used:?} are still held");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(metric(&daemon, "weir_lanes_stuck"), 0.0);
    assert_eq!(daemon.post("/predict", &[], &sample).status, 200);
}

#[test]
fn an_image_that_never_fits_is_413_with_both_numbers() {
    let daemon = Daemon::start(&[
        ("WEIR__IMAGE__DECODE_MEMORY", "192 MiB"),
        ("WEIR__ENGINE__LANES", "1"),
        ("WEIR__ENGINE__DEVICE", "cpu"),
    ]);
    let deep = DynamicImage::new_rgb16(SIDE, SIDE);
    let reply = daemon.post("/predict", &[], &encoded(&deep, ImageFormat::Png));
    assert_eq!((reply.status, reply.code().as_str()), (413, "image_too_costly"));
    let message = reply.text();
    assert!(message.contains("201326592") && message.contains("image.decode_memory"), "{message}");
    assert_eq!(daemon.post("/predict", &[], &support::sample().0).status, 200);
}
