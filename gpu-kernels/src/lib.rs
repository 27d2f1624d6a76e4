//! Pixels for the appliance: encoded bytes in, a normalised tensor out. No HTTP, no cloud, no model.
//!
//! An image passes through two stages, each owned by one thread (a lane) that reuses its buffers:
//!
//! 1. [`Decoder`] turns the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF into an [`Image`]: interleaved
//!    RGB with the EXIF orientation beside it. [`inspect`] reads the headers alone.
//! 2. [`CpuPreprocessor`] resizes, crops, turns upright and normalises it, as [`preprocess`] defines.
//!
//! # Map
//!
//! | module | what it holds |
//! |---|---|
//! | [`image`](mod@crate::image) | [`Image`], [`ImageFormat`], [`Orientation`]: what passes between the stages |
//! | [`decode`] | sniffing, limits, JPEG through libjpeg-turbo, straight to a small scale or on the GPU by nvJPEG, the rest through the `image` crate |
//! | [`preprocess`] | the one definition of what is computed ([`ResizeCrop`]), the CPU that computes it, the compiled kernel |
//! | [`cuda`] | what there is of NVIDIA on this machine: driver, GPUs, libraries |
//!
//! Beside `src`, `kernels/` holds the CUDA sources, what they compile to, and `host.c`, with which tests run them here.
//!
//! # Where the GPU half goes
//!
//! `preprocess/cuda.rs` will launch [`preprocess::kernel`], once a batch. It computes the same [`ResizeCrop`] as the CPU, so
//! the two differ in arithmetic only. [`cuda`] gets streams and pinned buffers; it and [`decode::nvjpeg`] are the only places
//! where `unsafe` is allowed.

pub mod cuda;
pub mod decode;
pub mod image;
pub mod preprocess;

pub use decode::{DecodeError, DecodeLimits, Decoder, FormatSet, ImageHeader, inspect, sniff};
pub use image::{Image, ImageFormat, Orientation};
pub use preprocess::{CpuPreprocessor, PreprocessError, PreprocessSpec, ResizeCrop};
