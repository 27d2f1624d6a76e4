//! Encoded bytes to RGB: what the bytes are, whether they keep to the limits, and their pixels.
//!
//! Rules that hold for every format:
//! - The type comes from the bytes. A file name or a declared content type is never looked at.
//! - Bytes, pixels and scans are checked against [`DecodeLimits`] before anything is allocated for them.
//! - Alpha is dropped, as Pillow's `convert("RGB")` does: a transparent pixel keeps the colour that it stores.
//! - Grey becomes three equal channels; 16 bits become 8 by rounding; CMYK is multiplied out.
//! - Of an animation the first frame counts.
//! - An EXIF orientation is reported, not applied; a broken one is ignored.
//!
//! JPEGs may be decoded on the GPU instead: [`nvjpeg`] says which, and does it.

mod buffer;
mod error;
mod jpeg;
pub mod nvjpeg;
mod other;
mod riff;
mod samples;
mod sniff;

pub use error::DecodeError;
pub use jpeg::{JpegHeader, jpeg_header};
pub use sniff::sniff;

use crate::image::{Image, ImageFormat, Orientation};
use buffer::Buffer;

/// What an image may cost. All of it is read from headers, before memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most bytes of the encoded image.
    pub max_bytes: usize,
    /// Most pixels, width times height, of the image in the file.
    pub max_pixels: u64,
    /// Most scans of a progressive JPEG. Encoders write about ten.
    pub max_scans: u32,
}

impl Default for DecodeLimits {
    /// 20 MiB, 50 megapixels, 100 scans.
    fn default() -> Self {
        Self { max_bytes: 20 << 20, max_pixels: 50_000_000, max_scans: 100 }
    }
}

impl DecodeLimits {
    fn check_bytes(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        if bytes.len() > self.max_bytes {
            return Err(DecodeError::ImageTooLarge { bytes: bytes.len(), max: self.max_bytes });
        }
        Ok(())
    }

    fn check_size(&self, format: ImageFormat, width: u32, height: u32) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::corrupt(format, format!("its header says {width} x {height} pixels")));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(DecodeError::TooManyPixels { width, height, max: self.max_pixels });
        }
        Ok(())
    }
}

/// What the headers of an image say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format, told from the bytes.
    pub format: ImageFormat,
    /// Width as stored.
    pub width: u32,
    /// Height as stored.
    pub height: u32,
    /// How to turn the stored pixels upright.
    pub orientation: Orientation,
}

/// Reads the headers of an image and checks them against `limits`. No pixel is decoded, so an image that
/// passes may still turn out to be corrupt.
///
/// # Errors
/// Every [`DecodeError`] but [`DecodeError::Setup`].
pub fn inspect(bytes: &[u8], limits: &DecodeLimits) -> Result<ImageHeader, DecodeError> {
    let format = sniff(bytes)?;
    limits.check_bytes(bytes)?;
    if format == ImageFormat::Jpeg {
        return Ok(jpeg_header(bytes, limits)?.into());
    }
    other::open(format, bytes, limits).map(|(header, _)| header)
}

/// Decodes one image after another into a buffer that it keeps. One thread owns it.
///
/// After an error it decodes the next image as if nothing had happened.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    jpeg: jpeg::JpegDecoder,
    pixels: Buffer,
    samples: Buffer,
}

impl Decoder {
    /// A decoder that refuses what goes beyond `limits`.
    ///
    /// # Errors
    /// [`DecodeError::Setup`] where libjpeg-turbo cannot be set up.
    pub fn new(limits: DecodeLimits) -> Result<Self, DecodeError> {
        Ok(Self {
            limits,
            jpeg: jpeg::JpegDecoder::new(&limits)?,
            pixels: Buffer::default(),
            samples: Buffer::default(),
        })
    }

    /// Decodes `bytes` to RGB.
    ///
    /// A JPEG may come back smaller than it is (1/2, 1/4 or 1/8), as long as its shorter side stays at
    /// least `shorter_side`: pass the side to which it will be resized, or `u32::MAX` for full size.
    ///
    /// # Errors
    /// Every [`DecodeError`] but [`DecodeError::Setup`].
    pub fn decode(&mut self, bytes: &[u8], shorter_side: u32) -> Result<Image<'_>, DecodeError> {
        let format = sniff(bytes)?;
        self.limits.check_bytes(bytes)?;
        if format == ImageFormat::Jpeg {
            let header = jpeg_header(bytes, &self.limits)?;
            return self.jpeg.decode(bytes, &header, shorter_side, &mut self.pixels, &mut self.samples);
        }
        other::decode(format, bytes, &self.limits, &mut self.pixels, &mut self.samples)
    }

    /// Bytes of memory that are kept for the next image.
    pub fn retained_bytes(&self) -> usize {
        self.pixels.capacity() + self.samples.capacity() + self.jpeg.retained_bytes()
    }
}

/// The orientation in a block of EXIF, which begins with a TIFF header. `None` where there is none or the
/// block is broken.
fn exif_orientation(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif(::image::metadata::Orientation::from_exif_chunk(exif)?.to_exif())
}
