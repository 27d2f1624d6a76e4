//! The metrics of lanes, their queue, and the memory for images. Lanes are counted as they compute; gauges are read at a
//! scrape.

use std::time::Duration;

use inference::lanes::{Classified, ClassifyError, LaneError, LaneObserver, SkipReason};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{FailureLabels, LaneLabels, ReasonLabels, Stage};
use super::metrics::{Metrics, Seconds, int, register_each};

/// Memory for images at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryReadings {
    /// Bytes of encoded images, and the limit.
    pub bodies: (u64, u64),
    /// Bytes reserved for decoding, and the limit.
    pub decode: (u64, u64),
    /// Images that wait for memory.
    pub waiting: u64,
    /// Threads that are stuck at an image.
    pub stuck: u64,
}

pub(super) struct LaneMetrics {
    batch_size: Histogram,
    busy: Family<LaneLabels, Seconds>,
    restarts: Family<LaneLabels, Counter>,
    stalls: Family<LaneLabels, Counter>,
    device_failures: Family<FailureLabels, Counter>,
    device_retries: Counter,
    skipped: Family<ReasonLabels, Counter>,
    invalid_scores: Family<ReasonLabels, Counter>,
    pub(super) queue_depth: Gauge,
    pub(super) queue_capacity: Gauge,
    pub(super) alive: Gauge,
    body_memory: Gauge,
    body_memory_limit: Gauge,
    decode_memory: Gauge,
    decode_memory_limit: Gauge,
    decode_memory_waiting: Gauge,
    stuck: Gauge,
}

impl Default for LaneMetrics {
    fn default() -> Self {
        Self {
            batch_size: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            busy: Family::default(),
            restarts: Family::default(),
            stalls: Family::default(),
            device_failures: Family::default(),
            device_retries: Counter::default(),
            skipped: Family::default(),
            invalid_scores: Family::default(),
            queue_depth: Gauge::default(),
            queue_capacity: Gauge::default(),
            alive: Gauge::default(),
            body_memory: Gauge::default(),
            body_memory_limit: Gauge::default(),
            decode_memory: Gauge::default(),
            decode_memory_limit: Gauge::default(),
            decode_memory_waiting: Gauge::default(),
            stuck: Gauge::default(),
        }
    }
}

impl LaneMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("engine_batch_size", "Images in one run of the engine", self.batch_size.clone());
        let busy = "Time a lane spent computing";
        r.register_with_unit("lane_busy", busy, Unit::Seconds, self.busy.clone());
        let failures = "Times a lane's GPU failed, by kind";
        r.register("device_failures", failures, self.device_failures.clone());
        let retries = "Images that were computed again after their GPU failed";
        r.register("device_retries", retries, self.device_retries.clone());
        let by_lane = [
            ("lane_restarts", "Times a lane's device was built anew", &self.restarts),
            ("lane_stalls", "Times a lane was stuck at an image and replaced", &self.stalls),
        ];
        register_each(r, by_lane);
        let by_reason = [
            ("invalid_scores", "Images for which a model put out no valid scores", &self.invalid_scores),
            ("jobs_skipped", "Queued images answered without being computed", &self.skipped),
        ];
        register_each(r, by_reason);
        for (name, help, gauge) in [
            ("body_memory_used", "Bodies and encoded images in memory", &self.body_memory),
            ("body_memory_limit", "Bound of those", &self.body_memory_limit),
            ("decode_memory_used", "Memory reserved for decoding", &self.decode_memory),
            ("decode_memory_limit", "Bound of it", &self.decode_memory_limit),
        ] {
            r.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        let gauges = [
            (
                "decode_memory_waiting",
                "Images that wait for memory to be decoded",
                &self.decode_memory_waiting,
            ),
            ("lanes_stuck", "Threads that are stuck at an image and were replaced", &self.stuck),
            ("queue_depth", "Images that wait for a lane", &self.queue_depth),
            ("queue_capacity", "Bound of the queue", &self.queue_capacity),
            ("lanes_alive", "Lanes whose device works", &self.alive),
        ];
        register_each(r, gauges);
    }

    pub(super) fn set_memory(&self, from: &MemoryReadings) {
        self.body_memory.set(int(from.bodies.0));
        self.body_memory_limit.set(int(from.bodies.1));
        self.decode_memory.set(int(from.decode.0));
        self.decode_memory_limit.set(int(from.decode.1));
        self.decode_memory_waiting.set(int(from.waiting));
        self.stuck.set(int(from.stuck));
    }
}

impl LaneObserver for Metrics {
    fn computed(
        &self,
        lane: usize,
        busy: Duration,
        waited: Duration,
        outcome: &Result<Classified, LaneError>,
    ) {
        self.lanes.busy.get_or_create(&lane_labels(lane)).inc_by(busy.as_secs_f64());
        self.stage(Stage::Queue, waited);
        if let Ok(classified) = outcome {
            self.stage(Stage::Decode, classified.timings.decode);
            self.stage(Stage::Preprocess, classified.timings.preprocess);
            self.stage(Stage::Infer, classified.timings.infer);
        }
        if let Err(LaneError::Classify(ClassifyError::Engine(error))) = outcome
            && let Some(reason) = error.fault_of_scores()
        {
            self.lanes.invalid_scores.get_or_create(&ReasonLabels { reason }).inc();
        }
    }

    fn ran(&self, images: usize) {
        self.lanes.batch_size.observe(images as f64);
    }

    fn skipped(&self, _lane: usize, reason: SkipReason) {
        let reason = match reason {
            SkipReason::Cancelled => "cancelled",
            SkipReason::Deadline => "deadline",
        };
        self.lanes.skipped.get_or_create(&ReasonLabels { reason }).inc();
    }

    fn device_failed(&self, lane: usize, kind: &'static str, retried: usize) {
        let LaneLabels { lane } = lane_labels(lane);
        self.lanes.device_failures.get_or_create(&FailureLabels { lane, kind }).inc();
        self.lanes.device_retries.inc_by(retried as u64);
    }

    fn stalled(&self, lane: usize) {
        self.lanes.stalls.get_or_create(&lane_labels(lane)).inc();
    }

    fn restarted(&self, lane: usize) {
        self.lanes.restarts.get_or_create(&lane_labels(lane)).inc();
    }
}

fn lane_labels(lane: usize) -> LaneLabels {
    LaneLabels { lane: u32::try_from(lane).unwrap_or(u32::MAX) }
}
