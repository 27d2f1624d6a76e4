//! What can be seen from outside: metrics and logs.

mod cloud;
mod gpu;
mod labels;
mod lanes;
mod log_limit;
mod logging;
mod memory;
mod metrics;
mod models;
mod owned;
#[cfg(test)]
mod tests;

pub use cloud::{CloudReadings, UplinkReading};
pub use gpu::GpuMonitor;
pub use labels::{BatchOutcome, CacheOutcome, ClosedFor, ModelLabels, Stage};
pub use logging::{LogConfig, LogFormat, LoggingError, init as init_logging};
pub use memory::MemoryReadings;
pub use metrics::{Gauges, Metrics};
pub use owned::{Known, raise, register_each};
