//! Encoded bytes to RGB: detection of the format, limits, and decoding.
//!
//! Rules that hold for every format:
//! - The format is detected from the bytes. File names and declared content types are ignored.
//! - Bytes, pixels and scans are checked against [`DecodeLimits`] before anything is allocated for them.
//! - Transparent pixels are blended with white, as viewers and web pages do. (Pillow's `convert("RGB")` drops alpha and shows
//!   the stored colour.)
//! - Grey becomes three equal channels; 16 bits are rounded to 8; CMYK is converted by multiplication.
//! - Only the first frame of an animation is decoded.
//! - Memory stays below 60 MiB plus the encoded bytes plus 12 bytes per declared pixel ([`ImageHeader::decode_memory`]).
//! - A panic in a decoder is reported as that image's error.
//! - An EXIF orientation is reported, not applied; an invalid one is ignored.
//!
//! JPEGs may be decoded on the GPU instead: [`nvjpeg`] says which, and does it.

mod error;
mod format;
mod jpeg;
mod limits;
pub mod nvjpeg;
mod other;
mod png;
mod riff;
mod samples;
mod tiff;
mod until;
mod vp8l;

pub use error::DecodeError;
pub use format::{FormatSet, sniff};
pub use jpeg::{JpegHeader, jpeg_header};
pub use limits::DecodeLimits;
pub use until::Until;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::image::{Image, ImageFormat, Orientation};

/// Limit of a buffer that is kept. A camera frame, decoded at the scale that its preprocessing needs, stays far below (1080p
/// at full size is 6 MiB); the memory of a larger image is released with the next one, or by [`Buffer::trim`].
const MAX_KEPT: usize = 8 << 20;

/// The contents of an image's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format, detected from the bytes.
    pub format: ImageFormat,
    /// Width as stored.
    pub width: u32,
    /// Height as stored.
    pub height: u32,
    /// The transformation that turns the stored pixels upright.
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

/// Reads the headers of an image and checks them against `limits`. No pixel is decoded, so the image may still turn out to be
/// corrupt.
///
/// # Errors
/// Every [`DecodeError`] except [`DecodeError::Setup`].
pub fn inspect(bytes: &[u8], limits: &DecodeLimits) -> Result<ImageHeader, DecodeError> {
    let format = limits.format_of(bytes)?;
    guarded(format, || match format {
        ImageFormat::Jpeg => jpeg_header(bytes, limits).map(ImageHeader::from),
        ImageFormat::Tiff => tiff::open(bytes, limits, Until::NEVER).map(|opened| opened.header),
        ImageFormat::Png => png::open(bytes, limits, Until::NEVER).map(|opened| opened.header),
        _ => other::open(format, bytes, limits, Until::NEVER).map(|opened| opened.header),
    })
    .map_err(|(error, _)| error)
}

/// Decodes images into a buffer that it reuses. Owned by one thread.
///
/// The result for an image does not depend on images that were decoded before, including after errors.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    jpeg: jpeg::JpegDecoder,
    pixels: Buffer,
    scratch: Buffer,
}

/// A decoded image, whose RGB is at the start of the decoder's buffer.
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
    /// A decoder that rejects images beyond `limits`.
    ///
    /// # Errors
    /// [`DecodeError::Setup`] if libjpeg-turbo cannot be initialised.
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
    /// A JPEG may be decoded at a smaller scale (1/2, 1/4 or 1/8), as long as its shorter side stays at least `shorter_side`:
    /// pass the side to which it will be resized, or `u32::MAX` for full size.
    ///
    /// # Errors
    /// Every [`DecodeError`] except [`DecodeError::Setup`].
    pub fn decode(&mut self, bytes: &[u8], shorter_side: u32) -> Result<Image<'_>, DecodeError> {
        self.decode_until(bytes, shorter_side, Until::NEVER)
    }

    /// As [`decode`](Self::decode), with a time limit, which is checked between two rows of blocks of a JPEG, and for other
    /// formats every few kilobytes of input.
    ///
    /// # Errors
    /// Every [`DecodeError`] except [`DecodeError::Setup`].
    pub fn decode_until(
        &mut self,
        bytes: &[u8],
        shorter_side: u32,
        until: Until,
    ) -> Result<Image<'_>, DecodeError> {
        let format = self.limits.format_of(bytes)?;
        let until = until.or_work(self.limits.max_time);
        let decode = || self.decode_as(format, bytes, shorter_side, until);
        let decoded = match guarded(format, decode) {
            Ok(decoded) => decoded,
            Err((error, panicked)) => {
                if panicked {
                    // The state of the decoder is undefined.
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

    /// Memory that is kept for the next image, in bytes.
    pub fn retained_bytes(&self) -> usize {
        self.pixels.capacity() + self.scratch.capacity() + self.jpeg.retained_bytes()
    }

    /// Releases the memory of a large image; less than 24 MiB are kept. The next image of another size does so as well.
    pub fn trim(&mut self) {
        self.pixels.trim();
        self.scratch.trim();
        self.jpeg.trim();
    }
}

/// Runs `decode`. A panic becomes an error; the caller must then replace whatever `decode` was writing to.
///
/// # Errors
/// The error of `decode`, and whether it panicked.
fn guarded<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, (DecodeError, bool)> {
    // The caller replaces the state, as the doc comment requires.
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(result) => result.map_err(|error| (error, false)),
        Err(_) => {
            let detail = "the decoder failed on it; send it in another format";
            Err((DecodeError::unsupported(format, detail), true))
        }
    }
}

/// A byte buffer that grows to the largest image, and releases memory beyond [`MAX_KEPT`] once it is not needed.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// `len` bytes for writing. They hold data of earlier images.
    pub(super) fn take(&mut self, len: usize) -> &mut [u8] {
        if self.0.capacity() > MAX_KEPT.max(len) {
            self.0 = Vec::new();
        }
        if self.0.len() < len {
            // The old content is not needed: a new zeroed block is cheaper than a copied one.
            if self.0.capacity() < len {
                self.0 = Vec::new();
                self.0 = vec![0; len];
            } else {
                self.0.resize(len, 0);
            }
        }
        &mut self.0[..len]
    }

    /// The first `len` of the bytes that were taken last.
    pub(super) fn front(&self, len: usize) -> &[u8] {
        &self.0[..len.min(self.0.len())]
    }

    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Releases the memory if it is beyond [`MAX_KEPT`].
    pub(super) fn trim(&mut self) {
        if self.0.capacity() > MAX_KEPT {
            self.0 = Vec::new();
        }
    }
}

/// The orientation in an EXIF block, which begins with a TIFF header. `None` if there is none or the block is invalid.
fn exif_orientation(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif(::image::metadata::Orientation::from_exif_chunk(exif)?.to_exif())
}
