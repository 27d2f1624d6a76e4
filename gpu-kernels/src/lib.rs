//! Pixels for the appliance: encoded bytes in, a normalised tensor out. No HTTP, no cloud, no model.
//!
//! An image passes through two stages, each owned by one thread (a lane) that reuses its buffers:
//!
//! 1. [`Decoder`] decodes a JPEG, PNG, WebP, BMP, GIF or TIFF to an [`Image`]: interleaved RGB with its EXIF orientation.
//!    [`inspect`] only reads the headers.
//! 2. [`CpuPreprocessor`] resizes, crops, rotates and normalises it, as defined in [`preprocess`].
//!
//! # Map
//!
//! | module | content |
//! |---|---|
//! | [`image`](mod@crate::image) | [`Image`], [`ImageFormat`], [`Orientation`]: the data passed between the stages |
//! | [`decode`] | sniffing, limits, JPEG through libjpeg-turbo, straight to a small scale or on the GPU by nvJPEG, the rest through the `image` crate |
//! | [`preprocess`] | the definition of the preprocessing ([`ResizeCrop`]), its implementations on the CPU and on GPUs |
//! | [`cuda`] | NVIDIA: driver, GPUs, libraries; a GPU in use, its streams and memory |
//!
//! Beside `src`, `kernels/` holds the CUDA sources, the compiled kernel, and `host.c`, with which tests run its arithmetic on
//! the host.
//!
//! `unsafe` is only allowed in [`cuda`], [`preprocess::cuda`], [`decode::nvjpeg`] and the module that calls libjpeg-turbo.

pub mod cuda;
pub mod decode;
pub mod image;
pub mod preprocess;

pub use decode::{DecodeError, DecodeLimits, Decoder, FormatSet, ImageHeader, inspect, sniff};
pub use image::{Image, ImageFormat, Orientation};
pub use preprocess::{CpuPreprocessor, PreprocessError, PreprocessSpec, ResizeCrop};
