//! JPEG decoding on the GPU by NVIDIA's nvJPEG, with its hardware engines or its CUDA kernels, to planes of luma and chroma.
//!
//! nvJPEG does not report what is wrong with a damaged file, and may decode what [`Decoder`](crate::Decoder) rejects. So JPEGs
//! are checked on the host before:
//!
//! 1. [`eligible()`] parses the headers, more strictly than [`Decoder`](crate::Decoder).
//! 2. [`EntropyCheck`] checks every Huffman code of a baseline JPEG. Only this detects missing data in a file that still ends
//!    with an EOI. It takes two thirds of the time in which the CPU decodes a small picture, so it is optional.
//!
//! [`NvJpeg`] is the library, [`GpuJpegDecoder`] a lane's handle. What a check rejects is decoded, or rejected with a reason,
//! on the CPU.

mod decoder;
mod eligible;
mod session;

pub use decoder::{GpuDecodeError, GpuJpegDecoder};
pub use eligible::{Eligible, EntropyCheck, Ineligible, JpegDestination, JpegPlanes, eligible};
pub use session::NvJpeg;

use std::ffi::c_int;

use crate::cuda::LibraryError;

/// nvJPEG's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NvJpegBackend {
    /// The JPEG engines of data-centre GPUs since Ampere: baseline JPEGs of one scan.
    Hardware,
    /// CUDA kernels. In batches of more than 50 they also decode the Huffman codes of baseline JPEGs; in smaller ones, and for
    /// all other JPEGs, the calling thread does.
    Cuda,
}

impl NvJpegBackend {
    /// nvjpegBackend_t.
    fn code(self) -> std::ffi::c_uint {
        match self {
            Self::Hardware => 3,
            Self::Cuda => 2,
        }
    }
}

/// Why nvJPEG can't be used, or did not decode a batch.
#[derive(Debug, thiserror::Error)]
pub enum NvJpegError {
    /// Its library is missing or can't be loaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A call failed.
    #[error("nvJPEG refused {call}: error {code} ({})", words(*code))]
    Refused {
        /// The function.
        call: &'static str,
        /// nvjpegStatus_t.
        code: i32,
    },
    /// The batch is larger than the limit given to [`open`](NvJpeg::open).
    #[error("a batch of {images} JPEGs is larger than the limit of {max} with which nvJPEG was opened")]
    BatchTooLarge {
        /// Images of the batch.
        images: usize,
        /// The limit.
        max: usize,
    },
    /// The numbers of images and destinations differ.
    #[error("there are {images} JPEGs, but {destinations} destinations")]
    Unpaired {
        /// Images of the batch.
        images: usize,
        /// Destinations of the batch.
        destinations: usize,
    },
}

const BAD_JPEG: c_int = 3;
const JPEG_NOT_SUPPORTED: c_int = 4;
const ARCH_MISMATCH: c_int = 7;
const NOT_IMPLEMENTED: c_int = 9;
const INCOMPLETE_BITSTREAM: c_int = 10;

/// The function that creates a handle; its failure can mean that the GPU has no hardware engine.
const CREATE: &str = "nvjpegCreateEx";

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

/// Converts a return code of nvJPEG; 0 is success.
fn check(call: &'static str, code: c_int) -> Result<(), NvJpegError> {
    if code == 0 { Ok(()) } else { Err(NvJpegError::Refused { call, code }) }
}

impl NvJpegError {
    /// Whether an image of the batch is at fault, so that the others may be retried without it; otherwise the device, its
    /// memory or the caller is.
    pub fn is_of_the_image(&self) -> bool {
        matches!(self, Self::Refused { code: BAD_JPEG | JPEG_NOT_SUPPORTED | INCOMPLETE_BITSTREAM, .. })
    }

    /// Whether this GPU has no such engine: the result of [`open`](NvJpeg::open) with [`Hardware`](NvJpegBackend::Hardware) on
    /// most cards.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { call: CREATE, code: ARCH_MISMATCH | NOT_IMPLEMENTED })
    }
}
