//! Why bytes could not become an image.

use super::FormatSet;
use crate::image::ImageFormat;

/// Why an image was refused. The message is fit for the person who sent it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the image is empty (0 bytes)")]
    EmptyImage,

    /// The bytes are none of the formats that are accepted, whatever their name or declared type.
    #[error("unsupported file type: the bytes look like {looks_like}; send {accepted}")]
    UnsupportedType {
        /// What the first bytes resemble.
        looks_like: &'static str,
        /// What is accepted.
        accepted: FormatSet,
    },

    /// The bytes are of a known format, but damaged or cut short.
    #[error("corrupt {format} image: {detail}")]
    CorruptImage {
        /// The format of the bytes.
        format: ImageFormat,
        /// What is wrong with them.
        detail: String,
    },

    /// The image may be sound, but uses something of its format that is not read.
    #[error("unsupported {format} image: {detail}")]
    UnsupportedImage {
        /// The format of the bytes.
        format: ImageFormat,
        /// What is not supported, and what to send in its place where that is known.
        detail: String,
    },

    /// More bytes than [`DecodeLimits::max_bytes`](crate::DecodeLimits::max_bytes).
    #[error("the image has {bytes} bytes; at most {max} are accepted")]
    ImageTooLarge {
        /// Size of the encoded image.
        bytes: usize,
        /// The limit.
        max: usize,
    },

    /// More pixels than [`DecodeLimits::max_pixels`](crate::DecodeLimits::max_pixels), by its header.
    #[error("the image is {width} x {height} = {pixels} pixels; at most {max} are accepted",
            pixels = u64::from(*width) * u64::from(*height))]
    TooManyPixels {
        /// Width by the header.
        width: u32,
        /// Height by the header.
        height: u32,
        /// The limit.
        max: u64,
    },

    /// More scans than [`DecodeLimits::max_scans`](crate::DecodeLimits::max_scans), or than an image of its size may have. Decoding time
    /// grows with pixels times scans, so a small file could hold a lane for minutes.
    #[error("the jpeg has more than {max} scans, the most that are accepted of its size")]
    TooManyScans {
        /// The limit.
        max: u32,
    },

    /// Decoding was given up at the time that the caller had set, or after [`DecodeLimits::max_time`](crate::DecodeLimits::max_time).
    #[error("decoding the image took too long and was given up")]
    OutOfTime,

    /// The JPEG library could not be set up; no image is to blame.
    #[error("the JPEG decoder could not be set up: {0}")]
    Setup(String),
}

impl DecodeError {
    /// A stable name for programs, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyImage => "empty_image",
            Self::UnsupportedType { .. } => "unsupported_type",
            Self::CorruptImage { .. } => "corrupt_image",
            Self::UnsupportedImage { .. } => "unsupported_image",
            Self::ImageTooLarge { .. } => "image_too_large",
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::TooManyScans { .. } => "too_many_scans",
            Self::OutOfTime => "image_too_costly",
            Self::Setup(_) => "decoder_setup",
        }
    }

    pub(crate) fn corrupt(format: ImageFormat, detail: impl Into<String>) -> Self {
        Self::CorruptImage { format, detail: detail.into() }
    }

    pub(crate) fn unsupported(format: ImageFormat, detail: impl Into<String>) -> Self {
        Self::UnsupportedImage { format, detail: detail.into() }
    }
}
