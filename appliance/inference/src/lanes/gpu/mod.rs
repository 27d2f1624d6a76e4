//! Lanes on GPUs: CPU threads and nvJPEG decode at the same time, and the images are computed in batches that overlap.
//!
//! ```text
//! decode ──> route ──> CPU threads ──> pinned memory ──upload──┐
//!                └───> nvJPEG threads ──> memory of the GPU ───┤
//!                                                              v
//!                        slot k+1:  images, kernel ──> tensor ──> engine ──> scores ──> read back
//!                        slot k:    computed meanwhile                      completion thread ──> poll
//! ```
//!
//! Only the lane's thread submits work to the stream that it shares with the engine. Decoding threads have their own streams;
//! the completion thread only waits until a batch has been read back.

mod batch_device;
mod batching;
mod build;
mod decode;
mod device;
mod engine;
mod golden;
mod pipeline;
mod worker;

pub use batch_device::{
    BatchDevice, BatchFactory, Builder, Built, Computed, Decoded, DeviceError, DeviceEvent, Ticket,
};
pub use batching::{Batching, BatchingError};
pub use build::{GpuSettings, build, gpu_factory};
pub use decode::{DecodeSettings, Decoders, EventSender, Message};
pub use engine::GpuEngine;
pub(super) use worker::BatchWorker;
pub use worker::CpuFallback;
