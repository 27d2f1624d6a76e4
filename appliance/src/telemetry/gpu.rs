//! The metrics of GPUs, from what NVML reports of them.

mod monitor;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicU64;

use gpu_kernels::cuda::GpuReading;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::owned::raise;

pub use monitor::GpuMonitor;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuLabels {
    gpu: u32,
}

type Float = Gauge<f64, AtomicU64>;

#[derive(Default)]
pub(super) struct GpuMetrics {
    up: Family<GpuLabels, Gauge>,
    utilization: Family<GpuLabels, Float>,
    memory_used: Family<GpuLabels, Gauge>,
    memory_total: Family<GpuLabels, Gauge>,
    temperature: Family<GpuLabels, Gauge>,
    power: Family<GpuLabels, Float>,
    throttled: Family<GpuLabels, Gauge>,
    ecc_errors: Family<GpuLabels, Counter>,
}

impl GpuMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("gpu_up", "1 while the GPU can be read", self.up.clone());
        r.register_with_unit(
            "gpu_utilization",
            "Part of the time in which a kernel ran",
            // The client's own unit is a plural, and Prometheus names such metrics in the singular.
            Unit::Other("ratio".into()),
            self.utilization.clone(),
        );
        let used = "Memory of the GPU in use, of all processes";
        r.register_with_unit("gpu_memory_used", used, Unit::Bytes, self.memory_used.clone());
        r.register_with_unit("gpu_memory_total", "Memory of the GPU", Unit::Bytes, self.memory_total.clone());
        let temperature = "Temperature of the GPU's chip";
        r.register_with_unit("gpu_temperature", temperature, Unit::Celsius, self.temperature.clone());
        let watts = Unit::Other("watts".into());
        r.register_with_unit("gpu_power", "Power that the GPU draws", watts, self.power.clone());
        r.register(
            "gpu_throttled",
            "1 while heat or power keeps the GPU's clocks down",
            self.throttled.clone(),
        );
        r.register(
            "gpu_ecc_errors",
            "Uncorrectable memory errors since the driver was loaded",
            self.ecc_errors.clone(),
        );
    }

    /// `gpus` by their numbers; None is a GPU that can't be read.
    pub(super) fn set(&self, gpus: &[Option<GpuReading>]) {
        for (gpu, reading) in (0..).zip(gpus) {
            let labels = GpuLabels { gpu };
            self.up.get_or_create(&labels).set(i64::from(reading.is_some()));
            let now = reading.unwrap_or_default();
            let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let busy = now.utilization.map(|percent| f64::from(percent) / 100.0);
            let watts = now.power.map(|milliwatts| f64::from(milliwatts) / 1000.0);
            show(&self.utilization, &labels, busy, Gauge::set);
            show(&self.memory_used, &labels, now.memory_used.map(int), Gauge::set);
            show(&self.memory_total, &labels, now.memory_total.map(int), Gauge::set);
            show(&self.temperature, &labels, now.temperature.map(i64::from), Gauge::set);
            show(&self.power, &labels, watts, Gauge::set);
            show(&self.throttled, &labels, now.throttled.map(i64::from), Gauge::set);
            show(&self.ecc_errors, &labels, now.ecc_errors, raise);
        }
    }
}

/// A sample of what is known. What is not known has none, nor has it its old one: that would be taken for the present.
fn show<M: Clone + Default, T, R>(
    family: &Family<GpuLabels, M>,
    labels: &GpuLabels,
    value: Option<T>,
    set: impl FnOnce(&M, T) -> R,
) {
    match value {
        Some(value) => {
            set(&family.get_or_create(labels), value);
        }
        None => {
            family.remove(labels);
        }
    }
}
