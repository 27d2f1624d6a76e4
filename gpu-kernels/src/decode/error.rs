//! Errors of decoding.

use super::FormatSet;
use crate::image::ImageFormat;

/// Why an image was rejected. The message is meant for the client that sent it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image is empty (0 bytes)")]
    EmptyImage,

    /// The bytes are not of an accepted format, whatever their file name or declared type.
    #[error("unsupported file type: the bytes look like {looks_like}; send {accepted}")]
    UnsupportedType {
        /// What the first bytes look like.
        looks_like: &'static str,
        /// The accepted formats.
        accepted: FormatSet,
    },

    /// The format is known, but the data is damaged or truncated.
    #[error("corrupt {format} image: {detail}")]
    CorruptImage {
        /// The format of the bytes.
        format: ImageFormat,
        /// What is wrong.
        detail: String,
    },

    /// The image may be valid, but uses an unsupported feature of its format.
    #[error("unsupported {format} image: {detail}")]
    UnsupportedImage {
        /// The format of the bytes.
        format: ImageFormat,
        /// What is not supported, and what to send instead where that is known.
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

    /// More pixels than [`DecodeLimits::max_pixels`](crate::DecodeLimits::max_pixels), according to the header.
    #[error("the image is {width} x {height} = {pixels} pixels; at most {max} are accepted",
            pixels = u64::from(*width) * u64::from(*height))]
    TooManyPixels {
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// The limit.
        max: u64,
    },

    /// More scans than [`DecodeLimits::max_scans`](crate::DecodeLimits::max_scans), or than an image of its size may have.
    /// Decoding time grows with pixels times scans, so a small file could occupy a lane for minutes.
    #[error("the jpeg has more than {max} scans, the limit for its size")]
    TooManyScans {
        /// The limit.
        max: u32,
    },

    /// Decoding was cancelled at the caller's time limit, or after [`DecodeLimits::max_time`](crate::DecodeLimits::max_time).
    #[error("decoding the image took too long and was cancelled")]
    OutOfTime,

    /// The JPEG library could not be initialised; no image is at fault.
    #[error("the JPEG decoder could not be initialised: {0}")]
    Setup(String),
}

impl DecodeError {
    /// The error code for API clients, in snake case.
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

    /// The data ends too early.
    pub(crate) fn truncated(format: ImageFormat) -> Self {
        Self::corrupt(format, "it ends before its last pixel")
    }

    /// A decoder reached its memory limit.
    pub(crate) fn exceeds_memory(format: ImageFormat) -> Self {
        Self::unsupported(format, "decoding it takes more memory than its size allows")
    }
}
