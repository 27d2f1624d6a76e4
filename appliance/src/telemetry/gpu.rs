//! The metrics of GPUs, as NVML reports them.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{GpuError, GpuReading, LibraryError, Nvml};
use inference::engine::DeviceKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;

use super::metrics::{int, raise};

/// A reading is reused up to this age, however many scrapers there are.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Timeout of a reading: a driver whose GPU has failed may not return, and the other metrics are needed then too.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// `gpus` by number; `None` is a GPU that cannot be read.
    pub(super) fn set(&self, gpus: &[Option<GpuReading>]) {
        for (gpu, reading) in (0..).zip(gpus) {
            let labels = GpuLabels { gpu };
            self.up.get_or_create(&labels).set(i64::from(reading.is_some()));
            let now = reading.unwrap_or_default();
            let utilization = now.utilization.map(|percent| f64::from(percent) / 100.0);
            let watts = now.power.map(|milliwatts| f64::from(milliwatts) / 1000.0);
            show(&self.utilization, &labels, utilization, Gauge::set);
            show(&self.memory_used, &labels, now.memory_used.map(int), Gauge::set);
            show(&self.memory_total, &labels, now.memory_total.map(int), Gauge::set);
            show(&self.temperature, &labels, now.temperature.map(i64::from), Gauge::set);
            show(&self.power, &labels, watts, Gauge::set);
            show(&self.throttled, &labels, now.throttled.map(i64::from), Gauge::set);
            show(&self.ecc_errors, &labels, now.ecc_errors, raise);
        }
    }
}

/// Sets a known value. An unknown value has no sample, not even its old one, which would be taken for the present.
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

/// Reads the GPUs of this machine.
#[derive(Debug)]
pub struct GpuMonitor {
    folders: Vec<PathBuf>,
    max_age: Duration,
    read_timeout: Duration,
    /// `None` inside where there is no library, or no GPU is wanted.
    nvml: OnceLock<Option<Nvml>>,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    read: Option<Instant>,
    gpus: Vec<Option<GpuReading>>,
}

impl GpuMonitor {
    /// Reads all GPUs that NVML sees, also those that compute nothing here; none where the CPU is configured. NVML is opened
    /// at the first scrape.
    pub fn new(wanted: DeviceKind, library_folders: &[PathBuf]) -> Arc<Self> {
        Self::with_times(wanted, library_folders, MAX_AGE, READ_TIMEOUT)
    }

    fn with_times(
        wanted: DeviceKind,
        library_folders: &[PathBuf],
        max_age: Duration,
        read_timeout: Duration,
    ) -> Arc<Self> {
        let nvml = if wanted == DeviceKind::Cpu { OnceLock::from(None) } else { OnceLock::new() };
        let folders = library_folders.to_vec();
        Arc::new(Self { folders, max_age, read_timeout, nvml, last: Arc::default() })
    }

    /// The readings by GPU number, at most a second old. `None` is a GPU that cannot be read or does not answer in time. Empty
    /// without NVML.
    pub async fn readings(self: &Arc<Self>) -> Vec<Option<GpuReading>> {
        if matches!(self.nvml.get(), Some(None)) {
            return Vec::new();
        }
        let answer = tokio::time::timeout(self.read_timeout, Arc::clone(self).newest()).await;
        answer.ok().flatten().unwrap_or_else(|| {
            tracing::debug!("nvml does not answer");
            let gpus = self.nvml.get().and_then(Option::as_ref).map_or(0, Nvml::gpus);
            vec![None; gpus as usize]
        })
    }

    /// `None` if the reading panics.
    async fn newest(self: Arc<Self>) -> Option<Vec<Option<GpuReading>>> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if last.read.is_none_or(|read| read.elapsed() >= self.max_age) {
            // The task holds the lock: while one reading does not return, no other starts.
            let reading = tokio::task::spawn_blocking(move || {
                self.read(&mut last);
                last
            });
            last = reading.await.ok()?;
        }
        Some(last.gpus.clone())
    }

    fn read(&self, last: &mut Last) {
        let Some(nvml) = self.nvml.get_or_init(|| open(&self.folders)) else { return };
        let read = |gpu: u32| match nvml.read(gpu) {
            Ok(reading) => Some(reading),
            Err(error) => {
                // Logged when it starts, not at every reading.
                if last.gpus.get(gpu as usize) != Some(&None) {
                    tracing::warn!(gpu, %error, remedy = error.remedy(), "cannot read the GPU");
                }
                None
            }
        };
        last.gpus = (0..nvml.gpus()).map(read).collect();
        last.read = Some(Instant::now());
    }
}

fn open(folders: &[PathBuf]) -> Option<Nvml> {
    match Nvml::open(folders) {
        Ok(nvml) => Some(nvml),
        Err(error @ GpuError::Library(LibraryError::Missing { .. })) => {
            tracing::debug!(%error, "no metrics of GPUs");
            None
        }
        Err(error) => {
            tracing::warn!(%error, remedy = error.remedy(), "no metrics of GPUs");
            None
        }
    }
}
