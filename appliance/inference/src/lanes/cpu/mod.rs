//! Lanes on the CPU: each owns a device, computes one job or a few at a time on its own thread, and is replaced when it is stuck.

mod crew;
mod device;
#[cfg(test)]
mod tests;
mod worker;

pub(super) use crew::Crew;
pub use device::{CpuPipeline, DeviceFactory, LaneDevice};
pub(super) use worker::Worker;
