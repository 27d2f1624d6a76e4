//! What can be seen from outside: metrics and logs, in one place.

mod cloud;
mod logging;
mod metrics;
mod models;
mod owned;
#[cfg(test)]
mod tests;

pub use cloud::{BatchReading, CloudReadings, UplinkReading};
pub use logging::{LoggingError, init as init_logging};
pub use metrics::{BatchOutcome, CacheOutcome, Gauges, Metrics, Stage};
