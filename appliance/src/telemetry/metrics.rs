//! The metrics of the appliance, in OpenMetrics text. Histograms and most counters are written where things happen;
//! gauges, and totals that others keep, are read from their owners when somebody asks.

use std::time::Duration;

use cloud_sync::cache::CacheStats;
use cloud_sync::outbox::Stats as OutboxStats;
use gpu_kernels::cuda::GpuReading;
use parking_lot::RwLock;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::cloud::{CloudMetrics, CloudReadings};
use super::gpu::GpuMetrics;
use super::labels::{
    BatchOutcome, CacheOutcome, ClosedFor, FailureLabels, LaneLabels, ModelLabels, OutcomeLabels,
    ReasonLabels, RequestLabels, SpeciesLabels, Stage, StageLabels,
};
use super::memory::{MemoryMetrics, MemoryReadings};
use super::models::ModelMetrics;
use super::owned::{Seconds, raise, raise_time};

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
    /// The GPUs of this machine, by their numbers; None is one that can't be read.
    pub gpus: Vec<Option<GpuReading>>,
}

/// The registry, and the metrics of all modules that do not keep their own.
pub struct Metrics {
    registry: RwLock<Registry>,
    connections: Gauge,
    connection_limit: Gauge,
    connections_closed: Family<ReasonLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    pub(super) engine_batch: Histogram,
    cache: Family<OutcomeLabels, Counter>,
    batches: Family<OutcomeLabels, Counter>,
    batch_images: Family<OutcomeLabels, Counter>,
    pub(super) lane_busy: Family<LaneLabels, Seconds>,
    pub(super) lane_restarts: Family<LaneLabels, Counter>,
    pub(super) lane_stalls: Family<LaneLabels, Counter>,
    pub(super) device_failures: Family<FailureLabels, Counter>,
    pub(super) device_retries: Counter,
    pub(super) skipped: Family<ReasonLabels, Counter>,
    pub(super) invalid_scores: Family<ReasonLabels, Counter>,
    species: Family<SpeciesLabels, Counter>,
    models: ModelMetrics,
    queue_depth: Gauge,
    queue_capacity: Gauge,
    lanes_alive: Gauge,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    outbox: OutboxMetrics,
    memory: MemoryMetrics,
    cloud: CloudMetrics,
    gpus: GpuMetrics,
}

#[derive(Default)]
struct OutboxMetrics {
    events: Gauge,
    backlog: Gauge,
    bytes: Gauge,
    bulk_bytes: Gauge,
    oldest_age: Gauge,
    dropped: Counter,
    failed: Counter,
    syncs: Counter,
    sync_time: Seconds,
    healthy: Gauge,
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
    /// Registers its own metrics; [`Metrics::add`] registers others'.
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
            engine_batch: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            cache: Family::default(),
            batches: Family::default(),
            batch_images: Family::default(),
            lane_busy: Family::default(),
            lane_restarts: Family::default(),
            lane_stalls: Family::default(),
            device_failures: Family::default(),
            device_retries: Counter::default(),
            skipped: Family::default(),
            invalid_scores: Family::default(),
            species: Family::default(),
            models: ModelMetrics::new(),
            queue_depth: Gauge::default(),
            queue_capacity: Gauge::default(),
            lanes_alive: Gauge::default(),
            cache_entries: Gauge::default(),
            cache_bytes: Gauge::default(),
            outbox: OutboxMetrics::default(),
            memory: MemoryMetrics::default(),
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
        r.register(
            "http_connections_closed",
            "Connections closed before their clients wanted it, by reason",
            self.connections_closed.clone(),
        );
        r.register_with_unit(
            "stage_duration",
            "Time by stage of a request",
            Unit::Seconds,
            self.stages.clone(),
        );
        r.register("engine_batch_size", "Images in one run of the engine", self.engine_batch.clone());
        r.register("batches_submitted", "Submissions of batches by outcome", self.batches.clone());
        r.register("batch_images_submitted", "Images of those batches", self.batch_images.clone());
        r.register("cache_requests", "How the content cache answered", self.cache.clone());
        r.register_with_unit(
            "lane_busy",
            "Time a lane spent computing",
            Unit::Seconds,
            self.lane_busy.clone(),
        );
        r.register("device_failures", "Times a lane's GPU failed, by kind", self.device_failures.clone());
        r.register(
            "device_retries",
            "Images that were computed again after their GPU failed",
            self.device_retries.clone(),
        );
        r.register("lane_restarts", "Times a lane's device was built anew", self.lane_restarts.clone());
        r.register(
            "lane_stalls",
            "Times a lane was stuck at an image and replaced",
            self.lane_stalls.clone(),
        );
        self.memory.register(r);
        r.register(
            "invalid_scores",
            "Images for which a model put out no valid scores",
            self.invalid_scores.clone(),
        );
        r.register("jobs_skipped", "Queued images answered without being computed", self.skipped.clone());
        r.register("predictions", "Predictions acknowledged, by first label", self.species.clone());
        self.models.register(r);
        r.register("queue_depth", "Images that wait for a lane", self.queue_depth.clone());
        r.register("queue_capacity", "Bound of the queue", self.queue_capacity.clone());
        r.register("lanes_alive", "Lanes whose device works", self.lanes_alive.clone());
        r.register("cache_entries", "Answers in the content cache", self.cache_entries.clone());
        r.register_with_unit("cache_size", "Memory of cached answers", Unit::Bytes, self.cache_bytes.clone());
        let o = &self.outbox;
        r.register("outbox_events", "Events on disk", o.events.clone());
        r.register("outbox_backlog", "Events on disk that have not left the box", o.backlog.clone());
        r.register_with_unit("outbox_size", "Outbox on disk", Unit::Bytes, o.bytes.clone());
        r.register_with_unit(
            "outbox_batch_size",
            "Results of batches in the outbox that have not left the box",
            Unit::Bytes,
            o.bulk_bytes.clone(),
        );
        r.register_with_unit(
            "outbox_oldest_age",
            "Age of the oldest event",
            Unit::Seconds,
            o.oldest_age.clone(),
        );
        r.register("outbox_dropped", "Events dropped at the bound", o.dropped.clone());
        r.register("outbox_append_failures", "Appends that failed", o.failed.clone());
        r.register("outbox_syncs", "Forced writes to the disk", o.syncs.clone());
        r.register_with_unit("outbox_sync_time", "Time in forced writes", Unit::Seconds, o.sync_time.clone());
        self.cloud.register(r);
        self.gpus.register(r);
        r.register("outbox_healthy", "1 while events can be made durable", o.healthy.clone());
    }

    /// Counts an answered request.
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// How many connections are open.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// How many there may be.
    pub fn connection_limit(&self, limit: usize) {
        self.connection_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Counts a connection that was closed before its client wanted it.
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

    /// Counts a submission of a batch of so many images; 0 where that is not known.
    pub fn batch(&self, outcome: BatchOutcome, images: u64) {
        let labels = OutcomeLabels { outcome: outcome.name() };
        self.batches.get_or_create(&labels).inc();
        self.batch_images.get_or_create(&labels).inc_by(images);
    }

    /// Counts an acknowledged prediction.
    pub fn prediction(&self, species: &str) {
        self.species.get_or_create(&SpeciesLabels { species: species.into() }).inc();
    }

    /// The version that these labels name serves from now on.
    pub fn serving(&self, labels: &ModelLabels) {
        self.models.serving(labels);
    }

    /// A version of the model called `model` is on trial from now on.
    pub fn on_trial(&self, model: &str, version: &str) {
        self.models.on_trial(model, version);
    }

    /// A prediction of a version was acknowledged.
    pub fn model_prediction(&self, model: &str, version: &str) {
        self.models.prediction(model, version);
    }

    /// A version computed an image in this time of its lane's.
    pub fn model_computed(&self, model: &str, version: &str, busy: Duration) {
        self.models.computed(model, version, busy);
    }

    /// A version failed on an image that is not at fault.
    pub fn model_failure(&self, model: &str, version: &str) {
        self.models.failure(model, version);
    }

    /// A version came to serve, was rejected or rolled back.
    pub fn rollout(&self, model: &str, state: &str) {
        self.models.change(model, state);
    }

    /// OpenMetrics text of everything; the gauges stay as they were if there are none to give yet.
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
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.queue_depth.set(int(gauges.queue_depth as u64));
        self.queue_capacity.set(int(gauges.queue_capacity as u64));
        self.lanes_alive.set(int(gauges.lanes_alive as u64));
        self.memory.set(&gauges.memory);
        self.cloud.set(&gauges.cloud);
        self.gpus.set(&gauges.gpus);
        if let Some(cache) = gauges.cache {
            self.cache_entries.set(int(cache.entries));
            self.cache_bytes.set(int(cache.bytes));
        }
        let (to, Some(from)) = (&self.outbox, &gauges.outbox) else { return };
        to.events.set(int(from.events));
        to.backlog.set(int(from.backlog));
        to.bytes.set(int(from.bytes));
        to.bulk_bytes.set(int(from.bulk_bytes));
        to.oldest_age.set(int(from.oldest.and_then(|t| t.elapsed().ok()).map_or(0, |age| age.as_secs())));
        raise(&to.dropped, from.dropped_by_size + from.dropped_by_age);
        raise(&to.failed, from.failed);
        raise(&to.syncs, from.syncs);
        raise_time(&to.sync_time, from.total_sync);
        to.healthy.set(i64::from(from.error.is_none()));
    }
}
