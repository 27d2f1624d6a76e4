//! JPEGs decoded on the GPU by NVIDIA's nvJPEG, by its hardware engines or its CUDA kernels, to planes of luma and chroma.
//!
//! nvJPEG does not say of a damaged file what is wrong with it, and may make pixels of what
//! [`Decoder`](crate::Decoder) refuses. So it only gets what is checked on the host:
//!
//! 1. [`eligible()`] reads the headers, more strictly than [`Decoder`](crate::Decoder) does.
//! 2. [`EntropyCheck`] follows every Huffman code of a baseline JPEG to the last one. Only this shows that data is missing
//!    in a file that still ends in an EOI. It takes two thirds of the time in which the CPU decodes a small picture, so that
//!    whoever decodes decides whether the certainty is worth it.
//!
//! [`NvJpeg`] is the library, [`GpuJpegDecoder`] what a lane has of it. What either check turns away the CPU decodes, or refuses by name.

mod calls;
mod decoder;
mod eligible;
mod error;
mod planes;
mod session;

pub use decoder::{GpuDecodeError, GpuJpegDecoder};
pub use eligible::{Eligible, EntropyCheck, Ineligible, eligible};
pub use error::NvJpegError;
pub use planes::{JpegDestination, JpegPlanes};
pub use session::NvJpeg;

/// Which engine of nvJPEG decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NvJpegBackend {
    /// The JPEG engines of data-centre GPUs since Ampere: baseline JPEGs of one scan.
    Hardware,
    /// CUDA kernels. In batches of more than 50 they also read the Huffman codes of baseline JPEGs; in smaller ones, and
    /// of all others, the calling thread does.
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
