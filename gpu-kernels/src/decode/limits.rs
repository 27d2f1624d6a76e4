//! What an image may be and cost. All of it is read from headers, before memory is taken.

use std::fmt;
use std::time::Duration;

use super::{DecodeError, sniff};
use crate::image::ImageFormat;

/// Scans that a JPEG of `max_pixels` may have: about twice what encoders write.
const SCANS_OF_LARGEST: u64 = 20;

/// What an image may be and cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most bytes of the encoded image.
    pub max_bytes: usize,
    /// Most pixels, width times height, of the image in the file.
    pub max_pixels: u64,
    /// Most scans of a progressive JPEG. Encoders write about ten. Large images may have fewer: [`DecodeLimits::scans_of`].
    pub max_scans: u32,
    /// Longest time that decoding may take, in CPU time of the thread that decodes.
    pub max_time: Duration,
    /// The formats that are accepted.
    pub formats: FormatSet,
}

impl Default for DecodeLimits {
    /// 20 MiB, 50 megapixels, 100 scans, half a minute, every format.
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
    /// Most scans of a JPEG of so many pixels. Each scan takes time for every pixel: `max_pixels` with [`SCANS_OF_LARGEST`] scans is
    /// the most work that an image may cause.
    pub(super) fn scans_of(&self, width: u32, height: u32) -> u32 {
        let pixels = (u64::from(width) * u64::from(height)).max(1);
        let most = self.max_pixels.saturating_mul(SCANS_OF_LARGEST) / pixels;
        self.max_scans.min(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// The format of `bytes`, where it is accepted and they are not too many.
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

/// A set of formats. Written out it reads as in a sentence: `JPEG, PNG or WebP`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FormatSet(u8);

impl FormatSet {
    /// Every format that is read.
    pub const ALL: Self = Self((1 << ImageFormat::ALL.len()) - 1);

    /// Whether `format` is one of them.
    pub fn contains(self, format: ImageFormat) -> bool {
        self.0 & Self::bit(format) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(format: ImageFormat) -> u8 {
        1 << format as u8
    }
}

impl FromIterator<ImageFormat> for FormatSet {
    fn from_iter<I: IntoIterator<Item = ImageFormat>>(formats: I) -> Self {
        Self(formats.into_iter().fold(0, |set, format| set | Self::bit(format)))
    }
}

impl fmt::Display for FormatSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<_> = ImageFormat::ALL
            .into_iter()
            .filter(|&format| self.contains(format))
            .map(ImageFormat::title)
            .collect();
        match titles.split_last() {
            None => f.write_str("nothing"),
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} or {last}", rest.join(", ")),
        }
    }
}

impl fmt::Debug for FormatSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(ImageFormat::ALL.into_iter().filter(|&format| self.contains(format))).finish()
    }
}
