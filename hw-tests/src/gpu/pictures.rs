//! Images for the kernel: of any size, in each layout that it reads, with the corresponding RGB.

use fastrand::Rng;
use gpu_kernels::preprocess::PixelLayout;
use gpu_kernels::{Image, Orientation};

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Interleaved.
    Rgb,
    /// Planes of luma and chroma, the latter shifted by these numbers of bits in width and height.
    Planar(u32, u32),
    /// Luma only.
    Grey,
}

impl Kind {
    pub(super) const PLANAR_420: Self = Self::Planar(1, 1);

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rgb => "RGB",
            Self::Planar(0, 0) => "planar 4:4:4",
            Self::Planar(1, 1) => "planar 4:2:0",
            Self::Planar(..) => "planar",
            Self::Grey => "grey",
        }
    }

    /// Bytes per pixel.
    pub(super) fn bytes_a_pixel(self) -> f64 {
        match self {
            Self::Rgb => 3.0,
            Self::Planar(x, y) => 1.0 + 2.0 / f64::from(1 << (x + y)),
            Self::Grey => 1.0,
        }
    }

    /// Offsets of the planes, and their total size in bytes.
    pub(super) fn layout(self, (width, height): (u32, u32)) -> (PixelLayout, usize) {
        let none = (0, 0);
        let pitches = match self {
            Self::Rgb => PixelLayout::Rgb { plane: none },
            Self::Planar(shift_x, shift_y) => PixelLayout::YCbCr { planes: [none; 3], shift_x, shift_y },
            Self::Grey => PixelLayout::Grey { plane: none },
        }
        .least_pitches(width);
        let luma = u64::from(pitches[0]) * u64::from(height);
        let (layout, bytes) = match self {
            Self::Rgb => (PixelLayout::Rgb { plane: (0, pitches[0]) }, luma),
            Self::Grey => (PixelLayout::Grey { plane: (0, pitches[0]) }, luma),
            Self::Planar(shift_x, shift_y) => {
                let chroma = u64::from(pitches[1]) * u64::from(height.div_ceil(1 << shift_y));
                let planes = [(0, pitches[0]), (luma, pitches[1]), (luma + chroma, pitches[2])];
                (PixelLayout::YCbCr { planes, shift_x, shift_y }, luma + 2 * chroma)
            }
        };
        (layout, bytes as usize)
    }
}

/// An image in the kernel's layout, and as RGB for the definition.
pub(super) struct Picture {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) layout: PixelLayout,
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
    /// Interleaved, without padding.
    pub(super) rgb: Vec<u8>,
}

impl Picture {
    /// A picture of noise with edges.
    pub(super) fn random(kind: Kind, size: (u32, u32), orientation: Orientation, rng: &mut Rng) -> Self {
        let (layout, bytes) = kind.layout(size);
        let (width, height) = size;
        let run = rng.usize(20..80);
        let bytes: Vec<u8> =
            (0..bytes).map(|at| if (at / run).is_multiple_of(3) { 255 } else { rng.u8(..) }).collect();
        let mut rgb = Vec::with_capacity(3 * width as usize * height as usize);
        for y in 0..height {
            for x in 0..width {
                rgb.extend(pixel(&bytes, &layout, x, y));
            }
        }
        let name = format!("{} of {width} x {height}, {orientation:?}", kind.name());
        Self { name, kind, bytes, layout, size, orientation, rgb }
    }

    /// A decoded picture.
    pub(super) fn decoded(name: String, image: &Image<'_>) -> Self {
        let size = (image.width, image.height);
        let (layout, bytes) = Kind::Rgb.layout(size);
        let row = 3 * image.width as usize;
        let pitch = bytes / image.height.max(1) as usize;
        let mut padded = vec![0xAA; bytes];
        for (to, from) in padded.chunks_exact_mut(pitch).zip(image.pixels.chunks_exact(row)) {
            to[..row].copy_from_slice(from);
        }
        let (orientation, rgb) = (image.orientation, image.pixels.to_vec());
        Self { name, kind: Kind::Rgb, bytes: padded, layout, size, orientation, rgb }
    }
}

fn pixel(bytes: &[u8], layout: &PixelLayout, x: u32, y: u32) -> [u8; 3] {
    let at = |(offset, pitch): (u64, u32), x: u32, y: u32| {
        bytes[offset as usize + y as usize * pitch as usize + x as usize]
    };
    match *layout {
        PixelLayout::Rgb { plane } => [0, 1, 2].map(|channel| at(plane, 3 * x + channel, y)),
        PixelLayout::Grey { plane } => [at(plane, x, y); 3],
        PixelLayout::YCbCr { planes: [luma, blue, red], shift_x, shift_y } => {
            let (cx, cy) = (x >> shift_x, y >> shift_y);
            to_rgb(at(luma, x, y), at(blue, cx, cy), at(red, cx, cy))
        }
    }
}

/// ITU-T T.871, section 7.
fn to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, y + 1.772 * cb];
    rgb.map(|level| level.round().clamp(0.0, 255.0) as u8)
}
