//! The scaled decoder compared with libjpeg-turbo on drawn pictures, and on damaged data.

use proptest::prelude::*;
use turbojpeg::{Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

use super::ShrinkDecoder;
use crate::decode::Until;

/// Smooth shapes and texture, with all frequencies.
fn picture(width: usize, height: usize, seed: usize) -> Vec<u8> {
    (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let wave = |f: f32, p: f32| ((x as f32 * f + y as f32 * p + seed as f32).sin() * 50.0) as i32;
            let grain = (((x * 7919 + y * 104_729 + seed) * 2_654_435_761) >> 7) as i32 % 17 - 8;
            let base = 128 + wave(0.02, 0.03) + wave(0.3, 0.1) / 3 + grain;
            [base, base + wave(0.01, 0.05) / 2, 255 - base].map(|level| level.clamp(0, 255) as u8)
        })
        .collect()
}

fn encode(width: usize, height: usize, subsamp: Subsamp, quality: i32) -> Vec<u8> {
    let pixels = picture(width, height, quality as usize);
    let mut encoder = Compressor::new().unwrap();
    encoder.set_quality(quality).unwrap();
    encoder.set_subsamp(subsamp).unwrap();
    let format = PixelFormat::RGB;
    encoder.compress_to_vec(Image { pixels: &pixels, width, pitch: width * 3, height, format }).unwrap()
}

fn scale(eighths: usize) -> ScalingFactor {
    ScalingFactor::new(eighths, 8)
}

fn ours(decoder: &mut ShrinkDecoder, bytes: &[u8], eighths: usize, size: (usize, usize)) -> Option<Vec<u8>> {
    let (width, height) = (scale(eighths).scale(size.0), scale(eighths).scale(size.1));
    let mut rgb = vec![0; width * height * 3];
    decoder.decode(bytes, eighths, &mut rgb, width, Until::NEVER).map(|()| rgb)
}

fn library(bytes: &[u8], eighths: usize, size: (usize, usize)) -> Vec<u8> {
    let (width, height) = (scale(eighths).scale(size.0), scale(eighths).scale(size.1));
    let mut pixels = vec![0; width * height * 3];
    let mut decoder = Decompressor::new().unwrap();
    decoder.set_scaling_factor(scale(eighths)).unwrap();
    let image = Image { pixels: &mut pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
    decoder.decompress(bytes, image).unwrap();
    pixels
}

#[test]
fn agrees_with_the_library_on_every_size_and_sampling() {
    let mut decoder = ShrinkDecoder::default();
    for size in [(640, 480), (1280, 720), (333, 251), (1, 1), (9, 17), (16, 16), (2051, 40), (8, 3000)] {
        for subsamp in [Subsamp::Sub2x2, Subsamp::None] {
            for quality in [30, 75, 92, 100] {
                let bytes = encode(size.0, size.1, subsamp, quality);
                for eighths in [1, 2] {
                    let what = format!("{size:?} {subsamp:?} quality {quality} at {eighths}/8");
                    let ours = ours(&mut decoder, &bytes, eighths, size)
                        .unwrap_or_else(|| panic!("{what}: refused"));
                    let library = library(&bytes, eighths, size);
                    let off: Vec<i32> = ours
                        .iter()
                        .zip(&library)
                        .map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs())
                        .collect();
                    let mean = off.iter().sum::<i32>() as f64 / off.len() as f64;
                    // The two weight a block's frequencies slightly differently; a lost or shifted block is off by tens.
                    assert!(mean < 2.5, "{what}: off by {mean:.2} levels on average");
                    let worst = off.iter().max().copied().unwrap_or(0);
                    assert!(worst < 40, "{what}: off by {worst} levels at worst");
                }
            }
        }
    }
}

#[test]
fn a_mean_is_exact() {
    let mut decoder = ShrinkDecoder::default();
    for level in [0u8, 1, 77, 128, 254, 255] {
        let pixels = vec![level; 64 * 64 * 3];
        let image =
            Image { pixels: &pixels[..], width: 64, pitch: 192, height: 64, format: PixelFormat::RGB };
        let bytes = turbojpeg::compress(image, 100, Subsamp::Sub2x2).unwrap();
        for eighths in [1, 2] {
            let shrunk = ours(&mut decoder, &bytes, eighths, (64, 64)).unwrap();
            assert!(
                shrunk.iter().all(|&l| l.abs_diff(level) <= 1),
                "{level} at {eighths}/8 became {:?}",
                &shrunk[..6]
            );
        }
    }
}

#[test]
fn other_kinds_are_left_to_the_library() {
    let mut decoder = ShrinkDecoder::default();
    for subsamp in [Subsamp::Sub2x1, Subsamp::Sub1x2, Subsamp::Sub4x1] {
        let bytes = encode(640, 480, subsamp, 90);
        assert!(ours(&mut decoder, &bytes, 2, (640, 480)).is_none(), "{subsamp:?}");
    }
    let plain = encode(640, 480, Subsamp::Sub2x2, 90);
    assert!(ours(&mut decoder, &plain, 4, (640, 480)).is_none(), "half size is the library's");
}

#[test]
fn an_image_cut_anywhere_is_left_to_the_library() {
    let mut decoder = ShrinkDecoder::default();
    let whole = encode(160, 120, Subsamp::Sub2x2, 90);
    assert!(ours(&mut decoder, &whole, 2, (160, 120)).is_some());
    // The last bytes are the EOI and the padding of the last byte.
    for length in 0..whole.len() - 4 {
        assert!(ours(&mut decoder, &whole[..length], 2, (160, 120)).is_none(), "cut at {length}");
    }
}

proptest! {
    #[test]
    fn damage_never_panics(at in 0usize..20_000, to in any::<u8>(), eighths in 1usize..3) {
        let mut bytes = encode(320, 240, Subsamp::Sub2x2, 85);
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = ours(&mut ShrinkDecoder::default(), &bytes, eighths, (320, 240));
    }
}
