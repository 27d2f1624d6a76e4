//! What can be seen from outside: metrics and logs, in one place.

mod cloud;
mod logging;
mod metrics;

pub use cloud::{BatchReading, CaptureReading, CloudReadings, UplinkReading};
pub use logging::{LoggingError, init as init_logging};
pub use metrics::{BatchOutcome, CacheOutcome, Gauges, Metrics, ModelLabels, Stage};
