//! Metrics and logs.

mod cloud;
mod gpu;
mod labels;
mod lanes;
mod logging;
mod metrics;
mod models;
#[cfg(test)]
mod tests;

pub use cloud::{CloudReadings, UplinkReading};
pub use gpu::GpuMonitor;
pub use labels::{BatchOutcome, CacheOutcome, ClosedFor, ModelLabels, Stage};
pub use lanes::MemoryReadings;
pub use logging::{LogConfig, init as init_logging};
pub use metrics::{Gauges, Known, Metrics, raise, register_each};
