//! Rendered pixels to a baseline 4:2:0 JPEG of the size that a real camera sends.

use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::{Size, scene};

/// Quality of the JPEG encoder and strength of the sensor noise, tuned together so that the files have
/// the sizes of `Size::typical_bytes`: small sensors are noisy and lightly compressed, 4K the reverse.
fn tuning(size: Size) -> (i32, f32) {
    match size {
        Size::Vga => (95, 1.8),
        Size::P1080 => (94, 1.8),
        Size::Uhd => (89, 1.8),
    }
}

/// Frame number `seed` of a size, encoded.
pub(super) fn frame(size: Size, seed: u64) -> turbojpeg::Result<Vec<u8>> {
    encode(size.pixels(), tuning(size), seed)
}

/// Picture number `seed` of any size, encoded as a VGA camera would.
pub(super) fn picture(pixels: (usize, usize), seed: u64) -> turbojpeg::Result<Vec<u8>> {
    encode(pixels, tuning(Size::Vga), seed)
}

fn encode(
    (width, height): (usize, usize),
    (quality, noise): (i32, f32),
    seed: u64,
) -> turbojpeg::Result<Vec<u8>> {
    let pixels = scene::render(width, height, seed, noise);
    let mut encoder = Compressor::new()?;
    encoder.set_quality(quality)?;
    encoder.set_subsamp(Subsamp::Sub2x2)?;
    encoder.compress_to_vec(Image {
        pixels: &pixels,
        width,
        pitch: width * 3,
        height,
        format: PixelFormat::RGB,
    })
}
