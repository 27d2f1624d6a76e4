//! A lane's GPU: the CPU's cores and nvJPEG decode at once, and what they decode is computed in batches that overlap.
//!
//! ```text
//! decode ──> route ──> CPU threads ──> pinned memory ──upload──┐
//!                └───> nvJPEG threads ──> memory of the GPU ───┤
//!                                                              v
//!                        slot k+1:  images, kernel ──> tensor ──> engine ──> scores ──> read back
//!                        slot k:    computed meanwhile                      waiter thread ──> poll
//! ```
//!
//! The lane's thread alone puts work on the stream that it shares with the engine. Decoding threads have streams of their own;
//! the waiter only sleeps until a batch has been read back.

mod build;
mod decode;
mod device;
mod engine;
mod golden;
mod route;

pub use build::{GpuSettings, build, gpu_factory};
pub use decode::{DecodeSettings, Decoders, EventSender, Message};
pub use engine::GpuEngine;
