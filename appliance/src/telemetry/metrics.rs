//! The metrics of the appliance, as OpenMetrics text. Histograms and most counters are updated where things happen; gauges,
//! and totals that other modules count, are read from their owners at a scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::cache::CacheStats;
use cloud_sync::outbox::Stats as OutboxStats;
use gpu_kernels::cuda::GpuReading;
use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use super::cloud::{CloudMetrics, CloudReadings, OutboxMetrics};
use super::gpu::GpuMetrics;
use super::labels::{
    BatchOutcome, CacheOutcome, ClosedFor, ModelLabels, OutcomeLabels, ReasonLabels, RequestLabels,
    SpeciesLabels, Stage, StageLabels,
};
use super::lanes::{LaneMetrics, MemoryReadings};
use super::models::ModelMetrics;

/// Values that are read from their owners at the moment of a scrape.
pub struct Gauges {
    /// Images that wait for a lane.
    pub queue_depth: usize,
    /// Bound of the queue.
    pub queue_capacity: usize,
    /// Lanes whose device works.
    pub lanes_alive: usize,
    /// Memory for images, and threads that are stuck at one.
    pub memory: MemoryReadings,
    /// The content cache; a worker has none.
    pub cache: Option<CacheStats>,
    /// The outbox; a worker has none.
    pub outbox: Option<OutboxStats>,
    /// Links, and what uses them.
    pub cloud: CloudReadings,
    /// The GPUs of this machine, by number; `None` is one that cannot be read.
    pub gpus: Vec<Option<GpuReading>>,
}

/// The registry, and the metrics of modules that do not own theirs.
pub struct Metrics {
    registry: RwLock<Registry>,
    connections: Gauge,
    connection_limit: Gauge,
    connections_closed: Family<ReasonLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    cache: Family<OutcomeLabels, Counter>,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    batches: Family<OutcomeLabels, Counter>,
    batch_images: Family<OutcomeLabels, Counter>,
    species: Family<SpeciesLabels, Counter>,
    pub(super) lanes: LaneMetrics,
    models: ModelMetrics,
    outbox: OutboxMetrics,
    cloud: CloudMetrics,
    gpus: GpuMetrics,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers its own metrics; [`Metrics::add`] registers those of other modules.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("weir");
        let stages = Family::<StageLabels, Histogram>::new_with_constructor(|| {
            // 0.1 ms to 13 s: from a cache hit to a deadline.
            Histogram::new(exponential_buckets(0.0001, 2.0, 18))
        });
        let mut metrics = Self {
            connections: Gauge::default(),
            connection_limit: Gauge::default(),
            connections_closed: Family::default(),
            requests: Family::default(),
            stages,
            cache: Family::default(),
            cache_entries: Gauge::default(),
            cache_bytes: Gauge::default(),
            batches: Family::default(),
            batch_images: Family::default(),
            species: Family::default(),
            lanes: LaneMetrics::default(),
            models: ModelMetrics::new(),
            outbox: OutboxMetrics::default(),
            cloud: CloudMetrics::default(),
            gpus: GpuMetrics::default(),
            registry: RwLock::default(),
        };
        metrics.register(&mut registry);
        *metrics.registry.get_mut() = registry;
        metrics
    }

    /// Adds the metrics of a module that keeps its own.
    pub fn add(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.write());
    }

    fn register(&self, r: &mut Registry) {
        r.register("http_requests", "Requests by route and status", self.requests.clone());
        r.register("http_connections", "Open connections", self.connections.clone());
        r.register("http_connections_limit", "Bound on them", self.connection_limit.clone());
        let closed = "Connections closed before their clients wanted it, by reason";
        r.register("http_connections_closed", closed, self.connections_closed.clone());
        let stages = "Time by stage of a request";
        r.register_with_unit("stage_duration", stages, Unit::Seconds, self.stages.clone());
        let outcomes = [
            ("batches_submitted", "Submissions of batches by outcome", &self.batches),
            ("batch_images_submitted", "Images of those batches", &self.batch_images),
            ("cache_requests", "How the content cache answered", &self.cache),
        ];
        register_each(r, outcomes);
        r.register("predictions", "Predictions acknowledged, by first label", self.species.clone());
        r.register("cache_entries", "Answers in the content cache", self.cache_entries.clone());
        r.register_with_unit("cache_size", "Memory of cached answers", Unit::Bytes, self.cache_bytes.clone());
        self.lanes.register(r);
        self.models.register(r);
        self.outbox.register(r);
        self.cloud.register(r);
        self.gpus.register(r);
    }

    /// Counts an answered request.
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// Sets the number of open connections.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Sets the limit of open connections.
    pub fn connection_limit(&self, limit: usize) {
        self.connection_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Counts a connection that the server closed.
    pub fn connection_closed(&self, reason: ClosedFor) {
        self.connections_closed.get_or_create(&ReasonLabels { reason: reason.name() }).inc();
    }

    /// Records the time that one stage took.
    pub fn stage(&self, stage: Stage, time: Duration) {
        self.stages.get_or_create(&StageLabels { stage: stage.name() }).observe(time.as_secs_f64());
    }

    /// Counts how the cache answered.
    pub fn cache(&self, outcome: CacheOutcome) {
        self.cache.get_or_create(&OutcomeLabels { outcome: outcome.name() }).inc();
    }

    /// Counts a submission of a batch with this many images; 0 if the number is not known.
    pub fn batch(&self, outcome: BatchOutcome, images: u64) {
        let labels = OutcomeLabels { outcome: outcome.name() };
        self.batches.get_or_create(&labels).inc();
        self.batch_images.get_or_create(&labels).inc_by(images);
    }

    /// Counts an acknowledged prediction.
    pub fn prediction(&self, species: &str) {
        self.species.get_or_create(&SpeciesLabels { species: species.into() }).inc();
    }

    /// Sets the current version of a model.
    pub fn serving(&self, labels: &ModelLabels) {
        self.models.serving(labels);
    }

    /// Adds the version on trial of `model`.
    pub fn on_trial(&self, model: &str, version: &str) {
        self.models.on_trial(model, version);
    }

    /// Counts an acknowledged prediction of a version.
    pub fn model_prediction(&self, model: &str, version: &str) {
        self.models.prediction(model, version);
    }

    /// Counts an image that a version computed, and the time that it kept its lane busy.
    pub fn model_computed(&self, model: &str, version: &str, busy: Duration) {
        self.models.computed(model, version, busy);
    }

    /// Counts an image on which a version failed, where the image is not the cause.
    pub fn model_failure(&self, model: &str, version: &str) {
        self.models.failure(model, version);
    }

    /// Counts a version that was promoted, rejected or rolled back.
    pub fn rollout(&self, model: &str, state: &str) {
        self.models.change(model, state);
    }

    /// All metrics as OpenMetrics text. Without `gauges` the values of the last scrape stay.
    ///
    /// # Errors
    /// Only if formatting fails, which a String does not.
    pub fn render(&self, gauges: Option<&Gauges>) -> Result<String, std::fmt::Error> {
        if let Some(gauges) = gauges {
            self.set(gauges);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry.read())?;
        Ok(text)
    }

    fn set(&self, gauges: &Gauges) {
        self.lanes.queue_depth.set(int(gauges.queue_depth as u64));
        self.lanes.queue_capacity.set(int(gauges.queue_capacity as u64));
        self.lanes.alive.set(int(gauges.lanes_alive as u64));
        self.lanes.set_memory(&gauges.memory);
        self.cloud.set(&gauges.cloud);
        self.gpus.set(&gauges.gpus);
        if let Some(cache) = gauges.cache {
            self.cache_entries.set(int(cache.entries));
            self.cache_bytes.set(int(cache.bytes));
        }
        if let Some(outbox) = &gauges.outbox {
            self.outbox.set(outbox);
        }
    }
}

/// A gauge's value.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A counter of seconds.
pub(super) type Seconds = Counter<f64, AtomicU64>;

/// Raises a counter to a total that another module counts. Of two concurrent scrapes the larger total stays.
pub fn raise(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

/// The same for time. The bits of non-negative floats are ordered like the floats.
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

/// A gauge without a sample while its value is not known: a zero would be taken for the value.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Option<u64>>>);

impl Known {
    /// `None` is not known.
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
