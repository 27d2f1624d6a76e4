//! An outbox with an uplink, and helpers to observe both.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::error::Link;
use cloud_sync::event::{BatchSummary, Event, EventBody, ImageRef, ModelRef, Prediction, Score};
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::KafkaConfig;
use cloud_sync::outbox::{Durability, Outbox, OutboxConfig};
use cloud_sync::uplink::{Uplink, UplinkConfig, UplinkStatus};

pub(crate) const BOUND: Duration = Duration::from_secs(180);

/// An event of about 600 bytes, as `/predict` makes them.
pub(crate) fn event(number: usize, camera: Option<&str>) -> Event {
    let score = |label: &str, score| Score { label: label.into(), score };
    let prediction = Prediction {
        request_id: format!("request-{number:07}"),
        camera: camera.map(Into::into),
        model: ModelRef { name: "fish".into(), version: "1".into(), digest: "b".repeat(64) },
        image: ImageRef {
            digest: format!("{number:064x}"),
            format: "jpeg".into(),
            bytes: 150_000,
            width: 1920,
            height: 1080,
        },
        species: "tench".into(),
        confidence: 0.93,
        predictions: vec![score("tench", 0.93), score("eel", 0.03), score("not_fish", 0.02)],
        cached: false,
    };
    Event::new("box-1", EventBody::Prediction(prediction))
}

/// An event without a camera.
pub(crate) fn summary(request: &str) -> Event {
    let body = BatchSummary {
        request_id: request.into(),
        status: "completed".into(),
        total: 1,
        completed: 1,
        failed: 0,
        results_uri: "file:///results".into(),
    };
    Event::new("box-1", EventBody::Batch(body))
}

pub(crate) fn open(dir: &Path) -> Arc<Outbox> {
    let config = OutboxConfig {
        durability: Durability::OsBuffered,
        max_pending: 100_000,
        ..OutboxConfig::new(dir.join("outbox"))
    };
    Arc::new(Outbox::open(config).unwrap().0)
}

/// Appends events and returns their ids.
pub(crate) fn append(outbox: &Outbox, events: impl IntoIterator<Item = Event>) -> Vec<String> {
    let (mut ids, mut waits) = (Vec::new(), Vec::new());
    for event in events {
        ids.push(event.id.to_string());
        waits.push(outbox.append_event(&event));
    }
    for wait in waits {
        wait.wait().unwrap();
    }
    ids
}

pub(crate) fn config(dir: &Path) -> UplinkConfig {
    UplinkConfig {
        timeout: Duration::from_secs(8),
        backoff_initial: Duration::from_millis(50),
        backoff_max: Duration::from_secs(1),
        ..UplinkConfig::new("box-1", dir.join("outbox"), dir.join("dead"))
    }
}

pub(crate) fn start(dir: &Path, kafka: &KafkaConfig, outbox: &Arc<Outbox>) -> Uplink {
    start_with(config(dir), kafka, outbox)
}

pub(crate) fn start_with(config: UplinkConfig, kafka: &KafkaConfig, outbox: &Arc<Outbox>) -> Uplink {
    Uplink::start(config, kafka.clone(), Arc::clone(outbox), LinkHealth::new(Link::Kafka)).unwrap()
}

/// Waits until the status is as `what` says.
pub(crate) fn until(uplink: &Uplink, what: impl Fn(&UplinkStatus) -> bool) -> UplinkStatus {
    let begun = Instant::now();
    loop {
        let status = uplink.status();
        if what(&status) {
            return status;
        }
        assert!(begun.elapsed() < BOUND, "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until everything that is in the outbox now is sent.
pub(crate) fn drain(uplink: &Uplink, outbox: &Outbox) -> UplinkStatus {
    let last = outbox.last_sequence();
    until(uplink, |status| status.sent_sequence >= last)
}
