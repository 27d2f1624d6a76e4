//! Memory for images, read at the moment of a scrape.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// How the budgets stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryReadings {
    /// Bytes of encoded images, and their bound.
    pub bodies: (u64, u64),
    /// Bytes reserved for decoding, and their bound.
    pub decode: (u64, u64),
    /// Images that wait for memory.
    pub waiting: u64,
    /// Threads that are stuck at an image.
    pub stuck: u64,
}

#[derive(Debug, Default)]
pub(super) struct MemoryMetrics {
    body: Gauge,
    body_limit: Gauge,
    decode: Gauge,
    decode_limit: Gauge,
    waiting: Gauge,
    stuck: Gauge,
}

impl MemoryMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let mut bytes = |name, help, gauge: &Gauge| {
            r.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        };
        bytes("body_memory_used", "Bodies and encoded images in memory", &self.body);
        bytes("body_memory_limit", "Bound of those", &self.body_limit);
        bytes("decode_memory_used", "Memory reserved for decoding", &self.decode);
        bytes("decode_memory_limit", "Bound of it", &self.decode_limit);
        r.register(
            "decode_memory_waiting",
            "Images that wait for memory to be decoded",
            self.waiting.clone(),
        );
        r.register("lanes_stuck", "Threads that are stuck at an image and were replaced", self.stuck.clone());
    }

    pub(super) fn set(&self, from: &MemoryReadings) {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.body.set(int(from.bodies.0));
        self.body_limit.set(int(from.bodies.1));
        self.decode.set(int(from.decode.0));
        self.decode_limit.set(int(from.decode.1));
        self.waiting.set(int(from.waiting));
        self.stuck.set(int(from.stuck));
    }
}
