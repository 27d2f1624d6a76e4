//! The metrics of links, uplink, capture and batches: gauges that are read from their owners at a scrape.

use std::sync::atomic::AtomicU64;

use cloud_sync::health::LinkState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    link: &'static str,
}

/// What there is to say of links and batches at one moment.
#[derive(Default)]
pub struct CloudReadings {
    /// Every configured link.
    pub links: Vec<(&'static str, LinkState)>,
    /// The uplink, where there is one.
    pub uplink: Option<UplinkReading>,
    /// The capture of images, where there is one.
    pub capture: Option<CaptureReading>,
    /// Batches, where they are served or worked off.
    pub batch: Option<BatchReading>,
}

/// The uplink at one moment.
#[derive(Clone, Copy, Default)]
pub struct UplinkReading {
    /// Events that wait.
    pub backlog: u64,
    /// Seconds since the oldest of them happened.
    pub oldest_age_s: f64,
    /// Events sent since the start.
    pub sent: u64,
    /// Events refused for good since the start.
    pub dead_lettered: u64,
    /// Events that retention dropped before they were sent.
    pub lost: u64,
}

/// The capture at one moment.
#[derive(Clone, Copy, Default)]
pub struct CaptureReading {
    /// Images that wait.
    pub waiting: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Images sent since the start.
    pub sent: u64,
    /// Images not kept since the start.
    pub skipped: u64,
}

/// Batch work at one moment.
#[derive(Clone, Copy, Default)]
pub struct BatchReading {
    /// Messages that wait, where that is known.
    pub waiting: Option<u64>,
    /// Messages out for work.
    pub inflight: u64,
    /// Whether fetching has stopped because enough are out.
    pub paused: bool,
    /// Partitions that this process works on.
    pub partitions: u64,
    /// Images classified since the start.
    pub completed: u64,
    /// Images failed since the start.
    pub failed: u64,
    /// Messages that were no work.
    pub dead_letters: u64,
}

#[derive(Default)]
pub(super) struct CloudGauges {
    link_up: Family<LinkLabels, Gauge>,
    link_failures: Family<LinkLabels, Gauge>,
    uplink_backlog: Gauge,
    uplink_oldest_age: Gauge<f64, AtomicU64>,
    uplink_sent: Gauge,
    uplink_dead_lettered: Gauge,
    uplink_lost: Gauge,
    capture_waiting: Gauge,
    capture_size: Gauge,
    capture_sent: Gauge,
    capture_skipped: Gauge,
    batch_waiting: Gauge,
    batch_inflight: Gauge,
    batch_paused: Gauge,
    batch_partitions: Gauge,
    batch_completed: Gauge,
    batch_failed: Gauge,
    batch_dead_letters: Gauge,
}

impl CloudGauges {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("link_up", "1 while the newest call over the link worked", self.link_up.clone());
        r.register(
            "link_failures",
            "Calls over the link that failed since the start",
            self.link_failures.clone(),
        );
        r.register("uplink_backlog", "Events that have not reached Kafka", self.uplink_backlog.clone());
        r.register_with_unit(
            "uplink_oldest_age",
            "Age of the oldest event that has not reached Kafka",
            Unit::Seconds,
            self.uplink_oldest_age.clone(),
        );
        r.register("uplink_sent", "Events sent to Kafka since the start", self.uplink_sent.clone());
        r.register(
            "uplink_dead_lettered",
            "Events that Kafka refused for good",
            self.uplink_dead_lettered.clone(),
        );
        r.register(
            "uplink_lost",
            "Events that retention dropped before they were sent",
            self.uplink_lost.clone(),
        );
        r.register("capture_waiting", "Captured images that wait to be sent", self.capture_waiting.clone());
        r.register_with_unit("capture_size", "Their size on disk", Unit::Bytes, self.capture_size.clone());
        r.register("capture_sent", "Captured images sent since the start", self.capture_sent.clone());
        r.register("capture_skipped", "Images not captured for want of room", self.capture_skipped.clone());
        r.register("batch_waiting", "Batch messages that wait for work", self.batch_waiting.clone());
        r.register("batch_inflight", "Batch messages out for work", self.batch_inflight.clone());
        r.register(
            "batch_paused",
            "1 while enough batch messages are out for work",
            self.batch_paused.clone(),
        );
        r.register(
            "batch_partitions",
            "Partitions that this process works on",
            self.batch_partitions.clone(),
        );
        r.register(
            "batch_images_completed",
            "Batch images classified since the start",
            self.batch_completed.clone(),
        );
        r.register("batch_images_failed", "Batch images failed since the start", self.batch_failed.clone());
        r.register("batch_dead_letters", "Batch messages that were no work", self.batch_dead_letters.clone());
    }

    pub(super) fn set(&self, readings: &CloudReadings) {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (link, state) in &readings.links {
            let labels = LinkLabels { link };
            // A link that nobody has used yet is neither.
            if let Some(up) = state.up {
                self.link_up.get_or_create(&labels).set(i64::from(up));
            }
            self.link_failures.get_or_create(&labels).set(int(state.failures));
        }
        if let Some(uplink) = readings.uplink {
            self.uplink_backlog.set(int(uplink.backlog));
            self.uplink_oldest_age.set(uplink.oldest_age_s);
            self.uplink_sent.set(int(uplink.sent));
            self.uplink_dead_lettered.set(int(uplink.dead_lettered));
            self.uplink_lost.set(int(uplink.lost));
        }
        if let Some(capture) = readings.capture {
            self.capture_waiting.set(int(capture.waiting));
            self.capture_size.set(int(capture.bytes));
            self.capture_sent.set(int(capture.sent));
            self.capture_skipped.set(int(capture.skipped));
        }
        if let Some(batch) = readings.batch {
            self.batch_waiting.set(int(batch.waiting.unwrap_or(0)));
            self.batch_inflight.set(int(batch.inflight));
            self.batch_paused.set(i64::from(batch.paused));
            self.batch_partitions.set(int(batch.partitions));
            self.batch_completed.set(int(batch.completed));
            self.batch_failed.set(int(batch.failed));
            self.batch_dead_letters.set(int(batch.dead_letters));
        }
    }
}
