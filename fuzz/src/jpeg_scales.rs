//! JPEGs at the scales of the reduced decoder, compared with libjpeg-turbo, which decodes full size: both accept
//! the same files, and the small picture is a reduction of the large one.
//!
//! An input that begins as a JPEG is one. Any other draws a picture and chooses how it is encoded, so that sizes, qualities and
//! samplings are covered by valid files.

use gpu_kernels::{DecodeLimits, Decoder, ImageFormat};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

use crate::decode::limits;

/// Pixels per side of the largest block on which a pixel depends: an MCU at 4:2:0.
const MCU: usize = 16;

/// Bounds on a drawn picture, in levels of 0 to 255: the mean over it and the worst value of any channel. The library's small
/// pictures are means of pixels; the reduced decoder's contain only the lowest frequencies.
const DRAWN_MEAN: f64 = 6.0;
const DRAWN_WORST: u8 = 80;
/// Number of pixels from which the mean is checked.
const ENOUGH: f64 = 200.0;

/// Properties of a drawn picture.
#[derive(Clone, Copy)]
struct Drawn {
    size: (usize, usize),
    /// Whether a small picture has colours as fine as its brightness. libjpeg-turbo reduces 4:2:2 to chroma of half its width and enlarges
    /// that again, so that [`DRAWN_MEAN`] bounds only the luma there.
    has_fine_chroma: bool,
}

/// Checks the property.
pub fn check(bytes: &[u8]) {
    if bytes.first() == Some(&0xFF) {
        compare(bytes, None);
    } else if let Some((jpeg, drawn)) = draw(bytes) {
        compare(&jpeg, Some(drawn));
    }
}

struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// The mean of each channel over `side` x `side` pixels from `x` and `y` on.
    fn mean(&self, x: usize, y: usize, side: usize) -> [u8; 3] {
        std::array::from_fn(|channel| {
            let row = |y: usize| {
                (x..x + side).map(move |x| usize::from(self.rgb[3 * (y * self.width + x) + channel]))
            };
            ((y..y + side).flat_map(row).sum::<usize>() / (side * side)) as u8
        })
    }
}

fn decode(bytes: &[u8], limits: DecodeLimits, shorter_side: u32) -> Result<Picture, &'static str> {
    let mut decoder = Decoder::new(limits).expect("a decoder");
    let image = decoder.decode(bytes, shorter_side).map_err(|error| error.code())?;
    Ok(Picture { width: image.width as usize, height: image.height as usize, rgb: image.pixels.to_vec() })
}

fn compare(bytes: &[u8], drawn: Option<Drawn>) {
    let limits = DecodeLimits { max_pixels: 1 << 20, ..limits(ImageFormat::Jpeg) };
    let full = decode(bytes, limits, u32::MAX);
    if let Some(Drawn { size, .. }) = drawn {
        let size_of = full.as_ref().map(|full| (full.width, full.height));
        assert_eq!(size_of, Ok(size), "a sound file is decoded");
    }
    let side = full.as_ref().map_or(MCU, |full| full.width.min(full.height));
    for eighths in [1, 2] {
        let small = decode(bytes, limits, (side * eighths).div_ceil(8) as u32);
        match (&full, &small) {
            (Ok(full), Ok(small)) => agree(full, small, 8 / eighths, drawn, comparable(bytes)),
            _ => assert_eq!(
                full.as_ref().err(),
                small.as_ref().err(),
                "the two decoders accept different files"
            ),
        }
    }
}

/// Compares each pixel of `small` with the mean of its `scale` x `scale` pixels in `full`.
fn agree(full: &Picture, small: &Picture, scale: usize, drawn: Option<Drawn>, comparable: bool) {
    // For small images a smaller scale than intended keeps the side.
    if (small.width, small.height) != (full.width.div_ceil(scale), full.height.div_ceil(scale)) {
        return;
    }
    let ranges = Ranges::of(full);
    let (mut channels_off, mut luma_off, mut pixels) = (0.0, 0.0, 0.0);
    for y in 0..full.height / MCU * MCU / scale {
        for x in 0..full.width / MCU * MCU / scale {
            let range = ranges.around(x * scale / MCU, y * scale / MCU);
            let most = match range {
                _ if drawn.is_some() => DRAWN_WORST,
                // A malformed file may differ by as much as its content varies.
                Some(range) if comparable => (8 + 3 * u16::from(range)).min(255) as u8,
                _ => continue,
            };
            let (mean, found) = (full.mean(x * scale, y * scale, scale), small.mean(x, y, 1));
            for (mean, found) in mean.into_iter().zip(found) {
                let off = found.abs_diff(mean);
                assert!(off <= most, "at {x}, {y} of 1/{scale}: off by {off} levels, {most} are allowed");
                channels_off += f64::from(off) / 3.0;
            }
            luma_off += (luma(mean) - luma(found)).abs();
            pixels += 1.0;
        }
    }
    let Some(drawn) = drawn else { return };
    let off = if drawn.has_fine_chroma { channels_off } else { luma_off } / pixels;
    // With few pixels a single one dominates the mean.
    assert!(pixels < ENOUGH || off <= DRAWN_MEAN, "1/{scale}: off by {off:.2} levels on average");
}

/// Luma as JFIF defines it, in levels.
fn luma([red, green, blue]: [u8; 3]) -> f64 {
    0.299 * f64::from(red) + 0.587 * f64::from(green) + 0.114 * f64::from(blue)
}

/// Lowest and highest level of each MCU.
struct Ranges {
    across: usize,
    levels: Vec<(u8, u8)>,
}

impl Ranges {
    fn of(picture: &Picture) -> Self {
        let (across, down) = (picture.width.div_ceil(MCU), picture.height.div_ceil(MCU));
        let mut levels = vec![(u8::MAX, 0); across * down];
        for (y, line) in picture.rgb.chunks_exact(3 * picture.width).enumerate() {
            for (x, pixel) in line.chunks_exact(3).enumerate() {
                // Differences between the pixels of a channel are what counts, so a channel's offset is none.
                let range = &mut levels[y / MCU * across + x / MCU];
                for &level in pixel {
                    *range = (range.0.min(level), range.1.max(level));
                }
            }
        }
        Self { across, levels }
    }

    /// How far apart the levels of an MCU and of its neighbours are, in any channel; `None` if one may have been clamped at
    /// the end of the range.
    fn around(&self, x: usize, y: usize) -> Option<u8> {
        let down = self.levels.len() / self.across;
        let (mut low, mut high) = (u8::MAX, 0);
        for row in y.saturating_sub(1)..(y + 2).min(down) {
            for column in x.saturating_sub(1)..(x + 2).min(self.across) {
                let (from, to) = self.levels[row * self.across + column];
                (low, high) = (low.min(from), high.max(to));
            }
        }
        (low >= 8 && high <= 247).then_some(high - low)
    }
}

/// Whether every quantizer is 1. With larger ones a crafted file can have coefficients beyond 16 bits, where
/// libjpeg-turbo's vector code wraps, and the result is undefined.
fn comparable(jpeg: &[u8]) -> bool {
    let mut rest = jpeg;
    while let Some(at) = memchr::memmem::find(rest, &[0xFF, 0xDB]) {
        rest = &rest[at + 2..];
        let ones = rest.get(3..67).is_some_and(|table| table.iter().all(|&value| value == 1));
        let tables = rest.get(..2).map_or(0, |length| u16::from_be_bytes([length[0], length[1]]));
        if !ones || tables != 67 {
            return false;
        }
    }
    true
}

/// A smooth picture from the levels of a grid, encoded; `None` if the input is too short.
fn draw(bytes: &[u8]) -> Option<(Vec<u8>, Drawn)> {
    let (head, grid) = bytes.split_first_chunk::<6>()?;
    let (width, height) = (1 + usize::from(head[1]) * 2, 1 + usize::from(head[2]) * 2);
    let across = 1 + usize::from(head[5] % 8);
    let level = |x: usize, y: usize, channel: usize| {
        let at = (y * (across + 1) + x) * 3 + channel;
        f32::from(grid.get(at % grid.len().max(1)).copied().unwrap_or(128))
    };
    let mut rgb = Vec::with_capacity(3 * width * height);
    // Cells of at least 32 pixels, so that the picture is smooth.
    let cell = |side: usize| (side as f32 / across as f32).max(32.0);
    let (cell_x, cell_y) = (cell(width), cell(height));
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / cell_x, y as f32 / cell_y);
            let (i, j) = (u as usize, v as usize);
            let (u, v) = (u.fract(), v.fract());
            for channel in 0..3 {
                let top = level(i, j, channel) * (1.0 - u) + level(i + 1, j, channel) * u;
                let bottom = level(i, j + 1, channel) * (1.0 - u) + level(i + 1, j + 1, channel) * u;
                rgb.push((top * (1.0 - v) + bottom * v) as u8);
            }
        }
    }
    let mut compressor = Compressor::new().expect("a compressor");
    let sampling = [Subsamp::Sub2x2, Subsamp::None, Subsamp::Sub2x1, Subsamp::Gray][usize::from(head[3] % 4)];
    compressor.set_subsamp(sampling).expect("a sampling");
    compressor.set_optimize(head[3] & 4 != 0).expect("tables");
    compressor.set_progressive(head[3] & 8 != 0).expect("scans");
    compressor.set_quality(50 + i32::from(head[4]) % 51).expect("a quality");
    let image =
        turbojpeg::Image { pixels: &rgb[..], width, pitch: 3 * width, height, format: PixelFormat::RGB };
    let drawn = Drawn { size: (width, height), has_fine_chroma: sampling != Subsamp::Sub2x1 };
    Some((compressor.compress_to_vec(image).expect("a JPEG"), drawn))
}
