//! Pictures from formulas, and encoders for them.

use std::io::Cursor;

use gpu_kernels::{CpuPreprocessor, DecodeError, DecodeLimits, Decoder, Image, Orientation, PreprocessSpec};
use image::{DynamicImage, ImageFormat, RgbImage};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

/// RGB pixels with a size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Vec<u8>,
    pub(crate) orientation: Orientation,
}

impl Picture {
    pub(crate) fn of(image: &Image<'_>) -> Self {
        let Image { width, height, orientation, .. } = *image;
        assert_eq!(image.pixels.len(), 3 * width as usize * height as usize);
        Self { width, height, pixels: image.pixels.to_vec(), orientation }
    }

    /// Largest difference of a channel.
    pub(crate) fn distance(&self, other: &Self) -> u8 {
        assert_eq!((self.width, self.height), (other.width, other.height));
        self.pixels.iter().zip(&other.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    pub(crate) fn as_image(&self) -> Image<'_> {
        Image {
            format: gpu_kernels::ImageFormat::Png,
            width: self.width,
            height: self.height,
            pixels: &self.pixels,
            orientation: self.orientation,
            original_width: self.width,
            original_height: self.height,
        }
    }

    pub(crate) fn as_rgb(&self) -> RgbImage {
        RgbImage::from_raw(self.width, self.height, self.pixels.clone()).unwrap()
    }

    pub(crate) fn encode(&self, format: ImageFormat) -> Vec<u8> {
        encode(&self.as_rgb().into(), format)
    }
}

pub(crate) fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(crate) fn picture(width: u32, height: u32, level: impl Fn(u32, u32, u32) -> u8) -> Picture {
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    for y in 0..height {
        for x in 0..width {
            pixels.extend((0..3).map(|channel| level(x, y, channel)));
        }
    }
    Picture { width, height, pixels, orientation: Orientation::Upright }
}

/// Smooth, so that JPEG keeps it, and different in all four corners.
pub(crate) fn smooth(width: u32, height: u32) -> Picture {
    picture(width, height, |x, y, channel| {
        let (across, down) = (x * 200 / width, y * 200 / height);
        [across + 20, down + 30, 220 - (across + down) / 2][channel as usize] as u8
    })
}

/// As `noise` of make_reference.py.
pub(crate) fn noise(x: u32, y: u32, channel: u32) -> u8 {
    let mut hash =
        x.wrapping_mul(0x9E37_79B1) ^ y.wrapping_mul(0x85EB_CA77) ^ channel.wrapping_mul(0xC2B2_AE3D);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0x2C1B_3C6D);
    hash ^= hash >> 12;
    (hash & 0xFF) as u8
}

/// A smooth picture with some grain, so that its JPEG has data in every block.
pub(crate) fn grainy(width: u32, height: u32) -> Picture {
    let smooth = smooth(width, height);
    picture(width, height, |x, y, channel| {
        let at = 3 * (y as usize * width as usize + x as usize) + channel as usize;
        smooth.pixels[at].saturating_add(noise(x, y, 0) / 12)
    })
}

/// How a JPEG is encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jpeg {
    pub(crate) quality: i32,
    pub(crate) subsampling: Subsamp,
    pub(crate) progressive: bool,
    pub(crate) arithmetic: bool,
    pub(crate) lossless: bool,
}

impl Default for Jpeg {
    fn default() -> Self {
        Self {
            quality: 90,
            subsampling: Subsamp::Sub2x2,
            progressive: false,
            arithmetic: false,
            lossless: false,
        }
    }
}

impl Jpeg {
    pub(crate) fn encode(self, picture: &Picture) -> Vec<u8> {
        self.encode_as(picture.width, picture.height, &picture.pixels, PixelFormat::RGB)
    }

    pub(crate) fn encode_as(self, width: u32, height: u32, pixels: &[u8], format: PixelFormat) -> Vec<u8> {
        let mut compressor = Compressor::new().unwrap();
        compressor.set_subsamp(self.subsampling).unwrap();
        compressor.set_quality(self.quality).unwrap();
        compressor.set_progressive(self.progressive).unwrap();
        compressor.set_arithmetic(self.arithmetic).unwrap();
        compressor.set_lossless(self.lossless).unwrap();
        let (width, height) = (width as usize, height as usize);
        let pitch = width * format.size();
        compressor.compress_to_vec(turbojpeg::Image { pixels, width, pitch, height, format }).unwrap()
    }
}

pub(crate) fn decoder() -> Decoder {
    Decoder::new(DecodeLimits::default()).unwrap()
}

/// Decodes at full size.
pub(crate) fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    decoder().decode(bytes, u32::MAX).map(|image| Picture::of(&image))
}

/// The code of the error; both `inspect` and `decode` must reject what the headers show.
pub(crate) fn code_of<T>(result: Result<T, DecodeError>) -> &'static str {
    result.err().expect("a refusal").code()
}

/// Preprocesses to values of 0 to 255.
pub(crate) fn window(image: &Image<'_>, resize: u32, crop: u32) -> Vec<f32> {
    let spec = PreprocessSpec { resize, crop, mean: [0.0; 3], std: [1.0; 3] };
    let mut out = vec![f32::NAN; spec.output_len()];
    CpuPreprocessor::new(spec).unwrap().run(image, &mut out).unwrap();
    out
}
