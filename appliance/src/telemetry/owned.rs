//! Metrics whose values others keep: counters that are raised to a total, and a gauge that may have nothing to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Metric, Registry};

/// A counter of seconds.
pub(super) type Seconds = Counter<f64, AtomicU64>;

/// Raises a counter to a total that somebody else has counted. Of two scrapes at once the later total stays.
pub fn raise(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

/// The same for time. The bits of numbers that are not negative have the order of the numbers.
pub(super) fn raise_time(counter: &Seconds, total: Duration) {
    counter.inner().fetch_max(total.as_secs_f64().to_bits(), Ordering::Relaxed);
}

/// Registers metrics of one type by name and help text.
pub fn register_each<'a, M: Metric + Clone>(
    registry: &mut Registry,
    metrics: impl IntoIterator<Item = (&'static str, &'static str, &'a M)>,
) {
    for (name, help, metric) in metrics {
        registry.register(name, help, metric.clone());
    }
}

/// A gauge without a sample while its value is not known: a zero would be taken for one.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Option<u64>>>);

impl Known {
    /// None is not known.
    pub fn set(&self, value: Option<u64>) {
        *self.0.lock() = value;
    }
}

impl EncodeMetric for Known {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let value = *self.0.lock();
        value.map_or(Ok(()), |value| encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_none()
    }
}
