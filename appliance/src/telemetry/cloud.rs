//! The metrics of links, uplink, capture and outbox, read from their owners at a scrape.

use std::sync::atomic::AtomicU64;

use cloud_sync::blob::Room;
use cloud_sync::capture::CaptureStats;
use cloud_sync::health::LinkState;
use cloud_sync::outbox::Stats as OutboxStats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::{Known, Seconds, int, raise, raise_time, register_each};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    link: &'static str,
}

/// Links, uplink, capture and local objects at one moment.
#[derive(Default)]
pub struct CloudReadings {
    /// Every configured link.
    pub links: Vec<(&'static str, LinkState)>,
    /// The uplink, where there is one.
    pub uplink: Option<UplinkReading>,
    /// The capture of images, where there is one.
    pub capture: Option<CaptureStats>,
    /// The objects in the data directory, where there are any and they have been counted.
    pub blobs: Option<Room>,
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
    /// Times that a dead letter could not be written.
    pub dead_letter_failures: u64,
    /// Times that another process published under the same identity.
    pub fenced: u64,
    /// Times that the outbox took a new identity.
    pub renewed: u64,
}

#[derive(Default)]
pub(super) struct CloudMetrics {
    link_up: Family<LinkLabels, Gauge>,
    link_failures: Family<LinkLabels, Counter>,
    uplink_backlog: Gauge,
    uplink_oldest_age: Gauge<f64, AtomicU64>,
    uplink_sent: Counter,
    uplink_dead_lettered: Counter,
    uplink_lost: Counter,
    uplink_dead_letter_failures: Counter,
    uplink_fenced: Counter,
    uplink_renewed: Counter,
    capture_waiting: Gauge,
    capture_size: Gauge,
    capture_dead_kept: Gauge,
    capture_sent: Counter,
    capture_skipped: Counter,
    capture_deduplicated: Counter,
    capture_dead: Counter,
    blobs_size: Known,
    blobs_limit: Known,
}

impl CloudMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("link_up", "1 while the newest call over the link worked", self.link_up.clone());
        r.register("link_failures", "Calls over the link that failed", self.link_failures.clone());
        r.register("uplink_backlog", "Events that have not reached Kafka", self.uplink_backlog.clone());
        r.register_with_unit(
            "uplink_oldest_age",
            "Age of the oldest event that has not reached Kafka",
            Unit::Seconds,
            self.uplink_oldest_age.clone(),
        );
        r.register_with_unit(
            "capture_size",
            "Size on disk of captured images that wait",
            Unit::Bytes,
            self.capture_size.clone(),
        );
        let blobs = "Size on disk of the objects in the data directory";
        r.register_with_unit("blobs_size", blobs, Unit::Bytes, self.blobs_size.clone());
        let limit = "Bound on the objects in the data directory";
        r.register_with_unit("blobs_limit", limit, Unit::Bytes, self.blobs_limit.clone());
        let gauges = [
            ("capture_waiting", "Captured images that wait to be sent", &self.capture_waiting),
            ("capture_dead_kept", "Captured images on disk that were refused", &self.capture_dead_kept),
        ];
        register_each(r, gauges);
        register_each(r, self.counters());
    }

    fn counters(&self) -> [(&'static str, &'static str, &Counter); 10] {
        [
            ("uplink_sent", "Events sent to Kafka", &self.uplink_sent),
            ("uplink_dead_lettered", "Events that Kafka refused for good", &self.uplink_dead_lettered),
            ("uplink_lost", "Events that retention dropped before they were sent", &self.uplink_lost),
            (
                "uplink_dead_letter_failures",
                "Dead letters that could not be written; their events wait",
                &self.uplink_dead_letter_failures,
            ),
            ("uplink_fenced", "Times that another process had the outbox's identity", &self.uplink_fenced),
            (
                "uplink_identities_renewed",
                "Times that a copied or restored outbox took a new identity",
                &self.uplink_renewed,
            ),
            ("capture_sent", "Captured images sent", &self.capture_sent),
            ("capture_skipped", "Images not captured for want of room", &self.capture_skipped),
            ("capture_deduplicated", "Images that had been captured before", &self.capture_deduplicated),
            ("capture_dead", "Captured images that the storage refused for good", &self.capture_dead),
        ]
    }

    pub(super) fn set(&self, readings: &CloudReadings) {
        for (link, state) in &readings.links {
            let labels = LinkLabels { link };
            // A link that has not been used yet is neither up nor down.
            if let Some(up) = state.up {
                self.link_up.get_or_create(&labels).set(i64::from(up));
            }
            raise(&self.link_failures.get_or_create(&labels), state.failures);
        }
        if let Some(uplink) = readings.uplink {
            self.uplink_backlog.set(int(uplink.backlog));
            self.uplink_oldest_age.set(uplink.oldest_age_s);
            raise(&self.uplink_sent, uplink.sent);
            raise(&self.uplink_dead_lettered, uplink.dead_lettered);
            raise(&self.uplink_lost, uplink.lost);
            raise(&self.uplink_dead_letter_failures, uplink.dead_letter_failures);
            raise(&self.uplink_fenced, uplink.fenced);
            raise(&self.uplink_renewed, uplink.renewed);
        }
        if let Some(capture) = &readings.capture {
            self.capture_waiting.set(int(capture.spooled));
            self.capture_size.set(int(capture.bytes));
            self.capture_dead_kept.set(int(capture.dead_kept));
            raise(&self.capture_sent, capture.sent);
            raise(&self.capture_skipped, capture.skipped);
            raise(&self.capture_deduplicated, capture.deduplicated);
            raise(&self.capture_dead, capture.dead);
        }
        self.blobs_size.set(readings.blobs.map(|room| room.bytes));
        self.blobs_limit.set(readings.blobs.map(|room| room.max_bytes));
    }
}

/// The metrics of the outbox, read at a scrape.
#[derive(Default)]
pub(super) struct OutboxMetrics {
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

impl OutboxMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let gauges = [
            ("outbox_events", "Events on disk", &self.events),
            ("outbox_backlog", "Events on disk that have not left the box", &self.backlog),
            ("outbox_healthy", "1 while events can be made durable", &self.healthy),
        ];
        register_each(r, gauges);
        r.register_with_unit("outbox_size", "Outbox on disk", Unit::Bytes, self.bytes.clone());
        let batches = "Results of batches in the outbox that have not left the box";
        r.register_with_unit("outbox_batch_size", batches, Unit::Bytes, self.bulk_bytes.clone());
        let oldest = "Age of the oldest event";
        r.register_with_unit("outbox_oldest_age", oldest, Unit::Seconds, self.oldest_age.clone());
        let counters = [
            ("outbox_dropped", "Events dropped at the bound", &self.dropped),
            ("outbox_append_failures", "Appends that failed", &self.failed),
            ("outbox_syncs", "Forced writes to the disk", &self.syncs),
        ];
        register_each(r, counters);
        let sync_time = "Time in forced writes";
        r.register_with_unit("outbox_sync_time", sync_time, Unit::Seconds, self.sync_time.clone());
    }

    pub(super) fn set(&self, from: &OutboxStats) {
        self.events.set(int(from.events));
        self.backlog.set(int(from.backlog));
        self.bytes.set(int(from.bytes));
        self.bulk_bytes.set(int(from.bulk_bytes));
        let age = from.oldest.and_then(|time| time.elapsed().ok()).map_or(0, |age| age.as_secs());
        self.oldest_age.set(int(age));
        raise(&self.dropped, from.dropped_by_size + from.dropped_by_age);
        raise(&self.failed, from.failed);
        raise(&self.syncs, from.syncs);
        raise_time(&self.sync_time, from.total_sync);
        self.healthy.set(i64::from(from.error.is_none()));
    }
}
