//! Limits on images, and upper bounds on the memory that decoding takes. Both are computed from headers, before anything is
//! allocated.

use std::time::Duration;

use super::{DecodeError, FormatSet, sniff};
use crate::image::ImageFormat;

/// Limit on the scans of a JPEG of `max_pixels`: about twice what encoders write.
const SCANS_OF_LARGEST: u64 = 20;

/// Limits on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Maximum size of the encoded image in bytes.
    pub max_bytes: usize,
    /// Maximum number of pixels (width times height) in the file.
    pub max_pixels: u64,
    /// Most scans of a progressive JPEG. Encoders write about ten. Large images may have fewer: [`DecodeLimits::scans_of`].
    pub max_scans: u32,
    /// Maximum time for decoding, in CPU time of the decoding thread.
    pub max_time: Duration,
    /// The accepted formats.
    pub formats: FormatSet,
}

impl Default for DecodeLimits {
    /// 20 MiB, 50 megapixels, 100 scans, 30 s, all formats.
    fn default() -> Self {
        Self {
            max_bytes: 20 << 20,
            max_pixels: 50_000_000,
            max_scans: 100,
            max_time: Duration::from_secs(30),
            formats: FormatSet::ALL,
        }
    }
}

impl DecodeLimits {
    /// Limit on the scans of a JPEG of this size. Each scan takes time for every pixel: [`SCANS_OF_LARGEST`] scans of
    /// `max_pixels` are the maximum work per image.
    pub(super) fn scans_of(&self, width: u32, height: u32) -> u32 {
        let pixels = (u64::from(width) * u64::from(height)).max(1);
        let most = self.max_pixels.saturating_mul(SCANS_OF_LARGEST) / pixels;
        self.max_scans.min(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// The format of `bytes`, if it is accepted and their size is within the limit.
    pub(super) fn format_of(&self, bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
        let accepted = self.formats;
        let format = sniff(bytes).map_err(|error| match error {
            DecodeError::UnsupportedType { looks_like, .. } => {
                DecodeError::UnsupportedType { looks_like, accepted }
            }
            error => error,
        })?;
        if !accepted.contains(format) {
            return Err(DecodeError::UnsupportedType { looks_like: format.title(), accepted });
        }
        self.check_bytes(bytes)?;
        Ok(format)
    }

    fn check_bytes(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        if bytes.len() > self.max_bytes {
            return Err(DecodeError::ImageTooLarge { bytes: bytes.len(), max: self.max_bytes });
        }
        Ok(())
    }

    pub(super) fn check_size(&self, format: ImageFormat, width: u32, height: u32) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::corrupt(format, format!("its header says {width} x {height} pixels")));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(DecodeError::TooManyPixels { width, height, max: self.max_pixels });
        }
        Ok(())
    }
}

/// Upper bounds on the memory of a decode.
pub(super) mod memory {
    use super::{DecodeError, ImageFormat};

    /// Memory independent of the number of pixels: tables, rows, metadata, copies of compressed data.
    pub(in crate::decode) const FIXED: u64 = 60 << 20;
    /// Memory per pixel declared in the header.
    pub(in crate::decode) const PER_PIXEL: u64 = 12;
    /// Tables, row buffers of narrow images, decoder state: what every format needs.
    pub(in crate::decode) const BASE: u64 = 2 << 20;

    pub(in crate::decode) fn pixels(width: u32, height: u32) -> u64 {
        u64::from(width) * u64::from(height)
    }

    /// What remains of the limit after `memory`.
    pub(in crate::decode) fn left((width, height): (u32, u32), memory: u64) -> u64 {
        (FIXED + PER_PIXEL * pixels(width, height)).saturating_sub(memory)
    }

    /// `memory`, if it is within the limit of [`FIXED`] and [`PER_PIXEL`].
    ///
    /// # Errors
    /// [`DecodeError::UnsupportedImage`].
    pub(in crate::decode) fn accepted(
        format: ImageFormat,
        (width, height): (u32, u32),
        memory: u64,
    ) -> Result<u64, DecodeError> {
        let most = FIXED + PER_PIXEL * pixels(width, height);
        if memory > most {
            return Err(DecodeError::unsupported(
                format,
                format!(
                    "decoding {width} x {height} pixels would take {memory} bytes of memory; at most {most} are accepted"
                ),
            ));
        }
        Ok(memory)
    }
}
