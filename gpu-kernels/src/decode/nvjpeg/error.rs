//! Why nvJPEG can't be used, or did not decode a batch.

use std::ffi::c_int;

use crate::cuda::LibraryError;

/// Why nvJPEG can't be used, or did not decode a batch.
#[derive(Debug, thiserror::Error)]
pub enum NvJpegError {
    /// Its library is not there or can't be loaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It refused a call.
    #[error("nvJPEG refused {call}: error {code} ({})", words(*code))]
    Refused {
        /// The function.
        call: &'static str,
        /// nvjpegStatus_t.
        code: i32,
    },
    /// The batch has more images than were asked for at [`open`](super::NvJpeg::open).
    #[error("a batch of {images} JPEGs was to be decoded; nvJPEG was opened for at most {max}")]
    BatchTooLarge {
        /// Images of the batch.
        images: usize,
        /// The limit.
        max: usize,
    },
    /// Not every image has a destination, or not every destination an image.
    #[error("{images} JPEGs were to be decoded to {destinations} destinations")]
    Unpaired {
        /// Images of the batch.
        images: usize,
        /// Destinations of the batch.
        destinations: usize,
    },
}

pub(super) const BAD_JPEG: c_int = 3;
pub(super) const JPEG_NOT_SUPPORTED: c_int = 4;
pub(super) const ARCH_MISMATCH: c_int = 7;
pub(super) const NOT_IMPLEMENTED: c_int = 9;
pub(super) const INCOMPLETE_BITSTREAM: c_int = 10;

/// The name of the function that makes a handle, of which a refusal can mean that there is no such hardware.
pub(super) const CREATE: &str = "nvjpegCreateEx";

fn words(code: i32) -> &'static str {
    match code {
        1 => "not initialised",
        2 => "invalid parameter",
        BAD_JPEG => "bad JPEG",
        JPEG_NOT_SUPPORTED => "JPEG not supported",
        5 => "allocator failure: out of memory",
        6 => "execution failed",
        ARCH_MISMATCH => "not for this GPU's architecture",
        8 => "internal error",
        NOT_IMPLEMENTED => "implementation not supported",
        INCOMPLETE_BITSTREAM => "incomplete bitstream",
        _ => "unknown",
    }
}

/// What a function of nvJPEG returned; 0 is success.
pub(super) fn check(call: &'static str, code: c_int) -> Result<(), NvJpegError> {
    if code == 0 { Ok(()) } else { Err(NvJpegError::Refused { call, code }) }
}

impl NvJpegError {
    /// Whether an image of the batch is to blame, so that the others may be tried without it; else the device, its memory or
    /// the caller is.
    pub fn is_of_the_image(&self) -> bool {
        matches!(self, Self::Refused { code: BAD_JPEG | JPEG_NOT_SUPPORTED | INCOMPLETE_BITSTREAM, .. })
    }

    /// Whether this GPU has no such engine: what [`open`](super::NvJpeg::open) meets with
    /// [`Hardware`](super::NvJpegBackend::Hardware) on most cards.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { call: CREATE, code: ARCH_MISMATCH | NOT_IMPLEMENTED })
    }
}
