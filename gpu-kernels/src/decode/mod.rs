//! Encoded bytes to RGB: what the bytes are, whether they keep to the limits, and their pixels.
//!
//! Rules that hold for every format:
//! - The type comes from the bytes. A file name or a declared content type is never looked at.
//! - Bytes, pixels and scans are checked against [`DecodeLimits`] before anything is allocated for them.
//! - A transparent pixel is laid on white, as viewers and web pages show it. (Pillow's `convert("RGB")` drops alpha and
//!   shows whatever colour is stored under it.)
//! - Grey becomes three equal channels; 16 bits become 8 by rounding; CMYK is multiplied out.
//! - Of an animation the first frame counts.
//! - Memory stays below 60 MiB, the encoded bytes and 12 bytes a declared pixel ([`ImageHeader::decode_memory`]).
//! - A panic in a decoder is that image's error.
//! - An EXIF orientation is reported, not applied; a broken one is ignored.
//!
//! JPEGs may be decoded on the GPU instead: [`nvjpeg`] says which, and does it.

mod buffer;
mod error;
mod gif;
mod guard;
mod jpeg;
mod limits;
mod memory;
pub mod nvjpeg;
mod other;
mod png;
mod reader;
mod riff;
mod samples;
mod sniff;
mod tiff;
mod until;
mod vp8l;

pub use error::DecodeError;
pub use jpeg::{JpegHeader, jpeg_header};
pub use limits::{DecodeLimits, FormatSet};
pub use sniff::sniff;
pub use until::Until;

use crate::image::{Image, ImageFormat, Orientation};
use buffer::Buffer;

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
    /// Upper bound on the memory, in bytes, that decoding the image at full size takes at its peak, the result included and
    /// the encoded bytes not. Never above 60 MiB and 12 bytes a pixel: [`inspect`] refuses what needs more.
    pub decode_memory: u64,
}

impl ImageHeader {
    fn pixels(&self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// Reads the headers of an image and checks them against `limits`. No pixel is decoded, so an image that
/// passes may still turn out to be corrupt.
///
/// # Errors
/// Every [`DecodeError`] but [`DecodeError::Setup`].
pub fn inspect(bytes: &[u8], limits: &DecodeLimits) -> Result<ImageHeader, DecodeError> {
    let format = limits.format_of(bytes)?;
    guard::guarded(format, || match format {
        ImageFormat::Jpeg => jpeg_header(bytes, limits).map(ImageHeader::from),
        ImageFormat::Tiff => tiff::open(bytes, limits, Until::NEVER).map(|opened| opened.header),
        ImageFormat::Png => png::open(bytes, limits, Until::NEVER).map(|opened| opened.header),
        _ => other::open(format, bytes, limits, Until::NEVER).map(|opened| opened.header),
    })
    .map_err(|(error, _)| error)
}

/// Decodes one image after another into a buffer that it keeps. One thread owns it.
///
/// What it answers for an image depends on nothing that it decoded before. After an error it decodes the next image as if
/// nothing had happened.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    jpeg: jpeg::JpegDecoder,
    pixels: Buffer,
    scratch: Buffer,
}

/// An image whose RGB lies at the front of the decoder's pixels.
#[derive(Clone, Copy, Debug)]
struct Decoded {
    header: ImageHeader,
    width: u32,
    height: u32,
}

impl From<ImageHeader> for Decoded {
    /// At full size.
    fn from(header: ImageHeader) -> Self {
        Self { header, width: header.width, height: header.height }
    }
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
            scratch: Buffer::default(),
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
        self.decode_until(bytes, shorter_side, Until::NEVER)
    }

    /// As [`decode`](Self::decode), but gives up at the time that `until` says: between two rows of blocks of a JPEG, and of other
    /// formats when the decoder has had some more kilobytes of the file.
    ///
    /// # Errors
    /// Every [`DecodeError`] but [`DecodeError::Setup`].
    pub fn decode_until(
        &mut self,
        bytes: &[u8],
        shorter_side: u32,
        until: Until,
    ) -> Result<Image<'_>, DecodeError> {
        let format = self.limits.format_of(bytes)?;
        let until = until.or_work(self.limits.max_time);
        let decode = || self.decode_as(format, bytes, shorter_side, until);
        let decoded = match guard::guarded(format, decode) {
            Ok(decoded) => decoded,
            Err((error, panicked)) => {
                if panicked {
                    // What is left of the decoder is not to be trusted.
                    *self = Self::new(self.limits)?;
                }
                return Err(error);
            }
        };
        let Decoded { header, width, height } = decoded;
        Ok(Image {
            format,
            width,
            height,
            pixels: self.pixels.front(3 * width as usize * height as usize),
            orientation: header.orientation,
            original_width: header.width,
            original_height: header.height,
        })
    }

    fn decode_as(
        &mut self,
        format: ImageFormat,
        bytes: &[u8],
        shorter_side: u32,
        until: Until,
    ) -> Result<Decoded, DecodeError> {
        match format {
            ImageFormat::Jpeg => {
                let header = jpeg_header(bytes, &self.limits)?;
                self.jpeg.decode(bytes, &header, shorter_side, &mut self.pixels, until)
            }
            ImageFormat::Tiff => {
                let opened = tiff::open(bytes, &self.limits, until)?;
                opened.decode(&mut self.pixels, &mut self.scratch)
            }
            ImageFormat::Png => png::open(bytes, &self.limits, until)?.decode(&mut self.pixels),
            _ => other::open(format, bytes, &self.limits, until)?.decode(&mut self.pixels),
        }
    }

    /// Bytes of memory that are kept for the next image.
    pub fn retained_bytes(&self) -> usize {
        self.pixels.capacity() + self.scratch.capacity() + self.jpeg.retained_bytes()
    }

    /// Gives back the memory of a large image; what is left is below 24 MiB. The next image of another size does so, too.
    pub fn trim(&mut self) {
        self.pixels.trim();
        self.scratch.trim();
        self.jpeg.trim();
    }
}

/// The orientation in a block of EXIF, which begins with a TIFF header. `None` where there is none or the
/// block is broken.
fn exif_orientation(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif(::image::metadata::Orientation::from_exif_chunk(exif)?.to_exif())
}
